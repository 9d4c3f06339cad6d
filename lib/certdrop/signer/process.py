"""The signer: a process of its own that holds the account key; and the network part's end of the socket to it.

It is forked before the network part shuts itself in, so that Landlock keeps that part from its files, memory and /proc; it shuts itself in too,
is not dumpable, and ends when the socket does, or its parent. Until it is asked for the first time it loads nothing: nothing imported here may
load cryptography. protocol.py has what is asked, service.py what is answered.
Runs as: _certdrop, shut in. Trusts: root's configuration. Reads and writes: see service.py.
"""

from __future__ import annotations

import os
import socket
import threading

from certdrop import events, happened, spool
from certdrop.config import general, site
from certdrop.issuer.failure import LOCAL, REFUSED, Failure
from certdrop.signer import jose, protocol
from certdrop.signer.protocol import LONGEST
from certdrop.walls import jail, syscalls

PATIENCE = 60.0                    # seconds for an answer: a new RSA key takes up to ten on a slow machine
LOOK = 60.0                        # seconds after which it looks whether its parent is still there
LIBRARIES = ("/usr/lib", "/usr/share", "/lib", "/lib64", "/usr/local/lib", "/usr/local/share", "/etc/ssl")


def start(config: general.Config, may: frozenset[str] = frozenset()) -> Signer:
    """Fork the signer for the configured CA. To be called before any thread, and before this process shuts itself in. Raises OSError."""
    entry = jose.entry(config.directory_url)
    try:                                       # what the CA said of the account once stood beside its key, where the network part does not read
        os.rename(f"{site.STATE}/account/{entry}.json", f"{site.STATE}/issuer/account@{entry}.json")
    except OSError:
        pass                                   # it is not there any more; or somebody put something into its way, and it is asked for again
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        try:
            _run(_alone_with(its), parent, config, may)
        finally:
            os._exit(os.EX_OK)
    its.close()
    return Signer(ours)


# ---- the process

def _alone_with(sock: socket.socket) -> socket.socket:
    """Keep this descriptor and no other: not the lock, a pipe or a terminal."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    kept = os.dup2(sock.detach(), 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return socket.socket(fileno=kept)


def _run(sock: socket.socket, parent: int, config: general.Config, may: frozenset[str]) -> None:
    """Shut in, wait until somebody asks, answer until nobody does any more."""
    log = events.Log("issuer")
    shut_in()
    sock.settimeout(LOOK)

    def following() -> bytes:
        """The next message; empty when there will be none."""
        while os.getppid() == parent:
            try:
                message = sock.recv(LONGEST + 1)
            except TimeoutError:
                continue
            return message if os.getppid() == parent else b""
        return b""
    message = following()
    if message:
        try:
            from certdrop.signer import service   # 100 ms, which a run that places no order can spare
            service.serve(sock, config, may, log, message, following)
        except OSError:
            pass                               # the other end is gone
        except ImportError as error:           # apt replaces it just now
            while message:
                sock.send(b"!" + f"it cannot load what it needs: {error}".encode("ascii", "backslashreplace")[:1000])
                message = following()
        except Exception as error:
            log.write(happened.FAILED, kind="internal", error=f"the signer: {error!r}")


def shut_in() -> None:
    """Confine the signer: to read requests/, sites.d/ and eab.toml, and to keep its keys. Which wall does not stand, the network part says."""
    jail.give_up_privileges()
    jail.forbid(CORE=0, NPROC=0, FSIZE=protocol.JOURNAL if protocol.HOSTS else 1 << 20)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(site.__file__)))
    try:
        jail.landlock((spool.requests(), site.ETC + "/eab.toml", site.ETC + "/sites.d", ours, *LIBRARIES, *filter(None, [protocol.HOSTS])),
                      (site.STATE + "/account",), ())
    except jail.Unconfined:
        pass
    try:
        syscalls.Filter(syscalls.SIGNER).enter()
    except jail.Unconfined:
        pass


# ---- the network part's end

class Signer:
    """The account key, as the network part has it: a socket. For several threads. Whatever is asked raises Failure where it is refused."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock = sock, threading.Lock()
        self._sock.settimeout(PATIENCE)
        self._woken = False                    # the answer to K is to come
        self._keys: list[jose.Numbers] = []

    def wake(self) -> None:
        """Have it load what it needs, for it will be asked."""
        with self._lock:
            if not self._keys and not self._woken:
                self._woken = True
                try:
                    self._send(b"K")
                except Failure:
                    pass                       # it has ended, as whoever wants an answer will hear

    @property
    def numbers(self) -> jose.Numbers:
        """The current public key."""
        return self._known()[0]

    @property
    def has_other(self) -> bool:
        """Whether there is another key: a change of keys was begun, now or some day."""
        return len(self._known()) > 1

    def jwk(self, other: bool = False) -> dict[str, str]:
        """The current public key, or the other."""
        return jose.jwk(self._known()[1 if other else 0])

    def sign(self, data: bytes, request: str = "") -> bytes:
        """A signature (RS256); `request` is the entry of requests/ that it is for."""
        return self._ask(b"S" + request.encode() + b"\n" + data)

    def binding(self, url: str) -> str:
        """A JWS that binds the account to the customer; empty where the administrator gave no key for it."""
        return self._ask(b"E" + url.encode()).decode()

    def make_other(self) -> None:
        """Make the key that shall follow."""
        self._learn(self._ask(b"N"))

    def change(self, url: str, account: str) -> str:
        """A request for the change to the other key."""
        return self._ask(f"C{url}\n{account}".encode()).decode()

    def exchange(self) -> None:
        """The CA holds the other key."""
        self._learn(self._ask(b"X"))

    def deactivated(self) -> None:
        """The account is no more."""
        self._ask(b"D")

    def _known(self) -> list[jose.Numbers]:
        if not self._keys:
            self.wake()
            with self._lock:
                if not self._keys:
                    self._learn(self._answer())
        return self._keys

    def _learn(self, text: bytes) -> None:
        self._keys = [jose.Numbers(*(int(part, 16) for part in line.split())) for line in text.decode().splitlines()]

    def _ask(self, message: bytes) -> bytes:
        self._known()                          # its answer comes first
        with self._lock:
            self._send(message)
            return self._answer()

    def _send(self, message: bytes) -> None:
        try:
            self._sock.send(message)
        except ConnectionError as error:
            raise Failure(LOCAL, "the signer has ended") from error
        except OSError as error:
            raise Failure(LOCAL, f"the signer: {error.strerror or error}") from error

    def _answer(self) -> bytes:
        try:
            answer = self._sock.recv(LONGEST)
        except OSError as error:
            self._sock.close()                 # a late answer must not be taken for the next one
            raise Failure(LOCAL, "the signer has ended" if isinstance(error, ConnectionError) else f"the signer: {error.strerror or 'no answer'}") from error
        if not answer:
            raise Failure(LOCAL, "the signer has ended")
        if answer[:1] != b"+":
            raise Failure(LOCAL if answer[:1] == b"!" else REFUSED, f"the signer: {answer[1:].decode('ascii', 'replace')}")
        return answer[1:]

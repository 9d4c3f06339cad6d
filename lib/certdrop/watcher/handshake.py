"""Asks the services of this host, by TLS handshakes, which certificate they show for a name.

Many at once in one thread, without waiting for the slow: after the deadline what did not answer was not seen.
Runs as: whoever imports it. Trusts: nothing that comes over a connection. Reads: /proc/net/tcp, /proc/net/tcp6.
"""

from __future__ import annotations

import hashlib
import selectors
import socket
import ssl
import sys
import time

TLS_PORT = 443
AT_ONCE = 64                       # handshakes
PATIENCE = 5.0                     # seconds for one handshake
DEADLINE = 30.0                    # seconds for all of them
MAX_ADDRESSES = 16

Address = tuple[str, int]
Question = tuple[Address, str, bool]           # where, for which name, and whether to say PROXY first

NOBODY = "nobody"                  # in place of a fingerprint: nothing listens
NOTHING = "nothing"                # ... or it listens, and shows no certificate


def listeners(port: int = TLS_PORT) -> list[Address]:
    """The addresses of this host on which somebody listens at a TCP port; 0.0.0.0 and :: as the loopback (proc(5))."""
    found: list[Address] = []
    for path, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            with open(path, encoding="ascii") as stream:
                lines = stream.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            host, _, at = fields[1].partition(":")
            if fields[3] != "0A" or int(at, 16) != port:       # 0A: LISTEN
                continue
            address = _address(host, family)
            if (address, port) not in found:
                found.append((address, port))
    return found[:MAX_ADDRESSES]


def addresses(probe: str, listening: list[Address]) -> list[Address]:
    """Where a site is asked for, by its `probe` setting."""
    if probe == "off":
        return []
    if probe in ("", "proxy-protocol"):
        return listening
    host, _, port = probe.rpartition(":")
    return [(host.strip("[]"), int(port))] if int(port) < 65536 else []


def context() -> ssl.SSLContext:
    """How we shake hands: what is shown is compared, whoever may trust it."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def ask(questions: list[Question], seconds: float = DEADLINE) -> dict[Question, str]:
    """The SHA-256 of the leaf shown for each question, or NOBODY or NOTHING. A question that the deadline cut off has no answer."""
    answers: dict[Question, str] = {}
    waiting = list(dict.fromkeys(questions))[::-1]
    end = time.monotonic() + seconds
    open_now: dict[_Handshake, float] = {}
    tls = context()
    with selectors.DefaultSelector() as selector:
        while (waiting or open_now) and time.monotonic() < end:
            while waiting and len(open_now) < AT_ONCE:
                started = _Handshake(waiting.pop(), tls)
                open_now[started] = time.monotonic() + PATIENCE
                selector.register(started.connection, selectors.EVENT_WRITE, started)
            ready = {key.data for key, _ in selector.select(0.2)}
            for one, patience in list(open_now.items()):
                shown = one.step() if one in ready else NOTHING if time.monotonic() > patience else None
                if shown is not None:
                    answers[one.question] = shown
                    selector.unregister(one.connection)
                    one.connection.close()
                    del open_now[one]
                elif one in ready:
                    selector.modify(one.connection, one.wants, one)
        for one in open_now:
            one.connection.close()
    return answers


class _Handshake:
    """One connection on its way, never blocking."""

    def __init__(self, question: Question, context: ssl.SSLContext) -> None:
        self.question = question
        self.context = context
        self.wants = selectors.EVENT_WRITE
        self.tls: ssl.SSLObject | None = None
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        (host, port), _, _ = question
        self.connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.connection.setblocking(False)
        self.unsent = b""
        self.connection.connect_ex((host, port))

    def step(self) -> str | None:
        """Go on; the answer, or None as long as there is none."""
        try:
            return self._step()
        except BlockingIOError:
            return None
        except (OSError, ValueError):          # ssl.SSLError is an OSError; ValueError: a name that SNI cannot carry
            return NOTHING

    def _step(self) -> str | None:
        if self.tls is None:
            error = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return NOBODY
            _, name, proxied = self.question
            self.tls = self.context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
            self.unsent = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n" if proxied else b""
        elif self.wants == selectors.EVENT_READ:
            data = self.connection.recv(16384)
            if not data:
                return NOTHING
            self.incoming.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.unsent += self.outgoing.read()
            self.unsent = self.unsent[self.connection.send(self.unsent):] if self.unsent else b""
            self.wants = selectors.EVENT_WRITE if self.unsent else selectors.EVENT_READ
            return None
        leaf = self.tls.getpeercert(True)
        try:
            self.connection.send(self.outgoing.read())         # the end of the handshake, so that the service sees no error
        except OSError:
            pass
        return hashlib.sha256(leaf).hexdigest() if leaf else NOTHING


def _address(text: str, family: socket.AddressFamily) -> str:
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":              # each 32-bit word is in the host's order
        raw = b"".join(raw[i:i + 4][::-1] for i in range(0, len(raw), 4))
    address = socket.inet_ntop(family, raw)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)

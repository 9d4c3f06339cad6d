"""The system calls of each principal: what its filter refuses and lets through, in a child process that tries, with no other wall around it."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import platform
import resource
import signal
import socket
import ssl
import threading
from typing import Callable

import pytest

from certdrop.walls import jail, syscalls

pytestmark = pytest.mark.skipif(bool(syscalls.missing()), reason=syscalls.missing())

libc = ctypes.CDLL(None, use_errno=True)
PRINCIPALS = sorted(syscalls.ALLOWED)
FASTOPEN, FASTOPEN_CONNECT, ULP = 0x20000000, 30, 31
USER, PID, NEWTIME, PROCESS = 0x10000000, 0x20000000, 0x80, 17


def inside(principal: str, deed: Callable[[], object], before: Callable[[], object] = int) -> str:
    """What `deed` returns, or the error or signal that ended it, in a child that may make this principal's calls."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before()
            syscalls.Filter(principal).enter()
            try:
                said = str(deed())
            except OSError as error:
                said = errno.errorcode.get(error.errno or 0, repr(error))
            except BaseException as error:
                said = repr(error)
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode()
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else found


def call(number: int, *arguments: object) -> None:
    """A system call by its number. Raises OSError."""
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)) == -1:
        raise OSError(ctypes.get_errno(), "")


def ok(value: int) -> None:
    if value == -1:
        raise OSError(ctypes.get_errno(), "")


def memory(protection: int) -> None:
    """Anonymous memory of this kind."""
    libc.mmap.restype = ctypes.c_void_p
    if libc.mmap(None, ctypes.c_size_t(4096), protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, ctypes.c_long(0)) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "")


def becomes_code() -> None:
    """Memory that was written, made executable."""
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, ctypes.c_size_t(4096), 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, ctypes.c_long(0))
    ok(libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(4096), 5))


def send(function: str) -> None:
    """TCP fast open: a connection by sending."""
    made = socket.socket(fileno=STREAM.fileno())
    if function == "sendto":
        made.sendto(b"x", FASTOPEN, ("127.0.0.1", 9))
    else:
        made.sendmsg([b"x"], (), FASTOPEN, ("127.0.0.1", 9))


STREAM = socket.socket()
REFUSED: dict[str, Callable[[], object]] = {
    "a namespace": lambda: ok(libc.unshare(USER)), "a namespace of somebody": lambda: ok(libc.setns(0, 0)),
    "a process": lambda: call(NUMBERS["clone"], PROCESS, 0, 0, 0, 0),
    "a process in a namespace": lambda: call(NUMBERS["clone"], PROCESS | USER, 0, 0, 0, 0),
    "a thread in a namespace": lambda: call(NUMBERS["clone"], 0x10000 | 0x800 | 0x100 | PID, 0, 0, 0, 0),
    "a thread in another time": lambda: call(NUMBERS["clone"], 0x10000 | 0x800 | 0x100 | NEWTIME, 0, 0, 0, 0),
    "the parent's limits": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)),
    "its own limits": lambda: call(NUMBERS["prlimit64"], 0, 4, b"\0" * 16, None),
    "limits of others": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
    "priorities": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19), "a scheduler": lambda: os.sched_setscheduler(0, 0, os.sched_param(0)),
    "fast open by sendto": lambda: send("sendto"), "fast open by sendmsg": lambda: send("sendmsg"),
    "fast open by connect": lambda: STREAM.setsockopt(socket.IPPROTO_TCP, FASTOPEN_CONNECT, 1),
    "another protocol over TCP": lambda: STREAM.setsockopt(socket.IPPROTO_TCP, ULP, b"tls"),
    "a packet filter": lambda: STREAM.setsockopt(socket.SOL_SOCKET, 26, b"\0" * 16),
    "MPTCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262), "SCTP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132),
    "UDP-Lite": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136), "ICMP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1),
    "UNIX sockets": lambda: socket.socket(socket.AF_UNIX), "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "the kernel's cryptography": lambda: socket.socket(38, socket.SOCK_SEQPACKET), "vsock": lambda: socket.socket(40, socket.SOCK_STREAM),
    "a pair of sockets": socket.socketpair, "to listen": lambda: STREAM.listen(), "io_uring": lambda: call(425, 8, ctypes.create_string_buffer(256)),
    "io_uring's work": lambda: call(426, 3, 1, 0, 0, None), "keys": lambda: call(NUMBERS["keyctl"], 0, -3, 0),
    "a key of its own": lambda: call(NUMBERS["add_key"], b"user", b"x", b"y", 1, -4), "memory as a file": lambda: os.memfd_create("x"),
    "secret memory": lambda: call(447, 0), "memory that is code": lambda: memory(7),
    "code from nowhere": lambda: memory(5), "memory becomes code": becomes_code,
    "a program": lambda: os.execv("/bin/true", ["true"]), "a program by descriptor": lambda: call(NUMBERS["execveat"], 0, b"", None, None, 0x1000),
    "a personality": lambda: ok(libc.personality(0x0400000)), "timer slack": lambda: ok(libc.prctl(29, ctypes.c_long(1 << 60), 0, 0, 0)),
    "the parent's death": lambda: ok(libc.prctl(1, 9, 0, 0, 0)), "to be traced": lambda: ok(libc.prctl(0x59616d61, -1, 0, 0, 0)),
    "to trace": lambda: ok(libc.ptrace(16, os.getppid(), 0, 0)), "another's memory": lambda: ok(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)),
    "a handle of a process": lambda: os.pidfd_open(os.getppid()), "to signal": lambda: os.kill(os.getppid(), 0), "to signal all": lambda: os.kill(-1, 0),
    "perf": lambda: call(NUMBERS["perf_event_open"], 0, 0, -1, -1, 0), "bpf": lambda: call(NUMBERS["bpf"], 0, 0, 0),
    "userfaultfd": lambda: call(NUMBERS["userfaultfd"], 1), "a mount": lambda: ok(libc.mount(b"none", b"/nonexistent", b"tmpfs", 0, None)),
    "the terminal's input": lambda: fcntl.ioctl(0, 0x5412, b"x"), "a signal's owner": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
    "a signal for input": lambda: fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC), "a lease": lambda: fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "a lock": lambda: fcntl.flock(0, fcntl.LOCK_SH), "a record's lock": lambda: fcntl.lockf(0, fcntl.LOCK_SH),
    "a seal": lambda: fcntl.fcntl(0, 1033, 0), "a device": lambda: os.mknod("/tmp/certdrop-x"), "a link": lambda: os.symlink("x", "/tmp/certdrop-x"),
    "a mode": lambda: os.chmod("/nonexistent", 0o777), "an owner": lambda: os.chown("/nonexistent", -1, -1), "to be root": lambda: os.setuid(0),
    "another root": lambda: os.chroot("/"), "a session": os.setsid, "watching": lambda: ok(libc.inotify_init()),
    "another filter": lambda: ok(libc.prctl(22, 2, None)),
}
NUMBERS = dict(zip(
    ("clone", "keyctl", "add_key", "execveat", "perf_event_open", "bpf", "userfaultfd", "prlimit64"),
    (56, 250, 248, 322, 298, 321, 323, 302) if platform.machine() == "x86_64" else (220, 219, 217, 281, 241, 280, 282, 261)))


# What a desk lays out from its database has directories and links.
@pytest.mark.parametrize("principal, deed", [(one, deed) for one in PRINCIPALS for deed in REFUSED if (one, deed) != (syscalls.DESK, "a link")])
def test_what_is_not_listed_is_refused(principal: str, deed: str) -> None:
    """Every principal is refused all of it, with EPERM, whatever else would allow it."""
    assert inside(principal, REFUSED[deed]) == "EPERM"


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_a_call_that_is_too_new_is_not_there(principal: str) -> None:
    """ENOSYS: clone3, whose arguments no filter sees, and what this version never heard of; so libraries fall back."""
    for number in (435, 437, 451, 462, 511):
        assert inside(principal, lambda n=number: call(n, 0, 0)) == "ENOSYS", number     # type: ignore[misc]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the calls of other architectures are tried on x86_64")
@pytest.mark.parametrize("principal", PRINCIPALS)
def test_calls_of_another_architecture_end_the_process(principal: str) -> None:
    """getpid of x32, and of i386 by int 0x80: other numbers, so no list would hold."""
    assert inside(principal, lambda: call(0x40000000 + 39)) == "SIGSYS"
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    if run() != os.getpid():
        pytest.skip("this kernel has no calls of i386")
    assert inside(principal, run) == "SIGSYS"


@pytest.mark.parametrize("principal", [syscalls.SIGNER, syscalls.SANDBOX])
@pytest.mark.parametrize("deed", ["socket", "connect", "thread"])
def test_the_signer_and_the_sandbox_call_nobody(principal: str, deed: str) -> None:
    """They have their one descriptor, no socket besides, and no thread."""
    deeds: dict[str, Callable[[], object]] = {"socket": socket.socket, "connect": lambda: STREAM.connect(("127.0.0.1", 9)),
                                              "thread": lambda: threading.Thread(target=int).start()}
    assert inside(principal, deeds[deed]) in ("EPERM", """RuntimeError("can't start new thread")""")


def test_the_sandbox_opens_nothing() -> None:
    """Not even what it may read, and it removes nothing."""
    for deed in (lambda: os.open("/etc/hosts", os.O_RDONLY), lambda: os.stat("/"), lambda: os.listdir("/"), lambda: os.unlink("/nonexistent"), os.pipe):
        assert inside(syscalls.SANDBOX, deed) == "EPERM"


def test_the_doctor_writes_nothing() -> None:
    """It looks."""
    for deed in (lambda: os.unlink("/nonexistent"), lambda: os.rename("/nonexistent", "/x"), lambda: os.truncate("/nonexistent", 1)):
        assert inside(syscalls.DOCTOR, deed) == "EPERM"


def test_only_the_signer_links() -> None:
    """So the network part gives nothing a second name."""
    found = {principal: inside(principal, lambda: os.link("/nonexistent", "/x")) for principal in PRINCIPALS}
    assert found == dict.fromkeys(PRINCIPALS, "EPERM") | {syscalls.SIGNER: "ENOENT"}


@pytest.mark.parametrize("principal", [syscalls.NETWORK, syscalls.READER, syscalls.DOCTOR])
def test_what_talks_does_talk(principal: str) -> None:
    """TCP over both families, the resolver (without nscd), TLS's own needs, and many at once."""
    def deed() -> object:
        import selectors
        assert socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        ssl.create_default_context()
        for listener in listeners:
            with socket.create_connection(listener.getsockname()[:2], 5) as made, selectors.DefaultSelector() as selector:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(made, selectors.EVENT_WRITE)
                assert selector.select(5)
                made.sendall(b"x")
                made.shutdown(socket.SHUT_WR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.connect(("127.0.0.1", 53))
            made.send(b"x")
        return "talked"
    listeners = [socket.create_server(("127.0.0.1", 0))] + ([socket.create_server(("::1", 0), family=socket.AF_INET6)] if socket.has_ipv6 else [])
    try:
        assert inside(principal, deed) == "talked"
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize("principal", [syscalls.NETWORK, syscalls.DOCTOR])
def test_workers_are_threads(principal: str) -> None:
    """clone3 is not there, so the C library uses clone, for threads."""
    def deed() -> object:
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(int, range(100)))
    assert inside(principal, deed) == "4950"


@pytest.mark.parametrize("principal", [syscalls.NETWORK, syscalls.SIGNER, syscalls.READER])
def test_what_writes_does_write(principal: str) -> None:
    """The spool's way of writing a file: beside it, to the disk, over it."""
    import tempfile

    from certdrop import spool

    def deed() -> object:
        fd = spool.open_directory(place)
        spool.write(fd, "x", b"x", 0o640)
        os.utime(place + "/x")
        os.unlink("x", dir_fd=fd)
        return os.listdir(place)
    with tempfile.TemporaryDirectory() as place:
        assert inside(principal, deed) == "[]"


def test_a_process_may_end_itself() -> None:
    """As abort(3) does: nothing fails in silence."""
    assert inside(syscalls.NETWORK, lambda: os.kill(os.getpid(), signal.SIGKILL)) == "SIGKILL"

    def prepare() -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    assert inside(syscalls.NETWORK, os.abort, prepare) == "SIGABRT"


def test_libraries_can_be_loaded_late() -> None:
    """A file can be mapped as code, or no extension of Python's could be imported behind the door."""
    def deed() -> object:
        return ctypes.CDLL("libbz2.so.1.0") is not None
    assert inside(syscalls.NETWORK, deed) == "True"


def test_without_the_module_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named, and nothing is taken for a filter."""
    monkeypatch.setattr(syscalls, "seccomp", None)
    with pytest.raises(jail.Unconfined, match="python3-seccomp is not installed"):
        syscalls.Filter(syscalls.NETWORK)

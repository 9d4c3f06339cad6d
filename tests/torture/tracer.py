"""Runs a program and all it starts, lists every system call that changes something, and kills or fails one of them.

It does what `strace -f -e inject=CALL:signal=KILL:when=N` (or error=) does, with one thing more: strace counts in every process by
itself and cannot be told which process is meant, so that "the keeper's third openat" hits nginx's and the judge's third as well. Here
a point names its process. A seccomp filter stops the program at these calls only (seccomp(2), SECCOMP_RET_TRACE; ptrace(2),
PTRACE_EVENT_SECCOMP), before the kernel looks at them: what is killed there has not happened.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import stat
import struct
import time
from typing import Callable, Iterable, NamedTuple

KILL = "KILL"
ERRORS = ("ENOSPC", "EIO", "EROFS", "EMFILE", "ENOMEM")

# The calls that change something, by their numbers on x86-64.
CALLS = {
    1: "write", 2: "open", 18: "pwrite64", 20: "writev", 56: "clone", 57: "fork", 58: "vfork", 59: "execve", 62: "kill", 73: "flock", 74: "fsync",
    75: "fdatasync", 76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink", 88: "symlink",
    90: "chmod", 91: "fchmod", 92: "chown", 93: "fchown", 94: "lchown", 234: "tgkill", 257: "openat", 258: "mkdirat", 260: "fchownat", 263: "unlinkat",
    264: "renameat", 265: "linkat", 266: "symlinkat", 268: "fchmodat", 280: "utimensat", 316: "renameat2", 322: "execveat", 435: "clone3",
}
_NUMBERS = {name: number for number, name in CALLS.items()}
_BY_DESCRIPTOR = {"write", "pwrite64", "writev", "flock", "fsync", "fdatasync", "ftruncate", "fchmod", "fchown"}
_AT = {"openat": 1, "mkdirat": 1, "fchownat": 1, "unlinkat": 1, "fchmodat": 1, "utimensat": 1, "renameat": 3, "renameat2": 3, "linkat": 3, "symlinkat": 2}
_PATH = {"open": 0, "creat": 0, "truncate": 0, "mkdir": 0, "rmdir": 0, "unlink": 0, "chmod": 0, "chown": 0, "lchown": 0, "execve": 0, "rename": 1,
         "link": 1, "symlink": 1}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_TRACEME, _POKEUSER, _CONT, _SETOPTIONS, _GETEVENTMSG, _GET_SYSCALL_INFO = 0, 6, 7, 0x4200, 0x4201, 0x420E
_FORK, _VFORK, _CLONE, _EXEC, _SECCOMP = 1, 2, 3, 4, 7
_OPTIONS = 1 << _FORK | 1 << _VFORK | 1 << _CLONE | 1 << _EXEC | 1 << _SECCOMP | 1 << 20         # the last: what is traced ends with us
_ORIG_RAX, _RAX = 15 * 8, 10 * 8
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class Point(NamedTuple):
    """The n-th use of a system call in one process of a run."""

    process: str
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.process}:{self.call}:{self.number}"


class Use(NamedTuple):
    """One use of a changing call in a recorded run: where, and what it is about."""

    point: Point
    about: str


class Hung(Exception):
    """The program did not end in time; all of it was killed."""


class Process:
    """What is known of a traced process: its name, and how often it used what."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = False
        self.children = 0
        self.used: dict[str, int] = {}


class Tracer:
    """One run under the filter. `fault` is KILL or an error's name, to be delivered at `point`; `watch` sees each write."""

    def __init__(self, point: Point | None = None, fault: str = KILL, watch: Callable[[int, int, bytes], None] | None = None,
                 worker: str = "keeper") -> None:
        self.point, self.fault, self.watch = point, fault, watch
        self.worker = worker                              # how the first process's child is called
        self.uses: list[Use] = []
        self.hit = ""                                     # what the point was about, once it was reached
        self.processes: dict[int, Process] = {}
        self.newborn: set[int] = set()
        self.programs: dict[str, int] = {}                # how many of each were started

    def run(self, argv: list[str], stdio: Iterable[int], deadline: float = 60.0) -> int:
        """Start it, follow all of it to its end; the exit code (negative: the signal)."""
        if platform.machine() != "x86_64":
            raise OSError("the numbers of the calls are known for x86-64 only")
        main = _start(argv, tuple(stdio))
        self.processes = {main: Process("caller")}
        end, code = time.monotonic() + deadline, 0
        while self.processes:
            pid, status = os.waitpid(-1, 0x40000000 | os.WNOHANG)            # __WALL
            if pid == 0:
                if time.monotonic() > end:
                    for one in list(self.processes):
                        _kill(one)
                    if time.monotonic() > end + 5:
                        raise Hung(", ".join(process.name for process in self.processes.values()))
                time.sleep(0.0005)
            elif os.WIFSTOPPED(status):
                self._stopped(pid, status)
            else:
                self.processes.pop(pid, None)
                self.newborn.discard(pid)
                if pid == main:
                    code = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            raise Hung("it had to be killed")
        return code

    def _stopped(self, pid: int, status: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        process, deliver = self.processes.get(pid), 0
        if process is None:                               # it stopped before its parent told of it: held until then
            self.newborn.add(pid)
            return
        if event in (_FORK, _VFORK, _CLONE):
            process.children += 1
            child = ctypes.c_ulong()
            _ptrace(_GETEVENTMSG, pid, 0, ctypes.addressof(child))
            name = self.worker if process.name == "caller" else f"{process.name}/{process.children}"
            self.processes[child.value] = Process(name)
            if child.value in self.newborn:
                self.newborn.remove(child.value)
                self._stopped(child.value, signal.SIGSTOP << 8 | 0x7F)
        elif event == _EXEC:
            self._named(process, pid)
        elif event == _SECCOMP:
            self._called(process, pid)
        elif number == signal.SIGSTOP and not process.started:
            process.started = True                        # how a traced process begins
        else:
            deliver = number
        _ptrace(_CONT, pid, 0, deliver)

    def _named(self, process: Process, pid: int) -> None:
        process.used = {}
        if process.name in ("caller", self.worker):           # started anew as another user: still the one that is meant
            return
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            argv = stream.read().decode("utf-8", "replace").split("\0")
        name = os.path.basename(argv[0])
        if name == "python3":
            script = next((word for word in argv[1:] if not word.startswith("-")), "")
            name = f"judge-{argv[argv.index(script) + 1]}" if script.endswith("/judge/__main__.py") else os.path.basename(script)
        self.programs[name] = self.programs.get(name, 0) + 1
        process.name = f"{name}#{self.programs[name]}"

    def _called(self, process: Process, pid: int) -> None:
        info = ctypes.create_string_buffer(88)
        _ptrace(_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
        number, *args = struct.unpack_from("=7Q", info.raw, 24)
        call = CALLS[number]
        if call == "openat" and not args[2] & _WRITES or call == "open" and not args[1] & _WRITES:
            return
        process.used[call] = process.used.get(call, 0) + 1
        point = Point(process.name, call, process.used[call])
        if self.point is None:
            self.uses.append(Use(point, _about(pid, call, args)))
        if self.watch and call in ("write", "pwrite64"):
            self.watch(pid, args[0], _memory(pid, args[1], min(args[2], 4096)))
        if point == self.point and not self.hit:
            self.hit = _about(pid, call, args) or call
            if self.fault == KILL:
                os.kill(pid, signal.SIGKILL)
            else:
                _ptrace(_POKEUSER, pid, _ORIG_RAX, ctypes.c_ulong(-1 & (1 << 64) - 1).value)        # no call: it is left out,
                _ptrace(_POKEUSER, pid, _RAX, -getattr(errno, self.fault) & (1 << 64) - 1)          # and has answered this


def mode_of(pid: int, fd: int) -> os.stat_result | None:
    """What a traced process has open there, where it is a regular file."""
    found = os.stat(f"/proc/{pid}/fd/{fd}")
    return found if stat.S_ISREG(found.st_mode) else None


def _start(argv: list[str], stdio: tuple[int, ...]) -> int:
    program = _filter()
    pid = os.fork()
    if pid == 0:
        try:
            for wanted, fd in enumerate(stdio):
                os.dup2(fd, wanted)
            os.closerange(3, 256)
            os.setsid()
            _ptrace(_TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0) == 0:
                os.execve(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"})
        finally:
            os._exit(127)
    os.waitpid(pid, 0x40000000)
    _ptrace(_SETOPTIONS, pid, 0, _OPTIONS)
    _ptrace(_CONT, pid, 0, 0)
    return pid


def _filter() -> ctypes.Array[ctypes.c_char]:
    """A BPF program: stop at CALLS, allow the rest (x86-64's own calls are the only ones here)."""
    code = [struct.pack("HBBI", 0x20, 0, 0, 0)]                              # load the number
    for left, number in zip(range(len(CALLS), 0, -1), CALLS):
        code.append(struct.pack("HBBI", 0x15, left, 0, number))              # equal: jump behind the next "allow"
    code += [struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000), struct.pack("HBBI", 0x06, 0, 0, 0x7FF00000)]
    text = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    program.kept = text                                                      # type: ignore[attr-defined]
    return program


def _about(pid: int, call: str, args: list[int]) -> str:
    try:
        if call in _BY_DESCRIPTOR:
            return os.readlink(f"/proc/{pid}/fd/{args[0]}")
        if call in _PATH:
            return _text(pid, args[_PATH[call]])
        if call in _AT:
            path = _text(pid, args[_AT[call]])
            fd = args[_AT[call] - 1] & 0xFFFFFFFF
            return path if path.startswith("/") or fd == 0xFFFFFF9C else os.readlink(f"/proc/{pid}/fd/{fd}") + "/" + path
    except OSError:
        pass
    return ""


def _text(pid: int, address: int) -> str:
    return _memory(pid, address, 512).partition(b"\0")[0].decode("utf-8", "replace")


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as stream:
        data = b""
        while len(data) < size:                                              # up to the end of what is mapped
            try:
                more = os.pread(stream.fileno(), min(size - len(data), 4096 - (address + len(data)) % 4096), address + len(data))
            except OSError:
                break
            data += more
        return data


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0 and ctypes.get_errno() != errno.ESRCH:          # ESRCH: it was killed in between
        raise OSError(ctypes.get_errno(), f"ptrace {request}: {os.strerror(ctypes.get_errno())}")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

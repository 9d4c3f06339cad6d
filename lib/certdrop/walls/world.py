"""Sheds what a caller hands on: all that execve(2) preserves, and so passes through sudo.

Runs as: root, before any lock. Trusts: the kernel. Reads and writes: this process alone.
Sources: execve(2), prctl(2), sched(7), sched_setattr(2), ioprio_set(2), set_mempolicy(2), keyrings(7), fcntl(2), personality(2), getrlimit(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable

from certdrop import start
from certdrop.walls import users

# With less, a run could fail half-way, and a good reply would be blamed for it.
_ENOUGH = {"AS": 1 << 30, "CPU": 300, "DATA": 1 << 30, "FSIZE": 1 << 24, "NOFILE": 64, "NPROC": 32, "STACK": 1 << 20}


class Unfit(OSError):
    """The caller handed on what would have a run fail half-way, and what cannot be undone here."""


_libc = ctypes.CDLL(None, use_errno=True)
# The C library has no names for these: the numbers of ioprio_set, keyctl, set_mempolicy, sched_setattr. Others than these have the generic ones.
_NUMBERS = {"x86_64": (251, 250, 238, 314), "i386": (289, 288, 276, 351), "arm": (314, 311, 321, 380), "powerpc64le": (273, 271, 261, 355),
            "s390x": (282, 280, 270, 345)}
_IOPRIO, _KEYCTL, _MEMPOLICY, _SCHED = _NUMBERS.get(sys.implementation._multiarch.partition("-")[0], (30, 219, 237, 274))


def _prctl(*arguments: int) -> Callable[[], object]:
    return lambda: _libc.prctl(*map(ctypes.c_ulong, (*arguments, 0, 0, 0, 0)[:5]))


def _syscall(*arguments: object) -> Callable[[], object]:
    return lambda: _libc.syscall(*arguments)


def _signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass                              # the C library keeps 32 and 33
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)   # where the limit cannot be raised, an error is better than an end
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _timers() -> None:
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(which, 0)


def _streams() -> None:
    """The three descriptors are there, do not block, and send no signal: the caller may hold the other end of each."""
    start.open_standard()
    for fd in range(3):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_ASYNC | os.O_NONBLOCK | os.O_DIRECT))
        fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
        fcntl.fcntl(fd, fcntl.F_SETSIG, 0)


def _environment() -> None:
    os.environ.clear()
    os.environ.update(users.ENVIRONMENT)


def _oom_score() -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


# What is handed on, and what undoes it. What a kernel does not know, or a container forbids, is passed over.
SHED: dict[str, Callable[[], object]] = {
    "signals": _signals,
    "timers": _timers,
    "timer slack": _prctl(29, 50000),              # or one sleep lasts for as long as the caller likes
    "parent-death signal": _prctl(1, 0),
    "child subreaper": _prctl(36, 0),
    "keep capabilities": _prctl(8, 0),
    "ambient capabilities": _prctl(47, 4),
    "securebits": _prctl(28, 0),
    "huge pages": _prctl(41, 0),
    "memory errors": _prctl(33, 0),
    "time stamp counter": _prctl(26, 1),
    "speculative stores": _prctl(53, 0, 2),
    "speculative branches": _prctl(53, 1, 2),
    "flushing of the cache": _prctl(53, 2, 4),
    "core scheduling": _prctl(62, 3, 1),           # as process 1 has it
    "personality": lambda: _libc.personality(0),
    "policy, niceness, slice": _syscall(_SCHED, 0, struct.pack("=IIQiIQQQII", 56, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0),
    "utilization clamps": _syscall(_SCHED, 0, struct.pack("=IIQiIQQQII", 56, 0, 0x60, 0, 0, 0, 0, 0, 0xffffffff, 0xffffffff), 0),
    "affinity": lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)),
    "I/O priority": _syscall(_IOPRIO, 1, 0, 0),    # as its niceness
    "memory policy": _syscall(_MEMPOLICY, 0, None, 0),
    "session keyring": _syscall(_KEYCTL, 1, None),
    "destination of keys": _syscall(_KEYCTL, 14, 0),
    "oom score": _oom_score,
    "directory": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o077),
    "environment": _environment,
    "groups": lambda: os.setgroups([0]),
    "streams": _streams,
}

# What nobody can undo, once it is there: option to ask by, and the bits that count.
_KEPT = {"memory that is never both written and executed (PR_SET_MDWE)": (66, 1), "securebits for what scripts may be executed": (27, 0xf00)}


def make_own_world() -> None:
    """Shed all of it. To be called as root, before any lock. Raises Unfit where a run could fail half-way, by what cannot be shed or what root lacks."""
    caller = os.environ.get("SUDO_USER", "USER")
    _reset_limits()
    for undo in SHED.values():
        try:
            undo()
        except OSError:
            pass
    lacking = users.lacking(users.NEEDED)
    if lacking:
        raise Unfit(f"root lacks {lacking} here; give it back in the unit or container that took it away")
    for name, (option, bits) in _KEPT.items():
        found = _libc.prctl(option, 0, 0, 0, 0)
        if found > 0 and found & bits:
            raise Unfit(f"the caller handed on {name}, and that cannot be undone here")
    try:
        os.execv("", ["-"])                            # no program: what comes is ENOENT, or what every program would meet
    except FileNotFoundError:
        pass
    except PermissionError:                            # sudo's noexec, by seccomp or LD_PRELOAD
        raise Unfit("sudo lets this run start no program (noexec), but does not bind root's hourly run; "
                    f"put into sudoers: Defaults:{caller} !noexec") from None


def _reset_limits() -> None:
    most = resource.RLIM_INFINITY
    known = {"CORE": (0, 0), "NOFILE": (4096, 4096), "STACK": (8 << 20, most), "MEMLOCK": (8 << 20, 8 << 20),
             "MSGQUEUE": (819200, 819200), "NICE": (0, 0), "RTPRIO": (0, 0)}
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "SIGPENDING", "STACK"):
        number = getattr(resource, "RLIMIT_" + name)
        try:
            resource.setrlimit(number, known.get(name, (most, most)))
        except (OSError, ValueError):             # in a container, root may not raise a hard limit
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (hard, hard))
            if hard != most and hard < _ENOUGH.get(name, 0):
                raise Unfit(f"the caller's limit RLIMIT_{name}={hard} is too low for a run, and cannot be raised here") from None

"""Giving up privileges: limits, no_new_privs, Landlock. Root itself uses none of it: it becomes somebody else first (users.py).

Nothing here gives any back. Runs as: every principal but root. Trusts: the kernel. Reads and writes: nothing.
Sources: prctl(2), landlock(7), getrlimit(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS = 1, 4, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446          # the same numbers on every architecture

# Landlock's rights on files by the ABI that brought them; bit 2 is READ_FILE, 3 READ_DIR, 0 EXECUTE, 1 WRITE_FILE.
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = 1 << 2 | 1 << 3
_WRITE = _READ | 1 << 1 | 1 << 5 | 1 << 8 | 1 << 14                 # and REMOVE_FILE, MAKE_REG, TRUNCATE
_GROW = _WRITE | 1 << 4 | 1 << 7 | 1 << 12                          # and REMOVE_DIR, MAKE_DIR, MAKE_SYM
_FILE_ONLY = 1 << 1 | 1 << 2 | 1 << 14

# Why there is none to be had, by what the kernel answers (landlock_create_ruleset(2)), and what to do.
_OLD, _OFF, _REFUSED = (
    ("this kernel has no Landlock", "run a kernel of Debian 12 or later; in a container, update the container runtime, which may hide it"),
    ("Landlock is switched off in this kernel", "add landlock to lsm= on the kernel's command line, and boot again"),
    ("a filter of system calls refuses Landlock", "allow landlock_create_ruleset, landlock_add_rule and landlock_restrict_self in the seccomp profile "
     "of this container or unit"))
_LACKING = {errno.ENOSYS: _OLD, errno.EOPNOTSUPP: _OFF, errno.EPERM: _REFUSED, errno.EACCES: _REFUSED}


class Unconfined(Exception):
    """The kernel does not do what was asked; the text says what is missing."""


def forbid(**limits: int) -> None:
    """Set resource limits by name (NOFILE=0, NPROC=0, ...), soft and hard alike; a lower one stays."""
    for name, value in limits.items():
        number = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def end_with(parent: int) -> None:
    """Be killed when this parent ends, however it ends. To be called by its child."""
    if _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != parent:
        os._exit(os.EX_TEMPFAIL)


def give_up_privileges() -> None:
    """no_new_privs and not dumpable: no set-id program helps any more, and nobody of the same uid may trace this process."""
    if _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0):
        raise Unconfined("prctl: " + os.strerror(ctypes.get_errno()))


def keep_cases_apart() -> None:
    """Make process 1 of the PID namespace that our children are born into: it does nothing, and ends with us. No child can name us by a number."""
    if os.fork() == 0:
        _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.closerange(0, 3)
        while True:
            signal.pause()


def _version() -> tuple[int, int]:
    """Landlock's ABI, or a number below 0 and the error."""
    return int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)), ctypes.get_errno()


def landlock_abi() -> int:
    """Landlock's ABI; 0 where there is none to be had, as no_landlock says."""
    return max(0, _version()[0])


def no_landlock() -> tuple[str, str]:
    """Why there is no Landlock to be had, and what to do; nothing of both where there is."""
    abi, error = _version()
    return ("", "") if abi > 0 else _LACKING.get(error, (f"Landlock cannot be had ({os.strerror(error)})", ""))


def landlock(read: tuple[str, ...] = (), write: tuple[str, ...] = (), ports: tuple[int, ...] | None = None, grow: tuple[str, ...] = ()) -> int:
    """Confine this thread, and what it starts, to reading below `read`, writing below `write` (and making directories and links below `grow`), and
    connecting to TCP `ports`.

    `ports` None leaves TCP alone; () forbids all. Paths that do not exist, or that this user cannot reach, are passed over. Below ABI 4 ports cannot be
    confined, below 6 abstract sockets and signals. Execution is never allowed. Returns the ABI. Raises Unconfined where there is none.
    """
    lacking, _ = no_landlock()
    if lacking:
        raise Unconfined(lacking)
    abi = landlock_abi()
    rights = _FS_RIGHTS[max(known for known in _FS_RIGHTS if known <= abi)]
    net = 0b11 if abi >= 4 and ports is not None else 0             # BIND_TCP, CONNECT_TCP
    scope = 0b11 if abi >= 6 else 0                                 # abstract UNIX sockets, signals
    attributes = struct.pack("QQQ", rights, net, scope)[:{1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(abi, 24)]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise Unconfined("landlock_create_ruleset: " + os.strerror(ctypes.get_errno()))
    try:
        for paths, allowed in ((read, _READ), (write, _WRITE), (grow, _GROW)):
            for path in paths:
                _allow_below(ruleset, path, allowed & rights)
        for port in ports or () if net else ():
            rule = struct.pack("QQ", 0b10, port)
            if _libc.syscall(_ADD_RULE, ruleset, 2, rule, 0):
                raise Unconfined("landlock_add_rule: " + os.strerror(ctypes.get_errno()))
        if _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.syscall(_RESTRICT_SELF, ruleset, 0):
            raise Unconfined("landlock_restrict_self: " + os.strerror(ctypes.get_errno()))
    finally:
        os.close(ruleset)
    return abi


def _allow_below(ruleset: int, path: str, allowed: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            allowed &= _FILE_ONLY
        rule = struct.pack("=Qi", allowed, fd)                      # packed, as the kernel's struct is
        if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0):
            raise Unconfined(f"landlock_add_rule: {path}: " + os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)

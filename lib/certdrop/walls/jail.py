"""Giving up privileges: users, sessions, limits, no_new_privs, Landlock. What a caller lent us is shed in world.py.

Nothing here gives any back. Runs as: every principal. Trusts: the kernel. Reads: the user database.
Sources: prctl(2), landlock(7), getrlimit(2); CVE-2005-4890 and CVE-2016-2779 for the session of its own (TIOCSTI).
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import select
import signal
import struct
import sys
import time

from certdrop import TERMINAL

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}

LOOK = 0.2                         # seconds between two looks whether a child has ended
AFTER = 1.0                        # seconds in which its last words come, when it has

_libc = ctypes.CDLL(None, use_errno=True)
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS = 1, 4, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446          # the same numbers on every architecture
_SET_PDEATHSIG = 1
NEWIPC, NEWPID, NEWNET = 0x08000000, 0x20000000, 0x40000000      # namespaces, as unshare(2) numbers them

# Landlock's rights on files by the ABI that brought them; bit 2 is READ_FILE, 3 READ_DIR, 0 EXECUTE, 1 WRITE_FILE.
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READ = 1 << 2 | 1 << 3
_WRITE = _READ | 1 << 1 | 1 << 5 | 1 << 8 | 1 << 14                 # and REMOVE_FILE, MAKE_REG, TRUNCATE
_FILE_ONLY = 1 << 1 | 1 << 2 | 1 << 14


class Unconfined(Exception):
    """The kernel does not do what was asked; the text says what is missing."""


def user_ids(user: str) -> tuple[int, int]:
    """(uid, gid) of a user. Raises KeyError."""
    import pwd
    found = pwd.getpwnam(user)
    return found.pw_uid, found.pw_gid


def as_user(uid: int, gid: int) -> list[str]:
    """What stands before a command so that it runs as a user, with no other group: subprocess's own `user` would not do.

    A child has the user's uid there before it executes anything, and root waits for that without a limit, while others of that uid can stop it.
    """
    return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]


def become(user: str) -> None:
    """Change from root to `user` for good: no other group, no way back. Raises KeyError, PermissionError."""
    uid, gid = user_ids(user)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PermissionError(f"still not {user}")


def detach() -> None:
    """Go on in a child of a session of its own, so that killing sudo or closing a terminal kills no half-done work.

    The parent keeps the terminal, copies the child's words to it, and ends with its exit status, or at once when it is interrupted; it never
    returns from here.
    """
    pipes = [os.pipe(), os.pipe()]
    signal.signal(signal.SIGINT, _interrupt)
    child = os.fork()
    if child == 0:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN):
            signal.signal(number, signal.SIG_IGN)
        os.environ[TERMINAL] = "".join(str(fd) for fd in (1, 2) if os.isatty(fd))
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        for fd, (reader, writer) in enumerate(pipes, 1):
            os.dup2(writer, fd)
            os.close(reader)
            os.close(writer)
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = os.path.basename(sys.argv[0])
    for _, writer in pipes:
        os.close(writer)
    try:
        relay(child, {reader: fd for fd, (reader, _) in enumerate(pipes, 1)}, lambda _, data: data)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        os.kill(child, signal.SIGINT)
        _say(f"{program}: interrupted: nothing more is said here; root's part ends what it has begun, the CA is asked by cron again; "
             "certdrop-status shows how it stands")
        os._exit(os.EX_TEMPFAIL)
    if code < 0:
        _say(f"{program}: was ended by signal {-code}; the live certificates stay; the next run finishes or undoes its work")
    os._exit(code if code >= 0 else os.EX_SOFTWARE)


interrupted = False                # a person does not wait any more: what can be left to cron is left


def _interrupt(*_: object) -> None:
    global interrupted
    interrupted = True


def _say(text: str) -> None:
    from certdrop import words
    words.say(text)


def relay(child: int, streams: dict[int, int], shown: Callable[[int, bytes], bytes], outlives: bool = True, end: float = math.inf) -> bool:
    """Copy what a child writes (descriptor to read: descriptor to write) until it has ended: what it left behind, with a pipe still open, is not waited for.

    `shown` makes of what came what is written; it gets nothing when nothing more comes. Where that is not taken it is lost, if the child
    `outlives` that. False at `end` (monotonic), True otherwise. Raises OSError, and KeyboardInterrupt also where this process was told `interrupted`.
    """
    waiting, lost, ended = dict(streams), set[int](), math.inf
    while waiting and ended > time.monotonic() - AFTER:
        ready = select.select([*waiting], [], [], LOOK)[0]
        for fd in ready:
            data = os.read(fd, 1 << 16)
            _pass_on(waiting[fd], shown(fd, data), lost, outlives)
            if not data:
                del waiting[fd]
        if interrupted:
            raise KeyboardInterrupt
        if time.monotonic() > end:
            return False
        if ended == math.inf and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            ended = time.monotonic()
        if ended < math.inf and not ready:
            break
    for fd, to in waiting.items():
        _pass_on(to, shown(fd, b""), lost, outlives)
    return True


def _pass_on(fd: int, data: bytes, lost: set[int], outlives: bool) -> None:
    if data and fd not in lost:
        from certdrop import words             # which a run with nothing to say can spare
        try:
            words.put(fd, data)
        except OSError:
            if not outlives:
                raise
            lost.add(fd)


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


def unshare(*namespaces: int) -> bool:
    """Enter namespaces of one's own where root may (NEWPID: for what is forked from now on). Where not, stay, and return False."""
    return all([_libc.unshare(namespace) == 0 for namespace in namespaces])


def fork_here_again() -> None:
    """After unshare(NEWPID): have children be born in this process's own PID namespace again. Raises OSError."""
    fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, NEWPID):
            raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def keep_cases_apart() -> None:
    """Make process 1 of the PID namespace that our children are born into: it does nothing, and ends with us. No child can name us by a number."""
    if os.fork() == 0:
        _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.closerange(0, 3)
        while True:
            signal.pause()


def landlock_abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none, or where it is switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def landlock(read: tuple[str, ...] = (), write: tuple[str, ...] = (), ports: tuple[int, ...] | None = None) -> int:
    """Confine this thread, and what it starts, to reading below `read`, writing below `write` and connecting to TCP `ports`.

    `ports` None leaves TCP alone; () forbids all. Paths that do not exist are passed over. Below ABI 4 ports cannot be
    confined, below 6 abstract sockets and signals. Execution is never allowed. Returns the ABI. Raises Unconfined where there is none.
    """
    abi = landlock_abi()
    if abi == 0:
        raise Unconfined("this kernel has no Landlock")
    rights = _FS_RIGHTS[max(known for known in _FS_RIGHTS if known <= abi)]
    net = 0b11 if abi >= 4 and ports is not None else 0             # BIND_TCP, CONNECT_TCP
    scope = 0b11 if abi >= 6 else 0                                 # abstract UNIX sockets, signals
    attributes = struct.pack("QQQ", rights, net, scope)[:{1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(abi, 24)]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise Unconfined("landlock_create_ruleset: " + os.strerror(ctypes.get_errno()))
    try:
        for paths, allowed in ((read, _READ), (write, _WRITE)):
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
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            allowed &= _FILE_ONLY
        rule = struct.pack("=Qi", allowed, fd)                      # packed, as the kernel's struct is
        if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0):
            raise Unconfined(f"landlock_add_rule: {path}: " + os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)

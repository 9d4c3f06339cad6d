"""The system calls that each principal may make, once it is shut in: a seccomp filter, made with libseccomp.

What is not listed is refused with EPERM; what libraries ask for and go on without, with ENOSYS; calls of another architecture (i386, x32) end the
process. Descriptors, files and ports are Landlock's and the limits': this keeps from what those do not know, and from most of the kernel.
Runs as: every principal but root. Trusts: the kernel, libseccomp. Reads and writes: nothing. Source: seccomp(2).
"""

from __future__ import annotations

import errno
import os
import sys

from certdrop.walls import jail

if "/usr/lib/python3/dist-packages" not in sys.path:   # Debian's modules, which the judge's -S leaves out
    sys.path.append("/usr/lib/python3/dist-packages")
try:
    import seccomp
except ImportError:
    seccomp = None

NETWORK, SIGNER, SANDBOX, READER, DOCTOR, DESK = "network", "signer", "sandbox", "reader", "doctor", "desk"

# What Python, glibc, OpenSSL do whatever they are about: memory, time, locks, signals to itself, what is open already.
_ALWAYS = """brk mmap munmap mremap mprotect madvise futex exit exit_group rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
    getpid gettid getppid getuid geteuid getgid getegid getrandom clock_gettime clock_getres gettimeofday time clock_nanosleep nanosleep
    sched_yield sched_getaffinity getcpu membarrier rseq set_robust_list uname sysinfo getrusage prlimit64 getrlimit prctl
    read readv pread64 write writev close fstat lseek ioctl fcntl dup poll ppoll select pselect6"""
_TALK = "sendto recvfrom sendmsg recvmsg getsockname getpeername getsockopt setsockopt shutdown"
_CALL = "socket connect sendmmsg recvmmsg epoll_create1 epoll_ctl epoll_wait epoll_pwait"
_READ = "open openat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 getcwd statfs fstatfs fadvise64"
_WRITE = "pwrite64 ftruncate fsync fdatasync fchmod rename renameat renameat2 unlink unlinkat utimensat umask"
_THREADS = "clone"
_OWN_SIGNALS = "kill tgkill"

ALLOWED = {
    NETWORK: (_ALWAYS, _TALK, _CALL, _READ, _WRITE, _THREADS, _OWN_SIGNALS),
    SIGNER: (_ALWAYS, _TALK, _READ, _WRITE, "link linkat", _OWN_SIGNALS),
    SANDBOX: (_ALWAYS, _TALK),
    READER: (_ALWAYS, _TALK, _CALL, _READ, _WRITE, _OWN_SIGNALS),
    DESK: (_ALWAYS, _TALK, _CALL, _READ, _WRITE, "mkdir mkdirat rmdir symlink symlinkat", _OWN_SIGNALS),
    DOCTOR: (_ALWAYS, _TALK, _CALL, _READ, _THREADS, "bind", _OWN_SIGNALS),
}

_INT, _LONG = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF           # the kernel looks at as much of an argument
_WRITABLE, _EXECUTABLE, _ANONYMOUS = 2, 4, 0x20        # mmap(2): PROT_WRITE, PROT_EXEC, MAP_ANONYMOUS
_THREAD, _NAMESPACES = 0x10000, 0x7E020080             # clone(2): CLONE_THREAD; CLONE_NEW*, and NEWTIME
_FASTOPEN = 0x20000000                                 # send(2): MSG_FASTOPEN connects, and Landlock does not see it
_SOCKETS = tuple((family, kind, protocol) for family in (2, 10) for kind, protocols in ((1, (0, 6)), (2, (0, 17))) for protocol in protocols)
_SET = ((6, 1), (1, 9), (0, 11), (41, 25),             # TCP_NODELAY, SO_KEEPALIVE; the resolver's IP_RECVERR, IPV6_RECVERR
        (6, 4), (6, 5), (6, 6), (6, 18))               # a database's client: TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)   # isatty, by old and new names; window, FIONREAD, FIONBIO, FIO[N]CLEX
_FCNTL = (0, 1, 2, 3, 1030)                            # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_SETFL, _ASYNC = 4, 0x2000
_PRCTL = (15, 16)                                      # the thread's name: set, get

# With which arguments: for each call, one of several sets; in a set, for the number of an argument, a mask and what must be left under it.
Condition = dict[int, tuple[int, int]]
ARGUMENTS: dict[str, tuple[Condition, ...]] = {
    "mmap": ({2: (_EXECUTABLE, 0)}, {2: (_EXECUTABLE | _WRITABLE, _EXECUTABLE), 3: (_ANONYMOUS, 0)}),     # libraries, but not memory, can be code
    "mprotect": ({2: (_EXECUTABLE, 0)},),
    "clone": ({0: (_THREAD | _NAMESPACES, _THREAD)},),
    "prlimit64": ({0: (_INT, 0), 2: (_LONG, 0)},),     # its own, to read
    "socket": tuple({0: (_INT, family), 1: (_INT & ~0x80800, kind), 2: (_INT, protocol)} for family, kind, protocol in _SOCKETS),
    "sendto": ({3: (_FASTOPEN, 0)},), "sendmsg": ({2: (_FASTOPEN, 0)},), "sendmmsg": ({3: (_FASTOPEN, 0)},),
    "setsockopt": tuple({1: (_INT, level), 2: (_INT, option)} for level, option in _SET),
    "getsockopt": ({1: (_INT, 1)},),                   # SOL_SOCKET
    "ioctl": tuple({1: (_INT, request)} for request in _IOCTL),
    "fcntl": (*({1: (_INT, command)} for command in _FCNTL), {1: (_INT, _SETFL), 2: (_ASYNC, 0)}),
    "prctl": tuple({0: (_INT, option)} for option in _PRCTL),
}

# Asked for by newer C libraries, which go on without: clone3, openat2, epoll_pwait2, futex_waitv; and whatever came after Linux 6.0. The numbers
# are the same everywhere, and not all names are known to libseccomp 2.5.
_PASSED_OVER = (435, 437, 441, 449, *range(451, 512))
_MACHINES = ("X86_64", "AARCH64", "RISCV64")           # where the numbers above are these


class Filter:
    """A principal's filter, made, but not in force yet. Raises jail.Unconfined where there is none to be had."""

    def __init__(self, principal: str) -> None:
        lacking = missing()
        if lacking:
            raise jail.Unconfined(lacking)
        made = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
        itself: dict[str, tuple[Condition, ...]] = dict.fromkeys(_OWN_SIGNALS.split(), ({0: (_INT, os.getpid())},))
        names = {name: number for name in " ".join(ALLOWED[principal]).split() if (number := seccomp.resolve_syscall(seccomp.Arch(), name)) >= 0}
        for name, number in names.items():
            for condition in {**ARGUMENTS, **itself}.get(name, ({},)):
                made.add_rule(seccomp.ALLOW, number, *(seccomp.Arg(place, seccomp.MASKED_EQ, *wanted) for place, wanted in condition.items()))
        for number in set(_PASSED_OVER) - set(names.values()):
            made.add_rule(seccomp.ERRNO(errno.ENOSYS), number)
        self._made = made

    def enter(self) -> None:
        """Put it in force for this thread and what it starts, for good. Raises jail.Unconfined where the kernel has no filters."""
        try:
            self._made.load()
        except (OSError, RuntimeError, ValueError) as error:
            raise jail.Unconfined(f"this kernel loads no seccomp filter ({error})") from error


def missing() -> str:
    """What is missing for a filter, as far as is known before it is loaded; "" where nothing is."""
    if seccomp is None:
        return "python3-seccomp is not installed"
    native = int(seccomp.system_arch()) & _INT
    if native not in [int(getattr(seccomp.Arch, name)) & _INT for name in _MACHINES]:
        return "certdrop has no list of system calls for this architecture"
    return ""

"""Becoming another user, for good, with an environment and namespaces of one's own.

Runs as: root, and whoever asks for a user's number. Trusts: the kernel. Reads: the user database, /proc/self/status. Sources: credentials(7), namespaces(7).
"""

from __future__ import annotations

import ctypes
import os

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
BECOMING = {6: "CAP_SETGID", 7: "CAP_SETUID"}                    # what root needs to become another user (capabilities(7)),
NEEDED = {5: "CAP_KILL", **BECOMING}                             # and to end what that user runs;
BY_SERVICES = {0: "CAP_CHOWN", 1: "CAP_DAC_OVERRIDE", 3: "CAP_FOWNER", 10: "CAP_NET_BIND_SERVICE"}      # a service's test may need these
NEWIPC, NEWPID, NEWNET = 0x08000000, 0x20000000, 0x40000000      # namespaces, as unshare(2) numbers them

_libc = ctypes.CDLL(None, use_errno=True)


def user_ids(user: str) -> tuple[int, int]:
    """(uid, gid) of a user. Raises KeyError."""
    import pwd
    found = pwd.getpwnam(user)
    return found.pw_uid, found.pw_gid


def lacking(needed: dict[int, str]) -> str:
    """Which of these capabilities root does not have here, as in a container or unit that drops them; "" where it has all."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
        effective = int(next(line for line in stream if line.startswith("CapEff:")).split()[1], 16)
    return ", ".join(name for bit, name in needed.items() if not effective >> bit & 1)


def become(user: str) -> None:
    """Change from root to `user` for good: no other group, no way back. Raises KeyError, PermissionError."""
    uid, gid = user_ids(user)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PermissionError(f"still not {user}")


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

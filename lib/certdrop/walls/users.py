"""Becoming another user, for good, with an environment and namespaces of one's own.

Runs as: root, and whoever asks for a user's number. Trusts: the kernel. Reads: the user database. Sources: credentials(7), namespaces(7).
"""

from __future__ import annotations

import ctypes
import os

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
NEWIPC, NEWPID, NEWNET = 0x08000000, 0x20000000, 0x40000000      # namespaces, as unshare(2) numbers them

_libc = ctypes.CDLL(None, use_errno=True)


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

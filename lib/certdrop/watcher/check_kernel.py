"""Looks at what the kernel helps with: Landlock, and the protections of links.

Runs as: anyone. Trusts: the kernel. Reads: /proc/sys/fs. Writes: nothing.
"""

from __future__ import annotations

import os

from certdrop import jail
from certdrop.watcher.check_line import OK, WARNING, Line, verdict

LINKS = {"protected_hardlinks": "any user can give another's file a second name, and so a place in its own directory",
         "protected_symlinks": "links in /tmp lead root's programs astray"}


def look() -> list[Line]:
    """All of it."""
    wrong = []
    for name, why in LINKS.items():
        try:
            with open(f"/proc/sys/fs/{name}", encoding="ascii") as stream:
                value = stream.read().strip()
        except OSError:
            continue
        if value == "0":
            wrong.append((f"fs.{name} is 0: {why}", f"sysctl -w fs.{name}=1, and in /etc/sysctl.d"))
    return [sandbox(jail.landlock_abi()), *verdict("links", wrong, "protected by the kernel (fs.protected_hardlinks, fs.protected_symlinks)", WARNING)]


def sandbox(abi: int) -> Line:
    """What the issuer's network part is confined by."""
    if abi == 0:
        return Line(WARNING, "sandbox", "this kernel has no Landlock: the issuer's network part runs with all rights of its user, can read the account "
                    "key, and the judge is held by limits alone", "run a kernel of Debian 12 or later; lsm= on its command line must name landlock")
    missing = "" if abi >= 6 else "; this kernel leaves it signals and abstract sockets" + ("" if abi >= 4 else ", and all TCP ports")
    return Line(OK, "sandbox", f"Landlock, ABI {abi} (kernel {os.uname().release}){missing}")

"""Shutting in what talks with the fleet's database: a courier, or the desk's part that does. Runs as: _certdrop. Trusts: the kernel."""

from __future__ import annotations

import os

from certdrop.config import site
from certdrop.walls import jail, syscalls

OURS = os.path.dirname(os.path.dirname(os.path.abspath(site.__file__)))
LIBRARIES = (OURS, "/usr/lib", "/usr/share", "/lib", "/lib64", "/usr/local/lib", "/usr/local/share", "/dev/urandom", "/dev/null", "/etc/ssl")
NAMES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/run/systemd/resolve")
MEMORY = 512 << 20                 # bytes: whatever the database answers


def shut_in(read: tuple[str, ...], write: tuple[str, ...], ports: tuple[int, ...], grow: tuple[str, ...] = ()) -> list[str]:
    """Confine this process to these files, and to TCP connections to these ports; what there is no wall against, in words."""
    lacking = []
    jail.give_up_privileges()
    jail.forbid(CORE=0, FSIZE=64 << 20, NOFILE=1024, NPROC=512, DATA=MEMORY)
    try:
        jail.landlock((f"{site.ETC}/fleet", *read, *LIBRARIES, *NAMES), write, ports, grow)
    except jail.Unconfined as error:
        lacking.append(f"{error}: what talks with the database runs with all rights of its user")
    try:
        syscalls.Filter(syscalls.DESK if grow else syscalls.NETWORK).enter()
    except jail.Unconfined as error:
        lacking.append(f"{error}: what talks with the database may make any system call")
    return lacking

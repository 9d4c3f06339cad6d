"""The table of directories and files that installation makes, for whoever checks it: the file `layout` beside the package.

Runs as: anyone. Trusts: the table, which came with the program. Reads: the table, and with deviations() the paths in it.
Writes: nothing (the setup script is what makes them so).
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import NamedTuple

TABLE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "layout")


class Row(NamedTuple):
    """One line of the table."""

    path: str
    kind: str                      # dir, file
    mode: int
    owner: str
    group: str
    what: str


def rows() -> list[Row]:
    """The table, parents before what is in them."""
    found = []
    with open(TABLE, encoding="ascii") as stream:
        for line in stream:
            if line.strip() and not line.startswith("#"):
                path, kind, mode, owner, group, what = line.split(None, 5)
                found.append(Row(path, kind, int(mode, 8), owner, group, what.rstrip()))
    return found


def deviations() -> list[str]:
    """What is not as the table says, one sentence each, with the command that mends it; nothing where all is well."""
    found = []
    for row in rows():
        try:
            seen = os.lstat(row.path)
        except OSError as error:
            found.append(f"{row.path}: {error.strerror}; mend with dpkg-reconfigure certdrop")
            continue
        if not (stat.S_ISDIR if row.kind == "dir" else stat.S_ISREG)(seen.st_mode):
            found.append(f"{row.path}: must be a {'directory' if row.kind == 'dir' else 'file'}")
        elif stat.S_IMODE(seen.st_mode) != row.mode:
            found.append(f"{row.path}: has mode {stat.S_IMODE(seen.st_mode):04o}; mend with chmod {row.mode:04o} {row.path}")
        elif (_user(seen.st_uid), _group(seen.st_gid)) != (row.owner, row.group):
            found.append(f"{row.path}: belongs to {_user(seen.st_uid)}:{_group(seen.st_gid)}; mend with chown -h {row.owner}:{row.group} {row.path}")
    return found


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)

"""Puts a copy of a pair where a service needs one: a combined PEM for haproxy, a key that a group may read.

Runs as: root. Trusts: root's configuration, and directories in which root alone can write. Writes: the paths
that a site's `copy` names, whole or not at all.
"""

from __future__ import annotations

import grp
import os
import pwd

from certdrop import site, spool
from certdrop.keeper import state

PARTS = {"combined": ("fullchain.pem", "privkey.pem"), "fullchain": ("fullchain.pem",), "cert": ("cert.pem",), "chain": ("chain.pem",),
         "key": ("privkey.pem",)}


class Failed(Exception):
    """A copy cannot be put where it is wanted; the text says why."""


def put(wanted: site.Site, number: int) -> None:
    """Write the site's copies from a generation. Raises Failed, OSError."""
    for copy in wanted.copy:
        parent, _, entry = copy["path"].rpartition("/")
        try:
            uid, gid = pwd.getpwnam(copy["owner"]).pw_uid, grp.getgrnam(copy["group"]).gr_gid
        except KeyError as error:
            raise Failed(f"{copy['path']}: {error}") from error
        data = b""
        for part in PARTS[copy["what"]]:
            with open(f"{state.directory(wanted.name, number)}/{part}", "rb") as stream:
                data += stream.read()
        fd = _descend(parent)
        try:
            spool.write(fd, entry, data, int(copy["mode"], 8), gid, uid)
        finally:
            os.close(fd)


def _descend(path: str) -> int:
    """A descriptor of a directory, each of whose ancestors is root's and writable by nobody else."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.strip("/").split("/"):
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
        found = os.fstat(fd)
        if found.st_uid != 0 or found.st_mode & 0o022:
            os.close(fd)
            raise Failed(f"{path}: {part} is not root's alone; a copy is put only where nobody else can write")
    return fd

"""Puts a copy of a pair where a service needs one: a combined PEM for haproxy, a key that a group may read.

Runs as: root. Trusts: root's configuration, and directories in which root alone can write. Writes: the paths
that a site's `copy` names, whole or not at all.
"""

from __future__ import annotations

import grp
import os
import pwd

from certdrop import spool
from certdrop.config import site
from certdrop.keeper import integrity, state

PARTS = {"combined": ("privkey.pem", "fullchain.pem"),          # the key first: Postfix insists, the others do not mind
         "fullchain": ("fullchain.pem",), "cert": ("cert.pem",), "chain": ("chain.pem",), "key": ("privkey.pem",)}


class Failed(Exception):
    """A copy cannot be put where it is wanted; the text says why."""


def put(wanted: site.Site, number: int, only_missing: bool = False) -> None:
    """Write the site's copies from a generation: all that can be written. Raises Failed or OSError, about the first that cannot."""
    wrong: OSError | Failed | None = None
    for copy in wanted.copy:
        try:
            _put_one(wanted.name, number, copy, only_missing)
        except (OSError, Failed) as error:
            wrong = wrong or error
    if wrong:
        raise wrong


def differ(wanted: site.Site, number: int) -> bool:
    """Whether a copy is not what a generation has: new in the configuration, or lost."""
    return any(_differs(wanted.name, number, copy) for copy in wanted.copy)


def _differs(name: str, number: int, copy: dict[str, str]) -> bool:
    path = copy["path"]
    try:
        os.close(_descend(path.rpartition("/")[0]))
        found = os.lstat(path)
        as_put = (found.st_uid, found.st_nlink, found.st_mode & 0o022) == (pwd.getpwnam(copy["owner"]).pw_uid, 1, 0)
        return not as_put or integrity.read(path) != _content(name, number, copy)
    except (OSError, KeyError, Failed):
        return True                            # put() says what is wrong


def _put_one(name: str, number: int, copy: dict[str, str], only_missing: bool) -> None:
    parent, _, entry = copy["path"].rpartition("/")
    try:
        uid, gid = pwd.getpwnam(copy["owner"]).pw_uid, grp.getgrnam(copy["group"]).gr_gid
    except KeyError as error:
        raise Failed(f"{copy['path']}: {error.args[0]}") from error
    fd = _descend(parent)
    try:
        if not (only_missing and _exists(fd, entry)):
            spool.write(fd, entry, _content(name, number, copy), int(copy["mode"], 8), gid, uid)
    finally:
        os.close(fd)


def _content(name: str, number: int, copy: dict[str, str]) -> bytes:
    data = b""
    for part in PARTS[copy["what"]]:
        with open(f"{state.directory(name, number)}/{part}", "rb") as stream:
            data += stream.read()
    return data


def _exists(fd: int, entry: str) -> bool:
    try:
        os.lstat(entry, dir_fd=fd)
    except FileNotFoundError:
        return False
    return True


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

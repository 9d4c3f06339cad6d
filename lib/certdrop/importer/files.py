"""Reads what other ACME clients left: every directory on the way is opened and examined, the file by the spool's safe read.

A symbolic link (certbot's live/ is made of them) is followed where it lies in a directory that only root can write: nobody else can have put it
there. Runs as: root. Trusts: paths that only root can change, and those of one further user where the administrator named that user.
Reads: those paths. Writes: nothing.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from typing import NamedTuple

from certdrop import foreign, spool

LINKS = 40                         # links on the way to one file, as the kernel has it
LARGEST = 1 << 20                  # bytes of a configuration file

_WHY = {"kind": "is no plain file", "owner": "belongs to another user", "links": "has another name too (a hard link), which another user may have made",
        "mode": "can be written by others", "busy": "cannot be read now", "size": "is too long"}


class Unreadable(Exception):
    """A file is not read; the text says which, and why."""


class Content(NamedTuple):
    """A file as it was read: its bytes, the user or group beside root who could read it too ("" for nobody), and when it was written."""

    data: bytes
    readers: str
    written: int


class _Place(NamedTuple):
    """An open directory: its descriptor, its path without links, whether it and all above are root's, whether only root can make a link in it, and
    whether others, or groups, can enter."""

    fd: int
    path: str
    is_roots: bool
    links: bool
    others: bool
    groups: bool


class Reader:
    """Reads what root owns, and what `owner` (a uid) owns."""

    def __init__(self, owner: int = 0) -> None:
        self.owners = {0, owner}

    def read(self, path: str, limit: int = spool.MAX_REPLY) -> Content:
        """A file's content. Raises Unreadable and FileNotFoundError."""
        return self._read(path, limit, LINKS)

    def text(self, path: str, limit: int = LARGEST) -> str:
        """A configuration file's text; "" where there is none. Raises Unreadable."""
        try:
            return self.read(path, limit).data.decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def entries(self, path: str) -> list[str]:
        """The names in a directory, sorted; none where it is not there. Raises Unreadable."""
        try:
            with self._directory(path, LINKS) as place:
                return sorted(os.listdir(place.fd))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _read(self, path: str, limit: int, links: int) -> Content:
        parent, name = os.path.split(path)
        with self._directory(parent, links) as place:
            found = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                return self._read(self._target(place, name, links), limit, links - 1)
            owner = found.st_uid if found.st_uid in self.owners else 0
            try:
                data = foreign.read(place.fd, name, owner, limit)
            except spool.Refused as refused:
                who = f" ({user_name(found.st_uid)}; --owner {user_name(found.st_uid)} trusts it)" if refused.reason == "owner" else ""
                raise Unreadable(f"{path}: {_WHY[refused.reason]}{who}") from refused
            return Content(data, _readers(place, name, found), int(found.st_mtime))

    @contextlib.contextmanager
    def _directory(self, path: str, links: int) -> Iterator[_Place]:
        with contextlib.ExitStack() as held:
            place = self._enter(held, None, "/")
            for part in path.split("/"):
                if part in ("", "."):
                    continue
                if part == "..":
                    place = held.enter_context(self._directory(os.path.dirname(place.path), links))
                elif stat.S_ISLNK(os.stat(part, dir_fd=place.fd, follow_symlinks=False).st_mode):
                    place = held.enter_context(self._directory(self._target(place, part, links), links - 1))
                else:
                    place = self._enter(held, place, part)
            yield place

    def _enter(self, held: contextlib.ExitStack, above: _Place | None, name: str) -> _Place:
        path = os.path.join(above.path, name) if above else name
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.fd if above else None)
        held.callback(os.close, fd)
        found = os.fstat(fd)
        if found.st_uid not in self.owners:
            owner = user_name(found.st_uid)
            raise Unreadable(f"{path}: belongs to {owner}, who can put other files there; --owner {owner} trusts what is there anyway")
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:      # in a sticky one, as /tmp is, nobody replaces another's files
            raise Unreadable(f"{path}: others can write there, so what is in it may be theirs; mend with chmod go-w {path}, and look at it")
        before = above or _Place(fd, "/", True, True, True, True)
        others = bool(found.st_mode & 0o001)
        is_roots = before.is_roots and found.st_uid == 0
        return _Place(fd, path, is_roots, is_roots and not found.st_mode & 0o022, before.others and others,
                      before.groups and (others or bool(found.st_mode & 0o010 and found.st_gid)))

    @staticmethod
    def _target(place: _Place, name: str, links: int) -> str:
        path = os.path.join(place.path, name)
        if not place.links:
            raise Unreadable(f"{path}: a link that root did not make is not followed; name the file itself")
        if links == 0:
            raise Unreadable(f"{path}: too many links")
        return os.path.join(place.path, os.readlink(name, dir_fd=place.fd))


def user_name(uid: int) -> str:
    """A user's name, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _readers(place: _Place, name: str, found: os.stat_result) -> str:
    """Who beside root can read this file, in words."""
    if found.st_uid:
        return f"the user {user_name(found.st_uid)}"
    if found.st_mode & 0o004 and place.others:
        return "every user"
    if found.st_mode & 0o040 and place.groups:
        if found.st_gid:
            return f"the group {_group_name(found.st_gid)}"
        try:
            os.getxattr(f"/proc/self/fd/{place.fd}/{name}", "system.posix_acl_access", follow_symlinks=False)
            return "whom its access control list names"
        except OSError:
            pass
    return ""


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)

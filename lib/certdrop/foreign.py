"""Reads a file that another principal may have written. Root's runs by cron and sudo do not: a process of the issuer's reads for them (keeper/reader.py).

Runs as: whoever imports it. Trusts: nothing that it reads. Reads: what it is given. Writes: nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from certdrop.spool import MAX_REPLY, Refused


def read(dir_fd: int, name: str, owner: int, limit: int = MAX_REPLY) -> bytes:
    """The content of a file that another principal (uid `owner`) may have written: read once, into memory, at most `limit` bytes.

    The file is opened by descriptor, neither followed nor waited for, and what was opened is
    examined, never the path (CVE-2016-1247 and CVE-2017-9525 are of that kind). Raises Refused
    (kind, owner, links, mode, busy, size) and FileNotFoundError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        stream = open(name, "rb", 1 << 16, opener=lambda name, _: os.open(name, flags, dir_fd=dir_fd))
    except FileNotFoundError:
        raise
    except OSError as error:
        busy = error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR)       # EAGAIN: somebody holds a lease
        raise Refused("busy" if busy else "kind") from error        # ELOOP: a link; ENXIO: a socket; EISDIR
    with stream:
        found = os.fstat(stream.fileno())
        for wrong, reason in ((not stat.S_ISREG(found.st_mode), "kind"), (found.st_uid != owner, "owner"), (found.st_nlink != 1, "links"),
                              (found.st_mode & 0o022, "mode"), (found.st_size > limit, "size")):
            if wrong:
                raise Refused(reason)
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise Refused("size")
    return data

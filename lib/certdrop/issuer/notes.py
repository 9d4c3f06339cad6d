"""The issuer's own files: one reader and one writer for all of them. What stands there may be nonsense, or no file at all, and harms no run.

Whatever cannot be used is as if it were not there, and the next writing clears the way. Runs as: _certdrop. Trusts: its own directory, but nothing
in it. Reads and writes: /var/lib/certdrop/issuer, world-readable for status and watcher.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator

from certdrop import foreign, spool
from certdrop.config import site

LONGEST = 16 << 20                 # bytes


def read(entry: str) -> bytes:
    """What stands in a file; nothing where there is none that can be used. Raises OSError where it cannot be read just now."""
    fd = spool.open_directory(site.STATE + "/issuer")
    try:
        return foreign.read(fd, entry, os.geteuid(), LONGEST)
    except FileNotFoundError:
        return b""
    except spool.Refused as refused:
        if refused.reason == "busy":
            raise OSError(errno.EAGAIN, "cannot be read now", f"{site.STATE}/issuer/{entry}") from refused
        return b""
    finally:
        os.close(fd)


def table(entry: str) -> dict[str, object]:
    """The JSON object that stands in a file; an empty one where none does. Raises OSError."""
    try:
        found = json.loads(read(entry))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def number(found: dict[str, object], key: str) -> int:
    """A whole number of a table, 0 for anything else."""
    value = found.get(key)
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 40 else 0


def put(entry: str, data: bytes) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    with _directory(entry) as fd:
        try:
            spool.write(fd, entry, data, 0o644)
        except IsADirectoryError:
            for name in (entry, f".{entry}.new"):
                clear(fd, name)
            spool.write(fd, entry, data, 0o644)


def append(entry: str, line: bytes) -> None:
    """Add a line to a file. Raises OSError."""
    with _directory(entry) as parent:
        try:
            fd = _at_the_end(parent, entry)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EFBIG):
                raise
            clear(parent, entry)               # a directory, a link, a FIFO, a file that is not ours to write, or too long to be read
            fd = _at_the_end(parent, entry)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _directory(entry: str) -> Iterator[int]:
    """The directory, for a file in it to be written; what goes wrong names that file by its path."""
    fd = spool.open_directory(site.STATE + "/issuer")
    try:
        yield fd
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{site.STATE}/issuer/{entry}") from error
    finally:
        os.close(fd)


def _at_the_end(parent: int, entry: str) -> int:
    fd = os.open(entry, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=parent)
    if os.fstat(fd).st_size > LONGEST:
        os.close(fd)
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), entry)
    return fd


def clear(parent: int, entry: str) -> None:
    """Set aside whatever stands in the way of a file. Raises OSError."""
    try:
        os.rename(entry, f"{entry}.unusable-{time.time_ns()}", src_dir_fd=parent, dst_dir_fd=parent)
    except FileNotFoundError:
        pass

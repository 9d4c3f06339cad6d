"""Makes the change to nginx's configuration that moves sites over to certdrop: all files, tested and reloaded, or none.

Each file is replaced whole, with its owner and mode; where nginx does not pass its test with them, all are put back, and nothing was reloaded. What was
changed is kept as a diff before the first file is, so that a run which was killed in it can be undone by hand; run again, it goes on.
Runs as: root, by hand. Trusts: the diff that import_nginx.py made of root's own files. Writes: nginx's configuration files; keeper/import.diff.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from certdrop import site, spool
from certdrop.keeper import notes, services
from certdrop.keeper.command import Refused

UNDO = "import.diff"


def apply(changes: list[tuple[str, str, str]], diff: str) -> str:
    """Make the changes (path, text before, text after), have nginx tested and reloaded; where the diff is kept. Raises Refused."""
    try:
        service = services.find("nginx")
        service.test()
    except services.Failed as error:
        raise Refused(f"nginx: {error}; nothing was changed; mend that first (nginx -t)") from error
    notes.put(UNDO, diff.encode("utf-8", "surrogateescape"), 0o600)
    kept = f"{site.STATE}/keeper/{UNDO}"
    signal.signal(signal.SIGTERM, _stop)                   # the terminal's signals do not reach this session
    done: list[tuple[str, str]] = []
    try:
        for path, before, after in changes:
            if _read(path)[0] != before:
                raise Refused(f"{path}: was changed meanwhile; all files are as they were; run this again")
            done.append((path, before))
            _replace(path, after)
        service.test()
    except BaseException as error:
        for path, before in reversed(done):
            _replace(path, before)
        if isinstance(error, services.Failed):
            raise Refused(f"nginx: {error}; that is with the change; all files are as they were, and nginx was not reloaded") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        service.reload()
    except services.Failed as error:
        raise Refused(f"nginx: {error}; it was not reloaded; the files are changed, and pass its test; patch -R -p0 -d / < {kept} undoes that") from error
    return kept


def _read(path: str) -> tuple[str, os.stat_result]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        return stream.read().decode("utf-8", "surrogateescape"), os.fstat(fd)


def _replace(path: str, text: str) -> None:
    """Put a text in the place of a file's, whole or not at all, with its owner and mode."""
    _, found = _read(path)
    parent, _, name = path.rpartition("/")
    folder = spool.open_directory(parent)
    temporary = f".{name}.certdrop-new"
    try:
        try:
            os.unlink(temporary, dir_fd=folder)
        except FileNotFoundError:
            pass
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with os.fdopen(fd, "wb") as stream:
            stream.write(text.encode("utf-8", "surrogateescape"))
            os.fchown(fd, found.st_uid, found.st_gid)
            os.fchmod(fd, found.st_mode & 0o7777)
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _stop(number: int, _: object) -> NoReturn:
    raise Refused(f"ended by signal {number}; all files are as they were")

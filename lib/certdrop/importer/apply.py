"""Makes the change to nginx's configuration that moves sites over to certdrop: all files, tested and reloaded, or none.

Each file is replaced whole, with its group and mode; where nginx does not pass its test with them, all are put back, and nothing was reloaded. What was
changed is kept as a diff before the first file is, so that a run which was killed in it can be undone by hand; run again, it goes on, and the diff
undoes both. Runs as: root, by hand. Trusts: the diff that nginx.py made; files that only root can change. Writes: nginx's configuration
files; keeper/import.diff.
"""

from __future__ import annotations

import os
import re
import signal
from typing import NoReturn

from certdrop import spool
from certdrop.by_hand import Refused
from certdrop.config import site
from certdrop.importer.files import Reader, Unreadable
from certdrop.importer.nginx import LARGEST
from certdrop.keeper import integrity, notes, services

UNDO = "import.diff"
BEGUN = "This change was begun:\n"     # before the diff, until the change is made or taken back; patch(1) passes over it

Change = tuple[str, str, str]          # a path, the text before, the text after


def apply(changes: list[Change], diff: str) -> str:
    """Make the changes, have nginx tested and reloaded; where the diff is kept. Raises Refused."""
    for path, before, _ in changes:
        _refuse_other_than(path, before)
    try:
        service = services.find("nginx")
        service.test()
    except services.Failed as error:
        raise Refused(f"nginx: {error}; nothing was changed; mend that first (nginx -t)") from error
    kept = f"{site.STATE}/keeper/{UNDO}"
    diff = _with_what_was_begun(diff)
    notes.put(UNDO, (BEGUN + diff).encode("utf-8", "surrogateescape"), 0o600)
    signal.signal(signal.SIGTERM, _stop)                   # the terminal's signals do not reach this session
    done: list[Change] = []
    try:
        for change in changes:
            _refuse_other_than(*change[:2])
            done.append(change)
            _replace(change[0], change[2])
        service.test()
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)      # what is begun is taken back, whoever is in a hurry
        _take_back(done, kept)
        if isinstance(error, services.Failed):
            raise Refused(f"nginx: {error}; that is with the change; all files are as they were, and nginx was not reloaded") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    notes.put(UNDO, diff.encode("utf-8", "surrogateescape"), 0o600)
    try:
        service.reload()
    except services.Failed as error:
        raise Refused(f"nginx: {error}; it was not reloaded; the files are changed, and pass its test; patch -R -p0 -d / < {kept} undoes that") from error
    return kept


def begun() -> str:
    """The diff that a run noted which was killed before it came to its end; "" where there is none."""
    try:
        found = integrity.read(f"{site.STATE}/keeper/{UNDO}", 2 * LARGEST).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    return found.removeprefix(BEGUN) if found.startswith(BEGUN) else ""


def _with_what_was_begun(diff: str) -> str:
    """The diff; where a run was killed, with what that one had changed: its diff of the files that this one does not change."""
    before = begun()
    heads = [*re.finditer(r"^--- (\S+)\n\+\+\+ \1\n(?=@@ )", before, re.MULTILINE)]
    ends = [head.start() for head in heads[1:]] + [len(before)]
    return diff + "".join(before[head.start():end] for head, end in zip(heads, ends) if head[0] not in diff)


def _take_back(done: list[Change], kept: str) -> None:
    """Put the texts before back, the last one first. Raises Refused where one stays changed."""
    stays = []
    for path, before, _ in reversed(done):
        try:
            if _read(path) != before:
                _replace(path, before)
        except (OSError, Unreadable) as error:
            stays.append(_why(error, path))
    if stays:
        raise Refused(f"{'; '.join(stays)}; could not be put back; nginx was not reloaded; {kept} has the lines of before, behind a -")
    os.unlink(kept)


def _refuse_other_than(path: str, text: str) -> None:
    """Raise Refused unless only root can change the file, and this is what it says."""
    try:
        found = _read(path)
    except (OSError, Unreadable) as error:
        raise Refused(f"{_why(error, path)}; no file of nginx's was changed; make the change by hand (certdrop-import --diff shows it)") from error
    if found != text:
        raise Refused(f"{path}: was changed meanwhile; all files are as they were; run this again")


def _why(error: Exception, path: str) -> str:
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _read(path: str) -> str:
    return Reader().read(path, LARGEST).data.decode("utf-8", "surrogateescape")


def _replace(path: str, text: str) -> None:
    """Put a text in the place of a file's, whole or not at all, with its group and mode: root's it is."""
    parent, _, name = path.rpartition("/")
    folder, temporary = spool.open_directory(parent), f".{name}.certdrop-new"
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        spool.write(folder, temporary, text.encode("utf-8", "surrogateescape"), found.st_mode & 0o7777, found.st_gid)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _stop(number: int, _: object) -> NoReturn:
    raise Refused(f"ended by signal {number}; all files are as they were")

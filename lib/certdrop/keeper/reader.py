"""Has the replies read, by a process of the issuer's user: root looks for no name in a directory that the issuer writes, and opens nothing there.

Whoever may write there can hold the directory, or a file, in the kernel: a process that looks then waits, and cannot be killed. So another one does
(issuer/handover.py), which has nothing of root's that others wait for, and is left behind where it does not answer in time.
Once a day root looks whether issuer and watcher run, by the times of their directories.
Runs as: root. Trusts: nothing that it is told, which the judge looks at. Writes: keeper/readers, keeper/looked, keeper/silence.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import time
from collections.abc import Generator

from certdrop import spool
from certdrop.config import site
from certdrop.keeper import integrity, notes
from certdrop.keeper.run import Run
from certdrop.walls import users

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    import subprocess

PROGRAM = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + "/issuer/handover.py"
DEADLINE = 5.0                     # seconds for one reply
MOST = 8                           # processes that may hang, of all runs: each has a byte of keeper/readers locked, until the kernel lets it go
SETTLED = 2e9                      # nanoseconds after which a directory's time of change tells whether it was changed since
DAY = 86400
HEAD = struct.Struct(">cI")        # of an answer: what it is, and how many bytes follow
NOTHING, REPLY = b"-", b"+"        # anything else: why the reply is not read, in as many bytes


def replies(run: Run, entries: list[str]) -> Generator[bytes | spool.Refused | None, None, None]:
    """What stands in replies/ under each of these names, in turn: a reply, Refused as by spool.read() (`busy` where that hangs), or None.

    Where neither requests/ nor replies/ was changed since there was no reply to any request, nobody looks.
    """
    now = time.time_ns()                       # before anybody looks: what changes while a child reads may have the time of a change before
    changed = [os.fstat(fd).st_ctime_ns for fd in (run.requests, run.replies)]
    with contextlib.suppress(OSError, integrity.Damaged):
        if integrity.read(f"{site.STATE}/keeper/looked") == repr(changed).encode():
            yield from [None] * len(entries)
            return
    reader, failed, found = None, 0, False
    try:
        for at in range(len(entries)):
            if reader is None and failed < MOST:
                reader = _start(run, entries[at:])
            said: bytes | spool.Refused | None = spool.Refused("busy")
            try:
                said = _answer(reader) if reader else said
            except TimeoutError:
                _leave(reader)
                reader, failed = None, failed + 1
            found = found or said is not None
            yield said
    finally:
        _leave(reader)
    if not found and len(entries) == sum((kind == "csr") for posted in run.posted.values() for _, kind in posted) and max(changed) < now - SETTLED:
        with contextlib.suppress(OSError):
            notes.put("looked", repr(changed).encode(), 0o600)


def silences(run: Run) -> list[str]:
    """Once a day: which of issuer and watcher were not seen to run for more than one. Not where the host slept, or certdrop is new: then it is not known.

    Each run of theirs changes the directory that each has: its time is seen without opening it, or looking for a name in it.
    """
    due, now = f"{site.STATE}/keeper/silence", time.time()
    age = now - os.stat(due).st_mtime if os.path.exists(due) else 2.0 * DAY
    if 0 <= age < DAY:
        return []
    notes.put("silence", b"")
    if age > DAY + 7200 or not run.observed:
        return []
    return [f"{run.program}: the {who} was not seen to run for more than a day; sudo certdrop-check says what keeps it from that"
            for who in ("watcher", "issuer") if not _was_seen(who, now)]


def _was_seen(who: str, now: float) -> bool:
    try:
        return -spool.STEP <= now - os.lstat(f"{site.STATE}/{who}").st_mtime < DAY + 4 * 3600      # root's look before may be that old
    except OSError:
        return False


def _start(run: Run, entries: list[str]) -> subprocess.Popen[bytes]:
    """A process that reads these in turn. Raises OSError."""
    import subprocess                          # here, because most runs read nothing
    places = os.open(f"{site.STATE}/keeper/readers", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    asked = os.memfd_create("asked")           # no pipe: it may hang before it reads it
    try:
        os.write(asked, "\n".join(entries).encode())
        os.lseek(asked, 0, os.SEEK_SET)
        return subprocess.Popen(["/usr/bin/python3", "-I", "-S", PROGRAM], stdin=asked, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, bufsize=0, cwd="/", env=users.ENVIRONMENT, start_new_session=True,
                                pass_fds=[places], preexec_fn=lambda: any(_is_free(places, place) for place in range(MOST)) or os._exit(0))
    finally:
        os.close(places)
        os.close(asked)


def _is_free(places: int, place: int) -> bool:
    """Whether this was nobody's place among those that read; it is this process's now, for as long as the kernel knows it."""
    try:
        fcntl.lockf(places, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError:
        return False
    return True


def _answer(reader: subprocess.Popen[bytes]) -> bytes | spool.Refused | None:
    """What it says next. Raises TimeoutError where that does not come, or is no answer."""
    end = time.monotonic() + DEADLINE
    kind, size = HEAD.unpack(_exactly(reader, HEAD.size, end))
    if size > spool.MAX_REPLY:
        raise TimeoutError
    said = _exactly(reader, size, end)
    reason = said.decode("ascii", "replace")
    return None if kind == NOTHING else said if kind == REPLY else spool.Refused(reason if reason in spool.REASONS else "busy")


def _exactly(reader: subprocess.Popen[bytes], size: int, end: float) -> bytes:
    data = b""
    while reader.stdout and len(data) < size:
        more = os.read(reader.stdout.fileno(), size - len(data)) if select.select([reader.stdout], [], [], max(0.0, end - time.monotonic()))[0] else b""
        if not more:
            raise TimeoutError
        data += more
    return data


def _leave(reader: subprocess.Popen[bytes] | None) -> None:
    """End it. Where it hangs it ends by itself, when it is let go."""
    if reader and reader.stdout:
        reader.stdout.close()
        reader.kill()
        reader.poll()

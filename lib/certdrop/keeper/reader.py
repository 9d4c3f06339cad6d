"""Reads the replies, in a child that may hang: root's own process looks for no name in a directory that the issuer writes, and opens nothing there.

Whoever may write there can hold the directory, or a file, in the kernel: a process that looks then waits, and cannot be killed. So a child does,
which has nothing of root's that others wait for (no lock, no pipe, and by Landlock no other file), and is left behind where it does not answer in time.
Once a day it looks whether issuer and watcher run, by the times of stamps in their directories.
Runs as: root. Trusts: its own child. Reads: replies/. Writes: keeper/readers, keeper/looked, keeper/silence.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Generator

from certdrop import spool
from certdrop.config import site
from certdrop.keeper import integrity, notes
from certdrop.keeper.run import Run
from certdrop.walls import jail

DEADLINE = 5.0                     # seconds for one reply
MOST = 8                           # children that may hang, of all runs: each has a byte of keeper/readers locked, until the kernel lets it go
SETTLED = 2e9                      # nanoseconds after which a directory's time of change tells whether it was changed since

DAY = 86400
STAMPS = {"watcher": "watcher/state.json", "issuer": "issuer/last-run"}

_NOTHING, _REPLY, _REFUSED = b"-+!"
_HEAD = struct.Struct(">BI")       # one of these, and how many bytes follow


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
    child, data, failed, found = (0, -1), b"", 0, False
    try:
        for at in range(len(entries)):
            end = time.monotonic() + DEADLINE
            if child[1] < 0 and failed < MOST:
                child = _start(run, [functools.partial(_answer, entry, run.issuer) for entry in entries[at:]])
            while child[1] >= 0 and not _is_whole(data):
                more = os.read(child[1], 1 << 16) if select.select([child[1]], [], [], max(0.0, end - time.monotonic()))[0] else b""
                data += more
                if not more:
                    child, data, failed = _leave(*child), b"", failed + 1
            kind, size = _HEAD.unpack_from(data) if data else (_REFUSED, 0)
            said, data = data[_HEAD.size:_HEAD.size + size], data[_HEAD.size + size:]
            found = found or kind != _NOTHING
            yield said if kind == _REPLY else None if kind == _NOTHING else spool.Refused(said.decode() or "busy")
    finally:
        _leave(*child)
    if not found and len(entries) == sum((kind == "csr") for posted in run.posted.values() for _, kind in posted) and max(changed) < now - SETTLED:
        with contextlib.suppress(OSError):
            notes.put("looked", repr(changed).encode(), 0o600)


def _is_whole(data: bytes) -> bool:
    return len(data) >= _HEAD.size and len(data) >= _HEAD.size + _HEAD.unpack_from(data)[1]


def silences(run: Run) -> list[str]:
    """Once a day: which of issuer and watcher were not seen to run for more than one. Not where the host slept, or certdrop is new: then it is not known."""
    due = f"{site.STATE}/keeper/silence"
    age = time.time() - os.stat(due).st_mtime if os.path.exists(due) else 2.0 * DAY
    if 0 <= age < DAY:
        return []
    notes.put("silence", b"")
    if age > DAY + 7200 or not run.sights:
        return []
    child, seen = _start(run, [_tell_seen]), b""
    while select.select([child[1]], [], [], DEADLINE)[0] and (more := os.read(child[1], 9)):
        seen += more
    _leave(*child)
    return [f"{run.program}: the {who} was not seen to run for more than a day; sudo certdrop-check says what keeps it from that"
            for who in STAMPS if who[:1].encode() not in seen]


def _tell_seen() -> None:
    for who, stamp in STAMPS.items():
        with contextlib.suppress(OSError):
            seen, now = os.lstat(f"{site.STATE}/{stamp}").st_mtime, time.time()
            if spool.is_credible(seen, spool.HAPPENED, now) and now - seen < DAY + 4 * 3600:      # root's look before may be that old
                os.write(1, who[:1].encode())


def _start(run: Run, work: list[Callable[[], None]]) -> tuple[int, int]:
    """A child that does these in turn, and the descriptor that it answers by. Raises OSError."""
    parent, (answers, writer) = os.getpid(), os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, answers
    try:
        jail.end_with(parent)
        places = os.open(f"{site.STATE}/keeper/readers", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        for to, fd in enumerate((run.replies, writer, places)):
            os.dup2(fd, to)
        os.closerange(3, 1 << 20)
        with contextlib.suppress(jail.Unconfined):
            jail.landlock(read=(spool.replies(),))
        if any(map(_is_free, range(MOST))):
            for one in work:
                one()
    finally:
        os._exit(0)


def _is_free(place: int) -> bool:
    """Whether this was nobody's place among the children; it is this one's now, for as long as the kernel knows it."""
    try:
        fcntl.lockf(2, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError:
        return False
    return True


def _answer(entry: str, issuer: int) -> None:
    try:
        kind, said = _REPLY, spool.read(0, entry, issuer)
    except FileNotFoundError:
        kind, said = _NOTHING, b""
    except spool.Refused as refused:
        kind, said = _REFUSED, refused.reason.encode()
    data = memoryview(_HEAD.pack(kind, len(said)) + said)
    while data:
        data = data[os.write(1, data):]


def _leave(child: int, answers: int) -> tuple[int, int]:
    """End a child that is not needed any more. Where it hangs it ends by itself, when it is let go."""
    if answers >= 0:
        os.close(answers)
        os.kill(child, signal.SIGKILL)         # not waited for yet, so the number is its own
        with contextlib.suppress(OSError):
            os.waitpid(child, os.WNOHANG)
    return 0, -1

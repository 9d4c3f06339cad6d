"""Reads the replies, in a child that may hang: root's own process looks for no name in a directory that the issuer writes, and opens nothing there.

Whoever may write there can hold the directory, or a file, in the kernel: a process that looks then waits, and cannot be killed. So a child does,
which has nothing of root's that others wait for (no lock, no pipe, and by Landlock no other file), and is left behind where it does not answer in time.
Runs as: root. Trusts: its own child. Reads: replies/. Writes: keeper/readers, keeper/looked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Generator

from certdrop import jail, site, spool
from certdrop.keeper import integrity, notes
from certdrop.keeper.run import Run

DEADLINE = 5.0                     # seconds for one reply
MOST = 8                           # children that may hang, of all runs: each has a byte of keeper/readers locked, until the kernel lets it go
SETTLED = 2e9                      # nanoseconds after which a directory's time of change tells whether it was changed since

_NOTHING, _REPLY, _REFUSED = b"-+!"
_HEAD = struct.Struct(">BI")       # one of these, and how many bytes follow


def replies(run: Run, entries: list[str]) -> Generator[bytes | spool.Refused | None, None, None]:
    """What stands in replies/ under each of these names, in turn: a reply, Refused as by spool.read() (`busy` where that hangs), or None.

    Where neither requests/ nor replies/ was changed since there was no reply to any request, nobody looks.
    """
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
                child = _start(run, entries[at:])
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
    if not found and len(entries) == sum((kind == "csr") for posted in run.posted.values() for _, kind in posted) and max(changed) < time.time_ns() - SETTLED:
        with contextlib.suppress(OSError):
            notes.put("looked", repr(changed).encode(), 0o600)


def _is_whole(data: bytes) -> bool:
    return len(data) >= _HEAD.size and len(data) >= _HEAD.size + _HEAD.unpack_from(data)[1]


def _start(run: Run, entries: list[str]) -> tuple[int, int]:
    """A child that reads these in turn, and the descriptor that it answers by. Raises OSError."""
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
            for entry in entries:
                _answer(entry, run.issuer)
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

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
import re
import time
from collections.abc import Generator

from certdrop import spool
from certdrop.config import site
from certdrop.keeper import children, integrity, notes
from certdrop.keeper.run import Run

PROGRAM = children.LIB + "/issuer/handover.py"
DEADLINE = 5.0                     # seconds for one reply
MOST = 8                           # processes that may hang, of all runs: each has a byte of keeper/readers locked, until the kernel lets it go
SETTLED = 2e9                      # nanoseconds after which a directory's time of change tells whether it was changed since
DAY = 86400
LISTING = ""                       # asked for in place of a name: which names lie there
ANSWER = rb"--?|\+(.*)|!([a-z-]+)"          # nothing, or nothing that is seen (which is not noted); a reply; or why it is not read


def answered(run: Run) -> set[str]:
    """The sites that a reply lies in the spool for: of the names that are listed there, only what answers a request of root's."""
    (listed,) = replies(run, [LISTING])
    if isinstance(listed, spool.Refused):
        run.fail("replies", f"could not be listed ({listed}); the next run looks again", os.EX_TEMPFAIL)
    found = map(spool.parse_entry, listed.decode("ascii", "replace").split("\n") if isinstance(listed, bytes) else ())
    return {name for name, number, kind in filter(None, found) if kind == "pem" and (number, "csr") in run.posted.get(name, ())}


def replies(run: Run, entries: list[str]) -> Generator[bytes | spool.Refused | None, None, None]:
    """What stands in replies/ under each of these names, in turn: a reply, Refused as by foreign.read() (`busy` where that hangs), or None.

    Where neither requests/ nor replies/ was changed since there was no reply to any request, nobody looks.
    """
    now = time.time_ns()                       # before anybody looks: what changes while a child reads may have the time of a change before
    changed = [os.fstat(fd).st_ctime_ns for fd in (run.requests, run.replies)]
    with contextlib.suppress(OSError, integrity.Damaged):
        if integrity.read(f"{site.STATE}/keeper/looked") == repr(changed).encode():
            yield from [None] * len(entries)
            return
    found = False
    places = os.open(f"{site.STATE}/keeper/readers", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def start(asked: int) -> children.Child:
        return children.Child([PROGRAM], asked, lambda: any(_is_free(places, place) for place in range(MOST)) or os._exit(0), (places,))
    answers = children.answers(start, [entry.encode("ascii") for entry in entries], ANSWER, DEADLINE,
                               1 + (spool.MAX_LISTED if entries == [LISTING] else spool.MAX_REPLY), MOST)
    try:
        for said in answers:
            found = found or said is None or said[0] != b"-"
            yield _reply(said)
    finally:
        answers.close()
        os.close(places)
    asked_for = {spool.entry(name, number, "pem") for name, posted in run.posted.items() for number, kind in posted if kind == "csr"}
    if not found and (entries == [LISTING] or asked_for <= {*entries}) and max(changed) < now - SETTLED:
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


def _is_free(places: int, place: int) -> bool:
    """Whether this was nobody's place among those that read; it is this process's now, for as long as the kernel knows it."""
    try:
        fcntl.lockf(places, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except OSError:
        return False
    return True


def _reply(said: re.Match[bytes] | None) -> bytes | spool.Refused | None:
    """What an answer means."""
    reply, reason = said.groups() if said else (None, b"busy")
    if reason:
        return spool.Refused(reason.decode() if reason.decode() in spool.REASONS else "busy")
    return None if reply is None else bytes(reply)

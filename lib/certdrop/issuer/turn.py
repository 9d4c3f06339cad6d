"""One at a time: the issuer's lock, which a run of certdrop-issue or certdrop-account holds while it works, and who goes before whom.

It is a lock of fcntl(2), so the kernel says which process holds it, and drops it with that process, whatever the process left behind. The file
says more, in words for a person; who took over the network part could write there, and hold the lock as well: so a holder is ended when its time
is over, and a run by cron at once where an administrator's command comes after it. Runs as: _certdrop. Writes: issuer/lock.
"""

from __future__ import annotations

import fcntl
import os
import time

from certdrop.config import site

GRACE = 5.0                        # seconds to end in
CRON, PERSON = "by cron", "by hand"
LONGEST = {CRON: 6 * 3600.0, PERSON: 3600.0}   # seconds that a run may hold it


def take(program: str, by_person: bool, first: bool) -> int | None:
    """Take the lock, which this descriptor is; None where another process holds it, and nobody waits. Raises OSError.

    Who comes `by_person` waits, and says for whom; who is to be `first` has a run by cron ended, which begins again at cron's next tick.
    """
    fd = os.open(site.STATE + "/issuer/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if not _try(fd) and not _wait(fd, program, by_person, first):
        os.close(fd)
        return None
    kind, now = PERSON if by_person else CRON, time.time()
    end = now + LONGEST[kind]
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{kind}\n{end:.0f}\n{program} {kind}, process {os.getpid()}, since {_clock(now)}, until {_clock(end)} at most".encode(), 0)
    except OSError:
        pass                                   # a word for others: not worth a run on a full disk
    return fd


def _wait(fd: int, program: str, by_person: bool, first: bool) -> bool:
    """Wait until the lock is ours; False where this one does not wait."""
    import signal

    from certdrop import words                 # both of which a run that finds the lock free can spare
    seen, end = 0, 0.0
    while not _try(fd):
        holder, now = _holder(fd), time.monotonic()
        if holder and holder != seen:
            kind, until, who = _said(fd)
            left = min(max(0.0, until - time.time()), LONGEST[PERSON if kind == PERSON else CRON])
            goes_before = first and kind != PERSON and left > 0.0
            if not by_person and left:
                return False
            if by_person:
                words.say(f"{program}: another run is at work ({who}); " + ("this one goes before it" if goes_before else "this one waits for it"))
            if goes_before:
                _end(holder, signal.SIGTERM)
            seen, end = holder, now + (0.0 if goes_before else left) + GRACE
        if holder and now > end:
            _end(holder, signal.SIGKILL)
        time.sleep(0.05)                       # such a lock has no deadline of its own
    return True


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))


def _said(fd: int) -> tuple[str, float, str]:
    """(by whom, until when, the rest), as the holder wrote it: anything, in the end."""
    from certdrop import events
    kind, until, who = [*os.pread(fd, 300, 0).decode("ascii", "replace").split("\n", 2), "", ""][:3]
    return kind, float(until[:12]) if until[:12].isdecimal() else 0.0, events.clean(who, 200) or "somebody"


def _holder(fd: int) -> int:
    """The process that holds the lock, by the kernel's word; 0 for none."""
    import struct
    form = "hhqqi"                             # struct flock: type, whence, start, length, process
    kind, _, _, _, process = struct.unpack(form, fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(form, fcntl.F_WRLCK, 0, 0, 0, 0)))
    return 0 if kind == fcntl.F_UNLCK else int(process)


def _end(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except (ProcessLookupError, PermissionError):
        pass                                   # it has ended; or it is none of ours, which nobody of another user's could be


def _try(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True

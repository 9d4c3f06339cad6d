"""One keeper at a time: one runs, one waits, others leave (they would find nothing left to do).

The locks are flock on files of root's, 0600, that nobody else can open, so nobody else can hold them; the kernel
drops them with the process, so there is never one to clean up. Who holds it without coming to an end is ended by a run that root started:
a keeper that is killed loses nothing. Runs as: root. Trusts: the kernel. Reads: /proc. Writes: keeper/lock, keeper/waiting, keeper/waiting-issuer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from io import FileIO

from certdrop import events, words
from certdrop.config import site

DEADLINE = 1500.0                  # seconds that a keeper waits for another: longer than any run takes
GONE = 10.0                        # seconds for one that was killed to be gone

# Where one keeper may wait. Only who does all there is to do may wait for all: an administrator's verb does one site, and waits wherever others do;
# a run that the issuer asked for leaves alone what was installed within the hour, and its runs must not keep root's own out.
ALL, ISSUERS, VERB = "waiting", "waiting-issuer", ""


class Busy(Exception):
    """Another keeper runs (and a second one waits already); the text says who."""


@contextlib.contextmanager
def held(queue: str = VERB) -> Iterator[None]:
    """Be the one keeper that runs, when it is our turn in this queue. Raises Busy."""
    with _open("lock") as lock:
        if not _taken(lock):
            with _open(queue or ALL) as place:
                if queue and not _taken(place):
                    raise Busy(holder(lock))
                _wait(lock, kills=queue != ISSUERS)
        with contextlib.suppress(OSError):     # a name for others to read: not worth a run on a full disk
            os.ftruncate(lock.fileno(), 0)
            os.pwrite(lock.fileno(), f"process {os.getpid()} since {time.strftime('%H:%M:%S')}".encode(), 0)
        yield


def _wait(lock: FileIO, kills: bool) -> None:
    """Until the lock is ours. At the deadline the holder is ended, if it is the one that was waited for from the beginning. Raises Busy."""
    whom = holder(lock)
    if _taken(lock, 1.0):
        return
    if words.at_terminal(2):                   # no lock is held yet that this could hold up
        words.say(f"certdrop: another run is at work ({holder(lock)}); this one waits for it")
    if not _taken(lock, DEADLINE) and not _taken(lock, GONE if kills and whom == holder(lock) and _end_holder(lock) else 0.0):
        raise Busy(holder(lock))


def holder(lock: FileIO) -> str:
    """Who holds the lock, as it wrote itself."""
    return os.pread(lock.fileno(), 100, 0).decode("ascii", "replace") or "somebody"


def _end_holder(lock: FileIO) -> bool:
    """Kill who holds the lock, stopped or not: the process that the kernel names, where it has that very file open."""
    path = os.readlink(f"/proc/self/fd/{lock.fileno()}")
    for pid in _holders(lock):
        with contextlib.suppress(OSError), open(os.pidfd_open(pid), "rb", buffering=0) as process:       # an error: it ended by itself
            opened = {os.readlink(f"/proc/{pid}/fd/{entry}") for entry in os.listdir(f"/proc/{pid}/fd")}
            if path in opened and pid in _holders(lock):           # looked at after the number could become another's
                events.Log("keeper").write(events.ENDED, holder=holder(lock), seconds=int(DEADLINE))
                signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)
                return True
    return False


def _holders(lock: FileIO) -> list[int]:
    with open("/proc/locks", encoding="ascii") as stream:
        lines = [line.split() for line in stream]
    return [int(words[4]) for words in lines if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(os.fstat(lock.fileno()).st_ino)]


def _open(entry: str) -> FileIO:
    return open(f"{site.STATE}/keeper/{entry}", "r+b", buffering=0,
                opener=lambda path, flags: os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def _taken(lock: FileIO, patience: float = 0.0) -> bool:
    """Whether it is ours within so many seconds."""
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)                       # flock has no deadline of its own

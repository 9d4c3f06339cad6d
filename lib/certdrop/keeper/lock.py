"""One keeper at a time: one runs, one waits, others leave (they would find nothing left to do).

The locks are flock on files of root's, 0600, that nobody else can open, so nobody else can hold them; the kernel
drops them with the process, so there is never one to clean up. Runs as: root. Writes: keeper/lock, keeper/waiting,
keeper/waiting-issuer.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from certdrop import site

DEADLINE = 900.0                   # seconds that a keeper waits for another


class Busy(Exception):
    """Another keeper runs (and a second one waits already); the text says who."""


class Lock:
    """The keeper's lock, as a context. `patient` is an administrator's: waits its turn whoever else waits, and says for whom.

    Only who does all there is to do may be the one that waits for all: an administrator's verb does one site, and a run that the issuer asked
    for leaves alone what was installed within the hour; so that its runs cannot keep root's own out, they wait in a `queue` of theirs.
    """

    def __init__(self, patient: bool, queue: str = "waiting") -> None:
        self.patient, self.queue = patient, queue
        self.fd = -1

    def __enter__(self) -> Lock:
        self.fd = _open("lock")
        try:
            if not _try(self.fd):
                self._wait()
        except (Busy, OSError):
            os.close(self.fd)
            raise
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"process {os.getpid()} since {time.strftime('%H:%M:%S')}".encode(), 0)
        except OSError:
            pass                               # a name for others to read: not worth a run on a full disk
        return self

    def _wait(self) -> None:
        waiting = _open(self.queue)
        try:
            if not self.patient and not _try(waiting):
                raise Busy(holder(self.fd))
            began, said = time.monotonic(), False
            while not _try(self.fd):
                waited = time.monotonic() - began
                if waited > DEADLINE:
                    raise Busy(holder(self.fd))
                if waited > 1 and not said:
                    said = True
                    _say(f"another keeper is at work ({holder(self.fd)}); this one waits for it")
                time.sleep(0.05)               # flock has no deadline of its own
        finally:
            os.close(waiting)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def holder(fd: int) -> str:
    """Who holds the lock, as it wrote itself."""
    return os.pread(fd, 100, 0).decode("ascii", "replace") or "somebody"


def _say(text: str) -> None:
    """Tell whoever looks on; no lock is held yet that this could hold up."""
    if sys.stderr.isatty():
        try:
            print(f"certdrop: {text}", file=sys.stderr, flush=True)
        except OSError:
            pass


def _open(entry: str) -> int:
    return os.open(f"{site.STATE}/keeper/{entry}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""One keeper at a time: one runs, one waits, others leave (they would find nothing left to do).

The locks are flock on files of root's, 0600, that nobody else can open, so nobody else can hold them; the kernel
drops them with the process, so there is never one to clean up. Runs as: root. Writes: keeper/lock, keeper/waiting.
"""

from __future__ import annotations

import fcntl
import os
import time

from certdrop import site

DEADLINE = 900.0                   # seconds that a keeper waits for another


class Busy(Exception):
    """Another keeper runs (and a second one waits already); the text says who."""


class Lock:
    """The keeper's lock, as a context. `patient` is an administrator's: waits its turn whoever else waits."""

    def __init__(self, patient: bool) -> None:
        self.patient = patient
        self.fd = -1

    def __enter__(self) -> Lock:
        self.fd = _open("lock")
        if not _try(self.fd):
            waiting = _open("waiting")
            try:
                if not _try(waiting) and not self.patient:
                    raise Busy(holder(self.fd))
                end = time.monotonic() + DEADLINE
                while not _try(self.fd):
                    if time.monotonic() > end:
                        raise Busy(holder(self.fd))
                    time.sleep(0.05)           # flock has no deadline of its own
            except Busy:
                os.close(self.fd)
                raise
            finally:
                os.close(waiting)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"process {os.getpid()} since {time.strftime('%H:%M:%S')}".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def holder(fd: int) -> str:
    """Who holds the lock, as it wrote itself."""
    return os.pread(fd, 100, 0).decode("ascii", "replace") or "somebody"


def _open(entry: str) -> int:
    return os.open(f"{site.STATE}/keeper/{entry}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""One keeper at a time: one runs, one waits, others leave (they would find nothing left to do).

The locks are flock on files of root's, 0600, that nobody else can open, so nobody else can hold them; the kernel
drops them with the process, so there is never one to clean up. Who holds it without coming to an end is ended by a run that root started:
a keeper that is killed loses nothing. Runs as: root. Trusts: the kernel. Reads: /proc. Writes: keeper/lock, keeper/waiting, keeper/waiting-issuer.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time

from certdrop import events
from certdrop.config import site

DEADLINE = 1500.0                  # seconds that a keeper waits for another: longer than any run takes


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
            began, said, whom, ended = time.monotonic(), False, holder(self.fd), False
            while not _try(self.fd):
                waited = time.monotonic() - began
                if waited > DEADLINE and not ended and self.queue == "waiting" and whom == holder(self.fd):
                    ended = _end_holder(self.fd)
                elif waited > DEADLINE + 10 * ended:
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


def _end_holder(fd: int) -> bool:
    """Kill who holds the lock, stopped or not: the process that the kernel names, where it has that very file open."""
    path, found = os.readlink(f"/proc/self/fd/{fd}"), _holders(fd)
    for pid in found:
        try:
            process = os.pidfd_open(pid)
            try:
                opened = {os.readlink(f"/proc/{pid}/fd/{entry}") for entry in os.listdir(f"/proc/{pid}/fd")}
                if path in opened and pid in _holders(fd):         # looked at after the number could become another's
                    events.Log("keeper").write(events.ENDED, holder=holder(fd), seconds=int(DEADLINE))
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    return True
            finally:
                os.close(process)
        except OSError:
            pass                               # it ended by itself
    return False


def _holders(fd: int) -> list[int]:
    with open("/proc/locks", encoding="ascii") as stream:
        lines = [line.split() for line in stream]
    return [int(words[4]) for words in lines if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(os.fstat(fd).st_ino)]


def _say(text: str) -> None:
    """Tell whoever looks on; no lock is held yet that this could hold up."""
    from certdrop import words                 # which a run that does not wait can spare
    if words.at_terminal(2):
        words.say(f"certdrop: {text}")


def _open(entry: str) -> int:
    return os.open(f"{site.STATE}/keeper/{entry}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

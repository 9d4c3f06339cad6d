"""Has others look at what root does not look at: starts a process that becomes another user, hands it a list, and waits for each answer so long.

One that dies, hangs or babbles costs the case at hand, and another one gets the rest. Whoever hangs in the kernel cannot be killed: it is left
behind, and has nothing of root's that others wait for. Runs as: root. Trusts: of an answer, its form. Reads and writes: a file in memory, a pipe.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable, Generator

from certdrop import frames
from certdrop.walls import users

GONE = 1.0                         # seconds for one that was killed to be gone
LIB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Child:
    """A program of ours, begun: it reads `asked`, and has become somebody else by what `prepare` does before it is executed, or does so itself.
    Raises OSError."""

    def __init__(self, argv: list[str], asked: int, prepare: Callable[[], object], kept: tuple[int, ...] = ()) -> None:
        import subprocess                      # here, because most runs ask nobody
        try:
            self.process = subprocess.Popen(["/usr/bin/python3", "-I", "-S", *argv], stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                                            cwd="/", env=users.ENVIRONMENT, start_new_session=True, pass_fds=kept, preexec_fn=prepare)
        except subprocess.SubprocessError as error:            # it could not become who it should be
            raise OSError(f"{argv[0]}: {error}") from error

    def answer(self, seconds: float, limit: int) -> bytes:
        """What it says next, in so many seconds. Raises TimeoutError where that does not come, or is longer."""
        end = time.monotonic() + seconds
        size, = frames.HEAD.unpack(self._exactly(frames.HEAD.size, end))
        if size > limit:
            raise TimeoutError
        return self._exactly(size, end)

    def _exactly(self, size: int, end: float) -> bytes:
        data, stream = b"", self.process.stdout
        while stream and len(data) < size:
            more = os.read(stream.fileno(), size - len(data)) if select.select([stream], [], [], max(0.0, end - time.monotonic()))[0] else b""
            if not more:
                raise TimeoutError
            data += more
        return data

    def end(self) -> None:
        """Kill it and all it started (they share a session). Where it hangs it ends by itself, when the kernel lets it go."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdout:
            self.process.stdout.close()
        with contextlib.suppress(Exception):   # TimeoutExpired
            self.process.wait(GONE)


def answers(start: Callable[[int], Child], cases: list[bytes], form: bytes, seconds: float, limit: int,
            most: int = 1 << 30) -> Generator[re.Match[bytes] | None, None, None]:
    """The answer to each case, in turn; None where there is none of this form in time. So many of those that are started may fail, then none is.
    Raises PermissionError where none may be started."""
    child, failed = None, 0
    try:
        for at in range(len(cases)):
            try:
                if child is None and failed < most:
                    child = _begun(start, cases[at:])
                said = re.fullmatch(form, child.answer(seconds, limit), re.DOTALL) if child else None
            except PermissionError:            # nobody may be started here: no case's fault
                raise
            except OSError:                    # TimeoutError is one
                said = None
            if child and not said:
                child.end()
            if not said:
                child, failed = None, failed + 1
            yield said
    finally:
        if child:
            child.end()


def _begun(start: Callable[[int], Child], cases: list[bytes]) -> Child:
    asked = frames.listed(cases)
    try:
        return start(asked)
    finally:
        os.close(asked)

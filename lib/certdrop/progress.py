"""What is going on, and for how long, for a person who waits: a line when it changes or goes on, from the second second. Not for root's runs.

A pipe gets none of it. Lines, and nothing that moves a cursor: whoever stands between (root, who shows what another user's process says) lets
nothing else through. Runs as: every principal but root's own runs. Trusts: nothing of what is shown. Reads: nothing. Writes: standard error.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from types import TracebackType

from certdrop import words

FIRST = 1.0                        # seconds before anything is said
LOOK = 0.25                        # seconds between two looks
AGAIN = 10.0                       # seconds after which the same is said again
SHOWN = 2                          # of several things at work, those that are named


def span(seconds: float) -> str:
    """So many seconds, as short as they can be said."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def say(line: str) -> None:
    """A line, cleaned, where somebody takes it now. Not by words.say(), whose deadline is a signal's, which only the main thread can set: here another
    thread may hang with a terminal that is stopped, and holds nobody up."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, words.clean(line + "\n").encode("utf-8", "replace"))


class Progress:
    """While it is entered, it says what at() was told last of each piece of work; `total` is how many pieces there are."""

    def __init__(self, program: str, total: int = 1, shown: bool = True) -> None:
        self._program, self._total, self._done = program, total, 0
        self._shown = shown and words.at_terminal(2)
        self._at: dict[str, str] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None

    def at(self, what: str, step: str) -> None:
        """This piece of work has come to this step."""
        with self._lock:
            self._at[what] = step

    def done(self, what: str) -> None:
        """It has come to its end, whichever."""
        with self._lock:
            self._done += self._at.pop(what, None) is not None

    def text(self) -> str:
        """What is going on."""
        with self._lock:
            at, done = list(self._at.items()), self._done
        shown = ", ".join(f"{what}: {step}" for what, step in at[:SHOWN]) + (f", and {len(at) - SHOWN} more" if len(at) > SHOWN else "")
        return shown if self._total < 2 or not shown else f"{done} of {self._total} done; {shown}"

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._shown:
            try:
                self._thread = threading.Thread(target=self._tell, daemon=True)
                self._thread.start()
            except RuntimeError:
                self._thread = None            # no room for a thread: then it is not told
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(LOOK)

    def _tell(self) -> None:
        said, when = "", 0.0
        if self._over.wait(FIRST):
            return
        while True:
            text, now = self.text(), time.monotonic()
            if text and (now - when >= AGAIN or (text != said and now - when >= FIRST)):
                say(f"{self._program}: {text} ({span(now - self._began)})")
                said, when = text, now
            if self._over.wait(LOOK):
                return

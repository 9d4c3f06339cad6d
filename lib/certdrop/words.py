"""What people are told: the one place where a line is written, cleaned and with a deadline.

Whatever others chose (a CA its URLs and problem documents, another principal its files) reaches a terminal through here alone; what programs
print comes here by way of terminal.py.
Runs as: every principal. Trusts: nothing of what is shown. Writes: standard output and error.
"""

from __future__ import annotations

import os

from certdrop import TERMINAL

PATIENCE = 30.0                    # seconds in which somebody must take some of what is written
PART = 4096                        # bytes that a pipe which select() calls ready takes at once

_patience = PATIENCE


def at_terminal(fd: int) -> bool:
    """Whether a person is at this standard descriptor, be it by way of another process."""
    return os.isatty(fd) or str(fd) in os.environ.get(TERMINAL, "")


def clean(text: str) -> str:
    """Text in lines, and nothing that a terminal acts on."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)


def put(fd: int, data: bytes) -> None:
    """Write all of it. Raises OSError: TimeoutError where nobody takes any of it for PATIENCE; from then on nobody is waited for that long."""
    global _patience
    import select
    write = _to_terminal if os.isatty(fd) else os.write
    while data:
        try:
            if not select.select([], [fd], [], _patience)[1]:
                raise TimeoutError("nobody reads what is written")
            data = data[write(fd, data[:PART]):]
        except BlockingIOError:
            pass                               # somebody else was faster
        except TimeoutError:
            _patience = 1.0
            raise


def _to_terminal(fd: int, data: bytes) -> int:
    """A terminal that select() calls ready may still take less than it is given, and be waited for: not for ever."""
    import signal

    def late(*_: object) -> None:
        raise TimeoutError("nobody reads what is written")
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, _patience)
    try:
        return os.write(fd, data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def say(*lines: str, to: int = 2) -> None:
    """Lines to standard error (or `to`), cleaned. That nobody reads them stops nothing."""
    try:
        put(to, clean("".join(f"{line}\n" for line in lines)).encode("utf-8", "replace"))
    except OSError:
        pass

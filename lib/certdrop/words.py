"""What people are told and asked: the one place where a line is written, cleaned and with a deadline, and where a question is asked.

Whatever others chose (a CA its URLs and problem documents, another principal its files) reaches a terminal through here alone.
Runs as: every principal. Trusts: nothing of what is shown. Reads: standard input, for an answer. Writes: standard output and error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from certdrop import TERMINAL

PATIENCE = 30.0                    # seconds in which somebody must take some of what is written
PART = 4096                        # bytes that a pipe which select() calls ready takes at once
KEPT = 1 << 16                     # bytes of standard output that are kept back where nobody watches
LINE = 1 << 16                     # bytes that are shown as a line, though it has not ended

_patience = PATIENCE


def at_terminal(fd: int) -> bool:
    """Whether a person is at this standard descriptor, be it by way of another process."""
    return os.isatty(fd) or str(fd) in os.environ.get(TERMINAL, "")


def clean(text: str, colours: bool = False) -> str:
    """Text in lines, and nothing that a terminal acts on; with `colours`, the few that certdrop-status uses."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    if colours and "\x1b" in text:
        import re
        parts = re.split(r"(\x1b\[(?:0|1|31|32|33)m)", text)
        parts[::2] = map(clean, parts[::2])
        return "".join(parts)
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


class LineByLine:
    """Makes of what another process wrote, as it came, what is shown: whole lines, cleaned."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._kept: dict[int, bytes] = {}

    def cleaned(self, stream: int, data: bytes) -> bytes:
        """The lines that have ended by now, or grown too long; without data, what is left."""
        lines, end, rest = (self._kept.pop(stream, b"") + data).rpartition(b"\n")
        if not data or len(rest) > LINE:
            end, rest = end + rest, b""
        self._kept[stream] = rest
        return clean((lines + end).decode("utf-8", "replace"), self._colours).encode("utf-8", "replace")


class Lines(io.TextIOBase):
    """A standard stream: what is printed goes out cleaned, as lines end where somebody watches. Raises OSError as put() does."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, fd: int, colours: bool) -> None:
        self._fd, self._colours, self._kept = fd, colours, ""

    def writable(self) -> bool:
        """It is for nothing else."""
        return True

    def fileno(self) -> int:
        """The descriptor below."""
        return self._fd

    def isatty(self) -> bool:
        """Whether a person is there."""
        return at_terminal(self._fd)

    def write(self, text: str) -> int:
        """Keep it, until the line ends or it is much."""
        self._kept += text
        if len(self._kept) > KEPT or ("\n" in text and (self._fd == 2 or self.isatty())):
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what is kept."""
        kept, self._kept = self._kept, ""
        if kept:
            try:
                put(self._fd, clean(kept, self._colours).encode("utf-8", "replace"))
            except OSError:
                if self._fd != 2:              # an error that nobody hears of is told by the code
                    raise


def begin(colours: bool = False) -> None:
    """Have all that is printed go through here."""
    vars(sys).update(stdout=Lines(1, colours), stderr=Lines(2, colours))       # no assignment: releases of mypy differ on whether that needs an excuse


def program(main: Callable[[list[str]], int], argv: list[str], colours: bool = False) -> int:
    """A whole program: its words written here, its exit code; 75 where it was interrupted, 74 where its output was not taken."""
    begin(colours)
    try:
        code = main(argv)
    except KeyboardInterrupt:
        code = os.EX_TEMPFAIL
    except (BrokenPipeError, TimeoutError):
        code = os.EX_IOERR                     # a traceback would not be read either
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            pass                               # whoever read has seen enough
        except OSError:
            code = code or os.EX_IOERR
    return code


class Declined(Exception):
    """Somebody was asked, and left with Ctrl-C or Ctrl-D, which agrees to nothing; or nobody was there."""


def ask(question: str) -> str:
    """What a person answers, on one line. To be asked only by a process that nobody else has a hand in. Raises Declined."""
    try:
        put(2, clean(question).encode("utf-8", "replace"))
        answer = sys.stdin.readline()
    except (KeyboardInterrupt, OSError, UnicodeDecodeError):
        answer = ""
    if not answer.endswith("\n"):
        say("")                                # the terminal is still on the question's line
        raise Declined("not agreed")
    return answer.strip()


def agrees(question: str) -> bool:
    """Whether a person says yes."""
    try:
        return ask(f"{question} [y/N] ").lower() in ("y", "yes")
    except Declined:
        return False

"""How a program prints and asks: its standard streams, what another process said, line by line, and questions to a person.

Root's runs by cron and sudo use none of it. Every line is written by words.py.
Runs as: every principal. Trusts: nothing of what is shown. Reads: standard input, for an answer. Writes: standard output and error.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from collections.abc import Callable

from certdrop import words
from certdrop.words import at_terminal, put, say

KEPT = 1 << 16                     # bytes of standard output that are kept back where nobody watches
LINE = 1 << 16                     # bytes that are shown as a line, though it has not ended


def clean(text: str, colours: bool = False) -> str:
    """Text in lines, and nothing that a terminal acts on (words.clean); with `colours`, but for the few that our tools use."""
    if not colours or "\x1b" not in text:
        return words.clean(text)
    import re
    parts = re.split(r"(\x1b\[(?:0|1|31|32|33)m)", text)
    parts[::2] = map(words.clean, parts[::2])
    return "".join(parts)


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


HEADING, GOOD, BAD, DOUBTFUL = "1", "32", "31", "33"       # what colours mean, in every tool (ECMA-48 SGR); clean() lets these pass


def colours(fd: int) -> bool:
    """Whether a person is at this standard descriptor, and wants colours (no-color.org)."""
    return words.at_terminal(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, meaning: str, coloured: bool) -> str:
    """Text in a colour, where there are colours."""
    return f"\033[{meaning}m{text}\033[0m" if coloured else text


class Declined(Exception):
    """Somebody was asked, and left with Ctrl-C or Ctrl-D, which agrees to nothing; or nobody was there."""


def ask(question: str) -> str:
    """What a person answers, on one line. To be asked only by a process that nobody else has a hand in. Raises Declined."""
    try:
        put(2, clean(question).encode("utf-8", "replace"))
        answer = _line(sys.stdin.fileno())
    except (KeyboardInterrupt, OSError):
        answer = b""
    if not answer.endswith(b"\n"):
        say("")                                # the terminal is still on the question's line
        raise Declined("not agreed")
    return answer.decode("utf-8", "replace").strip()


def _line(fd: int) -> bytes:
    """A line, and nothing beyond it. A Ctrl-C just before read(2) would be kept until somebody types; select(2) sees its byte in a pipe. Raises
    KeyboardInterrupt, OSError."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        line = b""
        while not line.endswith(b"\n") and len(line) < LINE:
            if fd in select.select([fd, reader], [], [])[0]:
                part = os.read(fd, 1)
                if not part:
                    break
                line += part
            else:
                os.read(reader, LINE)          # another signal; an interruption is raised by now
        return line
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def agrees(question: str) -> bool:
    """Whether a person says yes."""
    try:
        return ask(f"{question} [y/N] ").lower() in ("y", "yes")
    except Declined:
        return False

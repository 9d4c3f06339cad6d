"""The watcher's user, and how root's commands become it: by running again (become.py), as a fresh interpreter that has nothing of root's.

Runs as: anyone, to become _certdrop-watch. Trusts: the kernel. Reads: what root handed over, from standard input. Writes: nothing.
"""

from __future__ import annotations

import os
import sys
from typing import Callable, TextIO

from certdrop import words
from certdrop.walls import become

USER = "_certdrop-watch"
COLOURED = ("certdrop-check", "certdrop-status")
PATIENCE = 1800.0                  # seconds for all that a program has to do: the doctor asks each name over each of its addresses


def as_watcher(program: str, argv: list[str], work: Callable[[], int], otherwise: int, seen: bytes = b"", out: int = 1) -> int:
    """Do `work`; started by root, run `program argv` as _certdrop-watch instead, and show what that says.

    `seen` is handed to it (seen_by_root), `out` is a descriptor to use as its standard output. Returns its exit code, and `otherwise`
    where it died or did not end. Raises KeyError where there is no such user, OSError where nobody reads, KeyboardInterrupt.
    """
    if os.geteuid() != 0:
        return work()
    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    try:
        code = become.run(USER, ["/usr/bin/python3", "-IS", main, program, *argv], PATIENCE, seen, out, colours=program in COLOURED)
    except become.Stopped as stopped:
        words.say(f"{program}: {stopped}; nothing goes on")
        if isinstance(stopped, become.Interrupted):
            raise KeyboardInterrupt from None
        return otherwise
    return code if code >= 0 else otherwise


def seen_by_root() -> bytes | None:
    """What root handed over; None where root did not start this."""
    return sys.stdin.buffer.read() if become.SEEN in os.environ else None


def at_terminal(stream: TextIO) -> bool:
    """Whether a person sees this standard stream, be it by way of root."""
    try:
        return words.at_terminal(stream.fileno())
    except (OSError, ValueError):
        return False

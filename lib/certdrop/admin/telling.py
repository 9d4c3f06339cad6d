"""What certdrop's verbs say of what goes well; with --quiet, none of it. What went wrong, or must be known, is said by words.py in any case.

Runs as: root, by hand. Trusts, reads: nothing. Writes: standard error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from certdrop import words
from certdrop.keeper import run

PROGRAM = "certdrop"

_quiet = False
_not_yet = False                   # whether what nothing serves is to be served by what follows


def begin(quiet: bool) -> None:
    """Whether anything is to be said from now on."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether --quiet was given."""
    return _quiet


def say(*lines: str) -> None:
    """Lines to whoever watches."""
    if not _quiet:
        words.say(*lines)


@contextlib.contextmanager
def before_it_is_served() -> Iterator[None]:
    """Meanwhile nobody is told how to have served what is installed: that is what follows."""
    global _not_yet
    _not_yet = True
    try:
        yield
    finally:
        _not_yet = False


class Run(run.Run):
    """A run of the keeper's that a person started."""

    def __init__(self) -> None:
        super().__init__(PROGRAM, False, True)

    def tell(self, name: str, text: str) -> None:
        """What went well."""
        if not _quiet:
            super().tell(name, text.partition("; nothing serves it yet")[0] if _not_yet else text)

    def progress(self, text: str) -> None:
        """What takes its time."""
        if not _quiet:
            super().progress(text)

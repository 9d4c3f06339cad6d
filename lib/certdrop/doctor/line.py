"""A line of certdrop-check. Runs as: whoever imports it. Trusts, reads, writes: nothing."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, FAILED = "ok", "warning", "failed"


class Line(NamedTuple):
    """What was looked at, how it is, why that matters, and how to mend it ("" where all is well)."""

    level: str
    what: str
    why: str
    mend: str = ""


def verdict(what: str, wrong: list[tuple[str, str]], well: str, level: str = FAILED) -> list[Line]:
    """One line that all is well, or a line for each (why, mend)."""
    return [Line(level, what, why, mend) for why, mend in wrong] or [Line(OK, what, well)]

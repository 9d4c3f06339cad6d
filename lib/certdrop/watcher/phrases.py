"""How times, silences and revocations are put into words, for status and mail alike. Pure.

Runs as: whoever imports it. Trusts: values that evidence.py cleaned. Reads and writes: nothing.
"""

from __future__ import annotations

from certdrop import events
from certdrop.watcher.evidence import Revocation, Run
from certdrop.watcher.verdict import DAY


def ran_last(run: Run, now: float) -> str:
    """When a principal ran."""
    if run.ahead:
        return "ran while the clock was ahead"
    return f"ran {span(max(0, now - run.at))} ago" if run.at else "has not run yet"


def silence(who: str, quiet: float) -> str:
    """What verdict.silences() found."""
    return f"the {who} has not run for {span(quiet)}" if quiet else f"the {who}'s last run was noted at a time that is still to come: the clock was ahead"


def revocation(one: Revocation, now: float) -> str:
    """How a revocation that root asked for stands, in one line."""
    what = f"generation {one.number:04d} ({one.reason})"
    if one.done:
        return f"{what}: revoked, says the issuer, {events.stamp(one.done)}"
    if one.failing is None:
        return f"{what}: pending, the issuer has not asked the CA yet"
    again = one.failing.next_try
    follows = "" if not again else f", next try in {span(again - now)}" if again > now else ", next try now"
    return f"{what}: failing, {one.failing.tries} in a row{follows}: {one.failing.error}"


def span(seconds: float) -> str:
    """A length of time in at most five characters: 12s, 5m, 40m, 7h, 59d, -3d, 12y."""
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    for unit, size, below in (("s", 1, 60), ("m", 60, 3600), ("h", 3600, 2 * DAY), ("d", DAY, 999 * DAY)):
        if seconds < below:
            return f"{sign}{int(seconds / size)}{unit}"
    return f"{sign}{min(9999, int(seconds / 365.25 / DAY))}y"

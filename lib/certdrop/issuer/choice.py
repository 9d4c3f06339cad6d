"""Which CA a site's next order goes to: the first of its configuration, or one to fall back on while that is down for long. Pure: time and state in.

Another CA is asked only where the first could not be reached, or failed on its own side, for a day at least, whenever it was tried, and so long that no more
than a third is left of the time that the certificate then had (or where root wants another now); never for a name that was not validated, nor because of a
rate limit. From then on the CAs are asked in turn, the first among them, until one issues. The next renewal begins with the first again.
Runs as: whoever imports it. Trusts: of the ledger, no moment beyond its bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from certdrop import spool
from certdrop.issuer import clock
from certdrop.issuer.due import DAY, HOUR, Certificate, Record

LEFT = 1 / 3                       # share of the certificate's remaining time, when the first CA began to fail, that another one gets at least
TRIES = 3                          # failures of the first CA, at least
GAP = 2 * DAY                      # between two failures of a site, at most: no back-off is that long, so a host that was off in between knows nothing
REFUSING = DAY                     # for which a CA to fall back on is left alone that did not want the order; an eighth of what is left, where that is less
LONGEST = 1500                     # characters of the note of who is to be left alone


def choose(listed: Sequence[str], record: Record, certificate: Certificate | None, now: float, is_ready: Callable[[str], bool],
           wanted_now: bool = False) -> str:
    """The URL of the directory to ask. `is_ready` says whether there is an account at one to fall back on: none is made in passing."""
    first, *others = listed
    if not others or not is_down(record, first, certificate, now, wanted_now):
        return first
    circle = [first, *filter(is_ready, others)]
    last = circle.index(record.asked) if record.asked in circle else 0
    turned = circle[last + 1:] + circle[:last + 1]
    return min(turned, key=lambda one: max(now, left_alone(record, one, now)))         # of several that may be asked, the next in turn


def is_down(record: Record, first: str, certificate: Certificate | None, now: float, wanted_now: bool = False) -> bool:
    """Whether the first CA fails for so long that others may be asked."""
    since = record.away_since
    if record.away_of != first or record.away_count < TRIES or not record.count or not spool.is_credible(since, spool.HAPPENED, now) or now - since < DAY:
        return False
    if not spool.is_credible(record.failed_at, spool.HAPPENED, now) or not _goes_on(record, first, now):
        return False
    return wanted_now or certificate is None or certificate.not_after - now <= (certificate.not_after - since) * LEFT


def note(record: Record, asked: str, first: str, is_away: bool | None, now: float) -> None:
    """A CA was asked, and failed: to be called before the failure itself is noted. `is_away`: it was down, or could not be reached; None: that is not known."""
    record.asked = asked
    if asked != first or is_away is None:
        return
    if not is_away:
        forget(record)
        return
    if not (record.away_of == first and 0 < record.away_since <= now and record.count and record.failed_at <= now and _goes_on(record, first, now)):
        record.away_of, record.away_since, record.away_count = first, int(now), 0
    record.away_at = int(now)
    record.away_count += 1


def forget(record: Record) -> None:
    """The first CA is there."""
    record.away_of, record.away_since, record.away_at, record.away_count = "", 0, 0, 0


def leave_alone(record: Record, directory: str, seconds: float, now: float) -> None:
    """Ask this CA for nothing for so long."""
    known = {one: moment for one, moment in _moments(record) if moment > now and one != directory}
    text = " ".join(f"{one}={moment}" for one, moment in {**known, directory: int(now + seconds) + 1}.items())
    record.waits = text if len(text) <= LONGEST else f"{directory}={int(now + seconds) + 1}"


def left_alone(record: Record, directory: str, now: float) -> float:
    """The moment before which this CA is not to be asked; 0 for none."""
    moment = float(dict(_moments(record)).get(directory, 0))
    return moment if spool.is_credible(moment, clock.PUT_OFF, now) else 0.0


def pause(left: float | None) -> float:
    """Seconds for which a CA to fall back on is left alone that did not want the order, by what is left to expiry."""
    return REFUSING if left is None else min(REFUSING, max(HOUR, left / 8))


def _goes_on(record: Record, first: str, now: float) -> bool:
    """Whether this host was there since the last failure: it tries again within GAP, or when the first CA may be asked again."""
    return now - max(float(record.failed_at), left_alone(record, first, now)) <= GAP


def _moments(record: Record) -> list[tuple[str, int]]:
    parts = [one.rpartition("=") for one in record.waits.split()]
    return [(directory, int(moment)) for directory, _, moment in parts if moment.isdecimal() and len(moment) < 12]

"""Which CA a site's next order goes to: the first of its configuration, or one to fall back on while that is down for long. Pure: time and state in.

Another CA is asked only where the first could not be reached, or failed on its own side, for a day at least, and so long that no more than a third is left
of the time that the certificate then had; never for a name that was not validated, nor because of a rate limit. From then on the CAs are asked in turn,
the first among them, until one issues. The next renewal begins with the first again. Runs as: whoever imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from certdrop import spool
from certdrop.issuer.due import DAY, Certificate, Record

LEFT = 1 / 3                       # share of the certificate's remaining time, when the first CA began to fail, that another one gets at least


def choose(listed: Sequence[str], record: Record, certificate: Certificate | None, now: float, is_ready: Callable[[str], bool]) -> str:
    """The URL of the directory to ask. `is_ready` says whether there is an account at one to fall back on: none is made in passing."""
    first, *others = listed
    circle = [first, *filter(is_ready, others)] if is_down(record, certificate, now) else [first]
    last = circle.index(record.asked) if record.asked in circle else 0
    return circle[(last + 1) % len(circle)]


def is_down(record: Record, certificate: Certificate | None, now: float) -> bool:
    """Whether the first CA fails for so long that others may be asked."""
    since = record.away_since
    if not record.count or not since or not spool.is_credible(since, spool.HAPPENED, now) or now - since < DAY:
        return False
    return certificate is None or certificate.not_after - now <= (certificate.not_after - since) * LEFT

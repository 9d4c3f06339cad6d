"""When to ask the CA, and when not to: time and state in, a decision out. Pure: no clock, no disk, no network.

Runs as: whoever imports it. Sources: RFC 9773 (ACME Renewal Information), Let's Encrypt's integration guide for the back-off.
"""

from __future__ import annotations

import random

DAY = 86400.0
SHORT_LIVED = 10 * DAY             # below this lifetime (seconds) half of it is left at the renewal, else a third
BACK_OFF = (60.0, 600.0, 6000.0, DAY)   # seconds after the first, second, third and every further failure in a row
JITTER = 0.2                       # share of a back-off, either way
POLL = 6 * 3600.0                  # seconds between two looks at the CA's renewal information, where it does not say
MOST_POLL = 12 * 3600.0            # "at least twice a day"
SPREAD = 0.05                      # share of the lifetime over which sites are spread before the backstop

NEVER = float("inf")


class Certificate:
    """The dates (seconds since 1970) of the newest certificate of a site, and what tells it from others."""

    def __init__(self, sha256: str, not_before: float, not_after: float) -> None:
        self.sha256, self.not_before, self.not_after = sha256, not_before, not_after

    @property
    def lifetime(self) -> float:
        """Seconds from begin to end."""
        return self.not_after - self.not_before


def backstop(certificate: Certificate, site: str) -> float:
    """When to renew where the CA does not say: a share of the real lifetime, and each site's own random moment before it."""
    left = certificate.lifetime / (2 if certificate.lifetime < SHORT_LIVED else 3)
    own = random.Random(f"{site} {certificate.sha256}").random()
    return certificate.not_after - left - own * SPREAD * certificate.lifetime


def moment_in_window(start: float, end: float, now: float) -> float:
    """A uniformly random moment in the CA's window (RFC 9773 section 4.2), to be chosen once and kept; now where the window has passed."""
    return now if end <= now else random.uniform(start, end)


def due(wanted_now: bool, certificate: Certificate | None, site: str, renew_at: float, next_try: float, now: float) -> tuple[float, str]:
    """(when, why) to place an order: a moment not after `now` means now.

    `renew_at` is the moment chosen in the CA's window for this certificate, 0 for none; `next_try` the end of a back-off, 0 for none.
    """
    if wanted_now:
        when, why = 0.0, "root wants it now"
    elif certificate is None:
        when, why = 0.0, "there is no certificate yet"
    elif now < certificate.not_before - DAY:
        return certificate.not_before, "the clock is wrong: it stands before the certificate's start"
    elif renew_at:
        when, why = renew_at, "the CA's renewal window"
    else:
        when, why = backstop(certificate, site), "its share of the lifetime"
    if next_try > max(when, now):
        return next_try, "an earlier try failed"
    return when, why


def next_try(failures: int, retry_after: float, now: float) -> float:
    """The end of the back-off after so many failures in a row (1 for the first), never before the CA's Retry-After (seconds)."""
    pause = BACK_OFF[min(failures, len(BACK_OFF)) - 1]
    return now + max(pause * random.uniform(1 - JITTER, 1 + JITTER), retry_after * random.uniform(1.0, 1.05))


def next_poll(retry_after: float, now: float) -> float:
    """When to look at the renewal information again: as the CA says (seconds), between a minute and half a day, some hours where it does not say."""
    pause = retry_after or POLL * random.uniform(0.8, 1.2)
    return now + min(max(pause, 60.0), MOST_POLL)

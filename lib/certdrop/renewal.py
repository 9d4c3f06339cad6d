"""When a certificate is to be renewed, were all well: one rule for the issuer, which renews, and for those who say when. Pure.

The CA decides (RFC 9773), else a share of the certificate's real lifetime; each site has a moment of its own.
Runs as: whoever imports it. Trusts, reads, writes: nothing. Source: RFC 9773 section 4.2.
"""

from __future__ import annotations

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from typing import Protocol

    class Certificate(Protocol):
        """The dates (seconds since 1970) of a certificate, and its SHA-256."""

        @property
        def sha256(self) -> str: ...
        @property
        def not_before(self) -> float: ...
        @property
        def not_after(self) -> float: ...

DAY = 86400.0
SHORT_LIVED = 10 * DAY             # below this lifetime half of it is left at a renewal, else a third
SPREAD = 1 / 20                    # share of the lifetime, before the backstop, over which sites are spread: each has its own moment
LAST_LINE = 1 / 8                  # share of the lifetime that is left at the latest, whatever window the CA names

BY_SHARE, BY_WINDOW, BY_END = "its share of the lifetime", "the CA's renewal window", "expiry is near; the CA's window is too late"
FOREIGN = "it is of another CA than the configured one"
HURRIED = "it was renewed too often in a short time"
HELD = "an earlier try failed"
WANTED = "root wants it now"
TLSA = "it waits for the TLSA record of the next key"


def lifetime(certificate: Certificate) -> float:
    """Seconds from begin to end."""
    return max(1.0, certificate.not_after - certificate.not_before)


def share_left(certificate: Certificate) -> float:
    """The share of the lifetime that is left at the backstop."""
    return 1 / 2 if lifetime(certificate) < SHORT_LIVED else 1 / 3


def own_moment(*words: object) -> float:
    """A number from 0 to 1 that looks random, and is always the same for the same words."""
    import random                              # a run that finds nothing to do asks for no moment
    return random.Random(" ".join(map(str, words))).random()


def backstop(certificate: Certificate, site: str) -> float:
    """When to renew where the CA does not say: when a share of the real lifetime is left, and each site's own moment before that."""
    whole = lifetime(certificate)
    return certificate.not_after - share_left(certificate) * whole - own_moment(site, certificate.sha256) * SPREAD * whole


def last_line(certificate: Certificate) -> float:
    """When to renew at the latest, whatever the CA says."""
    return certificate.not_after - lifetime(certificate) * LAST_LINE


def moment_in_window(certificate: Certificate, site: str, start: float, end: float) -> float:
    """The site's own uniformly random moment in the CA's window: chosen once, and moved only where the window is."""
    return start + own_moment(site, certificate.sha256) * max(0.0, end - start)


def planned(certificate: Certificate, site: str, window: tuple[float, float] | None) -> tuple[float, str]:
    """(when, why). `window` is the CA's for this very certificate; one that goes beyond the certificate's end is as good as none."""
    if window is None or not 0 < window[1] <= certificate.not_after:
        return backstop(certificate, site), BY_SHARE
    moment, last = moment_in_window(certificate, site, *window), last_line(certificate)
    return (moment, BY_WINDOW) if moment <= last else (last, BY_END)

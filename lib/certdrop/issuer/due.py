"""When to ask the CA, and when not to: time and state in, a decision out. Pure: no clock, no disk, no network.

A renewal is due when the CA says so (RFC 9773), else when a share of the certificate's real lifetime is left (renewal.py); never after a constant
number of days. What went wrong is under a back-off. A clock that is wrong makes nobody ask in a loop: see BRAKE; and what was noted under one does not
count: see clock.py.
Runs as: whoever imports it. Sources: RFC 9773 section 4.3; Let's Encrypt's integration guide for the back-off.
"""

from __future__ import annotations

from certdrop import spool
from certdrop.issuer import clock
from certdrop.renewal import FOREIGN, HELD, HURRIED, WANTED, lifetime, planned

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
TICK = 600                         # seconds from one run by cron to the next
GATHER = 60.0                      # seconds within which orders that are due are placed together, and their replies installed together
NEVER = float("inf")
MADE = 1767225600.0                # 2026-01-01: a clock that stands before is wrong, for certdrop is younger

BRAKE = 1 / 8                      # share of the lifetime in which a site is not renewed again by time (one day at most, where the CA names a window),
HURRIES = 3                        # once that happened so often in a row: a clock that is wrong, or a CA that is confused

BACK_OFF = (MINUTE, 10 * MINUTE, 100 * MINUTE, DAY)     # after the first, second, third and every further failure in a row
CUT_OFF = 2                        # orders in a row that this host's own trouble may cut off before such trouble is under the back-off, too
JITTER = 0.2                       # share of a back-off, either way
URGENCY = 1 / 8                    # while the CA cannot be reached, share of the time that is left to expiry which a back-off may take

POLL = 6 * HOUR                    # between two looks at the CA's window, where it does not say
LEAST_POLL, MOST_POLL = MINUTE, 12 * HOUR      # what a Retry-After may ask for (RFC 9773 section 4.3.1); twice a day at least
ABSENT_POLL = 10 * HOUR            # where the CA has no window for this certificate
SELDOM = 4 * HOUR                  # polls that are at least so far apart wait for the host's own moment in an hour, and so come together


def gathered(moments: list[float]) -> float:
    """When to place the next orders: at the last moment of those that come within GATHER of the first; 0 where there is none.

    So one reload of each service does for all of them, and a host's orders still come at a second that is its own.
    """
    first = min(moments, default=0.0)
    return max((moment for moment in moments if moment <= first + GATHER), default=0.0)


class Certificate:
    """The dates (seconds since 1970) of the newest certificate of a site, and its SHA-256."""

    def __init__(self, sha256: str, not_before: float, not_after: float) -> None:
        self.sha256, self.not_before, self.not_after = sha256, not_before, not_after

    @property
    def lifetime(self) -> float:
        """Seconds from begin to end."""
        return lifetime(self)


class Record:
    """What is remembered of a site. Times are in seconds since 1970, 0 for none."""

    def __init__(self) -> None:
        self.count = 0                         # failures in a row,
        self.own = 0                           # those of them that were this host's own and are under no back-off,
        self.cut_off = 0                       # and those of its own that came when an order was placed already
        self.since = 0                         # the first of them
        self.failed_at = 0                     # the last of them
        self.next_try = 0
        self.retry_after = 0                   # the moment before which the CA wants no other try
        self.asked = ""                        # the directory of the CA that was asked last, and failed
        self.away_of = ""                      # the directory of the first CA, while it is down or cannot be reached;
        self.away_since = 0                    # since when,
        self.away_at = 0                       # last seen so,
        self.away_count = 0                    # and how often
        self.waits = ""                        # CAs that are left alone for a while: URL=MOMENT, with spaces between (choice.py)
        self.issued_at = 0                     # the last reply
        self.hurries = 0                       # how often in a row a reply was asked for by time, soon after the one before
        self.window_of = ""                    # the certificate (SHA-256) that the window is for
        self.window_start = 0
        self.window_end = 0
        self.poll_at = 0                       # when to ask for the window again
        self.polls_failed = 0                  # in a row

    def note_failure(self, retry_after: float, left: float | None, now: float, chance: float) -> None:
        """A failure, and with it the next try. For `left` and `chance` see next_try()."""
        self.count += 1
        self.since = self.since if self.count > 1 and self.since <= now else int(now)
        self.failed_at = int(now)
        self.retry_after = int(now + retry_after) + 1 if retry_after else 0
        self.next_try = int(next_try(self.count - self.own, retry_after, left, now, chance)) + 1

    def note_own_failure(self, placed: bool, now: float, chance: float) -> None:
        """A failure of this host's own, when an order was `placed` already or not: tried again in the next run, for it is no matter of the CA's.
        But what goes on to cut off orders makes the CA work in vain, and falls under the back-off."""
        self.cut_off += placed
        if placed and self.cut_off > CUT_OFF:
            self.note_failure(0.0, None, now, chance)
        else:
            self.own += 1
            self.note_failure(0.0, None, now, chance)
            self.next_try = int(now)

    def note_success(self, now: float, certificate: Certificate | None = None) -> None:
        """A reply: nothing failed since. `certificate` is the one whose time it was, None where somebody asked for it."""
        self.forget_failures()
        soon = certificate is not None and self.issued_at <= now < 2 * self.brake(certificate) - self.issued_at
        self.hurries = self.hurries + 1 if soon else 0
        self.issued_at = int(now)

    def brake(self, certificate: Certificate) -> float:
        """The end of the time in which another renewal comes too soon after the last reply."""
        pause = certificate.lifetime * BRAKE
        return self.issued_at + (min(pause, DAY) if self.has_window(certificate) else pause)

    def forget_failures(self) -> None:
        """All is well again."""
        self.count = self.own = self.cut_off = self.since = self.failed_at = self.next_try = self.retry_after = 0

    def note_window(self, certificate: Certificate, start: float, end: float, retry_after: float, now: float, chance: float,
                    moment: float | None = None) -> None:
        """The CA's window for this certificate, and when to ask again. For `moment` see together()."""
        self.window_of, self.window_start, self.window_end = certificate.sha256, int(start), int(end)
        self.polls_failed = 0
        self.poll_at = int(together(poll_pause(retry_after, chance), now, moment))

    def note_no_window(self, certificate: Certificate, retry_after: float, absent: bool, now: float, chance: float, moment: float | None = None) -> None:
        """The CA has no window (`absent`), or could not be asked: then the one that is known stays."""
        if absent or self.window_of != certificate.sha256:
            self.window_of, self.window_start, self.window_end = certificate.sha256, 0, 0
        self.polls_failed += 1
        pause = ABSENT_POLL if absent else min(POLL, BACK_OFF[1] * 2.0 ** min(self.polls_failed, 10))
        self.poll_at = int(together(max(min(retry_after, MOST_POLL), pause * (0.8 + 0.4 * chance)), now, moment))

    def put_off_window(self, certificate: Certificate, when: float) -> None:
        """The CA's window is asked for at this moment; until then the one that is known stays."""
        if self.window_of != certificate.sha256:
            self.window_of, self.window_start, self.window_end = certificate.sha256, 0, 0
        self.poll_at = int(when)

    def has_window(self, certificate: Certificate) -> bool:
        """Whether a window for this very certificate is known."""
        return self.window_of == certificate.sha256 and self.window_end > 0


def renewal(certificate: Certificate, site: str, record: Record) -> tuple[float, str]:
    """(when, why) this certificate is to be renewed, were all well."""
    return planned(certificate, site, (record.window_start, record.window_end) if record.has_window(certificate) else None)


def due(site: str, wanted_now: bool, certificate: Certificate | None, record: Record, now: float, urged: bool = False,
        forced: bool = False, foreign: bool = False) -> tuple[float, str]:
    """(when, why) to place an order: a moment not after `now` means now.

    `certificate` is None where there is none, or a placeholder. That the next key differs from the live one is no reason.
    `foreign`: it is not of the CA that is configured now.
    `urged`: an administrator waits for what is wanted now, and no back-off holds, but for the CA's. `forced`: the same, wanted or not.
    """
    if forced:
        when, why = 0.0, "forced"
    elif wanted_now:
        when, why = 0.0, WANTED
    elif certificate is None:
        when, why = 0.0, "there is no certificate yet"
    elif now < MADE:
        when, why = max(MADE, certificate.not_before), "the clock stands before certdrop was made"
    elif now < certificate.not_before - DAY:
        asked = record.issued_at if spool.is_credible(record.issued_at, spool.HAPPENED, now) else 0
        when, why = asked + DAY if asked else 0.0, "the certificate begins in days to come"
    elif foreign:
        when, why = certificate.not_before, FOREIGN
    else:
        when, why = renewal(certificate, site, record)
        if record.hurries >= HURRIES and record.issued_at <= now < record.brake(certificate) and when < record.brake(certificate):
            when, why = record.brake(certificate), HURRIED
    held = held_until(record, now)
    if held and (forced or (urged and wanted_now)):
        held = asked_to_wait(record, now)
    return (held, HELD) if held > max(when, now) else (when, why)


def held_until(record: Record, now: float) -> float:
    """The end of the back-off; 0 where there is none, or where a clock that was wrong then noted it."""
    kind = clock.PUT_OFF if record.retry_after else clock.TRY
    believed = record.count > 0 and spool.is_credible(record.failed_at, spool.HAPPENED, now) and spool.is_credible(record.next_try, kind, now)
    return float(record.next_try) if believed else 0.0


def asked_to_wait(record: Record, now: float) -> float:
    """The moment before which the CA wants no other try; 0 for none."""
    return float(record.retry_after) if spool.is_credible(record.retry_after, clock.PUT_OFF, now) else 0.0


def next_try(failures: int, retry_after: float, left: float | None, now: float, chance: float) -> float:
    """The end of the back-off after so many failures in a row (1 for the first), never before the CA's Retry-After (seconds).

    `left` is the time to expiry where trying costs the CA nothing, because it could not be reached; else None. `chance` is a random number from 0 to 1.
    """
    pause = BACK_OFF[min(max(failures, 1), len(BACK_OFF)) - 1]
    if left is not None:
        pause = min(pause, max(BACK_OFF[2], left * URGENCY))
    return now + max(pause * (1 - JITTER + 2 * JITTER * chance), retry_after * (1 + JITTER / 4 * chance))


def poll_due(certificate: Certificate | None, record: Record, now: float) -> bool:
    """Whether to ask for the CA's window: not known for this certificate, or its time has come (or was noted by a clock that was wrong)."""
    if certificate is None or now >= certificate.not_after:
        return False                               # expired, it is due anyway
    return record.window_of != certificate.sha256 or now >= record.poll_at or not spool.is_credible(record.poll_at, clock.POLL, now)


def together(pause: float, now: float, moment: float | None) -> float:
    """When to ask again after a pause, at least: where that is long, the host's own `moment` in an hour (from 0 to 1; None for none) is waited for.

    Which hour it is, chance has said. So one process asks for many sites, not one in each of the day's 144 runs; and hosts do not come together.
    """
    if moment is None or pause < SELDOM:
        return now + pause
    found = now + pause + (moment * HOUR - now - pause) % HOUR
    return found if found <= now + MOST_POLL else now + pause


def poll_pause(retry_after: float, chance: float) -> float:
    """Seconds until the window is asked for again: not before the CA says, but within a minute and half a day, and each at a moment of its own.

    Without that, what was asked together, after a start or a loss of the notes, would ask together for ever.
    """
    if not retry_after:
        return POLL * (1 - JITTER + 2 * JITTER * chance)
    if retry_after >= MOST_POLL:
        return MOST_POLL * (1 - JITTER * chance)
    return min(max(retry_after, LEAST_POLL) * (1 + JITTER * chance), MOST_POLL)

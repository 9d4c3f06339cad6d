"""Says what the evidence means: a site's state, how grave that is, and one line of why. Pure: no clock, no disk, no network.

Runs as: whoever imports it. Trusts: what evidence.py checked. Reads and writes: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from certdrop import events, renewal
from certdrop.watcher import handshake
from certdrop.watcher.evidence import SLACK, Evidence, Run, Failure

PLACEHOLDER = "placeholder"
INSTALLED = "installed"
SERVING = "serving"
NOT_SERVED = "issued-not-served"
REFUSED = "refused"
FAILING = "failing"
EXPIRED = "expired"
DAMAGED = "damaged"
STATES = (SERVING, INSTALLED, PLACEHOLDER, REFUSED, FAILING, NOT_SERVED, EXPIRED, DAMAGED)

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3    # Nagios' exit codes
HOUR, DAY = 3600, 86400
QUIET = 3 * 3600                   # seconds without a run of a principal (the slowest runs hourly) that are no more usual
TOO_QUIET = DAY
OFTEN = {"keeper": 3600, "issuer": 600, "watcher": 3600}       # seconds from one run to the next
QUIET_SHARE, TOO_QUIET_SHARE = 1 / 8, 1 / 4                    # of what is left of the shortest lifetime, where that is less
REGISTER = "sudo certdrop-account register makes another, and a CAA record with accounturi must then name that"
ASKING = "sudo -u _certdrop sudo -n /usr/sbin/certdrop-install"
FAR = 8 * DAY                      # seconds: nobody puts a next try off for longer
LATE, TOO_LATE = 3 / 4, 3 / 8      # of what is left at the backstop: a warning, and critical


@dataclass
class Thresholds:
    """Shares of the lifetime left below which the end is near; None: LATE and TOO_LATE of the backstop."""

    warning: float | None = None
    critical: float | None = None


@dataclass
class Verdict:
    """One site, judged."""

    evidence: Evidence
    state: str
    severity: int
    served: bool | None                        # None: not asked, or nobody listens
    days_left: float | None
    left: float | None                         # the share of the lifetime that is left
    renew_at: int | None
    renew_why: str
    last_error: str
    since: int | None
    next_try: int | None
    asked: bool = False                        # somebody was asked for it, or nobody listens
    browsers: str = ""                         # that browsers refuse the live certificate, in a sentence; "" where they do not, or it is not known


def judge(found: Evidence, shown: set[str] | None, now: float, thresholds: Thresholds) -> Verdict:
    """What the evidence, and what the services showed (None: not asked), say of a site at the moment `now`."""
    served = _served(found, shown)
    found = as_it_is_now(found, served, now)
    left = _share_left(found, now)
    renew_at, why = _renewal(found, now)
    state = _state(found, shown, served, now)
    error, since, next_try = _why(found, state, shown)
    severity = {SERVING: OK, INSTALLED: OK, PLACEHOLDER: WARNING, REFUSED: WARNING, FAILING: WARNING}.get(state, CRITICAL)
    if left is not None and not found.placeholder:
        backstop = backstop_of(found)
        if left < (backstop * TOO_LATE if thresholds.critical is None else thresholds.critical):
            severity = CRITICAL
        elif left < (backstop * LATE if thresholds.warning is None else thresholds.warning):
            severity = max(severity, WARNING)
    browsers = _browsers(found, state)
    if browsers:
        severity = max(severity, WARNING if found.for_trying else CRITICAL)
    if found.disorder or found.wrong or found.burnt or any(one.failing or (one.done and one.number == found.live) for one in found.revocations):
        severity = max(severity, WARNING)
    days = (found.certificate.not_after - now) / DAY if found.certificate and not found.placeholder else None
    return Verdict(found, state, severity, served, days, left, renew_at, why, error or browsers, since, next_try, shown is not None, browsers)


def as_it_is_now(found: Evidence, served: bool | None, now: float) -> Evidence:
    """The evidence without what was found out once and is over: an installation whose certificate is shown, failures that root's installation
    ended, and what was noted by a clock that stood ahead of today's, with every moment that can not be."""
    failing = _possible(found.failing, now)
    if failing and failing.at is not None and (found.installed_at or 0) >= failing.at:
        failing = None
    install = _possible(found.install, now)
    if install and served and install.number == found.live:
        install = None
    revocations = [replace(one, since=_past(one.since, now), done=one.done and min(one.done, int(now)), failing=_possible(one.failing, now))
                   for one in found.revocations]
    return replace(found, install=install, failing=failing, refused=_possible(found.refused, now), revocations=revocations,
                   tlsa_since=_past(found.tlsa_since, now), key_created=_past(found.key_created, now), next_key_created=_past(found.next_key_created, now))


def _possible(failure: Failure | None, now: float) -> Failure | None:
    """Nothing for what a clock noted that stood ahead: its principal does not believe it either, and notes anew what is still so."""
    if failure is None or _past(failure.at or failure.since or 0, now) is None:
        return None
    far = failure.next_try is not None and failure.next_try > now + FAR
    return replace(failure, since=_past(failure.since, now), next_try=None if far else failure.next_try)


def _past(moment: int | None, now: float) -> int | None:
    """A moment that has come; None for one that cannot have been."""
    return None if moment is None or moment > now + SLACK else moment


def backstop_of(found: Evidence) -> float:
    """The share of the lifetime at which renewing is due at the latest."""
    return renewal.share_left(found.certificate) if found.certificate else 0.0


@dataclass
class Silence:
    """How long a principal has not run, and how grave that is."""

    who: str
    severity: int
    quiet: float                               # seconds; 0 where its last run bears a moment that has not come


def silences(runs: dict[str, Run], sites: list[Evidence], now: float) -> list[Silence]:
    """Of each principal."""
    return [Silence(who, *silence(run, sites, now, OFTEN[who])) for who, run in runs.items()]


def silence(run: Run, sites: list[Evidence], now: float, often: float = OFTEN["keeper"]) -> tuple[int, float]:
    """(severity, seconds) of a principal's silence. Before its first run the oldest site's configuration counts, from the first day on."""
    known = [site.configured_at for site in sites if site.configured_at]
    if not known:
        return OK, 0
    if run.ahead:
        return WARNING, 0                      # the next run says more
    quiet = max(0, now - (min(known) if run.at is None else run.at))
    left = min((site.certificate.not_after - now for site in sites if site.certificate and not site.placeholder), default=float("inf"))
    usual = min(QUIET, max(1.5 * often, left * QUIET_SHARE))
    most = min(TOO_QUIET, max(3 * often, left * TOO_QUIET_SHARE))
    if run.at is None:
        usual = most = TOO_QUIET
    return (CRITICAL if quiet > most else WARNING if quiet > usual else OK), quiet


def of_host(runs: dict[str, Run], read_only: list[str]) -> list[tuple[int, str]]:
    """(severity, sentence) of what keeps all sites from being renewed, or their renewals from being seen."""
    found = [(CRITICAL if path != events.LOGS else WARNING, f"{path} is read-only: {'nothing can be renewed' if path != events.LOGS else 'nothing is logged'}")
             for path in read_only]
    found += [(CRITICAL, f"the CA knows no account {run.lost} by this host's key any more: nothing is issued; {REGISTER}") for run in runs.values() if run.lost]
    found += [(WARNING, f"the {who}'s last run did nothing: {run.stopped}") for who, run in runs.items() if run.stopped]
    found += [(WARNING, f"the run that the issuer asked root for did nothing: {run.asked} (to try it: {ASKING})") for run in runs.values() if run.asked]
    return found


def _served(found: Evidence, shown: set[str] | None) -> bool | None:
    answers = (shown or set()) - {handshake.NOBODY}
    if not answers or found.certificate is None:
        return None
    return answers == {found.certificate.sha256}


def _state(found: Evidence, shown: set[str] | None, served: bool | None, now: float) -> str:
    certificate = found.certificate
    real = certificate is not None and not found.placeholder
    if found.damaged:
        return DAMAGED
    if real and certificate is not None and certificate.not_after <= now:
        return EXPIRED
    if _is_unserved(found, shown, served):
        return NOT_SERVED
    if found.refused:
        return REFUSED
    if found.failing or found.wrong:
        return FAILING
    if not real:
        return PLACEHOLDER
    proven = found.proven == found.live
    return SERVING if served or (served is None and proven and shown is None) else INSTALLED


def _is_unserved(found: Evidence, shown: set[str] | None, served: bool | None) -> bool:
    """An installation that root could not finish; or a site that was served before and is not now."""
    if found.install:
        return True
    if found.placeholder or found.live is None or not found.was_served:
        return False
    return shown is not None and found.probe != "off" and not served


def _browsers(found: Evidence, state: str) -> str:
    """What stands beside the state: a certificate may well be served, and no good to anybody."""
    if not found.refused_by_browsers or state in (DAMAGED, EXPIRED):
        return ""
    follows = ": certdrop asks the configured CA for another" if found.foreign else ": see directory in certdrop.toml" if found.for_trying else ""
    return f"browsers refuse the live certificate: it {found.refused_by_browsers}{follows}"


def _renewal(found: Evidence, now: float) -> tuple[int | None, str]:
    """When the issuer places the next order, and why then: by the rule that it goes by, of what is on disk now."""
    certificate = found.certificate
    if found.renew_why == renewal.TLSA and found.tlsa_since and certificate and not found.placeholder and (found.renew_at or 0) <= certificate.not_after:
        return found.renew_at, renewal.TLSA
    if certificate is None or found.placeholder or found.wanted_now:
        return None, renewal.WANTED if found.wanted_now else ""
    when, why = (certificate.not_before, renewal.FOREIGN) if found.foreign else renewal.planned(certificate, found.name, found.window)
    if found.renew_why == renewal.HURRIED and when < (found.renew_at or 0) <= certificate.not_after:
        when, why = found.renew_at or 0, found.renew_why           # the issuer alone counts how often
    if found.failing and (found.failing.next_try or 0) > max(when, now):
        when, why = found.failing.next_try or 0, renewal.HELD
    return int(when), why


def _share_left(found: Evidence, now: float) -> float | None:
    if found.certificate is None or found.placeholder:
        return None
    lifetime = max(1, found.certificate.not_after - found.certificate.not_before)
    return min(1.0, max(0.0, (found.certificate.not_after - now) / lifetime))


def _why(found: Evidence, state: str, shown: set[str] | None) -> tuple[str, int | None, int | None]:
    """(the last error in one line, since when, when it is tried again)."""
    if state == DAMAGED:
        return found.damaged, None, None
    if state == NOT_SERVED and found.install:
        return found.install.error or found.install.what, found.install.since, found.install.next_try
    if state == NOT_SERVED:
        answers = (shown or set()) - {handshake.NOBODY}
        if not answers:
            return "nothing answers at the addresses where this site was served", None, None
        return f"{found.astray or 'the service'} shows another certificate than the live one", None, None
    if found.refused and (state == REFUSED or not found.failing):
        return f"the reply was refused: {found.refused.what}", found.refused.since, found.refused.next_try
    if found.failing:
        said = ": ".join(part for part in (found.failing.what, found.failing.error) if part)
        return said, found.failing.since, found.failing.next_try
    if found.wrong:
        return found.wrong, None, None
    if found.live is None:
        return "the keeper has not made this site yet", None, None
    if found.burnt:
        return "its key is compromised; certdrop gets a certificate for another, and then has this one revoked", None, None
    for one in found.revocations:
        if one.failing:
            return f"generation {one.number:04d} is not revoked: {one.failing.error}", one.failing.since, one.failing.next_try
        if one.done and one.number == found.live:
            return f"it is revoked, says the issuer: run certdrop rotate {found.name}", one.done, None
    return events.clean(found.disorder[0]) if found.disorder else "", None, None

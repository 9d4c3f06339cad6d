"""Decides what is a problem that somebody must hear of, and when it is told. Pure: no clock, no disk, no network.

One failure is none yet: the issuer tries again by itself. A problem is told when it is new, and once a day as long as
any is left; when none is left, that is told once. Runs as: whoever imports it. Trusts: what evidence.py checked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from certdrop import events, renewal
from certdrop.config import site as configuration
from certdrop.watcher import phrases, verdict
from certdrop.watcher.evidence import MailHealth, Run
from certdrop.watcher.verdict import Verdict

KEEPS_FAILING = 4                  # tries in a row (the issuer's back-off makes that two hours), or
LASTING = 6 * 3600                 # seconds of failing
WAITING = verdict.DAY              # seconds in which a new site should have its certificate
TLSA_WAITS = 1 / 16                # or so much of the lifetime, in which a TLSA record should be published
DAILY = verdict.DAY - 900          # an hourly timer may come a little early
GRAVE = (os.EX_SOFTWARE, os.EX_NOPERM, os.EX_CONFIG)      # how the keeper or the issuer ended, where a person must act

PROBLEM, REMINDER, WELL = "problem", "reminder", "well"


@dataclass
class Problem:
    """Something that an administrator should know."""

    key: str                                   # the same as long as it is the same problem
    subject: str                               # in few words
    facts: list[tuple[str, str]]               # label, text
    grave: bool = False


def of_site(site: Verdict, now: float) -> list[Problem]:
    """What is to be told of one site."""
    found, name = site.evidence, site.evidence.name
    problems = []

    def add(kind: str, subject: str, following: str, advice: str, grave: bool = False) -> None:
        facts = [("why", site.browsers if kind == "browsers" else site.last_error)] if kind in (site.state, "failing", "waiting", "browsers") else []
        if site.since and kind == site.state:
            facts.append(("since", f"{events.stamp(site.since)} ({phrases.span(max(0, now - site.since))})"))
        if found.certificate and not found.placeholder and site.days_left is not None:
            left = f"{site.days_left:.1f} days left" if site.days_left > 0 else f"{-site.days_left:.1f} days ago"
            facts.append(("ends", f"{events.stamp(found.certificate.not_after)}, {left}"))
        again = f" at {events.stamp(site.next_try)}" if site.next_try and site.next_try > now and kind == site.state else ""
        facts += [("certdrop", following.replace("{again}", again)), ("you can", advice)]
        problems.append(Problem(f"{name}:{kind}", f"{name}: {subject}", [fact for fact in facts if fact[1]], grave))

    stays = f"the {'placeholder' if found.placeholder else 'live certificate'} stays"
    renewing = "tries again by itself{again}; " + stays
    if site.state == verdict.DAMAGED:
        add("damaged", "a file of root's is damaged", "makes the newest undamaged generation live in its next run, and asks for another certificate",
            "run certdrop-install; then find out what damages files: a disk, or a person", True)
    if site.state == verdict.EXPIRED:
        add("expired", "the certificate has expired", "goes on trying to renew it{again}", f"run certdrop renew {name} and read what it says", True)
    elif site.severity and _is_near_end(site):
        add("near-end", f"the certificate ends in {site.days_left:.1f} days", renewing,
            f"run certdrop renew {name} and read what it says", True)
    if site.state == verdict.NOT_SERVED:
        add("issued-not-served", "a certificate is issued but not served",
            "tests and reloads the service again by itself{again}, and sees what it serves; does not ask the CA again",
            f"run nginx -t, look at the server block of {found.domains[0] if found.domains else name}, then run certdrop-install", True)
    if site.browsers and not (found.for_trying and now - found.configured_at <= WAITING):
        advice = (f"when all is well, delete the line directory = ... from {configuration.ETC}/certdrop.toml; certdrop then asks Let's Encrypt by itself"
                  if found.for_trying else f"run certdrop renew {name} and read what it says")
        add("browsers", "browsers refuse the live certificate", "asks the configured CA for another by itself" if found.foreign else "renews it in its time",
            advice, not found.for_trying)
    if len(found.directories) > 1 and found.issued_by in found.directories[1:] and found.installed_at and 0 <= now - found.installed_at < DAILY - verdict.HOUR:
        add("fallback", f"{found.issued_by} issued its certificate, a CA to fall back on", "asks the first CA again when the certificate is to be renewed",
            f"see what ails {found.directories[0]}: sudo certdrop-check {name}")
    if found.refused:
        add("refused", "a reply of the issuer was refused", "asks the CA again by itself; " + stays,
            f"read the reason {found.refused.what} in certdrop-spool(5); if it comes again, look at what runs as _certdrop")
    if found.failing and (found.failing.tries >= KEEPS_FAILING or now - (found.failing.since or now) > LASTING):
        add("failing", "renewing keeps failing" if not found.placeholder else "the first certificate cannot be had", renewing,
            f"mend what the error names, then run certdrop renew {name}")
    if found.tlsa_since and found.certificate and now - found.tlsa_since > min(WAITING, renewal.lifetime(found.certificate) * TLSA_WAITS):
        add("tlsa", "its renewal waits for a TLSA record", "waits for the record, and renews without it when the certificate's end is near",
            f"publish what certdrop-status {name} --tlsa prints as next, beside the live one")
        problems[-1].facts.insert(0, ("why", found.tlsa_lacks))
    if found.wrong:
        add("failing", "its configuration or its files cannot be used", f"does not renew it; {stays}", found.wrong)
    if site.state == verdict.PLACEHOLDER and found.configured_at and now - found.configured_at > WAITING and not found.failing:
        add("waiting", "there is no certificate yet", "waits for the issuer", f"run certdrop renew {name} and read what it says")
    if not found.burnt and any(one.done and one.number == found.live for one in found.revocations):
        add("revoked", "the live certificate is revoked", "renews it in its time", f"run certdrop rotate {name}: it gets a certificate for a new key", True)
    for one in found.revocations:
        if one.failing and (one.failing.tries >= KEEPS_FAILING or now - (one.failing.since or now) > LASTING):
            problems.append(Problem(f"{name}:revocation", f"{name}: a certificate that root wants revoked is not",
                                    [("why", phrases.revocation(one, now)), ("certdrop", "tries again by itself"),
                                     ("you can", f"mend what the error names, then run certdrop revoke {name} --number {one.number:04d}")], True))
    if found.disorder:
        add("disorder", "files are not as they should be", "", "; ".join(found.disorder[:5]))
    return problems


def of_host(keeper: Run, issuer: Run, sites: list[Verdict], disorder: list[str], now: float, read_only: list[str] | None = None) -> list[Problem]:
    """What is to be told of the principals, and of where they write."""
    problems = [Problem("host:read-only", text, [("you can", "read what the kernel says (dmesg), repair the disk or the file system, and mount it read-write")],
                        severity == verdict.CRITICAL)
                for severity, text in verdict.of_host({}, read_only or [])]
    if keeper.asked:
        problems.append(Problem("keeper:asked", "the run that the issuer asks root for does nothing",
                                [("why", keeper.asked), ("certdrop", "installs certificates by root's own hourly run"),
                                 ("you can", f"mend that, then run {verdict.ASKING}")]))
    if issuer.lost:
        problems.append(Problem("issuer:account", f"the CA knows no account {issuer.lost} by this host's key any more",
                                [("why", "a clone of this host changed the key, or the CA lost or ended the account"),
                                 ("certdrop", "issues nothing until then; what is live stays"), ("you can", verdict.REGISTER)], True))
    for who, run, job in (("keeper", keeper, "certdrop-install"), ("issuer", issuer, "certdrop-issue")):
        silent, quiet = verdict.silence(run, [site.evidence for site in sites], now, verdict.OFTEN[who])
        last = f"its last run was at {events.stamp(run.at)}" if run.at else f"it {phrases.ran_last(run, now)}"
        if silent and run.stopped:
            problems.append(Problem(f"{who}:stopped", f"the {who} does nothing: each of its runs stops early", [("why", run.stopped), ("last", last), (
                "certdrop", "renews no certificate until it runs again"), ("you can", f"mend what the error names, then run {job} by hand")], True))
        elif silent:
            problems.append(Problem(f"{who}:silent", phrases.silence(who, quiet),
                                    [("why", last), ("certdrop", "renews no certificate until it runs again"),
                                     ("you can", f"run sudo certdrop-check: it says what keeps the {who} from running; or run {job} by hand")], True))
        elif run.exit in GRAVE:
            problems.append(Problem(f"{who}:exit", f"the {who} ended with exit code {run.exit}",
                                    [("why", last), ("certdrop", "runs it again at its next time"), ("you can", f"run {job} by hand and read what it says")]))
    if disorder:
        problems.append(Problem("host:disorder", "directories are not as they should be", [("you can", "; ".join(disorder[:5]))], True))
    return problems


def decide(before: MailHealth, problems: list[Problem], now: float, forgets: bool = False) -> str:
    """PROBLEM, REMINDER or WELL where a mail is due, else nothing. Who `forgets` what was told counts the hours since he could note anything."""
    if forgets and problems and before.at:
        hours = round((now - before.at) / 3600)
        return "" if hours % 24 != 1 else PROBLEM if hours == 1 else REMINDER
    if not problems:
        return WELL if before.told else ""
    if any(problem.key not in before.told for problem in problems):
        return PROBLEM
    return REMINDER if now - before.mailed >= DAILY or before.mailed > now else ""


def _is_near_end(site: Verdict) -> bool:
    return site.left is not None and not site.evidence.placeholder and site.left < verdict.backstop_of(site.evidence) * verdict.LATE

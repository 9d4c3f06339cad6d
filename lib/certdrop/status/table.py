"""The status for people: a table that fits the terminal, and a page about one site.

Runs as: whoever imports it. Trusts: values that evidence.py cleaned. Reads and writes: nothing.
"""

from __future__ import annotations

import re

from certdrop import events, renewal, terminal
from certdrop.walls import jail, syscalls
from certdrop.watcher import verdict
from certdrop.watcher.evidence import MailHealth, Run
from certdrop.watcher.phrases import ran_last, revocation, span
from certdrop.watcher.verdict import Verdict

STATE, BAR, LEFT, RENEWS, KEY = 11, 16, 6, 12, 9       # widths; the site's name takes the rest
NARROW = 80
LONGEST_ERROR = 500                # characters
SAYS = "the CA says "              # what the issuer writes before the CA's own words

_COLOURS = {verdict.OK: terminal.GOOD, verdict.WARNING: terminal.DOUBTFUL, verdict.CRITICAL: terminal.BAD}
_SHORT = {verdict.NOT_SERVED: "not served"}
_WHY = {renewal.BY_WINDOW: "ARI", renewal.BY_SHARE: "lifetime", renewal.BY_END: "end is near", renewal.HELD: "retry", renewal.WANTED: "wanted now",
        renewal.HURRIED: "too often", renewal.FOREIGN: "other CA", renewal.TLSA: "TLSA"}
_KEYS = {"ecdsa-p256": "p256", "ecdsa-p384": "p384", "rsa-2048": "rsa2", "rsa-3072": "rsa3", "rsa-4096": "rsa4"}


def render(sites: list[Verdict], now: float, width: int, colour: bool) -> list[str]:
    """A row for each site, and its last error below it; no line is longer than `width` (at least 80)."""
    width = max(NARROW, width)
    name = width - STATE - BAR - LEFT - RENEWS - KEY - 5
    head = f"{'SITE':{name}} {'STATE':{STATE}} {'LIFETIME':{BAR}} {'LEFT':>{LEFT}} {'RENEWS':{RENEWS}} KEY"
    lines = [terminal.paint(head, terminal.HEADING, colour)]
    above = ""
    for site in sites:
        found = site.evidence
        more = f" +{len(found.domains) - 1}" if len(found.domains) > 1 else ""
        begin = "= " if above in found.beside else ""                  # for the same names as the one above
        above = found.name
        shown = begin + shorten(found.name, name - len(begin + more)) + more
        state = terminal.paint(f"{_SHORT.get(site.state, site.state):{STATE}}", _COLOURS[site.severity], colour)
        left = "" if site.days_left is None else span(site.days_left * verdict.DAY) if site.days_left > 0 else "ended"
        key = f"{_KEYS.get(found.key, found.key[:4])} {span(max(0, now - found.key_created))}" if found.key_created else ""
        lines.append(f"{shown:{name}} {state} {bar(site, now):{BAR}} {left:>{LEFT}} {renews(site, now):{RENEWS}} {key[:KEY]}".rstrip())
        if site.last_error and site.last_error != site.browsers:
            lines.append(fit("  ! " + explain(site, now, brief(site.last_error, found.domains)), width))
        if site.browsers:
            lines.append(events.clean("  ! " + site.browsers, width))
        lines += [events.clean(f"  - revocation of {revocation(one, now)}", width) for one in found.revocations if one.state == "pending"]
    return lines


def page(site: Verdict, now: float) -> list[str]:
    """All that is known of one site, in words."""
    found, certificate = site.evidence, site.evidence.certificate
    shown = {None: "no: nobody answers where this site would be" if site.asked else "not known: nobody was asked",
             True: "yes", False: "no, another certificate"}[site.served]
    rows = [("state", site.state), ("names", " ".join(found.domains)), ("beside", ", ".join(found.beside)), ("served", shown),
            ("generation", f"live {_number(found.live)}, last proven {_number(found.proven)}, next {_number(found.next)}")]
    if certificate and site.days_left is None:
        rows.append(("valid", "no certificate yet; a placeholder is in its place"))
    elif certificate and site.days_left is not None:
        left = site.days_left * verdict.DAY
        rows += [("valid", f"{events.stamp(certificate.not_before)} to {events.stamp(certificate.not_after)}"),
                 ("lifetime", f"{bar(site, now)} " + (f"{span(left)} left" if left > 0 else f"ended {span(-left)} ago")),
                 ("fingerprint", certificate.sha256)]
    if found.issued_by:
        rows.append(("issued by", found.issued_by + ", a CA to fall back on" * (found.issued_by != found.directories[0])))
    rows += [("renews", f"{events.stamp(site.renew_at)} ({site.renew_why})" if site.renew_at else site.renew_why),
             ("key", f"{found.key}, made {events.stamp(found.key_created)}{'; it is compromised, and is to be replaced' * found.burnt}"
              if found.key_created else ""),
             ("next key", f"{found.next_spki}, made {events.stamp(found.next_key_created)}" if found.next_spki and found.next_key_created else ""),
             ("TLSA", f"its renewal waits: {found.tlsa_lacks}" if found.tlsa_since else ""),
             ("last error", explain(site, now) if site.last_error else ""),
             ("browsers", site.browsers if site.browsers != site.last_error else ""),
             *(("revocation", revocation(one, now)) for one in found.revocations),
             *(("disorder", text) for text in found.disorder)]
    return [found.name] + [f"  {label:11} {text}" for label, text in rows if text]


def summary(sites: list[Verdict], keeper: Run, issuer: Run, watcher: MailHealth, now: float) -> str:
    """One line: how many sites are in which state, who ran when, whether mail goes out and sandboxes hold."""
    counts = [f"{n} {state}" for state in verdict.STATES if (n := sum(site.state == state for site in sites))]
    ran = [f"{who} {ran_last(run, now)}" for who, run in (("keeper", keeper), ("issuer", issuer), ("watcher", Run(watcher.at)))]
    lacking, _ = jail.no_landlock()
    unconfined = [f"{lacking}, so issuer and watcher run without their sandbox"] if lacking else []
    unconfined += [f"{syscalls.missing()}, so nothing filters system calls"] if syscalls.missing() else []
    return f"{len(sites)} site{'' if len(sites) == 1 else 's'}: {', '.join(counts)}; " + ", ".join(ran + watcher.mute + unconfined)


def explain(site: Verdict, now: float, error: str = "") -> str:
    """The last error (or `error` in its place) after its times, in one line: words of others come last, where they cut off nothing."""
    times = [f"for {span(max(0, now - site.since))}"] if site.since else []
    times += [] if not site.next_try else [f"next try in {span(site.next_try - now)}" if site.next_try > now else "next try now"]
    return ", ".join(times) + ": " * bool(times) + (error or site.last_error)


def brief(error: str, names: list[str]) -> str:
    """An error without what the reader of a row knows: that it is the CA's word, which URL a challenge has, and the site's only name."""
    if len(names) == 1:
        error = error.replace(f"{names[0]}: {SAYS}", SAYS, 1)
    if SAYS in error:                          # what the issuer saw itself says hardly more, and may be cut
        error = re.sub(r"; https?://[^;]*", "", error)
    error = re.sub(r'(?:Fetching |Invalid response from |Get ")?https?://[^\s/]+/\.well-known/acme-challenge/[^\s:;,"]*"?(?:: |, | )?', "", error)
    return error.replace(SAYS, "", 1)


def fit(line: str, width: int) -> str:
    """A line, cut in its middle where it is too long: the reason often comes last."""
    return shorten(events.clean(line, 4 * LONGEST_ERROR), width)


def renews(site: Verdict, now: float) -> str:
    """When it is renewed, and why then, in few characters."""
    why = _WHY.get(site.renew_why, site.renew_why)
    if site.renew_at is None:
        return why[:RENEWS]
    when = "due" if site.renew_at <= now else span(site.renew_at - now)
    return f"{when} {why}"[:RENEWS].rstrip()


def bar(site: Verdict, now: float) -> str:
    """The certificate's real lifetime: dots are gone, = is left, | is the moment of renewal."""
    certificate = site.evidence.certificate
    if certificate is None or site.evidence.placeholder or site.left is None:
        return ""
    cells = BAR - 2
    gone = cells - int(site.left * cells + 0.5)
    shown = ["."] * gone + ["="] * (cells - gone)
    if site.renew_at is not None:
        share = (site.renew_at - certificate.not_before) / max(1, certificate.not_after - certificate.not_before)
        shown[min(cells - 1, max(0, int(share * cells)))] = "|"
    return "[" + "".join(shown) + "]"


def shorten(text: str, width: int) -> str:
    """Text cut in its middle: a name's end says as much as its beginning."""
    if len(text) <= width:
        return text
    front = (width - 2) // 2
    return text[:front] + ".." + text[len(text) - (width - 2 - front):]


def _number(number: int | None) -> str:
    return "none" if number is None else f"{number:04d}"

"""The status for programs: JSON, Nagios and Prometheus. Names, types and units are interface; certdrop-status(1) lists them.

Runs as: whoever imports it. Trusts: values that evidence.py cleaned. Reads and writes: nothing.
"""

from __future__ import annotations

import json

from certdrop import events
from certdrop.status import table
from certdrop.watcher import phrases, verdict
from certdrop.watcher.evidence import Run
from certdrop.watcher.verdict import Silence, Verdict

_WORDS = {verdict.OK: "OK", verdict.WARNING: "WARNING", verdict.CRITICAL: "CRITICAL", verdict.UNKNOWN: "UNKNOWN"}


def as_json(sites: list[Verdict], silences: list[Silence], host: list[tuple[int, str]]) -> str:
    """A list with an object for each site."""
    silent = {one.who: int(one.quiet) for one in silences if one.severity}
    return json.dumps([{**_object(site), "silent": silent, "host": [text for _, text in host]} for site in sites], indent=1)


def _object(site: Verdict) -> dict[str, object]:
    found, certificate = site.evidence, site.evidence.certificate
    real = None if found.placeholder else certificate
    return {
        "name": found.name,
        "domains": found.domains,
        "beside": found.beside,
        "state": site.state,
        "severity": site.severity,
        "not_before": _moment(real.not_before if real else None),
        "not_after": _moment(real.not_after if real else None),
        "days_left": None if site.days_left is None else round(site.days_left, 2),
        "lifetime_left": None if site.left is None else round(site.left, 4),
        "renew_at": _moment(site.renew_at),
        "renew_reason": site.renew_why or None,
        "fingerprint_sha256": certificate.sha256 if certificate else None,
        "issued_by": found.issued_by or None,
        "placeholder": found.placeholder,
        "served": site.served,
        "refused_by_browsers": None if found.refused_by_browsers is None else bool(found.refused_by_browsers),
        "generation": found.live,
        "proven_generation": found.proven,
        "next_generation": found.next,
        "key": found.key or None,
        "key_created": _moment(found.key_created),
        "key_burnt": found.burnt,
        "next_key_created": _moment(found.next_key_created),
        "next_key_spki_sha256": found.next_spki,
        "tlsa_waits_since": _moment(found.tlsa_since),
        "last_error": site.last_error or None,
        "since": _moment(site.since),
        "next_try": _moment(site.next_try),
        "disorder": found.disorder,
        "revocations": [{"generation": one.number, "state": one.state, "reason": one.reason, "since": _moment(one.since), "revoked_at": _moment(one.done),
                         "last_error": one.failing.error if one.failing else None, "next_try": _moment(one.failing.next_try if one.failing else None)}
                        for one in found.revocations],
    }


def as_nagios(sites: list[Verdict], code: int, silences: list[Silence], host: list[str], mute: list[str]) -> str:
    """One line with performance data (Monitoring Plugins' guidelines, section 2.6)."""
    bad = sorted((site for site in sites if site.severity), key=lambda site: -site.severity)
    why = {site.evidence.name: "; ".join(table.shorten(text, 90) for text in _words(site)) for site in bad[:3]}
    said = [f"{site.evidence.name} {site.state}" + (f" ({why[site.evidence.name]})" if why[site.evidence.name] else "") for site in bad[:3]]
    if len(bad) > 3:
        said.append(f"and {len(bad) - 3} more")
    said[:0] = [table.shorten(text, 300) for text in host]
    said[len(host):len(host)] = [phrases.silence(one.who, one.quiet) for one in silences if one.severity] + [table.shorten(text, 100) for text in mute]
    days = [site.days_left for site in sites if site.days_left is not None]
    text = "; ".join(said) or f"{len(sites)} site{'' if len(sites) == 1 else 's'}" + (f", the nearest end in {min(days):.1f} days" if days else "")
    shares = [site.left for site in sites if site.left is not None]
    data = [f"sites={len(sites)}", f"problems={len(bad)}"]
    data += [f"{one.who}_age={one.quiet:.0f}s;{verdict.QUIET};{verdict.TOO_QUIET};0" for one in silences]
    data += [f"days_left={min(days):.2f}"] if days else []
    data += [f"lifetime_left={min(shares) * 100:.1f}%"] if shares else []
    return f"CERTDROP {_WORDS[code]} - {events.clean(text, 400).replace('|', '/')} | {' '.join(data)}"


def _words(site: Verdict) -> list[str]:
    """What is wrong with a site, in few words each."""
    error = table.brief(site.last_error, site.evidence.domains) if site.last_error != site.browsers else ""
    return [text for text in (error, site.browsers) if text]


def as_prometheus(sites: list[Verdict], runs: dict[str, Run], silences: list[Silence], host: list[tuple[int, str]], is_mute: bool, now: float) -> str:
    """For node_exporter's textfile collector; as OpenMetrics it can be read, too."""
    lines: list[str] = []

    def family(name: str, text: str, samples: list[tuple[str, float | None]]) -> None:
        there = [f"certdrop_{name}{labels} {value:.10g}" for labels, value in samples if value is not None]
        if there:
            lines.extend([f"# HELP certdrop_{name} {text}", f"# TYPE certdrop_{name} gauge", *there])

    def each(name: str, text: str, values: list[float | None]) -> None:
        family(name, text, [(f'{{site="{site.evidence.name}"}}', value) for site, value in zip(sites, values)])

    certificates = [None if site.evidence.placeholder else site.evidence.certificate for site in sites]
    each("certificate_not_before_timestamp_seconds", "When the live certificate begins.", [c.not_before if c else None for c in certificates])
    each("certificate_not_after_timestamp_seconds", "When the live certificate ends.", [c.not_after if c else None for c in certificates])
    each("renewal_timestamp_seconds", "When the live certificate is to be renewed.", [site.renew_at for site in sites])
    each("key_created_timestamp_seconds", "When the live key was made.", [site.evidence.key_created for site in sites])
    each("served", "1 if the service shows the live certificate, 0 if another; absent if not known.",
         [None if site.served is None or site.evidence.placeholder else float(site.served) for site in sites])
    each("refused_by_browsers", "1 if browsers refuse the live certificate, 0 if not; absent if not known.",
         [None if site.evidence.refused_by_browsers is None else float(bool(site.evidence.refused_by_browsers)) for site in sites])
    each("by_fallback", "1 if the live certificate is of a CA to fall back on, 0 if of the first one; absent if not known.",
         [float(site.evidence.issued_by != site.evidence.directories[0]) if site.evidence.issued_by else None for site in sites])
    each("failures", "Failures in a row, as the issuer counts them.", [site.evidence.failing.tries if site.evidence.failing else 0 for site in sites])
    each("severity", "0 fine, 1 warning, 2 critical.", [site.severity for site in sites])
    family("state", "1 for the state that the site is in.",
           [(f'{{site="{site.evidence.name}",state="{state}"}}', float(site.state == state)) for site in sites for state in verdict.STATES])
    family("sites", "Configured sites.", [("", len(sites))])
    family("last_run_timestamp_seconds", "When the principal last ran.", [(f'{{principal="{who}"}}', run.at) for who, run in runs.items()])
    family("silence_severity", "0 if the principal ran when it should have, else 1 or 2.",
           [(f'{{principal="{one.who}"}}', one.severity) for one in silences])
    family("host_severity", "0 if this host lets certdrop work, else 1 or 2.", [("", max((severity for severity, _ in host), default=0))])
    family("mail_failing", "1 if what the watcher saw last could not be mailed, else 0.", [("", float(is_mute))])
    family("status_timestamp_seconds", "When this was written.", [("", int(now))])
    return "\n".join([*lines, "# EOF"]) + "\n"


def _moment(seconds: int | None) -> str | None:
    return None if seconds is None else events.stamp(seconds)

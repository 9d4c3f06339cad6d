"""Whether an order waits until the TLSA record of its key is in the DNS, and everybody may have seen it there (tlsa = "check" of a site).

A key that is used before its record is known makes whoever goes by DANE refuse the service, for as long as the records without it are kept in caches:
their TTL. So an order for another key waits for the record, and then for its TTL; never longer than to the last line (renewal.last_line), for a
certificate that ends makes everybody else refuse the service.
Runs as: _certdrop, shut in. Trusts: the resolvers of /etc/resolv.conf: what they say wrongly can only make a renewal wait, or not. Reads: the network,
sites.d, services.d, requests of root's. Writes: nothing; what it saw is noted in the site's ledger.
"""

from __future__ import annotations

import json

from certdrop import events, renewal, spool
from certdrop.config import dane, site
from certdrop.issuer import due
from certdrop.issuer.plan import Task
from certdrop.watcher import resolver

LONGEST_TTL = 2 * due.DAY          # a record that says more is not waited for longer
SHOWN = 2                          # names in a sentence


def look(task: Task, now: float) -> None:
    """Have the task wait, where it is for another key than the live one's, and this is not known everywhere yet. Raises OSError."""
    certificate, ledger, spki = task.certificate, task.ledger, _spki(f"{site.STATE}/sites/{task.name}/{task.request.number:04d}")
    task.held = None
    live = _spki(task.standing.place) if certificate else ""
    waited, ledger.tlsa_lacks = ledger.tlsa_since, ""
    ledger.tlsa_since = 0
    if certificate is None or task.no_wait or not spki or spki == live or live in _burnt():
        return
    try:
        if not dane.is_checked(task.name):
            return
        owners = dane.owners(site.load_site(task.name, site.load_config()))
    except site.ConfigError:
        return                                 # root says so, and installs nothing
    last = renewal.last_line(certificate)
    if now >= last or not owners:
        ledger.tlsa_lacks = "ordered all the same, because the live certificate ends soon" if waited else ""
        return
    lacks, ttl = published(owners, spki)
    if ledger.tlsa_of != spki or not spool.is_credible(ledger.tlsa_seen, spool.HAPPENED, now):
        ledger.tlsa_of, ledger.tlsa_seen, ledger.tlsa_ttl = spki, 0, 0
    if lacks:
        ledger.tlsa_seen = 0
        until = now + due.TICK
    else:
        ledger.tlsa_seen = ledger.tlsa_seen or int(now)
        ledger.tlsa_ttl = max(ledger.tlsa_ttl, int(ttl))
        until = ledger.tlsa_seen + ledger.tlsa_ttl
        if until <= now:
            return
        lacks = f"it is published; caches may go without it until {events.stamp(until)}"
    ledger.tlsa_since = waited if waited and spool.is_credible(waited, spool.HAPPENED, now) else int(now)
    ledger.tlsa_lacks = f"{lacks}; at {events.stamp(last)} the order is placed all the same"
    task.held = min(until, last), renewal.TLSA


def published(owners: list[str], spki: str) -> tuple[str, float]:
    """(what keeps the record from being known, "" where nothing does; its TTL). A name that has no record 3 1 1 at all is one that nobody goes by."""
    found = []
    for owner in owners:
        seen = resolver.tlsa(owner)
        if seen.problem not in ("", resolver.NO_NAME, resolver.NO_RECORD):
            return f"{owner} cannot be looked up: {seen.words}", 0.0
        found.append((owner, seen))
    lacking = [owner for owner, seen in found if seen.hashes and spki not in seen.hashes]
    if lacking:
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        return f"{', '.join(lacking[:SHOWN])}{more} has not the record of the next key", 0.0
    if not any(seen.hashes for _, seen in found):
        return f"{owners[0]} has no record 3 1 1", 0.0
    return "", min(max(seen.ttl for _, seen in found if seen.hashes), LONGEST_TTL)


def _spki(place: str) -> str:
    """The key of a generation, as root noted it; "" where that is not known."""
    try:
        with open(f"{place}/request.json", encoding="ascii") as stream:
            return str(json.load(stream).get("spki_sha256") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _burnt() -> set[str]:
    """The compromised keys: to get rid of one nothing is waited for."""
    try:
        with open(f"{site.STATE}/keeper/burnt", encoding="ascii") as stream:
            return set(stream.read().split())
    except (OSError, ValueError):
        return set()

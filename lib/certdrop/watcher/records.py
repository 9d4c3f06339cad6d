"""Looks at the TXT records that prove names (dns-persist-01), so that somebody hears of one that is gone, or about to end, before a renewal needs it.

What the DNS does not answer is no problem of a record's. Runs as: _certdrop-watch, shut in. Trusts: the resolvers of /etc/resolv.conf, and the issuer's note of
its account, for no more than what is told. Reads: the network. Writes: nothing.
"""

from __future__ import annotations

import time

from certdrop import events
from certdrop.config import persist
from certdrop.watcher import resolver
from certdrop.watcher.alarm import Problem
from certdrop.watcher.evidence import Evidence, Reader

SOON = 30 * 86400                  # seconds before its persistUntil in which somebody should hear of it
PATIENCE = 60.0                    # seconds for all of them


def problems(reader: Reader, sites: list[Evidence], now: float) -> list[Problem]:
    """What is to be told of the records of these sites; most have none."""
    end, found = time.monotonic() + PATIENCE, []
    for site in sites:
        if site.validation == persist.METHOD:
            issuers, account = reader.in_records(site)
            why = [text for one in persist.wanted(site.domains) if issuers and time.monotonic() < end and (text := wrong(one, issuers, account, now))]
            if why:
                more = f" (so {len(why) - 1} more of its records)" if len(why) > 1 else ""
                found.append(Problem(f"{site.name}:record", f"{site.name}: a TXT record that proves its names does not do", [
                    ("why", why[0] + more), ("certdrop", "cannot renew it without; the live certificate stays until it ends"),
                    ("you can", f"publish what certdrop-account show --records {site.name} prints")]))
    return found


def wrong(wanted: persist.Wanted, issuers: list[str], account: str, now: float) -> str:
    """What is wrong with the record of a name; "" where nothing is seen to be."""
    found = resolver.txt(wanted.owner)
    if found.problem not in ("", resolver.NO_NAME, resolver.NO_RECORD):
        return ""
    seen = persist.judged(found.texts, issuers, account, wanted.below, now)
    if seen.why:
        return f"{wanted.owner}: {events.clean(seen.why, 200)}"
    return f"{wanted.owner} is good until {events.stamp(seen.until)} only" if seen.until is not None and seen.until - now < SOON else ""

"""Compares the TLSA records in the DNS with the live key and the next (DANE, RFC 6698): what lacks one keeps out whoever goes by them.

Runs as: _certdrop-watch, or anyone. Trusts: the resolvers of /etc/resolv.conf, for nothing but what is shown. Reads: root's configuration, public state, the
network. Writes: nothing.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from certdrop.config import dane
from certdrop.config import site as configuration
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.watcher import resolver
from certdrop.watcher.evidence import Evidence, Reader

AT_ONCE = 32                       # names
DEADLINE = 60.0                    # seconds for all of them
NOTHING = (resolver.NO_NAME, resolver.NO_RECORD)


def look(sites: list[configuration.Site]) -> list[Line]:
    """A line for each site that has records, or whose renewals wait for some; none where nobody publishes any."""
    if not resolver.HAVE_DNS:
        return []                              # said already
    end, found = time.monotonic() + DEADLINE, []
    try:
        reader = Reader()
    except configuration.ConfigError:
        return []                              # said already
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        asked = {}
        for one in sites:
            try:
                asked[one.name] = {owner: pool.submit(resolver.tlsa, owner) for owner in dane.owners(one)}
            except configuration.ConfigError:
                continue                       # the line on the configuration has it
        for one in sites:
            try:
                seen = {owner: future.result(max(0.0, end - time.monotonic())) for owner, future in asked.get(one.name, {}).items()}
                found += judged(reader.site(one.name), seen, dane.is_checked(one.name))
            except TimeoutError:
                found.append(Line(WARNING, f"{one.name}: TLSA", "not examined: there was no time left", "run certdrop-check for this site alone"))
            except configuration.ConfigError:
                continue
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def judged(site: Evidence, seen: dict[str, resolver.Published], is_checked: bool) -> list[Line]:
    """What is published, beside the live key and the next."""
    what, there = f"{site.name}: TLSA", {owner: one for owner, one in seen.items() if one.hashes}
    show = f"certdrop-status {site.name} --tlsa prints the records"
    found = [Line(WARNING, what, f"{owner} cannot be looked up: {one.words}", "mend the zone's name servers, or this host's resolver")
             for owner, one in seen.items() if is_checked and one.problem not in ("", *NOTHING)][:1]
    if not there:
        others = [owner for owner, one in seen.items() if one.others]
        if is_checked and seen and not found:
            why = f"{others[0]} has records, and none that is 3 1 1, so they are not compared" if others else f"{next(iter(seen))} has no record"
            found.append(Line(WARNING, what, f"{why}; a renewal with another key waits for it (tlsa = \"{dane.CHECK}\"), until the certificate's end is near",
                              f"publish the records: {show}; or take tlsa out of the site's file"))
        return found
    live = None if site.placeholder else site.spki
    for spki, level, whose, follows in ((live, FAILED, "live", "who goes by DANE refuses the service now"),
                                        (site.next_spki, WARNING, "next", "a renewal waits for it" if is_checked else "who goes by DANE refuses the service "
                                         "after the next renewal")):
        lacking = [owner for owner, one in there.items() if spki and spki not in one.hashes]
        if lacking and not (whose == "next" and spki == live):
            more = f" (so at {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            found.append(Line(level, what, f"{lacking[0]} has not the record of the {whose} key{more}: {follows}", f"publish it: {show}"))
    unproven = [owner for owner, one in there.items() if not one.authentic]
    if unproven:
        found.append(Line(WARNING, what, f"the answer for {unproven[0]} is not proven by DNSSEC (AD): without that TLSA is worthless, and nobody goes by it",
                          "sign the zone; where it is signed, this host's resolver does not validate: name one that does in /etc/resolv.conf"))
    return found or [Line(OK, what, f"{next(iter(there))}{' ...' if len(there) > 1 else ''}: the live key's and the next one's record are there")]

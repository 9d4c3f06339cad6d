"""Looks at the TXT records that prove names (dns-persist-01) as the CA does: there, for this CA and our account, sufficient, in force.

Runs as: _certdrop-watch, or anyone. Trusts: the resolvers of /etc/resolv.conf, for nothing but what is shown; of the issuer's notes, which account is ours,
which is compared and never advised. Reads: the network. Writes: nothing.
"""

from __future__ import annotations

import time

from certdrop.config import persist
from certdrop.doctor.line import FAILED, WARNING
from certdrop.events import clean, stamp
from certdrop.watcher import resolver
from certdrop.watcher.records import SOON

NOT_THERE = (resolver.NO_NAME, resolver.NO_RECORD)
PROVEN, UNPROVEN = "proven by DNSSEC", "not proven by DNSSEC"


def look(site: str, wanted: persist.Wanted, identities: list[str], account: str) -> tuple[list[tuple[str, str, str]], str]:
    """(what is wrong with a name's record: level, why, what mends it; what DNSSEC says of it, "" where there is none)."""
    found, show = resolver.txt(wanted.owner), f"publish what certdrop-account show --records {site} prints"
    if found.problem == resolver.BOGUS:
        return [(FAILED, f"{wanted.owner}: DNSSEC fails: {found.words}; the CA refuses it",
                 "mend the zone's signatures, or its DS record at the registrar")], ""
    if found.problem not in ("", *NOT_THERE):
        return [(FAILED, f"{wanted.owner} cannot be looked up: {clean(found.words, 200)}", "mend the zone's name servers, or this host's resolver")], ""
    if not identities:
        return [(WARNING, f"{wanted.owner}: the CA does not say by which name it goes in records", "compare by hand: " + show)], ""
    seen = persist.judged(found.texts, identities, account, wanted.below, time.time())
    proof = PROVEN if found.authentic else UNPROVEN
    if seen.why:
        above = next(filter(None, (_covers(parent, identities, account) for parent in persist.parents(wanted.name))), "")
        if above:
            return [(WARNING, f"{wanted.owner}: {seen.why}; the record of {above} covers it by the draft, but not every CA looks there "
                     "(Let's Encrypt does not)", show)], proof
        return [(FAILED, f"{wanted.owner}: {clean(seen.why, 200)}: the CA cannot prove {wanted.name}{' and what is below' * wanted.below}", show)], proof
    if seen.until is not None and seen.until - time.time() < SOON:
        return [(WARNING, f"{wanted.owner}: is good until {stamp(seen.until)} only: after that {wanted.name} cannot be renewed", show)], proof
    others = {one.account for said in found.texts if isinstance(one := persist.parse(said), persist.Record) and one.account != account}
    return [], proof + (f"; accounts that are let in beside it: {len(others)}" if others and account else "")


def _covers(parent: str, identities: list[str], account: str) -> str:
    """The name above, where it has a record that lets the CA issue for what is below."""
    found = resolver.txt(persist.Wanted(parent, True).owner)
    return parent if found.texts and not persist.judged(found.texts, identities, account, True, time.time()).why else ""

"""Looks at each name as the CA does: it resolves, leads here over every address, and CAA lets this CA issue.

Runs as: _certdrop-watch, or anyone. Trusts: nothing that comes from the network. Reads: the network. Writes: nothing.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from certdrop import site as configuration
from certdrop.events import clean
from certdrop.port80 import PATH
from certdrop.watcher import check_dns, check_fetch
from certdrop.watcher.check_line import FAILED, WARNING, Line, verdict

AT_ONCE = 32                       # names
DEADLINE = 120.0                   # seconds for all of them
NO_DNSPYTHON = "python3-dnspython is not installed: CAA and DNSSEC are not examined, and names are looked up as this host does"

Wrong = list[tuple[str, str, str]]     # level, why, mend


class Authority(NamedTuple):
    """What the CA said: the names it goes by in CAA records, our account's URL ("" where not known), and whether it is on the Internet."""

    identities: list[str]
    account: str
    public: bool


def look(sites: list[configuration.Site], authority: Authority, token: tuple[str, str] | None, no_token: Sequence[Line] = ()) -> list[Line]:
    """All of it, for these sites. `token` is the name and content of one among the challenges; None where there is none, for which `no_token` says why."""
    lines = [] if check_dns.HAVE_DNS or not sites else [Line(WARNING, "DNS", NO_DNSPYTHON, "apt install python3-dnspython")]
    if token is None and sites:
        lines += [*no_token] or [Line(WARNING, "challenges", "no token could be put to be fetched: only root can have that done", "run certdrop-check as root")]
    end = time.monotonic() + DEADLINE
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        domains = list(dict.fromkeys(domain for found in sites for domain in found.domains))
        asked = {domain: pool.submit(_one, domain, authority, token, end) for domain in domains}
        for found in sites:
            wrong = [trouble for domain in found.domains for trouble in _result(domain, asked[domain], end)]
            lines += [Line(level, f"{found.name}: names", why, mend) for level, why, mend in dict.fromkeys(wrong)]
            if not wrong:
                there = "resolve" + (", a token comes back over each address" if token else "") + (", and CAA lets the CA issue" if check_dns.HAVE_DNS else "")
                lines += verdict(f"{found.name}: names", [], f"{', '.join(found.domains[:3])}{' ...' if len(found.domains) > 3 else ''}: {there}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return lines


def _result(domain: str, future: Future[Wrong], end: float) -> Wrong:
    try:
        return future.result(max(0.0, end - time.monotonic()))
    except TimeoutError:
        return [(WARNING, f"{domain}: not examined: there was no time left", "run certdrop-check for its site alone")]


def _one(domain: str, authority: Authority, token: tuple[str, str] | None, end: float) -> Wrong:
    if time.monotonic() > end:
        raise TimeoutError
    if configuration.is_address(domain):
        return reach(domain, domain, authority, token)
    wrong = idn(domain)
    looked = check_dns.addresses(domain)
    if looked.problem:
        wrong.append((FAILED, *_unresolved(domain, looked)))
    for address in looked.addresses:
        wrong += reach(domain, address, authority, token)
    if check_dns.HAVE_DNS and looked.problem not in (check_dns.SILENT,):
        wrong += caa(domain, authority)
    return wrong


def idn(domain: str) -> Wrong:
    """Whether an internationalized name is one (RFC 5891)."""
    if not any(label.startswith("xn--") for label in domain.split(".")):
        return []
    import idna
    try:
        idna.decode(domain)
    except (idna.IDNAError, UnicodeError) as error:
        return [(FAILED, f"{domain}: no internationalized name: {str(error)[:80]!a}; the CA refuses it", "write the name itself into the site's file")]
    return []


def _unresolved(domain: str, looked: check_dns.Looked) -> tuple[str, str]:
    record = f"make a record A (and AAAA) for {domain} that leads to this host; until then the CA cannot reach it"
    return {
        check_dns.NO_NAME: (f"{domain}: does not exist in the DNS (yet)", record),
        check_dns.NO_RECORD: (f"{domain}: has no address", record),
        check_dns.BOGUS: (f"{domain}: DNSSEC fails: {looked.words}; the CA refuses it", "mend the zone's signatures, or its DS record at the registrar"),
        check_dns.SILENT: (f"{domain}: its name servers, or this host's resolver, do not answer: {looked.words}", "see /etc/resolv.conf and the zone"),
    }.get(looked.problem, (f"{domain}: the DNS fails: {looked.words}", "see /etc/resolv.conf and the zone's name servers"))


def reach(domain: str, address: str, authority: Authority, token: tuple[str, str] | None) -> Wrong:
    """Whether a challenge is answered over this address."""
    record = "the addresses in the site's file" if domain == address else f"the record {'AAAA' if ':' in address else 'A'} of {domain}"
    if authority.public and not ipaddress.ip_address(address).is_global:
        return [(FAILED, f"{domain}: {address} is no address of the Internet: the CA cannot reach it", f"mend {record}")]
    if token is None:
        return []
    name, content = token
    came = check_fetch.fetch(address, domain, PATH + name, content)
    if came.status == 404:                                 # a run of the issuer may just have tidied up
        time.sleep(1)
        came = check_fetch.fetch(address, domain, PATH + name, content)
    if came.came and came.redirects:
        return [(WARNING, f"{domain}: over {address} the token comes only after {came.redirects} redirect(s), by way of {came.where}",
                 "put the challenge location before the redirect; see certdrop-nginx(1)")]
    if came.came:
        return []
    if not came.status and not check_fetch.is_ours(address):
        return [(WARNING, f"{domain}: {address} is not an address of this host, and cannot be reached from here ({came.words})",
                 "fine where a router or proxy in front of this host does not lead back (try from outside); else mend the DNS")]
    ours = check_fetch.is_ours(address)
    elsewhere = "" if ours else ", which is not an address of this host: it leads elsewhere, or what stands in front of it passes nothing on"
    return [(FAILED, f"{domain}: over {address} the token does not come: {came.words}{elsewhere}",
             f"mend {record}, or whatever answers there on port 80")]


def caa(domain: str, authority: Authority) -> Wrong:
    """Whether the CA may issue."""
    records, where, problem = check_dns.caa(domain)
    if problem:
        return [(FAILED, f"{domain}: its CAA records cannot be looked up (at {where}: {problem}); the CA refuses it then", "mend the zone's name servers")]
    if not records:
        return []
    if not authority.identities:
        shown = ", ".join(f"{record.tag} {record.value}" for record in records[:4])
        return [(WARNING, f"{domain}: CAA at {where} has {clean(shown, 150)}; the CA does not say by which name it goes there", "compare by hand")]
    why = check_dns.forbidden(records, authority.identities, authority.account)
    return [(FAILED, f"{domain}: CAA at {where} allows {why}", f"add to the CAA records of {where}: 0 issue \"{authority.identities[0]}\"")] if why else []

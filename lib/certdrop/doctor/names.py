"""Looks at each name as the CA does: it resolves, leads here over every address, and CAA lets this CA issue.

Runs as: _certdrop-watch, or anyone. Trusts: nothing that comes from the network. Reads: the network. Writes: nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from certdrop.config import persist
from certdrop.config import site as configuration
from certdrop.doctor import fetch
from certdrop.doctor.line import FAILED, OK, WARNING, Line, verdict
from certdrop.doctor.nginx import Seen
from certdrop.events import clean
from certdrop.nginx.challenge import PATH
from certdrop.watcher import resolver

AT_ONCE = 32                       # names
MOST = 4                           # addresses of nginx that a name is asked for at, which has none of its own
DEADLINE = 120.0                   # seconds for all of them
FIREWALLS = (("/usr/sbin/ufw", "ufw allow 80/tcp"), ("/usr/bin/firewall-cmd", "firewall-cmd --permanent --add-service=http, then firewall-cmd --reload"),
             ("/usr/sbin/nft", "nft list ruleset shows the rule"), ("/usr/sbin/iptables", "iptables -S shows the rule"))
NO_DNSPYTHON = "python3-dnspython is not installed: CAA and DNSSEC are not examined, and names are looked up as this host does"

ON_PORT_80 = "port 80"
DESK = "/etc/nginx/snippets/certdrop-desk.conf"        # on a desk of a fleet


class Obstacle(NamedTuple):
    """What is wrong with a name: how grave that is, why, what mends it, and where that is looked for."""

    level: str
    why: str
    mend: str
    part: str = "names"


Obstacles = list[Obstacle]


class Authority(NamedTuple):
    """What the CA said: the names it goes by in CAA records, our account's URL ("" where not known), and whether it is on the Internet."""

    identities: list[str]
    account: str
    public: bool


OF_A_DESK = Authority([], "", False)           # of a fleet's host, which does not know the CA: the desk does


class Doing(NamedTuple):
    """What a look at a name needs: what the CA is, the token that lies among the challenges (its name and content), what root saw of nginx, and
    what the CA said of the name (RFC 8555 section 6.7) when it last failed there."""

    authority: Authority
    token: tuple[str, str] | None = None
    nginx: Seen | None = None
    failures: dict[str, str] = {}
    is_new: bool = False           # no site has the names yet: nginx need not let challenges through so far
    desk: str = ""                 # on a host of a fleet: the name that challenges are to lead to


def look(sites: list[configuration.Site], doing: Doing, no_token: Sequence[Line] = ()) -> list[Line]:
    """All of it, for these sites. Where there is no token, `no_token` says why."""
    lines = [] if resolver.HAVE_DNS or not sites else [Line(WARNING, "DNS", NO_DNSPYTHON, "apt install python3-dnspython")]
    by_record = [found for found in sites if found.validation == persist.METHOD]
    if doing.token is None and len(by_record) < len(sites):
        lines += [*no_token] or [Line(WARNING, "challenges", "no token could be put to be fetched: only root can have that done", "sudo certdrop-check")]
    end = time.monotonic() + DEADLINE
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        recorded = {found.name: {one.name: pool.submit(_recorded, found.name, one, doing, end) for one in persist.wanted(found.domains)}
                    for found in by_record if resolver.HAVE_DNS}
        sites = [found for found in sites if found not in by_record]
        asked = {(found.name, domain): pool.submit(_one, found.name, domain, doing, end) for found in sites for domain in found.domains}
        for name, pieces in recorded.items():
            wrong = [trouble for domain, future in pieces.items() for trouble in _result(domain, future, end)]
            lines += together(name, [one for one in wrong if one.level != OK])
            if all(one.level == OK for one in wrong):
                lines += verdict(f"{name}: names", [], f"{', '.join(list(pieces)[:3])}{' ...' if len(pieces) > 3 else ''}: the TXT record is there, for this "
                                 f"CA and our account ({', '.join(sorted({one.why for one in wrong}))}), and CAA lets the CA issue")
        for found in sites:
            wrong = [trouble for domain in found.domains for trouble in _result(domain, asked[found.name, domain], end)]
            lines += together(found.name, wrong)
            if not any(one.part == "names" for one in wrong):
                there = "resolve" + (", a token comes back over each address" if doing.token and not wrong else "")
                there += ", and CAA lets the CA issue" if resolver.HAVE_DNS else ""
                lines += verdict(f"{found.name}: names", [], f"{', '.join(found.domains[:3])}{' ...' if len(found.domains) > 3 else ''}: {there}")
            if not wrong and doing.token:
                lines += verdict(f"{found.name}: {ON_PORT_80}", [], "a token comes back over each address")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return lines


def together(site: str, wrong: Obstacles) -> list[Line]:
    """A line for each thing to mend, however many names it is for; what has failed first."""
    same: dict[tuple[str, str, str], list[str]] = {}
    for one in sorted(wrong, key=lambda one: one.level != FAILED):
        same.setdefault((one.level, one.part, one.mend), []).append(one.why)
    return [Line(level, f"{site}: {part}", why[0] + (f" (so for {len(why) - 1} more of its names and addresses)" if len(why) > 1 else ""), mend)
            for (level, part, mend), why in same.items()]


def _result(domain: str, future: Future[Obstacles], end: float) -> Obstacles:
    try:
        return future.result(max(0.0, end - time.monotonic()))
    except TimeoutError:
        return [Obstacle(WARNING, f"{domain}: not examined: there was no time left", "run certdrop-check for its site alone")]


def _one(site: str, domain: str, doing: Doing, end: float) -> Obstacles:
    if time.monotonic() > end:
        raise TimeoutError
    if configuration.is_address(domain):
        return reach(site, domain, domain, doing)
    wrong = idn(domain)
    looked = resolver.addresses(domain)
    if looked.problem:
        wrong.append(Obstacle(FAILED, *_unresolved(domain, looked)))
    for address in looked.addresses:
        wrong += reach(site, domain, address, doing)
    if not looked.addresses:
        wrong += here(site, domain, doing, [])
    if resolver.HAVE_DNS and not looked.problem:
        wrong += caa(domain, doing.authority)
    return wrong


def _recorded(site: str, wanted: persist.Wanted, doing: Doing, end: float) -> Obstacles:
    """The same of a name, and what is below, that a record in the DNS proves: nobody asks port 80 there. Where nothing is wrong, what DNSSEC says."""
    from certdrop.doctor import records
    if time.monotonic() > end:
        raise TimeoutError
    found, proof = records.look(site, wanted, doing.authority.identities, doing.authority.account)
    wrong = [*idn(wanted.name), *(Obstacle(*one) for one in found), *caa(wanted.name, doing.authority, persist.METHOD, wanted.below)]
    return wrong or [Obstacle(OK, proof, "")]


def idn(domain: str) -> Obstacles:
    """Whether an internationalized name is one (RFC 5891)."""
    if not any(label.startswith("xn--") for label in domain.split(".")):
        return []
    import idna
    try:
        idna.decode(domain)
    except (idna.IDNAError, UnicodeError) as error:
        return [Obstacle(FAILED, f"{domain}: no internationalized name: {str(error)[:80]!a}; the CA refuses it", "write the name itself into the site's file")]
    return []


def _unresolved(domain: str, looked: resolver.Looked) -> tuple[str, str]:
    record = f"make a record A (and AAAA, if it has IPv6) for {domain} that leads to this host; a name that is mistyped is corrected in the site's file"
    servers = f"mend the zone's name servers, or this host's resolver (/etc/resolv.conf): dig +trace {domain} shows which"
    return {
        resolver.NO_NAME: (f"{domain}: does not exist in the DNS (yet): the CA cannot reach it", record),
        resolver.NO_RECORD: (f"{domain}: has no address in the DNS: the CA cannot reach it", record),
        resolver.BOGUS: (f"{domain}: DNSSEC fails: {looked.words}; the CA refuses it", "mend the zone's signatures, or its DS record at the registrar"),
        resolver.SILENT: (f"{domain}: its name servers, or this host's resolver, do not answer: {looked.words}", servers),
    }.get(looked.problem, (f"{domain}: the DNS fails: {looked.words}", servers))


def reach(site: str, domain: str, address: str, doing: Doing) -> Obstacles:
    """Whether a challenge is answered over this address. What is in the way is asked only where it is not."""
    record = "the addresses in the site's file" if domain == address else f"the record {'AAAA' if ':' in address else 'A'} of {domain}"
    if doing.authority.public and not ipaddress.ip_address(address).is_global:
        return [Obstacle(FAILED, f"{domain}: {address} is no address of the Internet: the CA cannot reach it",
                         f"make {record} lead to this host's public address"), *here(site, domain, doing, [address])]
    if doing.token is None:
        return []
    came = _fetch(domain, address, doing)
    if came.came:                                          # after redirects, too: CAs follow them
        return []
    if fetch.is_ours(address):
        return [_at_home(site, domain, address, came, doing)]
    at_home = here(site, domain, doing, [address])
    if doing.is_new and at_home and came.status:           # this host would not answer it either, so what came may be its own answer, by way of a router
        return [Obstacle(WARNING, f"{domain}: {address} is not an address of this host; whether it leads here is seen once nginx lets challenges through",
                         f"where it does not, make {record} lead to this host"), *at_home]
    return [_elsewhere(domain, address, record, came, doing), *at_home]


def here(site: str, domain: str, doing: Doing, addresses: list[str]) -> Obstacles:
    """Whether nginx would answer at one of the addresses where it listens: for a name that does not lead here (yet).

    Of the families of these addresses of the name's; of both, where it has none.
    """
    if doing.token is None or doing.nginx is None:
        return []
    found: Obstacles = []
    families = {":" in address for address in addresses}
    listened = [address.strip("[]") for address in doing.nginx.addresses if not families or (":" in address) in families]
    for address in listened[:MOST] or ["::1" if families == {True} else "127.0.0.1"]:
        came = _fetch(domain, address, doing)
        if came.came:
            return []
        found.append(_at_home(site, domain, address, came, doing))
    return found[:1]


def _fetch(domain: str, address: str, doing: Doing) -> fetch.Fetched:
    assert doing.token
    name, content = doing.token
    came = fetch.fetch(address, domain, PATH + name, content)
    if came.status == 404 and not doing.is_new:            # a run of the issuer may just have tidied up; of a new name nginx need not know challenges
        time.sleep(1)
        came = fetch.fetch(address, domain, PATH + name, content)
    return came


def _elsewhere(domain: str, address: str, record: str, came: fetch.Fetched, doing: Doing) -> Obstacle:
    """Why a token does not come over an address that is not this host's own."""
    said = doing.failures.get(domain, "")
    words = f"{domain}: {address} is not an address of this host"
    change = f"make {record} lead to this host" + (", or remove it: CAs go by IPv6 first" if ":" in address and domain != address else "")
    if came.status or said:
        answers = f"what answers there has not the token ({came.words}{', ' + came.server if came.server else ''})" if came.status else came.words
        return Obstacle(FAILED, f"{words}, and {answers}" + (f"; nor did the CA come through: {said}" if said else ""),
                        f"{change}; or, where a router or proxy stands there, have it pass port 80 on to this host")
    return Obstacle(WARNING, f"{words}, and from here it is not seen what the CA will see ({came.words})",
                    f"try from outside; where it does not lead here, {change}")


def _at_home(site: str, domain: str, address: str, came: fetch.Fetched, doing: Doing) -> Obstacle:
    """Why a token does not come over an address of this host's."""
    nginx, words = doing.nginx, f"{domain}: over {address} the token does not come: {came.words}"
    if doing.desk and came.where == doing.desk:
        return Obstacle(FAILED, f"{words}; this host leads challenges there, as it should",
                        f"on the desk: have nginx's server block for {doing.desk} on port 80 include {DESK}, and reload nginx", ON_PORT_80)
    if came.error in (errno.ETIMEDOUT, errno.EPERM, errno.EACCES):
        return Obstacle(FAILED, f"{words}; {address} is this host's own, so it is this host's firewall", f"open port 80: {_firewall()}", ON_PORT_80)
    if nginx is None:
        return Obstacle(FAILED, words, "see what answers there: ss -tlnp 'sport = :80'", ON_PORT_80)
    if not nginx.runs and came.status:
        return Obstacle(FAILED, f"{words}: nginx does not run, and {came.server or 'another server'} has port 80",
                        f"stop that one (ss -tlnp 'sport = :80' says which it is), then {nginx.start}", ON_PORT_80)
    if nginx.broken:
        return Obstacle(FAILED, f"{words}: nginx does not pass its own test, so what it was told last does not hold",
                        "mend what the line on nginx says", ON_PORT_80)
    if not nginx.runs:
        return Obstacle(FAILED, f"{words}: nginx does not run", nginx.start, ON_PORT_80)
    trouble = nginx.trouble(site, domain, address)
    if trouble:
        return Obstacle(FAILED, f"{words}: {trouble[0]}", trouble[1], ON_PORT_80)
    if nginx.kept_out and came.status:
        return Obstacle(FAILED, f"{words}: {nginx.kept_out[0]}", nginx.kept_out[1], ON_PORT_80)
    other = ", or something else answers there (ss -tlnp 'sport = :80')" if came.status else ""
    return Obstacle(FAILED, f"{words}, and nothing in nginx's configuration is seen to be in the way: it was changed, and nginx was not reloaded since{other}",
                    "nginx -s reload", ON_PORT_80)


def _firewall() -> str:
    """The command of the firewall that is here."""
    return next((command for path, command in FIREWALLS if os.path.exists(path)), "see its rules")


def caa(domain: str, authority: Authority, method: str = persist.HTTP, wildcard: bool = False) -> Obstacles:
    """Whether the CA may issue."""
    records, where, problem = resolver.caa(domain)
    if problem:
        return [Obstacle(FAILED, f"{domain}: its CAA records cannot be looked up (at {where}: {problem}); the CA refuses it then",
                         "mend the zone's name servers")]
    if not records:
        return []
    if not authority.identities and authority is OF_A_DESK:
        return []
    if not authority.identities:
        shown = ", ".join(f"{record.tag} {record.value}" for record in records[:4])
        return [Obstacle(WARNING, f"{domain}: CAA at {where} has {clean(shown, 150)}; the CA does not say by which name it goes there", "compare by hand")]
    why = resolver.forbidden(records, authority.identities, authority.account, method) or (
        resolver.forbidden(records, authority.identities, authority.account, method, True) if wildcard else "")
    return [Obstacle(FAILED, f"{domain}: CAA at {where} allows {why}",
                     f"add to the CAA records of {where}: 0 issue \"{authority.identities[0]}\"")] if why else []

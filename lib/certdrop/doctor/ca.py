"""Looks at the CA: reachable, its TLS verified, its directory, what it offers, its clock beside ours, and our account there.

Runs as: _certdrop-watch, or anyone; as_root() has certdrop-account ask about the account, which _certdrop alone can. Trusts: `ca_bundle`; of
what the CA and the issuer say, nothing but what is shown, cleaned. Reads: the network, issuer/account@*.json. Writes: nothing.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from certdrop import foreign, spool
from certdrop.config import general
from certdrop.config import site as configuration
from certdrop.doctor.ask import Said, ask
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.doctor.names import Authority
from certdrop.doctor.sites import unreadable
from certdrop.events import clean, stamp
from certdrop.issuer import directory as ca_directory
from certdrop.issuer import transport
from certdrop.issuer.failure import PROXY, UNREACHABLE, Failure
from certdrop.issuer.proxy import Proxy
from certdrop.trust import roots
from certdrop.walls import users
from certdrop.watcher.evidence import account_file, as_object

DEADLINE = 20.0                    # seconds for the directory
MOST = 1 << 20                     # bytes of the issuer's notes
SKEW, TOO_MUCH = 60, 3600          # seconds: CAs date certificates back by an hour, and refuse nothing for less
OF_THE_TIME, OF_ROOTS = (9, 10), (2, 18, 19, 20, 21)       # of OpenSSL's X509_V_ERR_...
TIME = "set this host's clock: apt install systemd-timesyncd, or chrony, keeps it right"
LOST_ACCOUNT = "the CA knows no account"               # certdrop-account's words
PROGRAM = "/usr/sbin/certdrop-account"


class Answer(NamedTuple):
    """The directory, how many seconds our clock is before the CA's (None where it does not say), and why what it answered is no directory."""

    directory: dict[str, object]
    skew: float | None
    failure: Failure | None = None


def as_root(config: general.Config) -> list[Line]:
    """What the CA says of our account, where there is one; asked by certdrop-account, which becomes _certdrop."""
    if not os.path.lexists(f"{configuration.STATE}/issuer/{account_file(config.directory_url)}"):
        return []
    return account(*ask(PROGRAM, "show", most=spool.MAX_REPLY))


def account(code: int, out: str, words: str) -> list[Line]:
    """What `certdrop-account show` said."""
    facts = dict(re.findall(r"^([A-Za-z ]+): +(.*)$", out, re.M))
    place, status, contact = (clean(facts.get(key, ""), 150) for key in ("account", "status", "contact"))
    if code == os.EX_DATAERR and LOST_ACCOUNT in place:
        return [lost(place.removeprefix("none: ").partition(": ")[0])]
    if code == os.EX_DATAERR:
        return [Line(WARNING, "account", "the CA does not know ours; the next order makes another one", "certdrop-account register does it now")]
    if code:
        return [Line(WARNING, "account", f"the CA does not tell about it: {clean(words or out, 200)}", "certdrop-account show says more")]
    if status != "valid":
        return [Line(FAILED, "account", f"{place} is {status or 'in no known state'}: nothing is issued",
                     "sudo certdrop-account deactivate sets its key aside; the next order makes another one")]
    if contact == "none":
        return [Line(WARNING, "account", f"{place} is valid; it has no contact: the CA cannot tell anybody of trouble",
                     f"set contact in {configuration.ETC}/certdrop.toml, then certdrop-account contact")]
    return [Line(OK, "account", f"{place} is valid; its contact: {contact}")]


def lost(said: str) -> Line:
    """An account that the CA does not know any more, and that nothing but a person replaces."""
    return Line(FAILED, "account", f"{said}: a clone of this host changed the key, or the CA lost or ended the account; nothing is issued",
                "sudo certdrop-account register makes another, and a CAA record with accounturi must then name that")


def look(config: general.Config, sites: list[configuration.Site], asked: list[Line], by_root: Said | None = None) -> tuple[list[Line], Authority]:
    """All of it, and what the names are to be compared with. `asked` is what as_root() found, `by_root` what by_proxy() did."""
    url = config.directory_url
    host = clean(urlsplit(url).hostname, 100)
    public = url in configuration.DIRECTORIES.values()
    noted = _noted(url)
    place = _string(noted.get("account"))
    if by_root is None and urlsplit(config.proxy).username:
        return ([Line(WARNING, "CA", "the proxy to it wants a password, which only root's check can have used", "sudo certdrop-check"),
                 *(asked or registered(config, noted))], Authority(["letsencrypt.org"] if public else [], place, public))
    try:
        answer = told(by_root) if by_root else get(config)
        failure: Exception | None = answer.failure
    except (Failure, configuration.ConfigError) as error:
        answer, failure = Answer({}, None), error
    if failure:
        why, mend = explain(failure, host, config)
        lines = [Line(FAILED, "CA", why, mend), *([clock(answer.skew, host)] if answer.skew is not None else []), *(asked or registered(config, noted))]
        return lines, Authority(["letsencrypt.org"] if public else [], place, public)
    meta = answer.directory.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    said = meta.get("caaIdentities")
    identities = [clean(one, 100).lower() for one in said[:10] if isinstance(one, str)] if isinstance(said, list) else []
    lines = [directory(answer.directory, host), *profiles(meta, config, sites), clock(answer.skew, host), *(asked or registered(config, noted))]
    return lines, Authority(identities or (["letsencrypt.org"] if public else []), place, public)


def by_proxy(config: general.Config) -> list[object] | None:
    """What `certdrop-account terms` says, where the way to the CA needs a password that the doctor may not read; None where it does not."""
    return list(ask(PROGRAM, "terms", most=spool.MAX_REPLY)) if urlsplit(config.proxy).username else None


def told(said: Said) -> Answer:
    """The directory, as far as certdrop-account tells. Raises Failure, with its words."""
    if said.code:
        raise Failure(UNREACHABLE, said.words.partition("certdrop-account: ")[2] or said.words or said.out, problem=PROXY)
    facts = dict(re.findall(r"^([A-Za-z ]+): +(.*)$", said.out, re.M))
    meta = {"caaIdentities": facts.get("names in CAA", "").split(), "profiles": dict.fromkeys(facts.get("profiles", "").split(), "")}
    found: dict[str, object] = {**dict.fromkeys(ca_directory.NEEDED, "https://"), "meta": meta}          # it looked whether they are there
    if "(ARI)" in facts.get("renewal", ""):
        found["renewalInfo"] = ""
    return Answer(found, _skew(facts.get("its clock"), time.time()))


def get(config: general.Config) -> Answer:
    """The directory, as the issuer asks for it. Raises Failure where nothing answers, and ConfigError where a file of roots cannot be read."""
    line = transport.Transport(transport.context(config), time.monotonic() + DEADLINE, transport.Gate(), Proxy(config.proxy), tries=1)
    try:
        answer = line.request("GET", config.directory_url)
        skew = _skew(answer.headers.get("Date"), time.time())
        try:
            return Answer(ca_directory.read(config.directory_url, answer), skew)
        except Failure as failure:             # what time it is there can be seen all the same
            return Answer({}, skew, failure)
    finally:
        line.close()


def _skew(date: str | None, now: float) -> float | None:
    try:
        return now - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def explain(error: Exception, host: str, config: general.Config) -> tuple[str, str]:
    """Why the CA could not be asked, and how to mend it."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = f"{host}: its certificate is not valid ({clean(cause.verify_message, 100)}); nothing is asked of it"
        if cause.verify_code in OF_THE_TIME:
            return f"{why}; by this host's clock it is {stamp()}", TIME
        if cause.verify_code in OF_ROOTS:
            place = config.own_roots if config.ca_bundle == configuration.STORE else config.ca_bundle
            return (f"{why}; {' and '.join(roots.bundles(config))} {'have' if len(roots.bundles(config)) > 1 else 'has'} no root for it",
                    f"put the root certificate of the CA's server (PEM) into {place}; or, where another answers in the CA's place, see proxy in certdrop.toml")
        return why, f"see directory in {configuration.ETC}/certdrop.toml, and who answers in the CA's place"
    for bundle in roots.bundles(config):
        why, mend = unreadable(bundle)
        if why:
            return f"ca_bundle: {why}", mend or f"correct ca_bundle in {configuration.ETC}/certdrop.toml"
    if isinstance(error, Failure) and error.problem == PROXY:
        return f"{clean(error, 300)}; nothing is issued or renewed until then", f"see proxy in {configuration.ETC}/certdrop.toml"
    if isinstance(cause, OSError):
        said = clean(error, 150).removeprefix(f"{host}: ")
        return (f"{host} cannot be reached: {said}; nothing is issued or renewed until then",
                f"curl -v {config.directory_url}; see firewall, resolver, and proxy in certdrop.toml")
    return clean(error, 300), "see directory in certdrop.toml"


def directory(found: dict[str, object], host: str) -> Line:
    """Whether it is one (RFC 8555 section 7.1.1)."""
    missing = [key for key in ca_directory.NEEDED if not _string(found.get(key)).startswith("https://")]
    if missing:
        return Line(FAILED, "CA", f"{host}: its directory lacks {', '.join(missing)}", "see directory in certdrop.toml")
    has = "tells when to renew (ARI)" if "renewalInfo" in found else "does not tell when to renew (no ARI): certdrop goes by the lifetime"
    return Line(OK, "CA", f"{host} answers, its certificate is valid; {has}")


def profiles(meta: dict[str, object], config: general.Config, sites: list[configuration.Site]) -> list[Line]:
    """Whether the profiles that are configured are offered."""
    wanted = {name: site for site in reversed(sites) if (name := site.profile)}
    offered = meta.get("profiles")
    offered = offered if isinstance(offered, dict) else {}
    there = ", ".join(clean(name, 30) for name in list(offered)[:10]) or "none"
    lines = [Line(FAILED, "profile", f"{site.name}: the CA does not offer the profile {clean(name, 40)}; it has {there}", "change profile in its file")
             for name, site in sorted(wanted.items()) if name not in offered]
    return lines or ([Line(OK, "profile", f"the CA offers {', '.join(sorted(wanted))}")] if wanted else [])


def clock(skew: float | None, host: str) -> Line:
    """Whether ours is right, by the CA's."""
    if skew is None:
        return Line(WARNING, "clock", f"{host} does not say what time it is", "compare by hand: date -u")
    if abs(skew) <= SKEW:
        return Line(OK, "clock", f"agrees with {host}'s within {SKEW} s")
    level = FAILED if abs(skew) > TOO_MUCH else WARNING
    side = "ahead of" if skew > 0 else "behind"
    seems = "certificates seem to have expired" if skew > 0 else "new certificates seem not yet valid"
    return Line(level, "clock", f"is {_span(abs(skew))} {side} {host}'s: {seems}", TIME)


def _span(seconds: float) -> str:
    """A span of time as a person says it."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _noted(url: str) -> dict[str, object]:
    """What the issuer noted of its account there."""
    try:
        fd = spool.open_directory(configuration.STATE + "/issuer")
        try:
            return as_object(foreign.read(fd, account_file(url), users.user_ids(spool.ISSUER)[0], MOST))
        finally:
            os.close(fd)
    except (OSError, KeyError, ValueError, spool.Refused):
        return {}


def registered(config: general.Config, noted: dict[str, object]) -> list[Line]:
    """What is known of the account without asking for it: only the issuer could."""
    url, before = _string(noted.get("account")), _string(noted.get("before"))
    if before and not url and noted.get("agreed") is not True:
        return [lost(f"the CA knows no account {clean(before, 150)} by this host's key any more")]
    lines = [Line(OK, "account", f"registered: {clean(url, 150)}") if url else Line(OK, "account", "none yet: the first order registers one")]
    if not config.contact:
        lines.append(Line(WARNING, "account", "has no contact: the CA cannot tell anybody of trouble", f"set contact in {configuration.ETC}/certdrop.toml"))
    return lines


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""

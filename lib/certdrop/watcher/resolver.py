"""Looks at the DNS as the CA sees it: addresses, failures of DNSSEC told apart, and which CAs may issue (CAA).

Runs as: _certdrop-watch, or anyone. Trusts: the resolvers of /etc/resolv.conf, for nothing but what is shown. Reads: the network. Writes: nothing.
Without python3-dnspython the addresses come from the system's own resolver, and the rest is not looked at.
Sources: RFC 8659 (CAA), RFC 8657 (accounturi, validationmethods), RFC 4035 section 3.2.2 (CD).
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, NamedTuple

from certdrop.events import clean

try:
    import dns.exception
    import dns.flags
    import dns.name
    import dns.rdatatype
    import dns.resolver
    HAVE_DNS = True
except ImportError:
    HAVE_DNS = False

PATIENCE = 5.0                     # seconds for one question
CRITICAL = 128                     # the flag of a CAA property that must be understood
KNOWN_TAGS = ("issue", "issuewild", "iodef", "contactemail", "contactphone", "issuemail", "issuevmc")
MOST = 16                          # addresses, and records, of a name that are looked at,
MOST_TEXTS = 64                    # and TXT records

NO_NAME, NO_RECORD, BOGUS, BROKEN, SILENT = "no-name", "no-record", "dnssec", "servfail", "silent"


class Record(NamedTuple):
    """A CAA property."""

    flags: int
    tag: str
    value: str


class Published(NamedTuple):
    """The TLSA records of a name: the hashes of those that are 3 1 1, how many others there are, their TTL, and whether the resolver
    says that DNSSEC proves them (AD, RFC 4035 section 3.2.3); or what is wrong with finding them."""

    hashes: frozenset[str] = frozenset()
    others: int = 0
    ttl: float = 0.0
    authentic: bool = False
    problem: str = ""
    words: str = ""


class Texts(NamedTuple):
    """The TXT records of a name, each with its strings put together, and whether the resolver says that DNSSEC proves them; or what is wrong."""

    texts: list[str]
    authentic: bool = False
    problem: str = ""
    words: str = ""


class Looked(NamedTuple):
    """Addresses of a name, and what is wrong with finding them: "" or one of the words above, with the DNS's own words."""

    addresses: list[str]
    problem: str = ""
    words: str = ""


def addresses(name: str) -> Looked:
    """All addresses, IPv4 first. Raises nothing."""
    if not HAVE_DNS:
        return _by_system(name)
    found: list[str] = []
    problems: list[tuple[str, str]] = []
    for kind in ("A", "AAAA"):
        records, problem, words = _ask(name, kind)
        found += [address for record in records[:MOST] if (address := _address(getattr(record, "address", "")))]
        problems += [(problem, words)] if problem else []
        if problem == SILENT:
            break                              # the other kind would only take as long
    hard = [problem for problem in problems if problem[0] not in (NO_RECORD, NO_NAME)]
    if hard:
        return Looked(found, *hard[0])
    return Looked(found) if found else Looked([], *problems[0])


def _by_system(name: str) -> Looked:
    try:
        answers = socket.getaddrinfo(name + ".", 80, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        problem = {socket.EAI_NONAME: NO_NAME, socket.EAI_NODATA: NO_RECORD}.get(error.errno or 0, BROKEN)
        return Looked([], problem, clean(error.strerror, 100))
    except (OSError, UnicodeError) as error:
        return Looked([], BROKEN, clean(error, 100))
    found = [str(answer[4][0]) for answer in answers]
    return Looked(sorted(dict.fromkeys(found), key=lambda address: ":" in address)[:2 * MOST])


def tlsa(owner: str) -> Published:
    """What is published at a name such as _443._tcp.example.org. Raises nothing.

    A resolver counts the TTL down; where the records are signed, the signature has the whole of it (RFC 4034 section 3.1.4).
    """
    if not HAVE_DNS:
        return Published(problem=BROKEN, words="python3-dnspython is not installed")
    answer, problem, words = _answer(owner, "TLSA")
    if answer is None:
        return Published(problem=problem, words=words)
    ours = [record for record in answer if (record.usage, record.selector, record.mtype) == (3, 1, 1)]
    signed = [record.original_ttl for part in answer.response.answer if part.rdtype == dns.rdatatype.RRSIG for record in part
              if record.type_covered == dns.rdatatype.TLSA]
    return Published(frozenset(record.cert.hex() for record in ours[:MOST]), len(answer) - len(ours), float(max([answer.rrset.ttl, *signed])),
                     bool(answer.response.flags & dns.flags.AD))


def txt(owner: str) -> Texts:
    """What TXT records are published at a name. Raises nothing."""
    if not HAVE_DNS:
        return Texts([], problem=BROKEN, words="python3-dnspython is not installed")
    answer, problem, words = _answer(owner, "TXT")
    if answer is None:
        return Texts([], problem=problem, words=words)
    return Texts([b"".join(record.strings).decode("ascii", "replace") for record in list(answer)[:MOST_TEXTS]], bool(answer.response.flags & dns.flags.AD))


def _ask(name: str, kind: str) -> tuple[list[Any], str, str]:
    """The records, what went wrong, and the words for it."""
    answer, problem, words = _answer(name, kind)
    return [] if answer is None else list(answer), problem, words


def _answer(name: str, kind: str) -> tuple[Any, str, str]:
    """The answer or None, what went wrong, and the words for it."""
    try:
        resolver = dns.resolver.Resolver()
        resolver.lifetime = PATIENCE
        resolver.use_edns(0, dns.flags.DO, 1232)
        full = dns.name.from_text(name)
        try:
            return resolver.resolve(full, kind), "", ""
        except dns.resolver.NXDOMAIN:
            return None, NO_NAME, "NXDOMAIN"
        except dns.resolver.NoAnswer:
            return None, NO_RECORD, f"no {kind} record"
        except dns.resolver.NoNameservers as error:
            resolver.flags = dns.flags.RD | dns.flags.CD           # without validation: does the answer come then?
            try:
                resolver.resolve(full, kind)
            except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
                pass
            except dns.exception.DNSException:
                return None, BROKEN, clean(error, 200)
            return None, BOGUS, "the answer comes only with validation switched off"
    except dns.exception.Timeout:
        return None, SILENT, f"no answer in {PATIENCE:.0f} s"
    except (dns.exception.DNSException, OSError, ValueError, UnicodeError) as error:
        return None, BROKEN, clean(error, 200)


def _address(text: object) -> str:
    try:
        return str(ipaddress.ip_address(str(text)))
    except ValueError:
        return ""


def caa(name: str) -> tuple[list[Record], str, str]:
    """The CAA properties that hold for a name, the name that has them, and what went wrong ("" where nothing did): RFC 8659 section 3."""
    labels = name.split(".")
    for depth in range(len(labels)):
        where = ".".join(labels[depth:])
        records, problem, words = _ask(where, "CAA")
        if records:
            return [Record(int(record.flags), _text(record.tag).lower(), _text(record.value)) for record in records[:MOST]], where, ""
        if problem not in (NO_NAME, NO_RECORD):
            return [], where, words
    return [], "", ""


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def forbidden(records: list[Record], identities: list[str], account: str, method: str = "http-01", wildcard: bool = False) -> str:
    """Why these properties keep the CA from issuing by this method to this account ("" where they do not, or where the account is not known). For a
    `wildcard` issuewild goes before issue (RFC 8659 section 4.3)."""
    for record in records:
        if record.flags & CRITICAL and record.tag not in KNOWN_TAGS:
            return f"a critical property that no CA knows: {clean(record.tag, 30)}"
    tag = "issuewild" if wildcard and any(record.tag == "issuewild" for record in records) else "issue"
    issue = [record.value for record in records if record.tag == tag]
    reasons = []
    for value in issue:
        issuer, *rest = (part.strip() for part in value.split(";"))
        if issuer.lower().rstrip(".") not in identities:
            continue
        parameters = {key.strip().lower(): content.strip() for key, _, content in (part.partition("=") for part in rest if part)}
        methods = [method.strip().lower() for method in parameters.get("validationmethods", method).split(",")]
        if method not in methods:
            reasons.append(f"{clean(issuer, 60)} only by {clean(','.join(methods), 60)}, and certdrop proves it by {method}")
        elif account and parameters.get("accounturi", account) != account:
            reasons.append(f"{clean(issuer, 60)} only for the account {clean(parameters['accounturi'], 100)}; ours is {clean(account, 100)}")
        else:
            return ""
    if reasons or not issue:
        return "; ".join(reasons)
    named = [value.partition(";")[0].strip() for value in issue]
    return "no CA at all" if not any(named) else f"only {clean(', '.join(filter(None, named)), 120)}, and ours is {clean(' or '.join(identities), 80)}"

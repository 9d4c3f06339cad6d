"""Names proven by a TXT record that stays (dns-persist-01): where it stands, what it says, and whether what is there suffices. Pure.

The challenge follows draft-ietf-acme-dns-persist-01, the records RFC 8659 section 4.2. Its parameter accounturi is our account's URL, which a CA must accept;
what a CA would rather see there is not published, for who chooses that chooses who gets certificates for as long as the record stands.
Runs as: whoever imports it. Trusts: nothing of what CA and DNS say. Reads and writes: nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from certdrop.config import site

HTTP, METHOD = site.VALIDATIONS
LABEL = "_validation-persist"
WILDCARD = "wildcard"              # the policy that lets the CA issue for what is below a name
MOST = 10                          # issuer domain names that a challenge may have, and none is malformed
LONGEST = 253                      # octets of one

_PARAMETER = re.compile(r"[ \t]*([A-Za-z0-9-]+)[ \t]*=[ \t]*([!-:<-~]*)[ \t]*")


class Wanted(NamedTuple):
    """A record that a site needs: the name that it proves, and whether what is below it is to be proven, too."""

    name: str
    below: bool

    @property
    def owner(self) -> str:
        """Where it stands in the DNS."""
        return f"{LABEL}.{self.name}."


class Record(NamedTuple):
    """A TXT record of this kind: whose CA it is for, which account, and for how long (seconds since 1970; None: for ever)."""

    issuer: str
    account: str
    below: bool = False
    until: int | None = None


def wanted(domains: list[str]) -> list[Wanted]:
    """The records that names need, one for each, in their order: a name and the wildcard below it have one together."""
    names = dict.fromkeys(domain.removeprefix("*.") for domain in domains)
    return [Wanted(name, f"*.{name}" in domains) for name in names]


def validation_of(domains: list[str], configured: str) -> str:
    """How these names are to be proven: as configured; a wildcard in the one way that there is."""
    return METHOD if any(domain.startswith("*.") for domain in domains) else configured


def name_of(authorization: dict[str, object]) -> str:
    """The name that an authorization is for: a wildcard's has the name below the star (RFC 8555 section 7.1.4). "" where it has none."""
    identifier = authorization.get("identifier")
    value = identifier.get("value") if isinstance(identifier, dict) else None
    name = value if isinstance(value, str) else ""
    return f"*.{name}" if authorization.get("wildcard") is True and not name.startswith("*.") else name


def issuers(said: object) -> list[str]:
    """The issuer domain names in a challenge; none where they are not as they must be: then the challenge is malformed."""
    if not isinstance(said, list) or not 0 < len(said) <= MOST:
        return []
    return said if all(isinstance(one, str) and len(one) <= LONGEST and site.is_host_name(one) for one in said) else []


def noted_issuers(noted: dict[str, object]) -> list[str]:
    """The same, of the issuer's note of an account: as a challenge had them, else the CA's directory (RFC 8555 section 9.7.6)."""
    directory = noted.get("directory")
    meta = directory.get("meta") if isinstance(directory, dict) else None
    return issuers(noted.get("issuers")) or issuers(meta.get("caaIdentities") if isinstance(meta, dict) else None)


def text(issuer: str, account: str, below: bool, until: int | None = None) -> str:
    """What a record says."""
    return "; ".join([issuer, f"accounturi={account}", *[f"policy={WILDCARD}"] * below, *([] if until is None else [f"persistUntil={until}"])])


def line(owner: str, said: str) -> str:
    """A record as a zone's file has it; a string in it has 255 octets at most (RFC 1035 section 3.3.14)."""
    return f"{owner} IN TXT " + " ".join(f'"{said[at:at + 255]}"' for at in range(0, len(said), 255))


def caa(name: str, issuer: str, account: str, methods: list[str]) -> str:
    """The CAA record that lets in no other account, as a zone's file has it (RFC 8657); it holds for wildcards, too, where there is no issuewild."""
    return f'{name}. IN CAA 0 issue "{issuer}; accounturi={account}; validationmethods={",".join(methods)}"'


def parse(said: str) -> Record | str:
    """A record, or why a CA cannot read it."""
    issuer, *parameters = said.split(";")
    found = dict[str, str]()
    for one in parameters:
        parameter = _PARAMETER.fullmatch(one)
        if parameter is None:
            return "it has an empty parameter, or one that is no tag=value"
        tag = parameter[1].lower()
        if tag in found:
            return f"{tag} stands there twice"
        found[tag] = parameter[2]
    until = found.get("persistuntil")
    if until is not None and not re.fullmatch(r"-?[0-9]{1,18}", until):
        return "persistUntil is no number of seconds since 1970"
    if not found.get("accounturi"):
        return "it has no accounturi"
    return Record(issuer.strip(" \t"), found["accounturi"], found.get("policy", "").lower() == WILDCARD, None if until is None else int(until))


class Seen(NamedTuple):
    """What was found for a name: what is wrong with it, "" for nothing; until when it holds (None: for ever); why it could not be looked up, where that is so:
    then nothing is known to be wrong, nor to be right."""

    why: str = ""
    until: int | None = None
    unknown: str = ""


def judged(records: list[str], names: list[str], account: str, below: bool, now: float) -> Seen:
    """Whether records suffice for an account ("" where that is not known) at a CA that goes by these names, by what the draft has a CA do: the one that holds
    longest counts."""
    good: list[Record] = []
    wrong: list[str] = []
    for said in records:
        if said.partition(";")[0].strip(" \t").lower() not in names:
            continue
        found = parse(said)
        if isinstance(found, str):
            wrong.append(found)
        elif account and found.account != account:
            wrong.append(f"it is for the account {found.account[:120]}")
        elif below and not found.below:
            wrong.append(f"it has no policy={WILDCARD}")
        elif found.until is not None and found.until < now:
            wrong.append("its persistUntil is over")
        else:
            good.append(found)
    if good:
        return Seen("", None if any(one.until is None for one in good) else max(one.until or 0 for one in good))
    return Seen(wrong[0] if wrong else "there are records, and none is for this CA" if records else "there is no record")


def parents(name: str) -> list[str]:
    """The names above one, the nearest first, that have two labels or more."""
    labels = name.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels) - 1)]

"""Where a site stands, by looking at the disk; and which step comes next. This is the recovery table of DESIGN.md, section 3.

Observed sees, step() decides and does nothing: the same sight always leads to the same step, so a run that was killed anywhere
is gone on with by the next one. What is damaged (integrity.py) is not complete. Runs as: root, under the keeper's lock. Trusts: root's
own directories. Reads: sites/, live/, proven/ and keeper/ below /var/lib/certdrop. Writes: nothing.
"""

from __future__ import annotations

import functools
import os
import re
import time

from certdrop import spool
from certdrop.config import site as configuration
from certdrop.keeper import integrity

NEAR = 2 * 3600                    # seconds before its end in which a certificate is given up for one that lasts longer: root runs hourly
KEPT = 3                           # complete generations of a site

# The steps, in the order of the table: the first that applies is taken, then the disk is looked at again.
PUT_BACK = "2 put back the live link that a removal set aside"
SWEEP = "3 remove what was written half"
PLACEHOLDER = "4 make the placeholder generation"
LINK = "5 live := newest complete, for live is none, or no link to a whole generation"
UNLINK = "5 remove proven, for it is no link to a whole generation"
NEXT = "6 make the next generation"
REPLACE = "7 make another next: the configuration was changed, its key is too old, or got out, or it is damaged"
WANT = "7 next is wanted now, for the newest key is too old, or got out, or a newer certificate is damaged"
GIVE_UP = "7 withdraw what is damaged"
POST = "8 post next's request"
WITHDRAW = "9 withdraw other requests"
PRUNE = "10 remove old generations"
WAIT = "11 settled: take a reply, switch services"

_NUMBER = re.compile(r"[0-9]{4,9}")
_KEY = re.compile(r"[0-9a-f]{64}")
_MANY = 16 << 20                   # bytes of keeper/burnt


class Observed:
    """What is on disk of a site: the numbers N, C, L and P of the table, and what is between them. What root wrote of a generation is read once."""

    def __init__(self, name: str, keys_that_got_out: frozenset[str] | None = None) -> None:
        self.name = name
        self.burnt = burnt() if keys_that_got_out is None else keys_that_got_out
        self._markers: dict[int, set[str]] = {}
        self._facts: dict[tuple[int, str], dict[str, object]] = {}
        self.finished: list[int] = []          # those that were complete once (nginx.conf is written last)
        self.whole: list[int] = []             # those with all their files, none of them damaged
        self.complete: list[int] = []          # of these, not those withdrawn by a rollback
        self.damaged: dict[int, str] = {}      # those that were whole, and are not withdrawn yet; and why
        self.fault = ""                        # the same of next
        self.aside = os.path.lexists(f"{configuration.STATE}/live/.{name}.aside")
        entries = _entries(directory(name))
        self.leftovers = [entry for entry in entries if entry.startswith(".")]
        links = {link: linked(link, name) for link in ("live", "proven")}
        unfinished = True
        self.numbers = sorted(int(entry) for entry in entries if _NUMBER.fullmatch(entry))       # all generations
        for number in self.numbers:
            place = directory(name, number)
            found = self._markers[number] = {*_entries(place)}
            was = number in links.values() or ("cert.json" in found and number != self.numbers[-1])     # it was finished once
            unfinished = "nginx.conf" not in found and not was              # which a run that was killed in complete() leaves, too
            self.leftovers += [f"{number:04d}/{entry}" for entry in found if entry.startswith(".") or (unfinished and entry == "cert.json")]
            fault = "" if unfinished else integrity.fault(place, integrity.COMPLETE)
            self.finished += [] if unfinished else [number]
            self.whole += [] if unfinished or fault else [number]
            if not unfinished and "withdrawn" not in found:
                self.complete += [] if fault else [number]
                self.damaged.update({number: fault} if fault else {})
        self.next = self.numbers[-1] if self.numbers and unfinished else None        # N, where it waits for its certificate
        if self.next is not None:
            self.fault = integrity.fault(directory(name, self.next), integrity.REQUEST)
        self.live = links["live"] if links["live"] in self.whole else None           # L
        self.proven = links["proven"] if links["proven"] in self.whole else None     # P
        self.astray = self.proven is None and os.path.lexists(f"{configuration.STATE}/proven/{name}")

    @functools.cached_property
    def newest(self) -> int | None:
        """C: the one that should be live. The highest, but where that has ended or is about to, the one that ends last."""
        return self._outlasting(self.complete[-1]) if self.complete else None

    def _outlasting(self, number: int) -> int:
        begin, end = (self.moment(number, what) for what in ("not_before", "not_after"))
        if len(self.complete) < 2 or end - time.time() > min(NEAR, (end - begin) / 8):
            return number
        good = [other for other in self.complete if not self.has(other, "placeholder") and not self.is_burnt(other)
                and not os.path.lexists(f"{spool.requests()}/{spool.entry(self.name, other, 'revoke')}")]
        ends = {other: self.moment(other, "not_after") for other in good}
        best = max(ends, key=lambda other: (ends[other], other), default=number)
        return best if ends.get(best, 0) > max(end, time.time()) else number

    @property
    def highest(self) -> int:
        """The highest number ever used for this site's name; 0 for none."""
        try:
            retired = int(integrity.read(f"{configuration.STATE}/keeper/retired/{self.name}"))
        except FileNotFoundError:
            retired = 0
        except (OSError, ValueError):          # damaged: then the minutes since 1970, which no site comes near to by counting
            retired = 0 if self.numbers else int(time.time()) // 60
        return max([retired, *self.numbers])

    @property
    def lost(self) -> bool:
        """Whether a certificate newer than C is damaged: then another is asked for."""
        return any(number > (self.newest or 0) for number in self.damaged)

    @property
    def stands_in(self) -> bool:
        """Whether all there is is the placeholder, or nothing."""
        return self.newest is None or self.has(self.newest, "placeholder")

    @property
    def old(self) -> list[int]:
        """The generations that are no longer kept: neither next, nor one of the newest complete, nor linked to."""
        kept = {*self.complete[-KEPT:], self.live, self.proven, *self.numbers[-1:]}
        return [number for number in self.numbers if number not in kept]

    def has(self, number: int | None, marker: str) -> bool:
        """Whether a generation carries a marker: `now`, `placeholder`, `withdrawn`."""
        return number is not None and marker in self._markers.get(number, ())

    def facts(self, number: int, kind: str) -> dict[str, object]:
        """What root wrote down about a generation: `request` (key, key_created, spki_sha256, domains) or `cert` (sha256, not_before, not_after).
        Raises integrity.Damaged."""
        if (number, kind) not in self._facts:
            self._facts[number, kind] = integrity.facts(f"{directory(self.name, number)}/{kind}.json")
        return self._facts[number, kind]

    def moment(self, number: int, what: str) -> int:
        """key_created, not_before or not_after of a generation, in seconds since 1970."""
        return int(str(self.facts(number, "request" if what == "key_created" else "cert")[what]))

    def spki(self, number: int) -> str:
        """The key of a generation: the SHA-256 of its SPKI."""
        return str(self.facts(number, "request")["spki_sha256"])

    def sha256(self, number: int | None) -> str:
        """The leaf's fingerprint of a generation."""
        return "" if number is None else str(self.facts(number, "cert")["sha256"])

    def identities(self, number: int) -> list[str]:
        """What its certificate is known by: the SHA-256 of all its bytes, and what else the judge said. Older versions had the first."""
        known = self.facts(number, "cert")
        return [str(known[key]) for key in ("sha256", "tbs_sha256", "issued_sha256") if known.get(key)]

    def is_burnt(self, number: int) -> bool:
        """Whether a generation's key got out."""
        return bool(self.burnt) and self.spki(number) in self.burnt

    def is_old_key(self, wanted: configuration.Site, number: int) -> bool:
        """Whether its key is older than the site's key_max_age ("renewal" makes every next a new one anyway), or got out."""
        days = configuration.age_in_days(wanted.key_max_age)
        return self.is_burnt(number) or (days is not None and self.moment(number, "key_created") + days * 86400 <= time.time())

    def pause(self, number: int | None, most: int) -> int:
        """Seconds that the site may wait for its next try: `most`, or an eighth of the lifetime of this certificate, which may be short."""
        if number is None or self.has(number, "placeholder"):
            return most
        return min(most, (self.moment(number, "not_after") - self.moment(number, "not_before")) // 8)


def step(observed: Observed, wanted: configuration.Site | None, posted: set[tuple[int, str]]) -> str:
    """The next step for a site. `posted` are (number, kind) of its requests in the spool. Without a configuration that can be read (None)
    just those steps that need none: nothing that is damaged is left to services."""
    if observed.aside:
        return PUT_BACK
    if observed.leftovers:
        return SWEEP
    if observed.newest is None:
        return PLACEHOLDER if wanted else WAIT
    if observed.live is None:
        return LINK
    if observed.astray:
        return UNLINK
    if wanted is None:
        return WAIT
    if observed.next is None:
        return NEXT
    if observed.fault:
        return REPLACE
    known = observed.facts(observed.next, "request")
    if known["key"] != wanted.key or known["domains"] != sorted(wanted.domains) or observed.is_old_key(wanted, observed.next):
        return REPLACE
    if observed.lost or (observed.is_old_key(wanted, observed.newest) and not observed.stands_in):
        if not observed.has(observed.next, "now"):
            return WANT
    if observed.damaged:
        return GIVE_UP
    if not required(observed) <= posted:
        return POST
    if stray(observed, posted):
        return WITHDRAW
    return PRUNE if prunable(observed, posted) else WAIT


def burnt() -> frozenset[str]:
    """The keys (SHA-256 of their SPKI) that got out: they are never used again. Of a list that is damaged, what can be read."""
    return frozenset(filter(_KEY.fullmatch, _burnt().split()))


def burnt_is_damaged() -> bool:
    """Whether keeper/burnt is not as root wrote it: a key in each line, and at least one."""
    path = f"{configuration.STATE}/keeper/burnt"
    lines = _burnt().splitlines()
    return os.path.lexists(path) and (not lines or not all(map(_KEY.fullmatch, lines)))


def _burnt() -> str:
    try:
        return integrity.read(f"{configuration.STATE}/keeper/burnt", _MANY).decode("ascii", "replace")
    except (FileNotFoundError, integrity.Damaged):
        return ""


def owed(observed: Observed, posted: set[tuple[int, str]]) -> list[int]:
    """The generations whose certificate root has to have revoked, and did not ask for it yet: their key got out."""
    if not observed.burnt:
        return []
    return [number for number in observed.finished if (number, "revoke") not in posted
            and not integrity.fault(directory(observed.name, number), integrity.REVOCABLE) and observed.is_burnt(number)
            and not observed.has(number, "placeholder") and observed.moment(number, "not_after") > time.time()]


def prunable(observed: Observed, posted: set[tuple[int, str]]) -> list[int]:
    """The generations that nothing is needed of any more."""
    return sorted({*observed.old} - {*owed(observed, posted)}) if observed.old else []


def required(observed: Observed) -> set[tuple[int, str]]:
    """What should be in the spool of a site: next's CSR, and `now` where next carries that marker."""
    if observed.next is None:
        return set()
    return {(observed.next, "csr"), *([(observed.next, "now")] if observed.has(observed.next, "now") else [])}


def stray(observed: Observed, posted: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """What should no longer be there. A request to revoke stays, whatever becomes of its generation, until the certificate ends."""
    return {entry for entry in posted - required(observed) if entry[1] != "revoke"}


def directory(name: str, number: int | None = None) -> str:
    """The directory of a site, or of one of its generations."""
    path = f"{configuration.STATE}/sites/{name}"
    return path if number is None else f"{path}/{number:04d}"


def linked(link: str, name: str) -> int | None:
    """The generation that live or proven points at; None for no link, and for anything else that stands there."""
    try:
        target = os.readlink(f"{configuration.STATE}/{link}/{name}")
    except OSError:
        return None
    number = target.removeprefix(f"../sites/{name}/")
    return int(number) if number != target and _NUMBER.fullmatch(number) else None


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []

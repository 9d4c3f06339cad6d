"""Where a site stands, by looking at the disk; and which step comes next. This is the recovery table of DESIGN.md, section 3.

look() sees, step() decides and does nothing: the same sight always leads to the same step, so a run that was killed anywhere
is gone on with by the next one. Runs as: root, under the keeper's lock. Trusts: root's own directories. Reads: sites/, live/, proven/
and keeper/ below /var/lib/certdrop. Writes: nothing.
"""

from __future__ import annotations

import json
import os
import re
import time

from certdrop import site as configuration

KEPT = 3                           # complete generations of a site

# The steps, in the order of the table: the first that applies is taken, then the disk is looked at again.
PUT_BACK = "2 put back the live link that a removal set aside"
SWEEP = "3 remove what was written half"
PLACEHOLDER = "4 make the placeholder generation"
LINK = "5 live := newest complete"
NEXT = "6 make the next generation"
REPLACE = "7 make another next: the configuration was changed, or its key is too old, or got out"
POST = "8 post next's request"
WANT = "7 next is wanted now, for the newest key is too old, or got out"
WITHDRAW = "9 withdraw other requests"
PRUNE = "10 remove old generations"
WAIT = "11 settled: take a reply, switch services"

_NUMBER = re.compile(r"[0-9]{4,9}")


class Sight:
    """What is on disk of a site: the numbers N, C, L and P of the table, and what is between them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers: list[int] = []           # all generations, ascending
        self.whole: list[int] = []             # those with all their files (nginx.conf is written last)
        self.complete: list[int] = []          # of these, not those withdrawn by a rollback
        self.live = linked("live", name)       # L
        self.proven = linked("proven", name)   # P
        self.aside = os.path.lexists(f"{configuration.STATE}/live/.{name}.aside")
        entries = _entries(directory(name))
        self.leftovers = [entry for entry in entries if entry.startswith(".")]
        for number in sorted(int(entry) for entry in entries if _NUMBER.fullmatch(entry)):
            self.numbers.append(number)
            found = set(_entries(directory(name, number)))
            self.leftovers += [f"{number:04d}/{entry}" for entry in found if entry.startswith(".")]
            if "nginx.conf" in found:
                self.whole.append(number)
                if "withdrawn" not in found:
                    self.complete.append(number)

    @property
    def next(self) -> int | None:
        """N, where it is incomplete: the generation that waits for its certificate."""
        return self.numbers[-1] if self.numbers and self.numbers[-1] not in self.whole else None

    @property
    def newest(self) -> int | None:
        """C: the one that should be live."""
        return self.complete[-1] if self.complete else None

    @property
    def highest(self) -> int:
        """The highest number ever used for this site's name; 0 for none."""
        try:
            with open(f"{configuration.STATE}/keeper/retired/{self.name}", encoding="ascii") as stream:
                retired = int(stream.read())
        except FileNotFoundError:
            retired = 0
        return max([retired, *self.numbers])

    @property
    def old(self) -> list[int]:
        """The generations that are no longer kept: neither next, nor one of the newest complete, nor linked to."""
        kept = {*self.complete[-KEPT:], self.live, self.proven, *self.numbers[-1:]}
        return [number for number in self.numbers if number not in kept]


def step(sight: Sight, wanted: configuration.Site, posted: set[tuple[int, str]]) -> str:
    """The next step for a configured site. `posted` are (number, kind) of its requests in the spool."""
    if sight.aside:
        return PUT_BACK
    if sight.leftovers:
        return SWEEP
    if sight.newest is None:
        return PLACEHOLDER
    if sight.live is None:
        return LINK
    if sight.next is None:
        return NEXT
    known = facts(sight.name, sight.next, "request")
    if known["key"] != wanted.key or known["domains"] != sorted(wanted.domains) or is_old_key(wanted, sight.next):
        return REPLACE
    if is_old_key(wanted, sight.newest) and not (has(sight.name, sight.newest, "placeholder") or has(sight.name, sight.next, "now")):
        return WANT
    if not required(sight) <= posted:
        return POST
    if stray(sight, posted):
        return WITHDRAW
    return PRUNE if prunable(sight, posted) else WAIT


def is_old_key(wanted: configuration.Site, number: int) -> bool:
    """Whether a generation's key is older than the site's key_max_age ("renewal" makes every next a new one anyway), or got out."""
    days = configuration.age_in_days(wanted.key_max_age)
    return is_burnt(wanted.name, number) or (days is not None and moment(wanted.name, number, "key_created") + days * 86400 <= time.time())


def burnt() -> set[str]:
    """The keys (SHA-256 of their SPKI) that got out: they are never used again."""
    try:
        with open(f"{configuration.STATE}/keeper/burnt", encoding="ascii") as stream:
            return set(stream.read().split())
    except FileNotFoundError:
        return set()


def is_burnt(name: str, number: int) -> bool:
    """Whether a generation's key got out."""
    keys = burnt()
    return bool(keys) and facts(name, number, "request")["spki_sha256"] in keys


def owed(sight: Sight, posted: set[tuple[int, str]]) -> list[int]:
    """The generations whose certificate root has to have revoked, and did not ask for it yet: their key got out."""
    return [number for number in sight.whole if (number, "revoke") not in posted and is_burnt(sight.name, number)
            and not has(sight.name, number, "placeholder") and moment(sight.name, number, "not_after") > time.time()]


def prunable(sight: Sight, posted: set[tuple[int, str]]) -> list[int]:
    """The generations that nothing is needed of any more."""
    return sorted({*sight.old} - {*owed(sight, posted)}) if sight.old else []


def required(sight: Sight) -> set[tuple[int, str]]:
    """What should be in the spool of a site: next's CSR, and `now` where next carries that marker."""
    if sight.next is None:
        return set()
    return {(sight.next, "csr"), *([(sight.next, "now")] if has(sight.name, sight.next, "now") else [])}


def stray(sight: Sight, posted: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """What should no longer be there. A request to revoke stays, whatever becomes of its generation, until the certificate ends."""
    return {entry for entry in posted - required(sight) if entry[1] != "revoke"}


def directory(name: str, number: int | None = None) -> str:
    """The directory of a site, or of one of its generations."""
    path = f"{configuration.STATE}/sites/{name}"
    return path if number is None else f"{path}/{number:04d}"


def has(name: str, number: int, marker: str) -> bool:
    """Whether the generation carries a marker: `now`, `placeholder`, `withdrawn`."""
    return os.path.exists(f"{directory(name, number)}/{marker}")


def facts(name: str, number: int, kind: str) -> dict[str, object]:
    """What root wrote down about a generation: `request` (key, key_created, spki_sha256, domains) or `cert` (sha256, not_before, not_after)."""
    with open(f"{directory(name, number)}/{kind}.json", encoding="ascii") as stream:
        found: dict[str, object] = json.load(stream)
    return found


def moment(name: str, number: int, what: str) -> int:
    """key_created, not_before or not_after of a generation, in seconds since 1970."""
    return int(str(facts(name, number, "request" if what == "key_created" else "cert")[what]))


def pause(name: str, number: int | None, most: int) -> int:
    """Seconds that a site may wait for its next try: `most`, or an eighth of the lifetime of this certificate, which may be short."""
    if number is None or has(name, number, "placeholder"):
        return most
    return min(most, (moment(name, number, "not_after") - moment(name, number, "not_before")) // 8)


def linked(link: str, name: str) -> int | None:
    """The generation that live or proven points at."""
    try:
        return int(os.readlink(f"{configuration.STATE}/{link}/{name}").rpartition("/")[2])
    except FileNotFoundError:
        return None


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []

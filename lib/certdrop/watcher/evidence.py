"""What is on disk about the sites: gathers it, checks every value, decides nothing.

Runs as: anyone; _certdrop-watch where root asked. Trusts: the owners and modes that it checked, and dates only
where they stand in a certificate. What the issuer wrote (its ledger) is hostile: read by descriptor, bounded, cleaned.
Reads: /etc/certdrop; sites/, live/, proven/, keeper/, issuer/ and watcher/ below /var/lib/certdrop. Writes: nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from datetime import timezone
from urllib.parse import urlsplit

from certdrop import foreign, spool
from certdrop.config import general, persist
from certdrop.config import site as configuration
from certdrop.events import LOGS, clean
from certdrop.trust import roots
from certdrop.trust.browsers import Browsers
from certdrop.walls import users
from certdrop.watcher import order
from certdrop.watcher.principal import USER

ROOT = 0
LATEST = 253402300799              # 9999-12-31, the last moment that RFC 3339 can say
OWN = 16 << 20                     # bytes of the watcher's own notes: thousands of sites may fail at once
WORDS = 2 << 20                    # bytes of what the issuer says of revocations: some thousands of them
SLACK = 120                        # seconds: what was noted further ahead than that was noted by another clock than today's
MANY = 10 ** 6                     # orders in a day, at most
TEXT = 300                         # characters of an error that somebody else wrote

_NUMBER = re.compile(r"[0-9]{4,9}")
_TARGET = re.compile(r"\.\./sites/([a-z0-9._-]+)/([0-9]{4,9})")
_HEX = re.compile(r"[0-9a-f]{64}")
_DAY = re.compile(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]")


@dataclass
class Certificate:
    """What a certificate itself says; moments are seconds since 1970."""

    not_before: int
    not_after: int
    sha256: str


@dataclass
class Failure:
    """Something that goes wrong, as its principal noted it."""

    what: str                                  # a refusal's reason, a failure's class, an installation's state
    number: int | None                         # the generation
    since: int | None
    tries: int
    next_try: int | None
    error: str
    at: int | None = None                      # the last time, where its principal says it


@dataclass
class Revocation:
    """A certificate that root wants revoked, and what the issuer says of it."""

    number: int                                # the generation
    reason: str
    since: int | None                          # when root asked for it
    done: int | None = None                    # when the CA said that it is revoked; the issuer's word
    failing: Failure | None = None

    @property
    def state(self) -> str:
        """In one word."""
        return "revoked" if self.done else "failing" if self.failing else "pending"


@dataclass
class Evidence:
    """All that is known of one site without asking the network."""

    name: str
    domains: list[str] = field(default_factory=list)
    probe: str = ""
    validation: str = ""                       # how its names are proven
    services: list[str] = field(default_factory=list)
    configured_at: int = 0                     # when the site's file was last written
    wrong: str = ""                            # why the configuration, or what is on disk, cannot be used
    damaged: str = ""                          # which file of root's is not as root wrote it
    live: int | None = None
    proven: int | None = None
    next: int | None = None
    wanted_now: bool = False                   # somebody asked for the next one
    newest: int | None = None                  # the highest complete generation that was not withdrawn
    placeholder: bool = False                  # the live one is
    was_served: bool = False                   # a certificate of this site, no placeholder, was seen served
    certificate: Certificate | None = None
    key: str = ""
    key_created: int | None = None
    next_key_created: int | None = None
    next_spki: str | None = None
    spki: str | None = None                    # the live key
    tlsa_since: int | None = None              # since when the issuer waits for the TLSA record of the next key,
    tlsa_lacks: str = ""                       # and why
    burnt: bool = False                        # the live key is compromised, says root
    refused: Failure | None = None
    install: Failure | None = None
    failing: Failure | None = None
    installed_at: int | None = None            # when root last brought a certificate to its place
    revocations: list[Revocation] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)         # other sites for the same names: RSA beside ECDSA
    renew_at: int | None = None                # the issuer's plan
    renew_why: str = ""
    window: tuple[int, int] | None = None      # in which the CA wants the live certificate renewed, as the issuer says
    astray: str = ""                           # the sockets of this site that show another certificate, seen now
    refused_by_browsers: str | None = None     # why, seen now; "" where they take it, None for a placeholder and where it cannot be seen
    for_trying: bool = False                   # the configured CA is one for trying things
    directories: list[str] = field(default_factory=list)    # of the CAs that may be asked, the first one first
    issued_by: str = ""                        # the directory of the CA that issued the live certificate, by the issuer's note
    of_ours: bool | None = None                # the live certificate is of a configured CA, by the issuer's note of where it had it
    foreign: bool = False                      # the live certificate is not of the configured CA
    disorder: list[str] = field(default_factory=list)       # live files, owners and modes that are not as they should be

    @property
    def kind(self) -> str:
        """The kind of the live key, "ecdsa" or "rsa"; else ""."""
        kind = self.key.partition("-")[0]
        return kind if kind in ("ecdsa", "rsa") else ""


@dataclass
class Run:
    """The last run of a principal: when (the stamp's mtime), and how it ended, where it said so."""

    at: int | None = None
    exit: int | None = None
    ahead: bool = False                        # by a clock that stood ahead of today's: then it is not known when
    stopped: str = ""                          # why its run did not come to its end, since then
    lost: str = ""                             # of the issuer: the account that the CA does not know any more
    asked: str = ""                            # of the keeper: why the run that the issuer asked for did not begin


@dataclass
class Past:
    """A generation that is kept, and is no placeholder: its number, and when its certificate begins and ends."""

    number: int
    not_before: int
    not_after: int


@dataclass
class Key:
    """A key that the next certificate, or one that has not ended, is for: its generation, the SHA-256 of its SubjectPublicKeyInfo."""

    number: int
    spki: str


@dataclass
class Orders:
    """What the issuer says of its orders: by day (orders, certificates, validations that failed), and what counts against the CA's limit."""

    days: list[tuple[str, int, int, int]] = field(default_factory=list)
    recent: int = 0                            # new orders in three hours
    limit: int = 0                             # 0: none is known
    at: int | None = None


@dataclass
class MailHealth:
    """What the watcher noted of itself: when it looked, and why its mail does not go out."""

    at: int | None = None
    failed: str = ""
    told: dict[str, int] = field(default_factory=dict)          # the problems that were mailed, and when first
    mailed: int = 0
    heartbeat: str = ""                        # why the heartbeat was not taken, in that run

    @property
    def mute(self) -> list[str]:
        """Why nobody may hear of what it saw."""
        return [*([f"mail fails: {self.failed}"] if self.failed else []), *([f"the heartbeat fails: {self.heartbeat}"] if self.heartbeat else [])]


class Reader:
    """Reads the state of all sites; opens each shared directory once."""

    def __init__(self) -> None:
        self.config = general.load_config()
        self.issuer, self.watch = _uid(spool.ISSUER), _uid(USER)
        self.burnt = _burnt()
        self.browsers = Browsers(self.config)
        self._others: dict[str, Browsers] = {}             # by the directory of another CA
        self._said: dict[str, object] | None = None          # what the issuer says of revocations

    def names(self) -> list[str]:
        """The configured sites, sorted. Raises configuration.ConfigError."""
        return configuration.site_names()

    def configured_at(self, name: str) -> int:
        """When a site's file was last written. Raises OSError."""
        return int(os.stat(f"{configuration.ETC}/sites.d/{name}.toml").st_mtime)

    def site(self, name: str) -> Evidence:
        """What is known of one site. Raises nothing: what cannot be read is said in `wrong`."""
        found = Evidence(name, directories=[self.config.directory_url])
        try:
            wanted = configuration.load_site(name, self.config)
            found.domains, found.probe, found.services, found.validation = wanted.domains, wanted.probe, wanted.services, wanted.validation
            found.directories = general.directories(wanted)
            found.configured_at = self.configured_at(name)
        except (configuration.ConfigError, OSError) as error:
            found.wrong = clean(error, TEXT)
        try:
            self._generations(found)
        except OSError as error:
            found.wrong = found.wrong or clean(f"{error.filename}: {error.strerror}", TEXT)
        notes = self._json("keeper", name + ".json", ROOT, found)
        if found.live is None and not found.damaged and os.path.lexists(f"{configuration.STATE}/live/{name}"):
            found.damaged = f"{configuration.STATE}/live/{name} is no link to a generation of this site"
        found.refused = _failure(notes.get("refused"), "reason")
        found.install = _failure(notes.get("install"), "state")
        found.installed_at = number(notes, "installed_at")
        self._ledger(found)
        self._trust(found)
        self._revocations(found, notes.get("revoke"))
        return found

    def last_run(self, principal: str) -> Run:
        """When `keeper` or `issuer` last ran, and what keeps it from its work."""
        found = self._last_run(principal)
        found.lost = self._lost_account() if principal == "issuer" else ""
        return found

    def _lost_account(self) -> str:
        """The URL of the account that the configured CA does not know any more, by the issuer's note; "" where there is none such."""
        noted = self._json("issuer", account_file(self.config.directory_url), self.issuer, None)
        return "" if text(noted, "account") or noted.get("agreed") is True else text(noted, "before")

    def in_records(self, site: Evidence) -> tuple[list[str], str]:
        """(the names by which a site's CA goes in records, our account's URL there; empty where not known), by the issuer's note."""
        noted = self._json("issuer", account_file((site.directories or [self.config.directory_url])[0]), self.issuer, None)
        return persist.noted_issuers(noted), text(noted, "account")

    def _last_run(self, principal: str) -> Run:
        """When `keeper` or `issuer` last ran: the time the stamp was written, not what it says."""
        owner = ROOT if principal == "keeper" else self.issuer
        stopped, asked = (_first_line(f"{configuration.STATE}/{principal}", entry, owner) for entry in ("stopped", "stopped-asked"))
        try:
            found = os.lstat(f"{configuration.STATE}/{principal}/last-run")
        except OSError:
            return Run(stopped=stopped[0], asked=asked[0])
        if found.st_uid != owner:
            return Run(stopped=stopped[0], asked=asked[0])
        said = self._json(principal, "last-run", owner, None)
        ahead = found.st_mtime > time.time() + SLACK
        return Run(None if ahead else int(found.st_mtime), number(said, "exit", 255), ahead,
                   stopped=stopped[0] if stopped[1] > found.st_mtime else "", asked=asked[0])

    def watcher(self) -> MailHealth:
        """What the watcher noted of itself."""
        noted = self._json("watcher", "state.json", self.watch, None, OWN)
        told = noted.get("told")
        known = {clean(key, 300): when for key in told if (when := number(told, key)) is not None} if isinstance(told, dict) else {}
        heartbeat = text(noted, "heartbeat", 200) if self.config.mail.get("heartbeat") else ""
        return MailHealth(number(noted, "ran"), text(noted, "failed", 200), known, number(noted, "mailed") or 0, heartbeat)

    def past(self, name: str) -> list[Past]:
        """The certificates of a site that are still on disk, oldest first."""
        place, found = f"{configuration.STATE}/sites/{name}", []
        with contextlib.suppress(OSError):
            for at in sorted(int(entry) for entry in os.listdir(place) if _NUMBER.fullmatch(entry)):
                said = self._json(f"sites/{name}/{at:04d}", "cert.json", ROOT, None)
                begin, end = number(said, "not_before"), number(said, "not_after")
                if begin and end and begin <= end and not os.path.exists(f"{place}/{at:04d}/placeholder"):
                    found.append(Past(at, begin, end))
        return found

    def keys(self, name: str) -> list[Key]:
        """The keys of a site whose certificates are ours: of all generations that have not ended, and of next; oldest first.

        No burnt one: a certificate for it that somebody asks for is not ours. Raises OSError and ValueError: a list that
        may lack what it has to hold, or hold what it must not, is none.
        """
        try:
            return self._keys(name, _burnt(strict=True))
        except spool.Refused as error:
            raise ValueError(f"a file of root's notes on {name} cannot be used: {error}") from error

    def _keys(self, name: str, burnt: set[str]) -> list[Key]:
        place, found = f"{configuration.STATE}/sites/{name}", []
        try:
            numbers = sorted(int(entry) for entry in os.listdir(place) if _NUMBER.fullmatch(entry))
        except FileNotFoundError:
            return []                          # configured, not made yet
        for at in numbers:
            here = f"{place}/{at:04d}"
            try:
                spki = as_object(_read(here, "request.json", ROOT)).get("spki_sha256")
                end = number(as_object(_read(here, "cert.json", ROOT)), "not_after") if os.path.exists(f"{here}/nginx.conf") else LATEST
            except FileNotFoundError:
                continue                       # removed, while we looked
            if not isinstance(spki, str) or not _HEX.fullmatch(spki):
                raise ValueError(f"{here}/request.json names no key")
            if spki not in burnt and (end or 0) > time.time() and not os.path.exists(f"{here}/placeholder"):
                found.append(Key(at, spki))
        return found

    def orders(self) -> Orders:
        """The issuer's tally of its orders."""
        said = self._json("issuer", "tally", self.issuer, None)
        days = said.get("days")
        rows = [(day, row) for day, row in sorted(days.items()) if _DAY.fullmatch(day) and isinstance(row, dict)] if isinstance(days, dict) else []
        counted = [(day, number(row, "orders", MANY) or 0, number(row, "issued", MANY) or 0, number(row, "failed", MANY) or 0) for day, row in rows[-90:]]
        return Orders(counted, number(said, "recent", MANY) or 0, number(said, "limit", MANY) or 0, number(said, "at"))

    def _generations(self, found: Evidence) -> None:
        place = f"{configuration.STATE}/sites/{found.name}"
        try:
            numbers = sorted(int(entry) for entry in os.listdir(place) if _NUMBER.fullmatch(entry))
        except FileNotFoundError:
            return                             # configured, not made yet
        for at in numbers:
            entries = set(os.listdir(f"{place}/{at:04d}")) if os.path.isdir(f"{place}/{at:04d}") else set()
            if "nginx.conf" not in entries:
                found.next = at if at == numbers[-1] else None
            elif "withdrawn" not in entries:
                found.newest = at
        found.live, found.proven = _linked("live", found), _linked("proven", found)
        if found.live is not None:
            here = f"{place}/{found.live:04d}"
            found.placeholder = os.path.exists(here + "/placeholder")
            self._live(found, here)
            found.disorder += order.of_site(found.name, found.live)
            found.damaged = found.damaged or clean(order.damage(found.name, found.live), TEXT)
        if found.proven is not None:
            found.was_served = not os.path.exists(f"{place}/{found.proven:04d}/placeholder")
        if found.next is not None:
            asked = self._json(f"sites/{found.name}/{found.next:04d}", "request.json", ROOT, found)
            found.next_spki = _hash(asked, "spki_sha256")
            found.next_key_created = number(asked, "key_created")
            found.wanted_now = os.path.exists(f"{place}/{found.next:04d}/now")

    def _live(self, found: Evidence, here: str) -> None:
        asked = self._json(here[len(configuration.STATE) + 1:], "request.json", ROOT, found)
        found.key, found.key_created = text(asked, "key", 20), number(asked, "key_created")
        found.spki = _hash(asked, "spki_sha256")
        found.burnt = text(asked, "spki_sha256", 64) in self.burnt
        domains = asked.get("domains")
        if not found.domains and isinstance(domains, list):
            found.domains = [clean(domain, 253) for domain in domains[:configuration.MAX_DOMAINS]]
        try:
            found.certificate = parse(_read(here, "cert.pem", ROOT))
        except (OSError, spool.Refused, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            found.damaged = f"{here}/cert.pem cannot be read: {clean(why, 100)}"

    def _trust(self, found: Evidence) -> None:
        """Whether browsers take the live chain, looked at now; one that has ended, or does not begin yet, has a word of its own."""
        browsers = self._browsers_of(found)
        live, found.for_trying = found.certificate, browsers.for_trying
        if live is None or found.placeholder or not live.not_before <= time.time() < live.not_after:
            return
        try:
            chain = _read(f"{configuration.STATE}/sites/{found.name}/{found.live:04d}", "fullchain.pem", ROOT)
            found.refused_by_browsers = browsers.refusal(chain)
            found.foreign = browsers.is_foreign(chain, found.of_ours)
        except (OSError, spool.Refused, ValueError) as error:
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            found.wrong = found.wrong or clean(f"whether browsers take the live certificate cannot be seen: {why}", TEXT)

    def loadable(self) -> list[Browsers]:
        """All that look at chains, as far as they are known."""
        return [self.browsers, *self._others.values()]

    def _browsers_of(self, found: Evidence) -> Browsers:
        """What browsers think, by the roots of the CA that issued the live certificate, or else of the one that is asked first."""
        return self.browsers_by(found.issued_by or (found.directories or [self.config.directory_url])[0])

    def browsers_by(self, directory: str) -> Browsers:
        """What browsers think, by the roots of the CA of this directory."""
        if directory == self.config.directory_url:
            return self.browsers
        if directory not in self._others:
            self._others[directory] = Browsers(self.config.asking(directory))
        return self._others[directory]

    def _ledger(self, found: Evidence) -> None:
        ledger = self._json("issuer", found.name + ".json", self.issuer, found)
        if found.certificate:
            found.of_ours = roots.is_of(found.directories, text(ledger, "answered_by"), text(ledger, "answered_with"), found.certificate.sha256)
            found.issued_by = text(ledger, "answered_by") if found.of_ours else ""
        count = number(ledger, "count") or 0
        if count and (text(ledger, "class") or text(ledger, "last_error")):
            found.failing = Failure(text(ledger, "class", 40), None, number(ledger, "since"), count, number(ledger, "next_try"),
                                    text(ledger, "last_error"), number(ledger, "failed_at"))
        found.renew_at = number(ledger, "renew_at")
        found.renew_why = text(ledger, "renew_why", 60)
        found.tlsa_since, found.tlsa_lacks = number(ledger, "tlsa_since") or None, text(ledger, "tlsa_lacks")
        begin, end = number(ledger, "window_start"), number(ledger, "window_end")
        if found.certificate and begin and end and begin <= end and text(ledger, "window_of", 64) == found.certificate.sha256:
            found.window = begin, end

    def _revocations(self, found: Evidence, wanted: object) -> None:
        """What root wants revoked of this site, with the issuer's word."""
        wanted = wanted if isinstance(wanted, dict) else {}
        if wanted and self._said is None:      # one file for all sites, read once
            self._said = self._json("issuer", "revocations.json", self.issuer, found, WORDS)
        for key in sorted(wanted):
            note = wanted[key]
            if not _NUMBER.fullmatch(key) or not isinstance(note, dict):
                continue
            word = (self._said or {}).get(spool.entry(found.name, int(key), "revoke"))
            word = word if isinstance(word, dict) else {}
            failed = Failure(text(word, "class", 40), int(key), number(word, "since"), number(word, "count") or 1, number(word, "next_try"),
                             text(word, "last_error")) if number(word, "count") else None
            found.revocations.append(Revocation(int(key), text(note, "reason", 30), number(note, "since"), number(word, "done") or None, failed))

    def _json(self, folder: str, name: str, owner: int, found: Evidence | None, limit: int = spool.MAX_REPLY) -> dict[str, object]:
        try:
            return as_object(_read(f"{configuration.STATE}/{folder}", name, owner, limit))
        except FileNotFoundError:
            return {}
        except (OSError, spool.Refused, ValueError) as error:
            if found is not None:
                why = error.strerror if isinstance(error, OSError) else error
                said = f"{configuration.STATE}/{folder}/{name} cannot be used: {clean(why, 60)}"
                found.disorder.append(said)
                found.damaged = found.damaged or (said if owner == ROOT else "")
            return {}


def account_file(url: str) -> str:
    """The name of the issuer's note of the account at the CA with this directory."""
    return f"account@{urlsplit(url).hostname or 'ca'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.json"


def parse(pem: bytes) -> Certificate:
    """The dates and the fingerprint of a certificate (RFC 5280 section 4.1.2.5). Raises ValueError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    loaded = x509.load_pem_x509_certificate(pem)
    begin, end = (getattr(loaded, f"not_valid_{which}_utc", None) or getattr(loaded, f"not_valid_{which}").replace(tzinfo=timezone.utc)
                  for which in ("before", "after"))
    return Certificate(int(begin.timestamp()), int(end.timestamp()), loaded.fingerprint(hashes.SHA256()).hex())


def load_parser() -> None:
    """Load now what parse() needs: a process that shuts itself in can not later."""
    from cryptography import x509
    from cryptography.hazmat.backends import default_backend
    default_backend()
    try:
        x509.load_pem_x509_certificate(b"")
    except ValueError:
        pass


def read_only() -> list[str]:
    """Those of certdrop's directories that are on a file system which takes no writes, as the kernel remounts ext4 after an error. By the file
    system's own options, not the mount's: the units of systemd have mounts read-only for themselves."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
            mounts = {words[4]: words[-1].split(",") for words in map(str.split, stream)}       # of those at one point, the last is seen
    except OSError:
        return []
    found = []
    for path in (configuration.STATE, spool.SPOOL, LOGS):
        at = max((point for point in mounts if f"{path}/".startswith(f"{point.rstrip('/')}/")), key=len, default="")
        found += [path] if "ro" in mounts.get(at, ()) else []
    return found


def as_object(data: bytes) -> dict[str, object]:
    """The JSON object in data. Raises ValueError, also where it is nested without end."""
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def number(found: dict[str, object], key: str, most: int = LATEST) -> int | None:
    """A whole number from 0 to `most`; None for anything else."""
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        return None
    return int(value)


def text(found: dict[str, object], key: str, limit: int = TEXT) -> str:
    """A text, cleaned and bounded; empty for anything else."""
    value = found.get(key)
    return clean(value, limit) if isinstance(value, str) else ""


def _hash(found: dict[str, object], key: str) -> str | None:
    """A SHA-256 in hexadecimal; None for anything else."""
    value = found.get(key)
    return value if isinstance(value, str) and _HEX.fullmatch(value) else None


def _failure(note: object, what: str) -> Failure | None:
    if not isinstance(note, dict) or not note:
        return None
    return Failure(text(note, what, 40), number(note, "number"), number(note, "since"), number(note, "tries") or 1,
                   number(note, "next_try"), text(note, "error"))


def _first_line(folder: str, name: str, owner: int) -> tuple[str, float]:
    """What a principal left there, cleaned, and when; nothing where it left nothing that can be used."""
    try:
        return clean(_read(folder, name, owner).decode("utf-8", "replace").partition("\n")[0], TEXT), os.lstat(f"{folder}/{name}").st_mtime
    except (OSError, spool.Refused):
        return "", 0.0


def _burnt(strict: bool = False) -> set[str]:
    """The compromised keys, as root lists them. With `strict`, raises OSError and spool.Refused where they cannot be known."""
    try:
        return set(_read(f"{configuration.STATE}/keeper", "burnt", ROOT, OWN).decode("ascii", "replace").split())
    except FileNotFoundError:
        return set()
    except (OSError, spool.Refused):
        if strict:
            raise
        return set()


def _uid(user: str) -> int:
    try:
        return users.user_ids(user)[0]
    except KeyError:
        return -1                              # nobody's: whatever lies there is refused


def _linked(link: str, found: Evidence) -> int | None:
    path = f"{configuration.STATE}/{link}/{found.name}"
    try:
        target = _TARGET.fullmatch(os.readlink(path))
    except FileNotFoundError:
        return None
    except OSError:
        target = None
    if target is None or target[1] != found.name:
        found.disorder.append(f"{path} is no link to a generation of this site")
        return None
    return int(target[2])


def _read(folder: str, name: str, owner: int, limit: int = spool.MAX_REPLY) -> bytes:
    fd = spool.open_directory(folder)
    try:
        return foreign.read(fd, name, owner, limit)
    finally:
        os.close(fd)

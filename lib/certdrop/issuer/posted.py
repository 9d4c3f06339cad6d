"""What root posted, and which certificate a site has: read from names, links and root's own small files.

Runs as: _certdrop. Trusts: root's directories; of its own, nothing but names. Reads: requests/ and replies/ of the spool; sites/, live/ and
keeper/ below /var/lib/certdrop. Writes: nothing.
"""

from __future__ import annotations

import os
import time

from certdrop import spool
from certdrop.config import site
from certdrop.issuer import due

HOURLY = 3600                      # seconds between two installations of a site that the keeper does for the issuer


class Request:
    """A request of root's in the spool: the newest of its site."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.now = False                       # root wants it now
        self.answered = False                  # a reply lies in the spool

    @property
    def entry(self) -> str:
        """Its own file name."""
        return spool.entry(self.name, self.number, "csr")

    @property
    def reply(self) -> str:
        """The file name of its reply."""
        return spool.entry(self.name, self.number, "pem")

    def csr(self) -> bytes:
        """The request itself, PEM."""
        with open(f"{spool.requests()}/{spool.entry(self.name, self.number, 'csr')}", "rb") as stream:
            return stream.read(spool.MAX_REPLY)


def requests() -> tuple[list[Request], set[str], list[str]]:
    """(the newest request of each site, sorted by name; the replies whose request is gone; what is to be revoked). Raises OSError."""
    found: dict[str, Request] = {}
    wanted: set[tuple[str, int]] = set()
    posted: set[str] = set()
    revoked: list[str] = []
    for entry in os.listdir(spool.requests()):
        known = spool.parse_entry(entry)
        if known is None:
            continue
        name, number, kind = known
        if kind == "csr":
            posted.add(f"{name}@{number:04d}.pem")
            if name not in found or found[name].number < number:
                found[name] = Request(name, number)
        elif kind == "now":
            wanted.add((name, number))
        elif kind == "revoke":
            revoked.append(entry)
    stale = set()
    for entry in os.listdir(spool.replies()):
        known = spool.parse_entry(entry)
        if entry not in posted:
            stale.add(entry)
        elif known and found[known[0]].number == known[1]:
            found[known[0]].answered = True
    for name, number in wanted:
        if name in found and found[name].number == number:
            found[name].now = True
    return [found[name] for name in sorted(found)], stale, revoked


class Standing:
    """Where a site stands, by what is on disk."""

    def __init__(self, request: Request) -> None:
        self.certificate: due.Certificate | None = None    # None for none, and for a placeholder
        self.place = ""                                    # the directory of its generation
        self.refusal = ""                                  # why root refused the reply that lies there
        self.refused_reply = ""                            # its SHA-256
        self.look_at = due.NEVER                           # when root should look at the spool
        parent = f"{site.STATE}/sites/{request.name}"
        newest = _newest(parent, request.number)
        notes = _json(f"{site.STATE}/keeper/{request.name}.json")
        if newest is not None:
            found = _json(f"{parent}/{newest:04d}/cert.json")
            dates = [found.get("not_before"), found.get("not_after")]
            if not os.path.exists(f"{parent}/{newest:04d}/placeholder") and all(_is_moment(date) for date in dates):
                self.certificate = due.Certificate(str(found.get("sha256")), float(str(dates[0])), float(str(dates[1])))
                self.place = f"{parent}/{newest:04d}"
            if _live(request.name) not in (newest, None):
                put_off = _table(notes, "install")
                self.look_at = _moment(put_off.get("next_try"), spool.INSTALL) if put_off.get("number") == newest else 0.0
        if request.answered:
            self.refusal, self.refused_reply = _refusal(request, notes)
            if not self.refusal:
                installed = 0.0 if request.now else _moment(notes.get("installed_at"), spool.HAPPENED)
                pause = min(HOURLY, self.certificate.lifetime / 8 + 1) if self.certificate else HOURLY
                self.look_at = min(self.look_at, installed + pause if installed else 0.0)


def _moment(found: object, kind: tuple[float, float]) -> float:
    """A moment of root's notes; 0 where a clock that was wrong noted it, and the keeper does not heed it either."""
    return float(str(found)) if spool.is_credible(found, kind, time.time()) else 0.0


def identity(request: Request) -> str:
    """A text that changes whenever what Standing and the ledger say may have changed: from names, links and times of files alone."""
    parts = [str(request.number), "n" if request.now else "-", "a" if request.answered else "-"]
    parts.append(stamp(f"{site.STATE}/sites/{request.name}/{request.number:04d}"))
    try:
        parts.append(os.readlink(f"{site.STATE}/live/{request.name}").rpartition("/")[2])
    except OSError:
        parts.append("-")
    parts.append(stamp(f"{site.STATE}/issuer/{request.name}.json"))
    if request.answered or request.now:
        parts.append(stamp(f"{spool.replies()}/{request.reply}") + stamp(f"{site.STATE}/keeper/{request.name}.json"))
    return "/".join(parts)


def stamp(path: str) -> str:
    """A text that changes when a file does: inode and time."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return "-"
    return f"{found.st_ino:x}.{found.st_mtime_ns:x}"


def _newest(parent: str, below: int) -> int | None:
    """The newest generation below a number that has all its files and was not withdrawn."""
    try:
        entries = os.listdir(parent)
    except OSError:
        return None
    for number in sorted((int(entry) for entry in entries if entry.isdecimal() and int(entry) < below), reverse=True):
        path = f"{parent}/{number:04d}"
        if os.path.exists(path + "/nginx.conf") and not os.path.exists(path + "/withdrawn"):
            return number
    return None


def _live(name: str) -> int | None:
    try:
        return int(os.readlink(f"{site.STATE}/live/{name}").rpartition("/")[2])
    except (OSError, ValueError):
        return None


def _refusal(request: Request, notes: dict[str, object]) -> tuple[str, str]:
    """(why root refused this very reply, the reply's SHA-256); empty where it did not."""
    refused = _table(notes, "refused")
    if refused.get("number") != request.number:
        return "", ""
    import hashlib
    try:
        with open(f"{spool.replies()}/{request.reply}", "rb") as stream:
            found = hashlib.sha256(stream.read(spool.MAX_REPLY + 1)).hexdigest()
    except OSError:
        return "", ""
    return (str(refused.get("reason") or "unknown"), found) if found == refused.get("reply_sha256") else ("", "")


def _json(path: str) -> dict[str, object]:
    import json
    try:
        with open(path, encoding="ascii") as stream:
            found = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_moment(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 40


def _table(found: dict[str, object], key: str) -> dict[str, object]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}

"""Root's notes on a site: what was refused, what could not be installed, which leaves it had. World-readable, for issuer and status.

Notes time things and explain them; where a site *stands* is looked up on disk, never here. Runs as: root. Trusts: its own
files. Reads and writes: keeper/NAME.json, keeper/refused/, keeper/unfinished and keeper/last-run below /var/lib/certdrop.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import integrity

BACK_OFF = (60, 600, 3000)         # seconds to the next try of an installation, and of a verdict that time can heal
REFUSED_KEPT = 20                  # refused replies kept for the administrator


class Notes:
    """The notes on one site: `refused`, `install`, `spent` and `revoke`, as certdrop-spool(5) describes them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.damage = ""                       # why they cannot be read: notes may be lost, a site's standing not
        found: dict[str, object] = {}
        try:
            found = integrity.table(f"{site.STATE}/keeper/{name}.json")
        except FileNotFoundError:
            pass
        except integrity.Damaged as damage:
            self.damage = str(damage)
        self._before = "" if self.damage else json.dumps(found, sort_keys=True)
        self.refused = _failure(found, "refused", "reason")
        self.install = _failure(found, "install", "state")
        self.spent = {key: int(str(value)) for key, value in _table(found, "spent").items() if _is_moment(value)}
        self.revoke = {key: value for key, value in _table(found, "revoke").items() if isinstance(value, dict) and _is_moment(value.get("not_after"))}
        at = found.get("installed_at")
        self.installed_at = int(str(at)) if _is_moment(at) and spool.is_credible(at, spool.HAPPENED, time.time()) else 0

    def save(self) -> None:
        """Write the notes, where they changed."""
        now = time.time()
        self.spent = {key: end for key, end in self.spent.items() if end > now}
        self.revoke = {key: value for key, value in self.revoke.items() if int(str(value.get("not_after", 0))) > now}
        text = json.dumps({"refused": self.refused, "install": self.install, "spent": self.spent, "revoke": self.revoke,
                           "installed_at": self.installed_at}, sort_keys=True)
        if text != self._before:
            put(f"{self.name}.json", text.encode())
            self._before = text

    def is_refused(self, number: int, reply: bytes, expected: str) -> bool:
        """Whether this reply was refused under these expectations, and time can not have healed it yet."""
        known = self.refused
        same = (known.get("number"), known.get("reply_sha256"), known.get("expected_sha256")) == (number, _sha256(reply), _sha256(expected.encode()))
        return same and not _is_ahead(known) and (known.get("reason") not in spool.TRANSIENT or _is_put_off(known))

    def waits(self, number: int) -> bool:
        """Whether a reply for this number was refused just now: another is not looked at at once, however often the issuer asks."""
        return self.refused.get("number") == number and _is_put_off(self.refused)

    def refuse(self, number: int, reply: bytes, expected: str, reason: str, most: int = BACK_OFF[-1]) -> None:
        """Remember a refusal by reply and expectations, for `most` seconds, and keep the reply for the administrator."""
        now = int(time.time())
        again = self.refused.get("number") == number and self.refused.get("reason") == reason and not _is_ahead(self.refused)
        tries = int(str(self.refused.get("tries", 0))) + 1 if self.refused.get("number") == number else 1
        self.refused = {"number": number, "reason": reason, "reply_sha256": _sha256(reply), "expected_sha256": _sha256(expected.encode()),
                        "since": self.refused["since"] if again else now, "tries": tries, "next_try": now + min(most, _pause(tries))}
        keep_refused(self.name, number, reason, reply)

    def put_off(self, number: int, state: str, error: str, most: int = BACK_OFF[-1]) -> None:
        """Remember that an installation did not come to its end; the next try is in a while, at most so many seconds."""
        now = int(time.time())
        again = self.install.get("number") == number and self.install.get("state") == state and not _is_ahead(self.install)
        tries = int(str(self.install.get("tries", 0))) + 1 if again else 1
        self.install = {"number": number, "state": state, "error": events.clean(error), "since": self.install["since"] if again else now,
                        "tries": tries, "next_try": now + min(most, _pause(tries))}

    def is_put_off(self, number: int) -> bool:
        """Whether the installation of this generation waits for its next try."""
        return self.install.get("number") == number and _is_put_off(self.install)


def put(entry: str, data: bytes, mode: int = 0o644, below: str = "keeper") -> None:
    """Write one of root's state files, whole or not at all."""
    integrity.fill(f"{site.STATE}/{below}", {entry: data}, mode)


def unfinished() -> set[str]:
    """The sites that something was begun with, and did not come to its end: a hint for runs that do not look at all sites, and no more."""
    text = b""
    with contextlib.suppress(OSError):         # it is not there, or damaged
        text = integrity.read(f"{site.STATE}/keeper/unfinished", spool.MAX_LISTED)
    return set(filter(spool.is_site_name, text.decode("ascii", "replace").split("\n")))


def touch(entry: str) -> None:
    """Note that it is now, by a file's time: nothing is lost with one that the disk did not get, so nobody waits for the disk."""
    try:
        os.utime(f"{site.STATE}/keeper/{entry}", follow_symlinks=False)
    except FileNotFoundError:
        put(entry, b"")


def keep_refused(name: str, number: int, reason: str, reply: bytes) -> None:
    """Keep a refused reply below keeper/refused, which only root can read; the newest REFUSED_KEPT of all sites."""
    put(f"{name}@{number:04d}.{reason}", reply, 0o600, "keeper/refused")
    parent = f"{site.STATE}/keeper/refused"
    kept = sorted((os.stat(f"{parent}/{entry}").st_mtime, entry) for entry in os.listdir(parent))
    for _, entry in kept[:-REFUSED_KEPT]:
        os.unlink(f"{parent}/{entry}")


def _failure(found: dict[str, object], key: str, what: str) -> dict[str, object]:
    """What went wrong, where all that is reckoned with is of its type; else nothing did."""
    value = _table(found, key)
    whole = isinstance(value.get(what), str) and all(_is_moment(value.get(word)) for word in ("number", "since", "tries", "next_try"))
    return value if whole else {}


def _is_moment(value: object) -> bool:
    """Whether it is a moment, or another number from 0 on, that can be reckoned with."""
    return type(value) is int and 0 <= value < 1 << 40


def _table(found: dict[str, object], key: str) -> dict[str, object]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _is_put_off(failure: dict[str, object]) -> bool:
    """Whether its next try is still to come. One that is further away than any pause was noted by a clock that stood ahead of today's."""
    again, now = failure.get("next_try"), time.time()
    return spool.is_credible(again, spool.INSTALL, now) and now < float(str(again))


def _is_ahead(failure: dict[str, object]) -> bool:
    """Whether a clock noted it that stood ahead of today's: what that clock had a part in is found out again."""
    return not spool.is_credible(failure.get("since", 0), spool.HAPPENED, time.time())


def _pause(tries: int) -> int:
    return BACK_OFF[min(tries, len(BACK_OFF)) - 1]


def _sha256(data: bytes) -> str:
    import hashlib
    return hashlib.sha256(data).hexdigest()

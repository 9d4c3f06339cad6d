"""What the issuer remembers of a site: failures and the next try, the renewal moment, the last orders. Survives crashes; may be lost without harm.

Runs as: _certdrop. Trusts: its own directory. Reads and writes: /var/lib/certdrop/issuer/NAME.json, world-readable for status and watcher.
"""

from __future__ import annotations

import json
import os

from certdrop import events, site, spool
from certdrop.issuer import due
from certdrop.issuer.trouble import Trouble

_NUMBERS = ("count", "since", "next_try", "renew_at", "poll_at", "issued_at")
_TEXTS = ("class", "last_error", "window_of", "window_start", "window_end", "why")


class Ledger:
    """One site's entry."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0                         # failures in a row
        self.since = 0                         # of the first of them; all times in seconds since 1970
        self.next_try = 0
        self.renew_at = 0                      # the moment chosen in the CA's window
        self.poll_at = 0                       # when to look at the window again
        self.issued_at = 0
        self.kind = ""                         # class of the last failure
        self.last_error = ""
        self.window_of = ""                    # the certificate (SHA-256) that renew_at is for
        self.window_start = self.window_end = self.why = ""
        found = _load(name)
        for key in _NUMBERS:
            value = found.get(key)
            if isinstance(value, (int, float)) and 0 <= value < 1 << 40:
                setattr(self, key, int(value))
        for key in _TEXTS:
            value = found.get(key)
            if isinstance(value, str):
                setattr(self, "kind" if key == "class" else key, value)

    def renew_at_for(self, certificate: due.Certificate | None) -> int:
        """The moment chosen for this very certificate; 0 for none."""
        return self.renew_at if certificate and certificate.sha256 == self.window_of else 0

    def failed(self, trouble: Trouble, now: float) -> None:
        """Note a failure and the next try."""
        self.count += 1
        self.since = self.since if self.count > 1 else int(now)
        self.kind, self.last_error = trouble.kind, events.clean(trouble.text, 1000)
        self.next_try = int(due.next_try(self.count, trouble.retry_after, now))

    def issued(self, now: float) -> None:
        """Note a success: nothing failed since."""
        self.count = self.since = self.next_try = 0
        self.kind = self.last_error = ""
        self.issued_at = int(now)

    def save(self) -> None:
        """Write the entry."""
        found: dict[str, object] = {key: getattr(self, key) for key in _NUMBERS}
        found.update({key: getattr(self, "kind" if key == "class" else key) for key in _TEXTS})
        put(f"{self.name}.json", json.dumps(found).encode())


def put(entry: str, data: bytes) -> None:
    """Write a file of the ledger's directory, whole or not at all."""
    fd = spool.open_directory(site.STATE + "/issuer")
    try:
        spool.write(fd, entry, data, 0o644)
    finally:
        os.close(fd)


def _load(name: str) -> dict[str, object]:
    try:
        with open(f"{site.STATE}/issuer/{name}.json", encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

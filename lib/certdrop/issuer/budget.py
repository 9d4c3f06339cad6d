"""The local budget: what a CA allows is not asked for once more than that, so that trying can not use up what a renewal will need.

A journal of what was done, one text line each, appended and now and then shortened; a line that a crash cut is passed over.
Runs as: _certdrop. Trusts: its own directory. Reads and writes: /var/lib/certdrop/issuer/budget; and tally, the same by day, for who looks on.
Source: letsencrypt.org/docs/rate-limits, staging-environment (2026).
"""

from __future__ import annotations

import hashlib
import json
import threading

from certdrop import spool
from certdrop.config import general, site
from certdrop.events import stamp
from certdrop.issuer import clock, notes

HOUR, DAY = 3600.0, 86400.0
FAILED, ISSUED, ORDERED = "failed", "issued", "ordered"
BEGUN = "begun"                    # an order of a site: where neither a failure nor a reply is known after it, it was cut off
LIMITS = {                         # [limits] of certdrop.toml: what is counted, and over how many seconds
    "failed_per_name_and_hour": (FAILED, HOUR),
    "issued_per_names_and_week": (ISSUED, 7 * DAY),
    "orders_per_three_hours": (ORDERED, 3 * HOUR),
}
KNOWN = {                          # the CAs whose limits we know; others only have those that are configured
    "letsencrypt": {"failed_per_name_and_hour": 5, "issued_per_names_and_week": 5, "orders_per_three_hours": 300},
    "letsencrypt-staging": {"failed_per_name_and_hour": 200, "issued_per_names_and_week": 30000, "orders_per_three_hours": 1500},
}
TALLIED = {BEGUN: "orders", ORDERED: "counted", ISSUED: "issued", FAILED: "failed"}
DAYS = 90                          # of the tally
LONGEST = 256 * 1024               # bytes of the journal before it is shortened


def set_of(names: list[str]) -> str:
    """A short key for an exact set of names."""
    return hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()[:16]


class Budget:
    """What was done at one CA, and what may still be done. For several threads."""

    def __init__(self, config: general.Config, now: float) -> None:
        url = config.directory_url
        known: dict[str, int] = next((limits for name, limits in KNOWN.items() if site.DIRECTORIES[name] == url), {})
        self.limits: dict[str, int] = {**known, **{key: int(str(value)) for key, value in config.limits.items()}}
        self.is_first = config.whole is None or config.whole.directory_url == url     # the limit that is told is that of the CA configured for all
        self.ca = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.done: dict[tuple[str, str], list[float]] = {}
        self.tally: dict[str, int] = {}
        self.lock = threading.Lock()
        text = notes.read("budget").decode("ascii", "replace")
        kept = self._learn(text, now)
        if len(text) > LONGEST or len(kept) < text.count("\n") // 2 or (text and text[-1] != "\n"):
            self._shorten(kept)

    def refusal(self, names: list[str], replaces: bool, now: float) -> tuple[str, float]:
        """(why this order would go beyond the budget, when it would not), or ("", 0). A renewal that `replaces` is exempt but for failures."""
        checks = [("failed_per_name_and_hour", name, f"validations of {name} failed in the last hour") for name in names]
        if not replaces:
            checks.append(("issued_per_names_and_week", set_of(names), "certificates for just these names were issued in the last 7 days"))
            checks.append(("orders_per_three_hours", "", "orders were placed in the last 3 hours"))
        for limit, key, words in checks:
            most, (kind, span) = self.limits.get(limit, 0), LIMITS[limit]
            with self.lock:
                times = sorted(moment for moment in self.done.get((kind, key), []) if now - span < moment <= now)
            if most and len(times) >= most:
                until = times[-most] + span
                return (f"{len(times)} {words}, and the CA allows {most}; not before {stamp(until)}; "
                        f"{limit} in [limits] of {site.ETC}/certdrop.toml overrides"), until
        return "", 0.0

    def since(self, kind: str, key: str, moment: float, now: float) -> list[float]:
        """When this was done after a moment."""
        with self.lock:
            return [at for at in self.done.get((kind, key), []) if moment < at <= now]

    def note(self, kind: str, key: str, now: float) -> None:
        """Write down that this was done. A full disk fails no run."""
        with self.lock:
            self.done.setdefault((kind, key), []).append(now)
            self.tally[TALLIED[kind]] = self.tally.get(TALLIED[kind], 0) + 1
            try:
                notes.append("budget", f"{int(now)} {self.ca} {kind} {key}\n".encode("ascii", "backslashreplace"))
            except OSError:
                pass

    def save_tally(self, now: float) -> None:
        """Add what this run did to its day, and say how much of the CA's limit of new orders is used. A full disk fails no run."""
        if not self.tally:
            return
        try:
            told = notes.table("tally")
            found = told.get("days")
            days = {day: {key: notes.number(row, key) for key in TALLIED.values()} for day, row in found.items() if isinstance(row, dict)} \
                if isinstance(found, dict) else {}
            today = days.setdefault(stamp(now)[:10], dict.fromkeys(TALLIED.values(), 0))
            for key, count in self.tally.items():
                today[key] += count
            first = stamp(now - (DAYS - 1) * DAY)[:10]
            days = {day: row for day, row in sorted(days.items()) if first <= day <= stamp(now)[:10]}
            recent = self.since(ORDERED, "", now - 3 * HOUR, now)
            said = {"days": days, "limit": self.limits.get("orders_per_three_hours", 0), "recent": len(recent), "at": int(now)}
            if not self.is_first:
                said.update({key: notes.number(told, key) for key in ("limit", "recent", "at")})
            notes.put("tally", json.dumps(said).encode("ascii"))
            self.tally = {}
        except OSError:
            pass

    def _learn(self, text: str, now: float) -> list[str]:
        """Take in a journal; the lines that still count."""
        kept: list[str] = []
        for line in text.splitlines(keepends=True):
            parts = line.rstrip("\n").split(" ")
            if len(parts) != 4 or not parts[0].isdecimal() or not line.endswith("\n") or not spool.is_credible(float(parts[0]), clock.SPENT, now):
                continue
            kept.append(line)
            if parts[1] == self.ca:
                self.done.setdefault((parts[2], parts[3]), []).append(float(parts[0]))
        return kept

    def _shorten(self, kept: list[str]) -> None:
        try:
            notes.put("budget", "".join(kept).encode("ascii", "replace"))
        except OSError:
            pass

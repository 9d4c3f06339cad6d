"""What the issuer remembers of a site: failures and the next try, the CA's renewal window, the last reply. Survives crashes; may be lost without harm.

Runs as: _certdrop. Trusts: its own directory, but no value in it beyond its type and bounds. Reads and writes:
/var/lib/certdrop/issuer/NAME.json, world-readable for status and watcher.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from certdrop import events
from certdrop.issuer import choice, due, notes
from certdrop.issuer.failure import LOCAL, NOT_PUBLISHED, OWN_BUDGET, PROXY, REFUSED, UNREACHABLE, Failure

_NUMBERS = ("count", "own", "cut_off", "since", "failed_at", "next_try", "retry_after", "issued_at", "hurries",
            "away_since", "away_at", "away_count",
            "window_start", "window_end", "poll_at", "polls_failed", "renew_at", "tlsa_seen", "tlsa_ttl", "tlsa_since")
_TEXTS = ("class", "last_error", "window_of", "window_url", "renew_why", "answered_by", "answered_with", "answers", "asked", "away_of", "waits",
          "refused_reply", "unreplaced", "tlsa_of", "renewal_id", "renewal_id_of", "tlsa_lacks")
LONGEST = 2000                     # characters of a text
ANSWERS = 6                        # of the last replies, that are known by whom they came from


class Ledger(due.Record):
    """One site's entry."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.kind = ""                         # class of the last failure
        self.last_error = ""
        self.window_url = ""                   # the CA's explanation of its window
        self.renew_at = 0                      # for those who read along: when the next order is to be, and why
        self.renew_why = ""
        self.answered_by = ""                  # the CA's directory that the last reply came from
        self.answered_with = ""                # the leaf's SHA-256
        self.answers = ""                      # the same of the last few: SHA256=URL, with spaces between
        self.refused_reply = ""                # the SHA-256 of the last reply that root refused
        self.unreplaced = ""                   # the certificate (SHA-256) that the CA does not take an order as a replacement of
        self.renewal_id = ""                   # the unique identifier by which the CA is asked for the renewal window of
        self.renewal_id_of = ""                # this certificate (SHA-256)
        self.tlsa_of = ""                      # the next key, whose TLSA record is waited for (tlsa.py)
        self.tlsa_since = 0                    # since when an order waits; 0: none does
        self.tlsa_seen = 0                     # since when the record was seen wherever it has to be
        self.tlsa_ttl = 0                      # its TTL, in seconds
        self.tlsa_lacks = ""                   # why the order waits, in words
        found = notes.table(f"{name}.json")
        for key in _NUMBERS:
            setattr(self, key, notes.number(found, key))
        for key in _TEXTS:
            value = found.get(key)
            if isinstance(value, str):
                setattr(self, "kind" if key == "class" else key, events.clean(value, LONGEST))
        self._before = self._text()

    def failed(self, failure: Failure, certificate: due.Certificate | None, now: float, placed: bool = False, asked: str = "",
               directories: Sequence[str] = ()) -> None:
        """Note a failure and the next try. `placed`: the CA had taken an order, or was about to. `asked` is that CA's directory, where one was asked, of the
        site's `directories`: a failure of one to fall back on puts off no try at the first."""
        first = directories[0] if directories else asked
        if asked:
            choice.note(self, asked, first, _is_away(failure), now)
        if failure.kind == LOCAL or failure.problem == NOT_PUBLISHED:
            self.note_own_failure(placed, now, random.random())
        else:
            left = certificate.not_after - now if certificate else None
            many, second = len(directories) > 1, asked != first
            if second:
                choice.leave_alone(self, asked, max(failure.retry_after, 0.0 if failure.kind == UNREACHABLE else choice.pause(left)), now)
            elif many and failure.retry_after:
                choice.leave_alone(self, asked, failure.retry_after, now)
            self.note_failure(0.0 if many else failure.retry_after, left if failure.kind == UNREACHABLE or second else None, now, random.random())
        self.kind, self.last_error = failure.kind, events.clean(failure.text, LONGEST)

    def refused(self, reason: str, reply_sha256: str, certificate: due.Certificate | None, now: float, directories: Sequence[str] = ()) -> None:
        """Note that root refused a reply: once for each."""
        if self.refused_reply != reply_sha256:
            self.refused_reply = reply_sha256
            asked = self.answered_by if self.answered_by in directories else ""
            failure = Failure(REFUSED, f"root refused the reply: {reason}; certdrop-spool(5) explains it")
            self.failed(failure, certificate, now, asked=asked, directories=directories if asked else ())

    def issued(self, directory: str, leaf_sha256: str, due_by_time: due.Certificate | None, now: float, first: str = "") -> None:
        """Note a reply. Failures are forgotten, but for refused replies: whether this one is better, only root knows. That the `first` CA is down is
        forgotten when it issues, or when root took another's."""
        self.answered_by, self.answered_with = directory, leaf_sha256
        known = [f"{leaf_sha256}={directory}", *self.answers.split()][:ANSWERS]
        while len(" ".join(known)) > LONGEST:
            known.pop()
        self.answers = " ".join(known)
        if directory == first:
            choice.forget(self)
        if self.refused_reply:
            self.issued_at = int(now)
        else:
            self.note_success(now, due_by_time)
            self.kind = self.last_error = ""

    def issuer_of(self, sha256: str) -> str:
        """The directory of the CA that a certificate of this site came from; "" where nobody noted it."""
        known = dict(one.partition("=")[::2] for one in self.answers.split())
        return known.get(sha256, self.answered_by if self.answered_with == sha256 else "")

    def installed(self) -> None:
        """Note that root took the last reply: refusals before it are over. What failed since stays: a reply ended all that failed before."""
        if self.away_at <= self.issued_at:
            choice.forget(self)
            self.asked = ""
        if self.refused_reply:
            self.forget_failures()
            self.kind = self.last_error = self.refused_reply = ""

    def plan(self, when: float, why: str) -> None:
        """Note for those who read along when the next order is to be."""
        self.renew_at, self.renew_why = (int(when), why) if when < due.NEVER else (0, why)

    def save(self) -> None:
        """Write the entry, where it changed. Raises OSError."""
        text = self._text()
        if text != self._before:
            notes.put(f"{self.name}.json", text.encode())
            self._before = text

    def _text(self) -> str:
        found: dict[str, object] = {key: getattr(self, key) for key in _NUMBERS}
        found.update({key: getattr(self, "kind" if key == "class" else key) for key in _TEXTS})
        return json.dumps({key: value for key, value in found.items() if value})


def _is_away(failure: Failure) -> bool | None:
    """Whether the CA that was asked is down, or cannot be reached; None where a failure does not tell: it was not asked, or this host was at fault."""
    if failure.kind == LOCAL or failure.problem in (NOT_PUBLISHED, OWN_BUDGET, PROXY):
        return None
    return failure.kind == UNREACHABLE or failure.status >= 500

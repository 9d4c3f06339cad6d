"""Carries out what root wants revoked (RFC 8555 section 7.6), and remembers what came of it. A revocation that failed is tried again, for ever.

Runs as: _certdrop; what speaks with the CA, shut in. Trusts: root's requests; of its own notes, nothing beyond type and bounds; of the CA,
that it says the truth: "done" is the issuer's word. Reads: requests/NAME@NUMBER.revoke. Writes: issuer/revocations.json, world-readable.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from typing import TYPE_CHECKING

from certdrop import events, spool
from certdrop.config import site
from certdrop.issuer import due, notes
from certdrop.issuer.failure import LOCAL, REFUSED, Failure
from certdrop.signer import jose, protocol

if TYPE_CHECKING:
    from certdrop.issuer.account import Session

NOTES = "revocations.json"
DEMANDS_A_REASON = ("badRevocationReason", "malformed")          # what CAs say that miss one (RFC 8555 section 6.7); some in general words
_NUMBERS = ("done", "count", "own", "since", "failed_at", "next_try", "retry_after")
_TEXTS = ("class", "last_error")


class Revocation(due.Record):
    """A certificate that root wants revoked. `done` is when the CA said that it is."""

    def __init__(self, entry: str, found: object = None) -> None:
        super().__init__()
        self.entry = entry
        self.name, self.number, _ = spool.parse_entry(entry) or ("", 0, "")
        self._directory = ""
        self.done = 0
        self.kind = self.last_error = ""       # of the last failure
        known = found if isinstance(found, dict) else {}
        for key in _NUMBERS:
            setattr(self, key, notes.number(known, key))
        for key in _TEXTS:
            if isinstance(known.get(key), str):
                setattr(self, "kind" if key == "class" else key, events.clean(known[key]))

    def directory(self) -> str:
        """Of the CA to ask: the one that issued it, whatever is configured by now; the site's first where nobody noted which that is. Raises ConfigError."""
        if not self._directory:
            from certdrop.config import general
            from certdrop.issuer import ledger, plan
            try:
                with open(f"{spool.requests()}/{self.entry}", encoding="ascii") as stream:
                    der = jose.unb64(str(json.loads(stream.read(spool.MAX_REPLY))["payload"]["certificate"]))
            except (OSError, ValueError, KeyError, TypeError):
                der = b""                      # said when it is asked
            config = general.load_config()
            mine, known = plan.directories(self.name, config), ledger.Ledger(self.name).issuer_of(hashlib.sha256(der).hexdigest())
            self._directory = known if known in mine or _has_account(known) else mine[0]
        return self._directory

    def is_due(self, now: float, urged: bool) -> bool:
        """Whether to ask the CA now. `urged`: an administrator waits, and no back-off holds but the CA's."""
        held = due.held_until(self, now)
        return not self.done and (due.asked_to_wait(self, now) if held and urged else held) <= now

    def succeeded(self, now: float) -> None:
        """The CA has revoked it."""
        self.forget_failures()
        self.done, self.kind, self.last_error = int(now), "", ""

    def failed(self, failure: Failure, now: float) -> None:
        """Note a failure and the next try."""
        if failure.kind == LOCAL:
            self.note_own_failure(False, now, random.random())
        else:
            self.note_failure(failure.retry_after, None, now, random.random())
        self.kind, self.last_error = failure.kind, events.clean(failure.text)

    def noted(self) -> dict[str, object]:
        """What is remembered of it."""
        found = {key: getattr(self, "kind" if key == "class" else key) for key in (*_NUMBERS, *_TEXTS)}
        return {key: value for key, value in found.items() if value}


class Revocations:
    """All that root wants revoked, as entries of requests/, and what came of each. What root wants no more is forgotten."""

    def __init__(self, entries: list[str]) -> None:
        known = notes.table(NOTES)
        self.all = [Revocation(entry, known.get(entry)) for entry in sorted(entries)]

    def due(self, now: float, names: list[str], urged: bool) -> list[Revocation]:
        """What to ask the CA for now: all, or of these sites."""
        return [one for one in self.all if (not names or one.name in names) and one.is_due(now, urged)]

    def show(self, names: list[str], now: float) -> None:
        """Print what is left to do, when, and why."""
        for one in self.all:
            if not one.done and (not names or one.name in names):
                after = f" ({one.kind}, {one.count} in a row: {one.last_error})" if one.count else ""
                print(f"{one.name}  {'now' if one.is_due(now, False) else events.stamp(one.next_try)}  root wants generation {one.number:04d} revoked{after}")

    def save(self) -> None:
        """Write it down, whole or not at all. Raises OSError."""
        notes.put(NOTES, json.dumps({one.entry: one.noted() for one in self.all if one.noted()}).encode())


def _has_account(url: str) -> bool:
    """Whether the CA of a directory that is configured no more is one where we have an account: by what the signer wrote beside its key, which who talks
    with the network can neither see nor make. A note of ours, which he can write, leads to no other host and port."""
    try:
        with open(f"{site.STATE}/account/{jose.entry(url)}.url", encoding="utf-8") as stream:
            return stream.read(spool.MAX_REPLY) == url and os.path.exists(f"{site.STATE}/account/{jose.entry(url)}.key")      # none that was set aside
    except (OSError, ValueError):
        return False


def ask(session: Session, entry: str) -> None:
    """Have the CA revoke it. That it is revoked already is as good. A reason is said where the CA demands one, and root left it open. Raises Failure,
    OSError."""
    url = session.directory().get("revokeCert")
    if not isinstance(url, str):
        raise Failure(REFUSED, "the CA does not offer to revoke certificates")
    with open(f"{spool.requests()}/{entry}", encoding="ascii") as stream:
        payloads = protocol.revocations(json.loads(stream.read(spool.MAX_REPLY)))
    for payload in payloads:
        try:
            session.post(url, payload, request=entry)
            return
        except Failure as failure:
            if failure.problem == "alreadyRevoked":
                return
            if failure.problem not in DEMANDS_A_REASON or payload is payloads[-1]:
                raise

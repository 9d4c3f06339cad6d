"""Asks the issuer to revoke certificates: root's word in the spool, for as long as the certificate would be valid.

What is posted holds the text that is signed and sent to the CA (RFC 8555 section 7.6), so that nobody after root has a say in it.
Runs as: root, under the keeper's lock. Trusts: its own files. Reads: sites/, requests/. Writes: requests/, notes.
"""

from __future__ import annotations

import json
import time

from certdrop import events, spool
from certdrop.keeper import integrity, notes, state
from certdrop.keeper.run import Run

# Why (RFC 5280 section 5.3.1): what the holder of a certificate may say. 0 is said by leaving it out.
REASONS = {"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5}


def post(run: Run, name: str, number: int, reason: str) -> None:
    """Ask for the revocation of a generation's certificate, which is never accepted again."""
    import base64                      # here, because most runs revoke nothing
    observed = run.seen(name)
    with open(state.directory(name, number) + "/cert.pem", "rb") as stream:
        leaf = base64.b64decode(b"".join(stream.read().splitlines()[1:-1]))
    payload: dict[str, object] = {"certificate": base64.urlsafe_b64encode(leaf).decode().rstrip("=")}
    found: dict[str, object] = {"payload": payload}
    if REASONS[reason]:
        payload["reason"] = REASONS[reason]
    else:                              # what a CA that demands a reason may be told, one after the other
        fits = "cessationOfOperation" if state.Observed(name).live == number else "superseded"
        found["reasons"] = [0, REASONS[fits]]
    end, known = observed.moment(number, "not_after"), notes.Notes(name)
    known.spent.update(dict.fromkeys(observed.identities(number), end))
    known.revoke[f"{number:04d}"] = {"reason": reason, "since": int(time.time()), "not_after": end,
                                     "spki": observed.spki(number)}
    known.save()
    put(run, name, number, {**found, "not_after": end}, reason)


def put(run: Run, name: str, number: int, found: dict[str, object], reason: str) -> None:
    """Put it into the spool; in a fleet, signed."""
    from certdrop.keeper import signing
    found.pop("sig", None)
    signature = signing.sign(name, number, "revoke", json.dumps(found).encode()).decode().strip()
    found.update({"sig": signature} if signature else {})
    spool.write(run.requests, spool.entry(name, number, "revoke"), json.dumps(found).encode(), 0o640, run.group)
    run.posted.setdefault(name, set()).add((number, "revoke"))
    run.log.write(events.POSTED, site=name, number=number, kind="revoke", reason=reason)


def aggravate(run: Run, name: str) -> None:
    """What was to be revoked for a lesser reason, and has a key that got out, is revoked for that: a CA keeps the first reason that it is told."""
    known, observed = notes.Notes(name), run.seen(name)
    for number, kind in sorted(run.posted.get(name, set())) if run.burnt else ():
        noted = known.revoke.get(f"{number:04d}", {})
        if kind != "revoke" or noted.get("reason") == "keyCompromise" or noted.get("spki", _spki(observed, number)) not in run.burnt:
            continue
        try:
            with open(f"{spool.requests()}/{spool.entry(name, number, kind)}", encoding="ascii") as stream:
                found = json.load(stream)
            found["payload"]["reason"] = REASONS["keyCompromise"]
            found.pop("reasons", None)
        except (ValueError, LookupError, TypeError):       # damaged: it holds up nobody
            continue
        put(run, name, number, found, "keyCompromise")      # killed before the note, the next run does it again
        known.revoke[f"{number:04d}"] = {**noted, "reason": "keyCompromise"}
        known.save()
        run.tell(name, f"generation {number:04d} is now to be revoked as keyCompromise: its key is compromised")


def _spki(observed: state.Observed, number: int) -> str:
    try:
        return observed.spki(number)
    except OSError:
        return ""


def post_owed(run: Run, name: str) -> None:
    """Ask for the revocation of what was issued for keys that got out; not before another key is proven, or installed where nobody serves this site."""
    if not run.burnt:
        return
    aggravate(run, name)
    observed = run.look(name)
    debts = state.owed(observed, run.posted.get(name, set()))
    if not debts or observed.live is None or observed.is_burnt(observed.live):
        return
    if observed.live == observed.proven or (observed.proven is None and observed.live == observed.newest and not notes.Notes(name).install):
        for number in debts:
            post(run, name, number, "keyCompromise")
            run.tell(name, f"the issuer is asked to have generation {number:04d} revoked (keyCompromise)")


def ended(run: Run) -> list[tuple[str, int]]:
    """(site, number) of the requests whose certificate has ended: they mean nothing any more. Of removed sites, too."""
    found = []
    for name, posted in run.posted.items():
        for number in sorted(number for number, kind in posted if kind == "revoke"):
            try:
                end = integrity.table(f"{spool.requests()}/{spool.entry(name, number, 'revoke')}").get("not_after")
                if isinstance(end, int) and end <= time.time():
                    found.append((name, number))
            except OSError:                    # one damaged file holds up nobody
                pass
    return found

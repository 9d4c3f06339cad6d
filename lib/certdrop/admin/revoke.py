"""`certdrop revoke` and `certdrop rotate --compromised`: root's word is posted, and the issuer carries it out.

A compromised key is burnt first, whatever else is to be done: what the keeper's rows make of that (state.py), every later run goes on with.

Runs as: root. Trusts: the administrator's words, after checking them; of the issuer, what it says is only shown. Reads: sites/.
Writes: keeper/burnt below /var/lib/certdrop, and through keeper/ the rest.
"""

from __future__ import annotations

import os
import sys
import time

from certdrop import events, happened, spool, terminal, words
from certdrop.admin import sites, telling
from certdrop.by_hand import Refused
from certdrop.config import site
from certdrop.keeper import install, intake, lock, notes, revoke, state
from certdrop.keeper.run import Run
from certdrop.keeper.state import Observed


def ask(name: str, number: int | None, reason: str, agreed: bool) -> int:
    """Say what will be revoked, and ask whether it shall be; its number. Raises Refused."""
    number = find(name, number)
    observed = Observed(name)
    end = events.stamp(observed.moment(number, "not_after"))
    if number == observed.live:
        words.say(f"certdrop: {name}: generation {number:04d} is the live one: it is still served, and clients that look will refuse it from then on; "
                  f"certdrop rotate {name} --compromised has another one served first, and is the way if its key is compromised")
    if agreed:
        return number
    if not sys.stdin.isatty():
        raise Refused(f"{name}: there is no terminal to ask at; --yes confirms")
    if not terminal.agrees(f"The certificate of generation {number:04d} of {name}, valid until {end}, is revoked for ever ({reason}). Revoke it?"):
        raise Refused(f"{name}: not agreed; nothing was changed")
    return number


def find(name: str, number: int | None) -> int:
    """The generation whose certificate is meant: the live one, unless a number is given. Raises Refused."""
    observed = Observed(name) if spool.is_site_name(name) else None
    if observed is None or not observed.numbers:
        raise Refused(f"{name!a:.80}: no such site; certdrop-status lists them")
    real = [there for there in observed.whole if not observed.has(there, "placeholder")]
    number = observed.live if number is None else number
    if number not in real:
        there = ", ".join(f"{there:04d}{' (live)' * (there == observed.live)}" for there in real) or "none"
        raise Refused(f"{name}: there is no certificate of {f'generation {number:04d}' if number else 'this site'} to revoke; kept are those of: {there}")
    if observed.moment(number, "not_after") <= time.time():
        raise Refused(f"{name}: generation {number:04d} has expired; there is nothing to revoke")
    return number


def carry_out(name: str, number: int, reason: str) -> int:
    """Post root's word, and have the issuer see to it now. 0 where the issuer says that the CA did it."""
    with lock.held():
        run = telling.Run()
        find(name, number)
        if reason == "keyCompromise":
            burn(run, [(name, number)])
        if (number, "revoke") in run.posted.get(name, set()):
            run.tell(name, f"the revocation of generation {number:04d} was requested before")
            revoke.aggravate(run, name)
        else:
            revoke.post(run, name, number, reason)
            run.tell(name, f"the issuer is asked to have generation {number:04d} revoked ({reason})")
        if reason == "keyCompromise":
            install.settle(run, site.load_site(name, run.config))
    run.flush()
    return have_revoked([name])


def compromised(names: list[str]) -> int:
    """Burn the keys of live and next; have certificates for fresh ones served; then have the old ones revoked. Whatever ends this, later runs go on."""
    sites.known(names)
    wanted: dict[str, int | None] = {}
    with lock.held():
        run = telling.Run()
        known, burning = [site.load_site(name, run.config) for name in names], []
        for name in names:
            observed = Observed(name)
            if observed.live is None or not observed.is_burnt(observed.live):         # else it is gone on with what was begun
                burning += [(name, number) for number in (observed.live, None if observed.fault else observed.next) if number is not None]
        burn(run, burning)
        intake.take(run, known)               # a certificate that waits is not served any more, but known, and so can be revoked
        for found in known:
            install.settle(run, found)
            wanted[found.name] = Observed(found.name).next
    run.flush()
    code = sites.issue(wanted)
    run = telling.Run()      # what is posted now
    for name in names:
        if state.owed(Observed(name), run.posted.get(name, set())):
            run.fail(name, "what was issued for the compromised key is revoked once another certificate is served; later runs do that", os.EX_TEMPFAIL)
    run.flush()
    there = [name for name in names if any(kind == "revoke" for _, kind in run.posted.get(name, set()))]
    return (have_revoked(there) if there else os.EX_OK) or code or run.exit_code()


def burn(run: Run, which: list[tuple[str, int]]) -> None:
    """Never use the keys of these generations (site, number) again: all of them from this moment on, or none."""
    keys = {(name, number): Observed(name).spki(number) for name, number in which}
    run.burnt = state.burnt().union(keys.values())
    notes.put("burnt", "".join(f"{key}\n" for key in sorted(run.burnt)).encode())
    for (name, number), key in keys.items():
        run.log.write(happened.BURNT, site=name, number=number, spki_sha256=key)
        run.tell(name, f"the key of generation {number:04d} will never be used again")


def have_revoked(names: list[str]) -> int:
    """Have the issuer ask the CA now for what is posted of these sites. 0 where it says that all is done."""
    code, said = sites.run_issuer(["--no-install", "--revoke", *names])
    words.say(*said)
    if code:
        follows = "cron asks again once a day; ask the CA's operator yourself" if code == os.EX_DATAERR else "cron goes on trying"
        words.say(*[f"{sites.PROGRAM}: {name}: not everything is revoked yet; {follows}; certdrop-status {name} shows how it stands" for name in names])
    return code if code in (os.EX_OK, os.EX_DATAERR, os.EX_CONFIG) else os.EX_TEMPFAIL

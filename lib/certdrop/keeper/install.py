"""Makes the configured sites so: takes what the spool holds, installs it, and finishes or undoes what a killed run began.

settle() takes the steps of the recovery table (state.py), intake.py has the replies judged, switch.py has the services use them.
Runs as: root, under the keeper's lock. Trusts: root's own files, and of the judge the form of its answers. Reads: sites.d,
the replies that it posted requests for. Writes: requests/, and all that generations.py and notes.py write.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import generations, intake, integrity, notes, reader, revoke, state, switch
from certdrop.keeper.run import Run
from certdrop.keeper.state import Observed

FEW = 16                           # sites that a run that the issuer asked for examines wholly; of more it recalls what former runs found


def reconcile(run: Run, names: list[str] | None = None) -> None:
    """Make the sites (all unless named) as their configuration wants them; in a run that the issuer asked for, those that something is to be done with.
    One bad site does not hold up the others."""
    finish_removals()
    if run.asked_by_issuer:
        names = sorted(filter(_is_configured, reader.answered(run) | run.unfinished))
        if len(names) > FEW:
            integrity.recall()
    else:
        tidy(run)
    names = site.site_names() if names is None else names
    in_time = itertools.takewhile(lambda _: not run.asked_by_issuer or time.monotonic() < run.end, names)        # the rest is there for the next
    wanted, switched = [found for found in (_settled(run, name) for name in in_time) if found], False
    intake.take(run, wanted)
    with run.goes_on("services", "what they serve stays; the next run goes on from there"):
        switch.switch(run, wanted)
        switched = True
    for found in wanted:
        with run.goes_on(found.name):
            revoke.post_owed(run, found.name)
            if found.name in run.stirred or run.burnt:
                settle(run, found)
    with contextlib.suppress(OSError):         # a disk that is full costs the next run some milliseconds
        run.note({name for name in run.unfinished if _is_configured(name)} - {found.name for found in wanted if switched and _stands(run, found.name)})
        if found_whole := integrity.news():
            notes.put("examined", found_whole, 0o600)
    if not run.asked_by_issuer:                # that looked at few; when it ran stands elsewhere, and what failed in the sites' notes
        notes.put("last-run", json.dumps({"time": int(time.time()), "exit": run.exit_code(), "sites": len(wanted)}).encode())


def _is_configured(name: str) -> bool:
    return os.path.lexists(f"{site.ETC}/sites.d/{name}.toml")


def _stands(run: Run, name: str) -> bool:
    """Whether nothing of what was begun with a site is left to be done."""
    return name in run.unfinished and run.look(name).live == run.seen(name).newest and not notes.Notes(name).install


def _settled(run: Run, name: str) -> site.Site | None:
    """A site that has taken all the steps it can take by itself; None where it cannot be gone on with."""
    settled = found = None
    with run.goes_on(name):
        try:
            found = site.load_site(name, run.config)
        except site.ConfigError as error:
            run.fail(name, f"{error}; the live certificate stays", os.EX_CONFIG)
        settle(run, found, name)
        settled = found
    return settled


def settle(run: Run, wanted: site.Site | None, name: str = "") -> None:
    """Take the steps of the recovery table until only a reply or a service is waited for. Of a site whose configuration cannot be read, by `name`."""
    name = wanted.name if wanted else name
    run.posted.setdefault(name, set())
    while (step := state.step(run.look(name), wanted, run.posted[name])) != state.WAIT:
        _take(run, step, wanted, run.observed[name])


def _take(run: Run, step: str, wanted: site.Site | None, observed: Observed) -> None:
    """Take one step."""
    name = observed.name
    if step == state.PUT_BACK:
        generations.put_back(name)
    elif step == state.SWEEP:
        generations.sweep(name, observed.leftovers)
    elif step == state.PLACEHOLDER and wanted:
        generations.make_placeholder(wanted, observed.highest + 1)
    elif step == state.LINK:
        generations.move("live", name, observed.newest or 0)
    elif step == state.UNLINK:
        generations.unlink("proven", name)
    elif step in (state.NEXT, state.REPLACE) and wanted:
        make_next(run, wanted, observed, changed=step == state.REPLACE and not observed.fault)
    elif step == state.WANT:
        generations.mark(name, observed.next or 0, "now")
    elif step == state.GIVE_UP:
        give_up(run, observed)
    elif step == state.POST:
        post(run, name, observed)
    elif step == state.WITHDRAW:
        for number, kind in sorted(state.stray(observed, run.posted[name])):
            withdraw(run, name, number, kind)
    elif step == state.PRUNE:
        for number in state.prunable(observed, run.posted[name]):
            generations.destroy(name, number)


def make_next(run: Run, wanted: site.Site, observed: Observed, changed: bool) -> None:
    """Make another next generation; wanted now where the configuration `changed`, where nothing but the placeholder is there, or where it was before."""
    if observed.fault:
        _tell_damage(run, wanted.name, f"{observed.fault}; the request is made anew, with another key")
    hurry = changed or observed.stands_in or (bool(observed.fault) and observed.has(observed.next, "now"))
    generations.make_next(wanted, observed.highest + 1, key_to_carry(wanted, observed), now=hurry)


def give_up(run: Run, observed: Observed) -> None:
    """Withdraw what is damaged."""
    for number, fault in observed.damaged.items():
        follows = f"; generation {observed.live:04d} is live, and another certificate is asked for" if observed.lost else "; it is given up"
        _tell_damage(run, observed.name, f"generation {number:04d} is damaged: {fault}{follows}")
        generations.mark(observed.name, number, "withdrawn")


def _tell_damage(run: Run, name: str, text: str) -> None:
    run.log.write(events.DAMAGED, site=name, error=text)
    run.fail(name, text, os.EX_IOERR)


def key_to_carry(wanted: site.Site, observed: Observed) -> int | None:
    """The generation whose key the next one carries on with, or None where a new key is due."""
    newest = observed.newest
    if wanted.key_max_age == "renewal" or newest is None or observed.stands_in:
        return None
    same_kind = observed.facts(newest, "request")["key"] == wanted.key
    dated = spool.is_credible(observed.moment(newest, "key_created"), spool.HAPPENED, time.time())      # else it would not grow old for years
    return newest if same_kind and dated and not observed.is_old_key(wanted, newest) else None


def post(run: Run, name: str, observed: Observed) -> None:
    """Put next's request into the spool: the CSR first, then whether it is wanted now."""
    from certdrop.keeper import signing        # most runs post nothing
    for number, kind in sorted(state.required(observed) - run.posted[name]):
        with open(state.directory(name, number) + "/request.csr", "rb") as stream:
            csr = stream.read()
        signature = signing.sign(name, number, kind, csr)
        if kind == "csr" and signature:
            spool.write(run.requests, spool.entry(name, number, "sig"), signature, 0o640, run.group)
        spool.write(run.requests, spool.entry(name, number, kind), csr if kind == "csr" else signature, 0o640, run.group)
        run.posted[name].add((number, kind))
        run.log.write(events.POSTED, site=name, number=number, kind=kind)


def withdraw(run: Run, name: str, number: int, kind: str) -> None:
    """Take a request out of the spool."""
    for ending in ("sig", "csr") if kind == "csr" else (kind,):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spool.entry(name, number, ending), dir_fd=run.requests)
    run.posted[name].discard((number, kind))
    run.log.write(events.WITHDRAWN, site=name, number=number, kind=kind)


def finish_removals() -> None:
    """Go on with removals that were killed."""
    parent = site.STATE + "/sites"
    for entry in os.listdir(parent):
        name = entry.removeprefix(".removed-")
        if name != entry and spool.is_site_name(name):
            for path in (f"{site.ETC}/sites.d/{name}.toml", f"{site.STATE}/live/.{name}.aside", f"{site.STATE}/proven/{name}",
                         f"{site.STATE}/keeper/{name}.json"):
                integrity.clear(path)
            integrity.clear(f"{parent}/{entry}")
            generations.sync(parent)


def tidy(run: Run) -> None:
    """What no site waits for: temporary files, requests of certificates that have ended, and a word on damage to what all sites share."""
    sweep()
    for name, number in revoke.ended(run):
        withdraw(run, name, number, "revoke")
    if state.burnt_is_damaged():
        run.fail("keeper/burnt", "the list of compromised keys is damaged; those that cannot be read there are not known any more; "
                 "certdrop rotate NAME --compromised lists a site's keys again, and mends it", os.EX_IOERR)


def sweep() -> None:
    """Remove the temporary files that killed runs left in the directories that only root writes; the lock keeps running ones out."""
    below = [f"{site.STATE}/{entry}" for entry in ("live", "proven", "keeper", "keeper/retired", "keeper/refused")]
    for parent in (spool.requests(), site.ETC + "/sites.d", *below):
        for entry in os.listdir(parent):
            if entry.startswith(".") and entry.endswith(".new"):
                integrity.clear(f"{parent}/{entry}")

"""Has the services use what was written: move live, test, reload, ask by a handshake; and goes back where that helps.

Rows 12 and 13 of the recovery table. Many sites are switched at once, with one test and one reload of each service; a site whose
certificate a service does not take is found in few tries, and does not hold up the others. What is to be done of a site, change.py decides.
Runs as: root, under the keeper's lock. Trusts: what change.py trusts. Writes: live/, proven/, notes, copies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from certdrop import events, shown
from certdrop.config import site
from certdrop.keeper import change as decided
from certdrop.keeper import copies, generations, judges, notes, trial
from certdrop.keeper.change import Change
from certdrop.keeper.judges import Seen
from certdrop.keeper.run import Run
from certdrop.keeper.trial import Used

LATE = 300                         # seconds after a run's end for what it moved to be shown
ROUNDS = (0.1, 0.5, 1.0)           # parts of the patience after which those that are not shown are asked again: one of them holds up the others no longer


def switch(run: Run, wanted: list[site.Site]) -> None:
    """Bring every site that is due to its newest generation."""
    plans: dict[str, list[Change]] = {}
    for found in wanted:
        with run.goes_on(found.name):
            change = _change(run, found)
            plans.setdefault(decided.plan(change, run.talk, run.asked_by_issuer, time.time()), []).append(change)
    for change in plans.get(decided.COPY, []):
        _stand_in(run, change)
    if decided.SWITCH in plans:                              # what cost time before comes last: it holds up no other
        _switch(run, sorted(plans[decided.SWITCH], key=lambda change: bool(change.notes.install)))
    _look_again(run, plans.get(decided.ASK, []))


def _change(run: Run, wanted: site.Site) -> Change:
    observed, noted = run.seen(wanted.name), notes.Notes(wanted.name)
    if noted.damage:
        run.fail(wanted.name, f"{noted.damage}; what was noted of refusals and failures is forgotten, and written anew", os.EX_IOERR)
        noted.save()
    return Change(wanted, observed, noted, observed.live is not None and copies.differ(wanted, observed.live))


def _switch(run: Run, changes: list[Change]) -> None:
    """All of these, together."""
    run.stirred.update(change.name for change in changes)
    run.note(run.unfinished | {change.name for change in changes if change.to != change.back or change.notes.install})
    used, missing = trial.found(run, trial.names_of(changes))
    looked = []                                              # what no longer fits into this run is next in the next one
    for change, seen in _asked(run, trial.not_broken(run, changes, missing), used, run.end):
        change.before = seen.places
        looked.append(change)
    began = time.monotonic()
    moved = trial.move(run, looked, used)
    stretch = max(1.0, time.monotonic() - began)             # a service of many sites takes its time
    failed = trial.reload(run, [change for change in moved if change.reloads], used)
    moved = [change for change in moved if not trial.reload_is_missed(run, change, used, failed)]
    waiting = _wait(run, [change for change in moved if _is_to_be_asked(run, change, used)], used, stretch, lambda change: change.to, _heard)
    back = [change for change in waiting if decided.outcome(change) == decided.BACK]
    for change in back:                                      # before anything is noted, which may fail
        trial.go_back(change, change.observed.proven)
        run.log.write(events.WENT_BACK, site=change.name, number=change.observed.proven)
    trial.reload(run, back, used)
    _wait(run, back, used, stretch, lambda change: change.observed.proven, _is_back)      # a reload that is lost would leave the bad one served
    for change in waiting:
        _not_served(run, change, failed)


def _look_again(run: Run, put_off: list[Change]) -> None:
    """What was not shown once may be by now: ask, which costs no service anything, whatever the back-off."""
    used, missing = trial.found(run, trial.names_of(put_off))               # said when it is its turn
    there = [change for change in put_off if not missing.keys() & {*change.wanted.services} and any(used[name].port for name in change.wanted.services)]
    for change, seen in _asked(run, there, used, run.end, lambda change: change.to):
        _heard(run, change, seen)
        run.stirred.update([change.name] if seen.state == "shown" else [])


def _stand_in(run: Run, change: Change) -> None:
    """Put the placeholder's copies where there is nothing yet, so that a service can start with them."""
    try:
        copies.put(change.wanted, change.to, only_missing=True)
    except (OSError, copies.Failed) as error:
        run.fail(change.name, f"a copy could not be put in place: {error}", os.EX_CONFIG)


def _asked(run: Run, changes: list[Change], used: Used, end: float, number: Callable[[Change], int | None] = lambda _: None,
           patience: Callable[[Change], float] = lambda _: 0.0) -> Iterator[tuple[Change, Seen]]:
    """What is shown for each of these: the judge waits so long for a generation to be. The first is asked for in any case, then no more after the end."""
    for roots in sorted({change.wanted.roots for change in changes}):
        asked = [change for change in changes if change.wanted.roots == roots]
        questions = [change.question(used, number(change), patience(change)) for change in asked]
        with contextlib.closing(judges.looks(roots, questions, max(map(patience, asked)))) as looks:
            for seen, change in zip(looks, asked):
                yield change, seen
                if time.monotonic() > end:
                    return


def _wait(run: Run, changes: list[Change], used: Used, stretch: float, number: Callable[[Change], int | None],
          heard: Callable[[Run, Change, Seen], None]) -> list[Change]:
    """Ask until all are shown as they were moved, or patience ends. Returns the others."""
    waiting, passed, missing = changes, 0.0, {change.name for change in changes}
    for part in ROUNDS:
        if part == ROUNDS[-1]:                               # somebody who restarted the service may have swallowed the first
            late = [change for change in waiting if change.patience == decided.PATIENCE]
            trial.reload(run, late, used)
            if late:
                run.progress(f"waiting for {', '.join(sorted(used))} to show what was installed, {decided.PATIENCE * stretch:.0f} s at most")
        for change, seen in _asked(run, waiting, used, run.end + LATE, number, lambda change: change.patience * stretch * (part - passed)):
            heard(run, change, seen)
            missing -= {change.name} if seen.state == "shown" else set()
        waiting = [change for change in waiting if change.name in missing and change.patience]
        passed = part
    return [change for change in changes if change.name in missing]


def _is_to_be_asked(run: Run, change: Change, used: Used) -> bool:
    """Whether a handshake tells that it is used; where nobody is to be asked, it counts as proven."""
    if change.wanted.probe != "off" and any(used[name].port for name in change.wanted.services):
        return True
    _installed(run, change, "nobody is to be asked")
    generations.move("proven", change.name, change.to)
    return False


def _heard(run: Run, change: Change, seen: Seen) -> None:
    """The new one was asked for; where it is shown and good, it is proven."""
    change.after, change.heard = seen, True
    if seen.state != "shown":
        return
    generations.move("proven", change.name, change.to)
    run.log.write(events.SERVING, site=change.name, number=change.to, sha256=change.observed.sha256(change.to))
    others = shown.strangers(seen.places, change.own)        # where it has no block, or a wrong one: certdrop-status knows which matter
    run.tell(change.name, f"generation {change.to:04d} is installed, and served" + (f"; {shown.words(others)} shows another certificate" if others else ""))
    _done(change)


def _is_back(_: Run, change: Change, seen: Seen) -> None:
    """The proven one was asked for."""
    change.is_back = seen.state == "shown"


def _not_served(run: Run, change: Change, failed: dict[str, str]) -> None:
    ended = decided.outcome(change)
    if ended == decided.UNSERVED:
        _installed(run, change, f"nothing serves it yet (certdrop-nginx {change.name} --apply or --write has nginx serve it)")
        return
    services_named = ", ".join(change.wanted.services)
    follows = "it stays in place"
    if ended == decided.BACK:
        follows = "the one before serves again" if change.is_back else "the one before is in place again, and not shown yet"
    what = "is not shown" if change.after.places else "is not shown: nobody answers" if change.heard else "is not known to be shown: there was no time to ask"
    if change.after.state == "untrusted":
        what = "does not verify, for a client that trusts trust_roots"
    missed = [f"{name} did not reload ({failed[name]})" for name in change.wanted.services if name in failed]
    trial.put_off(run, change, "issued-not-served", f"{'; '.join(missed) or services_named + ' reloaded'}, and generation {change.to:04d} {what}; {follows}")


def _installed(run: Run, change: Change, why: str) -> None:
    if change.back != change.to:
        run.log.write(events.INSTALLED, site=change.name, number=change.to)
        run.tell(change.name, f"generation {change.to:04d} is installed; {why}")
    _done(change)


def _done(change: Change) -> None:
    if change.back != change.to:
        change.notes.installed_at = int(time.time())
    change.notes.install = {}
    change.notes.save()

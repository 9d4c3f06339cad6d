"""Has the services use what was written: test, move live, test, reload, ask by a handshake; and goes back where that helps.

Rows 12 and 13 of the recovery table. Many sites are switched at once, with one test and one reload of each service; a site whose
certificate a service does not take is found in few tries, and does not hold up the others.
Runs as: root, under the keeper's lock. Trusts: the judge's answer to "what is shown", in its form. Writes: live/, proven/, notes, copies.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from certdrop import events, site
from certdrop.keeper import copies, generations, judges, notes, services, state

if TYPE_CHECKING:
    from certdrop.keeper.install import Run

PATIENCE = 5.0                     # seconds for a reload to show


class Change:
    """A site whose newest generation is to be used: from `back` to `to`."""

    def __init__(self, wanted: site.Site) -> None:
        self.wanted, self.name = wanted, wanted.name
        self.sight = state.Sight(wanted.name)
        self.notes = notes.Notes(wanted.name)
        self.back = self.sight.live
        self.to = self.sight.newest or 0
        self.before: set[str] = set()          # the fingerprints shown before anything was changed

    @property
    def was_served(self) -> bool:
        """Whether what is live now was shown: a service knows this site, and a reload must show."""
        return self.sha256(self.back) in self.before

    @property
    def goes_back(self) -> bool:
        """Whether going back helps: the proven generation was shown before, and this one is not shown now."""
        return self.sight.proven not in (None, self.to) and self.sha256(self.sight.proven) in self.before

    def is_due(self, insist: bool) -> bool:
        """Written and not moved, or moved and not proven; and no placeholder, not expired, not put off (unless somebody insists)."""
        if not self.to or state.has(self.name, self.to, "placeholder") or self.to == self.sight.live == self.sight.proven:
            return False
        return (insist or not self.notes.is_put_off(self.to)) and state.moment(self.name, self.to, "not_after") > time.time()

    def use(self, number: int | None) -> None:
        """live := this generation, and the copies that some services need with it."""
        if number is not None:
            if state.linked("live", self.name) != number:
                generations.move("live", self.name, number)
            copies.put(self.wanted, number)

    def sha256(self, number: int | None) -> str:
        """The leaf's fingerprint of a generation."""
        return "" if number is None else str(state.facts(self.name, number, "cert")["sha256"])

    def shown(self, judge: judges.Judge, used: dict[str, services.Service]) -> set[str]:
        """The fingerprints that its services show for this site, on all their addresses; empty where nobody listens."""
        places = [place for name in self.wanted.services for place in services.addresses(used[name], self.wanted.probe)]
        return {judges.ask_served(judge, *place[:2], self.wanted.domains[0], place[2]) for place in places} - {"nobody"}


def switch(run: Run, wanted: list[site.Site]) -> None:
    """Bring every site that is due to its newest generation."""
    changes = [change for change in map(Change, wanted) if change.is_due(run.talk)]
    if not changes:
        return
    used, broken = _tested({name for change in changes for name in change.wanted.services})
    for change in changes:
        for name in change.wanted.services:
            if name in broken:
                _put_off(run, change, "service-failed", f"before anything was changed, {broken[name]}")
                break
    changes = [change for change in changes if not broken.keys() & set(change.wanted.services)]
    with judges.Judge("served") as judge:
        for change in changes:
            change.before = change.shown(judge, used)
        moved = _move(run, changes, used)
        _reload(run, [change for change in moved if change.back != change.to or change.sight.proven is not None], used)
        waiting = _wait(run, moved, used, judge)
    for change in waiting:
        _not_served(run, change)
    back = [change for change in waiting if change.goes_back]
    for change in back:
        change.use(change.sight.proven)
        run.log.write(events.WENT_BACK, site=change.name, number=change.sight.proven)
    _reload(run, back, used)


def _tested(names: set[str]) -> tuple[dict[str, services.Service], dict[str, str]]:
    used, broken = {}, {}
    for name in sorted(names):
        try:
            used[name] = services.find(name)
            used[name].test()
        except services.Failed as error:
            broken[name] = f"{name} did not pass its test: {error}"
    return used, broken


def _move(run: Run, changes: list[Change], used: dict[str, services.Service]) -> list[Change]:
    """Move these, test once, and where the test fails find whose fault it is in few tries. Returns those that stay moved."""
    moved = []
    for change in changes:
        try:
            change.use(change.to)
            moved.append(change)
        except (OSError, copies.Failed) as error:
            change.use(change.back)
            _put_off(run, change, "service-failed", f"a copy could not be put in place: {error}")
    reason = _failure(moved, used)
    if not reason:
        return moved
    for change in moved:
        change.use(change.back)
    if len(moved) > 1:
        half = len(moved) // 2
        return _move(run, moved[:half], used) + _move(run, moved[half:], used)
    change = moved[0]
    again = bool(change.notes.install)
    _put_off(run, change, "service-failed", f"with generation {change.to:04d} {reason}")
    if not again and not _failure(moved, used):
        # Good without it, bad with it, and for the first time: ask for another rather than wait for an administrator.
        generations.make_next(change.wanted, change.sight.highest + 1, None, now=True)
        generations.mark(change.name, change.to, "withdrawn")
    return []


def _failure(changes: list[Change], used: dict[str, services.Service]) -> str:
    for name in sorted({name for change in changes for name in change.wanted.services}):
        try:
            used[name].test()
        except services.Failed as error:
            return f"{name} does not pass its test: {error}"
    return ""


def _reload(run: Run, changes: list[Change], used: dict[str, services.Service]) -> None:
    for name in sorted({name for change in changes for name in change.wanted.services}):
        try:
            used[name].reload()
        except services.Failed as error:                     # whether it matters, the handshake tells
            run.log.write(events.SERVICE_FAILED, service=name, error=str(error))


def _wait(run: Run, changes: list[Change], used: dict[str, services.Service], judge: judges.Judge) -> list[Change]:
    """Ask until all show the new one, or patience ends; those that do are proven. Returns the others."""
    end, waiting = time.monotonic() + PATIENCE, changes
    while True:
        waiting = [change for change in waiting if not _is_served(run, change, used, judge)]
        if not any(change.was_served or change.sight.proven for change in waiting) or time.monotonic() > end:
            return waiting
        time.sleep(0.05)                                     # a reload says nothing when it is done


def _is_served(run: Run, change: Change, used: dict[str, services.Service], judge: judges.Judge) -> bool:
    if change.wanted.probe == "off" or not change.wanted.services:
        _installed(run, change, "nobody is to be asked")
        generations.move("proven", change.name, change.to)
        return True
    if change.shown(judge, used) != {change.sha256(change.to)}:
        return False
    generations.move("proven", change.name, change.to)
    run.log.write(events.SERVING, site=change.name, number=change.to, sha256=change.sha256(change.to))
    run.tell(change.name, f"generation {change.to:04d} is installed, and served")
    _done(change)
    return True


def _not_served(run: Run, change: Change) -> None:
    if change.sight.proven is None and not change.was_served:
        _installed(run, change, f"nothing serves it yet (certdrop-nginx {change.name} prints a server block)")
        return
    services_named = ", ".join(change.wanted.services)
    follows = "the one before serves again" if change.goes_back else "it stays in place"
    _put_off(run, change, "issued-not-served", f"{services_named} reloaded, and generation {change.to:04d} is not shown; {follows}")


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


def _put_off(run: Run, change: Change, what: str, text: str) -> None:
    change.notes.put_off(change.to, what, text)
    change.notes.save()
    event = events.NOT_SERVED if what == "issued-not-served" else events.SERVICE_FAILED
    run.log.write(event, site=change.name, number=change.to, error=text, tries=change.notes.install["tries"])
    run.fail(change.name, f"{text}; a later run tries again, without asking the CA", os.EX_TEMPFAIL)

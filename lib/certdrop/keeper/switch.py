"""Has the services use what was written: test, move live, test, reload, ask by a handshake; and goes back where that helps.

Rows 12 and 13 of the recovery table. Many sites are switched at once, with one test and one reload of each service; a site whose
certificate a service does not take is found in few tries, and does not hold up the others.
Runs as: root, under the keeper's lock. Trusts: the judge's answer to "what is shown", in its form. Writes: live/, proven/, notes, copies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from certdrop import events, shown
from certdrop.config import site
from certdrop.keeper import copies, generations, judges, notes, services, state
from certdrop.keeper.run import Run

PATIENCE = 5.0                     # seconds for a reload to show; as many more for each second that the tests took beyond the first
LATE = 300                         # seconds after a run's end for what it moved to be shown
GRACE = 1.0                        # the same, for a site that nobody showed before


class Change:
    """A site whose newest generation is to be used: from `back` to `to`."""

    def __init__(self, wanted: site.Site, observed: state.Observed) -> None:
        self.wanted, self.name, self.observed = wanted, wanted.name, observed
        self.notes = notes.Notes(wanted.name)
        self.back = self.observed.live
        self.to = self.observed.newest or 0
        self.own: set[str] = set()                             # the fingerprints of all its generations
        self.before: dict[services.Place, str] = {}            # what was shown before anything was changed
        self.now: dict[services.Place, str] = {}               # what was shown when it was last asked
        self.untrusted = False                                 # it is shown, and no good
        self.is_back = False                                   # the proven one is shown again
        self.outdated = self.back is not None and copies.differ(wanted, self.back)

    @property
    def stands_in(self) -> bool:
        """Whether all there is is the placeholder."""
        return self.observed.stands_in

    @property
    def was_served(self) -> bool:
        """Whether a certificate of this site was shown: a service knows it, and a reload must show."""
        return not self.own.isdisjoint(self.before.values())

    @property
    def kind(self) -> str:
        """The kind of its key, "ecdsa" or "rsa": another site may have the other for the same names."""
        return str(self.observed.facts(self.to, "request")["key"]).partition("-")[0]

    @property
    def goes_back(self) -> bool:
        """Whether going back helps: the proven generation was shown before, and this one is not shown now, or it is and is no good."""
        return self.observed.proven not in (None, self.to) and (self.untrusted or self.sha256(self.observed.proven) in self.before.values())

    @property
    def fallback(self) -> int | None:
        """Where live is not proven, and so may have been moved by a run that was killed before it tested: what to try in its place."""
        if self.back in (None, self.observed.proven):
            return None
        below = [number for number in self.observed.complete if number < (self.back or 0)]
        return self.observed.proven or (below[-1] if below else self.to if self.to != self.back else None)

    @property
    def reloads(self) -> bool:
        """Whether a reload may matter: not where it is installed already, and nobody shows this site."""
        return self.back != self.to or self.outdated or self.was_served or self.observed.proven is not None or bool(self.notes.install)

    @property
    def patience(self) -> float:
        """Seconds to wait until it is shown."""
        if self.was_served or self.observed.proven is not None:
            return PATIENCE
        return GRACE if self.reloads and self.before else 0.0

    def is_due(self, insist: bool, asked_by_issuer: bool) -> bool:
        """Written and not moved, or moved and not proven, or copied no more; and no placeholder, not expired, not put off (unless somebody insists).

        What was put off in a run that the issuer asked for binds no other: its caller may have a hand in why a service failed (aa-exec(1)).
        """
        if self.stands_in or (self.to == self.back == self.observed.proven and not self.outdated):
            return False
        insist = insist or (self.notes.install.get("by") == "issuer" and not asked_by_issuer)
        return (insist or not self.notes.is_put_off(self.to)) and self.observed.moment(self.to, "not_after") > time.time()

    @property
    def may_be_shown(self) -> bool:
        """Moved and put off, where somebody can be asked: whoever started the service meanwhile had it read what is live."""
        return self.to == self.back != self.observed.proven and not self.stands_in and not self.outdated and self.wanted.probe != "off"

    def use(self, number: int | None) -> None:
        """live := this generation, and the copies that some services need with it."""
        if number is not None:
            if state.linked("live", self.name) != number:
                generations.move("live", self.name, number)
            copies.put(self.wanted, number)

    def go_back(self, number: int | None) -> None:
        """live := this generation again, and as many of its copies as can be put: what cannot be put was not put before, either."""
        try:
            self.use(number)
        except (OSError, copies.Failed):
            pass

    def sha256(self, number: int | None) -> str:
        """The leaf's fingerprint of a generation."""
        return self.observed.sha256(number)

    def look(self, judge: judges.Judge, used: dict[str, services.Service]) -> None:
        """See what is shown before anything is changed."""
        self.own = {self.sha256(number) for number in self.observed.whole} | set(self.notes.spent)
        self.before = self.shown(judge, used)

    def shown(self, judge: judges.Judge, used: dict[str, services.Service]) -> dict[services.Place, str]:
        """What its services show for this site, on each of their addresses where somebody listens."""
        places = {place for name in self.wanted.services for place in services.addresses(used[name], self.wanted.probe)}
        found = {place: judges.ask_served(judge, place, self.wanted.domains[0], self.kind) for place in sorted(places)}
        return {place: leaf for place, leaf in found.items() if leaf != "nobody"}

    def is_shown(self, now: dict[services.Place, str]) -> bool:
        """Whether the new one is shown, by all who showed this site, and no other of this site's by anybody.

        An address that shows something else, and did before, is another's: sites are bound to some addresses of a host only.
        """
        new, seen = self.sha256(self.to), set(now.values())
        known = [place for place, leaf in self.before.items() if leaf in self.own]
        return new in seen and seen.isdisjoint(self.own - {new}) and all(now.get(place, new) == new for place in known)

    def is_trusted(self, now: dict[services.Place, str], judge: judges.Judge) -> bool:
        """Whether a TLS client that trusts our roots is content with what is shown: whatever was said of the reply, it is a good certificate."""
        new = self.sha256(self.to)
        self.untrusted = judges.ask_served(judge, next(place for place, leaf in now.items() if leaf == new), self.wanted.domains[0], self.kind, True) != new
        return not self.untrusted


def switch(run: Run, wanted: list[site.Site]) -> None:
    """Bring every site that is due to its newest generation."""
    changes = []
    for found in wanted:
        try:
            changes.append(Change(found, run.seen(found.name)))
            if changes[-1].notes.damage:
                run.fail(found.name, f"{changes[-1].notes.damage}; what was noted of refusals and failures is forgotten, and written anew", os.EX_IOERR)
                changes[-1].notes.save()
        except OSError as error:                             # one site's trouble holds up no other
            run.fail(found.name, f"{error}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)
    for change in changes:
        if change.stands_in and change.outdated:
            _stand_in(run, change)
    _look_again(run, [change for change in changes if change.may_be_shown and not change.is_due(run.talk, run.asked_by_issuer)])
    changes = [change for change in changes if change.is_due(run.talk, run.asked_by_issuer)]
    if not changes:
        return
    run.stirred.update(change.name for change in changes)
    began = time.monotonic()
    used, broken = _tested(run, {name for change in changes for name in change.wanted.services})
    stretch = max(1.0, time.monotonic() - began)             # a service of many sites takes its time
    broken = _without_the_untested(run, changes, broken)
    for change in changes:
        for name in change.wanted.services:
            if name in broken:
                _put_off(run, change, "service-failed", f"{broken[name]}; not this certificate's fault: nothing was changed")
                break
    changes = [change for change in changes if not broken.keys() & set(change.wanted.services)]
    with run.witness as judge:
        looked: list[Change] = []
        for change in changes:                               # what no longer fits into this run is next in the next one
            if time.monotonic() < run.end or not looked:
                change.look(judge, used)
                looked.append(change)
        changes = looked
        moved = _move(run, changes, used)
        failed = _reload(run, [change for change in moved if change.reloads], used)
        asked = [change for change in moved if not _reload_is_missed(run, change, used, failed)]
        waiting = _wait(run, asked, used, judge, stretch, _is_served)
        back = [change for change in waiting if change.goes_back]
        for change in back:                                  # before anything is noted, which may fail
            change.go_back(change.observed.proven)
            run.log.write(events.WENT_BACK, site=change.name, number=change.observed.proven)
        _reload(run, back, used)
        _wait(run, back, used, judge, stretch, _is_back)     # a reload that is lost would leave the bad one served
    for change in waiting:
        _not_served(run, change, failed)


def _look_again(run: Run, put_off: list[Change]) -> None:
    """What was not shown once may be by now: ask, which costs no service anything, whatever the back-off."""
    with run.witness as judge:
        for change in put_off:
            try:
                used = {name: services.find(name) for name in change.wanted.services}
            except (services.Failed, site.ConfigError):
                continue                                     # said when it is its turn
            if any(service.port for service in used.values()) and time.monotonic() < run.end:
                change.look(judge, used)
                if _is_served(run, change, used, judge):
                    run.stirred.add(change.name)


def _stand_in(run: Run, change: Change) -> None:
    """Put the placeholder's copies where there is nothing yet, so that a service can start with them."""
    try:
        copies.put(change.wanted, change.to, only_missing=True)
    except (OSError, copies.Failed) as error:
        run.fail(change.name, f"a copy could not be put in place: {error}", os.EX_CONFIG)


def _tested(run: Run, names: set[str]) -> tuple[dict[str, services.Service], dict[str, str]]:
    used, broken = {}, {}
    for name in sorted(names):
        try:
            used[name] = services.find(name)
            used[name].waits = run.progress
            used[name].test()
        except (services.Failed, site.ConfigError) as error:
            broken[name] = f"{name} does not pass its test as it is: {error}"
    return used, broken


def _without_the_untested(run: Run, changes: list[Change], broken: dict[str, str]) -> dict[str, str]:
    """What is broken also without that which no run that came to its end has left as live. Where this helps, live is back, and then moved as ever."""
    untested = [change for change in changes if change.fallback is not None and broken.keys() & set(change.wanted.services)]
    if not untested:
        return broken
    for change in untested:
        change.go_back(change.fallback)
    _, still = _tested(run, set(broken))
    for change in untested:
        if still.keys() & set(change.wanted.services):
            change.go_back(change.back)
        else:
            change.back = change.fallback
            run.log.write(events.WENT_BACK, site=change.name, number=change.back)
    return still


def _move(run: Run, changes: list[Change], used: dict[str, services.Service], again: bool = False) -> list[Change]:
    """Move these, test once, and where the test fails find whose fault it is in few tries. Returns those that stay moved."""
    moved = []
    for change in changes:
        try:
            change.use(change.to)
            moved.append(change)
        except (OSError, copies.Failed) as error:
            change.go_back(change.back)
            _put_off(run, change, "service-failed", f"a copy could not be put in place: {error}")
    reason = _failure(moved, used)
    if not reason:
        return moved
    for change in moved:
        change.go_back(change.back)
    if len(moved) > 1:
        half = len(moved) // 2
        return _move(run, moved[:half], used) + _move(run, moved[half:], used)
    change = moved[0]
    text = f"with generation {change.to:04d} {reason}"
    if change.notes.install or change.back == change.to or _failure(moved, used):
        _put_off(run, change, "service-failed", text)
        return []
    if not again:
        return _move(run, moved, used, again=True)           # a full disk, or a test that was killed, is no fault of the certificate's
    # Good without it, twice bad with it, and for the first time: ask for another rather than wait for an administrator.
    _put_off(run, change, "service-failed", text, "it is withdrawn, and another is asked for")
    generations.make_next(change.wanted, change.observed.highest + 1, None, now=True)
    generations.mark(change.name, change.to, "withdrawn")
    return []


def _failure(changes: list[Change], used: dict[str, services.Service]) -> str:
    for name in sorted({name for change in changes for name in change.wanted.services}):
        try:
            used[name].test()
        except services.Failed as error:
            return f"{name} does not pass its test: {error}"
    return ""


def _reload(run: Run, changes: list[Change], used: dict[str, services.Service]) -> dict[str, str]:
    """Reload what these sites use, each service once. Returns what failed; whether that matters, mostly the handshake tells."""
    failed = {}
    for name in sorted({name for change in changes for name in change.wanted.services}):
        try:
            used[name].reload()
        except services.Failed as error:
            failed[name] = str(error)
            run.log.write(events.SERVICE_FAILED, service=name, error=str(error))
    return failed


def _reload_is_missed(run: Run, change: Change, used: dict[str, services.Service], failed: dict[str, str]) -> bool:
    """Whether a reload failed where no handshake can tell whether that matters: then its exit status is what counts, as a program's that deploys."""
    for name in change.wanted.services:
        if name in failed and (not used[name].port or change.wanted.probe == "off"):
            _put_off(run, change, "service-failed", f"generation {change.to:04d} is in place, and {name} did not reload: {failed[name]}")
            return True
    return False


def _wait(run: Run, changes: list[Change], used: dict[str, services.Service], judge: judges.Judge, stretch: float,
          arrived: Callable[[Run, Change, dict[str, services.Service], judges.Judge], bool]) -> list[Change]:
    """Ask until all have arrived where they were moved, or patience ends. Returns the others."""
    began, again, waiting, told = time.monotonic(), False, changes, False
    while True:
        asked = time.monotonic() - began                     # what counts is an answer to a question asked late enough
        missing: list[Change] = []
        answers = False                                      # while one is not shown the others are hardly: it answers for them, but at the end
        for change in waiting:
            early = asked < change.patience * stretch
            if answers and early or not arrived(run, change, used, judge):
                missing.append(change)
                answers = answers or early
        waiting = missing[1:] + missing[:1]                  # the next time it is another one
        if time.monotonic() > run.end + LATE or all(asked >= change.patience * stretch for change in waiting):
            return waiting
        if asked > PATIENCE * stretch / 2 and not again:      # somebody who restarted the service may have swallowed the first
            again = True
            _reload(run, waiting, used)
        if asked > services.TOLD and not told:
            told = True
            most = max(change.patience for change in waiting) * stretch
            run.progress(f"waiting for {', '.join(sorted(used))} to show what was installed, {most:.0f} s at most")
        time.sleep(0.02)                                     # a reload says nothing when it is done


def _is_served(run: Run, change: Change, used: dict[str, services.Service], judge: judges.Judge) -> bool:
    """Whether the new one is shown and good; then it is proven."""
    if change.wanted.probe == "off" or not any(used[name].port for name in change.wanted.services):
        _installed(run, change, "nobody is to be asked")
        generations.move("proven", change.name, change.to)
        return True
    if time.monotonic() > run.end + LATE:                    # a service that hangs costs a deadline each time that it is asked
        return False
    change.now = now = change.shown(judge, used)
    if not change.is_shown(now) or not change.is_trusted(now, judge):
        return False
    generations.move("proven", change.name, change.to)
    run.log.write(events.SERVING, site=change.name, number=change.to, sha256=change.sha256(change.to))
    others = shown.strangers(now, change.own)                # where it has no block, or a wrong one: certdrop-status knows which matter
    run.tell(change.name, f"generation {change.to:04d} is installed, and served" + (f"; {shown.words(others)} shows another certificate" if others else ""))
    _done(change)
    return True


def _is_back(run: Run, change: Change, used: dict[str, services.Service], judge: judges.Judge) -> bool:
    """Whether the proven one is shown again, and the new one no more."""
    if time.monotonic() > run.end + LATE:
        return False
    now = change.shown(judge, used).values()
    change.is_back = change.sha256(change.observed.proven) in now and change.sha256(change.to) not in now
    return change.is_back


def _not_served(run: Run, change: Change, failed: dict[str, str]) -> None:
    if change.observed.proven is None and not change.was_served:
        _installed(run, change, f"nothing serves it yet (certdrop-nginx {change.name} --write puts a server block in place)")
        return
    services_named = ", ".join(change.wanted.services)
    follows = "it stays in place"
    if change.goes_back:
        follows = "the one before serves again" if change.is_back else "the one before is in place again, and not shown yet"
    what = "does not verify, for a client that trusts trust_roots" if change.untrusted else "is not shown" if change.now else "is not shown: nobody answers"
    missed = [f"{name} did not reload ({failed[name]})" for name in change.wanted.services if name in failed]
    _put_off(run, change, "issued-not-served", f"{'; '.join(missed) or services_named + ' reloaded'}, and generation {change.to:04d} {what}; {follows}")


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


def _put_off(run: Run, change: Change, what: str, text: str, follows: str = "a later run tries again, without asking the CA") -> None:
    change.notes.put_off(change.to, what, text, change.observed.pause(change.back, notes.BACK_OFF[-1]))
    change.notes.install["by"] = "issuer" if run.asked_by_issuer else "root"
    change.notes.save()
    event = events.NOT_SERVED if what == "issued-not-served" else events.SERVICE_FAILED
    run.log.write(event, site=change.name, number=change.to, error=text, tries=change.notes.install["tries"])
    run.fail(change.name, f"{text}; {follows}", os.EX_TEMPFAIL)

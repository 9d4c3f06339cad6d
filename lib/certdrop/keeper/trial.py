"""Has services test and reload what was moved, for many sites at once; finds in few tries which of them a service does not take, and moves that back.

Runs as: root, under the keeper's lock. Trusts: how a service's own commands end. Writes: live/, notes, copies.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from certdrop import events
from certdrop.config import site
from certdrop.keeper import copies, generations, notes, services, state
from certdrop.keeper.change import Change
from certdrop.keeper.run import Run

Used = dict[str, services.Service]


def _failures(names: set[str], act: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    """Of these services, those that this fails for, and what it says."""
    for name in sorted(names):
        try:
            act(name)
        except (services.Failed, site.ConfigError) as error:
            yield name, str(error)


def names_of(changes: list[Change]) -> set[str]:
    """The services that these sites use."""
    return {name for change in changes for name in change.wanted.services}


def found(run: Run, names: set[str]) -> tuple[Used, dict[str, str]]:
    """These services, and why some of them are none."""
    used: Used = {}
    missing = dict(_failures(names, lambda name: used.update({name: services.find(name)})))
    for service in used.values():
        service.waits = run.progress
    return used, missing


def _without_the_untested(run: Run, changes: list[Change], used: Used) -> dict[str, str]:
    """What does not pass its test as it is, and not without that which no run that came to its end has left as live, either. Where this helps, live is
    back, and then moved as ever."""
    broken = _failing(names_of(changes), used)
    untested = [change for change in changes if change.fallback is not None and broken.keys() & set(change.wanted.services)]
    if not untested:
        return broken
    for change in untested:
        go_back(change, change.fallback)
    still = _failing(set(broken), used)
    for change in untested:
        if still.keys() & set(change.wanted.services):
            go_back(change, change.back)
        else:
            change.back = change.fallback
            run.log.write(events.WENT_BACK, site=change.name, number=change.back)
    return still


def not_broken(run: Run, changes: list[Change], broken: dict[str, str]) -> list[Change]:
    """Those that no service which is broken keeps back."""
    good = []
    for change in changes:
        wrong = [f"{name} does not pass its test as it is: {broken[name]}" for name in change.wanted.services if name in broken]
        if wrong:
            put_off(run, change, "service-failed", f"{wrong[0]}; not this certificate's fault: the live one stays")
        else:
            good.append(change)
    return good


def move(run: Run, changes: list[Change], used: Used, sound: bool = False, again: bool = False) -> list[Change]:
    """Move these, test once, and where the test fails find whose fault it is in few tries: first whether the services were `sound` without them.
    Returns those that stay moved. Where a try failed before, or a service reads copies without a reload, nothing moves before it is known to be sound."""
    if not sound and any(change.notes.install or change.wanted.copy for change in changes):
        return move(run, not_broken(run, changes, _without_the_untested(run, changes, used)), used, sound=True)
    moved = []
    for change in changes:
        try:
            _use(change, change.to)
            moved.append(change)
        except (OSError, copies.Failed) as error:
            go_back(change, change.back)
            put_off(run, change, "service-failed", f"a copy could not be put in place: {error}")
    failing = _failing(names_of(moved), used)
    if not failing:
        return moved
    for change in moved:
        go_back(change, change.back)
    if not sound:
        return move(run, not_broken(run, moved, _without_the_untested(run, moved, used)), used, sound=True)
    if len(moved) > 1:
        half = len(moved) // 2
        return move(run, moved[:half], used, sound) + move(run, moved[half:], used, sound)
    change = moved[0]
    name, said = min(failing.items())
    text = f"with generation {change.to:04d} {name} does not pass its test: {said}"
    if change.notes.install or change.back == change.to or _failing(names_of(moved), used):
        put_off(run, change, "service-failed", text)
        return []
    if not again:
        return move(run, moved, used, sound, again=True)    # a full disk, or a test that was killed, is no fault of the certificate's
    # Good without it, twice bad with it, and for the first time: ask for another rather than wait for an administrator.
    put_off(run, change, "service-failed", text, "it is withdrawn, and another is asked for")
    generations.make_next(change.wanted, change.observed.highest + 1, None, now=True)
    generations.mark(change.name, change.to, "withdrawn")
    return []


def _use(change: Change, number: int | None) -> None:
    """live := this generation, and the copies that some services need with it."""
    if number is not None:
        if state.linked("live", change.name) != number:
            generations.move("live", change.name, number)
        copies.put(change.wanted, number)


def go_back(change: Change, number: int | None) -> None:
    """live := this generation again, and as many of its copies as can be put: what cannot be put was not put before, either."""
    with contextlib.suppress(OSError, copies.Failed):
        _use(change, number)


def _failing(names: set[str], used: Used) -> dict[str, str]:
    """Those of these services that do not pass their test as things are now, and what they say."""
    return dict(_failures(names, lambda name: used[name].test()))


def reload(run: Run, changes: list[Change], used: Used) -> dict[str, str]:
    """Reload what these sites use, each service once. Returns what failed; whether that matters, mostly the handshake tells."""
    failed = dict(_failures(names_of(changes), lambda name: used[name].reload()))
    for name, said in failed.items():
        run.log.write(events.SERVICE_FAILED, service=name, error=said)
    return failed


def reload_is_missed(run: Run, change: Change, used: Used, failed: dict[str, str]) -> bool:
    """Whether a reload failed where no handshake can tell whether that matters: then its exit status is what counts, as a program's that deploys."""
    for name in change.wanted.services:
        if name in failed and (not used[name].port or change.wanted.probe == "off"):
            put_off(run, change, "service-failed", f"generation {change.to:04d} is in place, and {name} did not reload: {failed[name]}")
            return True
    return False


def put_off(run: Run, change: Change, what: str, text: str, follows: str = "a later run tries again, without asking the CA") -> None:
    change.notes.put_off(change.to, what, text, change.observed.pause(change.back, notes.BACK_OFF[-1]))
    change.notes.install["by"] = "issuer" if run.asked_by_issuer else "root"
    change.notes.save()
    event = events.NOT_SERVED if what == "issued-not-served" else events.SERVICE_FAILED
    run.log.write(event, site=change.name, number=change.to, error=text, tries=change.notes.install["tries"])
    run.fail(change.name, f"{text}; {follows}", os.EX_TEMPFAIL)

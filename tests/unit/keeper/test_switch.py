"""What becomes of a site whose newest generation is not in use yet: what is decided by what was seen, and how many wait together for a reload to show."""

from __future__ import annotations

import types
from typing import Any, Iterator

import pytest

from certdrop.config import site
from certdrop.keeper import change as decided
from certdrop.keeper import judges, switch
from certdrop.keeper.change import Change
from certdrop.keeper.judges import Seen

HERE, THERE = ("127.0.0.1", 443, ""), ("::1", 443, "")
FAR = 1 << 39


def change(name: str = "example.org", live: int | None = 2, proven: int | None = 2, newest: int = 3, before: Any = None, **more: Any) -> Change:
    """Generation 3 is written, 2 is live and proven and was shown, unless it is said otherwise. The fingerprint of a generation is its number."""
    wanted = site.Site(name, site.Config())
    wanted.domains = [name]
    observed = types.SimpleNamespace(name=name, live=live, proven=proven, newest=newest, whole=[2, 3], complete=[2, 3], stands_in=False,
                                     sha256=lambda number: "" if number is None else str(number), moment=lambda *_: more.get("ends", FAR),
                                     facts=lambda *_: {"key": "ecdsa-p256"})
    noted = types.SimpleNamespace(install=more.get("install", {}), spent={"1": FAR}, is_put_off=lambda number: number in more.get("put_off", ()))
    found = Change(wanted, observed, noted, more.get("outdated", False))  # type: ignore[arg-type]
    found.before = {HERE: "2"} if before is None else before
    return found


@pytest.mark.parametrize("what, plan", [
    ({}, decided.SWITCH),                                                        # written, not moved
    ({"live": 3}, decided.SWITCH),                                               # moved, not proven
    ({"live": 3, "proven": 3}, decided.NOTHING),
    ({"live": 3, "proven": 3, "outdated": True}, decided.SWITCH),                # a copy is lost
    ({"put_off": (3,)}, decided.NOTHING),
    ({"live": 3, "put_off": (3,)}, decided.ASK),                                 # whoever started the service meanwhile had it read this
    ({"live": 3, "put_off": (3,), "outdated": True}, decided.NOTHING),
    ({"put_off": (2,)}, decided.SWITCH),                                         # another one was
    ({"ends": 1000}, decided.NOTHING),                                           # expired
    ({"live": 3, "ends": 1000}, decided.ASK),
])
def test_what_is_to_be_done(what: dict[str, Any], plan: str) -> None:
    """By where the site stands, and what was put off."""
    assert plan == decided.plan(change(**what), False, False, 1000.0)


def test_a_placeholder_is_copied_and_switched_by_nobody() -> None:
    """Its copies are put where there is nothing yet, so that a service can start."""
    for outdated, plan in ((True, decided.COPY), (False, decided.NOTHING)):
        found = change(outdated=outdated)
        found.observed.stands_in = True  # type: ignore[misc]
        assert plan == decided.plan(found, True, False, 0.0)


def test_nobody_is_asked_where_that_is_off() -> None:
    """A site that cannot be asked for is not asked for again."""
    found = change(live=3, put_off=(3,))
    found.wanted.probe = "off"
    assert decided.NOTHING == decided.plan(found, False, False, 0.0)


@pytest.mark.parametrize("by, insist, asked_by_issuer, due", [
    ("issuer", False, False, True), ("issuer", False, True, False), ("root", False, False, False), ("root", True, False, True), (None, False, True, False),
])
def test_what_failed_in_the_issuers_run_binds_no_other(by: str | None, insist: bool, asked_by_issuer: bool, due: bool) -> None:
    """A put-off that was noted in a run which the issuer asked for holds back such runs alone; one of root's own holds back all, but whoever insists."""
    found = change(put_off=(3,), install={"by": by} if by else {})
    assert due == (decided.plan(found, insist, asked_by_issuer, 0.0) == decided.SWITCH)


@pytest.mark.parametrize("what, state, after, outcome", [
    ({}, "shown", {HERE: "3"}, decided.SERVED),
    ({}, "other", {HERE: "2"}, decided.BACK),                                    # the one before was shown, and can be again
    ({}, "other", {}, decided.BACK),
    ({}, "untrusted", {HERE: "3"}, decided.BACK),
    ({"before": {}}, "other", {}, decided.STAYS),                                # the service is down: going back would not help
    ({"before": {}}, "untrusted", {HERE: "3"}, decided.BACK),                    # it was started meanwhile, and this one is no good
    ({"before": {HERE: "1"}}, "other", {HERE: "1"}, decided.STAYS),              # shown was one from long ago
    ({"proven": None}, "untrusted", {HERE: "3"}, decided.STAYS),                 # there is none to go back to
    ({"live": 3, "proven": 3}, "untrusted", {HERE: "3"}, decided.STAYS),
    ({"proven": None, "before": {HERE: "4"}}, "other", {HERE: "4"}, decided.UNSERVED),       # another block answers
    ({"proven": None, "before": {}}, "other", {}, decided.UNSERVED),
])
def test_how_it_ended(what: dict[str, Any], state: str, after: dict[judges.Place, str], outcome: str) -> None:
    """The table of DESIGN.md, by what was shown before and after."""
    found = change(**what)
    found.after, found.heard = Seen(state, after), True
    assert outcome == decided.outcome(found)


def test_what_nobody_was_asked_of_is_not_taken_back() -> None:
    """A run that had no time to ask has seen nothing wrong: the new one stays, and the next run asks."""
    found = change()
    assert decided.outcome(found) == decided.STAYS
    found.heard = True
    assert decided.outcome(found) == decided.BACK


@pytest.mark.parametrize("what, patience", [({}, decided.PATIENCE), ({"before": {}}, decided.PATIENCE), ({"proven": None}, decided.PATIENCE),
                                            ({"proven": None, "before": {HERE: "4"}}, decided.GRACE), ({"proven": None, "before": {}}, 0.0)])
def test_how_long_it_is_waited_for(what: dict[str, Any], patience: float) -> None:
    """A service that knows the site must show it; where another block answers it may come; where nobody answers nobody is waited for."""
    assert patience == change(**what).patience


def test_what_the_judge_is_asked() -> None:
    """Forwards: the new one, by all who showed this site, none of its others by anybody, and good. Backwards: the one before, and no more the new one."""
    used: Any = {"nginx": types.SimpleNamespace(port=443, starttls=""), "silent": types.SimpleNamespace(port=0, starttls=""),
                 "other": types.SimpleNamespace(port=25, starttls="smtp")}
    found = change(before={HERE: "2", THERE: "4"})
    found.wanted.services = ["nginx", "silent"]
    forward, back, just = (found.question(used, number) for number in (3, 2, None))
    assert ("3", ["1", "2"], [HERE], True) == tuple(forward[key] for key in ("wanted", "others", "known", "verify"))
    assert ("2", ["3"], [], False) == tuple(back[key] for key in ("wanted", "others", "known", "verify"))
    assert "" == just["wanted"] and [(443, "")] == forward["ports"] == back["ports"]


class World:
    """What is shown since when, and who was asked when: time passes only while the judge waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shown_at: dict[str, float] = {}
        self.proven: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.reloads = 0

    def looks(self, _: str, questions: list[dict[str, Any]], most: float) -> Iterator[Seen]:
        """The judge, as judge/served.py waits."""
        began = self.now
        for question in questions:
            assert question["patience"] <= most
            until = max(self.now, min(self.shown_at.get(question["names"][0], FAR), began + question["patience"]))
            self.now = self.last[question["names"][0]] = until
            yield Seen("shown" if until >= self.shown_at.get(question["names"][0], FAR) else "other", {})
            self.now += 0.01

    def wait(self, changes: list[Change]) -> list[str]:
        run: Any = types.SimpleNamespace(end=float("inf"), progress=lambda text: None, config=site.Config())

        def heard(_: Any, one: Change, seen: Seen) -> None:
            if seen.state == "shown":
                self.proven[one.name] = self.now
        return [one.name for one in switch._wait(run, changes, {}, 1.0, lambda one: one.to, heard)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(judges, "looks", made.looks)
    monkeypatch.setattr(switch.trial, "reload", lambda _, late, __: setattr(made, "reloads", made.reloads + bool(late)))
    return made


def test_one_that_is_never_shown_holds_up_nobody(world: World) -> None:
    """The others are proven at once, each by its own answer, whichever the bad one is; it alone waits for the end of its patience."""
    names = [f"s{number}" for number in range(20)]
    for bad in ("s0", "s7", "s19"):
        world.proven.clear()
        begin = world.now
        world.shown_at = {name: begin for name in names if name != bad}
        assert [bad] == world.wait([change(name) for name in names])
        assert {*names} - {bad} == {*world.proven} and max(world.proven.values()) < begin + 1
        assert world.last[bad] >= begin + decided.PATIENCE


def test_each_has_its_last_chance(world: World) -> None:
    """However many are not shown: none is given up without an answer to a question that was asked late enough; services are reloaded once more before."""
    names = [f"s{number}" for number in range(30)]
    begin = world.now
    world.shown_at = {"s29": begin + decided.PATIENCE - 0.5}
    assert {*names[:-1]} == {*world.wait([change(name) for name in names])}
    assert all(world.last[name] >= begin + decided.PATIENCE for name in names[:-1])
    assert 1 == world.reloads


def test_a_reload_that_takes_its_time_is_waited_for(world: World) -> None:
    """All sites are shown when it is done."""
    names = [f"s{number}" for number in range(30)]
    world.shown_at = dict.fromkeys(names, world.now + 2.0)
    assert [] == world.wait([change(name) for name in names])
    assert 0 == world.reloads


def test_nobody_waits_for_a_site_that_nobody_showed(world: World) -> None:
    """A site without patience is asked once; beside others it keeps none of them from being asked."""
    quiet = [change(f"q{number}", proven=None, before={}) for number in range(3)]
    begin = world.now
    assert ["q0"] == world.wait(quiet[:1]) and world.now < begin + 0.1
    world.shown_at = {"a": world.now + 0.1, "b": world.now + 0.1}
    begin = world.now
    assert {"q0", "q1", "q2"} == {*world.wait([*quiet, change("a"), change("b")])}
    assert world.now < begin + 1 and 0 == world.reloads

"""How the keeper asks whether a reload shows, when many sites wait for it: in a world where time passes only while somebody waits or asks."""

from __future__ import annotations

import types

import pytest

from certdrop.keeper import switch

ASK = 0.01                         # seconds that a question takes here


class World:
    """A clock, what is shown since when, and who was asked when."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shown_at: dict[str, float] = {}
        self.asked: list[tuple[str, float]] = []
        self.reloads = 0

    def is_served(self, _run, change, _used, _judge) -> bool:
        self.asked.append((change.name, self.now))
        self.now += ASK
        return self.now >= self.shown_at.get(change.name, float("inf"))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def reload(self, *_: object) -> None:
        self.reloads += 1

    def wait(self, changes) -> list[str]:
        run = types.SimpleNamespace(end=self.now + 600, progress=lambda text: None)
        return [change.name for change in switch._wait(run, changes, {}, None, 1.0, self.is_served)]


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(switch.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(switch.time, "sleep", made.sleep)
    monkeypatch.setattr(switch, "_reload", made.reload)
    return made


def changes(*names: str, patience: float = switch.PATIENCE) -> list[types.SimpleNamespace]:
    return [types.SimpleNamespace(name=name, patience=patience) for name in names]


def test_one_answers_for_all_while_a_reload_goes_on(world):
    """A service shows all its sites at once: before it does, one question a round is enough; afterwards each site is asked for itself."""
    names = [f"s{number}" for number in range(50)]
    world.shown_at = dict.fromkeys(names, world.now + 0.2)
    assert [] == world.wait(changes(*names))
    early = [name for name, when in world.asked if when < 100.19]
    assert 2 < len(early) < 10
    assert set(names) == {name for name, when in world.asked if when > 100.18}


def test_one_that_is_never_shown_holds_up_nobody(world):
    """The others are proven at once, each by its own answer, whichever the bad one is; it alone waits for the end of its patience."""
    names = [f"s{number}" for number in range(20)]
    for bad in ("s0", "s7", "s19"):
        world.asked.clear()
        begin = world.now
        world.shown_at = {name: begin for name in names if name != bad}
        assert [bad] == world.wait(changes(*names))
        assert max(when for name, when in world.asked if name != bad) < begin + 1
        assert world.asked[-1][0] == bad and world.asked[-1][1] >= begin + switch.PATIENCE


def test_each_has_its_last_chance(world):
    """However many are not shown: none is given up without an answer to a question that was asked late enough."""
    names = [f"s{number}" for number in range(30)]
    begin = world.now
    world.shown_at = {"s29": begin + switch.PATIENCE - 0.5}
    assert set(names[:-1]) == set(world.wait(changes(*names)))
    last = {name: when for name, when in world.asked}
    assert all(last[name] >= begin + switch.PATIENCE for name in names[:-1])
    assert 1 == world.reloads


def test_nobody_waits_for_a_site_that_nobody_showed(world):
    """A site without patience is asked once where it waits alone; beside others it keeps none of them from being asked."""
    assert ["quiet"] == world.wait(changes("quiet", patience=0.0))
    assert 1 == len(world.asked)
    world.asked.clear()
    begin = world.now
    world.shown_at = {"a": begin + 0.1, "b": begin + 0.1}
    waiting = [*changes("q1", "q2", "q3", patience=0.0), *changes("a", "b")]
    assert {"q1", "q2", "q3"} == set(world.wait(waiting))
    assert world.now < begin + 1


@pytest.mark.parametrize("by, insist, asked_by_issuer, due", [
    ("issuer", False, False, True), ("issuer", False, True, False), ("root", False, False, False), ("root", True, False, True), (None, False, True, False),
])
def test_what_failed_in_the_issuers_run_binds_no_other(monkeypatch, by, insist, asked_by_issuer, due):
    """A put-off that was noted in a run which the issuer asked for holds back such runs alone; one of root's own holds back all, but whoever insists."""
    change = switch.Change.__new__(switch.Change)
    change.name, change.to, change.back, change.outdated = "example.org", 3, 2, False
    change.observed = types.SimpleNamespace(proven=2, stands_in=False, moment=lambda *_: float("inf"))
    change.notes = types.SimpleNamespace(install={"by": by} if by else {}, is_put_off=lambda number: number == 3)
    assert change.is_due(insist, asked_by_issuer) == due

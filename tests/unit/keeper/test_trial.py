"""Moving many sites at once: a service reads its configuration once where all goes well, and whose fault it is where it does not is found after the fact."""

from __future__ import annotations

import itertools
import types
from typing import Any

import pytest

from certdrop.config import site
from certdrop.keeper import copies, generations, services, state, trial
from certdrop.keeper.change import Change


class Killed(BaseException):
    """kill -9."""


class World:
    """What is live, and what a service does not take: a generation, or anything at all where somebody broke its files."""

    def __init__(self) -> None:
        self.live: dict[str, int] = {}
        self.unfit: set[tuple[str, int]] = set()
        self.broken: set[str] = set()
        self.acts: list[str] = []
        self.withdrawn: list[tuple[str, int]] = []
        self.said: dict[str, str] = {}
        self.steps = itertools.count(-1_000_000)       # until 0, when the run is killed
        self.fails: set[int] = set()                   # which tests fail, whatever is live: a full disk, or somebody's hand

    def act(self, text: str) -> None:
        if next(self.steps) == 0:
            raise Killed
        self.acts.append(text)

    def move(self, link: str, name: str, number: int) -> None:
        self.act(f"{name} {number}")
        self.live[name] = number

    def test(self, service: str) -> None:
        self.act(service)
        if service in self.broken or len(self.tests) in self.fails or any(at in self.unfit for at in self.live.items()):
            raise services.Failed("emerg")

    def change(self, name: str, back: int = 2, proven: int | None = 2, of: tuple[str, ...] = ("nginx",), install: Any = None, to: int = 3) -> Change:
        """Generation 3 is written, and 2 is live and proven."""
        wanted = site.Site(name, site.Config())
        wanted.services = list(of)
        self.live.setdefault(name, back)
        observed = types.SimpleNamespace(name=name, live=self.live[name], proven=proven, newest=to, complete=[1, 2, 3], highest=4, pause=lambda *_: 60)
        noted = types.SimpleNamespace(install=install or {}, save=lambda: None)
        noted.put_off = lambda number, what, text, most: noted.install.update(number=number, text=text, tries=1)
        return Change(wanted, observed, noted)  # type: ignore[arg-type]

    def run(self, *changes: Change) -> list[str]:
        """The names of those that stay moved."""
        run: Any = types.SimpleNamespace(asked_by_issuer=False, progress=lambda _: None, log=types.SimpleNamespace(write=lambda *_, **__: None),
                                         fail=lambda name, text, _: self.said.update({name: text}))
        used, missing = trial.found(run, trial.names_of([*changes]))
        return [change.name for change in trial.move(run, trial.not_broken(run, [*changes], missing), used)]

    @property
    def tests(self) -> list[str]:
        return [act for act in self.acts if " " not in act]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(generations, "move", made.move)
    monkeypatch.setattr(state, "linked", lambda _, name: made.live[name])
    monkeypatch.setattr(copies, "put", lambda *_: None)
    monkeypatch.setattr(generations, "make_next", lambda *_, **__: None)
    monkeypatch.setattr(generations, "mark", lambda name, number, _: made.withdrawn.append((name, number)))
    monkeypatch.setattr(services, "find", lambda name: types.SimpleNamespace(test=lambda: made.test(name)))
    return made


def test_each_service_is_tested_once(world: World) -> None:
    """Where all goes well: with everything moved, and no more."""
    assert ["a", "b", "c"] == world.run(world.change("a"), world.change("b", of=("nginx", "postfix")), world.change("c"))
    assert ["nginx", "postfix"] == world.tests and {"a": 3, "b": 3, "c": 3} == world.live


def test_what_somebody_broke_is_no_certificates_fault(world: World) -> None:
    """What was live is live, nothing is withdrawn, it is said, and it takes two tests to know it; what uses another service goes on."""
    world.broken = {"nginx"}
    assert ["b"] == world.run(world.change("a"), world.change("b", of=("postfix",)), world.change("c", of=("postfix", "nginx")))
    assert {"a": 2, "b": 3, "c": 2} == world.live and not world.withdrawn and world.tests.count("nginx") == 2
    for name in ("a", "c"):
        assert "nginx does not pass its test as it is: emerg; not this certificate's fault: the live one stays" in world.said[name]


def test_what_failed_before_is_tested_before_it_moves(world: World) -> None:
    """So that live does not go to and fro while somebody looks for a mistake."""
    world.broken = {"nginx"}
    assert [] == world.run(world.change("a"), world.change("b", install={"number": 3}))
    assert ["nginx"] == world.acts


def test_copies_are_not_put_for_a_try(world: World) -> None:
    """Who reads copies reads them without a reload: they are written where the service was sound before."""
    world.broken = {"nginx"}
    copied = world.change("a")
    copied.wanted.copy = [{"path": "/x"}]
    assert [] == world.run(copied) and ["nginx"] == world.acts


def test_a_bad_certificate_holds_up_no_other(world: World) -> None:
    """It alone is moved back, and withdrawn: good without it, twice bad with it, and for the first time."""
    world.unfit = {("c", 3)}
    assert ["a", "b", "d"] == world.run(*map(world.change, "abcd"))
    assert {"a": 3, "b": 3, "c": 2, "d": 3} == world.live and [("c", 3)] == world.withdrawn


@pytest.mark.parametrize("fails, live, withdrawn", [
    ({1}, 3, False), ({1, 2}, 2, False), ({1, 3}, 3, False), ({1, 3, 4}, 2, False), ({1, 3, 5}, 2, True), ({1, 3, 5, 6}, 2, False),
])
def test_only_what_is_twice_bad_between_good_ones_is_withdrawn(world: World, fails: set[int], live: int, withdrawn: bool) -> None:
    """Moved, as it was, moved, as it was, moved, as it was: which of these tests fail, where somebody's hand is in it."""
    world.fails = fails
    world.run(world.change("a"))
    assert {"a": live} == world.live and withdrawn == bool(world.withdrawn)


@pytest.mark.parametrize("proven, fallback", [(2, 2), (None, 1)])
def test_what_a_killed_run_moved_is_tried_without(world: World, proven: int | None, fallback: int) -> None:
    """Live was moved by a run that was killed before its test, to what the service does not take: the one before is live again, and the new one is moved."""
    world.unfit = {("a", 2), ("a", 3)} if proven is None else {("a", 3)}
    assert [] == world.run(world.change("a", back=3 if proven else 2, proven=proven))
    assert {"a": fallback} == world.live and [("a", 3)] == world.withdrawn


@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize("unfit", [True, False])
def test_killed_anywhere(world: World, broken: bool, unfit: bool) -> None:
    """The next run, once the service is mended, ends as if nothing had been; before that, nothing is blamed on a certificate."""
    for at in itertools.count():
        world.live, world.withdrawn, world.acts = {}, [], []
        world.broken, world.unfit = {"nginx"} if broken else set(), {("b", 3)} if unfit else set()
        world.steps = itertools.count(-at)
        whole = False
        try:
            world.run(*map(world.change, "abc"))
            whole = True
        except Killed:
            pass
        world.steps = itertools.count(1)
        if broken:
            world.run(*map(world.change, "abc"))
            assert not world.withdrawn
        world.broken = set()
        world.run(*(world.change(name) for name in "abc" if (name, 3) not in world.withdrawn))
        assert {"a": 3, "b": 2 if unfit else 3, "c": 3} == world.live and ([("b", 3)] if unfit else []) == world.withdrawn
        if whole:
            break
    assert at > 3

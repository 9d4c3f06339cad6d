"""What is said of CAs to fall back on: good only where one was asked, has an account of ours, and may issue for each name as it is proven."""

from __future__ import annotations

from typing import Any

import pytest

from certdrop.config import general, persist, site
from certdrop.doctor import ca, fallback, names
from certdrop.doctor.line import FAILED, OK, WARNING, Line

SECOND = "https://second.test/dir"
GOOD = Line(OK, "CA", "second.test answers, its certificate is valid")


def look(monkeypatch: pytest.MonkeyPatch, said: list[Line], account: str = "https://second.test/1", forbidden: tuple[tuple[str, str], ...] = (),
         count: int = 1) -> tuple[list[Line], list[tuple[Any, ...]]]:
    """The lines, and what was asked of CAA records."""
    asked: list[tuple[Any, ...]] = []

    def caa(domain: str, authority: names.Authority, method: str, wildcard: bool) -> names.Obstacles:
        asked.append((domain, method, wildcard))
        return [names.Obstacle(level, "CAA at test has other", "add one") for name, level in forbidden if name == domain]
    monkeypatch.setattr(ca, "look", lambda config, *_: (said, names.Authority(["second.test"], account, True)))
    monkeypatch.setattr(names, "caa", caa)
    config = general.Config()
    found = []
    for number in range(count):
        found.append(site.Site(f"s{number}.test", config))
        found[-1].domains, found[-1].fallback = [f"s{number}.test"], [SECOND]
    found[0].domains.append("*.s0.test")
    found[0].validation = persist.METHOD
    return fallback.look(found, config), asked


def test_one_that_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; each name is asked for as it is proven, and a wildcard as one."""
    (line,), asked = look(monkeypatch, [GOOD, Line(WARNING, "account", "has no contact")], count=2)
    assert line.level == OK and "second.test answers, has an account of ours, and may issue for 2 sites" in line.why
    assert asked == [("s0.test", persist.METHOD, False), ("s0.test", persist.METHOD, True), ("s1.test", "http-01", False)]


@pytest.mark.parametrize("level", [WARNING, FAILED])
def test_one_that_was_not_asked_or_does_not_answer(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """As where the proxy's password is not for the doctor: nothing is good of which nothing is known. It is no failure, either: the first CA works."""
    lines, _ = look(monkeypatch, [Line(level, "CA", "the proxy to it wants a password", "sudo certdrop-check")])
    assert [(line.level, line.what) for line in lines] == [(WARNING, "fallback")] and "password" in lines[0].why


def test_one_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is made in passing; the command that makes one is told."""
    (line,), _ = look(monkeypatch, [GOOD], account="")
    assert line.level == WARNING and line.mend == f"sudo certdrop-account register --directory {SECOND}"


@pytest.mark.parametrize("level", [WARNING, FAILED])
def test_one_that_may_not_issue(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """By a CAA record, or perhaps not."""
    lines, _ = look(monkeypatch, [GOOD], forbidden=(("s1.test", level),), count=2)
    assert [line.level for line in lines] == [WARNING] and "CAA at test" in lines[0].why and "second.test" in lines[0].why


def test_many_names_are_no_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many lines, and no more."""
    lines, _ = look(monkeypatch, [GOOD], forbidden=tuple((f"s{number}.test", FAILED) for number in range(100)), count=100)
    assert len(lines) == fallback.MOST


def test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked, and nothing said."""
    monkeypatch.setattr(ca, "look", lambda *_: pytest.fail("asked"))
    assert fallback.look([site.Site("a.test", general.Config())], general.Config()) == []

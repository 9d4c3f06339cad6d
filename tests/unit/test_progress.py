"""What a person who waits is told: what goes on and for how long, from the second second; and nobody else."""

from __future__ import annotations

import contextlib
import os
import pty
import time

import pytest

from certdrop import progress, words
from certdrop.progress import Progress, span
from certdrop.terminal import colours


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said, at a terminal where time goes ten times as fast."""
    found: list[str] = []
    monkeypatch.setattr(words, "at_terminal", lambda fd: True)
    monkeypatch.setattr(progress, "say", found.append)
    for name in ("FIRST", "LOOK", "AGAIN"):
        monkeypatch.setattr(progress, name, getattr(progress, name) / 10)
    return found


def wait_for(said: list[str], count: int) -> None:
    end = time.monotonic() + 10
    while len(said) < count and time.monotonic() < end:
        time.sleep(0.005)
    assert len(said) >= count, said


def test_what_is_quick_says_nothing(said: list[str]) -> None:
    with Progress("certdrop-x") as found:
        found.at("a.test", "ordering")
    time.sleep(0.2)
    assert said == []


def test_what_takes_longer_is_told_when_it_changes_and_when_it_goes_on(said: list[str]) -> None:
    with Progress("certdrop-x") as found:
        found.at("a.test", "ordering")
        wait_for(said, 2)
        found.at("a.test", "validating 2 of 5")
        wait_for(said, 3)
    assert [line.rpartition(" (")[0] for line in said[:3]] == ["certdrop-x: a.test: ordering"] * 2 + ["certdrop-x: a.test: validating 2 of 5"]
    assert said[0].endswith(" s)")


def test_at_a_terminal_itself() -> None:
    """Where standard error is the terminal, and no pipe to root: the line comes, and no traceback."""
    child, fd = pty.fork()
    if child == 0:
        progress.FIRST = 0.05
        with Progress("certdrop-x") as found:
            found.at("a.test", "ordering")
            time.sleep(0.5)
        os._exit(0)
    shown = b""
    with contextlib.suppress(OSError):         # EIO: its end
        while more := os.read(fd, 4096):
            shown += more
    os.waitpid(child, 0)
    os.close(fd)
    assert shown.decode() == "certdrop-x: a.test: ordering (0 s)\r\n"


def test_of_many_the_count_and_some(said: list[str]) -> None:
    found = Progress("certdrop-x", 5)
    for name in "abcd":
        found.at(name, "ordering")
    found.done("a")
    assert found.text() == "1 of 5 done; b: ordering, c: ordering, and 1 more"
    for name in "bcd":
        found.done(name)
    assert found.text() == ""


@pytest.mark.parametrize("terminal, shown", [(False, True), (True, False)])
def test_a_pipe_and_quiet_get_none(terminal: bool, shown: bool, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "at_terminal", lambda fd: terminal)
    with Progress("certdrop-x", shown=shown) as found:
        found.at("a.test", "ordering")
        time.sleep(0.3)
    assert said == []


@pytest.mark.parametrize("environment, terminal, expected", [
    ({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"NO_COLOR": ""}, True, True), ({"TERM": "dumb"}, True, False)])
def test_colours_only_at_a_terminal_that_wants_them(environment: dict[str, str], terminal: bool, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR counts where it is set and not empty."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(words, "at_terminal", lambda fd: terminal)
    assert colours(1) == expected


@pytest.mark.parametrize("seconds, text", [(1.2, "1 s"), (119, "119 s"), (125, "2 min 5 s")])
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text

"""That the issuer tells, once a day, who else of certdrop's does not run."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from certdrop import events
from certdrop.config import site
from certdrop.issuer import command as issue


@pytest.mark.parametrize("ago, told", [(3600, False), (2 * 86400, True), (-30, False), (-30 * 86400, True)])
def test_a_moment_that_has_not_come_is_no_sign_of_life(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, ago: float, told: bool) -> None:
    """Whoever owns the stamp can give it any time, and so can a clock that stood ahead."""
    said: list[str] = []
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(events, "LOGS", str(tmp_path))
    monkeypatch.setattr(issue, "say", lambda text, *_: said.append(text.split()[1]))
    now = time.time()
    for stamp, when in (("keeper/last-run", 60.0), ("watcher/state.json", ago)):
        (tmp_path / stamp).parent.mkdir()
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (0, now - when))
    issue._tell_silences(now)
    assert ["watcher"] * told == said


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a run that has nothing to do: budget and tally are not written again before the next order. What else is there stays."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    parent = tmp_path / "issuer"
    for path in (parent / ".tally.new" / "odd", parent):
        path.mkdir(parents=True, exist_ok=True)
    for entry in (".budget.new", "tally", ".other.new", "last-run"):
        (parent / entry).touch()
    monkeypatch.setattr(issue.posted, "requests", lambda: ([], set(), []))
    monkeypatch.setattr(issue, "Agenda", lambda now: None)
    monkeypatch.setattr(issue.os, "listdir", lambda path: [])
    monkeypatch.setattr(issue.tokens, "directory", lambda: str(tmp_path))
    assert issue._look(issue.Options([], False))[:2] == (os.EX_OK, False)
    monkeypatch.undo()
    assert sorted(os.listdir(parent)) == [".other.new", ".tally.new", "last-run", "lock", "tally"]

"""A keeper that is killed or failed anywhere: an evenly spread sample of the points that `torture --all` goes through.

The names of the tests are those of the steps in keeper/state.py, where there is one.
"""

from __future__ import annotations

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ordeal  # noqa: E402
from cases import CASES  # noqa: E402
from ordeal import Trial, Verdict  # noqa: E402
from tracer import ERRORS, KILL, Use  # noqa: E402

KILLS, EACH_ERROR = 60, 12
JOBS = 4                                           # a trial mostly waits

# Points that once went wrong, by what they are about: case, process, call, a part of the path, fault.
PINNED = {
    "4_placeholder_notes_are_cut_off": ("add", "keeper", "write", "/keeper/.t.example.org.json.new", KILL),
    "10_remove_old_generations": ("rollback", "keeper", "unlinkat", "/nginx.conf", KILL),
    "11_test_after_the_move_is_killed": ("install", "nginx#2", "openat", "access.log", KILL),
    "11_test_after_the_move_meets_a_full_disk": ("rollback", "nginx#2", "openat", "access.log", "ENOSPC"),
}


class Report:
    """The recorded runs, and the verdict on each chosen trial."""

    def __init__(self) -> None:
        self.uses, self.wrong = ordeal.recorded(list(CASES))
        self.pinned = {name: self._find(*what) for name, what in PINNED.items()}
        chosen = ordeal.sample(self.uses, KILLS, EACH_ERROR)
        self.verdicts: list[Verdict] = ordeal.try_all([*chosen, *self.pinned.values()], JOBS)

    def _find(self, case: str, process: str, call: str, about: str, fault: str) -> Trial:
        found: list[Use] = [use for use in self.uses[case] if use.point.process == process and use.point.call == call and about in use.about]
        return Trial(case, found[0].point, fault)

    def wrong_with(self, fault: str) -> list[str]:
        """What went wrong in the trials with this fault."""
        return [f"{verdict.trial} ({verdict.about}): {text}" for verdict in self.verdicts if verdict.trial.endswith(" " + fault) for text in verdict.wrong]


@pytest.fixture(scope="module")
def report() -> Report:
    """All trials at once, since scenes run side by side."""
    return Report()


def test_undisturbed_runs_reach_what_was_wanted(report: Report) -> None:
    """add, install, rotate, rollback and remove come to their end, write no key that others may read, and leave nothing behind."""
    assert report.wrong == []
    assert all(len(found) > 40 for found in report.uses.values())


@pytest.mark.parametrize("case", list(CASES))
def test_killed_anywhere(report: Report, case: str) -> None:
    """After a SIGKILL nginx can start with a matching pair, keys are root's alone, and one more run gets there, without the CA where it had answered."""
    assert [text for text in report.wrong_with(KILL) if text.startswith(case + " ")] == []
    assert sum(verdict.trial.startswith(case + " ") and verdict.trial.endswith(KILL) for verdict in report.verdicts) >= 2


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_anywhere(report: Report, error: str) -> None:
    """The old pair serves, the words are clear, the exit code is of sysexits.h and no bug's, and one more run gets there."""
    assert report.wrong_with(error) == []
    assert sum(verdict.trial.endswith(" " + error) for verdict in report.verdicts) >= EACH_ERROR


@pytest.mark.parametrize("name", list(PINNED))
def test_step(report: Report, name: str) -> None:
    """A point that once went wrong does not again."""
    trial = str(report.pinned[name])
    found = [verdict for verdict in report.verdicts if verdict.trial == trial]
    assert [text for verdict in found for text in verdict.wrong] == []
    assert all(verdict.reached for verdict in found)


def test_the_points_were_reached(report: Report) -> None:
    """Nearly every fault was delivered: runs are alike enough for a point of one to be a point of another."""
    assert sum(verdict.reached for verdict in report.verdicts) >= 0.9 * len(report.verdicts)

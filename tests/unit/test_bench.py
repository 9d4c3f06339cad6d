"""What the benchmark makes of its numbers: a day's cost, and that README.md says nothing else than what was measured."""

from __future__ import annotations

import importlib.util
import math
import pathlib
import types
from typing import Any

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(name="report", scope="module")
def _report() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("bench_report", BENCH / "report.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cost(cpu: float) -> dict[str, float]:
    return {"wall": 2 * cpu, "cpu": cpu, "memory": 9.0}


def row(cpu: float) -> dict[str, float]:
    return {**cost(cpu), "count": 1, "requests": 9, "connections": 1, "bad": 0, "runs": 1}


@pytest.fixture(name="found")
def _found() -> dict[str, Any]:
    """Results that are quickly added up."""
    about = {"date": "2026-11-23 10:00 UTC", "seconds": 1, "rounds": 1, "debian": "12.11", "kernel": "6", "python": "3.11", "cores": 2, "processor": "P",
             "load": [0], "versions": {"certdrop": "0.1.0"}}
    ticks = {name: {"1": cost(0.5), "1000": cost(2.0)} for name in ("certdrop", "certbot", "lacme", "certdrop-install, by root's cron")}
    names = {"tick": 0.01, "poll": 0.1, "poll one": 0.05, "root": 0.2, "watcher": 0.3, "renewal": 1.0}
    return {"tick": {"sizes": [1, 1000], "costs": ticks, "about": about},
            "issue": {"one": {"0.0": {"certdrop": row(1.0), "certdrop, without root's part": row(0.5), "certbot": row(3.0)}}, "many": {}, "about": about},
            "rotate": {"50 keys": {**cost(1.0), "sites": 50, "changed": 50, "reloads": 1, "handshakes": 9, "failed": 0, "slowest": 0.1,
                                   "requests": 9, "connections": 1},
                       "about": about},
            "day": {"sizes": [1, 1000, 10000], "most": 500, "about": about,
                    "costs": {name: {size: {**cost(cpu), "sites": 1} for size in ("1", "1000", "10000")} for name, cpu in names.items()}}}


def test_how_often_a_day(report: types.ModuleType) -> None:
    """Ticks come every ten minutes, whatever they do; at four questions a day and site, so many in a run."""
    for size, polls in ((1, 4), (5, 20), (6, 24), (1000, 24), (10000, 96)):
        often = report.times_a_day(size, 500)
        assert often["poll"] == polls and often["root"] == often["watcher"] == 24 and often["renewal"] == size / 60
        if size < 1000:
            assert math.isclose(often["tick"] + often["poll"] + often["poll one"], 144)


def test_a_day_is_the_sum(report: types.ModuleType, found: dict[str, Any]) -> None:
    """Of all programs; another client's of its runs and its certificates."""
    assert math.isclose(report.day_of(found["day"], "1"), (140 - 1 / 60) * 0.01 + 4 * 0.1 + 0.05 / 60 + 24 * 0.5 + 1 / 60)
    assert math.isclose(report.rivals_day(found, "certbot", "1000"), 2 * 2.0 + 1000 / 60 * 3.0)
    assert math.isnan(report.rivals_day(found, "lacme", "1000"))
    text = report.render(found)
    assert "## What a day costs" in text and "0.100 x 4 |" in text


def test_readme_says_what_was_measured(report: types.ModuleType, found: dict[str, Any]) -> None:
    """Each number between the marks is from the results: a number that was changed by hand, or another run's, is seen."""
    readme = f"before\n{report.BEGIN}old\n{report.END}after\n"
    written = report.quoted(readme, found)
    assert "a day with 1,000 sites, all programs (CPU alone)" in written and written.startswith("before\n") and written.endswith("after\n")
    assert report.quoted(written, found) == written
    found["day"]["costs"]["watcher"]["1"]["cpu"] = 0.4
    assert report.quoted(written, found) != written
    found["tick"]["costs"]["certdrop"]["1"]["wall"] = 0.7
    del found["day"]
    assert "a day with" not in report.quoted(written, found)

"""What the watcher says of a fleet: by the desk's report, whose words are those of hosts; and of the fleet's own certificates."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import time
from typing import Any

import pytest

from certdrop.config import site
from certdrop.fleet import authority
from certdrop.watcher import fleet, message

NOW = time.time()
DAY = 86400


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A desk with certificates that last."""
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    monkeypatch.setattr(fleet, "REPORT", str(tmp_path))
    (tmp_path / "fleet").mkdir()
    key, certificate = authority.make_ca()
    tls = authority.tls_key()
    (tmp_path / "fleet/ca.pem").write_bytes(certificate)
    for kind in ("host", "desk"):
        (tmp_path / f"fleet/{kind}.pem").write_bytes(authority.issue(key, certificate, "m", authority.point_of(tls)))
    (tmp_path / "fleet/desk.toml").write_text("")
    return tmp_path


def told(place: pathlib.Path, report: Any = None, now: float = NOW) -> dict[str, fleet.Problem]:
    """By key."""
    if report is not None:
        (place / "report.json").write_text(report if isinstance(report, str) else json.dumps(report))
    return {problem.key: problem for problem in fleet.problems(os.geteuid(), now)}


def test_all_is_well(place: pathlib.Path) -> None:
    assert told(place, {"looked": int(NOW - 300), "machines": 2, "sites": 3, "ends": int(NOW + DAY), "problems": [], "more": 0}) == {}


def test_what_the_desk_says(place: pathlib.Path) -> None:
    """A problem a line, which says what to do; of very many the rest in one line. What is none is left out."""
    said = [["web1 a:near-end", 2, "web1 a: ends soon\x1b[2J"], ["web1:silent", 1, "host web1: not heard of since x"],
            ["x", 9, "y"], [5, 1, "y"], "z", ["a", 1], ["b", True, "c"]]
    found = told(place, {"looked": int(NOW), "problems": said})
    assert [*found] == ["fleet:web1 a:near-end", "fleet:web1:silent", "fleet:b"]
    assert found["fleet:web1 a:near-end"].grave and "certdrop-fleet withdraw" in found["fleet:web1:silent"].facts[1][1]
    assert "\x1b" not in found["fleet:web1 a:near-end"].subject
    found = told(place, {"looked": int(NOW), "more": 600, "problems": [[f"web1 s{at}:csr", 1, "x" * 5000] for at in range(400)]})
    assert len(found) == fleet.MOST + 1 and found["fleet:more"].subject == f"fleet: {600 + 400 - fleet.MOST} more problems"
    subject, body = message.write("problem", [*found.values()], {}, {}, "desk1", NOW)
    assert len(json.dumps([subject, body])) < 100000


@pytest.mark.parametrize("hours, ends, grave", [(5, 30, None), (7, 30, False), (7, 3, True), (7, 0, False)])
def test_the_database_is_away(place: pathlib.Path, hours: float, ends: int, grave: Any) -> None:
    """After hours, with the days that are left; what was seen before is not said again, for nobody knows."""
    found = told(place, {"looked": int(NOW - 30 * 3600), "away": "no route", "away_since": int(NOW - hours * 3600), "ends": ends and int(NOW + ends * DAY),
                         "problems": [["web1:silent", 1, "host web1"]] if grave is not None else []})
    if grave is None:
        assert found == {}
        return
    (problem,) = found.values()
    assert problem.key == "fleet:database" and problem.grave == grave and ("why", "no route") in problem.facts
    assert any("first certificate ends" in text for _, text in problem.facts) == bool(ends)


@pytest.mark.parametrize("report", [None, "", "[]", "{", {"looked": int(NOW - 7 * 3600)}, {"looked": "x"}, "[" * 100000])
def test_the_desk_does_not_look(place: pathlib.Path, report: Any) -> None:
    """From when it joined on; not before hours are over."""
    os.utime(place / "fleet/desk.toml", (NOW - 7 * 3600, NOW - 7 * 3600))
    assert [*told(place, report)] == ["fleet:desk"]
    os.utime(place / "fleet/desk.toml")
    assert [*told(place, report)] == (["fleet:desk"] if isinstance(report, dict) and report["looked"] != "x" else [])


def test_certificates_of_the_fleets_own(place: pathlib.Path) -> None:
    """On a host, too, which has no report. Those of the roles that this machine has."""
    end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=365 * authority.YEARS)).timestamp()
    (place / "fleet/desk.toml").unlink()
    assert told(place, now=end - 30 * DAY) == {}, "in no fleet any more"
    (place / "fleet/host.toml").write_text("")
    assert told(place, now=end - 100 * DAY) == {}
    found = told(place, now=end - 30 * DAY)
    assert [os.path.basename(key) for key in found] == ["host.pem", "ca.pem"] and not any(problem.grave for problem in found.values())
    assert all(problem.grave for problem in told(place, now=end - 3 * DAY).values()) and "has ended" in [*told(place, now=end + DAY).values()][1].subject
    (place / "fleet/ca.pem").write_text("x")
    assert "ca.pem cannot be read" in [*told(place).values()][0].subject

"""What certdrop-fleet status shows of rows that hosts wrote: what is none is left out, and nothing of it reaches a terminal or a monitor raw."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from certdrop.fleet import database, status, walls
from certdrop.fleet.database import Away

NOW = time.time()
FORMS = ("", "--nagios", "--prometheus", "--json", "--html")


class Link:
    """In the place of the database."""

    def __init__(self, machines: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> None:
        self.found = {status.MACHINES: machines, status.QUERY: rows}

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        return self.found[statement]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """All forms, one after the other."""
    def show(machines: list[tuple[Any, ...]], rows: list[tuple[Any, ...]], forms: tuple[str, ...] = FORMS) -> str:
        machine = database.Machine("desk")
        machine.name = "desk1"
        monkeypatch.setattr(database, "machine", lambda kind: machine)
        monkeypatch.setattr(walls, "shut_in", lambda *_: [])
        monkeypatch.setattr(status, "Database", lambda info: Link(machines, rows))
        codes = [status.show(form) for form in forms]
        return str(capsys.readouterr().out) + (f"code {codes[0]}" if len(forms) == 1 else "")
    return show


def row(body: str = "{}", host: Any = "web1", name: Any = "a", desk: Any = "desk1", said: Any = "", number: Any = 3, kind: str = "csr") -> tuple[Any, ...]:
    return host, name, number, False, desk, said, body, kind


def cert(begun: float, lasts: float = 90 * 86400) -> str:
    """What a host says of a certificate that began so many seconds ago."""
    return json.dumps({"cert": {"sha256": "a" * 64, "not_before": int(NOW - begun), "not_after": int(NOW - begun + lasts)}})


@pytest.mark.parametrize("end", [True, False, -1, 1e300, "x", [], None, 10 ** 400])
def test_a_date_that_is_none(shown: Any, end: object) -> None:
    found = shown([], [row(json.dumps({"cert": {"not_after": end}})), row(said=json.dumps({"renew_at": end, "count": 1, "last_error": "y"}))],
                  ("", "--prometheus"))
    assert found.count("web1  a     placeholder  -") + found.count("web1  a     failing      -") == 2 and "None" not in found and "True" not in found
    assert "not_after_timestamp_seconds{" not in found and "renew_at_timestamp_seconds{" not in found


@pytest.mark.parametrize("ago", [float("-inf"), float("inf"), float("nan"), 2e11, -1e13, 3e17, True, "x"])
def test_a_machine_whose_time_is_none(shown: Any, ago: object) -> None:
    assert "host web1: not heard of since ever" in shown([("web1", "host", ago)], [])


def test_names_that_are_none(shown: Any) -> None:
    bad = 'y"} 1\nup{job="node'
    found = shown([(bad, "host", 1.0), ("web1", bad, 1.0), (5, "host", 1.0), ("web2", "host", 1.0)],
                  [row(host=bad), row(name=bad), row(host=None), row(number="x"), row(name="a\x1b[2J"),
                   row(desk="\x1b]0;t\x07", said='{"count": 1, "last_error": "\x1b[2J"}'),
                   row(said=json.dumps({"count": 1, "last_error": "\x1b[2J<script>b"}))])
    assert "up{" not in found and "\x1b" not in found and "\x07" not in found and "web2" in found and "<script>" not in found.partition("<!DOCTYPE")[2]
    assert found.count("web1  a  ") == 2


def test_how_near_an_end_is(shown: Any) -> None:
    """By the certificate's own lifetime, as on a single host: six days are much for one that lasts a week."""
    rows = [row(cert(86400, 7 * 86400), name="week"), row(cert(84 * 86400), name="quarter")]
    found = shown([("web1", "host", 5.0)], rows, ("--nagios",))
    assert found.startswith("FLEET CRITICAL - 1 machines, 2 requests: web1 quarter: ends ") and "week" not in found and found.endswith("code 2")
    assert shown([("web1", "host", 5.0)], rows[:1], ("--nagios",)).startswith("FLEET OK")


def test_the_page_is_that_of_a_single_host(shown: Any) -> None:
    """With each site under its host's name, the machines that are silent, and what fails."""
    found = shown([("web7", "host", 90000.0)], [row(cert(86400), said='{"count": 3, "since": 5, "last_error": "no such <b>name</b>"}')], ("--html",))
    assert "the fleet of desk1" in found and '<span class="name">web1 a</span>' in found and "host web7: not heard of since " in found
    assert "no such &lt;b&gt;name" in found and "Something wants to be looked at" in found and "script" not in found


def test_a_metric_has_each_label_once(shown: Any) -> None:
    """A request to revoke, and one that was posted again, are no further sites."""
    found = shown([], [row(cert(5)), row(cert(5), number=4), row(kind="revoke")], ("--prometheus",)).splitlines()[:-1]
    lines = [line.rpartition(" ")[0] for line in found if not line.startswith("#")]
    assert len(lines) == len(set(lines)) == 2 and [line.split()[2] for line in found if line.startswith("# HELP")] == \
        [line.split()[2] for line in found if line.startswith("# TYPE")]


def test_what_the_watcher_is_told(shown: Any) -> None:
    """What lasts: not the first failure, nor a machine that never came; and not more than fits."""
    machines = [("web1", "host", 20000.0), ("web2", "host", None), ("desk1", "desk", 5.0)]
    first = json.dumps({"count": 1, "since": int(NOW - 60), "failed_at": int(NOW - 60), "last_error": "once"})
    often = json.dumps({"count": 4, "since": int(NOW - 60), "failed_at": int(NOW - 60), "last_error": "often"})
    link = Link(machines, [row(cert(5), said=first), row(cert(5), name="b", said=often), row(cert(89 * 86400), name="c")])
    found = status.report(*status.look(link, NOW), NOW)        # type: ignore[arg-type]
    assert [(key, severity) for key, severity, _ in found["problems"]] == [("web1 c:near-end", 2), ("web1:silent", 1), ("web1 b:csr", 1)]        # type: ignore
    assert (found["machines"], found["sites"], found["ends"], found["more"]) == (3, 3, int(NOW - 89 * 86400 + 90 * 86400), 0)
    link = Link([], [row(cert(89 * 86400), name=f"s{at}") for at in range(1000)])
    found = status.report(*status.look(link, NOW), NOW)        # type: ignore[arg-type]
    assert len(found["problems"]) == status.MOST and found["more"] == 600        # type: ignore[arg-type]


def test_the_database_is_away(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown([], [])

    def away(info: str) -> Link:
        raise Away("gone")
    monkeypatch.setattr(status, "Database", away)
    assert status.show("--nagios") == 3 and status.show("") == 75

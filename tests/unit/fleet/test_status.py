"""What certdrop-fleet status shows of rows that hosts wrote: what is none is left out, and nothing of it reaches a terminal or a monitor raw."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from certdrop.fleet import status

NOW = time.time()


def shown(capsys: Any, machines: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> str:
    """All forms, one after the other."""
    sites = [found for row in rows if (found := status._site(row, NOW))]
    silent = [found for row in machines if (found := status._machine(row, NOW))]
    status._table(silent, sites, NOW)
    status._nagios(silent, sites, NOW)
    status._prometheus(silent, sites)
    print(json.dumps([silent, sites]))
    return str(capsys.readouterr().out)


def row(body: str = "{}", host: Any = "web1", name: Any = "a", desk: Any = "desk1", said: Any = "", number: Any = 3) -> tuple[Any, ...]:
    return host, name, number, False, desk, said, body, "csr"


@pytest.mark.parametrize("end", [True, False, -1, 1e300, "x", [], None, 10 ** 400])
def test_a_date_that_is_none(capsys: Any, end: object) -> None:
    found = shown(capsys, [], [row(json.dumps({"cert": {"not_after": end}})), row(said=json.dumps({"renew_at": end, "count": 1, "last_error": "y"}))])
    assert found.count("web1  a  ") == 2 and "None" not in found and "True" not in found.partition("# TYPE")[0]


@pytest.mark.parametrize("ago", [float("-inf"), float("inf"), float("nan"), 2e11, -1e13, 3e17, True, "x"])
def test_a_machine_whose_time_is_none(capsys: Any, ago: object) -> None:
    assert "host web1: not heard of since ever" in shown(capsys, [("web1", "host", ago)], [])


def test_names_that_are_none(capsys: Any) -> None:
    bad = 'y"} 1\nup{job="node'
    found = shown(capsys, [(bad, "host", 1.0), ("web1", bad, 1.0), (5, "host", 1.0), ("web2", "host", 1.0)],
                  [row(host=bad), row(name=bad), row(host=None), row(number="x"), row(name="a\x1b[2J"),
                   row(desk="\x1b]0;t\x07", said='{"count": 1, "last_error": "\x1b[2J"}'),
                   row(said=json.dumps({"count": 1, "last_error": "\x1b[2Jb"}))])
    assert "up{" not in found and "\x1b" not in found and "\x07" not in found and "web2" in found
    assert found.count("web1  a  ") == 2

"""A whole fleet, each part of it a machine of its own: three web hosts, two desks under one account, PostgreSQL with a standby, and the CA outside."""

from __future__ import annotations

import pathlib
import sys
from typing import Iterator

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "stage")]

from whole import PAGE, Whole  # noqa: E402
from world import wait_for  # noqa: E402


@pytest.fixture(scope="module")
def fleet() -> Iterator[Whole]:
    with Whole() as made:
        yield made


def test_the_main_job(fleet: Whole) -> None:
    """From a name to a certificate that is served, on each host, by whichever desk; nobody but the desks talks with the CA."""
    desks = [one.work() for one in fleet.desk]
    for host in fleet.web:
        name = fleet.site(host)
        done = host.run("certdrop", "renew", name)
        assert done.code == 0 and "installed, and served" in done.text, (done, fleet.said(name))
        assert host.fetch(name) == PAGE
    for one in desks:
        one.end()


def test_nobody_waits(fleet: Whole) -> None:
    """Couriers as cron has them, no desk's person about."""
    desks = [one.work() for one in fleet.desk]
    names = {fleet.site(host): host for host in fleet.web}
    for host in fleet.web:
        assert host.courier().code == 0
    for name, host in names.items():
        wait_for(lambda: fleet.answered(name), 30, "a reply")
        host.courier()
        assert host.fetch(name) == PAGE
    for one in desks:
        one.end()

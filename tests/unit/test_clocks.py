"""A clock that was wrong for a while, with a CA that answers then and one that does not: when it is right again, no site waits for longer than it
would have waited without. On real files; a run is modelled as orders.py has it, and only time is made of numbers.
"""

from __future__ import annotations

import json
import os
import random

import pytest
from issuer.test_state import Disk, configured, disk, request  # noqa: F401

from certdrop import spool
from certdrop.issuer import budget, clock, due, ledger, plan, posted
from certdrop.issuer.agenda import Agenda
from certdrop.issuer.due import DAY, HOUR
from certdrop.issuer.options import Options
from certdrop.issuer.failure import RATE_LIMITED, UNREACHABLE, VALIDATION, Failure
from certdrop.keeper.notes import Notes

NOW = 1_800_000_000
TICK = 600
CLOCKS = {"+1 h": HOUR, "+100 days": 100 * DAY, "2038": 2147483648 - NOW, "2111": 4449513600 - NOW, "1970": 3600 - NOW, "-100 days": -100 * DAY}
SITES = {"waits for its first certificate": 0, "is due": 70, "has the CA's window": 40}     # age of the certificate in days
CAS = {"answers": None, "is not reached": Failure(UNREACHABLE, "x"), "refuses": Failure(VALIDATION, "x"),
       "wants patience": Failure(RATE_LIMITED, "x", 7 * DAY)}


class World:
    """One site, a clock, a CA, and cron."""

    def __init__(self, disk: Disk, monkeypatch: pytest.MonkeyPatch, site: str) -> None:  # noqa: F811
        self.disk, self.shown, self.asked = disk, float(NOW), []
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        for module in (plan, posted):
            monkeypatch.setattr(module.time, "time", lambda: self.shown)
        self.number = 3
        disk.site("a.test", 3, placeholder=not SITES[site], now=not SITES[site])
        self._date(3, NOW - SITES[site] * DAY)
        if "window" in site:
            found = ledger.Ledger("a.test")
            found.note_window(due.Certificate("a.test-3", NOW - 40 * DAY, NOW + 50 * DAY), NOW + DAY, NOW + 2 * DAY, 0.0, NOW, 0.5)
            found.save()

    def _date(self, number: int, begin: float) -> None:
        self.disk.put(f"state/sites/a.test/{number - 1:04d}/cert.json", json.dumps(
            {"sha256": f"a.test-{number}", "not_before": int(begin), "not_after": int(begin + 90 * DAY)}))

    def tick(self, real: float, ahead: float, failure: Failure | None) -> None:
        """A run of cron."""
        now = self.shown = real + ahead
        listed, agenda = posted.requests()[0], Agenda(now)
        if agenda.when(listed[0]) > now:
            return
        task = plan.Task(listed[0], Options(["--cron"], False))
        task.decide(now)
        spent = budget.Budget(configured("letsencrypt"), now)
        if task.when <= now and not spent.refusal(["a.test"], False, now)[0]:
            self.asked.append(real)
            if failure:
                task.ledger.failed(failure, task.certificate, now)
                if failure.kind == VALIDATION:
                    spent.note(budget.FAILED, "a.test", now)
            else:
                task.ledger.issued("https://ca", f"a.test-{self.number + 1}", None if task.request.now else task.certificate, now)
                task.ledger.save()
                self.install(real)
                task = plan.Task(request(), Options(["--cron"], False))
        plan.finish([task], posted.requests()[0], agenda, 0, 0)

    def install(self, real: float) -> None:
        """Root takes the reply; its certificate is the CA's, whose clock is right."""
        for entry in os.listdir(f"{self.disk.top}/spool/requests"):
            os.unlink(f"{self.disk.top}/spool/requests/{entry}")
        self.number += 1
        self.disk.site("a.test", self.number)
        self._date(self.number, real - HOUR)


def story(world: World, ahead: float, failure: Failure | None) -> tuple[int, float, int]:
    """(orders while the clock was wrong, hours until the site was asked for, or was well, when it was right again; orders in the day after that)."""
    random.seed(1)
    for tick in range(36):                     # six hours
        world.tick(NOW + tick * TICK, ahead, failure)
    wrong, back = len(world.asked), NOW + 36 * TICK
    for hour in range(9 * 24):
        world.tick(back + hour * HOUR, 0.0, None)
    after = [moment for moment in world.asked if moment >= back]
    world.shown = back
    return wrong, (after[0] - back) / HOUR if after else 0.0, sum(moment < back + DAY for moment in after)


def bound(site: str, ahead: float, failure: Failure | None) -> float:
    """Hours in which a site must have been asked for: a due one at once, unless the rules hold it by what happened just now."""
    if "window" in site:
        return 42 + 1                          # its window ends then
    if failure is None or ahead != HOUR:
        return 0.0
    return 7.4 * 24 if failure.retry_after else 29.0       # what was noted five hours ago, by a clock one hour ahead, could be today's


@pytest.mark.parametrize("ca", CAS)
@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("site", SITES)
def test_a_clock_that_was_wrong(disk, monkeypatch, site, clock, ca):  # noqa: F811
    """Six hours of it, then the right time again."""
    world = World(disk, monkeypatch, site)
    wrong, hours, after = story(world, CLOCKS[clock], CAS[ca])
    assert wrong <= 6 and after <= 2
    assert hours <= bound(site, CLOCKS[clock], CAS[ca]), (wrong, hours, after)
    with_one = posted.Standing(request()).certificate
    assert with_one and with_one.not_after > NOW + 60 * DAY, "never asked for"


@pytest.mark.parametrize("ahead", [61.0, HOUR, 100 * DAY, CLOCKS["2111"]])
def test_the_keepers_notes(disk, monkeypatch, ahead):  # noqa: F811
    """What root noted under a clock that ran ahead puts nothing off: neither a reply nor an installation, nor what the issuer asks root for."""
    shown = NOW + ahead
    monkeypatch.setattr("time.time", lambda: shown)
    os.mkdir(f"{disk.top}/state/keeper/refused")
    disk.site("a.test", 3)
    noted = Notes("a.test")
    for _ in range(3):
        noted.put_off(3, "issued-not-served", "x")
        noted.refuse(3, b"reply", "expected", "not-yet-valid")
    noted.installed_at = int(shown)
    noted.save()
    assert noted.is_put_off(3) and noted.waits(3) and noted.is_refused(3, b"reply", "expected")
    shown = NOW + max(0.0, ahead - HOUR) if ahead < 2 * HOUR else NOW
    found = Notes("a.test")
    held = ahead < 2 * HOUR and shown + 3060 >= NOW + ahead + 3000         # by a rule that could have been followed just now
    assert (found.is_put_off(3), found.waits(3), found.is_refused(3, b"reply", "expected")) == (held, held, held)
    assert found.installed_at <= shown + spool.STEP


@pytest.mark.parametrize("kind", clock.ALL)
@pytest.mark.parametrize("moment", [float("nan"), float("inf"), -float("inf"), None, "1", [], {}, 1 << 4000, 4449513600])
def test_no_moment_of_nonsense_counts(kind, moment):
    """Nor one of 2111."""
    assert not spool.is_credible(moment, kind, NOW) or moment == -float("inf") and kind[0] == float("inf")


def main() -> None:
    """The table: /usr/bin/python3 tests/unit/test_clocks.py"""
    import tempfile
    print("| the clock was | the CA then | the site | orders in 6 h of it | hours until asked for, when right | orders in the day after |")
    print("|---|---|---|---|---|---|")
    for shift, ahead in CLOCKS.items():
        for ca, failure in CAS.items():
            for site in SITES:
                with tempfile.TemporaryDirectory() as top, pytest.MonkeyPatch.context() as patch:
                    patch.setattr("certdrop.config.site.STATE", top + "/state")
                    patch.setattr("certdrop.config.site.ETC", top + "/etc")
                    patch.setattr(spool, "SPOOL", top + "/spool")
                    wrong, hours, after = story(World(Disk(top), patch, site), ahead, failure)
                    print(f"| {shift} | {ca} | {site} | {wrong} | {hours:.1f} | {after} |")


if __name__ == "__main__":
    main()

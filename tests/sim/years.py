"""Years of renewals in a minute: the issuer's policy (lib/certdrop/issuer/due.py) against a CA, a clock and a cron made of numbers.

    /usr/bin/python3 tests/sim/years.py            # the scenarios below, as a table
    /usr/bin/python3 tests/sim/years.py --picture  # the histograms of docs/renewals.md

What decides is the product's own code; what is simulated is the world: a CA with its lifetimes, windows, limits and outages, cron that is
missed for days, a clock that steps. A run is modelled as network.py does it: windows first, then what is due; after three orders in a row
that did not reach the CA it is left alone until the next run.
"""

from __future__ import annotations

import collections
import heapq
import pathlib
import random
import sys
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "lib"))

from certdrop import renewal  # noqa: E402
from certdrop.issuer import due  # noqa: E402
from certdrop.issuer.due import DAY, HOUR, MINUTE  # noqa: E402

TICK = 10 * MINUTE
BEGIN = 1_800_000_000.0            # a moment in 2027
IN_VAIN = 3
YEAR = 365 * DAY


@dataclass
class World:
    """What may go wrong. Moments are in seconds from the beginning, spans are (begin, end)."""

    sites: int = 100
    days: float = 365.0
    lifetime: float = 90 * DAY
    ari: bool = True
    retry_after: float = 6 * HOUR              # of renewal information
    window: tuple[float, float] = (0.62, 0.70)             # the CA's, as shares of the lifetime
    together: bool = True                      # all sites are added in one day, else over half a lifetime
    outages: list[tuple[float, float]] = field(default_factory=list)
    no_cron: list[tuple[float, float]] = field(default_factory=list)
    revocations: list[float] = field(default_factory=list)         # every certificate issued before gets a window in the past
    early: list[float] = field(default_factory=list)               # from then on windows start a fifth of the lifetime earlier
    broken: dict[int, tuple[float, float]] = field(default_factory=dict)       # sites whose validation fails
    clock: list[tuple[float, float]] = field(default_factory=list)             # (from, seconds that our clock is ahead)
    orders_limit: int = 300                    # in three hours, where the order replaces nothing
    seed: int = 1


class Site:
    """One site: what the issuer remembers, and what it has."""

    def __init__(self, number: int) -> None:
        self.name = f"s{number}.example.org"
        self.number = number
        self.record = due.Record()
        self.certificate: due.Certificate | None = None
        self.born = 0.0
        self.asked: list[float] = []           # orders that reached the CA in the last week
        self.failures: list[float] = []
        self.noted = False


@dataclass
class Result:
    """What happened."""

    issued: int = 0
    failed: int = 0
    in_vain: int = 0
    polls: int = 0
    expired: set[str] = field(default_factory=set)
    least_left: float = 1.0                    # share of the lifetime that was left at a renewal by time
    most_orders: int = 0                       # of one site that reached the CA in one day
    most_tries: int = 0                        # of one site in one day, those in vain too
    most_in_three_hours: int = 0               # orders that replace nothing
    refused_by_budget: int = 0
    broken_limits: list[str] = field(default_factory=list)
    by_second: collections.Counter[int] = field(default_factory=collections.Counter)           # of the day, in ten minutes
    by_share: collections.Counter[int] = field(default_factory=collections.Counter)            # of the lifetime, in per cent
    by_day: collections.Counter[int] = field(default_factory=collections.Counter)


class Simulation:
    """One world, run to its end."""

    def __init__(self, world: World) -> None:
        self.world, self.result = world, Result()
        self.chance = random.Random(world.seed)
        self.serial = 0
        self.recent: collections.deque[float] = collections.deque()
        self.tries: collections.Counter[tuple[int, int]] = collections.Counter()
        self.reached: collections.Counter[tuple[int, int]] = collections.Counter()

    def run(self) -> Result:
        """All of it."""
        world = self.world
        agenda: list[tuple[float, int]] = []
        sites = []
        for number in range(world.sites):
            site = Site(number)
            site.born = self.chance.uniform(0, DAY if world.together else world.lifetime / 2)
            sites.append(site)
            heapq.heappush(agenda, (self._tick(site.born), number))
        end = world.days * DAY
        while agenda and agenda[0][0] < end:
            tick = agenda[0][0]
            batch = []
            while agenda and agenda[0][0] == tick:
                batch.append(sites[heapq.heappop(agenda)[1]])
            self._cron(tick, batch)
            for site in batch:
                heapq.heappush(agenda, (max(tick + TICK, self._tick(self._next_look(site, tick))), site.number))
        for site in sites:
            self._check_expiry(site, end)
        self.result.most_tries = max(self.tries.values(), default=0)
        self.result.most_orders = max(self.reached.values(), default=0)
        return self.result

    # ---- time

    def _clock(self, moment: float) -> float:
        """What our clock shows."""
        ahead = 0.0
        for start, offset in self.world.clock:
            if moment >= start:
                ahead = offset
        return BEGIN + moment + ahead

    def _tick(self, moment: float) -> float:
        """The first run of cron that sees this moment coming: a run waits for what is due before the next one."""
        tick = moment // TICK * TICK
        for start, end in self.world.no_cron:
            if start <= tick < end:
                tick = end // TICK * TICK + TICK
        return tick

    def _next_look(self, site: Site, tick: float) -> float:
        """When the site is to be looked at again, in true time: the next order or poll, any step of the clock, and once a day."""
        shown = self._clock(tick)
        when, _ = due.due(site.name, False, site.certificate, site.record, shown)
        polled = float(site.record.poll_at) if self.world.ari and site.certificate else due.NEVER
        wait = min(when, polled, shown + DAY) - shown
        steps = [start - tick for start, _ in self.world.clock if start > tick]
        return tick + max(TICK, min([wait, *steps]))

    # ---- a run

    def _cron(self, tick: float, batch: list[Site]) -> None:
        down, in_vain = False, 0
        for site in batch:
            self._check_expiry(site, tick)
            now = self._clock(tick)
            if self.world.ari and due.poll_due(site.certificate, site.record, now) and site.certificate:
                self._poll(site, tick, now)
            when, _ = due.due(site.name, False, site.certificate, site.record, now)
            if when > now + TICK - 5:
                continue
            moment = tick + max(0.0, when - now)
            if down:
                self._note_failure(site, moment, costless=True)
                continue
            reached = self._order(site, moment)
            in_vain = 0 if reached else in_vain + 1
            down = in_vain >= IN_VAIN

    def _is_out(self, moment: float) -> bool:
        return any(start <= moment < end for start, end in self.world.outages)

    def _poll(self, site: Site, tick: float, now: float) -> None:
        certificate, world = site.certificate, self.world
        if certificate is None:
            return
        self.result.polls += 1
        if self._is_out(tick):
            site.record.note_no_window(certificate, 0.0, False, now, self.chance.random())
            return
        issued = certificate.not_before - BEGIN
        start, end = (certificate.not_before + certificate.lifetime * share for share in world.window)
        for moment in world.early:
            if tick >= moment:
                start, end = start - certificate.lifetime / 5, end - certificate.lifetime / 5
        if any(issued < moment <= tick for moment in world.revocations):
            start, end = certificate.not_before, certificate.not_before + HOUR
        site.record.note_window(certificate, start, end, world.retry_after, now, self.chance.random())

    def _order(self, site: Site, moment: float) -> bool:
        """Whether the CA was reached."""
        world, result, now = self.world, self.result, self._clock(moment)
        day = int(moment // DAY)
        self.tries[site.number, day] += 1
        if self._is_out(moment):
            self._note_failure(site, moment, costless=True)
            return False
        replaces = bool(site.certificate and site.record.has_window(site.certificate))
        if not replaces:
            while self.recent and self.recent[0] <= moment - 3 * HOUR:
                self.recent.popleft()
            site.asked = [at for at in site.asked if at > moment - 7 * DAY]
            if len(self.recent) >= world.orders_limit or len(site.asked) >= 5:
                until = self.recent[0] + 3 * HOUR if len(self.recent) >= world.orders_limit else site.asked[0] + 7 * DAY
                result.refused_by_budget += 1
                site.record.note_failure(until - moment, None, now, self.chance.random())
                return True
            self.recent.append(moment)
            result.most_in_three_hours = max(result.most_in_three_hours, len(self.recent))
        self.reached[site.number, day] += 1
        result.by_second[int(moment % DAY // TICK)] += 1
        result.by_day[day] += 1
        bad = world.broken.get(site.number)
        if bad and bad[0] <= moment < bad[1]:
            result.failed += 1
            site.failures = [at for at in site.failures if at > moment - HOUR] + [moment]
            if len(site.failures) > 5:
                result.broken_limits.append(f"{site.name}: {len(site.failures)} failed validations in an hour")
            self._note_failure(site, moment, costless=False)
            return True
        old = site.certificate
        if old is not None:
            share = (BEGIN + moment - old.not_before) / old.lifetime
            result.by_share[int(share * 100)] += 1
            if not any(old.not_before - BEGIN < at for at in world.revocations):
                result.least_left = min(result.least_left, 1 - share)
        self.serial += 1
        start = BEGIN + moment - HOUR
        site.certificate = due.Certificate(str(self.serial), start, start + world.lifetime)
        site.noted = False
        if not replaces:
            site.asked.append(moment)
        site.record.note_success(now, old)
        result.issued += 1
        return True

    def _note_failure(self, site: Site, moment: float, costless: bool) -> None:
        now = self._clock(moment)
        left = site.certificate.not_after - now if site.certificate and costless else None
        self.result.in_vain += costless
        site.record.note_failure(0.0, left, now, self.chance.random())

    def _check_expiry(self, site: Site, moment: float) -> None:
        if site.certificate and BEGIN + moment >= site.certificate.not_after and not site.noted:
            site.noted = True
            self.result.expired.add(site.name)


LIFETIMES = {"90 days": 90 * DAY, "64 days": 64 * DAY, "45 days": 45 * DAY, "160 hours": 160 * HOUR}


def scenarios() -> dict[str, World]:
    """The worlds of the table."""
    found = {}
    for words, lifetime in LIFETIMES.items():
        found[f"{words}, ARI"] = World(lifetime=lifetime)
        found[f"{words}, no ARI"] = World(lifetime=lifetime, ari=False)
        left = lifetime / (2 if lifetime < renewal.SHORT_LIVED else 3)
        away = left - 3 * HOUR - lifetime / 100
        at = lifetime * 3.6
        found[f"{words}, CA away for {away / DAY:.1f} days, no ARI"] = World(lifetime=lifetime, ari=False, outages=[(at, at + away)])
        found[f"{words}, no cron for {away / DAY:.1f} days, no ARI"] = World(lifetime=lifetime, ari=False, no_cron=[(at, at + away)])
        found[f"{words}, all revoked, twice"] = World(lifetime=lifetime, revocations=[at, at + lifetime / 4])
        found[f"{words}, windows come early"] = World(lifetime=lifetime, early=[at])
        found[f"{words}, clock a year ahead for a day"] = World(lifetime=lifetime, ari=False, clock=[(at, YEAR), (at + DAY, 0)])
        found[f"{words}, clock a lifetime back for a day"] = World(lifetime=lifetime, clock=[(at, -lifetime), (at + DAY, 0)])
        found[f"{words}, ten sites broken for a month"] = World(lifetime=lifetime, broken={n: (at, at + 30 * DAY) for n in range(10)})
    found["10,000 sites, 90 days, ARI"] = World(sites=10000, retry_after=DAY, together=False, orders_limit=10000)
    found["1,000 sites, 160 hours, no ARI"] = World(sites=1000, lifetime=160 * HOUR, ari=False, days=90)
    return found


def row(words: str, result: Result) -> str:
    """A line of the table."""
    return (f"| {words} | {result.issued} | {len(result.expired)} | {result.least_left:.0%} | {result.most_orders} | {result.most_tries} |"
            f" {result.most_in_three_hours} | {len(result.broken_limits)} |")


def main() -> int:
    """The table, or the picture."""
    if "--picture" in sys.argv:
        print(picture())
        return 0
    print("| world | issued | expired | least left | orders a site and day | tries a site and day | new orders in 3 h | limits broken |")
    print("|---|---|---|---|---|---|---|---|")
    for words, world in scenarios().items():
        print(row(words, Simulation(world).run()), flush=True)
    return 0


def picture() -> str:
    """1,000 sites added within one hour of one day: where their orders are in the day, and in the life of a certificate."""
    result = Simulation(World(sites=1000, days=5 * 365, ari=False, orders_limit=10000)).run()
    lines = ["orders by the hour of the day:", ""]
    hours = [sum(result.by_second[hour * 6 + part] for part in range(6)) for hour in range(24)]
    lines += [f"    {hour:02d}  {'#' * round(50 * count / max(hours))} {count}" for hour, count in enumerate(hours)]
    lines += ["", "orders by the share of the lifetime that has passed:", ""]
    shares = {share: result.by_share[share] for share in range(min(result.by_share), max(result.by_share) + 1)}
    lines += [f"    {share:2d} %  {'#' * round(50 * count / max(shares.values()))} {count}" for share, count in shares.items()]
    lines += ["", "orders a day; with each renewal the sites drift further apart:", ""]
    for number in range(0, 31, 3):
        days = [count for day, count in result.by_day.items() if number * 60 <= day < (number + 1) * 60]
        lines.append(f"    days {number * 60:4d} to {number * 60 + 59:4d}  at most {max(days, default=0)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

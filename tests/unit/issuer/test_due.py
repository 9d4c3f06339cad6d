"""The policy of renewals: pure, so that all of it can be held to its properties, and years of it be simulated."""

from __future__ import annotations

import pathlib
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from certdrop import renewal, spool
from certdrop.issuer import due
from certdrop.issuer.due import DAY, HOUR, Certificate, Record

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sim"))

import years  # noqa: E402

NOW = 1_800_000_000.0
LIFETIMES = [90 * DAY, 64 * DAY, 45 * DAY, 160 * HOUR, DAY, 60.0]

moments = st.floats(0, 4e9)
chances = st.floats(0, 1)
lifetimes = st.sampled_from(LIFETIMES) | st.floats(60, 400 * DAY)


def certificate(lifetime: float, at: float = NOW, sha256: str = "aa") -> Certificate:
    return Certificate(sha256, at, at + lifetime)


def with_window(found: Certificate, start: float, end: float) -> Record:
    record = Record()
    record.note_window(found, start, end, 0.0, NOW, 0.5)
    return record


@given(lifetimes, st.text(max_size=20))
def test_the_backstop_is_a_share_of_the_real_lifetime(lifetime, site):
    """A third is left at the latest, a half below ten days; nobody is early by more than a twentieth."""
    left = (NOW + lifetime - renewal.backstop(certificate(lifetime), site)) / lifetime
    least = 1 / 2 if lifetime < 10 * DAY else 1 / 3
    assert least - 1e-6 <= left <= least + 1 / 20 + 1e-6


@given(lifetimes, st.floats(-1000 * DAY, 1000 * DAY), st.floats(1, 100 * DAY))
def test_the_moment_in_a_window(lifetime, start, length):
    """Lies in the CA's window, always at the same place; and an eighth of the lifetime is left whatever the window."""
    found = certificate(lifetime)
    start = NOW + start
    moment = renewal.moment_in_window(found, "a", start, start + length)
    assert start <= moment <= start + length
    assert moment == renewal.moment_in_window(found, "a", start, start + length)
    when, _ = due.renewal(found, "a", with_window(found, start, start + length))
    assert when <= found.not_after - lifetime / 8 + 1


def test_the_moments_of_many_sites_are_spread():
    """Each tenth of a window has its share of 10,000 sites, give or take a quarter."""
    found = certificate(90 * DAY)
    counts = [0] * 10
    for number in range(10000):
        counts[int(renewal.moment_in_window(found, f"s{number}.example.org", 0, 1) * 10)] += 1
    assert all(750 < count < 1250 for count in counts)


def test_a_window_in_the_past_means_now():
    """As after a revocation."""
    found = certificate(90 * DAY)
    assert due.due("a", False, found, with_window(found, NOW - 2 * DAY, NOW - DAY), NOW + DAY)[0] <= NOW + DAY


def test_a_window_of_another_certificate_is_not_looked_at():
    """The window belongs to one certificate; for its successor it is asked for anew."""
    old, new = certificate(90 * DAY, sha256="old"), certificate(90 * DAY, sha256="new")
    record = with_window(old, NOW - 2 * DAY, NOW - DAY)
    assert due.due("a", False, new, record, NOW)[0] > NOW + 50 * DAY
    assert due.poll_due(new, record, NOW) and not due.poll_due(old, record, NOW)


@pytest.mark.parametrize("wanted_now, found", [(True, certificate(90 * DAY)), (True, None), (False, None)])
def test_what_root_wants_is_due_now(wanted_now, found):
    """A `now` in the spool, and a site without a certificate."""
    assert due.due("a", wanted_now, found, Record(), NOW)[0] <= NOW


@given(st.integers(1, 50), st.floats(0, 7 * DAY), st.none() | st.floats(-90 * DAY, 90 * DAY), chances)
def test_the_back_off(failures, retry_after, left, chance):
    """1, 10, 100 minutes, then daily, a fifth earlier or later; never before Retry-After; sooner only where the CA was not reached."""
    pause = due.next_try(failures, retry_after, left, NOW, chance) - NOW
    base = [60, 600, 6000, DAY][min(failures, 4) - 1]
    assert pause >= retry_after - 0.001
    assert pause >= 0.8 * (base if left is None else min(base, 6000)) - 1
    assert pause <= max(1.2 * base, 1.05 * retry_after) + 1
    if left is not None and failures > 3 and not retry_after:
        assert pause <= max(1.2 * 6000, 1.2 * left / 8) + 1


@given(st.lists(st.tuples(st.floats(0, 3 * DAY), chances), min_size=1, max_size=20))
def test_failures_in_a_row_are_counted_and_held(steps):
    """However failures come, nothing is due before the next try, which lies ahead."""
    record, now = Record(), NOW
    for pause, chance in steps:
        now += pause
        record.note_failure(0.0, None, now, chance)
        when, why = due.due("a", True, None, record, now)
        assert when == record.next_try > now and why == "an earlier try failed"
        assert due.due("a", True, None, record, float(record.next_try))[0] <= record.next_try
    assert record.count == len(steps) and record.since == int(NOW + steps[0][0])
    record.note_success(now)
    assert due.due("a", True, None, record, now)[0] <= now


def test_an_administrator_does_not_wait_for_a_back_off():
    """For a site that was named, or forced, only the CA's Retry-After holds."""
    record = Record()
    for _ in range(5):
        record.note_failure(0.0, None, NOW, 0.5)
    assert due.due("a", True, None, record, NOW)[0] > NOW + DAY / 2
    assert due.due("a", True, None, record, NOW, urged=True)[0] <= NOW
    assert due.due("a", False, certificate(90 * DAY), record, NOW, forced=True)[0] <= NOW
    record.note_failure(7200.0, None, NOW, 0.5)
    for how in ({"urged": True}, {"forced": True}):
        assert due.due("a", True, None, record, NOW, **how)[0] >= NOW + 7200


@given(st.floats(0, due.MADE - 1), moments, lifetimes)
def test_a_clock_that_stands_before_certdrop_is_no_reason_to_ask(now, at, lifetime):
    """As on a machine that forgets the time without power, until it is told: nothing is due by time."""
    assert due.due("a", False, certificate(lifetime, max(at, now)), Record(), now)[0] > now


@given(st.floats(DAY + 1, 100 * 365 * DAY), lifetimes)
def test_a_certificate_that_begins_in_days_to_come(ahead, lifetime):
    """Is none that anybody takes: another is asked for, at most once a day."""
    found, record = certificate(lifetime, NOW + ahead), Record()
    assert due.due("a", False, found, record, NOW)[0] <= NOW
    record.note_success(NOW, found)
    assert due.due("a", False, found, record, NOW + 1)[0] >= NOW + DAY


@given(moments, st.floats(0, 100 * 365 * DAY), st.integers(1, 9), st.floats(0, 7 * DAY), chances, st.booleans())
def test_a_back_off_that_a_clock_noted_which_ran_ahead(at, ahead, count, retry_after, chance, costless):
    """Nothing is held for longer than a back-off, or a Retry-After, could hold it from now; and a clock that ran ahead by a minute or more holds nothing."""
    record = Record()
    for _ in range(count):
        record.note_failure(retry_after, 0.0 if costless else None, at + ahead, chance)
    held = due.held_until(record, at)
    assert held <= at + (7.4 * DAY if retry_after else 1.2 * DAY) + spool.STEP
    assert ahead <= spool.STEP + 1 or held == 0


@given(st.lists(st.booleans(), min_size=1, max_size=12), chances)
def test_this_hosts_own_trouble_is_under_no_back_off(placed, chance):
    """It is tried again in the next run, whatever failed before, but for what goes on to cut off orders that the CA had taken."""
    record = Record()
    for number, one in enumerate(placed):
        record.note_own_failure(one, NOW, chance)
        cut = sum(placed[:number + 1])
        assert (due.held_until(record, NOW) > NOW) == (one and cut > due.CUT_OFF) and record.count == number + 1
    record.note_success(NOW)
    assert (record.count, record.own, record.cut_off) == (0, 0, 0)


def test_what_the_ca_refuses_next_begins_its_own_back_off():
    """After a week of a full disk, the first refusal is one minute's."""
    record = Record()
    for _ in range(1000):
        record.note_own_failure(False, NOW, 0.5)
    record.note_failure(0.0, None, NOW, 0.5)
    assert NOW + 59 <= record.next_try <= NOW + 62


@given(lifetimes, st.floats(0, 1), st.floats(1, 100 * 365 * DAY))
def test_a_window_beyond_the_certificates_end_is_none(lifetime, begin, beyond):
    """The share of the lifetime counts in its place."""
    found = certificate(lifetime)
    record = with_window(found, NOW + begin * lifetime, found.not_after + beyond + 1)
    assert due.renewal(found, "a", record) == (renewal.backstop(found, "a"), "its share of the lifetime")


@given(lifetimes, st.booleans())
def test_renewals_that_follow_each_other_too_fast_are_braked(lifetime, ari):
    """A clock far ahead makes each new certificate look old at once: three are asked for, then one a day, or in an eighth of the lifetime."""
    record, now = Record(), NOW
    asked = []
    for number in range(100):
        shown = now + 3 * lifetime
        found = certificate(lifetime, now, str(number))
        if ari:
            record.note_window(found, now, now + 1, 0.0, shown, 0.5)
        when, _ = due.due("a", False, found, record, shown)
        if when <= shown:
            asked.append(shown)
            record.note_success(shown, found)
        now += lifetime / 100
    assert 4 <= len(asked) <= (5 + 8 if not ari or lifetime <= 8 * DAY else 5 + lifetime / DAY)


@given(st.floats(0, 1e7), chances)
def test_polls_keep_to_retry_after_within_reason(retry_after, chance):
    """RFC 9773 section 4.3.1: not below a minute; twice a day at least, more often where the CA does not say."""
    pause = due.poll_pause(retry_after, chance)
    assert 60 <= pause <= DAY / 2
    if 60 <= retry_after < DAY / 2:
        assert retry_after <= pause <= 1.2 * retry_after
    if not retry_after:
        assert pause <= DAY / 2


@pytest.mark.parametrize("retry_after", [0.0, 5.0, 21600.0, DAY])
def test_polls_that_were_together_come_apart(retry_after):
    """A hundred hosts asked in the same second, and were told the same."""
    moments = sorted(due.poll_pause(retry_after, at / 99) for at in range(100))
    assert moments[-1] - moments[0] >= 0.19 * moments[0]


@given(st.floats(60, 1e7), chances, chances, st.floats(0, 1e6))
def test_polls_of_a_host_come_together(retry_after, chance, moment, later):
    """Where they are seldom they all wait for one moment in an hour, so that one process does for all; never longer than the CA may be left unasked."""
    now = NOW + later
    pause = due.poll_pause(retry_after, chance)
    found = due.together(pause, now, moment)
    assert now + pause <= found + 1e-3 and found <= now + DAY / 2 + 1e-3
    if pause < 4 * HOUR:
        assert found == now + pause
    elif pause <= 11 * HOUR:
        assert abs((found - moment * HOUR + 1) % HOUR - 1) < 1e-3 and found < now + pause + HOUR + 1e-3
    assert due.together(pause, now, None) == now + pause


def test_a_hundred_sites_are_asked_about_by_few_runs():
    """A day of a hundred sites that were asked about at a hundred different moments: a run an hour, not one each ten minutes."""
    found, moments = certificate(90 * DAY), set()
    for at in range(100):
        record, now = due.Record(), NOW + 200 * at
        while now < NOW + 2 * DAY:
            record.note_window(found, NOW + 50 * DAY, NOW + 51 * DAY, 21600.0, now, at / 99, 0.3)
            now = record.poll_at
            moments |= {now // 600} if NOW + DAY <= now < NOW + 2 * DAY else set()
    assert len(moments) <= 25


def test_a_poll_that_fails_keeps_the_window():
    """Unreachable: the window stays, and is asked for later, at most every twenty minutes. Absent: it is forgotten, and looked for twice a day."""
    found = certificate(90 * DAY)
    record = with_window(found, NOW + DAY, NOW + 2 * DAY)
    record.note_no_window(found, 0.0, False, NOW, 0.0)
    assert record.has_window(found) and NOW + 900 < record.poll_at < NOW + 7 * HOUR
    record.note_no_window(found, 0.0, True, NOW, 0.5)
    assert not record.has_window(found) and NOW + 9 * HOUR < record.poll_at <= NOW + 15 * HOUR


def test_a_poll_noted_by_a_wrong_clock_is_made_up_for():
    """A poll further ahead than any CA may ask for was noted by a clock that ran ahead."""
    found = certificate(90 * DAY)
    record = with_window(found, NOW + DAY, NOW + 2 * DAY)
    assert not due.poll_due(found, record, NOW)
    assert due.poll_due(found, record, NOW - 30 * DAY)


# ---- simulations: small here; tests/sim/years.py has the large ones

@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(years.LIFETIMES.values())), st.booleans(), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_no_certificate_expires_in_a_survivable_world(lifetime, ari, seed, begin, length, cron):
    """The CA is away, or cron is missed, for anything up to what is left at a renewal but three hours: nothing expires, and no limit is broken."""
    left = lifetime * (0.3 if ari else 1 / 2 if lifetime < renewal.SHORT_LIVED else 1 / 3)
    at = lifetime * (1 + begin)
    gap = [(at, at + length * (left - 3 * HOUR))]
    world = years.World(sites=10, days=3 * lifetime / DAY, lifetime=lifetime, ari=ari, retry_after=lifetime / 20, seed=seed,
                        outages=[] if cron else gap, no_cron=gap if cron else [])
    result = years.Simulation(world).run()
    assert not result.expired and not result.broken_limits
    assert result.most_orders <= 2 and result.most_tries <= 20


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(years.LIFETIMES.values())), st.integers(0, 1000), st.lists(st.floats(0, 2), max_size=3), st.lists(st.floats(0, 2), max_size=2),
       st.floats(-400, 400))
@example(160 * HOUR, 0, [0.9375], [], 5.0)
def test_no_flood_whatever_the_ca_and_the_clock_do(lifetime, seed, revocations, early, ahead):
    """Mass revocations, windows that shift, a clock that is wrong for a day: a site asks five times a day at most, and once more for each revocation.

    Five: its own renewal, and what a wrong clock makes it ask before the brake holds. A revocation is the CA's own wish.
    """
    world = years.World(sites=10, days=3 * lifetime / DAY, lifetime=lifetime, retry_after=lifetime / 20, seed=seed,
                        revocations=[lifetime * share for share in revocations], early=[lifetime * share for share in early],
                        clock=[(lifetime, ahead * DAY), (lifetime + DAY, 0.0)])
    result = years.Simulation(world).run()
    assert result.most_orders <= 1 + due.HURRIES + 1 + len(revocations) and not result.broken_limits


def test_the_simulation_can_fail():
    """An outage longer than what was left lets certificates expire: the simulator sees it."""
    world = years.World(sites=5, lifetime=45 * DAY, ari=False, days=100, outages=[(20 * DAY, 60 * DAY)])
    assert years.Simulation(world).run().expired


def test_what_is_of_another_ca_is_due_at_once():
    """Whatever the window and the lifetime say; but the CA's patience, and a back-off, hold as ever."""
    found, record = certificate(90 * DAY), with_window(certificate(90 * DAY), NOW + 60 * DAY, NOW + 61 * DAY)
    assert due.due("a", False, found, record, NOW + DAY, foreign=True) == (found.not_before, due.FOREIGN)
    assert due.due("a", False, found, record, NOW + DAY)[0] > NOW + DAY
    record.note_failure(0.0, None, NOW + DAY, 0.5)
    assert due.due("a", False, found, record, NOW + DAY, foreign=True)[1] == "an earlier try failed"


def test_a_clock_that_is_wrong_makes_no_certificate_foreign():
    """What a chain says by a clock of 1970 is not acted on."""
    assert due.due("a", False, certificate(90 * DAY, 1000.0), Record(), 2000.0, foreign=True)[1] != due.FOREIGN


@pytest.mark.parametrize("moments, when", [([], 0.0), ([500.0], 500.0), ([530.0, 500.0, 560.0, 561.0], 560.0), ([500.0, 561.0], 500.0)])
def test_what_is_due_within_a_minute_is_ordered_together(moments, when):
    """At the last of these moments; one that is alone is not put off."""
    assert due.gathered(moments) == when


@pytest.mark.parametrize("days, wanted, is_believed", [(1.1, 0, True), (1.3, 0, False), (1.3, 5, True), (7.3, 5, True), (7.5, 5, False), (-3, 0, True)])
def test_a_back_off_is_believed_within_what_one_can_be(days, wanted, is_believed):
    """A day and a bit; a week and a bit where the CA said Retry-After: whatever lies further ahead a wrong clock noted, and it holds nobody."""
    record = Record()
    record.count, record.failed_at, record.next_try, record.retry_after = 1, int(NOW), int(NOW + days * DAY), int(NOW + wanted * DAY) if wanted else 0
    assert (due.held_until(record, NOW) == record.next_try) is is_believed
    record.count = 0
    assert due.held_until(record, NOW) == 0.0


def test_a_window_that_is_put_off_forgets_that_of_another_certificate():
    """And keeps its own."""
    found = certificate(90 * DAY)
    record = with_window(found, NOW + 50 * DAY, NOW + 60 * DAY)
    record.put_off_window(found, NOW + HOUR)
    assert (record.window_start, record.window_end, record.poll_at) == (NOW + 50 * DAY, NOW + 60 * DAY, NOW + HOUR)
    record.put_off_window(certificate(90 * DAY, sha256="bb"), NOW + 2 * HOUR)
    assert (record.window_of, record.window_start, record.window_end, record.poll_at) == ("bb", 0, 0, NOW + 2 * HOUR)

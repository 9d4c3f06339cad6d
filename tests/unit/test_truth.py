"""What is said comes from what is seen now: nothing that was found out once outlives it, nor a clock that stood wrong."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from watcher.test_evidence import DAY, ISSUER, World, make_certificate
from certdrop import renewal
from certdrop.config import site as configuration
from certdrop.doctor import sites as check_sites
from certdrop.issuer import due, ledger
from certdrop.keeper import notes
from certdrop.status import command as status
from certdrop.watcher import alarm, evidence, message, verdict
from certdrop.watcher.evidence import MailHealth
from certdrop.watcher.verdict import Thresholds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the configuration must be root's")
YEAR = 365 * DAY
DECADES = 20 * YEAR                 # no certificate here lasts so long


def run(*argv: str) -> tuple[int, str]:
    out = io.StringIO()
    return status.show(status.Options(status.LINE.read([*argv, "--no-probe"])), out), out.getvalue()


def only() -> dict[str, Any]:
    (found,) = json.loads(run("--json")[1])
    return dict(found)


def judged(shown: set[str] | None) -> verdict.Verdict:
    return verdict.judge(evidence.Reader().site("example.org"), shown, time.time(), Thresholds())


# Placeholders.

def test_a_placeholder_is_no_certificate_in_any_output(world: World) -> None:
    """No dates of its, no days, no share of a lifetime, and nothing that is served: the usual alert on notAfter fires for the metric that is absent."""
    world.site("example.org")
    world.generation("example.org", 1, 0, YEAR, marker="placeholder")
    world.link("live", "example.org", 1)
    text = run("--prometheus")[1]
    assert "certificate_not" not in text and "certdrop_served" not in text
    assert [None] * 4 == [only()[key] for key in ("not_before", "not_after", "days_left", "lifetime_left")]
    assert "days_left" not in run("--nagios")[1]
    page = run("example.org")[1]
    assert "no certificate yet; a placeholder is in its place" in page and "lifetime" not in page and "fingerprint" not in page


# Seen, not remembered.

def test_an_installation_is_over_once_its_certificate_is_shown(world: World) -> None:
    """What root could not finish is said as long as nobody shows it; a handshake that shows it ends that at once. Another generation's stays."""
    shown = world.usual("example.org")
    wrong = {"state": "issued-not-served", "since": int(time.time()) - 60, "tries": 1, "next_try": int(time.time()) + 600, "error": "is not shown"}
    world.notes("example.org", install={"number": 1, **wrong})
    assert verdict.NOT_SERVED == judged(None).state == judged({"ab" * 32}).state
    seen = judged({shown})
    assert (verdict.SERVING, verdict.OK, "", None) == (seen.state, seen.severity, seen.last_error, seen.next_try)
    world.notes("example.org", install={"number": 2, **wrong})
    assert verdict.NOT_SERVED == judged({shown}).state


def test_a_failure_is_over_once_root_installed_after_it(world: World) -> None:
    """The issuer's ledger is a tick behind; root's installation is not."""
    now = int(time.time())
    world.usual("example.org")
    world.ledger("example.org", count=1, since=now - 900, failed_at=now - 900, next_try=now - 800, last_error="refused", kind="refused")
    assert "failing" == only()["state"]
    world.notes("example.org", installed_at=now - 300)
    assert ("serving", None) == (only()["state"], only()["last_error"])


# A clock that stood ahead.

def test_what_a_clock_ahead_noted_is_not_believed(world: World) -> None:
    """Neither the failure, nor the refusal, nor any moment of it is said; what is still so is noted anew by its principal."""
    ahead = int(time.time()) + YEAR
    wrong = {"number": 2, "since": ahead, "tries": 1, "next_try": ahead + 60}
    world.usual("example.org")
    world.ledger("example.org", count=1, since=ahead, failed_at=ahead, next_try=ahead + 60, last_error="x", kind="dns")
    world.notes("example.org", refused={"reason": "expired", **wrong}, install={"state": "service-failed", "error": "x", **wrong})
    assert ("serving", None, None, None) == tuple(only()[key] for key in ("state", "last_error", "since", "next_try"))


def test_no_moment_or_duration_that_cannot_be_is_printed(world: World) -> None:
    """A failure of today's with moments of a wrong clock's beside it: no year to come, no negative time, in no form and no mail."""
    now = time.time()
    ahead = int(now) + DECADES
    world.usual("example.org")
    world.ledger("example.org", count=9, since=ahead, failed_at=int(now) - 60, next_try=ahead, last_error="x", kind="dns")
    path = world.state / "sites/example.org/0001/request.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "key_created": ahead}))
    os.utime(world.state / "keeper/last-run", (ahead, ahead))
    world.put(world.state / "issuer/last-run", b"{}")
    forms = [run(*argv)[1] for argv in ([], ["example.org"], ["--json"], ["--nagios"], ["--prometheus"])]
    reader = evidence.Reader()
    sites = status.look(reader, reader.names(), None, Thresholds(), now)
    runs = {"keeper": reader.last_run("keeper"), "issuer": reader.last_run("issuer")}
    problems = [*alarm.of_host(runs["keeper"], runs["issuer"], sites, [], now), *(one for site in sites for one in alarm.of_site(site, now))]
    assert {"example.org:failing", "keeper:silent"} == {problem.key for problem in problems}
    forms += message.write(alarm.PROBLEM, problems, {}, {}, "host", now)
    for text in forms:
        assert not re.search(r"-\d+[smhdy]\b", text), text
        assert time.strftime("%Y-", time.gmtime(ahead)) not in text and str(ahead)[:6] not in text, text
    assert 1 == run("--nagios")[0]


def test_a_certificate_that_ended_has_no_days_left(world: World) -> None:
    """It ended so long ago; nothing is left of it."""
    world.usual("example.org", begin=-90 * DAY, end=-3 * DAY - 60)
    assert "ended " in run()[1].splitlines()[1] and "ended 3d ago" in run("example.org")[1]


@pytest.fixture
def noted(world: World) -> notes.Notes:
    return notes.Notes("example.org")


def test_a_verdict_is_kept_no_longer_than_its_clock(noted: notes.Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root refused a reply as expired, and put an installation off, while the clock stood a year ahead: with the right clock both are looked at anew."""
    right = time.time
    (Path(configuration.STATE) / "keeper/refused").mkdir()
    monkeypatch.setattr(time, "time", lambda: right() + YEAR)
    noted.refuse(2, b"reply", "[]", "expired")
    noted.put_off(2, "service-failed", "x")
    assert noted.is_refused(2, b"reply", "[]") and noted.waits(2) and noted.is_put_off(2)
    monkeypatch.setattr(time, "time", right)
    assert not noted.is_refused(2, b"reply", "[]") and not noted.waits(2) and not noted.is_put_off(2)
    noted.refuse(2, b"reply", "[]", "expired")
    noted.put_off(2, "service-failed", "x")
    assert noted.is_refused(2, b"reply", "[]") and noted.waits(2) and noted.is_put_off(2)
    assert max(int(str(one["since"])) for one in (noted.refused, noted.install)) <= right()


def test_a_row_of_failures_begins_no_later_than_now() -> None:
    """The issuer goes on counting after the clock was put right, from a moment that was."""
    record = due.Record()
    record.note_failure(0, None, 1_900_000_000, 0.5)
    record.note_failure(0, None, 1_800_000_000, 0.5)
    assert (2, 1_800_000_000) == (record.count, record.since)


# A fresh installation.

def test_a_first_run_that_is_still_to_come_is_no_warning(world: World) -> None:
    """For as long as it is not late."""
    world.usual("example.org")
    (world.state / "keeper/last-run").unlink()
    lines = check_sites.runs()
    assert ["keeper", "issuer", "watcher"] == [line.what for line in lines] and {"ok"} == {line.level for line in lines}
    os.utime(world.etc / "sites.d/example.org.toml", (time.time() - DAY,) * 2)
    assert {"warning"} == {line.level for line in check_sites.runs()}


def test_summary_of_a_fresh_installation(world: World) -> None:
    """No word that sounds as if something were wrong."""
    world.usual("example.org")
    assert "watcher has not run yet" in run()[1] and MailHealth() == evidence.Reader().watcher()


# When it is renewed.

@pytest.mark.parametrize("noted, failing", [
    ({}, False),                               # the issuer has noted nothing yet: after an import, or where its notes are lost
    ({"window_start": 30 * DAY, "window_end": 34 * DAY}, False),
    ({"window_start": 30 * DAY, "window_end": 300 * DAY}, False),
    ({"window_start": 80 * DAY, "window_end": 89 * DAY}, False),
    ({"window_start": 30 * DAY, "window_end": 34 * DAY, "window_of": "ab" * 32}, False),        # of the certificate before
    ({"window_start": DAY // 4, "window_end": DAY // 2}, True),
    ({"renew_at": 20 * DAY, "renew_why": renewal.BY_WINDOW}, False),                             # as planned for the certificate before
])
def test_the_plan_and_the_status_have_one_moment(world: World, noted: dict[str, Any], failing: bool) -> None:
    """certdrop renew --plan and certdrop-status say when the next order comes, by one rule, of what is noted now."""
    now = int(time.time())
    world.usual("example.org", begin=-5 * DAY, end=85 * DAY)
    live = evidence.Reader().site("example.org").certificate
    assert live
    entries = {"window_of": live.sha256 if "window_start" in noted else "", **noted}
    entries |= {key: now + value for key, value in noted.items() if isinstance(value, int)}
    if failing:
        entries |= {"count": 2, "since": now - 300, "failed_at": now - 100, "next_try": now + DAY, "last_error": "x"}
    path = world.ledger("example.org", **entries)
    os.chown(path, os.geteuid(), -1)           # each reads what is its own
    record = ledger.Ledger("example.org")
    os.chown(path, ISSUER, ISSUER)
    certificate = due.Certificate(live.sha256, live.not_before, live.not_after)
    when, why = due.due("example.org", False, certificate, record, now)
    found = only()
    assert (found["renew_at"], found["renew_reason"]) == (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)), why)


# What browsers take.

def test_what_browsers_refuse_is_said_as_long_as_it_is_so(world: World) -> None:
    """It is no state of its own: what is served and refused is both. The roots that are there now decide, and nothing of it is noted."""
    world.usual("example.org")
    assert (only()["refused_by_browsers"], only()["severity"]) == (False, verdict.OK)
    kept = (world.etc / "roots.pem").read_bytes()
    world.put(world.etc / "roots.pem", make_certificate(["other.example"], time.time() - DAY, time.time() + DAY)[0])
    found = only()
    assert (found["state"], found["refused_by_browsers"], found["severity"]) == (verdict.SERVING, True, verdict.CRITICAL)
    assert found["renew_reason"] == renewal.FOREIGN and found["renew_at"] == found["not_before"]
    problems = alarm.of_site(judged(None), time.time())
    assert [problem.subject for problem in problems] == ["example.org: browsers refuse the live certificate"] and problems[0].grave
    for argv in ((), ("example.org",), ("--nagios",)):
        assert "browsers refuse the live certificate" in run(*argv)[1]
    world.put(world.etc / "roots.pem", kept)
    assert (only()["refused_by_browsers"], only()["severity"], only()["last_error"]) == (False, verdict.OK, None)


def test_browsers_are_named_beside_another_trouble(world: World) -> None:
    """Neither hides the other."""
    world.usual("example.org")
    world.put(world.etc / "roots.pem", make_certificate(["other.example"], time.time() - DAY, time.time() + DAY)[0])
    world.ledger("example.org", kind="unreachable", count=9, since=int(time.time()) - DAY, failed_at=int(time.time()), last_error="no answer")
    for argv in ((), ("example.org",), ("--nagios",)):
        text = run(*argv)[1]
        assert "browsers refuse the live certificate" in text and "no answer" in text


def test_roots_that_cannot_be_read_are_no_green(world: World) -> None:
    """Whether browsers take it is not known, and that is said."""
    world.usual("example.org")
    (world.etc / "roots.pem").unlink()
    found = only()
    assert found["refused_by_browsers"] is None and found["severity"] == verdict.WARNING and "cannot be seen" in found["last_error"]


def test_nobody_is_mailed_for_trying_things_on_the_first_day(world: World) -> None:
    """Staging is a warning that everybody sees who looks; a mail comes when it stays."""
    world.put(world.etc / "certdrop.toml", b'directory = "letsencrypt-staging"\n')
    world.usual("example.org")
    world.put(world.etc / "roots.pem", make_certificate(["other.example"], time.time() - DAY, time.time() + DAY)[0])
    assert (only()["refused_by_browsers"], only()["severity"]) == (True, verdict.WARNING)
    now = time.time()
    assert alarm.of_site(judged(None), now) == []
    (problem,) = alarm.of_site(judged(None), now + 2 * DAY)
    assert "browsers refuse" in problem.subject and not problem.grave

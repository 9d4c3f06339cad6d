"""What is told, when, and in which words."""

from __future__ import annotations

import json
import os
import time

import pytest

from watcher.test_evidence import DAY, ISSUER, World
from certdrop import renewal
from certdrop.status import command as status
from certdrop.watcher import alarm, evidence, message, order, verdict
from certdrop.watcher.alarm import Problem
from certdrop.watcher.evidence import MailHealth, Run
from certdrop.watcher.verdict import Thresholds

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the configuration must be root's")
NOW = 1_800_000_000.0
SOME = [Problem("a:failing", "a: renewing keeps failing", [])]
OTHER = [Problem("b:failing", "b: renewing keeps failing", [])]


def problems() -> dict[str, Problem]:
    """The problems of all sites, by key."""
    reader, now = evidence.Reader(), time.time()
    sites = status.look(reader, reader.names(), None, Thresholds(), now)
    return {problem.key: problem for site in sites for problem in alarm.of_site(site, now)}


def mouth(*keys: str, ago: float = 3600) -> MailHealth:
    return MailHealth(told={key: int(NOW - ago) for key in keys}, mailed=int(NOW - ago))


@pytest.mark.parametrize("before, now, expected", [
    (MailHealth(), [], ""),
    (MailHealth(), SOME, alarm.PROBLEM),
    (mouth("a:failing"), SOME, ""),
    (mouth("a:failing", ago=DAY), SOME, alarm.REMINDER),
    (mouth("a:failing", ago=DAY - 600), SOME, alarm.REMINDER),
    (mouth("a:failing", ago=-DAY), SOME, alarm.REMINDER),
    (mouth("a:failing"), SOME + OTHER, alarm.PROBLEM),
    (mouth("a:failing", "b:failing"), SOME, ""),
    (mouth("a:failing"), OTHER, alarm.PROBLEM),
    (mouth("a:failing"), [], alarm.WELL),
])
def test_told_on_a_change_then_daily_then_once_when_well(before: MailHealth, now: list[Problem], expected: str) -> None:
    """A mail is due for what is new, after a day for what is left, and once when nothing is; a clock set back does not silence it."""
    assert expected == alarm.decide(before, now, NOW)


def test_nothing_is_told_of_what_is_well(world: World) -> None:
    """A served site, one just added and one nobody serves yet are no problem; neither is a single failure."""
    world.usual("a.org")
    world.ledger("a.org", kind="network", count=3, since=int(time.time()) - 700, last_error="timed out")
    world.site("b.org")
    world.generation("b.org", 1, marker="placeholder")
    world.link("live", "b.org", 1)
    world.usual("c.org")
    (world.state / "proven/c.org").unlink()
    assert {} == problems()


@pytest.mark.parametrize("count, ago", [(4, 60), (1, 7 * 3600)])
def test_failing_is_told_when_it_lasts(world: World, count: int, ago: int) -> None:
    """Four failures in a row, or six hours of them."""
    world.usual("a.org")
    world.ledger("a.org", kind="dns", count=count, since=int(time.time()) - ago, next_try=int(time.time()) + 600, last_error="no such host")
    found = problems()["a.org:failing"]
    said = dict(found.facts)
    assert "dns: no such host" == said["why"] and "80.0 days left" in said["ends"]
    assert said["certdrop"].startswith("tries again by itself at 20") and "certdrop renew a.org" in said["you can"]


def test_what_stays_is_named(world: World) -> None:
    """A placeholder is no certificate."""
    world.site("b.org")
    world.generation("b.org", 1, marker="placeholder")
    world.link("live", "b.org", 1)
    world.usual("a.org")
    for name in ("a.org", "b.org"):
        world.ledger(name, kind="dns", count=4, since=int(time.time()) - 60, last_error="no such host")
    found = problems()
    assert dict(found["a.org:failing"].facts)["certdrop"].endswith("; the live certificate stays")
    assert dict(found["b.org:failing"].facts)["certdrop"].endswith("; the placeholder stays")


@pytest.mark.parametrize("ago, end, told", [(3600, 80, False), (2 * DAY, 80, True), (6 * 3600, 3, False), (20 * 3600, 3, True)])
def test_a_tlsa_record_that_is_long_waited_for_is_told(ago: int, end: int, told: bool, world: World) -> None:
    """After a day, or a sixteenth of the lifetime (13 days there); with what the issuer says of it."""
    world.usual("a.org", end=end * DAY)
    world.ledger("a.org", tlsa_since=int(time.time()) - ago, tlsa_lacks="_443._tcp.a.org. has not the record of the next key", renew_why=renewal.TLSA,
                 renew_at=int(time.time()) + 300)
    found = problems()
    assert ("a.org:tlsa" in found) == told and (not told or found["a.org:tlsa"].facts[0] == ("why", "_443._tcp.a.org. has not the record of the next key"))


def test_a_revoked_live_certificate_is_told(world: World) -> None:
    """With the command that replaces it; status says the same."""
    world.usual("a.org")
    world.notes("a.org", revoke={"0001": {"reason": "superseded", "since": 5, "not_after": 9999999999}})
    world.put(world.state / "issuer/revocations.json", json.dumps({"a.org@0001.revoke": {"done": int(time.time()) - 60}}).encode())
    os.chown(world.state / "issuer/revocations.json", ISSUER, ISSUER)
    found = problems()["a.org:revoked"]
    assert found.grave and "certdrop rotate a.org" in dict(found.facts)["you can"]
    judged = verdict.judge(evidence.Reader().site("a.org"), None, time.time(), Thresholds())
    assert judged.last_error == "it is revoked, says the issuer: run certdrop rotate a.org"


def test_each_kind_of_problem(world: World) -> None:
    """What must be told is found, each under its key."""
    world.usual("expired.org", begin=-90 * DAY, end=-1 * DAY)
    world.usual("near.org", begin=-80 * DAY, end=10 * DAY)
    world.usual("refused.org")
    world.notes("refused.org", refused={"number": 2, "reason": "replay", "since": 5, "tries": 1, "next_try": 6})
    world.usual("dark.org")
    world.notes("dark.org", install={"number": 2, "state": "service-failed", "since": 5, "tries": 2, "next_try": 6, "error": "nginx: emerg"})
    world.usual("open.org")
    os.chmod(world.state / "sites/open.org/0001/privkey.pem", 0o644)
    world.usual("typo.org")
    world.site("typo.org", text="kay = 1\n")
    world.site("waits.org")
    world.generation("waits.org", 1, marker="placeholder")
    world.link("live", "waits.org", 1)
    os.utime(world.etc / "sites.d/waits.org.toml", (time.time() - 2 * DAY,) * 2)
    said = {}
    for name, tries in (("leaked.org", 4), ("young.org", 3)):
        world.usual(name)
        world.notes(name, revoke={"0001": {"reason": "keyCompromise", "since": 5, "not_after": 9999999999}})
        said[f"{name}@0001.revoke"] = {"count": tries, "since": int(time.time()) - 60, "next_try": 5, "last_error": "unauthorized"}
    world.put(world.state / "issuer/revocations.json", json.dumps(said).encode())
    os.chown(world.state / "issuer/revocations.json", ISSUER, ISSUER)
    assert {"expired.org:expired", "near.org:near-end", "refused.org:refused", "dark.org:issued-not-served", "open.org:disorder",
            "typo.org:failing", "waits.org:waiting", "leaked.org:revocation"} == set(problems())


def test_silence_of_keeper_and_issuer_is_told() -> None:
    """Nothing ran for hours: that is a problem of its own, for each of the two."""
    site = verdict.judge(evidence.Evidence("a.org", configured_at=int(NOW - 30 * DAY)), None, NOW, Thresholds())
    told = {problem.key for problem in alarm.of_host(Run(int(NOW - 4 * 3600)), Run(), [site], [], NOW)}
    assert {"keeper:silent", "issuer:silent"} == told
    assert [] == alarm.of_host(Run(int(NOW - 3600), 65), Run(int(NOW - 600), 75), [site], [], NOW)
    assert ["keeper:exit"] == [problem.key for problem in alarm.of_host(Run(int(NOW), 70), Run(int(NOW)), [site], [], NOW)]
    assert [] == alarm.of_host(Run(), Run(), [], [], NOW)
    never = alarm.of_host(Run(int(NOW)), Run(), [site], [], NOW)
    assert ["issuer:silent"] == [problem.key for problem in never] and ("why", "it has not run yet") in never[0].facts


def test_what_stops_the_runs_is_told_in_place_of_silence() -> None:
    """Not before it lasts; and that sudo's run does not begin, and that nothing can be written, at once."""
    site = verdict.judge(evidence.Evidence("a.org", configured_at=int(NOW - 30 * DAY)), None, NOW, Thresholds())
    well = Run(int(NOW))
    for quiet, keys in ((3600, []), (4 * 3600, ["keeper:stopped"])):
        found = alarm.of_host(Run(int(NOW - quiet), stopped="no room"), well, [site], [], NOW)
        assert [problem.key for problem in found] == keys and not any("cron" in text for problem in found for _, text in problem.facts)
    assert [("keeper:asked", False)] == [(one.key, one.grave) for one in alarm.of_host(Run(int(NOW), asked="noexec"), well, [site], [], NOW)]
    assert [("host:read-only", True), ("host:read-only", False)] == [
        (one.key, one.grave) for one in alarm.of_host(well, well, [site], [], NOW, ["/var/lib/certdrop", "/var/log/certdrop"])]


def test_an_account_that_the_ca_lost_is_told() -> None:
    """Whatever found it out, and before any certificate ends: what was lost, and the next step."""
    site = verdict.judge(evidence.Evidence("a.org", configured_at=int(NOW - 30 * DAY)), None, NOW, Thresholds())
    (found,) = alarm.of_host(Run(int(NOW)), Run(int(NOW), lost="https://ca.test/acct/1"), [site], [], NOW)
    assert found.key == "issuer:account" and found.grave and "https://ca.test/acct/1" in found.subject
    assert any("sudo certdrop-account register" in text and "accounturi" in text for _, text in found.facts)
    ((severity, text),) = verdict.of_host({"issuer": Run(int(NOW), lost="https://ca.test/acct/1")}, [])
    assert severity == verdict.CRITICAL and "https://ca.test/acct/1" in text and "sudo certdrop-account register" in text


def test_once_a_day_without_a_note() -> None:
    """Where nothing can be noted: in the first hour, then each 24 hours later."""
    problem = alarm.Problem("host:read-only", "read-only", [])
    before = evidence.MailHealth(int(NOW - 3590))
    told = [hour for hour in range(80) if alarm.decide(before, [problem], NOW + 3600 * hour, True)]
    assert told == [0, 24, 48, 72] and alarm.decide(before, [problem], NOW, True) == alarm.PROBLEM
    assert alarm.decide(before, [], NOW, True) == ""


@pytest.mark.parametrize("spoil, said", [
    (lambda place: os.chmod(place / "privkey.pem", 0o640), "private key that others"),
    (lambda place: os.chown(place / "cert.pem", ISSUER, 0), f"belongs to uid {ISSUER}"),
    (lambda place: os.chmod(place / "nginx.conf", 0o666), "can be written by others"),
    (lambda place: os.chmod(place, 0o777), "can be written by others"),
    (lambda place: os.link(place / "fullchain.pem", place / "more"), "no plain file"),
    (lambda place: (place / "fullchain.pem").write_bytes(b""), "does not begin with cert.pem"),
    (lambda place: (place / "nginx.conf").write_text("ssl_certificate /elsewhere;\n"), "does not name this generation"),
    (lambda place: (place / "chain.pem").unlink(), "No such file"),
    (lambda place: [(place / "privkey.pem").unlink(), (place / "privkey.pem").symlink_to("/etc/shadow")], "no plain file"),
])
def test_disorder_of_live_files(world: World, spoil: object, said: str) -> None:
    """Every way in which a live file, its owner or its mode can be wrong is seen."""
    world.usual("a.org")
    assert [] == order.of_site("a.org", 1)
    assert callable(spoil)
    spoil(world.state / "sites/a.org/0001")
    assert said in " ".join(order.of_site("a.org", 1))


def test_letter_says_what_since_when_and_what_to_do() -> None:
    """Subject and body name the worst first, with facts, runs, exit codes and the last lines of the logs."""
    grave = Problem("b:expired", "b.org: the certificate has expired", [("why", "dns: no such host"), ("you can", "run certdrop renew b.org")], True)
    subject, body = message.write(alarm.PROBLEM, SOME + [grave], {"keeper": Run(int(NOW) - 60, 65), "issuer": Run()}, {"issuer": ["one", "two"], "keeper": []},
                                  "host", NOW)
    assert "[certdrop] host: b.org: the certificate has expired, and 1 more" == subject
    for line in ("2 problems with certificates on host, at 2027-01-15T08:00:00Z.", "  why:       dns: no such host", "  you can:   run certdrop renew b.org",
                 "The keeper last ran at 2027-01-15T07:59:00Z (1m ago), exit code 65.", "The issuer has not run yet.",
                 "The last lines of issuer.log:", "  two"):
        assert line in body.splitlines()
    assert message.write(alarm.REMINDER, SOME, {}, {}, "host", NOW)[0].startswith("[certdrop] host: still: a:")
    assert "[certdrop] host: all is well again" == message.write(alarm.WELL, [], {}, {}, "host", NOW)[0]


def test_letter_is_clean_and_bounded() -> None:
    """Control characters and masses of text do not get into a mail."""
    many = [Problem(f"{n}:x", "x\r\nBcc: all@example.org\x1b[2J" + "y" * 5000, [("why", "z" * 9000)] * 10) for n in range(500)]
    subject, body = message.write(alarm.PROBLEM, many, {}, {"issuer": ["\x07" * 9000] * 900}, "host", NOW)
    assert subject.isprintable() and len(subject) <= 150
    assert all(line.isprintable() and line.isascii() and len(line) <= 400 for line in body.splitlines())
    assert len(body) < 250_000 and "And 460 more" in body

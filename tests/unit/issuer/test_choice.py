"""Which CA is asked: the first, or one to fall back on while it is down for long."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random

import pytest

from certdrop import spool
from certdrop.config import general, site
from certdrop.issuer import choice, due, ledger, plan, revoke
from certdrop.issuer.due import DAY, HOUR
from certdrop.issuer.failure import LOCAL, NOT_PUBLISHED, OWN_BUDGET, PROXY, RATE_LIMITED, REFUSED, UNREACHABLE, VALIDATION, Failure
from certdrop.signer import jose

FIRST, SECOND, THIRD = "https://first.test/dir", "https://second.test/dir", "https://third.test/dir"
ALL = (FIRST, SECOND, THIRD)
NOW = 1_800_000_000.0


@pytest.fixture
def book(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ledger.Ledger:
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(site, "ETC", str(tmp_path / "etc"))
    for entry in ("issuer", "etc/sites.d", "etc/roots.d"):
        (tmp_path / entry).mkdir(parents=True)
    return ledger.Ledger("example.org")


def fail(book: ledger.Ledger, at: float, kind: str = UNREACHABLE, asked: str = FIRST, left: float = 30 * DAY, problem: str = "", retry_after: float = 0.0,
         status: int = 0) -> None:
    certificate = due.Certificate("aa", NOW - 60 * DAY, NOW + left)
    book.failed(Failure(kind, "x", retry_after, problem, status), certificate, at, asked=asked, directories=ALL)


def down(book: ledger.Ledger, until: float, left: float = 30 * DAY, since: float = NOW) -> None:
    """The first CA fails from then on, tried every half day, as the back-off has it at least."""
    at = since
    while at < until:
        fail(book, at, left=left)
        at += DAY / 2
    fail(book, until, left=left)


def chosen(book: ledger.Ledger, now: float, left: float | None = 30 * DAY, ready: tuple[str, ...] = (SECOND, THIRD), wanted: bool = False) -> str:
    certificate = None if left is None else due.Certificate("aa", NOW - 60 * DAY, NOW + left)
    return choice.choose(ALL, book, certificate, now, ready.__contains__, wanted)


@pytest.mark.parametrize("left, hours", [(30 * DAY, 480), (3 * DAY, 48), (DAY, 24), (HOUR, 24), (-DAY, 24), (None, 24)])
def test_another_is_asked_when_a_third_of_the_time_is_left_and_after_a_day_at_least(book: ledger.Ledger, left: float | None, hours: int) -> None:
    """Thirty days left: after twenty; three: after two. Less, none at all, or no certificate: after a day."""
    assert chosen(book, NOW, left) == FIRST
    down(book, NOW + hours * HOUR - 60, left or 0.0)
    assert chosen(book, NOW + hours * HOUR - 2, left) == FIRST
    assert chosen(book, NOW + hours * HOUR + 2, left) == SECOND


def test_what_root_wants_now_waits_for_a_day_alone(book: ledger.Ledger) -> None:
    """A key that got out, a revoked certificate, other names: what is left of the live one is worth nothing."""
    down(book, NOW + DAY + HOUR)
    assert chosen(book, NOW + DAY + HOUR) == FIRST and chosen(book, NOW + DAY + HOUR, wanted=True) == SECOND
    assert choice.choose([FIRST], book, None, NOW + DAY + HOUR, lambda _: True, True) == FIRST


@pytest.mark.parametrize("kind, problem, status", [(VALIDATION, "", 0), (REFUSED, "", 0), (RATE_LIMITED, "", 429)])
def test_for_nothing_else_another_is_asked(book: ledger.Ledger, kind: str, problem: str, status: int) -> None:
    """Not for names that are not validated, refusals and rate limits; and such an answer of the first CA shows that it is up."""
    for day in range(25):
        fail(book, NOW + day * DAY, kind, problem=problem, status=status)
    assert chosen(book, NOW + 25 * DAY) == FIRST
    book.forget_failures()
    down(book, NOW + 21 * DAY)
    assert chosen(book, NOW + 21 * DAY + 1) == SECOND
    fail(book, NOW + 21 * DAY + 1, kind, problem=problem, status=status)
    assert chosen(book, NOW + 21 * DAY + 2) == FIRST and not book.away_since


@pytest.mark.parametrize("kind, problem", [(LOCAL, ""), (UNREACHABLE, PROXY), (RATE_LIMITED, OWN_BUDGET), (VALIDATION, NOT_PUBLISHED)])
def test_what_is_no_word_of_the_ca_says_nothing_of_it(book: ledger.Ledger, kind: str, problem: str) -> None:
    """A full disk, our own budget, the proxy, a record that is not there: they neither begin nor end the time that it is down."""
    fail(book, NOW, kind, problem=problem)
    assert not book.away_since
    down(book, NOW + 20 * DAY)
    fail(book, NOW + 20 * DAY + HOUR, kind, problem=problem)
    assert book.away_since == NOW and chosen(book, NOW + 20 * DAY + 2 * HOUR) == SECOND


def test_a_ca_that_calls_its_own_trouble_a_rate_limit_is_down(book: ledger.Ledger) -> None:
    """A status of 500 and above is its own side, whatever the problem's type says."""
    down(book, NOW + 20 * DAY)
    fail(book, NOW + 20 * DAY + HOUR, RATE_LIMITED, status=503)
    assert chosen(book, NOW + 20 * DAY + 2 * HOUR) == SECOND


def test_they_are_asked_in_turn_until_one_issues(book: ledger.Ledger) -> None:
    """The first among them, whatever kept the others from issuing; and the next renewal begins with the first."""
    down(book, NOW + 21 * DAY)
    at, turns = NOW + 21 * DAY, []
    kinds = {FIRST: UNREACHABLE, SECOND: LOCAL, THIRD: UNREACHABLE}
    for _ in range(5):
        turns.append(chosen(book, at))
        fail(book, at, kinds[turns[-1]], turns[-1])
        at += HOUR
    assert turns == [SECOND, THIRD, FIRST, SECOND, THIRD]
    book.issued(THIRD, "bb", None, at, FIRST)
    book.installed()
    assert chosen(book, at + 60 * DAY, 90 * DAY) == FIRST and not book.away_since


def test_one_whose_reply_root_refuses_hides_no_third(book: ledger.Ledger) -> None:
    """That it issued ended nothing."""
    down(book, NOW + 21 * DAY)
    at = NOW + 21 * DAY
    book.issued(SECOND, "bb", None, at, FIRST)
    book.refused("untrusted", "cc", due.Certificate("aa", NOW - 60 * DAY, NOW + 30 * DAY), at + 1, ALL)
    assert chosen(book, at + HOUR) == THIRD


def test_only_where_there_is_an_account(book: ledger.Ledger) -> None:
    """None is made in passing; and one is an account only at that CA."""
    down(book, NOW + 21 * DAY)
    assert chosen(book, NOW + 21 * DAY, ready=(THIRD,)) == THIRD
    assert chosen(book, NOW + 21 * DAY, ready=()) == FIRST
    note = pathlib.Path(site.STATE, f"issuer/account@{jose.entry(SECOND)}.json")
    for text, is_one in (('{"account": "?"}', False), ('{"account": "https://other.test/1"}', False), ('{"account": "https://second.test/1"}', True)):
        note.write_text(text)
        assert plan.has_account(SECOND) is is_one


def test_one_to_fall_back_on_puts_off_no_try_at_the_first(book: ledger.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Retry-After, refusals and validations are its own: it is left alone for that long; the next try, at another, is within an eighth of what is left."""
    monkeypatch.setattr(random, "random", lambda: 0.5)
    for kind in (REFUSED, VALIDATION, RATE_LIMITED):
        book.forget_failures()
        book.waits = ""
        down(book, NOW + 23 * HOUR, DAY)
        at = NOW + 24 * HOUR + 60
        assert chosen(book, at, DAY) == SECOND
        fail(book, at, kind, SECOND, DAY * 2, retry_after=5 * DAY)
        assert book.next_try <= at + DAY / 8 + 2 and chosen(book, book.next_try + 1, DAY) == THIRD
        fail(book, book.next_try + 1, asked=THIRD)
        assert chosen(book, book.next_try + 1, DAY) == FIRST
        fail(book, book.next_try + 1)
        assert chosen(book, book.next_try + 1, DAY) == THIRD and choice.left_alone(book, SECOND, at) > at + 4 * DAY


def test_the_first_one_is_left_alone_as_long_as_it_wants_and_no_site_with_it(book: ledger.Ledger) -> None:
    """Its Retry-After holds an order with it, and none with another that may be asked."""
    down(book, NOW + 23 * HOUR, 2 * DAY)
    fail(book, NOW + 24 * HOUR, left=2 * DAY, retry_after=7 * DAY, status=503)
    assert choice.left_alone(book, FIRST, NOW + DAY) > NOW + 7 * DAY and not book.retry_after
    assert chosen(book, NOW + 34 * HOUR, 2 * DAY) == SECOND
    book.failed(Failure(UNREACHABLE, "x", 7 * DAY), None, NOW, asked=FIRST, directories=[FIRST])
    assert book.retry_after > NOW + 6 * DAY                    # the only one holds the site, as ever


@pytest.mark.parametrize("days", [0.5, 1, 2.5, 3, 6])
def test_a_first_one_that_asks_for_days_of_patience_is_down_all_the_same(book: ledger.Ledger, days: float) -> None:
    """It is left alone as it wants, which is no time in which this host was off."""
    at = NOW
    while at < NOW + 25 * DAY and chosen(book, at, 30 * DAY) == FIRST:
        fail(book, at, retry_after=days * DAY, status=503)
        at = max(at + DAY / 2, choice.left_alone(book, FIRST, at) + 60)
    assert chosen(book, at, 30 * DAY) == SECOND and NOW + 20 * DAY <= at < NOW + 28 * DAY


def test_where_all_want_to_be_left_alone_the_soonest_is_next(book: ledger.Ledger) -> None:
    """Not the first, whose patience may be longer than the certificate's."""
    down(book, NOW + 21 * DAY)
    at = NOW + 21 * DAY
    for url, seconds in ((FIRST, 2 * DAY), (SECOND, 3 * HOUR), (THIRD, HOUR)):
        choice.leave_alone(book, url, seconds, at)
    assert chosen(book, at) == THIRD


@pytest.mark.parametrize("url", ["https://[x/d", "https://ca:port/d", "https://ca.test:99999/d", "https://", "http://ca.test/", "zerosl", "https://a b/"])
def test_a_directory_that_is_no_url_is_refused_by_the_reader(book: ledger.Ledger, url: str) -> None:
    """In the file of one site: it ends no run for the others."""
    config = general.Config()
    config.directory = FIRST
    for line in (f'directory = "{url}"', f'fallback = ["{url}"]'):
        pathlib.Path(site.ETC, "sites.d/example.org.toml").write_text(f'domains = ["example.org"]\n{line}\n')
        with pytest.raises(site.ConfigError, match="directory or fallback"):
            site.load_site("example.org", config)
        assert plan.directories("example.org", config) == [FIRST]


def test_a_moment_that_a_wrong_clock_noted_is_none(book: ledger.Ledger) -> None:
    """From the future, from the past; and one failure long ago, after which the host was off, is no long outage."""
    fail(book, NOW + 400 * DAY)
    down(book, NOW + 21 * DAY)
    assert book.away_since == NOW and chosen(book, NOW + 21 * DAY) == SECOND
    for began in (NOW - 900 * DAY, NOW - 25 * DAY):
        book.forget_failures()
        choice.forget(book)
        down(book, began + 2 * HOUR, since=began)
        assert chosen(book, NOW + 29 * DAY) == FIRST
        fail(book, NOW + 29 * DAY)
        assert book.away_since == NOW + 29 * DAY


def test_another_first_one_is_not_down(book: ledger.Ledger) -> None:
    """What is noted of the one that was configured before says nothing of it."""
    down(book, NOW + 21 * DAY)
    assert choice.choose(["https://new.test/dir", SECOND], book, None, NOW + 21 * DAY, lambda _: True) == "https://new.test/dir"


@pytest.mark.parametrize("waits", ["", "x", "=", "a=b", f"{SECOND}=99999999999", f"{SECOND}={'9' * 400}", "= =", f"{SECOND}=-1"])
def test_nonsense_in_the_notes_holds_nobody(book: ledger.Ledger, waits: str) -> None:
    """Nor does it stop a run."""
    down(book, NOW + 21 * DAY)
    book.waits = waits
    assert chosen(book, NOW + 21 * DAY) == SECOND
    choice.leave_alone(book, SECOND, DAY, NOW + 21 * DAY)
    assert chosen(book, NOW + 21 * DAY) == THIRD


def test_it_survives(book: ledger.Ledger) -> None:
    """On disk; and by whom the last few certificates were issued, as many as fit."""
    for number in range(9):
        book.issued(f"https://ca{number}.test/dir", f"{number:064x}", None, NOW, FIRST)
    down(book, NOW + DAY)
    fail(book, NOW + DAY + HOUR, REFUSED, SECOND)
    book.save()
    again = ledger.Ledger("example.org")
    assert (again.away_of, again.away_since, again.away_count, again.asked) == (FIRST, NOW, 3, SECOND) and again.waits == book.waits
    assert again.issuer_of(f"{8:064x}") == "https://ca8.test/dir" and again.issuer_of(f"{3:064x}") == "https://ca3.test/dir"
    assert again.issuer_of(f"{2:064x}") == again.issuer_of("") == ""
    long = "https://ca.test/" + "d" * 900
    for number in range(3):
        again.issued(long, f"{number:064x}", None, NOW)
    again.save()
    assert {ledger.Ledger("example.org").issuer_of(f"{number:064x}") for number in range(3)} == {long, ""}


@pytest.mark.parametrize("known, expected", [
    (SECOND, FIRST), ("https://evil.test:25/d", FIRST), ("nonsense", FIRST), ("https://[x", FIRST), ("https://x:99999/", FIRST),
    ("https://gone.test/dir", "https://gone.test/dir"), ("https://gone.test:25/dir", FIRST), ("https://aside.test/dir", FIRST), (FIRST, FIRST)])
def test_a_note_leads_a_revocation_to_no_ca_that_is_not_ours(book: ledger.Ledger, monkeypatch: pytest.MonkeyPatch, known: str, expected: str) -> None:
    """To one that the site's configuration names, or where we have an account, as the signer noted: else to the site's first."""
    config = general.Config()
    config.directory = FIRST
    monkeypatch.setattr(general, "load_config", lambda: config)
    place = pathlib.Path(site.STATE)
    for entry in ("spool/requests", "account"):
        (place / entry).mkdir(parents=True)
    monkeypatch.setattr(spool, "SPOOL", str(place / "spool"))
    for url in ("https://gone.test/dir", "https://gone.test:25/dir"):
        (place / f"account/{jose.entry(url)}.url").write_text("https://gone.test/dir")
        (place / f"account/{jose.entry(url)}.key").touch()
    (place / f"account/{jose.entry('https://aside.test/dir')}.url").write_text("https://aside.test/dir")
    book.answers = f"{hashlib.sha256(b'a leaf').hexdigest()}={known}"
    book.save()
    (place / "spool/requests/example.org@0001.revoke").write_text(json.dumps({"payload": {"certificate": jose.b64(b"a leaf")}}))
    assert revoke.Revocation("example.org@0001.revoke").directory() == expected


@pytest.mark.parametrize("text, expected", [
    ("", [FIRST]), (f'directory = "{SECOND}"\n', [SECOND]), (f'fallback = ["{SECOND}", "{FIRST}", "zerossl"]\n', [FIRST, SECOND, site.DIRECTORIES["zerossl"]]),
    (f'"direc\\u0074ory" = "{SECOND}"\n', [SECOND]), ('directory = "http://plain.test/"\n', [FIRST]), ("fallback = 1\n", [FIRST]),
])
def test_the_cas_of_a_site(book: ledger.Ledger, text: str, expected: list[str]) -> None:
    """As its file says; what cannot be read is as if it were not there, and root says so."""
    config = general.Config()
    config.directory = FIRST
    path = pathlib.Path(site.ETC, "sites.d/example.org.toml")
    path.write_text('domains = ["example.org"]\n' + text)
    assert plan.directories("example.org", config) == expected
    assert plan.directories("other.example.org", config) == [FIRST]


def test_the_roots_that_a_reply_may_lead_to(book: ledger.Ledger) -> None:
    """Those of its own CAs, each in its file or the system's; or trust_roots alone, where it is configured."""
    config = general.Config()
    config.directory = FIRST
    found = site.Site("example.org", config)
    assert found.roots == (site.STORE,)
    found.fallback = [SECOND]
    own = pathlib.Path(site.ETC, "roots.d/second.test.pem")
    own.touch()
    general.load_config()                      # what was put there counts from the next reading on
    assert found.roots == tuple(sorted((str(own), site.STORE)))
    found.fallback, found.directory = [], SECOND
    assert found.roots == (str(own),)
    config.trust_roots = "/etc/ssl/mine.pem"
    assert site.Site("example.org", config).roots == ("/etc/ssl/mine.pem",)
    asked = config.asking(SECOND)
    assert asked.trust_roots == "/etc/ssl/mine.pem" and asked.directory == SECOND and asked.whole is config
    config.trust_roots = site.STORE
    assert config.asking(SECOND).trust_roots == str(own) and config.asking(FIRST).trust_roots == site.STORE

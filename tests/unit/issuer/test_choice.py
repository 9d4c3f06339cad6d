"""Which CA is asked: the first, or one to fall back on while it is down for long."""

from __future__ import annotations

import pathlib
import random

import pytest

from certdrop.config import general, site
from certdrop.issuer import choice, due, ledger, plan
from certdrop.issuer.due import DAY, HOUR
from certdrop.issuer.failure import LOCAL, PROXY, RATE_LIMITED, REFUSED, UNREACHABLE, VALIDATION, Failure

FIRST, SECOND, THIRD = "https://first.test/dir", "https://second.test/dir", "https://third.test/dir"
NOW = 1_800_000_000.0


@pytest.fixture
def book(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ledger.Ledger:
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(site, "ETC", str(tmp_path / "etc"))
    for entry in ("issuer", "etc/sites.d", "etc/roots.d"):
        (tmp_path / entry).mkdir(parents=True)
    return ledger.Ledger("example.org")


def fail(book: ledger.Ledger, at: float, kind: str = UNREACHABLE, asked: str = FIRST, left: float = 30 * DAY, problem: str = "") -> None:
    book.failed(Failure(kind, "x", problem=problem), due.Certificate("aa", NOW - 60 * DAY, NOW + left), at, asked=asked, first=FIRST)


def chosen(book: ledger.Ledger, now: float, left: float | None = 30 * DAY, ready: tuple[str, ...] = (SECOND, THIRD)) -> str:
    certificate = None if left is None else due.Certificate("aa", NOW - 60 * DAY, NOW + left)
    return choice.choose((FIRST, SECOND, THIRD), book, certificate, now, ready.__contains__)


@pytest.mark.parametrize("left, hours", [(30 * DAY, 480), (3 * DAY, 48), (DAY, 24), (HOUR, 24), (-DAY, 24), (None, 24)])
def test_another_is_asked_when_a_third_of_the_time_is_left_and_after_a_day_at_least(book: ledger.Ledger, left: float | None, hours: int) -> None:
    """Thirty days left: after twenty; three: after two. Less, none at all, or no certificate: after a day."""
    fail(book, NOW, left=left or 0.0)
    assert chosen(book, NOW, left) == FIRST
    assert chosen(book, NOW + hours * HOUR - 2, left) == FIRST
    assert chosen(book, NOW + hours * HOUR + 2, left) == SECOND


@pytest.mark.parametrize("kind, problem", [(VALIDATION, ""), (REFUSED, ""), (RATE_LIMITED, ""), (UNREACHABLE, PROXY)])
def test_for_nothing_else_another_is_asked(book: ledger.Ledger, kind: str, problem: str) -> None:
    """Not for names that are not validated, refusals, rate limits and the proxy; and such an answer of the first CA shows that it is up."""
    fail(book, NOW, kind, problem=problem)
    assert chosen(book, NOW + 29 * DAY) == FIRST
    book.forget_failures()
    fail(book, NOW)
    fail(book, NOW + 20 * DAY, kind, problem=problem)
    assert chosen(book, NOW + 21 * DAY) == FIRST and not book.away_since


def test_this_hosts_own_trouble_says_nothing_of_the_ca(book: ledger.Ledger) -> None:
    """A full disk on the way neither begins nor ends the time that the CA is down."""
    fail(book, NOW)
    fail(book, NOW + DAY, LOCAL)
    assert book.away_since == NOW and chosen(book, NOW + 21 * DAY) == SECOND


def test_they_are_asked_in_turn_until_one_issues(book: ledger.Ledger) -> None:
    """The first among them; and the next renewal begins with the first."""
    fail(book, NOW)
    at, turns = NOW + 21 * DAY, []
    for _ in range(4):
        turns.append(chosen(book, at))
        fail(book, at, asked=turns[-1], kind=UNREACHABLE if turns[-1] == FIRST else REFUSED)
        at += HOUR
    assert turns == [SECOND, THIRD, FIRST, SECOND]
    book.issued(THIRD, "bb", None, at)
    assert chosen(book, at + 60 * DAY, 90 * DAY) == FIRST and not book.away_since


def test_only_where_there_is_an_account(book: ledger.Ledger) -> None:
    """None is made in passing."""
    fail(book, NOW)
    assert chosen(book, NOW + 21 * DAY, ready=(THIRD,)) == THIRD
    assert chosen(book, NOW + 21 * DAY, ready=()) == FIRST


def test_one_to_fall_back_on_puts_off_no_try_at_the_first(book: ledger.Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Retry-After and its refusals are its own: the next try is within an eighth of what is left."""
    monkeypatch.setattr(random, "random", lambda: 0.5)
    fail(book, NOW)
    for hour in range(5):
        book.failed(Failure(REFUSED, "x", retry_after=5 * DAY), due.Certificate("aa", NOW - DAY, NOW + DAY), NOW + hour * HOUR, asked=SECOND, first=FIRST)
    assert book.next_try <= NOW + 4 * HOUR + 20 * HOUR / 8 + 2


def test_a_moment_that_a_wrong_clock_noted_is_none(book: ledger.Ledger) -> None:
    """From the future."""
    fail(book, NOW + 400 * DAY)
    assert chosen(book, NOW + 29 * DAY) == FIRST


def test_it_survives(book: ledger.Ledger) -> None:
    """On disk; and by whom the last few certificates were issued."""
    for number in range(9):
        book.issued(f"https://ca{number}.test/dir", f"{number:064x}", None, NOW)
    fail(book, NOW)
    book.save()
    again = ledger.Ledger("example.org")
    assert (again.away_since, again.asked) == (NOW, FIRST)
    assert again.issuer_of(f"{8:064x}") == "https://ca8.test/dir" and again.issuer_of(f"{3:064x}") == "https://ca3.test/dir"
    assert again.issuer_of(f"{2:064x}") == again.issuer_of("") == ""


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
    assert found.roots == tuple(sorted((str(own), site.STORE)))
    found.fallback, found.directory = [], SECOND
    assert found.roots == (str(own),)
    config.trust_roots = "/etc/ssl/mine.pem"
    assert site.Site("example.org", config).roots == ("/etc/ssl/mine.pem",)
    asked = config.asking(SECOND)
    assert asked.trust_roots == "/etc/ssl/mine.pem" and asked.directory == SECOND and asked.whole is config
    config.trust_roots = site.STORE
    assert config.asking(SECOND).trust_roots == str(own) and config.asking(FIRST).trust_roots == site.STORE

"""Before an order: whether the records that prove its names are seen, and what becomes of it where they are not."""

from __future__ import annotations

import types
from typing import Any

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.issuer import due, ledger, published
from certdrop.issuer.failure import NOT_PUBLISHED, VALIDATION, Failure
from certdrop.watcher import resolver
from certdrop.watcher.resolver import Texts

ACCOUNT = "https://ca.example/acct/1"
GOOD = f"ca.example; accounturi={ACCOUNT}; policy=wildcard"
NAMES, ISSUERS = ["*.example.org", "www.example.org"], ["ca.example"]
ABSENT = Texts([], problem=resolver.NO_NAME, words="NXDOMAIN")


def task(own: int = 0, urged: bool = False, forced: bool = False) -> Any:
    return types.SimpleNamespace(name="site", urged=urged, forced=forced, ledger=types.SimpleNamespace(own=own))


def answers(monkeypatch: pytest.MonkeyPatch, **zone: Texts) -> None:
    monkeypatch.setattr(resolver, "txt", lambda owner: zone.get("www" if "www" in owner else "base", ABSENT))


def test_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order goes."""
    answers(monkeypatch, base=Texts([GOOD]), www=Texts([GOOD]))
    assert published.lacking(task(), NAMES, ISSUERS, ACCOUNT) is False


def test_one_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CA is spared, and told is where what is lacking."""
    answers(monkeypatch, base=Texts([GOOD]))
    with pytest.raises(Failure) as caught:
        published.lacking(task(), NAMES, ISSUERS, ACCOUNT)
    assert (caught.value.kind, caught.value.problem, caught.value.names) == (VALIDATION, NOT_PUBLISHED, [])
    assert "_validation-persist.www.example.org.: there is no record" in caught.value.text and "show --records site" in caught.value.text


@pytest.mark.parametrize("found", [Texts([], problem=resolver.SILENT), Texts([], problem=resolver.BROKEN), Texts([], problem=resolver.BOGUS)])
def test_where_nothing_can_be_seen_the_ca_is_asked(monkeypatch: pytest.MonkeyPatch, found: Texts) -> None:
    """A resolver that is broken keeps no certificate from being renewed."""
    answers(monkeypatch, base=found, www=found)
    assert published.lacking(task(), NAMES, ISSUERS, ACCOUNT) is False


def test_a_ca_that_does_not_say_its_name_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its challenge says it."""
    answers(monkeypatch)
    assert published.lacking(task(), NAMES, [], ACCOUNT) is False


@pytest.mark.parametrize("how", [task(urged=True), task(forced=True), task(own=6), task(own=36), task(own=144), task(own=1440)])
def test_the_ca_is_asked_all_the_same(monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    """Where somebody waits for its word, and from time to time: it may see another DNS."""
    answers(monkeypatch)
    assert published.lacking(how, NAMES, ISSUERS, ACCOUNT) is True


@pytest.mark.parametrize("own", [1, 5, 7, 35, 37, 143, 145])
def test_between_it_is_not(monkeypatch: pytest.MonkeyPatch, own: int) -> None:
    """Its limits of failed validations are for others."""
    answers(monkeypatch)
    with pytest.raises(Failure):
        published.lacking(task(own=own), NAMES, ISSUERS, ACCOUNT)


def test_no_back_off_hides_a_record_that_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The next run looks again, however often it looked, also after the CA was asked; each of these counts, so it is not asked twice for one."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path))
    (tmp_path / "issuer").mkdir()
    found = ledger.Ledger("site")
    for turn in range(1, 50):
        found.failed(Failure(VALIDATION, "x", problem=NOT_PUBLISHED), None, due.MADE + turn * 600, placed=turn in (7, 37))
        assert found.own == turn and due.held_until(found, due.MADE + turn * 600 + 1) <= due.MADE + turn * 600
    found.failed(Failure(VALIDATION, "x"), None, due.MADE + 30000, placed=True)
    assert due.held_until(found, due.MADE + 30001) > due.MADE + 30001

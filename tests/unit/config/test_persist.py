"""The TXT records of dns-persist-01: what is printed can be read again as a CA reads it, and what does not suffice is said."""

from __future__ import annotations

import pytest
from certdrop.config import persist
from certdrop.config.persist import Record, Seen, Wanted
from hypothesis import given, strategies

ACCOUNT = "https://ca.example/acct/1"
NOW = 2000000000


def test_a_name_and_the_wildcard_below_it_have_one_record() -> None:
    """In the order of the names; a policy is there only where something below is to be proven."""
    assert persist.wanted(["www.example.org", "*.example.org", "example.org", "*.a.example.org"]) == [
        Wanted("www.example.org", False), Wanted("example.org", True), Wanted("a.example.org", True)]
    assert Wanted("example.org", True).owner == "_validation-persist.example.org."
    assert persist.text("ca.example", ACCOUNT, True, 7) == f"ca.example; accounturi={ACCOUNT}; policy=wildcard; persistUntil=7"
    assert persist.text("ca.example", ACCOUNT, False) == f"ca.example; accounturi={ACCOUNT}"


@given(strategies.sampled_from(["ca.example", "a-b.test"]), strategies.text([chr(at) for at in range(33, 127) if chr(at) != ";"], min_size=1, max_size=400),
       strategies.booleans(), strategies.none() | strategies.integers(0, 1 << 40))
def test_what_is_written_is_read(issuer: str, account: str, below: bool, until: int | None) -> None:
    """Whatever the account's URL has, and in a zone's file in strings of 255 octets at most."""
    text = persist.text(issuer, account, below, until)
    assert persist.parse(text) == Record(issuer, account, below, until)
    strings = persist.line("a.", text).removeprefix('a. IN TXT "').removesuffix('"').split('" "')
    assert all(len(one) <= 255 for one in strings) and ("\"" in account or "".join(strings) == text)


@pytest.mark.parametrize("text, expected", [
    (f"ca.example;accounturi={ACCOUNT}", Record("ca.example", ACCOUNT)),
    (f" \tca.example ; \taccounturi = {ACCOUNT}\t; POLICY=WildCard;persistuntil=5", Record("ca.example", ACCOUNT, True, 5)),
    (f"ca.example; accounturi={ACCOUNT}; policy=other; unknown=1", Record("ca.example", ACCOUNT)),
    (f"ca.example; accounturi={ACCOUNT};", "empty parameter"), (f"ca.example; accounturi={ACCOUNT}; policy", "no tag=value"),
    (f"ca.example; accounturi={ACCOUNT}; policy=a b", "no tag=value"), (f"ca.example; accounturi={ACCOUNT}; Accounturi=x", "twice"),
    ("ca.example", "no accounturi"),
    ("ca.example; accounturi=", "no accounturi"), (f"ca.example; accounturi={ACCOUNT}; persistUntil=soon", "no number"),
    (f"ca.example; accounturi={ACCOUNT}; persistUntil=", "no number"), (f"ca.example; accounturi={ACCOUNT}; persistUntil=" + "9" * 400, "no number"),
    (f"ca.example; accounturi={ACCOUNT}\u00e9", "no tag=value"), ("", "no accounturi")])
def test_records_are_read_as_a_ca_reads_them(text: str, expected: Record | str) -> None:
    """RFC 8659 section 4.2: unknown parameters are passed over, and what has no form is nothing."""
    found = persist.parse(text)
    assert found == expected if isinstance(expected, Record) else isinstance(found, str) and expected in found


@pytest.mark.parametrize("records, below, expected", [
    ([], False, Seen("there is no record")), (["v=spf1"], False, Seen("there are records, and none is for this CA")),
    ([f"other.example; accounturi={ACCOUNT}"], False, Seen("there are records, and none is for this CA")),
    ([f"CA.example; accounturi={ACCOUNT}"], False, Seen()), ([f"ca2.example; accounturi={ACCOUNT}"], False, Seen()),
    ([f"ca.example; accounturi={ACCOUNT}2"], False, Seen(f"it is for the account {ACCOUNT}2")),
    ([f"ca.example; accounturi={ACCOUNT}"], True, Seen("it has no policy=wildcard")),
    ([f"ca.example; accounturi={ACCOUNT}; policy=wildcard; persistUntil={NOW - 1}"], True, Seen("its persistUntil is over")),
    ([f"ca.example; accounturi={ACCOUNT}; persistUntil={NOW + 5}", f"ca.example; accounturi={ACCOUNT}; persistUntil={NOW + 9}"], False, Seen("", NOW + 9)),
    ([f"ca.example; accounturi={ACCOUNT}; persistUntil={NOW + 5}", f"ca.example; accounturi={ACCOUNT}"], False, Seen()),
    (["ca.example; policy", f"ca.example; accounturi={ACCOUNT}; policy=wildcard"], True, Seen())])
def test_the_best_of_several_records_counts(records: list[str], below: bool, expected: Seen) -> None:
    """For this CA, by any of its names, and for this account."""
    assert persist.judged(records, ["ca.example", "ca2.example"], ACCOUNT, below, NOW) == expected


def test_an_account_that_is_not_known_is_not_compared() -> None:
    """Before the first order nobody can say whose record it should be."""
    assert persist.judged(["ca.example; accounturi=x"], ["ca.example"], "", False, NOW) == Seen()


def test_parents() -> None:
    """Of two labels at least."""
    assert persist.parents("a.b.example.org") == ["b.example.org", "example.org"] and persist.parents("example.org") == []


@given(strategies.lists(strategies.text(max_size=60) | strategies.sampled_from([
    "ca.example; accounturi=x", "ca.example;;", "ca.example; persistUntil=9", "ca.example; accounturi=x; persistUntil=-9"])), strategies.booleans())
def test_whatever_the_dns_says_is_judged(records: list[str], below: bool) -> None:
    """Without an exception, and never as good without our account."""
    found = persist.judged(records, ["ca.example"], "y", below, NOW)
    assert found.why and found.until is None


PLAIN = strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=9)
KEYS = strategies.sampled_from(["issuers", "directory", "meta", "caaIdentities", "identifier", "value"])


@given(strategies.recursive(PLAIN, lambda inner: strategies.lists(inner) | strategies.dictionaries(KEYS, inner), max_leaves=20))
def test_whatever_the_notes_and_the_ca_say_is_read(said: object) -> None:
    """A note that somebody wrote, an authorization: of any form."""
    table: dict[str, object] = said if isinstance(said, dict) else {"issuers": said, "identifier": said}
    assert all(isinstance(one, str) and "." in one for one in persist.noted_issuers(table)) and isinstance(persist.name_of(table), str)

"""What a CA's answers mean: classes, Retry-After, and problem documents told whole."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certdrop.issuer import failure
from certdrop.issuer.failure import AccountUnknown, from_answer, names_in, seconds_of, told

URL = "https://ca.example.org/new-order"


def problem(name: str, **more: object) -> bytes:
    return json.dumps({"type": f"urn:ietf:params:acme:error:{name}", "detail": f"about {name}", **more}).encode()


@pytest.mark.parametrize("status, body, kind", [
    (429, problem("rateLimited"), "rate limited"), (503, problem("rateLimited"), "rate limited"), (429, b"slow down", "rate limited"),
    (500, problem("serverInternal"), "CA unreachable"), (502, b"<html>", "CA unreachable"), (503, b"", "CA unreachable"),
    (501, b"", "refused"), (501, problem("unsupported"), "refused"),
    (403, problem("unauthorized"), "validation"), (400, problem("dns"), "validation"), (403, problem("caa"), "validation"),
    (400, problem("rejectedIdentifier"), "refused"), (400, problem("malformed"), "refused"), (404, b"[" * 100000, "refused"), (400, b"\xff", "refused")])
def test_classes(status, body, kind):
    """Each answer is one of the five classes that the ledger knows."""
    assert from_answer(URL, status, body, None).kind == kind


def test_an_unknown_account_is_its_own_kind():
    """It is healed by registering again."""
    assert isinstance(from_answer(URL, 400, problem("accountDoesNotExist"), None), AccountUnknown)


@pytest.mark.parametrize("header, seconds", [("120", 120), (" 7 ", 7), ("", 0), (None, 0), ("soon", 0), ("-5", 0), ("1e9", 0), ("9" * 400, 7 * 86400),
                                             ("Wed, 99 Foo 2026", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)])
def test_retry_after_in_seconds(header, seconds):
    """A number, bounded; nonsense says nothing."""
    assert seconds_of(header) == seconds


def test_retry_after_as_a_date():
    """The other form of RFC 9110 section 10.2.3."""
    assert 3590 < seconds_of(email.utils.formatdate(time.time() + 3600, usegmt=True)) <= 3600


def test_a_problem_document_is_told_whole():
    """Type, detail, which name, and its subproblems, in one line."""
    found = {"type": "urn:ietf:params:acme:error:compound", "detail": "several",
             "subproblems": [{"type": f"urn:ietf:params:acme:error:{name}", "detail": detail, "identifier": {"type": "dns", "value": host}}
                             for name, detail, host in (("caa", "CAA forbids", "a.example.org"), ("dns", "no\nsuch\x1b[2J name", "b.example.org"))]}
    text = told(found)
    assert text.startswith("compound: several; a.example.org: caa: CAA forbids; b.example.org: dns: no such")
    assert "\x1b" not in text and "\n" not in text
    assert names_in(found) == ["a.example.org", "b.example.org"]


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["type", "detail", "identifier", "subproblems", "value"]), inner, max_size=5), max_leaves=20)


@given(json_values, st.integers(300, 599), st.text(max_size=20) | st.none())
def test_whatever_comes_is_told(body, status, header):
    """No answer breaks the telling, which is one bounded line of ASCII."""
    found = from_answer(URL, status, json.dumps(body).encode(), header)
    assert found.text.isascii() and found.text.isprintable() and len(found.text) <= 4000
    assert found.kind in (failure.UNREACHABLE, failure.RATE_LIMITED, failure.VALIDATION, failure.REFUSED)
    assert 0 <= found.retry_after <= failure.LONGEST_WAIT


@pytest.mark.parametrize("kind, text, names, fact, said", [
    ("validation", "www.example.org: the CA says dns: no such name", ["www.example.org"],
     "the CA could not validate www.example.org", "the CA says dns: no such name"),
    ("validation", "the CA says unauthorized: x", [], "the CA refuses", "the CA says unauthorized: x"),
    ("rate limited", "the CA says rateLimited: later", [], "the CA's rate limit is reached", "the CA says rateLimited: later"),
    ("refused", "the CA says malformed: the CA says so", [], "the CA refuses", "the CA says malformed: the CA says so"),
    ("local", "/var: No space left on device", [], "/var: No space left on device", "")])
def test_a_fact_in_our_words_comes_apart_from_what_the_ca_says(kind, text, names, fact, said):
    """The CA's words can be long, so a line has them last."""
    assert failure.in_two(failure.Failure(kind, text, names=names)) == (fact, said)


def test_the_line_of_a_failure_has_the_cas_words_last(monkeypatch):
    """Whatever is cut off at the end of a long line, it is not when the next try is."""
    from types import SimpleNamespace

    from certdrop.issuer import log
    lines: list[str] = []
    monkeypatch.setattr(log.words, "say", lambda text, to: lines.append(text))
    ledger = SimpleNamespace(save=lambda: None, next_try=1800000000, failed_at=1700000000)
    task = SimpleNamespace(name="example.org", ledger=ledger, request=SimpleNamespace(number=7), certificate=object())
    journal = SimpleNamespace(error=lambda *_, **__: None)
    log.failed(journal, task, failure.Failure("refused", "the CA says malformed: " + "words " * 600), SimpleNamespace(loud=True, apart=False))
    assert lines[0].startswith("certdrop-issue: example.org: the CA refuses; the live certificate stays; next try at 2027-01-15T08:00:00Z; "
                               "the CA says malformed: words")
    task.certificate = None                    # nothing but a placeholder is there
    log.failed(journal, task, failure.Failure("refused", "no"), SimpleNamespace(loud=True, apart=False))
    assert "; the placeholder stays; " in lines[1]

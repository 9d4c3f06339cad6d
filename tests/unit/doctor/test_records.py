"""What doctor and watcher say of the TXT records that prove names: what is there, what does not do, and what soon will not."""

from __future__ import annotations

import time

import pytest

from certdrop.config import general, persist, site
from certdrop.doctor import names, records
from certdrop.doctor.line import FAILED, OK, WARNING
from certdrop.watcher import evidence, resolver
from certdrop.watcher import records as watched
from certdrop.watcher.resolver import Record, Texts, forbidden

ACCOUNT = "https://ca.example/acct/1"
GOOD = f"ca.example; accounturi={ACCOUNT}; policy=wildcard"
OWNER, PARENT = "_validation-persist.a.example.org.", "_validation-persist.example.org."
LONG, SHORT = int(time.time()) + 90 * 86400, int(time.time()) + 10 * 86400
ABSENT = Texts([], problem=resolver.NO_NAME, words="NXDOMAIN")

CASES = {
    "there": ({OWNER: Texts([GOOD], True)}, None, "", records.PROVEN),
    "there, and not signed": ({OWNER: Texts(["v=x", GOOD])}, None, "", records.UNPROVEN),
    "beside another account": ({OWNER: Texts([GOOD, GOOD.replace("acct/1", "acct/2")])}, None, "",
                               f"{records.UNPROVEN}; accounts that are let in beside it: 1"),
    "good for long": ({OWNER: Texts([f"{GOOD}; persistUntil={LONG}"])}, None, "", records.UNPROVEN),
    "good for short": ({OWNER: Texts([f"{GOOD}; persistUntil={SHORT}"])}, WARNING, "is good until", records.UNPROVEN),
    "over": ({OWNER: Texts([f"{GOOD}; persistUntil=5"])}, FAILED, "its persistUntil is over", records.UNPROVEN),
    "not there": ({}, FAILED, "there is no record: the CA cannot prove a.example.org and what is below", records.UNPROVEN),
    "no policy": ({OWNER: Texts([GOOD.partition("; policy")[0]])}, FAILED, "no policy=wildcard", records.UNPROVEN),
    "another account": ({OWNER: Texts([GOOD.replace("acct/1", "acct/2")])}, FAILED, "for the account https://ca.example/acct/2", records.UNPROVEN),
    "another CA": ({OWNER: Texts([GOOD.replace("ca.example;", "other.example;")])}, FAILED, "none is for this CA", records.UNPROVEN),
    "covered by what is above": ({PARENT: Texts([GOOD])}, WARNING, "the record of example.org covers it", records.UNPROVEN),
    "not covered by what is above": ({PARENT: Texts([GOOD.partition("; policy")[0]])}, FAILED, "there is no record", records.UNPROVEN),
    "DNSSEC fails": ({OWNER: Texts([], problem=resolver.BOGUS, words="x")}, FAILED, "DNSSEC fails", ""),
    "silence": ({OWNER: Texts([], problem=resolver.SILENT, words="no answer")}, FAILED, "cannot be looked up: no answer", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_doctor(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Its level, its words, and what DNSSEC says."""
    zone, level, why, proof = CASES[case]
    monkeypatch.setattr(resolver, "txt", lambda owner: zone.get(owner, ABSENT))
    found, said = records.look("site", persist.Wanted("a.example.org", True), ["ca.example"], ACCOUNT)
    assert [one[0] for one in found] == ([level] if level else []) and said == proof
    assert not level or why in found[0][1] and found[0][2]


def test_advice_never_has_the_noted_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note is the issuer's, which may have been taken over: whoever publishes another account gives it certificates. certdrop-account asks the CA."""
    for zone, *_ in CASES.values():
        monkeypatch.setattr(resolver, "txt", lambda owner: zone.get(owner, ABSENT))
        for _, why, mend in records.look("site", persist.Wanted("a.example.org", True), ["ca.example"], "https://ca.example/forged")[0]:
            assert "forged" not in why + mend


def test_the_doctors_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that is proven by records is asked for no token and no address; one record for a name and the wildcard below it."""
    asked: list[str] = []
    monkeypatch.setattr(resolver, "txt", lambda owner: asked.append(owner) or Texts([GOOD], True))
    monkeypatch.setattr(resolver, "caa", lambda name: ([], "", ""))
    monkeypatch.setattr(resolver, "addresses", lambda name: pytest.fail(f"{name} need not resolve"))
    found = site.Site("example.org", general.Config())
    found.domains, found.validation = ["*.example.org", "example.org"], persist.METHOD
    lines = names.look([found], names.Doing(names.Authority(["ca.example"], ACCOUNT, True), ("token", b"")))      # type: ignore[arg-type]
    assert [line.level for line in lines] == [OK] and records.PROVEN in lines[0].why and asked == [PARENT]
    monkeypatch.setattr(resolver, "txt", lambda owner: ABSENT)
    assert [line.level for line in names.look([found], names.Doing(names.Authority(["ca.example"], ACCOUNT, True)))] == [FAILED]


@pytest.mark.parametrize("properties, name, wildcard", [
    ([], True, True), ([("issue", "ca.example")], True, True), ([("issue", "ca.example; validationmethods=dns-persist-01")], True, True),
    ([("issue", "ca.example; validationmethods=http-01")], False, False), ([("issue", "ca.example"), ("issuewild", ";")], True, False),
    ([("issue", ";"), ("issuewild", "ca.example")], False, True), ([("issue", f"ca.example; accounturi={ACCOUNT}")], True, True),
    ([("issue", "ca.example; accounturi=https://x")], False, False), ([("issuewild", "other.example")], True, False)])
def test_caa(properties: list[tuple[str, str]], name: bool, wildcard: bool) -> None:
    """By this method; and for a wildcard issuewild goes before issue."""
    listed = [Record(0, tag, value) for tag, value in properties]
    assert [forbidden(listed, ["ca.example"], ACCOUNT, persist.METHOD, below) == "" for below in (False, True)] == [name, wildcard]


def test_the_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of what is gone or about to end, of no name server that is silent, and of no site that is proven otherwise."""
    class Reader:
        def in_records(self, _: evidence.Evidence) -> tuple[list[str], str]:
            return ["ca.example"], ACCOUNT
    for case, (zone, level, why, _) in CASES.items():
        monkeypatch.setattr(resolver, "txt", lambda owner: zone.get(owner, ABSENT))
        one = evidence.Evidence("site", ["*.a.example.org"], validation=persist.METHOD)
        others = evidence.Evidence("other", ["x.example.org"], validation="http-01")
        told = watched.problems(Reader(), [one, others], time.time())       # type: ignore[arg-type]
        silent = level is None or case in ("DNSSEC fails", "silence")
        assert [found.key for found in told] == ([] if silent else ["site:record"]), case

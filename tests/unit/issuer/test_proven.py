"""An order whose names are proven by a record in the DNS: through acme-tiny, which sees nothing but what the CA decided; and a CA that plays tricks."""

from __future__ import annotations

import itertools
import os

import pytest
from .test_ports import BASE, CHAIN, TOKEN, SmallCA, made_request

from certdrop import spool, tokens
from certdrop.config import persist
from certdrop.issuer import account, ports
from certdrop.issuer.failure import REFUSED, VALIDATION, Failure
from certdrop.signer import keyring

PLACE = BASE + "/account/1"
CHALLENGE = {"type": "dns-persist-01", "url": BASE + "/persist", "status": "pending", "accounturi": PLACE, "issuer-domain-names": ["ca.example"]}
HTTP = {"type": "http-01", "token": TOKEN, "url": BASE + "/challenge"}


class PersistCA(SmallCA):
    """It offers both challenges, and decides after so many looks at the authorization. No token is put anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.end = 2, "valid"
        self.challenges: list[object] = [HTTP, CHALLENGE]
        self.identifier: dict[str, object] = {"identifier": {"type": "dns", "value": "example.org"}, "wildcard": True}
        self.error: dict[str, object] = {}

    def answer(self, path: str) -> tuple[int, object, dict[str, str]]:
        assert os.listdir(tokens.directory()) == []
        if path == "/persist":
            self.status = "asked"
            return 200, {}, {}
        if path == "/authz":
            status = "pending"
            if self.status == "asked":
                self.looks -= 1
                status = self.end if self.looks <= 0 else "pending"
            listed = [{**one, **({"error": self.error} if self.error and status != "pending" else {})} if isinstance(one, dict) else one
                      for one in self.challenges]
            return 200, {"status": status, **self.identifier, "challenges": listed}, {}
        assert path != "/challenge"
        return super().answer(path)


@pytest.fixture(name="key", scope="module")
def _key():
    return keyring.Key(keyring.make_key())


@pytest.fixture(name="ca")
def _ca(monkeypatch, tmp_path):
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path))
    os.mkdir(tmp_path / "challenges")
    monkeypatch.setattr(ports.time, "sleep", lambda seconds: None)
    yield PersistCA()
    assert os.listdir(tmp_path / "challenges") == []


def placed(ca: PersistCA, key: keyring.Key, *names: str, validation: str = persist.METHOD) -> tuple[ports.Order, str]:
    session = account.Session(account.Account(BASE + "/dir", [], key, keep=False), ca)         # type: ignore[arg-type]
    session.kid()
    ca.asked.clear()
    order = ports.Order(session, made_request(*names), {}, validation=validation)
    return order, order.place(ports.load())


def refused(ca: PersistCA, key: keyring.Key, *names: str, validation: str = persist.METHOD) -> Failure:
    with pytest.raises(Failure) as caught:
        placed(ca, key, *names, validation=validation)
    return caught.value


def test_a_wildcard(ca, key):
    """The challenge is answered with an empty object, the authorization asked until it is decided, and acme-tiny goes on to finalize."""
    order, chain = placed(ca, key, "*.example.org")
    assert chain == CHAIN and order.issuers == ["ca.example"] and order.warnings == []
    assert ca.asked == ["/newOrder", "/authz", "/persist", "/authz", "/authz", "/finalize", "/order", "/certificate"]
    assert ca.payloads["/persist"] == [{}] and ca.payloads["/newOrder"] == [{"identifiers": [{"type": "dns", "value": "*.example.org"}]}]


def test_what_is_valid_already_is_not_asked_for(ca, key):
    """A CA that looked by itself when the order came (just-in-time validation), or that reuses what it validated."""
    ca.status, ca.looks = "asked", 0
    assert placed(ca, key, "*.example.org")[1] == CHAIN and "/persist" not in ca.asked


@pytest.mark.parametrize("identifier", [
    {"identifier": {"type": "dns", "value": "*.example.org"}}, {"identifier": {"type": "dns", "value": "*.example.org"}, "wildcard": True}])
def test_a_star_in_the_authorization(ca, key, identifier):
    """RFC 8555 has none there; who writes one means the same."""
    ca.identifier = identifier
    assert placed(ca, key, "*.example.org")[1] == CHAIN


@pytest.mark.parametrize("identifier, names", [
    ({"identifier": {"type": "dns", "value": "example.org"}, "wildcard": True}, ["example.org"]),
    ({"identifier": {"type": "dns", "value": "example.org"}}, ["*.example.org"]),
    ({"identifier": {"type": "dns", "value": "org"}, "wildcard": True}, ["*.example.org"]),
    ({"identifier": {"type": "dns", "value": "example.org"}, "wildcard": "true"}, ["*.example.org"]), ({"identifier": {"value": 1}}, ["*.example.org"]),
    ({"identifier": {}}, ["*.example.org"])])
def test_another_name_than_was_asked_for_is_not_proven(ca, key, identifier, names):
    """Neither the wildcard for the name, nor the name for the wildcard, nor what is above."""
    ca.identifier = identifier
    assert "which was not asked for" in refused(ca, key, *names).text and "/persist" not in ca.asked


@pytest.mark.parametrize("challenges, why", [
    ([HTTP], "offers no dns-persist-01"), ([], "offers no dns-persist-01"), (["x", 1, None], "offers no dns-persist-01"),
    ([{**CHALLENGE, "issuer-domain-names": []}], "does not say which names"),
    ([{**CHALLENGE, "issuer-domain-names": ["a.example"] * 11}], "does not say which"),
    ([{**CHALLENGE, "issuer-domain-names": ["Ca.Example"]}], "does not say which"),
    ([{**CHALLENGE, "issuer-domain-names": "ca.example"}], "does not say which"),
    ([{**CHALLENGE, "issuer-domain-names": ['a"; x', 1]}], "does not say which"), ([{key: CHALLENGE[key] for key in ("type", "url")}], "does not say which")])
def test_a_challenge_that_is_malformed(ca, key, challenges, why):
    """Is not answered, nor any other in its place."""
    ca.challenges = challenges
    found = refused(ca, key, "*.example.org")
    assert found.kind == REFUSED and why in found.text and not {"/persist", "/challenge"} & {*ca.asked}


def test_another_accounturi_is_not_published(ca, key):
    """It is said; and what is printed for the DNS has our account's own URL, whoever the CA would rather see there."""
    ca.challenges = [{**CHALLENGE, "accounturi": BASE + "/account/2"}]
    assert "not published" in placed(ca, key, "*.example.org")[0].warnings[0]


@pytest.mark.parametrize("end, kind", [("invalid", VALIDATION), ("processing", REFUSED), ("", REFUSED), ("revoked", VALIDATION), ("ready", REFUSED)])
def test_what_did_not_become_valid_ends_the_order(ca, key, end, kind):
    """Whatever a CA calls it: no other challenge is tried for it."""
    ca.end, ca.error = end, {"type": "urn:ietf:params:acme:error:unauthorized", "detail": "no TXT record"}
    found = refused(ca, key, "*.example.org")
    assert found.kind == kind and "/finalize" not in ca.asked
    assert kind == REFUSED or ("no TXT record" in found.text and found.names == ["*.example.org"])


def test_a_challenge_that_fails_and_stays_pending(ca, key):
    """Is given up after some looks."""
    ca.looks = 1000
    ca.challenges = [{**CHALLENGE, "error": {"type": "urn:ietf:params:acme:error:dns", "detail": "SERVFAIL"}}]
    assert refused(ca, key, "*.example.org").names == ["*.example.org"] and ca.asked.count("/authz") < 10


def test_a_ca_that_never_decides(ca, key, monkeypatch):
    """Is left at the order's deadline."""
    ca.looks, clock = 10 ** 9, itertools.count(0, 10)
    monkeypatch.setattr(ports.time, "monotonic", lambda: float(next(clock)))
    ca.deadline = 600.0
    assert "within the order's time" in refused(ca, key, "*.example.org").text


def test_http_01_as_configured_answers_no_other_challenge(ca, key):
    """Where root's configuration has names proven by http, a record that would do as well changes nothing."""
    ca.identifier, ca.challenges = {"identifier": {"type": "dns", "value": "example.org"}}, [CHALLENGE]
    assert "no http-01 challenge" in refused(ca, key, "example.org", validation=persist.HTTP).text and "/persist" not in ca.asked

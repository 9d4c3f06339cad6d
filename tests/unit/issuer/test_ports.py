"""acme-tiny with our ports, against a CA of a few lines in this process: the contract with acme-tiny, and what is done with odd answers."""

from __future__ import annotations

import base64
import email.message
import errno
import json
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certdrop import spool, tokens
from certdrop.issuer import account, ports
from certdrop.issuer.transport import Answer
from certdrop.issuer.failure import AccountUnknown, Failure
from certdrop.signer import keyring

BASE = "https://ca.example.org"
CHAIN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ"


def made_request(*names: str) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class SmallCA:
    """Answers as RFC 8555 has it, in the place of a Transport; `odd` maps a path to a list of answers to give before the right one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.payloads: dict[str, list[object]] = {}
        self.odd: dict[str, list[tuple[int, object, dict[str, str]]]] = {}
        self.deadline = float("inf")
        self.requests = 0
        self.status = "pending"
        self.nonces = 0
        self.seen_files: list[tuple[str, int]] = []

    def request(self, method: str, url: str, body: bytes | None = None, kind: str = "") -> Answer:
        path = url.removeprefix(BASE)
        self.asked.append(path)
        if body:
            text = json.loads(body)["payload"]
            self.payloads.setdefault(path, []).append(json.loads(base64.urlsafe_b64decode(text + "==") or b"null"))
        status, said, headers = self.odd[path].pop(0) if self.odd.get(path) else self.answer(path)
        message = email.message.Message()
        self.nonces += 1
        for name, value in {"Replay-Nonce": f"nonce{self.nonces}", **headers}.items():
            message[name] = value
        return Answer(status, message, said if isinstance(said, bytes) else json.dumps(said).encode())

    def answer(self, path: str) -> tuple[int, object, dict[str, str]]:
        order = {"status": "pending", "finalize": BASE + "/finalize", "authorizations": [BASE + "/authz"]}
        if path == "/dir":
            return 200, {name: f"{BASE}/{name}" for name in ("newNonce", "newAccount", "newOrder")}, {}
        if path == "/newAccount":
            return 201, {}, {"location": BASE + "/account/1"}                  # and an odd case of the header
        if path == "/newOrder":
            return 201, order, {"LOCATION": BASE + "/order"}
        if path == "/authz":
            listed = [{"type": "dns-persist-01", "url": BASE + "/other"}, {"type": "http-01", "token": TOKEN, "url": BASE + "/challenge"}]
            return 200, {"status": self.status, "identifier": {"type": "dns", "value": "a.example.org"}, "challenges": listed}, {}
        if path == "/challenge":
            found = f"{tokens.directory()}/{TOKEN}"
            self.seen_files.append((open(found).read().partition(".")[0], os.stat(found).st_mode & 0o777))
            self.status = "valid"
            return 200, {}, {}
        if path == "/finalize":
            return 200, {**order, "status": "processing"}, {}
        if path == "/order":
            return 200, {**order, "status": "valid", "certificate": BASE + "/certificate"}, {}
        if path == "/certificate":
            return 200, CHAIN.encode(), {}
        return 200, b"", {}


@pytest.fixture
def ca(monkeypatch, tmp_path):
    """The CA, in a world whose spool is a directory of the test's, and in which no time passes."""
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path))
    os.mkdir(tmp_path / "challenges")
    monkeypatch.setattr(ports.time, "sleep", lambda seconds: None)
    yield SmallCA()
    assert os.listdir(tmp_path / "challenges") == []


@pytest.fixture(scope="session")
def key():
    return keyring.Key(keyring.make_key())


@pytest.fixture
def session(ca, key):
    return account.Session(account.Account(BASE + "/dir", ["a@example.org"], key, keep=False), ca)


def place(session, extra=None, names=("a.example.org",)):
    order = ports.Order(session, made_request(*names), extra or {})
    return order, order.place(ports.load())


def test_an_order(ca, session):
    """From the order to the chain; the token is there for the challenge alone, world-readable, and acme-tiny asks for nothing twice."""
    session.kid()
    ca.asked.clear()
    os.umask(0o022)
    assert place(session)[1] == CHAIN
    assert ca.asked == ["/newOrder", "/authz", "/challenge", "/authz", "/finalize", "/order", "/certificate"]
    assert ca.seen_files == [(TOKEN, 0o644)]
    assert ca.payloads["/newOrder"] == [{"identifiers": [{"type": "dns", "value": "a.example.org"}]}]


def test_what_is_not_sent_is_not_signed(ca, session, monkeypatch):
    """acme-tiny registers for each order, which is not sent on; and each signature tells of which request it is."""
    session.kid()
    signed = []
    sign = session.account.key.sign
    monkeypatch.setattr(session.account.key, "sign", lambda data, request="": signed.append(request) or sign(data))
    ca.asked.clear()
    ports.Order(session, made_request("a.example.org"), {}, request="a.example.org@0001.csr").place(ports.load())
    assert ["a.example.org@0001.csr"] * len(ca.asked) == signed


def test_what_finalize_said_is_not_asked_again(ca, session):
    """A CA that issues at once is not polled."""
    ca.odd["/finalize"] = [(200, {"status": "valid", "certificate": BASE + "/certificate", "finalize": BASE + "/finalize"}, {})]
    assert place(session)[1] == CHAIN
    assert "/order" not in ca.asked


def test_profile_and_replaces_go_into_the_order_alone(ca, session):
    """Into the one payload that has identifiers."""
    place(session, {"profile": "short", "replaces": "a.b"})
    assert {"profile": "short", "replaces": "a.b"}.items() <= ca.payloads["/newOrder"][0].items()
    assert all("profile" not in (payload or {}) for path, sent in ca.payloads.items() for payload in sent if path != "/newOrder")


@pytest.mark.parametrize("status, name", [
    (409, "alreadyReplaced"), (400, "malformed"), (409, "conflict"), (500, "serverInternal"), (403, "unauthorized"), (404, "notFound"), (403, "made-up"),
    (400, ""), (502, None)])
def test_replaces_is_given_up(ca, session, status, name):
    """Where the CA does not take the order as a replacement, it is placed once more without (RFC 9773 section 5)."""
    ca.odd["/newOrder"] = [(status, b"<html>" if name is None else {"type": f"urn:ietf:params:acme:error:{name}", "detail": ""}, {})]
    order, _ = place(session, {"profile": "short", "replaces": "a.b"})
    assert [sorted(payload) for payload in ca.payloads["/newOrder"]] == [["identifiers", "profile", "replaces"], ["identifiers", "profile"]]
    assert "replaces" not in order.extra


@pytest.mark.parametrize("status, name, headers", [
    (429, "rateLimited", {}), (503, "rateLimited", {"Retry-After": "99"}), (429, "", {}), (400, "accountDoesNotExist", {}), (403, "userActionRequired", {})])
def test_replaces_is_kept(ca, session, status, name, headers):
    """Where the refusal is for something else, the CA is not asked once more."""
    session.kid()
    ca.odd["/newOrder"] = [(status, {"type": f"urn:ietf:params:acme:error:{name}", "detail": ""}, headers)]
    with pytest.raises(Failure):
        place(session, {"replaces": "a.b"})
    assert len(ca.payloads["/newOrder"]) == 1


def test_an_order_that_is_refused_both_ways(ca, session):
    """Is asked for twice, and told as a refusal of the order, not as a failed validation; no name of ours failed."""
    refusal = (403, {"type": "urn:ietf:params:acme:error:unauthorized", "detail": "account is deactivated"}, {})
    ca.odd["/newOrder"] = [refusal] * 9
    with pytest.raises(Failure) as raised:
        place(session, {"replaces": "a.b"})
    assert len(ca.payloads["/newOrder"]) == 2 and (raised.value.kind, raised.value.names) == ("refused", [])


def test_nobody_goes_on_beyond_the_budget(ca, session):
    """An order that replaces nothing counts against the CA's limits: whoever keeps the budget is asked before."""
    def no() -> None:
        raise Failure("rate limited", "enough")
    ca.odd["/newOrder"] = [(403, {"type": "urn:ietf:params:acme:error:unauthorized"}, {})]
    order = ports.Order(session, made_request("a.example.org"), {"replaces": "a.b"}, may_go_on=no)
    with pytest.raises(Failure) as raised:
        order.place(ports.load())
    assert raised.value.text == "enough" and len(ca.payloads["/newOrder"]) == 1


def test_nonces_are_refused(ca, session):
    """Each request is signed again with the nonce that came with the refusal."""
    refusal = (400, {"type": "urn:ietf:params:acme:error:badNonce", "detail": "JWS has an invalid anti-replay nonce"}, {})
    ca.odd = {path: [refusal] * 2 for path in ("/newAccount", "/newOrder", "/authz", "/challenge", "/finalize", "/certificate")}
    assert place(session)[1] == CHAIN
    assert ca.asked.count("/newNonce") == 1


@pytest.mark.parametrize("path", ["/newAccount", "/newOrder", "/authz", "/challenge", "/finalize", "/order", "/certificate"])
def test_nonces_refused_for_ever_come_to_an_end(ca, session, path):
    """A CA in trouble is left in peace: each request is sent three times, and that is told as the CA's trouble."""
    ca.odd[path] = [(400, {"type": "urn:ietf:params:acme:error:badNonce", "detail": "no"}, {})] * 1000
    with pytest.raises(Failure) as raised:
        place(session, {"replaces": "a.b"})
    assert raised.value.kind == "CA unreachable" and ca.asked.count(path) == 3


@pytest.mark.parametrize("place_of_it", ["https://evil.example.org/account/1", "https://ca.example.org:444/account/1", "http://ca.example.org/account/1", "x"])
def test_an_account_at_another_host_is_not_kept(ca, session, place_of_it):
    """The signer would not sign for it: it is told as the CA's doing, and asked for again in the next run."""
    ca.odd["/newAccount"] = [(201, {}, {"Location": place_of_it})]
    with pytest.raises(Failure) as raised:
        place(session)
    assert "names an account at another host" in raised.value.text and "account" not in session.account.known
    assert place(session)[1] == CHAIN


@pytest.mark.parametrize("name", ["newAccount", "newOrder"])
def test_a_directory_that_leads_elsewhere_is_not_kept(ca, session, name):
    """What is sent there would not be signed."""
    listed = {**dict(ca.answer("/dir")[1]), name: "https://evil.example.org/x"}
    ca.odd["/dir"] = [(200, listed, {})]
    with pytest.raises(Failure):
        place(session)
    assert session.account.known == {}
    assert place(session)[1] == CHAIN


@pytest.mark.parametrize("where", ["write", "open"])
def test_no_room_for_a_token_is_no_fault_of_the_cas(ca, session, monkeypatch, where):
    """It is told as what it is."""
    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere" if where == "open" else None)
    module = ports.load()
    monkeypatch.setattr(module, "open", full, raising=False)
    order = ports.Order(session, made_request("a.example.org"), {})
    with pytest.raises(Failure) as raised:
        order.place(module)
    assert (raised.value.kind, order.placed) == ("local", True)
    assert raised.value.text == ("/somewhere" if where == "open" else tokens.directory()) + ": No space left on device"


def test_finalize_that_comes_too_early(ca, session):
    """orderNotReady: the order is polled until it is ready, then finalized again."""
    ca.odd["/finalize"] = [(403, {"type": "urn:ietf:params:acme:error:orderNotReady", "detail": "wait"}, {})]
    ca.odd["/order"] = [(200, {"status": "pending"}, {}), (200, {"status": "ready"}, {})]
    assert place(session)[1] == CHAIN
    assert ca.asked.count("/finalize") == 2


def test_an_order_that_is_still_called_ready(ca, session):
    """After finalize was taken, by a part of the CA that has not heard of it."""
    ca.odd["/order"] = [(200, {"status": "ready", "finalize": BASE + "/finalize"}, {}), (200, {"status": "valid", "finalize": ""}, {})]
    assert place(session)[1] == CHAIN


def test_a_failed_validation_is_told_whole(ca, session):
    """Which name, the type, the detail; and nothing of what was signed."""
    error = {"type": "urn:ietf:params:acme:error:unauthorized", "detail": "The key authorization file did not match"}
    invalid = {"status": "invalid", "identifier": {"type": "dns", "value": "a.example.org"}, "challenges": [
               {"type": "http-01", "token": TOKEN, "error": error}]}
    ca.odd["/authz"] = [ca.answer("/authz"), (200, invalid, {})]
    with pytest.raises(Failure) as raised:
        place(session)
    assert raised.value.text == "a.example.org: the CA says unauthorized: The key authorization file did not match"
    assert (raised.value.kind, raised.value.names) == ("validation", ["a.example.org"])


def test_a_lost_account_is_told_apart(ca, session):
    """In mid-order, too."""
    ca.odd["/finalize"] = [(400, {"type": "urn:ietf:params:acme:error:accountDoesNotExist", "detail": ""}, {})]
    with pytest.raises(AccountUnknown):
        place(session)


@pytest.mark.parametrize("path, answer", [
    ("/newOrder", (201, b"<html>", {"Location": BASE + "/order"})),
    ("/newOrder", (201, {}, {})),
    ("/newOrder", (201, {"authorizations": 3, "finalize": 4}, {"Location": BASE + "/order"})),
    ("/newOrder", (201, [], {"Location": BASE + "/order"})),
    ("/authz", (200, b"", {})), ("/authz", (200, b"\xff\xfe", {})), ("/authz", (200, [1], {})), ("/authz", (200, {"status": "pending"}, {})),
    ("/authz", (200, b"[" * 100000, {})),
    ("/authz", (200, {"status": "pending", "identifier": {"value": "evil.example.org"}, "challenges": []}, {})),
    ("/authz", (200, {"status": "pending", "identifier": {"value": "a.example.org"}, "challenges": [{"type": "dns-01"}]}, {})),
    ("/authz", (200, {"status": "pending", "identifier": {"value": "a.example.org"}, "challenges": [{"type": "http-01", "token": "../../etc/passwd"}]}, {})),
    ("/order", (200, {"status": "invalid", "finalize": ""}, {})), ("/order", (200, b"nothing", {})),
    ("/certificate", (200, {"a": 1}, {})), ("/certificate", (200, b"\xff", {}))])
def test_nonsense_is_one_trouble(ca, session, path, answer):
    """Whatever the CA says: one clear failure, that quotes no request, and no token left behind."""
    ca.odd[path] = [answer]
    with pytest.raises(Failure) as raised:
        place(session)
    assert "payload" not in raised.value.text and "signature" not in raised.value.text and raised.value.text


TWO = CHAIN + CHAIN


@pytest.mark.parametrize("sent", [
    TWO.replace("\n", "\r\n"), TWO.replace("\n", "\r\r\n"), TWO.replace("\n", "\r"), TWO.replace("\n", " \t\r\n"), TWO.rstrip("\n"),
    "\r\n" + TWO, CHAIN + "\r\n\r\n" + CHAIN + "\n\n"])
def test_the_ends_of_lines_are_those_of_the_spool(ca, session, sent):
    """Something in between may change them, and RFC 7468 section 3 has a reader take them all; the spool's grammar has one."""
    ca.odd["/certificate"] = [(200, sent.encode(), {})]
    chain = place(session)[1]
    assert spool.pem_blocks(chain.encode()) == [CHAIN.encode()] * 2


@pytest.mark.parametrize("sent", [
    "s:/CN=a\r\n" + CHAIN, CHAIN.replace("AAAA", "AA AA"), CHAIN.replace("AAAA", "AA\r\n\r\nAA"), CHAIN.replace("-----B", "--\r\n---B")])
def test_nothing_but_the_ends_of_lines_is_changed(ca, session, sent):
    """What is no chain by more than these stays none."""
    ca.odd["/certificate"] = [(200, sent.encode(), {})]
    chain = place(session)[1]
    with pytest.raises(spool.Refused):
        spool.pem_blocks(chain.encode())


def test_the_chain_to_a_preferred_root_is_found_by_any_ends_of_lines(ca, session, monkeypatch):
    """The alternates come from the same CA, by way of the same thing in between."""
    seen = []
    monkeypatch.setattr(ports, "leads_to", lambda chain, name: seen.append(chain) or len(seen) == 2)
    sent = CHAIN.replace("\n", "\r\n").encode()
    ca.odd["/certificate"] = [(200, sent, {"Link": f'<{BASE}/other>;rel="alternate"'})]
    ca.odd["/other"] = [(200, sent, {})]
    order = ports.Order(session, made_request("a.example.org"), {}, chain="A Root")
    assert order.place(ports.load()) == CHAIN and seen == [CHAIN.encode()] * 2


def test_a_link_in_the_place_of_a_token(ca, session, tmp_path):
    """Is removed, not followed."""
    (tmp_path / "victim").write_text("precious")
    os.symlink(tmp_path / "victim", tmp_path / "challenges" / TOKEN)
    place(session)
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("change", [
    lambda module: delattr(module, "urlopen"), lambda module: delattr(module, "subprocess"), lambda module: delattr(module, "json"),
    lambda module: delattr(module, "time"), lambda module: setattr(module, "get_crt", lambda key, csr: ""), lambda module: delattr(module, "get_crt")])
def test_another_acme_tiny_is_refused(monkeypatch, change):
    """A new acme-tiny that moves a name or a parameter fails loudly, before anything is asked."""
    def load(spec):
        module = original(spec)
        inner = spec.loader.exec_module
        monkeypatch.setattr(spec.loader, "exec_module", lambda made: (inner(made), change(made)), raising=False)
        return module
    original = ports.importlib.util.module_from_spec
    monkeypatch.setattr(ports.importlib.util, "module_from_spec", load)
    with pytest.raises(ports.Moved):
        ports.load()


def test_copies_are_private():
    """One for each worker, none of which is the one that others import."""
    import acme_tiny
    first, second = ports.load(), ports.load()
    assert first is not second and acme_tiny not in (first, second)
    assert acme_tiny.LOGGER


def test_the_key_and_the_request_are_told_as_openssl_tells_them(session):
    """What acme-tiny reads out of our texts is the account's key and the request's names."""
    order = ports.Order(session, made_request("a.example.org", "xn--bcher-kva.example"), {})
    text = order._command(["openssl", "rsa", "-in", "x", "-noout", "-text"]).communicate()[0].decode()
    digits = text.partition("modulus:")[2].partition("publicExponent")[0].replace(":", "").split()
    assert int("".join(digits), 16) == session.account.key.numbers.n
    assert order.names == ["a.example.org", "xn--bcher-kva.example"]
    with pytest.raises(ports.Moved):
        order._command(["openssl", "enc"]).communicate()


@pytest.mark.parametrize("status", ["pending", "processing"])
def test_a_challenge_that_failed_and_stays_pending(ca, session, status):
    """step-ca, Caddy and others tell the reason in the challenge and go on calling it pending: after a few polls the reason is told, as a validation's."""
    error = {"type": "urn:ietf:params:acme:error:connection", "detail": "nobody answers"}
    challenge = {"type": "http-01", "token": TOKEN, "url": BASE + "/challenge", "status": status, "error": error}
    fine = {**challenge, "error": None}
    authorization = {"status": "pending", "identifier": {"type": "dns", "value": "a.example.org"}}
    ca.odd["/authz"] = [(200, {**authorization, "challenges": [fine]}, {})] + [(200, {**authorization, "challenges": [challenge]}, {})] * 100
    with pytest.raises(Failure) as raised:
        place(session)
    assert raised.value.text == "a.example.org: the CA says connection: nobody answers"
    assert (raised.value.kind, raised.value.names) == ("validation", ["a.example.org"]) and ca.asked.count("/authz") < 10


def test_a_challenge_that_the_ca_tries_again(ca, session):
    """An error that is seen a few times, and then a valid authorization (RFC 8555 section 8.2), is an order like any other."""
    challenge = {"type": "http-01", "token": TOKEN, "url": BASE + "/challenge", "status": "processing", "error": {"type": "x", "detail": "not yet"}}
    authorization = {"status": "pending", "identifier": {"type": "dns", "value": "a.example.org"}, "challenges": [challenge]}
    ca.odd["/authz"] = [(200, authorization, {})] * 4
    assert place(session)[1] == CHAIN

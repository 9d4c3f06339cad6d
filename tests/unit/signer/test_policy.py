"""What the signer signs and what not: every form that the issuer needs, and every way we know to get something else signed."""

from __future__ import annotations

import ipaddress
import json
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certdrop import spool
from certdrop.signer import keyring, policy
from certdrop.signer.jose import b64, unb64
from certdrop.signer.protocol import DEACTIVATE, MOST, ROLL_OVER

CA = "https://ca.example.org:14000"
KID = CA + "/account/1"
CONTACT = ["mailto:a@example.org"]
ENTRY = "a.test@0003.csr"


def request(*names: str) -> x509.CertificateSigningRequest:
    listed = [x509.IPAddress(ipaddress.ip_address(name)) if name[-1].isdigit() or ":" in name else x509.DNSName(name) for name in names]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(x509.SubjectAlternativeName(listed), False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())


POSTED = request("a.test", "www.a.test")
FOREIGN = request("a.test", "www.a.test")
DER = POSTED.public_bytes(serialization.Encoding.DER)


REVOKE = "a.test@0002.revoke"
LEAKED = {"certificate": b64(b"a leaf, as DER"), "reason": 1}


class Keys:
    """In the place of a Keyring: two keys, made once."""

    current, other = (keyring.Key(keyring.make_key()) for _ in range(2))


KEYS = Keys()


@pytest.fixture(scope="session")
def room(tmp_path_factory):
    top = tmp_path_factory.mktemp("spool")
    os.mkdir(top / "requests")
    (top / "requests" / ENTRY).write_bytes(POSTED.public_bytes(serialization.Encoding.PEM))
    (top / "requests" / "ip.test@0001.csr").write_bytes(request("b.test", "192.0.2.7", "2001:db8::7").public_bytes(serialization.Encoding.PEM))
    (top / "requests" / "a.test@0003.now").write_bytes(b"")
    os.symlink(ENTRY, top / "requests" / "link.test@0001.csr")
    (top / "requests" / REVOKE).write_text(json.dumps({"payload": LEAKED, "not_after": 1}))
    (top / "requests" / "b.test@0002.revoke").write_text(json.dumps({"payload": {"certificate": b64(b"another")}, "not_after": 1}))
    (top / "requests" / "c.test@0002.revoke").write_text(json.dumps({"payload": {"certificate": b64(b"a third")}, "not_after": 1, "reasons": [0, 4]}))
    (top / "requests" / "d.test@0002.revoke").write_text(json.dumps({"payload": LEAKED, "not_after": 1, "reasons": [0, 4]}))
    for number, text in enumerate(("", "{}", "[]", "{", '"payload"', '{"payload": 1}', "null"), 1):
        (top / "requests" / f"broken.test@{number:04d}.revoke").write_text(text)
    return top


@pytest.fixture(autouse=True)
def world(room, monkeypatch):
    monkeypatch.setattr(spool, "SPOOL", str(room))


def made(*may: str) -> policy.Policy:
    return policy.Policy(CA + "/dir", CONTACT, KEYS, frozenset(may))             # type: ignore[arg-type]


def jws(payload: object, url: object = CA + "/x", **header: object) -> bytes:
    """What is signed: as the issuer writes it. A payload of bytes is taken as it is; a header's value None leaves it out."""
    fields = {"alg": "RS256", "nonce": "n0nce-_", "url": url, **({} if "jwk" in header else {"kid": KID}), **header}
    first = b64(json.dumps({key: value for key, value in fields.items() if value is not None}).encode())
    second = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
    return f"{first}.{b64(second)}".encode()


def order(*names: str, kind: str = "dns", **more: object) -> dict[str, object]:
    return {"identifiers": [{"type": kind, "value": name} for name in names], **more}


def signed(data: bytes, entry: str = "", *may: str) -> bool:
    try:
        return made(*may).key_for(entry, data) is KEYS.current
    except policy.Refused:
        return False


JWK = KEYS.current.jwk()
NEW = {"termsOfServiceAgreed": True, "contact": CONTACT}


@pytest.mark.parametrize("posted, ordered, good", [
    (["*.w.test"], ["*.w.test"], True), (["*.w.test", "w.test"], ["w.test", "*.w.test"], True), (["*.w.test"], ["w.test"], False),
    (["w.test"], ["*.w.test"], False), (["*.w.test"], ["www.w.test"], False), (["www.w.test"], ["*.w.test"], False), (["*.w.test"], ["*.W.test"], False),
    (["*.w.test"], ["*.w.test", "*.test"], False), (["*.w.test"], ["*"], False), (["*.w.test"], ["*.*.w.test"], False), (["*.w.test"], [], False),
    (["*.w.test", "w.test"], ["*.w.test", "*.w.test"], False), (["w.test", "x.test"], ["?.test", "x.test"], False), (["*.w.test"], ["\u2217.w.test"], False)])
def test_a_wildcard_is_a_name_like_any_other(room, posted, ordered, good):
    """It is ordered where root posted just that: it covers nothing here, and nothing covers it."""
    (room / "requests" / "w.test@0001.csr").write_bytes(request(*posted).public_bytes(serialization.Encoding.PEM))
    assert signed(jws(order(*ordered)), "w.test@0001.csr") is good


@pytest.mark.parametrize("data, entry", [
    (jws(None), ""), (jws({}), ""), (jws({"contact": CONTACT}, KID), ""),
    (jws(NEW, jwk=JWK), ""), (jws({"onlyReturnExisting": True}, jwk=JWK), ""),
    (jws(order("a.test", "www.a.test")), ENTRY), (jws(order("www.a.test", "a.test")), ENTRY),
    (jws(order("a.test", "www.a.test", profile="shortlived", replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")), ENTRY),
    (jws({"identifiers": [{"type": "dns", "value": "b.test"}, {"type": "ip", "value": "192.0.2.7"}, {"type": "ip", "value": "2001:db8::7"}]}),
     "ip.test@0001.csr"),
    (jws({"csr": b64(DER)}), ENTRY), (jws(None, "https://CA.example.org:14000/x?y=1"), "")])
def test_what_the_issuer_needs(data, entry):
    """Reading, challenges, the account as configured, and root's orders."""
    assert signed(data, entry)


@pytest.mark.parametrize("payload", [
    {"status": "deactivated"}, {"contact": ["mailto:evil@example.org"]}, {"contact": []}, {"contact": CONTACT, "status": "deactivated"}, {"a": 1}, [], 1, "",
    {"onlyReturnExisting": True}, NEW, {"termsOfServiceAgreed": True}, {"certificate": b64(DER), "reason": 1}, {"certificate": b64(DER)},
    {"protected": "e30", "payload": "e30", "signature": "AA"}, {"externalAccountBinding": {}}, b" ", b"{ }", b"null", b'{"status":"deactivated"}',
    b'{"csr": "', b'{"identifiers": ', b'{"identifiers": 1}', b'{"identifiers": []}', b"\xff", b"{" * 5000, b"[" * 60000])
@pytest.mark.parametrize("entry", ["", ENTRY])
def test_what_nobody_wants(payload, entry):
    """To deactivate, to write another contact, to revoke, to change the key: not from a run that was not started for it."""
    assert not signed(jws(payload, KID), entry) and not signed(jws(payload), entry)


@pytest.mark.parametrize("entry", [
    "", "b.test@0003.csr", "a.test@0004.csr", "a.test@0003.now", "a.test@0003.pem", "../requests/" + ENTRY, "/etc/passwd", "link.test@0001.csr", ENTRY + "\0"])
def test_only_for_a_request_that_is_posted(entry):
    """A name that is none, another number, a way out of the directory, a link: no order, no finalize."""
    assert not signed(jws({"csr": b64(DER)}), entry) and not signed(jws(order("a.test", "www.a.test")), entry)


@pytest.mark.parametrize("payload", [
    {"csr": b64(FOREIGN.public_bytes(serialization.Encoding.DER))}, {"csr": b64(DER[:-1])}, {"csr": b64(DER + b"\0")}, {"csr": b64(DER) + "="}, {"csr": 1},
    {"csr": b64(DER), "CSR": b64(FOREIGN.public_bytes(serialization.Encoding.DER))}, {"csr": b64(DER), "extra": 1}, {"csr": POSTED.public_bytes(
        serialization.Encoding.PEM).decode()}, json.dumps({"csr": b64(DER)}, separators=(",", ":")).encode(), json.dumps({"csr": b64(DER)}).encode() + b" ",
    b'{"csr": "AA", "csr": "' + b64(DER).encode() + b'"}', b'{"csr": "' + b64(DER).encode() + b'", "csr": "AA"}',
    b'{"c\\u0073r": "' + b64(DER).encode() + b'"}'])
def test_a_foreign_request_is_not_finalized(payload):
    """Not another, not the same with something beside it, nor one in which a CA's parser might read another."""
    assert not signed(jws(payload), ENTRY)


@pytest.mark.parametrize("payload", [
    order("a.test"), order("a.test", "www.a.test", "evil.test"), order("evil.test"), order("a.test", "a.test", "www.a.test"), order("A.test", "www.a.test"),
    order("a.test", "www.a.test", kind="ip"), order("a.test", "www.a.test", notAfter="2030-01-01T00:00:00Z"), order("a.test", "www.a.test", profile=1),
    order("a.test", "www.a.test", profile=""), order("a.test", "www.a.test", replaces="x"), order("a.test", "www.a.test", Identifiers=[]),
    {"identifiers": [{"type": "dns", "value": "a.test"}, {"type": "dns", "value": "www.a.test", "Value": "evil.test"}]},
    {"identifiers": [{"type": "dns", "value": "a.test"}, ["dns", "www.a.test"]]}, {"identifiers": {"type": "dns"}}, {"identifiers": [1, 2]},
    json.dumps(order("a.test", "www.a.test")).encode().replace(b"dns", b"d\\u006es"), json.dumps(order("a.test", "www.a.test")).encode()[:-1] + b',"x":1}',
    json.dumps(order("a.test", "www.a.test")).encode()[:-1] + b', "identifiers": []}'])
def test_no_other_names_are_ordered(payload):
    """Not fewer, not more, not others, nor in another writing."""
    assert not signed(jws(payload), ENTRY)


def test_what_root_wants_revoked():
    """The very text that root posted, for the request that has it."""
    assert signed(jws(LEAKED), REVOKE) and signed(jws({"certificate": b64(b"another")}), "b.test@0002.revoke")


@pytest.mark.parametrize("payload", [
    {"certificate": b64(b"another")}, {"certificate": b64(b"another"), "reason": 1}, {**LEAKED, "reason": 4}, {"certificate": LEAKED["certificate"]},
    {**LEAKED, "reason": "1"}, {**LEAKED, "more": 1}, {"reason": 1, "certificate": LEAKED["certificate"]}, {"certificate": str(LEAKED["certificate"]) + "="},
    json.dumps(LEAKED).encode() + b" ", json.dumps(LEAKED, separators=(",", ":")).encode(), {"payload": LEAKED, "not_after": 1}, {"certificate": None},
    b'{"certificate": ', b'{"certificate": "", "certificate": "' + str(LEAKED["certificate"]).encode() + b'", "reason": 1}'])
def test_nothing_else_is_revoked(payload):
    """Another certificate, another reason or none, more, or another writing: refused, also where root wants something revoked."""
    assert not signed(jws(payload), REVOKE)


@pytest.mark.parametrize("entry", [
    "", ENTRY, "b.test@0002.revoke", "a.test@0003.revoke", "a.test@0002.csr", "../requests/" + REVOKE, REVOKE + "\0", "a.test@0003.now",
    *(f"broken.test@{number:04d}.revoke" for number in range(1, 8))])
def test_only_what_is_posted_is_revoked(entry):
    """No request, another's, one that is a CSR, one that is damaged."""
    assert not signed(jws(LEAKED), entry)


@pytest.mark.parametrize("entry, certificate, reason, may", [
    ("c.test@0002.revoke", b"a third", None, True), ("c.test@0002.revoke", b"a third", 0, True), ("c.test@0002.revoke", b"a third", 4, True),
    ("c.test@0002.revoke", b"a third", 1, False), ("c.test@0002.revoke", b"a third", 5, False), ("c.test@0002.revoke", b"a third", True, False),
    ("c.test@0002.revoke", b"another", 0, False), ("b.test@0002.revoke", b"another", 0, True), ("b.test@0002.revoke", b"another", 4, False),
    ("c.test@0002.revoke", b"a third", False, False), ("c.test@0002.revoke", b"a third", 0.0, False)])
def test_the_reasons_that_root_leaves_open(entry, certificate, reason, may):
    """Those that root listed, and 0, which is what none means; each in the one writing."""
    assert signed(jws({"certificate": b64(certificate), **({} if reason is None else {"reason": reason})}), entry) is may


@pytest.mark.parametrize("reason", [0, 4, None])
def test_a_reason_that_root_gave_is_not_left_open(reason):
    """Whatever is listed beside it."""
    assert not signed(jws({"certificate": LEAKED["certificate"], **({} if reason is None else {"reason": reason})}), "d.test@0002.revoke")


def test_nothing_is_revoked_by_the_key_alone():
    """As the certificate's own key could: that key is root's."""
    assert not signed(jws(LEAKED, jwk=JWK), REVOKE)


@pytest.mark.parametrize("url", [
    "https://evil.example.org:14000/x", "https://ca.example.org/x", "http://ca.example.org:14000/x", "https://ca.example.org:14000.evil.test/x",
    "https://ca.example.org:14000@evil.test/x", "https://evil.test/https://ca.example.org:14000/x", "https://ca.example.org:14000\\@evil.test/", "", None, 1,
    "https://ca.example.org:14000/x\n", "https://ca.example.org:14000/x#y", "//ca.example.org:14000/x", "https://ca.example.org:014000000/x", ["x"],
    "HTTPS://ca.example.org:14000/x", "https://ca.example.org:14000/\u212a"])
def test_only_for_the_configured_ca(url):
    """Another host or port, in any disguise; as the URL, and as the account."""
    assert not signed(jws(None, url))
    assert not signed(jws(None, kid=url))


@pytest.mark.parametrize("header", [
    {"alg": "none"}, {"alg": "HS256"}, {"alg": None}, {"nonce": None}, {"nonce": ""}, {"nonce": "a b"}, {"nonce": 1}, {"kid": None}, {"b64": False},
    {"crit": ["b64"]}, {"jwk": JWK, "kid": KID}, {"jwk": JWK}, {"jwk": {}}, {"typ": "JWT"}])
def test_only_with_the_header_of_acme(header):
    """RFC 8555 section 6.2, and not a field more: what has no nonce, or another algorithm, is no request."""
    assert not signed(jws(None, **header))


@pytest.mark.parametrize("payload", [
    None, {}, {"contact": CONTACT}, {"termsOfServiceAgreed": True}, {**NEW, "externalAccountBinding": {}}, {**NEW, "onlyReturnExisting": True},
    {"onlyReturnExisting": 1}, {"termsOfServiceAgreed": 1, "contact": CONTACT}, {"csr": b64(DER)}, order("a.test", "www.a.test"), {"certificate": b64(DER)},
    {"account": KID, "oldKey": JWK}])
def test_by_the_key_alone(payload):
    """Only an account is made or asked for, as it is configured."""
    assert not signed(jws(payload, jwk=JWK), ENTRY)
    assert not signed(jws(NEW, jwk=KEYS.other.jwk()), ENTRY)


def test_the_other_key_only_asks_for_its_account():
    """To find out which of two keys the CA holds."""
    assert made().key_for("", jws({"onlyReturnExisting": True}, jwk=KEYS.other.jwk())) is KEYS.other


def test_what_a_signer_is_started_for():
    """Deactivation, of the account alone; a change of keys by a request that was made here."""
    assert signed(jws({"status": "deactivated"}, KID), "", DEACTIVATE)
    assert not signed(jws({"status": "deactivated"}, CA + "/authz/1"), "", DEACTIVATE)
    assert not signed(jws({"status": "deactivated"}, KID), "", ROLL_OVER)
    wanted = made(ROLL_OVER)
    inner = {"protected": "e30", "payload": "e30", "signature": "AA"}
    with pytest.raises(policy.Refused):
        wanted.key_for("", jws(inner))
    wanted.changes.add(json.dumps(inner))
    assert wanted.key_for("", jws(inner)) is KEYS.current
    without = made()
    without.changes.add(json.dumps(inner))
    with pytest.raises(policy.Refused):
        without.key_for("", jws(inner))


@pytest.mark.parametrize("data", [
    b"", b".", b"..", b"e30", b"e30.e30.e30", b"e30.", b"e31.", b"e30=.", b"\xff.\xff", b"W10.", b"bnVsbA.", b"a" * (MOST + 1),
    jws(None)[:-1] + b".\n", jws(None).replace(b".", b"=."), b" " + jws(None)])
def test_no_jws(data):
    """What is none is refused, before it is understood."""
    assert not signed(data)


def test_a_directory_without_a_plain_url():
    """Nothing is signed for a host that cannot be told."""
    with pytest.raises(policy.Refused):
        policy.Policy("https://user@ca/dir", [], KEYS)                           # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_base64url_has_one_text(data):
    """For each content there is one text, and all others are refused."""
    text = b64(data)
    assert unb64(text) == data
    if len(text) % 4 == 2:
        with pytest.raises(ValueError):
            unb64(text[:-1] + ("B" if text[-1] in "AQgw" else "A" if text[-1] != "A" else "B"))

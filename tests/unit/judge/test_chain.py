"""The judge's verdict on a chain, in this process: every reason it can give, from certificates made for it."""

from __future__ import annotations

import hashlib
import ipaddress
import pathlib
import re
import sys
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "hostile"))

import forger  # noqa: E402
from forger import DAY, Forger, armour, authority, now, pem, usage  # noqa: E402

from certdrop import spool  # noqa: E402
from certdrop.judge import chain  # noqa: E402

CA = Forger()
KEY = forger.new_key()
PUBLIC = KEY.public_key()
NAMES = ["example.org", "www.example.org"]
SPKI = hashlib.sha256(PUBLIC.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
INTERMEDIATE = CA.intermediate[0]
GIVEN: set[str] = set()


def leaf(**lies: Any) -> x509.Certificate:
    return CA.leaf(lies.pop("key", PUBLIC), lies.pop("domains", NAMES), **lies)


def verdict(reply: bytes, **expected: Any) -> str:
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(CA.root[0]))
    question = {"spki": SPKI, "names": NAMES, "spent": [], "earliest": 0, "until": 0, **expected}
    answer = chain.verdict(question, b"".join(spool.pem_blocks(reply)), store)
    GIVEN.add(answer.removeprefix("refuse "))
    return answer


def test_a_good_chain_is_accepted() -> None:
    """The answer has the leaf's fingerprint and its dates."""
    begin, end = now() - DAY, now() + 6 * DAY
    made = leaf(begin=begin, end=end)
    moments = [int((moment - forger.datetime.datetime(1970, 1, 1)).total_seconds()) for moment in (begin, end)]
    sha256, tbs, issued, *_ = chain.identities(made)
    assert (sha256, tbs) == (made.fingerprint(hashes.SHA256()).hex(), hashlib.sha256(made.tbs_certificate_bytes).hexdigest())
    assert verdict(pem(made, INTERMEDIATE)) == f"accept {sha256} {moments[0]} {moments[1]} {tbs} {issued}"


@pytest.mark.parametrize("lies", [
    {"common": "example.org"}, {"common": "WWW.Example.ORG"}, {"sans": [x509.DNSName("WWW.EXAMPLE.org"), x509.DNSName("example.org")]},
    {"eku": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]}, {"usage": usage("digital_signature", "key_encipherment")},
    {"ca": False}, {"extra": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), False)]}])
def test_what_honest_cas_do_differently_is_accepted(lies: dict[str, Any]) -> None:
    """A common name or none, either case, more uses than one, unknown extensions that are not critical."""
    assert verdict(pem(leaf(**lies), INTERMEDIATE)).startswith("accept ")


@pytest.mark.parametrize("address, shown, expected", [
    ("192.0.2.1", x509.IPAddress(ipaddress.ip_address("192.0.2.1")), "accept"),
    ("2001:db8::1", x509.IPAddress(ipaddress.ip_address("2001:db8::1")), "accept"),
    ("192.0.2.1", x509.DNSName("192.0.2.1"), "refuse names-extra"), ("2001:db8::1", x509.DNSName("2001:db8::1"), "refuse names-extra"),
    ("192.0.2.1", x509.IPAddress(ipaddress.ip_address("192.0.2.2")), "refuse names-missing"),
    ("192.0.2.1", x509.IPAddress(ipaddress.ip_address("::ffff:192.0.2.1")), "refuse names-missing"),
    ("192.0.2.1", x509.DNSName("example.com"), "refuse names-missing")])
def test_addresses(address: str, shown: x509.GeneralName, expected: str) -> None:
    """An address is an address in the certificate, in four or sixteen bytes, and just that one (RFC 8738)."""
    made = leaf(sans=[*map(x509.DNSName, NAMES), shown])
    assert verdict(pem(made, INTERMEDIATE), names=[*NAMES, address]).startswith(expected)


def test_chains_of_every_shape_are_accepted() -> None:
    """Straight from the root, with the root, long, and cross-signed by an authority that nobody here knows."""
    assert verdict(pem(leaf(signer=CA.root))).startswith("accept ")
    assert verdict(pem(leaf(), INTERMEDIATE, CA.root[0])).startswith("accept ")
    above = [CA.root]
    for number in range(8):
        above.insert(0, authority(f"I {number}", above[0]))
    assert verdict(pem(leaf(signer=above[0]), *(pair[0] for pair in above[:-1]))).startswith("accept ")
    crossed = authority("Forged Root", CA.stranger, CA.root[1])[0]
    assert verdict(pem(leaf(), INTERMEDIATE, crossed)).startswith("accept ")
    assert verdict(pem(leaf(), INTERMEDIATE, crossed, CA.stranger[0])).startswith("accept ")


KEYS = [forger.new_key(), rsa.generate_private_key(65537, 2048), dsa.generate_private_key(2048), ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(), x25519.X25519PrivateKey.generate()]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: type(key).__name__.strip("_"))
def test_another_key_is_refused(key: Any) -> None:
    """A leaf for a key that root does not hold, of whatever kind."""
    if isinstance(key, x25519.X25519PrivateKey):
        der = leaf(key=KEYS[3].public_key()).public_bytes(Encoding.DER)
        block = armour(der.replace(bytes.fromhex("302a300506032b6570"), bytes.fromhex("302a300506032b656e")))
    else:
        block = pem(leaf(key=key.public_key()))
    assert verdict(block + pem(INTERMEDIATE)) == "refuse key"


def test_an_unknown_kind_of_key_is_refused() -> None:
    """A key of an algorithm that nobody knows, and elliptic curves with parameters of their own making."""
    der = leaf().public_bytes(Encoding.DER)
    curve = bytes.fromhex("06082a8648ce3d030107")
    assert curve in der
    for odd in (curve[:-1] + b"\x63", bytes.fromhex("06082a8648ce3d0301ff")[:-1] + b"\x7f"):
        assert verdict(armour(der.replace(curve, odd)) + pem(INTERMEDIATE)) in ("refuse key", "refuse encoding")


@pytest.mark.parametrize(("reason", "lies"), [
    ("names-missing", {"domains": NAMES[:1]}),
    ("names-missing", {"sans": []}),
    ("names-missing", {"sans": [], "common": "example.org"}),
    ("names-missing", {"sans": [x509.DNSName("example.org."), x509.DNSName("www.example.org")]}),
    ("names-extra", {"domains": [*NAMES, "bank.example"]}),
    ("names-extra", {"common": "bank.example"}),
    ("names-extra", {"domains": [*NAMES, "example.org\0.bank.example"]}),
    ("names-extra", {"domains": [*NAMES, ""]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.IPAddress(ipaddress.ip_address("2001:db8::1"))]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.DNSName("192.0.2.1")]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.RFC822Name("root@example.org")]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.UniformResourceIdentifier("https://example.org/")]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.DirectoryName(forger.name("example.org"))]}),
    ("names-extra", {"sans": [*map(x509.DNSName, NAMES), x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")]}),
    ("names-wildcard", {"domains": [*NAMES, "*.example.org"]}),
    ("names-wildcard", {"domains": ["*.example.org"]}),
    ("names-wildcard", {"common": "*.example.org"}),
    ("names-wildcard", {"domains": [*NAMES, "w*.example.org"]}),
    ("not-yet-valid", {"begin": now() + forger.HOUR}),
    ("expired", {"begin": now() - 2 * DAY, "end": now() - DAY}),
    ("key-usage", {"eku": []}),
    ("key-usage", {"eku": [ExtendedKeyUsageOID.CLIENT_AUTH]}),
    ("key-usage", {"eku": [x509.ObjectIdentifier("2.5.29.37.0")]}),
    ("key-usage", {"usage": usage("key_encipherment")}),
    ("ca-as-leaf", {"ca": True}),
    ("ca-as-leaf", {"usage": usage("digital_signature", "key_cert_sign")}),
    ("untrusted", {"signer": authority("Forged Root")}),
    ("broken-chain", {"signer": CA.stranger}),
    ("broken-chain", {"signer": (INTERMEDIATE, forger.new_key())}),
    ("broken-chain", {"extra": [(x509.PrecertPoison(), True)]}),
    ("broken-chain", {"extra": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)]}),
])
def test_a_lie_in_the_leaf_has_its_reason(reason: str, lies: dict[str, Any]) -> None:
    """Each way in which a leaf is not the one asked for."""
    above = [] if reason == "untrusted" else [INTERMEDIATE]
    assert verdict(pem(leaf(**lies), *above)) == f"refuse {reason}"


@pytest.mark.parametrize(("asked", "shown", "answer"), [
    (["*.example.org"], ["*.example.org"], "accept"), (["example.org", "*.example.org"], ["*.example.org", "example.org"], "accept"),
    (["*.example.org"], ["*.EXAMPLE.org"], "accept"), (["*.example.org"], ["*.www.example.org"], "refuse names-wildcard"),
    (["*.example.org"], ["*.example.org", "*.org"], "refuse names-wildcard"),
    (["*.example.org"], ["*.example.org", "*.*.example.org"], "refuse names-wildcard"),
    (["*.example.org"], ["www.example.org"], "refuse names-missing"), (["*.example.org"], ["*.example.org", "example.org"], "refuse names-extra"),
    (["www.example.org"], ["*.example.org"], "refuse names-wildcard"), (["*.example.org"], ["?.example.org", "*.example.org"], "refuse names-extra"),
])
def test_only_the_wildcard_that_was_asked_for(asked: list[str], shown: list[str], answer: str) -> None:
    """Nor what it covers, or what covers it: names are compared as text."""
    assert verdict(pem(leaf(domains=shown), INTERMEDIATE), names=asked).startswith(answer)


def test_replays_are_refused() -> None:
    """A leaf that was live before, and one that begins more than 48 hours before the live one; a shorter life is fine."""
    made = leaf(begin=now() - 3 * DAY, end=now() + DAY)
    reply, moment = pem(made, INTERMEDIATE), int(time.time())
    assert verdict(reply, spent=[made.fingerprint(hashes.SHA256()).hex()]) == "refuse replay"
    assert verdict(reply, earliest=moment) == "refuse replay"
    assert verdict(reply, earliest=moment - 2 * 86400).startswith("accept ")


def test_the_same_certificate_with_another_signature_is_a_replay() -> None:
    """Where (r, s) is a good ECDSA signature, (r, n - s) is another: whatever root knows the certificate by, one of all its bytes included."""
    made = leaf()
    other = forger.with_other_signature(made)
    assert other.fingerprint(hashes.SHA256()) != made.fingerprint(hashes.SHA256()) and verdict(pem(other, INTERMEDIATE)).startswith("accept ")
    for known in chain.identities(made)[:3]:
        assert verdict(pem(other, INTERMEDIATE), spent=[known]) == "refuse replay"
    assert made.fingerprint(hashes.SHA256()).hex() in chain.identities(other)
    again = leaf(serial=made.serial_number, begin=now() - 2 * DAY)
    assert verdict(pem(again, INTERMEDIATE), spent=[chain.identities(made)[2]]) == "refuse replay"
    assert verdict(pem(leaf(), INTERMEDIATE), spent=chain.identities(made)).startswith("accept ")


@pytest.mark.parametrize("days, left, until, answer", [
    (90, 15 / 86400, 90, "refuse stale"), (90, 29, 90, "refuse stale"), (90, 31, 90, "accept"), (90, 29, 28, "accept"), (6, 2.9, 80, "refuse stale"),
    (6, 3.1, 80, "accept"), (90, 15 / 86400, 10 / 86400, "accept"), (1 / 48, 1 / 90, 1 / 100, "accept"), (90, 1, 0, "accept")])
def test_what_was_held_back_is_stale(days: float, left: float, until: float, answer: str) -> None:
    """What would be renewed at once is not taken for what lasts longer; for what ends before it, it is, and for a placeholder."""
    made = leaf(begin=now() - (days - left) * DAY, end=now() + left * DAY)
    assert verdict(pem(made, INTERMEDIATE), until=int(time.time() + until * 86400) if until else 0).startswith(answer)


def test_chains_that_do_not_hold_are_refused() -> None:
    """Untrusted, without its intermediate, in another order, with a stranger in it, in a loop, too long for its path length, outdated."""
    root, stranger = CA.root, CA.stranger
    assert verdict(pem(leaf(signer=stranger), stranger[0])) == "refuse untrusted"
    assert verdict(pem(leaf())) == "refuse untrusted"
    assert verdict(pem(leaf(), root[0], INTERMEDIATE)) == "refuse broken-chain"
    assert verdict(pem(leaf(), INTERMEDIATE, stranger[0])) == "refuse broken-chain"
    assert verdict(pem(leaf(), leaf(), INTERMEDIATE)) == "refuse broken-chain"
    assert verdict(pem(leaf(), INTERMEDIATE, INTERMEDIATE)) == "refuse broken-chain"
    one, two = authority("One"), authority("Two")
    first, second = authority("One", two, one[1]), authority("Two", one, two[1])
    assert verdict(pem(leaf(signer=first), first[0], second[0], first[0], second[0])) == "refuse untrusted"
    short = authority("Short", root, path=0)
    below = authority("Below", short)
    assert verdict(pem(leaf(signer=below), below[0], short[0])) in ("refuse untrusted", "refuse broken-chain")
    none = authority("No CA", root, ca=False)
    assert verdict(pem(leaf(signer=none), none[0])) in ("refuse untrusted", "refuse broken-chain")
    old = authority("Old", root, begin=now() - 9 * DAY, end=now() - DAY)
    assert verdict(pem(leaf(signer=old), old[0])) == "refuse broken-chain"


def test_an_intermediate_for_other_uses_is_refused() -> None:
    """An authority that its issuer restricted to mail or code cannot vouch for a TLS server (as browsers see it)."""
    for use in (ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH):
        mail = authority("Mail", CA.root, eku=[use])
        assert verdict(pem(leaf(signer=mail), mail[0])) == "refuse key-usage"
    fine = authority("Servers", CA.root, eku=[ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    assert verdict(pem(leaf(signer=fine), fine[0])).startswith("accept ")
    anything = authority("Anything", CA.root, eku=[x509.ObjectIdentifier("2.5.29.37.0")])
    assert verdict(pem(leaf(signer=anything), anything[0])).startswith("accept ")


def test_a_name_that_the_authority_may_not_vouch_for_is_refused() -> None:
    """Name constraints (RFC 5280 section 4.2.1.10) are OpenSSL's to check; this shows that it does."""
    key = forger.new_key()
    builder = x509.CertificateBuilder().subject_name(forger.name("Bound")).issuer_name(CA.root[0].subject).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now() - DAY).not_valid_after(now() + DAY)
    builder = builder.add_extension(x509.BasicConstraints(True, None), True)
    builder = builder.add_extension(x509.NameConstraints([x509.DNSName("other.example")], None), True)
    bound = builder.sign(CA.root[1], hashes.SHA256()), key
    assert verdict(pem(leaf(signer=bound), bound[0])) in ("refuse untrusted", "refuse broken-chain")


def test_bytes_that_are_no_der_are_refused() -> None:
    """BER lengths, trailing bytes, base64 with stray bits, deep and huge ASN.1, and a certificate cut short."""
    good, der = pem(leaf(), INTERMEDIATE), leaf().public_bytes(Encoding.DER)
    for odd in (forger.long_length(der), forger.with_trailing(der), forger.deep(5000), forger.tlv(4, b"\0" * 40000), der[:-1], b"\x30\x80" + der[4:] + b"\0\0",
                forger.header(0x30, 1 << 60) + b"\0" * 100, b"\x30\x84\xff\xff\xff\xff" + der, b"\0"):
        assert verdict(armour(odd) + pem(INTERMEDIATE)) == "refuse encoding"
        assert verdict(pem(leaf()) + armour(odd)) == "refuse encoding"
    stray = re.sub(rb"[AQgw]==\n-----END", lambda found: bytes([found[0][0] + 1]) + found[0][1:], good, count=1)
    if stray != good:
        assert verdict(stray) == "refuse encoding"


def test_cut_short_at_every_64_bytes_is_refused() -> None:
    """Whichever part of a reply arrives, it is refused, or it is whole certificates."""
    whole = pem(leaf(), INTERMEDIATE)
    first = len(pem(leaf()))
    for end in range(0, len(whole), 64):
        try:
            assert not verdict(whole[:end]).startswith("accept "), (end, first)
        except spool.Refused as refused:
            assert refused.reason == "grammar"


def test_bits_turned_anywhere_are_refused() -> None:
    """No bit of an accepted leaf can be another: the signature covers the certificate, and its encoding the rest."""
    der = leaf(signer=CA.root).public_bytes(Encoding.DER)
    assert verdict(armour(der)).startswith("accept ")
    for position in range(len(der)):
        odd = bytearray(der)
        odd[position] ^= 1 << position % 8
        assert verdict(armour(bytes(odd))).startswith("refuse "), position


def test_every_reason_of_the_judge_was_given() -> None:
    """All but the one for a judge that fails, which test_process.py gives (and this file run whole)."""
    if len(GIVEN) > 5:
        assert set(spool.REASONS[8:-1]) <= GIVEN

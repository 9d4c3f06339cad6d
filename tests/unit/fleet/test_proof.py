"""What a desk's signer signs: for an enrolled host's root, within its names, with a number above the last. And every way we know to get past that."""

from __future__ import annotations

import base64
import json
import os
import pathlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import authority, members, proof
from certdrop.keeper import keys, signing
from certdrop.signer import policy
from certdrop.signer.jose import b64

from signer.test_policy import CA, CONTACT, KEYS, jws

NAMES = ["shop.example.org", "*.customers.example.org", "192.0.2.7"]


class Place:
    """A desk's directories, with two hosts enrolled; web1 is the one that posts."""

    def __init__(self, top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top, self.monkeypatch = top, monkeypatch
        for entry in ("spool/requests", "state/account", "etc/fleet", "etc/fleet.d"):
            (top / entry).mkdir(parents=True)
        monkeypatch.setattr(spool, "SPOOL", str(top / "spool"))
        monkeypatch.setattr(site, "STATE", str(top / "state"))
        monkeypatch.setattr(site, "ETC", str(top / "etc"))
        self.seeds = {host: authority.seed().decode() for host in ("web1", "web2", "stranger")}
        for host in ("web1", "web2"):
            self.enrol(host, NAMES)

    def enrol(self, host: str, names: list[str], most: int = 5) -> None:
        listed = ", ".join(f'"{name}"' for name in names)
        path = self.top / f"etc/fleet.d/{host}.toml"
        path.write_text(f'key = "{authority.public(self.seeds[host])}"\nnames = [{listed}]\nmax_sites = {most}\n')

    def sign(self, host: str, name: str, number: int, kind: str, data: bytes, of: str = "") -> bytes:
        """As root of a host does; its key may be another's (`of`)."""
        (self.top / "etc/fleet/sign.key").write_text(f"{host} {self.seeds[of or host]}\n")
        return signing.sign(name, number, kind, data)

    def put(self, entry: str, data: bytes) -> None:
        (self.top / "spool/requests" / entry).write_bytes(data)

    def post(self, number: int, *domains: str, host: str = "web1", name: str = "shop.example.org", key: bytes = b"", of: str = "") -> str:
        """A request of a host's, as it lies in a desk's tree; its entry."""
        csr = keys.request(key or keys.make("ecdsa-p256"), list(domains or ("shop.example.org",)))
        tree = members.tree_name(host, name)
        self.put(f"{tree}@{number:04d}.csr", csr)
        self.put(f"{tree}@{number:04d}.sig", self.sign(host, name, number, "csr", csr, of))
        return f"{tree}@{number:04d}.csr"

    def policy(self) -> policy.Policy:
        """A signer's, as it is when it starts."""
        made = policy.Policy(CA + "/dir", CONTACT, KEYS)       # type: ignore[arg-type]
        made.proof = proof.Proof(str(self.top / "etc/fleet.d"))
        return made

    def csr(self, entry: str) -> x509.CertificateSigningRequest:
        return x509.load_pem_x509_csr((self.top / "spool/requests" / entry).read_bytes())

    def order(self, entry: str) -> bytes:
        names = [{"type": kind, "value": value} for kind, value in sorted(policy.names_of(self.csr(entry)))]
        return jws({"identifiers": names})

    def final(self, entry: str) -> bytes:
        return jws({"csr": b64(self.csr(entry).public_bytes(serialization.Encoding.DER))})

    def finalize(self, entry: str, made: "policy.Policy | None" = None) -> None:
        assert (made or self.policy()).key_for(entry, self.final(entry)) is KEYS.current

    def refuses(self, entry: str, why: str, data: bytes = b"") -> None:
        for payload in [data] if data else [self.order(entry), self.final(entry)]:
            with pytest.raises(policy.Refused, match=why):
                self.policy().key_for(entry, payload)


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return Place(tmp_path, monkeypatch)


def test_what_root_of_an_enrolled_host_signed(place: Place) -> None:
    """An order and its end; names by pattern, and addresses."""
    for number, domains in enumerate((["shop.example.org"], ["a.customers.example.org", "b.c.customers.example.org"], ["192.0.2.7"]), 1):
        entry = place.post(number, *domains)
        made = place.policy()
        assert made.key_for(entry, place.order(entry)) is KEYS.current
        place.finalize(entry, made)


@pytest.mark.parametrize("spoil", ["sig", "csr", "host", "site", "number", "key", "none", "kind"])
def test_what_it_did_not_sign(place: Place, spoil: str) -> None:
    """A signature is for one host, site, number, kind and file; and by the key that was enrolled. Whoever carries it can change none."""
    entry = place.post(3)
    requests = place.top / "spool/requests"
    sig, csr = (requests / entry.replace(".csr", ".sig")).read_bytes(), (requests / entry).read_bytes()
    why = "not signed by the root of its host"
    if spoil == "sig":
        place.put(entry.replace(".csr", ".sig"), base64.b64encode(bytes(64)))
    elif spoil == "csr":
        place.put(entry, keys.request(keys.make("ecdsa-p256"), ["shop.example.org"]))
    elif spoil == "key":
        place.post(3, of="stranger")
    elif spoil == "none":
        (requests / entry.replace(".csr", ".sig")).unlink()
        why = "no signature"
    elif spoil == "kind":
        place.put(entry.replace(".csr", ".sig"), place.sign("web1", "shop.example.org", 3, "now", csr))
    else:
        other = {"host": "web2_shop.example.org@0003", "site": "web1_other.example.org@0003", "number": "web1_shop.example.org@0004"}[spoil]
        place.put(other + ".csr", csr)
        place.put(other + ".sig", sig)
        entry = other + ".csr"
    place.refuses(entry, why)


@pytest.mark.parametrize("domains", [["other.example.org"], ["customers.example.org"], ["shop.example.org", "bank.example.net"], ["192.0.2.8"],
                                     ["xcustomers.example.org"]])
def test_a_name_that_the_host_may_not_have(place: Place, domains: list[str]) -> None:
    place.refuses(place.post(1, *domains), "may not have all of these names")


def test_who_is_not_enrolled_any_more(place: Place) -> None:
    entry = place.post(1)
    (place.top / "etc/fleet.d/web1.toml").unlink()
    place.refuses(entry, "not enrolled")


def test_a_host_that_is_none(place: Place) -> None:
    for entry in ("shop.example.org@0001.csr", "../web1_a@0001.csr", "certdrop-desk_a@0001.csr", "WEB1_a@0001.csr"):
        with pytest.raises(policy.Refused, match="no request|not enrolled|no such request"):
            place.policy().key_for(entry, jws({"identifiers": [{"type": "dns", "value": "shop.example.org"}]}))


def test_numbers_only_rise(place: Place) -> None:
    """What was finalized last is the least there may be; also for a signer that starts later. Another key of the host's begins anew."""
    older, newer = place.post(4), place.post(7)
    place.finalize(newer)
    place.refuses(older, "later request of this site was finalized before")
    place.finalize(newer)                      # the answer was lost: the same again
    place.post(7)                              # another CSR of that number
    place.refuses(newer, "later request")
    place.finalize(place.post(8))
    place.finalize(place.post(1, name="a.example.org"))                    # another site
    place.seeds["web1"] = authority.seed().decode()
    place.enrol("web1", NAMES)
    place.finalize(place.post(1))


def test_the_same_one_not_for_ever(place: Place) -> None:
    """Not even across signers."""
    entry = place.post(1)
    for _ in range(proof.AGAIN):
        place.finalize(entry)
    with pytest.raises(policy.Refused, match="too often"):
        place.policy().key_for(entry, place.final(entry))


def test_an_order_alone_is_not_noted(place: Place) -> None:
    entry = place.post(9)
    place.policy().key_for(entry, place.order(entry))
    assert not os.path.exists(f"{site.STATE}/account/finalized")
    place.finalize(place.post(2))


def test_not_more_sites_than_it_may_have(place: Place) -> None:
    place.enrol("web1", NAMES, most=2)
    for name in ("a", "b"):
        place.finalize(place.post(1, name=name))
    place.refuses(place.post(1, name="c"), "as many sites")
    place.finalize(place.post(2, name="b"))


def test_what_cannot_be_noted_is_not_signed(place: Place) -> None:
    entry, made = place.post(1), place.policy()
    os.mkdir(f"{site.STATE}/account/finalized")
    with pytest.raises(OSError):
        made.key_for(entry, place.final(entry))


def test_a_line_that_was_cut(place: Place) -> None:
    """The journal goes on behind it, and what stands before counts."""
    place.finalize(place.post(5))
    path = place.top / "state/account/finalized"
    path.write_bytes(path.read_bytes() + b"17000 abc web1 shop")
    place.refuses(place.post(4), "later request")
    place.finalize(place.post(6))
    place.refuses(place.post(5), "later request")


# ---- revocations

def leaf(key: bytes) -> bytes:
    found = serialization.load_pem_private_key(key, None)
    pem, _, _, _ = keys.placeholder(key, ["shop.example.org"])
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def revocation(place: Place, certificate: bytes, host: str = "web1", of: str = "", number: int = 2) -> tuple[str, bytes]:
    """A request to revoke, as root of a host posts it; and what is to be signed."""
    found: dict[str, object] = {"payload": {"certificate": b64(certificate), "reason": 1}, "not_after": 4000000000}
    signature = place.sign(host, "shop.example.org", number, "revoke", json.dumps(found).encode(), of).decode().strip()
    entry = f"{host}_shop.example.org@{number:04d}.revoke"
    place.put(entry, json.dumps({**found, "sig": signature}).encode())
    return entry, jws(found["payload"])


def test_a_certificate_of_its_own_is_revoked(place: Place) -> None:
    key = keys.make("ecdsa-p256")
    place.finalize(place.post(2, key=key))
    entry, data = revocation(place, leaf(key))
    assert place.policy().key_for(entry, data) is KEYS.current


def test_nobody_elses_certificate(place: Place) -> None:
    """Not for a host that signs it, though it may have the name; and not for who signs with another key."""
    key = keys.make("ecdsa-p256")
    place.finalize(place.post(2, key=key, host="web2"))
    entry, data = revocation(place, leaf(key))
    place.refuses(entry, "no key that was in a request of web1", data)
    entry, data = revocation(place, leaf(key), host="web2", of="web1")
    place.refuses(entry, "not signed by the root of its host", data)


def test_what_was_changed_on_the_way_is_not_revoked(place: Place) -> None:
    key = keys.make("ecdsa-p256")
    place.finalize(place.post(2, key=key))
    entry, data = revocation(place, leaf(key))
    found = json.loads((place.top / "spool/requests" / entry).read_text())
    found["payload"]["reason"] = 4
    place.put(entry, json.dumps(found).encode())
    place.refuses(entry, "not signed", jws(found["payload"]))
    for text in (b"", b"{}", b"[]", b'{"sig": 1}', b'{"sig": "a", "payload": {}}', b'{"sig": "a", "payload": {"certificate": "!"}}'):
        place.put(entry, text)
        place.refuses(entry, "no request to revoke that a host signed|no such request", data)


def test_without_a_fleet_nothing_is_asked_for(place: Place) -> None:
    """A single host's signer looks at root's requests alone."""
    entry = place.post(1, "anything.example.net", of="stranger")
    made = policy.Policy(CA + "/dir", CONTACT, KEYS)           # type: ignore[arg-type]
    assert made.key_for(entry, place.final(entry)) is KEYS.current

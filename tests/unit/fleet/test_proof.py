"""What a desk's signer signs: for an enrolled host's root, within its names, with a number above the last. And every way we know to get past that."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import resource
import stat
import time
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import authority, members, proof
from certdrop.keeper import keys, signing
from certdrop.signer import policy, process, protocol, service
from certdrop.signer.jose import b64
from certdrop.walls import jail

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
        return self.sent(number, keys.request(key or keys.make("ecdsa-p256"), list(domains or ("shop.example.org",))), host, name, of)

    def sent(self, number: int, csr: bytes, host: str = "web1", name: str = "shop.example.org", of: str = "") -> str:
        """A CSR that root of a host signed, whatever is in it."""
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


def test_the_same_one_not_too_often(place: Place) -> None:
    """Not even across signers. But a week later again: what somebody does with it now must not be the end of this site."""
    entry, now = place.post(1), time.time()
    for _ in range(proof.AGAIN):
        place.finalize(entry)
    with pytest.raises(policy.Refused, match="too often"):
        place.policy().key_for(entry, place.final(entry))
    place.monkeypatch.setattr(time, "time", lambda: now + proof.WEEK + 10)
    place.finalize(entry)


def test_what_is_not_signed_is_not_counted(place: Place) -> None:
    """The network part may say what it wants: only the payload that is signed is noted."""
    entry, made = place.post(1), place.policy()
    for payload in ({"csr": "x"}, {"csr": b64(b"x")}, {"csr": ""}):
        with pytest.raises(policy.Refused, match="nobody wants"):
            made.key_for(entry, jws(payload))
    assert not os.path.exists(f"{site.STATE}/account/finalized")
    place.finalize(entry, made)


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


# ---- the journal

def journal(place: Place) -> pathlib.Path:
    return place.top / "state/account/finalized"


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how long a file of this process may become."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_does_not_fit_whole(place: Place, limit: Any) -> None:
    """It is taken back, and nothing is signed; what comes when there is room counts."""
    place.finalize(place.post(5))
    before = journal(place).read_bytes()
    entry, made = place.post(6), place.policy()
    limit(len(before) + 40)
    for _ in range(2):
        with pytest.raises(OSError):
            made.key_for(entry, place.final(entry))
        assert journal(place).read_bytes() == before
    limit(resource.RLIM_INFINITY)
    place.finalize(entry, made)
    place.refuses(place.post(5), "later request")


def test_a_line_that_could_not_be_taken_back(place: Place) -> None:
    """The next one begins anew."""
    made = place.policy()
    place.finalize(place.post(5), made)
    with open(journal(place), "ab") as stream:
        stream.write(b"17000 abc web1")
    place.finalize(place.post(6), made)
    place.refuses(place.post(5), "later request")


def test_a_disk_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not on the disk is not signed, the name of a new journal among it."""
    entry, made, fsync = place.post(1), place.policy(), os.fsync
    for of_directory in (False, True):
        def fail(fd: int, wanted: bool = of_directory) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode) == wanted:
                raise OSError(5, "Input/output error")
            fsync(fd)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            made.key_for(entry, place.final(entry))


def test_the_journal_is_shortened_in_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its size: the newest number of each site stays, and the younger keys; what is full is shortened by the next signer."""
    monkeypatch.setattr(protocol, "JOURNAL", 40000)
    key = keys.make("ecdsa-p256")
    place.finalize(place.post(7, name="quiet"))
    place.finalize(place.post(1, key=key))
    now = int(time.time())
    lines = [f"{now - 1000 + number} 0123456789abcdef web2 busy {number} {number:064x} {number:064x}\n" for number in range(200)]
    young = journal(place).read_text()
    journal(place).write_text("".join(lines) + young)
    made = place.policy()
    assert 8000 < len(journal(place).read_bytes()) <= 10000
    place.refuses(place.post(6, name="quiet"), "later request")
    kept = made.proof.last["0123456789abcdef", "busy"]         # type: ignore[union-attr]
    assert kept.number == 199
    assert f"{198:064x}" in made.proof.keys and f"{1:064x}" not in made.proof.keys      # type: ignore[union-attr]
    entry, data = revocation(place, leaf(key))
    assert made.key_for(entry, data) is KEYS.current
    monkeypatch.setattr(protocol, "JOURNAL", len(journal(place).read_bytes()) + 10)
    entry = place.post(2)
    with pytest.raises(OSError, match="full"):
        made.key_for(entry, place.final(entry))
    place.finalize(entry)


def test_the_same_keys_are_kept_once(place: Place) -> None:
    """Where the key stays, the newest line says all."""
    key = keys.make("ecdsa-p256")
    for number in range(1, 8):
        place.finalize(place.post(number, key=key))
    place.policy()
    assert journal(place).read_text().count("\n") < 3
    place.refuses(place.post(6, key=key), "later request")


@pytest.mark.parametrize(("hosts", "most"), [("", 1 << 20), ("/etc/certdrop/fleet.d", protocol.JOURNAL)])
def test_how_much_a_signer_may_write(hosts: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a desk as much as its journal may have."""
    limits: dict[str, int] = {}
    monkeypatch.setattr(protocol, "HOSTS", hosts)
    monkeypatch.setattr(jail, "give_up_privileges", lambda: None)
    monkeypatch.setattr(jail, "forbid", lambda **found: limits.update(found))
    monkeypatch.setattr(jail, "landlock", lambda *_: 0)
    monkeypatch.setattr(process.syscalls, "Filter", lambda _: SimpleNamespace(enter=lambda: None))
    process.shut_in()
    assert limits["FSIZE"] == most


# ---- what is in a CSR

def csr_of(names: list[str], subject: str = "", ca: "bool | None" = None, twice: bool = False) -> bytes:
    """A CSR as no tool of ours makes it."""
    found = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(found))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName._init_without_validation(name) for name in names]), False)
    if ca is not None:
        made = made.add_extension(x509.BasicConstraints(ca, None), True)
    if twice:
        made._extensions = made._extensions * 2                # type: ignore[attr-defined]
    return made.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def spki(key: bytes) -> bytes:
    found = serialization.load_pem_private_key(key, None).public_key()
    return found.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_csr_that_its_own_key_did_not_sign(place: Place) -> None:
    """Else a host could post the key of another's certificate, which is public, and have that revoked."""
    victim, own = keys.make("ecdsa-p256"), keys.make("ecdsa-p256")
    place.finalize(place.post(2, key=victim))
    csr = x509.load_pem_x509_csr(keys.request(own, ["shop.example.org"])).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(csr.replace(spki(own), spki(victim)))
    entry = place.sent(1, forged.public_bytes(serialization.Encoding.PEM), host="web2")
    place.refuses(entry, "not signed by its own key")
    entry, data = revocation(place, leaf(victim), host="web2")
    place.refuses(entry, "no key that was in a request of web2", data)


@pytest.mark.parametrize("name", ["*.*.customers.example.org", "x*.customers.example.org", "x y.customers.example.org", "..customers.example.org",
                                  "a..customers.example.org",
                                  "evil.example.net\n.customers.example.org", "bank.example.net/.customers.example.org", "A.customers.example.org",
                                  "192.0.2.7"])
def test_a_name_that_is_none(place: Place, name: str) -> None:
    entry = place.sent(1, csr_of([name]))
    place.refuses(entry, "may not have all of these names", jws({"identifiers": [{"type": "dns", "value": name}]}))


def test_what_else_a_csr_asks_for(place: Place) -> None:
    """Nothing but names: a common name is one of them, and nobody becomes a CA."""
    for csr in (csr_of(["shop.example.org"], "bank.example.net"), csr_of(["shop.example.org"], ca=True)):
        place.refuses(place.sent(1, csr), "more than names")
    for number, csr in enumerate((csr_of(["shop.example.org"], "shop.example.org"), csr_of(["shop.example.org"], ca=False)), 2):
        place.finalize(place.sent(number, csr))


# ---- what would end the signer

def ask(place: Place, entry: str, data: bytes) -> bytes:
    """What a signer answers, that goes on."""
    made = service.Service.__new__(service.Service)
    made.policy, made.ring = place.policy(), KEYS              # type: ignore[assignment]
    return made.answer(b"S" + entry.encode() + b"\n" + data)[0]


def test_extensions_that_stand_there_twice(place: Place) -> None:
    """A host's root may sign what no parser takes: it alone is refused."""
    entry = place.sent(1, csr_of(["shop.example.org"], twice=True))
    assert ask(place, entry, jws({"identifiers": []})) == b"-the request cannot be understood"


@pytest.mark.parametrize("text", [b"[" * 16000, b'{"sig": "", "payload": ' + b"[" * 16000, b'{"sig": "a", "payload": {"certificate": "!"}}'],
                         ids=["deep", "deep below", "no certificate"])
def test_a_revocation_that_is_none(place: Place, text: bytes) -> None:
    place.put("web2_x@0001.revoke", text)
    answer = ask(place, "web2_x@0001.revoke", jws({"certificate": "x"}))
    assert answer in (b"-it is no request to revoke that a host signed", b"-the request to revoke is not signed by the root of its host")


def test_a_certificate_of_a_curve_that_is_none(place: Place) -> None:
    """Signed or not."""
    curve = bytes.fromhex("06082a8648ce3d030107")
    odd = leaf(keys.make("ecdsa-p256")).replace(curve, curve[:-1] + b"\x7f")
    assert ask(place, *revocation(place, odd, of="web2")) == b"-the request to revoke is not signed by the root of its host"
    assert ask(place, *revocation(place, odd)) == b"-the request cannot be understood"


def test_whatever_is_raised(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic of the parser's is no Exception."""
    class Panic(BaseException):
        pass

    def panic(_: object) -> None:
        raise Panic
    entry = place.post(1)
    data = place.order(entry)
    monkeypatch.setattr(x509, "load_pem_x509_csr", panic)
    assert ask(place, entry, data) == b"-the request cannot be understood"


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
        place.refuses(entry, "no request to revoke that a host signed|no such request|not signed by the root", data)


def test_without_a_fleet_nothing_is_asked_for(place: Place) -> None:
    """A single host's signer looks at root's requests alone."""
    entry = place.post(1, "anything.example.net", of="stranger")
    made = policy.Policy(CA + "/dir", CONTACT, KEYS)           # type: ignore[arg-type]
    assert made.key_for(entry, place.final(entry)) is KEYS.current


def past(place: Place, entry: str, *entries: str) -> None:
    """Have it said beside a request that others were answered before."""
    requests = place.top / "spool/requests"
    listed = [[int(one.rpartition("@")[2].partition(".")[0]), (requests / one).read_text(), (requests / one.replace(".csr", ".sig")).read_text()]
              for one in entries]
    place.put(entry.rpartition(".")[0] + ".past", json.dumps(listed).encode())


def test_what_another_desk_finalized(place: Place) -> None:
    """An older request is refused, as if it had been finalized here; and that is not forgotten when nobody says it any more."""
    older, newer, newest = place.post(3), place.post(5), place.post(6)
    past(place, older, newer)
    place.refuses(older, "a later request")
    (place.top / "spool/requests" / older.replace(".csr", ".past")).unlink()
    place.refuses(older, "a later request")
    place.finalize(newer)
    past(place, newest, older, newer)
    place.finalize(newest)
    place.refuses(newer, "a later request")
    lines = (place.top / "state/account/finalized").read_text().splitlines()
    assert sorted(line.split()[4] for line in lines) == ["3", "5", "5", "6"], "each is noted once"


@pytest.mark.parametrize("spoil", ["host", "number", "stranger", "json", "form", "csr"])
def test_what_nobody_finalized(place: Place, spoil: str) -> None:
    """Whoever owns the database says what it likes: what root of this host did not sign holds up nothing."""
    older, newer = place.post(3), place.post(5)
    data, sig = ((place.top / "spool/requests" / newer.replace(".csr", ending)).read_text() for ending in (".csr", ".sig"))
    other = place.post(5, host="web2")
    said: "object" = [[5, data, (place.top / "spool/requests" / other.replace(".csr", ".sig")).read_text()]]
    if spoil == "number":
        said = [[6, data, sig]]
    elif spoil == "stranger":
        said = [[5, data, place.sign("web1", "shop.example.org", 5, "csr", data.encode(), "stranger").decode()]]
    elif spoil == "form":
        said = [[True, data, sig], [5, data], {"5": 5}, [5, 7, sig], [10 ** 9, data, sig]]
    elif spoil == "csr":
        bad = data.replace("A", "B")
        said = [[5, bad, sig]]
    place.put(older.replace(".csr", ".past"), b"[" * 100000 if spoil == "json" else json.dumps(said).encode())
    place.finalize(older)

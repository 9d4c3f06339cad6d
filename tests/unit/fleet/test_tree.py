"""A desk's tree: what is laid down is what a host's root signed; what was answered stays for a while; what a host says of itself is taken by its form."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import pathlib
import re
import ssl
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import authority, tree
from certdrop.fleet.database import Row, is_row
from certdrop.issuer import ari, ledger, plan, posted
from certdrop.issuer.failure import Failure
from certdrop.issuer.options import Options
from certdrop.keeper import keys, signing
from certdrop.signer import protocol

ROW = Row("web1", "shop.example.org", 3, "csr")
TREE = "web1_shop.example.org"
CSR = keys.request(keys.make("ecdsa-p256"), ["shop.example.org"])


@pytest.fixture
def sign(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A desk's directories, with one host enrolled; what signs as its root."""
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path))
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    monkeypatch.setattr(protocol, "HOSTS", str(tmp_path / "fleet.d"))
    for entry in ("requests", "replies", "sites", "live", "keeper", "issuer", "fleet", "fleet.d"):
        (tmp_path / entry).mkdir()
    seed = authority.seed().decode()
    (tmp_path / "fleet.d/web1.toml").write_text(f'key = "{authority.public(seed)}"\nnames = ["shop.example.org"]\n')
    (tmp_path / "fleet/sign.key").write_text(f"web1 {seed}\n")
    return lambda kind, number=3: signing.sign("shop.example.org", number, kind, CSR).decode()


def entries(where: str = "requests") -> list[str]:
    return sorted(os.listdir(f"{spool.SPOOL}/{where}"))


def test_what_root_signed_is_laid_down(sign: Any) -> None:
    assert tree.put_request(ROW, CSR.decode(), sign("csr"), sign("now")) == ""
    assert entries() == [f"{TREE}@0003.csr", f"{TREE}@0003.now", f"{TREE}@0003.sig"]
    (listed,), stale, _ = posted.requests()
    assert listed.name == TREE and listed.now and not stale
    assert tree.put_request(ROW, CSR.decode(), sign("csr"), "") == "" and entries() == [f"{TREE}@0003.csr", f"{TREE}@0003.sig"]


def test_what_it_did_not_sign_is_not(sign: Any) -> None:
    """Nor is it wanted now by somebody else's word."""
    assert "not signed by the key that web1" in tree.put_request(ROW, CSR.decode(), sign("now"), "")
    assert "not signed by the key that web1" in tree.put_request(ROW, CSR.decode(), sign("csr", 4), "")
    assert "web2 is not enrolled" in tree.put_request(ROW._replace(host="web2"), CSR.decode(), sign("csr"), "")
    assert entries() == []
    assert tree.put_request(ROW, CSR.decode(), sign("csr"), sign("csr")) == "" and f"{TREE}@0003.now" not in entries()


def test_what_was_answered_stays_for_a_day(sign: Any) -> None:
    """Where its row is gone: it comes again, if the database lost it. A later request ends that, and so does time."""
    def lay_down(number: int) -> None:
        assert tree.put_request(ROW._replace(number=number), CSR.decode(), sign("csr", number), "") == ""
    lay_down(3)
    tree.forget(set())
    assert entries() == []
    lay_down(3)
    reply = pathlib.Path(f"{spool.replies()}/{TREE}@0003.pem")
    reply.write_text("x")
    tree.forget(set())
    assert f"{TREE}@0003.csr" in entries()
    lay_down(4)
    tree.forget({ROW._replace(number=4)})
    assert entries() == [f"{TREE}@0004.csr", f"{TREE}@0004.sig"]
    tree.forget(set())
    lay_down(3)
    os.utime(reply, (time.time() - 90000, time.time() - 90000))
    tree.forget(set())
    assert entries() == []


def test_the_issuer_sees_a_host_as_its_own(sign: Any) -> None:
    """The certificate, what is live, what root refused."""
    pem, sha256, begin, end = keys.placeholder(keys.make("ecdsa-p256"), ["shop.example.org"])
    state = {"generation": 2, "live": 2, "cert": {"sha256": sha256, "not_before": begin, "not_after": end}, "chain": pem.decode(), "profile": "shortlived",
             "refused": {"number": 3, "reason": "key"}}
    tree.put_state("web1", "shop.example.org", json.dumps(state))
    found = posted.Standing(posted.Request(TREE, 3))
    assert found.certificate and (found.certificate.sha256, found.certificate.not_after) == (sha256, end)
    assert pathlib.Path(f"{found.place}/cert.pem").read_bytes() == pem
    assert set(json.loads(pathlib.Path(f"{site.STATE}/keeper/{TREE}.json").read_text())) == {"refused"}
    stamp = os.stat(f"{site.STATE}/keeper/{TREE}.json").st_mtime_ns
    tree.put_state("web1", "shop.example.org", json.dumps(state))
    assert os.stat(f"{site.STATE}/keeper/{TREE}.json").st_mtime_ns == stamp, "what is the same is not written"
    tree.put_state("web1", "shop.example.org", json.dumps({**state, "generation": 3, "live": 3}))
    assert entries(f"sites/{TREE}") == ["0003"]
    tree.put_state("web1", "shop.example.org", "{}")
    assert posted.Standing(posted.Request(TREE, 4)).certificate is None and entries("live") == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"generation": "../x", "cert": {}}', '{"generation": -1, "cert": {}}', '{"generation": 1, "cert": []}',
                                  '{"generation": 1, "cert": {}, "chain": 5, "live": "../../x"}', "[" * 100000])
def test_a_state_that_is_none(sign: Any, text: str) -> None:
    tree.put_state("web1", "shop.example.org", text)
    assert posted.Standing(posted.Request(TREE, 4)).certificate is None
    assert set(entries("live")) == set()


def test_what_root_did_not_sign_is_not_revoked(sign: Any) -> None:
    """Nor laid down: the issuer reads it as root's."""
    payload = {"payload": {"certificate": "x"}}
    row = ROW._replace(kind="revoke")
    seal = base64.b64encode(_key().sign(signing.statement("web1", row.name, 3, "revoke", json.dumps(payload).encode()))).decode()
    for body in ("[" * 16000, "{}", json.dumps(payload), json.dumps({**payload, "sig": sign("csr")}), json.dumps({"payload": {}, "sig": seal}),
                 json.dumps({**payload, "sig": [seal]})):
        assert "not signed by the key that web1" in tree.put_request(row, body, "-", "")
    assert entries() == []
    assert tree.put_request(row, json.dumps({**payload, "sig": seal}), "-", "") == "" and entries() == [f"{TREE}@0003.revoke"]


def _key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(pathlib.Path(f"{site.ETC}/fleet/sign.key").read_text().split()[1]))


STATE: dict[str, Any] = {"generation": 2, "live": 1, "chain": "x", "cert": {"sha256": "a" * 64, "not_before": 5, "not_after": int(time.time()) + 1000},
                         "install": {"number": 2, "next_try": 1}, "refused": {"number": 3, "reason": "key", "reply_sha256": "b" * 64}, "installed_at": 1,
                         "shop": "p"}
NONSENSE: list[Any] = [True, False, None, -1, 1.5, 1e-300, (1 << 40) - 1, 10 ** 400, float("nan"), float("inf"),
                       "x", "\x1b[2J", "\ud800", [], [[]], {}, {"a": 1}]


@pytest.mark.parametrize("key", [*STATE, *(f"{table}.{key}" for table in ("cert", "install", "refused") for key in STATE[table])])
@pytest.mark.parametrize("answered", [False, True])
def test_nonsense_in_a_state_stops_nobody(sign: Any, key: str, answered: bool) -> None:
    """The issuer plans every site's next order, whatever one host's courier says."""
    assert tree.put_request(ROW, CSR.decode(), sign("csr"), "") == ""
    if answered:
        pathlib.Path(f"{spool.replies()}/{TREE}@0003.pem").write_text("x")
    for value in NONSENSE:
        state = json.loads(json.dumps(STATE))
        table, _, part = key.rpartition(".")
        (state[table] if table else state)[part] = value
        tree.put_state("web1", "shop.example.org", json.dumps(state))
        listed, _, _ = posted.requests()
        for task in plan.make(Options([], False), listed, time.time()):
            task.wants_window(time.time())
        for path in pathlib.Path(site.STATE).glob("keeper/*.json"):
            assert not re.search(r"true|false|null|NaN|Infinity|\\u", path.read_text())


def _built(change: str) -> str:
    """A certificate that some library cannot read wholly."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begin = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(5).not_valid_before(begin)
    builder = builder.not_valid_after(begin + datetime.timedelta(days=90)).add_extension(x509.SubjectAlternativeName([x509.DNSName("a.b")]), False)
    if change == "twice":
        builder._extensions = builder._extensions * 2
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    if change == "version":
        der = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    if change == "x400":
        der = der.replace(bytes.fromhex("8203612e62"), bytes.fromhex("a303612e62"), 1)
    return ssl.DER_cert_to_PEM_cert(der)


@pytest.mark.parametrize("change", ["", "twice", "version", "x400"])
def test_a_chain_that_cannot_be_read_is_none(sign: Any, change: str) -> None:
    tree.put_state("web1", "shop.example.org", json.dumps({**STATE, "chain": _built(change)}))
    laid = pathlib.Path(f"{site.STATE}/sites/{TREE}/0002/fullchain.pem").read_bytes()
    assert bool(laid) == (not change)
    if change:
        with pytest.raises(ValueError):
            ari.identifier(laid)               # which the issuer expects


def test_names_that_end_in_json(sign: Any) -> None:
    """What belongs to one site is not kept for another's sake."""
    tree.put_state("web1", "x.json", json.dumps(STATE))
    tree.forget({ROW._replace(name="x.json")})
    assert entries("sites") == ["web1_x.json"] and entries("keeper") == ["web1_x.json.json"]
    tree.forget({ROW._replace(name="x")})
    assert entries("sites") == [] and entries("keeper") == []


@pytest.mark.parametrize("row", [Row("web1", 5, 1, "csr"), Row(None, "x", 1, "csr"), Row("web1", "../x", 1, "csr"), Row("we_b", "x", 1, "csr"),
                                 Row("web1", "x", 0, "csr"), Row("web1", "x", 1, "pem"),
                                 Row("web1", "x" * 161, 1, "csr"), Row("web1", "x", True, "csr")._replace(number="1")])     # type: ignore[arg-type]
def test_a_row_that_names_no_request(row: Row) -> None:
    assert not is_row(row)


def test_the_profile_is_what_this_desk_says(sign: Any) -> None:
    """Not what is said of the site: nobody signs that, and short-lived certificates would end soon after the database withheld the next ones."""
    def task() -> plan.Task:
        tree.put_request(ROW, CSR.decode(), sign("csr"), "")
        tree.put_state("web1", "shop.example.org", '{"profile": "shortlived"}')
        return plan.make(Options([], False), posted.requests()[0], time.time())[0]
    assert task().profile == ""
    with open(f"{protocol.HOSTS}/web1.toml", "a", encoding="ascii") as stream:
        stream.write('profile = "tlsserver"\n')
    assert task().profile == "tlsserver"


def test_root_is_heeded_once_each_time(sign: Any) -> None:
    """What root wanted before the last failure skips no back-off, however often the database brings it; nor does a time to come, or a text that is none."""
    entry, now = f"{TREE}@0003.csr", sign("now")
    assert not tree.is_urgent(entry)
    tree.put_request(ROW, CSR.decode(), sign("csr"), now)
    assert tree.is_urgent(entry) and not tree.is_urgent(f"{TREE}@0003.revoke")
    book = ledger.Ledger(TREE)
    book.failed(Failure("refused", "no"), None, time.time())
    book.save()
    tree.put_request(ROW, CSR.decode(), sign("csr"), now)
    assert not tree.is_urgent(entry)
    at, _, signature = now.partition(" ")
    for moment in (int(at) + 60, int(at) + 2 * tree.AHEAD):
        tree.put_request(ROW, CSR.decode(), sign("csr"), f"{moment} {signature}")
        assert not tree.is_urgent(entry), "another moment than root signed"
    file = pathlib.Path(f"{spool.requests()}/{TREE}@0003.now")
    for text, is_so in ((int(at) + 60, True), (int(at) + 2 * tree.AHEAD, False), ("", False), ("x", False), ("-1", False), ("9" * 400, False)):
        file.write_text(str(text))
        assert tree.is_urgent(entry) == is_so, text


def test_what_skips_a_back_off(sign: Any) -> None:
    """That root of the host wants it now, and nothing that the database says: neither that somebody waits, nor that a reply was refused."""
    def due() -> bool:
        listed, _, _ = posted.requests()
        return plan.make(Options([TREE], False), listed, time.time())[0].when <= time.time()
    reply = pathlib.Path(f"{spool.replies()}/{TREE}@0003.pem")
    state = {"refused": {"number": 3, "reason": "untrusted", "reply_sha256": hashlib.sha256(b"r").hexdigest()}}
    tree.put_request(ROW, CSR.decode(), sign("csr"), sign("now"))
    book = ledger.Ledger(TREE)
    book.failed(Failure("refused", "no"), None, time.time())
    book.save()
    assert due()
    tree.put_request(ROW, CSR.decode(), sign("csr"), sign("csr"))
    assert not due()
    for now in ("csr", "now"):
        tree.put_request(ROW, CSR.decode(), sign("csr"), sign(now))
        reply.write_text("r")
        tree.put_state("web1", "shop.example.org", json.dumps(state))
        assert not due()

"""Attacks 21 to 44: every way of lying in a chain, through the real keeper and the real judge. tests/unit/judge/test_chain.py has more."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import time
from typing import Any, Callable

import forger
import pytest
from conftest import OTHER, STATE, VICTIM, Ground, stage
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from forger import DAY, HOUR, armour, authority, now, pem


def refuse(ground: Ground, data: bytes, lie: str, *reasons: str) -> None:
    """Reply so: root's run refuses it for that reason, once, says nothing but in log and notes, and keeps it for the administrator."""
    before = len(ground.events())
    ground.reply(VICTIM, data)
    done = ground.install()
    assert (done.code, done.text) == (os.EX_DATAERR, ""), (lie, done)
    assert ground.reason() in reasons and ground.events()[before:] == [ground.reason()], (lie, ground.reason())
    if before == 0:
        assert ground.install().code == os.EX_DATAERR and len(ground.events()) == 1, (lie, "a refusal is said once")
    kept = pathlib.Path(f"{STATE}/keeper/refused/{VICTIM}@{ground.next(VICTIM):04d}.{ground.reason()}")
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.read_bytes() == (b"" if ground.reason() == "size" else data), lie


def refuses(ground: Ground, data: bytes, *reasons: str) -> None:
    """As above, with all that must hold."""
    with ground.stands(recovers=False):
        refuse(ground, data, "", *reasons)


def key_pem() -> bytes:
    return forger.new_key().private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def loop(ground: Ground) -> bytes:
    one, two = authority("One"), authority("Two")
    first, second = authority("One", two, one[1]), authority("Two", one, two[1])
    return ground.good(VICTIM, signer=first, above=[first[0], second[0], first[0], second[0]])


def below(ground: Ground, pair: forger.Pair, **lies: Any) -> bytes:
    return ground.good(VICTIM, signer=pair, above=[pair[0]], **lies)


def another_leaf(ground: Ground) -> forger.Pair:
    key = forger.new_key()
    return ground.ca.leaf(key.public_key(), ["x.example"]), key


LIES: dict[str, tuple[str, Callable[[Ground], bytes]]] = {
    "21 a key of the attacker's": ("key", lambda ground: ground.good(VICTIM, key=forger.new_key().public_key())),
    "22 a bank's name beside ours": ("names-extra", lambda ground: ground.good(VICTIM, domains=[VICTIM, "bank.example"])),
    "23b the wildcard in place of the name": ("names-wildcard", lambda ground: ground.good(VICTIM, domains=["*." + VICTIM.partition(".")[2]])),
    "23 a wildcard": ("names-wildcard", lambda ground: ground.good(VICTIM, domains=[VICTIM, "*.example.org"])),
    "24 somebody else's name alone": ("names-missing", lambda ground: ground.good(VICTIM, domains=["bank.example"])),
    "25 the chain in another order": ("broken-chain", lambda ground: ground.good(VICTIM, above=[ground.ca.root[0], ground.ca.intermediate[0]])),
    "25b the intermediate first": ("key", lambda ground: pem(ground.ca.intermediate[0]) + ground.good(VICTIM, above=[])),
    "26 a loop of authorities": ("untrusted", loop),
    "27 a thousand certificates": ("size", lambda ground: ground.good(VICTIM) * 500),
    "27b eleven certificates": ("count", lambda ground: ground.good(VICTIM, above=[ground.ca.intermediate[0]] * 10)),
    "28 a private key after the chain": ("grammar", lambda ground: ground.good(VICTIM) + key_pem()),
    "28b a private key before it": ("grammar", lambda ground: key_pem() + ground.good(VICTIM)),
    "29 a NUL in it": ("grammar", lambda ground: ground.good(VICTIM).replace(b"\n-----END", b"\0\n-----END", 1)),
    "29b a NUL in a name": ("names-extra", lambda ground: ground.good(VICTIM, domains=[VICTIM, VICTIM + "\0.bank.example"])),
    "30 carriage returns": ("grammar", lambda ground: ground.good(VICTIM).replace(b"\n", b"\r\n")),
    "31 nothing": ("grammar", lambda ground: b""),
    "31b configuration for nginx": ("grammar", lambda ground: ground.good(VICTIM) + b"ssl_certificate_key /etc/shadow;\n"),
    "32 ASN.1 of 10,000 levels": ("encoding", lambda ground: armour(forger.deep(10000)) + pem(ground.ca.intermediate[0])),
    "33 a length of an exabyte": ("encoding", lambda ground: armour(forger.header(0x30, 1 << 60) + b"\0" * 40000)),
    "33b a certificate of 60 KB": ("names-extra", lambda ground: ground.good(VICTIM, domains=[VICTIM, *(f"{n:040d}.example" for n in range(800))])),
    "34 BER in place of DER": ("encoding", lambda ground: armour(forger.long_length(forger.der_of(ground.good(VICTIM)))) + pem(ground.ca.intermediate[0])),
    "34b bytes after the certificate": ("encoding", lambda ground: armour(forger.der_of(ground.good(VICTIM)) + b"more") + pem(ground.ca.intermediate[0])),
    "35 outdated": ("expired", lambda ground: ground.good(VICTIM, begin=now() - HOUR, end=now() - HOUR / 2)),
    "36 a CA's certificate": ("ca-as-leaf", lambda ground: ground.good(VICTIM, ca=True)),
    "36b a leaf that may sign": ("ca-as-leaf", lambda ground: ground.good(VICTIM, usage=forger.usage("digital_signature", "key_cert_sign"))),
    "37 a root that nobody trusts": ("untrusted", lambda ground: below(ground, ground.ca.stranger)),
    "37b a root that calls itself ours": ("broken-chain", lambda ground: ground.good(VICTIM, signer=(ground.ca.intermediate[0], forger.new_key()))),
    "37c self-signed": ("untrusted", lambda ground: ground.good(VICTIM, signer=authority("", None), above=[])),
    "38 for clients": ("key-usage", lambda ground: ground.good(VICTIM, eku=[ExtendedKeyUsageOID.CLIENT_AUTH])),
    "38b below an authority for mail": ("key-usage", lambda ground: below(ground, authority("M", ground.ca.root, eku=[ExtendedKeyUsageOID.EMAIL_PROTECTION]))),
    "39 a leaf that signs another": ("broken-chain", lambda ground: below(ground, another_leaf(ground))),
    "40 the reply that another site got": ("key", lambda ground: ground.good(OTHER)),
    "41 terminal escapes in a name": ("names-extra", lambda ground: ground.good(VICTIM, domains=[VICTIM, "\x1b]0;owned\x07\x1b[2Jx.example"])),
}


@pytest.mark.parametrize("first", range(21, 42, 4))
def test_21_lies(ground: Ground, first: int) -> None:
    """Goal: have a chain installed that is not the one asked for; four numbers of LIES at a time."""
    with ground.stands():
        for lie, (reason, make) in LIES.items():
            if first <= int(lie[:2]) < first + 4:
                refuse(ground, make(ground), lie, reason)


def test_41_what_is_said_of_it_is_plain_text(ground: Ground) -> None:
    """Goal: write to an administrator's terminal through what status and log say about a reply."""
    ground.reply(VICTIM, ground.good(VICTIM, common="\x1b[2J\x07", domains=[VICTIM, "\x1b[2J\x07.example"]))
    with ground.stands():
        ground.install(code=os.EX_DATAERR)
        text = ground.run("certdrop-status", "--no-probe", VICTIM).text + stage.read("/var/log/certdrop/keeper.log")
        text += stage.read(f"{STATE}/keeper/{VICTIM}.json")
        assert "names-extra" in text and "\x1b" not in text and "\x07" not in text
        assert ground.status(VICTIM)["last_error"]


def test_42_cut_short(ground: Ground) -> None:
    """Goal: have half a reply taken, as a full disk or a killed issuer leaves it (the judge's unit tests cut at every 64 bytes)."""
    good = ground.good(VICTIM)
    with ground.stands():
        for end in range(0, len(good), 64 * 2):
            ground.reply(VICTIM, good[:end])
            assert ground.install().code == os.EX_DATAERR
        assert set(ground.events()) <= {"grammar", "untrusted"}


def test_43_not_yet_valid_is_healed_by_time(ground: Ground) -> None:
    """Goal: have a certificate of tomorrow installed today, or never: it waits, and is taken when its time has come."""
    with ground.stands(recovers=False):
        began = time.monotonic()
        ground.install()
        wait = 3 + 8 * (time.monotonic() - began)                         # a slow machine has more time to look before it is valid
        good = ground.good(VICTIM, begin=now() + datetime.timedelta(seconds=wait))
        ground.reply(VICTIM, good)
        assert ground.install().code == os.EX_DATAERR and ground.reason() == "not-yet-valid"
        assert ground.install().code == os.EX_DATAERR and len(ground.events()) == 1, "it was judged again before its time"
    live = ground.live(VICTIM)
    stage.wait_for(lambda: now() > x509.load_pem_x509_certificate(good).not_valid_before, wait + 10, "the certificate's time")
    ground.an_hour_passes()
    ground.install(code=0)
    assert ground.live(VICTIM) == live + 1 and ground.served(VICTIM) == ground.on_disk(VICTIM)


@pytest.fixture
def carried(ground: Ground) -> Any:
    """The victim keeps its key from one certificate to the next, so that an old chain has the right key."""
    path = f"/etc/certdrop/sites.d/{VICTIM}.toml"
    kept = stage.read(path)
    stage.write(path, kept + 'key_max_age = "180d"\n')
    ground.reply(VICTIM)
    ground.install(code=0)
    yield ground
    stage.write(path, kept)
    ground.reply(VICTIM)
    ground.install(code=0)


def test_44_yesterdays_chain_again(carried: Ground) -> None:
    """Goal: bring back a certificate that was live, whose revocation or end may be near."""
    ground = carried
    first = ground.reply(VICTIM, begin=now() - DAY)
    ground.install(code=0)
    assert x509.load_pem_x509_certificate(first).fingerprint(hashes.SHA256()).hex() == ground.on_disk(VICTIM)
    refuses(ground, first, "replay")
    long_ago = ground.good(VICTIM, begin=now() - 4 * DAY)
    refuses(ground, long_ago, "replay")


def test_44b_the_same_certificate_with_another_signature(carried: Ground) -> None:
    """Goal: bring back a certificate that was live under another fingerprint: (r, n - s) is as good an ECDSA signature as (r, s). So also by an older
    version's notes and files, which have nothing but the fingerprint."""
    ground = carried
    first = ground.reply(VICTIM)
    ground.install(code=0)
    other = pem(forger.with_other_signature(x509.load_pem_x509_certificate(first)), ground.ca.intermediate[0])
    assert forger.der_of(other) != forger.der_of(first)
    refuses(ground, other, "replay")
    notes = f"{STATE}/keeper/{VICTIM}.json"
    fingerprint = ground.on_disk(VICTIM)
    known = ground.notes(VICTIM)
    stage.write(notes, json.dumps({**known, "refused": {}, "spent": {fingerprint: known["spent"][fingerprint]}}))
    path = f"{STATE}/sites/{VICTIM}/{ground.live(VICTIM):04d}/cert.json"
    old = json.loads(stage.read(path))
    stage.write(path, json.dumps({key: old[key] for key in ("sha256", "not_before", "not_after")}))
    refuses(ground, other, "replay")


def test_44c_held_back_until_its_end_is_near(ground: Ground) -> None:
    """Goal: replace a certificate that is good for months by one that ends in a moment, so that an expired one is served."""
    refuses(ground, ground.good(VICTIM, begin=now() - HOUR, end=now() + HOUR / 4), "stale")


def test_44d_a_short_life_is_no_trap(ground: Ground) -> None:
    """Goal: have a short-lived certificate installed, and let it expire: where an older one lasts longer, that one is served again before."""
    live, shown = ground.live(VICTIM), ground.on_disk(VICTIM)
    ground.reply(VICTIM, end=now() + 2 * HOUR)
    ground.install(code=0)
    assert live < ground.live(VICTIM) and ground.served(VICTIM) != shown
    path = f"{STATE}/sites/{VICTIM}/{ground.live(VICTIM):04d}/cert.json"
    known = json.loads(stage.read(path))
    stage.write(path, json.dumps({**known, "not_after": int(time.time()) + 300}))       # as if time had passed
    ground.an_hour_passes()
    ground.install(code=0)
    assert (live, shown) == (ground.live(VICTIM), ground.served(VICTIM)) and live == ground.proven(VICTIM)
    ground.reply(VICTIM)
    ground.install(code=0)
    assert ground.live(VICTIM) > live and ground.served(VICTIM) == ground.on_disk(VICTIM)


def test_45_the_chain_from_before_a_rollback(carried: Ground) -> None:
    """Goal: bring back, with the key that is carried on, the certificate that the administrator went back from."""
    ground = carried
    bad = ground.reply(VICTIM)
    ground.install(code=0)
    live = ground.live(VICTIM)
    ground.run("certdrop", "rollback", VICTIM, code=0)
    assert ground.live(VICTIM) < live and ground.served(VICTIM) == ground.on_disk(VICTIM)
    refuses(ground, bad, "replay", "key")
    ground.reply(VICTIM)
    ground.install(code=0)
    refuses(ground, bad, "replay", "key")


def test_46_an_intermediate_too_weak_for_nginx(ground: Ground) -> None:
    """Goal: take nginx down with a chain that verifies, but that its TLS library refuses to load: a key of 1024 bits, a SHA-1 signature."""
    weak = authority("Weak", ground.ca.root, rsa.generate_private_key(65537, 1024))
    with ground.stands(recovers=False):
        ground.reply(VICTIM, below(ground, weak))
        done = ground.install()
        assert done.code in (os.EX_DATAERR, os.EX_TEMPFAIL) and ground.world.nginx.test()[0]
    ground.clear()
    ground.an_hour_passes()
    ground.reply(VICTIM)
    ground.install(code=0)
    assert ground.served(VICTIM) == ground.on_disk(VICTIM)


def test_47_notes_are_bounded(ground: Ground) -> None:
    """Goal: fill root's disk with refused replies."""
    with ground.stands():
        for _ in range(2):
            for data in (b"", b"\0", ground.good(VICTIM, ca=True), ground.good(OTHER), ground.good(VICTIM, domains=["x.example"])):
                ground.reply(VICTIM, data)
                ground.install(code=os.EX_DATAERR)
        kept = os.listdir(f"{STATE}/keeper/refused")
        assert len(kept) <= 20
        assert len(json.dumps(ground.notes(VICTIM))) < 8000

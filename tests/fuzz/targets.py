"""What is fuzzed: every reader of bytes that another principal (or the CA, or a service) writes. A target takes bytes and returns nothing;
whatever it raises, and whatever takes it longer than its time, is a finding.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
import urllib.parse
from typing import Callable

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "lib"), str(HERE.parent / "hostile")]

import forger  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat  # noqa: E402
from OpenSSL import crypto  # noqa: E402

from certdrop import events, spool  # noqa: E402
from certdrop.config import general, site  # noqa: E402
from certdrop.importer import examiner  # noqa: E402
from certdrop.importer import nginx as import_nginx  # noqa: E402
from certdrop.importer import pairs as import_pairs  # noqa: E402
from certdrop.issuer import ari, failure  # noqa: E402
from certdrop.judge import chain, served  # noqa: E402
from certdrop.keeper import children, judges  # noqa: E402
from certdrop.signer import policy, service  # noqa: E402
from certdrop.signer.jose import b64  # noqa: E402
from certdrop.status import report, table, webpage  # noqa: E402
from certdrop.watcher import alarm, evidence, verdict  # noqa: E402

NAMES = ["example.org", "www.example.org"]
NOW = time.time()


class Finding(Exception):
    """What must not be."""


def insist(claim: bool, text: object = "") -> None:
    if not claim:
        raise Finding(text)


# ---- the grammar of replies

def grammar(data: bytes) -> None:
    """Root's own reading of a reply: a reason, or blocks that answer to themselves and hold nothing but base64."""
    begin = time.process_time()
    try:
        blocks = spool.pem_blocks(data)
    except spool.Refused as refused:
        insist(refused.reason in ("grammar", "count"), refused.reason)
    else:
        insist(0 < len(blocks) <= spool.MAX_CERTIFICATES)
        for block in blocks:
            insist(spool.pem_blocks(block) == [block])
            insist(re.fullmatch(rb"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=]{1,64}\n)+-----END CERTIFICATE-----\n", block) is not None, block)
            base64.b64decode(b"".join(block.splitlines()[1:-1]))               # what the keeper does with the first one
        insist(b"".join(b"".join(blocks).split()) == b"".join(data.split()), "something was added or lost")
    insist(time.process_time() - begin < 2, "slow")


# ---- the judge

CA = forger.Forger()
KEY = forger.new_key().public_key()
SPKI = hashlib.sha256(KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
LEAF = CA.leaf(KEY, NAMES, usage=forger.usage("digital_signature"), common="example.org",
               extra=[(x509.AuthorityKeyIdentifier.from_issuer_public_key(CA.intermediate[1].public_key()), False)])
GOOD = [certificate.public_bytes(Encoding.DER) for certificate in (LEAF, CA.intermediate[0], CA.root[0])]
STORE = crypto.X509Store()
STORE.add_cert(crypto.X509.from_cryptography(CA.root[0]))
QUESTION: dict[str, object] = {"spki": SPKI, "names": NAMES, "spent": [], "earliest": 0, "until": 0}


def judged(data: bytes, only: set[str]) -> None:
    begin = time.process_time()
    try:
        blocks = spool.pem_blocks(data)
    except spool.Refused:
        return
    answer = chain.verdict(QUESTION, b"".join(blocks), STORE)
    if answer.startswith("refuse "):
        insist(answer[7:] in spool.REASONS and answer[7:] != "judge-failed", answer)
    else:
        insist(answer.split()[1] in only, "a leaf was accepted that the CA did not sign")
    insist(time.process_time() - begin < 5, "slow")


def reply(data: bytes) -> None:
    """A whole reply, as PEM."""
    judged(data, {hashlib.sha256(GOOD[0]).hexdigest()})


def certificate(data: bytes) -> None:
    """A leaf as DER, with good certificates above it."""
    judged(forger.armour(data) + forger.armour(GOOD[1]), {hashlib.sha256(GOOD[0]).hexdigest()})


def intermediate(data: bytes) -> None:
    """What stands above a good leaf, as DER."""
    judged(forger.armour(GOOD[0]) + forger.armour(data), {hashlib.sha256(GOOD[0]).hexdigest()})


class Resigned:
    """Signs whatever stands in a certificate: so that the fuzzer gets past the signature."""

    def __init__(self) -> None:
        self.key = CA.intermediate[1]

    def __call__(self, tbs: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        algorithm = bytes.fromhex("300a06082a8648ce3d040302")
        signature = self.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
        return forger.tlv(0x30, tbs, algorithm, forger.tlv(3, b"\0" + signature))


RESIGN = Resigned()
TBS = LEAF.tbs_certificate_bytes


def signed(data: bytes) -> None:
    """A certificate's inside, signed by the authority: what is accepted must have the key and the names, looked at by other means."""
    der = RESIGN(data)
    pem = forger.armour(der) + forger.armour(GOOD[1])
    answer = chain.verdict(QUESTION, b"".join(spool.pem_blocks(pem)), STORE)
    if answer.startswith("refuse "):
        insist(answer[7:] in spool.REASONS and answer[7:] != "judge-failed", answer)
        return
    insist(answer.split()[1] == hashlib.sha256(der).hexdigest())
    shown = crypto.load_certificate(crypto.FILETYPE_ASN1, der)                 # OpenSSL's eyes, not cryptography's
    public = crypto.dump_publickey(crypto.FILETYPE_ASN1, shown.get_pubkey())
    insist(hashlib.sha256(public).hexdigest() == SPKI, "another key")
    text = crypto.dump_certificate(crypto.FILETYPE_TEXT, shown).decode("utf-8", "replace")
    names = re.findall(r"X509v3 Subject Alternative Name: *(?:critical)?\n *(.*)\n", text)
    insist(len(names) == 1 and {part.strip().lower() for part in names.pop().split(",")} == {f"DNS:{name}".lower() for name in NAMES}, "other names")
    insist(not shown.has_expired(), "expired")


def answer(data: bytes) -> None:
    """What a lying judge answers."""
    before, children.answers = children.answers, lambda *more: (re.fullmatch(more[2], data, re.DOTALL) for _ in range(1))
    try:
        found = next(judges.verdicts(("roots",), [({}, b"")]))
        if isinstance(found, spool.Refused):
            insist(found.reason in spool.REASONS)
        else:
            insist(re.fullmatch("[0-9a-f]{64}", found.sha256) is not None and found.not_before <= time.time() < found.not_after)
            json.dumps(events.stamp(found.not_after))
        seen = next(judges.looks(("roots",), [{}], 0.0))
        insist(seen.state in ("shown", "untrusted", "other") and len(seen.places) < 1 << 10)
        for (address, port, preface), leaf in seen.places.items():
            insist(address.isascii() and 0 <= port < 100000 and preface.isascii() and re.fullmatch("nothing|[0-9a-f]{64}", leaf) is not None)
    except OSError:                                            # it cannot load what it needs
        insist(data.startswith(b"lacks "))
    finally:
        children.answers = before


# ---- what services say before a handshake

class Connection:
    """A socket that says what it was given, in small parts."""

    def __init__(self, data: bytes) -> None:
        self.data, self.calls = data, 0

    def recv(self, size: int) -> bytes:
        self.calls += 1
        insist(self.calls < 5000, "it listens without end")
        step = min(size, 1 + (self.data[0] if self.data else 0))
        found, self.data = self.data[:step], self.data[step:]
        return found


def greeting(data: bytes) -> None:
    """The dialogue before STARTTLS."""
    for expected in (b"220 ", b"* OK", b"+OK", b"a OK"):
        served._hears(Connection(data), expected)              # type: ignore[arg-type]


# ---- the issuer's state, as status, watcher and check read it

ROOM = tempfile.mkdtemp(prefix="certdrop-fuzz-")
MAKER = os.getpid()
atexit.register(lambda: os.getpid() == MAKER and shutil.rmtree(ROOM, True))     # children that were forked leave it alone


REVOKED = json.dumps({"revoke": {"0001": {"reason": "superseded", "since": 1, "not_after": 1 << 40}, "0009": {"reason": "x"}, "x": 1}})


def _stage() -> None:
    for path in ("etc/sites.d", "var/issuer", "var/keeper", "var/live", "var/proven", "var/watcher", "var/sites/a.example/0001", "var/sites/a.example/0002"):
        os.makedirs(f"{ROOM}/{path}")
    pathlib.Path(f"{ROOM}/etc/sites.d/a.example.toml").write_text('domains = ["a.example"]\n')
    place = f"{ROOM}/var/sites/a.example"
    for number in ("0001", "0002"):
        known = {"key": "ecdsa-p256", "key_created": 1, "spki_sha256": "a" * 64, "domains": ["a.example"]}
        pathlib.Path(f"{place}/{number}/request.json").write_text(json.dumps(known))
    pem = forger.pem(LEAF)
    for entry, data in {"cert.pem": pem, "chain.pem": b"", "fullchain.pem": pem, "nginx.conf": b"", "privkey.pem": b"", "cert.json": b"{}"}.items():
        pathlib.Path(f"{place}/0001/{entry}").write_bytes(data)
    os.symlink("../sites/a.example/0001", f"{ROOM}/var/live/a.example")


def _read_along(folder: str, entry: str, data: bytes) -> None:
    site.ETC, site.STATE = f"{ROOM}/etc", f"{ROOM}/var"
    path = f"{ROOM}/var/{folder}/{entry}"
    with open(path, "wb") as stream:
        os.fchmod(stream.fileno(), 0o644)
        stream.write(data)
    begin = time.process_time()
    reader = evidence.Reader()
    reader.issuer = reader.watch = os.getuid()
    found = reader.site("a.example")
    judgement = verdict.judge(found, None, NOW, verdict.Thresholds())
    runs = reader.last_run("issuer"), reader.last_run("keeper")
    said = [report.as_json([judgement], [], []), report.as_prometheus([judgement], {"issuer": runs[0], "keeper": runs[1]}, [], [], False, NOW),
            report.as_nagios([judgement], 0, [], [runs[0].stopped, runs[1].asked], reader.watcher().failed), *table.render([judgement], NOW, 80, False),
            *table.page(judgement, NOW), webpage.render(webpage.Page("h", [judgement], {"a.example": reader.past("a.example")}, reader.orders(), now=NOW)),
            table.summary([judgement], *runs, reader.watcher(), NOW)]
    json.loads(said[0])
    for problem in [*alarm.of_site(judgement, NOW), *alarm.of_host(runs[1], runs[0], [judgement], [], NOW)]:
        said += [str(value) for value in vars(problem).values()]
    for text in said:
        insist(all(c.isprintable() or c == "\n" for c in text), text)
        insist(len(text) < 20000, "endless")
    insist(time.process_time() - begin < 3, "slow")
    os.unlink(path)


def ledger(data: bytes) -> None:
    """The issuer's ledger of a site."""
    _read_along("issuer", "a.example.json", data)


def revocations(data: bytes) -> None:
    """What the issuer says of the certificates that root wants revoked."""
    pathlib.Path(f"{ROOM}/var/keeper/a.example.json").write_text(REVOKED)
    _read_along("issuer", "revocations.json", data)


def stamp(data: bytes) -> None:
    """The issuer's stamp of its last run."""
    _read_along("issuer", "last-run", data)


def mouth(data: bytes) -> None:
    """The watcher's own state."""
    _read_along("watcher", "state.json", data)


def notes(data: bytes) -> None:
    """Root's notes, as a full disk may have left them."""
    _read_along("keeper", "a.example.json", data)


# ---- the CA

def window(data: bytes) -> None:
    """An answer about renewal."""
    try:
        found = ari.read(data, 0.0)
        insist(found.start < found.end and abs(found.end) < 1e12 and found.url == events.clean(found.url))
    except failure.Failure as refused:
        insist(refused.text == events.clean(refused.text, 5000))


def problem(data: bytes) -> None:
    """A problem document."""
    for status in (400, 403, 429, 500):
        found = failure.from_answer("https://ca.example/x", status, data, data[:20].decode("latin-1"))
        insist(found.text == events.clean(found.text, 5000) and found.retry_after >= 0, found.text)


# ---- what other clients left

LEAF_KEY = forger.new_key()
PAIR = [LEAF_KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        forger.pem(CA.leaf(LEAF_KEY.public_key(), NAMES), CA.intermediate[0])]


def _examined(task: bytes, *parts: bytes) -> None:
    """Whatever it is, the answer is one line of a form, and tells why not."""
    store = crypto.X509Store()                             # its time is set for expired chains
    store.add_cert(crypto.X509.from_cryptography(CA.root[0]))
    found = examiner.answer(task, list(parts), store)
    insist(import_pairs._PAIR.fullmatch(found) or import_pairs._ACCOUNT.fullmatch(found) or found.removeprefix("no ") in import_pairs.WHY, found)


def imported_key(data: bytes) -> None:
    """A private key."""
    _examined(b"pair", data, PAIR[1])
    _examined(b"account", data)


def imported_chain(data: bytes) -> None:
    """The certificates with it."""
    try:
        _examined(b"pair", PAIR[0], b"".join(import_pairs.pem_blocks(data)))
    except spool.Refused as refused:
        insist(refused.reason in import_pairs.WHY, refused.reason)


def moved_blocks(data: bytes) -> None:
    """nginx's configuration: what the diff makes of it is what it was, but for what was moved."""
    begin, text = time.process_time(), data.decode("latin-1")
    nginx = import_nginx.Nginx([import_nginx.Source("/etc/nginx/nginx.conf", text)])
    nginx.diff(lambda path: "a.example" if path == "/old/a.pem" else "", {"a.example": ["a.example"]})
    moved = import_nginx.apply(text, nginx.edits["/etc/nginx/nginx.conf"])
    insist(import_nginx.apply(text, []) == text and len(moved) <= len(text) + 300 * (1 + text.count("s")), moved)
    insist(time.process_time() - begin < 5, "slow")


# ---- the signer

ACME, POSTED = "https://ca.example.org:14000", "a.example@0002.csr"
_DESK: list[service.Service] = []


def _desk() -> service.Service:
    """The signer's, with one request of root's; made when it is first needed."""
    if not _DESK:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES]), False)
        config = general.Config()
        config.directory, config.contact = ACME + "/dir", ["a@example.org"]
        for path in ("var/account", "spool/requests"):
            os.makedirs(f"{ROOM}/{path}")
        pathlib.Path(f"{ROOM}/spool/requests/{POSTED}").write_bytes(builder.sign(forger.new_key(), hashes.SHA256()).public_bytes(Encoding.PEM))
        site.STATE, spool.SPOOL = f"{ROOM}/var", f"{ROOM}/spool"
        _DESK.append(service.Service(config, frozenset()))
    spool.SPOOL = f"{ROOM}/spool"
    return _DESK[0]


def _all_pairs(text: str) -> list[tuple[str, object]]:
    """Every key and value that any parser could see in an object, whichever of two it believes, and however it spells."""
    found: list[tuple[str, object]] = []
    json.loads(text or "{}", object_pairs_hook=lambda pairs: found.extend((key.casefold(), value) for key, value in pairs) or dict(pairs))
    return found


def _is_innocent(text: bytes) -> None:
    """What was signed, read as generously as can be, asks for nothing but what root posted."""
    first, _, second = text.partition(b".")
    header, payload = (base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)).decode() for part in (first, second))
    head = dict(_all_pairs(header))
    for key in ("url", "kid") if "kid" in head else ("url",):
        place = urllib.parse.urlsplit(str(head[key]))
        insist((place.scheme, place.hostname, place.port, place.username) == ("https", "ca.example.org", 14000, None), head)
    insist(head["alg"] == "RS256" and bool(head["nonce"]), head)
    der = x509.load_pem_x509_csr(pathlib.Path(f"{ROOM}/spool/requests/{POSTED}").read_bytes()).public_bytes(Encoding.DER)
    pairs, names = _all_pairs(payload), set()
    for key, value in pairs:
        insist(key in ("csr", "identifiers", "type", "value", "profile", "replaces", "contact", "onlyreturnexisting", "termsofserviceagreed"), pairs)
        insist(key != "csr" or value == b64(der), pairs)
        insist(key != "contact" or value == ["mailto:a@example.org"], pairs)
        names |= {value} if key == "value" else set()
    insist(any(key == "identifiers" for key, _ in pairs) == bool(names) and names in (set(), set(NAMES)), pairs)


def question(data: bytes) -> None:
    """A message to the signer, as it comes from the socket."""
    said, url = _desk().answer(data)
    insist(said[:1] in (b"+", b"-") and len(said) < 70000 and len(events.clean(url)) <= events.LIMIT)
    if said[:1] == b"+" and data[:1] == b"S":
        _is_innocent(data.partition(b"\n")[2])
    insist(said[:1] == b"-" or data[:1] in b"SKE", data)


def request(data: bytes) -> None:
    """A header and a payload, a line each, in the wrapping that the signer wants: so that the fuzzer gets past it."""
    header, _, payload = data.partition(b"\n")
    text = f"{b64(header)}.{b64(payload)}".encode()
    try:
        _desk().policy.key_for(POSTED, text)
    except policy.Refused:
        return
    _is_innocent(text)


TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in (
    grammar, reply, certificate, intermediate, signed, answer, greeting, ledger, revocations, stamp, mouth, notes, window, problem,
    imported_key, imported_chain, moved_blocks, question, request)}

_STATE = [b'{"class": "validation", "last_error": "x", "count": 3, "since": 1700000000, "next_try": 1900000000, "renew_at": 1900000000,'
          b' "renew_why": "window"}',
          b'{"count": 1e308, "since": -1, "next_try": NaN, "renew_at": Infinity, "last_error": "\\u001b[2J\\ud800"}', b"[" * 5000,
          b'{"a":' * 5000, b"1" * 60000, b"{}",
          b'{"time": 1, "exit": 75}', b'{"told": {"\\u001b": 1e300}, "ran": 5, "mailed": true, "failed": "\\u202e"}',
          b'{"refused": {"number": 1, "reason": "key", "since": 1, "tries": 1, "next_try": 2},'
          b' "install": {"number": 1, "state": "issued-not-served", "error": "x"}}']
_HEADER = b'{"alg": "RS256", "nonce": "n0nce-_", "url": "https://ca.example.org:14000/x", "kid": "https://ca.example.org:14000/account/1"}'
_ORDER = (b'{"identifiers": [{"type": "dns", "value": "example.org"}, {"type": "dns", "value": "www.example.org"}],'
          b' "profile": "x", "replaces": "a.b"}')
SEEDS: dict[str, list[bytes]] = {
    "grammar": [forger.pem(LEAF, CA.intermediate[0]), b"-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"],
    "reply": [forger.pem(LEAF, CA.intermediate[0]), forger.pem(LEAF, CA.intermediate[0], CA.root[0])],
    "certificate": GOOD, "intermediate": GOOD[1:], "signed": [TBS, CA.intermediate[0].tbs_certificate_bytes],
    "answer": [b"accept " + b"a" * 64 + b" 1 9999999999", b"refuse key", b"nobody", b"a" * 64],
    "greeting": [b"220 ready\r\n", b"250-x\r\n250 y\r\n", b"* OK\r\n"],
    "revocations": [*_STATE, *(b'{"a.example@0001.revoke": ' + text + b"}" for text in (
        b'{"done": 1800000000}', b'{"done": -1, "count": 1e99}', _STATE[0], b"1"))],
    "ledger": _STATE, "stamp": _STATE, "mouth": _STATE, "notes": _STATE,
    "window": [b'{"suggestedWindow": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00.5+01:00"}, "explanationURL": "https://x"}'],
    "problem": [b'{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "x", "subproblems": [{"identifier": {"value": "a"}, "detail": "y"}]}'],
    "question": [b"K", b"N", b"X", b"D", b"E" + ACME.encode() + b"/new", b"C" + ACME.encode() + b"\n" + ACME.encode(),
                 b"S" + POSTED.encode() + b"\n" + b64(_HEADER).encode() + b"." + b64(_ORDER).encode(), b"S\n" + b64(_HEADER).encode() + b"."],
    "request": [_HEADER + b"\n" + _ORDER, _HEADER + b'\n{"identifiers": [{"type": "dns", "value": "evil.example"}], ' + _ORDER[1:],
                _HEADER + b"\n" + _ORDER[:-1] + b', "Identifiers": [{"type": "dns", "value": "evil.example"}]}',
                b'{"url": "https://evil.example/x", ' + _HEADER[1:] + b"\n", _HEADER[:-1] + b', "URL": "https://evil.example/x"}\n',
                _HEADER.replace(b"://ca.", b"://evil@ca.") + b"\n" + _ORDER,
                _HEADER + b"\n", _HEADER + b"\n{}", _HEADER + b'\n{"csr": "' + b64(GOOD[0]).encode() + b'"}',
                _HEADER + b'\n{"status": "deactivated"}', _HEADER + b'\n{"contact": ["mailto:a@example.org"]}',
                _HEADER + b'\n{"certificate": "AA", "reason": 1}', _HEADER.replace(b"kid", b"jwk") + b'\n{"onlyReturnExisting": true}'],
    "imported_key": [PAIR[0], b'{"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "Aw", "p": "Aw", "q": "Aw", "dp": "Aw", "dq": "Aw", "qi": "Aw"}',
                     b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + PAIR[0]],
    "imported_chain": [PAIR[1], b"subject=x\n" + PAIR[1].replace(b"\n", b"\r\n")],
    "moved_blocks": [b"http { server { listen 80; server_name a.example; return 301 https://x; } server { listen 443 ssl; include x;"
                     b" ssl_certificate /old/a.pem; ssl_certificate_key /old/a.key; # managed by Certbot\n"
                     b" location /.well-known/acme-challenge/ { root /x; } } }"],
}

_stage()

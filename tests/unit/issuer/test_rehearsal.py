"""What a dry run is told of a reply: the judge's own verdict on it, with this site's question, and by which roots it goes."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import crypto

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "hostile"))

import forger  # noqa: E402
from forger import DAY, HOUR, Forger, armour, now, pem, usage  # noqa: E402

from certdrop import spool  # noqa: E402
from certdrop.config import general, site  # noqa: E402
from certdrop.issuer import ports, reply  # noqa: E402
from certdrop.issuer.due import Certificate  # noqa: E402
from certdrop.issuer.rehearsal import Judge  # noqa: E402
from certdrop.judge import chain  # noqa: E402

CA = Forger()
CSR = reply.throwaway_request(["a.example.org"])


def judge(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, roots: bytes = pem(CA.root[0]), staging: str = "", own: bytes = b"") -> Judge:
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    config = general.Config()
    config.trust_roots, config.directory, config.staging = str(tmp_path / "roots.pem"), "https://ca.example/dir", staging
    (tmp_path / "roots.pem").write_bytes(roots)
    if own:
        (tmp_path / "roots.d").mkdir()
        (tmp_path / "roots.d" / "staging.example.pem").write_bytes(own)
    return Judge(config)


def ask(found: Judge, reply: bytes, live: Certificate | None = None, csr: bytes = CSR) -> str:
    loaded = x509.load_pem_x509_csr(csr)
    return found.refusal(reply, loaded, ports.names_of(loaded), live)


@pytest.mark.parametrize("reply, reason", [
    (CA.chain(CSR), ""), (CA.chain(CSR, usage=usage("key_agreement")), "key-usage"), (CA.chain(CSR, key=forger.new_key().public_key()), "key"),
    (CA.chain(CSR, above=[]), "untrusted"), (CA.chain(CSR, end=now() - HOUR), "expired"), (b"nonsense", "grammar"), (CA.chain(CSR) * 6, "count"),
    (armour(b"x" * 60000), "size"), (armour(b"x"), "encoding")])
def test_each_reason(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, reply: bytes, reason: str) -> None:
    """That of the safe read, of the grammar, and of the judge, as root would have it."""
    assert ask(judge(tmp_path, monkeypatch), reply) == reason


def test_what_it_would_replace(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is part of the question: what begins long before it is a replay, what ends before it and soon is stale; a clock that was ahead then does not count."""
    found, day, moment = judge(tmp_path, monkeypatch), DAY.total_seconds(), ports.time.time()
    live = Certificate("x", moment - 9 * day, moment + 30 * day)
    old = CA.chain(CSR, begin=now() - 20 * DAY)
    assert ask(found, CA.chain(CSR), live) == "" and ask(found, old, live) == "replay" and ask(found, old) == ""
    assert ask(found, CA.chain(CSR), Certificate("x", moment + 400 * day, moment + 490 * day)) == ""
    assert ask(found, CA.chain(CSR, begin=now() - 9 * DAY, end=now() + DAY), live) == "stale"


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----END CERTIFICATE-----", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_of_roots_that_is_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Root's judge would not begin; neither does this one."""
    with pytest.raises((ValueError, LookupError, crypto.Error)):
        chain.trusted(text)
    assert ask(judge(tmp_path, monkeypatch, text), CA.chain(CSR)) == "judge-failed"


def test_roots_amid_other_text() -> None:
    """As bundles have them."""
    store: Any = chain.trusted(b"# a root\n" + pem(CA.root[0]) + b"\nand another\n" + pem(CA.stranger[0]) + b"the end")
    question = {"spki": "", "names": [], "spent": [], "earliest": 0}
    assert chain.verdict(question, CA.chain(CSR), store) == "refuse key"
    with pytest.raises(spool.Refused, match="key"):
        chain.examine(question, CA.chain(CSR), store, 0.0)


@pytest.mark.parametrize("own, knows_none, reason", [(b"", True, "untrusted"), (pem(CA.stranger[0]), False, "untrusted"), (pem(CA.root[0]), False, "")])
def test_another_directorys_roots(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, own: bytes, knows_none: bool, reason: str) -> None:
    """Staging's own in roots.d stand beside trust_roots; where there are none, that one refusal says nothing of a real reply."""
    found = judge(tmp_path, monkeypatch, pem(forger.authority("Another")[0]), "https://staging.example/dir", own)
    assert (found.knows_no_root, ask(found, CA.chain(CSR))) == (knows_none, reason)


def test_addresses_in_a_throwaway_request() -> None:
    """Are addresses (RFC 8738)."""
    found = x509.load_pem_x509_csr(reply.throwaway_request(["192.0.2.1", "2001:db8::1", "a.example.org"]))
    kinds = [type(name) for name in found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
    assert kinds == [x509.IPAddress, x509.IPAddress, x509.DNSName]

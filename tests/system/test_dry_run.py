"""A dry run says "issued" only of what root's judge would take, and what it says of the rest is what the keeper says in a real run."""

from __future__ import annotations

import base64
import importlib.util
import os
import pathlib
import re
from typing import Any, Callable, Iterator

import pytest
from between import HOST, PORT, Between, Said, jws
from conftest import CONFIG, SPOOL, Host
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from renewal import gone_afterwards

import world as stage

__all__ = ["gone_afterwards"]


def _forger() -> Any:
    """tests/hostile/forger.py, which lies in every way; the one here is another."""
    spec = importlib.util.spec_from_file_location("hostile_forger", pathlib.Path(__file__).resolve().parents[1] / "hostile" / "forger.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


forger = _forger()


class Liar:
    """A CA whose certificates are a forger's."""

    def __init__(self, host: Host) -> None:
        self.forger, self.csr = forger.Forger(), b""
        self.lie: Callable[[bytes], bytes] = self.forger.chain
        self.roots = stage.write("/tmp/liar-roots.pem", stage.read(host.world.pebble.root()) + forger.pem(self.forger.root[0]).decode())
        self.between = Between(host.world.pebble)
        self.between.rewrite = self._rewrite
        host.configure(directory=f'"https://{HOST}:{PORT}/dir"', trust_roots=f'"{self.roots}"')

    def _rewrite(self, path: str, body: bytes, said: Said) -> Said:
        payload = jws(body)[1] if body else {}
        if isinstance(payload, dict) and "csr" in payload:
            der = base64.urlsafe_b64decode(payload["csr"] + "==")
            self.csr = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
        if said[2].startswith(b"-----BEGIN CERTIFICATE"):
            return said[0], said[1], self.lie(self.csr)
        return said


@pytest.fixture
def liar(host: Host) -> Iterator[Liar]:
    made = Liar(host)
    yield made
    made.between.close()


@pytest.fixture
def name(host: Host, liar: Liar) -> str:
    return host.waiting()


def dry_run(host: Host, name: str, code: int) -> str:
    """What a dry run says of a site; nothing of it is kept."""
    text = host.run("certdrop-issue", "--verbose", "--dry-run", name, code=code).text
    assert not os.path.exists(f"{SPOOL}/replies/{name}@{host.next(name):04d}.pem")
    assert "Traceback" not in text and "Warning" not in text, text
    return text


DAYS = forger.DAY
LIES: dict[str, tuple[str, Callable[[Any, bytes], bytes]]] = {
    "an unfit use of the key": ("key-usage", lambda one, csr: one.chain(csr, usage=forger.usage("key_encipherment"))),
    "for clients": ("key-usage", lambda one, csr: one.chain(csr, eku=[ExtendedKeyUsageOID.CLIENT_AUTH])),
    "a CA": ("ca-as-leaf", lambda one, csr: one.chain(csr, ca=True)),
    "another name beside it": ("names-extra", lambda one, csr: one.chain(csr, sans=[*sans(csr), x509.DNSName("more.example.org")])),
    "another name": ("names-missing", lambda one, csr: one.chain(csr, domains=["more.example.org"])),
    "a root that nobody trusts": ("untrusted", lambda one, csr: one.chain(csr, signer=one.stranger, above=[])),
    "a gap in the chain": ("broken-chain", lambda one, csr: one.chain(csr, above=[one.stranger[0]])),
    "tomorrow's": ("not-yet-valid", lambda one, csr: one.chain(csr, begin=forger.now() + DAYS)),
    "yesterday's": ("expired", lambda one, csr: one.chain(csr, begin=forger.now() - 9 * DAYS, end=forger.now() - DAYS)),
    "something after it": ("encoding", lambda one, csr: forger.armour(forger.der_of(one.chain(csr)) + b"x") + forger.pem(one.intermediate[0])),
}


def sans(csr: bytes) -> list[Any]:
    return list(x509.load_pem_x509_csr(csr).extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


@pytest.mark.parametrize("lie", LIES)
def test_what_root_would_refuse(host: Host, liar: Liar, name: str, lie: str) -> None:
    """Is not called issued; the reason is the one that the keeper then gives."""
    reason, make = LIES[lie]
    liar.lie = lambda csr: make(liar.forger, csr)
    text = dry_run(host, name, os.EX_DATAERR)
    assert "issued by" not in text, text
    said = host.run("certdrop", "renew", name, code=os.EX_DATAERR).text
    if "no certificate chain" in said:          # the issuer's own words, of what it cannot even read
        assert "what the CA sent is no certificate chain" in text, (text, said)
        return
    where = f": it leads to no root in {liar.roots}" if reason == "untrusted" else ""
    assert f"{name}: dry run: the reply would be refused ({reason}){where}; nothing was changed; certdrop-spool(5) explains the reason" in text, text
    assert re.search(rf"the reply for request [0-9]+ is refused \({reason}\)", said), said


def test_what_root_takes(host: Host, liar: Liar, name: str) -> None:
    """An honest chain of the same CA is called issued, and then is."""
    assert f"dry run: issued by Forged Intermediate for {name}, with" in dry_run(host, name, 0)
    assert "installed, and served" in host.run("certdrop", "renew", name, code=0).text


def test_roots_that_are_not_there(host: Host, liar: Liar, name: str) -> None:
    """Root's judge could not begin; that is what a dry run says."""
    host.configure(directory=f'"https://{HOST}:{PORT}/dir"', trust_roots='"/etc/ssl/certs/nowhere.pem"')
    assert "the reply would be refused (judge-failed)" in dry_run(host, name, os.EX_TEMPFAIL)


def test_stagings_own_roots(host: Host, liar: Liar, name: str) -> None:
    """A dry run that asks another directory than a real one gets certificates whose root no reply of the real one has: that alone is no refusal, and is
    said; with that directory's roots in roots.d, they are looked at."""
    text = stage.read(CONFIG)
    pebble = host.world.pebble
    host.configure(staging=f'"https://{HOST}:{PORT}/dir"', trust_roots=f'"{pebble.root()}"')
    said = dry_run(host, name, 0)
    assert "issued by Forged Intermediate" in said and "the roots of the directory that was asked are not among trust_roots" in said, said
    honest = liar.forger.chain
    liar.lie = lambda csr: honest(csr, usage=forger.usage("key_encipherment"))
    assert "the reply would be refused (key-usage)" in dry_run(host, name, os.EX_DATAERR)
    own = f"/etc/certdrop/roots.d/{HOST}:{PORT}.pem"
    stage.write(own, forger.pem(liar.forger.stranger[0]).decode())
    try:
        liar.lie = honest
        assert "the reply would be refused (untrusted)" in dry_run(host, name, os.EX_DATAERR)
        stage.write(own, forger.pem(liar.forger.root[0]).decode())
        said = dry_run(host, name, 0)
        assert "issued by" in said and "trust_roots" not in said
    finally:
        os.unlink(own)
        stage.write(CONFIG, text)


def test_an_address(host: Host) -> None:
    """Is asked for as what it is."""
    host.run("certdrop", "add", "127.0.0.2", "--no-issue", code=0)
    host.world.nginx.add_site("127.0.0.2", host.run("certdrop-nginx", "127.0.0.2", code=0).text)
    host.world.nginx.reload()
    assert "dry run: issued by" in dry_run(host, "127.0.0.2", 0)

"""Diffie-Hellman parameters: the groups are those of RFC 7919, and of a child's words only two numbers are taken."""

from __future__ import annotations

import subprocess

import pytest

from certdrop.admin import dhparam
from certdrop.by_hand import Refused
from certdrop.config import site


@pytest.mark.parametrize("bits", dhparam.OFFSETS)
def test_the_groups_are_those_that_openssl_has(bits: int) -> None:
    """The computed prime is that of OpenSSL's built-in group of the name."""
    from cryptography.hazmat.primitives.serialization import load_pem_parameters
    named = subprocess.run(["openssl", "genpkey", "-algorithm", "DH", "-pkeyopt", f"group:ffdhe{bits}", "-text"], capture_output=True, check=True).stdout
    numbers = load_pem_parameters(dhparam.pem(dhparam.ffdhe(bits))).parameter_numbers()          # type: ignore[attr-defined]
    assert (numbers.p, numbers.g, numbers.p.bit_length()) == (dhparam.ffdhe(bits), 2, bits)
    assert f"GROUP: ffdhe{bits}".encode() in named
    text = subprocess.run(["openssl", "dhparam", "-noout", "-text"], input=dhparam.pem(numbers.p), capture_output=True, check=True).stdout
    assert f"ffdhe{bits}".encode() in text


def test_what_openssl_prints_is_understood() -> None:
    """With noise around it, and with the length of a private value that some releases add."""
    prime = dhparam.ffdhe(2048)
    assert dhparam.prime_of(b"noise\n" + dhparam.pem(prime) + b"more\n", 2048) == prime


@pytest.mark.parametrize("text", [b"", b"-----BEGIN DH PARAMETERS-----\n-----END DH PARAMETERS-----\n", dhparam.pem(dhparam.ffdhe(3072)),
                                  dhparam.pem(dhparam.ffdhe(2048) - 1), dhparam.pem(dhparam.ffdhe(2048) >> 8)])
def test_what_is_no_group_of_that_size_is_refused(text: bytes) -> None:
    """Nothing, an even number, another length."""
    with pytest.raises(Refused):
        dhparam.prime_of(text, 2048)


def test_a_group_weaker_than_a_key_is_warned_of(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each site whose RSA key is longer; not for ECDSA."""
    (tmp_path / "sites.d").mkdir()
    for name, key in (("a.test", "rsa-4096"), ("b.test", "rsa-2048"), ("c.test", "ecdsa-p384")):
        (tmp_path / "sites.d" / f"{name}.toml").write_text(f'domains = ["{name}"]\nkey = "{key}"\n')
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    assert [line.split()[1] for line in dhparam.warnings(2048)] == ["a.test:"]
    assert dhparam.warnings(4096) == []


@pytest.mark.parametrize("own, age, due", [(True, 0, False), (True, dhparam.MAX_AGE, True), (True, dhparam.MAX_AGE - 1, False), (True, -30000, True),
                                           (False, dhparam.MAX_AGE, False), (False, -30000, False), (None, 0, False)])
def test_when_a_group_of_our_own_is_due(monkeypatch: pytest.MonkeyPatch, own: object, age: int, due: bool) -> None:
    """At its age; and where a clock that was ahead noted when it was made, which would else be never."""
    monkeypatch.setattr(dhparam, "known", lambda: {"own": own, "made": int(dhparam.time.time()) - age * 86400})
    assert dhparam.is_due() == due

"""Renewal information (RFC 9773): the certificate's identifier, and what of an answer is believed."""

from __future__ import annotations

import datetime
import types

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certdrop.config import site
from certdrop.issuer import ari, due, ledger, network
from certdrop.issuer.failure import Failure


def made(serial: int, key: bytes | None) -> bytes:
    """A certificate of this serial number and authority key identifier, PEM."""
    secret = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime(2026, 1, 1)
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(secret.public_key()).serial_number(serial)
    builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=90))
    if key is not None:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(key, None, None), False)
    return builder.sign(secret, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_the_identifier_of_the_rfc():
    """The example of RFC 9773 section 4.1: a serial number whose first bit is set has a leading zero."""
    key = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    assert ari.identifier(made(0x87654321, key)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
    assert ari.identifier(made(0x01, key)).endswith(".AQ")


def test_a_certificate_without_authority_has_none():
    """Then the CA has nothing to say about it."""
    with pytest.raises(ari.Absent):
        ari.identifier(made(5, None))


def test_the_identifier_is_noted(tmp_path, monkeypatch):
    """It is found out once for each certificate: afterwards nobody reads it. What is noted of another one, or is none, does not count."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    (tmp_path / "issuer").mkdir()
    (tmp_path / "cert.pem").write_bytes(made(0x87654321, b"12345678"))
    asked = types.SimpleNamespace(ledger=ledger.Ledger("a.test"), certificate=due.Certificate("one", 0.0, 1.0),
                                  standing=types.SimpleNamespace(place=str(tmp_path)))
    first = network._identifier(asked)
    asked.ledger.save()
    (tmp_path / "cert.pem").unlink()
    asked.ledger = ledger.Ledger("a.test")
    assert network._identifier(asked) == first == ari.identifier(made(0x87654321, b"12345678"))
    for certificate, noted in (("another", first), ("one", "../../directory?"), ("one", "")):
        asked.certificate, asked.ledger.renewal_id = due.Certificate(certificate, 0.0, 1.0), noted
        with pytest.raises(FileNotFoundError):
            network._identifier(asked)


def test_a_window_is_read():
    """With fractions, offsets and an explanation."""
    body = b'{"suggestedWindow": {"start": "2026-01-02T04:00:00.123456789Z", "end": "2026-01-03T04:00:00+01:30"}, "explanationURL": "https://a/\\u001b[2J"}'
    window = ari.read(body, 21600.0)
    assert (window.start, window.end, window.retry_after) == (1767326400.0, 1767407400.0, 21600.0)
    assert "\x1b" not in window.url


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100000, b'{"suggestedWindow": 3}', b'{"suggestedWindow": {"start": 1, "end": 2}}',
    b'{"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-02T00:00:00Z"}}',
    b'{"suggestedWindow": {"start": "2026-01-02T00:00:00", "end": "2026-01-03T00:00:00"}}',
    b'{"suggestedWindow": {"start": "2026-13-02T00:00:00Z", "end": "2026-01-03T00:00:00Z"}}'])
def test_what_makes_no_sense_is_not_believed(body):
    """Each is a failure of the poll, and nothing worse."""
    with pytest.raises(Failure):
        ari.read(body, 0.0)


@given(st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31)), st.sampled_from(["Z", "z", "+00:00", "-00:00"]))
def test_moments(moment, zone):
    """Any moment of RFC 3339 comes back."""
    expected = (moment.replace(microsecond=0) - datetime.datetime(1970, 1, 1)).total_seconds()
    assert ari.moment(moment.strftime("%Y-%m-%dT%H:%M:%S").zfill(19) + zone) == expected


@given(st.text(max_size=40))
def test_other_text_is_no_moment(text):
    """Nor does it break anything."""
    try:
        assert ari.moment(text) >= 0
    except ValueError:
        pass

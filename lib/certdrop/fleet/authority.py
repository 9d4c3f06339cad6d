"""The keys of a fleet: a host's own, to sign what its root wants; each machine's, by which the database knows it; and the CA for those.

What travels to be enrolled is one line, and public: what the machine is, its name, and its public keys, raw, so that nothing is parsed here.
Runs as: root, by hand. Trusts: the administrator's words, after checking them. Reads and writes: what command.py tells it to.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certdrop.config import site
from certdrop.fleet import members

FORM = "certdrop-fleet-1"          # how a line begins
YEARS = 20                         # that a certificate lasts: the database is told who may log in by roles, not by dates
_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw
_PEM = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


class Applicant(NamedTuple):
    """A machine that wants to be enrolled."""

    kind: str                      # host or desk
    name: str
    key: str                       # Ed25519, base64; "-" of a desk
    point: bytes                   # on P-256, for TLS


def seed() -> bytes:
    """A new seed of Ed25519, base64."""
    how = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    return base64.b64encode(Ed25519PrivateKey.generate().private_bytes(*how))


def public(text: str) -> str:
    """The public key for a seed, both in base64. Raises ValueError."""
    return base64.b64encode(Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True)).public_key().public_bytes(*_RAW)).decode()


def tls_key() -> bytes:
    """A new key for TLS, PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(*_PEM)


def line(kind: str, name: str, key: str, tls: bytes) -> str:
    """What a machine sends to be enrolled."""
    made = _private(tls).public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return f"{FORM} {kind} {name} {key} {base64.b64encode(made).decode()}"


def applicant(text: str) -> Applicant:
    """The machine that sent a line. Raises ValueError, saying what is wrong with it."""
    parts = text.split()
    if len(parts) != 5 or parts[0] != FORM or parts[1] not in ("host", "desk") or len(text) > 1000:
        raise ValueError(f"it is not the line that certdrop-fleet join printed ({FORM} ...)")
    if not members.is_name(parts[2]):
        raise ValueError(f"{parts[2]!a:.80}: no machine's name: up to 31 of a-z 0-9 -, a letter or digit first")
    if parts[1] == "host" and len(base64.b64decode(parts[3], validate=True)) != 32:
        raise ValueError("its signing key is none of Ed25519")
    point = base64.b64decode(parts[4], validate=True)
    ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return Applicant(parts[1], parts[2], parts[3], point)


def make_ca() -> tuple[bytes, bytes]:
    """(key, certificate) of a new CA, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("certdrop fleet CA", x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "certdrop fleet CA")]), key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(True, 0), True).add_extension(_usage(key_cert_sign=True, crl_sign=True), True)
    return key.private_bytes(*_PEM), builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue(ca_key: bytes, ca: bytes, name: str, point: bytes, hosts: list[str] | None = None) -> bytes:
    """A certificate for a machine of the fleet, or for the database at these `hosts`. Raises ValueError."""
    of = x509.load_pem_x509_certificate(ca)
    builder = _builder(name, of.subject, ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
    use = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.BasicConstraints(False, None), True).add_extension(x509.ExtendedKeyUsage([use]), False)
    builder = builder.add_extension(_usage(digital_signature=True), True)
    if hosts:
        names = [x509.IPAddress(ipaddress.ip_address(host)) if site.is_address(host) else x509.DNSName(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(_private(ca_key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def point_of(tls: bytes) -> bytes:
    """The public point of a TLS key (PEM)."""
    return _private(tls).public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def is_for(certificate: bytes, point: bytes) -> bool:
    """Whether a certificate (PEM) is for this public point. Raises ValueError."""
    return x509.load_pem_x509_certificate(certificate).public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint) == point


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    found = serialization.load_pem_private_key(pem, None)
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ValueError("no key on P-256")
    return found


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) - datetime.timedelta(hours=1)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=365 * YEARS))


def _usage(**what: bool) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
             "encipher_only", "decipher_only")
    return x509.KeyUsage(**{one: what.get(one, False) for one in every})

"""Certificates for the tick: many sites need some, and no CA is to be asked.  From a CA of our own, with one key for all of them."""

from __future__ import annotations

import datetime
import hashlib
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


class Forge:
    """A CA, and the one key that all its leaves have."""

    def __init__(self) -> None:
        self.now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        self.ca_key, self.key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Bench CA")])
        builder = self._builder(self.name, self.ca_key.public_key()).add_extension(x509.BasicConstraints(True, None), True)
        self.root = builder.sign(self.ca_key, hashes.SHA256())
        self.root_pem = self.root.public_bytes(serialization.Encoding.PEM)
        self.key_pem = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        self.spki = self.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().issuer_name(self.name).subject_name(subject).public_key(key).serial_number(x509.random_serial_number())
        return builder.not_valid_before(self.now - DAY).not_valid_after(self.now + 89 * DAY)

    def leaf(self, name: str, key: ec.EllipticCurvePublicKey | None = None) -> bytes:
        """A certificate of 90 days, a day old, as PEM."""
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key())
        builder = self._builder(subject, key or self.key.public_key()).add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        builder = builder.add_extension(authority, False).add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False)
        return builder.sign(self.ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def put(path: str, data: bytes | str, mode: int = 0o644) -> None:
    """Write a file, with the directories above it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(data.encode() if isinstance(data, str) else data)


def link(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)


def base32(data: bytes) -> str:
    """How acmetool names keys and certificates: SHA-256 in base32, lower case, unpadded."""
    import base64
    return base64.b32encode(hashlib.sha256(data).digest()).decode().rstrip("=").lower()

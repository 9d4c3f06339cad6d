"""Makes domain keys, the requests for them, and the placeholder that stands in until the first certificate.

Runs as: root. Trusts: only what it made itself. Reads and writes: nothing; keys go from here into
generations.py, which makes the files. `cryptography` is loaded on first use, because most runs make no key.
"""

from __future__ import annotations

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from typing import Any


def make(kind: str) -> bytes:
    """A new private key of a kind in site.KEYS, as PKCS #8 PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    size = kind.partition("-")[2]
    how = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}.get(size)
    key: Any = ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, int(size))
    return bytes(key.private_bytes(*how))


def spki_sha256(key: bytes) -> str:
    """The SHA-256, in hex, of the public key's SubjectPublicKeyInfo (what a TLSA record 3 1 1 holds, RFC 6698)."""
    return _sha256(_load(key).public_key())


def spki_of_request(csr: bytes) -> str:
    """The same of a request that was made here. Raises ValueError where its signature is not its key's."""
    from cryptography import x509
    found = x509.load_pem_x509_csr(csr)
    if not found.is_signature_valid:
        raise ValueError("the signature is not good")
    return _sha256(found.public_key())


def request(key: bytes, domains: list[str]) -> bytes:
    """A CSR (RFC 2986) for the domains, as PEM: names in subjectAltName only, the subject empty."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(_names(domains), critical=False)
    return builder.sign(_load(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def placeholder(key: bytes, domains: list[str]) -> tuple[bytes, str, int, int]:
    """A self-signed certificate (PEM), its SHA-256 in hex, not_before and not_after. It only lets nginx start."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    begin = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) - datetime.timedelta(hours=1)
    end = begin + datetime.timedelta(days=365)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "certdrop placeholder")])
    private = _load(key)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    certificate = builder.add_extension(_names(domains), critical=False).sign(private, hashes.SHA256())
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    return certificate.public_bytes(serialization.Encoding.PEM), fingerprint, int(begin.timestamp()), int(end.timestamp())


def _names(domains: list[str]) -> Any:
    import ipaddress

    from cryptography import x509

    from certdrop.config import site
    return x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address(domain)) if site.is_address(domain) else x509.DNSName(domain) for domain in domains])


def _sha256(public: Any) -> str:
    import hashlib

    from cryptography.hazmat.primitives import serialization
    return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _load(key: bytes) -> Any:
    from cryptography.hazmat.primitives import serialization
    return serialization.load_pem_private_key(key, None)

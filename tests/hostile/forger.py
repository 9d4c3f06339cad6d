"""A CA of the tests' own, which signs whatever it is asked to: good chains for a posted CSR, and every way of lying in one."""

from __future__ import annotations

import base64
import datetime
import re
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = datetime.timedelta(hours=1)
DAY = 24 * HOUR

Pair = tuple[x509.Certificate, Any]


def now() -> datetime.datetime:
    return datetime.datetime.utcnow().replace(microsecond=0)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _validate=False)] if text else [])       # longer than the 64 of X.520, too


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def armour(der: bytes) -> bytes:
    """Any bytes as a PEM block of the type CERTIFICATE."""
    text = base64.b64encode(der)
    lines = b"\n".join(text[i:i + 64] for i in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


def authority(subject: str, signer: Pair | None = None, key: Any = None, **how: Any) -> Pair:
    """A CA's certificate and key; self-signed without a signer. `how`: begin, end, path, ca, algorithm, eku."""
    key = key or new_key()
    issuer, signing = (signer[0].subject, signer[1]) if signer else (name(subject), key)
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(how.get("begin", now() - 400 * DAY))
    builder = builder.not_valid_after(how.get("end", now() + 4000 * DAY))
    builder = builder.add_extension(x509.BasicConstraints(how.get("ca", True), how.get("path")), True)
    if "eku" in how:
        builder = builder.add_extension(x509.ExtendedKeyUsage(how["eku"]), False)
    return builder.sign(signing, how.get("algorithm", hashes.SHA256())), key


class Forger:
    """A root that is trusted, an intermediate below it, and leaves as asked for."""

    def __init__(self) -> None:
        self.root = authority("Forged Root")
        self.intermediate = authority("Forged Intermediate", self.root)
        self.stranger = authority("Some Other Root")           # nobody trusts it

    def leaf(self, key: Any, domains: list[str], **lies: Any) -> x509.Certificate:
        """A leaf for a public key. `lies`: begin, end, common, sans, eku, ca, usage, extra, signer, algorithm, serial."""
        signer: Pair = lies.get("signer", self.intermediate)
        builder = x509.CertificateBuilder().subject_name(name(lies.get("common", ""))).issuer_name(signer[0].subject).public_key(key)
        builder = builder.serial_number(lies.get("serial", x509.random_serial_number()))
        builder = builder.not_valid_before(lies.get("begin", now() - HOUR)).not_valid_after(lies.get("end", now() + 90 * DAY))
        sans = lies.get("sans", [x509.DNSName(domain) for domain in domains])
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), False)
        eku = lies.get("eku", [ExtendedKeyUsageOID.SERVER_AUTH])
        if eku:
            builder = builder.add_extension(x509.ExtendedKeyUsage(eku), False)
        if lies.get("ca") is not None:
            builder = builder.add_extension(x509.BasicConstraints(lies["ca"], None), True)
        if "usage" in lies:
            builder = builder.add_extension(lies["usage"], True)
        for extension, critical in lies.get("extra", ()):
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer[1], lies.get("algorithm", hashes.SHA256()))

    def chain(self, csr: bytes, **lies: Any) -> bytes:
        """What an honest CA would reply to a CSR (PEM), unless told to lie: leaf and intermediate. `key` and `domains` replace the CSR's."""
        found = x509.load_pem_x509_csr(csr)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        above = lies.pop("above", [self.intermediate[0]])
        return pem(self.leaf(lies.pop("key", None) or found.public_key(), lies.pop("domains", None) or names, **lies), *above)


def with_other_signature(certificate: x509.Certificate) -> x509.Certificate:
    """The same certificate with the other ECDSA signature that is good for it, for P-256: (r, n - s) in place of (r, s)."""
    order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
    r, s = decode_dss_signature(certificate.signature)
    content = certificate.tbs_certificate_bytes + bytes.fromhex("300a06082a8648ce3d040302") + tlv(3, b"\0" + encode_dss_signature(r, order - s))
    return x509.load_der_x509_certificate(tlv(0x30, content))


def usage(*wanted: str) -> x509.KeyUsage:
    """The keyUsage extension with these bits."""
    bits = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
            "encipher_only", "decipher_only")
    return x509.KeyUsage(**{bit: bit in wanted for bit in bits})


def der_of(block: bytes) -> bytes:
    """The bytes in the first PEM block."""
    return base64.b64decode(re.sub(rb"-----[^\n]*-----\n", b"", block.partition(b"-----END")[0] + b""))


# ---- DER by hand: what no library agrees to write

def tlv(tag: int, *content: bytes) -> bytes:
    """A DER element."""
    return header(tag, sum(map(len, content))) + b"".join(content)


def header(tag: int, size: int) -> bytes:
    """Tag and definite length (X.690 section 8.1.3)."""
    if size < 128:
        return bytes([tag, size])
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length


def deep(levels: int) -> bytes:
    """Sequences in sequences."""
    found = b""
    for _ in range(levels):
        found = tlv(0x30, found)
    return found


def long_length(der: bytes) -> bytes:
    """The same outermost element, its length in one byte more than DER allows (BER)."""
    size = der[1] & 0x7F
    return der[:1] + bytes([0x80 | size + 1, 0]) + der[2:2 + size] + der[2 + size:]


def with_trailing(der: bytes, more: bytes = b"\0" * 16) -> bytes:
    """A certificate, and something after it in the same block."""
    return der + more

"""What came of an order: whether it is a chain for our key, and into the spool with it; and a request to throw away, to try an order with.

Only a run that places orders loads this.
Runs as: _certdrop, shut in. Trusts: of what the CA sent, nothing; root decides about it. Writes: replies/.
"""

from __future__ import annotations

import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certdrop import spool
from certdrop.config import site
from certdrop.issuer.failure import REFUSED, Failure


def examine(reply: bytes, csr: x509.CertificateSigningRequest) -> x509.Certificate:
    """The leaf, and what the issuer can tell by itself of a reply: so that nonsense is its own failure. Raises Failure."""
    try:
        if len(reply) > spool.MAX_REPLY:
            raise Failure(REFUSED, "what the CA sent is longer than the spool takes")
        blocks = [x509.load_pem_x509_certificate(block) for block in spool.pem_blocks(reply)]
        keys = [key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
                for key in (blocks[0].public_key(), csr.public_key())]
    except (spool.Refused, ValueError, KeyError) as error:         # KeyError: a kind of string that cryptography does not know
        raise Failure(REFUSED, f"what the CA sent is no certificate chain ({error})") from error
    if keys[0] != keys[1]:
        raise Failure(REFUSED, "what the CA sent is for another key")
    return blocks[0]


def sha256(leaf: x509.Certificate) -> str:
    """Its SHA-256, in hexadecimal."""
    return leaf.fingerprint(hashes.SHA256()).hex()


def issuer(leaf: x509.Certificate) -> str:
    """Who issued it, by its own word."""
    return ", ".join(str(part.value) for part in leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME))


def put_reply(entry: str, reply: bytes) -> None:
    """Put a reply into the spool, whole or not at all. Raises OSError, which names the place."""
    fd = spool.open_directory(spool.replies())
    try:
        spool.write(fd, entry, reply, 0o640)
    except OSError as error:
        raise OSError(error.errno, error.strerror, spool.replies()) from error
    finally:
        os.close(fd)


def throwaway_request(names: list[str]) -> bytes:
    """A CSR for these names, by a key that nobody keeps; PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    alternatives = [x509.IPAddress(ipaddress.ip_address(name)) if site.is_address(name) else x509.DNSName(name) for name in names]
    builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

"""Looks whether each live key, its certificate and its chain belong together.

fingerprints() runs as root, which alone can read keys, and hands out nothing but hashes of the public parts; look() as anyone.
Trusts: files that root owns. Reads: privkey.pem of the live generations; cert.pem, fullchain.pem and request.json. Writes: nothing.
"""

from __future__ import annotations

import hashlib
import os
from datetime import datetime, timezone
from typing import Any

from certdrop import foreign, spool
from certdrop.config import site as configuration
from certdrop.doctor.line import FAILED, WARNING, Line, verdict
from certdrop.events import clean
from certdrop.watcher.evidence import as_object

ROOT = 0


def fingerprints(names: list[str]) -> dict[str, str]:
    """The SHA-256 of the public part (SPKI) of each live key; words with a space in them where it cannot be read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    found = {}
    for name in names:
        try:
            key = serialization.load_pem_private_key(_read(name, "privkey.pem"), None)
            spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            found[name] = hashlib.sha256(spki).hexdigest()
        except FileNotFoundError:
            continue                               # not made yet: another line's
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm, spool.Refused) as error:
            found[name] = "cannot be read: " + clean(getattr(error, "strerror", None) or error, 100)
    return found


def look(names: list[str], keys: dict[str, str] | None) -> list[Line]:
    """One line for each site, or more. `keys` is what fingerprints() found; None where nobody could look."""
    lines = []
    if keys is None and names:
        lines.append(Line(WARNING, "keys", "only root can see whether keys match their certificates", "sudo certdrop-check"))
    for name in names:
        try:
            lines += _one(name, (keys or {}).get(name, ""))
        except FileNotFoundError:
            lines.append(Line(WARNING, f"{name}: key", "there is no certificate yet, not even a placeholder", "certdrop-install makes one"))
        except (OSError, ValueError, spool.Refused) as error:
            lines.append(Line(FAILED, f"{name}: key", f"its live certificate cannot be read: {clean(error, 100)}", f"certdrop renew {name}"))
    return lines


def _one(name: str, key: str) -> list[Line]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    leaf, chain = _read(name, "cert.pem"), _read(name, "fullchain.pem")
    loaded = x509.load_pem_x509_certificate(leaf)
    spki = loaded.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(spki).hexdigest()
    mend = f"certdrop renew {name} makes a pair that does"
    wrong = []
    if key and key != fingerprint:
        wrong.append((f"the live key {key}" if " " in key else "the live key does not belong to the live certificate: services cannot start with them", mend))
    if as_object(_read(name, "request.json")).get("spki_sha256") not in (None, fingerprint):
        wrong.append(("the live certificate is not for the key that was asked for", mend))
    if not chain.startswith(leaf.rstrip()):
        wrong.append(("fullchain.pem does not begin with cert.pem", mend))
    certificates = [x509.load_pem_x509_certificate(block + b"-----END CERTIFICATE-----\n") for block in chain.split(b"-----END CERTIFICATE-----")[:-1]]
    wrong += [(f"the chain is broken: certificate {number} is not signed by the next", mend)
              for number, (one, above) in enumerate(zip(certificates, certificates[1:]), 1) if not _signed(one, above)]
    ended = [number for number, one in enumerate(certificates, 1) if _end(one) < datetime.now(timezone.utc)]
    wrong += [(f"certificate {number} of the chain has expired", f"certdrop renew {name}") for number in ended]
    kind = "a placeholder, and its key belong" if os.path.exists(f"{configuration.STATE}/live/{name}/placeholder") else f"chain of {len(certificates)} belong"
    return verdict(f"{name}: key", wrong, f"key, certificate and {kind} together" if key else f"certificate and {kind} together")


def _signed(one: Any, above: Any) -> bool:
    """Whether `above` signed it: by name and signature (RFC 5280 section 6.1)."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    if one.issuer != above.subject:
        return False
    key = above.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(one.signature, one.tbs_certificate_bytes, padding.PKCS1v15(), one.signature_hash_algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(one.signature, one.tbs_certificate_bytes, ec.ECDSA(one.signature_hash_algorithm))
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
    return True


def _end(one: Any) -> datetime:
    found: datetime = getattr(one, "not_valid_after_utc", None) or one.not_valid_after.replace(tzinfo=timezone.utc)
    return found


def _read(name: str, entry: str) -> bytes:
    fd = spool.open_directory(os.path.realpath(f"{configuration.STATE}/live/{name}"))
    try:
        return foreign.read(fd, entry, ROOT)
    finally:
        os.close(fd)

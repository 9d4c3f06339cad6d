"""Root's signature on what it posts, where this host is in a fleet: others then carry it, and whoever orders believes this signature alone.

Runs as: root. Trusts: its own key. Reads: /etc/certdrop/fleet/sign.key, which certdrop-fleet(8) makes: the host's name in the fleet, and a seed of
Ed25519 (RFC 8032) in base64. Writes: nothing.
"""

from __future__ import annotations

import errno

from certdrop.config import site


def statement(host: str, name: str, number: int, kind: str, data: bytes) -> bytes:
    """What is signed: that root of this host wants just these bytes, as a csr; wanted the certificate for them at this moment (a time and a space before
    them: now); or wants revoked what they say."""
    import hashlib
    return f"certdrop-fleet 1 {host} {name} {number} {kind} {hashlib.sha256(data).hexdigest()}\n".encode("ascii")


def sign(name: str, number: int, kind: str, data: bytes) -> bytes:
    """The signature, in base64 and a line, after the moment of a "now"; nothing where this host is in no fleet. Raises OSError."""
    try:
        with open(f"{site.ETC}/fleet/sign.key", encoding="ascii") as stream:
            host, seed = stream.read(200).split()
        import base64
        import time

        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed, validate=True))
    except FileNotFoundError:
        return b""
    except ValueError as error:
        raise OSError(errno.EINVAL, "damaged", f"{site.ETC}/fleet/sign.key") from error
    return (at := b"%d " % time.time() if kind == "now" else b"") + base64.b64encode(key.sign(statement(host, name, number, kind, at + data))) + b"\n"

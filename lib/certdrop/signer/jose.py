"""What both ends of the signer's socket need: base64url, public keys (RFC 7515, RFC 7517), where a URL leads, and the name of an account's files.

Runs as: whoever imports it. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import urllib.parse
from typing import NamedTuple

_URL = re.compile(r"https://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?(/[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]{0,1500})?")


class Numbers(NamedTuple):
    """A public RSA key: modulus and exponent."""

    n: int
    e: int


def b64(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    """What base64url without padding stands for; raises ValueError unless it is the one text for it."""
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if b64(found) != text:
        raise ValueError("not the one base64url text for it")
    return found


def jwk(numbers: Numbers) -> dict[str, str]:
    """A public RSA key as a JWK (RFC 7518 section 6.3)."""
    e, n = (b64(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.e, numbers.n))
    return {"e": e, "kty": "RSA", "n": n}


def place_of(url: str) -> tuple[str, int] | None:
    """(host, port) of an https URL of plain form; None for any other."""
    found = _URL.fullmatch(url)
    return (found[1].lower(), int(found[2] or 443)) if found else None


def entry(directory_url: str) -> str:
    """The name of the files of an account: one for each directory."""
    host = urllib.parse.urlsplit(directory_url).hostname or "ca"
    return f"{host}-{hashlib.sha256(directory_url.encode()).hexdigest()[:8]}"

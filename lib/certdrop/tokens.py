"""The part of the spool that root has no business in: the tokens of HTTP-01, which the issuer writes and nginx serves.

Runs as: whoever imports it, but root's runs by cron and sudo. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

from certdrop import spool

_BASE64URL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def directory() -> str:
    """The directory that the issuer writes HTTP-01 tokens in, and nginx serves."""
    return spool.SPOOL + "/challenges"


def is_token(text: str) -> bool:
    """Whether text may be an HTTP-01 token (RFC 8555 section 8.3: base64url; we take 16 to 128 characters)."""
    return 16 <= len(text) <= 128 and _BASE64URL.issuperset(text)

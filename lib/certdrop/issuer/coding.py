"""What something in between did to an answer that nobody asked to be compressed (RFC 9110 section 8.4): undone, within an answer's limit.

Runs as: _certdrop, shut in, or the doctor. Trusts: nothing. Reads and writes: nothing.
"""

from __future__ import annotations

import zlib

MOST_CODINGS = 3                   # one on the other
MOST_MEMBERS = 100                 # each costs a copy of what follows
_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}      # some servers say deflate, and mean it without zlib's head


class Undecodable(ValueError):
    """It cannot be unpacked; the text says which coding it is in."""


class TooLong(ValueError):
    """Unpacked, it would be longer than the limit."""


def plain(data: bytes, codings: str, limit: int) -> bytes:
    """What was compressed, by the value of Content-Encoding. Never holds more than `limit` bytes of it. Raises Undecodable, TooLong."""
    named = [name for part in codings.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if len(named) > MOST_CODINGS or not set(named) <= set(_WINDOWS):
        raise Undecodable(", ".join(named))
    for name in reversed(named):
        for window in _WINDOWS[name]:
            try:
                data = _unpacked(data, window, limit)
                break
            except (zlib.error, EOFError):
                continue
        else:
            raise Undecodable(name)
    return data


def _unpacked(data: bytes, window: int, limit: int) -> bytes:
    """All members, one after the other (RFC 1952 section 2.2)."""
    made = b""
    for _ in range(MOST_MEMBERS):
        unpacker = zlib.decompressobj(window)
        made += unpacker.decompress(data, limit + 1 - len(made))
        if len(made) > limit:
            raise TooLong()
        if not unpacker.eof:
            raise EOFError()
        data = unpacker.unused_data.lstrip(b"\0")                     # some pad
        if not data:
            return made
    raise TooLong()

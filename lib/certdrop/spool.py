"""The spool: the only door between the keeper (root) and the issuer (_certdrop).

This module is the contract. It has the names, the limits and the atomic write, and both sides
import it; it imports nothing of theirs. What the other side wrote is read by foreign.py. The
administrator's text of the same contract is certdrop-spool(5).

Runs as: whoever imports it. Trusts: nothing. Writes: below SPOOL.
"""

from __future__ import annotations

import contextlib
import os

SPOOL = "/var/spool/certdrop"
ISSUER = "_certdrop"               # the user that writes replies and challenges
MAX_REPLY = 64 * 1024              # bytes
MAX_LISTED = 1 << 20               # bytes of the names of all replies
MAX_CERTIFICATES = 10              # certificates in a reply, the leaf among them
MAX_NAME = 200                     # characters in a site's name

# Why a reply is not taken. A text for each is in certdrop-spool(5); the first group comes from
# reading (this module), the second from the judge.
REASONS = (
    "kind", "owner", "links", "mode", "busy", "size", "grammar", "count",
    "key", "names-missing", "names-extra", "names-wildcard", "not-yet-valid", "expired", "key-usage",
    "ca-as-leaf", "encoding", "replay", "stale", "untrusted", "broken-chain", "judge-failed",
)
TRANSIENT = ("busy", "not-yet-valid", "judge-failed")

KINDS = ("csr", "now", "revoke", "pem")        # of a request the first three, of a reply the last

# Moments that are noted on disk, whoever notes them. A clock may have been wrong then: a moment counts only where one of our own rules could have
# set it from now. So each kind has bounds: how many seconds ago it may lie, and how many ahead. The issuer's own kinds are in issuer/clock.py.
HAPPENED = (float("inf"), 0.0)     # something was done or failed: a try, a reply, an installation, a mail, a key that was made
INSTALL = (float("inf"), 3000.0)   # when the keeper tries again
STEP = 60.0                        # seconds by which a clock may be set back without a word

_DIGITS = frozenset("0123456789")
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz") | _DIGITS      # of a site's name
_REST = _FIRST | frozenset("._-")
_BLOCK = rb"-----BEGIN CERTIFICATE-----\n((?:[A-Za-z0-9+/]{1,76}\n)*[A-Za-z0-9+/]{1,76}={0,2}\n)-----END CERTIFICATE-----\n"


class Refused(Exception):
    """What another principal wrote is not taken; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def requests() -> str:
    """The directory that root posts requests in."""
    return SPOOL + "/requests"


def replies() -> str:
    """The directory that the issuer writes replies in."""
    return SPOOL + "/replies"


def is_site_name(text: str) -> bool:
    """Whether text may name a site: 1 to 200 of [a-z0-9._-], a letter or digit first."""
    return len(text) <= MAX_NAME and text[:1] in _FIRST and _REST.issuperset(text)


def may_name_a_new_site(text: str) -> bool:
    """The same, and no name that a file beside the sites' own has (issuer/revocations.json)."""
    return is_site_name(text) and text != "revocations"


def is_credible(moment: object, kind: tuple[float, float], now: float) -> bool:
    """Whether a moment (seconds since 1970) that was noted on disk counts: one of our rules could have set it from `now`."""
    return isinstance(moment, (int, float)) and now - kind[0] <= moment <= now + kind[1] + STEP


def entry(site: str, number: int, kind: str) -> str:
    """The file name of a request (csr, now, revoke) or a reply (pem)."""
    return f"{site}@{number:04d}.{kind}"


def parse_entry(name: str) -> tuple[str, int, str] | None:
    """(site, number, kind) of a file name in the spool, or None where it is none of ours."""
    site, _, rest = name.partition("@")
    number, _, kind = rest.partition(".")
    if kind in KINDS and 4 <= len(number) <= 9 and _DIGITS.issuperset(number) and f"{int(number):04d}" == number and is_site_name(site):
        return site, int(number), kind
    return None


def open_directory(path: str) -> int:
    """A descriptor of a directory, for the dir_fd of write() and foreign.read(). The caller closes it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def write(dir_fd: int, name: str, data: bytes, mode: int = 0o640, group: int = -1, owner: int = -1, named: bool = True) -> None:
    """Put a file in place whole or not at all: temporary in the same directory, fsync, rename, fsync the directory (not `named`: the caller does, later).

    `mode` holds from the first byte, whatever the umask; `group` (a gid) and `owner` (a uid) are set where given.
    """
    temporary = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=dir_fd)          # left by a run that was killed; the locks keep others out
    try:
        with open(temporary, "wb", 1 << 16, opener=lambda name, _: os.open(name, flags, 0o600, dir_fd=dir_fd)) as stream:
            if group != -1 or owner != -1:
                os.fchown(stream.fileno(), owner, group)
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError as error:
        error.filename = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{name}"      # a full disk says nothing of it
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    if named:
        os.fsync(dir_fd)


def pem_blocks(data: bytes) -> list[bytes]:
    """The certificates of a reply, as PEM blocks in lines of 64, where data is such blocks and nothing else.

    This is a grammar, not a parser: base64 is checked for its alphabet and re-wrapped, never
    decoded. Raises Refused (grammar, count).
    """
    import re                                  # 3 ms, and most runs find no reply
    bodies = [found.replace(b"\n", b"") for found in re.findall(_BLOCK, data)]
    if len(bodies) > MAX_CERTIFICATES:
        raise Refused("count")
    # CAs part the blocks by empty lines (RFC 8555 section 9.1).
    if not re.fullmatch(rb"(?:%b\n*)+" % _BLOCK, data) or any(len(body) % 4 for body in bodies):
        raise Refused("grammar")
    lines = [b"\n".join(body[at:at + 64] for at in range(0, len(body), 64)) for body in bodies]
    return [b"-----BEGIN CERTIFICATE-----\n" + each + b"\n-----END CERTIFICATE-----\n" for each in lines]

"""Who is in the fleet, as root of a desk says: fleet.d/HOST.toml has a host's key, the names that it may ask for, and how many sites it may have.

Runs as: whoever imports it. Trusts: files that root owns. Reads: /etc/certdrop/fleet.d. Writes: nothing.
"""

from __future__ import annotations

import base64
import os
import re

from certdrop import spool
from certdrop.config import site

MOST_SITES = 1000                  # unless HOST.toml says so
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_RESERVED = re.compile(r"postgres|public|none|pg-.*|certdrop.*")     # what PostgreSQL, or this, means by it


class Member:
    """A host of the fleet."""

    def __init__(self) -> None:
        self.key = ""                          # Ed25519, base64
        self.names: list[str] = []             # what it may ask for: a name, an address, or *.DOMAIN for every name below a domain
        self.max_sites = MOST_SITES
        self.profile = ""                      # of the CA's, for all its sites; empty: as certdrop.toml says
        self.stateless = ""                    # the account's key (RFC 7638) by which it answers challenges itself; empty: it leads them to the desks

    def may_have(self, name: str) -> bool:
        """Whether it may ask for a certificate for this name; for a wildcard, where it may have all names that this stands for."""
        if not (site.is_host_name(name.removeprefix("*.")) or site.is_address(name)):
            return False
        return any(name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]) and len(name) >= len(allowed)) for allowed in self.names)


def is_name(text: str) -> bool:
    """Whether a machine may be called so: 1 to 31 of a-z 0-9 -, a letter or digit first (a role of the database, and part of file names here)."""
    return bool(_NAME.fullmatch(text)) and not _RESERVED.fullmatch(text)


def load(directory: str, host: str) -> Member:
    """What root says of a host. Raises site.ConfigMissing where it is none of the fleet's, site.ConfigError."""
    if not is_name(host):
        raise site.ConfigMissing(f"{host!a:.80}: no host's name")
    path, found = f"{directory}/{host}.toml", Member()
    site.fill(path, found, {key: key for key in vars(found)})
    try:
        if len(base64.b64decode(found.key, validate=True)) != 32:
            raise ValueError
    except ValueError:
        raise site.ConfigError(f"{path}: key: give the host's Ed25519 key in base64, as certdrop-fleet join prints it") from None
    if found.stateless and not is_thumbprint(found.stateless):
        raise site.ConfigError(f"{path}: stateless: give the SHA-256 of the account's JWK, as certdrop-desk account show prints it")
    for name in found.names:
        if not is_pattern(name):
            raise site.ConfigError(f'{path}: names: "{name}": give host names, addresses, or *.DOMAIN for all below a domain')
    return found


def is_thumbprint(text: str) -> bool:
    """Whether it may say which key an account has (RFC 7638, base64url of a SHA-256)."""
    return bool(re.fullmatch("[A-Za-z0-9_-]{43}", text))


def is_pattern(text: str) -> bool:
    """Whether it says which names a host may ask for: a name, an address, or *.DOMAIN for every name below a domain."""
    return site.is_host_name(text.removeprefix("*.")) or site.is_address(text)


def answering(directory: str) -> list[str]:
    """The hosts that answer challenges by the account's key: it cannot be changed while there are any. Raises OSError, site.ConfigError."""
    return [host for host in listed(directory) if load(directory, host).stateless]


def listed(directory: str) -> list[str]:
    """The hosts that there is a file of. Raises OSError."""
    try:
        return sorted(entry[:-5] for entry in os.listdir(directory) if entry.endswith(".toml") and is_name(entry[:-5]))
    except FileNotFoundError:
        return []


def tree_name(host: str, name: str) -> str:
    """What a host's site is called on a desk. No host has a _ in its name."""
    return f"{host}_{name}"


def parse_tree_name(text: str) -> tuple[str, str] | None:
    """(host, site) of such a name; None for any other."""
    host, _, name = text.partition("_")
    return (host, name) if is_name(host) and spool.is_site_name(name) else None


def is_signed(member: Member, statement: bytes, signature: str | bytes) -> bool:
    """Whether this is the host's signature (base64) below a statement (keeper/signing.py)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    try:
        found = base64.b64decode(signature.strip(), validate=True)
        Ed25519PublicKey.from_public_bytes(base64.b64decode(member.key)).verify(found, statement)
    except (ValueError, InvalidSignature):
        return False
    return True

"""Makes, completes, links and destroys generations: the single acts from one row of the recovery table (state.py) to the next.

Every step is one rename, or may be repeated. Nothing is ever written into a generation that a link points at.
Runs as: root, under the keeper's lock. Trusts: its own directories. Reads and writes: sites/, live/, proven/
and keeper/ below /var/lib/certdrop.
"""

from __future__ import annotations

import json
import os
import time

from certdrop.config import site as configuration
from certdrop.keeper import integrity, keys
from certdrop.keeper.judges import Accepted
from certdrop.keeper.state import directory


def make_placeholder(wanted: configuration.Site, number: int) -> None:
    """A complete generation with a self-signed certificate, so that services start."""
    key = keys.make(wanted.key)
    pem, fingerprint, begin, end = keys.placeholder(key, wanted.domains)
    files = _requested(wanted, key, wanted.key, int(time.time()))
    files.update(certified(wanted.name, number, pem, b"", Accepted(fingerprint, begin, end)))
    files["placeholder"] = b""
    _make(wanted.name, number, files)


def make_next(wanted: configuration.Site, number: int, carry: int | None, now: bool) -> None:
    """A generation with a key and a CSR: a new key, or that of generation `carry`. `now` marks it as wanted at once."""
    if carry is None:
        key, kind, created = keys.make(wanted.key), wanted.key, int(time.time())
    else:
        with open(directory(wanted.name, carry) + "/privkey.pem", "rb") as stream:
            key = stream.read()
        known = integrity.facts(directory(wanted.name, carry) + "/request.json")
        kind, created = str(known["key"]), int(str(known["key_created"]))
    files = _requested(wanted, key, kind, created)
    if now:
        files["now"] = b""
    _make(wanted.name, number, files)


def complete(name: str, number: int, blocks: list[bytes], accepted: Accepted) -> None:
    """Write an accepted chain into its generation; whole only when nginx.conf is there."""
    integrity.fill(directory(name, number), certified(name, number, blocks[0], b"".join(blocks[1:]), accepted), last="nginx.conf")


def move(link: str, name: str, number: int) -> None:
    """Point live or proven at a generation, in one rename."""
    parent = f"{configuration.STATE}/{link}"
    temporary = f"{parent}/.{name}.new"
    integrity.clear(temporary)
    os.symlink(f"../sites/{name}/{number:04d}", temporary)
    _into(temporary, f"{parent}/{name}")


def put_back(name: str) -> None:
    """Put the live link back that a removal set aside."""
    aside = f"{configuration.STATE}/live/.{name}.aside"
    if os.path.islink(aside):
        _into(aside, f"{configuration.STATE}/live/{name}")
    else:
        integrity.clear(aside)                 # that was no removal


def unlink(link: str, name: str) -> None:
    """Remove live or proven, or whatever stands in its place."""
    integrity.clear(f"{configuration.STATE}/{link}/{name}")
    sync(f"{configuration.STATE}/{link}")


def destroy(name: str, number: int) -> None:
    """Remove a generation, its private key first. Never one that a link points at.

    It leaves by one rename: half removed it could look complete, and no longer withdrawn.
    """
    path = f"{directory(name)}/.old-{number:04d}"
    os.rename(directory(name, number), path)
    sync(directory(name))
    if os.path.isdir(path):
        integrity.clear(path + "/privkey.pem")
        sync(path)
    integrity.clear(path)


def mark(name: str, number: int, marker: str) -> None:
    """Put a marker on a generation: `now`, `withdrawn`."""
    integrity.fill(directory(name, number), {marker: b""})


def sweep(name: str, leftovers: list[str]) -> None:
    """Remove what a killed run left half-written in the site's directory."""
    for entry in leftovers:
        integrity.clear(f"{directory(name)}/{entry}")


def sync(path: str) -> None:
    """fsync a directory."""
    integrity.fill(path, {})


def _requested(wanted: configuration.Site, key: bytes, kind: str, created: int) -> dict[str, bytes]:
    known = {"key": kind, "key_created": created, "spki_sha256": keys.spki_sha256(key), "domains": sorted(wanted.domains)}
    return {"privkey.pem": key, "request.csr": keys.request(key, wanted.domains), "request.json": json.dumps(known).encode()}


def certified(name: str, number: int, leaf: bytes, intermediates: bytes, accepted: Accepted) -> dict[str, bytes]:
    """The files that make a generation complete."""
    return {"cert.pem": leaf, "chain.pem": intermediates, "fullchain.pem": leaf + intermediates,
            "cert.json": json.dumps(vars(accepted)).encode(), "nginx.conf": integrity.lines(directory(name, number))}


def _make(name: str, number: int, files: dict[str, bytes]) -> None:
    parent = directory(name)
    if not os.path.isdir(parent):
        integrity.clear(parent)
        os.mkdir(parent)
        os.chmod(parent, 0o755)
        sync(os.path.dirname(parent))
    temporary = f"{parent}/.new-{number:04d}"
    integrity.clear(temporary)
    os.mkdir(temporary, 0o700)
    integrity.fill(temporary, files)
    os.chmod(temporary, 0o755)
    os.rename(temporary, directory(name, number))
    sync(parent)


def _into(link: str, path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):       # somebody's hand
        integrity.clear(path)
    os.rename(link, path)
    sync(os.path.dirname(path))

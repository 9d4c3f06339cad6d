"""The generations of a site on disk: where it stands, by looking; and the single steps from one row of the recovery table to the next.

Every step is one rename, or may be repeated. Nothing is ever written into a generation that a link points at.
Runs as: root, under the keeper's lock. Trusts: its own directories. Reads and writes: sites/, live/, proven/
and keeper/ below /var/lib/certdrop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time

from certdrop import site as configuration
from certdrop import spool
from certdrop.keeper import keys
from certdrop.keeper.judges import Accepted

KEPT = 3                           # complete generations of a site

_NUMBER = re.compile(r"[0-9]{4,9}")


class Standing:
    """Where a site stands: the numbers N, C, L and P of the recovery table, and what is between them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers: list[int] = []
        self.complete: list[int] = []          # of these, not those withdrawn by a rollback
        self.live = _linked("live", name)
        self.proven = _linked("proven", name)
        try:
            entries = os.listdir(directory(name))
        except FileNotFoundError:
            entries = []
        self.leftovers = [entry for entry in entries if entry.startswith(".")]
        for number in sorted(int(entry) for entry in entries if _NUMBER.fullmatch(entry)):
            self.numbers.append(number)
            found = set(os.listdir(directory(name, number)))
            if "nginx.conf" in found and "withdrawn" not in found:
                self.complete.append(number)

    @property
    def next(self) -> int | None:
        """N, where it is incomplete: the generation that waits for its certificate."""
        if not self.numbers or is_complete(self.name, self.numbers[-1]):
            return None
        return self.numbers[-1]

    @property
    def newest(self) -> int | None:
        """C: the one that should be live."""
        return self.complete[-1] if self.complete else None

    def highest(self) -> int:
        """The highest number ever used for this site's name, as far as root knows; 0 for none."""
        try:
            with open(f"{configuration.STATE}/keeper/retired/{self.name}", encoding="ascii") as stream:
                retired = int(stream.read())
        except FileNotFoundError:
            retired = 0
        return max([retired, *self.numbers])


def directory(name: str, number: int | None = None) -> str:
    """The directory of a site, or of one of its generations."""
    path = f"{configuration.STATE}/sites/{name}"
    return path if number is None else f"{path}/{number:04d}"


def is_complete(name: str, number: int) -> bool:
    """Whether the generation has all its files (nginx.conf is written last)."""
    return os.path.exists(directory(name, number) + "/nginx.conf")


def has(name: str, number: int, marker: str) -> bool:
    """Whether the generation carries a marker: `now`, `placeholder`, `withdrawn`."""
    return os.path.exists(f"{directory(name, number)}/{marker}")


def mark(name: str, number: int, marker: str) -> None:
    """Put a marker on a generation."""
    _put(directory(name, number), marker, b"", 0o644)


def facts(name: str, number: int, kind: str) -> dict[str, object]:
    """What root wrote down about a generation: `request` (key, key_created, spki_sha256, domains) or `cert` (sha256, not_before, not_after)."""
    with open(f"{directory(name, number)}/{kind}.json", encoding="ascii") as stream:
        found: dict[str, object] = json.load(stream)
    return found


def make_placeholder(wanted: configuration.Site, number: int) -> None:
    """A complete generation with a self-signed certificate, so that services start (row 4)."""
    key = keys.make(wanted.key)
    pem, fingerprint, begin, end = keys.placeholder(key, wanted.domains)
    files = _requested(wanted, key, wanted.key, int(time.time()))
    files.update(_certified(wanted.name, number, pem, b"", Accepted(fingerprint, begin, end)))
    files["placeholder"] = b""
    _make(wanted.name, number, files)


def make_next(wanted: configuration.Site, number: int, carry: int | None, now: bool) -> None:
    """A generation with a key and a CSR (row 6): a new key, or that of generation `carry`. `now` marks it as wanted at once."""
    if carry is None:
        key, kind, created = keys.make(wanted.key), wanted.key, int(time.time())
    else:
        with open(directory(wanted.name, carry) + "/privkey.pem", "rb") as stream:
            key = stream.read()
        known = facts(wanted.name, carry, "request")
        kind, created = str(known["key"]), int(str(known["key_created"]))
    files = _requested(wanted, key, kind, created)
    if now:
        files["now"] = b""
    _make(wanted.name, number, files)


def complete(name: str, number: int, blocks: list[bytes], accepted: Accepted) -> None:
    """Write an accepted chain into its generation (row 10); whole only when nginx.conf is there."""
    for entry, data in _certified(name, number, blocks[0], b"".join(blocks[1:]), accepted).items():
        _put(directory(name, number), entry, data, 0o644)


def move(link: str, name: str, number: int) -> None:
    """Point live or proven at a generation, in one rename."""
    parent = f"{configuration.STATE}/{link}"
    temporary = f"{parent}/.{name}.new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(f"../sites/{name}/{number:04d}", temporary)
    os.rename(temporary, f"{parent}/{name}")
    sync(parent)


def destroy(name: str, number: int) -> None:
    """Remove a generation, its private key first. Never one that a link points at."""
    path = directory(name, number)
    try:
        os.unlink(path + "/privkey.pem")
    except FileNotFoundError:
        pass
    sync(path)
    shutil.rmtree(path)
    sync(directory(name))


def sweep(standing: Standing) -> None:
    """Remove what a killed run left half-written in the site's directory (row 3)."""
    for entry in standing.leftovers:
        shutil.rmtree(f"{directory(standing.name)}/{entry}")


def sync(path: str) -> None:
    """fsync a directory."""
    fd = spool.open_directory(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _linked(link: str, name: str) -> int | None:
    try:
        target = os.readlink(f"{configuration.STATE}/{link}/{name}")
    except FileNotFoundError:
        return None
    return int(target.rpartition("/")[2])


def _requested(wanted: configuration.Site, key: bytes, kind: str, created: int) -> dict[str, bytes]:
    known = {"key": kind, "key_created": created, "spki_sha256": keys.spki_sha256(key), "domains": wanted.domains}
    return {"privkey.pem": key, "request.csr": keys.request(key, wanted.domains), "request.json": json.dumps(known).encode()}


def _certified(name: str, number: int, leaf: bytes, intermediates: bytes, accepted: Accepted) -> dict[str, bytes]:
    path = directory(name, number)
    known = {"sha256": accepted.sha256, "not_before": accepted.not_before, "not_after": accepted.not_after}
    lines = f"ssl_certificate {path}/fullchain.pem;\nssl_certificate_key {path}/privkey.pem;\n"
    return {"cert.pem": leaf, "chain.pem": intermediates, "fullchain.pem": leaf + intermediates,
            "cert.json": json.dumps(known).encode(), "nginx.conf": lines.encode()}


def _make(name: str, number: int, files: dict[str, bytes]) -> None:
    parent = directory(name)
    if not os.path.isdir(parent):
        os.mkdir(parent)
        os.chmod(parent, 0o755)
        sync(os.path.dirname(parent))
    temporary = f"{parent}/.new-{number:04d}"
    if os.path.exists(temporary):
        shutil.rmtree(temporary)
    os.mkdir(temporary, 0o700)
    for entry, data in files.items():
        _put(temporary, entry, data, 0o600 if entry == "privkey.pem" else 0o644)
    os.chmod(temporary, 0o755)
    os.rename(temporary, directory(name, number))
    sync(parent)


def _put(path: str, entry: str, data: bytes, mode: int) -> None:
    fd = spool.open_directory(path)
    try:
        spool.write(fd, entry, data, mode)
    finally:
        os.close(fd)

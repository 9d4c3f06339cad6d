"""What a desk has of the hosts, laid out as the issuer finds it on a machine of its own: each site under its host's name and its own (HOST_SITE).

Nothing here is believed by the signer. But what root of a host did not sign is not laid down either, so that nobody asks the CA for it in vain.
Runs as: _certdrop, in the part that talks with the database. Trusts: fleet.d. Reads: replies/, issuer/ of the desk. Writes: requests/, sites/, live/,
keeper/ of the desk.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable

from certdrop import foreign, spool
from certdrop.config import site
from certdrop.fleet import members
from certdrop.fleet.database import Row, as_table
from certdrop.keeper.signing import statement
from certdrop.signer import protocol

DAY = 86400.0
AHEAD = 300                        # seconds that the clock of a host may be ahead of ours
SPOOL, STATE = "/var/spool/certdrop-fleet", "/var/lib/certdrop-fleet"
_NUMBER, _MOMENT, _SHA256 = 10 ** 9, 1 << 40, "[0-9a-f]{64}"      # bounds, and forms of texts
NOTED: dict[str, object] = {"refused": {"number": _NUMBER, "reason": "[a-z-]{1,40}", "reply_sha256": _SHA256},
                            "install": {"number": _NUMBER, "next_try": _MOMENT}, "installed_at": _MOMENT}
CERTIFICATE: dict[str, object] = {"sha256": _SHA256, "not_before": _MOMENT, "not_after": _MOMENT}


def stand() -> None:
    """Have the issuer, the signer and all that belongs to them look here, in this process and its children."""
    spool.SPOOL, site.STATE = SPOOL, STATE
    protocol.HOSTS = f"{site.ETC}/fleet.d"


def hosts() -> list[str]:
    """The hosts that this desk believes. Raises OSError."""
    return members.listed(protocol.HOSTS)


def put_request(row: Row, body: str, sig: str, now: str, past: str = "[]", first: Callable[[], object] = lambda: None) -> str:
    """Lay down a request, and what comes `first`; why not, in words, where root of its host did not sign it. Raises OSError."""
    try:
        member = members.load(protocol.HOSTS, row.host)
    except site.ConfigMissing:
        return f"{row.host} is not enrolled at this desk"
    except site.ConfigError as error:
        return str(error)
    name, data = members.tree_name(row.host, row.name), body.encode("ascii", "replace")
    signed, sig = (data, sig) if row.kind == "csr" else _revocation(data)
    if not members.is_signed(member, statement(row.host, row.name, row.number, row.kind, signed), sig):
        return f"the request is not signed by the key that {row.host} was enrolled with"
    first()
    fd = spool.open_directory(spool.requests())
    try:
        before = spool.entry(name, row.number, "past")
        if past != "[]" and len(past) <= protocol.PAST:        # before the request: the signer looks at it first
            spool.write(fd, before, past.encode("ascii", "replace"))
        else:
            _unlink(fd, before)
        if row.kind == "revoke":
            spool.write(fd, spool.entry(name, row.number, "revoke"), data)
            return ""
        spool.write(fd, spool.entry(name, row.number, "sig"), sig.encode("ascii", "replace"))
        spool.write(fd, spool.entry(name, row.number, "csr"), data)
        wanted, (at, _, now) = spool.entry(name, row.number, "now"), now.partition(" ")
        if now and members.is_signed(member, statement(row.host, row.name, row.number, "now", f"{at} ".encode() + data), now):
            spool.write(fd, wanted, at.encode())
        else:
            _unlink(fd, wanted)
    finally:
        os.close(fd)
    return ""


def is_urgent(entry: str) -> bool:
    """Whether somebody waits for what was laid down under this name: root of its host signed that it wants it now, and since it last failed here.

    So each time that root says so counts once, however often the database brings it. A host whose clock is wrong waits for the back-off."""
    name, _, kind = entry.rpartition(".")
    known = spool.parse_entry(entry)
    if kind != "csr" or known is None:
        return False
    try:
        with open(f"{spool.requests()}/{name}.now", "rb") as stream:
            at = stream.read(20)
    except OSError:
        return False
    failed = _formed(_noted(f"{known[0]}.json").get("failed_at"), _MOMENT)
    return at.isdigit() and float(str(failed or 0)) < int(at) < time.time() + AHEAD


def profile(name: str) -> str:
    """The profile that is configured here for the sites of a host, by the name that one of them has here; "" for none. What the host says of it is not
    signed, and the database could say it."""
    place = members.parse_tree_name(name)
    try:
        return members.load(protocol.HOSTS, place[0]).profile if place else ""
    except site.ConfigError:
        return ""                              # the signer says so


def forget(wanted: set[Row]) -> None:
    """Remove what this desk does not have any more. But a request that was answered stays for a day, unless a later one came: where the database lost its
    rows the same comes again, and is not ordered again. Raises OSError."""
    kept = {(members.tree_name(row.host, row.name), row.number) for row in wanted}
    newest: dict[str, int] = {}
    for name, number in kept:
        newest[name] = max(number, newest.get(name, 0))
    for (host, site_name, number), entry in replies().items():
        name = members.tree_name(host, site_name)
        with contextlib.suppress(OSError):
            if newest.get(name, 0) < number and time.time() - os.stat(f"{spool.replies()}/{entry}").st_mtime < DAY:
                kept.add((name, number))
    names = {name for name, _ in kept}
    for entry in os.listdir(spool.requests()):
        known = spool.parse_entry(f"{entry[:-4]}.csr" if entry.endswith(".sig") else f"{entry[:-5]}.csr" if entry.endswith(".past") else entry)
        if known is None or known[:2] not in kept:
            with contextlib.suppress(OSError):
                os.unlink(f"{spool.requests()}/{entry}")
    for parent, suffix in (("live", ""), ("sites", ""), ("keeper", ".json")):
        for entry in os.listdir(f"{site.STATE}/{parent}"):
            if entry.removesuffix(suffix) not in names:
                _clear(f"{site.STATE}/{parent}/{entry}")


def put_state(host: str, name: str, text: str) -> None:
    """Lay down what is known of a site: its newest certificate, and what root of its host noted. Raises OSError.

    A host's courier wrote that. The issuer reads it as it reads root's own files: so what is laid down has root's forms, whatever came.
    """
    name = members.tree_name(host, name)
    found = as_table(text)
    notes = {key: value for key, form in NOTED.items() if (value := _formed(found.get(key), form))}
    _put(f"{site.STATE}/keeper", f"{name}.json", json.dumps(notes).encode())
    number, live, cert = found.get("generation"), found.get("live"), _formed(found.get("cert"), CERTIFICATE)
    parent, link = f"{site.STATE}/sites/{name}", f"{site.STATE}/live/{name}"
    if not _is_number(number) or not isinstance(cert, dict) or len(cert) < len(CERTIFICATE):
        _clear(parent)
        _clear(link)
        return
    chain = _chain(found.get("chain"))
    entry = f"{number:04d}"
    os.makedirs(f"{parent}/{entry}", mode=0o755, exist_ok=True)
    for file, data in {"cert.json": json.dumps(cert).encode(), "cert.pem": chain[0] if chain else b"", "fullchain.pem": b"".join(chain),
                       "nginx.conf": b""}.items():
        _put(f"{parent}/{entry}", file, data)
    for other in os.listdir(parent):
        if other != entry:
            _clear(f"{parent}/{other}")
    if _is_number(live):
        _clear(f"{link}.new")
        os.symlink(f"../sites/{name}/{live:04d}", f"{link}.new")
        os.rename(f"{link}.new", link)
    else:
        _clear(link)


def replies() -> dict[tuple[str, str, int], str]:
    """What was answered, by (host, site, number): the entry of replies/."""
    found = {}
    for entry in os.listdir(spool.replies()):
        known = spool.parse_entry(entry)
        place = members.parse_tree_name(known[0]) if known and known[2] == "pem" else None
        if known and place:
            found[(*place, known[1])] = entry
    return found


def reply(entry: str) -> bytes:
    """A reply, as it goes down; nothing where it is none. Raises OSError."""
    fd = spool.open_directory(spool.replies())
    try:
        return b"".join(spool.pem_blocks(foreign.read(fd, entry, os.geteuid())))
    except (spool.Refused, FileNotFoundError):
        return b""
    finally:
        os.close(fd)


def ledger(row: Row) -> str:
    """What the issuer notes of a site, as it goes down."""
    name = members.tree_name(row.host, row.name)
    found: object = _noted(f"{name}.json")
    if row.kind == "revoke":
        found = _noted("revocations.json", 1 << 22).get(spool.entry(name, row.number, "revoke"))
    return json.dumps(found, sort_keys=True) if found else ""


def tell(found: dict[str, object]) -> None:
    """Leave for the watcher of this desk how the fleet stands. Raises OSError."""
    _put(f"{site.STATE}/report", "report.json", json.dumps(found).encode())


def away(why: str) -> None:
    """Leave for it that the database is away, and since when. What was seen before stays."""
    with contextlib.suppress(OSError, spool.Refused):
        fd = spool.open_directory(f"{site.STATE}/report")
        try:
            try:
                found = as_table(foreign.read(fd, "report.json", os.geteuid(), 1 << 22))
            except FileNotFoundError:
                found = {}
            spool.write(fd, "report.json", json.dumps({**found, "away": why, "away_since": found.get("away_since") or int(time.time())}).encode(), 0o644)
        finally:
            os.close(fd)


def _noted(entry: str, most: int = spool.MAX_REPLY) -> dict[str, object]:
    """What the issuer noted in a file of its own; nothing where it cannot be read."""
    try:
        fd = spool.open_directory(f"{site.STATE}/issuer")
        try:
            return as_table(foreign.read(fd, entry, os.geteuid(), most))
        finally:
            os.close(fd)
    except (OSError, spool.Refused):
        return {}


def _chain(text: object) -> list[bytes]:
    """The certificates of a chain that can be read wholly; others would raise what no reader of theirs expects (cryptography has exceptions of its own)."""
    try:
        blocks = spool.pem_blocks(str(text)[:spool.MAX_REPLY].encode("ascii", "replace"))
        for block in blocks:
            look_into(block)
    except Exception:                          # whatever it is, the chain is none
        return []
    return blocks


def look_into(pem: bytes) -> None:
    """Read of a certificate all that anybody reads of a live one. Raises whatever cryptography does."""
    from cryptography import x509
    one = x509.load_pem_x509_certificate(pem)
    for part in (one.version, one.serial_number, one.subject, one.issuer, one.not_valid_before, one.not_valid_after, one.signature_hash_algorithm):
        str(part)
    for extension in one.extensions:
        str(extension.value)


def _revocation(data: bytes) -> tuple[bytes, str]:
    """(what root signed, its signature) of a request to revoke; ("", "") where it is none."""
    found = as_table(data)
    sig = found.pop("sig", None)
    if not isinstance(sig, str) or not isinstance(found.get("payload"), dict):
        return b"", ""
    return json.dumps(found).encode(), sig


def _formed(value: object, form: object) -> object:
    """What of a value has a form; None for nothing. A form is a pattern for a text, a bound for a whole number from 0, or a table of such."""
    if isinstance(form, dict):
        found = {key: part for key, wanted in form.items() if (part := _formed(value.get(key), wanted)) is not None} if isinstance(value, dict) else {}
        return found or None
    if isinstance(form, int):
        return value if type(value) in (int, float) and 0 <= value < form else None        # type: ignore[operator]
    return value if isinstance(value, str) and re.fullmatch(str(form), value) else None


def _is_number(value: object) -> bool:
    return type(value) is int and 0 < value < 10 ** 9


def _put(parent: str, entry: str, data: bytes) -> None:
    fd = spool.open_directory(parent)
    try:
        with contextlib.suppress(FileNotFoundError, spool.Refused):
            if foreign.read(fd, entry, os.geteuid(), 1 << 20) == data:
                return                         # its time says when something changed
        spool.write(fd, entry, data, 0o644)
    finally:
        os.close(fd)


def _unlink(fd: int, entry: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(entry, dir_fd=fd)


def _clear(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

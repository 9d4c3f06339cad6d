"""What a host's courier carries: root's requests and the public state that a desk decides by, up; replies and the desk's ledger, down.

Runs as: _certdrop. Trusts: root's directories. Reads: requests/, sites/, live/, keeper/. Writes: replies/, issuer/NAME.json.
"""

from __future__ import annotations

import json
import os

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import database
from certdrop.fleet.database import Row
from certdrop.issuer import notes, posted

FROM_NOTES = ("refused", "install", "installed_at")    # of root's notes on a site, what a desk decides by


def requests() -> tuple[dict[Row, tuple[str, str, str]], list[str]]:
    """What root posted, as it goes up: (text, signature, signature for now) of each; and what of it cannot, in words. Raises OSError."""
    found: dict[Row, tuple[str, str, str]] = {}
    left = []
    for entry in sorted(os.listdir(spool.requests())):
        known = spool.parse_entry(entry)
        if known is None or known[2] == "now":
            continue
        name, number, kind = known
        text, sig, now = _text(entry), _text(spool.entry(name, number, "sig")), _text(spool.entry(name, number, "now"))
        if kind == "revoke":
            sig, now = "-", ""                 # it stands in it
        if not text or not sig:
            left.append(f"{name}: request {number:04d} is not signed for the fleet; sudo certdrop-fleet join --sign does that")
        elif len(text) > database.MOST or len(name) > 160:
            left.append(f"{name}: request {number:04d} is too long for the fleet")
        else:
            found[Row("", name, number, kind)] = text, sig, now
    return found, left


def states(names: set[str]) -> dict[str, str]:
    """What the desk decides by, of each of these sites."""
    return {name: text for name in sorted(names) if len(text := _state(name)) <= database.MOST_STATE}


def _state(name: str) -> str:
    request = posted.Request(name, 10 ** 9)
    standing = posted.Standing(request)
    found: dict[str, object] = {key: value for key, value in _notes(name).items() if key in FROM_NOTES}
    if standing.certificate:
        found["generation"] = int(os.path.basename(standing.place))
        found["chain"] = _text_of(f"{standing.place}/fullchain.pem")
        found["cert"] = {"sha256": standing.certificate.sha256, "not_before": int(standing.certificate.not_before),
                         "not_after": int(standing.certificate.not_after)}
    try:
        link = os.readlink(f"{site.STATE}/live/{name}").rpartition("/")[2]
        found["live"] = int(link) if link.isdecimal() else 0
    except OSError:
        pass
    return json.dumps(found, sort_keys=True)


def have(row: Row, chain: bytes, digest: str) -> bool:
    """Put an answer into the spool, if it is one, and the one that was announced; whether it did. Root is started for nothing else. Raises OSError."""
    if len(chain) > spool.MAX_REPLY or database.digest(chain) != digest or has(row, digest):
        return False
    try:
        spool.pem_blocks(chain)
    except spool.Refused:
        return False
    fd = spool.open_directory(spool.replies())
    try:
        spool.write(fd, spool.entry(row.name, row.number, "pem"), chain)
    finally:
        os.close(fd)
    return True


def has(row: Row, digest: str) -> bool:
    """Whether this answer lies in the spool."""
    try:
        with open(f"{spool.replies()}/{spool.entry(row.name, row.number, 'pem')}", "rb") as stream:
            return database.digest(stream.read(spool.MAX_REPLY + 1)) == digest
    except OSError:
        return False


def tidy(wanted: set[Row]) -> None:
    """Remove the replies that no request waits for."""
    kept = {spool.entry(row.name, row.number, "pem") for row in wanted}
    for entry in os.listdir(spool.replies()):
        if entry not in kept:
            try:
                os.unlink(f"{spool.replies()}/{entry}")
            except OSError:
                pass                           # a directory that somebody made there; it harms nobody


def note(name: str, said: str) -> None:
    """Keep what the desk says of a site, for those who read the ledger here. Raises OSError."""
    try:
        found = json.loads(said)
        fit = isinstance(found, dict) and all(isinstance(value, (int, str)) for value in found.values())
    except (ValueError, RecursionError):
        fit = False
    if fit and notes.table(f"{name}.json") != found:
        notes.put(f"{name}.json", json.dumps(found).encode())


def _notes(name: str) -> dict[str, object]:
    return database.as_table(_text_of(f"{site.STATE}/keeper/{name}.json"))


def _text(entry: str) -> str:
    return _text_of(f"{spool.requests()}/{entry}")


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read(spool.MAX_REPLY)
    except OSError:
        return ""

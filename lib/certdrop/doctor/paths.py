"""Looks at owners and modes: of every path in the one table, of what stands above, of certdrop's programs, and of all private keys.

Runs as: anyone. Trusts: the kernel. Reads: the table, and owners and modes. Writes: nothing.
"""

from __future__ import annotations

import os
import stat
import sys

from certdrop.config import layout
from certdrop.config import site as configuration
from certdrop.doctor.line import Line, verdict
from certdrop.watcher import order

PROGRAMS = ("certdrop", "certdrop-install", "certdrop-issue", "certdrop-watch")


def look() -> list[Line]:
    """All of it."""
    rows = layout.rows()
    table = [_parted(sentence) for sentence in layout.deviations()]
    above = sorted({parent for row in rows for parent in _parents(row.path)})
    closed = [(f"{path} is closed to others: what lies below it is out of reach for issuer, judge and watcher", f"chmod o+x {path}")
              for path in above if _is_closed(path)]
    if closed:                                 # the rest would be about what cannot be seen
        return verdict("directories", closed, "")
    found = verdict("directories", table + _open_to_others(above), f"all {len(rows)} have the owner and mode of the table, and nobody else can replace them")
    found += verdict("programs", _open_to_others(programs()), "root's alone: what sudo and cron start as root")
    return [*found, *verdict("private keys", keys(), "readable by root alone")]


def _is_closed(path: str) -> bool:
    try:
        return path not in {row.path for row in layout.rows()} and not os.stat(path).st_mode & 0o001
    except OSError:
        return False                           # said of that which is above


def _parted(sentence: str) -> tuple[str, str]:
    why, _, mend = sentence.partition("; ")
    return why, mend.removeprefix("mend with ")


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found


def _open_to_others(paths: list[str]) -> list[tuple[str, str]]:
    wrong = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError as error:
            wrong.append((f"{path}: {error.strerror}", "install the package again"))
            continue
        if path in {row.path for row in layout.rows()}:
            continue                                       # looked at by the table
        if found.st_uid != 0:
            wrong.append((f"{path} belongs to uid {found.st_uid}: who owns it can replace what root runs or trusts below it", f"chown root {path}"))
        elif found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            wrong.append((f"{path} can be written by others than root", f"chmod go-w {path}"))
    return wrong


def programs() -> list[str]:
    """Certdrop's programs and modules, and every directory above them."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    place = next((place for place in ("/usr/sbin", "/usr/local/sbin") if os.path.exists(f"{place}/certdrop-install")), "/usr/sbin")
    found = [f"{place}/{name}" for name in PROGRAMS]
    for folder, _, names in os.walk(here):
        found += [folder, *(f"{folder}/{name}" for name in names if name.endswith((".py", ".pyc")))]
    found.append(layout.TABLE)
    found += [os.path.realpath(sys.executable), *(f"/etc/{name}" for name in ("sudoers.d/certdrop", "cron.d/certdrop") if os.path.exists(f"/etc/{name}"))]
    return sorted({*found, *(parent for path in found for parent in _parents(path))})


def keys() -> list[tuple[str, str]]:
    """Every private key of every generation."""
    wrong = []
    parent = f"{configuration.STATE}/sites"
    for name in _entries(parent):
        for number in _entries(f"{parent}/{name}"):
            path = f"{parent}/{name}/{number}/privkey.pem"
            if os.path.lexists(path):
                wrong += [(sentence, f"chown root:root {path}; chmod 600 {path}; then certdrop rotate {name}")
                          for sentence in order.regular(path, 0o077, "is a private key that others than root may use")]
    return wrong


def _entries(path: str) -> list[str]:
    try:
        return sorted(entry for entry in os.listdir(path) if not entry.startswith("."))
    except OSError:
        return []

"""Looks for another ACME client that is still active for the same names: it spends the CA's limits, and may write over nginx's configuration.

Runs as: root, which alone can see all crontabs and the other clients' directories. Trusts: nothing of what it finds: it is searched for
words, and shown cleaned. Reads: crontabs, systemd's enabled timers, the directories that other clients keep. Writes: nothing.
"""

from __future__ import annotations

import os
import re
import stat

from certdrop import spool
from certdrop.config import site as configuration
from certdrop.doctor.line import OK, WARNING, Line
from certdrop.events import clean

CLIENTS = {"certbot": r"certbot|letsencrypt-auto", "dehydrated": r"dehydrated", "acme.sh": r"acme\.sh", "acme-tiny": r"acme[-_]tiny(?:\.py)?", "lego": r"lego",
           "uacme": r"uacme", "lacme": r"lacme", "getssl": r"getssl", "acmetool": r"acmetool", "simp_le": r"simp_le"}
# Where each keeps what it renews: a directory with an entry for each certificate, or a file that lists names.
KEPT = {"certbot": ("/etc/letsencrypt/renewal",), "dehydrated": ("/etc/dehydrated/domains.txt", "/var/lib/dehydrated/certs"),
        "acme.sh": ("/root/.acme.sh",), "lego": ("/root/.lego/certificates", "/var/lib/lego/certificates"), "uacme": ("/etc/ssl/uacme",),
        "lacme": ("/etc/lacme/lacme-certs.conf", "/etc/lacme/lacme-certs.conf.d"), "getssl": ("/root/.getssl",), "acmetool": ("/var/lib/acme/desired",)}
TABLES = ("/etc/crontab", "/etc/anacrontab")
FOLDERS = ("/etc/cron.d", "/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly", "/etc/cron.monthly", "/var/spool/cron/crontabs")
WANTS = ("/etc/systemd/system/timers.target.wants", "/usr/lib/systemd/system/timers.target.wants", "/run/systemd/system/timers.target.wants")
MOST = 500                         # entries of a directory that are read
SUFFIXES = (".conf", ".key", ".crt", ".json", "_ecc", ".cnf")


def look(sites: list[configuration.Site]) -> list[Line]:
    """A line for each client that runs by itself and keeps one of our names."""
    ours = {domain: found.name for found in sites for domain in found.domains}
    jobs = [(path, line) for path in [*TABLES, *(path for folder in FOLDERS for path in _in(folder))] for line in _lines(path)]
    jobs += [(path, os.path.basename(path)) for folder in WANTS for path in _in(folder)]
    lines = []
    for client, words in CLIENTS.items():
        pattern = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])")
        active = next((path for path, line in jobs if pattern.search(line) and "/certdrop" not in path), "")
        shared = sorted(ours.keys() & kept(client)) if active else []
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            lines.append(Line(WARNING, "other clients", f"{client} is still active ({clean(active, 100)}) for {shared[0]}{more}: it spends the CA's limits, "
                              "and may write over nginx's configuration", f"take that away once certdrop serves {ours[shared[0]]}; see certdrop-import(8)"))
    return lines or [Line(OK, "other clients", "none is active for these names")]


def kept(client: str) -> set[str]:
    """The names that a client keeps certificates for, as far as its files' names and its lists say."""
    found: set[str] = set()
    for path in KEPT.get(client, ()):
        if os.path.isdir(path):
            for entry in _in(path):
                name = os.path.basename(entry)
                for suffix in SUFFIXES:
                    name = name.removesuffix(suffix)
                found.add(name.lower())
                found |= _words(entry) if entry.endswith((".conf", ".json")) else set()
        else:
            found |= _words(path)
    return found


def _words(path: str) -> set[str]:
    return {word.lower() for line in _lines(path) for word in re.findall(r"[\w.-]+\.[\w-]+", line)}


def _in(folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in sorted(os.listdir(folder))[:MOST] if not name.startswith(".") or folder.startswith("/root")]
    except OSError:
        return []


def _lines(path: str) -> list[str]:
    """The lines of a small plain file that are no comments; its owner is whoever it is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        text = stream.read(spool.MAX_REPLY).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]

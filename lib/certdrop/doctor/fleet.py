"""Looks at what is true on a host of a fleet: it needs no account and no way to the CA, but the fleet's database, a key that a desk knows, and challenges
that lead to the desks.

Runs as: _certdrop-watch, or anyone; as_root() has certdrop-courier ask the database, which _certdrop alone can. Trusts: root's files; of what the courier
says, nothing but what is shown, cleaned. Reads: /etc/certdrop/fleet, nginx's snippet. Writes: nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from certdrop import spool
from certdrop.config import dane
from certdrop.config import site as configuration
from certdrop.doctor.ask import ask
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.doctor.names import OF_A_DESK
from certdrop.events import clean, stamp
from certdrop.nginx import snippets
from certdrop.watcher import evidence

TOKEN = "certdrop-desk"            # what every desk answers below the path of challenges: its name, and its content
ANY = "certdrop-check-any"         # as long as a token: what a host answers that has the account's key in its snippet
AUTHORITY = OF_A_DESK
COURIER = "/usr/sbin/certdrop-courier"
SOON = 60 * 86400.0                # seconds before the end of a certificate for the database
AGAIN = "certdrop-fleet join, enrol on the desk, and join --answer again: docs/fleet.md"


def is_host() -> bool:
    """Whether this is a host of a fleet."""
    return os.path.exists(f"{configuration.ETC}/fleet/host.toml")


def desk() -> str:
    """The name that challenges are to lead to, as nginx's snippet says; "" where there is none."""
    return _in_snippet(r"return 302 http://([a-z0-9.-]+)\$request_uri;") if is_host() else ""


def key() -> str:
    """The account's key by which this host answers challenges itself; "" where it leads them to a desk."""
    return _in_snippet(r'return 200 "\$1\.([A-Za-z0-9_-]{43})";')


def token() -> list[str]:
    """What comes back where challenges are as they should be: its name, and its content."""
    return [ANY, f"{ANY}.{key()}"] if key() else [TOKEN, TOKEN]


def _in_snippet(pattern: str) -> str:
    try:
        with open(snippets.FLEET, encoding="utf-8", errors="replace") as stream:
            found = re.search(f"^ *{pattern}", stream.read(spool.MAX_REPLY), re.M)
    except OSError:
        return ""
    return found[1] if found else ""


def as_root(offline: bool) -> list[Line]:
    """What only root can see or have asked: the key by which it signs, and the database."""
    lines = []
    try:
        with open(f"{configuration.ETC}/fleet/sign.key", encoding="ascii") as stream:
            lines.append(Line(OK, "fleet", f"this host is {clean(stream.read(200).split()[0], 40)}; root signs what it posts"))
    except (OSError, ValueError, IndexError) as error:
        lines.append(Line(FAILED, "fleet", f"{configuration.ETC}/fleet/sign.key cannot be used ({clean(error, 100)}): no desk believes what is posted", AGAIN))
    return lines if offline else lines + database(*ask(COURIER, "--check", most=spool.MAX_REPLY))


def database(code: int, out: str, words: str) -> list[Line]:
    """What `certdrop-courier --check` said."""
    if code:
        why = clean(words.partition("certdrop-courier: ")[2] or words or out or f"{COURIER} cannot be run", 300)
        return [Line(FAILED, "database", f"{why}; nothing is renewed until then; what is live stays",
                     "see firewall, resolver and the database server's log; a host that was withdrawn joins again under another name")]
    said, *refused = out.splitlines() or [""]
    lines = [Line(OK, "database", clean(said, 200))]
    return lines + [Line(FAILED, "desk", f"it refuses what this host posted: {clean(text.removeprefix('refused: '), 300)}",
                         "on the desk: certdrop-fleet list shows which hosts it believes, and for which names") for text in refused[:5]]


def look(by_root: list[Line]) -> list[Line]:
    """All of it; what root saw first."""
    lines = [*by_root] or [Line(WARNING, "database", "only root can have the database asked", "sudo certdrop-check")]
    lines += [line for entry in ("host.pem", "ca.pem") for line in _ends(f"{configuration.ETC}/fleet/{entry}")]
    lines += [Line(FAILED, f"{name}: TLSA", f'tlsa = "{dane.CHECK}" has no effect in a fleet: the desk orders without waiting for the record of the next key',
                   "take tlsa out of the site's file, and keep its key (key_max_age), or publish the next key's record before") for name in _checked()]
    where = desk()
    if where:
        lines.append(Line(OK, "CA", f"a desk talks to it: this host needs no account, and no way there; challenges lead to {where}"))
    elif key():
        lines.append(Line(OK, "CA", "a desk talks to it: this host needs no account, and no way there; challenges are answered here, by the account's key"))
    elif os.path.exists(snippets.FLEET):
        lines.append(Line(WARNING, "challenges", f"{snippets.FLEET} leads to no validation name", AGAIN))
    else:
        lines.append(Line(FAILED, "challenges", f"{snippets.FLEET} is not there: nothing leads challenges to a desk", AGAIN))
    return lines


def _checked() -> list[str]:
    """The sites that are to wait for a TLSA record."""
    found = []
    with contextlib.suppress(configuration.ConfigError):       # said of each site
        for name in configuration.site_names():
            found += [name] if dane.is_checked(name) else []
    return found


def _ends(path: str) -> list[Line]:
    what = "the fleet's CA" if path.endswith("/ca.pem") else "this host's certificate for the database"
    try:
        with open(path, "rb") as stream:
            end = evidence.parse(stream.read(spool.MAX_REPLY)).not_after
    except (OSError, ValueError) as error:
        return [Line(FAILED, "database", f"{path} cannot be read ({clean(error, 100)})", AGAIN)]
    left = end - time.time()
    if left > SOON:
        return [Line(OK, "database", f"{what} is good until {stamp(end)}")]
    return [Line(FAILED if left <= 0 else WARNING, "database", f"{what} {'has ended' if left <= 0 else 'ends'} at {stamp(end)}", AGAIN)]

"""What certdrop-check says of sites: the one place where a token is fetched as a CA would, for whoever has to know whether challenges come through.

Runs as: root, by hand. Trusts: certdrop-check, which looks as _certdrop-watch; its words are cleaned. Reads, writes: nothing (certdrop-check puts a token).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from certdrop import events
from certdrop.walls import users

CHECK = "/usr/sbin/certdrop-check"
PATIENCE = 300                     # seconds for all of it


class Failure(NamedTuple):
    """A line of what failed: what was looked at, why, and what mends it."""

    what: str
    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" + (f"; {self.mend}" if self.mend else "")


def in_the_way(names: Iterable[str]) -> list[Failure]:
    """What keeps the CA from issuing for these sites: one for each thing to mend. Nothing where it could not be looked at."""
    said: dict[str, Failure] = {}
    for one in _failures("--issuing", names):
        said.setdefault(one.mend or one.why, one)
    return [*said.values()]


def of_new(domains: Iterable[str]) -> dict[str, list[Failure]]:
    """The same for domains that no site has yet, by domain: those with nothing in the way are not in it."""
    found: dict[str, list[Failure]] = {}
    for one in _failures("--new", domains):
        found.setdefault(one.what.rpartition(": ")[0], []).append(one)
    return found


def _failures(how: str, names: Iterable[str]) -> list[Failure]:
    try:
        done = subprocess.run([CHECK, how, "--quiet", "--json", *names], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              cwd="/", env=users.ENVIRONMENT, start_new_session=True, timeout=PATIENCE, check=False)
        lines = json.loads(done.stdout)
        return [Failure(*(events.clean(str(line[key]), 600).strip() for key in ("what", "why", "mend"))) for line in lines if line["level"] == "failed"]
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError):
        return []                              # what the CA said is said in any case


def at_port_80(names: Iterable[str]) -> list[Failure]:
    """The tokens that do not come to this host's port 80."""
    return [one for one in in_the_way(names) if one.what.endswith(": port 80")]

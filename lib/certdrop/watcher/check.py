"""certdrop-check: says what is wrong with this installation, why that matters, and how to mend it.

Runs as: anyone; started by root it looks at what only root may see (check_users.as_root), then goes on as _certdrop-watch, in a session
of its own. Trusts: the kernel, root's files. Reads: owners and modes, the user database, /proc/sys, root's configuration. Writes: standard output.
"""

from __future__ import annotations

import json
import os
import sys

from certdrop import events
from certdrop.watcher import check_kernel, check_paths, check_sites, check_users
from certdrop.watcher.check_line import FAILED, OK, WARNING, Line
from certdrop.watcher.principal import as_watcher, seen_by_root

USAGE = "usage: certdrop-check [--json]"
MARKS = {OK: "ok     ", WARNING: "warning", FAILED: "failed "}


def main(argv: list[str]) -> int:
    """The program; returns 0 where nothing failed, 78 where something did, 64 for usage."""
    if argv == ["--help"]:
        print(USAGE)
        return os.EX_OK
    if argv not in ([], ["--json"]):
        print(USAGE, file=sys.stderr)
        return os.EX_USAGE
    privileged = check_users.as_root() if os.geteuid() == 0 else None
    try:
        return as_watcher("certdrop-check", argv, lambda: show(everything(_handed_over()), bool(argv)), os.EX_SOFTWARE, json.dumps(privileged).encode())
    except KeyError as error:
        return show([*everything(privileged), Line(FAILED, "users", events.clean(error), "install the package again")], bool(argv))


def _handed_over() -> list[Line] | None:
    """What root saw, where it started this."""
    seen = seen_by_root()
    return None if seen is None else [Line(*line) for line in json.loads(seen)]


def everything(privileged: list[Line] | None) -> list[Line]:
    """All that is looked at, in order. `privileged` is what root saw before; None where nobody could look."""
    if privileged is None:
        privileged = [Line(WARNING, "sudo", "only root can see what sudo allows, and locked passwords", "run certdrop-check as root")]
    return [*check_users.look(), *privileged, *check_paths.look(), *check_kernel.look(), *check_sites.look()]


def show(lines: list[Line], as_json: bool) -> int:
    """Print the lines; the exit code."""
    if as_json:
        print(json.dumps([line._asdict() for line in lines], indent=1))
    else:
        for line in lines:
            print(f"{MARKS[line.level]} {line.what}: {line.why}" + (f"; {line.mend}" if line.mend else ""))
        count = {level: sum(line.level == level for line in lines) for level in MARKS}
        print(f"{count[OK]} ok, {count[WARNING]} to be looked at, {count[FAILED]} failed")
    return os.EX_CONFIG if any(line.level == FAILED for line in lines) else os.EX_OK

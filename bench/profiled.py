#!/usr/bin/python3
"""Runs certdrop-issue or certdrop-install under a profile, children and threads included: profiled.py OUTPUT PROGRAM [ARGUMENT]...

Each process writes OUTPUT.PID: a JSON list of [function, calls, own seconds].  The files are opened before the issuer shuts itself in.
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
import threading
from typing import Any, TextIO

sys.path[:0] = ["/usr/share/certdrop"]

PROFILES: list[cProfile.Profile] = []


def begin(*_: object) -> None:
    """Profile this thread from here on."""
    found = cProfile.Profile()
    PROFILES.append(found)
    found.enable()


def end(stream: TextIO) -> None:
    rows: dict[str, list[Any]] = {}
    for one in PROFILES:
        try:
            one.create_stats()
        except Exception:              # of a thread that has ended
            continue
        for (path, _, name), (calls, _, own, _, _) in one.stats.items():          # type: ignore[attr-defined]
            row = rows.setdefault(f"{path}:{name}", [f"{path}:{name}", 0, 0.0])
            row[1] += calls
            row[2] += own
    json.dump(list(rows.values()), stream)
    stream.flush()


def main() -> int:
    output, program, *arguments = sys.argv[1:]
    stream = open(f"{output}.{os.getpid()}", "w", encoding="utf-8")
    fork, leave = os.fork, os._exit
    mine = [stream]

    def forked() -> int:
        child = fork()
        if child == 0:
            PROFILES.clear()
            sys.setprofile(None)
            mine[0] = open(f"{output}.{os.getpid()}", "w", encoding="utf-8")
            begin()
        return child

    def left(code: int) -> None:
        try:
            end(mine[0])
        except OSError:
            pass                       # the signer keeps no descriptor of ours
        finally:
            leave(code)

    os.fork, os._exit = forked, left          # type: ignore[assignment]
    threading.setprofile(begin)
    begin()
    if program.endswith("issue"):
        from certdrop.issuer.command import main as work
    else:
        from certdrop.keeper.command import main as work
    code = work(arguments)
    end(mine[0])
    return code


if __name__ == "__main__":
    sys.exit(main())

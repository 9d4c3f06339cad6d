"""Asks a program of the system something, in a session of its own, without a terminal.

Runs as: root, or whoever imports it. Trusts: the program, which is root's. Reads: what it prints. Writes: nothing.
"""

from __future__ import annotations

import subprocess
from typing import NamedTuple

from certdrop import events, jail

TIMEOUT = 30                       # seconds
MOST = 32 << 20                    # bytes that are looked at


class Said(NamedTuple):
    """How it ended (-1: not at all), and what it said."""

    code: int
    out: str
    words: str                     # of its standard error, cleaned


def ask(*argv: str) -> Said:
    """Run it to its end. Raises nothing: a program that is not there, or does not end, says so in `words`."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT, env=jail.ENVIRONMENT,
                              cwd="/", start_new_session=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else f"did not end within {TIMEOUT} s"
        return Said(-1, "", f"{argv[0]}: {why}")
    return Said(done.returncode, done.stdout[:MOST].decode("utf-8", "replace"), events.clean(done.stderr.decode("utf-8", "replace").strip(), 300))

"""Asks a program of the system something, in a session of its own, without a terminal.

Runs as: root, or whoever imports it. Trusts: nothing of what it says: it is bounded in time and size. Reads: its output. Writes: nothing.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from typing import NamedTuple

from certdrop import events
from certdrop.walls import users

TIMEOUT = 30.0                     # seconds
AFTER = 5.0                        # seconds it may still take when it has said all
MOST = 32 << 20                    # bytes of its output; an nginx with a thousand sites says some megabytes


class Said(NamedTuple):
    """How it ended (-1: not at all), and what it said."""

    code: int
    out: str
    words: str                     # of its standard error, cleaned


def ask(*argv: str, most: int = MOST, seconds: float = 0.0) -> Said:
    """Run it to its end, or for so many seconds (TIMEOUT, if none are given).

    Raises nothing: a program that is not there, or does not end, or says too much, says so in `words`."""
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=users.ENVIRONMENT, cwd="/",
                                   start_new_session=True)
    except OSError as error:
        return Said(-1, "", f"{argv[0]}: {error.strerror}")
    with process:
        out, error_text, trouble = _listen(process, argv[0], most, seconds or TIMEOUT)
        try:
            code = process.wait(0 if trouble else AFTER)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)             # not reaped yet, so the number is still its own
            trouble = trouble or f"{argv[0]} says no more, and does not end"
            code = process.wait()
    return Said(-1 if trouble else code, out.decode("utf-8", "replace"), trouble or events.clean(error_text.decode("utf-8", "replace").strip(), 300))


def _listen(process: subprocess.Popen[bytes], name: str, most: int, seconds: float) -> tuple[bytes, bytes, str]:
    """What it said until both ends are closed; the last is what went wrong."""
    said = {"out": b"", "error": b""}
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for which, stream in (("out", process.stdout), ("error", process.stderr)):
            if stream:
                selector.register(stream, selectors.EVENT_READ, which)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                return said["out"], said["error"], f"{name} did not end within {seconds:.0f} s"
            for key, _ in ready:
                more = os.read(key.fd, 1 << 20)
                said[key.data] += more
                if not more:
                    selector.unregister(key.fileobj)
            if sum(map(len, said.values())) > most:
                return said["out"], said["error"], f"{name} says too much"
    return said["out"], said["error"], ""

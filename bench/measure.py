"""How long a command takes, how much processor time it and its children use, and how large the largest of them grows."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO, Callable, Mapping, Sequence

LONGEST = 900.0                    # seconds
ORPHANS = 3.0                      # seconds for what a command leaves behind to end
SUBREAPER = 36                     # PR_SET_CHILD_SUBREAPER


class Failed(Exception):
    """A command that is measured ended badly; what it says is in the text."""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, seconds of processor (user and system, children included), MiB of the largest process (0: not looked at)."""

    wall: float
    cpu: float
    memory: float = 0.0


def run(argv: Sequence[str], user: str = "", with_memory: bool = False) -> Cost:
    """Run a command to its end once; `with_memory` through time(1), which costs a millisecond (what we would see ourselves counts what a child
    inherits at fork as its own). The processor time of what the command leaves behind for a moment is its own, too. Raises Failed."""
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile("r") as found, tempfile.TemporaryFile("w+") as told:
        os.chmod(found.name, 0o666)
        wrapper = ["/usr/bin/time", "-q", "-o", found.name, "-f", "%M"] if with_memory else []
        reaper = os.fork()
        if reaper == 0:
            try:
                json.dump(_reaped([*wrapper, *argv], user, output), told)
                told.flush()
            finally:
                os._exit(0)
        os.waitpid(reaper, 0)
        told.seek(0)
        code, wall, cpu = json.loads(told.read() or "[-1, 0, 0]")
        if code:
            output.seek(0)
            raise Failed(f"{' '.join(argv)[:300]}: exit {code}: {output.read().decode('utf-8', 'replace')[-2000:]}")
        return Cost(wall, cpu, int(found.read().split()[-1]) / 1024 if with_memory else 0.0)


def _reaped(argv: Sequence[str], user: str, output: IO[bytes]) -> tuple[int, float, float]:
    """(exit code, seconds by the clock, of processor), in a process that all orphans of the command's come to (prctl(2))."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    more = {"user": user, "group": user, "extra_groups": []} if user else {}
    began = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/", **more)  # type: ignore[call-overload]
    alarm = threading.Timer(LONGEST, process.kill)
    alarm.start()
    process.wait()
    wall = time.monotonic() - began
    alarm.cancel()
    try:
        while time.monotonic() < began + wall + ORPHANS:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.002)
    except ChildProcessError:
        pass
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process.returncode, wall, usage.ru_utime + usage.ru_stime


def median(costs: Sequence[Cost]) -> Cost:
    """The median of the times, and the largest memory."""
    return Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs), max(cost.memory for cost in costs))


def rounds(commands: Mapping[str, Callable[[bool], Cost]], count: int, patience: float) -> dict[str, Cost]:
    """The median of `count` runs of each, in turns, so that what else the machine does meets all; one that takes longer than `patience` runs once.

    A command is told whether its memory is to be looked at: in the first round.
    """
    found: dict[str, list[Cost]] = {}
    for number in range(count):
        for name, command in commands.items():
            if not number or found[name][0].wall <= patience:
                found.setdefault(name, []).append(command(not number))
    return {name: median(costs) for name, costs in found.items()}

"""How long a command takes, how much processor time it and its children use, and how large the largest of them grows."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

LONGEST = 900.0                    # seconds


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
    inherits at fork as its own). Raises Failed."""
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile("r") as found:
        os.chmod(found.name, 0o666)
        wrapper = ["/usr/bin/time", "-q", "-o", found.name, "-f", "%M"] if with_memory else []
        more = {"user": user, "group": user, "extra_groups": []} if user else {}
        began = time.monotonic()
        process = subprocess.Popen([*wrapper, *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/",
                                   **more)  # type: ignore[call-overload]
        alarm = threading.Timer(LONGEST, process.kill)
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise Failed(f"{' '.join(argv)[:300]}: exit {process.returncode}: {output.read().decode('utf-8', 'replace')[-2000:]}")
        return Cost(wall, usage.ru_utime + usage.ru_stime, int(found.read().split()[-1]) / 1024 if with_memory else 0.0)


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

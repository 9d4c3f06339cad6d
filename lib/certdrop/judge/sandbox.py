"""The sandbox: one child per case, shut in before the first hostile byte, with a pipe of its own to answer through.

A child that dies, hangs or babbles costs its own case alone. Runs as: _certdrop-judge. Trusts:
nothing that a child says but that it is one line. Reads and writes: pipes.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import time
from collections.abc import Callable

from certdrop.walls import jail, syscalls

DEADLINE = 10.0                    # seconds for one case
LIMIT = 300                        # bytes of an answer
MEMORY = 1 << 30                   # bytes of address space


def run(case: Callable[[], str], limit: int = LIMIT, deadline: float = DEADLINE) -> str:
    """The one line that `case` answers in a child that is shut in; "" where it gives none in so many seconds."""
    filtering = _filter()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.close(0)
            os.close(1)
            shut_in(filtering)
            os.write(writer, case().encode("ascii", "replace")[:limit])
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    try:
        return _answer(reader, limit, deadline)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@functools.cache
def _filter() -> syscalls.Filter | None:
    """Made once, where files can still be opened; None where there is none to be had, as certdrop-check says."""
    try:
        return syscalls.Filter(syscalls.SANDBOX)
    except jail.Unconfined:
        return None


def shut_in(filtering: syscalls.Filter | None = None) -> None:
    """No file, no descriptor, no process, no network, little memory and time. Raises jail.Unconfined only where no kernel we know would."""
    jail.give_up_privileges()
    jail.forbid(NPROC=0, FSIZE=0, CORE=0, CPU=int(DEADLINE), AS=MEMORY)
    if jail.landlock_abi():
        jail.landlock(ports=())
    jail.forbid(NOFILE=0)          # after Landlock: its own descriptor was the final one
    if filtering:
        try:
            filtering.enter()
        except jail.Unconfined:
            pass                   # the other walls stand


def _answer(fd: int, limit: int, deadline: float) -> str:
    end = time.monotonic() + deadline
    data = b""
    while len(data) <= limit and select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
        more = os.read(fd, limit + 1)
        if not more:
            return data.decode("ascii", "replace")
        data += more
    return ""

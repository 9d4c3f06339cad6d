"""How root becomes somebody else: by a program that is executed as that user, with nothing of root's, while root stays and shows what it says.

It has a session of its own (TIOCSTI, CVE-2005-4890), /dev/null or a pipe to read from, pipes to write to, no other descriptor, an environment
made anew, and none of root's memory. Root copies its words, cleaned, and neither waits for what it leaves behind nor longer than it must.
Runs as: root, to become another user; anyone at a terminal, to do the same work away from it. Trusts: of the other's words, that they are text.
"""

from __future__ import annotations

import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from certdrop import TERMINAL, terminal, words
from certdrop.walls import session, users

SEEN = "CERTDROP_SEEN"             # set where standard input is what root saw
LOOK = 0.2                         # seconds between two looks whether a process has ended
AFTER = 1.0                        # seconds in which its last words come, when it has
KILLED = 5.0                       # seconds for a process that was killed to be gone

_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,39}")


class Stopped(Exception):
    """It was ended, because it did not end in time; the text says so."""


class Interrupted(Stopped):
    """It was ended by a person, who does not wait any more."""


def is_due() -> bool:
    """Whether this process must not do the work itself: it is root, or has a terminal, which what talks to others must not have."""
    return os.geteuid() == 0 or any(map(os.isatty, (0, 1, 2)))


def run(user: str, argv: list[str], patience: float, seen: bytes = b"", out: int = 1, colours: bool = False, outlives: bool = False) -> int:
    """Run a program as `user` ("" for ours) and show what it says; its exit code, below 0 for the signal that ended it.

    `seen` is handed to it, `out` takes its standard output, and it may take `patience` seconds. Where nobody reads any more it ends, unless it
    `outlives` that. Raises KeyError where there is no such user, Stopped, and OSError.
    """
    sys.stdout.flush()
    process, end = start(user, argv, seen), time.monotonic() + patience
    try:
        if process.stdin:
            try:
                words.put(process.stdin.fileno(), seen)
            except (BrokenPipeError, TimeoutError):
                pass                           # it died, as its exit code says, or was stopped
            process.stdin.close()
        streams = {stream.fileno(): fd for stream, fd in ((process.stdout, out), (process.stderr, 2)) if stream}
        relay(process.pid, streams, terminal.LineByLine(colours).cleaned, outlives, end)
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise Stopped(f"no end within {patience:.0f} s") from None
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    finally:
        kill(process)


def as_user(uid: int, gid: int) -> list[str]:
    """What stands before a command so that it runs as a user, with no other group: subprocess's own `user` would not do.

    A child has the user's uid there before it executes anything, and root waits for that without a limit, while others of that uid can stop it.
    """
    return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]


def start(user: str, argv: list[str], seen: bytes = b"", talk: bool = False) -> subprocess.Popen[bytes]:
    """The program, begun; with `talk` its input is a pipe that stays open. Raises KeyError, OSError."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)             # whoever started us may have had it ignored: waiting would fail
    before = as_user(*users.user_ids(user)) if user else []
    lacking = users.lacking(users.BECOMING) if user else ""
    if lacking:
        raise OSError(f"root lacks {lacking} here, and cannot become {user}; give it back in the unit or container that took it away")
    return subprocess.Popen([*before, *argv], cwd="/", umask=0o077, env=environment(seen), start_new_session=True, bufsize=0,
                            stdin=subprocess.PIPE if seen or talk else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill it, where it has not ended; whether it is gone: one that hangs in the kernel is waited for no longer than that."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)            # not reaped yet, so the number is still its own
        except ProcessLookupError:
            pass
    try:
        process.wait(KILLED)
    except subprocess.TimeoutExpired:
        return False
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
    return True


def environment(seen: bytes = b"") -> dict[str, str]:
    """All that the other gets of ours: what a terminal is like."""
    found = {}
    if _TERM.fullmatch(os.environ.get("TERM", "")):
        found["TERM"] = os.environ["TERM"]
    if os.environ.get("NO_COLOR"):         # an empty one says nothing (no-color.org)
        found["NO_COLOR"] = "1"
    terminals = [fd for fd in (0, 1, 2) if words.at_terminal(fd)]
    width = next((os.get_terminal_size(fd).columns for fd in terminals if os.isatty(fd)), 0)
    return {**users.ENVIRONMENT, **found, **({"COLUMNS": str(width)} if width else {}), **({SEEN: "1"} if seen else {}),
            TERMINAL: "".join(map(str, terminals))}


def relay(child: int, streams: dict[int, int], shown: Callable[[int, bytes], bytes], outlives: bool = True, end: float = math.inf) -> bool:
    """Copy what a child writes (descriptor to read: descriptor to write) until it has ended: what it left behind, with a pipe still open, is not waited for.

    `shown` makes of what came what is written; it gets nothing when nothing more comes. Where that is not taken it is lost, if the child
    `outlives` that. False at `end` (monotonic), True otherwise. Raises OSError, and KeyboardInterrupt also where this process was told `interrupted`.
    """
    waiting, lost, ended = dict(streams), set[int](), math.inf
    while waiting and ended > time.monotonic() - AFTER:
        ready = select.select([*waiting], [], [], LOOK)[0]
        for fd in ready:
            data = os.read(fd, 1 << 16)
            _pass_on(waiting[fd], shown(fd, data), lost, outlives)
            if not data:
                del waiting[fd]
        if session.interrupted:
            raise KeyboardInterrupt
        if time.monotonic() > end:
            return False
        if ended == math.inf and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            ended = time.monotonic()
        if ended < math.inf and not ready:
            break
    for fd, to in waiting.items():
        _pass_on(to, shown(fd, b""), lost, outlives)
    return True


def _pass_on(fd: int, data: bytes, lost: set[int], outlives: bool) -> None:
    if data and fd not in lost:
        try:
            words.put(fd, data)
        except OSError:
            if not outlives:
                raise
            lost.add(fd)

"""Asks the judge: starts it as _certdrop-judge, hands it cases by pipe, believes one line of a fixed form about each.

A judge that dies, hangs or answers nonsense costs the case at hand, and the next case has a new judge.
Runs as: root. Trusts: an answer's form, for its own case only. Reads and writes: pipes.
"""

from __future__ import annotations

import json
import os
import re
import select
import struct
import time
from typing import TYPE_CHECKING

from certdrop import events, spool
from certdrop.walls import users

if TYPE_CHECKING:
    import subprocess

USER = "_certdrop-judge"
DEADLINE = 15.0                    # seconds for one answer; the sandbox's own is shorter

_ACCEPT = r"accept ([0-9a-f]{64}) ([0-9]{1,12}) ([0-9]{1,12}) ([0-9a-f]{64}) ([0-9a-f]{64})"
_SHOWN = r"[0-9a-f]{64}|nobody|nothing"


class Accepted:
    """What the judge says of a reply that it accepts: the leaf's SHA-256 in hex, its dates in seconds since 1970, and, where they are known,
    the SHA-256 of what is signed in it, and of issuer and serial number: with another signature it is still the same certificate."""

    def __init__(self, sha256: str, not_before: int, not_after: int, tbs: str = "", issued: str = "") -> None:
        self.sha256, self.not_before, self.not_after, self.tbs, self.issued = sha256, not_before, not_after, tbs, issued


class Judge:
    """One of the judge's two tasks, as something to ask. Use as a context."""

    program, limit = "judge/__main__.py", 300  # what it runs, and the longest answer

    def __init__(self, *task: str) -> None:
        self.task = task
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, *parts: bytes) -> str:
        """The answer's line; "" where there is none in time (and then this judge is ended). Raises OSError where it cannot load what it needs."""
        said = answer = ""
        try:
            self.start()
            said = "ready" if self._ready else self._line()
            if said == "ready":
                self._ready = True
                self._send(struct.pack(f">I{len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts))
                answer = self._line()
        except OSError:
            answer = ""
        if not answer:
            self.end()
        if said.startswith("lacks "):          # nobody's fault, and over when apt is done
            raise OSError(f"the judge cannot load what it needs: {events.clean(said[6:])}")
        return answer

    def end(self) -> None:
        """Kill the judge and all it started (they share a session), and wait for it."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, 9)
        except OSError:
            pass
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        self.process.wait()
        self.process, self._ready = None, False

    def start(self) -> None:
        """Have it load what it needs; nobody waits for that before the first question. Raises OSError."""
        if self.process is not None:
            return
        import subprocess                      # here, because most runs start no judge
        users.user_ids(USER)
        program = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), self.program)
        apart = users.unshare(users.NEWPID)      # process 1 of its own: it can name neither us nor the other task's by a number
        try:
            self.process = subprocess.Popen(
                ["/usr/bin/python3", "-I", "-S", program, *self.task], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, cwd="/", env=users.ENVIRONMENT, start_new_session=True, preexec_fn=self._lose_privileges)
        finally:
            if apart:
                users.fork_here_again()
        if self.process.stdin:
            os.set_blocking(self.process.stdin.fileno(), False)

    def _lose_privileges(self) -> None:
        """Between fork and exec. Popen's own `user` would come before preexec_fn, and then no namespace can be made any more."""
        users.unshare(users.NEWIPC, users.NEWPID)
        if self.task[0] != "served":
            users.unshare(users.NEWNET)
        users.become(USER)

    def _send(self, data: bytes) -> None:
        end, view = time.monotonic() + DEADLINE, memoryview(data)
        stream = self.process.stdin if self.process else None
        while view and stream:
            if not select.select([], [stream], [], max(0.0, end - time.monotonic()))[1]:
                raise TimeoutError
            view = view[os.write(stream.fileno(), view[:4096]):]

    def _line(self) -> str:
        end, data = time.monotonic() + DEADLINE, b""
        stream = self.process.stdout if self.process else None
        while stream and not data.endswith(b"\n"):
            if len(data) > self.limit or not select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
                return ""
            more = os.read(stream.fileno(), 256)
            if not more:
                return ""
            data += more
        return data[:-1].decode("ascii", "replace")


def ask_chain(judge: Judge, expected: dict[str, object], reply: bytes) -> Accepted:
    """What the judge accepts. Raises spool.Refused with the judge's reason, or `judge-failed`."""
    answer = judge.ask(json.dumps(expected).encode(), reply)
    found = re.fullmatch(_ACCEPT, answer)
    if found and int(found[2]) <= time.time() < int(found[3]):     # else later replies would be replays, or this one never due
        return Accepted(found[1], int(found[2]), int(found[3]), found[4], found[5])
    reason = answer.removeprefix("refuse ")
    raise spool.Refused(reason if answer.startswith("refuse ") and reason in spool.REASONS else "judge-failed")


def ask_served(judge: Judge, place: tuple[str, int, str], name: str, key: str, verify: bool = False) -> str:
    """The SHA-256 in hex of the leaf shown there for `name`, to who likes this kind of key ("ecdsa", "rsa"), or `nobody` (no connection),
    or `nothing` (no handshake; with `verify`, no good one)."""
    question = json.dumps({"address": place[0], "port": place[1], "name": name, "key": key, "preface": place[2], "verify": verify})
    answer = judge.ask(question.encode())
    return answer if re.fullmatch(_SHOWN, answer) else "nothing"

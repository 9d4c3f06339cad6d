"""Asks the judge: starts it as _certdrop-judge, hands it cases, believes an answer of a fixed form about each.

A judge that dies, hangs or answers nonsense costs the case at hand, and the next case has a new judge.
Runs as: root. Trusts: an answer's form, for its own case only. Reads and writes: what children.py does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator

from certdrop import events, spool
from certdrop.keeper import children
from certdrop.shown import Place
from certdrop.walls import users

USER = "_certdrop-judge"
PROGRAM = children.LIB + "/judge/__main__.py"
DEADLINE = 15.0                    # seconds for one reply; the sandbox's own is shorter
LOOK = 45.0                        # seconds for a look, beyond its patience: a service that hangs costs as much
LIMIT = 1 << 18                    # bytes of an answer: two thousand places

_VERDICT = rb"accept ([0-9a-f]{64}) ([0-9]{1,12}) ([0-9]{1,12}) ([0-9a-f]{64}) ([0-9a-f]{64})|refuse ([a-z-]{1,30})"
_SEEN = rb"(shown|untrusted|other)((?: [0-9a-f.:]{2,45},[0-9]{1,5},[a-z0-9-]{0,20}=(?:[0-9a-f]{64}|nothing))*)"
_LACKS = rb"|lacks (.{1,250})"


class Accepted:
    """What the judge says of a reply that it accepts: the leaf's SHA-256 in hex, its dates in seconds since 1970, and, where they are known,
    the SHA-256 of what is signed in it, and of issuer and serial number: with another signature it is still the same certificate."""

    def __init__(self, sha256: str, not_before: int, not_after: int, tbs_sha256: str = "", issued_sha256: str = "") -> None:
        self.sha256, self.not_before, self.not_after, self.tbs_sha256, self.issued_sha256 = sha256, not_before, not_after, tbs_sha256, issued_sha256


class Seen:
    """What the judge says of a site's services: the state, `shown` (what was waited for), `untrusted` (that, and it is no good) or `other`;
    and what each place shows."""

    def __init__(self, state: str, places: dict[Place, str]) -> None:
        self.state, self.places = state, places


def verdicts(roots: tuple[str, ...], cases: list[tuple[dict[str, object], bytes]],
             meanwhile: Callable[[], object] = lambda: None) -> Generator[Accepted | spool.Refused, None, None]:
    """What the judge says of each reply, by what is expected of it; `meanwhile` is done while it loads what it needs.
    Raises OSError where it cannot load that."""
    for said in _answers("chain", roots, [json.dumps(expected).encode() + b"\n" + reply for expected, reply in cases], _VERDICT, DEADLINE, meanwhile):
        sha256, begin, end, tbs, issued, reason = said or [""] * 6
        if sha256 and int(begin) <= time.time() < int(end):        # else later replies would be replays, or this one never due
            yield Accepted(sha256, int(begin), int(end), tbs, issued)
        else:
            yield spool.Refused(reason if reason in spool.REASONS else "judge-failed")


def looks(roots: tuple[str, ...], questions: list[dict[str, object]], patience: float) -> Generator[Seen, None, None]:
    """What services show, by the questions that judge/served.py explains, none of which has more patience. Raises OSError as verdicts() does."""
    for said in _answers("served", roots, [json.dumps(question).encode() for question in questions], _SEEN, patience + LOOK):
        state, shown = said or ("other", " ,0,=nothing")               # it did not come so far
        parts = [part.replace("=", ",").split(",") for part in shown.split(" ")[1:]]
        yield Seen(state, {(address, int(port), preface): leaf for address, port, preface, leaf in parts})


def _answers(task: str, roots: tuple[str, ...], cases: list[bytes], form: bytes, seconds: float,
             meanwhile: Callable[[], object] = lambda: None) -> Generator[list[str] | None, None, None]:
    """The parts of each answer that the form has; None where there is none."""
    def begin(asked: int) -> children.Child:
        child = start([PROGRAM, task, *roots], asked, task == "served")
        meanwhile()
        return child
    answers = children.answers(begin, cases, form + _LACKS, seconds, LIMIT)
    try:
        for found in answers:
            *said, lacks = [(part or b"").decode("ascii", "replace") for part in found.groups()] if found else [""]
            if lacks:                          # nobody's fault, and over when apt is done
                raise OSError(f"the judge cannot load what it needs: {events.clean(lacks)}")
            yield said or None
    finally:
        answers.close()


def start(argv: list[str], asked: int, connects: bool = False) -> children.Child:
    """A program, as the judge's user, in namespaces of its own; in this host's network where it `connects`."""
    def lose_privileges() -> None:
        users.unshare(users.NEWIPC, users.NEWPID, *([] if connects else [users.NEWNET]))
        users.become(USER)
    apart = users.unshare(users.NEWPID)        # process 1 of its own: it can name neither us nor the other task's by a number
    try:
        return children.Child(argv, asked, lose_privileges)
    finally:
        if apart:
            users.fork_here_again()

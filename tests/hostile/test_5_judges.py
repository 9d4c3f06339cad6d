"""Attacks 124 and 125: code that took over one of the judge's processes goes for the others: the judge of the other task, the process that forks
the cases, and root's. What counts is the state of those before and after, as root sees it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Iterator

import pytest
from conftest import Ground
from test_4_beyond import replaced

from certdrop import frames
from certdrop.keeper import judges

HOSTILE = "/usr/local/lib/hostile_judge.py"
REAL = "/usr/share/certdrop/certdrop/judge/__main__.py"
ATTACK = '''
import ctypes, json, os, resource, signal, struct, sys
sys.path[:0] = ["/usr/share/certdrop"]
from certdrop.walls import jail
from certdrop import answering
from certdrop.judge import sandbox
BEGIN
libc = ctypes.CDLL(None, use_errno=True)
IOPRIO_SET, GENERIC = (251, False) if os.uname().machine == "x86_64" else (30, True)
SETATTR, KCMP, MIGRATE, WRITEV, PTRACE, TGKILL = (274, 272, 238, 271, 117, 131) if GENERIC else (314, 312, 256, 311, 101, 234)
ATTRIBUTES = struct.pack("=IIQiIQQQ", 48, 5, 0, 19, 0, 0, 0, 0)
NONE = struct.pack("QQ", 1, 1)


def attack(pid):
    """All that may reach a process by its number; 0 where that means ourselves is not tried."""
    for which in range(16):
        libc.prlimit(pid, which, NONE, None)
    libc.syscall(SETATTR, pid, ATTRIBUTES, 0)
    for who in (pid, os.getuid()):
        for which in (0, 1, 2):
            libc.setpriority(which, who, 19)
            libc.syscall(IOPRIO_SET, which + 1, who, 3 << 13)
    libc.sched_setaffinity(pid, 8, struct.pack("Q", 1))
    libc.syscall(MIGRATE, pid, 64, struct.pack("Q", 1), struct.pack("Q", 1))
    libc.syscall(KCMP, os.getpid(), pid, 0, 0, 0)
    libc.syscall(WRITEV, pid, struct.pack("QQ", id(libc), 1), 1, struct.pack("QQ", 0x400000, 1), 1, 0)
    for request in (16, 0x4206):
        libc.syscall(PTRACE, request, pid, 0, 0)
    for entry, data in (("oom_score_adj", b"1000"), ("autogroup", b"19"), ("timerslack_ns", b"1000000000"), ("coredump_filter", b"0"), ("mem", b"x"),
                        ("clear_refs", b"1")):
        try:
            fd = os.open(f"/proc/{pid}/{entry}", os.O_WRONLY)
            os.write(fd, data)
        except OSError:
            pass
    for open_it in (lambda: os.pidfd_open(pid), lambda: os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)):
        try:
            fd = open_it()
            libc.syscall(438, fd, 0, 0)
            for number in (signal.SIGSTOP, signal.SIGKILL):
                libc.syscall(424, fd, number, None, 0)
        except OSError:
            pass
    libc.setpgid(pid, 0)
    for number in (signal.SIGSTOP, signal.SIGXCPU, signal.SIGKILL):
        libc.syscall(TGKILL, pid, pid, number)
        libc.kill(pid, number)


def everything(targets):
    for pid in sorted({*targets, *range(1, 40)} - {os.getpid()}):
        attack(pid)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        libc.kill(-1, number)
    return "tried"


def answer(question):
    targets = json.loads(question)
    return (RUN).encode()


answering.serve(answer)
'''


class Judge:
    """A program that root starts as it starts the judge, but that is asked one case after the other, for as long as it stays: by a pipe."""

    def __init__(self, program: str, task: str, roots: str) -> None:
        asked, self._pipe = os.pipe()
        with open(asked, "rb"):
            self.child = judges.start([program, task, roots], asked, task == "served")
        self.pid = self.child.process.pid

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.end()
        os.close(self._pipe)

    def ask(self, case: bytes) -> str:
        os.write(self._pipe, frames.HEAD.pack(len(case)) + case)
        return self.child.answer(judges.DEADLINE, judges.LIMIT).decode()


def state(pid: int) -> dict[str, Any]:
    """What somebody could change of a process."""
    def text(entry: str) -> str:
        with open(f"/proc/{pid}/{entry}", encoding="utf-8") as stream:
            return stream.read()
    fields = dict(line.split(":\t", 1) for line in text("status").splitlines() if ":\t" in line)
    numbers = text("stat").rpartition(")")[2].split()
    return {"limits": text("limits"), "stopped": numbers[0] in "Tt", "tracer": fields["TracerPid"], "nice": numbers[16], "policy": numbers[38],
            "group": numbers[2], "affinity": fields["Cpus_allowed_list"], "oom": text("oom_score_adj"), "slack": text("timerslack_ns"),
            "ioprio": subprocess.run(["/usr/bin/ionice", "-p", str(pid)], stdout=subprocess.PIPE, check=True).stdout}


def below(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for one in found:
        with open(f"/proc/{one}/task/{one}/children", encoding="ascii") as stream:
            found += map(int, stream.read().split())
    return found


@pytest.fixture
def others(ground: Ground) -> Iterator[list[Judge]]:
    """One judge of each task, at work."""
    with Judge(REAL, "chain", ground.roots) as chain, Judge(REAL, "served", ground.roots) as served:
        assert answers(chain, served)
        yield [chain, served]


def answers(chain: Judge, served: Judge) -> bool:
    """Whether both still do their work."""
    question = {"names": ["example.org"], "key": "ecdsa", "ports": [[1, ""]], "probe": "", "wanted": "", "others": [], "known": [], "verify": False,
                "patience": 0.0}
    return chain.ask(b'{"spki": ""}\n').split()[0] == "refuse" and served.ask(json.dumps(question).encode()) == "other"


@pytest.mark.parametrize("task", ["chain", "served"])
def test_124_code_in_one_judge(others: list[Judge], task: str, ground: Ground) -> None:
    """Goal: from the process of one judge, disable or steer the judge of the other task, another of the same, or root's process."""
    program = ATTACK.replace("BEGIN", "jail.give_up_privileges()").replace("RUN", "everything(targets)")
    with replaced(HOSTILE, program, 0o644), Judge(HOSTILE, task, ground.roots) as attacker:
        targets = [os.getpid(), *(pid for judge in others for pid in below(judge.pid))]
        before = {pid: state(pid) for pid in targets}
        assert attacker.ask(json.dumps(targets).encode()) == "tried"
        assert {pid: state(pid) for pid in targets} == before
        assert answers(*others)


@pytest.mark.parametrize("shut", [True, False])
def test_125_code_in_one_case(others: list[Judge], ground: Ground, shut: bool) -> None:
    """Goal: from the child that looks at one reply, disable the process that will fork the next, or any of the above; shut in, and even where it were not."""
    program = ATTACK.replace("BEGIN", "jail.give_up_privileges()\njail.keep_cases_apart()" + ("" if shut else "\nsandbox.shut_in = lambda *_: None"))
    with replaced(HOSTILE, program.replace("RUN", "sandbox.run(lambda: everything(targets))"), 0o644), Judge(HOSTILE, "chain", ground.roots) as attacker:
        assert attacker.ask(b"[]") == "tried"
        mine = below(attacker.pid)
        targets = [os.getpid(), *mine, *(pid for judge in others for pid in below(judge.pid))]
        before = {pid: state(pid) for pid in targets}
        for _ in range(3):
            assert attacker.ask(json.dumps(targets).encode()) == "tried"
        changed = {pid for pid in targets if state(pid) != before[pid]}
        assert changed <= set(mine[1:]), "the one that does nothing but be there"
        assert answers(*others) and below(attacker.pid) == mine


def test_125_nothing_is_left(ground: Ground) -> None:
    """Ended, a judge leaves no process behind; nor where root's process was killed before it could end it."""
    with Judge(REAL, "chain", ground.roots) as judge:
        assert judge.ask(b"{}\n")
        pids = below(judge.pid)
    assert len(pids) > 1 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)

"""Attacks 110 to 116, and 134: who was taken over in a process that root started looks for what is root's: its terminal, descriptors, environment, patience."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from typing import Any, Iterator

import pytest
from conftest import OTHER, STATE, VICTIM, Ground, stage

import terminal

LIBRARY = "/usr/share/certdrop/certdrop"
SPY = '''

def _spy():
    import json, os, select, stat, sys, time
    place = "/var/lib/certdrop/PLACE/"
    number = sum(name.startswith("spied") for name in os.listdir(place))
    found = []
    for fd in range(256):
        try:
            kind = os.fstat(fd).st_mode
        except OSError:
            continue
        found.append([fd, stat.S_IFMT(kind), os.isatty(fd)])
    try:
        tty = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        tty = -1
    report = {"fds": found, "environment": dict(os.environ), "tty": tty >= 0, "pid": os.getpid(), "read": ""}
    try:
        child = os.fork()                      # what is left behind
    except OSError:
        child = 0                              # shut in so that it starts nothing: it listens itself
    if child == 0:
        end, read = time.monotonic() + 6, b""
        while time.monotonic() < end:
            with open(place + "spied%d.new" % number, "w") as stream:
                json.dump({**report, "read": read.decode("latin-1"), "pid": os.getpid()}, stream)
            os.rename(place + "spied%d.new" % number, place + "spied%d" % number)
            for fd in [0, 1, 2, *([tty] if tty >= 0 else [])]:
                try:
                    if select.select([fd], [], [], 0.1)[0]:
                        read += os.read(fd, 1000)
                except OSError:
                    time.sleep(0.1)
'''


@contextlib.contextmanager
def taken_over(module: str, function: str, place: str = "issuer") -> Iterator[None]:
    """From its first call of `function` on, whoever loads this module is ours."""
    path = f"{LIBRARY}/{module}.py"
    kept = stage.read(path)
    code = SPY.replace("PLACE", place)
    stage.write(path, f"{kept}{code}\n\n_before, _spied = {function}, []\n\n\ndef _after(*arguments, **more):\n"
                      "    if not _spied:\n        _spied.append(_spy())\n    return _before(*arguments, **more)\n\n\n"
                      f"{function} = _after\n")
    try:
        yield
    finally:
        stage.write(path, kept)
        for name in os.listdir(f"{STATE}/{place}"):
            if name.startswith("spied"):
                os.unlink(f"{STATE}/{place}/{name}")


def spied(place: str, at_least: float = 0.0) -> list[dict[str, Any]]:
    """What the spies wrote."""
    time.sleep(at_least)
    return [json.loads(stage.read(f"{STATE}/{place}/{name}")) for name in sorted(os.listdir(f"{STATE}/{place}")) if re.fullmatch("spied[0-9]+", name)]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """That no CA answered is no failure of these sites for the tests that follow."""
    yield
    for name in (VICTIM, OTHER):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{STATE}/issuer/{name}.json")


PROGRAMS = {
    "certdrop-issue": (f"certdrop-issue --force --no-install {VICTIM}", "issuer/account", "Session.directory", "issuer"),
    "certdrop-account": ("certdrop-account show", "issuer/account", "Session.directory", "issuer"),
    "certdrop renew": (f"certdrop renew {VICTIM}", "issuer/account", "Session.directory", "issuer"),
    "certdrop-watch": ("certdrop-watch", "watcher/evidence", "Reader.last_run", "watcher"),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_110_what_root_lends(ground: Ground, what: str) -> None:
    """Goal: from inside a process that root's command started, get root's terminal, a descriptor, a word of its environment, or what root types next."""
    line, module, function, place = PROGRAMS[what]
    stage.write("/root/secrets/open", "a secret in an open file\n", 0o600)
    with terminal.Terminal(DEPLOY_SECRET="hunter2", CERTDROP_SENDER="", LC_ALL="C.UTF-8", SSH_AUTH_SOCK="/root/agent") as person:
        person.run("exec 3</root/secrets/open 4<>/root/secrets/open")
        sessions = {os.getsid(person.child)}
        with taken_over(module, function, place):
            person.type(line + "\n")
            stage.wait_for(lambda: spied(place), 20, "the spy")
            (pid,) = {one["pid"] for one in spied(place)[:1]}
            environment = stage.read(f"/proc/{pid}/environ")
            session = int(stage.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[3])
            opened = []
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):               # closed meanwhile: of its own, not lent
                    opened.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            time.sleep(1)
            person.type("a password that root has\n")
            found = spied(place, 2.0)
            person.wait_prompt()
    assert session not in sessions, "root's session"
    assert not [path for path in opened if path.startswith(("/dev/pts", "/dev/tty", "/root"))], opened
    assert "hunter2" not in environment and "SSH_AUTH_SOCK" not in environment
    for one in found:
        assert not [fd for fd, _, is_terminal in one["fds"] if is_terminal] and not one["tty"], one
        assert "password" not in one["read"], one["read"]
        assert "hunter2" not in json.dumps(one)
        assert set(one["environment"]) <= {"PATH", "LANG", "HOME", "TERM", "NO_COLOR", "COLUMNS", "CERTDROP_TERMINAL", "LC_CTYPE"}


def test_111_a_question_is_roots(ground: Ground) -> None:
    """Goal: be asked in root's place: who was taken over while root looks at the terms reads the answer, or gives it."""
    with terminal.Terminal() as person:
        with taken_over("issuer/account", "Session.directory"):
            person.type("certdrop-account register\n")
            shown = person.wait(r"agree to them\? \[y/N\] $|there is an account|account:")
            if "[y/N]" in shown:
                person.type("a private answer\n")
            person.wait_prompt()
            assert not [one for one in spied("issuer", 1.0) if "private" in one.get("read", "")]


def test_112_who_stops_what_holds_the_token(ground: Ground) -> None:
    """Goal: hold root's doctor up for ever by stopping the process of ours that holds its token."""
    def deed() -> None:
        while True:
            for entry in os.listdir("/proc"):
                with contextlib.suppress(OSError):
                    if entry.isdigit() and b"doctor/token.py" in open(f"/proc/{entry}/cmdline", "rb").read():
                        os.kill(int(entry), signal.SIGSTOP)
    process = ground.start(deed)
    try:
        begin = time.monotonic()
        done = ground.run("certdrop-check", timeout=110)
        assert time.monotonic() - begin < 100
        assert "no token could be put" in done.text or "did not end by itself, and was killed" in done.text, done
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert "doctor/token.py" not in subprocess.run(["ps", "ax"], stdout=subprocess.PIPE, text=True, check=True).stdout


def test_113_who_stops_all_of_its_own(ground: Ground) -> None:
    """Goal: the same, by stopping whatever begins as this user: as what tries whether it could have FUSE."""
    with ground.attacker(lambda: os.kill(-1, signal.SIGSTOP)):
        for _ in range(5):
            assert "fuse" in ground.run("certdrop-check", "--offline", timeout=60).text


BEGINS = """
import os, sys
sys.path[:0] = ["/usr/share/certdrop"]
from certdrop.walls import become
for _ in range(400):
    process = become.start("_certdrop", ["/bin/true"])
    process.kill()
    become.kill(process)
print("begun")
"""


def test_134_who_stops_what_root_begins(ground: Ground) -> None:
    """Goal: have root wait for ever, by stopping a process between the moment when it gets this user and the one when it executes its program."""
    with ground.attacker(lambda: os.kill(-1, signal.SIGSTOP)):
        done = ground.run("/usr/bin/python3", "-IS", "-c", BEGINS, timeout=60)
        assert done.text == "begun\n", done


def test_114_output_that_nobody_reads(ground: Ground) -> None:
    """Goal: hold root's programs up by not reading what they say: a terminal that is stopped, a pipe that is full. 30 s, and they end."""
    ground.run("certdrop-status", code=None)
    started = []
    for argv in (["certdrop-status"], ["certdrop-check", "--offline"], ["certdrop-nginx", VICTIM], ["certdrop-account", "--help"],
                 ["certdrop-issue", "--plan", OTHER], ["certdrop", "rotate", VICTIM, "--cancel"], ["certdrop-watch", "--check"], ["certdrop-import"]):
        full, its = os.pipe()
        os.set_blocking(its, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(its, b"x" * 4096)
        os.set_blocking(its, True)
        started.append((argv, full, subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=its, stderr=its)))
        os.close(its)
    end = time.monotonic() + 75
    late = []
    for argv, _, process in started:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            late.append(argv)
            process.kill()
            process.wait()
    for _, full, _ in started:
        os.close(full)
    assert late == []

"""A person at a terminal: Ctrl-C and Ctrl-D at questions and during work, and every byte that a CA can have shown there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from typing import Iterator

import pytest
from conftest import CONFIG, STATE, Host

import world as stage
from terminal import PROMPT, Terminal

CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
def person(host: Host) -> Iterator[Terminal]:
    with Terminal() as found:
        yield found


def account(host: Host) -> str:
    return re.search(r"^status: +(.*)$", host.run("certdrop-account", "show").text, re.M)[1]


@pytest.mark.parametrize("left_with", [CTRL_C, CTRL_D, "\n", "n\n", "maybe\n"])
def test_no_is_no(host: Host, person: Terminal, left_with: str) -> None:
    """At `deactivate`'s question: the account stays, whatever is typed into the shell afterwards."""
    host.run("certdrop-account", "register", "--yes", code=0)
    person.type("certdrop-account deactivate\n")
    assert "ends for ever" in person.wait(r"\[y/N\] $")
    person.type(left_with)
    shown = person.wait_prompt()
    assert "not agreed; nothing was changed" in shown and "Traceback" not in shown
    assert person.code() == os.EX_USAGE
    for _ in range(5):
        person.run("true y")
        person.type("y\n")
    time.sleep(1)
    assert account(host) == "valid"


def test_yes_is_yes(host: Host, person: Terminal) -> None:
    """Terms that are agreed to make an account; and `deactivate` ends it."""
    host.run("certdrop-account", "deactivate", "--yes")
    person.type("certdrop-account register\n")
    assert "terms of service: data:text/plain" in person.wait(r"agree to them\? \[y/N\] $")
    person.type("y\n")
    assert "registered" in person.wait_prompt() and account(host) == "valid"
    person.type("certdrop-account deactivate\n")
    person.wait(r"\[y/N\] $")
    person.type("y\n")
    assert "is deactivated" in person.wait_prompt() and person.code() == 0


@pytest.mark.parametrize("left_with", [CTRL_C, CTRL_D])
def test_terms_that_nobody_agreed_to(host: Host, person: Terminal, left_with: str) -> None:
    """Register nothing, and nobody goes on reading."""
    host.run("certdrop-account", "deactivate", "--yes")
    person.type("certdrop-account register\n")
    person.wait(r"agree to them\? \[y/N\] $")
    person.type(left_with)
    assert "not agreed; nothing was changed" in person.wait_prompt()
    person.type("y\ny\ny\n")
    assert "command not found" in person.read(2)
    assert "certdrop-account register makes it" in host.run("certdrop-account", "show", code=os.EX_DATAERR).text


@pytest.mark.parametrize("left_with", [CTRL_C, CTRL_D])
def test_the_administrators_questions(host: Host, person: Terminal, left_with: str) -> None:
    """At those of `add`, `remove` and `revoke`: no, in words; nothing was changed."""
    name = host.add(host.name())
    for line, question in ((f"certdrop remove {name}", r"\[y/N\] $"), (f"certdrop revoke {name}", r"\[y/N\] $")):
        person.type(line + "\n")
        person.wait(question)
        person.type(left_with)
        shown = person.wait_prompt()
        assert "not agreed; nothing was changed" in shown and "Traceback" not in shown and "internal error" not in shown
        assert person.code() == os.EX_DATAERR
    assert host.served(name) == host.on_disk(name)
    kept = stage.read(CONFIG)
    os.unlink(CONFIG)
    other = host.name()
    person.type(f"certdrop add {other}\n")
    person.wait(r": $|\] $")
    person.type(left_with)
    shown = person.wait_prompt()
    stage.write(CONFIG, kept)
    assert "nothing was added" in shown and "Traceback" not in shown and "internal error" not in shown
    assert not os.path.exists(f"/etc/certdrop/sites.d/{other}.toml")


def processes() -> str:
    return subprocess.run(["ps", "-eo", "pid,user,args"], stdout=subprocess.PIPE, text=True, check=True).stdout


def test_interrupted_at_work(host: Host, person: Terminal) -> None:
    """Ctrl-C during `add`: one line that says what goes on and how to see it, then silence; the issuer does not keep anybody waiting."""
    name = host.name()
    host.world.pebble.stop()
    with stage_ca_that_hangs():
        person.type(f"certdrop add {name}\n")
        person.wait("asking https:.*\n")
        stage.wait_for(lambda: "certdrop-issue" in processes(), 20, "the issuer")
        time.sleep(1)
        person.type(CTRL_C)
        shown = person.wait_prompt(5)
        lines = [line for line in shown.rpartition("^C")[2].splitlines() if line.strip() and PROMPT not in line]
        assert len(lines) == 1 and "certdrop-status" in lines[0] and "cron" in lines[0], shown
        assert person.code() == os.EX_TEMPFAIL
        assert person.read(6) == ""
        stage.wait_for(lambda: "certdrop-issue" not in processes() and "/usr/sbin/certdrop" not in processes(), 20, "their end: " + processes())
    host.world.pebble.start()
    begin = time.monotonic()
    person.run(f"certdrop renew {name}", 60)
    assert time.monotonic() - begin < 30


def stage_ca_that_hangs():
    """Somebody at the CA's place who takes connections, and says nothing."""
    import socket
    return socket.create_server(("127.0.0.1", 14000))


def test_who_is_waited_for(host: Host, person: Terminal) -> None:
    """A run by cron hangs at a CA: a person's command says whose turn it is, since when and until when, and goes before it."""
    name = host.add(host.name())
    host.run("certdrop", "rotate", name, "--next", code=0)
    generation = f"{name}@{host.next(name):04d}"
    for mark in (f"{STATE}/sites/{name}/{host.next(name):04d}/now", f"/var/spool/certdrop/requests/{generation}.now"):
        stage.write(mark, "")
    os.kill(host.world.pebble.process.pid, signal.SIGSTOP)
    try:
        cron = subprocess.Popen(["/usr/sbin/certdrop-issue", "--cron"], user="_certdrop", group="_certdrop", extra_groups=[], stdin=subprocess.DEVNULL)
        time.sleep(3)
        assert cron.poll() is None, "cron's run should be at work"
        person.type(f"certdrop renew {name}\n")
        shown = person.wait("another run is at work.*\n")
        assert re.search(r"\(certdrop-issue by cron, process [0-9]+, since [0-9:]{8}, until [0-9:]{8} at most\); this one goes before it", shown), shown
        assert cron.wait(10) != 0
    finally:
        os.kill(host.world.pebble.process.pid, signal.SIGCONT)
    assert "issued" in person.wait_prompt()
    assert host.served(name) == host.on_disk(name)


ORDERING = r"certdrop-issue: {}: ordering \([1-9] s\)"


def test_what_takes_its_time_is_told(host: Host, person: Terminal) -> None:
    """Which step it is at, and since when; not to a pipe. What root shows of the issuer's process is that, too."""
    name = host.add(host.name())
    pebble = host.world.pebble.process.pid
    for line, told in ((f"certdrop renew {name} --force", True), (f"certdrop renew {name} --force 2>&1 | cat", False)):
        os.kill(pebble, signal.SIGSTOP)
        try:
            person.type(line + "\n")
            shown = person.read(5)
            assert bool(re.search(ORDERING.format(re.escape(name)), shown)) == told, shown
        finally:
            os.kill(pebble, signal.SIGCONT)
        shown = person.wait_prompt()
        assert "is installed, and served" in shown


def test_many_are_counted_and_summed_up(host: Host, person: Terminal) -> None:
    """How many of them are done, two that are not, and one line at the end."""
    names = [host.add(host.name()) for _ in range(3)]
    pebble = host.world.pebble.process.pid
    os.kill(pebble, signal.SIGSTOP)
    try:
        person.type(f"certdrop renew {' '.join(names)} --force\n")
        shown = person.wait(r"0 of 3 done; .*: ordering, .*: ordering, and 1 more \([1-9] s\)", 20)
    finally:
        os.kill(pebble, signal.SIGCONT)
    shown = person.wait_prompt()
    assert re.search(r"certdrop: 3 of 3 certificates are installed, [0-9]+ s\r?\n", shown), shown


@pytest.mark.parametrize("environment, coloured", [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False),
                                                   ({"TERM": "xterm", "NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)])
def test_colours_are_the_same_in_all_tools(host: Host, environment: dict[str, str], coloured: bool) -> None:
    """At a terminal alone, and where nobody set NO_COLOR; through root's relay, too."""
    name = host.add(host.name())
    with Terminal(**environment) as person:
        for line in ("certdrop-status", f"certdrop-check {name}"):
            assert ("\x1b[32m" in person.run(line)) == coloured, line
            assert not re.search("\x1b\\[[0-9]*m", person.run(line + " | cat")), line

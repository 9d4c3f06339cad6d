"""Attacks 120 to 123: what a caller hands on through sudo, one by one, as prctl(2), sched(7), ioprio_set(2), set_mempolicy(2), keyrings(7), fcntl(2) and
personality(2) know it. A probe in certdrop-install's place makes root's world by the very function that it calls, and tells what it found before and after."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import time
from typing import Any, Callable

import pytest
from conftest import OTHER, PLAYGROUND, Ground, stage
from test_3_sudo import called, is_installed
from test_4_beyond import replaced

from certdrop.walls import world

INSTALL = "/usr/sbin/certdrop-install"
YEARS = 2 ** 62                    # nanoseconds
LOOK = '''
import ctypes, fcntl, json, os, resource, signal, struct, sys
sys.path[:0] = ["/usr/share/certdrop"]
from certdrop.walls import world
libc = ctypes.CDLL(None)


def asked(number, *arguments):
    place = ctypes.c_int(-1)
    libc.prctl(number, ctypes.byref(place), 0, 0, 0)
    return place.value


def core():
    place = ctypes.c_ulong(0)
    libc.prctl(62, 0, 0, 0, ctypes.byref(place))
    return place.value


def attributes():
    room = ctypes.create_string_buffer(56)
    libc.syscall(world._SCHED + 1, 0, room, 56, 0)
    return struct.unpack("=IIQiIQQQII", room.raw)


def look():
    policy = ctypes.c_int(-1)
    libc.syscall(world._MEMPOLICY - 1 if world._MEMPOLICY == 237 else world._MEMPOLICY + 1, ctypes.byref(policy), None, 0, None, 0)
    found = attributes()
    return {
        "signals": [str(signal.getsignal(n)) for n in (1, 14, 15, 17)] + sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "timers": [signal.getitimer(n)[0] > 0 for n in (0, 1, 2)],
        "timer slack": libc.prctl(30, 0, 0, 0, 0),
        "parent-death signal": asked(2),
        "child subreaper": asked(37),
        "keep capabilities": libc.prctl(7, 0, 0, 0, 0),
        "ambient capabilities": [line for line in open("/proc/self/status") if line.startswith("CapAmb")],
        "securebits": libc.prctl(27, 0, 0, 0, 0),
        "huge pages": libc.prctl(42, 0, 0, 0, 0),
        "memory errors": libc.prctl(34, 0, 0, 0, 0),
        "time stamp counter": asked(25),
        "speculative stores": libc.prctl(52, 0, 0, 0, 0),
        "speculative branches": libc.prctl(52, 1, 0, 0, 0),
        "flushing of the cache": libc.prctl(52, 2, 0, 0, 0),
        "core scheduling": core(),
        "personality": libc.personality(0xffffffff),
        "policy, niceness, slice": found[1:6],
        "utilization clamps": found[8:],
        "affinity": sorted(os.sched_getaffinity(0)),
        "I/O priority": libc.syscall(world._IOPRIO + 1, 1, 0),
        "memory policy": policy.value,
        "session keyring": libc.syscall(world._KEYCTL, 0, -3, 0),
        "destination of keys": libc.syscall(world._KEYCTL, 14, -1),
        "oom score": open("/proc/self/oom_score_adj").read(),
        "directory": os.getcwd(),
        "umask": [os.umask(0o77), os.umask(0o77)][0],
        "environment": sorted(os.environ),
        "groups": os.getgroups(),
        "streams": [[fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ASYNC | os.O_NONBLOCK | os.O_DIRECT), fcntl.fcntl(fd, fcntl.F_GETOWN),
                     fcntl.fcntl(fd, fcntl.F_GETSIG)] for fd in (0, 1, 2)],
    }
'''
PROBE = "#!/usr/bin/python3 -IS\n" + LOOK + '''
before = look()
try:
    world.make_own_world()
    os.write(1, json.dumps([before, look()]).encode() + b"\\n")
except OSError as error:
    os.write(1, json.dumps([before, str(error)]).encode() + b"\\n")
'''

libc = ctypes.CDLL(None, use_errno=True)


def prctl(*arguments: int) -> Callable[[], object]:
    return lambda: libc.prctl(*map(ctypes.c_ulong, (*arguments, 0, 0, 0, 0)[:5]))


def many_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])


def streams() -> None:
    for fd in (0, 1, 2):
        fcntl.fcntl(fd, fcntl.F_SETOWN, 1)
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)


def oom() -> None:
    libc.prctl(4, 1, 0, 0, 0)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
        stream.write("1000")


def clamps() -> object:
    return libc.syscall(world._SCHED, 0, struct.pack("=IIQiIQQQII", 56, 0, 0x78, 0, 0, 0, 0, 0, 0, 10), 0)


def schedule() -> object:
    return libc.syscall(world._SCHED, 0, struct.pack("=IIQiIQQQII", 56, os.SCHED_BATCH, 0, 19, 0, 100_000_000, 0, 0, 0, 0), 0)


HANDED: dict[str, Callable[[], object]] = {
    "signals": many_signals,
    "timers": lambda: signal.setitimer(signal.ITIMER_REAL, 50),
    "timer slack": prctl(29, YEARS),
    "parent-death signal": prctl(1, signal.SIGKILL),
    "child subreaper": prctl(36, 1),
    "keep capabilities": prctl(8, 1),
    "ambient capabilities": prctl(47, 2, 0),
    "securebits": prctl(28, 0x500),
    "huge pages": prctl(41, 1),
    "memory errors": prctl(33, 1, 1),
    "time stamp counter": lambda: None,            # sudo reads the clock, and would be ended by it: test_121
    "speculative stores": prctl(53, 0, 4),
    "speculative branches": prctl(53, 1, 4),
    "flushing of the cache": prctl(53, 2, 2),
    "core scheduling": prctl(62, 1),
    "personality": lambda: libc.personality(0x0020008 | 0x4000000),
    "policy, niceness, slice": schedule,
    "utilization clamps": clamps,
    "affinity": lambda: os.sched_setaffinity(0, {0}),
    "I/O priority": lambda: (libc.personality(8), libc.syscall(world._IOPRIO, 1, 0, 3 << 13 | 7)),
    "memory policy": lambda: libc.syscall(world._MEMPOLICY, 2, ctypes.byref(ctypes.c_ulong(1)), 64),
    "session keyring": lambda: libc.syscall(world._KEYCTL, 1, b"attacker"),
    "destination of keys": lambda: libc.syscall(world._KEYCTL, 14, 3),
    "oom score": oom,
    "directory": lambda: os.chdir(PLAYGROUND),
    "umask": lambda: os.umask(0),
    "environment": lambda: os.environ.update(TERM="attack", LANG="../x"),
    "groups": lambda: None,                        # none of the caller's own survives sudo
    "streams": streams,
}
# What sudo or the kernel sheds already is looked at all the same; these are seen to come through on any kernel of Debian 12 or later.
COMES_THROUGH = {"timer slack", "huge pages", "memory errors", "personality", "I/O priority", "policy, niceness, slice", "affinity", "oom score",
                 "session keyring", "destination of keys", "memory policy"}


def probed(ground: Ground, prepare: Callable[[], object]) -> list[Any]:
    """What the probe, started through sudo as _certdrop after `prepare`, saw before and after; or its error's text."""
    with replaced(INSTALL, PROBE):
        process = called(ground, prepare, stdin=subprocess.PIPE)
        said, _ = process.communicate(timeout=60)
    return list(json.loads(said.splitlines()[-1]))


@pytest.fixture(scope="module")
def clean(session_ground: Ground) -> dict[str, Any]:
    """What a run of cron's has."""
    with replaced(INSTALL, PROBE):
        done = session_ground.run(INSTALL, code=0, cwd="/", env={"PATH": "/usr/bin:/bin"})
    return dict(json.loads(done.text.splitlines()[-1])[1])


def test_120_every_entry_is_tried() -> None:
    """What root sheds and what is tried here are the same things."""
    assert set(HANDED) == set(world.SHED)


@pytest.mark.parametrize("name", HANDED)
def test_120_what_a_caller_hands_on(ground: Ground, clean: dict[str, Any], name: str) -> None:
    """Goal: have root's run sleep for years, starve, or die by something that passes through sudo: nothing of it is left."""
    before, after = probed(ground, HANDED[name])
    if name in COMES_THROUGH:
        assert before[name] != clean[name], "it did not even reach root: is this test's own step wrong?"
    if name == "session keyring":
        assert after[name] not in (before[name], -1)
    else:
        assert after[name] == clean[name]
    differ = {key for key in clean if after[key] != clean[key]} - {"session keyring"}
    assert not differ


@pytest.mark.parametrize(("prepare", "word"), [(prctl(65, 1), "PR_SET_MDWE"), (prctl(28, 0xf00), "securebits")])
def test_121_what_cannot_be_undone(ground: Ground, prepare: Callable[[], object], word: str) -> None:
    """Goal: hand on what root cannot take off, so that services fail their test in that run: such a run does not begin, and root's own does all."""
    with ground.stands():
        process = called(ground, prepare)
        said, _ = process.communicate(timeout=60)
        known = called(ground, lambda: prepare() and os._exit(3), argv=("/bin/true",)).wait(60) == 0
        if known and word == "PR_SET_MDWE":
            assert process.returncode == os.EX_TEMPFAIL
        log = stage.read("/var/log/certdrop/keeper.log")[ground.log_begin:]
        assert (process.returncode == os.EX_TEMPFAIL) == (word in log), said
        ground.install(code=0)


def test_121_a_clock_that_kills(ground: Ground) -> None:
    """Goal: have root's run die where it looks at the clock (PR_SET_TSC): sudo dies of it before; and no_new_privs leaves sudo without root."""
    for prepare in (prctl(26, 2), prctl(38, 1)):
        with ground.stands():
            called(ground, prepare).wait(60)
            ground.install(code=0)


def test_122_a_sleep_of_a_hundred_years(ground: Ground) -> None:
    """Goal: have root's run sleep for ever in its first short sleep, holding the lock (PR_SET_TIMERSLACK)."""
    with ground.stands():
        before = ground.live(OTHER)
        process = called(ground, prctl(29, YEARS))
        try:
            stage.wait_for(lambda: ground.proven(OTHER) == ground.live(OTHER) > before, 20, "the installation")
            assert process.wait(20) == 0
            begin = time.monotonic()
            ground.install(code=0)
            assert time.monotonic() - begin < 10
        finally:
            for line in stage.read("/proc/locks").splitlines():       # without the mend, nobody else would end it
                if re.search(rf":{os.stat('/var/lib/certdrop/keeper/lock').st_ino} ", line):
                    os.kill(int(line.split()[4]), signal.SIGKILL)
            process.wait(20)


@pytest.mark.parametrize("how", ["stopped", "asleep"])
def test_123_a_run_that_holds_the_lock(ground: Ground, how: str) -> None:
    """Goal: have a run of root's keep the lock without moving: root's own run ends it after its deadline, and does the work; the issuer's leaves."""
    lock = "/usr/share/certdrop/certdrop/keeper/lock.py"
    act = "os.kill(os.getpid(), signal.SIGSTOP)" if how == "stopped" else "time.sleep(1000)"
    program = "import os, signal, time\nfrom certdrop.keeper import lock\n"
    program += f"with lock.held(lock.ISSUERS):\n    print(os.getpid(), flush=True)\n    {act}\n"
    with replaced(lock, stage.read(lock).replace("DEADLINE = 1500.0", "DEADLINE = 2.0"), 0o644):
        ground.reply(OTHER)
        before = ground.live(OTHER)
        holder = subprocess.Popen(["/usr/bin/python3", "-c", program], env={"PYTHONPATH": "/usr/share/certdrop", "PYTHONDONTWRITEBYTECODE": "1"},
                                  stdout=subprocess.PIPE)
        try:
            assert holder.stdout and int(holder.stdout.readline()) == holder.pid
            assert called(ground).wait(20) == 0 and holder.poll() is None and ground.live(OTHER) == before
            ground.install(code=0)
            assert holder.wait(10) == -signal.SIGKILL and is_installed(ground, before)
            assert f"process {holder.pid} since" in stage.read("/var/log/certdrop/keeper.log")
        finally:
            holder.kill()
            holder.wait()

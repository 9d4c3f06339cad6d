"""Attacks 130 to 139: locks in the kernel, held for as long as the attacker likes by memory whose pages never come (tests/stage/held.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Callable

import held
import pytest
from conftest import OTHER, PLAYGROUND, REPLIES, STATE, VICTIM, Ground, stage

from certdrop import spool
from certdrop.walls import users


@pytest.fixture
def mine() -> str:
    """A directory of the attacker's, for a file system of its own."""
    if held.device():
        pytest.skip(held.device())
    place = f"{PLAYGROUND}.fuse/mine"
    os.makedirs(place, exist_ok=True)
    for path in (os.path.dirname(place), place):
        shutil.chown(path, spool.ISSUER)
    return place


def test_130_replies_held_in_the_kernel(ground: Ground, mine: str) -> None:
    """Goal: have root wait for ever, unkillable and with its lock, for the directory that it reads: a listing of it is copied to memory that never comes.

    Root's run comes to its end, and so do the next ones; what waits in the kernel is no more than it may be, and gone when it is let go.
    """
    def readers() -> list[str]:
        inode = os.stat(f"{STATE}/keeper/readers").st_ino
        return [lock for lock in stage.read("/proc/locks").splitlines() if lock.split()[-3].endswith(f":{inode}")]
    before = {name: (ground.live(name), ground.on_disk(name)) for name in (VICTIM, OTHER)}
    with held.holding(ground.start, mine, held.directory, REPLIES):
        for name in before:                        # a name that the kernel knows, there or not there, is looked up without the lock: these are new
            ground.run("certdrop", "rotate", "--next", name, timeout=100)
        for _ in range(4):
            ground.install(timeout=100, code=os.EX_DATAERR)
        assert 0 < len(readers()) <= 8
        assert {ground.reason(name) for name in before} == {"busy"}
        assert {name: (ground.live(name), ground.on_disk(name)) for name in before} == before
        assert "2 sites: 2 refused" in ground.run("certdrop-status", timeout=30).text
    stage.wait_for(lambda: not readers(), 10, "the end of what hung")
    ground.reply(OTHER)
    ground.install(code=0)
    assert ground.live(OTHER) > before[OTHER][0] and ground.served(OTHER) == ground.on_disk(OTHER)


def test_131_nobody_looks_for_nothing(ground: Ground) -> None:
    """Goal of ours: where nothing was replied since a run found no reply, root's next run starts no reader; and a reply ends that."""
    def reads() -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{STATE}/keeper/readers")
        ground.install(code=0)
        return os.path.exists(f"{STATE}/keeper/readers")
    ground.install(code=0)
    stage.wait_for(lambda: not reads(), 10, "a run that looks for nothing")
    ground.reply(OTHER)
    before = ground.live(OTHER)
    assert reads() and ground.live(OTHER) == before + 1


def test_132_no_file_system_of_ones_own(ground: Ground, mine: str) -> None:
    """Goal: have FUSE at all, by fusermount3 or in a namespace of one's own. What systemd-tmpfiles denies these users they cannot have; others can."""
    def can(user: str, deed: Callable[[str], object]) -> bool:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                users.become(user)
                deed(mine)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitpid(child, 0)[1] == 0
        ground.run("umount", "-l", mine)
        return ended

    def opens(_: str) -> None:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    accounts = (spool.ISSUER, "_certdrop-judge", "_certdrop-watch")
    if not (can(spool.ISSUER, held.mount) and can(spool.ISSUER, held.mount_apart)):
        pytest.skip("users cannot mount in this kernel anyway")
    assert all(can(user, opens) for user in accounts)
    ground.run("systemd-tmpfiles", "--create", "certdrop.conf", code=0)
    try:
        os.chmod("/dev/fuse", 0o666)           # udev does so when it sees the device
        assert not can(spool.ISSUER, held.mount) and not can(spool.ISSUER, held.mount_apart)
        assert not any(can(user, opens) for user in accounts) and can("www-data", opens)
    finally:
        held.device()


def test_133_times_that_are_set_back(ground: Ground) -> None:
    """Goal: have root believe for ever that there is no reply: the directory's times are what they were, and its entries come and go in every way."""
    def reads() -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{STATE}/keeper/readers")
        ground.install(code=0)
        return os.path.exists(f"{STATE}/keeper/readers")
    stage.wait_for(lambda: not reads(), 10, "a run that looks for nothing")
    before, live = os.stat(REPLIES), ground.live(OTHER)
    ground.reply(OTHER)
    entry, aside = ground.entry(OTHER), f"{REPLIES}/aside"

    def deed() -> None:
        os.rename(entry, aside)
        os.link(aside, entry)
        os.unlink(aside)
        os.utime(REPLIES, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(entry, (0, 0))
    ground.act(deed)
    assert os.stat(REPLIES).st_mtime_ns == before.st_mtime_ns
    assert reads() and ground.live(OTHER) == live + 1

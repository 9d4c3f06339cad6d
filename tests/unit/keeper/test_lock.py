"""The keeper's lock: who holds it without coming to an end is ended by who root started, and nobody else is."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
from typing import Callable, Iterator

import pytest

from certdrop import events
from certdrop.config import site
from certdrop.keeper import lock

HOLDER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from certdrop.config import site
from certdrop.keeper import lock
site.STATE = sys.argv[2]
if sys.argv[3] == "waits":
    kept = lock._open("lock")
    print("ready", flush=True)
    time.sleep(60)
with lock.held(lock.ALL):
    print("ready", flush=True)
    if sys.argv[3] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
"""
Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts other keepers, by what they do: asleep, stopped, or waits (with the file open, and no lock)."""
    (tmp_path / "keeper").mkdir()
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(events, "LOGS", str(tmp_path))
    (tmp_path / "keeper.log").touch()
    monkeypatch.setattr(lock, "DEADLINE", 0.3)
    started = []

    def begin(how: str) -> "subprocess.Popen[bytes]":
        library = str(pathlib.Path(lock.__file__).parents[2])
        process = subprocess.Popen([sys.executable, "-c", HOLDER, library, str(tmp_path), how], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        return process
    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("queue", [lock.VERB, lock.ALL])
@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_holder_that_does_not_move_is_ended(start: Start, tmp_path: pathlib.Path, how: str, queue: str) -> None:
    """After the deadline, by a run that root started; it is logged, and others that only have the file open live on."""
    holder, other = start(how), start("waits")
    with lock.held(queue):
        assert holder.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    assert f"process {holder.pid} since" in (tmp_path / "keeper.log").read_text()


def test_the_issuers_run_ends_nobody(start: Start) -> None:
    """It leaves; and so does one for which the holder is another than when it began to wait."""
    holder = start("asleep")
    with pytest.raises(lock.Busy, match=str(holder.pid)), lock.held(lock.ISSUERS):
        pass
    assert holder.poll() is None


def test_another_holder_is_not_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took the lock while somebody waited has had less time than that."""
    holder, turns = start("asleep"), iter(["process 1", *["process 2"] * 100])
    monkeypatch.setattr(lock, "holder", lambda _: next(turns))
    with pytest.raises(lock.Busy), lock.held(lock.ALL):
        pass
    assert holder.poll() is None


def test_a_file_system_with_the_same_inode(start: Start, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is named for another file with that number is not ended."""
    opened = lock._open("lock")
    other = subprocess.Popen(["/bin/sleep", "60"])
    try:
        monkeypatch.setattr(lock, "_holders", lambda _: [other.pid])
        assert not lock._end_holder(opened) and other.poll() is None
    finally:
        opened.close()
        other.kill()
        other.wait()

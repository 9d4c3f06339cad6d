"""How the issuer's parent runs the one command that sudo allows it, and certdrop-account: to the end, and no longer than it takes."""

from __future__ import annotations

import os
import pathlib
import select
import time
from collections.abc import Callable

import pytest

from certdrop.issuer import command as issue


@pytest.fixture(name="waits", params=["by a descriptor", "where the kernel gives none"], autouse=True)
def _waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to wait."""
    def refuse(_: int) -> int:
        raise OSError(38, "Function not implemented")
    if request.param != "by a descriptor":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    return str(request.param)


def test_it_is_waited_for(tmp_path: pathlib.Path) -> None:
    """What it does is done when the call returns, whatever its exit status, and nothing of it is left."""
    for code in (0, 75):
        assert issue._call(["/bin/sh", "-c", f"sleep 0.1; echo done > {tmp_path}/done; exit {code}"])
        assert (tmp_path / "done").read_text() == "done\n"
        (tmp_path / "done").unlink()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_what_it_gets(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to read, a new environment, and the signals that Python ignores as they were."""
    monkeypatch.setenv("LD_PRELOAD_LIKE", "1")
    out = tmp_path / "out"
    assert issue._call(["/bin/sh", "-c", f"{{ env; cat; grep SigIgn /proc/self/status; }} > {out}"])
    told = out.read_text()
    assert "LD_PRELOAD_LIKE" not in told and "PATH=/usr/sbin:/usr/bin:/sbin:/bin" in told
    assert int(told.split()[-1], 16) & (1 << 12 | 1 << 24) == 0


def test_one_that_does_not_end() -> None:
    """It is left behind."""
    assert not issue._call(["/bin/sleep", "600"], 0.1)
    os.waitpid(-1, 0)


def test_one_that_is_not_there() -> None:
    """No program, no answer; no run fails for that."""
    assert not issue._call(["/nonexistent/sudo"])


def test_nobody_sleeps(waits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says when it has ended: no time is waited for in vain."""
    def not_here(_: float) -> None:
        raise AssertionError("slept")
    if waits == "by a descriptor":
        monkeypatch.setattr(time, "sleep", not_here)
    looked: list[float] = []
    real: Callable[..., object] = select.select
    monkeypatch.setattr(select, "select", lambda *args: (looked.append(args[3]), real(*args))[1])
    assert issue._call(["/bin/sleep", "0.05"])
    assert len(looked) == (1 if waits == "by a descriptor" else 0)

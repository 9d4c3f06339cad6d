"""The child that reads replies for root: what it hands over, that it may hang, and that nobody looks where nothing changed."""

from __future__ import annotations

import os
import pathlib
import signal
import time
import types
from typing import Any, Iterator

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.keeper import reader

KILL = os.kill
ENTRIES = ["a@0002.pem", "b@0002.pem", "c@0002.pem", "d@0002.pem"]


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A run with these four requests posted; what it forks is gone afterwards."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path))
    monkeypatch.setattr(reader, "SETTLED", -1e9)
    for name in ("keeper", "requests", "replies"):
        (tmp_path / name).mkdir()
    start = reader._start

    def noted(run: Any, entries: list[str]) -> tuple[int, int]:
        found = start(run, entries)
        run.forked.append(found[0])
        return found
    monkeypatch.setattr(reader, "_start", noted)
    found = types.SimpleNamespace(requests=spool.open_directory(spool.requests()), replies=spool.open_directory(spool.replies()), issuer=os.getuid(),
                                  posted={entry[0]: {(2, "csr")} for entry in ENTRIES}, forked=[])
    yield found
    for child in found.forked:
        try:
            KILL(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def put(entry: str, text: bytes) -> None:
    """A reply of the issuer's, which is this user."""
    pathlib.Path(spool.replies(), entry).write_bytes(text)


def said(run: Any) -> list[object]:
    """What is read: a refusal as its reason."""
    return [str(one) if isinstance(one, spool.Refused) else one for one in reader.replies(run, ENTRIES)]


def test_replies_come_in_turn(run: Any) -> None:
    """Nothing, the bytes of the longest reply, and why one is not read; by one child."""
    longest = bytes(range(256)) * 256
    put("b@0002.pem", longest)
    put("c@0002.pem", longest + b"x")
    os.symlink("b@0002.pem", spool.replies() + "/d@0002.pem")
    assert [None, longest, "size", "kind"] == said(run)
    assert 1 == len(run.forked)


def test_one_that_hangs_is_busy_and_the_others_go_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left where it is, and another child reads what is left."""
    read = spool.read
    monkeypatch.setattr(reader, "DEADLINE", 0.5)
    monkeypatch.setattr(spool, "read", lambda fd, entry, owner: signal.pause() if entry == ENTRIES[1] else read(fd, entry, owner))
    put("c@0002.pem", b"c")
    assert [None, "busy", b"c", None] == said(run)
    assert 2 == len(run.forked)


def test_one_that_dies_is_busy_and_the_others_go_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an answer."""
    answer = reader._answer
    monkeypatch.setattr(reader, "_answer", lambda entry, issuer: (os.write(1, b"+\0"), os._exit(1)) if entry == ENTRIES[2] else answer(entry, issuer))
    put("d@0002.pem", b"d")
    assert [None, None, "busy", b"d"] == said(run)


def test_no_more_hang_than_may(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all runs together, as the kernel knows them; and when it has let them go, replies are read again."""
    monkeypatch.setattr(reader, "DEADLINE", 0.2)
    monkeypatch.setattr(reader, "MOST", 3)
    read = spool.read
    monkeypatch.setattr(os, "kill", lambda *_: None)           # what hangs in the kernel takes no signal
    monkeypatch.setattr(spool, "read", lambda *_: signal.pause())
    assert ["busy"] * 4 == said(run)
    assert 3 == len(run.forked)
    begin = time.monotonic()
    monkeypatch.setattr(reader, "DEADLINE", 60.0)
    assert ["busy"] * 4 == said(run)
    assert time.monotonic() - begin < 60, "who finds no place does not look"
    assert [(0, 0)] * 3 == [os.waitpid(child, os.WNOHANG) for child in run.forked[:3]]
    for child in run.forked[:3]:
        KILL(child, signal.SIGKILL)
        os.waitpid(child, 0)
    monkeypatch.setattr(spool, "read", read)
    assert [None] * 4 == said(run)


def test_nobody_looks_where_nothing_changed(run: Any) -> None:
    """Since there was no reply to any request; a reply, and another request, are seen."""
    assert [None] * 4 == said(run)
    assert [None] * 4 == said(run)
    assert 1 == len(run.forked)
    put("a@0002.pem", b"a")
    assert [b"a", None, None, None] == said(run) == said(run)
    assert 3 == len(run.forked), "as long as there is something"
    os.unlink(spool.replies() + "/a@0002.pem")
    assert [None] * 4 == said(run) == said(run)
    assert 4 == len(run.forked)
    pathlib.Path(spool.requests(), "e@0002.csr").write_bytes(b"")
    run.posted["e"] = {(2, "csr")}
    assert [None] * 4 == said(run) == said(run)
    assert 6 == len(run.forked), "nor is it known where not all were looked for"


def test_a_change_of_just_now_is_not_believed_to_be_the_last(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one may have the same time."""
    monkeypatch.setattr(reader, "SETTLED", 2e9)
    assert [None] * 4 == said(run) == said(run)
    assert 2 == len(run.forked)


def test_a_change_is_no_older_for_being_read_slowly(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply that came while a child looked at the others may have the time that was seen before; it is found by the next run."""
    read = spool.read
    monkeypatch.setattr(reader, "SETTLED", 0.3e9)

    def slowly(fd: int, entry: str, owner: int) -> bytes:
        time.sleep(0.1)
        return read(fd, entry, owner)
    monkeypatch.setattr(spool, "read", slowly)
    put("x", b"")
    assert [None] * 4 == said(run) == said(run)
    assert 2 == len(run.forked)


def test_the_child_holds_nothing_that_others_wait_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three descriptors, and none of root's: no lock, no pipe that somebody reads to its end."""
    lock = os.open(site.STATE + "/keeper/lock", os.O_RDWR | os.O_CREAT)
    monkeypatch.setattr(reader, "_answer", lambda entry, issuer: os.write(
        1, reader._HEAD.pack(reader._REPLY, 200) + " ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in range(200) if _is_open(fd)).encode().ljust(200)))
    monkeypatch.setattr(reader.jail, "landlock", lambda **_: 0)
    words = said(run)[0].decode().split()  # type: ignore[attr-defined]
    os.close(lock)
    assert [spool.replies(), site.STATE + "/keeper/readers"] == [words[0], words[2]] and words[1].startswith("pipe:") and 3 == len(words)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("ago, told", [(3600, []), (2 * 86400, ["issuer"]), (-30, []), (-30 * 86400, ["issuer"])])
def test_a_moment_that_has_not_come_is_no_sign_of_life(run: Any, tmp_path: pathlib.Path, ago: float, told: list[str]) -> None:
    """Whoever owns the stamp can give it any time: one far ahead would else say for ever that the issuer runs."""
    run.sights, run.program = {"a": None}, "certdrop-install"
    (tmp_path / "keeper/silence").touch()
    os.utime(tmp_path / "keeper/silence", (0, time.time() - 90000))
    for stamp, when in (("watcher/state.json", 60.0), ("issuer/last-run", ago)):
        (tmp_path / stamp).parent.mkdir()
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (0, time.time() - when))
    assert told == [line.split()[2] for line in reader.silences(run)]

"""The process that reads replies for root: what it hands over, that it may hang, and that nobody looks where nothing changed."""

from __future__ import annotations

import os
import pathlib
import signal
import time
import types
from typing import Any, Iterator

import pytest
from handing import change

from certdrop import spool
from certdrop.config import site
from certdrop.issuer import handover
from certdrop.keeper import children, reader
from certdrop.walls import users

KILL = os.kill
ENTRIES = ["a@0002.pem", "b@0002.pem", "c@0002.pem", "d@0002.pem"]


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A run with these four requests posted, whose readers are this user's; what it starts is gone afterwards."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path))
    monkeypatch.setattr(reader, "SETTLED", -1e9)
    for name in ("keeper", "requests", "replies"):
        (tmp_path / name).mkdir()
    start = children.Child.__init__

    def noted(self: children.Child, *arguments: Any) -> None:
        start(self, *arguments)
        found.started.append(self.process)
    monkeypatch.setattr(children.Child, "__init__", noted)
    found = types.SimpleNamespace(requests=spool.open_directory(spool.requests()), replies=spool.open_directory(spool.replies()), issuer=os.getuid(),
                                  group=os.getgid(), posted={entry[0]: {(2, "csr")} for entry in ENTRIES}, started=[])
    change(monkeypatch)
    yield found
    for process in found.started:
        KILL(process.pid, signal.SIGKILL) if process.returncode is None else None
        process.wait()


def put(entry: str, text: bytes) -> None:
    """A reply of the issuer's, which is this user."""
    pathlib.Path(spool.replies(), entry).write_bytes(text)


def said(run: Any) -> list[object]:
    """What is read: a refusal as its reason."""
    return [str(one) if isinstance(one, spool.Refused) else one for one in reader.replies(run, ENTRIES)]


def test_replies_come_in_turn(run: Any) -> None:
    """Nothing, the bytes of the longest reply, and why one is not read; by one process."""
    longest = bytes(range(256)) * 256
    put("b@0002.pem", longest)
    put("c@0002.pem", longest + b"x")
    os.symlink("b@0002.pem", spool.replies() + "/d@0002.pem")
    assert [None, longest, "size", "kind"] == said(run)
    assert 1 == len(run.started)


def test_one_that_hangs_is_busy_and_the_others_go_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left where it is, and another process reads what is left."""
    monkeypatch.setattr(reader, "DEADLINE", 2.0)
    change(monkeypatch, f"foreign.read = lambda fd, entry, _: signal.pause() if entry == {ENTRIES[1]!r} else read(fd, entry, {os.getuid()})")
    put("c@0002.pem", b"c")
    assert [None, "busy", b"c", None] == said(run)
    assert 2 == len(run.started)


@pytest.mark.parametrize("last", ["os.write(1, bytes(2)), os._exit(1)", "os.write(1, bytes([255] * 4)), signal.pause()", "return b'!fine'"])
def test_one_that_dies_or_lies_is_busy_and_the_others_go_on(run: Any, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """In the middle of an answer; by a length that none has; by a reason that there is not."""
    change(monkeypatch, f"def lie(replies, name):\n    if name == {ENTRIES[2]!r}:\n        {last}\n    return answer(replies, name)\nanswers.answer = lie")
    put("d@0002.pem", b"d")
    assert [None, None, "busy", b"d"] == said(run)


def test_no_more_hang_than_may(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all runs together, as the kernel knows them; and when it has let them go, replies are read again."""
    monkeypatch.setattr(reader, "DEADLINE", 1.0)
    monkeypatch.setattr(reader, "MOST", 3)
    monkeypatch.setattr(os, "killpg", lambda *_: None)              # what hangs in the kernel takes no signal
    monkeypatch.setattr(children, "GONE", 0.1)
    change(monkeypatch, "foreign.read = lambda *_: signal.pause()")
    assert ["busy"] * 4 == said(run)
    assert 3 == len(run.started)
    begin = time.monotonic()
    monkeypatch.setattr(reader, "DEADLINE", 60.0)
    assert ["busy"] * 4 == said(run)
    assert time.monotonic() - begin < 60, "who finds no place does not look"
    assert [None] * 3 == [process.poll() for process in run.started[:3]]
    for process in run.started[:3]:
        KILL(process.pid, signal.SIGKILL)
        process.wait()
    change(monkeypatch)
    assert [None] * 4 == said(run)


def test_nobody_looks_where_nothing_changed(run: Any) -> None:
    """Since there was no reply to any request; a reply, and another request, are seen."""
    assert [None] * 4 == said(run)
    assert [None] * 4 == said(run)
    assert 1 == len(run.started)
    put("a@0002.pem", b"a")
    assert [b"a", None, None, None] == said(run) == said(run)
    assert 3 == len(run.started), "as long as there is something"
    os.unlink(spool.replies() + "/a@0002.pem")
    assert [None] * 4 == said(run) == said(run)
    assert 4 == len(run.started)
    pathlib.Path(spool.requests(), "e@0002.csr").write_bytes(b"")
    run.posted["e"] = {(2, "csr")}
    assert [None] * 4 == said(run) == said(run)
    assert 6 == len(run.started), "nor is it known where not all were looked for"


def test_a_change_of_just_now_is_not_believed_to_be_the_last(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one may have the same time."""
    monkeypatch.setattr(reader, "SETTLED", 2e9)
    assert [None] * 4 == said(run) == said(run)
    assert 2 == len(run.started)


def test_a_change_is_no_older_for_being_read_slowly(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply that came while a child looked at the others may have the time that was seen before; it is found by the next run."""
    monkeypatch.setattr(reader, "SETTLED", 0.5e9)
    change(monkeypatch, f"foreign.read = lambda fd, entry, _: time.sleep(0.2) or read(fd, entry, {os.getuid()})")
    put("x", b"")
    assert [None] * 4 == said(run) == said(run)
    assert 2 == len(run.started)


def test_the_process_holds_nothing_that_others_wait_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list, and three descriptors beside the directory's, and none of root's: no lock, no pipe that somebody reads to its end."""
    lock = os.open(site.STATE + "/keeper/lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    change(monkeypatch, """def tell(replies, name):
    os.close(replies)
    found = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(1 << 14) if os.path.lexists(f"/proc/self/fd/{fd}")]
    return b"+" + " ".join(found).encode()
answers.answer = tell""")
    words = next(reader.replies(run, ENTRIES[:1])).decode().split()  # type: ignore[union-attr]
    os.close(lock)
    assert ["/memfd:cases", "(deleted)"] == words[:2] and words[2].startswith("pipe:")
    assert [os.devnull, site.STATE + "/keeper/readers"] == words[3:]


def test_root_hands_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that reads for root becomes the issuer's user first, and does nothing where it cannot."""
    became: list[str] = []
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(users, "become", became.append)
    assert handover.main() == os.EX_NOPERM and became == [spool.ISSUER]


@pytest.mark.parametrize("ago, told", [(3600, []), (2 * 86400, ["issuer"]), (-30, []), (-30 * 86400, ["issuer"])])
def test_a_moment_that_has_not_come_is_no_sign_of_life(run: Any, tmp_path: pathlib.Path, ago: float, told: list[str]) -> None:
    """Whoever owns the stamp can give it any time: one far ahead would else say for ever that the issuer runs."""
    run.observed, run.program = {"a": None}, "certdrop-install"
    (tmp_path / "keeper/silence").touch()
    os.utime(tmp_path / "keeper/silence", (0, time.time() - 90000))
    for who, when in (("watcher", 60.0), ("issuer", ago)):
        (tmp_path / who).mkdir()
        os.utime(tmp_path / who, (0, time.time() - when))
    assert told == [line.split()[2] for line in reader.silences(run)]

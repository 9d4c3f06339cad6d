"""The change that certdrop-import makes to nginx's files: whole or not at all, whoever ends it, and undone by what it keeps."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import types
from typing import Any, Callable

import pytest

from certdrop.by_hand import Refused
from certdrop.config import site
from certdrop.importer import apply
from certdrop.importer.nginx import unified
from certdrop.keeper import services

NAMES = ["a.conf", "b.conf", "c.conf"]
OLD, NEW = "ssl_certificate old;\n", "include new;\n"


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory with three of nginx's files, and root's state beside it."""
    if os.getuid():
        pytest.skip("root alone changes nginx's files")
    (tmp_path / "keeper").mkdir()
    (tmp_path / "nginx").mkdir(mode=0o755)
    for name in NAMES:
        (tmp_path / "nginx" / name).write_text(OLD)
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    nginx(monkeypatch, lambda: None)
    return tmp_path / "nginx"


def nginx(monkeypatch: pytest.MonkeyPatch, test: Callable[[], None]) -> None:
    """What nginx says of its test."""
    monkeypatch.setattr(services, "find", lambda name: types.SimpleNamespace(test=test, reload=lambda: None))


def change(place: pathlib.Path) -> str:
    """Make the change of all files that are not changed yet, as certdrop-import has it."""
    changes = [(str(place / name), OLD, NEW) for name in NAMES if (place / name).read_text() == OLD]
    return apply.apply(changes, "".join(unified(path[1:], before, after) for path, before, after in changes))


def texts(place: pathlib.Path) -> list[str]:
    return [(place / name).read_text() for name in NAMES]


def fails_at(count: int, deed: Callable[[], None]) -> Callable[[], None]:
    """A test that does this at its time, and passes else."""
    calls: list[int] = []

    def test() -> None:
        calls.append(1)
        if len(calls) == count:
            deed()
    return test


def refuse() -> None:
    raise services.Failed("nonsense")


def undo(kept: str) -> int:
    """As the program says that it is done."""
    with open(kept, "rb") as stream:
        return subprocess.run(["patch", "-R", "-p0", "-d", "/"], stdin=stream, stdout=subprocess.DEVNULL, check=False).returncode


def test_all_are_changed_with_their_modes(place: pathlib.Path) -> None:
    """And patch(1) undoes it."""
    os.chown(place / "a.conf", 0, 4)
    (place / "a.conf").chmod(0o640)
    kept = change(place)
    assert [NEW] * 3 == texts(place)
    about = (place / "a.conf").stat()
    assert (0o640, 0, 4) == (about.st_mode & 0o7777, about.st_uid, about.st_gid)
    assert not [entry for entry in os.listdir(place) if entry not in NAMES]
    assert 0 == undo(kept) and [OLD] * 3 == texts(place)


def test_who_is_ended_twice_puts_all_back(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal comes while the files are put back."""
    replace = apply._replace

    def impatiently(path: str, text: str) -> None:
        if text == OLD:
            os.kill(os.getpid(), signal.SIGTERM)
        replace(path, text)
    monkeypatch.setattr(apply, "_replace", impatiently)
    nginx(monkeypatch, fails_at(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Refused, match="all files are as they were"):
        change(place)
    assert [OLD] * 3 == texts(place)


def test_one_that_cannot_be_put_back_holds_up_no_other(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with what its lines were."""
    replace = apply._replace

    def full(path: str, text: str) -> None:
        if text == OLD and path.endswith("c.conf"):
            raise OSError(28, "No space left on device", path)
        replace(path, text)
    monkeypatch.setattr(apply, "_replace", full)
    nginx(monkeypatch, fails_at(2, refuse))
    with pytest.raises(Refused, match="c.conf: No space left on device; could not be put back.*import.diff has the lines"):
        change(place)
    assert [OLD, OLD, NEW] == texts(place)
    assert f"-{OLD}" in (place.parent / "keeper/import.diff").read_text()


@pytest.mark.parametrize("files", [1, 2, 3])
def test_what_was_killed_is_undone_with_what_went_on(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """The diff that the second run keeps has the files that the first one had changed."""
    child = os.fork()
    if child == 0:
        replaced = apply._replace
        done: list[str] = []

        def until(path: str, text: str) -> None:
            replaced(path, text)
            done.append(path)
            if len(done) == files:
                os.kill(os.getpid(), signal.SIGKILL)
        monkeypatch.setattr(apply, "_replace", until)
        try:
            change(place)
        finally:
            os._exit(0)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert [NEW] * files + [OLD] * (3 - files) == texts(place)
    assert apply.begun()
    kept = change(place)
    assert [NEW] * 3 == texts(place) and not apply.begun()
    assert 0 == undo(kept) and [OLD] * 3 == texts(place)


def test_what_was_taken_back_is_not_undone_again(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of it."""
    nginx(monkeypatch, fails_at(2, refuse))
    with pytest.raises(Refused, match="nonsense"):
        change(place)
    assert [OLD] * 3 == texts(place) and not (place.parent / "keeper/import.diff").exists()


def odd(how: str, place: pathlib.Path) -> None:
    """Have the last file be one that another user has a hand in."""
    path = place / "c.conf"
    if how == "directory":
        os.chown(place, 1, 1)
    elif how == "writable directory":
        place.chmod(0o775)
    elif how == "file":
        os.chown(path, 1, 1)
    elif how == "writable file":
        path.chmod(0o666)
    elif how == "second name":
        os.link(path, place.parent / "elsewhere")
    else:
        path.unlink()
        os.mkfifo(path) if how == "fifo" else path.symlink_to("gone")


@pytest.mark.parametrize("how", ["directory", "writable directory", "file", "writable file", "second name", "fifo", "link"])
def test_what_others_can_change_is_not_changed(place: pathlib.Path, how: str) -> None:
    """Whoever can swap a directory on the way could have root write into another one. No file is changed, that one's neighbours neither."""
    changes: list[Any] = [(str(place / name), OLD, NEW) for name in NAMES]
    odd(how, place)
    with pytest.raises(Refused, match="no file of nginx's was changed; make the change by hand"):
        apply.apply(changes, "diff")
    assert [OLD, OLD] == [(place / name).read_text() for name in NAMES[:2]]
    assert sorted(os.listdir(place)) == NAMES

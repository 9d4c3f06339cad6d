"""How files of nginx's are changed and put back: each by itself, none that somebody else changed since; and what is said of it."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from certdrop.doctor import pages as fetching
from certdrop.keeper import services
from certdrop.nginx import change, pages, run
from certdrop.nginx.blocks import Absent, Refused
from certdrop.nginx.edit import Change

NAME = "a.example"
OLD, NEW = "server {}\n", f"server {{}} # certdrop {NAME} 1\n"

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="the files must be root's")


class Nginx:
    """A service that notes what it is asked, and may refuse."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: list[str] = []

    def test(self) -> None:
        self.asked.append("test")
        if self.refuses:
            raise services.Failed(self.refuses.pop())

    def reload(self) -> None:
        self.asked.append("reload")


@pytest.fixture(name="nginx")
def _nginx(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Nginx:
    monkeypatch.setattr(change, "KEPT", str(tmp_path / "kept"))
    os.makedirs(tmp_path / "kept" / NAME)
    for entry in ("one", "two"):
        (tmp_path / entry).write_text(OLD)
        (tmp_path / entry).chmod(0o644)
    return Nginx()


def put(nginx: Nginx, tmp_path: pathlib.Path, look: Callable[[], str] = lambda: "") -> None:
    change.put(NAME, nginx, [Change(str(tmp_path / entry), OLD, NEW) for entry in ("one", "two")], look)      # type: ignore[arg-type]


def texts(tmp_path: pathlib.Path) -> list[str]:
    return [(tmp_path / entry).read_text() for entry in ("one", "two")]


def test_what_is_not_as_before_is_put_back(nginx: Nginx, tmp_path: pathlib.Path) -> None:
    with pytest.raises(Refused, match="a page; all files are as they were"):
        put(nginx, tmp_path, lambda: "a page")
    assert texts(tmp_path) == [OLD, OLD] and nginx.asked == ["test", "reload"] * 2
    assert not os.path.exists(f"{change.KEPT}/{NAME}/begun")
    nginx.refuses = ["no such directive"]
    with pytest.raises(Refused, match="nginx refuses the change: no such directive; all files are as they were"):
        put(nginx, tmp_path)
    put(nginx, tmp_path)
    assert texts(tmp_path) == [NEW, NEW]


def test_a_file_that_somebody_changed_meanwhile_is_not_put_back(nginx: Nginx, tmp_path: pathlib.Path) -> None:
    """It is his; that it has certdrop's lines is said, and the others are put back."""
    def look() -> str:
        (tmp_path / "two").write_text(NEW + "# his\n")
        return "a page"
    with pytest.raises(Refused, match=r"a page; .*/two was not put back \(it was changed meanwhile\); certdrop-nginx a.example --undo"):
        put(nginx, tmp_path, look)
    assert texts(tmp_path) == [OLD, NEW + "# his\n"] and nginx.asked == ["test", "reload"] * 2
    assert os.path.exists(f"{change.KEPT}/{NAME}/begun")


def test_a_disk_that_fails_keeps_no_other_file_changed(nginx: Nginx, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is put back by itself; nginx is reloaded in any case; and it is said which is left."""
    replace = change._replace

    def fails(path: str, old: bytes, new: bytes) -> None:
        if path.endswith("two") and new == OLD.encode():
            raise OSError(28, "No space left on device", path)
        replace(path, old, new)
    monkeypatch.setattr(change, "_replace", fails)
    with pytest.raises(Refused, match=r"a page; .*/two was not put back \(No space left on device\)"):
        put(nginx, tmp_path, lambda: "a page")
    assert texts(tmp_path) == [OLD, NEW] and nginx.asked == ["test", "reload"] * 2


def test_nginx_that_does_not_take_it_back_is_told(nginx: Nginx, tmp_path: pathlib.Path) -> None:
    nginx.refuses = ["the port is taken", "the port is taken"]
    with pytest.raises(change.NotPutBack, match="all files are as they were; nginx has not read them: the port is taken; start it"):
        put(nginx, tmp_path)
    assert texts(tmp_path) == [OLD, OLD] and os.path.exists(f"{change.KEPT}/{NAME}/begun")


def test_lines_are_out_where_nginx_does_not_run(nginx: Nginx, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay out; that nginx has not read the files is said, and still noted. Where its test fails, all is put back."""
    def stopped() -> None:
        raise services.Failed("no such process")
    monkeypatch.setattr(nginx, "reload", stopped)
    edits = [Change(str(tmp_path / "one"), OLD, "server { }\n")]
    with pytest.raises(change.NotLoaded, match="lines are out of nginx's files.*not reloaded: no such process; it reads them when it starts"):
        change.put(NAME, nginx, edits, lambda: "", loads=False)      # type: ignore[arg-type]
    assert texts(tmp_path)[0] == "server { }\n" and os.path.exists(f"{change.KEPT}/{NAME}/begun")
    nginx.refuses = ["no"]
    with pytest.raises(change.NotPutBack, match="nginx refuses the change: no; all files are as they were; nginx has not read them"):
        change.put(NAME, nginx, [Change(str(tmp_path / "two"), OLD, "x\n")], lambda: "", loads=False)      # type: ignore[arg-type]
    assert texts(tmp_path)[1] == OLD


@pytest.mark.parametrize("what, damage", [
    ("hard link", lambda place: os.link(place / "one", place / "other")),
    ("others than root can write", lambda place: os.chmod(place, 0o777)),
    ("others than root can write", lambda place: os.chmod(place.parent, 0o777)),
    ("others than root can write", lambda place: os.chown(place.parent, 65534, 0)),
    ("others than root can write", lambda place: os.chmod(place / "two", 0o664)),
    ("is no file", lambda place: (os.unlink(place / "two"), os.mkfifo(place / "two", 0o600))),
    ("was changed meanwhile", lambda place: (place / "two").write_text("his")),
])
def test_what_is_not_roots_alone_is_not_changed(nginx: Nginx, tmp_path: pathlib.Path, what: str, damage: Callable[[pathlib.Path], Any]) -> None:
    """Nor a file that has two names: the other one would keep the old text."""
    place = tmp_path / "in"
    place.mkdir()
    for entry in ("one", "two"):
        os.rename(tmp_path / entry, place / entry)
    mode, owner = tmp_path.stat().st_mode, tmp_path.stat().st_uid
    try:
        damage(place)
        with pytest.raises(Refused, match=f"{what}.*nothing was changed"):
            put(nginx, place)
    finally:
        os.chown(tmp_path, owner, -1)
        os.chmod(tmp_path, mode)
    assert not nginx.asked and (place / "one").read_text() == OLD


def test_a_configuration_that_is_too_long_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would look as if names had no block."""
    monkeypatch.setattr(change.write, "LARGEST", 100)
    monkeypatch.setattr(run, "show", lambda: ["/usr/bin/printf", "# configuration file /etc/nginx/nginx.conf:\\n%200s", "x"])
    with pytest.raises(Absent, match="changes none of it"):
        change.configuration_now()


@pytest.mark.parametrize("said", ["import os\nwhile 1: os.write(1, b'[' * 65536)", "print('[' * 60000)", "print('[]')",
                                  "print('{}')", "print('[1]')", "", "1/0"])
def test_nonsense_of_who_looks_is_no_page(said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read up to a length, and refused in words."""
    program = tmp_path / "look.py"
    program.write_text(said)
    monkeypatch.setattr(pages, "LOOK", str(program))
    monkeypatch.setattr(pages.users, "user_ids", lambda _: (0, 0))
    monkeypatch.setattr(pages.become, "as_user", lambda *_: [])
    with pytest.raises(Refused, match="could not be looked at.*nothing was changed"):
        pages.stable([("127.0.0.1", NAME, "http")])


@pytest.mark.parametrize("location", ["http://[", "http://a.example:x/", "http://a.example:99999/", "//[::1", "http://[a.example]/", "\u00ad:"])
def test_a_redirect_to_no_url_is_a_page(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as it stands."""
    monkeypatch.setattr(fetching, "_once", lambda *_: (302, location, b"", ""))
    seen = fetching.look("127.0.0.1", NAME, "http", {NAME})
    assert seen["status"] in (302, 0) and "chain" in seen


def test_a_difference_is_for_patch(nginx: Nginx, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Where no person reads it, each byte is as in the file: tabs, and what is no UTF-8."""
    monkeypatch.setattr(change, "configuration_now", lambda: None)
    monkeypatch.setattr(change, "wanted", lambda *_: None)
    monkeypatch.setattr(change.edit, "changes", lambda *_: [Change("/etc/x", "\tserver \udce4\n", "\tserver \udce4 x\n")])
    change.show([type("", (), {"name": NAME})()], None, change.Options())      # type: ignore[arg-type]
    assert b"-\tserver \xe4\n+\tserver \xe4 x\n" in capfdbinary.readouterr().out
    monkeypatch.setattr(change.words, "at_terminal", lambda _: True)
    shown: list[str] = []
    monkeypatch.setattr(sys, "stdout", type("", (), {"write": lambda _, text: shown.append(text), "flush": lambda _: None})())
    change.show([type("", (), {"name": NAME})()], None, change.Options())      # type: ignore[arg-type]
    assert "\t" not in "".join(shown)


@pytest.mark.parametrize("before, after, again, differs", [
    (("one", "one"), "one", "one", False), (("one", "one"), "two", "two", True), (("one", "one"), "two", "ten", False),
    (("one", "one"), "three", "three", True), (("one", "two"), "ten", "ten", False), (("one", "two"), "three", "three", True),
    (("one", "three"), "twelve", "twelve", False)])
def test_a_page_is_what_it_was(before: tuple[str, str], after: str, again: str, differs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its content; one that is made anew each time, by its length; one whose length differs by itself, by status and redirects."""
    def page(content: str, status: int = 200) -> pages.Page:
        return pages.Page(status, len(content), content, (), "", "")
    asked, looked = [("127.0.0.1", NAME, "http")], []
    monkeypatch.setattr(pages, "TICK", 0.0)
    monkeypatch.setattr(pages, "look", lambda now: looked.append(now) or [page(again)])      # type: ignore[func-returns-value]
    said = pages.differences(asked, [(page(before[0]), page(before[1]))], [page(after)], ["https"])
    assert bool(said) == differs and all(now == [("127.0.0.1", NAME, "https")] for now in looked)
    assert ("of other content" in "".join(said)) == (differs and len(after) == len(before[1]))
    assert pages.differences(asked, [(page(before[0]), page(before[1]))], [page(before[1], 500)], ["https"])

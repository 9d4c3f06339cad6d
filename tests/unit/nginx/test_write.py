"""Putting a server block into nginx's configuration, and taking one away: what was begun is taken back, whatever comes between."""

from __future__ import annotations

import os
import pathlib
import signal
import types
from typing import Any

import pytest

from certdrop.by_hand import Refused
from certdrop.keeper import services
from certdrop.nginx import own, pages, write


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory as /etc/nginx."""
    monkeypatch.setattr(own, "ETC_NGINX", str(tmp_path))
    for name in ("sites-available", "sites-enabled"):
        (tmp_path / name).mkdir()
    return tmp_path


def linked(place: pathlib.Path) -> str:
    """A block that is there, and its link."""
    (place / "sites-available/a").write_text("server {}\n")
    (place / "sites-enabled/a").symlink_to("../sites-available/a")
    return os.path.realpath(place / "sites-available/a")


def all_of(place: pathlib.Path) -> list[tuple[str, str]]:
    return sorted((str(path.relative_to(place)), path.read_text()) for path in place.rglob("*") if not path.is_dir())


def nginx(test: Any) -> Any:
    return types.SimpleNamespace(test=test, reload=lambda: None)


def refuse() -> None:
    raise services.Failed("nonsense")


def test_a_block_that_cannot_be_moved_keeps_its_link(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that chattr(1) made immutable."""
    path, before = linked(place), all_of(place)

    def fails(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", path)
    with monkeypatch.context() as patched, pytest.raises(Refused, match="stays: .*Operation not permitted; nothing was changed"):
        patched.setattr(os, "rename", fails)
        own.take_away(path, nginx(lambda: None))
    assert before == all_of(place)


def test_a_block_that_is_needed_is_put_back(place: pathlib.Path) -> None:
    """With its link."""
    path, before = linked(place), all_of(place)
    with pytest.raises(Refused, match="stays: without it nonsense; nothing was changed"):
        own.take_away(path, nginx(refuse))
    assert before == all_of(place)
    assert "reloaded" == own.take_away(path, nginx(lambda: None))
    assert [] == all_of(place)


def test_a_reload_that_failed_is_told(place: pathlib.Path) -> None:
    """As where nginx does not run; the block is gone all the same."""
    path = linked(place)
    service = types.SimpleNamespace(test=lambda: None, reload=refuse)
    assert "was not reloaded: nonsense" == own.take_away(path, service)     # type: ignore[arg-type]
    assert [] == all_of(place)


def test_who_is_ended_twice_takes_all_back(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal comes while the blocks are taken back."""
    unlink = write._unlink

    def impatiently(path: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        unlink(path)
    monkeypatch.setattr(write, "_unlink", impatiently)
    sites: dict[str, Any] = {name: types.SimpleNamespace(name=name) for name in ("a", "b")}
    plans = [write.Plan([one], f"{place}/sites-available/{name}", f"{place}/sites-enabled/{name}", "server {}\n") for name, one in sites.items()]
    with pytest.raises(write.Refused, match="ended by signal 15; all was taken back"):
        write._apply(plans, nginx(lambda: os.kill(os.getpid(), signal.SIGTERM)), False)
    assert [] == all_of(place)


def written(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, now: pages.Page) -> write.Plan:
    """A new block for a name whose page was "x"; over https it is `now`."""
    before = pages.Page(200, 1, "x", (), "", "")
    monkeypatch.setattr(pages, "until_shown", lambda *_: [])
    monkeypatch.setattr(pages, "fingerprint", lambda _: "")
    monkeypatch.setattr(pages, "look", lambda asked: [before if scheme == "http" else now for _, _, scheme in asked])
    one: Any = types.SimpleNamespace(name="a.example", domains=["a.example"])
    return write.Plan([one], f"{place}/sites-available/a", f"{place}/sites-enabled/a", "server {}\n", "server { now }\n",
                      [(("127.0.0.1", "a.example", "http"), (before, before))], "/etc/nginx/sites-enabled/default:3")


def test_a_block_that_makes_another_page_is_taken_back(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """With what does it rightly; with --anyway it stays, and what differs is said."""
    asked: list[str] = []
    service = types.SimpleNamespace(test=lambda: asked.append("test"), reload=lambda: asked.append("reload"))
    plan = written(place, monkeypatch, pages.Page(403, 9, "y", (), "", ""))
    with pytest.raises(write.Refused, match=r"differs: .*200, 1 bytes; now, https: 403, 9 bytes; the server block at /etc/nginx/sites-enabled/default:3 "
                                            r"answers for it: add a.example to its server_name, then certdrop-nginx a.example --apply .*; all was taken back"):
        write._apply([plan], service, False)               # type: ignore[arg-type]
    assert [] == all_of(place) and asked == ["test", "reload"] * 2
    assert write._apply([plan], service, True)             # type: ignore[arg-type]
    assert "differs: " in capfd.readouterr().out and [text for _, text in all_of(place)] == [plan.now] * 2


def test_http_leads_to_https_once_the_certificate_is_there(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Until then both serve the same; what cannot be replaced then is said, and stays whole."""
    plan, is_waiting = written(place, monkeypatch, pages.Page(200, 1, "x", (), "", "")), [True, False, False]
    monkeypatch.setattr(write, "_is_waiting", lambda _: is_waiting.pop(0))
    assert write._apply([plan], nginx(lambda: None), False)
    write._finish([plan], nginx(lambda: None))
    assert "leads to https once the certificate is there" in capfd.readouterr().out and [text for _, text in all_of(place)] == [plan.now] * 2
    with pytest.raises(write.Refused, match="nginx refuses the new server block: nonsense; all was taken back"):
        write._finish([plan], nginx(refuse))
    assert [text for _, text in all_of(place)] == [plan.now] * 2
    write._finish([plan], nginx(lambda: None))
    assert [text for _, text in all_of(place)] == [plan.text] * 2


def test_a_full_disk_leaves_nothing(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file is written, or its link made."""
    plan = written(place, monkeypatch, pages.Page(200, 1, "x", (), "", ""))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")
    for what in ("symlink", "link"):
        with monkeypatch.context() as patched, pytest.raises(write.Refused, match="No space left on device; all was taken back"):
            patched.setattr(os, what, full)
            write._apply([plan], nginx(lambda: None), False)
        assert [] == all_of(place)

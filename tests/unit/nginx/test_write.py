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
from certdrop.nginx import own, write


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
    with pytest.raises(write.Refused, match="nothing was changed"):
        write._apply(plans, nginx(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert [] == all_of(place)

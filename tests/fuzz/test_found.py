"""Inputs that were bugs once, and the seeds: every target takes them. `tests/fuzz/run` looks for new ones."""

from __future__ import annotations

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import targets  # noqa: E402

FOUND = sorted((HERE / "found").glob("*/*"))


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets' own directories, in place of the system's, for this test alone."""
    monkeypatch.setattr(targets.site, "ETC", f"{targets.ROOM}/etc")
    monkeypatch.setattr(targets.site, "STATE", f"{targets.ROOM}/var")
    monkeypatch.setattr(targets.spool, "SPOOL", f"{targets.ROOM}/spool")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found(path: pathlib.Path) -> None:
    """It is taken or refused, as any other input."""
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name: str) -> None:
    """The inputs that fuzzing begins with, and each of them cut short, doubled, and with a byte changed."""
    for seed in targets.SEEDS[name]:
        for data in (seed, seed[:-1], seed[:len(seed) // 2], seed + seed, seed.replace(b"a", b"\0"), b"", b"\xff" * 10):
            targets.TARGETS[name](data)

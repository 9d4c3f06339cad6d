"""The unit tests run on the host, as anyone, on files of their own."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any, Iterator

import hypothesis
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "lib"))

os.umask(0o022)                    # files that the tests put down have the modes of an administrator's, whoever runs them

hypothesis.settings.register_profile("patient", deadline=None)         # how long one example takes says more of the machine than of the code
hypothesis.settings.load_profile("patient")


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """certdrop's directories (watcher.test_evidence.World) after a run of root's, on a host where nobody listens."""
    from certdrop import listening
    from watcher.test_evidence import make_world
    monkeypatch.setattr(listening, "listeners", lambda: {})
    found = make_world(tmp_path, monkeypatch)
    found.ran()
    return found


@pytest.fixture
def door(tmp_path: pathlib.Path) -> Iterator[int]:
    """A directory, open."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)

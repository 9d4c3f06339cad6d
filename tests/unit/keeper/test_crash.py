"""The power fails: whatever of a generation has reached the disk by then, it is whole, or none yet; and no key is left without what belongs to it."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
from typing import Any

import pytest
from keeper.test_damage import DAMAGED, OTHER, _world, certify, configured  # noqa: F401

from certdrop.config import site
from certdrop.keeper import generations, integrity, state


class Disk:
    """What the disk may have at each moment: of the names that a directory got since it was written back, some, and not the others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, images: pathlib.Path) -> None:
        self.images = images
        self.pending: dict[str, list[str]] = {}
        self.written: set[int] = set()         # files whose content is there
        self.seen: list[tuple[dict[int, str], str, list[int]]] = []
        self.moments = 0
        rename = os.rename

        def renamed(old: Any, new: Any, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            path = new if dst_dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dst_dir_fd}')}/{new}"
            assert not os.path.isfile(path) or os.path.islink(path) or os.stat(path).st_ino in self.written, f"{path} got its name before its content was there"
            self.pending.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
            self.look()

        def synced(fd: int) -> None:
            self.written.add(os.fstat(fd).st_ino)
            self.pending.pop(os.readlink(f"/proc/self/fd/{fd}"), None)
            self.look()
        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(os, "fsync", synced)

    def look(self) -> None:
        """Each disk that there may be now, as the next run sees it."""
        self.moments += 1
        late = [f"{parent}/{entry}" for parent, entries in self.pending.items() for entry in dict.fromkeys(entries)]
        for lost in itertools.chain.from_iterable(itertools.combinations(late, count) for count in range(len(late) + 1)):
            self.seen.append(self._without(lost))

    def _without(self, lost: tuple[str, ...]) -> tuple[dict[int, str], str, list[int]]:
        image = self.images / "image"
        shutil.copytree(site.STATE, image, symlinks=True)
        before, site.STATE = site.STATE, str(image)
        try:
            for path in lost:
                integrity.clear(f"{image}{path.removeprefix(before)}")
            for path in image.glob("sites/*/*/nginx.conf"):
                path.write_bytes(integrity.lines(str(path.parent)))       # it names its own place
            observed = state.Observed(DAMAGED)
            return observed.damaged, observed.fault, observed.complete
        finally:
            site.STATE = before
            shutil.rmtree(image)


@pytest.fixture(name="disk")
def _disk(world: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    shutil.rmtree(world / "sites" / OTHER)                 # each image is a copy
    return Disk(monkeypatch, tmp_path)


def test_a_certificate_is_there_or_not(disk: Disk) -> None:
    """Accepted, and the power fails at any moment of its being written: the generation waits for its reply, or is complete; it is never damaged."""
    certify(DAMAGED, 4)
    assert [] == [found for found in disk.seen if found[0] or found[1]]
    assert disk.seen[0][2] == [1, 2, 3] and disk.seen[-1][2] == [1, 2, 3, 4] and disk.moments >= 12


def test_a_request_is_there_or_not(disk: Disk) -> None:
    """The same of another next, and of a marker."""
    generations.make_next(configured(DAMAGED), 5, None, True)
    generations.mark(DAMAGED, 3, "withdrawn")
    assert [] == [found for found in disk.seen if found[0] or found[1]]
    assert disk.seen[-1][2] == [1, 2] and disk.moments >= 12

"""The safe read of what another principal may have written."""

from __future__ import annotations

import os
import pathlib
import socket
import threading

import pytest

from certdrop import foreign, spool

GOOD = b"any content"


def refused(door: int, name: str, owner: int = os.getuid()) -> str:
    """The reason for which a read is refused."""
    with pytest.raises(spool.Refused) as caught:
        foreign.read(door, name, owner)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "link", "dangling"])
def test_only_regular_files_are_read(door: int, tmp_path: pathlib.Path, kind: str) -> None:
    """Whatever else stands there is refused at once, and nothing waits for a writer."""
    path = tmp_path / "a"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
            assert refused(door, "a") == "kind"
        return
    else:
        if kind == "link":
            (tmp_path / "b").write_bytes(GOOD)
        path.symlink_to("b")
    assert refused(door, "a") == "kind"


def test_owner_links_mode_and_size(door: int, tmp_path: pathlib.Path) -> None:
    """A file of somebody else's, with a second name, writable by others, or too long is refused."""
    path = tmp_path / "a"
    path.write_bytes(GOOD)
    path.chmod(0o640)
    assert refused(door, "a", os.getuid() + 1) == "owner"
    path.chmod(0o660)
    assert refused(door, "a") == "mode"
    path.chmod(0o640)
    os.link(path, tmp_path / "b")
    assert refused(door, "a") == "links"
    os.unlink(tmp_path / "b")
    os.truncate(path, 10 << 30)
    assert refused(door, "a") == "size"
    os.truncate(path, spool.MAX_REPLY)
    assert len(foreign.read(door, "a", os.getuid())) == spool.MAX_REPLY
    with pytest.raises(FileNotFoundError):
        foreign.read(door, "none", os.getuid())


def test_a_file_that_grows_is_read_to_the_limit(door: int, tmp_path: pathlib.Path) -> None:
    """A writer that goes on writing gets no more than the limit read."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(0o600)
    stop = threading.Event()

    def grow() -> None:
        with open(path, "ab", buffering=0) as stream:
            while not stop.is_set() and stream.tell() < 1 << 24:
                stream.write(b"x" * 65536)
    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(200):
            try:
                assert len(foreign.read(door, "a", os.getuid())) <= spool.MAX_REPLY
            except spool.Refused as reason:
                assert reason.reason == "size"
    finally:
        stop.set()
        writer.join()

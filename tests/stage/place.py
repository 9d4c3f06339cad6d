"""Where the stage keeps its things, and how it tells what went wrong.

Everything is below build/stage in the repository, or below CERTDROP_STAGE_DIR: `cache` (what apt
fetched), `layer-*` (what was installed from it) and `mnt` (an empty directory to mount on).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import Iterator, Optional

HERE = os.path.dirname(os.path.realpath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
CLOSED = "/root/certdrop"       # where the stage shows the repository: nobody but root may enter /root
HOME = os.path.abspath(os.environ.get("CERTDROP_STAGE_DIR") or os.path.join(REPOSITORY, "build", "stage"))
CACHE = os.path.join(HOME, "cache")


class StageError(Exception):
    """What to tell the user, and the status to leave with."""

    def __init__(self, message: str, status: int = os.EX_UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    print(f"stage: {text}", file=sys.stderr, flush=True)


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def write(path: str, text: str, mode: Optional[int] = None) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        if mode is not None:
            os.fchmod(file.fileno(), mode)


def prepare_home() -> None:
    """Make build/stage, which keeps itself out of git."""
    os.makedirs(CACHE, exist_ok=True)
    os.makedirs(os.path.join(HOME, "mnt"), exist_ok=True)
    ignore = os.path.join(HOME, ".gitignore")
    if not os.path.exists(ignore):
        write(ignore, "*\n")


@contextlib.contextmanager
def locked(path: str, operation: int = fcntl.LOCK_EX, flags: int = os.O_RDONLY | os.O_CREAT) -> Iterator[None]:
    """Hold a flock on this file, which is made if need be, or with other flags on this directory."""
    descriptor = os.open(os.path.join(HOME, path), flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)

"""Copy and remove trees of files as they are, with what an overlay left in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import Sequence


def copy_tree(source: str, target: str, skip: Sequence[str] = ()) -> list[str]:
    """Copy a tree with owners, modes, times, links and attributes; answer the overlay's whiteouts.

    An overlay's own marks are not copied: they could not be made where `target` is on an
    overlay itself, and would not be seen through a second one.
    """
    gone: list[str] = []
    links: dict[tuple[int, int], str] = {}

    def copy_meta(one: str, other: str, info: os.stat_result) -> None:
        os.chown(other, info.st_uid, info.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            os.chmod(other, stat.S_IMODE(info.st_mode))
            for name in os.listxattr(one):
                if not name.startswith("trusted.overlay."):
                    os.setxattr(other, name, os.getxattr(one, name))
        os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)

    def copy_one(one: str, other: str, name: str) -> None:
        info = os.lstat(one)
        if stat.S_ISDIR(info.st_mode):
            os.makedirs(other, exist_ok=True)
            if name and "trusted.overlay.opaque" in os.listxattr(one):
                gone.append(name + "/*")
            for entry in sorted(os.listdir(one)):
                inner = f"{name}/{entry}"
                if inner not in skip:
                    copy_one(os.path.join(one, entry), os.path.join(other, entry), inner)
        elif stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            gone.append(name)
            return
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(one), other)
        elif stat.S_ISREG(info.st_mode):
            first = links.get((info.st_dev, info.st_ino))
            if first is not None:
                os.link(first, other)
                return
            if info.st_nlink > 1:
                links[(info.st_dev, info.st_ino)] = other
            with open(one, "rb") as reader, open(other, "xb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        else:
            return              # sockets and pipes of a build are nobody's
        copy_meta(one, other, info)

    copy_one(source, target, "")
    return gone


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

"""Looks at what the host itself must give: space and inodes, and the versions of what certdrop is made of.

Runs as: anyone. Trusts: the kernel, and the packages' own notes. Reads: statvfs, the metadata of Python's packages. Writes: nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys

from certdrop import spool, tokens
from certdrop.config import site as configuration
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.events import LOGS

PLACES = (configuration.STATE, f"{configuration.STATE}/sites", f"{configuration.STATE}/issuer", spool.SPOOL, spool.requests(), spool.replies(),
          tokens.directory(), LOGS, configuration.ETC, "/tmp")
LITTLE, TOO_LITTLE = 64 << 20, 4 << 20             # bytes: a thousand sites' generations, and one run's
FEW, TOO_FEW = 2000, 100                           # inodes: a generation has ten
OLDEST = {"acme-tiny": (5, 0, 1), "cryptography": (38,), "pyOpenSSL": (23,), "structlog": (22,), "idna": (3,)}
PYTHON = (3, 11)


def look() -> list[Line]:
    """All of it."""
    return [*space(), *versions()]


def space() -> list[Line]:
    """One line for each file system that is nearly full; one that all is well."""
    seen: dict[int, str] = {}
    lines = []
    for path in PLACES:
        try:
            device, found = os.stat(path).st_dev, os.statvfs(path)
        except PermissionError:
            continue                           # said of the directories
        except OSError as error:
            lines.append(Line(FAILED, "space", f"{path}: {error.strerror}", "install the package again"))
            continue
        if device in seen:
            continue
        seen[device] = path
        left, inodes = found.f_bavail * found.f_frsize, found.f_favail
        counted = found.f_files > 0                # some file systems have no fixed number
        if left < LITTLE:
            lines.append(Line(FAILED if left < TOO_LITTLE else WARNING, "space", f"{path}: {left >> 20} MiB left: nothing can be written when it is full",
                              f"make room: du -xh {path} | sort -h | tail"))
        if counted and inodes < FEW:
            lines.append(Line(FAILED if inodes < TOO_FEW else WARNING, "space", f"{path}: {inodes} inodes left: new files cannot be made when there are none",
                              f"remove files on the file system of {path}"))
    return lines or [Line(OK, "space", f"enough, and inodes, on {len(seen)} file systems")]


def versions() -> list[Line]:
    """Whether what certdrop is made of is there, and new enough."""
    wrong = [] if sys.version_info >= PYTHON else [Line(FAILED, "versions", f"Python {sys.version.split()[0]} is too old", "run Debian 12 or later")]
    found = []
    for name, oldest in OLDEST.items():
        package = name if name == "acme-tiny" else "python3-" + name.lower().removeprefix("py")
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(Line(FAILED, "versions", f"{name} is not installed", f"apt install {package}"))
            continue
        found.append(f"{name} {version}")
        if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < oldest:
            wrong.append(Line(FAILED, "versions", f"{name} {version} is older than {'.'.join(map(str, oldest))}", f"apt install {package}"))
    return wrong or [Line(OK, "versions", f"Python {sys.version.split()[0]}, {', '.join(found)}")]

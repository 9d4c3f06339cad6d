"""Looks whether live files, their owners and modes are as the keeper leaves them.

Runs as: anyone (it opens no key). Trusts: the kernel. Reads: the generation that is live.
Writes: nothing. The directories that all sites share are layout.py's.
"""

from __future__ import annotations

import os
import stat

from certdrop.config import site as configuration

ROOT = 0
PUBLIC = ("cert.pem", "chain.pem", "fullchain.pem", "nginx.conf")
WHOLE = ("privkey.pem", "request.json", "cert.json", "cert.pem", "fullchain.pem", "nginx.conf")        # chain.pem may be empty


def of_site(name: str, number: int) -> list[str]:
    """What is wrong with the live generation of a site, in words; nothing where all is well."""
    place = f"{configuration.STATE}/sites/{name}/{number:04d}"
    wrong = directory(os.path.dirname(place)) + directory(place)
    wrong += regular(place + "/privkey.pem", 0o077, "is a private key that others than root may use")
    for entry in PUBLIC:
        wrong += regular(f"{place}/{entry}", 0o022, "can be written by others than root")
    return wrong or content(place)


def damage(name: str, number: int) -> str:
    """Why the live generation of a site is not whole, as far as can be seen without its key; "" where it is. The keeper goes back from such a one."""
    place = f"{configuration.STATE}/sites/{name}/{number:04d}"
    for entry in WHOLE:
        try:
            found = os.lstat(f"{place}/{entry}")
        except OSError as error:
            return f"{place}/{entry}: {error.strerror}"
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return f"{place}/{entry} is {'empty' if stat.S_ISREG(found.st_mode) else 'no file'}"
    return "; ".join(content(place))


def directory(path: str) -> list[str]:
    """Root's, and nobody else may write there."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    if not stat.S_ISDIR(found.st_mode):
        return [f"{path} is no directory"]
    return _owned(path, found) or ([f"{path} can be written by others than root"] if found.st_mode & 0o022 else [])


def regular(path: str, forbidden: int, words: str) -> list[str]:
    """A plain file of root's under one name, with none of the forbidden bits."""
    try:
        found = os.lstat(path)
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return [f"{path} is no plain file"]
    return _owned(path, found) or ([f"{path} {words}"] if found.st_mode & forbidden else [])


def content(place: str) -> list[str]:
    """The chain begins with the certificate, and nginx is told this generation's own files."""
    try:
        leaf, chain, lines = (_read(f"{place}/{entry}") for entry in ("cert.pem", "fullchain.pem", "nginx.conf"))
    except OSError as error:
        return [f"{error.filename}: {error.strerror}"]
    wrong = [] if leaf and chain.startswith(leaf) else [f"{place}/fullchain.pem does not begin with cert.pem"]
    named = all(f" {place}/{entry};".encode() in lines for entry in ("fullchain.pem", "privkey.pem"))
    return wrong + ([] if named else [f"{place}/nginx.conf does not name this generation's files"])


def _owned(path: str, found: os.stat_result) -> list[str]:
    return [] if found.st_uid == ROOT else [f"{path} belongs to uid {found.st_uid}, not to root"]


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:           # looked at before: a plain file of root's
        return stream.read(1 << 20)

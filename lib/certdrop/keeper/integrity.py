"""Whether what root wrote is still what root wrote: writes and reads root's own small files, and looks at whole generations.

A disk that fails, or a careless hand, damages a file of one site: that must stay this site's trouble, and no service may meet it.
So a generation counts as complete only while its files belong together. They are read where one of them was touched (inode, size or a time
of change is another); that nothing was is seen by stat(2) alone, in each run. No certificate is parsed for that, and no key but root's own.

Runs as: root. Trusts: nothing that it reads but that root wrote it, if it is whole. Reads: sites/ and keeper/ below
/var/lib/certdrop. Writes: what it is given to write there.
"""

from __future__ import annotations

import errno
import json
import os
import stat

from certdrop import spool
from certdrop.config import site

LIMIT = 64 * 1024                  # bytes of a generation's file, or of notes
REQUEST = ("privkey.pem", "request.csr", "request.json")
REVOCABLE = ("request.json", "cert.pem", "cert.json")
COMPLETE = ("privkey.pem", "request.json", "cert.pem", "chain.pem", "fullchain.pem", "cert.json", "nginx.conf")
FORMS: dict[str, dict[str, type]] = {
    "request.json": {"key": str, "key_created": int, "spki_sha256": str, "domains": list},
    "cert.json": {"sha256": str, "not_before": int, "not_after": int},
}

_DAMAGE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EIO)      # what else an open meets, is the system's trouble
_recalled: dict[str, int] | None = None           # what former runs found whole; None where this one examines by itself
_examined: dict[str, int] = {}     # the last of some files of a generation, and how they all looked when they were found whole


class Damaged(OSError):
    """A file is not there, or not as root wrote it; the text says which. To callers it is trouble with a disk, like any other."""


def read(path: str, limit: int = LIMIT) -> bytes:
    """What stands in a file of root's. Raises Damaged where that is no plain file or longer than `limit`, and FileNotFoundError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _told(path, error) from error
    data = b""
    try:
        while stat.S_ISREG(os.fstat(fd).st_mode) and len(data) <= limit:
            more = os.read(fd, limit + 1 - len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise _told(path, error) from error
    finally:
        os.close(fd)
    if not data or len(data) > limit:
        raise Damaged(f"{path} is {'too long' if data else 'empty, or no file'}")
    return data


def table(path: str) -> dict[str, object]:
    """The JSON object in a file of root's. Raises Damaged, and FileNotFoundError."""
    try:
        found = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} cannot be read") from error
    if not isinstance(found, dict):
        raise Damaged(f"{path} cannot be read")
    return found


def facts(path: str) -> dict[str, object]:
    """request.json or cert.json of a generation, each entry of its type. Raises Damaged."""
    try:
        found = table(path)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    for key, form in FORMS[path.rpartition("/")[2]].items():
        if type(found.get(key)) is not form:
            raise Damaged(f"{path} cannot be read")
    return found


def fault(place: str, files: tuple[str, ...]) -> str:
    """What is wrong with these files of a generation, in words; "" where they are there, and belong together. Raises OSError for what is no damage."""
    key = f"{place}/{files[-1]}"
    try:
        seen = _look(place, files)
        if _examined.get(key) != seen:
            _examine(place, files)
            _examined[key] = seen
    except Damaged as damage:
        return str(damage)
    return ""


def clear(path: str) -> None:
    """Remove what stands at a path, a directory with all that is in it; nothing is fine too."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        import shutil                          # here, because nearly no run meets one
        shutil.rmtree(path)


def fill(path: str, files: dict[str, bytes], mode: int = 0o644, last: str = "") -> None:
    """Write files into a directory of root's, each whole or not at all, and their names onto the disk at once.

    A file gets its name when its content is on the disk, so no name stands for half a file. Names can reach the disk in any order until all are
    there: where that matters, the one that says that all are there comes after, `last`, or by a rename of the directory.
    """
    fd = spool.open_directory(path)
    try:
        for entry, data in files.items():
            if os.path.isdir(f"{path}/{entry}"):       # somebody's hand
                clear(f"{path}/{entry}")
            if entry == last:
                os.fsync(fd)
            spool.write(fd, entry, data, 0o600 if entry == "privkey.pem" else mode, named=False)
        os.fsync(fd)
    finally:
        os.close(fd)


def recall() -> None:
    """What was found whole by former runs. Where that cannot be read, everything is examined again."""
    global _recalled
    _recalled = {}
    try:
        _recalled.update({path: int(seen) for path, seen in json.loads(read(f"{site.STATE}/keeper/examined", 1 << 26)).items()})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        pass
    _examined.update(_recalled)


def news() -> bytes | None:
    """What the next run should recall, of the generations that are there; None where that is known already, or nothing was recalled."""
    if _recalled is None or _examined == _recalled:
        return None
    return json.dumps({path: seen for path, seen in _examined.items() if os.path.exists(path)}).encode()


def _look(place: str, files: tuple[str, ...]) -> int:
    """How the files look from outside, as one number: the same in each process, for numbers are hashed without a seed."""
    found = []
    for entry in files:
        try:
            one = os.lstat(f"{place}/{entry}")
        except OSError as error:
            raise _told(f"{place}/{entry}", error) from error
        found += [one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns]
    return hash(tuple(found))


def _examine(place: str, files: tuple[str, ...]) -> None:
    """Read all of a generation. Raises Damaged."""
    texts = {entry: _text(f"{place}/{entry}") for entry in files}
    asked = facts(f"{place}/request.json")
    if "cert.pem" in files:
        import base64
        import hashlib
        try:
            sha256 = hashlib.sha256(base64.b64decode(b"".join(texts["cert.pem"].splitlines()[1:-1]), validate=True)).hexdigest()
        except ValueError:
            sha256 = ""
        if sha256 != facts(f"{place}/cert.json")["sha256"]:
            raise Damaged(f"{place}/cert.pem is not the certificate that was accepted")
    if "nginx.conf" in files:
        if texts["fullchain.pem"] != texts["cert.pem"] + texts["chain.pem"]:
            raise Damaged(f"{place}/fullchain.pem is not cert.pem and chain.pem")
        if texts["nginx.conf"] != lines(place):
            raise Damaged(f"{place}/nginx.conf is not as it was written")
    from certdrop.keeper import keys               # only where a file was touched
    for entry, spki in (("privkey.pem", keys.spki_sha256), ("request.csr", keys.spki_of_request)):
        try:
            if entry in texts and spki(texts[entry]) != asked["spki_sha256"]:
                raise ValueError("another key")
        except (ValueError, TypeError) as error:
            raise Damaged(f"{place}/{entry} is not as it was made, or is for another key") from error


def lines(place: str) -> bytes:
    """What nginx is told of the generation in this directory."""
    return f"ssl_certificate {place}/fullchain.pem;\nssl_certificate_key {place}/privkey.pem;\n".encode()


def _text(path: str) -> bytes:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except Damaged:
        if path.endswith("/chain.pem") and os.path.isfile(path) and not os.path.getsize(path):
            return b""                             # a leaf straight below its root, or a placeholder
        raise


def _told(path: str, error: OSError) -> OSError:
    """What an error means: damage, or trouble that the system has."""
    if error.errno == errno.ENOENT:
        return Damaged(f"{path} is missing")
    return Damaged(f"{path}: {error.strerror}") if error.errno in _DAMAGE else error

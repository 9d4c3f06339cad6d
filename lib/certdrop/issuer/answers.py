"""What lies in replies/: under a name a reply, or why it is not read; and under which names there is something.

Runs as: _certdrop, in the process that root's keeper starts for it (handover.py); never as root. Trusts: nothing. Reads: replies/. Writes: the modes
of its own files there.
"""

from __future__ import annotations

import os

from certdrop import answering, foreign, spool
from certdrop.walls import jail

NOTHING, CLOSED, REPLY, REFUSED = b"-", b"--", b"+", b"!"      # how an answer begins: keeper/reader.py reads that

LONGEST = 256                      # bytes of a name and what ends it


def serve() -> None:
    """Answer for each name, in turn, shut in."""
    jail.give_up_privileges()          # who has the same uid must not speak for this process
    try:
        jail.landlock(read=(spool.replies(),), ports=())
    except jail.Unconfined:
        pass                           # what this user cannot read, this process cannot
    try:
        replies = spool.open_directory(spool.replies())
    except PermissionError:            # a directory above is closed to this user, so nobody sees what lies there
        replies = None
    answering.serve(lambda name: CLOSED if replies is None else answer(replies, name.decode("ascii")))


def answer(replies: int, name: str) -> bytes:
    """What lies under this name: a reply, or why it is not read, behind what says which. For no name: the names."""
    try:
        return _answer(replies, name) if name else listed(replies)
    except FileNotFoundError:
        return NOTHING
    except PermissionError:
        return REFUSED + b"kind"
    except spool.Refused as refused:
        return REFUSED + refused.reason.encode("ascii")


def listed(replies: int) -> bytes:
    """The names of the replies that lie there, a line each, as many as root takes."""
    names, room = list[bytes](), spool.MAX_LISTED
    with os.scandir(replies) as entries:       # it may hold millions
        for found in entries:
            if found.name.endswith(".pem") and spool.parse_entry(found.name):
                names.append(found.name.encode("ascii"))
                room -= len(found.name) + 1
                if room < LONGEST:
                    break
    return REPLY + b"\n".join(names) if names else NOTHING


def _answer(replies: int, name: str) -> bytes:
    try:
        return REPLY + foreign.read(replies, name, os.getuid())
    except spool.Refused as refused:
        if not isinstance(refused.__cause__, PermissionError):
            raise
        if os.stat(name, dir_fd=replies, follow_symlinks=False).st_uid != os.getuid():
            raise spool.Refused("owner") from refused
        os.chmod(name, 0o640, dir_fd=replies)                  # ours, by whatever modes
        return REPLY + foreign.read(replies, name, os.getuid())

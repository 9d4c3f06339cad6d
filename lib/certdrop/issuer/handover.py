"""Hands replies over: says to root what lies in replies/ under each name that root asks for. `python3 -I -S .../issuer/handover.py`, by root's keeper only.

It may hang, where somebody holds the directory, or a file, in the kernel; root waits for no answer longer than its deadline.
It begins as root and becomes _certdrop at once: whoever changes its user so, and executes nothing afterwards, cannot be traced by others of that user.
Runs as: _certdrop. Trusts: standard input, which is root's list. Reads: replies/. Writes: standard output, a pipe to root.
"""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

NOTHING, REPLY, REFUSED = b"-", b"+", b"!"      # how an answer begins: keeper/reader.py reads that


def main() -> int:
    """Answer for each name, in turn."""
    from certdrop import frames, spool
    from certdrop.walls import users
    if os.getuid() == 0:
        users.become(spool.ISSUER)
    if os.getuid() == 0:
        return os.EX_NOPERM
    from certdrop.walls import jail    # not before
    jail.give_up_privileges()          # who has the same uid must not speak for this process
    try:
        jail.landlock(read=(spool.replies(),), ports=())
    except jail.Unconfined:
        pass                           # what this user cannot read, this process cannot
    try:
        replies = spool.open_directory(spool.replies())
    except PermissionError:            # a directory above is closed to this user, so nothing of its own can lie there
        replies = None
    frames.serve(lambda name: NOTHING if replies is None else answer(replies, name.decode("ascii")))
    return os.EX_OK


def answer(replies: int, name: str) -> bytes:
    """What lies under this name: a reply, or why it is not read, behind what says which."""
    from certdrop import spool
    try:
        try:
            return REPLY + spool.read(replies, name, os.getuid())
        except spool.Refused as refused:
            if not isinstance(refused.__cause__, PermissionError):
                raise
            if os.stat(name, dir_fd=replies, follow_symlinks=False).st_uid != os.getuid():
                raise spool.Refused("owner") from refused
            os.chmod(name, 0o640, dir_fd=replies)              # ours, by whatever modes
            return REPLY + spool.read(replies, name, os.getuid())
    except FileNotFoundError:
        return NOTHING
    except PermissionError:
        return REFUSED + b"kind"
    except spool.Refused as refused:
        return REFUSED + refused.reason.encode("ascii")


if __name__ == "__main__":
    sys.exit(main())

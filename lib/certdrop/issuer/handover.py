"""Hands replies over: says to root what lies in replies/ under each name that root asks for; where root asks for none, which names there are.

Started by root's keeper only: `python3 -I -S .../issuer/handover.py`. It may hang, where somebody holds the directory, or a file, in the kernel;
root waits for no answer longer than its deadline.
It begins as root and becomes _certdrop at once: whoever changes its user so, and executes nothing afterwards, cannot be traced by others of that user.
Runs as: _certdrop. Trusts: standard input, which is root's list. Reads: replies/. Writes: standard output, a pipe to root.
"""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]


def main() -> int:
    """Answer for each name, in turn."""
    from certdrop import spool
    from certdrop.walls import users
    if os.getuid() == 0:
        users.become(spool.ISSUER)
    if os.getuid() == 0:
        return os.EX_NOPERM
    from certdrop.issuer import answers        # not before: nothing of this runs as root
    answers.serve()
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())

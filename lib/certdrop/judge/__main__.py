"""The judge's process: `python3 -I -S .../judge/__main__.py chain ROOTS...` or `... served ROOTS...` (files), started by the keeper only.

Runs as: _certdrop-judge, which owns no file; refuses to be root. Reads: the trusted roots, then a file in memory that the keeper made.
"""

import os
import sys

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from collections.abc import Callable

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]


def task(argv: list[str]) -> "Callable[[], int] | int":
    """One of the two tasks, loaded, or why not. Raises ImportError."""
    if os.getuid() == 0:
        return os.EX_NOPERM
    from certdrop.walls import jail
    try:                               # AppArmor knows programs by their path, and this one's is Python's
        with open("/proc/self/attr/apparmor/current", "w", encoding="ascii") as stream:
            stream.write("changeprofile certdrop-judge")
    except OSError:
        pass                           # no AppArmor here, or no such profile
    jail.give_up_privileges()          # a child of the sandbox has the same uid: it must not trace this process and so speak for other cases
    jail.keep_cases_apart()
    if argv[:1] == ["chain"] and len(argv) > 1:
        sys.path.append("/usr/lib/python3/dist-packages")       # cryptography and OpenSSL, which -S leaves out
        from certdrop.judge import chain
        return lambda: chain.serve(argv[1:])
    if argv[:1] == ["served"] and len(argv) > 1:
        from certdrop.judge import served
        return lambda: served.serve(argv[1:])
    return os.EX_USAGE


def main(argv: list[str]) -> int:
    """Serve it to its end. What cannot be loaded is said before the first case: it is no reply's fault, and no case can say it."""
    try:
        found = task(argv)
    except ImportError as error:
        from certdrop import answering
        answering.say(f"lacks {error}".encode("ascii", "replace")[:250])
        return os.EX_UNAVAILABLE
    return found if isinstance(found, int) else found()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

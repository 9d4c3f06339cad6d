"""The judge's process: `python3 -I -S .../judge/__main__.py chain ROOTS` or `... served ROOTS`, started by the keeper only.

Runs as: _certdrop-judge, which owns no file; refuses to be root. Reads: the trusted roots, then a file in memory that the keeper made.
"""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]


def main(argv: list[str]) -> int:
    """Serve one of the two tasks to their end."""
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
    if argv[:1] == ["chain"] and len(argv) == 2:
        sys.path.append("/usr/lib/python3/dist-packages")       # cryptography and OpenSSL, which -S leaves out
        from certdrop.judge import chain
        return chain.serve(argv[1])
    if argv[:1] == ["served"] and len(argv) == 2:
        from certdrop.judge import served
        return served.serve(argv[1])
    return os.EX_USAGE


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ImportError as error:       # before the first case: no reply's fault
        from certdrop import frames
        frames.say(f"lacks {error}".encode("ascii", "replace")[:250])

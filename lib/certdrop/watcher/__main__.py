"""The watcher's programs when root started them: `python3 -I .../watcher/__main__.py PROGRAM ARGUMENT...` (principal.py).

Runs as: _certdrop-watch; refuses to be root. Trusts, reads, writes: as the program does.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def main(program: str, argv: list[str]) -> int:
    """Run one of the programs; returns its exit code."""
    if os.getuid() == 0:
        return os.EX_NOPERM
    from certdrop import words
    if program == "certdrop-status":
        from certdrop.watcher import status
        return words.program(status.main, argv, colours=True)
    if program == "certdrop-watch":
        from certdrop.watcher import watch
        return words.program(watch.main, argv)
    from certdrop.watcher import check
    return words.program(check.main, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

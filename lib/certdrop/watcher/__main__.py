"""The watcher's programs when root started them: `python3 -IS .../watcher/__main__.py PROGRAM ARGUMENT...` (principal.py).

Runs as: _certdrop-watch; refuses to be root. Trusts, reads, writes: as the program does.
"""

import os
import sys

sys.path += [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "/usr/lib/python3/dist-packages"]

PROGRAMS = {"certdrop-check": "doctor", "certdrop-status": "status", "certdrop-watch": "watcher"}         # and the room of each

if __name__ == "__main__":
    if os.getuid() == 0 or sys.argv[1] not in PROGRAMS:
        sys.exit(os.EX_NOPERM)
    program = sys.argv.pop(1)
    from certdrop.start import run
    run(program, f"certdrop.{PROGRAMS[program]}.command", colours=program != "certdrop-watch")

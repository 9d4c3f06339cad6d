"""How every program starts: on Debian's own Python packages alone, and with a line, not a traceback, where it cannot load what it needs.

While apt replaces Python or a package, a module can be missing for minutes. Nothing is said of that in cron's runs: the next one tries again.
Runs as: every principal. Trusts: what bin/ names, /usr/lib/python3 and /usr/share/certdrop. Reads: when dpkg changed something. Writes: standard error.
"""

from __future__ import annotations

import os
import sys
import time

DPKG = ("/var/lib/dpkg/updates", "/var/lib/dpkg/info", "/var/lib/dpkg/status")
AT_WORK = 900.0                    # seconds after a change of dpkg's in which it may be at work


def run(program: str, module: str, quick: bool = False, colours: bool = False) -> None:
    """Load a module and end with what its main() returns; at once where it is `quick`: Python would tidy up for as long as it takes to start."""
    open_standard()                            # before anything is loaded: libraries keep files open, too
    try:
        main = __import__(module, fromlist=["main"]).main
        if not quick:
            from certdrop import terminal
            sys.exit(terminal.program(main, sys.argv[1:], colours))
        code = main(sys.argv[1:])
        try:
            print(end="", flush=True)
        except OSError:
            pass                               # nobody reads any more
        os._exit(code)
    except ImportError as error:
        sys.exit(incomplete(program, error))


def open_standard() -> None:
    """Have 0, 1 and 2 lead to /dev/null where they are closed: no other file may become one of them."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)     # takes the lowest number: this one
        if getattr(sys, name) is None:         # Python leaves them out where they were closed
            setattr(sys, name, open(fd, "w" if fd else "r", encoding="utf-8", errors="backslashreplace", closefd=False))


def incomplete(program: str, error: ImportError) -> int:
    """Say that something cannot be loaded, unless dpkg is at work and nobody looks on; the exit code."""
    if (sys.stderr is not None and sys.stderr.isatty()) or not dpkg_is_at_work():
        sys.stderr.write(f"{program}: {error}; nothing was done, and the live certificates stay; the next run tries again; where it says so for long, "
                         "run apt install --reinstall certdrop python3\n")
    return os.EX_TEMPFAIL


def dpkg_is_at_work() -> bool:
    """Whether dpkg changed something in these minutes."""
    now = time.time()
    return any(now - AT_WORK < os.stat(path).st_mtime <= now for path in filter(os.path.exists, DPKG))

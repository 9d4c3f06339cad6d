"""`certdrop-install`: the keeper for cron and, through sudo, the issuer; and how every program of root's begins and ends.

Runs as: root. Trusts: of a caller through sudo, nothing. Reads and writes: nothing by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from certdrop import VERSION, events, spool
from certdrop.config import site
from certdrop.keeper import install, lock, notes, reader
from certdrop.keeper.run import Run, say
from certdrop.walls import session, world

STOPPED, ASKED = "stopped", "stopped-asked"                # keeper/: why the last run did not come to its end, root's own and one that the issuer asked for
HELP = "usage: certdrop-install   (no arguments: takes what the spool holds, judges, installs, reloads; see certdrop-install(8))\n"


class Usage(Exception):
    """The command line is not understood; the text says what of it."""


class Refused(Exception):
    """What was asked cannot be done; the text says why, and nothing was changed."""


def main(argv: list[str]) -> int:
    """`certdrop-install`. Returns a code of sysexits.h; 0 too where another keeper is at work."""
    if argv in (["--help"], ["-h"]):
        print(HELP, end="")
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop-install {VERSION}")
        return os.EX_OK
    if argv:
        sys.stderr.write("certdrop-install: takes no arguments\n" + HELP)
        return os.EX_USAGE
    asked_by_issuer = os.environ.get("SUDO_USER") == spool.ISSUER
    watched = sys.stderr is not None and sys.stderr.isatty()
    return guard("certdrop-install", lambda: as_root(lambda: _install(asked_by_issuer, watched)), quiet=not watched,
                 stamp=ASKED if asked_by_issuer else STOPPED)


def _install(asked_by_issuer: bool, watched: bool) -> int:
    talk = watched and not asked_by_issuer
    try:
        with lock.held(lock.ISSUERS if asked_by_issuer else lock.ALL):
            run = Run("certdrop-install", asked_by_issuer, talk)
            install.reconcile(run)
            if asked_by_issuer:
                notes.put(ASKED, b"")
            else:
                run.said += reader.silences(run)
    except lock.Busy as busy:
        if talk:
            say([f"certdrop-install: another keeper is at work ({busy}); it does what there is to do"])
        return os.EX_OK
    if not run.said:
        run.tell("all sites", "nothing was to be done; certdrop-status says what is served")
    run.flush()
    return run.exit_code()


def as_root(work: Callable[[], int]) -> int:
    """Do root's work in a world and a session of its own. Raises PermissionError."""
    if os.geteuid() != 0:
        raise PermissionError("must be run as root; try sudo")
    world.make_own_world()
    session.detach()
    return work()


def guard(program: str, work: Callable[[], int], quiet: bool = False, stamp: str = "") -> int:
    """The exit code of some work; what it raises becomes one line and the right code, and a traceback only where it is our bug.

    `quiet`, nothing is said of what a later run mends by itself: it is logged. It is noted under keeper/`stamp`; of a run that the issuer asked for,
    what its world forbids.
    """
    lasts = stamp == STOPPED
    try:
        return work()
    except Usage as error:
        text, code = f"{error}; certdrop --help shows how", os.EX_USAGE
    except Refused as error:
        text, code = str(error), os.EX_DATAERR
    except site.Wrong as error:
        text, code = str(error), os.EX_CONFIG
    except PermissionError as error:
        text = f"{error.filename}: {error.strerror}; certdrop-check says what is wrong" if error.filename else str(error)
        code = os.EX_NOPERM
    except lock.Busy as error:
        text, code = f"another keeper is at work ({error}); try again later", os.EX_TEMPFAIL
    except world.Unfit as error:
        text, code, lasts = f"{error}; nothing was done", os.EX_TEMPFAIL, stamp != ""
    except OSError as error:
        text, code = f"{error}; the live certificates stay; try again later", os.EX_TEMPFAIL
    except ImportError:
        raise                                       # said where it started
    except Exception as error:                      # our bug: the one case for a traceback
        import traceback
        text, code = f"internal error: {error!r}; the live certificates stay; please report this\n{traceback.format_exc()}", os.EX_SOFTWARE
    if not quiet or code != os.EX_TEMPFAIL:
        say([f"{program}: {text}"])
    events.Log("keeper").write("error", text=text)
    if lasts:
        with contextlib.suppress(OSError):
            notes.put(stamp, text.encode("utf-8", "replace"))
    return code

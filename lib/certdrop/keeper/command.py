"""`certdrop-install`: the keeper for cron and, through sudo, the issuer; how root's work begins, and what is said of what ends it.

Runs as: root. Trusts: of a caller through sudo, nothing. Reads and writes: nothing by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from certdrop import events, spool, words
from certdrop.config import site
from certdrop.keeper import install, lock, notes, reader
from certdrop.keeper.run import Run
from certdrop.walls import session, world

STOPPED, ASKED = "stopped", "stopped-asked"                # keeper/: why the last run did not come to its end, root's own and one that the issuer asked for
RUNS = "own-run", "asked-run"                              # keeper/: their times are those of root's own last run, and of the last that the issuer asked for


def main(argv: list[str]) -> int:
    """`certdrop-install`. Returns a code of sysexits.h; 0 too where another run is at work."""
    if argv:                                        # neither cron nor sudo's rule has any
        from certdrop.keeper import usage
        return usage.answer(argv)
    asked_by_issuer = os.environ.get("SUDO_USER") == spool.ISSUER
    watched = sys.stderr is not None and sys.stderr.isatty()
    try:
        return as_root(lambda: _install(asked_by_issuer, watched))
    except ImportError:
        raise                                       # said where it started
    except Exception as error:
        text, code = explain(error, asked_by_issuer)
        lasts = not asked_by_issuer or isinstance(error, (world.Unfit, PermissionError))
    if watched or code != os.EX_TEMPFAIL:           # a later run mends that by itself
        words.say(f"certdrop-install: {text}")
    events.Log("keeper").write("error", text=text)
    if lasts:
        with contextlib.suppress(OSError):
            notes.put(ASKED if asked_by_issuer else STOPPED, text.encode("utf-8", "replace"))
    return code


def _install(asked_by_issuer: bool, watched: bool) -> int:
    talk = watched and not asked_by_issuer
    if asked_by_issuer:
        with contextlib.suppress(OSError):          # no file, or a full disk; without the lock, so by no file of its own that another may remove
            os.truncate(f"{site.STATE}/keeper/{ASKED}", 0)     # it has begun; that is what is noted there of one that could not
    try:
        with lock.held(lock.ISSUERS if asked_by_issuer else lock.ALL):
            run = Run("certdrop-install", asked_by_issuer, talk)
            install.reconcile(run)
            notes.touch(RUNS[asked_by_issuer])
            if not asked_by_issuer:
                run.said += reader.silences(run)
    except lock.Busy as busy:
        if talk:
            words.say(f"certdrop-install: another run is at work ({busy}); it does what is to be done")
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


def explain(error: Exception, by_sudo: bool = False) -> tuple[str, int]:
    """What ended some work of root's, in a line, and the exit code for it; with a traceback only where it is our bug."""
    if isinstance(error, site.ConfigError):
        return str(error), os.EX_CONFIG
    if isinstance(error, PermissionError):
        bound = " in the run that sudo started; what sudo forbids does not bind root's hourly run" if by_sudo else ""
        return f"{error.filename}: {error.strerror}{bound}; certdrop-check says what is wrong" if error.filename else str(error), os.EX_NOPERM
    if isinstance(error, world.Unfit):
        return f"{error}; nothing was done", os.EX_TEMPFAIL
    if isinstance(error, OSError):
        return f"{error}; the live certificates stay; try again later", os.EX_TEMPFAIL
    import traceback
    told = "".join(traceback.format_exception(error))
    return f"internal error: {error!r}; the live certificates stay; please report this\n{told}", os.EX_SOFTWARE

"""The watcher's user, and how root's commands become it.

Runs as: anyone, to become _certdrop-watch. Trusts: the kernel. Reads: the user database. Writes: nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Callable

from certdrop import events, jail

USER = "_certdrop-watch"


def as_watcher(program: str, work: Callable[[], int], otherwise: int) -> int:
    """Do work; started by root, in a child that is _certdrop-watch, in a session of its own, with no terminal to type into (TIOCSTI).

    Returns its exit code, and `otherwise` where it died. Raises KeyError where there is no such user.
    """
    _open_standard_streams()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)             # whoever started us may have had it ignored: waiting would fail
    if os.geteuid() != 0:
        return work()
    jail.user_ids(USER)
    sys.stdout.flush()
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, lambda *_: os.kill(child, signal.SIGTERM))      # the terminal's signals do not reach another session
        _, status = os.waitpid(child, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else otherwise
    code = otherwise
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        jail.become(USER)
        found = work()
        sys.stdout.flush()
        code = found                           # all of it was said
    except BrokenPipeError:
        pass                                   # nobody reads: nothing to say it to
    except Exception as error:                 # the child must not return into root's code, whatever happens
        print(f"{program}: {type(error).__name__}: {events.clean(error)}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _open_standard_streams() -> None:
    """Where 0, 1 or 2 were closed, have them lead to /dev/null: the next file opened must not become one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)     # takes the lowest number: this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8")
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")

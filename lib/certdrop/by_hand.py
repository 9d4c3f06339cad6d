"""How what an administrator runs as root ends: what went wrong is one line, and an exit code. Neither cron nor sudo comes here.

Runs as: root, or whoever tries. Trusts, reads: nothing. Writes: standard error, root's log.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from certdrop import events, words
from certdrop.keeper import lock
from certdrop.keeper.command import explain


class Refused(Exception):
    """What was asked cannot be done; the text says why, and nothing was changed."""


def guard(program: str, work: Callable[[], int]) -> int:
    """The exit code of some work; what it raises becomes one line and the right code."""
    try:
        return work()
    except Refused as error:
        text, code = str(error), os.EX_DATAERR
    except lock.Busy as error:
        text, code = f"another run is at work ({error}); try again later", os.EX_TEMPFAIL
    except ImportError:
        raise                                       # said where it started
    except Exception as error:
        text, code = explain(error)
    words.say(f"{program}: {text}")
    events.Log("keeper").write("error", text=text)
    return code

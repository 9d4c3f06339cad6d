"""The watcher's log: one JSON line for each event, by structlog, in the form of events.py.

Runs as: _certdrop-watch. Trusts: nothing that is logged: values are cleaned. Writes: /var/log/certdrop/watcher.log, which must
exist. A log that cannot be opened or written never fails a run.
"""

from __future__ import annotations

import os
import time
from typing import Any, MutableMapping

from structlog import BoundLogger, processors, wrap_logger

from certdrop import events


class File:
    """What structlog writes lines to."""

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.fd = -1

    def msg(self, line: str) -> None:
        """One line, whole."""
        if self.fd >= 0:
            try:
                os.write(self.fd, line.encode() + b"\n")
            except OSError:
                pass

    info = warning = msg


def open_log() -> Any:
    """A structlog logger whose lines share an id of this run."""
    run = f"{int(time.time()):x}-{os.getpid():x}"
    return wrap_logger(File(f"{events.LOGS}/watcher.log"), wrapper_class=BoundLogger,
                       processors=[_formed, processors.JSONRenderer()], run=run)


def _formed(_logger: object, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    first = {"time": events.stamp(), "run": event.pop("run", ""), "event": event.pop("event", "")}
    return first | {key: value if isinstance(value, (bool, int)) else events.clean(value) for key, value in event.items()}

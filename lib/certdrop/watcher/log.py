"""The watcher's log: one JSON line for each event, by structlog, in the form of events.py.

The line that each run writes, that it looked, needs no structlog: loading that takes a third of a run that finds all well.
Runs as: _certdrop-watch. Trusts: nothing that is logged: values are cleaned. Writes: /var/log/certdrop/watcher.log, which must
exist. A log that cannot be opened or written never fails a run.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, MutableMapping

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


class Journal:
    """The log, opened; its lines share an id of this run."""

    def __init__(self) -> None:
        self._file = File(f"{events.LOGS}/watcher.log")
        self._run = f"{int(time.time()):x}-{os.getpid():x}"
        self._loaded: Any = None

    def looked(self, event: str = "looked", **fields: object) -> None:
        """What each run writes."""
        self._file.msg(json.dumps(_formed(None, "", {"run": self._run, "event": event, **fields})))

    def info(self, event: str, **fields: object) -> None:
        """What some runs write. Where structlog cannot be loaded, because apt replaces it just now, the line is written all the same."""
        if self._loaded is None:
            try:
                from structlog import BoundLogger, processors, wrap_logger
            except (ImportError, OSError):
                self.looked(event, **fields)
                return
            self._loaded = wrap_logger(self._file, wrapper_class=BoundLogger, processors=[_formed, processors.JSONRenderer()], run=self._run)
        self._loaded.info(event, **fields)

    warning = info


def open_log() -> Journal:
    """The log of this run."""
    return Journal()


def _formed(_logger: object, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    first = {"time": events.stamp(), "run": event.pop("run", ""), "event": event.pop("event", "")}
    return first | {key: value if isinstance(value, (bool, int)) else events.clean(value) for key, value in event.items()}

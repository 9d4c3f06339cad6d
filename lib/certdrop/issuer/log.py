"""The issuer's words: one JSON line per event in its log (structlog), the same in words for a person.

structlog is loaded with the first line: it takes as long as all else that a run needs which only asks for renewal windows, and such a run writes none.
Runs as: _certdrop. Writes: /var/log/certdrop/issuer.log, which must exist; a log that cannot be written fails no run.
"""

from __future__ import annotations

import os
import time
from typing import Any

from certdrop import events, happened, words
from certdrop.issuer import due
from certdrop.issuer.options import Options
from certdrop.issuer.plan import Task
from certdrop.issuer.failure import Failure, in_two

LIMIT = 4000                       # characters of one value: a CA's problem document is kept whole


class _File:
    """A stream that appends to the issuer's log, or to nothing."""

    def __init__(self) -> None:
        try:
            self.fd = os.open(f"{events.LOGS}/issuer.log", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.fd = -1

    def write(self, text: str) -> None:
        if self.fd >= 0:
            try:
                os.write(self.fd, text.encode("ascii", "backslashreplace"))
            except OSError:
                pass

    def flush(self) -> None:
        """There is nothing kept back."""


def _clean(_: Any, __: str, fields: Any) -> Any:
    return {key: value if isinstance(value, (int, float, bool)) else events.clean(value, LIMIT) for key, value in fields.items()}


class _Logger:
    """A structlog logger that is not loaded yet."""

    def __init__(self) -> None:
        self._run = f"{int(time.time()):x}-{os.getpid():x}"
        self._loaded: Any = None

    def __getattr__(self, method: str) -> Any:
        if self._loaded is None:
            from structlog import PrintLogger, processors, wrap_logger
            bound = wrap_logger(
                PrintLogger(_File()),  # type: ignore[arg-type]
                processors=[processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True, key="time"), _clean, processors.JSONRenderer()])
            self._loaded = bound.bind(run=self._run)
        return getattr(self._loaded, method)


def logger() -> Any:
    """A structlog logger whose lines share this run's id."""
    return _Logger()


def say_when(task: Task, now: float) -> None:
    """Tell a person who named this site why nothing is asked for."""
    why = f"{task.why} ({task.ledger.last_error})" if task.ledger.count else task.why
    if task.held:
        why = f"{task.why}: {task.ledger.tlsa_lacks}; certdrop-status {task.name} --tlsa prints what to publish, and certdrop renew --force does not wait"
    if task.when == due.NEVER:
        say(f"{task.name}: {why}; certdrop-install takes it", True)
    elif task.when > now:
        say(f"{task.name}: nothing to ask for before {events.stamp(task.when)}: {why}", True)


def following(record: due.Record) -> str:
    """What follows a failure, in words."""
    return f"next try at {events.stamp(record.next_try)}" if record.next_try > record.failed_at else "the next run tries again"


def failed(journal: Any, task: Task, failure: Failure, options: Options) -> None:
    """Keep and tell a site's failure, which its ledger has noted."""
    try:
        task.ledger.save()
    except OSError:
        pass                                   # a full disk: the failure is told all the same
    journal.error(happened.FAILED, site=task.name, number=task.request.number, kind=failure.kind, problem=failure.problem,
                  next_try=events.stamp(task.ledger.next_try), error=failure.text)
    fact, said = in_two(failure)
    stays = "live certificate" if task.certificate else "placeholder"
    say(f"{task.name}: {fact}; the {stays} stays; {following(task.ledger)}" + (f"; {said}" if said else ""), options.loud, options.apart)


def say(text: str, loud: bool, apart: bool = False) -> None:
    """A line to standard error, for a person; to standard output what is kept `apart`."""
    if loud:
        words.say(f"certdrop-issue: {text}", to=1 if apart else 2)

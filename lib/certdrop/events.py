"""What is logged: one JSON line for each event, and the names of those of root's runs.

No secret has a field here, whatever came from outside is cut and escaped, and a log that cannot
be written never fails a run. Runs as: whoever imports it. Writes: the file of its own principal below
/var/log/certdrop, which must exist.
"""

from __future__ import annotations

import os
import time

LOGS = "/var/log/certdrop"
LIMIT = 500                        # characters of one value

# What root's runs log; others: happened.py.
POSTED = "request-posted"
WITHDRAWN = "request-withdrawn"
REFUSED = "reply-refused"
ACCEPTED = "reply-accepted"
INSTALLED = "installed"
SERVING = "serving"
NOT_SERVED = "issued-not-served"
WENT_BACK = "went-back"
DAMAGED = "damaged"
SERVICE_FAILED = "service-failed"
ENDED = "stuck-run-ended"


def clean(text: object, limit: int = LIMIT) -> str:
    """Text from outside, in one line of printable ASCII, at most `limit` characters."""
    shown = str(text)[:limit * 2]
    shown = "".join(c if " " <= c <= "~" else " " if c in "\r\n\t" else ascii(c)[1:-1] for c in shown)
    return shown if len(shown) <= limit else shown[:limit - 3] + "..."


def stamp(seconds: float | None = None) -> str:
    """A moment (seconds since 1970; now unless given) as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Log:
    """The log of one principal. Opening or writing it never fails a run."""

    def __init__(self, principal: str) -> None:
        self.run = f"{time.time_ns() // 1000000:x}-{os.getpid():x}"
        try:
            self.fd = os.open(f"{LOGS}/{principal}.log", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.fd = -1

    def write(self, event: str, **fields: object) -> None:
        """Append one event; values are cleaned."""
        if self.fd < 0:
            return
        parts: dict[str, object] = {"time": stamp(), "run": self.run, "event": event, **fields}
        line = ", ".join(f'"{key}": {_value(value)}' for key, value in parts.items())
        try:
            os.write(self.fd, f"{{{line}}}\n".encode())
        except OSError:
            pass


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + clean(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

"""Looks whether somebody hears of it when something goes wrong: the way out for mail, the heartbeat, and what is left of both when cron stops.

Runs as: anyone; _certdrop-watch where root asked. Trusts: root's configuration, and of the watcher's own notes what evidence.py checked.
Reads: /etc/certdrop, watcher/state.json. Writes: nothing.
"""

from __future__ import annotations

import os

from certdrop import events
from certdrop.config import site as configuration
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.watcher import mailer
from certdrop.watcher.evidence import MailHealth, Reader

SYSTEMD = "/run/systemd/system"
CONFIG = f"[mail] of {configuration.ETC}/certdrop.toml"
OUTSIDE = f"set heartbeat in {CONFIG}, or have certdrop-status --nagios asked from outside; see certdrop-watch(8)"


def look(by_root: bool) -> list[Line]:
    """Lines for the doctor. `by_root`: this process may see what the watcher sees, the password too."""
    try:
        reader = Reader()
        route = mailer.Route(reader.config.mail)
    except configuration.ConfigError as error:
        return [Line(FAILED, "mail", f"{events.clean(error)}; nobody is told of anything", "certdrop-watch(8) says what may stand there")]
    noted = reader.watcher()
    return [way_out(route, noted, by_root), *silence(route, noted)]


def way_out(route: mailer.Route, noted: MailHealth, by_root: bool) -> Line:
    """Whether mail has a way out, as far as can be seen without sending."""
    try:
        if by_root or not route.user:
            mailer.check(route)
    except mailer.Undelivered as error:
        return Line(WARNING, "mail", f"{error}; until then nobody is told when renewing fails", "certdrop-watch --test tries it")
    if noted.failed:
        return Line(WARNING, "mail", f"goes to {route.words()}; the last one, at {_moment(noted.at)}, was not sent: {noted.failed}",
                    "certdrop-watch --test tries it")
    return Line(OK, "mail", f"goes to {route.words()}; certdrop-watch --test tries it")


def silence(route: mailer.Route, noted: MailHealth) -> list[Line]:
    """Whether anybody is told when cron stops: by systemd's timer for the watcher, or by who waits for the heartbeat. One line at most where all is well."""
    if route.heartbeat and noted.heartbeat:
        return [Line(WARNING, "heartbeat", f"at {_moment(noted.at)} it was not taken: {noted.heartbeat}; the service behind it takes this host for dead",
                     f"see heartbeat in {CONFIG}")]
    if route.heartbeat:
        return [Line(OK, "heartbeat", "each run that finds all well fetches it; the service behind it tells you when cron stops")]
    if os.path.isdir(SYSTEMD):
        return []                              # the watcher's timer has a line of its own
    return [Line(WARNING, "silence", "if cron stops, nobody tells you, because cron starts the watcher too", OUTSIDE)]


def _moment(at: int | None) -> str:
    return events.stamp(at) if at else "the last run"

"""Looks at the configuration, and whether root's and the issuer's runs come.

Runs as: anyone; _certdrop-watch where root asked. Trusts: root's configuration; of what the issuer wrote, a time. Reads: /etc/certdrop,
last-run of keeper and issuer. Writes: nothing.
"""

from __future__ import annotations

import os
import time

from certdrop import events
from certdrop import site as configuration
from certdrop.watcher.check_line import FAILED, OK, WARNING, Line, verdict
from certdrop.watcher.evidence import Reader

SILENT = 2 * 3600                  # seconds after which a run was due


def look() -> list[Line]:
    """All of it."""
    try:
        config = configuration.load_config()
        names = configuration.site_names()
    except configuration.Wrong as error:
        return [Line(FAILED, "configuration", events.clean(error), "nothing is renewed until then")]
    wrong = []
    for name in names:
        try:
            configuration.load_site(name, config)
        except configuration.Wrong as error:
            wrong.append((events.clean(error), f"{name} is not renewed until then"))
    for key, path in (("ca_bundle", config.ca_bundle), ("trust_roots", config.trust_roots)):
        if not os.access(path, os.R_OK):
            wrong.append((f"{key}: {path} cannot be read by everybody, as issuer and judge must", f"chmod a+r {path}"))
    found = verdict("configuration", wrong, f"{len(names)} sites")
    return [*found, *(runs(time.time()) if names else [])]


def runs(now: float) -> list[Line]:
    """Whether cron (or what else was set up) still starts what it should."""
    reader, found = Reader(), []
    for principal, often in (("keeper", "hourly"), ("issuer", "every ten minutes")):
        run = reader.last_run(principal)
        if run.at is None:
            found.append(Line(WARNING, principal, f"has not run yet; it should, {often}", "see cron(8) and /etc/cron.d/certdrop"))
        elif now - run.at > SILENT:
            found.append(Line(FAILED, principal, f"has not run since {events.stamp(run.at)}; it should, {often}", "see cron(8) and /etc/cron.d/certdrop"))
        else:
            found.append(Line(OK, principal, f"ran at {events.stamp(min(run.at, now))}"))
    return found

"""What somebody must hear of a fleet: on a desk, of all its hosts and sites; on each machine of one, that its certificates for the database end.

The desk leaves a report, for it alone can talk with the database. Nothing here needs the package certdrop-fleet. Runs as: _certdrop-watch, shut in.
Trusts: of the report, which tells what hosts said of themselves, only its form. Reads: fleet/*.pem, the desk's report. Writes: nothing.
"""

from __future__ import annotations

import os

from certdrop import events, foreign, spool
from certdrop.config import site as configuration
from certdrop.watcher import evidence, phrases
from certdrop.watcher.alarm import Problem

REPORT = "/var/lib/certdrop-fleet/report"
AWAY = 6 * 3600.0                  # seconds without the database, or without a look of the desk's: certificates have days to spare
SOON = 60 * 86400.0                # seconds before the end of the fleet's own certificates: new ones are carried to every machine
PRESSING = 7 * 86400.0             # seconds before the first end of a site's certificate
MOST = 60                          # problems of hosts and sites that are told one by one
OF_SITE = [("certdrop", "tries again by itself; the live certificate stays"),
           ("you can", "run certdrop-fleet status on this desk; on the host, run certdrop-check")]
OF_MACHINE = [("certdrop", "serves there what is live, if that machine runs; nothing is renewed"),
              ("you can", "run certdrop-courier --verbose there (certdrop-desk --once --verbose on a desk); if it is gone for good: certdrop-fleet withdraw")]


def problems(issuer: int, now: float) -> list[Problem]:
    """What is to be told. `issuer` is the user who wrote the report."""
    place = f"{configuration.ETC}/fleet"
    roles = [role for role in ("host", "desk") if os.path.exists(f"{place}/{role}.toml")]
    found = [problem for entry in (*(f"{role}.pem" for role in roles), *(["ca.pem"] if roles else [])) for problem in _ending(f"{place}/{entry}", now)]
    return found + (_of_desk(issuer, f"{place}/desk.toml", now) if "desk" in roles else [])


def _ending(path: str, now: float) -> list[Problem]:
    """Whether one of the fleet's own certificates ends, or cannot be read."""
    try:
        with open(path, "rb") as stream:
            end = evidence.parse(stream.read(spool.MAX_REPLY)).not_after
    except (OSError, ValueError) as error:
        return [Problem(f"fleet:{path}", f"{path} cannot be read", [("why", events.clean(error, 200)), (
            "certdrop", "cannot reach the fleet's database without it"), ("you can", "run certdrop-fleet join --answer FILE again")], True)]
    if end - now > SOON:
        return []
    what = "the fleet's CA" if path.endswith("/ca.pem") else "this machine's certificate for the fleet's database"
    how = "on the first desk, make another CA (certdrop-fleet init in an empty fleet-ca), then join" if path.endswith("/ca.pem") else "join"
    return [Problem(f"fleet:{path}", f"{what} ends in {(end - now) / 86400:.0f} days" if end > now else f"{what} has ended",
                    [("ends", events.stamp(end)), ("certdrop", "cannot reach the fleet's database after that; what is live stays"),
                     ("you can", f"{how}, enrol and join --answer again on each machine that it is for")], end - now < PRESSING)]


def _of_desk(issuer: int, joined: str, now: float) -> list[Problem]:
    try:
        fd = spool.open_directory(REPORT)
        try:
            found = evidence.as_object(foreign.read(fd, "report.json", issuer, 1 << 22))
        finally:
            os.close(fd)
    except (OSError, ValueError, spool.Refused):
        found = {}
    looked, since, ends = (float(evidence.number(found, key) or 0) for key in ("looked", "away_since", "ends"))
    try:
        looked = min(now, looked or os.stat(joined).st_mtime)
    except OSError:
        pass                               # it has just left the fleet
    spare = [("spare", f"the first certificate ends at {events.stamp(ends)}, {max(0.0, ends - now) / 86400:.1f} days from now")] if ends else []
    if since and now - since > AWAY:
        return [Problem("fleet:database", f"the fleet's database has been away for {phrases.span(now - since)}", [
            ("why", evidence.text(found, "away")), *spare, ("certdrop", "serves what is live on every host; what they want waits; goes on by itself"),
            ("you can", "read the database server's log; certdrop-desk --once --verbose tries it")], bool(ends) and ends - now < PRESSING)]
    if not since and now - looked > AWAY:
        return [Problem("fleet:desk", f"this desk has not looked at the fleet for {phrases.span(now - looked)}", [
            *spare, ("certdrop", "serves what is live on every host; what they want waits for another desk, if there is one"),
            ("you can", "run certdrop-desk --once --verbose and read what it says; see /etc/cron.d/certdrop-fleet")], True)]
    listed = found.get("problems")
    told = [one for one in listed if _is_problem(one)] if isinstance(listed, list) else []
    problems = [Problem(f"fleet:{events.clean(key, 220)}", f"fleet: {events.clean(text, 300)}", OF_MACHINE if key.endswith(":silent") else OF_SITE,
                        severity > 1) for key, severity, text in told[:MOST]]
    more = len(told) - len(problems) + (evidence.number(found, "more", 10 ** 6) or 0)
    return problems + ([Problem("fleet:more", f"fleet: {more} more problems", [("you can", "run certdrop-fleet status on this desk")])] if more > 0 else [])


def _is_problem(one: object) -> bool:
    return isinstance(one, list) and len(one) == 3 and isinstance(one[0], str) and one[1] in (1, 2) and isinstance(one[2], str)

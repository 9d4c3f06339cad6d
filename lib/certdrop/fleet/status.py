"""How the fleet stands: every host and site, when each renews, what fails, and who has been silent.

Runs as: _certdrop, on a desk. Trusts: nothing of what the database says; it is shown, cleaned. Reads: the database. Writes: standard output.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any, NamedTuple

from certdrop import events, words
from certdrop.fleet import database, members, walls
from certdrop.fleet.database import Away, Database, Row, as_table
from certdrop.watcher import verdict
from certdrop.watcher.evidence import Certificate, Evidence, Failure, number
from certdrop.watcher.verdict import Verdict

SILENT = 4 * 3600.0                # seconds without a word from a machine
KEEPS_FAILING, LASTING = 4, 6 * 3600.0         # tries in a row, or seconds of failing, after which somebody should hear of it: as alarm.py has it
MACHINES = "SELECT name, kind, CASE WHEN isfinite(seen) THEN extract(epoch FROM now() - seen)::float END FROM machine ORDER BY kind, name"
QUERY = """
SELECT r.host, r.name, r.number, r.now <> '', w.desk, w.said, s.body, r.kind FROM request r JOIN work w USING (host, name, number, kind)
    LEFT JOIN state s USING (host, name) ORDER BY r.host, r.name, r.number"""
MOST = 400                         # problems that are told


class Machine(NamedTuple):
    """A host or a desk, and when it was last here (0: never)."""

    name: str
    kind: str
    seen: int


class Entry(NamedTuple):
    """A request, as it is shown, and what is to be thought of its site."""

    host: str
    site: str
    number: int
    kind: str
    urged: bool
    desk: str
    seen: Verdict


class Problem(NamedTuple):
    """What somebody should know: how it is known, how grave it is, in words; whether it has lasted long enough for a mail."""

    key: str
    severity: int
    text: str
    lasts: bool = True


def show(form: str) -> int:
    """Print it. Returns a code: of sysexits.h, or a plugin's with --nagios."""
    machine = database.machine("desk")
    if form == "--html":
        from certdrop.status import webpage                # while that can be loaded
    walls.shut_in((), (), machine.ports)
    try:
        link, now = Database(machine.info), time.time()
        machines, entries = look(link, now)
    except Away as away:
        words.say(f"certdrop-fleet: the fleet's database: {away}; hosts serve on, and what they want waits")
        return 3 if form == "--nagios" else os.EX_TEMPFAIL
    if form == "--json":
        print(json.dumps({"machines": [{**one._asdict(), "seen": one.seen or None} for one in machines], "sites": [_object(one) for one in entries]}, indent=1))
    elif form == "--prometheus":
        _prometheus(machines, entries)
    elif form == "--nagios":
        return _nagios(machines, entries, now)
    elif form == "--html":
        sites = [one.seen for one in entries if one.kind == "csr"]
        print(webpage.render(webpage.Page(f"the fleet of {machine.name}", sites, {}, now=now,
                                          problems=[(one.severity, one.text) for one in _of_machines(machines, now)])), end="")
    else:
        _table(machines, entries, now)
    return os.EX_OK


def look(link: Database, now: float) -> tuple[list[Machine], list[Entry]]:
    """What the database says of all. Raises Away."""
    machines = [_machine(row, now) for row in link.ask(MACHINES)]
    return [one for one in machines if one], [found for row in link.ask(QUERY) if (found := _entry(row, now))]


def problems(machines: list[Machine], entries: list[Entry], now: float) -> list[Problem]:
    """What is wrong, the gravest first."""
    found = _of_machines(machines, now)
    for one in entries:
        place, failing = f"{one.host} {one.site}", one.seen.evidence.failing
        if one.seen.severity and one.kind == "csr" and one.seen.days_left is not None and not (failing and one.seen.severity == verdict.WARNING):
            found.append(Problem(f"{place}:near-end", one.seen.severity, f"{place}: ends {events.stamp(_end(one) or 0)}"))
        if failing:
            lasts = failing.tries >= KEEPS_FAILING or now - (failing.since or now) > LASTING
            found.append(Problem(f"{place}:{one.kind}", verdict.WARNING, f"{place}: {failing.error}", lasts))
    return sorted(found, key=lambda one: -one.severity)


def report(machines: list[Machine], entries: list[Entry], now: float) -> dict[str, object]:
    """The same for the watcher of this desk, bounded."""
    found = [[one.key, one.severity, one.text] for one in problems(machines, entries, now) if one.lasts]
    ends = [end for one in entries if (end := _end(one))]
    return {"looked": int(now), "machines": len(machines), "sites": len(entries), "ends": min(ends, default=0), "problems": found[:MOST],
            "more": max(0, len(found) - MOST)}


def _of_machines(machines: list[Machine], now: float) -> list[Problem]:
    return [Problem(f"{one.name}:silent", verdict.WARNING, f"{one.kind} {one.name}: not heard of since {events.stamp(one.seen) if one.seen else 'ever'}",
                    bool(one.seen)) for one in machines if now - one.seen > SILENT]


def _machine(row: tuple[Any, ...], now: float) -> Machine | None:
    """A machine, as it is shown; nothing where it is none."""
    name, kind, ago = row
    if not isinstance(name, str) or not members.is_name(name) or kind not in ("host", "desk"):
        return None
    return Machine(name, kind, int(now - ago) if isinstance(ago, float) and _is_number(now - ago) else 0)


def _entry(row: tuple[Any, ...], now: float) -> Entry | None:
    """A request, as it is shown; nothing where it is none."""
    host, name, at, urged, desk, said, body, kind = row
    if not database.is_row(Row(host, name, at, kind)):
        return None
    ledger, state = as_table(str(said)), as_table(str(body))
    found = Evidence(members.tree_name(host, name), domains=[name], live=1, proven=1, placeholder=True)
    cert = state.get("cert")
    if kind == "csr" and isinstance(cert, dict) and number(cert, "not_after"):
        found.certificate = Certificate(number(cert, "not_before") or 0, number(cert, "not_after") or 0, _hash(cert.get("sha256")))
        found.placeholder = False
    if number(ledger, "count"):
        found.failing = Failure("", at, number(ledger, "since"), number(ledger, "count") or 1, number(ledger, "next_try"),
                                events.clean(ledger.get("last_error") or "it fails", 500), number(ledger, "failed_at"))
    seen = verdict.judge(found, None, now, verdict.Thresholds())
    seen.renew_at, seen.renew_why = number(ledger, "renew_at") or None, events.clean(ledger.get("renew_why") or "", 100)       # the desk's own word
    found.name = f"{host} {name}"
    seen.evidence.name = found.name
    return Entry(host, name, at, kind, bool(urged), events.clean(desk or "", 40), seen)


def _end(one: Entry) -> int | None:
    certificate = one.seen.evidence.certificate
    return certificate.not_after if certificate else None


def _object(one: Entry) -> dict[str, object]:
    failing = one.seen.evidence.failing
    return {"host": one.host, "site": one.site, "number": one.number, "kind": one.kind, "now": one.urged, "desk": one.desk, "state": one.seen.state,
            "severity": one.seen.severity, "not_after": _end(one), "renew_at": one.seen.renew_at, "error": failing.error if failing else "",
            "since": one.seen.since, "next_try": one.seen.next_try}


def _table(machines: list[Machine], entries: list[Entry], now: float) -> None:
    print("\n".join(_columns([("MACHINE", "KIND", "LAST HERE"), *((one.name, one.kind, _day(one.seen)) for one in machines)])) + "\n")
    print("\n".join(_columns([("HOST", "SITE", "STATE", "GOOD UNTIL", "RENEWS", "DESK"), *(
        (one.host, one.site, one.seen.state, _day(_end(one)), "now" if one.urged else _day(one.seen.renew_at), one.desk or "-")
        for one in entries if one.kind == "csr")])))
    found = problems(machines, entries, now)
    print("\n" + "\n".join(one.text for one in found) if found else "\nnothing fails, and nobody is silent")


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in rows]


def _nagios(machines: list[Machine], entries: list[Entry], now: float) -> int:
    found = problems(machines, entries, now)
    worst = max((one.severity for one in found), default=0)
    said = found[0].text + (f" and {len(found) - 1} more" if len(found) > 1 else "") if found else "nothing fails, and nobody is silent"
    print(f"FLEET {('OK', 'WARNING', 'CRITICAL')[worst]} - {len(machines)} machines, {len(entries)} requests: {said}")
    return worst


def _prometheus(machines: list[Machine], entries: list[Entry]) -> None:
    print("# HELP certdrop_fleet_seen_timestamp_seconds When a machine of the fleet last spoke with the database; 0: never.")
    print("# TYPE certdrop_fleet_seen_timestamp_seconds gauge")
    for machine in machines:
        print(f'certdrop_fleet_seen_timestamp_seconds{{machine="{machine.name}",kind="{machine.kind}"}} {machine.seen}')
    newest = {(one.host, one.site): one for one in entries if one.kind == "csr"}       # a label's value twice would be no metric
    values = {"not_after": ("When the live certificate ends.", _end), "renew_at": ("When it is to be renewed.", lambda one: one.seen.renew_at)}
    for metric, (text, value) in values.items():
        print(f"# HELP certdrop_fleet_{metric}_timestamp_seconds {text}")
        print(f"# TYPE certdrop_fleet_{metric}_timestamp_seconds gauge")
        for (host, site), one in newest.items():
            if value(one):
                print(f'certdrop_fleet_{metric}_timestamp_seconds{{host="{host}",site="{site}"}} {value(one)}')
    failing = {(one.host, one.site) for one in entries if one.seen.evidence.failing}
    print("# HELP certdrop_fleet_failing Whether what was tried last for a site failed.")
    print("# TYPE certdrop_fleet_failing gauge")
    for host, site in dict.fromkeys((one.host, one.site) for one in entries):
        print(f'certdrop_fleet_failing{{host="{host}",site="{site}"}} {int((host, site) in failing)}')


def _day(moment: int | None) -> str:
    return events.stamp(moment)[:16].replace("T", " ") if moment else "-"


def _hash(value: object) -> str:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else ""


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1 << 40           # type: ignore[operator]

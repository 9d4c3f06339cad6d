"""How the fleet stands: every host and site, when each renews, what fails, and who has been silent.

Runs as: _certdrop, on a desk. Trusts: nothing of what the database says; it is shown, cleaned. Reads: the database. Writes: standard output.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from certdrop import events, words
from certdrop.fleet import database, members, walls
from certdrop.fleet.database import Away, Database, Row, as_table

SILENT = 4 * 3600.0                # seconds without a word from a machine
WARNING, CRITICAL = 10 * 86400.0, 3 * 86400.0          # seconds before a certificate's end
QUERY = """
SELECT r.host, r.name, r.number, r.now <> '', w.desk, w.said, s.body, r.kind FROM request r JOIN work w USING (host, name, number, kind)
    LEFT JOIN state s USING (host, name) ORDER BY r.host, r.name, r.number"""


def show(form: str) -> int:
    """Print it. Returns a code: of sysexits.h, or a plugin's with --nagios."""
    machine = database.machine("desk")
    walls.shut_in((), (), machine.ports)
    try:
        link = Database(machine.info)
        machines = link.ask("SELECT name, kind, CASE WHEN isfinite(seen) THEN extract(epoch FROM now() - seen)::float END FROM machine ORDER BY kind, name")
        rows = link.ask(QUERY)
    except Away as away:
        words.say(f"certdrop-fleet: the fleet's database: {away}; hosts serve on, and what they want waits")
        return 3 if form == "--nagios" else os.EX_TEMPFAIL
    now = time.time()
    sites = [found for row in rows if (found := _site(row, now))]
    silent = [found for row in machines if (found := _machine(row, now))]
    if form == "--json":
        print(json.dumps({"machines": silent, "sites": sites}, indent=1))
    elif form == "--prometheus":
        _prometheus(silent, sites)
    elif form == "--nagios":
        return _nagios(silent, sites, now)
    else:
        _table(silent, sites, now)
    return os.EX_OK


def _machine(row: tuple[Any, ...], now: float) -> dict[str, object]:
    """A machine, as it is shown; nothing where it is none."""
    name, kind, ago = row
    if not isinstance(name, str) or not members.is_name(name) or kind not in ("host", "desk"):
        return {}
    return {"name": name, "kind": kind, "seen": int(now - ago) if isinstance(ago, float) and _is_number(now - ago) else None}


def _site(row: tuple[Any, ...], now: float) -> dict[str, object]:
    """A request, as it is shown; nothing where it is none."""
    host, name, number, urged, desk, said, body, kind = row
    if not database.is_row(Row(host, name, number, kind)):
        return {}
    ledger, state = as_table(str(said)), as_table(str(body))
    cert = state.get("cert")
    end = cert.get("not_after") if isinstance(cert, dict) else None
    return {"host": host, "site": name, "number": number, "kind": kind, "now": bool(urged), "desk": events.clean(desk or "", 40),
            "not_after": end if _is_number(end) else None,
            "renew_at": ledger.get("renew_at") if _is_number(ledger.get("renew_at")) else None,
            "error": events.clean(ledger.get("last_error") or "", 500) if ledger.get("count") else ""}


def _problems(machines: list[dict[str, object]], sites: list[dict[str, object]], now: float) -> list[tuple[int, str]]:
    """(severity, words), the gravest first."""
    found = []
    for one in machines:
        if not _is_number(one["seen"]) or now - float(str(one["seen"])) > SILENT:
            since = events.stamp(float(str(one["seen"]))) if one["seen"] else "ever"
            found.append((1, f"{one['kind']} {one['name']}: not heard of since {since}"))
    for each in sites:
        left = float(str(each["not_after"])) - now if each["not_after"] else None
        place = f"{each['host']} {each['site']}"
        if left is not None and left < WARNING and each["kind"] == "csr":
            found.append((2 if left < CRITICAL else 1, f"{place}: ends {events.stamp(float(str(each['not_after'])))}"))
        if each["error"]:
            found.append((1, f"{place}: {each['error']}"))
    return sorted(found, key=lambda one: -one[0])


def _table(machines: list[dict[str, object]], sites: list[dict[str, object]], now: float) -> None:
    rows = [("HOST", "SITE", "GOOD UNTIL", "RENEWS", "DESK")]
    for each in sites:
        if each["kind"] == "csr":
            renews = "now" if each["now"] else _day(each["renew_at"])
            rows.append((str(each["host"]), str(each["site"]), _day(each["not_after"]), renews, str(each["desk"]) or "-"))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)) + f"  {row[4]}")
    problems = _problems(machines, sites, now)
    print("\n" + "\n".join(text for _, text in problems) if problems else "\nnothing fails, and nobody is silent")


def _nagios(machines: list[dict[str, object]], sites: list[dict[str, object]], now: float) -> int:
    problems = _problems(machines, sites, now)
    worst = max((severity for severity, _ in problems), default=0)
    said = problems[0][1] + (f" and {len(problems) - 1} more" if len(problems) > 1 else "") if problems else "nothing fails, and nobody is silent"
    print(f"FLEET {('OK', 'WARNING', 'CRITICAL')[worst]} - {len(machines)} machines, {len(sites)} requests: {said}")
    return worst


def _prometheus(machines: list[dict[str, object]], sites: list[dict[str, object]]) -> None:
    print("# TYPE certdrop_fleet_seen_timestamp_seconds gauge")
    for one in machines:
        print(f'certdrop_fleet_seen_timestamp_seconds{{machine="{one["name"]}",kind="{one["kind"]}"}} {one["seen"] or 0}')
    for metric, key in (("not_after", "not_after"), ("renew_at", "renew_at")):
        print(f"# TYPE certdrop_fleet_{metric}_timestamp_seconds gauge")
        for each in sites:
            if each[key] and each["kind"] == "csr":
                print(f'certdrop_fleet_{metric}_timestamp_seconds{{host="{each["host"]}",site="{each["site"]}"}} {each[key]}')
    print("# TYPE certdrop_fleet_failing gauge")
    for each in sites:
        print(f'certdrop_fleet_failing{{host="{each["host"]}",site="{each["site"]}"}} {int(bool(each["error"]))}')


def _day(moment: object) -> str:
    return events.stamp(float(str(moment)))[:16].replace("T", " ") if moment else "-"


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1 << 40           # type: ignore[operator]

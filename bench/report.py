"""Writes what was measured as Markdown: RESULTS.md."""

from __future__ import annotations

import math
from typing import Any, Iterable, Sequence

HEAD = """# Measured

Written by `make bench` (`bench/bench`), which installs the other clients from Debian on the stage and has each do the same work, against the
same Pebble, in the same run.  All of it is real: nothing here is computed from another number but where a `~` says so.

- Times are medians, the runs taken in turns, so that what else the machine does meets all clients; look at the ratios, and at the CPU seconds where
  other jobs ran at the same time (the load is given).  CPU includes children, and what ends a moment later; memory is that of the largest process.
- Each client runs as its users run it: one command where it can do many sites, else a loop in sh.  Accounts exist before; a certificate is ECDSA
  P-256 and for one name; `--no-random-sleep` where a client would wait for minutes.  No rival reloads nginx here; **certdrop's numbers include its root's
  part**: the judge, `nginx -t`, the reload, and the handshake that proves the new certificate, unless it says "without root's part".
- The CA is behind a TCP proxy (`bench/proxy.py`), since not every kernel has netem: each direction is late by half of the round trip, and the first bytes of
  a connection by one more, as the TCP handshake would have made them. At 0 ms it is in between, too. It counts connections; Pebble's log has the requests.
- The stage's files are in memory: fsync is free for everybody there. What it costs on this machine's disk stands in the last part.
"""


def render(found: dict[str, Any]) -> str:
    parts = [HEAD]
    for name, write in (("tick", _tick), ("issue", _issue), ("day", _day), ("rotate", _rotate), ("profile", _profile)):
        if name in found:
            parts += [*write(found[name]), _about(found[name]["about"])]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def seconds(value: float) -> str:
    if math.isnan(value):
        return "failed"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def ratio(value: float, base: float) -> str:
    return "" if math.isnan(value) or not base else f"{value / base:.2g}" if value < 10 * base else f"{value / base:.0f}"


def _about(about: dict[str, Any]) -> str:
    names = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    return (f"<sub>{about['date']}, {about['seconds']} s, {about['rounds']} rounds; Debian {about['debian']}, Linux {about['kernel']}, "
            f"Python {about['python']}, {about['cores']} cores ({about['processor']}), load at the end {', '.join(map(str, about['load']))}; {names}</sub>")


def _tick(part: dict[str, Any]) -> list[str]:
    sizes = [str(size) for size in part["sizes"]]
    head = ["seconds (CPU), MiB", *map(_sites, sizes)]
    rows = [[name, *(_cell(costs.get(size)) for size in sizes)] for name, costs in part["costs"].items()]
    base = part["costs"]["certdrop"]
    beside = [[name, *(ratio(costs[size]["wall"], base[size]["wall"]) if size in costs and size in base else "" for size in sizes)]
              for name, costs in part["costs"].items() if name != "certdrop"]
    return ["## A run that finds nothing to do", table(head, rows), "A client with an empty cell would have taken minutes. The same, certdrop's time being 1:",
            table(["times certdrop's", *head[1:]], beside)]


def _cell(cost: dict[str, float] | None) -> str:
    return "" if cost is None or math.isnan(cost["wall"]) else f"{seconds(cost['wall'])} ({seconds(cost['cpu'])}), {cost['memory']:.0f}"


def _issue(part: dict[str, Any]) -> list[str]:
    texts = ["## Getting certificates"]
    for what, title in (("one", "One certificate"), ("many", "50 at once")):
        for trip, rows in part[what].items():
            base = rows["certdrop"]["wall"] / rows["certdrop"]["count"]
            lines = []
            for name, row in sorted(rows.items(), key=lambda item: (item[1]["wall"] / item[1]["count"] if item[1]["wall"] == item[1]["wall"] else 1e9)):
                scale = 50 / row["count"] if what == "many" and row["count"] < 50 else 1
                mark = "~" if scale != 1 else ""
                each = row["wall"] / row["count"]
                bad = f" ({row['bad']} of {row['runs']} failed)" if row["bad"] else ""
                lines.append([name + bad, mark + seconds(row["wall"] * scale), ratio(each, base), mark + seconds(row["cpu"] * scale),
                              f"{row['requests'] / row['count']:.1f}".removesuffix(".0"), f"{mark}{row['connections'] * scale:.0f}",
                              *([f"{row['memory']:.0f}" if row.get("memory") else ""] if what == "many" else [])])
            texts += [f"### {title}, {float(trip) * 1000:.0f} ms to the CA",
                      table(["", "seconds", "times certdrop's", "CPU, s", "requests a certificate", "connections",
                             *(["largest process, MiB"] if what == "many" else [])], lines)]
    return [*texts, "`~`: measured with 5 certificates, one after the other, and multiplied by 10."]


DAYS = 60                          # from one renewal of a site to the next
WORDS = {"tick": "a run of the issuer's that finds nothing to do", "poll": "one that asks for renewal windows",
         "poll one": "one that asks for that of a new certificate", "root": "root's hourly run",
         "watcher": "a look of the watcher's", "renewal": "a renewal, installed and served"}


def times_a_day(size: int, most: int) -> dict[str, float]:
    """How often each of certdrop's programs runs in a day: by cron's lines, by four questions a site for its renewal window, `most` in a
    run, and a renewal in 60 days."""
    new = size / DAYS
    polls = min(24, 4 * size) * math.ceil(size / 6 / most)
    return {"tick": max(0.0, 144 - polls - new), "poll": polls, "poll one": new, "root": 24, "watcher": 24, "renewal": new}


def day_of(part: dict[str, Any], size: str) -> float:
    """Seconds of CPU in a day, of all programs together."""
    return sum(count * float(part["costs"][name][size]["cpu"]) for name, count in times_a_day(int(size), part["most"]).items())


def rivals_day(found: dict[str, Any], rival: str, size: str) -> float:
    """The same of another client, by its tick and its certificate: twice a day, as certbot's timer has it, or once; NaN where that was not measured."""
    ticks, rows = found["tick"]["costs"].get(rival, {}), found["issue"]["one"].get("0.0", {})
    if size not in ticks or rival not in rows:
        return math.nan
    return (2 if rival == "certbot" else 1) * float(ticks[size]["cpu"]) + int(size) / DAYS * float(rows[rival]["cpu"])


def _day(part: dict[str, Any]) -> list[str]:
    sizes = [str(size) for size in part["sizes"] if all(str(size) in costs for costs in part["costs"].values())]
    often = {size: times_a_day(int(size), part["most"]) for size in sizes}
    rows = [[WORDS[name], *(f"{seconds(costs[size]['cpu'])} x {often[size][name]:.4g}" for size in sizes)] for name, costs in part["costs"].items()]
    rows.append(["a day", *(f"~{seconds(day_of(part, size))}" for size in sizes)])
    return ["## What a day costs, all programs together", table(["CPU, s, and how often a day", *map(_sites, sizes)], rows),
            f"All sites are served by nginx and have three generations. Each is renewed once in {DAYS} days, and asked about four times a day: "
            + ", ".join(f"{part['costs']['poll'][size]['sites']} in a run with {_sites(size)}" for size in sizes)
            + ". The sum is computed. nginx's own time for handshakes is not in it."]


def _rotate(part: dict[str, Any]) -> list[str]:
    rows = [[kind, f"{row['changed']} of {row['sites']}", seconds(row["wall"]), seconds(row["cpu"]), str(row["reloads"]), str(row["requests"]),
             str(row["connections"]), str(row["handshakes"]), str(row["failed"]), f"{row['slowest'] * 1000:.0f}"]
            for kind, row in part.items() if kind != "about"]
    return ["## 50 keys rotated at once, while somebody shakes hands with all sites",
            table(["`certdrop rotate`", "new keys", "seconds", "CPU, s", "reloads", "requests", "connections", "handshakes", "failed", "slowest, ms"], rows),
            "Each rotation makes two keys a site: nobody waits for the one after the next."]


BEGIN, END = "<!-- measured: by bench/bench, do not edit -->\n", "<!-- measured: end -->\n"


BESIDE = ("uacme", "acmetool", "lacme", "lego", "certbot")
ROOTS = "certdrop-install, by root's cron"


def quoted(readme: str, found: dict[str, Any]) -> str:
    """README.md with what matters most of the tables between its two marks: seconds by the clock, and of CPU."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or not {"tick", "issue", "rotate"} <= set(found):
        return readme
    ticks = found["tick"]["costs"]
    rows = [["a run that finds nothing to do, " + _sites(size), _spent(ticks["certdrop"].get(size)), *(_spent(ticks.get(rival, {}).get(size))
                                                                                                       for rival in BESIDE)]
            for size in ("1", "100", "1000", "10000")]
    rows += [["root's hourly run that finds nothing to do, " + _sites(size), _spent(ticks[ROOTS].get(size)), *[""] * len(BESIDE)]
             for size in ("1", "1000", "10000")]
    rows += [["a day with " + _sites(size) + ", all programs (CPU alone)", f"~({seconds(day_of(found['day'], size))})",
              *("" if math.isnan(spent := rivals_day(found, rival, size)) else f"~({seconds(spent)})" for rival in BESIDE)]
             for size in map(str, found.get("day", {}).get("sizes", ())) if size != "100"]
    for what, title in (("one", "one certificate"), ("many", "50 certificates")):
        for trip, measured in found["issue"][what].items():
            where = f"{title}, the CA {float(trip) * 1000:.0f} ms away"
            rows.append([where + ", installed and served", _took(measured, "certdrop", what), *[""] * len(BESIDE)])
            rows.append([where + ", without that", _took(measured, "certdrop, without root's part", what),
                         *(_took(measured, rival, what) for rival in BESIDE)])
            together = [name for name in measured if "xargs" in name and "500" not in name]
            if together:
                rows.append([f"the same, {together[0]}", "", *(_took(measured, together[0], what) if together[0].startswith(rival) else ""
                                                               for rival in BESIDE)])
    kept = next(iter(kind for kind in found["rotate"] if kind != "about"))
    rotated = found["rotate"][kept]
    rows.append([f"{rotated['sites']} keys rotated, {rotated['reloads']} reload, {rotated['failed']} of {rotated['handshakes']} handshakes failed",
                 f"{seconds(rotated['wall'])} ({seconds(rotated['cpu'])})", *[""] * len(BESIDE)])
    about = found["issue"]["about"]
    said = f"Debian {about['debian']}, Python {about['python']}, {about['cores']} cores ({about['processor']}), {about['date'][:10]}."
    return before + BEGIN + "\n" + table(["seconds (of CPU)", "certdrop", *BESIDE], rows) + "\n" + said + "\n" + END + after


def _sites(size: str) -> str:
    return f"{int(size):,} site{'s' if size != '1' else ''}"


def _spent(cost: dict[str, float] | None) -> str:
    return "" if cost is None or math.isnan(cost["wall"]) else f"{seconds(cost['wall'])} ({seconds(cost['cpu'])})"


def _took(rows: dict[str, dict[str, float]], name: str, what: str) -> str:
    if name not in rows or math.isnan(rows[name]["wall"]):
        return ""
    scale = 50 / rows[name]["count"] if what == "many" else 1
    return f"{'~' if scale != 1 else ''}{seconds(rows[name]['wall'] * scale)} ({seconds(rows[name]['cpu'] * scale)})"


def _profile(part: dict[str, Any]) -> list[str]:
    texts = ["## Where the time goes", table(["what one costs here", "ms"], [[name, f"{value:.2f}"] for name, value in part["acts"].items()])]
    kinds = sorted({kind for found in part["kinds"].values() for kind in found["kinds"]})
    rows = [[name, f"{found['wall'] * 1000:.0f}", *(f"{found['kinds'].get(kind, 0.0) * 1000:.0f}" for kind in kinds)]
            for name, found in part["kinds"].items()]
    texts += ["Under a profile (which makes everything slower), milliseconds, summed over all processes and threads, but for the signer's, which keeps no "
              "descriptor to tell them over:",
              table(["", "by the clock", *kinds], rows)]
    texts += [table(["", "imports, ms", "modules", "the dearest, with what they import"],
                    [[name, f"{found['ms']:.0f}", str(found["modules"]), ", ".join(f"{what} {ms:.0f}" for what, ms in found["dear"][:6])]
                     for name, found in part["imports"].items()])]
    calls = sorted({call for found in part["syscalls"].values() for call, count in found.items() if count})
    texts += ["System calls:", table(["", *calls], [[name, *(str(found.get(call, 0)) for call in calls)] for name, found in part["syscalls"].items()])]
    return texts

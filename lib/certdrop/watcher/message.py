"""Writes the one mail for all sites: subject and body in words, cleaned and bounded. Pure.

Runs as: whoever imports it. Trusts: nothing: every line is cleaned. Reads and writes: nothing.
"""

from __future__ import annotations

from certdrop import events
from certdrop.watcher import alarm, phrases
from certdrop.watcher.alarm import Problem
from certdrop.watcher.evidence import Run

SHOWN = 40                         # problems in one mail
WIDTH = 400                        # characters in a line
SUBJECT = 150
TAILS = 8                          # last lines of a log


def write(kind: str, problems: list[Problem], runs: dict[str, Run], tails: dict[str, list[str]], host: str, now: float) -> tuple[str, str]:
    """(subject, body)."""
    if kind == alarm.WELL:
        subject, lines = "all is well again", ["All certificates are as they should be again."]
    else:
        ordered = sorted(problems, key=lambda problem: (not problem.grave, problem.key))
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        subject = ("still: " if kind == alarm.REMINDER else "") + ordered[0].subject + more
        lines = [f"{len(problems)} problem{'' if len(problems) == 1 else 's'} with certificates on {host}, at {events.stamp(now)}."]
        for problem in ordered[:SHOWN]:
            lines += ["", problem.subject, *(f"  {label + ':':10} {text}" for label, text in problem.facts)]
        if len(problems) > SHOWN:
            lines += ["", f"And {len(problems) - SHOWN} more: certdrop-status lists them."]
    lines.append("")
    for who, run in runs.items():
        when = phrases.ran_last(run, now) if run.at is None else f"last ran at {events.stamp(run.at)} ({phrases.span(max(0, now - run.at))} ago)"
        lines.append(f"The {who} {when}" + (f", exit code {run.exit}." if run.exit is not None else "."))
    if kind != alarm.WELL:
        for who, said in tails.items():
            lines += ["", f"The last lines of {who}.log:", *(f"  {line}" for line in said[-TAILS:])] if said else []
        lines += ["", "You get a mail when something new goes wrong, and then one a day until all is well.", "certdrop-status shows how each site is now."]
    return events.clean(f"[certdrop] {host}: {subject}", SUBJECT), "\n".join(events.clean(line, WIDTH) for line in lines) + "\n"

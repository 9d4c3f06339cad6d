"""Looks whether what should start certdrop is there and runs: cron and its table, and where systemd runs the watcher's timer.

Runs as: as_root() as root, look() as anyone. Trusts: the kernel. Reads: /proc/*/comm, /etc/cron.d/certdrop. Writes: nothing.
"""

from __future__ import annotations

import os
import stat

from certdrop.doctor import doing
from certdrop.doctor.ask import ask
from certdrop.doctor.line import FAILED, OK, WARNING, Line, verdict

TABLE = "/etc/cron.d/certdrop"
DAEMONS = ("cron", "crond", "cronie", "fcron", "bcron-sched", "anacron")
GENERATOR = "/usr/lib/systemd/system-generators/systemd-crontab-generator"         # systemd-cron, which has no daemon
TIMER = "certdrop-watch.timer"
SYSTEMD = "/run/systemd/system"


def look() -> list[Line]:
    """Whether a cron runs, and takes our table. Who is not root may see neither."""
    running, all_seen, deleted = _running()
    wrong = []
    if os.path.isdir(SYSTEMD) and os.path.exists(GENERATOR):
        running = running or "systemd-cron"
    timers = _timers()
    running = running or timers
    if not running:
        words = "no cron daemon runs: nothing is issued, installed or renewed" if all_seen else "no cron daemon can be seen from here"
        wrong.append((words, _start() if all_seen else "sudo certdrop-check"))
    elif deleted:
        wrong.append((f"{running} runs a program that an upgrade has replaced: it may refuse each job",
                      "systemctl restart cron" if os.path.isdir(SYSTEMD) else "service cron restart"))
    return [*verdict("cron", wrong, f"{running} runs", FAILED if all_seen else WARNING), *([] if timers else _table())]


def _start() -> str:
    """What starts one, as this host has it."""
    systemd = os.path.isdir(SYSTEMD)
    if any(os.path.exists(f"{place}/{name}") for place in ("/usr/sbin", "/usr/bin") for name in DAEMONS):
        return "systemctl start cron" if systemd else "service cron start"
    return "apt install cron" + ("; or systemctl enable --now certdrop-issue.timer certdrop-install.timer" if systemd else ", and have it start with this host")


def _timers() -> str:
    """Whether systemd's timers do cron's work."""
    if not os.path.isdir(SYSTEMD):
        return ""
    done = ask("/usr/bin/systemctl", "is-active", "certdrop-issue.timer", "certdrop-install.timer")
    return "systemd with certdrop's timers" if done.out.split() == ["active", "active"] else ""


def _table() -> list[Line]:
    try:
        found = os.lstat(TABLE)
    except PermissionError:
        return [Line(WARNING, "cron table", f"{TABLE} cannot be seen from here", "sudo certdrop-check")]
    except OSError:
        return [Line(FAILED, "cron", f"{TABLE} is not there: nothing starts certdrop", "apt install --reinstall -o "
                     "Dpkg::Options::=--force-confmiss certdrop; if another scheduler starts "
                     "certdrop-issue and certdrop-install, ignore this line")]
    odd = not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022 or found.st_nlink != 1
    wrong = [(f"{TABLE} is not root's alone: cron passes over it", f"chown root:root {TABLE}; chmod 644 {TABLE}")] if odd else []
    return verdict("cron table", wrong, f"{TABLE} is there, root's alone")


def _running() -> tuple[str, bool, bool]:
    """The cron that runs, whether root's processes can be seen at all, and whether its program was deleted."""
    seen = False
    try:
        entries = os.listdir("/proc")
    except OSError:
        return "", False, False
    for entry in filter(str.isdigit, entries):
        try:
            with open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as stream:
                name = stream.read().strip()
            seen = seen or os.stat(f"/proc/{entry}").st_uid == 0
            if name in DAEMONS and os.stat(f"/proc/{entry}").st_uid == 0:
                return name, True, _is_deleted(entry)
        except OSError:
            continue
    return "", seen, False


def _is_deleted(process: str) -> bool:
    try:
        return os.readlink(f"/proc/{process}/exe").endswith(" (deleted)")
    except OSError:
        return False                           # only root may read it


def as_root() -> list[Line]:
    """The same, seen by root; whether cron's jobs begin; and whether the watcher's timer is active, where systemd runs."""
    lines = [*look(), *doing.cron()]
    if not os.path.isdir(SYSTEMD):
        return lines
    done = ask("/usr/bin/systemctl", "is-active", TIMER)
    if done.out.strip() == "active":
        return [*lines, Line(OK, "timer", f"{TIMER} is active: a dead cron is noticed")]
    return [*lines, Line(FAILED, "timer", f"{TIMER} is {done.out.strip()[:20]!a}: nobody would notice that cron is dead", f"systemctl enable --now {TIMER}")]

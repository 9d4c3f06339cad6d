"""What still runs an old client, or uses its files: cron entries, systemd timers, sudo rules, other services' configuration. Names them, touches none.

Runs as: root. Trusts: nothing of what it finds; lines are searched for words, and shown cleaned. Reads: crontabs and the scripts they name,
systemd's unit files, sudoers, the configuration of other services. Writes: nothing.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from certdrop import events, foreign, spool

CRONTABS = "/var/spool/cron/crontabs"
PERIODS = tuple(f"/etc/cron.{period}" for period in ("hourly", "daily", "weekly", "monthly"))
UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
SUDOERS = ("/etc/sudoers", "/etc/sudoers.d")
OTHERS = ("/etc/apache2/sites-enabled", "/etc/apache2/conf-enabled", "/etc/haproxy", "/etc/postfix/main.cf", "/etc/postfix/master.cf", "/etc/dovecot",
          "/etc/dovecot/conf.d", "/etc/exim4", "/etc/exim4/conf.d/main", "/etc/mosquitto/conf.d", "/etc/prosody", "/etc/prosody/conf.d", "/etc/proftpd")
SHOWN = 110                        # characters of a line that are shown

_PATH = re.compile(r"(?<![\w/])/[\w.@+/-]+")


class Line(NamedTuple):
    """A line that some user's cron runs, or one of a script that it names (then `text` is the script's, and path and number are cron's)."""

    path: str
    number: int
    user: str
    text: str
    shown: str


def cron_lines() -> list[Line]:
    """All that cron runs, with the lines of the scripts that it names."""
    found = []
    for path in ("/etc/crontab", "/etc/anacrontab", *_in("/etc/cron.d")):
        for number, line in _numbered(path):
            words = line.split(None, 6)
            found.append(Line(path, number, words[5] if len(words) > 6 and not line.startswith("@") else "root", line, line))
    for path in _in(CRONTABS):
        found += [Line(path, number, os.path.basename(path), line, line) for number, line in _numbered(path)]
    scripts = [Line(line.path, line.number, line.user, text, line.shown) for line in found for name in _PATH.findall(line.text) if _is_script(name)
               for _, text in _numbered(name)]
    for path in [path for period in PERIODS for path in _in(period)]:
        found += [Line(path, number, "root", line, line) for number, line in _numbered(path)]
    return found + scripts


def cron_entries(lines: list[Line], words: re.Pattern[str]) -> list[str]:
    """The cron entries that run a client, in words, each once."""
    found: dict[str, None] = {}
    for line in lines:
        if words.search(line.text):
            script = line.path.startswith(PERIODS)
            found[f"{line.path}: chmod -x {line.path}" if script else f"{line.path}, line {line.number}: {events.clean(line.shown, SHOWN)}"] = None
    return list(found)


def timers(words: re.Pattern[str]) -> list[str]:
    """The enabled systemd timers whose service runs a client, as the commands that stop them."""
    found: dict[str, None] = {}
    for directory in UNITS:
        for path in _in(directory):
            name = os.path.basename(path)
            if name.endswith(".timer") and any(os.path.lexists(f"{place}/timers.target.wants/{name}") for place in UNITS):
                unit = re.search(r"^Unit *= *([\w@.-]+)", _text(path), re.M)
                service = unit[1] if unit else name.removesuffix(".timer") + ".service"
                if any(re.search(rf"^Exec\w*=.*(?:{words.pattern})", _text(f"{place}/{service}"), re.M) for place in UNITS):
                    found[f"systemctl disable --now {name}"] = None
    return list(found)


def sudo_rules(words: re.Pattern[str], users: set[str]) -> list[str]:
    """The rules that let somebody run a client, or let a user who runs one do something."""
    found = []
    for path in (SUDOERS[0], *_in(SUDOERS[1])):
        for number, line in _numbered(path):
            if words.search(line) or line.split()[0] in users - {"root", spool.ISSUER}:
                found.append(f"{path}, line {number}: {events.clean(line, SHOWN)}")
    return found


def other_uses(paths: dict[str, str]) -> list[str]:
    """Where another service's configuration names one of these files (or directories); `paths` leads to the site's name."""
    found = []
    for place in OTHERS:
        for path in [place] if os.path.isfile(place) else _in(place):
            for number, line in _numbered(path):
                for named in _PATH.findall(line):
                    name = next((paths[one] for one in (named, os.path.dirname(named)) if one in paths), "")
                    if name:
                        found.append(f"{path}, line {number}: {named} (now {name})")
    return found


def _numbered(path: str) -> list[tuple[int, str]]:
    """The lines of a file that are neither empty nor comments, those that go on joined, with the numbers they begin at."""
    found, begun = [], ""
    start = 0
    for number, line in enumerate(_text(path).splitlines(), 1):
        start = start if begun else number
        begun += line.rstrip("\\") if line.endswith("\\") else line
        if not line.endswith("\\"):
            if begun.strip() and not begun.lstrip().startswith("#"):
                found.append((start, begun.strip()))
            begun = ""
    return found


def _in(directory: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in sorted(os.listdir(directory)) if not name.startswith(".")]
    except OSError:
        return []


def _is_script(path: str) -> bool:
    return os.path.isfile(path) and not path.startswith(("/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/", "/dev/"))


def _text(path: str) -> str:
    """A file's text, whoever it belongs to: it is searched and shown, nothing else. "" where it is no plain small file."""
    try:
        fd = spool.open_directory(os.path.dirname(os.path.realpath(path)))
    except OSError:
        return ""
    try:
        name = os.path.basename(os.path.realpath(path))
        data = foreign.read(fd, name, os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid)
        return "" if b"\0" in data else data.decode("utf-8", "replace")
    except (OSError, spool.Refused):
        return ""
    finally:
        os.close(fd)

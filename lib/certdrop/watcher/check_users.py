"""Looks at the three users, and at what sudo allows them.

Runs as: as_root() as root, before anything that others wrote is read; look() as anyone. Trusts: the user database, sudo.
Reads: /etc/passwd, /etc/group, /etc/shadow, and runs sudo -l. Writes: nothing.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess

from certdrop import jail, spool
from certdrop.watcher.check_line import OK, WARNING, Line, verdict
from certdrop.watcher.principal import USER

JUDGE = "_certdrop-judge"
USERS = (spool.ISSUER, JUDGE, USER)
NO_SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
SUDO = "/usr/bin/sudo"
RULE = re.compile(r'\(root\) NOPASSWD: /usr(/local)?/sbin/certdrop-install ""')
CRONTABS = "/var/spool/cron/crontabs"


def look() -> list[Line]:
    """Whether the users exist, cannot log in, and share nothing."""
    found, uids = [], set()
    for user in USERS:
        try:
            known = pwd.getpwnam(user)
        except KeyError:
            found += verdict(user, [("there is no such user", "install the package again")], "")
            continue
        wrong = []
        if known.pw_uid == 0 or known.pw_uid in uids:
            wrong.append((f"shares uid {known.pw_uid} with another user, and so all rights", f"give it one of its own (usermod -u UID {user}), and its files"))
        uids.add(known.pw_uid)
        if known.pw_shell not in NO_SHELLS:
            wrong.append((f"has a shell, {known.pw_shell}: who takes it over can log in", f"usermod -s /usr/sbin/nologin {user}"))
        if os.path.lexists(known.pw_dir):
            wrong.append((f"has a home, {known.pw_dir}: sshd, sudo and shells read files there", f"usermod -d /nonexistent {user}"))
        more = sorted(group.gr_name for group in grp.getgrall() if user in group.gr_mem)
        if more:
            wrong.append((f"is in the group {', '.join(more)} too", f"gpasswd -d {user} {more[0]}"))
        wrong += _members(user, known.pw_gid)
        found += verdict(user, wrong, "no shell, no home, no other group")
    return found


def _members(user: str, gid: int) -> list[tuple[str, str]]:
    try:
        others = [name for name in grp.getgrgid(gid).gr_mem if name != user]
    except KeyError:
        return [(f"its group {gid} does not exist", "install the package again")]
    others += [known.pw_name for known in pwd.getpwall() if known.pw_gid == gid and known.pw_name != user]
    return [(f"{name} is in its group, and may read what is for it", f"gpasswd -d {name} {user}") for name in others]


def as_root() -> list[Line]:
    """Whether passwords are locked, nobody has a crontab of its own, and sudo allows the one command and no other."""
    found = []
    shadow = {}
    with open("/etc/shadow", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, password = (line.split(":") + [""])[:2]
            shadow[name] = password
    for user in USERS:
        password = shadow.get(user, "!")
        if password[:1] not in ("!", "*"):
            found += verdict(user, [("its password is not locked", f"usermod -L {user}")], "")
        if os.path.lexists(f"{CRONTABS}/{user}"):
            found.append(Line(WARNING, user, f"has a crontab of its own, which certdrop did not make: {CRONTABS}/{user}", f"crontab -r -u {user}"))
    return [*(found or [Line(OK, "passwords", "locked, and no crontab of their own")]), *sudo()]


def sudo() -> list[Line]:
    """What sudo really allows, by its own word (all of sudoers counts, not only our file)."""
    if not os.path.exists(SUDO):
        return [Line(WARNING, "sudo", "not installed: certificates are installed by root's hourly run, not at once", "apt install sudo")]
    wrong = []
    for user in USERS:
        try:
            done = subprocess.run([SUDO, "-n", "-l", "-U", user], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20,
                                  env=jail.ENVIRONMENT, cwd="/", check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return [Line(WARNING, "sudo", f"does not answer: {error}", "visudo -c")]
        rules = allowed(done.stdout.decode("utf-8", "replace"))
        if user == spool.ISSUER and not any(map(RULE.fullmatch, rules)):
            wrong.append((f"{user} may not run certdrop-install: installs wait for root's hourly run", "install /etc/sudoers.d/certdrop again; visudo -c"))
        wrong += [(f"{user} may also run: {rule}", "take that out of sudoers (visudo)") for rule in rules if user != spool.ISSUER or not RULE.fullmatch(rule)]
    return verdict("sudo", wrong, f"{spool.ISSUER} may run certdrop-install without arguments, and nothing else")


def allowed(text: str) -> list[str]:
    """The rules in what `sudo -l -U USER` prints, one to an element."""
    _, _, rest = text.partition("may run the following commands")
    found: list[str] = []
    for line in rest.splitlines()[1:]:
        if line.startswith("        ") and found:
            found[-1] += " " + line.strip()                # sudo wraps long rules
        elif line.startswith("    "):
            found.append(line.strip())
    return found

"""Looks at the three users, and at what sshd and sudo allow them.

Runs as: as_root() as root, before anything that others wrote is read; look() as anyone. Trusts: the user database, sudo, sshd.
Reads: /etc/passwd, /etc/group, /etc/shadow, and runs sudo -l, visudo -c, sshd -T. Writes: nothing.
"""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import re

from certdrop import spool
from certdrop.doctor import doing
from certdrop.doctor.ask import ask
from certdrop.doctor.line import OK, WARNING, Line, verdict
from certdrop.watcher.principal import USER

JUDGE = "_certdrop-judge"
USERS = (spool.ISSUER, JUDGE, USER)
NO_SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
SUDO = "/usr/bin/sudo"
RULE = re.compile(r'\(root\) NOPASSWD: /usr(/local)?/sbin/certdrop-install ""')
SSHD, VISUDO = "/usr/sbin/sshd", "/usr/sbin/visudo"
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
            wrong.append((f"has a shell, {known.pw_shell}: an attacker who takes it over can log in", f"usermod -s /usr/sbin/nologin {user}"))
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
    return [*(found or [Line(OK, "passwords", "locked, and no crontab of their own")]), *ssh(), *sudo()]


def ssh() -> list[Line]:
    """Whether sshd, by its own word, would let one of them in if it had a key or a password."""
    if not os.path.exists(SSHD):
        return [Line(OK, "ssh", "no sshd is installed")]
    wrong = []
    for user in USERS:
        said = ask(SSHD, "-T", "-C", f"user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22")
        if said.code:
            return [Line(WARNING, "ssh", f"sshd -T does not say whom it lets in: {said.words}", "run sshd -t")]
        if lets_in(said.out, user, _groups(user)):
            wrong.append((f"sshd would let {user} in, once it had a key or a password: for forwarding it needs no shell",
                          "put /usr/share/doc/certdrop/examples/sshd-certdrop.conf into /etc/ssh/sshd_config.d (DenyUsers)"))
    return verdict("ssh", wrong, "sshd lets none of them in", WARNING)


def lets_in(text: str, user: str, groups: list[str]) -> bool:
    """Whether a user is let in, by what `sshd -T` prints (sshd_config(5): DenyUsers, AllowUsers, DenyGroups, AllowGroups)."""
    lists: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, values = line.partition(" ")
        lists.setdefault(key.lower(), []).extend(values.split())

    def named(key: str, names: list[str]) -> bool:
        # of USER@HOST only a pattern for all hosts counts; a host that is named may not be all of them
        return any(fnmatch.fnmatchcase(name, pattern.removesuffix("@*")) for pattern in lists.get(key, []) for name in names)

    if named("denyusers", [user]) or named("denygroups", groups):
        return False
    allowed_users = [pattern.partition("@")[0] for pattern in lists.get("allowusers", [])]
    if allowed_users and not any(fnmatch.fnmatchcase(user, pattern) for pattern in allowed_users):
        return False
    return not lists.get("allowgroups") or named("allowgroups", groups)


def _groups(user: str) -> list[str]:
    try:
        own = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return []
    return [own, *(group.gr_name for group in grp.getgrall() if user in group.gr_mem)]


def sudo() -> list[Line]:
    """What sudo really allows, by its own word (all of sudoers counts, not only our file)."""
    if not os.path.exists(SUDO):
        return [Line(WARNING, "sudo", "not installed: certificates are installed by root's hourly run, not at once", "apt install sudo")]
    wrong = []
    checked = ask(VISUDO, "-c", "-q") if os.path.exists(VISUDO) else None
    if checked and checked.code:
        wrong.append((f"sudoers is not valid: {checked.words or checked.out.strip()[:200]!a}; sudo may allow nothing at all", "visudo -c"))
    for user in USERS:
        said = ask(SUDO, "-n", "-l", "-U", user)
        if said.code < 0:
            return [*doing.sudo(), Line(WARNING, "sudo rules", f"sudo does not say which there are: {said.words}", "visudo -c")]
        rules = allowed(said.out)
        wrong += [(f"{user} may also run: {rule}", "take that out of sudoers (visudo)") for rule in rules if user != spool.ISSUER or not RULE.fullmatch(rule)]
    return [*doing.sudo(), *verdict("sudo rules", wrong, f"{spool.ISSUER} may run certdrop-install without arguments at most, and nothing else")]


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

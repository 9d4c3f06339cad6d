"""Looks at what the kernel helps with: Landlock, filters of system calls, no_new_privs, namespaces, and the protections of links.

Runs as: anyone; namespaces() and fuse() as root, in children of their own. Trusts: the kernel. Reads: /proc/sys/fs. Writes: nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from certdrop import spool
from certdrop.doctor.line import FAILED, OK, WARNING, Line, verdict
from certdrop.walls import jail, syscalls, users

LINKS = {"protected_hardlinks": "any user can give another user's file a second name in a directory of its own",
         "protected_symlinks": "links in /tmp lead root's programs astray"}
FUSE = "/dev/fuse"
FOR_SUDO = {29: "CAP_AUDIT_WRITE"}
PATIENCE = 5.0                     # seconds for each of them
USERS = (spool.ISSUER, "_certdrop-judge", "_certdrop-watch")


def look(by_root: bool) -> list[Line]:
    """All that anyone can see; without Landlock's line where root's doctor has it (landlock), as its filter refuses who is shut in the question."""
    wrong = []
    for name, why in LINKS.items():
        try:
            with open(f"/proc/sys/fs/{name}", encoding="ascii") as stream:
                value = stream.read().strip()
        except OSError:
            continue
        if value == "0":
            wrong.append((f"fs.{name} is 0: {why}", f"sysctl -w fs.{name}=1, and in /etc/sysctl.d"))
    links = verdict("links", wrong, "protected by the kernel (fs.protected_hardlinks, fs.protected_symlinks)", WARNING)
    return [*([] if by_root else landlock()), calls(*observed()), *links]


def landlock() -> list[Line]:
    """Whether the kernel has it: to be asked before a filter is in force."""
    lacking, mend = jail.no_landlock()
    if lacking:
        return [Line(WARNING, "sandbox", f"{lacking}: the issuer's network part runs with all rights of its user and can read the account key, and limits "
                     "alone hold the judge", mend)]
    return [sandbox(jail.landlock_abi())]


def sandbox(abi: int) -> Line:
    """What the issuer's network part is confined by."""
    missing = "" if abi >= 6 else "; this kernel leaves it signals and abstract sockets" + ("" if abi >= 4 else ", and all TCP ports")
    return Line(OK, "sandbox", f"Landlock, ABI {abi} (kernel {os.uname().release}){missing}")


def walls() -> list[Line]:
    """What root has to look at."""
    return [*capabilities(), *landlock(), *namespaces(), *fuse()]


def capabilities() -> list[Line]:
    """Whether root has what its work needs, and what the services that it tests and reloads may need."""
    needed, others = users.lacking(users.NEEDED), users.lacking({**users.BY_SERVICES, **FOR_SUDO})
    found = [(FAILED, needed, "certdrop-install does not begin, and nothing is installed")] if needed else []
    found += [(WARNING, others, "services may fail their test or reload, and sudo may complain")] if others else []
    mend = "give it back: CapabilityBoundingSet= of the unit, or --cap-add of the container"
    return [Line(level, "capabilities", f"root lacks {names} here: {follows}", mend) for level, names, follows in found] or [
        Line(OK, "capabilities", "root has those that its work and its services need")]


def namespaces() -> list[Line]:
    """Whether root can give the judge namespaces of its own, as it does for each: tried in a child."""
    names = {"processes": users.NEWPID, "IPC": users.NEWIPC, "network": users.NEWNET}
    lacking = [name for name, kind in names.items() if not _in_child(lambda: users.unshare(kind))]
    if lacking:
        return [Line(WARNING, "sandbox", f"root may make no namespaces here ({', '.join(lacking)}): a judge that is taken over can reach what else runs as "
                     "_certdrop-judge, and see the network", "allow CAP_SYS_ADMIN and unshare(2) to root in this container")]
    return [Line(OK, "sandbox", "each judge has namespaces of its own: processes, IPC, network")]


def fuse() -> list[Line]:
    """Whether certdrop's users can make file systems of their own, and so hold in the kernel what others wait for: tried as each of them."""
    tried = {user: _opens_fuse(user) for user in USERS}
    able, late = ([user for user, opens in tried.items() if opens is what] for what in (True, None))
    if able:
        return [Line(WARNING, "fuse",
                     f"{' and '.join(able)} can open {FUSE}: an attacker who takes over one of them can make nginx wait in the kernel (SECURITY.md)",
                     "systemd-tmpfiles --create certdrop.conf; without systemd, setfacl -m u:USER:--- " + FUSE + " for each, after each boot")]
    if late:
        return [Line(WARNING, "fuse", f"the test whether {' and '.join(late)} can open {FUSE} does not end within {PATIENCE:.0f} s",
                     f"look at what else runs as {late[0]}: it may stop new processes of that user")]
    return [Line(OK, "fuse", f"certdrop's users cannot open {FUSE}" if os.path.exists(FUSE) else f"there is no {FUSE}")]


def _opens_fuse(user: str) -> bool | None:
    """By a program of that user's, with nothing of root's; None where it does not end: others of that user can stop it."""
    from certdrop.walls import become
    try:
        process = become.start(user, ["/usr/bin/python3", "-IS", "-c", f"open({FUSE!r}, 'r+b', 0)"])
    except KeyError:
        return False
    try:
        return process.wait(PATIENCE) == 0
    except subprocess.TimeoutExpired:
        return None
    finally:
        become.kill(process)


def _in_child(attempt: Callable[[], bool]) -> bool:
    """Whether something that changes a process can be done: a child does it, as root, so nobody stops it, and ends."""
    child = os.fork()
    if child == 0:
        done = False
        try:
            done = attempt()
        except OSError:
            pass
        finally:
            os._exit(0 if done else 1)
    return os.waitpid(child, 0)[1] == 0


def observed() -> tuple[bool, bool, str]:
    """(whether its calls are filtered, whether set-id bits help it no more, why there is no filter) of a process that is shut in: this one, where it
    is, as root's doctor is; else a child that shuts itself in as the issuer's network part does."""
    if filtered():
        return True, unprivileged(), ""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        why = ""
        try:
            try:
                jail.give_up_privileges()
                syscalls.Filter(syscalls.NETWORK).enter()
            except jail.Unconfined as error:
                why = str(error)
            os.write(writer, f"{filtered():d}{unprivileged():d}{why:.200}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    holds = said[:1] == "1"
    return holds, said[1:2] == "1", said[2:] or ("" if holds else "it does not come into force")


def filtered() -> bool:
    """Whether our filter holds for this process: it asks for its own priority, which everybody may know, and none of our lists has."""
    try:
        os.getpriority(os.PRIO_PROCESS, 0)
    except PermissionError:
        return True
    return False


def unprivileged() -> bool:
    """Whether no_new_privs is set for this process."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
        return "\nNoNewPrivs:\t1\n" in stream.read()


def calls(holds: bool, no_new_privs: bool, why: str) -> Line:
    """What was seen of the other walls."""
    if not no_new_privs:
        return Line(WARNING, "sandbox", "no_new_privs does not hold: a set-id program could help an attacker who takes over the network part",
                    "run a kernel of Debian 12 or later")
    if not holds:
        mend = "apt install python3-seccomp" if "python3-seccomp" in why else "run a kernel of Debian 12 or later, on amd64, arm64 or riscv64"
        return Line(WARNING, "sandbox", f"no filter of system calls ({why}): an attacker who takes over the network part, the signer, the judge or "
                    "the watcher's reader can make any system call", mend)
    return Line(OK, "sandbox", "seccomp filters system calls, and no_new_privs holds: seen in a process that is shut in")

"""Starts what cron and sudo start, as they do and as the very users: what PAM, a mount option or a mode forbids is seen only so.

sudo starts certdrop-install by the one rule that there is, while this process holds the keeper's locks: that run finds another one at work, and
ends at once. For cron, PAM is asked in a process of its own, as cron(8) asks it, and a shell is started as the user. No right more, no argument.
Runs as: root. Trusts: of what is said, that it is text. Reads: PAM's and sudo's configuration, by their own programs. Writes: nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator

from certdrop import events, spool
from certdrop.config import site
from certdrop.doctor.ask import Said, ask
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.walls import become, users
from certdrop.watcher.principal import USER

USERS = (spool.ISSUER, USER)       # those whose jobs cron starts
SUDO, INSTALL = "/usr/bin/sudo", "/usr/sbin/certdrop-install"
ENV = "/usr/bin/env"               # executes sudo as that user alone: setpriv still has capabilities when it executes what it was given
PAM, RULES, SUDOERS = "/etc/pam.d", "/etc/sudoers.d/certdrop", "/etc/sudoers"
TRIAL = 12.0                       # seconds for one of what sudo and cron start: others of that user may stop it
WAITS = "new certificates wait for root's hourly run"
ACCESS, TIMES = "/etc/security/access.conf", "/etc/security/time.conf"
NOLOGIN = ("/run/nologin", "/etc/nologin")
HOSTS = "/etc/hosts"

# What sudo, PAM or the kernel say, and the line that mends it; the first that fits.
SUDO_SAYS = (
    ("Permission denied", "env: ", "chown root:root /usr/bin/sudo; chmod 4755 /usr/bin/sudo"),
    ("nosuid", "", "mount -o remount,suid {mount}"),
    ("must be owned by uid 0 and have the setuid bit set", "", "chown root:root /usr/bin/sudo; chmod 4755 /usr/bin/sudo"),
    ("no new privileges", "", "take NoNewPrivileges (no_new_privs, allowPrivilegeEscalation: false) from the unit or container that this runs in"),
    ("must have a tty", "", "put into sudoers: Defaults:_certdrop !requiretty"),
    ("account validation failure", "", "{pam}"),
    ("account has expired", "", "{pam}"),
    ("PAM account management error", "", "{pam}"),
    ("Defaults intercept", "", "put into sudoers: Defaults:_certdrop !intercept"),
    ("password is required", "", "{rule}"),
    ("not in the sudoers file", "", "{rule}"),
    ("may not run sudo", "", "{rule}"),
    ("start no program", "", "put into sudoers: Defaults:_certdrop !noexec"),
    ("root lacks CAP_", "", "give it back: CapabilityBoundingSet= of the unit, or --cap-add of the container"),
)

AS_CRON = r"""
import ctypes, os, sys
pam, user = ctypes.CDLL("libpam.so.0"), sys.argv[1].encode()
Conversation = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
class Conv(ctypes.Structure):
    _fields_ = [("conv", Conversation), ("data", ctypes.c_void_p)]
conv, handle = Conv(Conversation(lambda *_: 19), None), ctypes.c_void_p()
pam.pam_strerror.restype = ctypes.c_char_p
def step(code, what):
    if code:
        print(f"{what}: {pam.pam_strerror(handle, code).decode('utf-8', 'replace')}")
        sys.exit(1)
step(pam.pam_start(b"cron", user, ctypes.byref(conv), ctypes.byref(handle)), "start")
pam.pam_set_item(handle, 3, b"cron")
step(pam.pam_acct_mgmt(handle, 0x8000), "account")
step(pam.pam_open_session(handle, 0x8000), "session")
job, code = os.fork(), 1
if job == 0:
    try:
        uid, gid = int(sys.argv[2]), int(sys.argv[3])
        os.setgroups([gid]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
        os.posix_spawn("/bin/sh", ["/bin/sh", "-c", ":"], {})
        code = os.waitstatus_to_exitcode(os.wait()[1])
    except OSError as error:
        os.write(1, f"a shell: {error.strerror}\n".encode())
    finally:
        os._exit(code)
code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
pam.pam_close_session(handle, 0x8000)
pam.pam_end(handle, code)
sys.exit(code)
"""


def sudo() -> list[Line]:
    """Whether the issuer's user really comes to certdrop-install by sudo."""
    try:
        uid, gid = users.user_ids(spool.ISSUER)
    except KeyError:
        return []                              # said by the line on that user
    with _locks():
        said = ask(*become.as_user(uid, gid), ENV, SUDO, "-n", INSTALL, seconds=TRIAL)
    words = said.words or _noted() or f"it ended with {said.code}"
    if said.code == os.EX_OK:
        if not _intercepts():
            return [Line(OK, "sudo", f"{spool.ISSUER} can start certdrop-install by it: tried"), *_complaint(said.words)]
        words = "Defaults intercept: sudo lets certdrop-install start nothing"
    return [Line(FAILED, "sudo", f"{spool.ISSUER} cannot have certdrop-install work: {words}; {WAITS}", sudo_mend(words))]


def _complaint(words: str) -> list[Line]:
    """What sudo says although it works: cron mails that at each renewal."""
    host = os.uname().nodename
    mends = {"unable to resolve host": f"echo 127.0.1.1 {host} >> {HOSTS}", "audit message": "give back CAP_AUDIT_WRITE, as the line on capabilities says"}
    return [Line(WARNING, "sudo", f"{words}; cron mails that at each renewal", mend) for said, mend in mends.items() if said in words]


def _noted() -> str:
    """Why that run did not begin, as it noted it."""
    with contextlib.suppress(OSError), open(f"{site.STATE}/keeper/stopped-asked", encoding="utf-8", errors="replace") as stream:
        return events.clean(stream.read(1000).strip(), 300)
    return ""


def _intercepts() -> bool:
    """Whether sudo would keep what it starts from starting anything (sudoers(5)): a run that ends at once does not meet that."""
    said = ask(SUDO, "-n", "-l", "-U", spool.ISSUER).out.partition("may run the following")[0]
    return [word for word in re.split(r"[\s,]+", said) if word.lstrip("!") == "intercept"][-1:] == ["intercept"]


def sudo_mend(words: str) -> str:
    """What mends that sudo says this."""
    for first, second, mend in SUDO_SAYS:
        if first in words and second in words:
            return mend.format(mount=_mount_of(SUDO), rule=_rule_mend(), pam=pam_mend("sudo", [spool.ISSUER]))
    return f"sudo -u {spool.ISSUER} sudo -n {INSTALL} shows it"


def _rule_mend() -> str:
    """What gives the issuer its rule, where sudo does not find it or asks for a password."""
    if not os.path.exists(RULES):
        return "apt install --reinstall -o Dpkg::Options::=--force-confmiss certdrop"
    if "NOPASSWD: /usr/sbin/certdrop-install" not in ask(SUDO, "-n", "-l", "-U", spool.ISSUER).out:
        return "visudo: the line @includedir /etc/sudoers.d has to stand in /etc/sudoers"
    with contextlib.suppress(OSError), open(SUDOERS, encoding="utf-8", errors="replace") as stream:
        after = re.split(r"(?m)^[@#]includedir\s.*$", stream.read())[-1]
        if re.search(r"(?m)^\s*[^#\s]", after):
            return f"a later rule takes that of {RULES} back: visudo: move the line @includedir /etc/sudoers.d to the end of {SUDOERS}"
    folder = os.path.dirname(RULES)
    last = max(entry for entry in os.listdir(folder) if "." not in entry and not entry.endswith("~"))     # sudoers(5): read in this order
    return f"a later rule takes that of {RULES} back; have it come last: cp -p {RULES} {folder}/{last}-certdrop"


def _mount_of(path: str) -> str:
    """Where the file system is mounted that a file lies on (proc(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
        points = [line.split()[4].rstrip("/") for line in stream]
    return max((point for point in points if path.startswith(point + "/")), key=len) or "/"


@contextlib.contextmanager
def _locks() -> Iterator[None]:
    """Hold the keeper's lock and its issuer's queue, where they are free: where they are not, whoever has them makes that run end as well."""
    with contextlib.ExitStack() as stack:
        for entry in ("lock", "waiting-issuer"):
            with contextlib.suppress(OSError):
                fd = os.open(f"{site.STATE}/keeper/{entry}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def cron() -> list[Line]:
    """Whether PAM lets cron begin the jobs of these users, and whether a shell begins as each."""
    if not os.path.exists(f"{PAM}/cron"):
        return []                              # no cron of Debian's, or one that asks nobody
    refused: dict[str, str] = {}
    for user in USERS:
        with contextlib.suppress(KeyError):
            said = ask("/usr/bin/python3", "-IS", "-c", AS_CRON, user, *map(str, users.user_ids(user)), seconds=TRIAL)
            if said.code == 1 and said.out:
                refused[user] = said.out.strip()[:200]
            elif said.code:
                return [Line(WARNING, "cron jobs", f"what PAM says of them was not seen: {_words(said)}", "see what cron logs of its jobs")]
    if not refused:
        return [Line(OK, "cron jobs", f"PAM admits those of {spool.ISSUER} and {USER}, and a shell begins: tried")]
    words = sorted(set(refused.values()))
    return [Line(FAILED, "cron jobs", f"those of {' and '.join(sorted(refused))} do not begin, and nothing is renewed: PAM says {'; '.join(words)}",
                 cron_mend(sorted(refused), words[0]))]


def cron_mend(who: list[str], words: str) -> str:
    """What mends that PAM refuses these users' jobs."""
    if words.startswith("a shell: "):
        return f"raise nproc for {' and '.join(who)} in /etc/security/limits.conf"
    return pam_mend("cron", who)


def pam_mend(service: str, who: list[str]) -> str:
    """What has PAM admit these users to a service, by the modules that it asks for their accounts: for each that can refuse, what is to be done."""
    ended = [user for user in who if _is_expired(user)]
    if ended:
        return "; ".join(f"chage -E -1 {user}" for user in ended)
    modules, found = _modules(service), []
    if "pam_nologin" in modules:
        found += [f"rm {path}" for path in NOLOGIN if os.path.exists(path)]
    if "pam_time" in modules:
        found += [f"{TIMES}, line {number}: add {''.join('&!' + user for user in USERS)} to its third field" for number in _rules_of(TIMES)]
    if "pam_access" in modules:
        found.append(f"let PAM admit {' and '.join(who)}: as the first line of {ACCESS}: +:{' '.join(USERS)}:ALL")
    return "; or ".join(found) or f"find the module of {PAM}/{service}, or of what it includes, that refuses {' and '.join(who)}"


def _modules(service: str, depth: int = 0) -> set[str]:
    """The modules that PAM asks about an account for a service (pam.d(5)), with those of what is included."""
    found: set[str] = set()
    with contextlib.suppress(OSError), open(f"{PAM}/{service}", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            words = re.sub(r"\[[^]]*\]", "[]", line.partition("#")[0]).split()
            other = words[1:2] if words[:1] == ["@include"] else words[2:3] if words[1:2] in (["include"], ["substack"]) else []
            if other and depth < 8:
                found |= _modules(os.path.basename(other[0]), depth + 1)
            elif words and words[0].lstrip("-") == "account":
                found.update(os.path.basename(word).removesuffix(".so") for word in words[2:3])
    return found


def _rules_of(path: str) -> list[int]:
    """The numbers of the lines of a file that are not empty, or comments."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
        return [number for number, line in enumerate(stream, 1) if line.strip() and not line.lstrip().startswith("#")]
    return []


def _is_expired(user: str) -> bool:
    """Whether an account has ended (shadow(5)): PAM's own words for that are those of any refusal."""
    with open("/etc/shadow", encoding="utf-8", errors="replace") as stream:
        days = [fields[7] for line in stream if (fields := line.rstrip("\n").split(":"))[0] == user and len(fields) > 7]
    return any(day.isdecimal() and int(day) * 86400 < time.time() for day in days)


def _words(said: Said) -> str:
    return said.words or said.out.strip()[:200] or f"it ended with {said.code}"

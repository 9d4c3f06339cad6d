"""Hosts as hardening guides, images and containers have them: each a case, with what certdrop does there, and the line that mends it.

The table (CASES) is what test_hardened.py builds on the stage and renews on, and what docs/hardened-hosts.md tells administrators;
tests/unit/test_hardened_hosts.py holds the two together. Nothing of the stage is imported here.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

STATE, SPOOL, LOGS = "/var/lib/certdrop", "/var/spool/certdrop", "/var/log/certdrop"
SUDOERS = "/etc/sudoers.d/zz-hardened"
HARD = "nosuid,nodev,noexec"
DOCKER = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,audit_write,setfcap"
REFUSED_BY_DOCKER = ("add_key", "bpf", "clock_settime", "keyctl", "mbind", "mount", "move_pages", "perf_event_open", "pivot_root", "ptrace", "quotactl",
                     "reboot", "request_key", "set_mempolicy", "setns", "swapon", "umount2", "unshare", "userfaultfd")

Manager = Callable[[], contextlib.AbstractContextManager[dict[str, Any] | None]]


@dataclass(frozen=True)
class Case:
    """A variation: how it is made and undone (what it yields is how cron's lines are run), and what comes of it."""

    name: str
    made: Manager
    by: str = "cron"                  # who installs it: the run that cron starts as _certdrop, root's own, nobody; "": nobody where root may not raise limits
    said: str = ""                    # what certdrop-status says then
    mend: str = ""                    # the line that mends it, as the document has it
    mended: Manager | None = None     # that, carried out
    mailed: str = ""                  # a line that cron's job prints, and so mails
    doctor: str = ""                  # what root's certdrop-check says, run as cron's lines are


def command(*argv: str) -> str:
    """Run it; it has to end well."""
    return subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


# ---- how hosts differ

@contextlib.contextmanager
def mounted(options: str, *paths: str) -> Iterator[None]:
    """Each directory is a mount of its own, with these options; what is in it stays."""
    done: list[str] = []
    try:
        for path in paths:
            command("mount", "--bind", path, path)
            done.append(path)
            command("mount", "-o", "remount,bind," + options, path)
        yield
    finally:
        for path in reversed(done):
            command("umount", "-l", path)


@contextlib.contextmanager
def emptied(path: str, options: str = "mode=755", keep: bool = False, full: bool = False, but: str = "") -> Iterator[None]:
    """A tmpfs in place of what is there; with `keep`, a copy of it; `full` to the last byte; or empty `but` for a directory."""
    copy = "/root/kept"
    if keep:
        command("cp", "-a", path, copy)
    command("mount", "-t", "tmpfs", "-o", options, "hardened", path)
    try:
        if keep:
            command("cp", "-a", copy + "/.", path)
        if but:
            os.mkdir(f"{path}/{but}")
        if full:
            with contextlib.suppress(OSError), open(path + "/filler", "wb", buffering=0) as stream:
                while True:
                    stream.write(b"\0" * 4096)
        yield
    finally:
        command("umount", "-l", path)
        shutil.rmtree(copy, ignore_errors=True)


@contextlib.contextmanager
def written(path: str, text: str | Callable[[str], str] | None, mode: int = 0o644) -> Iterator[None]:
    """A file has this text (or is not there), and is as it was afterwards."""
    place = pathlib.Path(path)
    before, found = (place.read_bytes(), place.stat()) if place.exists() else (None, None)
    if text is None:
        place.unlink(missing_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text(before.decode() if before else "") if callable(text) else text)
        place.chmod(mode)
    try:
        yield
    finally:
        if before is None or found is None:
            place.unlink(missing_ok=True)
        else:
            place.write_bytes(before)
            place.chmod(found.st_mode & 0o7777)
            os.chown(place, found.st_uid, found.st_gid)


@contextlib.contextmanager
def read_only(path: str) -> Iterator[None]:
    """The file system takes no writes any more, as after an error."""
    with emptied(path, keep=True):
        command("mount", "-o", "remount,ro", path)
        yield


def sudoers(*lines: str) -> Manager:
    """Lines of sudoers, read after all others."""
    return lambda: written(SUDOERS, "".join(line + "\n" for line in lines), 0o440)


@contextlib.contextmanager
def run_with(**how: Any) -> Iterator[dict[str, Any]]:
    """cron's lines are run in another way: `env`, `gone` (variables taken away), `first` (called in the child, as root), `wrap` (words before)."""
    yield how


def limited(**limits: int) -> Manager:
    """With these limits, hard ones."""
    def first() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    return lambda: run_with(first=first)


def environment(**variables: str) -> Manager:
    return lambda: run_with(env=variables)


@contextlib.contextmanager
def moded(mode: int, *paths: str, group: str = "") -> Iterator[None]:
    """Directories or files have another mode, or group."""
    before = {path: os.stat(path) for path in paths}
    for path in paths:
        if group:
            shutil.chown(path, group=group)
        os.chmod(path, mode)
    try:
        yield
    finally:
        for path, found in before.items():
            os.chown(path, found.st_uid, found.st_gid)
            os.chmod(path, found.st_mode & 0o7777)


@contextlib.contextmanager
def dead_terminal() -> Iterator[dict[str, Any]]:
    """Standard input is a terminal whose other end is closed."""
    ours, theirs = pty.openpty()
    os.close(ours)
    try:
        yield {"stdin": theirs}
    finally:
        os.close(theirs)


@contextlib.contextmanager
def remounted(path: str, options: str, back: str) -> Iterator[None]:
    command("mount", "-o", "remount," + options, path)
    try:
        yield
    finally:
        command("mount", "-o", "remount," + back, path)


@contextlib.contextmanager
def both(*managers: Manager) -> Iterator[dict[str, Any]]:
    how: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for manager in managers:
            how.update(stack.enter_context(manager()) or {})
        yield how


@contextlib.contextmanager
def kernel(path: str, value: str) -> Iterator[None]:
    """A setting of the kernel's, of this network namespace alone."""
    place = pathlib.Path("/proc/sys/" + path)
    before = place.read_text()
    place.write_text(value)
    try:
        yield
    finally:
        place.write_text(before)
        if path.endswith("disable_ipv6"):
            with contextlib.suppress(subprocess.CalledProcessError):
                command("ip", "address", "add", "::1/128", "dev", "lo")


def like_docker() -> None:
    """Docker's filter, as far as it refuses what somebody may try: EPERM. No no-new-privileges: sudo goes on to work."""
    import seccomp
    found = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    found.set_attr(seccomp.Attr.CTL_NNP, 0)
    for name in REFUSED_BY_DOCKER:
        found.add_rule(seccomp.ERRNO(1), name)
    found.load()


def without_landlock() -> None:
    """A container's profile that does not know Landlock."""
    import seccomp
    found = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    found.set_attr(seccomp.Attr.CTL_NNP, 0)
    for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        found.add_rule(seccomp.ERRNO(1), name)
    found.load()


@contextlib.contextmanager
def moved(path: str, to: str) -> Iterator[None]:
    """A directory lies elsewhere, and a symbolic link leads there."""
    os.makedirs(os.path.dirname(to), exist_ok=True)
    command("cp", "-a", path, to)
    os.rename(path, path + ".before")
    os.symlink(to, path)
    try:
        yield
    finally:
        os.unlink(path)
        shutil.rmtree(path + ".before")
        command("cp", "-a", to, path)
        shutil.rmtree(to)


def pam(*lines: str) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """access.conf, and sudo asks it."""
    return both(lambda: written("/etc/security/access.conf", "".join(line + "\n" for line in (*lines, "-:ALL:ALL"))),
                lambda: written("/etc/pam.d/sudo", lambda text: text if "pam_access" in text else "account required pam_access.so\n" + text))


def asks(module: str) -> Manager:
    """sudo asks one more module of PAM's about the account."""
    return lambda: written("/etc/pam.d/sudo", lambda text: f"account required {module}\n" + text)


def pam_time(*lines: str) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """time.conf, and sudo asks it."""
    return both(lambda: written("/etc/security/time.conf", "".join(line + "\n" for line in lines)), asks("pam_time.so"))


def read(path: str) -> str:
    return pathlib.Path(path).read_text()


@contextlib.contextmanager
def changed(there: tuple[str, ...], back: tuple[str, ...]) -> Iterator[None]:
    """A command, and the one that undoes it."""
    command(*there)
    try:
        yield
    finally:
        command(*back)


@contextlib.contextmanager
def renumbered(user: str, number: int) -> Iterator[None]:
    """A user of certdrop's has a very high number."""
    import pwd
    before = pwd.getpwnam(user).pw_uid
    places = [STATE, SPOOL, LOGS]
    command("usermod", "-u", str(number), user)
    command("find", *places, "-uid", str(before), "-exec", "chown", "-h", str(number), "{}", "+")
    try:
        yield
    finally:
        command("usermod", "-u", str(before), user)
        command("find", *places, "-uid", str(number), "-exec", "chown", "-h", str(before), "{}", "+")


@contextlib.contextmanager
def their_python() -> Iterator[dict[str, Any]]:
    """A sitecustomize and packages of pip's that fail, and variables that lead there."""
    place = pathlib.Path(f"/usr/local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/dist-packages")
    place.mkdir(parents=True, exist_ok=True)
    made = [place / f"{name}.py" for name in ("sitecustomize", "usercustomize", "cryptography", "structlog", "acme_tiny", "certdrop")]
    for path in made:
        path.write_text("raise SystemExit('theirs')\n")
    try:
        yield {"env": {"PYTHONPATH": str(place), "PYTHONSTARTUP": str(made[0]), "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}}
    finally:
        for path in made:
            path.unlink()


@contextlib.contextmanager
def nginx_reloaded(*managers: Manager) -> Iterator[None]:
    """nginx's own configuration differs; nginx is started anew before and after."""
    pid = pathlib.Path("/run/nginx.pid")

    def reload() -> None:
        os.kill(int(pid.read_text()), 1)
    with both(*managers):
        command("nginx", "-t")
        reload()
        yield
    reload()


def rotated() -> contextlib.AbstractContextManager[None]:
    """logrotate has just run, told to be somebody else by logrotate.conf."""
    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        with written("/etc/logrotate.conf", "su root adm\nweekly\ninclude /etc/logrotate.d\n"):
            command("logrotate", "-f", "/etc/logrotate.conf")
            yield
    return manager()


OPENSSL = """openssl_conf = a
[a]
ssl_conf = b
[b]
system_default = c
[c]
MinProtocol = {}
CipherString = DEFAULT:@SECLEVEL={}
"""
NO_NAME = "127.0.0.1\tlocalhost\n127.0.0.1\tca.stage.test mail.stage.test\n"
V6_ONLY = "::1\tlocalhost\n127.0.1.1\tstage\n127.0.0.1\tca.stage.test mail.stage.test\n"

CASES = [
    # ---- file systems
    Case("/tmp, /var/tmp, /dev/shm and /run are nosuid,nodev,noexec", lambda: mounted(HARD, "/tmp", "/var/tmp", "/dev/shm", "/run")),
    Case("/var is nosuid,nodev,noexec", lambda: mounted(HARD, "/var", "/var/lib", "/var/spool", "/var/log")),
    Case("/home, /srv and /opt are nosuid,nodev,noexec", lambda: mounted(HARD, "/home", "/srv", "/opt")),
    Case("/etc is read-only", lambda: mounted("ro", "/etc")),
    Case("/usr is read-only", lambda: mounted("ro", "/usr")),
    Case("/var/lib/certdrop is read-only", lambda: read_only(STATE), by="nobody", said=f"{STATE} is read-only: nothing can be renewed",
         mend="mount -o remount,rw /var"),
    Case("/var/spool/certdrop is read-only", lambda: read_only(SPOOL), by="nobody", said=f"{SPOOL} is read-only: nothing can be renewed",
         mend="mount -o remount,rw /var"),
    Case("/var/log/certdrop is read-only", lambda: read_only(LOGS), said=f"{LOGS} is read-only: nothing is logged", mend="mount -o remount,rw /var"),
    Case("/var/log is a tmpfs that is empty after a start", lambda: emptied("/var/log", but="nginx")),
    Case("/var/log is full", lambda: emptied("/var/log", "size=32m,mode=755", keep=True, full=True)),
    Case("/var/log/certdrop is full", lambda: emptied(LOGS, "size=256k,mode=755", keep=True, full=True)),
    Case("/tmp is full", lambda: emptied("/tmp", "size=32m,mode=1777", keep=True, full=True)),
    Case("/var/lib is a symbolic link", lambda: moved("/var/lib/certdrop", "/srv/lib/certdrop")),
    Case("/var/log belongs to a group that may write there (Ubuntu)", lambda: moded(0o775, "/var/log", group="adm")),
    Case("/var, /var/lib, /var/spool, /var/log and /etc are 0711", lambda: moded(0o711, "/var", "/var/lib", "/var/spool", "/var/log", "/etc")),
    Case("/etc/certdrop/certdrop.toml was written under umask 077", lambda: moded(0o600, "/etc/certdrop/certdrop.toml"), by="nobody",
         mailed="/etc/certdrop/certdrop.toml: Permission denied; the live certificates stay", said="/etc/certdrop/certdrop.toml: Permission denied",
         mend="chmod 644 /etc/certdrop/certdrop.toml", mended=lambda: moded(0o644, "/etc/certdrop/certdrop.toml")),
    Case("/sys is masked", lambda: emptied("/sys")),
    Case("/proc is mounted with hidepid=2", lambda: remounted("/proc", "hidepid=2", "hidepid=0")),
    # ---- sudo
    *[Case(line, sudoers(line)) for line in (
        "Defaults use_pty", "Defaults log_input, log_output, use_pty", "Defaults secure_path=\"/usr/bin:/bin\"", "Defaults !env_reset",
        "Defaults env_keep += \"PYTHONPATH LD_PRELOAD LANG TMPDIR HOME\"", "Defaults timestamp_timeout=0", "Defaults !root_sudo", "Defaults targetpw",
        "Defaults rootpw",
        "Defaults umask=0777, umask_override", "Defaults logfile=/var/log/sudo.log", "Defaults mail_always, lecture=always", "Defaults log_subcmds")],
    Case("Defaults noexec", sudoers("Defaults noexec"), by="root",
         said="sudo lets this run start no program (noexec), but does not bind root's hourly run; put into sudoers: Defaults:_certdrop !noexec",
         mend="Defaults:_certdrop !noexec", mended=sudoers("Defaults noexec", "Defaults:_certdrop !noexec")),
    Case("Defaults intercept", sudoers("Defaults intercept"), by="root", mailed="Sorry, user _certdrop is not allowed to execute ",
         said="Permission denied in the run that sudo started; what sudo forbids does not bind root's hourly run",
         mend="Defaults:_certdrop !intercept", mended=sudoers("Defaults intercept", "Defaults:_certdrop !intercept")),
    Case("Defaults requiretty", sudoers("Defaults requiretty"), by="root", mailed="sudo: sorry, you must have a tty to run sudo",
         mend="Defaults:_certdrop !requiretty", mended=sudoers("Defaults requiretty", "Defaults:_certdrop !requiretty")),
    Case("Defaults runas_default=nobody", sudoers("Defaults runas_default=nobody"), by="root", mailed="sudo: a password is required",
         mend="Defaults:_certdrop runas_default=root", mended=sudoers("Defaults runas_default=nobody", "Defaults:_certdrop runas_default=root")),
    # ---- how cron, systemd or a shell start it
    Case("umask 077", lambda: run_with(first=lambda: os.umask(0o077))),
    Case("umask 027", lambda: run_with(first=lambda: os.umask(0o027))),
    Case("256 open files", limited(NOFILE=256)),
    Case("512 MB of address space", limited(AS=512 << 20), by="", said="RLIMIT_AS=536870912 is too low for a run, and cannot be raised here",
         mend="LimitAS=infinity"),
    Case("files of 1 MB", limited(FSIZE=1 << 20), by="", said="RLIMIT_FSIZE=1048576 is too low for a run, and cannot be raised here",
         mend="LimitFSIZE=infinity"),
    Case("a stack of 512 kB", limited(STACK=512 << 10), by="", said="RLIMIT_STACK=524288 is too low for a run, and cannot be raised here",
         mend="LimitSTACK=infinity"),
    Case("descriptors 0, 1 and 2 are closed", lambda: run_with(first=lambda: os.closerange(0, 3))),
    Case("standard input is a terminal that is gone", dead_terminal),
    Case("LANG=tr_TR.UTF-8", environment(LANG="tr_TR.UTF-8", LC_ALL="tr_TR.UTF-8")),
    Case("LANG=de_DE.ISO-8859-1", environment(LANG="de_DE.ISO-8859-1")),
    Case("LANG and LC_ALL unset", lambda: run_with(gone=("LANG", "LC_ALL"))),
    Case("TZ=America/St_Johns", environment(TZ="America/St_Johns")),
    Case("TMPDIR=/nonexistent", environment(TMPDIR="/nonexistent", TMP="/nonexistent")),
    Case("HOME=/nonexistent", environment(HOME="/nonexistent")),
    Case("PATH=/bin", environment(PATH="/bin")),
    Case("an environment of 100 kB", environment(**{f"V{number}": "x" * 1000 for number in range(100)})),
    Case("a proxy in the environment", environment(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")),
    Case("OPENSSL_CONF and SSL_CERT_FILE lead nowhere", environment(OPENSSL_CONF="/nonexistent", SSL_CERT_FILE="/nonexistent", SSL_CERT_DIR="/nonexistent")),
    Case("pip's packages and a sitecustomize that fail", their_python),
    Case("Docker's capabilities", lambda: run_with(wrap=["setpriv", "--bounding-set", "-all," + ",".join("+" + name for name in DOCKER.split(","))])),
    Case("root lacks CAP_DAC_OVERRIDE", lambda: run_with(wrap=["setpriv", "--bounding-set", "-dac_override"]), by="nobody",
         doctor="root lacks CAP_DAC_OVERRIDE here", mend="--cap-add"),
    Case("root lacks CAP_NET_BIND_SERVICE", lambda: run_with(wrap=["setpriv", "--bounding-set", "-net_bind_service"]), by="nobody",
         doctor="root lacks CAP_NET_BIND_SERVICE here", mend="--cap-add"),
    Case("root lacks CAP_KILL", lambda: run_with(wrap=["setpriv", "--bounding-set", "-kill"]), by="nobody",
         said="root lacks CAP_KILL here; give it back in the unit or container that took it away", doctor="root lacks CAP_KILL here", mend="--cap-add"),
    Case("root lacks CAP_SETUID", lambda: run_with(wrap=["setpriv", "--bounding-set", "-setuid"]), by="nobody", mailed="setresuid failed",
         said="root lacks CAP_SETUID here; give it back in the unit or container that took it away", doctor="root lacks CAP_SETUID here", mend="--cap-add"),
    Case("root lacks CAP_AUDIT_WRITE", lambda: run_with(wrap=["setpriv", "--bounding-set", "-audit_write"]),
         mailed="sudo: unable to send audit message", doctor="root lacks CAP_AUDIT_WRITE here", mend="--cap-add"),
    Case("Docker's seccomp filter", lambda: run_with(first=like_docker)),
    Case("a container's filter refuses Landlock", lambda: run_with(first=without_landlock), doctor="a filter of system calls refuses Landlock",
         mend="allow landlock_create_ruleset, landlock_add_rule and landlock_restrict_self"),
    # ---- users
    Case("/etc/nologin is there", lambda: written("/etc/nologin", "closed for maintenance\n")),
    Case("cron.allow and at.allow have root alone", lambda: both(lambda: written("/etc/cron.allow", "root\n"), lambda: written("/etc/at.allow", "root\n"))),
    Case("_certdrop is in more groups", lambda: changed(("usermod", "-aG", "adm,www-data", "_certdrop"), ("usermod", "-G", "", "_certdrop"))),
    Case("_certdrop's password and shell are locked", lambda: changed(
        ("usermod", "-L", "-s", "/bin/false", "_certdrop"), ("usermod", "-s", "/usr/sbin/nologin", "_certdrop"))),
    Case("_certdrop's account is expired", lambda: changed(("chage", "-E", "0", "_certdrop"), ("chage", "-E", "-1", "_certdrop")), by="root",
         mailed="sudo: account validation failure, is your account locked?", mend="chage -E -1 _certdrop",
         mended=lambda: changed(("chage", "-E", "-1", "_certdrop"), ("chage", "-E", "-1", "_certdrop"))),
    Case("PAM's time.conf closes sudo to all but root", lambda: pam_time("sudo;*;!root;!Al0000-2400"), by="root",
         mailed="sudo: PAM account management error: Permission denied", doctor="/etc/security/time.conf, line 1: add &!_certdrop",
         mend="&!_certdrop&!_certdrop-watch",
         mended=lambda: pam_time("sudo;*;!root&!_certdrop&!_certdrop-watch;!Al0000-2400")),
    Case("/etc/nologin is there, and sudo asks pam_nologin", lambda: both(lambda: written("/etc/nologin", "closed\n"), asks("pam_nologin.so")), by="root",
         mailed="sudo: ", doctor="rm /etc/nologin", mend="rm /etc/nologin", mended=asks("pam_nologin.so")),
    Case("a later rule of sudoers asks for a password", sudoers("ALL ALL=(ALL:ALL) PASSWD: ALL"), by="root", mailed="sudo: a password is required",
         doctor="a later rule takes that of /etc/sudoers.d/certdrop back; have it come last", mend="cp -p /etc/sudoers.d/certdrop", mended=lambda: both(
             sudoers("ALL ALL=(ALL:ALL) PASSWD: ALL"), lambda: written(SUDOERS + "-certdrop", read("/etc/sudoers.d/certdrop"), 0o440))),
    Case("_certdrop's number is 4294967200", lambda: renumbered("_certdrop", 4294967200)),
    Case("_certdrop-judge's number is 65000", lambda: renumbered("_certdrop-judge", 65000)),
    Case("PAM's access.conf lets sudo in for root alone", lambda: pam("+:root:ALL"), by="root", mailed="sudo: PAM account management error: Permission denied",
         mend="+:_certdrop:cron LOCAL", mended=lambda: pam("+:_certdrop:cron LOCAL", "+:root:ALL")),
    # ---- network and libraries
    Case("IPv6 is off", lambda: kernel("net/ipv6/conf/all/disable_ipv6", "1")),
    Case("/etc/resolv.conf is missing", lambda: written("/etc/resolv.conf", None)),
    Case("the host's own name leads nowhere", lambda: both(
        lambda: written("/etc/hosts", NO_NAME), lambda: written("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")),
         mailed="sudo: unable to resolve host stage: ", doctor="unable to resolve host stage", mend="127.0.1.1", mended=lambda: both(
             lambda: written("/etc/hosts", NO_NAME + "127.0.1.1 stage\n"),
             lambda: written("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"))),
    Case("localhost is ::1 alone", lambda: written("/etc/hosts", V6_ONLY)),
    Case("openssl.cnf wants security level 3", lambda: written("/etc/ssl/openssl.cnf", OPENSSL.format("TLSv1.2", 3))),
    Case("openssl.cnf is 0600", lambda: moded(0o600, "/etc/ssl/openssl.cnf")),
    Case("ld.so.preload names a library that is gone", lambda: written("/etc/ld.so.preload", "/usr/lib/gone.so\n"),
         mailed="ERROR: ld.so: object '/usr/lib/gone.so' from /etc/ld.so.preload cannot be preloaded", mend="sed -i /gone.so/d /etc/ld.so.preload",
         mended=lambda: written("/etc/ld.so.preload", "")),
    Case("there is no syslog", lambda: written("/dev/log", None)),
    Case("logrotate has su in logrotate.conf", rotated),
    # ---- nginx
    Case("nginx's workers are nobody", lambda: nginx_reloaded(
        lambda: written("/etc/nginx/nginx.conf", lambda text: text.replace("user www-data;", "user nobody nogroup;")))),
    Case("/etc/nginx is 0700", lambda: moded(0o700, "/etc/nginx")),
]

"""certdrop-check starts what cron and sudo start, as the very users: what forbids it is quoted, and what it advises helps."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from conftest import Host

SUDOERS = pathlib.Path("/etc/sudoers.d/zz-local")
MINE = pathlib.Path("/etc/sudoers.d/zz-zz-mend")


@pytest.fixture(scope="module")
def well(session_host: Host) -> Iterator[str]:
    """A host where all is well, with a site, and cron's daemon."""
    name = session_host.name()
    session_host.add(name)
    session_host.world.cron.start()
    yield name
    session_host.world.cron.stop()


def check(host: Host, *before: str) -> dict[str, tuple[str, str]]:
    """What certdrop-check says: level and words, by what it is about."""
    done = host.run(*before, "certdrop-check", "--offline")
    found = {}
    for line in done.text.splitlines():
        if match := re.match(r"(ok|warning|failed) +([^:]+): (.*)", line):
            found.setdefault(match[2], (match[1], match[3]))
    return found


@contextlib.contextmanager
def file(path: str | pathlib.Path, change: Callable[[str], str], mode: int | None = None) -> Iterator[None]:
    """A file with other content, and as it was afterwards."""
    path = pathlib.Path(path)
    before = path.read_text() if path.exists() else None
    kept = path.stat().st_mode & 0o7777 if before is not None else 0o644
    path.write_text(change(before or ""))
    path.chmod(kept if mode is None else mode)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_text(before)


def rules(*lines: str) -> contextlib.AbstractContextManager[None]:
    return file(SUDOERS, lambda _: "\n".join(lines) + "\n", 0o440)


@contextlib.contextmanager
def modes(group: str, mode: int) -> Iterator[None]:
    shutil.chown("/usr/bin/sudo", "root", group)
    os.chmod("/usr/bin/sudo", mode)
    try:
        yield
    finally:
        shutil.chown("/usr/bin/sudo", "root", "root")
        os.chmod("/usr/bin/sudo", 0o4755)


@contextlib.contextmanager
def nosuid() -> Iterator[None]:
    subprocess.run("mount --bind /usr/bin /usr/bin && mount -o remount,bind,nosuid /usr/bin", shell=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", "/usr/bin"], check=True)


@contextlib.contextmanager
def expired(user: str) -> Iterator[None]:
    subprocess.run(["chage", "-E", "0", user], check=True)
    try:
        yield
    finally:
        subprocess.run(["chage", "-E", "-1", user], check=True)


def without_includes() -> contextlib.AbstractContextManager[None]:
    return file("/etc/sudoers", lambda text: re.sub(r"(?m)^[@#]includedir.*\n", "", text))


@contextlib.contextmanager
def only_root(service: str) -> Iterator[None]:
    """PAM admits root alone, for this service or all."""
    with file("/etc/security/access.conf", lambda _: "+:root:ALL\n-:ALL:ALL\n"), \
            file(f"/etc/pam.d/{service}", lambda text: text + "\naccount required pam_access.so\n"):
        yield


CASES: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[None]], str, str]] = {
    "sudo is 4750 root:sudo": (lambda: modes("sudo", 0o4750), "Permission denied", "chown root:root /usr/bin/sudo; chmod 4755 /usr/bin/sudo"),
    "sudo has lost its bit": (lambda: modes("root", 0o755), "must be", "chown root:root /usr/bin/sudo; chmod 4755 /usr/bin/sudo"),
    "sudo lies on nosuid": (nosuid, "nosuid", "mount -o remount,suid /usr/bin"),
    "requiretty": (lambda: rules("Defaults requiretty"), "must have a tty", "Defaults:_certdrop !requiretty"),
    "noexec": (lambda: rules("Defaults noexec"), "noexec", "Defaults:_certdrop !noexec"),
    "intercept": (lambda: rules("Defaults intercept"), "intercept", "Defaults:_certdrop !intercept"),
    "an expired account": (lambda: expired("_certdrop"), "account", "chage -E -1 _certdrop"),
    "sudo's PAM admits root alone": (lambda: only_root("sudo"), "PAM account management error", "+:_certdrop _certdrop-watch:ALL"),
    "sudoers includes nothing": (without_includes, "password is required", "@includedir /etc/sudoers.d"),
}


def mend(advice: str) -> contextlib.AbstractContextManager[None]:
    """Do what is advised."""
    if "Defaults:" in advice:
        line = advice[advice.index("Defaults:"):]
        return file(MINE, lambda _: line + "\n", 0o440)
    if "access.conf" in advice:
        return file("/etc/security/access.conf", lambda text: advice[advice.index("+:"):] + "\n" + text)
    if "@includedir" in advice:
        return file("/etc/sudoers", lambda text: text + "\n@includedir /etc/sudoers.d\n")
    subprocess.run(advice, shell=True, check=True)
    return contextlib.nullcontext()


@pytest.mark.parametrize("case", CASES)
def test_sudo_as_the_issuer_meets_it(host: Host, well: str, case: str) -> None:
    """It fails; the words are sudo's own; and what mends it does."""
    made, words, advice = CASES[case]
    assert check(host)["sudo"][0] == "ok"
    with made():
        level, said = check(host)["sudo"]
        assert level == "failed" and words in said and advice in said, said
        with mend(said.rpartition("; ")[2] if "chown" not in said else said[said.index("chown"):]):
            assert check(host)["sudo"][0] == "ok", case
    assert check(host)["sudo"][0] == "ok"


def test_no_new_privileges(host: Host, well: str) -> None:
    """Said as what it is."""
    level, said = check(host, "setpriv", "--no-new-privs")["sudo"]
    assert level == "failed" and "no new privileges" in said and "NoNewPrivileges" in said


def test_nobody_is_served_less_by_being_asked(host: Host, well: str) -> None:
    """The run that sudo starts for the doctor ends at once: it takes nothing, and changes nothing."""
    before = os.stat("/var/lib/certdrop/keeper/last-run").st_mtime_ns
    assert check(host)["sudo"][0] == "ok"
    assert os.stat("/var/lib/certdrop/keeper/last-run").st_mtime_ns == before


@pytest.mark.parametrize("made, words, advice", [
    (lambda: only_root("cron"), "Permission denied", "+:_certdrop _certdrop-watch:ALL"),
    (lambda: expired("_certdrop"), "Authentication failure", "chage -E -1 _certdrop"),
    (lambda: file("/etc/security/limits.conf", lambda text: text + "_certdrop - nproc 0\n"), "a shell: ", "raise nproc for _certdrop in"),
])
def test_cron_as_its_jobs_meet_it(host: Host, well: str, made: Callable[[], contextlib.AbstractContextManager[None]], words: str, advice: str) -> None:
    """A daemon that runs, and whose jobs PAM refuses."""
    assert check(host)["cron jobs"][0] == "ok"
    with made():
        level, said = check(host)["cron jobs"]
        assert level == "failed" and words in said and advice in said, said
        if "nproc" not in advice:
            with mend(said.rpartition("; ")[2]):
                assert check(host)["cron jobs"][0] == "ok"
    assert check(host)["cron jobs"][0] == "ok"


def test_what_root_can_see_is_seen_by_root(host: Host, well: str) -> None:
    """cron.d closed to others (CIS), and processes hidden: no false failure of root's, and no failure of who cannot see."""
    os.chmod("/etc/cron.d", 0o700)
    try:
        found = check(host)
        assert found["cron table"][0] == found["cron"][0] == "ok"
        done = host.run("certdrop-check", "--offline", user="_certdrop-watch")
        assert "/etc/cron.d/certdrop is not there" not in done.text and "/etc/cron.d/certdrop cannot be seen from here" in done.text
    finally:
        os.chmod("/etc/cron.d", 0o755)
    subprocess.run(["mount", "-o", "remount,hidepid=2", "/proc"], check=True)
    try:
        assert check(host)["cron"][0] == "ok"
    finally:
        subprocess.run(["mount", "-o", "remount,hidepid=0", "/proc"], check=True)


def test_a_cron_that_an_upgrade_has_replaced(host: Host, well: str) -> None:
    """Its program is deleted: each job may be refused, until it is started again."""
    shutil.copy2("/usr/sbin/cron", "/usr/sbin/cron.new")
    os.rename("/usr/sbin/cron.new", "/usr/sbin/cron")
    level, said = check(host)["cron"]
    assert level == "failed" and "service cron restart" in said
    host.world.cron.stop()
    host.world.cron.start()
    assert check(host)["cron"][0] == "ok"

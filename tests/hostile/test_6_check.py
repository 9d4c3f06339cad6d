"""certdrop-check sees what an attacker, or a hurried administrator, left open: each way in turn, and says how to mend it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import Any, Callable, Iterator

import pytest
from conftest import STATE, VICTIM, Ground, stage


def check(ground: Ground, user: str = "") -> dict[str, list[dict[str, Any]]]:
    """The lines by level."""
    found: dict[str, list[dict[str, Any]]] = {"ok": [], "warning": [], "failed": []}
    done = ground.run("certdrop-check", "--offline", "--json", user=user)
    for line in json.loads(done.text):
        found[line["level"]].append(line)
    assert done.code == (os.EX_CONFIG if found["failed"] else 0)
    return found


def test_all_is_well_after_an_installation(ground: Ground) -> None:
    """Nothing fails, as root and as anybody; the text form says the same."""
    ground.install(code=0)
    assert check(ground)["failed"] == [] == check(ground, "_certdrop-watch")["failed"]
    text = ground.run("certdrop-check", "--offline", code=0).text
    assert "_certdrop can start certdrop-install by it: tried" in text
    assert "_certdrop may run certdrop-install without arguments at most, and nothing else" in text and text.splitlines()[-1].endswith(" 0 failed")
    ground.run("certdrop-check", "--nonsense", code=os.EX_USAGE)


def moded(path: str, mode: int) -> Callable[[], Callable[[], object]]:
    def deed() -> Callable[[], object]:
        kept = os.stat(path).st_mode & 0o7777
        os.chmod(path, mode)
        return lambda: os.chmod(path, kept)
    return deed


def owned(path: str, uid: int) -> Callable[[], Callable[[], object]]:
    def deed() -> Callable[[], object]:
        kept = os.stat(path)
        os.chown(path, uid, -1)
        return lambda: os.chown(path, kept.st_uid, kept.st_gid)
    return deed


def written(path: str, text: str, mode: int = 0o440) -> Callable[[], Callable[[], object]]:
    def deed() -> Callable[[], object]:
        stage.write(path, text, mode)
        return lambda: os.unlink(path)
    return deed


def ran(there: list[str], back: list[str]) -> Callable[[], Callable[[], object]]:
    def deed() -> Callable[[], object]:
        subprocess.run(there, check=True, capture_output=True)
        return lambda: subprocess.run(back, check=True, capture_output=True)
    return deed


OPEN: dict[str, tuple[str, Callable[[], Callable[[], object]]]] = {
    "the spool can be written by all": ("/var/spool/certdrop: has mode 0777", moded("/var/spool/certdrop", 0o777)),
    "requests can be written by the issuer": ("/var/spool/certdrop/requests: has mode 0770", moded("/var/spool/certdrop/requests", 0o770)),
    "replies are root's": ("/var/spool/certdrop/replies: belongs to root", owned("/var/spool/certdrop/replies", 0)),
    "what stands above can be written": ("/var/spool can be written by others", moded("/var/spool", 0o777)),
    "a key can be read": ("is a private key that others than root may use", moded(f"{STATE}/live/{VICTIM}/privkey.pem", 0o644)),
    "a key is somebody else's": ("privkey.pem belongs to uid 33", owned(f"{STATE}/live/{VICTIM}/privkey.pem", 33)),
    "root's program can be written": ("/usr/sbin/certdrop-install can be written", moded("/usr/sbin/certdrop-install", 0o777)),
    "a module of root's can be written": ("spool.py can be written", moded("/usr/share/certdrop/certdrop/spool.py", 0o666)),
    "a shell": ("has a shell, /bin/bash", ran(["usermod", "-s", "/bin/bash", "_certdrop"], ["usermod", "-s", "/usr/sbin/nologin", "_certdrop"])),
    "a home": ("has a home, /var/tmp", ran(["usermod", "-d", "/var/tmp", "_certdrop"], ["usermod", "-d", "/nonexistent", "_certdrop"])),
    "a password": ("its password is not locked", ran(["usermod", "-p", "x", "_certdrop-judge"], ["usermod", "-p", "!", "_certdrop-judge"])),
    "a group": ("is in the group adm too", ran(["gpasswd", "-a", "_certdrop", "adm"], ["gpasswd", "-d", "_certdrop", "adm"])),
    "a guest": ("www-data is in its group", ran(["gpasswd", "-a", "www-data", "_certdrop"], ["gpasswd", "-d", "www-data", "_certdrop"])),
    "sudo of nginx": ("may also run", written("/etc/sudoers.d/more", "_certdrop ALL=(root) NOPASSWD: /usr/sbin/nginx *\n")),
    "sudo with any arguments": ("may also run", written("/etc/sudoers.d/more", "_certdrop ALL=(root) NOPASSWD: /usr/sbin/certdrop-install\n")),
    "sudo for the judge": ("_certdrop-judge may also run", written("/etc/sudoers.d/more", "_certdrop-judge ALL=(ALL) NOPASSWD: ALL\n")),
    "a crontab": ("has a crontab of its own", written("/var/spool/cron/crontabs/_certdrop", "* * * * * id\n", 0o600)),
    "a site that is wrong": ("wrong.toml", written("/etc/certdrop/sites.d/wrong.toml", "domain = 'x'\n", 0o644)),
}


@pytest.fixture(scope="module", autouse=True)
def cron(session_ground: Ground) -> Iterator[None]:
    """A host without cron is not well; its table is without jobs, which could run into a test."""
    kept = stage.read("/etc/cron.d/certdrop")
    stage.write("/etc/cron.d/certdrop", "# no jobs\n")
    session_ground.world.cron.start()
    yield
    session_ground.world.cron.stop()
    stage.write("/etc/cron.d/certdrop", kept)


@pytest.fixture(autouse=True)
def put_right() -> Iterator[None]:
    os.makedirs("/var/spool/cron/crontabs", exist_ok=True)
    yield
    with contextlib.suppress(FileNotFoundError):
        os.unlink("/etc/sudoers.d/more")


@pytest.mark.parametrize("what", OPEN)
def test_what_is_open_is_seen(ground: Ground, what: str) -> None:
    """A line about it, failed (or a warning, for a crontab), with why and how to mend it; and no longer when it is mended."""
    words, deed = OPEN[what]
    undo = deed()
    try:
        found = check(ground)
        lines = [line for line in found["failed"] + found["warning"] if words in line["why"] or words in f"{line['what']} {line['why']}"]
        assert lines and lines[0]["mend"], found
        assert lines[0]["level"] == ("warning" if what == "a crontab" else "failed")
    finally:
        undo()


def test_without_sudo_rule(ground: Ground) -> None:
    """A rule that is gone is seen: installs would wait for root's hourly run."""
    kept = stage.read("/etc/sudoers.d/certdrop")
    os.unlink("/etc/sudoers.d/certdrop")
    try:
        assert any("cannot have certdrop-install work: " in line["why"] for line in check(ground)["failed"])
    finally:
        stage.write("/etc/sudoers.d/certdrop", kept, 0o440)

"""The table of hardened.py, built: cron's own lines renew a certificate that is due, or what is in the way is said, and its line mends it."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import STATE, Host
from hardened import CASES, Case

import world as stage

LINES = {user: line for user, line in re.findall(r"(?m)^[*\d]\S* \S+ \S+ \S+ \S+ +(\S+) +(.+)$", stage.read("/etc/cron.d/certdrop"))}
CRON = {"SHELL": "/bin/sh", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def site(session_host: Host) -> Iterator[tuple[Host, str]]:
    yield session_host, session_host.add(session_host.name())


def due(host: Host, name: str) -> None:
    """The CA wants it renewed now; the last installation was long ago."""
    now, hour = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(hours=1)
    host.world.pebble.set_renewal_info(stage.read(f"{STATE}/live/{name}/cert.pem"), now - 2 * hour, now - hour)
    pathlib.Path(f"{STATE}/issuer/agenda").unlink(missing_ok=True)
    for path, change in ((f"{STATE}/issuer/{name}.json",
                          {"poll_at": 1, "next_try": 0, "count": 0, "hurries": 0}), (f"{STATE}/keeper/{name}.json", {"installed_at": 0})):
        owner = os.stat(path)
        stage.write(path, json.dumps({**json.loads(stage.read(path)), **change}))
        os.chown(path, owner.st_uid, owner.st_gid)


def cron(user: str, how: dict[str, Any], line: str = "") -> str:
    """What cron would mail of its line for a user, or of another."""
    env = {name: value for name, value in {**CRON, "USER": user, "LOGNAME": user, **how.get("env", {})}.items() if name not in how.get("gone", ())}
    become = [] if user == "root" else ["setpriv", "--reuid", user, "--regid", user, "--init-groups"]
    argv = [*how.get("wrap", ()), *become, "/bin/sh", "-c", line or LINES[user]]
    done = subprocess.run([f"/usr/bin/{argv[0]}" if argv[0] == "setpriv" else argv[0], *argv[1:]], env=env, stdin=how.get("stdin", subprocess.DEVNULL),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120, check=False, preexec_fn=how.get("first"))
    return done.stdout


def renewed(host: Host, name: str, how: dict[str, Any]) -> tuple[str, str, str]:
    """Who installed the next certificate, what cron mails of it, and what status says."""
    before = host.live(name)
    said = cron("_certdrop", how)
    by = "cron" if host.live(name) > before else ""
    said += cron("root", how)
    by = by or ("root" if host.live(name) > before else "nobody")
    return by, said, host.run("certdrop-status").text


def may_raise_limits() -> bool:
    """CAP_SYS_RESOURCE, which many a container lacks."""
    (found,) = re.findall(r"CapEff:\t([0-9a-f]+)", stage.read("/proc/self/status"))
    return bool(int(found, 16) >> 24 & 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_host(site: tuple[Host, str], case: Case) -> None:
    """What the table says: who installs it, what cron mails, what certdrop-status says; and that nothing is wrong when the line is there."""
    host, name = site
    works = case.by == "cron" or not case.by and may_raise_limits()
    due(host, name)
    with case.made() as how:
        by, mailed, told = renewed(host, name, how or {})
        assert by == ("cron" if works else case.by or "nobody"), (mailed, told)
        assert case.mailed in mailed if case.mailed else mailed == "", mailed
        checked = cron("root", how or {}, "certdrop-check --offline") if case.doctor else ""
        assert case.doctor in checked and (not case.doctor or case.mend in checked), checked
        assert case.said in told if case.said and (case.by or not works) else "certdrop-status: " not in told, told
    if case.mended:
        due(host, name)
        with case.mended() as how:
            by, mailed, told = renewed(host, name, how or {})
        assert (by, mailed) == ("cron", "") and "certdrop-status: " not in told, (by, mailed, told)
    if by == "nobody":
        host.run("certdrop", "renew", "--force", name, code=0)
    if case.said:                              # it is over when the next run begins
        host.run("/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install", user="_certdrop", code=0)
        assert "certdrop-status: " not in host.run("certdrop-status").text
    assert host.served(name) == host.on_disk(name)

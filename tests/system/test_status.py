"""certdrop-status as installed: for anyone, and safe for root whatever the issuer wrote."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import STATE, Host

import world as stage

ISSUER = "_certdrop"


@pytest.fixture
def site(host: Host) -> Iterator[str]:
    """A site with a placeholder, whose ledger is the test's."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    yield name
    host.run("rm", "-rf", f"{STATE}/issuer/{name}.json")


def as_issuer(program: str, *argv: str) -> None:
    """Run Python as the issuer's user."""
    subprocess.run(["/usr/bin/python3", "-c", program, *argv], user=ISSUER, group=ISSUER, extra_groups=[], check=True)


def test_anyone_may_ask(host: Host, site: str) -> None:
    """An unprivileged user sees the same as root."""
    mine = json.loads(host.run("certdrop-status", "--json").text)
    theirs = json.loads(host.run("certdrop-status", "--json", user="www-data").text)
    assert [one["name"] for one in mine] == [one["name"] for one in theirs]
    found = next(one for one in theirs if one["name"] == site)
    assert found["state"] == "placeholder" and found["placeholder"] and found["next_key_spki_sha256"]


def test_served_is_seen_by_a_handshake_with_nginx(host: Host, site: str) -> None:
    """nginx shows the live pair, here the placeholder, and status knows it from nginx."""
    host.serve(site)
    assert host.status(site)["served"] is True
    assert host.status(site)["fingerprint_sha256"] == host.served(site)
    host.world.nginx.remove_site(site)
    host.world.nginx.reload()


def test_root_becomes_the_watcher_before_it_reads_or_connects(host: Host, site: str) -> None:
    """As root, what the issuer wrote is opened, and nginx is asked, by a process that is _certdrop-watch, in a session of its own."""
    as_issuer(f"open({STATE + '/issuer/' + site + '.json'!r}, 'w').write('{{}}')")
    text = host.run("strace", "-f", "-y", "-e", "trace=openat,setresuid,setsid,connect,execve", "certdrop-status").text
    uid = pwd.getpwnam("_certdrop-watch").pw_uid
    changed = text.index(f"setresuid({uid}, {uid}, ")
    assert "setsid()" in text[:changed] and "execve(" in text[changed:]
    touched = [match.start() for match in re.finditer(rf"{site}\.json|/sites/{site}|sin_port=htons\(443\)", text)]
    assert touched and min(touched) > changed


@pytest.mark.parametrize("program", ["certdrop-status", "certdrop-check", "certdrop-watch"])
def test_root_keeps_its_terminal(host: Host, program: str, tmp_path: Path) -> None:
    """At a terminal the watcher has pipes: root alone reads and writes there, and shows lines and colours."""
    calls = str(tmp_path / "calls")
    done = host.run("script", "-qec", f"strace -f -yy -o {calls} -e trace=%desc {program}", "/dev/null", env={**os.environ, "TERM": "xterm"})
    assert done.text.strip() and "Traceback" not in done.text
    assert program != "certdrop-status" or "\33[" in done.text
    with open(calls, encoding="utf-8", errors="replace") as stream:
        lines = stream.readlines()
    root = lines[0].split()[0]
    shown = {line.split()[0] for line in lines if re.search(r" (write|read)\(\d+<[^>]*/dev/(pts/|tty)", line)}
    assert shown == {root}


HOSTILE: dict[str, Callable[[str], str]] = {
    "fifo": lambda path: f"os.mkfifo({path!r})",
    "link-to-shadow": lambda path: f"os.symlink('/etc/shadow', {path!r})",
    "link-to-zero": lambda path: f"os.symlink('/dev/zero', {path!r})",
    "link-to-terminal": lambda path: f"os.symlink('/dev/tty', {path!r})",
    "socket": lambda path: f"import socket; socket.socket(socket.AF_UNIX).bind({path!r})",
    "sparse": lambda path: f"open({path!r}, 'w').truncate(10 << 30)",
    "deep": lambda path: f"open({path!r}, 'w').write('[' * 65000)",
    "huge-number": lambda path: f"open({path!r}, 'w').write('{{\"count\": ' + '9' * 60000 + '}}')",
    "escapes": lambda path: "json.dump({'count': 7, 'class': '\\x1b]0;owned\\x07', 'last_error': '\\x1b[2J\\r\\nroot#', 'since': 1e300}, "
                            f"open({path!r}, 'w'))",
    "directory": lambda path: f"os.mkdir({path!r})",
}


@pytest.mark.parametrize("kind", list(HOSTILE))
@pytest.mark.parametrize("program", ["certdrop-status", "certdrop-watch"])
def test_hostile_ledger_does_no_harm(host: Host, site: str, kind: str, program: str) -> None:
    """Root's status and watcher end soon, print nothing of another file and no control character, and still show the site."""
    as_issuer("import os, json; " + HOSTILE[kind](f"{STATE}/issuer/{site}.json"))
    begin = time.monotonic()
    done = host.run(program, timeout=30)
    assert time.monotonic() - begin < 20
    assert done.code in ((1, 2) if program == "certdrop-status" else (0,)), done
    assert "root:" not in done.text and done.text.replace("\n", "").isprintable() and "Traceback" not in done.text
    assert host.status(site)["state"] in ("placeholder", "failing")


def test_prometheus_file_for_root(host: Host, site: str) -> None:
    """Root's file appears whole, readable by others, in a directory that only root can write."""
    os.makedirs("/var/lib/prometheus/node-exporter", exist_ok=True)
    host.run("certdrop-status", "--prometheus", "/var/lib/prometheus/node-exporter/certdrop.prom", code=0)
    assert os.listdir("/var/lib/prometheus/node-exporter") == ["certdrop.prom"]
    found = os.stat("/var/lib/prometheus/node-exporter/certdrop.prom")
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o644)
    with open("/var/lib/prometheus/node-exporter/certdrop.prom") as stream:
        assert f'certdrop_state{{site="{site}",state="placeholder"}} 1' in stream.read()


def test_a_page_for_the_web(host: Host, site: str) -> None:
    """Root's page is written by the watcher, appears whole, and nginx can read it; its orders are those of the issuer."""
    os.makedirs("/var/www/certdrop", exist_ok=True)
    host.serve(site)
    host.run("certdrop", "renew", site, code=0)
    host.run("certdrop-status", "--html", "/var/www/certdrop/index.html", code=0)
    found = os.stat("/var/www/certdrop/index.html")
    assert os.listdir("/var/www/certdrop") == ["index.html"] and (found.st_uid, found.st_mode & 0o777) == (0, 0o644)
    text = Path("/var/www/certdrop/index.html").read_text()
    assert text.endswith("</body></html>\n") and site in text and "Orders of the last 90 days" in text and 'class="life ok"' in text
    assert host.run("certdrop-status", "--html", site, user="www-data").text.count('class="site"') == 1


def test_closed_pipe_is_no_trouble(host: Host, site: str) -> None:
    """`certdrop-status | head -1` says nothing about a broken pipe."""
    done = host.run("bash", "-c", "certdrop-status --json | head -c 1")
    assert done.text == "["


# What the whole of certdrop leaves behind, not a test's own files.

def test_real_failure_and_recovery(host: Host) -> None:
    """A CA that cannot be reached is `failing` with its error and next try; when it is back, the site is `serving`."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    host.world.pebble.stop()
    host.run("certdrop", "renew", name)
    found = host.status(name)
    assert found["state"] == "failing" and found["last_error"] and found["since"] and found["next_try"], found
    row = next(line for line in host.run("certdrop-status").text.splitlines() if line.startswith("  ! "))
    assert len(row) <= 80
    host.world.pebble.start()
    host.configure()
    host.run("certdrop-issue", name, "--force", code=0)
    host.run("certdrop-install", code=0)
    found = host.status(name)
    assert (found["state"], found["served"], found["last_error"]) == ("serving", True, None)
    assert found["fingerprint_sha256"] == host.served(name) and found["renew_at"] and found["renew_reason"]


def test_issued_but_not_served(host: Host) -> None:
    """A certificate that nginx does not show is `issued-not-served`, critical, with what to look at."""
    name = host.add(host.name())
    assert host.status(name)["state"] == "serving"
    other = host.add(host.name())
    path = f"/etc/nginx/sites-available/{name}"
    text = stage.read(path)
    stage.write(path, text.replace(f"live/{name}/", f"live/{other}/"))
    host.world.nginx.reload()
    found = host.status(name)
    assert (found["state"], found["severity"], found["served"]) == ("issued-not-served", 2, False)
    assert "another certificate" in found["last_error"]
    stage.write(path, text)
    host.world.nginx.reload()
    assert host.status(name)["state"] == "serving"

"""cron for real: the installed table, run by Debian's cron daemon in cron's own environment, renews a certificate and says nothing."""

from __future__ import annotations

import json
import re
import time

import world as stage
from conftest import STATE, Host

TABLE = "/etc/cron.d/certdrop"


def age(name: str) -> None:
    """Let root's notes say that the site's last installation was long ago (the issuer may ask for one an hour)."""
    path = f"{STATE}/keeper/{name}.json"
    notes = json.loads(stage.read(path))
    notes["installed_at"] = 0
    stage.write(path, json.dumps(notes))


def test_cron_renews_and_is_silent(host: Host) -> None:
    """A certificate past its renewal point is renewed by cron: issued as _certdrop, installed through sudo, served; and nobody gets mail."""
    host.world.pebble.restart(validity=40)
    host.configure()
    text = stage.read(TABLE)
    name = host.add(host.name())
    try:
        age(name)
        before = host.served(name)
        host.world.mail.clear()
        # Without the watcher's line: in its minute it would rightly say of a certificate of 40 seconds that it nears its end.
        stage.write(TABLE, re.sub(r"(?m)^48 .*\n", "", re.sub(r"(?m)^\*/10 ", "* ", text)))
        time.sleep(20)                         # half of this certificate's life, which is what makes it due
        host.world.cron.start()
        stage.wait_for(lambda: host.live(name) > 2 and host.served(name) == host.on_disk(name) != before, 75, "cron to renew")
        assert host.world.mail.messages() == []
        log = [json.loads(line) for line in stage.read("/var/log/certdrop/issuer.log").splitlines()]
        assert any(line["event"] == "issued" and line["site"] == name and line["number"] == 3 for line in log)
    finally:
        host.world.cron.stop()
        stage.write(TABLE, text)
        host.world.pebble.restart(validity=None)
        host.world.nginx.remove_site(name)
        host.world.nginx.reload()
        host.run("certdrop", "remove", name, code=0)


def test_a_tick_without_work_does_not_call_sudo(host: Host) -> None:
    """sudo is called only when a reply or an unfinished installation waits."""
    host.add(host.name())
    for _ in range(2):                         # what other tests left is done, or put off
        host.run("certdrop-issue", "--no-install")
        host.run("certdrop-install")
    done = host.run("strace", "-f", "-e", "trace=execve", "/usr/sbin/certdrop-issue", "--cron", code=0)
    assert "sudo" not in done.text
    assert "execve" in done.text

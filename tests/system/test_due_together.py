"""Sites that come due within a minute, at moments of their own: cron's run orders them together, and one reload of a service has it use them all."""

from __future__ import annotations

import json
import os
import time

from conftest import STATE, Host, stage

RELOADS = "/run/reloads"
SPREAD = (15, 18, 24, 29, 33)      # seconds until each is due
TICK = 600


def due_in(name: str, seconds: float) -> None:
    """Have the CA's window for the live certificate be that moment, and the site's last installation be long ago."""
    path = f"{STATE}/issuer/{name}.json"
    ledger, owner = json.loads(stage.read(path)), os.stat(path)
    at = int(time.time() + seconds)
    ledger.update(window_of=json.loads(stage.read(f"{STATE}/live/{name}/cert.json"))["sha256"], window_start=at, window_end=at + 1,
                  poll_at=int(time.time()) + 6 * 3600)
    stage.write(path, json.dumps(ledger))
    os.chown(path, owner.st_uid, owner.st_gid)
    notes = json.loads(stage.read(f"{STATE}/keeper/{name}.json"))
    stage.write(f"{STATE}/keeper/{name}.json", json.dumps({**notes, "installed_at": 0}))


def test_five_that_are_due_in_one_minute_cost_two_reloads_at_most(host: Host) -> None:
    """A service that counts its reloads sees one, or two, while all five are served."""
    names = [host.add(host.name()) for _ in SPREAD]
    stage.write("/usr/local/sbin/counts", f"#!/bin/sh\necho >>{RELOADS}\n", 0o755)
    stage.write("/etc/certdrop/services.d/counts.toml", 'test = ["/bin/true"]\nreload = ["/usr/local/sbin/counts"]\nport = 0\n')
    try:
        for name in names:
            stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\nservices = ["nginx", "counts"]\n')
        host.run("certdrop-install", code=0)
        if time.time() % TICK > TICK - 60:                 # cron's run ends before the next one begins
            stage.wait_for(lambda: time.time() % TICK < 60, 90, "the next ten minutes")
        before = {name: host.live(name) for name in names}
        stage.write(RELOADS, "")
        for name, seconds in zip(names, SPREAD):
            due_in(name, seconds)
        host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
        for name in names:
            assert host.live(name) == host.proven(name) == before[name] + 1
            assert host.served(name) == host.on_disk(name)
        assert 1 <= len(stage.read(RELOADS).splitlines()) <= 2
    finally:
        for name in names:
            stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\n')
        os.unlink("/etc/certdrop/services.d/counts.toml")

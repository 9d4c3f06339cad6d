"""The run that the issuer asks root for, through sudo: it does what a reply is there for, and goes on with what a killed run left; the rest is root's own."""

from __future__ import annotations

import os

from conftest import SPOOL, STATE, Host, stage

INSTALL = "/usr/sbin/certdrop-install"
ASKED = ("/usr/bin/sudo", "-n", INSTALL)
KILLS = "#!/bin/sh\n[ -e /run/killed ] || { >/run/killed; kill -9 $PPID; }\n"
SITE = 'domains = ["{0}", "www.{0}"]\n'


def wants_now(host: Host, name: str, more: str = "") -> None:
    """Another request is posted, wanted at once, and a reply to it lies in the spool."""
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", SITE.format(name) + more)
    host.run(INSTALL, code=0)
    host.run("certdrop-issue", "--no-install", name, user="_certdrop", code=0)


def test_a_reply_is_no_reason_to_look_at_other_sites(host: Host) -> None:
    """Another one's configuration was changed: its request waits for root's own run, though a reply for this one is installed."""
    one, other = host.add(host.name()), host.add(host.name())
    wants_now(host, one)
    posted, before = host.posted(other), host.live(one)
    stage.write(f"/etc/certdrop/sites.d/{other}.toml", SITE.format(other))
    host.run(*ASKED, user="_certdrop", code=0)
    assert host.live(one) == host.proven(one) > before
    assert host.posted(other) == posted
    host.run(INSTALL, code=0)
    assert host.posted(other) != posted


def test_what_a_killed_run_left_is_done_by_the_next_that_is_asked_for(host: Host) -> None:
    """The run is killed after it accepted the reply, the issuer removes the reply that nobody waits for any more, and calls root again: it is served."""
    name = host.add(host.name())
    stage.write("/usr/local/sbin/kills", KILLS, 0o755)
    stage.write("/etc/certdrop/services.d/kills.toml", 'test = ["/usr/local/sbin/kills"]\nreload = ["/bin/true"]\nport = 0\n')
    stage.write("/run/killed", "")
    wants_now(host, name, 'services = ["nginx", "kills"]\n')
    before, reply = host.live(name), f"{SPOOL}/replies/{name}@{host.next(name):04d}.pem"
    os.unlink("/run/killed")
    assert host.run(*ASKED, user="_certdrop").code
    assert (host.live(name), host.proven(name)) == (before + 2, before) and stage.read(f"{STATE}/keeper/unfinished").split() == [name]
    os.unlink(reply)
    host.run(*ASKED, user="_certdrop", code=0)
    assert host.live(name) == host.proven(name) == before + 2
    assert host.served(name) == host.on_disk(name)
    assert stage.read(f"{STATE}/keeper/unfinished").split() == []
    os.unlink("/etc/certdrop/services.d/kills.toml")
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", SITE.format(name))

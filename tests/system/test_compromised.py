"""A compromised key: it is never used again, another certificate is served, and only then the old ones are revoked; whatever ends a run on the way."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest
import world as stage
from conftest import SPOOL, STATE, Host
from renewal import SITES

BURNT = f"{STATE}/keeper/burnt"
LOGS = "/var/log/certdrop"


class Site:
    """A site, served, whose key lives through renewals: so many certificates for the same key, from generation 2 on, and next carries it too."""

    def __init__(self, host: Host, certificates: int = 1) -> None:
        self.host, self.name = host, host.name()
        host.run("certdrop", "add", self.name, "--no-issue", code=0)
        stage.write(f"{SITES}/{self.name}.toml", f'domains = ["{self.name}"]\nkey_max_age = "180d"\n')
        host.serve(self.name)
        for _ in range(certificates):
            host.run("certdrop", "renew", "--force", self.name, code=0)
        self.begin = os.stat(f"{LOGS}/keeper.log").st_size
        self.last = host.live(self.name)
        assert self.last == certificates + 1 and len({self.spki(number) for number in range(2, self.last + 2)}) == 1
        self.key = self.spki(self.last)
        self.old = {number: stage.read(self.path(number, "cert.pem")) for number in range(2, self.last + 1)}

    def path(self, number: int, entry: str) -> str:
        return f"{STATE}/sites/{self.name}/{number:04d}/{entry}"

    def spki(self, number: int) -> str:
        return str(json.loads(stage.read(self.path(number, "request.json")))["spki_sha256"])

    def at_ca(self, pem: str = "") -> set[str]:
        """What the CA says of this certificate; without one, of those for the old key."""
        found = set()
        for one in [pem] if pem else self.old.values():
            done = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=one, stdout=subprocess.PIPE, text=True, check=True)
            found.add(self.host.world.pebble.status(done.stdout.strip().removeprefix("serial=")))
        return found

    def asked(self) -> list[str]:
        """What root wants revoked."""
        return [entry for entry in self.host.posted(self.name) if entry.endswith(".revoke")]

    def events(self) -> list[tuple[str, Any]]:
        """What the keeper did since the beginning: the event, and what tells which."""
        with open(f"{LOGS}/keeper.log", encoding="ascii") as stream:
            stream.seek(self.begin)
            lines = [json.loads(line) for line in stream]
        return [(line["event"], line.get("kind", line.get("number"))) for line in lines if line.get("site") == self.name]

    def is_well(self) -> bool:
        """Another key is served, and proven."""
        live = self.host.live(self.name)
        return self.spki(live) != self.key and self.host.proven(self.name) == live and self.host.served(self.name) == self.host.on_disk(self.name)


@pytest.fixture
def site(host: Host) -> Site:
    """One whose second generation is live."""
    return Site(host)


def test_served_first_then_revoked(host: Host) -> None:
    """One command: the key is burnt, another certificate for a fresh key is served and proven, then both old ones are revoked; and the log has that order.

    No rollback leads back to it.
    """
    site = Site(host, 2)
    done = host.run("certdrop", "rotate", site.name, "--compromised", code=0)
    assert "never be used again" in done.text and done.text.count("is revoked") == 2, done
    assert site.is_well() and site.at_ca() == {"Revoked"} and site.at_ca(stage.read(f"{STATE}/live/{site.name}/cert.pem")) == {"Valid"}
    happened = [event for event, _ in site.events()]
    assert happened.index("key-burnt") < happened.index("reply-accepted") < happened.index("serving") < site.events().index(("request-posted", "revoke"))
    found = host.status(site.name)
    assert [(one["generation"], one["state"], one["reason"]) for one in found["revocations"]] == [
        (2, "revoked", "keyCompromise"), (3, "revoked", "keyCompromise")]
    assert found["severity"] == 0 and site.spki(found["next_generation"]) == site.spki(found["generation"]), "the fresh key lives on"
    payload = json.loads(stage.read(f"{SPOOL}/requests/{site.asked()[0]}"))["payload"]
    assert payload["reason"] == 1
    live = host.live(site.name)
    assert "compromised" in host.run("certdrop", "rollback", site.name, code=os.EX_DATAERR).text and host.live(site.name) == live


def test_the_ca_is_away(host: Host, site: Site) -> None:
    """Nothing is revoked, the old one serves, and that is shown; the command again burns no fresh key; when the CA is back, cron's runs do it all, in order."""
    host.configure(proxy='"http://127.0.0.1:9"')
    done = host.run("certdrop", "rotate", site.name, "--compromised", code=os.EX_TEMPFAIL)
    assert "is revoked once another certificate is served" in done.text
    assert site.asked() == [] and host.live(site.name) == 2 and "it is compromised" in host.run("certdrop-status", site.name).text
    assert host.status(site.name)["key_burnt"]
    burnt = stage.read(BURNT)
    host.run("certdrop", "rotate", site.name, "--compromised", code=os.EX_TEMPFAIL)
    assert stage.read(BURNT) == burnt and site.key in burnt.split() and site.spki(host.next(site.name)) not in burnt.split()
    host.configure()
    host.run("certdrop-issue", site.name, user="_certdrop", code=0)                # which has root look, as from cron
    assert site.is_well() and site.asked() == [f"{site.name}@0002.revoke"]
    assert site.at_ca() == {"Valid"}
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert site.at_ca() == {"Revoked"}


def test_what_is_not_served_revokes_nothing(host: Host, site: Site) -> None:
    """nginx goes on with the old certificate: the old one stays good until that is mended."""
    path = pathlib.Path(f"/etc/nginx/sites-available/{site.name}")
    text = path.read_text()
    path.write_text(text.replace(f"live/{site.name}/nginx.conf", f"sites/{site.name}/0002/nginx.conf"))
    done = host.run("certdrop", "rotate", site.name, "--compromised", code=os.EX_TEMPFAIL)
    assert "is not shown" in done.text and site.asked() == [] and site.at_ca() == {"Valid"}
    path.write_text(text)
    note = f"{STATE}/keeper/{site.name}.json"
    stage.write(note, json.dumps({**json.loads(stage.read(note)), "install": {}}))
    host.run("certdrop-install", code=0)
    assert site.is_well() and len(site.asked()) == 1
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert site.at_ca() == {"Revoked"}


def test_a_reply_that_waits_is_revoked_too(host: Host, site: Site) -> None:
    """The CA issued another certificate for that key a moment ago, and nobody took it yet."""
    host.run("certdrop-issue", "--force", "--no-install", site.name, code=0)
    waits = stage.read(f"{SPOOL}/replies/{site.name}@0003.pem")
    host.run("certdrop", "rotate", site.name, "--compromised", code=0)
    assert site.asked() == [f"{site.name}@{number:04d}.revoke" for number in (2, 3)]
    assert site.is_well() and site.at_ca() == site.at_ca(waits) == {"Revoked"}


def test_a_revocation_for_a_compromise_burns_the_key(host: Host, site: Site) -> None:
    """`revoke --reason keyCompromise` of a key that is still in use: another is wanted at once, by whatever run comes next."""
    host.run("certdrop", "revoke", site.name, "--yes", code=0)
    host.run("certdrop", "revoke", site.name, "--reason", "keyCompromise", "--yes", code=0)        # which became known later
    assert site.at_ca() == {"Revoked"} and host.status(site.name)["key_burnt"]
    assert any(entry.endswith(".now") for entry in host.posted(site.name))
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert site.is_well() and not host.status(site.name)["key_burnt"]


def test_a_site_that_is_removed_meanwhile(host: Host, site: Site) -> None:
    """What it owes is posted before its keys and certificates go; and the key is not taken over again, under any name."""
    for entry in ("privkey.pem", "fullchain.pem"):
        shutil.copy(site.path(2, entry), f"/root/{entry}")
    host.configure(proxy='"http://127.0.0.1:9"')
    host.run("certdrop", "rotate", site.name, "--compromised", code=os.EX_TEMPFAIL)
    host.world.nginx.remove_site(site.name)
    host.world.nginx.reload()
    host.run("certdrop", "remove", site.name, code=0)
    assert len(site.asked()) == 1
    host.configure()
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert site.at_ca() == {"Revoked"}
    done = host.run("certdrop-import", "--key", "/root/privkey.pem", "--chain", "/root/fullchain.pem", "--name", "again", "--yes", code=os.EX_DATAERR)
    assert "compromised" in done.text and not os.path.exists(f"{STATE}/sites/again")


@pytest.mark.parametrize("words", [["--due", "--compromised"], ["a", "--next", "--compromised"], ["a", "--cancel", "--compromised"]])
def test_what_does_not_go_together(host: Host, words: list[str]) -> None:
    """It is about a key that is in use, now."""
    host.run("certdrop", "rotate", *words, code=os.EX_USAGE)

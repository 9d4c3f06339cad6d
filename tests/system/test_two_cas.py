"""A CA for one site, and another CA when the first is down: two Pebbles that know nothing of each other, each with roots, accounts and orders of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import CONFIG, STATE, Host, stage

DAY, HOUR = 86400, 3600
LIFETIME = 6 * HOUR                # of what both issue: a third of what was left a day ago is more than that
ROOTS = "/etc/certdrop/roots.d"


class Two:
    """The stage with a second CA."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.first = host.world.pebble
        self.second = stage.Pebble("second", "ca2.stage.test", 14100, 15100)
        self.first.restart(validity=LIFETIME)
        self.second.options.validity = LIFETIME
        self.second.start()
        self.roots: dict[str, str] = {}
        self.trust()

    def trust(self) -> None:
        """Each CA's roots under its own name, of every start of it: what it issued before is as good as then."""
        for path in pathlib.Path(f"{STATE}/issuer").glob("account@*"):     # a CA that was started anew forgot its accounts
            path.unlink()
        for pebble in (self.first, self.second):
            self.roots[pebble.host] = self.roots.get(pebble.host, "") + stage.read(pebble.root())
            stage.write(f"{ROOTS}/{pebble.host}.pem", self.roots[pebble.host])
        self.configure()

    def configure(self, **more: str) -> None:
        found = {"directory": f'"{self.first.directory_url}"', "contact": '["hostmaster@example.org"]', "ca_bundle": f'"{self.first.ca_bundle}"', **more}
        stage.write(CONFIG, "".join(f"{key} = {value}\n" for key, value in found.items()))

    def issuer(self, name: str) -> str:
        """The CA of the live certificate, as its root says."""
        for pebble in (self.first, self.second):
            done = self.host.run("openssl", "verify", "-CAfile", f"{ROOTS}/{pebble.host}.pem", "-untrusted", f"{STATE}/live/{name}/chain.pem",
                                 f"{STATE}/live/{name}/cert.pem")
            if not done.code:
                return pebble.name
        return "neither"

    def ledger(self, name: str, **changes: object) -> dict[str, object]:
        """The issuer's notes of a site, after changes."""
        path = f"{STATE}/issuer/{name}.json"
        found: dict[str, object] = {**json.loads(stage.read(path)), **changes}
        stage.write(path, json.dumps(found))
        subprocess.run(["chown", "_certdrop:_certdrop", path], check=True)
        return found

    def as_if_down(self, name: str, hours: float) -> None:
        """As after failures of the first CA since so many hours ago, the last of them just now."""
        now = int(time.time())
        began = int(now - hours * HOUR)
        self.ledger(name, away_of=self.first.directory_url, away_since=began, away_at=now - 2, away_count=9, since=began, failed_at=now - 2,
                    next_try=now - 1, retry_after=0, waits="", **{"count": 9})

    def register(self, pebble: stage.Pebble) -> None:
        self.host.run("certdrop-account", "register", "--yes", "--directory", pebble.directory_url, code=0)

    def close(self) -> None:
        self.second.stop()
        for pebble in (self.first, self.second):
            os.unlink(f"{ROOTS}/{pebble.host}.pem")
        self.first.restart(validity=None)


@pytest.fixture(scope="module")
def shared(session_host: Host) -> Iterator[Two]:
    made = Two(session_host)
    yield made
    made.close()
    session_host.configure()


@pytest.fixture
def two(shared: Two) -> Iterator[Two]:
    """Both CAs at work, and every site that a test made gone after it."""
    before = set(os.listdir("/etc/certdrop/sites.d"))
    yield shared
    for pebble in (shared.first, shared.second):
        if not pebble.running():
            pebble.start()
            shared.trust()
    for entry in set(os.listdir("/etc/certdrop/sites.d")) - before:
        name = entry.removesuffix(".toml")
        shared.host.world.nginx.remove_site(name)
        shared.host.world.nginx.reload()
        shared.host.run("certdrop", "remove", name, "--yes", code=0)
    shared.configure()


def test_a_site_with_a_ca_of_its_own(two: Two) -> None:
    """`certdrop add --ca` with a certdrop.toml writes it into the site's file: issued, judged, renewed and revoked there; the others stay."""
    host, mine, others = two.host, two.host.name(), two.host.name()
    host.add(others)
    done = host.run("certdrop", "add", mine, "--no-issue", "--ca", two.second.directory_url, code=0)
    assert f'directory = "{two.second.directory_url}"' in stage.read(f"/etc/certdrop/sites.d/{mine}.toml"), done
    host.serve(mine)
    orders = two.first.orders()
    assert "served" in host.run("certdrop", "renew", mine, code=0).text
    assert (two.issuer(mine), two.issuer(others)) == ("second", "pebble") and two.first.orders() == orders
    assert host.status(mine)["issued_by"] == two.second.directory_url and host.status(mine)["severity"] == 0, host.status(mine)
    assert f"issued by   {two.second.directory_url}\n" in host.run("certdrop-status", mine).text

    both = host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    assert "another CA" not in host.run("certdrop-issue", "--plan").text, both
    host.run("certdrop", "renew", mine, others, "--force", code=0)
    assert (two.issuer(mine), two.issuer(others)) == ("second", "pebble")

    serial = host.run("openssl", "x509", "-in", f"{STATE}/live/{mine}/cert.pem", "-noout", "-serial").text.strip().partition("=")[2]
    stage.write(f"/etc/certdrop/sites.d/{mine}.toml", f'domains = ["{mine}"]\n')               # what is configured by now says nothing of who issued it
    host.run("certdrop", "revoke", mine, "--yes", code=0)
    assert two.second.status(serial) == "Revoked"
    host.run("certdrop", "renew", mine, code=0)
    assert two.issuer(mine) == "pebble"


def test_another_ca_when_the_first_is_down(two: Two) -> None:
    """Not at once, not without an account; then by the other, told by status and one mail; the next one by the first again, which is told of no replacement."""
    host, name = two.host, two.host.name()
    two.configure(fallback=f'["{two.second.directory_url}"]')
    for path in pathlib.Path(f"{STATE}/issuer").glob("account@ca2.*"):
        path.unlink()
    host.add(name)
    check = host.run("certdrop-check", name).text
    assert "fallback: ca2.stage.test: there is no account, so it is never asked; sudo certdrop-account register" in check, check
    two.first.stop()
    renew = host.run("certdrop", "renew", name, "--force", code=75)
    assert two.issuer(name) == "pebble", renew
    two.as_if_down(name, 25)
    assert two.second.orders() == 0 or two.second.requests()
    seen = len(two.second.requests())
    host.run("certdrop-issue", "--cron", user="_certdrop")
    assert len(two.second.requests()) == seen and two.issuer(name) == "pebble"       # there is no account

    two.register(two.second)
    assert "fallback: ca2.stage.test answers, has an account of ours" in host.run("certdrop-check", name).text
    two.as_if_down(name, 5)
    host.run("certdrop-issue", name, user="_certdrop")
    assert two.issuer(name) == "pebble"                                               # not yet
    two.as_if_down(name, 25)
    said = host.run("certdrop-issue", "--verbose", name, user="_certdrop", code=0)
    assert f"asking {two.second.directory_url} instead" in said.text, said
    host.run("certdrop-install", code=0)
    assert two.issuer(name) == "second" and host.served(name) == host.on_disk(name)
    found = host.status(name)
    assert (found["severity"], found["issued_by"], found["refused_by_browsers"]) == (0, two.second.directory_url, False), found
    assert f'certdrop_by_fallback{{site="{name}"}} 1' in host.run("certdrop-status", "--prometheus").text
    assert "a CA to fall back on" in host.run("certdrop-watch").text + host.run("certdrop-status", name).text
    assert "another CA" not in host.run("certdrop-issue", "--plan").text             # it is as good as the first one's: no renewal before its time

    two.first.start()
    two.trust()
    two.configure(fallback=f'["{two.second.directory_url}"]')
    orders = two.second.orders()
    host.run("certdrop", "renew", name, "--force", code=0)
    assert two.issuer(name) == "pebble" and two.second.orders() == orders
    assert not two.ledger(name).get("away_since")


def test_both_are_down(two: Two) -> None:
    """The live certificate stays, each is asked in turn, and whoever comes back issues."""
    host, name = two.host, two.host.name()
    two.configure(fallback=f'["{two.second.directory_url}"]')
    two.register(two.second)
    host.add(name)
    before = host.on_disk(name)
    two.first.stop()
    two.second.stop()
    host.run("certdrop", "renew", name, "--force", code=75)
    asked = []
    for _ in range(3):
        two.as_if_down(name, 25)
        host.run("certdrop-issue", name, "--force", user="_certdrop", code=75)
        asked.append(two.ledger(name)["asked"])
    assert asked == [two.second.directory_url, two.first.directory_url, two.second.directory_url] and host.on_disk(name) == before
    two.first.start()
    two.second.start()
    two.trust()
    two.configure(fallback=f'["{two.second.directory_url}"]')
    two.as_if_down(name, 25)
    host.run("certdrop-issue", name, "--force", user="_certdrop", code=0)
    host.run("certdrop-install", code=0)
    assert two.issuer(name) == "pebble" and host.on_disk(name) != before


def test_the_signer_orders_nothing_from_a_ca_that_the_site_does_not_name(two: Two) -> None:
    """Whoever has the part that talks to the network may ask: the signer reads root's configuration itself."""
    host, name = two.host, two.host.name()
    host.add(name)
    two.register(two.second)
    program = f"""
import json, sys
sys.path[:0] = ["/usr/share/certdrop", "/usr/lib/python3/dist-packages"]
from certdrop.config import general
from certdrop.issuer.failure import Failure
from certdrop.signer import process
from certdrop.signer.jose import b64
config = general.load_config()
for directory in (config.directory, {two.second.directory_url!r}):
    signer = process.start(config.asking(directory))
    url = directory.rpartition("/")[0]
    head = b64(json.dumps({{"alg": "RS256", "nonce": "abc", "url": url + "/order", "kid": url + "/account/1"}}).encode())
    order = b64(json.dumps({{"identifiers": [{{"type": "dns", "value": {name!r}}}]}}).encode())
    try:
        print(bool(signer.sign(f"{{head}}.{{order}}".encode(), "{name}@{host.next(name):04d}.csr")))
    except Failure as failure:
        print(failure)
"""
    done = host.run("/usr/bin/python3", "-IS", "-c", program, user="_certdrop", code=0)
    assert done.text.splitlines() == ["True", "the signer: the configuration of its site names another CA"], done

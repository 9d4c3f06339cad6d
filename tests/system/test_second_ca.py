"""The main job with ACME servers that share no code with Pebble, nor with each other: acme2certifier, which tests/second_ca/fetch brings, and Caddy's
of Debian, which tests/stage/packages.caddy does."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import time
from typing import Iterator

import pytest
from conftest import STATE, Host, stage

HERE = pathlib.Path(__file__).resolve().parents[1] / "second_ca"
CADDY = "/usr/bin/caddy"


class Other(stage.Server):
    """An ACME server of another house: where it is, and the root of what it issues. Its own certificate is the stage's."""

    port, path = 0, ""
    changes_keys = True                # RFC 8555 section 7.3.5

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.place = os.path.join(stage.WORLD, name)
        os.makedirs(self.place + "/certs", exist_ok=True)
        self.base = f"https://{name}.stage.test:{self.port}"
        self.pair = stage.Authority().issue(f"{name}-tls", f"{name}.stage.test")
        self.root = f"{self.place}/root.pem"

    def begin(self) -> None:
        raise NotImplementedError

    def be_asked(self, host: Host) -> None:
        """Have certdrop go there."""
        host.configure(directory=f'"{self.base}{self.path}"', trust_roots=f'"{self.root}"')


class Acme2certifier(Other):
    """From PyPI (tests/second_ca/fetch): Python, a data base; a CA of a root and an intermediate by `cryptography`."""

    port, path = 14800, "/directory"

    def begin(self) -> None:
        mine = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        stage.Authority._make(self.root, f"{self.place}/root.key", "Second Root", mine, [])
        signer = ["-CA", self.root, "-CAkey", f"{self.place}/root.key"]
        stage.Authority._make(f"{self.place}/ca.pem", f"{self.place}/ca.key", "Second Intermediate", mine, signer)
        self.launch(["/usr/bin/python3", "-B", str(HERE / "serve"), str(self.port), *self.pair, self.place], {"NO_PROXY": "*"})
        self.wait_ready(self.port)


class Caddy(Other):
    """From Debian: the ACME server in Caddy, which is smallstep's, in Go; HTTP/2, short lifetimes, no renewal information. It issues for four days."""

    port, path = 14850, "/acme/local/directory"
    changes_keys = False

    def begin(self) -> None:
        stage.write(f"{self.place}/Caddyfile", f"""{{
    admin off
    skip_install_trust
    auto_https disable_redirects
    storage file_system {self.place}/data
}}
{self.base} {{
    tls {self.pair[0]} {self.pair[1]}
    acme_server {{
        lifetime 96h
    }}
}}
""")
        self.launch([CADDY, "run", "--adapter", "caddyfile", "--config", f"{self.place}/Caddyfile"], {"HOME": self.place})
        self.wait_ready(self.port)
        made = f"{self.place}/data/pki/authorities/local/root.crt"
        stage.wait_for(lambda: os.path.exists(made), what="Caddy's CA")
        stage.write(self.root, stage.read(made))


SERVERS = [
    pytest.param(lambda: Acme2certifier("ca2"), id="acme2certifier", marks=pytest.mark.skipif(
        not (HERE.parents[1] / "build/second_ca/.complete").exists(), reason="tests/second_ca/fetch could not fetch it")),
    pytest.param(lambda: Caddy("ca3"), id="caddy", marks=pytest.mark.skipif(not os.path.exists(CADDY), reason="the stage is without packages.caddy"))]


@pytest.fixture(scope="module", params=SERVERS)
def second(request: pytest.FixtureRequest, session_host: Host) -> Iterator[Other]:
    """It runs, and is the one that certdrop asks."""
    server = request.param()
    server.begin()
    server.be_asked(session_host)
    try:
        yield server
    finally:
        server.stop()
        session_host.configure()


@pytest.fixture
def host(host: Host, second: Other) -> Host:
    """Asking the second CA, not Pebble."""
    second.be_asked(host)
    return host


@pytest.fixture(scope="module")
def site(session_host: Host, second: Other) -> str:
    """A site of two names with a certificate of it."""
    name = session_host.name()
    session_host.run("certdrop", "add", name, "www." + name, "--no-issue", code=0)
    session_host.serve(name)
    done = session_host.run("certdrop", "renew", name, code=0)
    assert "installed, and served" in done.text, done
    return name


def test_issued_installed_served(host: Host, second: Other, site: str) -> None:
    """Two names proven by HTTP-01, a chain with its intermediate, served and trusted."""
    for name in (site, "www." + site):
        host.run("curl", "-sS", "--fail", "--cacert", second.root, f"https://{name}/", code=0)
    assert host.served(site) == host.on_disk(site) and host.live(site) == host.proven(site) == 2
    assert stage.read(f"{STATE}/live/{site}/fullchain.pem").count("BEGIN CERTIFICATE") >= 2
    assert host.status(site)["state"] == "serving"


def test_renewed_and_rotated(host: Host, second: Other, site: str) -> None:
    """Again, with the key that waited, and with a new one; in the same account."""
    before, number = host.on_disk(site), host.live(site)
    assert "installed, and served" in host.run("certdrop", "renew", "--force", site, code=0).text
    assert "installed, and served" in host.run("certdrop", "rotate", site, code=0).text
    assert host.live(site) == number + 2 and host.served(site) == host.on_disk(site) != before


def test_the_account(host: Host, second: Other, site: str) -> None:
    """Shown with its URL at this CA; a new contact; a new key, by which orders go on."""
    shown = host.run("certdrop-account", "show", code=0).text
    assert f"{second.base}/" in shown and "valid" in shown, shown
    done = host.run("certdrop-account", "rollover")
    assert (done.code == 0) is second.changes_keys, done                       # where it does not, orders go on by the key that it knows
    assert "installed, and served" in host.run("certdrop", "renew", "--force", site, code=0).text


def test_what_the_ca_refuses_is_told(host: Host, second: Other, site: str) -> None:
    """A name that leads nowhere: the CA's own words, and which name."""
    name = host.name()
    host.world.dns.set_servfail(name)
    done = host.run("certdrop", "add", name, code=os.EX_TEMPFAIL)
    assert f"{name}: the CA could not validate {name}; " in done.text and "; the CA says " in done.text, done
    assert host.status(name)["state"] == "failing"
    host.run("certdrop", "remove", name, code=0)
    host.world.dns.clear_servfail(name)


def test_revoked(host: Host, second: Other, site: str) -> None:
    """Root's word, the issuer's deed; and once more is no error."""
    number = host.live(site)
    host.run("certdrop", "rotate", site, code=0)
    done = host.run("certdrop", "revoke", site, "--number", str(number), "--reason", "superseded", "--yes", code=0)
    assert "revoked" in done.text, done
    found = [one for one in host.status(site)["revocations"] if one["generation"] == number]
    assert [one["state"] for one in found] == ["revoked"], found


def test_nothing_more_is_due(host: Host, second: Other, site: str) -> None:
    """What is due, and why, is known from this CA as from any: by its renewal window, or by the lifetime."""
    said = host.run("certdrop-issue", "--plan", site, code=0).text
    assert site in said and "failed" not in said, said
    host.run("certdrop-issue", site, code=0)
    assert host.status(site)["state"] == "serving"


def test_a_ca_to_fall_back_on(host: Host, second: Other) -> None:
    """Pebble is the first CA, and down for a day: this one, which shares no code with it, issues what root wants now; the next one is Pebble's again."""
    def configure() -> None:
        stage.write(both, stage.read(second.root) + stage.read(host.world.pebble.root()))
        host.configure(trust_roots=f'"{both}"', fallback=f'["{second.base}{second.path}"]')

    def is_of(root: str) -> bool:
        place = f"{STATE}/live/{name}"
        return host.run("openssl", "verify", "-CAfile", root, "-untrusted", f"{place}/chain.pem", f"{place}/cert.pem").code == 0
    both = f"{second.place}/both.pem"
    configure()
    name = host.add(host.name())
    host.run("certdrop-account", "register", "--yes", "--directory", f"{second.base}{second.path}", code=0)
    host.world.pebble.stop()
    host.run("certdrop", "renew", name, "--force", code=os.EX_TEMPFAIL)
    path, now = f"{STATE}/issuer/{name}.json", int(time.time())
    noted = json.loads(stage.read(path))
    noted.update(away_since=now - 90000, away_at=now - 2, away_count=9, failed_at=now - 2, next_try=now - 1, count=9)
    stage.write(path, json.dumps(noted))
    shutil.chown(path, "_certdrop", "_certdrop")
    host.run("certdrop-issue", name, user="_certdrop", code=0)
    host.run("certdrop-install", code=0)
    assert is_of(second.root) and host.status(name)["issued_by"] == f"{second.base}{second.path}" and host.served(name) == host.on_disk(name)

    host.world.pebble.start()
    configure()
    host.run("certdrop", "renew", name, "--force", code=0)
    assert is_of(host.world.pebble.root()) and not is_of(second.root)

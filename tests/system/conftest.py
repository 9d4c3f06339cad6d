"""The system tests run inside the stage, where the package is installed for real and the servers are real ones.

A test takes `host`: a running CA, DNS and nginx, a configured certdrop, and names of its own (`host.name()`), so that
tests do not meet each other's sites.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Iterator

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "stage")]

import world as stage  # noqa: E402
from between import HOST, PORT, Between  # noqa: E402
from three import Three  # noqa: E402

STATE = "/var/lib/certdrop"
SPOOL = "/var/spool/certdrop"
ROOTS = "/tmp/world/all-roots.pem"
CONFIG = "/etc/certdrop/certdrop.toml"


class Done:
    """How a command ended: `code`, and `text`, all that it printed."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.text}"


class Host:
    """The stage as an administrator sees it."""

    def __init__(self, world: stage.World) -> None:
        self.world = world
        self.numbers = itertools.count(1)
        self.roots: dict[str, None] = {}       # of every start of the CA, which makes itself new ones: what it issued before is as good as then

    def name(self) -> str:
        """A domain that no other test has."""
        return f"s{next(self.numbers)}.example.org"

    def run(self, *argv: str, user: str = "", code: int | None = None, **more: Any) -> Done:
        """Run a command to its end; with `code`, it must end so."""
        if user:
            more.update(user=user, group=user, extra_groups=[])
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=more.pop("timeout", 120), check=False, **more)
        found = Done(done.returncode, done.stdout)
        if code is not None:
            assert found.code == code, (argv, found, stage.log_tails())
        return found

    def serve(self, name: str, *more: str) -> None:
        """Have nginx serve a site by the server blocks that certdrop-nginx prints."""
        blocks = self.run("certdrop-nginx", name, *more, code=0).text
        self.world.nginx.add_site(name, blocks)
        self.world.nginx.reload()

    def add(self, *domains: str, serve: bool = True) -> str:
        """Add a site, served, with a certificate; its name."""
        self.run("certdrop", "add", *domains, "--no-issue", code=0)
        if serve:
            self.serve(domains[0])
        self.run("certdrop", "renew", domains[0], code=0)
        return domains[0]

    def waiting(self) -> str:
        """A site that waits for its first certificate, served; its name."""
        name = self.name()
        self.run("certdrop", "add", name, "--no-issue", code=0)
        self.serve(name)
        return name

    def live(self, name: str) -> int:
        """The number of the live generation."""
        return int(os.readlink(f"{STATE}/live/{name}").rpartition("/")[2])

    def proven(self, name: str) -> int:
        """The number of the generation last seen served; 0 for none."""
        link = f"{STATE}/proven/{name}"
        return int(os.readlink(link).rpartition("/")[2]) if os.path.lexists(link) else 0

    def posted(self, name: str) -> list[str]:
        """The site's requests in the spool."""
        return sorted(entry for entry in os.listdir(SPOOL + "/requests") if entry.startswith(name + "@"))

    def next(self, name: str) -> int:
        """The number that is posted."""
        return int(self.posted(name)[-1].rpartition("@")[2].partition(".")[0])

    def on_disk(self, name: str) -> str:
        """The fingerprint of the live certificate."""
        return stage.fingerprint(stage.read(f"{STATE}/live/{name}/cert.pem"))

    def served(self, name: str, port: int = 443) -> str:
        """The fingerprint of what nginx shows for a name, once the workers of a reload before it (which serve for another 100 ms) are told to end."""
        stage.wait_for(lambda: len(self.world.nginx.workers()) <= (os.cpu_count() or 1), what="nginx to be done with its reload")
        return stage.fingerprint(stage.served_certificate(name, port=port))

    def fetch(self, name: str) -> str:
        """A page over HTTPS, the chain verified against the CA's root, by curl."""
        return self.run("curl", "-sS", "--fail", "--cacert", self.world.pebble.root(), f"https://{name}/", code=0).text

    def status(self, name: str) -> dict[str, Any]:
        """The site's object in `certdrop-status --json`."""
        found = json.loads(self.run("certdrop-status", "--json").text)
        return next(site for site in found if site["name"] == name)

    def pair_matches(self, name: str) -> bool:
        """Whether the live key and the live certificate belong together."""
        key = self.run("openssl", "pkey", "-in", f"{STATE}/live/{name}/privkey.pem", "-pubout", code=0).text
        leaf = self.run("openssl", "x509", "-in", f"{STATE}/live/{name}/fullchain.pem", "-noout", "-pubkey", code=0).text
        return key == leaf

    def configure(self, **changes: str) -> None:
        """Write certdrop.toml for this CA, with changes (TOML values)."""
        pebble = self.world.pebble
        if self.roots and stage.read(pebble.root()) not in self.roots:
            for path in pathlib.Path(f"{STATE}/issuer").glob("account@*"):     # it forgot its accounts; certdrop would not make others by itself
                path.unlink()
        self.roots[stage.read(pebble.root())] = None
        stage.write(ROOTS, "".join(self.roots))
        found = {"directory": f'"{pebble.directory_url}"', "contact": '["hostmaster@example.org"]', "ca_bundle": f'"{pebble.ca_bundle}"',
                 "trust_roots": f'"{ROOTS}"', **changes}
        stage.write(CONFIG, "".join(f"{key} = {value}\n" for key, value in found.items()))


@pytest.fixture(scope="session")
def session_host() -> Iterator[Host]:
    """One CA, DNS and nginx for all tests."""
    with stage.World() as world:
        world.nginx.start()
        stage.write("/var/www/html/index.html", "a page\n")
        host = Host(world)
        host.configure()
        yield host


@pytest.fixture
def host(session_host: Host) -> Iterator[Host]:
    """The session's host, put right again after the test."""
    yield session_host
    if not session_host.world.pebble.running():
        session_host.world.pebble.start()
    if not session_host.world.nginx.pid():
        session_host.world.nginx.start()
    session_host.configure()


@pytest.fixture
def between(host: Host) -> Iterator[Between]:
    """The CA, by way of something in between."""
    made = Between(host.world.pebble)
    host.configure(directory=f'"https://{HOST}:{PORT}/dir"')
    yield made
    made.close()


@pytest.fixture
def three(host: Host) -> Iterator[Three]:
    """nginx with three sites; taken out again."""
    found = Three(host)
    yield found
    found.close()

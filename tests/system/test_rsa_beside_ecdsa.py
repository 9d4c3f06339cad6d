"""Two sites for the same names, one with RSA, one with ECDSA, in the same server block: each is issued, proven, renewed and shown by itself."""

from __future__ import annotations

import json
import subprocess

import pytest
from conftest import Host, stage


def shown_to(domain: str, *only: str) -> str:
    """The fingerprint that a client sees who takes these signature algorithms only."""
    done = subprocess.run(["openssl", "s_client", "-connect", "127.0.0.1:443", "-servername", domain, *only], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return stage.fingerprint(done.stdout[done.stdout.index("-----BEGIN"):])


ECDSA, RSA = ("-sigalgs", "ECDSA+SHA256"), ("-sigalgs", "RSA-PSS+SHA256:RSA+SHA256")


@pytest.fixture(scope="module")
def both(session_host: Host) -> tuple[str, str]:
    """The names of the two sites."""
    host, name = session_host, session_host.name()
    beside = f"rsa.{name}"
    host.run("certdrop", "add", name, "www." + name, "--no-issue", code=0)
    host.run("certdrop", "add", name, "www." + name, "--name", beside, "--key", "rsa-2048", "--no-issue", code=0)
    host.world.nginx.add_site(name, host.run("certdrop-nginx", name, beside, code=0).text)
    host.world.nginx.reload() if host.world.nginx.pid() else host.world.nginx.start(443)
    host.run("certdrop", "renew", name, beside, code=0)
    return name, beside


def test_each_is_proven_and_shown(host: Host, both: tuple[str, str]) -> None:
    """One block names both pairs; who likes ECDSA sees the one, who knows RSA alone the other; the keeper saw both."""
    name, beside = both
    assert host.run("certdrop-nginx", name, beside).text.count("include /var/lib/certdrop/live/") == 2
    assert host.served(name) == shown_to(name, *ECDSA) == host.on_disk(name)
    assert shown_to(name, *RSA) == host.on_disk(beside)
    assert [host.live(each) for each in both] == [host.proven(each) for each in both] == [2, 2]
    found = {each: host.status(each) for each in both}
    assert [found[each]["state"] for each in both] == ["serving", "serving"] and [found[each]["served"] for each in both] == [True, True]
    assert found[name]["beside"] == [beside] and found[beside]["beside"] == [name]


@pytest.mark.parametrize("turn", [0, 1])
def test_each_is_rotated_by_itself(host: Host, both: tuple[str, str], turn: int) -> None:
    """A new key for one: the other stays as it is, and is shown on."""
    one, other = both[turn], both[1 - turn]
    before = host.live(one), host.live(other), host.on_disk(other)
    done = host.run("certdrop", "rotate", one, code=0)
    assert "installed, and served" in done.text, done
    assert (host.live(one), host.live(other), host.on_disk(other)) == (before[0] + 1, *before[1:])
    host.served(one)
    assert [shown_to(one, *kind) for kind in (ECDSA, RSA)] == [host.on_disk(each) for each in both]
    assert "serving" == host.status(one)["state"] == host.status(other)["state"]


def test_what_is_not_shown_is_seen(host: Host, both: tuple[str, str]) -> None:
    """The pair that was taken out of the block is missed, though a certificate for the name is shown."""
    name, beside = both
    text = stage.read(f"/etc/nginx/sites-available/{name}")
    try:
        host.world.nginx.add_site(name, "".join(line for line in text.splitlines(True) if f"/live/{beside}/" not in line))
        host.world.nginx.reload()
        host.served(name)
        found = json.loads(host.run("certdrop-status", "--json").text)
        assert {one["name"]: one["served"] for one in found if one["name"] in both} == {name: True, beside: False}
        done = host.run("certdrop", "rotate", beside)
        assert done.code != 0 and "is not shown" in done.text, done
    finally:
        host.world.nginx.add_site(name, text)
        host.world.nginx.reload()


def test_without_tls_1_2(host: Host, both: tuple[str, str]) -> None:
    """Where a service speaks TLS 1.3 alone it is asked without a kind: what it prefers is seen, the other one cannot be."""
    name, _ = both
    text = stage.read(f"/etc/nginx/sites-available/{name}")
    try:
        host.world.nginx.add_site(name, text.replace("    include /etc/nginx/snippets/certdrop-tls.conf;", "    ssl_protocols TLSv1.3;"))
        host.world.nginx.reload()
        assert host.status(name)["served"] is True
        assert "installed, and served" in host.run("certdrop", "rotate", name, code=0).text
    finally:
        host.world.nginx.add_site(name, text)
        host.world.nginx.reload()

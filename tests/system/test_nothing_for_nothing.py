"""An administrator's `renew` orders nothing for nothing: not what could not be served, not beside what waits to be installed, not what is there already."""

from __future__ import annotations

import os
import re

import pytest

from conftest import CONFIG, Host, stage

CONF = "/etc/nginx/conf.d/broken.conf"


def orders(host: Host) -> int:
    """How many orders the CA took."""
    return host.world.pebble.orders()


@pytest.fixture
def name(host: Host) -> str:
    """A site, served, whose certificate a minute ago nobody had."""
    return host.add(host.name())


def test_a_fresh_one(host: Host, name: str) -> None:
    """What is younger than a day is not ordered again, and that is said; --force orders, and so does a configuration that changed since."""
    before, live = orders(host), host.live(name)
    done = host.run("certdrop", "renew", name, code=0)
    assert "nothing is ordered (--force orders anyway)" in done.text and (orders(host), host.live(name)) == (before, live), done
    host.run("certdrop", "renew", name, "--force", code=0)
    assert (orders(host), host.live(name)) == (before + 1, live + 1)
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\nprofile = "default"\n')
    host.run("certdrop", "renew", name, code=0)
    assert orders(host) == before + 2
    done = host.run("certdrop", "rotate", name, code=0)
    assert orders(host) == before + 3, (done, stage.read("/var/log/certdrop/issuer.log")[-3000:])


def test_a_wish_that_is_open(host: Host, name: str) -> None:
    """What root wants now is ordered, however fresh the live one is."""
    before = orders(host)
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}", "www.{name}"]\n')
    host.run("certdrop", "renew", name, code=0)
    assert orders(host) == before + 1
    host.run("certdrop", "revoke", name, "--yes", code=0)
    host.run("certdrop", "renew", name, code=0)
    assert orders(host) == before + 2


@pytest.mark.parametrize("verb", ["renew", "rotate"])
def test_nginx_is_broken(host: Host, name: str, verb: str) -> None:
    """Its test comes first: three tries order nothing, and say what is broken; mended, the next one orders."""
    before = orders(host)
    os.utime(CONFIG)                           # so nothing but nginx stands in the way
    stage.write(CONF, "nonsense;\n")
    try:
        for _ in range(3):
            done = host.run("certdrop", verb, name, code=os.EX_TEMPFAIL)
            assert re.search(r'nginx cannot use a certificate now: .*unknown directive "nonsense".*nothing is ordered', done.text), done
    finally:
        os.unlink(CONF)
    assert orders(host) == before
    host.run("certdrop", verb, name, code=0)
    assert orders(host) == before + 1


def test_nginx_does_not_run(host: Host, name: str) -> None:
    """It is said that nginx does not run, and nothing is ordered; where it runs again, it is."""
    before = orders(host)
    os.utime(CONFIG)
    host.world.nginx.stop()
    try:
        for _ in range(3):
            assert "nginx does not run" in host.run("certdrop", "renew", name, code=os.EX_TEMPFAIL).text
    finally:
        host.world.nginx.start()
    assert orders(host) == before
    host.run("certdrop", "renew", name, code=0)
    assert orders(host) == before + 1


def test_what_was_issued_is_finished_first(host: Host, name: str) -> None:
    """A reply that waits, or a generation that was not installed, is installed by renew, which then orders no other."""
    live = host.live(name)
    os.utime(CONFIG)
    host.run("certdrop-issue", "--no-install", "--force", name, user="_certdrop", code=0)
    before = orders(host)
    done = host.run("certdrop", "renew", name, code=0)
    assert "is installed now; nothing is ordered" in done.text and host.live(name) == live + 1 and orders(host) == before, done


def test_the_same_names_again(host: Host, name: str) -> None:
    """A second site for the same names, in whatever order, is refused unless it gets a name of its own or another kind of key."""
    other = host.name()
    host.run("certdrop", "add", other, "www." + other, "--no-issue", code=0)
    done = host.run("certdrop", "add", "www." + other, other, "--no-issue", code=os.EX_DATAERR)
    assert f"the site {other} is for the same names" in done.text and f"certdrop renew {other}" in done.text
    host.run("certdrop", "add", "www." + other, other, "--no-issue", "--key", "rsa-2048", code=0)
    host.run("certdrop", "add", other, "www." + other, "--name", "second-" + other, "--no-issue", code=0)

"""What the tests of renewals share: a CA that may be restarted with other ways, and sites that are gone after the test."""

from __future__ import annotations

import os
from typing import Any, Iterator

import pytest
from conftest import Host

import world as stage

SITES = "/etc/certdrop/sites.d"


def restart(host: Host, **options: Any) -> None:
    """Another CA at the same address, with other roots; what the old one issued is installed before, for nobody will trust it later."""
    host.run("certdrop-install")
    host.world.pebble.restart(**options)
    host.configure()


@pytest.fixture
def ca(host: Host) -> Iterator[stage.Pebble]:
    """The CA, put back as it was after the test."""
    before = dict(vars(host.world.pebble.options))
    yield host.world.pebble
    if vars(host.world.pebble.options) != before:
        restart(host, **before)


@pytest.fixture(autouse=True)
def gone_afterwards(host: Host) -> Iterator[None]:
    """The sites that a test made are removed after it: their certificates may be of a CA that is no more."""
    before = set(os.listdir(SITES))
    yield
    host.configure()
    made = sorted(entry[:-5] for entry in set(os.listdir(SITES)) - before)
    for name in made:
        host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    for name in made:
        host.run("certdrop", "remove", name, code=0)

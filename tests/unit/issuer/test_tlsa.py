"""When an order waits for the TLSA record of its key, and when not: on real files, with the DNS's answers made up."""

from __future__ import annotations

import json

import pytest

from certdrop import renewal
from certdrop.config import dane, general, site
from certdrop.issuer import due, plan, posted, tlsa
from certdrop.issuer.options import Options
from certdrop.watcher import resolver
from certdrop.watcher.resolver import Published

from issuer.test_state import DAY, NOW, Disk, disk  # noqa: F401

LIVE, NEXT = "1" * 64, "2" * 64
TTL = 3600.0


class World:
    """A site whose renewal is due, and the DNS."""

    def __init__(self, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        self.disk, self.seen = disk, dict[str, Published]()
        self.configure(["a.test", "www.a.test"])
        disk.put("etc/services.d/nginx.toml", 'test = ["/bin/true"]\nreload = ["/bin/true"]\n')
        self.age(70)
        monkeypatch.setattr(resolver, "tlsa", lambda owner: self.seen.get(owner, Published(problem=resolver.NO_NAME)))

    def configure(self, domains: list[str], said: str = dane.CHECK) -> None:
        self.disk.put("etc/sites.d/a.test.toml", f'domains = {json.dumps(domains)}\ntlsa = "{said}"\n')

    def age(self, days: float, spki: str = NEXT) -> None:
        self.disk.site("a.test", 3, age=int(days * DAY))
        for number, key in ((2, LIVE), (3, spki)):
            self.disk.put(f"state/sites/a.test/{number:04d}/request.json", json.dumps({"spki_sha256": key}))

    def publish(self, *spki: str, at: str = "a.test", ttl: float = TTL) -> None:
        self.seen[f"_443._tcp.{at}."] = Published(frozenset(spki), 0, ttl)

    def look(self, *argv: str, now: float = NOW) -> plan.Task:
        """A run: what it leaves in the ledger is there for the next one."""
        made = plan.Task(next(iter(posted.requests()[0])), Options([*argv], False))
        made.decide(now)
        assert made.when <= now
        tlsa.look(made, now)
        made.decide(now)
        made.ledger.save()
        return made


@pytest.fixture
def world(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    return World(disk, monkeypatch)


def test_it_waits_for_the_record_then_for_its_ttl(world):
    """Counted from when the record was first seen everywhere; then the order is placed, and nothing is left of the wait."""
    world.publish(LIVE)
    first = world.look()
    assert (first.when, first.why) == (NOW + due.TICK, renewal.TLSA) and first.ledger.tlsa_since == NOW
    world.publish(LIVE, NEXT)
    seen = world.look(now=NOW + 600)
    assert (seen.when, seen.why, seen.ledger.tlsa_since) == (NOW + 600 + TTL, renewal.TLSA, NOW)
    world.publish(LIVE, NEXT, ttl=60)              # a cache counts down
    assert world.look(now=NOW + 1200).when == NOW + 600 + TTL
    done = world.look(now=NOW + 600 + TTL)
    assert done.held is None and done.when <= NOW + 600 + TTL and not done.ledger.tlsa_since


def test_a_record_that_goes_away_begins_anew(world):
    """What was seen before does not count."""
    world.publish(LIVE, NEXT)
    world.look()
    world.publish(LIVE)
    assert world.look(now=NOW + TTL + 1).held
    world.publish(LIVE, NEXT)
    assert world.look(now=NOW + TTL + 2).when == NOW + TTL + 2 + TTL


@pytest.mark.parametrize("seen, waits", [
    ({}, True),                                                                                              # nobody published any
    ({"a.test": Published(frozenset({LIVE}), 0, 60), "www.a.test": Published(frozenset({LIVE, NEXT}), 0, 0)}, True),   # one of two
    ({"a.test": Published(frozenset({NEXT}), 0, 0)}, False),                                                 # the other has none: nobody goes by it
    ({"a.test": Published(frozenset({NEXT}), 0, 0), "www.a.test": Published(problem=resolver.SILENT)}, True),
    ({"a.test": Published(others=1)}, True)])
def test_what_is_published_where(seen, waits, world):
    """Each name that has records must have the next key's; what cannot be looked up is waited for."""
    world.seen = {f"_443._tcp.{name}.": one for name, one in seen.items()}
    assert bool(world.look().held) == waits


def test_it_is_never_waited_until_the_certificate_ends(world):
    """At the last line the order is placed all the same, and that is said once; no hold goes beyond."""
    last = NOW - 70 * DAY + 90 * DAY * 7 / 8
    assert world.look(now=last - 60).when == last
    done = world.look(now=last)
    assert done.held is None and "ordered all the same" in done.ledger.tlsa_lacks
    assert world.look(now=last + 600).ledger.tlsa_lacks == ""


@pytest.mark.parametrize("how", ["the same key", "burnt", "off", "no certificate", "by force", "addresses"])
def test_what_does_not_wait(how, world):
    """A key that stays, one to get rid of, a site that does not want it or has no certificate, whoever insists, and names that have no records."""
    argv = ["--no-wait"] if how == "by force" else []
    if how == "the same key":
        world.age(70, LIVE)
    elif how == "burnt":
        world.disk.put("state/keeper/burnt", LIVE + "\n")
    elif how == "off":
        world.configure(["a.test"], dane.OFF)
    elif how == "no certificate":
        world.disk.put("state/sites/a.test/0002/placeholder")
    elif how == "addresses":
        world.configure(["192.0.2.1"])
    assert world.look(*argv).held is None


def test_a_wrong_word_is_refused(world):
    """By name, for who asks; root passes over it."""
    world.configure(["a.test"], "chekc")
    with pytest.raises(site.ConfigError, match='tlsa: "chekc": give "check" or "off"'):
        dane.is_checked("a.test")
    assert site.load_site("a.test", general.Config()).domains == ["a.test"]


def test_names_and_ports(world):
    """Of each name at each service's port; none for an address, nor for a service that cannot be asked."""
    for name, port in (("mail", 25), ("copy", 0)):
        world.disk.put(f"etc/services.d/{name}.toml", f'test = ["/bin/true"]\nreload = ["/bin/true"]\nport = {port}\n')
    found = site.Site("a.test", site.Config())
    found.domains, found.services = ["a.test", "192.0.2.1"], ["nginx", "mail", "copy"]
    assert dane.owners(found) == ["_25._tcp.a.test.", "_443._tcp.a.test."]

"""TLSA records: what certdrop-status prints is put into a real name server's zone, and renewals wait for it."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator

import pytest
import world as stage
from conftest import Host
from tlsa import ADDRESS, NameServer

RESOLV = "/etc/resolv.conf"


@pytest.fixture
def zone(host: Host) -> Iterator[NameServer]:
    """A name server that this host asks."""
    before, server = stage.read(RESOLV), NameServer()
    pathlib.Path(RESOLV).write_text(f"nameserver {ADDRESS}\noptions timeout:2 attempts:1\n")
    yield server
    pathlib.Path(RESOLV).write_text(before)
    server.close()


@pytest.fixture
def name(host: Host) -> str:
    """A site whose renewals wait for their record."""
    found = host.add(host.name())
    with open(f"/etc/certdrop/sites.d/{found}.toml", "a", encoding="ascii") as stream:
        stream.write('tlsa = "check"\n')
    return found


def printed(host: Host, name: str, whose: str) -> tuple[str, str]:
    """(owner, what stands after TLSA) of the only record that status prints as `live` or `next`."""
    record, = [line for line in host.run("certdrop-status", name, "--tlsa", code=0).text.splitlines() if line.endswith(f"; {whose}")]
    owner, _, _, data = record.partition(" ; ")[0].split(" ", 3)
    return owner, data


def publish(host: Host, zone: NameServer, name: str, *whose: str) -> None:
    for one in whose:
        owner, data = printed(host, name, one)
        zone.records.setdefault(owner, []).append(data)


def served_spki(name: str) -> str:
    """As openssl says, of what is served."""
    import subprocess
    return subprocess.run("openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum", shell=True, input=stage.served_certificate(name),
                          capture_output=True, text=True, check=True).stdout.split()[0]


def test_what_is_printed_is_what_is_served(host: Host, zone: NameServer, name: str) -> None:
    """The live record is that of the key that is served; the next one's comes true with the renewal."""
    assert printed(host, name, "live") == (f"_443._tcp.{name}.", f"3 1 1 {served_spki(name)}")
    following = printed(host, name, "next")
    publish(host, zone, name, "live", "next")
    host.run("certdrop", "renew", name, "--force", code=0)
    assert printed(host, name, "live") == following == (f"_443._tcp.{name}.", f"3 1 1 {served_spki(name)}")


def test_a_renewal_waits_for_the_record_and_its_ttl(host: Host, zone: NameServer, name: str) -> None:
    """Nothing is ordered before the next key's record is there, nor before its TTL has passed since then."""
    publish(host, zone, name, "live")
    live = host.live(name)
    done = host.run("certdrop", "renew", name)
    assert done.code == 75 and f"_443._tcp.{name}. has not the record of the next key" in done.text and "--force does not wait" in done.text, done
    assert host.status(name)["renew_reason"] == "it waits for the TLSA record of the next key" and host.status(name)["tlsa_waits_since"]
    assert "TLSA" in host.run("certdrop-status").text and "its renewal waits" in host.run("certdrop-status", name).text
    zone.ttl = 4
    publish(host, zone, name, "next")
    began = time.time()
    done = host.run("certdrop", "renew", name)
    assert done.code == 75 and "caches may go without it until" in done.text and host.live(name) == live, done
    stage.wait_for(lambda: time.time() > began + 5, 10, "the TTL")
    host.run("certdrop", "renew", name, code=0)
    assert host.live(name) > live and host.status(name)["tlsa_waits_since"] is None and host.status(name)["served"]


@pytest.mark.parametrize("how", ["none", "broken"])
def test_what_is_not_known_is_waited_for(how: str, host: Host, zone: NameServer, name: str) -> None:
    """No record at all, and a name server that fails."""
    zone.broken = how == "broken"
    done = host.run("certdrop", "renew", name)
    assert done.code == 75 and {"none": "has no record 3 1 1", "broken": "cannot be looked up"}[how] in done.text


def test_by_force_nothing_is_waited_for(host: Host, zone: NameServer, name: str) -> None:
    """Whoever says so has his certificate."""
    live = host.live(name)
    host.run("certdrop", "renew", name, "--force", code=0)
    assert host.live(name) > live


def test_a_compromised_key_is_not_kept_for_a_record(host: Host, zone: NameServer, name: str) -> None:
    """It goes at once."""
    live = host.live(name)
    host.run("certdrop", "rotate", name, "--compromised", code=0)
    assert host.live(name) > live and host.status(name)["served"]


def test_the_doctor_compares(host: Host, zone: NameServer, name: str) -> None:
    """Live and next with what is published; and it says where DNSSEC proves nothing."""
    def said() -> str:
        return "\n".join(line for line in host.run("certdrop-check", name).text.splitlines() if f"{name}: TLSA: " in line)
    assert "has no record; a renewal with another key waits for it" in said()
    publish(host, zone, name, "next")
    assert said().startswith("failed") and "has not the record of the live key: who goes by DANE refuses the service now" in said()
    zone.records.clear()
    publish(host, zone, name, "live")
    assert "has not the record of the next key: a renewal waits for it" in said() and "of the live key" not in said()
    publish(host, zone, name, "next")
    assert said().startswith("ok") and "record are there" in said()
    zone.authentic = False
    assert "is not proven by DNSSEC (AD)" in said()


def test_a_site_without_it_asks_the_dns_for_nothing(host: Host, zone: NameServer) -> None:
    """A renewal costs no question more."""
    name = host.add(host.name())
    host.run("certdrop", "renew", name, "--force", code=0)
    assert zone.asked == []

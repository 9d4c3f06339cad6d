"""A whole fleet, each part of it a machine of its own: three web hosts, two desks under one account, PostgreSQL with a standby, and the CA outside.

Leases and silence are of minutes: a test says to the database that they are over.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import subprocess
import sys
import threading
from typing import Iterator

import pytest
from test_wrong_clock import SOURCE

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "stage")]

from several import DOMAIN, Done, Running  # noqa: E402
from whole import PAGE, Desk, Web, Whole  # noqa: E402
from world import wait_for  # noqa: E402


@pytest.fixture(scope="module")
def fleet() -> Iterator[Whole]:
    with Whole() as made:
        yield made


@contextlib.contextmanager
def at_work(*desks: Desk) -> Iterator["list[Running]"]:
    """These desks, at work."""
    found = [desk.work() for desk in desks]
    try:
        yield found
    finally:
        for one in found:
            if one.process.poll() is None:
                one.end()


def together(hosts: "list[Web]", *words: str) -> "dict[str, Done]":
    """The same command on several hosts at once."""
    found: "dict[str, Done]" = {}

    def run(host: Web) -> None:
        found[host.name] = host.run(*words)
    threads = [threading.Thread(target=run, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def brought(host: Web, name: str, generation: int = 2) -> None:
    """The courier brings it, and it is served."""
    def is_here() -> bool:
        host.courier()
        return host.live(name) >= generation
    wait_for(is_here, 150, f"{name} on {host.name}")
    assert host.fetch(name) == PAGE


def is_over(fleet: Whole, desk: str) -> None:
    """As if a desk had been silent for as long as its leases last."""
    fleet.admin(f"UPDATE certdrop.machine SET knows = '{{}}' WHERE name = '{desk}';"
                f" UPDATE certdrop.work SET until = now() - interval '1 second' WHERE desk = '{desk}'")


def test_the_main_job(fleet: Whole) -> None:
    """From a name to a certificate that is served, on three hosts at once, by the one desk or the other; only the desks talk with the CA. What the one does
    not answer of challenges, it leads to the other. And the sites are shared."""
    with at_work(*fleet.desk):
        names = {host.name: fleet.site(host) for host in fleet.web}
        for host in fleet.web:
            host.write("/root/wanted", names[host.name])
        found = together(fleet.web, "sh", "-c", "exec certdrop renew $(cat /root/wanted)")
        for host in fleet.web:
            answer = found[host.name]
            assert answer.code == 0 and "installed, and served" in answer.text, (host.name, answer)
            assert host.fetch(names[host.name]) == PAGE
            assert f"acme.{DOMAIN}" in host.read("/etc/nginx/snippets/certdrop-fleet.conf")
        host, desks = fleet.web[0], set()
        for _ in range(20):                    # each site is one desk's, by a hash: a few names, and both have some
            name = fleet.site(host)
            host.courier()
            wait_for(lambda: fleet.desk_of(name), 30, "a desk")
            desks.add(fleet.desk_of(name))
            brought(host, name)
            if len(desks) == 2:
                break
        assert desks == {"desk1", "desk2"}


def test_a_desk_killed_in_the_middle_of_an_order(fleet: Whole) -> None:
    """It costs its lease. The other places the order again; one certificate is issued, and it is served."""
    host, (first, second) = fleet.web[1], fleet.desk
    is_over(fleet, "desk2")
    name = fleet.site(host)
    issued, orders = fleet.issued(), fleet.world.pebble.orders()
    with at_work(first) as running:
        host.courier()
        fleet.world.dns.set_addresses(name, ["10.77.0.99"])    # nobody is there: the CA's validation takes its time
        wait_for(lambda: fleet.world.pebble.orders() > orders, 60, "an order")
        running[0].kill()
    assert fleet.issued() == issued and not fleet.answered(name)
    fleet.world.dns.set_addresses(name, [host.address])
    with at_work(second):
        wait_for(lambda: fleet.admin("SELECT knows <> '{}' FROM certdrop.machine WHERE name = 'desk2'") == "t", 30, "the other desk")
        assert fleet.desk_of(name) == "desk1", "it has its lease"
        is_over(fleet, "desk1")
        wait_for(lambda: fleet.desk_of(name) == "desk2", 60, "the other desk to take it")
        brought(host, name)
    assert fleet.issued() == issued + 1


def test_what_a_desk_does_not_believe_it_does_not_take(fleet: Whole) -> None:
    """A host that is enrolled at one desk alone is served by that one, whatever the other does."""
    host, (first, second) = fleet.web[2], fleet.desk
    second.run("mv", "/etc/certdrop/fleet.d/web3.toml", "/root", code=0)
    names = [fleet.site(host) for _ in range(3)]
    with at_work(first, second):
        host.courier()
        for name in names:
            wait_for(lambda: fleet.desk_of(name) == "desk1", 60, "the desk that believes it")
        for name in names:
            brought(host, name)
    second.run("mv", "/root/web3.toml", "/etc/certdrop/fleet.d", code=0)


def test_more_couriers_than_connections(fleet: Whole) -> None:
    """They are refused and say so; what they want waits, and the next try gets through."""
    fleet.db[0].psql("ALTER SYSTEM SET max_connections = 8; ALTER SYSTEM SET superuser_reserved_connections = 2", "postgres")
    fleet.db[0].restart()
    holders = [fleet.db[0].there.launch("psql", "-h", "/tmp", "-c", "SELECT pg_sleep(3600)", "postgres", user="postgres") for _ in range(6)]
    wait_for(lambda: fleet.db[0].psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'") == "6", 20, "connections")
    found = together(fleet.web, "certdrop-courier", "--verbose")
    for done in found.values():
        assert done.code == 75 and ("too many clients" in done.text or "connection slots are reserved" in done.text), done
    fleet.db[0].psql("ALTER SYSTEM RESET ALL", "postgres")
    fleet.db[0].restart()
    for one in holders:
        one.process.wait(30)
    assert {done.code for done in together(fleet.web, "certdrop-courier", "--quiet").values()} == {0}


def test_a_host_that_floods(fleet: Whole) -> None:
    """Its rows are counted, its connections too; and another host's certificate comes meanwhile."""
    bad, good = fleet.web[2], fleet.web[0]
    place = "/etc/certdrop/fleet"
    login = f"host=db1.{DOMAIN} dbname=certdrop user=web3 sslmode=verify-full sslrootcert={place}/ca.pem sslcert={place}/host.pem sslkey={place}/host.key"
    with at_work(*fleet.desk):
        busy = [bad.launch("psql", "-X", login, "-c", r"\! sleep 600") for _ in range(3)]
        fleet.until("3", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'web3'")
        assert "too many connections for role" in bad.run("psql", "-X", login, "-c", "SELECT 1").text
        busy.pop().end()
        flood = "INSERT INTO certdrop.request (name, number, kind, body, sig) SELECT 'a' || n, 1, 'csr', '', '' FROM generate_series(1, 5000) n"
        wait_for(lambda: "the quota of web3 is used up" in bad.run("psql", "-X", login, "-c", flood).text, 30, "the quota")
        name = fleet.site(good)
        done = good.run("certdrop", "renew", name)
        assert done.code == 0 and "installed, and served" in done.text, done
        for one in busy:
            one.end()


def test_a_clock_that_is_wrong(fleet: Whole) -> None:
    """A host that is weeks ahead gets what it wants: leases go by the database's clock, renewals by the desk's. One that is weeks behind does not believe the
    database's certificate yet: it serves on, and gets it when the clock is right."""
    library = "/usr/local/lib/wrong-clock.so"
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc: make deps")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, "-x", "c", "-"], input=SOURCE.encode(), check=True)
    host, day = fleet.web[0], 86400

    def clock(days: int) -> None:
        host.write("/run/clock-offset", str(days * day))
        host.write("/etc/ld.so.preload", library + "\n" if days else "")
    with at_work(*fleet.desk):
        name = fleet.site(host)
        clock(20)
        done = host.run("certdrop", "renew", name)
        assert done.code == 0 and "installed, and served" in done.text, done
        assert host.fetch(name) == PAGE
        clock(-20)
        done = host.courier("--verbose")
        assert done.code == 75 and "the fleet's database: " in done.text, done
        assert host.fetch(name) == PAGE
        clock(0)
        brought(host, fleet.site(host))


def test_yesterdays_database(fleet: Whole) -> None:
    """Restored: hosts post again what it lacks, and each desk answers what it answered. Nothing is lost, and nothing is ordered twice, by neither desk."""
    dump = fleet.dump()
    names = {fleet.site(host): host for host in (*fleet.web, fleet.web[0])}
    with at_work(*fleet.desk):
        for host in fleet.web:
            host.courier()
        for name in names:
            wait_for(lambda: fleet.answered(name), 150, "a reply")
        issued = fleet.issued()
        fleet.restore(dump)
        assert not any(fleet.answered(name) for name in names)
        for name, host in names.items():
            brought(host, name)
    assert fleet.issued() == issued


def test_a_standby_is_promoted(fleet: Whole) -> None:
    """The server is gone, with what its standby had not yet; nobody touches a host or a desk. Last, for the fleet has one server less after that."""
    first, second = fleet.db
    names = {fleet.site(host): host for host in fleet.web}
    with at_work(*fleet.desk):
        second.there.unplug()                  # so it lacks what follows
        for host in fleet.web:
            host.courier()
        for name in names:
            wait_for(lambda: fleet.answered(name), 150, "a reply")
        issued = fleet.issued()
        first.stop()                           # else its clients find out by TCP, after half a minute
        done = fleet.web[0].courier("--verbose")
        assert done.code == 75 and "the fleet's database: " in done.text and "the live certificates stay" in done.text, done
        first.there.stop()
        second.there.plug()
        second.promote()
        for name, host in names.items():
            brought(host, name)
        assert fleet.issued() == issued
        name = fleet.site(fleet.web[0])
        done = fleet.web[0].run("certdrop", "renew", name)
        assert done.code == 0 and "installed, and served" in done.text, done

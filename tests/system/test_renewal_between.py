"""Between certdrop and a real CA: a proxy, and a CA that puts off, refuses or trips at one request of many."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import threading
import time
from email.utils import formatdate
from typing import Callable

import pytest
from between import HOST, PORT, Between
from conftest import STATE, Host
from renewal import gone_afterwards

import world as stage

__all__ = ["gone_afterwards"]

PROXY = 3128


def renew(host: Host, name: str, code: int = 0) -> str:
    return host.run("certdrop-issue", "--verbose", "--force", "--no-install", name, code=code).text


def is_issued(host: Host, name: str) -> bool:
    return os.path.exists(f"/var/spool/certdrop/replies/{name}@{host.next(name):04d}.pem")


def in_two_seconds() -> str:
    return "2"


def at_a_date() -> str:
    return formatdate(time.time() + 3, usegmt=True)


@pytest.mark.parametrize("status, when", [(429, in_two_seconds), (503, at_a_date), (429, at_a_date), (503, in_two_seconds)])
def test_a_short_wait_is_waited(host: Host, between: Between, status: int, when: Callable[[], str]) -> None:
    """Retry-After, as seconds and as a date (RFC 9110 section 10.2.3): within the same run, not before, and the certificate comes."""
    name = host.add(host.name())
    between.odd["order-plz"] = [(status, "rateLimited", {"Retry-After": when})]
    before = len(between.times("order-plz"))
    renew(host, name)
    first, second = between.times("order-plz")[before:before + 2]      # a third where Pebble does not find what is to be replaced
    assert second - first >= 1 and is_issued(host, name)


def test_a_long_wait_is_remembered(host: Host, between: Between) -> None:
    """An hour: this run ends, says so, and none before that time asks again, not even where an administrator waits."""
    name = host.add(host.name())
    between.odd["order-plz"] = [(429, "rateLimited", {"Retry-After": "3600"})]
    assert "said by something in between" in renew(host, name, os.EX_TEMPFAIL)
    count = len(between.times("order-plz"))
    found = json.loads(stage.read(f"{STATE}/issuer/{name}.json"))
    assert found["class"] == "rate limited" and found["next_try"] >= time.time() + 3500
    renew(host, name, os.EX_TEMPFAIL)
    host.run("certdrop-issue", "--cron", "--no-install")
    assert len(between.times("order-plz")) == count
    assert json.loads(stage.read(f"{STATE}/issuer/{name}.json"))["count"] == 1


def test_a_renewal_that_fails_is_under_a_back_off(host: Host, between: Between) -> None:
    """A site that has a certificate, too: cron's next runs leave it alone until its time, and count on from there."""
    name = host.add(host.name())
    host.run("certdrop", "renew", "--force", name, code=0)
    path = f"{STATE}/issuer/{name}.json"
    pem = stage.read(f"{STATE}/live/{name}/cert.pem")
    hour = datetime.timedelta(hours=1)
    host.world.pebble.set_renewal_info(pem, datetime.datetime.now(datetime.timezone.utc) - 2 * hour, datetime.datetime.now(datetime.timezone.utc) - hour)
    rewrite(path, poll_at=1)
    between.odd["order-plz"] = [(400, "rejectedIdentifier", {})] * 9
    before = len(between.times("order-plz"))
    for count in (1, 2):
        for _ in range(3):
            host.run("certdrop-issue", "--cron", "--no-install")
        found = json.loads(stage.read(path))
        assert found["count"] == count == len(between.times("order-plz")) - before - 1 and found["next_try"] > time.time() + 40
        rewrite(path, next_try=int(time.time()) - 1)


def rewrite(path: str, **changes: int) -> None:
    """Change the ledger as time would."""
    found, owner = {**json.loads(stage.read(path)), **changes}, os.stat(path)
    stage.write(path, json.dumps(found))
    os.chown(path, owner.st_uid, owner.st_gid)


def test_a_finalize_that_came_too_early(host: Host, between: Between) -> None:
    """orderNotReady (RFC 8555 section 7.4): the order is looked at again, and finalized when it is ready."""
    name = host.add(host.name())
    between.odd["finalize"] = [(403, "orderNotReady", {})]
    renew(host, name)
    assert len(between.times("finalize")) >= 2 and is_issued(host, name)


def test_a_ca_that_trips_over_what_is_replaced(host: Host, between: Between) -> None:
    """serverInternal at an order that names a certificate to be replaced: once more without."""
    name = host.add(host.name())
    host.run("certdrop", "renew", "--force", name, code=0)                             # from this CA, so that there is something to name
    between.odd["order-plz"] = [(500, "serverInternal", {})]
    before = len(between.times("order-plz"))
    renew(host, name)
    assert len(between.times("order-plz")) == before + 2 and is_issued(host, name)


def test_a_ca_that_is_out_of_order(host: Host, between: Between) -> None:
    """500 at every order: the CA's trouble, told, under back-off; the next try works."""
    name = host.add(host.name())
    between.odd["order-plz"] = [(500, "serverInternal", {})] * 4
    assert "serverInternal: said by something in between" in renew(host, name, os.EX_TEMPFAIL)
    assert json.loads(stage.read(f"{STATE}/issuer/{name}.json"))["class"] == "CA unreachable"
    between.odd.clear()
    renew(host, name)
    assert is_issued(host, name)


# ---- a change of account

def deactivate(host: Host) -> None:
    """The administrator ends the account; the next order makes another."""
    host.run("certdrop-account", "deactivate", "--yes", code=0)


def lose(host: Host) -> None:
    """As after an import without the account's key."""
    for parent in (STATE + "/account", STATE + "/issuer"):
        for entry in os.listdir(parent):
            if "between" in entry:
                os.unlink(f"{parent}/{entry}")


@pytest.mark.parametrize("status, problem, change", [
    (403, "unauthorized", deactivate), (403, "unauthorized", lose), (409, "alreadyReplaced", lose), (400, "malformed", lose), (403, "madeUp", lose)])
def test_a_change_of_account(host: Host, between: Between, status: int, problem: str, change: Callable[[Host], None]) -> None:
    """A CA that takes an order as a replacement only by the account that the certificate was issued to: asked once more without, and renewed."""
    name = host.add(host.name())
    host.run("certdrop", "renew", "--force", name, code=0)
    between.of_another_account = status, problem
    host.run("certdrop", "renew", "--force", name, code=0)
    log = stage.read("/var/log/certdrop/issuer.log")[-1500:]
    assert "replaces" in between.orders[-1], (between.orders, log)         # by the same account it is a replacement
    change(host)
    live, before = host.live(name), len(between.orders)
    host.run("certdrop", "renew", "--force", name, code=0)
    assert ["replaces" in order for order in between.orders[before:]] == [True, False]
    assert host.live(name) == live + 1 and host.served(name) == host.on_disk(name)
    assert "did not request the certificate" in stage.read("/var/log/certdrop/issuer.log")
    host.run("certdrop", "renew", "--force", name, code=0)
    assert ["replaces" in order for order in between.orders[before:]] == [True, False, True]


def test_what_is_no_replacement_is_not_named_again(host: Host, between: Between) -> None:
    """Where that order failed after all, the next try spares the CA the question."""
    name = host.add(host.name())
    host.run("certdrop", "renew", "--force", name, code=0)
    between.of_another_account = 403, "unauthorized"
    lose(host)
    host.world.dns.set_servfail(name)
    before = len(between.orders)
    try:
        renew(host, name, os.EX_TEMPFAIL)
        renew(host, name, os.EX_TEMPFAIL)
    finally:
        host.world.dns.clear_servfail(name)
    assert ["replaces" in order for order in between.orders[before:]] == [True, False, False]
    assert json.loads(stage.read(f"{STATE}/issuer/{name}.json"))["class"] == "validation"


def test_a_dry_run_tells_what_it_cannot_try(host: Host, between: Between) -> None:
    """It is by another account, and replaces nothing: what the CA says to such an order, and that the last real one failed, is told all the same."""
    name = host.add(host.name())
    host.run("certdrop", "renew", "--force", name, code=0)
    between.of_another_account = 403, "unauthorized"
    text = host.run("certdrop-issue", "--dry-run", name, code=0).text
    assert "thrown away" in text and "did not request the certificate being replaced" in text
    between.odd["order-plz"] = [(403, "unauthorized", {})]
    between.of_another_account = None
    number = json.loads(stage.read(f"{STATE}/issuer/{name}.json")).get("count", 0)
    between.odd["order-plz"] *= 3
    renew(host, name, os.EX_DATAERR)
    between.odd.clear()
    assert json.loads(stage.read(f"{STATE}/issuer/{name}.json"))["count"] == number + 1
    said = host.run("certdrop-issue", "--dry-run", name, code=0).text
    assert re.search("the last real order failed: [^;]*; a dry run tries neither the account nor what is replaced; the CA says unauthorized", said), said


# ---- a CA in trouble, or one that lies

def test_nonces_that_are_refused_each_time(host: Host, between: Between) -> None:
    """An order is sent three times, and then left to the back-off."""
    name = host.add(host.name())
    between.odd["order-plz"] = [(400, "badNonce", {})] * 99
    before = len(between.times("order-plz"))
    assert "badNonce" in renew(host, name, os.EX_TEMPFAIL)
    assert len(between.times("order-plz")) == before + 3
    found = json.loads(stage.read(f"{STATE}/issuer/{name}.json"))
    assert found["class"] == "CA unreachable" and found["next_try"] > time.time() + 40
    between.odd.clear()


def test_an_account_at_another_host(host: Host, between: Between) -> None:
    """What the signer would not sign for is told as the CA's, and not kept: the next order asks again."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    lose(host)
    between.odd_headers["sign-me-up"] = {"Location": "https://evil.example.org/account/1"}
    text = host.run("certdrop-issue", "--verbose", "--no-install", name, code=os.EX_TEMPFAIL).text
    assert "the CA names an account at another host (https://evil.example.org/account/1)" in text
    between.odd_headers.clear()
    host.run("certdrop", "renew", "--force", name, code=0)


@pytest.mark.parametrize("account", ["https://evil.example.org/account/1", f"https://{HOST}:{PORT}/my-account/4711", 7, f"https://{HOST}:{PORT}/\u0000", ["x"]])
def test_a_kept_account_that_is_none_of_ours(host: Host, between: Between, account: object) -> None:
    """Whoever wrote it there: it is forgotten, and asked for again, in the same run."""
    name = host.add(host.name())
    (path,) = [f"{STATE}/issuer/{entry}" for entry in os.listdir(STATE + "/issuer") if entry.startswith("account@between")]
    owner, found = os.stat(path), json.loads(stage.read(path))
    right = found["account"]
    stage.write(path, json.dumps({**found, "account": account}))
    os.chown(path, owner.st_uid, owner.st_gid)
    host.run("certdrop", "renew", "--force", name, code=0)
    assert json.loads(stage.read(path))["account"] == right


def serve_proxy(listener: socket.socket, seen: list[str], refuse: bool) -> None:
    """A proxy that only connects (RFC 9110 section 9.3.6)."""
    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        line = client.recv(65536).decode("latin-1").partition("\r\n")[0]
        seen.append(line)
        if refuse:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            client.close()
            continue
        host, _, port = line.split()[1].rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for pair in ((client, server), (server, client)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


@pytest.mark.parametrize("refuse", [False, True])
def test_a_proxy(host: Host, refuse: bool) -> None:
    """The CA is reached through the configured proxy and not beside it; a proxy that refuses is told as one."""
    seen: list[str] = []
    listener = socket.create_server(("127.0.0.1", PROXY))
    threading.Thread(target=serve_proxy, args=(listener, seen, refuse), daemon=True).start()
    try:
        name = host.add(host.name())
        host.configure(proxy=f'"http://127.0.0.1:{PROXY}"')
        text = renew(host, name, os.EX_TEMPFAIL if refuse else 0)
        wanted = f"CONNECT {host.world.pebble.host}:{host.world.pebble.port} "
        assert seen and all(line.startswith(wanted) for line in seen)
        assert is_issued(host, name) is not refuse
        assert not refuse or "403" in text
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()

"""A CA that is broken in every way we know of: each is one clear line, the right exit code, a note in the ledger, and no leftovers."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from typing import Any, Callable

import pytest
from conftest import SPOOL, STATE, Host
from renewal import ca, gone_afterwards, restart

import world as stage

__all__ = ["ca", "gone_afterwards"]

PORT = 14100
HOST = "bad.stage.test"


class BadServer:
    """A CA that answers as `behave` does: it is given each connection, and the request's first line."""

    def __init__(self, behave: Callable[[Any, str], None], certificate: str = HOST, tls: bool = True) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*stage.Authority().issue("bad", certificate))
        self.behave, self.tls, self.count = behave, tls, 0
        self.listener = socket.create_server(("127.0.0.1", PORT))
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> BadServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.count += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            if self.tls:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection:
                self.behave(connection, connection.recv(65536).decode("latin-1").partition("\r\n")[0])
        except OSError:
            pass


def answer(connection: Any, body: bytes, status: str = "200 OK", *headers: str) -> None:
    connection.sendall("\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]).encode() + body)


def endless(connection: Any, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def dripping(connection: Any, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(3000):
        connection.sendall(b"X-A: b\r\n")
        time.sleep(0.5)


def black_hole(connection: Any, _: str) -> None:
    time.sleep(100)


def reset(connection: Any, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.unwrap()


def retry_later(connection: Any, _: str) -> None:
    answer(connection, b'{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many requests"}', "503 Service Unavailable", "Retry-After: 7200")


def redirect(connection: Any, _: str) -> None:
    answer(connection, b"", "302 Found", "Location: http://169.254.169.254/")


def ledger(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stage.read(f"{STATE}/issuer/{name}.json"))
    return found


def issue(host: Host, name: str, code: int) -> str:
    """Ask for one site; the line that was said."""
    text = host.run("certdrop-issue", "--verbose", "--no-install", name, code=code).text
    assert os.listdir(SPOOL + "/challenges") == []
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("behave,words", [
    (lambda c, _: answer(c, b"<html>welcome to the hotel"), "is no ACME directory"),
    (lambda c, _: answer(c, b"[" * 100000), "is no ACME directory"),
    (lambda c, _: answer(c, b"\xff\xfe"), "is no ACME directory"),
    (lambda c, _: answer(c, b'{"newNonce": 3, "newAccount": null, "newOrder": []}'), "is no ACME directory"),
    (lambda c, _: answer(c, b"sorry", "500 Internal Server Error"), "answered with status 500"),
    (lambda c, _: c.sendall(b"220 ESMTP\r\n"), "220 ESMTP"),
    (endless, "an answer longer than 1048576 bytes"),
    (reset, "onnection"),
    (redirect, "http://169.254.169.254/: not an https URL; certdrop speaks nothing else to a CA"),
    (retry_later, "too many requests")])
def test_a_ca_that_talks_nonsense(host: Host, behave: Callable[[Any, str], None], words: str) -> None:
    """One line that says what came, exit 75, and a back-off; the answer that never ends is cut."""
    name = host.waiting()
    with BadServer(behave):
        host.configure(directory=f'"https://{HOST}:{PORT}/dir"')
        begin = time.monotonic()
        text = issue(host, name, os.EX_TEMPFAIL)
        assert words in text and "the placeholder stays; next try at" in text, text
        assert time.monotonic() - begin < 60
    found = ledger(name)
    assert found["count"] == 1 and found["next_try"] > time.time() + (7000 if behave is retry_later else 40)


@pytest.mark.parametrize("behave", [black_hole, dripping])
def test_a_black_hole(host: Host, behave: Callable[[Any, str], None]) -> None:
    """A CA that accepts and never answers, or sends a line now and then, is left after 30 seconds."""
    name = host.waiting()
    with BadServer(behave):
        host.configure(directory=f'"https://{HOST}:{PORT}/dir"')
        begin = time.monotonic()
        assert "no complete answer within 30 s" in issue(host, name, os.EX_TEMPFAIL)
        assert time.monotonic() - begin > 25


def test_a_tls_certificate_that_does_not_verify(host: Host) -> None:
    """Another name, and another root: neither is spoken to."""
    name = host.waiting()
    with BadServer(lambda c, _: answer(c, b"{}"), certificate="other.stage.test"):
        host.configure(directory=f'"https://{HOST}:{PORT}/dir"')
        assert "does not verify" in issue(host, name, os.EX_TEMPFAIL)
    host.configure(ca_bundle='"/etc/ssl/certs/ca-certificates.crt"')
    assert "does not verify" in issue(host, name, os.EX_TEMPFAIL)
    assert ledger(name)["class"] == "CA unreachable"


def test_no_ca_at_all(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """Nobody listens: said at once; the next try is a failure's, and with the CA back all is well."""
    name = host.waiting()
    ca.stop()
    assert "refused" in issue(host, name, os.EX_TEMPFAIL)
    assert host.run("certdrop-issue", "--cron").text == ""
    ca.start()
    host.configure()
    host.run("certdrop", "renew", name, code=0)
    assert host.served(name) == host.on_disk(name)


def test_nonces_are_refused(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """As many good nonces refused as Pebble does by itself: the order passes all the same."""
    restart(host, nonce_reject=5)
    host.run("certdrop", "renew", host.waiting(), code=0)


@pytest.mark.parametrize("reuse", [0, 100])
def test_authorizations_reused_or_not(host: Host, ca: stage.Pebble, reuse: int) -> None:  # noqa: F811
    """Whether the CA remembers a validation or not, a renewal passes."""
    restart(host, authz_reuse=reuse)
    name = host.waiting()
    host.run("certdrop", "renew", name, code=0)
    host.run("certdrop", "renew", "--force", name, code=0)
    assert host.live(name) == 3


def test_slow_validations(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """A CA that takes its time, and says how long to wait."""
    restart(host, sleep=3, retry_after=(1, 1))
    host.run("certdrop", "renew", host.waiting(), code=0)


def test_a_ca_that_forgot_us(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """Accounts lost between orders: registered again, once, in the same run."""
    name = host.waiting()
    host.run("certdrop", "renew", name, code=0)
    restart(host)
    host.run("certdrop", "renew", name, code=0)
    assert host.live(name) == 3


def test_a_ca_that_is_restarted_in_mid_order(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """The order is lost with the account; once a person made another, the next try gets its certificate."""
    name = host.waiting()
    restart(host, sleep=5)
    before = len(ca.requests())
    done: list[str] = []
    runner = threading.Thread(target=lambda: done.append(host.run("certdrop-issue", "--verbose", "--no-install", name).text))
    runner.start()
    stage.wait_for(lambda: any("chalZ" in line for line in ca.requests()[before:]), 20, "a challenge")
    ca.restart(sleep=0)
    host.configure()
    runner.join(60)
    host.run("certdrop-account", "register", "--yes", code=0)
    host.run("certdrop", "renew", name, code=0)
    assert os.listdir(SPOOL + "/challenges") == []
    assert host.served(name) == host.on_disk(name)


def test_a_name_that_fails_does_not_stop_the_others(host: Host) -> None:
    """Two sites, one of which resolves to nothing: the other one is issued; the CA's own words and the name are told."""
    bad, good = host.waiting(), host.waiting()
    host.world.dns.set_servfail(bad)
    done = host.run("certdrop-issue", "--verbose", "--no-install", bad, good, code=os.EX_TEMPFAIL)
    host.world.dns.clear_servfail(bad)
    assert f"{good}: issued" in done.text and f"{bad}: the CA could not validate {bad}; the placeholder stays; next try at" in done.text, done
    assert done.text.count("the CA says") == 1
    assert ledger(bad)["class"] == "validation" and ledger(bad)["count"] == 1
    assert os.listdir(SPOOL + "/challenges") == []


def test_failures_are_under_a_back_off(host: Host) -> None:
    """cron does not try again before its time; an administrator's word does; then the budget refuses, and names its key."""
    name = host.waiting()
    host.configure(limits="{failed_per_name_and_hour = 2}")
    host.world.dns.set_servfail(name)
    issue(host, name, os.EX_TEMPFAIL)
    host.run("certdrop-issue", "--cron", "--no-install")
    assert ledger(name)["count"] == 1
    issue(host, name, os.EX_TEMPFAIL)
    before = len(host.world.pebble.requests())
    text = issue(host, name, os.EX_TEMPFAIL)
    assert f"2 validations of {name} failed in the last hour" in text and "failed_per_name_and_hour in [limits]" in text
    assert set(host.world.pebble.requests()[before:]) <= {"HEAD /nonce-plz"}       # a connection is opened while it looks, and nothing asked
    assert "2 validations" in host.run("certdrop-issue", "--verbose", "--no-install", "--force", name, code=os.EX_TEMPFAIL).text
    host.world.dns.clear_servfail(name)
    host.configure(limits="{failed_per_name_and_hour = 3}")
    host.run("certdrop-issue", "--no-install", "--force", name, code=None)


def test_killed_in_mid_order(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """kill -9 leaves a token; the next run removes it, and gets the certificate."""
    name = host.waiting()
    restart(host, sleep=5)
    process = subprocess.Popen(["/usr/sbin/certdrop-issue", "--no-install", name], start_new_session=True, user="_certdrop", group="_certdrop", extra_groups=[])
    stage.wait_for(lambda: os.listdir(SPOOL + "/challenges"), 20, "a token")
    os.killpg(process.pid, 9)
    process.wait()
    assert os.listdir(SPOOL + "/challenges") != []
    restart(host, sleep=0)
    host.run("certdrop", "renew", name, code=0)
    assert os.listdir(SPOOL + "/challenges") == [] and host.served(name) == host.on_disk(name)


def test_a_chain_to_a_root_that_is_not_known_names_the_file(host: Host) -> None:
    """The refusal says which roots were looked at and where this CA's own are looked for; put there, under a name without the port, they are taken."""
    name = host.name()
    host.add(name)
    pebble = host.world.pebble
    before = host.live(name)
    host.configure(trust_roots='"/etc/ssl/certs/ca-certificates.crt"')
    done = host.run("certdrop", "renew", "--force", name)
    own = "/etc/certdrop/roots.d/" + pebble.directory_url.split("/")[2] + ".pem"
    assert done.code
    assert f"(untrusted): it leads to no root in /etc/ssl/certs/ca-certificates.crt; this CA's own roots are looked for in {own}" in done.text, done
    assert host.live(name) == before
    found = own.rpartition(":")[0] + ".pem"
    try:
        stage.write(found, stage.read(pebble.root()))
        stage.write("/etc/certdrop/roots.d/mine.pem", "")
        assert "roots.d/mine.pem: no configured CA uses it" in host.run("certdrop-check", "--offline", name).text
        assert found + ": no configured" not in host.run("certdrop-check", "--offline", name).text
        host.run("certdrop", "renew", "--force", name, code=0)
    finally:
        for path in (found, "/etc/certdrop/roots.d/mine.pem"):
            if os.path.exists(path):
                os.unlink(path)
    assert host.live(name) != before

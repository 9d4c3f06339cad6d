"""nginx broken, in each of the ways that happen: nothing is lost, the way back is taken only where it helps, and the CA is never asked again for it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time
from typing import Iterator

import pytest
import world as stage
from conftest import STATE, Host
from forger import Case, Forger

BROKEN = "/etc/nginx/conf.d/broken.conf"
NGINX_TOML = "/etc/certdrop/services.d/nginx.toml"


@pytest.fixture(scope="module")
def forger() -> Forger:
    """One CA for all of these tests."""
    return Forger()


@pytest.fixture
def case(host: Host, forger: Forger) -> Iterator[Case]:
    """A site that is added, and trusted replies; afterwards nginx and the site are as if nothing had been."""
    forger.trust(host)
    found = Case(host, forger)
    service = stage.read(NGINX_TOML)
    yield found
    stage.write(NGINX_TOML, service)
    if os.path.exists(BROKEN):
        os.unlink(BROKEN)
    host.world.nginx.remove_site(found.name)
    if host.world.nginx.pid():
        host.world.nginx.reload()
    host.run("certdrop", "remove", found.name, code=0)


def test_a_syntax_error_of_somebody_else(case: Case) -> None:
    """Nothing moves and nothing is reloaded; the message says that it is not the certificate's fault; once nginx is mended the same reply is installed."""
    case.serve()
    assert case.install() == case.host.live(case.name)
    before, workers = case.standing(), case.host.world.nginx.workers()
    stage.write(BROKEN, "bogus on;\n")
    case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (before[0], before[1], before[2] + 1)
    assert case.served and case.host.world.nginx.workers() == workers
    assert case.notes["state"] == "service-failed" and "not this certificate's fault" in case.notes["error"] and "bogus" in case.notes["error"]
    os.unlink(BROKEN)
    case.install(answer=False)
    assert case.standing() == (before[0], before[1], before[2] + 1)              # not before the back-off has passed
    case.let_time_pass()
    case.install(answer=False)
    assert case.standing() == (before[2], before[2], before[2] + 1)
    assert case.served and case.notes == {}


def test_a_reload_that_fails_after_the_test_passed(case: Case) -> None:
    """nginx -t does not see a port that another process has: the old certificate is shown on, live goes back, the same reply is tried again with back-off."""
    case.serve()
    case.install()
    before = case.standing()
    with socket.create_server(("127.0.0.1", 8444)):
        case.host.world.nginx.add_site("taken", "server { listen 127.0.0.1:8444; }")
        case.install(code=os.EX_TEMPFAIL)
        assert case.standing() == (before[0], before[1], before[2] + 1)
        assert case.served
        assert (case.notes["state"], case.notes["number"], case.notes["tries"]) == ("issued-not-served", before[2], 1)
        assert case.host.status(case.name)["state"] == "issued-not-served"
        before_it = case.notes
        case.install(answer=False)
        assert case.notes == before_it                                            # no flapping on every run
    case.host.world.nginx.remove_site("taken")
    case.let_time_pass()
    case.install(answer=False)
    assert case.standing() == (before[2], before[2], before[2] + 1)               # by the reply that was there: next is not asked for
    assert case.served and case.notes == {}


def test_a_reload_that_does_nothing(case: Case) -> None:
    """A reload that ends well and changes nothing is found out by the handshake; after a minute it is tried again, then more rarely."""
    case.serve()
    case.install()
    before = case.standing()
    stage.write(NGINX_TOML, stage.read(NGINX_TOML).replace('"/usr/sbin/nginx", "-s", "reload"', '"/bin/true"'))
    case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (before[0], before[1], before[2] + 1) and case.notes["state"] == "issued-not-served"
    assert 50 < case.notes["next_try"] - time.time() <= 60


def test_a_placeholder_that_is_shown_on(case: Case) -> None:
    """Where the placeholder was served, a first certificate that does not show is no mere `installed`; the next try reloads, and proves it."""
    case.serve()
    service = stage.read(NGINX_TOML)
    stage.write(NGINX_TOML, service.replace('"/usr/sbin/nginx", "-s", "reload"', '"/bin/true"'))
    number = case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (number, 0, number + 1)                             # there is nothing better to go back to
    assert case.notes["state"] == "issued-not-served"
    stage.write(NGINX_TOML, service)
    case.let_time_pass()
    case.install(answer=False)
    assert case.standing() == (number, number, number + 1) and case.served


@pytest.mark.parametrize("proven", [True, False])
def test_killed_before_the_test_of_what_nginx_does_not_take(case: Case, proven: bool) -> None:
    """Live is at what was never proven, damaged so that nginx does not start: the next run goes back to what it starts with, says so, and asks for another."""
    case.serve()
    if proven:
        case.install()
    before = case.standing()
    case.host.world.nginx.add_site("broken", "server { nonsense on; }")
    case.install(code=os.EX_TEMPFAIL)                                             # written, not moved
    assert case.standing() == (before[0], before[1], before[2] + 1)
    case.host.world.nginx.remove_site("broken")
    stage.write(f"{STATE}/sites/{case.name}/{before[2]:04d}/fullchain.pem", "no certificate\n")
    os.symlink(f"../sites/{case.name}/{before[2]:04d}", f"{STATE}/live/.moved")
    os.rename(f"{STATE}/live/.moved", f"{STATE}/live/{case.name}")
    notes = json.loads(stage.read(f"{STATE}/keeper/{case.name}.json"))
    stage.write(f"{STATE}/keeper/{case.name}.json", json.dumps({**notes, "install": {}}))
    assert not case.host.world.nginx.test()[0]
    case.host.run("certdrop-install", code=os.EX_IOERR)
    assert case.host.world.nginx.test()[0] and case.standing() == (before[0], before[1], before[2] + 1)
    assert not os.path.exists(f"{STATE}/sites/{case.name}/{before[2]:04d}/nginx.conf")         # withdrawn, and removed
    number = case.install()
    assert case.standing() == (number, number, number + 1) and case.served


def test_an_include_that_points_elsewhere(case: Case) -> None:
    """nginx reloads, and shows the generation that somebody's block names: not served, taken back, and said."""
    case.serve()
    number = case.install()
    case.serve(include=f"{STATE}/sites/{case.name}/{number:04d}/nginx.conf")
    case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (number, number, number + 2)
    assert case.notes["state"] == "issued-not-served" and "the one before serves again" in case.notes["error"]


def test_nginx_not_running(case: Case) -> None:
    """Going back would not help, so it stays; once nginx runs the next try proves it, and the CA was not asked."""
    case.serve()
    case.install()
    before = case.standing()
    case.host.world.nginx.stop()
    case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (before[2], before[1], before[2] + 1)
    assert case.notes["state"] == "issued-not-served"
    error = str(case.notes["error"])
    assert "nginx did not reload (" in error and error.endswith("is not shown: nobody answers; it stays in place")
    assert case.host.status(case.name)["state"] == "issued-not-served"
    case.host.world.nginx.start(443)
    assert case.served
    found = case.host.status(case.name)                                           # seen, whatever root noted
    assert (found["state"], found["severity"], found["last_error"]) == ("serving", 0, None)
    case.install(answer=False)                                                    # nor is the back-off waited for
    assert case.standing() == (before[2], before[2], before[2] + 1) and case.notes == {}


def test_certdrop_install_by_hand_says_what_it_did(case: Case) -> None:
    """At a terminal: what was put off is tried again and said; and where nothing was to be done, that."""
    case.serve()
    case.install()
    case.host.world.nginx.stop()
    number = case.install(code=os.EX_TEMPFAIL)
    case.host.world.nginx.start(443)
    assert f"{case.name}: generation {number:04d} is installed, and served" in at_terminal(case.host)
    assert "certdrop-install: all sites: nothing was to be done" in at_terminal(case.host)


def at_terminal(host: Host) -> str:
    """What certdrop-install says to somebody who runs it by hand."""
    return host.run("script", "-qec", "certdrop-install", "/dev/null", code=0).text


def test_nginx_does_not_know_the_name_yet(case: Case) -> None:
    """Installed: no alarm, no way back, success; and proven by the first run after nginx shows it."""
    number = case.install()
    assert case.standing() == (number, 0, number + 1)
    assert case.notes == {} and case.host.status(case.name)["state"] == "installed"
    case.install(answer=False)
    assert case.notes == {}
    case.serve()
    case.install(answer=False)
    assert case.standing() == (number, number, number + 1)


@pytest.fixture
def alone(host: Host) -> Iterator[None]:
    """nginx without the sites of other tests: where one listens on all addresses, nginx binds no single one."""
    enabled, nginx = pathlib.Path("/etc/nginx/sites-enabled"), host.world.nginx
    kept = {entry.name: os.readlink(entry) for entry in enabled.iterdir()}
    nginx.stop()
    for name in kept:
        (enabled / name).unlink()
    nginx.start()
    yield
    nginx.stop()
    for name, target in kept.items():
        if not (enabled / name).is_symlink():
            (enabled / name).symlink_to(target)
    nginx.start()


@pytest.mark.usefixtures("alone")
def test_a_listener_on_one_address_of_several(case: Case) -> None:
    """A site that is bound to one address is proven there; what others show on other addresses of the same port is theirs."""
    case.serve("127.0.0.2:443 ssl")
    other = Case(case.host, case.forger)
    other.serve("127.0.0.3:443 ssl")
    try:
        assert case.install() == case.host.proven(case.name)
        assert case.install() == case.host.proven(case.name)
        assert stage.fingerprint(stage.served_certificate(case.name, "127.0.0.2")) == case.host.on_disk(case.name)
        assert case.host.proven(other.name) == 0
    finally:
        case.host.world.nginx.remove_site(other.name)
        case.host.world.nginx.reload()
        case.host.run("certdrop", "remove", other.name, code=0)


def probe(case: Case, text: str) -> None:
    """Say in the site's file where it is to be asked."""
    with open(f"/etc/certdrop/sites.d/{case.name}.toml", "a") as stream:
        stream.write(f'probe = "{text}"\n')


@pytest.mark.parametrize("listen, where", [("8445 ssl", "127.0.0.1:8445"), ("[::1]:8446 ssl", "[::1]:8446"), ("127.0.0.9:8447 ssl", "127.0.0.9:8447")])
def test_another_port(case: Case, listen: str, where: str) -> None:
    """A site's `probe` names the place where it is proven."""
    probe(case, where)
    case.serve(listen)
    number = case.install()
    assert case.standing() == (number, number, number + 1)


def test_not_shown_at_another_port(case: Case) -> None:
    """The place of `probe` alone counts: what is not shown there is taken back, though port 443 shows it."""
    probe(case, "127.0.0.1:8445")
    case.serve("8445 ssl")
    number = case.install()
    pinned = f"{STATE}/sites/{case.name}/{number:04d}/nginx.conf"
    case.host.world.nginx.add_site("pinned", f"server {{ listen 8445 ssl; server_name {case.name}; include {pinned}; }}")
    case.serve("443 ssl")
    case.install(code=os.EX_TEMPFAIL)
    case.host.world.nginx.remove_site("pinned")
    assert case.standing() == (number, number, number + 2)


def test_ipv6_only(case: Case) -> None:
    """A site that listens on IPv6 alone is asked there, whatever IPv4 shows."""
    case.serve("[::1]:443 ssl")
    for _ in range(2):
        assert case.install() == case.host.proven(case.name)
    assert stage.fingerprint(stage.served_certificate(case.name, "::1")) == case.host.on_disk(case.name)


@pytest.mark.usefixtures("alone")
def test_proxy_protocol(case: Case) -> None:
    """probe = "proxy-protocol" says the PROXY line first, without which nginx answers nothing."""
    probe(case, "proxy-protocol")
    case.serve("127.0.0.4:443 ssl proxy_protocol")
    number = case.install()
    assert case.standing() == (number, number, number + 1)


def test_nobody_is_asked(case: Case) -> None:
    """probe = "off": the reload's exit status is all that counts."""
    probe(case, "off")
    number = case.install()
    assert case.standing() == (number, number, number + 1)
    case.host.world.nginx.stop()
    case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (number + 1, number, number + 2) and case.notes["state"] == "service-failed"
    case.host.world.nginx.start()
    case.let_time_pass()
    case.install(answer=False)
    assert case.standing() == (number + 1, number + 1, number + 2)


def connect(name: str, address: str = "127.0.0.1") -> ssl.SSLSocket:
    """A TLS connection that is not verified."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection((address, 443), 10), server_hostname=name)


def test_old_workers_drain(case: Case) -> None:
    """A connection that is in use keeps an old worker alive, with its old certificate: the new one is proven all the same, and the connection is answered."""
    case.serve()
    case.install()
    old = case.host.world.nginx.workers()
    with connect(case.name) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: {case.name}\r\nContent-Length: 2\r\n\r\na".encode())
        assert case.install() == case.host.proven(case.name)
        assert case.served
        assert any(os.path.exists(f"/proc/{pid}") for pid in old)
        connection.sendall(b"b")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("harm", ["reload", "restart"])
def test_somebody_else_in_the_middle(case: Case, harm: str) -> None:
    """Whoever reloads or restarts nginx all the time, every installation comes to be served, and none is taken back."""
    case.serve()
    case.install()
    nginx, stop = case.host.world.nginx, threading.Event()

    def meddle() -> None:
        while not stop.wait(0.05):
            if harm == "reload":
                subprocess.run(["/usr/sbin/nginx", "-s", "reload"], stderr=subprocess.DEVNULL, check=False)
            else:
                os.kill(nginx.pid() or os.getpid(), signal.SIGTERM if nginx.pid() else 0)
                time.sleep(0.1)
                subprocess.run(["/usr/sbin/nginx"], stderr=subprocess.DEVNULL, check=False)
                time.sleep(0.3)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        for _ in range(4):
            assert case.install() == case.host.proven(case.name)
    finally:
        stop.set()
        meddler.join()
        if not nginx.pid():
            nginx.start()
    stage.wait_for(lambda: stage.listening(443) and case.served, 10, "the new certificate")


def test_one_bad_service_file_holds_nobody_up(case: Case, forger: Forger) -> None:
    """A services.d file that is wrong stops the sites that use it, and those alone."""
    case.serve()
    stage.write("/etc/certdrop/services.d/wrong.toml", "tset = []\n")
    bad = Case(case.host, forger)
    with open(f"/etc/certdrop/sites.d/{bad.name}.toml", "a") as stream:
        stream.write('services = ["wrong"]\n')
    try:
        forger.answer(case.host, bad.name)
        assert case.install(code=None) == case.host.proven(case.name)
        assert bad.notes["state"] == "service-failed" and "tset" in bad.notes["error"]
    finally:
        stage.write(f"/etc/certdrop/sites.d/{bad.name}.toml", f'domains = ["{bad.name}"]\n')
        os.unlink("/etc/certdrop/services.d/wrong.toml")
        case.host.run("certdrop", "remove", bad.name, code=0)

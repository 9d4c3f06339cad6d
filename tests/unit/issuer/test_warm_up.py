"""The first words with the CA, while the rest is being loaded: against a TLS server in this process."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certdrop.config import general, site
from certdrop.issuer import connect, warm_up
from certdrop.issuer.failure import UNREACHABLE, Failure
from certdrop.signer import process


def test_it_loads_little():
    """What has to be there before the first packet leaves is quickly loaded: neither cryptography nor structlog is among it."""
    program = ("import sys; from certdrop.issuer import warm_up, account, transport; from certdrop.signer import process; "
               "print({name.partition('.')[0] for name in sys.modules})")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": sys.path[0] + os.pathsep + os.pathsep.join(sys.path)},
                          capture_output=True, text=True, check=True)
    assert "'ssl'" in done.stdout
    assert not [name for name in ("cryptography", "structlog", "acme_tiny", "asyncio") if f"'{name}'" in done.stdout]


def test_a_run_that_only_asks_for_windows_loads_little():
    """Most runs that talk to the CA place no order: what orders need is not loaded for them, nor what writes the log."""
    program = ("import sys; from certdrop.issuer import orders, network, log; from certdrop.signer import process; "
               "log.logger(); print({name.partition('.')[0] for name in sys.modules})")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": sys.path[0] + os.pathsep + os.pathsep.join(sys.path)},
                          capture_output=True, text=True, check=True)
    assert "'ssl'" in done.stdout
    assert not [name for name in ("cryptography", "OpenSSL", "structlog", "acme_tiny", "asyncio", "logging", "inspect") if f"'{name}'" in done.stdout]


class Answers(http.server.BaseHTTPRequestHandler):
    """A directory, and nonces that count."""
    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str]] = []
    base = ""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path))
        body = json.dumps({name: f"{self.base}/{name}" for name in ("newNonce", "newAccount", "newOrder")}).encode() if self.command == "GET" else b""
        self.send_response(200)
        self.send_header("Replay-Nonce", f"nonce{len(self.asked)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(its configuration, what it was asked, how many connections it took)"""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "pair").write_bytes(private + pem)
    (tmp_path / "ca").write_bytes(pem)
    for directory in ("account", "issuer"):
        (tmp_path / directory).mkdir()
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair")
    connections: list[object] = []

    class Server(http.server.ThreadingHTTPServer):
        def finish_request(self, request, address):
            connections.append(address)
            super().finish_request(context.wrap_socket(request, server_side=True), address)

    with Server(("127.0.0.1", 0), Answers) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setattr(Answers, "asked", [])
        monkeypatch.setattr(Answers, "base", f"https://127.0.0.1:{made.server_port}")
        config = general.Config()
        config.directory, config.contact, config.ca_bundle = Answers.base + "/dir", [], str(tmp_path / "ca")
        yield config, Answers.asked, connections
        made.shutdown()


def nobody_asks() -> process.Signer:
    """A signer's socket, at the other end of which nobody is."""
    return process.Signer(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0])


def test_the_first_order_finds_a_nonce(server):
    """One connection, made ahead; over it the directory where it is not known, and one nonce; the order asks for neither again."""
    config, asked, connections = server
    session = warm_up.WarmUp(config, nobody_asks()).take()
    assert [("GET", "/dir"), ("HEAD", "/newNonce")] == asked
    assert "nonce2" == session.nonce()
    assert 2 == len(asked) == session.ahead == session.transport.requests
    session.transport.deadline = time.monotonic() + 10
    assert "nonce3" == session.nonce()
    assert 1 == len(connections)


def test_each_worker_finds_a_nonce(server):
    """As many connections as there are workers with an order, a nonce over each; the directory is asked for once; and then there are no more."""
    config, asked, connections = server
    opened = warm_up.WarmUp(config, nobody_asks(), 3)
    sessions = [opened.take() for _ in range(3)]
    assert 3 == len({session.nonce() for session in sessions}) == len(connections)
    assert [("GET", "/dir"), *[("HEAD", "/newNonce")] * 3] == asked
    assert opened.take() is None


def test_a_failure_is_told_to_who_takes_it(server):
    """As if he had tried himself; the run goes on, and counts it as that order's."""
    config, asked, _ = server
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config.directory = f"https://127.0.0.1:{nobody.getsockname()[1]}/dir"
        opened = warm_up.WarmUp(config, nobody_asks())
        with pytest.raises(Failure) as told:
            opened.take()
    assert UNREACHABLE == told.value.kind
    assert [] == asked


def test_a_dialled_connection():
    """It is made before anybody takes it; and one that never comes is waited for no longer than wanted."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        dialled = connect.Connecting(listening.getsockname(), 10.0)
        accepted, _ = listening.accept()
        with accepted, dialled.take(time.monotonic() + 10) as taken:
            assert accepted.getpeername() == taken.getsockname()
            assert 9 < taken.gettimeout() <= 10
    slow = connect.Connecting(("192.0.2.1", 443), 0.01)
    with pytest.raises(OSError):
        slow.take(time.monotonic() + 0.02)


def test_no_thread_to_dial_with(monkeypatch):
    """No memory, or a limit on processes: an error of this host's, no bug."""
    def start(_self):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(connect.threading.Thread, "start", start)
    with pytest.raises(OSError, match="can't start"):
        connect.Connecting(("127.0.0.1", 443), 1.0)

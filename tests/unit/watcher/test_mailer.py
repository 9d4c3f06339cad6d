"""The ways out, against real servers that take, refuse, hang and lie."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

import watcher.test_evidence                   # noqa: F401
from certdrop.config import site as configuration
from certdrop.watcher import mailer

SECRET = "correct horse battery"


class Mta:
    """An SMTP server with STARTTLS and AUTH, that behaves as it is told: good, refuses-login (and echoes), refuses-mail, hangs, drips, plain."""

    def __init__(self, place: Path, manner: str, name: str = "localhost", implicit: bool = False) -> None:
        self.manner, self.implicit = manner, implicit
        self.text, self.login, self.verbs, self.shaken = b"", "", [""], False
        self.bundle = str(place / "mta.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                        "-addext", f"subjectAltName=DNS:{name}", "-keyout", str(place / "mta.key"), "-out", self.bundle], check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.bundle, place / "mta.key")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                self._talk(self.context.wrap_socket(connection, server_side=True) if self.implicit else connection)
            except (OSError, ValueError):
                pass

    def _talk(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        if self.manner == "hangs":
            stream.read()
        self.shaken = self.implicit
        connection.sendall(b"220 here\r\n")
        while line := stream.readline().decode():
            verb = line.split()[0].upper()
            self.verbs.append(verb)
            answer = "250 ok"
            if verb == "EHLO" and self.manner == "drips":
                while True:
                    connection.sendall(b"250-x\r\n")
                    time.sleep(0.1)
            elif verb == "EHLO":
                answer = "250-here\r\n" + ("" if self.shaken or self.manner == "plain" else "250-STARTTLS\r\n") + "250 AUTH PLAIN"
            elif verb == "STARTTLS":
                connection.sendall(b"220 go\r\n")
                connection = self.context.wrap_socket(connection, server_side=True)
                stream, self.shaken = connection.makefile("rb"), True
                continue
            elif verb == "AUTH" and self.manner == "refuses-login":
                answer = f"535 no such login: {line.strip()} {base64.b64decode(line.split()[2]).decode()}".replace("\0", " ")
            elif verb == "AUTH":
                self.login = base64.b64decode(line.split()[2]).decode()
                answer = "235 welcome"
            elif verb == "RCPT" and self.manner == "refuses-mail":
                answer = "550 go away\x1b[2J"
            elif verb == "DATA":
                connection.sendall(b"354 go on\r\n")
                while (line_of_text := stream.readline()) != b".\r\n":
                    self.text += line_of_text
            elif verb == "QUIT":
                answer = "221 bye"
            connection.sendall(answer.encode() + b"\r\n")

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(configuration, "ETC", str(tmp_path))
    (tmp_path / "smtp-password").write_text(SECRET + "\n")
    (tmp_path / "smtp-password").chmod(0o640)
    return tmp_path


@pytest.fixture
def make(etc: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Mta] = []

    def make_one(manner: str = "good", via: str = "smtp+starttls://watcher@localhost:{}", **more: Any) -> tuple[Mta, mailer.Route]:
        made.append(Mta(etc, manner, **more))
        return made[-1], mailer.Route({"to": ["root", "ops@example.org"], "via": via.format(made[-1].port), "ca_bundle": made[-1].bundle})
    yield make_one
    for server in made:
        server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
@pytest.mark.parametrize("scheme", ["smtp+starttls", "smtps"])
def test_smtp_takes_it_with_login_and_tls(make: Any, scheme: str) -> None:
    """The message arrives whole, over TLS, with the login of the file."""
    server, route = make(via=scheme + "://watcher@localhost:{}", implicit=scheme == "smtps")
    mailer.deliver(route, "subject\nBcc: x@example.org " + "x" * 100, "line one\n.\nline three \x1b[2J\n")
    assert server.shaken and f"\0watcher\0{SECRET}" == server.login
    head, _, body = server.text.partition(b"\r\n\r\n")
    assert b"line one\r\n..\r\nline three \\x1b[2J" in body
    assert b"\nSubject: subject Bcc: x@example.org " + b"x" * 100 + b"\r\n" in head and b"\nBcc:" not in head and b"Auto-Submitted: auto-generated" in head


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
def test_refused_login_does_not_show_the_password(make: Any) -> None:
    """A server that echoes what it was given brings no secret into the error."""
    server, route = make("refuses-login")
    with pytest.raises(mailer.Undelivered) as raised:
        mailer.deliver(route, "s", "b")
    text = str(raised.value)
    blob = base64.b64encode(f"\0watcher\0{SECRET}".encode()).decode()
    assert "535" in text or "no such login" in text
    assert SECRET not in text and blob not in text and "(password)" in text
    assert raised.value.__suppress_context__


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
@pytest.mark.parametrize("name, bundle", [("localhost", "/etc/ssl/certs/ca-certificates.crt"), ("elsewhere.example", "")])
def test_bad_certificate_gets_no_password(make: Any, name: str, bundle: str) -> None:
    """A server whose certificate is not trusted, or is another host's, sees no login."""
    server, route = make(name=name)
    route.ca_bundle = bundle or route.ca_bundle
    with pytest.raises(mailer.Undelivered, match="certificate verify failed"):
        mailer.deliver(route, "s", "b")
    assert "AUTH" not in server.verbs and "MAIL" not in server.verbs


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
def test_server_without_starttls_gets_nothing(make: Any) -> None:
    """Whoever strips STARTTLS on the way gets neither password nor mail."""
    server, route = make("plain")
    with pytest.raises(mailer.Undelivered):
        mailer.deliver(route, "s", "b")
    assert "AUTH" not in server.verbs and "MAIL" not in server.verbs


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
def test_refused_mail_is_said_cleaned(make: Any) -> None:
    """What the server says is in the error, without its control characters."""
    _, route = make("refuses-mail")
    with pytest.raises(mailer.Undelivered, match="go away") as raised:
        mailer.deliver(route, "s", "b")
    assert str(raised.value).isprintable()


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
@pytest.mark.parametrize("manner", ["hangs", "drips"])
def test_slow_server_does_not_hold_us_up(make: Any, monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    """A server that never answers, or answers without end, is left after the time allowed."""
    monkeypatch.setattr(mailer, "PATIENCE", 1)
    monkeypatch.setattr(mailer, "TIMEOUT", -3)              # and five: two seconds for all
    _, route = make(manner)
    begin = time.monotonic()
    with pytest.raises(mailer.Undelivered):
        mailer.deliver(route, "s", "b")
    assert time.monotonic() - begin < 4


@pytest.mark.skipif(os.geteuid() != 0, reason="the password must be root's")
@pytest.mark.parametrize("mode, owner, said", [(0o644, 0, "can be read by others"), (0o660, 0, "mode"), (0o640, 4711, "owner")])
def test_password_file_that_others_have_is_not_used(etc: Path, mode: int, owner: int, said: str) -> None:
    """A password that others may read or write is refused, and the error says how to mend it."""
    (etc / "smtp-password").chmod(mode)
    os.chown(etc / "smtp-password", owner, 0)
    with pytest.raises(mailer.Undelivered, match=said) as raised:
        mailer.password()
    assert "chown root:_certdrop-watch" in str(raised.value) and SECRET not in str(raised.value)


def test_command_gets_the_message(tmp_path: Path) -> None:
    """A fixed command reads the message, with a rebuilt environment and no argument; its failure is said."""
    script = tmp_path / "out"
    script.write_text(f'#!/bin/sh\ncat > {tmp_path}/got; echo "$# $HOME" > {tmp_path}/how; echo mailbox full >&2; exit $(cat {tmp_path}/code)\n')
    script.chmod(0o755)
    route = mailer.Route({"via": f"command:{script}"})
    (tmp_path / "code").write_text("0")
    mailer.deliver(route, "subject", "body\n")
    assert "Subject: subject" in (tmp_path / "got").read_text() and "0 /\n" == (tmp_path / "how").read_text()
    (tmp_path / "code").write_text("75")
    with pytest.raises(mailer.Undelivered, match="ended with 75: mailbox full"):
        mailer.deliver(route, "subject", "body\n")


def test_missing_sendmail_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mail server the message says what to install."""
    monkeypatch.setattr(mailer, "SENDMAIL", "/nonexistent/sendmail")
    with pytest.raises(mailer.Undelivered, match="apt install"):
        mailer.check(mailer.Route({}))


@pytest.mark.parametrize("mail", [
    {"to": []}, {"to": ["-bp"]}, {"to": ["-oQ/tmp"]}, {"to": ["a b"]}, {"to": ["a\nBcc: b"]}, {"to": 3},
    {"via": "pigeon"}, {"via": "command:relative"}, {"via": 1},
    {"via": "smtp://mail.example.org:25"}, {"via": "smtp://u@localhost"}, {"via": "smtp+starttls://u:pw@h.example:587"},
    {"via": "smtp+starttls://u@h.example:99999"}, {"via": "smtps://"}, {"heartbeat": "file:///etc/passwd"}, {"from": "a@b\r\nX: y"}])
def test_wrong_configuration_is_refused(mail: dict[str, object]) -> None:
    """Addresses that are options, headers in addresses, passwords in URLs, and logins without TLS."""
    with pytest.raises(configuration.ConfigError, match="mail"):
        mailer.Route(mail)


@pytest.mark.parametrize("answer, fine", [(b"200 OK", True), (b"302 Found\r\nLocation: http://127.0.0.1:{port}/other", False),
                                          (b"500 No", False), (b"", False)])
def test_heartbeat(answer: bytes, fine: bool) -> None:
    """The URL is fetched once; a redirect, an error or no answer is a failure."""
    listener = socket.create_server(("127.0.0.1", 0))
    port, seen = listener.getsockname()[1], list[bytes]()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            seen.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 " + answer.replace(b"{port}", str(port).encode()) + b"\r\nContent-Length: 0\r\n\r\n" if answer else b"")
            connection.close()
    threading.Thread(target=serve, daemon=True).start()
    route = mailer.Route({"heartbeat": f"http://127.0.0.1:{port}/ping"})
    if fine:
        mailer.beat(route)
    else:
        with pytest.raises(mailer.Undelivered, match="heartbeat"):
            mailer.beat(route)
    listener.close()
    assert 1 == len(seen) and seen[0].startswith(b"GET /ping HTTP/1.1")


@pytest.mark.parametrize("answer", ["delivered", "/usr/sbin/sendmail ended with 1", ""])
def test_a_watcher_that_is_shut_in_hands_its_mail_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """By the socket that its unit names; what the sender there says of a failure is said here."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def sender() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                heard.append(stream.readline())
                connection.sendall(answer.encode() + b"\n" if answer else b"")

        thread = threading.Thread(target=sender, daemon=True)
        thread.start()
        monkeypatch.setenv(mailer.SENDER, str(tmp_path / "socket"))
        if answer == "delivered":
            mailer.deliver(mailer.Route({}), "a subject", "a body\n")
        else:
            with pytest.raises(mailer.Undelivered, match=answer or "no answer"):
                mailer.deliver(mailer.Route({}), "a subject", "a body\n")
        thread.join(5)
    assert json.loads(heard[0]) == {"subject": "a subject", "body": "a body\n"}


def test_without_a_sender_outside_the_mail_is_undelivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the next run tries again."""
    monkeypatch.setenv(mailer.SENDER, str(tmp_path / "nobody"))
    with pytest.raises(mailer.Undelivered, match="nobody"):
        mailer.deliver(mailer.Route({}), "a subject", "a body\n")


def test_the_host_is_named_by_its_own_name(monkeypatch):
    """All hosts of a company may have one mail domain: the subject says which host it is, the sender's address has the domain."""
    monkeypatch.setattr(mailer.os, "uname", lambda: type("Uname", (), {"nodename": "web7.example.net"})())
    monkeypatch.setattr(mailer, "mail_name", lambda: "example.com")
    route = mailer.Route({})
    assert (route.name, route.sender) == ("web7.example.net", "_certdrop-watch@example.com")

"""What a proxy, a load balancer or a scanner between this host and the CA makes of the CA's answers: what means the same is taken as the same."""

from __future__ import annotations

import base64
import gzip
import http.server
import os
import pathlib
import re
import shutil
import socket
import threading
from typing import Any, Iterator

import pytest
from between import HOST, PORT, Between, Said
from conftest import STATE, Host

import world as stage


def crlf(path: str, body: bytes, said: Said) -> Said:
    """Chains with the ends of lines that Windows has."""
    status, headers, text = said
    return status, headers, text.replace(b"\n", b"\r\n") if text.startswith(b"-----BEGIN") else text


def test_other_ends_of_lines(host: Host, between: Between) -> None:
    """RFC 7468 has a reader take CRLF; the spool, and what is installed, have one form."""
    name = host.waiting()
    between.rewrite = crlf
    assert "installed, and served" in host.run("certdrop", "renew", name, code=0).text
    assert "\r" not in stage.read(f"{STATE}/live/{name}/fullchain.pem") and host.served(name) == host.on_disk(name)


def compressed(coding: str, data: bytes | None = None) -> object:
    """Each answer with a body, in a coding that nobody asked for."""
    def rewrite(path: str, body: bytes, said: Said) -> Said:
        status, headers, text = said
        return (status, {**headers, "Content-Encoding": coding}, gzip.compress(text) if data is None else data) if text else said
    return rewrite


def redirecting(there: str, status: int = 302) -> object:
    """A directory that is elsewhere."""
    def rewrite(path: str, body: bytes, said: Said) -> Said:
        return (status, {"Location": there}, b"") if path == "/moved" else said
    return rewrite


def all_three(host: Host, name: str) -> tuple[str, str, str]:
    """What an order, the doctor and the account's own command say, all of whom must have come through."""
    return (host.run("certdrop", "renew", "--force", name, code=0).text, host.run("certdrop-check", name).text,
            host.run("certdrop-account", "show", code=0).text)


def forget(host: Host) -> None:
    """What the issuer knows of the directory is not taken for what is said now."""
    for path in pathlib.Path(f"{STATE}/issuer").glob("account@*"):
        path.unlink()


def well(renewed: str, checked: str, shown: str) -> None:
    assert "installed, and served" in renewed and f"ok      CA: {HOST} answers" in checked, (renewed, checked)
    assert re.search("^status: +valid$", shown, re.M), shown


def test_early_hints(host: Host, between: Between) -> None:
    """103 before each answer (RFC 8297)."""
    name = host.waiting()
    between.interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"
    forget(host)
    well(*all_three(host, name))


def test_compressed_unasked(host: Host, between: Between) -> None:
    """By gzip: unpacked."""
    name = host.waiting()
    between.rewrite = compressed("gzip")
    forget(host)
    well(*all_three(host, name))


@pytest.mark.parametrize("coding, data, says", [
    ("br", b"\x0b\x02\x80", "its answer is compressed (br), which was not asked for, and cannot be read"),
    ("gzip", gzip.compress(bytes(64 << 20)), "an answer longer than 1048576 bytes")], ids=["br", "a bomb"])
def test_what_cannot_be_unpacked(host: Host, between: Between, coding: str, data: bytes, says: str) -> None:
    """All three say so, in the same words, and that the account was lost is said by nobody."""
    name = host.waiting()
    host.run("certdrop-account", "register", "--yes", code=0)
    between.rewrite = compressed(coding, data)
    for argv, code in ((["certdrop-issue", "--verbose", "--force", name], os.EX_TEMPFAIL), (["certdrop-check", name], os.EX_CONFIG),
                       (["certdrop-account", "show"], os.EX_TEMPFAIL)):
        done = host.run(*argv, code=code)
        assert f"{HOST}: {says}" in done.text and "certdrop-account register" not in done.text, done


def test_a_directory_that_moved_at_its_host(host: Host, between: Between) -> None:
    """A redirect is followed by all three, for the directory."""
    name = host.waiting()
    host.configure(directory=f'"https://{HOST}:{PORT}/moved"')
    between.rewrite = redirecting("/dir")
    well(*all_three(host, name))
    forget(host)
    well(*all_three(host, name))


def test_a_directory_that_moved_to_another_host(host: Host, between: Between) -> None:
    """The account is the configured host's: which URL to configure is said by all three."""
    name, there = host.waiting(), host.world.pebble.directory_url
    host.configure(directory=f'"https://{HOST}:{PORT}/moved"')
    between.rewrite = redirecting(there)
    forget(host)
    for argv in (["certdrop-issue", "--verbose", "--force", name], ["certdrop-check", name], ["certdrop-account", "show"]):
        done = host.run(*argv)
        assert f"/moved redirects to another host: {there}; give that URL as directory in certdrop.toml" in done.text and done.code, done


def test_a_signed_request_that_is_redirected(host: Host, between: Between) -> None:
    """Is not sent elsewhere."""
    name = host.waiting()
    between.rewrite = lambda path, body, said: (307, {"Location": "/other"}, b"") if "order-plz" in path else said
    done = host.run("certdrop-issue", "--verbose", "--force", name, code=os.EX_DATAERR)
    assert "what is signed is for one URL" in done.text and not between.times("/other"), done


# ---- a proxy

USER, SECRET = "jane", "s3cret of a proxy"
PASSWORD, PROXY = "/etc/certdrop/proxy-password", 14300


class Through:
    """An HTTP proxy that leads where CONNECT says, for who knows the password."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []             # (where to, Proxy-Authorization)
        through = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                given = self.headers.get("Proxy-Authorization", "")
                through.asked.append((self.path, given))
                if given != "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode():
                    self.send_error(407, f"not by {given}" if given else None)
                    return
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host, int(port))) as far:
                    self.send_response(200)
                    self.end_headers()
                    threading.Thread(target=copy, args=(self.connection, far), daemon=True).start()
                    copy(far, self.connection)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", PROXY), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def copy(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def proxy(host: Host) -> Iterator[Through]:
    """The CA, by way of a proxy with a password, which stands in its file."""
    made = Through()
    stage.write(PASSWORD, SECRET + "\n", 0o640)
    shutil.chown(PASSWORD, "root", "_certdrop")
    host.configure(proxy=f'"http://{USER}@127.0.0.1:{PROXY}"')
    yield made
    made.close()
    pathlib.Path(PASSWORD).unlink(missing_ok=True)


def nowhere(*texts: str) -> None:
    """The password is in nothing that was said or written, in no form."""
    forms = (SECRET, base64.b64encode(SECRET.encode()).decode(), base64.b64encode(f"{USER}:{SECRET}".encode()).decode())
    written = [path.read_text(errors="replace") for top in ("/var/log/certdrop", STATE, "/var/spool/certdrop") for path in pathlib.Path(top).rglob("*")
               if path.is_file()]
    assert not [form for form in forms for text in (*texts, *written) if form in text]


def test_a_proxy_with_a_password(host: Host, proxy: Through) -> None:
    """All three come through, and nobody else may read it."""
    name = host.waiting()
    forget(host)
    renewed, checked, shown = all_three(host, name)
    assert "installed, and served" in renewed and f"ok      CA: {host.world.pebble.host} answers" in checked, (renewed, checked)
    assert re.search("^status: +valid$", shown, re.M) and proxy.asked and all(given for _, given in proxy.asked)
    nowhere(renewed, checked, shown)
    plain = host.run("certdrop-check", name, user="_certdrop-watch").text
    assert "warning CA: the proxy to it wants a password" in plain and "Permission denied" in host.run("cat", PASSWORD, user="_certdrop-watch").text


def test_a_proxy_that_does_not_take_the_password(host: Host, proxy: Through) -> None:
    """It is the proxy that refuses, in the words of all three; it may echo what it got."""
    name = host.waiting()
    host.configure(proxy=f'"http://john@127.0.0.1:{PROXY}"')
    texts = [host.run(*argv).text for argv in (["certdrop-issue", "--verbose", "--force", name], ["certdrop-check", name], ["certdrop-account", "show"])]
    for text in texts:
        assert f"the proxy 127.0.0.1:{PROXY} does not lead to {host.world.pebble.host}:{host.world.pebble.port}: 407 not by Basic (password)" in text, text
        assert "it does not take the user and the password that it was given; the CA was not asked" in text
    nowhere(*texts)


def test_a_proxy_that_is_not_there(host: Host) -> None:
    """It is named, and not the CA."""
    name = host.waiting()
    host.configure(proxy=f'"http://127.0.0.1:{PROXY}"')
    for argv in (["certdrop-issue", "--verbose", "--force", name], ["certdrop-check", name]):
        assert f"the proxy 127.0.0.1:{PROXY}: Connection refused; the CA was not asked" in host.run(*argv).text


@pytest.mark.parametrize("mode, says", [(0o644, "can be read by others"), (None, "No such file or directory")])
def test_the_file_is_not_as_it_must_be(host: Host, proxy: Through, mode: int | None, says: str) -> None:
    """Nothing is asked with it; the doctor says how to mend it, and that helps."""
    name = host.waiting()
    os.chmod(PASSWORD, mode) if mode else os.unlink(PASSWORD)
    done = host.run("certdrop-issue", "--verbose", "--force", name, code=os.EX_CONFIG)
    checked = host.run("certdrop-check", name, code=os.EX_CONFIG).text
    for text in (done.text, checked):
        assert f"{PASSWORD}" in text and says in text and f"mend with chown root:_certdrop {PASSWORD}; chmod 640 {PASSWORD}" in text, text
    assert not proxy.asked
    stage.write(PASSWORD, SECRET + "\n")
    host.run("sh", "-c", f"chown root:_certdrop {PASSWORD}; chmod 640 {PASSWORD}", code=0)
    assert "installed, and served" in host.run("certdrop", "renew", name, code=0).text

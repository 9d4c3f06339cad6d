"""HTTP to the CA as real servers on loopback speak it, byte by byte: what an answer may look like, and what is said where there is none."""

from __future__ import annotations

import base64
import datetime
import gzip
import ipaddress
import json
import pathlib
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certdrop.config import general, site
from certdrop.issuer import directory, transport
from certdrop.issuer import proxy as proxy_module
from certdrop.issuer.failure import Failure
from certdrop.issuer.proxy import Proxy

SECRET = "s3cret: of three"
DIRECTORY = {name: f"https://127.0.0.1:%d/{name}" for name in ("newNonce", "newAccount", "newOrder")}


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """An answer's bytes."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in {"Content_Length": str(len(body)), **headers}.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """Speaks TLS (or, as a proxy, none), reads the heads of requests, and says what `says` has for each path, one after the other."""

    def __init__(self, pair: pathlib.Path | None) -> None:
        self.says: dict[str, list[bytes]] = {}
        self.heads: list[str] = []
        self._context = None
        if pair:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pair)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.base = f"https://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def asked(self) -> list[str]:
        """The first lines of the requests, without the version."""
        return [head.partition(" HTTP/")[0] for head in self.heads]

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        try:
            with (self._context.wrap_socket(plain, server_side=True) if self._context else plain) as sock:
                while head := self._head(sock):
                    self.heads.append(head)
                    method, path = head.split(" ")[:2]
                    said = self.says.get(path, [])
                    data = said.pop(0) if said else answer(status="404 Not Found")
                    sock.sendall(data)
                    if method == "CONNECT" and b" 200 " in data:
                        self._hand_on(sock, path)
                        return
        except OSError:
            pass

    @staticmethod
    def _head(sock: socket.socket) -> str:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(1)
            if not more:
                return ""
            data += more
        return data.decode()

    @staticmethod
    def _hand_on(sock: socket.socket, place: str) -> None:
        host, _, port = place.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            def copy(one: socket.socket, other: socket.socket) -> None:
                try:
                    while data := one.recv(65536):
                        other.sendall(data)
                    other.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            threading.Thread(target=copy, args=(sock, far), daemon=True).start()
            copy(far, sock)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    made = tmp_path_factory.mktemp("tls") / "pair"
    made.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()) + pem)
    return made


@pytest.fixture
def server(pair: pathlib.Path) -> Iterator[Server]:
    made = Server(pair)
    yield made
    made.close()


def a_line(pair: pathlib.Path, proxy: str = "", seconds: float = 10.0) -> transport.Transport:
    return transport.Transport(ssl.create_default_context(cafile=str(pair)), time.monotonic() + seconds, transport.Gate(), Proxy(proxy, SECRET))


@pytest.fixture
def line(pair: pathlib.Path) -> transport.Transport:
    return a_line(pair)


# ---- interim answers

@pytest.mark.parametrize("before", [
    "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 199 Whatever\r\nRetry-After: 9\r\n\r\n"])
def test_interim_answers_are_passed_over(server: Server, line: transport.Transport, before: str) -> None:
    """RFC 9110 section 15.2: any number of 1xx may come first; the connection goes on, and the next answer is the next request's."""
    server.says["/a"] = [before.encode() + answer(b"first"), answer(b"second")]
    assert [(found.status, found.body) for found in (line.request("GET", server.base + "/a"), line.request("GET", server.base + "/a"))] == [
        (200, b"first"), (200, b"second")]


def test_interim_answers_without_end(server: Server, line: transport.Transport) -> None:
    """Are no answer."""
    server.says["/a"] = [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000]
    with pytest.raises(Failure, match="interim"):
        line.request("GET", server.base + "/a")


def test_a_change_of_protocol_that_nobody_asked_for(server: Server, line: transport.Transport) -> None:
    """101 is a final answer, and none to a request of ours."""
    server.says["/a"] = [answer(status="101 Switching Protocols")]
    assert line.request("GET", server.base + "/a").status == 101


# ---- compressed answers

RAW = zlib.compressobj(wbits=-15)
TEXT = json.dumps({"a": "b" * 5000}).encode()


@pytest.mark.parametrize("coding, data", [
    ("gzip", gzip.compress(TEXT)), ("x-gzip", gzip.compress(TEXT)), ("GZIP", gzip.compress(TEXT)), ("deflate", zlib.compress(TEXT)),
    ("deflate", RAW.compress(TEXT) + RAW.flush()), ("identity", TEXT), ("", TEXT), ("gzip, gzip", gzip.compress(gzip.compress(TEXT))),
    ("deflate, gzip", gzip.compress(zlib.compress(TEXT))), ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
    ("gzip", gzip.compress(TEXT) + bytes(7))], ids=range(11))
def test_what_was_compressed_unasked(server: Server, line: transport.Transport, coding: str, data: bytes) -> None:
    """We ask for identity alone; something in between may compress all the same."""
    server.says["/a"] = [answer(data, Content_Encoding=coding)]
    assert line.request("GET", server.base + "/a").body == TEXT


def test_no_coding_is_asked_for(server: Server, line: transport.Transport) -> None:
    """RFC 9110 section 12.5.3."""
    line.request("GET", server.base + "/a")
    assert "accept-encoding: identity\r\n" in server.heads[0].lower()


def bomb(size: int, times: int = 1) -> bytes:
    data = b"\0" * size
    for _ in range(times):
        data = gzip.compress(data, 9)
    return data


@pytest.mark.parametrize("coding, data", [("gzip", bomb(64 << 20)), ("gzip, gzip", bomb(64 << 20, 2)), ("deflate", zlib.compress(b"\0" * (64 << 20), 9)),
                                          ("gzip", bomb(1 << 19) * 3), ("gzip", gzip.compress(b"") * 101)], ids=range(5))
def test_a_bomb(server: Server, line: transport.Transport, coding: str, data: bytes) -> None:
    """What grows beyond an answer's limit is not unpacked to its end."""
    import tracemalloc
    server.says["/a"] = [answer(data, Content_Encoding=coding)]
    tracemalloc.start()
    try:
        with pytest.raises(Failure, match=f"an answer longer than {transport.MAX_ANSWER} bytes"):
            line.request("GET", server.base + "/a")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding, data", [
    ("br", b"\x0b\x02\x80"), ("zstd", b"("), ("gzip, br", b"x"), ("gzip", TEXT), ("gzip", gzip.compress(TEXT)[:-12]), ("deflate", b"\xff" * 20),
    ("gzip, gzip, gzip, gzip", TEXT)], ids=range(7))
def test_what_cannot_be_unpacked_is_told(server: Server, line: transport.Transport, coding: str, data: bytes) -> None:
    """What it is, and who may do that."""
    server.says["/a"] = [answer(data, Content_Encoding=coding)]
    with pytest.raises(Failure, match="127.0.0.1: its answer is compressed .* something in between"):
        line.request("GET", server.base + "/a")


def test_the_head_of_something_compressed(server: Server, line: transport.Transport) -> None:
    """A HEAD's answer names the coding of a body that is not there."""
    server.says["/a"] = [answer(Content_Encoding="gzip", Replay_Nonce="n1").replace(b"Content-Length: 0", b"Content-Length: 20")]
    assert line.request("HEAD", server.base + "/a").headers["Replay-Nonce"] == "n1"


# ---- redirects

@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_redirect_of_what_is_not_signed(server: Server, line: transport.Transport, status: str, method: str) -> None:
    """Is followed; the answer says where it is from."""
    server.says = {"/a": [answer(status=status, Location="/b?c=d")], "/b?c=d": [answer(b"" if method == "HEAD" else b"there", Replay_Nonce="n")]}
    found = line.request(method, server.base + "/a")
    assert (found.status, found.headers["Replay-Nonce"], found.url) == (200, "n", server.base + "/b?c=d")
    assert server.asked() == [f"{method} /a", f"{method} /b?c=d"]


def test_a_redirect_of_what_is_signed(server: Server, line: transport.Transport) -> None:
    """Is not followed: a signature is for one URL (RFC 8555 section 6.4)."""
    server.says["/a"] = [answer(status="307 Temporary", Location=server.base + "/b")]
    with pytest.raises(Failure, match=f"{server.base}/a redirects to {server.base}/b; what is signed is for one URL"):
        line.request("POST", server.base + "/a", b"{}", "application/jose+json")
    assert server.asked() == ["POST /a"]


@pytest.mark.parametrize("where, says", [
    ("http://127.0.0.1/b", "not an https URL"), ("//user@127.0.0.1/b", "not an https URL"), ("https://127.0.0.1:x/", "not an https URL"),
    ("/a", "again and again"), ("file:///etc/passwd", "not an https URL")])
def test_where_nobody_follows(server: Server, line: transport.Transport, where: str, says: str) -> None:
    """Out of TLS, and in circles."""
    server.says["/a"] = [answer(status="302 Found", Location=where)] * 20
    with pytest.raises(Failure, match=says):
        line.request("GET", server.base + "/a")
    assert len(server.heads) <= 6


def test_a_redirect_to_nowhere(server: Server, line: transport.Transport) -> None:
    """Without a Location there is nothing to follow: it is an answer with that status."""
    server.says["/a"] = [answer(status="302 Found")]
    assert line.request("GET", server.base + "/a").status == 302


# ---- the directory

def listed(server: Server) -> bytes:
    return json.dumps({name: url % server.port for name, url in DIRECTORY.items()}).encode()


@pytest.mark.parametrize("said", [
    lambda server: [answer(listed(server))], lambda server: [answer(gzip.compress(listed(server)), Content_Encoding="gzip")],
    lambda server: [b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(listed(server))]])
def test_a_directory(server: Server, line: transport.Transport, said: object) -> None:
    """By what everybody who asks for it uses."""
    server.says["/dir"] = said(server)                         # type: ignore[operator]
    assert directory.fetch(line, server.base + "/dir")[0]["newOrder"] == server.base + "/newOrder"


def test_a_directory_elsewhere(server: Server, line: transport.Transport) -> None:
    """A redirect at the same host is followed."""
    server.says = {"/": [answer(status="302 Found", Location="/acme/dir")], "/acme/dir": [answer(listed(server))]}
    assert directory.fetch(line, server.base + "/")[0]["newNonce"] == server.base + "/newNonce"


def test_a_directory_at_another_host(server: Server, line: transport.Transport, pair: pathlib.Path) -> None:
    """The signer signs for the configured host alone: which URL to configure is said."""
    other = Server(pair)
    other.says["/dir"] = [answer(listed(other))]
    server.says["/dir"] = [answer(status="301 Moved", Location=other.base + "/dir")]
    with pytest.raises(Failure, match=f"{server.base}/dir redirects to another host: {other.base}/dir; give that URL as directory in certdrop.toml"):
        directory.fetch(line, server.base + "/dir")
    other.close()


def test_nothing_compressed(server: Server, line: transport.Transport) -> None:
    """An answer without a body is empty in any coding."""
    server.says["/a"] = [answer(Content_Encoding="gzip")]
    assert line.request("GET", server.base + "/a").body == b""


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>", b"\xff\xfe", b"[" * 100000, b'{"newNonce": 1, "newAccount": 2, "newOrder": 3}'],
                         ids=range(7))
def test_what_is_no_directory(server: Server, line: transport.Transport, body: bytes) -> None:
    """Is told so, and not in Python's words."""
    server.says["/dir"] = [answer(body)]
    with pytest.raises(Failure, match=f"{server.base}/dir is no ACME directory"):
        directory.fetch(line, server.base + "/dir")


def test_what_a_directory_lacks(server: Server, line: transport.Transport) -> None:
    """Is named."""
    server.says["/dir"] = [answer(json.dumps({"newNonce": "https://a/n", "newOrder": server.base + "/o"}).encode())]
    with pytest.raises(Failure, match="is no ACME directory: it lacks newAccount$"):
        directory.fetch(line, server.base + "/dir")


def test_a_server_in_trouble(server: Server, line: transport.Transport) -> None:
    """Its status, or its own words."""
    server.says["/dir"] = [answer(status="502 Bad Gateway")]
    with pytest.raises(Failure, match="answered with status 502"):
        directory.fetch(line, server.base + "/dir")


# ---- a proxy

def test_a_proxy_that_is_not_there(server: Server, pair: pathlib.Path) -> None:
    """It is the proxy that is named, and the CA was not asked."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(Failure) as raised:
        a_line(pair, f"http://127.0.0.1:{port}").request("GET", server.base + "/a")
    assert raised.value.text == f"the proxy 127.0.0.1:{port}: Connection refused; the CA was not asked" and raised.value.problem == "proxy"


@pytest.mark.parametrize("status, says", [("407 Proxy Authentication Required", "407 Proxy Authentication Required; .*password"),
                                          ("403 Forbidden", "403 Forbidden; "), ("502 Bad Gateway", "502 Bad Gateway; ")])
def test_a_proxy_that_refuses(server: Server, pair: pathlib.Path, status: str, says: str) -> None:
    """The same, with its own words."""
    proxy = Server(None)
    proxy.says[f"127.0.0.1:{server.port}"] = [answer(status=status)]
    with pytest.raises(Failure, match=f"the proxy 127.0.0.1:{proxy.port} does not lead to 127.0.0.1:{server.port}: {says}"):
        a_line(pair, f"http://127.0.0.1:{proxy.port}").request("GET", server.base + "/a")
    assert not server.heads and "proxy-authorization" not in proxy.heads[0].lower()
    proxy.close()


@pytest.mark.parametrize("says", [b"ERR denied %s\r\n\r\n", b"HTTP/1.1 403 not for %s\r\n\r\n"])
def test_a_proxy_that_echoes_it_in_whatever_form(server: Server, pair: pathlib.Path, says: bytes) -> None:
    """Whatever form its answer has, the password is in no message."""
    proxy = Server(None)
    url = f"http://me@127.0.0.1:{proxy.port}"
    header = Proxy(url, SECRET).header
    proxy.says[f"127.0.0.1:{server.port}"] = [says % header.encode()]
    with pytest.raises(Failure) as raised:
        a_line(pair, url).request("GET", server.base + "/a")
    assert header.removeprefix("Basic ") not in raised.value.text and SECRET not in raised.value.text and "the CA was not asked" in raised.value.text
    proxy.close()


def test_a_proxy_that_says_nothing(server: Server, pair: pathlib.Path) -> None:
    """The time is up; whether the proxy or the way behind it hangs cannot be seen, but it is no answer of the CA's."""
    proxy = Server(None)
    proxy.says[f"127.0.0.1:{server.port}"] = [b""]
    with pytest.raises(Failure, match=f"the proxy 127.0.0.1:{proxy.port}: .*the CA was not asked"):
        a_line(pair, f"http://127.0.0.1:{proxy.port}", 0.5).request("GET", server.base + "/a")
    proxy.close()


def test_a_proxy_that_leads_there(server: Server, pair: pathlib.Path) -> None:
    """What fails behind it is the CA's again; also after an interim answer of the proxy's."""
    proxy = Server(None)
    proxy.says[f"127.0.0.1:{server.port}"] = [b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
    server.says["/a"] = [answer(b"there"), b"nonsense\r\n\r\n"]
    line = a_line(pair, f"http://127.0.0.1:{proxy.port}")
    assert line.request("GET", server.base + "/a").body == b"there"
    with pytest.raises(Failure, match="^127.0.0.1: "):
        line.request("GET", server.base + "/a")
    proxy.close()


def test_a_certificate_that_does_not_verify_behind_a_proxy(server: Server, pair: pathlib.Path) -> None:
    """Is not the proxy's refusal."""
    proxy = Server(None)
    proxy.says[f"127.0.0.1:{server.port}"] = [b"HTTP/1.1 200 OK\r\n\r\n"]
    line = transport.Transport(ssl.create_default_context(), time.monotonic() + 10, transport.Gate(), Proxy(f"http://127.0.0.1:{proxy.port}"))
    with pytest.raises(Failure, match="^127.0.0.1: its TLS certificate does not verify"):
        line.request("GET", server.base + "/a")
    proxy.close()


def test_a_proxy_with_a_password(server: Server, pair: pathlib.Path) -> None:
    """It goes into CONNECT, and not to the CA (RFC 7617)."""
    proxy = Server(None)
    proxy.says[f"127.0.0.1:{server.port}"] = [b"HTTP/1.1 200 OK\r\n\r\n"]
    server.says["/a"] = [answer(b"there")]
    assert a_line(pair, f"http://j%40ne@127.0.0.1:{proxy.port}").request("GET", server.base + "/a").body == b"there"
    header = "Proxy-Authorization: Basic " + base64.b64encode(f"j@ne:{SECRET}".encode()).decode()
    assert header in proxy.heads[0] and "roxy" not in server.heads[0]
    proxy.close()


@pytest.mark.parametrize("form", [SECRET, base64.b64encode(SECRET.encode()).decode(), base64.b64encode(f"jane:{SECRET}".encode()).decode()], ids=range(3))
def test_a_proxy_that_echoes_the_password(server: Server, pair: pathlib.Path, form: str) -> None:
    """Brings it into no log."""
    proxy = Server(None)
    proxy.says[f"127.0.0.1:{server.port}"] = [answer(status=f"407 wrong: {form}!")]
    with pytest.raises(Failure) as raised:
        a_line(pair, f"http://jane@127.0.0.1:{proxy.port}").request("GET", server.base + "/a")
    assert "407 wrong: (password)!; it does not take the user and the password" in raised.value.text and form not in raised.value.text
    proxy.close()


@pytest.fixture
def etc(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """certdrop's configuration, with a proxy that wants a password."""
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    (tmp_path / "certdrop.toml").write_text('proxy = "http://jane@127.0.0.1:8080"\n')
    (tmp_path / "proxy-password").write_text(SECRET + "\n")
    (tmp_path / "proxy-password").chmod(0o640)
    return tmp_path


def test_a_password_in_its_file(etc: pathlib.Path) -> None:
    """Its only line; where the proxy wants no user, it is not read."""
    assert proxy_module.of(general.load_config()).header == "Basic " + base64.b64encode(f"jane:{SECRET}".encode()).decode()
    (etc / "proxy-password").unlink()
    (etc / "certdrop.toml").write_text('proxy = "http://127.0.0.1:8080"\n')
    found = proxy_module.of(general.load_config())
    assert (found.place, found.header) == (("127.0.0.1", 8080), "")


@pytest.mark.parametrize("spoil, says", [
    (lambda path: path.chmod(0o644), "can be read by others"), (lambda path: path.chmod(0o660), "cannot be used [(]mode[)]"),
    (lambda path: path.unlink(), "No such file or directory"), (lambda path: path.write_text(""), "not one line"),
    (lambda path: path.write_text(SECRET + "\nmore\n"), "not one line"), (lambda path: path.write_bytes(b"\xff"), "no UTF-8"),
    (lambda path: path.write_text("x" * 9999), "cannot be used [(]size[)]"),
    (lambda path: (path.unlink(), path.symlink_to("certdrop.toml")), "cannot be used|can be read by others")], ids=range(8))
def test_a_file_that_is_not_as_it_must_be(etc: pathlib.Path, spoil: Callable[[pathlib.Path], object], says: str) -> None:
    """It is said how to mend it, and nothing of it is quoted."""
    spoil(etc / "proxy-password")
    with pytest.raises(site.ConfigError, match=says) as raised:
        proxy_module.of(general.load_config())
    assert f"chown root:_certdrop {etc}/proxy-password; chmod 640" in str(raised.value) and "s3cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://jane:s3cret@127.0.0.1:1", "http://@127.0.0.1:1", "http://ja ne@127.0.0.1", "https://127.0.0.1:1", "http://jane@",
                                 "jane@127.0.0.1", "http://a@b@c:1"])
def test_a_proxy_that_is_none(etc: pathlib.Path, url: str) -> None:
    """A password in certdrop.toml, which all may read, is not quoted again."""
    (etc / "certdrop.toml").write_text(f'proxy = "{url}"\n')
    with pytest.raises(site.ConfigError, match="proxy: ") as raised:
        general.load_config()
    assert "s3cret" not in str(raised.value)

"""certdrop-check's parts: what they make of recorded and of hostile answers. What a real host shows is in tests/system/test_check.py."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from typing import Iterator

import pytest

from certdrop import tokens
from certdrop.config import general, site
from certdrop.doctor import ask, ca, clients, cron, doing, keys, names
from certdrop.doctor import kernel, sites, token, users
from certdrop.doctor import command as check_command
from certdrop.doctor import fetch as check_fetch
from certdrop.doctor import host as check_host
from certdrop.doctor import nginx as check_nginx
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.keeper import lock
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.syntax import Source
from certdrop.status import table
from certdrop.walls import jail, syscalls
from certdrop.watcher import resolver
from certdrop.watcher.evidence import MailHealth, Run
from certdrop.watcher.resolver import Looked, Record, forbidden

LE, ACCOUNT = ["letsencrypt.org"], "https://acme-v02.api.letsencrypt.org/acme/acct/1"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def clean(lines: list[Line]) -> bool:
    """Whether all that would be shown is one line of printable ASCII each."""
    return all(" " <= c <= "~" for line in lines for text in line for c in text)


# ---- CAA (RFC 8659, RFC 8657)

@pytest.mark.parametrize("records", [
    [],
    [Record(0, "issue", "letsencrypt.org")],
    [Record(0, "issue", " LetsEncrypt.ORG. ")],
    [Record(0, "issue", "other.example"), Record(0, "issue", "letsencrypt.org")],
    [Record(0, "issue", f"letsencrypt.org; accounturi={ACCOUNT}")],
    [Record(0, "issue", "letsencrypt.org; validationmethods=dns-01,http-01")],
    [Record(0, "issue", "letsencrypt.org; validationmethods=dns-01"), Record(0, "issue", "letsencrypt.org; validationmethods=http-01")],
    [Record(0, "issue", "letsencrypt.org;;  ; unknown=1")],
    [Record(0, "issuewild", ";"), Record(0, "iodef", "mailto:x@example.org")],
    [Record(128, "issue", "letsencrypt.org")],
    [Record(0, "tbs", "Unknown")],
])
def test_caa_allows(records):
    """What lets this CA issue over HTTP-01 to this account."""
    assert forbidden(records, LE, ACCOUNT) == ""


@pytest.mark.parametrize("records, words", [
    ([Record(0, "issue", ";")], "no CA at all"),
    ([Record(0, "issue", "")], "no CA at all"),
    ([Record(0, "issue", "other.example")], "only other.example"),
    ([Record(0, "issue", "letsencrypt.org.evil.example")], "only letsencrypt.org.evil.example"),
    ([Record(0, "issue", "letsencrypt.org; validationmethods=dns-01")], "only by dns-01"),
    ([Record(0, "issue", "letsencrypt.org; accounturi=https://acme-v02.api.letsencrypt.org/acme/acct/2")], "only for the account"),
    ([Record(128, "tbs", "Unknown"), Record(0, "issue", "letsencrypt.org")], "critical property"),
    ([Record(0, "issue", "\x1b]0;owned\x07\r\n" * 50)], "only"),
])
def test_caa_forbids(records, words):
    """What does not, and why; in clean words."""
    why = forbidden(records, LE, ACCOUNT)
    assert words in why and all(" " <= c <= "~" for c in why) and len(why) < 400


def test_an_account_that_is_not_known_is_no_reason():
    """Before the first order nobody can say whether accounturi will be ours."""
    assert forbidden([Record(0, "issue", "letsencrypt.org; accounturi=https://x/1")], LE, "") == ""


def test_caa_climbs_to_the_first_records(monkeypatch):
    """The records of the closest name above count (RFC 8659 section 3); a failure on the way is one."""
    class Data:
        flags, tag, value = 0, b"issue", b"letsencrypt.org"

    answers = {"www.example.org": ([], resolver.NO_NAME, ""), "example.org": ([Data()], "", ""), "org": ([], resolver.BROKEN, "x")}
    monkeypatch.setattr(resolver, "_ask", lambda name, kind: answers[name])
    assert resolver.caa("www.example.org") == ([Record(0, "issue", "letsencrypt.org")], "example.org", "")
    answers["example.org"] = ([], resolver.BROKEN, "SERVFAIL")
    assert resolver.caa("www.example.org") == ([], "example.org", "SERVFAIL")


@pytest.mark.parametrize("domain, level", [("example.org", None), ("xn--bcher-kva.example", None), ("xn--a.example", FAILED), ("xn--\xfc.example", FAILED)])
def test_idn(domain, level):
    """A label that begins with xn-- must be one."""
    assert [found[0] for found in names.idn(domain)] == ([level] if level else [])


def test_addresses_that_the_internet_does_not_have():
    """With a CA on the Internet a private address is a failure; with one's own it is not."""
    public, own = names.Authority(LE, "", True), names.Authority([], "", False)
    on, off = names.Doing(public), names.Doing(own)
    assert [names.reach("a.example", "a.example", address, on) == [] for address in
            ("127.0.0.1", "10.0.0.1", "fe80::1", "9.9.9.9")] == [False] * 3 + [True]
    assert names.reach("a.example", "a.example", "10.0.0.1", off) == []


def test_names_that_take_for_ever_have_a_line(monkeypatch):
    """The deadline of all names ends the wait, not the doctor."""
    gate = threading.Event()
    monkeypatch.setattr(names, "DEADLINE", 0.2)
    monkeypatch.setattr(resolver, "addresses", lambda name: gate.wait(30) and Looked([]))
    found = site.Site("a.example", general.Config())
    found.domains = ["a.example"]
    lines = names.look([found], names.Doing(names.Authority(LE, "", True)))
    gate.set()
    assert any("not examined" in line.why and line.level == WARNING for line in lines)


# ---- fetching a token

class Web(threading.Thread):
    """A server at 127.0.0.1 that answers every request with the same bytes, and then closes, or keeps silent."""

    def __init__(self, answer: bytes | None, silent: bool = False) -> None:
        super().__init__(daemon=True)
        self.answer, self.silent = answer, silent
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.kept: list[socket.socket] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                connection.recv(4096)
                if self.answer is not None:
                    connection.sendall(self.answer)
            except OSError:
                pass
            if self.silent:
                self.kept.append(connection)
            else:
                connection.close()


@pytest.fixture
def fetch(monkeypatch) -> Iterator[object]:
    """Fetch a token from a server that answers so."""
    servers: list[Web] = []

    def asked(answer: bytes | None, silent: bool = False) -> check_fetch.Fetched:
        server = Web(answer, silent)
        servers.append(server)
        real = check_fetch._once
        with monkeypatch.context() as patch:
            patch.setattr(check_fetch, "_once", lambda address, host, target, port, tls: real(address, host, target, server.port, False))
            return check_fetch.fetch("127.0.0.1", "a.example", "/.well-known/acme-challenge/x", "CONTENT")

    yield asked
    for server in servers:
        server.listener.close()


@pytest.mark.parametrize("answer, came, status, words", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nCONTENT", True, 200, ""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nCONTENT\r\n0\r\n\r\n", True, 200, ""),
    (b"HTTP/1.0 200\r\n\r\nCONTENT\n", True, 200, ""),
    (b"HTTP/1.1 200 OK\r\n\r\nCONTENT<html>", False, 200, "another content: CONTENT<html>"),
    (b"HTTP/1.1 200 OK\r\n\r\n CONTENT", False, 200, "another content"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nCON\r\n4\r\nTENT\r\n0\r\n\r\n", True, 200, ""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nCONTENT", False, 200, "another content"),
    (b"HTTP/1.1 200 OK\r\n\r\n<html>\x1b[2J", False, 200, "another content: <html>"),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", False, 404, "HTTP 404 Not Found"),
    (b"HTTP/1.1 403 \x1b]0;owned\x07\r\n\r\n", False, 403, "HTTP 403"),
    (b"HTTP/1.1 301 Moved\r\n\r\n", False, 301, "HTTP 301 Moved"),
    (b"HTTP/1.1 302 F\r\nLocation: http://a.example:8080/\r\n\r\n", False, 302, "where the CA does not go"),
    (b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n", False, 302, "where the CA does not go"),
    (b"HTTP/1.1 302 F\r\nLocation: http://[::1\x1b\r\n\r\n", False, 302, "where the CA does not go"),
    (b"HTTP/1.1 302 F\r\nLocation: //a.example:99999999/\r\n\r\n", False, 302, "where the CA does not go"),
    (b"HTTP/1.1 302 F\r\nlocation: /again\r\n\r\n", False, 302, "redirected again and again"),
    (b"HTTP/1.1 302 F\r\nLocation: /\xc3\xa9 \x00\r\n\r\n", False, 0, ""),
    (b"SSH-2.0-OpenSSH_9.2\r\n", False, 0, "no HTTP answer: SSH-2.0"),
    (b"\x1b[2J\xff" * 100000, False, 0, "no HTTP answer"),
    (b"", False, 0, "closed without an answer"),
    (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100000, False, 200, ""),
    (b"HTTP/1.1 99999 OK\r\n\r\n", False, 0, "no HTTP answer"),
])
def test_answers_of_all_kinds(fetch, answer, came, status, words):
    """The token, or clean words for what came in its place."""
    found = fetch(answer)
    assert (found.came, words in found.words) == (came, True) and found.status in (status, 302), found
    assert all(" " <= c <= "~" for c in found.words) and len(found.words) < 350


def test_silence_ends(fetch, monkeypatch):
    """Who never ends his answer is not waited for."""
    monkeypatch.setattr(check_fetch, "PATIENCE", 0.3)
    words = [fetch(answer, silent=True).words for answer in (None, b"HTTP/1.1 200 OK\r\n")]
    assert words == ["no answer in time: packets to its port 80 are dropped, as a firewall does"] * 2


def test_nobody_listens():
    """A port where nobody is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as caught:
        check_fetch._once("127.0.0.1", "a", "/", port, False)
    assert check_fetch._why(caught.value) == "nobody listens there"


def test_own_addresses_are_known():
    """By trying to use them."""
    assert [check_fetch.is_ours(address) for address in ("127.0.0.1", "198.51.100.1", "2001:db8::1", "nonsense")] == [True, False, False, False]


def test_a_redirect_is_no_obstacle(monkeypatch):
    """CAs follow ten, and the token that comes by them has come."""
    monkeypatch.setattr(check_fetch, "fetch", lambda *asked: check_fetch.Fetched(True, 200, "", 10, "a.example"))
    assert names.reach("a.example", "a.example", "127.0.0.1", names.Doing(names.Authority([], "", False), ("x", "y"))) == []
    assert check_fetch.REDIRECTS == 10


@pytest.mark.parametrize("has, asked", [(["198.51.100.1"], ["127.0.0.1"]), (["2001:db8::1"], ["::1"]), ([], ["127.0.0.1", "::1"])])
def test_only_the_families_that_a_name_has_count(monkeypatch, has, asked):
    """Where its addresses are not this host's own, nginx is asked over those families alone."""
    seen = []
    monkeypatch.setattr(names, "_fetch", lambda domain, address, token: (seen.append(address), check_fetch.Fetched(False, 404, "HTTP 404"))[1])
    nginx_seen = check_nginx.Seen(True, "", ["127.0.0.1", "[::1]"], {})
    names.here("a.example", "a.example", names.Doing(names.Authority([], "", False), ("x", "y"), nginx_seen), has)
    assert seen == asked


@pytest.mark.parametrize("is_new, comes_here, levels", [(False, False, ["failed", "failed"]), (True, False, ["warning", "failed"]), (True, True, ["failed"])])
def test_an_answer_from_elsewhere_may_be_our_own(monkeypatch, is_new, comes_here, levels):
    """A router may lead here: while nginx does not let a new name's challenges through anyway, a 404 from another address says nothing."""
    monkeypatch.setattr(names, "_fetch", lambda domain, address, token: check_fetch.Fetched(address == "127.0.0.1" and comes_here, 404, "HTTP 404"))
    seen = check_nginx.Seen(True, "", ["127.0.0.1"], {})
    doing = names.Doing(names.Authority([], "", False), ("x", "y"), seen, {}, is_new)
    assert [one.level for one in names.reach("a.example", "a.example", "198.51.100.1", doing)] == levels


def test_names_of_no_site_are_looked_at():
    """certdrop-check --new: no site is needed, nor a configuration; what is no name is refused."""
    sites, _ = check_command.not_yet(["a.example", "b.example", "a.example"])
    assert [(found.name, found.domains) for found in sites] == [("a.example", ["a.example"]), ("b.example", ["b.example"])]
    assert [check_command.main(["--new", *words]) for words in ([], ["x.example", "--issuing"], ["*.a.example"], ["\x1b[2J"])] == [64, 64, 65, 65]


def test_reading_alone_fails_nobody():
    """What nginx's configuration seems to do is worth a look; a token that is fetched decides."""
    config = nginx("http { server { listen 80; server_name a.test; return 404; } }")
    ways = {"a.test": check_nginx.in_the_way(config, a_site())}
    lines = check_nginx.by_reading(check_nginx.Seen(True, "", config.answers.addresses(80), ways, False, ("closed", "open it")), [a_site()])
    assert [line.level for line in lines] == [WARNING, WARNING]


# ---- the token

@ROOT_ONLY
def test_the_token_lies_there_while_it_is_held(tmp_path):
    """Readable by all, its owner's; put back where it is taken away; gone when the other end of the pipe is, and after SIGKILL of that."""
    os.chmod(tmp_path, 0o777)
    for parent in list(tmp_path.parents)[:-2]:
        os.chmod(parent, 0o755)
    name, path = "certdrop-check-0123456789abcdef", tmp_path / "certdrop-check-0123456789abcdef"
    program = [sys.executable, "-IS", "-c", pathlib.Path(token.__file__).read_text()]
    process = subprocess.Popen([*program, str(tmp_path), name, "CONTENT"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=65534, umask=0o077,
                               cwd="/")
    assert process.stdin and process.stdout and process.stdout.read(1) == b"+"
    assert (path.read_text(), path.stat().st_uid, path.stat().st_mode & 0o777) == ("CONTENT", 65534, 0o644)
    path.unlink()
    end = time.monotonic() + 30
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert path.exists()
    process.stdin.close()
    assert (process.wait(30), path.exists()) == (0, False)


@ROOT_ONLY
def test_the_token_is_not_roots():
    """The process that has it refuses to be root, and follows nothing."""
    code = pathlib.Path(token.__file__).read_text()
    done = subprocess.run([sys.executable, "-IS", "-c", code, "/tmp", "x", "y"], stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == os.EX_NOPERM


def test_a_token_is_one_to_nginx():
    """Its name is one that the challenge location serves."""
    assert tokens.is_token("certdrop-check-" + "0" * 32)


# ---- sshd

RECORDED = "port 22\naddressfamily any\nusepam yes\npasswordauthentication yes\nsubsystem sftp /usr/lib/openssh/sftp-server\n"


@pytest.mark.parametrize("more, let_in", [
    ("", True), ("denyusers _certdrop", False), ("denyusers other\ndenyusers _cert*", False), ("DenyUsers _certdrop@*", False),
    ("denyusers _certdrop@10.*", True),
    ("allowusers root admin", False), ("allowusers _certdrop@10.0.0.1", True), ("allowgroups sudo", False), ("allowgroups sudo _certdrop", True),
    ("denygroups _certdrop", False), ("allowusers *", True), ("denyusers", True), ("\x1b[2J\n\n  \ndenyusers [", True),
])
def test_whom_sshd_lets_in(more, let_in):
    """By sshd's own word."""
    assert users.lets_in(RECORDED + more + "\n", "_certdrop", ["_certdrop"]) is let_in


# ---- nginx

def nginx(text: str) -> Configuration:
    """A configuration of one file, and the live certificates' of two sites."""
    live = [Source(f"{site.STATE}/live/{name}/nginx.conf", f"ssl_certificate {site.STATE}/sites/{name}/0001/fullchain.pem;") for name in ("a.test", "b.test")]
    return Configuration([Source("/etc/nginx/nginx.conf", text), *live])


LIVE = f"include {site.STATE}/live/a.test/nginx.conf;"
TLS = "ssl_protocols TLSv1.2 TLSv1.3; ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:!RC4:!MD5; ssl_session_tickets off;"


def a_site(*domains: str) -> site.Site:
    """A site named a.test."""
    found = site.Site("a.test", general.Config())
    found.domains = list(domains) or ["a.test"]
    return found


@pytest.mark.parametrize("inside, level, words", [
    (f"server {{ listen 443 ssl; server_name a.test; {LIVE} }}", OK, "nginx includes"),
    (f"server {{ listen [::]:443 ssl; server_name a.test; {LIVE} }}", OK, "nginx includes"),
    ("server { listen 80; server_name a.test; }", WARNING, "nginx serves nothing there"),
    (f"server {{ listen 443 ssl; server_name a.test; ssl_certificate {site.STATE}/live/a.test/fullchain.pem; }}", WARNING, "names the certificate itself"),
    (f"server {{ listen 443 ssl; server_name a.test; ssl_certificate {site.STATE}/sites/a.test/0001/fullchain.pem; }}", WARNING, "names one generation"),
    ("server { listen 443 ssl; server_name a.test; ssl_certificate /etc/letsencrypt/\x1b[2J; }", WARNING, "with another certificate (/etc/letsencrypt/"),
    (f"server {{ listen 443 ssl; server_name b.test; include {site.STATE}/live/b.test/nginx.conf; }}", WARNING, "with the certificate of the site b.test"),
    ("server { listen 443 ssl; server_name b.test; ssl_certificate /b; }", WARNING, "has no server block of its own"),
    (f"server {{ listen 443 ssl; server_name a.test; {LIVE} }} server {{ listen [::]:443 ssl default_server; ssl_certificate /b; }}", OK, "nginx includes"),
    (f"server {{ listen 443 ssl; server_name a.test; {LIVE} }} server {{ listen [::]:443 ssl; server_name a.test; ssl_certificate /b; }}", WARNING, "another"),
])
def test_what_port_443_has(inside, level, words):
    """The include of the live certificate, in every block that has the name; where it has none at some address another answers there, rightly."""
    lines = check_nginx.certificate(nginx(f"http {{ {inside} }}"), a_site())
    assert [line.level for line in lines] == [level] and words in lines[0].why and clean(lines), lines


@pytest.mark.parametrize("inside, probe, level, words", [
    (f"server {{ listen 443 ssl; server_name *.w.test; {LIVE} }}", "", OK, "nginx includes"),
    (f"server {{ listen 443 ssl; server_name .w.test; {LIVE} }} server {{ listen 443 ssl; server_name b.w.test; ssl_certificate /b; }}", "",
     OK, "nginx includes"),
    (f"server {{ listen 443 ssl; server_name b.w.test; {LIVE} }}", "", WARNING, "after a renewal certdrop asks for certdrop-asks.w.test"),
    (f"server {{ listen 443 ssl; server_name b.w.test; {LIVE} }}", "c.w.test", WARNING, "asks for c.w.test"),
    (f"server {{ listen 443 ssl; server_name b.w.test; {LIVE} }}", "b.w.test", OK, "nginx includes"),
    (f"server {{ listen 443 ssl; server_name a.b.w.test; {LIVE} }}", "", OK, "nginx includes"),
    ("server { listen 443 ssl; server_name b.w.test; ssl_certificate /b; }", "", WARNING, "has no server block of its own"),
    ("server { listen 443 ssl; server_name *.w.test; ssl_certificate /b; }", "", WARNING, "with another certificate"),
    ("server { listen 80; server_name *.w.test; }", "", WARNING, "nginx serves nothing there")])
def test_a_wildcard_at_port_443(inside, probe, level, words):
    """By a block that has it, or by blocks of single names below it, one of which is asked."""
    found = a_site("*.w.test")
    found.probe = probe
    lines = check_nginx.certificate(nginx(f"http {{ {inside} }}"), found)
    assert [line.level for line in lines] == [level] and words in lines[0].why, lines
    assert "after a renewal" not in lines[0].why or lines[0].mend.startswith('write probe = "b.w.test" into ')


@pytest.mark.parametrize("inside, put, words", [
    ("server { listen 443 ssl; server_name a.test; ssl_certificate /b; }", True, "put there: include"),
    ("server { listen 443 ssl; server_name a.test _; ssl_certificate /b; }", True, "put there: include"),
    ("server { listen 443 ssl; server_name a.test b.test; ssl_certificate /b; }", False, "for b.test, too"),
    (f"server {{ listen 443 ssl; server_name a.test b.test; include {site.STATE}/live/b.test/nginx.conf; }}", False, "for b.test, too"),
    (f"server {{ listen 443 ssl; server_name b.test; include {site.STATE}/live/b.test/nginx.conf; }}", False, "certdrop-nginx a.test --write"),
    (f"server {{ listen 443 ssl; server_name *.test; ssl_certificate {site.STATE}/live/a.test/fullchain.pem; }}", False, "certdrop-nginx a.test --write"),
])
def test_no_advice_changes_a_block_of_other_names(inside, put, words):
    """What is put into a block is served to all its names."""
    (line,) = check_nginx.certificate(nginx(f"http {{ {inside} }}"), a_site())
    assert ("put there" in line.mend) == put and words in line.mend


@pytest.mark.parametrize("settings, words", [
    (TLS, []),
    ("", ["no ssl_protocols", "no ssl_ciphers", "session tickets"]),
    (TLS.replace("TLSv1.2 TLSv1.3", "TLSv1 TLSv1.1 TLSv1.2"), ["TLSv1 TLSv1.1 is weak"]),
    (TLS.replace("TLSv1.2 TLSv1.3", "TLSv1.2"), ["TLSv1.3 is missing"]),
    (TLS.replace("!RC4", "RC4-SHA:DES-CBC3-SHA"), ["weak ciphers: RC4-SHA DES-CBC3-SHA"]),
    (TLS + "ssl_stapling on;", ["ssl_stapling does nothing"]),
    (TLS.replace("TLSv1.2 TLSv1.3", "'\x1b[2J'"), ["is weak"]),
])
def test_tls_settings(settings, words):
    """Against the guideline's intermediate level; the http part's count where the block has none."""
    for text in (f"http {{ server {{ listen 443 ssl; server_name a.test; {LIVE} {settings} }} }}",
                 f"http {{ {settings} server {{ listen 443 ssl; server_name a.test; {LIVE} }} }}"):
        lines = check_nginx.tls(nginx(text), [a_site()], (1, 22, 1))
        assert [line.level for line in lines] == ([WARNING] * len(words) or [OK]) and clean(lines)
        assert [word for word in words if not any(word in line.why for line in lines)] == []


# ---- the CA, the host, other clients

def test_the_directory_and_its_profiles():
    """What is missing or not offered is said; hostile words are cleaned."""
    assert ca.directory({"newNonce": "https://a", "newAccount": "https://a", "newOrder": "https://a"}, "ca.test").level == OK
    assert "newNonce, newAccount" in ca.directory({"newOrder": "https://a", "newAccount": ["https://"]}, "ca.test").why
    wanted = a_site()
    wanted.profile = "short"
    lines = ca.profiles({"profiles": {"\x1b[2J": "x", "classic": "y"}}, general.Config(), [wanted])
    assert lines[0].level == FAILED and clean(lines)
    assert ca.profiles({"profiles": {"short": "x"}}, general.Config(), [wanted])[0].level == OK
    assert [ca.profiles({"profiles": odd}, general.Config(), [wanted])[0].level for odd in ([], "short", None, 7)] == [FAILED] * 4


SHOWN = "CA:          https://ca.test/dir\naccount:     https://ca.test/acct/1\nstatus:      %s\ncontact:     %s\nkey:         RSA 4096\n"


@pytest.mark.parametrize("code, out, words, level", [
    (0, SHOWN % ("valid", "mailto:a@b"), "", OK), (0, SHOWN % ("valid", "none"), "", WARNING), (0, SHOWN % ("deactivated", "mailto:a@b"), "", FAILED),
    (0, "", "", FAILED), (0, "\x1b[2J\nstatus: va\x1blid\n" * 100, "", FAILED), (65, "account: none", "", WARNING), (75, "", "no answer\x1b[2J", WARNING),
    (-1, "", "did not end", WARNING),
])
def test_the_account(code, out, words, level):
    """As certdrop-account shows it; whoever could have taken it over says nothing that a terminal acts on."""
    lines = ca.account(code, out, words)
    assert [line.level for line in lines] == [level] and clean(lines) and len(lines[0].why) < 500


def test_whoever_is_asked_is_bounded(monkeypatch):
    """A program that is not there, one that says too much, one that does not end, and one that leaves its output open to another."""
    monkeypatch.setattr(ask, "TIMEOUT", 0.5)
    assert ask.ask("/none", "x") == ask.Said(-1, "", "/none: No such file or directory")
    assert ask.ask("/bin/sh", "-c", "echo out; printf '\\033[2Jerr' >&2; exit 3") == ask.Said(3, "out\n", "\\x1b[2Jerr")
    assert ask.ask("/usr/bin/yes", most=100000)[::2] == (-1, "/usr/bin/yes says too much")
    assert ask.ask("/bin/sleep", "60").words == "/bin/sleep did not end within 0 s"
    assert ask.ask("/bin/sh", "-c", "sleep 60 & exit 0").code == -1
    monkeypatch.setattr(ask, "AFTER", 0.2)
    assert ask.ask("/bin/sh", "-c", "exec >&- 2>&-; sleep 60").words == "/bin/sh says no more, and does not end"


@pytest.mark.parametrize("skew, level", [(0, OK), (-59, OK), (300, WARNING), (-300, WARNING), (4000, FAILED), (-4000, FAILED), (None, WARNING)])
def test_the_clock(skew, level):
    """Minutes matter, hours are fatal."""
    assert ca.clock(skew, "ca.test").level == level


@pytest.mark.parametrize("date", ["", None, "yesterday", "Mon, 99 Foo 2026 99:99:99 GMT", "\x1b" * 100, "Thu, 01 Jan 999999 00:00:00 GMT"])
def test_a_date_that_is_none(date):
    """Is not known."""
    assert ca._skew(date, 0.0) is None


def test_space(monkeypatch):
    """Bytes and inodes, each file system once; one without a number of inodes has enough."""
    class Full:
        f_bavail, f_frsize, f_favail, f_files = 1, 4096, 5, 1000

    monkeypatch.setattr(check_host, "PLACES", ("/", "/etc", "/none"))
    monkeypatch.setattr(check_host.os, "statvfs", lambda path: Full)
    lines = check_host.space()
    assert [(line.level, "inodes" in line.why) for line in lines][:2] == [(FAILED, False), (FAILED, True)] and "/none" in lines[-1].why
    Full.f_files, Full.f_bavail = 0, 1 << 30
    assert [line.why for line in check_host.space() if "/none" not in line.why] == []


def test_versions(monkeypatch):
    """What is missing or too old."""
    monkeypatch.setattr(check_host.importlib.metadata, "version", lambda name: {"acme-tiny": "4.1.0", "idna": "3"}.get(name, "99"))
    assert [(line.level, "acme-tiny 4.1.0 is older than 5.0.1" in line.why) for line in check_host.versions()] == [(FAILED, True)]


def test_what_other_clients_keep(tmp_path, monkeypatch):
    """The names in their lists, and in the names of their files; binaries, links and pipes are passed over."""
    (tmp_path / "renewal").mkdir()
    (tmp_path / "renewal" / "a.test.conf").write_text("[[webroot_map]]\nb.test = /var/www\n# c.test\n")
    (tmp_path / "renewal" / "link.conf").symlink_to("/etc/shadow")
    os.mkfifo(tmp_path / "renewal" / "pipe.conf")
    (tmp_path / "renewal" / "binary.conf").write_bytes(os.urandom(5000))
    (tmp_path / "domains.txt").write_text("d.test www.d.test > alias\n#e.test\n")
    monkeypatch.setattr(clients, "KEPT", {"certbot": (str(tmp_path / "renewal"),), "dehydrated": (str(tmp_path / "domains.txt"), "/none")})
    assert {"a.test", "b.test"} <= clients.kept("certbot") and "c.test" not in clients.kept("certbot")
    assert clients.kept("dehydrated") == {"d.test", "www.d.test"}
    (tmp_path / "cron.d").mkdir()
    monkeypatch.setattr(clients, "FOLDERS", (str(tmp_path / "cron.d"),))
    monkeypatch.setattr(clients, "TABLES", ())
    monkeypatch.setattr(clients, "WANTS", ())
    assert clients.look([a_site("b.test")])[0].level == OK
    (tmp_path / "cron.d" / "x\x1b[2J").write_text("0 0 * * * root /usr/bin/certbot renew\n# dehydrated\n0 0 * * * root my-certbot-report\n")
    lines = clients.look([a_site("b.test", "d.test")])
    assert [line.level for line in lines] == [WARNING] and "certbot is still active" in lines[0].why and clean(lines)


def test_no_cron_can_be_seen(monkeypatch):
    """Where other users' processes are hidden, that is a warning, not a failure."""
    monkeypatch.setattr(cron, "_running", lambda: ("", False, False))
    assert cron.look()[0].level == WARNING
    monkeypatch.setattr(cron, "_running", lambda: ("", True, False))
    assert cron.look()[0].level == FAILED


def test_a_host_without_cron(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is not to be started; where systemd runs, certdrop's timers can do its work."""
    monkeypatch.setattr(cron, "_running", lambda: ("", True, False))
    monkeypatch.setattr(cron, "DAEMONS", ("no-such-cron",))
    monkeypatch.setattr(cron, "SYSTEMD", "/nonexistent")
    assert cron.look()[0].mend.startswith("apt install cron, and have it start")
    monkeypatch.setattr(cron, "SYSTEMD", "/")
    monkeypatch.setattr(cron, "ask", lambda *_: ask.Said(3, "inactive\ninactive\n", ""))
    assert cron.look()[0].mend == "apt install cron; or systemctl enable --now certdrop-issue.timer certdrop-install.timer"


def test_timers_in_place_of_cron(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have to be active; then neither a daemon nor its table is missed."""
    monkeypatch.setattr(cron, "_running", lambda: ("", True, False))
    monkeypatch.setattr(cron, "TABLE", "/nonexistent")
    monkeypatch.setattr(cron, "SYSTEMD", "/")
    asked = []
    monkeypatch.setattr(cron, "ask", lambda *argv: asked.append(argv) or ask.Said(0, "active\nactive\n", ""))
    assert [(OK, "systemd with certdrop's timers runs")] == [(line.level, line.why) for line in cron.look()]
    assert asked == [("/usr/bin/systemctl", "is-active", "certdrop-issue.timer", "certdrop-install.timer")]
    monkeypatch.setattr(cron, "ask", lambda *_: ask.Said(3, "active\ninactive\n", ""))
    assert [FAILED, FAILED] == [line.level for line in cron.look()]


# ---- what cron and sudo start

@pytest.fixture
def pam(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """PAM's configuration, and what its modules read."""
    (tmp_path / "pam.d").mkdir()
    for name, path in {"PAM": "pam.d", "ACCESS": "access.conf", "TIMES": "time.conf"}.items():
        monkeypatch.setattr(doing, name, str(tmp_path / path))
    monkeypatch.setattr(doing, "NOLOGIN", (str(tmp_path / "nologin"),))
    monkeypatch.setattr(doing, "_is_expired", lambda user: False)
    (tmp_path / "pam.d/sudo").write_text("#%PAM-1.0\naccount [success=1 default=ignore] pam_unix.so\n@include common-account\nsession required pam_time.so\n")
    (tmp_path / "pam.d/common-account").write_text("account  required  pam_unix.so\n")
    return tmp_path


@pytest.mark.parametrize("line, mend", [
    ("account required pam_access.so", "as the first line of {place}/access.conf: +:_certdrop _certdrop-watch:ALL"),
    ("account\trequisite\t/lib/security/pam_time.so", "{place}/time.conf, line 2: add &!_certdrop&!_certdrop-watch to its third field"),
    ("-account [default=bad success=ok user_unknown=ignore] pam_nologin.so", "rm {place}/nologin"),
    ("account include other", "rm {place}/nologin"),
    ("# account required pam_nologin.so", "find the module of {place}/pam.d/sudo, or of what it includes, that refuses _certdrop"),
])
def test_the_module_that_refuses_is_named(pam: pathlib.Path, line: str, mend: str) -> None:
    """By PAM's own configuration, with what it includes; of a module that is not asked nothing is said."""
    (pam / "pam.d/common-account").write_text(line + "\n")
    (pam / "pam.d/other").write_text("account required pam_nologin.so\n")
    (pam / "nologin").write_text("closed\n")
    (pam / "time.conf").write_text("# services;ttys;users;times\nsudo;*;!root;!Al0000-2400\n")
    assert doing.pam_mend("sudo", ["_certdrop"]).endswith(mend.format(place=pam))


def test_nothing_of_the_doctors_holds_the_keeper_for_long(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stops itself while the locks are held is ended, and the locks are free again."""
    (tmp_path / "keeper").mkdir()
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(ask, "TIMEOUT", 0.5)
    begin = time.monotonic()
    with doing._locks():
        assert ask.ask("/bin/sh", "-c", "kill -STOP $$").code == -1
    with lock.held(lock.ALL):
        assert time.monotonic() - begin < 5


@ROOT_ONLY
@pytest.mark.parametrize("own, asked, level, words", [
    (100, 600, OK, "root's hourly run came at"),
    (3 * 3600, 600, FAILED, "has not come since"),
    (None, 600, FAILED, "has not come yet"),
    (100, None, OK, "the issuer has not asked for one yet"),
])
def test_by_whom_root_ran(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, own: int | None, asked: int | None, level: str, words: str) -> None:
    """The run that sudo starts does not hide that cron's no longer comes; and both times are said."""
    monkeypatch.setattr(sites.configuration, "STATE", str(tmp_path))
    (tmp_path / "keeper").mkdir()
    now = time.time()
    for name, age in (("own-run", own), ("asked-run", asked)):
        if age is not None:
            (tmp_path / "keeper" / name).write_bytes(b"")
            os.utime(tmp_path / "keeper" / name, (now - age, now - age))
    (line,) = sites._by_whom(now, now - 86400)
    assert line.level == level and words in line.why and ("asked for one at" in line.why) == (asked is not None), line
    (line,) = sites._by_whom(now, now - 60)
    assert line.level == (FAILED if own and own > 7200 else OK)


def test_keys_without_sites():
    """Nothing to say where there is nothing."""
    assert keys.look([], None) == [] and keys.fingerprints(["none.test"]) == {}


# ---- the kernel's walls

@pytest.mark.skipif(bool(syscalls.missing()), reason=syscalls.missing())
def test_the_filter_is_seen_in_a_process() -> None:
    """Not by what is installed: a process that was shut in is refused a call, and says so; this one is as it was."""
    assert kernel.observed() == (True, True, "") and not kernel.filtered()
    assert OK == kernel.calls(True, True, "").level


@pytest.mark.skipif(jail.landlock_abi() == 0 or bool(syscalls.missing()), reason="this kernel has no Landlock, or nothing filters here")
def test_landlock_is_asked_for_outside_of_the_filter() -> None:
    """Which refuses the question: who is shut in does not take that for a kernel that has none."""
    def say() -> None:
        jail.give_up_privileges()
        syscalls.Filter(syscalls.DOCTOR).enter()
        os.write(writer, "\n".join(line.why for line in kernel.look(True)).encode())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            say()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    assert "seen in a process that is shut in" in said and "Landlock" not in said
    assert "Landlock, ABI" in kernel.look(False)[0].why and "Landlock, ABI" in kernel.landlock()[0].why


@pytest.mark.parametrize("why, mend", [("Landlock is switched off in this kernel", "lsm="), ("a filter of system calls refuses Landlock", "allow")])
def test_a_missing_landlock_is_told(monkeypatch: pytest.MonkeyPatch, why: str, mend: str) -> None:
    """Why it is missing, what that costs, and what brings that Landlock back; the status says the same why."""
    monkeypatch.setattr(jail, "no_landlock", lambda: (why, mend))
    (line,) = kernel.landlock()
    assert line.level == WARNING and line.why.startswith(why + ": the issuer's network part") and line.mend == mend
    assert f"{why}, so issuer and watcher run without" in table.summary([], Run(0), Run(0), MailHealth(0), 0.0)


def test_a_missing_filter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that brings it; and so does the status."""
    monkeypatch.setattr(syscalls, "seccomp", None)
    holds, no_new_privs, why = kernel.observed()
    line = kernel.calls(holds, no_new_privs, why)
    assert (WARNING, "apt install python3-seccomp") == (line.level, line.mend) and not holds and no_new_privs


@pytest.mark.skipif(bool(syscalls.missing()), reason=syscalls.missing())
def test_a_filter_that_the_kernel_does_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried, so a kernel without filters is found out."""
    def enter(_: object) -> None:
        raise jail.Unconfined("this kernel loads no seccomp filter (Invalid argument)")
    monkeypatch.setattr(syscalls.Filter, "enter", enter)
    line = kernel.calls(*kernel.observed())
    assert WARNING == line.level and "loads no seccomp filter" in line.why


def test_namespaces_that_root_may_not_make_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried in a child; where a container forbids them, the judge stands with fewer walls, and that is said."""
    monkeypatch.setattr(kernel.users, "unshare", lambda kind: True)
    assert [line.level for line in kernel.namespaces()] == [OK]
    monkeypatch.setattr(kernel.users, "unshare", lambda kind: kind != kernel.users.NEWPID)
    (line,) = kernel.namespaces()
    assert line.level == WARNING and "no namespaces here (processes): a judge" in line.why


def test_users_that_can_open_fuse_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Each of certdrop's users is tried, in a child."""
    monkeypatch.setattr(kernel, "USERS", ("root", "nobody", "no-such-user"))
    monkeypatch.setattr(kernel, "FUSE", str(tmp_path / "fuse"))
    (line,) = kernel.fuse()
    assert line.level == OK and "there is no" in line.why
    (tmp_path / "fuse").write_text("")
    tmp_path.chmod(0o755)
    (line,) = kernel.fuse()
    assert line.level == WARNING and line.why.startswith("root can open ")
    (tmp_path / "fuse").chmod(0o600)
    monkeypatch.setattr(kernel, "USERS", ("nobody",))
    assert [line.level for line in kernel.fuse()] == [OK]


def test_roots_that_nobody_uses_are_told(tmp_path, monkeypatch):
    """A file whose name is not the CA's is not read; the one that is looked for is named."""
    monkeypatch.setattr(sites.configuration, "ETC", str(tmp_path))
    (tmp_path / "roots.d").mkdir()
    (tmp_path / "certdrop.toml").write_text('directory = "https://ca.example.org:14000/dir"\n')
    (tmp_path / "roots.d/ca.example.org.pem").write_text("")
    config = general.load_config()
    assert config.trust_roots == f"{tmp_path}/roots.d/ca.example.org.pem" and not sites._roots(config)
    (tmp_path / "roots.d/my-ca.pem").write_text("")
    (line,) = sites._roots(config)
    assert line.level == "warning" and f"{tmp_path}/roots.d/my-ca.pem: no configured CA uses it" in line.why and config.own_roots in line.why
    assert not [one for one in sites._roots(config) if "ca.example.org.pem: " in one.why]

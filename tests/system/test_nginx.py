"""The challenge location and the printed server blocks, tried on the real nginx: what the issuer may put there is hostile."""

from __future__ import annotations

import os
import pathlib
import pwd
import socket
from typing import Iterator

import pytest
import world as stage
from conftest import SPOOL, Host

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"
CHALLENGES = pathlib.Path(SPOOL) / "challenges"
PATH = "/.well-known/acme-challenge/"


def ask(name: str, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """Status, headers (names in lower case) and body, of a request sent as it is, without any tidying of the path."""
    with socket.create_connection(("127.0.0.1", 80), 5) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := connection.recv(65536):
            data += more
    head, _, body = data.decode("latin-1").partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    return int(first.split()[1]), {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in rest)}, body


@pytest.fixture
def served(host: Host) -> Iterator[str]:
    """A site that nginx serves by the printed blocks; what a test leaves among the challenges is removed."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    yield name
    for entry in CHALLENGES.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            for inner in entry.iterdir():
                inner.unlink()
            entry.rmdir()
        else:
            entry.unlink()
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)


def put(name: str, text: str = "token.thumbprint") -> pathlib.Path:
    """A file as the issuer makes it."""
    path = CHALLENGES / name
    path.write_text(text)
    os.chown(path, pwd.getpwnam("_certdrop").pw_uid, -1)
    path.chmod(0o644)
    return path


def test_a_token_is_served_as_plain_text(served: str) -> None:
    """With a type that no browser runs or guesses at."""
    put(TOKEN)
    code, headers, body = ask(served, PATH + TOKEN)
    assert (code, body, headers["content-type"], headers["x-content-type-options"]) == (200, "token.thumbprint", "text/plain", "nosniff")


def test_html_stays_text(served: str) -> None:
    """Even where its content, or its name, says otherwise."""
    put(TOKEN, "<html><script>alert(1)</script></html>")
    put("index-html-index-html", "<html></html>")
    assert [ask(served, PATH + name)[1]["content-type"] for name in (TOKEN, "index-html-index-html")] == ["text/plain"] * 2


@pytest.mark.parametrize("name", ["index.html", "short", "a" * 129, "with.a.dot.in.the.name.html", ".hidden-file-of-the-issuer", "", "?x", TOKEN + "/",
                                  TOKEN + "%00.html", TOKEN + "%0a"])
def test_what_is_no_token_is_not_served(served: str, name: str) -> None:
    """Only names of 16 to 128 characters of base64url; no listing, no index."""
    for entry in ("index.html", "short", "a" * 129, "with.a.dot.in.the.name.html", ".hidden-file-of-the-issuer", TOKEN):
        put(entry)
    code, headers, _ = ask(served, PATH + name)
    assert code in (400, 404)
    assert "location" not in headers


@pytest.mark.parametrize("path", ["/.well-known/acme-challenge/../../../../etc/passwd", "/.well-known/acme-challenge/..%2f..%2f..%2fetc%2fpasswd",
                                  "/.well-known/acme-challenge/%2e%2e/%2e%2e/replies/x", "/.well-known/acme-challenge//etc/passwd",
                                  "/.well-known/acme-challenge"])
def test_no_path_leads_out(served: str, path: str) -> None:
    """Traversal ends at another location (the redirect), or nowhere."""
    code, _, body = ask(served, path)
    assert code in (301, 400, 404)
    assert "root:" not in body


@pytest.mark.parametrize("target", ["/etc/passwd", "/var/lib/certdrop/keeper/last-run", "other-token-of-the-same-place"])
def test_links_are_not_followed(served: str, target: str) -> None:
    """A symbolic link is refused, wherever it leads."""
    put("other-token-of-the-same-place")
    os.symlink(target, CHALLENGES / TOKEN)
    assert ask(served, PATH + TOKEN)[0] == 403


def test_a_directory_holds_nothing(served: str) -> None:
    """Neither its listing nor what is in it, nor a file reached through a directory that is a link."""
    (CHALLENGES / TOKEN).mkdir()
    (CHALLENGES / TOKEN / "index.html").write_text("x")
    (CHALLENGES / TOKEN / TOKEN).write_text("x")
    os.symlink("/etc", CHALLENGES / "link-to-a-directory")
    names = (f"{TOKEN}/", f"{TOKEN}/{TOKEN}", "link-to-a-directory/passwd", "link-to-a-directory/hostname")
    assert [ask(served, PATH + name)[0] for name in names] == [404] * 4
    assert ask(served, PATH + TOKEN)[2].count("index.html") == 0


def test_a_pipe_does_not_hold_nginx_up(served: str) -> None:
    """nginx neither waits for a pipe nor serves it."""
    os.mkfifo(CHALLENGES / TOKEN)
    os.chmod(CHALLENGES / TOKEN, 0o644)
    assert ask(served, PATH + TOKEN)[0] in (403, 404)


@pytest.mark.parametrize("method, code", [("HEAD", 200), ("POST", 403), ("PUT", 403), ("DELETE", 403), ("OPTIONS", 403)])
def test_only_reading(served: str, method: str, code: int) -> None:
    """GET and HEAD, nothing else."""
    put(TOKEN)
    assert ask(served, PATH + TOKEN, method)[0] == code


def test_all_else_goes_to_https(served: str) -> None:
    """The redirect of the block for port 80 comes after the challenges, and before anything else."""
    code, headers, _ = ask(served, "/page?x=1")
    assert (code, headers["location"]) == (301, f"https://{served}/page?x=1")


def test_the_challenge_stands_before_regular_expressions(host: Host, served: str) -> None:
    """A regular expression of the server block that would take everything does not get the challenges."""
    put(TOKEN)
    text = host.run("certdrop-nginx", served, code=0).text.replace("    location / {\n        return 301", "    location ~ . {\n        return 301", 1)
    host.world.nginx.add_site(served, text)
    host.world.nginx.reload()
    assert (ask(served, PATH + TOKEN)[0], ask(served, "/page")[0]) == (200, 301)


@pytest.mark.parametrize("guard", ["auth_request /guard;", 'auth_basic "staff";\n    auth_basic_user_file /etc/hostname;', "deny all;"])
def test_the_challenge_needs_no_leave(host: Host, served: str, guard: str) -> None:
    """Whatever the server block has its visitors prove, the CA need not; and still nothing but reading is allowed."""
    put(TOKEN)
    text = host.run("certdrop-nginx", served, code=0).text
    guarded = text.replace("    location / {\n        return 301", f"    {guard}\n    location = /guard {{\n        return 401;\n    }}\n"
                           "    location / {\n        try_files /none =404;\n    }\n    location /page {\n        return 301", 1)
    assert guarded != text
    host.world.nginx.add_site(served, guarded)
    host.world.nginx.reload()
    assert (ask(served, PATH + TOKEN)[0], ask(served, "/x")[0] in (401, 403)) == (200, True)
    assert ask(served, PATH + TOKEN, "POST")[0] in (401, 403)


def test_http2_and_tls_1_3_are_spoken(host: Host, served: str) -> None:
    """The printed blocks are right for this nginx and this OpenSSL; below TLS 1.2 nothing is spoken."""
    pem = f"/var/lib/certdrop/live/{served}/cert.pem"
    found = host.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "--cacert", pem, f"https://{served}/", code=0)
    assert found.text.split()[0] == "2"
    for option, code in (("-tls1_3", 0), ("-tls1_2", 0), ("-tls1_1", 1)):
        done = host.run("openssl", "s_client", option, "-connect", "127.0.0.1:443", "-servername", served)
        assert (done.code == 0) == (code == 0), done


def test_nginx_takes_the_printed_blocks(host: Host, served: str) -> None:
    """`nginx -t` says nothing against them, not even a warning."""
    passed, words = host.world.nginx.test()
    assert passed
    assert "warn" not in words


def test_two_kinds_of_key_for_the_same_names(host: Host) -> None:
    """An ECDSA and an RSA site of the same domains are served by one pair of blocks, to clients of each kind."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.run("certdrop", "add", name, "--name", f"{name}-rsa", "--key", "rsa-2048", "--no-issue", code=0)
    host.serve(name, f"{name}-rsa")
    for algorithm, words in (("ECDSA+SHA256", "id-ecPublicKey"), ("RSA-PSS+SHA256", "rsaEncryption")):
        shown = host.run("sh", "-c", f"openssl s_client -tls1_3 -sigalgs {algorithm} -connect 127.0.0.1:443 -servername {name} </dev/null 2>/dev/null"
                         " | openssl x509 -noout -text", code=0).text
        assert words in shown
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    assert stage.read("/var/lib/certdrop/live/" + name + "/nginx.conf").count("ssl_certificate") == 2

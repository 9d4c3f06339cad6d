"""What a proxy, a load balancer or a scanner between this host and the CA makes of the CA's answers: what means the same is taken as the same."""

from __future__ import annotations

import gzip
import os
import pathlib
import re

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

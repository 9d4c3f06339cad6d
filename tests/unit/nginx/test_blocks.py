"""certdrop-nginx: server blocks for the installed versions, and clear words where there can be none."""

from __future__ import annotations

import os

import pytest

from certdrop.config import general, site
from certdrop.nginx import blocks, command

DEBIAN_12 = """\
nginx version: nginx/1.22.1
built with OpenSSL 3.0.8 7 Feb 2023 (running with OpenSSL 3.0.16 11 Feb 2025)
TLS SNI support enabled
"""
DEBIAN_13 = """\
nginx version: nginx/1.26.3
built with OpenSSL 3.4.1 11 Feb 2025 (running with OpenSSL 3.5.1 1 Jul 2025)
"""
OLD = blocks.Build((1, 22, 1), (3, 0, 16), True)
NEW = blocks.Build((1, 26, 3), (3, 5, 1), True)


def make_site(name: str, *domains: str) -> site.Site:
    """A site as load_site would hand it out."""
    found = site.Site(name, general.Config())
    found.domains = list(domains)
    return found


def lines(text: str) -> list[str]:
    """The directives of a server block."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.fixture
def etc(tmp_path, monkeypatch):
    """A directory in place of /etc/certdrop."""
    (tmp_path / "sites.d").mkdir()
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    return tmp_path


@pytest.fixture
def nginx_program(tmp_path, monkeypatch):
    """A program in place of nginx, that says it is Debian 12's."""
    program = tmp_path / "nginx"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{DEBIAN_12}END\n")
    program.chmod(0o755)
    monkeypatch.setattr(blocks.nginxrun, "USUAL", [str(program)])
    return program


def test_versions_are_understood():
    """Of two versions of OpenSSL the running one counts."""
    assert [blocks.understand(DEBIAN_12, True), blocks.understand(DEBIAN_13, True)] == [OLD, NEW]


@pytest.mark.parametrize("text, build", [
    ("nginx version: openresty/1.25.3.2\nbuilt with OpenSSL 1.1.1w  11 Sep 2023\n", ((1, 25, 3, 2), (1, 1, 1))),
    ("nginx version: nginx/1.27.0 (Ubuntu)\nbuilt with LibreSSL 3.9.2\n", ((1, 27, 0), ())),
])
def test_other_builds_are_understood(text, build):
    """Builds by others, and with another TLS library, which gets the curves that all know."""
    assert blocks.understand(text, True)[:2] == build


def test_gibberish_is_no_version():
    """A program that says something else is told so, not guessed at."""
    with pytest.raises(blocks.Absent):
        blocks.understand("Segmentation fault", True)


def test_http2_stands_where_the_version_wants_it():
    """A word of `listen` before nginx 1.25.1, a directive of its own from then on."""
    assert ("listen 443 ssl http2;" in lines(blocks.blocks([make_site("a.test", "a.test")], OLD)),
            "http2 on;" in lines(blocks.blocks([make_site("a.test", "a.test")], NEW)),
            "listen 443 ssl;" in lines(blocks.blocks([make_site("a.test", "a.test")], NEW)),
            "http2 on;" in lines(blocks.blocks([make_site("a.test", "a.test")], OLD))) == (True, True, True, False)


@pytest.mark.parametrize("openssl, curves", [((3, 0, 16), blocks.CLASSIC_CURVES), ((3, 5), blocks.HYBRID_CURVES), ((4, 0, 0), blocks.HYBRID_CURVES),
                                             ((), blocks.CLASSIC_CURVES)])
def test_the_hybrid_curve_needs_openssl_3_5(openssl, curves):
    """An unknown curve would keep nginx from starting."""
    text = blocks.blocks([make_site("a.test", "a.test")], blocks.Build((1, 26, 3), openssl, True))
    assert f"ssl_ecdh_curve {curves};" in lines(text)


def test_the_challenge_stands_before_the_redirect():
    """In the block for port 80."""
    text = lines(blocks.blocks([make_site("a.test", "a.test", "b.test")], OLD))
    assert text[:4] == ["server {", "listen 80;", "listen [::]:80;", "server_name a.test b.test;"]
    assert text.index("include /etc/nginx/snippets/certdrop-challenge.conf;") < text.index("return 301 https://$host$request_uri;")


def test_key_and_certificate_come_by_one_include():
    """Never by two paths through the link, which may move between them."""
    text = blocks.blocks([make_site("a.test", "a.test")], OLD)
    assert lines(text).count("include /var/lib/certdrop/live/a.test/nginx.conf;") == 1
    assert "ssl_certificate" not in text


def test_sites_of_the_same_domains_share_their_blocks():
    """An ECDSA and an RSA certificate for the same names belong into one server block."""
    sites = [make_site("a.test", "a.test", "b.test"), make_site("c.test", "c.test"), make_site("a.test-rsa", "b.test", "a.test")]
    groups = blocks.same_domains(sites)
    assert [[found.name for found in group] for group in groups] == [["a.test", "a.test-rsa"], ["c.test"]]
    assert [line for line in lines(blocks.blocks(groups[0], OLD)) if "/live/" in line] == [
        "include /var/lib/certdrop/live/a.test/nginx.conf;", "include /var/lib/certdrop/live/a.test-rsa/nginx.conf;"]


def test_no_ipv6_no_listen_for_it():
    """A kernel without IPv6 would refuse the address, and nginx would not start."""
    assert "[::]" not in blocks.blocks([make_site("a.test", "a.test")], OLD._replace(ipv6=False))


def test_a_site_is_printed(etc, nginx_program, capsys):
    """The whole way: configuration, version, text, exit status 0."""
    (etc / "sites.d" / "a.test.toml").write_text('domains = ["a.test", "www.a.test"]\n')
    assert command.main(["a.test"]) == os.EX_OK
    said = capsys.readouterr()
    assert (said.out.count("server_name a.test www.a.test;"), said.err) == (2, "")


@pytest.mark.parametrize("argv, code, words", [
    ([], os.EX_USAGE, "which site?"),
    (["--json", "a.test"], os.EX_USAGE, "no such option"),
    (["none.test"], os.EX_DATAERR, "none.test: no such site"),
    (["../../etc/passwd"], os.EX_DATAERR, "no site's name"),
    (["a.test\nb"], os.EX_DATAERR, "no site's name"),
    (["broken.test"], os.EX_CONFIG, "unknown key"),
])
def test_bad_words_get_one_line_and_a_code(etc, nginx_program, capsys, argv, code, words):
    """Each with its exit code, on standard error, with nothing printed that could be taken for a server block."""
    (etc / "sites.d" / "broken.test.toml").write_text('domains = ["broken.test"]\ncolour = "red"\n')
    assert command.main(argv) == code
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), words in said.err) == ("", 1, True), said.err


def test_no_nginx_is_said(etc, monkeypatch, capsys):
    """Without nginx there is no version to print for."""
    (etc / "sites.d" / "a.test.toml").write_text('domains = ["a.test"]\n')
    monkeypatch.setattr(blocks.nginxrun, "USUAL", [str(etc / "none")])
    assert command.main(["a.test"]) == os.EX_UNAVAILABLE
    assert capsys.readouterr().err == f"certdrop-nginx: {etc}/none: not installed; the blocks depend on nginx's version; apt install nginx\n"


def test_help(capsys):
    """--help prints the usage and ends with 0."""
    assert command.main(["--help"]) == os.EX_OK
    assert capsys.readouterr().out.startswith("usage: certdrop-nginx NAME...")

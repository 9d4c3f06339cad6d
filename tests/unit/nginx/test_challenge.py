"""What nginx would do with a challenge, from its configuration: recorded habits of administrators and of other clients."""

from __future__ import annotations

import pathlib

import pytest

from certdrop.nginx import challenge, expression
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.syntax import Source

ROOT = pathlib.Path(__file__).resolve().parents[3]
PATH, INCLUDE = "/etc/nginx/snippets/certdrop-challenge.conf", "include snippets/certdrop-challenge.conf;"
SNIPPET = (ROOT / "nginx" / "certdrop-challenge.conf").read_text(encoding="ascii")


def way(text: str, name: str = "a.test", address: str = "127.0.0.1") -> challenge.Way:
    """Of a configuration whose http part is text."""
    files = [Source("/etc/nginx/nginx.conf", "http {\n" + text.replace("CHALLENGE;", INCLUDE) + "\n}\n"), Source(PATH, SNIPPET)]
    return challenge.way(Configuration(files), address, name)


GOOD = {
    "our own block": "server { listen 80; server_name a.test; CHALLENGE; location / { return 301 https://$host$request_uri; } }",
    "by absolute path": "server { listen 80; server_name a.test; include /etc/nginx/snippets/certdrop-challenge.conf; }",
    "an alias by hand": "server { listen 80; server_name a.test; location /.well-known/acme-challenge/ { alias /var/spool/certdrop/challenges/; } }",
    "by hand, before a regular expression": "server { listen 80; location ^~ /.well-known/acme-challenge/ { alias /var/spool/certdrop/challenges/; }"
                                            " location ~ /\\. { return 404; } }",
    "before a regular expression": "server { listen 80; CHALLENGE; location ~ . { return 301 https://x/; } }",
    "an if for another host": "server { listen 80; if ($host = b.test) { return 301 https://$host$request_uri; } CHALLENGE; }",
    "an if that spares challenges": "server { listen 80; if ($request_uri !~ ^/\\.well-known/) { return 301 https://x; } CHALLENGE; }",
    "a quoted if that spares challenges": "server { listen 80; if ($request_uri !~ \"^/\\.well-known/acme-challenge/\") { return 301 https://x; } CHALLENGE; }",
    "an if on nothing": "server { listen 80; if ($host = \"\") { return 301 https://x; } CHALLENGE; }",
    "a break for challenges": "server { listen 80; CHALLENGE; if ($uri ~ ^/\\.well-known/acme-challenge/) { break; } return 301 https://x; }",
    "an if on what is not known": "server { listen 80; if ($http_user_agent ~ bot) { return 403; } CHALLENGE; }",
    "TLS at another address": "server { listen 80; listen [::]:80 ssl; listen 443 ssl; CHALLENGE; }",
    "a rewrite of something else": "server { listen 80; rewrite ^/old /new; CHALLENGE; }",
    "the default answers": "server { listen 80 default_server; server_name _; CHALLENGE; }",
}


@pytest.mark.parametrize("what", GOOD)
def test_the_way_is_free(what):
    """Nothing is said against what works."""
    found = way(GOOD[what])
    assert (found.why, found.server is not None) == ("", True)


BAD = {
    "a redirect": ("server { listen 80; server_name a.test; location / { return 301 https://$host; } }", "takes the challenges", "certdrop-challenge"),
    "nothing at all": ("server { listen 80; server_name a.test; root /var/www/html; }", "has no challenge location", "certdrop-challenge"),
    "a static site": ("server { listen 80; server_name a.test; root /srv; location / { try_files $uri =404; } }", "does not lead to", "certdrop-challenge"),
    "a redirect before": ("server { listen 80; server_name a.test; CHALLENGE; return 301 https://$host$request_uri; }",
                          "nginx.conf:2: return 301 https://$host$request_uri of the server block comes before every location", "location / { }"),
    "certbot's if": ("server {\n listen 80; server_name a.test;\n if ($host = a.test) {\n  return 301 https://$host$request_uri;\n } # managed by Certbot\n"
                     " CHALLENGE;\n}", "nginx.conf:5: return 301", "location / { }"),
    "an if on the scheme": ("server { listen 80; server_name a.test; if ($scheme != \"https\") { return 301 https://$host; } CHALLENGE; }",
                            "return 301", "location / { }"),
    "an if on the scheme, quoted": ("server { listen 80; server_name a.test; if ($scheme = \"http\") {return 301 https://$host;} CHALLENGE; }",
                                    "return 301", "location / { }"),
    "an if with blanks": ("server { listen 80; server_name a.test; if ( $scheme = http ) { return 301 https://$host; } CHALLENGE; }",
                          "return 301", "location / { }"),
    "an if with a blank at the end": ("server { listen 80; server_name a.test; if ($scheme ~ ^http$ ) { return 301 https://$host; } CHALLENGE; }",
                                      "return 301", "location / { }"),
    "a rewrite of all": ("server { listen 80; server_name a.test; rewrite ^ https://$host$request_uri? permanent; CHALLENGE; }", "rewrite",
                         "location / { }"),
    "a proxy": (
        "server { listen 80; server_name a.test; location / { proxy_pass http://127.0.0.1:8080; } }",
        "proxy_pass http://127.0.0.1:8080 takes", "certdrop-challenge"),
    "a regular expression before": ("server { listen 80; server_name a.test; location /.well-known/acme-challenge/ { alias /var/spool/certdrop/challenges/; }"
                                    " location ~ /\\. { deny all; return 404; } }", "return 404 takes", "certdrop-challenge"),
    "another client's webroot": (
        "server { listen 80; server_name a.test; location ^~ /.well-known/acme-challenge/ { root /srv/acme; } }",
        "does not lead to", "challenge"),
    "only port 443": ("server { listen 443 ssl; server_name a.test; CHALLENGE; }", "does not listen on port 80", "listen 80;"),
    "TLS at port 80": ("server { listen 80 ssl; server_name a.test; CHALLENGE; }", "nginx.conf:2: listen 80 ssl makes", "take the word ssl out"),
    "the PROXY protocol": ("server { listen 80 proxy_protocol; server_name a.test; CHALLENGE; }", "listen 80 proxy_protocol", "take the word proxy_protocol"),
    "TLS by another block's word": ("server { listen 80; server_name a.test; CHALLENGE; }\nserver { listen *:80 ssl; server_name b.test; }",
                                    "nginx.conf:3: listen *:80 ssl", "the listen at /etc/nginx/nginx.conf:3"),
    "no block of its own": ("server { listen 80; server_name b.test; }", "has no challenge location", "certdrop-nginx --write"),
    "another block has the name": ("server { listen 80; CHALLENGE; } server { listen 80; server_name a.test; }",
                                   "has no challenge location", "certdrop-challenge"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_in_the_way_is_named(what):
    """With file and line, and what mends it."""
    text, why, mend = BAD[what]
    found = way(text)
    assert why in found.why and mend in found.mend, found


@pytest.mark.parametrize("text", ["server { listen 80; server_name ~^(a+)+$; } server { listen 80 default_server; CHALLENGE; }",
                                  "server { listen 80; if ($host ~ ^(a+)+$) { return 301 https://x; } CHALLENGE; }",
                                  "server { listen 80; if ($host ~ \"((\") { return 301 https://x; } CHALLENGE; }"])
def test_what_cannot_be_told_is_not_fine(text):
    """An expression that would be searched for ever, or is none, is neither a free way nor the end of the program."""
    assert "cannot tell" in way(text, "a" * 60 + ".test").why


@pytest.mark.parametrize("pattern", ["^/[[:punct:]]well-known", "^/\\.well\\H", "^/(?<x>.)well\\-(?P<y>k)", "\\Qwell-known\\E"])
def test_expressions_are_nginxs(pattern):
    """They mean what nginx's library means by them."""
    assert "return 301" in way(f"server {{ listen 80; if ($uri ~ {pattern}) {{ return 301 https://x; }} CHALLENGE; }}").why


def test_without_the_library_nothing_is_said_to_be_fine(monkeypatch):
    """The cause and the package are named."""
    monkeypatch.setattr(expression, "LIBRARY", "libnone.so.0")
    expression._library.cache_clear()
    found = way(GOOD["our own block"])
    expression._library.cache_clear()
    assert "libnone.so.0 cannot be loaded" in found.why and found.mend == "apt install libpcre2-8-0"


def test_ipv6_is_a_way_of_its_own():
    """A block that listens for IPv4 alone leaves the other address to somebody else."""
    text = "server { listen 80; server_name a.test; CHALLENGE; } server { listen [::]:80 default_server; return 404; }"
    assert (way(text).why, "return 404" in way(text, address="[2001:db8::1]").why) == ("", True)


def test_settings_hold_where_the_challenge_is_served():
    """The location's own before the block's."""
    text = f"http {{ disable_symlinks if_not_owner; server {{ listen 80; {INCLUDE} }} }}"
    config = Configuration([Source("/etc/nginx/nginx.conf", text), Source(PATH, SNIPPET)])
    found = challenge.setting(config, challenge.way(config, "127.0.0.1", "a.test"), "disable_symlinks")
    assert found and found.args == ["on", "from=/var/spool/certdrop/challenges"]


@pytest.mark.parametrize("text", ["server { listen 80; if { } if () { } if ($) { } if ($host) { } location; location { } location ~ ((( { } alias; }",
                                  "server { listen 80; location ~ (a+)+$ { location /.well-known/ { alias; } } rewrite; return; }", "server {"])
def test_nothing_raises(text):
    """Whatever stands there, there is an answer."""
    assert isinstance(way(text), challenge.Way)

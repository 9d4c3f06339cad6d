"""What nginx would do with a challenge, from its configuration: recorded habits of administrators and of other clients."""

from __future__ import annotations

import pathlib
import time

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
    "only another address": ("server { listen 80; server_name a.test; CHALLENGE; } server { listen 127.0.0.1:80; server_name b.test; }",
                             "has no challenge location", "listen 127.0.0.1:80;"),
    "its own name and those below": ("server { listen 80; } server { listen 8080; server_name .a.test; CHALLENGE; }", "has no challenge location",
                                     "/etc/nginx/nginx.conf:2: listen 80;"),
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
    found = way(text, "a" * 60 + ".test")
    assert found.unclear and not found.is_blocked and "cannot tell" in found.why


@pytest.mark.parametrize("pattern", ["^/[[:punct:]]well-known", "^/\\.well\\H", "^/(?<x>.)well\\-(?P<y>k)", "\\Qwell-known\\E"])
def test_expressions_are_nginxs(pattern):
    """They mean what nginx's library means by them."""
    assert "return 301" in way(f"server {{ listen 80; if ($uri ~ {pattern}) {{ return 301 https://x; }} CHALLENGE; }}").why


def test_without_the_library_nothing_is_said_to_be_fine(monkeypatch):
    """The cause and the package are named."""
    monkeypatch.setattr(expression, "LIBRARY", "libnone.so.0")
    for cached in (expression._library, expression.match):
        cached.cache_clear()
    found = way(GOOD["our own block"])
    expression._library.cache_clear()
    assert found.unclear
    assert "libnone.so.0 cannot be loaded" in found.why and found.mend == "apt install libpcre2-8-0"


def test_ipv6_is_a_way_of_its_own():
    """A block that listens for IPv4 alone leaves the other address to somebody else."""
    text = "server { listen 80; server_name a.test; CHALLENGE; } server { listen [::]:80 default_server; return 404; }"
    assert (way(text).why, "return 404" in way(text, address="[2001:db8::1]").why) == ("", True)


HAND = "location ^~ /.well-known/acme-challenge/ { alias /var/spool/certdrop/challenges/; %s }"
BY_GROUP = "location ~ ^/.well-known/acme-challenge/([^/]+)$ { alias /var/spool/certdrop/challenges/$1; %s }"
LOGIN = "auth_basic x; auth_basic_user_file /etc/users;"
TO_HTTPS = "server { listen 80; server_name a.test; return 301 https://$host$request_uri; } server { listen 443 ssl; server_name a.test; %s }"


@pytest.mark.parametrize("text, at", [
    (f"server {{ listen 80; {LOGIN} {HAND % ''} }}", "auth_basic x refuses"), (f"{LOGIN} server {{ listen 80; {HAND % ''} }}", "auth_basic x refuses"),
    (f"server {{ listen 80; deny all; {HAND % ''} }}", "deny all refuses"), (f"deny all; server {{ listen 80; {HAND % 'satisfy any;'} }}", "deny all refuses"),
    (f"server {{ listen 80; auth_request /auth; {HAND % ''} location = /auth {{ return 401; }} }}", "auth_request /auth refuses"),
    (f"server {{ listen 80; auth_request /none; {HAND % ''} }}", "auth_request /none refuses"),
    (f"server {{ listen 80; satisfy any; allow 10.0.0.0/8; deny all; {LOGIN} {HAND % ''} }}", "refuses"),
    (f"server {{ listen 80; allow 192.168.0.0/16; deny all; {HAND % ''} }}", "deny all refuses"),
    (f"server {{ listen 80; {HAND % 'internal;'} }}", "internal"), (f"server {{ listen 80; {HAND % 'empty_gif;'} }}", "empty_gif takes"),
    (f"server {{ listen 80; {HAND % 'limit_except POST { deny all; }'} }}", "deny all refuses"),
    (f"server {{ listen 80; {HAND % 'stub_status; if ($scheme = http) { break; }'} }}", "stub_status takes"),
    (f"server {{ listen 80; {HAND % 'empty_gif; if ($scheme = http) { set $x 1; }'} }}", "empty_gif takes"),
    (f"server {{ listen 80; {HAND % 'proxy_pass http://127.0.0.1:1; limit_except POST { allow all; }'} }}", "proxy_pass http://127.0.0.1:1 takes"),
    (f"server {{ listen 80; {HAND % 'rewrite ^ /index.php last;'} location / {{ proxy_pass http://127.0.0.1:1; }} }}", "proxy_pass http://127.0.0.1:1 takes"),
    (f"server {{ listen 80; {HAND % 'return 404;'} }}", "return 404 takes"), (f"server {{ listen 80; {HAND % 'return https://other.test;'} }}", "other.test"),
    (f"server {{ listen 80; {HAND % 'if ($request_method = GET) { return 403; }'} }}", "return 403 takes"),
    (f"server {{ listen 80; {HAND % 'try_files $uri.html =404;'} }}", "does not lead"),
    (f"server {{ listen 80; rewrite ^/(.*)$ /$1; break; {HAND % ''} }}", "comes before every location"),
    (f"server {{ listen 80; {BY_GROUP % 'rewrite ^/old /new last;'} }}", "does not lead"),
    (f"server {{ listen 80; {BY_GROUP % 'if ($http_referer ~ spam) { return 403; }'} }}", "does not lead"),
    (f"server {{ listen 80; {BY_GROUP % 'if ($uri !~ ^/old) { set $x 1; }'} }}", "does not lead"),
    ("server { listen 80; location ~ ^/.well-known/ { alias /etc/; error_page 404 = @away; } location @away { return 200 x; } }", "return 200 x"),
    ("server { listen 80; if ($uri ~ [^/]$) { return 301 $uri/; } CHALLENGE; }", "return 301"),
    (f"server {{ listen 80; {HAND % 'if ($scheme = http) { rewrite ^/(.*)$ /$1; break; }'} }}", "does not lead"),
    (f"server {{ listen 80; add_after_body /x; addition_types text/plain; {HAND % ''} }}", "add_after_body"),
    (f"server {{ listen 80; add_after_body /x; addition_types text/plain; {HAND % ''} location /x {{ return 200 x; }} }}", "add_after_body"),
    (f"server {{ listen 80; {HAND % 'rewrite (.*) $1 break;'} }}", "does not lead"),
    (f"server {{ listen 80; rewrite (.*) $1 break; {HAND % 'try_files $uri =404;'} }}", "comes before every location"),
    ("server { listen 80; set $away 1; if ($away) { return 301 http://a.test:8080/; } CHALLENGE; }", "where CAs do not go"),
    ("map $host $away { default 0; a.test 1; } server { listen 80; if ($away) { return 404; } CHALLENGE; }", "return 404"),
    ("geo $inside { default 0; 10.0.0.0/8 1; } server { listen 80; if ($inside = 0) { return 404; } CHALLENGE; }", "return 404"),
    ("server { listen 80; if ($cookie_in = \"\") { return 403; } CHALLENGE; }", "return 403"),
    ("server { listen 80; if ($arg_x = \"\") { return 403; } CHALLENGE; }", "403"),
    ("server { listen 80; if ($http_x_forwarded_proto != https) { return 403; } CHALLENGE; }", "return 403"),
    ("server { listen 80; if ($query_string = \"\") { return 403; } CHALLENGE; }", "return 403"),
    ("server { listen 80; if ($request_method = GET) { return 403; } CHALLENGE; }", "return 403"),
    ("server { listen 80; if ($server_protocol ~ ^HTTP/1) { return 403; } CHALLENGE; }", "return 403"),
    ("server { listen 80; if (!-f /nothing/there) { return 503; } CHALLENGE; }", "return 503"),
    ("server { listen 80; if (-d /etc) { return 503; } CHALLENGE; }", "503"),
    (f"server {{ listen 80; add_before_body /x; default_type text/html; {HAND % ''} }}", "add_before_body"),
    (TO_HTTPS % "root /srv;", "has no challenge location"),
    ("server { listen 80; server_name a.test; return 301 https://$host$request_uri; }", "does not listen on port 443"),
    (TO_HTTPS % "ssl_verify_client on; CHALLENGE;", "ssl_verify_client on refuses"), (TO_HTTPS.replace("443 ssl", "443") % "CHALLENGE;", "does not speak TLS"),
    ("server { listen 80; server_name a.test; return 301 http://$host$request_uri; }", "again and again"),
    ("server { listen 80; server_name a.test; location / { return 301 //b.test$request_uri; } }", "again and again"),
    ("server { listen 80; server_name ''; return 301 https://$server_name$request_uri; }", "where CAs do not go"),
    ("server { listen 80; ssl on; server_name b.test; } server { listen 80; server_name a.test; CHALLENGE; }", "ssl on makes port 80"),
    ("ssl on; server { listen 80; CHALLENGE; }", "ssl on makes port 80"),
    ((TO_HTTPS % "CHALLENGE;").replace("443 ssl", "443") + " server { listen 443; ssl on; }", "does not speak TLS"),
    (f"server {{ listen 80; error_page 404 =200 /x; {HAND % 'return 404;'} location /x {{ root /srv; }} }}", "does not lead"),
])
def test_what_refuses_a_token_is_not_fine(text, at):
    """Whether inherited or within a location that somebody wrote, and wherever a redirect leads."""
    found = way(text)
    assert at in found.why and (found.is_blocked or "other.test" in at), found


@pytest.mark.parametrize("text", [
    "server { listen 80; if ($http_user_agent ~ bot) { return 403; } CHALLENGE; }", "server { listen 80; if ($remote_addr ~ ^8) { return 403; } CHALLENGE; }",
    "server { listen 80; access_by_lua_block { return ngx.exit(403) } CHALLENGE; }", "server { listen 80; modsecurity on; CHALLENGE; }",
    f"server {{ listen 80; deny 8.8.0.0/16; {HAND % ''} }}", f"server {{ listen 80; allow 8.8.0.0/16; deny all; {HAND % ''} }}",
    "server { listen 80; server_name a.test; return 301 http://other.test$request_uri; }",
    f"server {{ listen 80; auth_request /auth; {HAND % ''} location = /auth {{ proxy_pass http://127.0.0.1:1; }} }}",
    f"limit_req_zone $server_name zone=one:1m rate=9r/s; limit_req zone=one; server {{ listen 80; {HAND % ''} }}",
    f"server {{ listen 80; sub_filter a b; sub_filter_types *; {HAND % ''} }}",
    "server { listen no-such-host.test:80; CHALLENGE; }", "server { listen 80; server_name a.test; location / { proxy_pass http://127.0.0.1:80; } }",
    "server { listen 80; CHALLENGE;" + " location /x {" * 70 + "}" * 70 + "}",
])
def test_what_hangs_on_something_unknown_cannot_be_told(text):
    """Neither free nor blocked: a header, an address of the CA's, another server, a module that nginx.org does not have."""
    found = way(text)
    assert found.unclear and found.why.startswith("cannot tell from nginx's configuration where challenges for a.test go: ") and found.mend, found


@pytest.mark.parametrize("text", [
    "server { listen 80; location ^~ /.well-known/acme-challenge/ { alias /var/spool/certdrop/challenges//; } }",
    "server { listen 80; location ~ ^/.well-known/acme-challenge/(?<token>.+)$ { alias /var/spool/certdrop/challenges/$token; } }",
    "server { listen localhost:80; CHALLENGE; }", "server { listen 79-81; CHALLENGE; }", TO_HTTPS % "CHALLENGE;",
    "server { listen 80; location / { content_by_lua_block { ngx.say('}') -- } \n } } CHALLENGE; }",
    "server { listen 80; location / { access_by_lua_block { x = '}' } } CHALLENGE; }",
    "server { listen 80; server_name a.test; location / { return 301 /moved$request_uri; } location /moved/ { rewrite ^/moved(.*) $1 last; } CHALLENGE; }",
    (TO_HTTPS % "ssl on; CHALLENGE;").replace("443 ssl", "443"), "ssl on; server { listen 80; ssl off; CHALLENGE; } server { listen 443; }",
    f"server {{ listen 80; {LOGIN} {HAND % 'auth_basic off;'} }}", f"server {{ listen 80; deny all; {HAND % 'allow all;'} }}",
    f"server {{ listen 80; auth_request /a; {LOGIN} {HAND % 'allow all; satisfy any;'} }}", f"server {{ listen 80; deny 10.0.0.0/8; {HAND % ''} }}",
    f"server {{ listen 80; {HAND % 'stub_status; limit_except POST { allow all; }'} }}",
    f"server {{ listen 80; {BY_GROUP % 'set $x 1; if ($scheme = ftp) { return 403; }'} }}",
    f"server {{ listen 80; if ($uri ~ ^/old) {{ return 403; }} {BY_GROUP % ''} }}",
    f"server {{ listen 80; {HAND % 'limit_except GET { deny all; }'} }}", f"server {{ listen 80; {HAND % 'try_files $uri =404;'} }}",
    "limit_req zone=one; limit_conn two 1; server { listen 80; CHALLENGE; }",
    f"limit_req_zone $binary_remote_addr zone=one:1m rate=9r/s; limit_req zone=one; server {{ listen 80; {HAND % ''} }}",
    f"server {{ listen 80; limit_req zone=one burst=20; {HAND % ''} }}",
    "map $http_upgrade $connection { default upgrade; '' close; } server { listen 80; if ($connection = upgrade) { return 403; } CHALLENGE; }",
    "server { listen 80; if ($http_user_agent ~ bot) { set $bot 1; } CHALLENGE; if ($scheme = https) { return 403; } }",
    f"server {{ listen 80; add_after_body /x; addition_types text/plain; {HAND % ''} location /x {{ return 204; }} }}",
    f"server {{ listen 80; add_before_body /x; addition_types text/plain; {HAND % ''} location /x {{ return 200; }} }}",
    f"server {{ listen 80; rewrite ^/old(.*)$ /$1; break; {HAND % ''} }}",
    "server { listen 80; error_page 404 = @old; location @old { root /srv; } CHALLENGE; }", "server { listen 80; modsecurity off; CHALLENGE; }",
])
def test_what_lets_a_token_through_is_no_alarm(text):
    """What nginx does with it counts, not how it is written."""
    assert way(text).why == ""


def test_an_address_of_ipv6_in_any_spelling():
    """It is the same address."""
    assert way("server { listen [0:0:0:0:0:0:0:1]:80; CHALLENGE; }", address="[::1]").why == ""


def test_links_are_followed(tmp_path, monkeypatch):
    """A web root in which a link leads to the challenges serves them; unless disable_symlinks refuses that link."""
    challenges, web = tmp_path / "challenges", tmp_path / "web/.well-known"
    challenges.mkdir()
    web.mkdir(parents=True)
    (web / "acme-challenge").symlink_to(challenges)
    monkeypatch.setattr(challenge.tokens, "directory", lambda: str(challenges))
    ways = [way(f"{more} server {{ listen 80; root {tmp_path}/web; }}") for more in (
        "", "disable_symlinks on;", "disable_symlinks if_not_owner;", f"disable_symlinks on from={web}/acme-challenge;")]
    assert [found.why == "" for found in ways] == [True, False, True, True] and "disable_symlinks on" in ways[1].why


@pytest.mark.parametrize("text", ["server { listen 80; if { } if () { } if ($) { } if ($host) { } location; location { } location ~ ((( { } alias; }",
                                  "server { listen 80; add_after_body /x; addition_types *; location /x { rewrite ^ $request_uri last; } CHALLENGE; }",
                                  "server { listen 80; auth_request /x; location /x { rewrite ^ $request_uri last; } location /.well-known/ { root /srv; } }",
                                  "server { listen 80; location ~ (a+)+$ { location /.well-known/ { alias; } } rewrite; return; }", "server {"])
def test_nothing_raises(text):
    """Whatever stands there, there is an answer."""
    assert isinstance(way(text), challenge.Way)


def test_redirects_that_hang_on_headers_have_an_end():
    """Each guess leads to another place, where as many are made again: that is given up, and soon."""
    ifs = " ".join(f"if ($http_user_agent ~ {at}) {{ rewrite ^(.*)$ $1/{at} redirect; }}" for at in "abcdef")
    begin = time.process_time()
    found = way(f"server {{ listen 80; server_name a.test; {ifs} CHALLENGE; }}")
    assert found.unclear and time.process_time() - begin < 3

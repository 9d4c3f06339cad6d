"""The diff that moves nginx over: recorded forms of server blocks, as administrators and other clients write them."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from certdrop.importer import nginx as import_nginx
from certdrop.nginx import challenge
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.syntax import Source

ROOT = pathlib.Path(__file__).resolve().parents[3]
SNIPPET = (ROOT / "nginx" / "certdrop-challenge.conf").read_text(encoding="ascii")
LIVE = "include /var/lib/certdrop/live/a.test/nginx.conf;"
PAIR = "ssl_certificate /old/a.pem;\nssl_certificate_key /old/a.key;\n"


@pytest.fixture
def move(tmp_path, monkeypatch):
    """A function: configuration files in, (the files as patch(1) leaves them, remarks) out."""
    monkeypatch.setattr(import_nginx, "SNIPPET", str(tmp_path / "challenge.conf"))
    (tmp_path / "challenge.conf").write_text(SNIPPET)

    def run(text, **more):
        paths = {"nginx.conf": "http {\n" + text + "\n}\n", **{name.replace("_", "."): content for name, content in more.items()}}
        for name, content in paths.items():
            (tmp_path / name).write_text(content)
        nginx = import_nginx.Nginx([Source(str(tmp_path / name), content) for name, content in paths.items()])
        nginx.places = ["/old"]
        diff, remarks = nginx.diff({"/old/a.pem": "a.test", "/old/chain.pem": "a.test"}.get or str, {"a.test": ["a.test"]})
        if diff:
            subprocess.run(["patch", "-p0", "-s", "-d", "/"], input=diff.encode(), check=True)
        return (tmp_path / "nginx.conf").read_text(), [remark.replace(f"{tmp_path}/", "") for remark in remarks]
    return run


def is_free(text, tmp_path):
    """Whether challenges get through, by the reader that the doctor uses."""
    files = [Source(str(tmp_path / "nginx.conf"), text), Source(str(tmp_path / "challenge.conf"), SNIPPET)]
    return challenge.first_blocked(Configuration(files), "a.test") is None


FORMS = {
    "webroot": "server {\n    listen 80;\n    server_name a.test;\n    root /srv;\n}\n",
    "a location of the old client's": "server {\n listen 80;\n location ^~ /.well-known/acme-challenge/ { alias /srv/acme/; }\n"
                                      " location / { return 301 https://x; }\n}\n",
    "the same without a modifier": "server {\n listen 80;\n location /.well-known/acme-challenge/ {\n  root /srv;\n }\n}\n",
    "the same without a slash": "server {\n listen 80;\n location ^~ /.well-known/acme-challenge {\n  alias /srv;\n }\n}\n",
    "a redirect of the block": "server {\n listen 80;\n return 301 https://$host$request_uri;\n}\n",
    "a rewrite of the block": "server { listen 80; rewrite ^ https://a.test$request_uri? permanent; }",
    "certbot's": "server {\n    if ($host = a.test) {\n        return 301 https://$host$request_uri;\n    } # managed by Certbot\n\n    listen 80;\n"
                 "    server_name a.test;\n    return 404; # managed by Certbot\n}\n",
    "ours, shadowed": "server {\n listen 80;\n include CHALLENGE;\n return 301 https://$host$request_uri;\n}\n",
    "a regular expression": "server {\n listen 80;\n location ~ /\\. { deny all; }\n location ~ . { proxy_pass http://127.0.0.1:1; }\n}\n",
    "two addresses": "server {\n listen 80;\n listen [::]:80;\n server_name a.test;\n}\n",
    "the default": "server {\n listen 80 default_server;\n server_name _;\n return 444;\n}\nserver {\n listen 80;\n server_name b.test;\n}\n",
    "both ports": "server {\n listen 80;\n listen 443 ssl;\n ssl_certificate /old/a.pem; ssl_certificate_key /old/a.key;\n root /srv;\n}\n",
    "odd spacing": "server{listen 80;server_name a.test;if ($scheme = http){return 301 https://$host$request_uri;}}",
}


@pytest.mark.parametrize("what", FORMS)
def test_challenges_get_through(move, tmp_path, what):
    """Past whatever stood in the way; and a second diff has nothing to say."""
    text, remarks = move(FORMS[what].replace("CHALLENGE", str(tmp_path / "challenge.conf")))
    assert is_free(text, tmp_path)
    assert remarks == []
    again = import_nginx.Nginx([Source(str(tmp_path / "nginx.conf"), text), Source(str(tmp_path / "challenge.conf"), SNIPPET)])
    assert again.diff(lambda _: "", {"a.test": ["a.test"]}) == ("", [])


CERTIFICATES = {
    "two lines": (PAIR, LIVE + "\n"),
    "with certbot's comments": (PAIR.replace(";", "; # managed by Certbot"), LIVE + "\n"),
    "with a comment of one's own": (PAIR.replace(";", "; # mine"), LIVE + " # mine\n"),
    "one line": (PAIR.replace("\n", " ") + "\n", LIVE + "  \n"),
    "the key first": ("ssl_certificate_key /old/a.key;\nssl_certificate /old/a.pem;\n", LIVE + "\n"),
    "quoted": (PAIR.replace("/old/a.pem", '"/old/a.pem"'), LIVE + "\n"),
    "two pairs": (PAIR + "ssl_certificate /new/b.pem;\nssl_certificate_key /new/b.key;\n",
                  LIVE + "\nssl_certificate /new/b.pem;\nssl_certificate_key /new/b.key;\n"),
    "another's": ("ssl_certificate /new/b.pem;\nssl_certificate_key /new/b.key;\n", "ssl_certificate /new/b.pem;\nssl_certificate_key /new/b.key;\n"),
    "by a variable": ("ssl_certificate /old/$ssl_server_name;\nssl_certificate_key /old/$ssl_server_name;\n",) * 2,
    "the chain for stapling": (PAIR + "ssl_trusted_certificate /old/chain.pem;\n",
                               LIVE + "\nssl_trusted_certificate /var/lib/certdrop/live/a.test/chain.pem;\n"),
}
FREE = "server { listen 80; include challenge.conf; }\n"


@pytest.mark.parametrize("what", CERTIFICATES)
def test_pairs_give_way_to_the_include(move, what):
    """Whatever way they are written, and nothing else changes."""
    before, after = CERTIFICATES[what]
    text, remarks = move(FREE + f"server {{\nlisten 443 ssl;\n{before}}}", challenge_conf=SNIPPET)
    assert (text, remarks) == ("http {\n" + FREE + f"server {{\nlisten 443 ssl;\n{after}}}\n}}\n", [])


def test_a_snippet_of_many_blocks_is_changed_once(move, tmp_path):
    """Where several server blocks include the pair."""
    one = "server {{ listen 443 ssl; server_name {}.test; include pair.conf; }}\n"
    move(FREE + one.format("a") + one.format("b"), challenge_conf=SNIPPET, pair_conf=PAIR)
    assert (tmp_path / "pair.conf").read_text() == LIVE + "\n"


def test_a_link_is_not_patched_but_what_it_leads_to(tmp_path):
    """patch(1) refuses to work on links, which sites-enabled is full of."""
    (tmp_path / "available").write_text(PAIR)
    (tmp_path / "enabled").symlink_to("available")
    diff, _ = import_nginx.Nginx([Source(str(tmp_path / "enabled"), PAIR)]).diff(lambda _: "a.test", {})
    assert f"--- {str(tmp_path)[1:]}/available\n" in diff


def test_a_last_line_without_an_end(tmp_path):
    """patch(1) must be told."""
    (tmp_path / "a").write_text(PAIR.rstrip())
    diff, _ = import_nginx.Nginx([Source(str(tmp_path / "a"), PAIR.rstrip())]).diff(lambda _: "a.test", {})
    subprocess.run(["patch", "-p0", "-s", "-d", "/"], input=diff.encode(), check=True)
    assert (tmp_path / "a").read_text() == LIVE + "\n"


@pytest.mark.parametrize("name, text", [("with space", PAIR), ('with"quote', PAIR), ("changed", PAIR + "# since\n")])
def test_what_cannot_be_patched_is_said(tmp_path, name, text):
    """A name that patch(1) may read otherwise, or a file that nginx -T saw otherwise."""
    (tmp_path / name).write_text(text)
    diff, remarks = import_nginx.Nginx([Source(str(tmp_path / name), PAIR)]).diff(lambda _: "a.test", {})
    assert diff == ""
    assert "change it by hand" in remarks[0]


def test_what_else_nginx_uses_of_the_old_client(move):
    """It is named, since purging the client would end nginx."""
    _, remarks = move(FREE + "server { listen 443 ssl; include /old/options.conf; ssl_dhparam /old/dhparams.pem; }", challenge_conf=SNIPPET)
    assert [remark.split(" too:")[0] for remark in remarks] == ["nginx uses /old/options.conf", "nginx uses /old/dhparams.pem"]


def test_names_that_stay_with_another_client_are_named(move):
    """The block gets our challenge location, so nobody else proves its names over HTTP any more."""
    _, remarks = move("server { listen 80; server_name a.test other.test; root /srv; }")
    assert len(remarks) == 1 and "answers for other.test too" in remarks[0]


def test_nobody_listens(move):
    """Then a server block is missing."""
    _, remarks = move("server { listen 443 ssl; server_name a.test; }")
    assert len(remarks) == 1 and "does not listen on port 80" in remarks[0] and ": listen 80; include" in remarks[0]


def test_an_old_location_within_a_snippet(move):
    """Where it is all that is included, the include goes; where it is not, a person must look."""
    old = "location ^~ /.well-known/acme-challenge/ { root /srv; }\n"
    text, remarks = move("server { listen 80; include old.conf; }", old_conf=old)
    assert "old.conf" not in text and remarks == []
    text, remarks = move("server { listen 80; include old.conf; }", old_conf=old + "gzip on;\n")
    assert "old.conf" in text and "by hand" in remarks[0]

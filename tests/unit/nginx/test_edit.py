"""What is put into server blocks that are there: insertions that can be taken out again, or a refusal by file and line."""

from __future__ import annotations

import pathlib

import pytest

from certdrop.nginx import challenge, change, edit, several, snippets
from certdrop.nginx.blocks import Build, Refused
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.syntax import Source

ROOT = pathlib.Path(__file__).resolve().parents[3]
SNIPPET = (ROOT / "nginx" / "certdrop-challenge.conf").read_text()
OLD, NEW = Build((1, 22, 1), (3, 0), True), Build((1, 26, 3), (3, 5), True)


def configuration(text, http=""):
    """A configuration with this file of sites."""
    return Configuration([Source("/etc/nginx/nginx.conf", f"http {{ {http} include /etc/nginx/sites; }}"), Source("/etc/nginx/sites", text),
                          Source(snippets.CHALLENGE, SNIPPET)])


def edited(text, *domains, build=OLD, http="", **more):
    """The text with what example's site, or another one, needs."""
    changes = edit.changes(configuration(text, http), edit.Wanted([domains[0]], domains, build, **more))
    return changes[0].new if changes else text


ORDINARY = "server {\n    listen 80;\n    listen [::]:80;\n    server_name a.example b.example;\n    root /srv;\n}\n"
FORMS = {
    "ordinary": ORDINARY,
    "no newline at the end": ORDINARY.rstrip("\n"),
    "one line": "server { listen 80; server_name a.example b.example; location / { proxy_pass http://127.0.0.1:1; } }\n",
    "tabs": "server {\n\tlisten 80;\n\tserver_name a.example b.example;\n}\n",
    "CRLF": ORDINARY.replace("\n", "\r\n"),
    "a brace on the next line": "server\n{\n  listen 80;\n  server_name a.example b.example;\n}\n",
    "comments with braces": "# server {\nserver { # { here\n  # }\n  listen 80; server_name a.example b.example;\n}\n",
    "a comment before the brace": "server # {\n{\n  listen 80; server_name a.example b.example; # }\n}\n",
    "quotes": "server {\n  listen 80; server_name \"a.example\" 'b.example';\n  add_header X \"} server { \";\n}\n",
    "no valid UTF-8": "# \udce4\nserver {\n  listen 80; server_name a.example b.example; # \udcfc\n}\n",
    "default_server": "server {\n  listen 80 default_server;\n  server_name a.example b.example _;\n  return 200;\n}\n",
    "a dotfile rule": "server {\n  listen 80; server_name a.example b.example;\n  location ~ /\\. { deny all; }\n}\n",
    "a return": "server {\n  listen 80; server_name a.example b.example;\n  return 301 http://www.example$request_uri;\n}\n",
    "two blocks": "server {\n  listen 80; server_name a.example;\n}\nserver {\n  listen 80; server_name b.example;\n}\n",
    "certbot's": """\
server {
    server_name a.example b.example;
    listen 443 ssl; # managed by Certbot
    ssl_certificate /etc/letsencrypt/live/a.example/fullchain.pem; # managed by Certbot
    ssl_certificate_key /etc/letsencrypt/live/a.example/privkey.pem; # managed by Certbot
}
server {
    if ($host = b.example) {
        return 301 https://$host$request_uri;
    } # managed by Certbot


    listen 80;
    server_name a.example b.example;
    return 404; # managed by Certbot
}
""",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [OLD, NEW], ids=["1.22", "1.26"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_form_is_changed_and_given_back(form, build, tls):
    """Challenges come through afterwards; nothing is removed; a second run changes nothing; taken out, the text is what it was."""
    text = FORMS[form]
    new = edited(text, "a.example", "b.example", build=build, tls=tls)
    assert new != text and edit.found("/f", new, "a.example").rest == text
    assert edited(new, "a.example", "b.example", build=build, tls=tls) == new
    after = configuration(new)
    assert [challenge.way(after, "127.0.0.1", name).why for name in ("a.example", "b.example")] == ["", ""]
    assert bool(after.answers.addresses(443)) == (tls or form == "certbot's")
    assert ("live/a.example/nginx.conf" in new) == tls


def test_the_lines_of_an_ordinary_block():
    """Just these, in nginx's old form and in its new one; the families are the block's own."""
    lines = [line.strip() for line in edited(ORDINARY, "a.example", "b.example").split("\n")[2:11]]
    assert lines == ["listen 443 ssl http2;", "listen [::]:443 ssl http2;", 'if ($uri ~ "^/\\.well-known/acme-challenge/") { break; }',
                     f"include {snippets.CHALLENGE};", "if ($scheme = http) { return 301 https://$host$request_uri; }",
                     "include /var/lib/certdrop/live/a.example/nginx.conf;", f"include {edit.TLS};", "ssl_ecdh_curve X25519:prime256v1:secp384r1;",
                     "# certdrop a.example ends"]
    new = edited(ORDINARY.replace("    listen [::]:80;\n", ""), "a.example", "b.example", build=NEW, redirect=False, hsts=True)
    assert "listen 443 ssl;\n    http2 on;\n" in new and "[::]" not in new and "return 301" not in new and edit.HSTS in new


def test_what_was_chosen_stays_chosen():
    """A later run without the options keeps what was asked for."""
    new = edited(ORDINARY, "a.example", "b.example", redirect=False, hsts=True)
    assert edited(new, "a.example", "b.example") == new


def test_a_redirect_is_for_the_names_alone_where_others_are_answered():
    """A default server goes on answering for everybody else by http."""
    new = edited(FORMS["default_server"], "a.example", "b.example")
    assert "if ($certdrop = http://a.example) { return 301" in new and "if ($scheme" not in new


def test_a_redirect_to_a_wildcard():
    """Is for one label below: the certificate is for no more."""
    new = edited("server {\n    listen 80;\n    server_name *.a.example c.example;\n}\n", "*.a.example")
    assert r'if ($certdrop ~ "^http://[^.]+\.a\.example$") { return 301' in new and "*.a.example)" not in new


def test_what_is_below_a_wildcard_is_the_sites():
    """Where another block was there for all names that have none, it was for nobody's: a wildcard takes what is below it, and no more."""
    other = "server {\n    listen 443 ssl;\n    server_name z.example;\n    ssl_certificate /z;\n}\n"
    block = "server {\n    listen 80;\n    server_name *.a.example;\n}\n"
    assert "listen 443 ssl" in edited(other + block, "*.a.example").partition("*.a.example")[2]
    with pytest.raises(edit.Refused, match="z.a.example"):
        edited(other.replace("z.example;", "z.example z.a.example;") + block.replace("*.a.example", ".a.example"), "z.a.example")


def test_sites_in_any_order():
    """A site before one that has HTTPS by certdrop is no trouble; each is taken out by itself."""
    text = FORMS["two blocks"]
    one = edited(text, "b.example")
    both = edited(one, "a.example")
    assert edit.found("/f", both, "a.example").rest == one
    assert edit.found("/f", edit.found("/f", both, "b.example").rest, "a.example").rest == text


def test_a_name_more():
    """A name that no block has is put into the site's lines, and stays there."""
    new = edited(ORDINARY, "a.example", "b.example", "c.example", more=["c.example"])
    assert "    server_name c.example;\n" in new
    assert edited(new, "a.example", "b.example", "c.example") == new


def test_a_block_without_a_listen_goes_on_listening():
    """nginx has it listen at *:80 only as long as it has no listen: beside ours that stands there, too."""
    text = "server { server_name a.example; }\nserver { listen 80 default_server; server_name x.example; }\n"
    new = edited(text, "a.example")
    assert "listen 80;\n" in new and edited(new, "a.example") == new
    assert configuration(new).answers.find("127.0.0.1", 80, "a.example").has_name("a.example")


def test_a_name_whose_certificate_is_to_come_is_not_led_to_it():
    """http leads to https for the names of the live certificate alone, until it is for all."""
    new = edited(ORDINARY, "a.example", "b.example", "c.example", more=["c.example"], pending=["c.example"])
    assert "http://a.example) { return 301" in new and "http://c.example" not in new and "if ($scheme" not in new
    later = edited(new, "a.example", "b.example", "c.example")
    assert "if ($scheme = http)" in later and edit.found("/f", later, "a.example").rest == ORDINARY


def test_lines_are_known_by_their_site():
    servers = configuration(edited(FORMS["two blocks"], "a.example")).servers
    assert [bool(edit.has_lines(one, "a.example")) for one in servers] == [True, False] == [bool(edit.has_lines(one)) for one in servers]
    assert not any(edit.has_lines(one, "b.example") for one in servers)


REFUSED = {
    "server { listen 80; server_name a.example; }\nserver { listen 443 ssl default_server; server_name *.example; }":
        "answers for a.example at 127.0.0.1:443, by",
    "server { listen 80; server_name a.example; return 301 https://$host$request_uri; }": "/etc/nginx/sites:1: return 301 https://$host$request_uri leads",
    "server { listen 80; server_name a.example; location / { return 301 https://a.example/; } }": "leads to https",
    "server { listen 80; server_name a.example ~^x; }": "is a regular expression",
    "server { listen 81; server_name z; }\nserver { listen 443 ssl; server_name a.example; ssl_certificate /x; }": "does not listen on port 80",
    "server { listen 80; server_name a.example; }\nserver { listen 443 ssl; server_name z.example; }": "/etc/nginx/sites:2: answers at 127.0.0.1:443 for names",
    "server { listen 80; server_name a.example z.example; }\nserver { listen 443 ssl default_server; server_name z.example; }": "for z.example, and",
    "server { listen 80; listen 443 ssl; server_name a.example z.example; ssl_certificate /x; }": "is for z.example on port 443, too",
    "server { listen 80; listen 443 ssl; server_name a.example; ssl_certificate /x; }": "/etc/nginx/sites:1: ssl_certificate does not have a line of its own",
    "server { listen 80; server_name a.example;\n location ^~ /.well-known/acme-challenge/ { root /srv; } }": "/etc/nginx/sites:2",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_for_certain_is_refused(text):
    """By file and line, with what to do; nothing is guessed."""
    with pytest.raises(Refused) as refused:
        edited(text, "a.example")
    assert REFUSED[text] in str(refused.value) and "nothing was changed" in str(refused.value)


@pytest.mark.parametrize("old, new", [("listen 443 ssl http2;", "listen 443 ssl;"), ("# certdrop a.example ends", ""), ("ssl_ecdh_curve", "# ssl_ecdh_curve")])
def test_lines_that_were_edited_are_left_alone(old, new):
    """Whoever edited certdrop's lines is told where."""
    text = edited(ORDINARY, "a.example", "b.example")
    with pytest.raises(Refused, match="/etc/nginx/sites:[0-9]+: these lines are certdrop's, and were edited since"):
        edited(text.replace(old, new, 1), "a.example", "b.example")


def test_what_others_wrote_elsewhere_stays():
    """Edits outside certdrop's lines survive their being taken out."""
    text = edited(ORDINARY, "a.example", "b.example").replace("root /srv;", "root /srv/new;")
    assert edit.found("/f", text, "a.example").rest == ORDINARY.replace("root /srv;", "root /srv/new;")


def test_no_block_is_no_change():
    """Who has none is told by the caller."""
    with pytest.raises(edit.NoBlock):
        edited(ORDINARY, "z.example")


def test_headers_for_all_are_not_lost():
    """An add_header of the http part would not hold beside HSTS."""
    with pytest.raises(Refused, match="would not hold any more"):
        edited(ORDINARY, "a.example", "b.example", hsts=True, http="add_header X-Frame-Options DENY;")


def test_a_place_is_that_of_the_file_as_it_is():
    """Also where the site's lines are there already, or would be."""
    text = edited(ORDINARY, "a.example", "b.example", hsts=True)
    with pytest.raises(Refused, match=f"/etc/nginx/sites:{text.count(chr(10)) + 2}, then run"):
        edited(text + "server { listen 443 ssl default_server; server_name z.example; }\n" +
               "server { listen 80; listen 443 ssl; server_name b.example c.example; ssl_certificate /x; }\n", "a.example", "b.example")


def servers(text):
    """The names and places of the blocks of a file of sites."""
    return [(one.names, sorted((place.address, place.port) for place in one.listens)) for one in configuration(text).servers]


SHARED = "server { listen 80; server_name a.example b.example;\n    root /srv;\n}\n"


@pytest.mark.parametrize("first, then", [("a.example", "b.example"), ("b.example", "a.example")])
def test_two_sites_in_a_block_are_taken_out_in_any_order(first, then):
    """What stood behind the brace never ends in the comment of another's lines."""
    one = edited(SHARED, first, tls=False)
    both = edited(one, then)
    assert both not in (one, SHARED)
    for name, other in ((first, then), (then, first)):
        left = edit.found("/etc/nginx/sites", both, name).rest
        assert servers(edited(SHARED, other, tls=other == then)) == servers(left)
        assert servers(SHARED) == servers(edit.found("/etc/nginx/sites", left, other).rest)


def test_a_comment_put_behind_the_brace_takes_nothing_in():
    """Somebody's own hand: the directives stay directives."""
    text = edited(SHARED, "a.example", tls=False).replace("server {", "server { # mine", 1)
    assert servers(SHARED) == servers(edit.found("/etc/nginx/sites", text, "a.example").rest)


@pytest.mark.parametrize("name", ["..", "../retired", "../../sites/a.example/0001", "", "a/b"])
def test_undo_is_for_sites_alone(name, monkeypatch):
    """What lies below keeper/nginx/NAME is removed: so nothing else is a name."""
    monkeypatch.setattr(change, "as_root", lambda work: pytest.fail("it began"))
    with pytest.raises(Refused, match="no site's name"):
        change.undo(name)


def _one_by_one(config: Configuration, wishes: list[edit.Wanted]) -> tuple[dict[str, str], list[str]]:
    """The texts with what each needs on top of the others, and who is refused."""
    refused = []
    for wanted in wishes:
        try:
            new = {one.path: one.new for one in edit.changes(config, wanted)}
        except (Refused, edit.NoBlock):
            refused.append(wanted.name)
            continue
        config = Configuration([Source(path, new.get(path, text)) for path, text in config.texts.items()])
    return config.texts, refused


@pytest.mark.parametrize("version", [(1, 22, 1), (1, 26, 3)])
@pytest.mark.parametrize("blocks", [
    ["listen 80; server_name a.example www.a.example;", "listen 80; listen [::]:80; server_name b.example;", "server_name c.example;"],
    ["listen 80; server_name a.example b.example;", "listen 80 default_server; server_name c.example _;", "listen 443 ssl; server_name d.example;"],
    ["listen 80; server_name a.example; return 301 https://$host/;", "listen 80; server_name b.example;", "listen 80; server_name c.example;"],
    ["listen 80; server_name a.example;", "listen 80; server_name z.example;", "listen 192.0.2.1:80; server_name b.example;",
     "listen 80; server_name c.example;"],
    ["listen 80; server_name a.example;", "listen 443 ssl default_server; server_name b.example; ssl_certificate /c; ssl_certificate_key /k;",
     "listen 80; server_name b.example;", "listen 192.0.2.1:443 ssl; listen 192.0.2.1:80; server_name c.example;"]])
def test_all_in_one_go_is_one_by_one(blocks: list[str], version: tuple[int, ...]) -> None:
    """For challenges, and then for HTTPS: the same texts, the same sites refused; with two sites in a block, and where one is refused."""
    config = Configuration([Source("/etc/nginx/nginx.conf", "http { include /etc/nginx/one; include /etc/nginx/two; }"), Source(snippets.CHALLENGE, SNIPPET),
                            Source("/etc/nginx/one", "".join(f"server {{ {block} }}\n" for block in blocks[:2])),
                            Source("/etc/nginx/two", "".join(f"server {{ {block} }}\n" for block in blocks[2:]))])
    for tls in (False, True, True):
        wishes = [edit.Wanted([name], [name], Build(version, (3, 5), True), tls) for name in ("a.example", "b.example", "nowhere.example", "c.example")]
        expected, refused = _one_by_one(config, wishes)
        edits, failed = several.together(config, wishes)
        new = {one.path: one.new for one in edits}
        config = Configuration([Source(path, new.get(path, text)) for path, text in config.texts.items()])
        assert (config.texts, sorted(failed)) == (expected, sorted(refused))


def test_many_sites_are_read_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once or twice for each."""
    config = Configuration([Source("/etc/nginx/nginx.conf", "http { " + "".join(f"server {{ listen 80; server_name s{at}.example; }}\n" for at in range(40))
                                   + "}"), Source(snippets.CHALLENGE, SNIPPET)])
    read, whole = [], Configuration._read
    monkeypatch.setattr(Configuration, "_read", lambda self, files: read.append(1) or whole(self, files))      # type: ignore[func-returns-value]
    edits, failed = several.together(config, [edit.Wanted([name], [name], NEW) for name in (f"s{at}.example" for at in range(40))])
    assert not failed and edits[0].new.count("listen 443 ssl;") == 40 and len(read) < 5


@pytest.mark.parametrize("head, refused", [("# z.example: printed by certdrop-nginx for nginx 1.26.3; print it anew\n", False), ("# mine\n", True)])
def test_a_new_block_of_ours_is_no_default_that_was_wished_for(head: str, refused: bool) -> None:
    """Who answers by HTTPS for names that no block has may change where that was the block of --write; else it is refused, with what settles it."""
    made = head + "server { listen 443 ssl; server_name z.example; ssl_certificate /c; ssl_certificate_key /k; }\n"
    config = Configuration([Source("/etc/nginx/nginx.conf", "http { include /etc/nginx/a; include /etc/nginx/z; }"), Source(snippets.CHALLENGE, SNIPPET),
                            Source("/etc/nginx/a", "server { listen 80; server_name a.example; }\n"), Source("/etc/nginx/z", made)])
    if refused:
        with pytest.raises(Refused, match="add default_server to the listen of /etc/nginx/z:2"):
            edit.changes(config, edit.Wanted(["a.example"], ["a.example"], NEW))
    else:
        assert "listen 443 ssl;" in edit.changes(config, edit.Wanted(["a.example"], ["a.example"], NEW))[0].new

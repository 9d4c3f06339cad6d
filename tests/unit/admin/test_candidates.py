"""What nginx answers for and has no certificate: found in its configuration, sifted by what is in the way."""

from __future__ import annotations

import pathlib

import pytest

from certdrop.admin import candidates
from certdrop.nginx import edit, fetched, several, snippets
from certdrop.nginx.blocks import Build
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.syntax import Source

SITES = """\
server { listen 80; server_name a.example www.a.example; }
server { listen 127.0.0.1:8080; server_name inner.example; }
server { listen [::]:80; server_name b.example; }
server { listen 80; server_name b.example c.example; }
server { listen 80 default_server; server_name _; }
server { listen 80; server_name d.example intranet; }
server { listen 80; server_name *.e.example; }
server { listen 80; server_name ~^x; }
server { listen 80; server_name site.example; }
"""
SNIPPET = (pathlib.Path(__file__).resolve().parents[3] / "nginx" / "certdrop-challenge.conf").read_text()
BUILD = Build((1, 26, 3), (3, 5), True)


def here(text: str = SITES) -> candidates.Known:
    """A host with one site of certdrop's already."""
    config = Configuration([Source("/etc/nginx/nginx.conf", "http { include /etc/nginx/sites; }"), Source("/etc/nginx/sites", text),
                            Source(snippets.CHALLENGE, SNIPPET)])
    return candidates.Known(config, BUILD, {"site.example": "site.example"})


def test_one_certificate_for_each_block() -> None:
    """Each name is taken once, by the first block that has it; what can have no certificate, or has one, is said and not taken."""
    found = candidates.by_block(here())
    assert [(one.name, one.domains, bool(one.why)) for one in found] == [
        ("a.example", ["a.example", "www.a.example"], False), ("b.example", ["b.example"], False), ("c.example", ["c.example"], False),
        ("d.example", ["d.example"], False), ("*.e.example", [], True), ("~^x", [], True)]
    assert found[0].place == "/etc/nginx/sites:1"
    assert [note.partition(":")[0] for note in found[3].notes] == ["intranet"]


def test_a_name_of_control_characters_is_cleaned(capfd: pytest.CaptureFixture[str]) -> None:
    """nginx's configuration is shown at root's terminal."""
    found = candidates.by_block(here("server { listen 80; server_name a.example *.\x1b]0;x\x07.example \x1b[2J.example; }"))
    candidates._list(found, [candidates.Candidate("b.example", [], "/\x1b[2J:1", [], "\x9b2J")])
    assert not set("\x1b\x07\x9b") & set(capfd.readouterr().err)


def test_what_does_not_lead_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block's names those that can be proven; what is in the way on port 80 alone is what the change mends."""
    bad = {"www.a.example": [fetched.Failure("www.a.example: names", "www.a.example: does not exist", "make a record")],
           "d.example": [fetched.Failure("d.example: port 80", "d.example: 404", "")],
           "c.example": [fetched.Failure("c.example: names", "c.example: leads elsewhere", "")]}
    monkeypatch.setattr(fetched, "of_new", lambda _: bad)
    known = here()
    found = {one.name: one for one in candidates.examined(known, candidates.by_block(known))}
    assert found["a.example"].domains == ["a.example"] and found["a.example"].notes == ["www.a.example: does not exist; make a record"]
    assert found["c.example"].why == "leads elsewhere"
    assert found["d.example"].why == ""


@pytest.mark.parametrize("text, address, left", [
    ("server { listen 80; server_name a.example; }", "192.0.2.1", True), ("server { listen 80; server_name a.example; }", "2001:db8::1", False),
    ("server { listen 80; listen [::]:80; server_name a.example; }", "2001:db8::1", True),
    ("server { listen 80; server_name a.example; }\nserver { listen [::]:80; server_name _; }", "2001:db8::1", False)])
def test_what_the_change_does_not_mend_is_left_out(text: str, address: str, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the block does not listen over IPv6 and the name has such an address, no challenge will come there; nor through a firewall."""
    why = f"a.example: over {address} the token does not come: Connection refused: nginx does not listen there"
    monkeypatch.setattr(fetched, "of_new", lambda _: {"a.example": [fetched.Failure("a.example: port 80", why, "add: listen [::]:80;")]})
    known = here(text)
    found = candidates.examined(known, candidates.by_block(known))
    assert (found[0].why == "") == left and (left or "over 2001:db8::1 the token does not come" in found[0].why)
    why += "; it is this host's firewall"
    assert candidates.examined(known, candidates.by_block(known))[0].why


def test_a_block_that_cannot_be_changed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the editor's own words, before anything is done."""
    monkeypatch.setattr(fetched, "of_new", lambda _: {})
    known = here("server { listen 80; server_name a.example; return 301 https://$host$request_uri; }\nserver { listen 80; server_name b.example; }\n")
    monkeypatch.setattr(fetched, "of_new", lambda _: {"a.example": [fetched.Failure("a.example: port 80", "a.example: over ::1 the token does not come", "")]})
    found = candidates.examined(known, candidates.by_block(known))
    assert "leads to https" in found[0].why and [one.why for one in found[1:]] == [""]
    known = here("server { listen 80; server_name b.example; }\nserver { listen 80; server_name a.example; return 301 https://$host$request_uri; }\n")
    assert candidates.examined(known, candidates.by_block(known))[1].why.startswith("/etc/nginx/sites:2: return 301")


def test_changes_of_one_file_are_put_together() -> None:
    """Two sites in a file: one new text, from which each can be taken out again; what is refused for one does not stop the other."""
    known = here()
    edits, failed = several.together(known.config, [candidates.wanted(known, name, [name]) for name in ("a.example", "nowhere.example", "d.example")])
    assert [one.path for one in edits] == ["/etc/nginx/sites"] and list(failed) == ["nowhere.example"]
    assert edit.found("/etc/nginx/sites", edit.found("/etc/nginx/sites", edits[0].new, "a.example").rest, "d.example").rest == SITES


@pytest.mark.parametrize("answers, chosen", [(["2"], ["b.example"]), (["02 a.example"], ["a.example", "b.example"]), ([",", "1"], ["a.example"]),
                                             (["0", "4", "\uff11", "1;2"], ["a.example", "b.example"]), ([""], ["a.example", "b.example", "c.example"]),
                                             (["1 nobody.example", "all"], ["a.example", "b.example", "c.example"]),
                                             (["1+2 2+3", "1 c.example + 2"], ["a.example", "c.example b.example"]), (["1+1"], ["a.example"]),
                                             (["1+9", "+", "1+", "2+3+1"], ["b.example c.example a.example"])])
def test_what_is_chosen(answers: list[str], chosen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and names, joined or not; what is neither, or nothing, or in two certificates, is asked for again."""
    known = here("".join(f"server {{ listen 80; server_name {name}.example; }}\n" for name in "abc"))
    can = [candidates.Candidate(name, [name], "/x:1", []) for name in ("a.example", "b.example", "c.example")]
    left = iter(answers)
    monkeypatch.setattr(candidates.terminal, "ask", lambda _: next(left))
    assert [" ".join(one.domains) for one in candidates._chosen(known, can)] == chosen and list(left) == []


def test_a_comma_is_no_plus() -> None:
    """Who joins names with commas is told how."""
    assert "+ between those" in candidates._why_absent(here(), "a.example,b.example")


def test_who_has_a_certificate_already_is_named() -> None:
    """Another client's."""
    found = candidates.by_block(here("server { listen 80; server_name had.example; }\nserver { listen 443 ssl; server_name had.example; ssl_certificate /c; }"))
    assert [(one.name, one.domains) for one in found] == [("had.example", [])] and "at /etc/nginx/sites:2; certdrop-import" in found[0].why


def test_blocks_that_are_joined_have_one_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed together; not with one that cannot be taken, nor with a site that is there, nor with more names than fit."""
    monkeypatch.setattr(fetched, "of_new", lambda _: {})
    known = here(SITES + "server { listen 80; server_name f.example; return 301 https://$host$request_uri; }\n")
    found = candidates.examined(known, candidates.by_block(known))
    at = {one.name: number for number, one in enumerate(found)}
    joined = {one.name: one for one in candidates._joined(known, found, [[at["d.example"], at["a.example"]], [at["b.example"], at["f.example"]], []])}
    one = joined["d.example"]
    assert (one.domains, one.blocks, one.why) == (["d.example", "a.example", "www.a.example"], 2, "")
    assert one.place == "/etc/nginx/sites:6 and /etc/nginx/sites:1"
    edits, failed = several.together(known.config, [candidates.wanted(known, one.name, one.domains)])
    assert not failed and edits[0].new.count("# certdrop d.example ends") == 2 and "a.example" not in joined
    assert joined["b.example"].why.startswith("cannot be joined: f.example: ") and "f.example" not in joined
    mine = candidates.Candidate("site.example", ["site.example"], "/x:1", [])
    assert "certdrop add-name site.example" in candidates._as_one(known, [found[0], mine]).why
    many = candidates.Candidate("m.example", [f"m{number}.example" for number in range(100)], "/x:1", [])
    assert "at most" in candidates._as_one(known, [found[0], many]).why

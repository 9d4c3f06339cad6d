"""Enrolling and withdrawing: a name belongs to one machine for ever, and what a machine left in the database keeps nobody from shutting it out."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import shlex
import sys
from typing import Any

import pytest

from certdrop.config import site
from certdrop.fleet import authority, command
from certdrop.nginx import snippets

PSQL = """
import sys
text = sys.stdin.buffer.read().decode()
open({log!r}, "a").write(text + "\\n--\\n")
sys.stderr.buffer.write(b"NOTICE:  \\x1b[2Jhello \\xff\\n")
for word, answer, code in {answers!r}:
    if word in text:
        sys.stdout.write(answer)
        sys.exit(code)
"""
CERT = "a|" + base64.b64encode(json.dumps({"sha256": "a" * 64, "not_after": 1800000000}).encode()).decode() + "\n"


class Desk:
    """A desk with the fleet's CA, and a psql that answers."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top

    def psql(self, *answers: tuple[str, str, int]) -> str:
        """A command in the place of psql: where this word is in what it gets, it prints that, and ends so."""
        path = self.top / "psql.py"
        path.write_text(PSQL.format(log=str(self.top / "log"), answers=answers))
        return shlex.join([sys.executable, str(path)])

    @property
    def log(self) -> list[str]:
        """What psql got."""
        return (self.top / "log").read_text().split("\n--\n")[:-1]

    def line(self, name: str, kind: str = "host") -> str:
        """The file of a machine that wants to be enrolled."""
        path = self.top / f"{name}.{len(os.listdir(self.top))}.line"
        key = authority.public(authority.seed().decode()) if kind == "host" else "-"
        path.write_text(authority.line(kind, name, key, authority.tls_key()))
        return str(path)


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "fleet.d").mkdir()
    (tmp_path / "fleet-ca").mkdir()
    key, certificate = authority.make_ca()
    for entry, data in {"ca.key": key, "ca.pem": certificate, "database": b"host=x dbname=y", "validation": b"v.example.org"}.items():
        (tmp_path / "fleet-ca" / entry).write_bytes(data)
    return Desk(tmp_path)


def test_a_name_belongs_to_one_machine(desk: Desk, capfd: Any) -> None:
    line, psql = desk.line("web1"), desk.psql()
    assert command.main(["enrol", line, "a.b", "--psql", psql]) == os.EX_OK
    assert command.main(["enrol", line, "a.b", "c.d", "--psql", psql]) == os.EX_OK, "the same machine"
    done = len(desk.log)
    for other in (desk.line("web1"), desk.line("web1", "desk")):
        assert command.main(["enrol", other, *([] if "desk" in pathlib.Path(other).read_text() else ["a.b"]), "--psql", psql]) == os.EX_DATAERR
        assert "take another name" in capfd.readouterr().err
    assert command.main(["withdraw", "web1", "--psql", psql]) == os.EX_OK
    assert command.main(["enrol", line, "a.b", "--psql", psql]) == os.EX_DATAERR
    assert "web1: a machine of this name was withdrawn" in capfd.readouterr().err
    assert not any("CREATE ROLE" in text for text in desk.log[done:])


def test_a_machine_that_comes_again_with_another_key(desk: Desk, capfd: Any) -> None:
    """The database would let both in, for what it knows of a machine is the name: a desk's, and a host's that kept the key by which its root signs."""
    psql = desk.psql()
    for kind, patterns in (("desk", []), ("host", ["a.b"])):
        first = desk.line(f"{kind}1", kind)
        _, _, name, key, _ = pathlib.Path(first).read_text().split()
        other = desk.top / f"{kind}.again"
        other.write_text(authority.line(kind, name, key, authority.tls_key()))
        for line, code in ((first, os.EX_OK), (first, os.EX_OK), (str(other), os.EX_DATAERR)):
            assert command.main(["enrol", line, *patterns, "--psql", psql]) == code
        assert "the database lets its key in: take another name" in capfd.readouterr().err


def test_nothing_is_to_be_copied_between_desks(desk: Desk, capfd: Any) -> None:
    """Two desks that believe one host know different numbers."""
    assert command.main(["enrol", desk.line("web1"), "a.b", "--psql", desk.psql()]) == os.EX_OK
    assert "web1: enrolled at this desk, for a.b" in (said := capfd.readouterr().err) and "copy" not in said


def test_a_host_that_answers_challenges_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Root of the desk says so, so the desk knows: the account's key is not changed until no host does any more."""
    from certdrop.fleet import desk as the_desk
    from certdrop.fleet import tree
    from certdrop.issuer import manage
    from certdrop.signer import protocol
    monkeypatch.setattr(tree, "stand", lambda: None)
    monkeypatch.setattr(protocol, "HOSTS", str(desk.top / "fleet.d"))
    monkeypatch.setattr(manage, "main", lambda argv: 42)
    monkeypatch.setattr(snippets, "FLEET", str(desk.top / "FLEET"))
    monkeypatch.setattr(command, "_have_read", lambda path: None)
    key, line, psql = "k" * 43, desk.line("web1"), desk.psql()
    for wrong in ("short", "k" * 42 + "$"):
        assert command.main(["enrol", line, "a.b", "--stateless", wrong, "--psql", psql]) == os.EX_DATAERR
    assert command.main(["enrol", desk.line("desk1", "desk"), "--stateless", key, "--psql", psql]) == os.EX_DATAERR
    for options, snippet in ((["--stateless", key], f'return 200 "$1.{key}";'), ([], "return 302 http://v.example.org$request_uri;")):
        capfd.readouterr()
        assert command.main(["enrol", line, "a.b", *options, "--psql", psql]) == os.EX_OK
        answer = capfd.readouterr().out
        assert f'stateless = "{key if options else ""}"' in answer
        command._lead_to("v.example.org", key if options else "")
        assert snippet in (desk.top / "FLEET").read_text() and "{" not in (desk.top / "FLEET").read_text().replace("{16,128}", "").replace(" {\n", "")
        for verb in (["rollover"], ["deactivate", "--yes"], ["show"]):
            refused = bool(options) and verb != ["show"]
            assert the_desk._work(["account", *verb]) == (os.EX_CONFIG if refused else 42)
            assert ("web1: answers challenges by the key of this account, which stays" in capfd.readouterr().err) == refused
    (desk.top / "fleet.d/web2.toml").write_text('key = "%s"\nnames = ["a.b"]\nstateless = "x"\n' % authority.public(authority.seed().decode()))
    with pytest.raises(site.ConfigError, match="SHA-256 of the account's JWK"):
        the_desk._work(["account", "rollover"])


NGINX = """\
test = ["/bin/sh", "-c", "echo tested >>{log}; exit {code}"]
reload = ["/bin/sh", "-c", "echo reloaded >>{log}"]
"""


@pytest.mark.parametrize("code", [0, 1])
def test_nginx_reads_what_leads_to_the_desks(desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: Any, code: int) -> None:
    """At once, when a host joins and when it leaves: else the CA asks at the wrong place. Where it cannot, that is said, and the host is in all the same."""
    log = desk.top / "nginx.log"
    (desk.top / "services.d").mkdir()
    (desk.top / "services.d/nginx.toml").write_text(NGINX.format(log=log, code=code))
    (desk.top / "fleet").mkdir()
    for name in ("FLEET", "CHALLENGE"):
        monkeypatch.setattr(snippets, name, str(desk.top / name))
    (desk.top / "CHALLENGE").write_text("here")
    monkeypatch.setattr(command, "_sign_again", lambda: 0)
    (desk.top / "sites.d").mkdir()
    line, answer = desk.top / "line", desk.top / "answer"
    for path, words in ((line, ["join", "web1"]), (answer, ["enrol", str(line), "a.b", "--psql", desk.psql()])):
        monkeypatch.setattr("pwd.getpwnam", lambda name: type("User", (), {"pw_gid": os.getgid()}))
        assert command.main(words) == os.EX_OK
        path.write_text(capfd.readouterr().out)
    for words, text in ((["join", "--answer", str(answer)], "return 302 http://v.example.org$request_uri"), (["join", "--leave"], "here")):
        log.write_text("")
        assert command.main(words) == os.EX_OK
        assert text in (desk.top / "FLEET").read_text()
        assert log.read_text().split() == (["tested", "reloaded"] if code == 0 else ["tested"])
        assert ("nginx has not read it" in capfd.readouterr().err) == bool(code)


def test_the_name_of_a_desk_that_was_withdrawn(desk: Desk) -> None:
    line, psql = desk.line("desk2", "desk"), desk.psql()
    assert command.main(["enrol", line, "--psql", psql]) == os.EX_OK
    assert command.main(["withdraw", "desk2", "--psql", psql]) == os.EX_OK
    assert command.main(["enrol", desk.line("desk2", "desk"), "--psql", psql]) == os.EX_DATAERR


def test_first_it_cannot_log_in_any_more(desk: Desk, capfd: Any) -> None:
    """Then its connections end, and only then its rows are looked at, and removed."""
    assert command.main(["withdraw", "web1", "--psql", desk.psql(("SELECT name, translate", CERT, 0))]) == os.EX_OK
    assert ["NOLOGIN" in text for text in desk.log] == [True, False, False, False, False]
    assert ["pg_terminate_backend" in text for text in desk.log] == [False, True, False, True, True]
    assert ["DROP ROLE" in text for text in desk.log] == [False, False, False, True, False]
    assert f"a  {'a' * 64}  2027-01-15T08:00:00Z\n" == capfd.readouterr().out


@pytest.mark.parametrize("said", ["a|!\n", "a\n", "\x1b[2J|" + CERT[2:], "a|" + base64.b64encode(b"[" * 400).decode(), "a|" + base64.b64encode(b"[1]").decode(),
                                  "a|" + base64.b64encode(json.dumps({"sha256": "\x1b" * 64, "not_after": 5}).encode()).decode(),
                                  "a|" + base64.b64encode(json.dumps({"sha256": "a" * 64, "not_after": True}).encode()).decode()])
def test_what_it_left_stops_nothing(desk: Desk, capfd: Any, said: str) -> None:
    """And nothing of it, or of what psql says beside, reaches a terminal raw."""
    assert command.main(["withdraw", "web1", "--psql", desk.psql(("SELECT name, translate", said + "\n" + CERT, 0))]) == os.EX_OK
    found = capfd.readouterr()
    assert found.out.count("\n") == 1 and "\x1b" not in found.out + found.err and "NOTICE" in found.err


def test_what_cannot_be_listed_is_withdrawn(desk: Desk, capfd: Any) -> None:
    assert command.main(["withdraw", "web1", "--psql", desk.psql(("SELECT name, translate", "", 3))]) == os.EX_OK
    assert "cannot be listed" in capfd.readouterr().err and "DROP ROLE" in desk.log[-2]
    assert command.main(["withdraw", "web1", "--psql", desk.psql(("DROP ROLE", "", 3))]) == os.EX_UNAVAILABLE
    assert "cannot log in any more" in capfd.readouterr().err
    assert command.main(["withdraw", "web3", "--psql", desk.psql(("NOLOGIN", "", 3))]) == os.EX_UNAVAILABLE
    assert not os.path.lexists(f"{site.ETC}/fleet.d/web3.toml.withdrawn"), "such a machine may yet come"


def test_the_package_is_removed(tmp_path: pathlib.Path) -> None:
    """Then challenges are answered here again: this host's issuer talks with the CA by itself."""
    import subprocess
    root = pathlib.Path(__file__).resolve().parents[3]
    script = (root / "debian/certdrop-fleet.postrm").read_text().replace(" /etc/", f" {tmp_path}/etc/").replace("=/etc/", f"={tmp_path}/etc/")
    script = script.replace("/var/", f"{tmp_path}/var/")
    places = tmp_path / "etc/nginx/snippets", tmp_path / "etc/certdrop/fleet"
    for place in places:
        place.mkdir(parents=True)
    (places[1] / "host.toml").write_text("x")
    (places[1] / "sign.key").write_text("x")
    ours, theirs = (places[0] / os.path.basename(path) for path in (snippets.CHALLENGE, snippets.FLEET))
    ours.write_text("here")
    theirs.write_text("there")
    for goal in ("remove", "purge"):
        done = subprocess.run(["/bin/sh", "-c", script, "postrm", goal], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, done
    assert theirs.read_text() == "here" and sorted(os.listdir(places[1])) == ["host.toml.removed", "sign.key"]
    assert sorted(os.listdir(places[0])) == ["certdrop-challenge.conf", "certdrop-fleet.conf"]

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


def test_the_name_of_a_desk_that_was_withdrawn(desk: Desk) -> None:
    line, psql = desk.line("desk2", "desk"), desk.psql()
    assert command.main(["enrol", line, "--psql", psql]) == os.EX_OK
    assert command.main(["withdraw", "desk2", "--psql", psql]) == os.EX_OK
    assert command.main(["enrol", desk.line("desk2", "desk"), "--psql", psql]) == os.EX_DATAERR


def test_first_it_cannot_log_in_any_more(desk: Desk, capfd: Any) -> None:
    """Then its connections end, and only then its rows are looked at, and removed."""
    assert command.main(["withdraw", "web1", "--psql", desk.psql(("SELECT name, translate", CERT, 0))]) == os.EX_OK
    assert ["NOLOGIN" in text for text in desk.log] == [True, False, False, False]
    assert ["pg_terminate_backend" in text for text in desk.log] == [False, True, False, True]
    assert ["DROP ROLE" in text for text in desk.log] == [False, False, False, True]
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
    assert "cannot be listed" in capfd.readouterr().err and "DROP ROLE" in desk.log[-1]
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

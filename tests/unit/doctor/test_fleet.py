"""What the doctor says on a host of a fleet: of the way there, not of a CA that such a host does not talk with."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from certdrop.config import dane, site
from certdrop.doctor import fetch, fleet, names
from certdrop.doctor.ask import Said
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.fleet import authority, command
from certdrop.nginx import snippets
from certdrop.watcher import resolver


@pytest.fixture
def host(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """One that joined."""
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    monkeypatch.setattr(snippets, "FLEET", str(tmp_path / "FLEET"))
    (tmp_path / "fleet").mkdir()
    key, certificate = authority.make_ca()
    (tmp_path / "fleet/ca.pem").write_bytes(certificate)
    (tmp_path / "fleet/host.pem").write_bytes(authority.issue(key, certificate, "web1", authority.point_of(authority.tls_key())))
    (tmp_path / "fleet/host.toml").write_text("")
    (tmp_path / "fleet/sign.key").write_bytes(b"web1 " + authority.seed() + b"\n")
    (tmp_path / "FLEET").write_text(command.REDIRECT.format("acme.example.org"))
    return tmp_path


def levels(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.level, line.what) for line in lines]


def test_all_is_well(host: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ask", lambda *_, **__: Said(0, "the database at db lets web1 in; it has 3 of its requests, 3 of them taken by a desk\n", ""))
    found = fleet.look(fleet.as_root(False))
    assert levels(found) == [(OK, "fleet"), (OK, "database"), (OK, "database"), (OK, "database"), (OK, "CA")]
    assert "this host is web1" in found[0].why and "challenges lead to acme.example.org" in found[-1].why and fleet.desk() == "acme.example.org"
    assert levels(fleet.as_root(True)) == [(OK, "fleet")], "offline"


def test_what_is_in_the_way(host: pathlib.Path) -> None:
    """The database, a desk that does not believe this host, and files that are gone or damaged: each says what mends it."""
    assert "role is not permitted" in fleet.database(75, "", "certdrop-courier: the fleet's database: role is not permitted")[0].why
    found = fleet.database(0, "the database lets web1 in\nrefused: web1 is not enrolled at this desk\x1b[2J\n", "")
    assert levels(found) == [(OK, "database"), (FAILED, "desk")] and "\x1b" not in found[1].why and "certdrop-fleet list" in found[1].mend
    (host / "fleet/host.pem").write_text("x")
    (host / "FLEET").write_text("location / { }")
    (host / "fleet/sign.key").unlink()
    found = fleet.look(fleet.as_root(True))
    assert levels(found) == [(FAILED, "fleet"), (FAILED, "database"), (OK, "database"), (WARNING, "challenges")] and all(
        line.mend for line in found if line.level != OK)
    (host / "FLEET").unlink()
    assert levels(fleet.look([]))[0] == (WARNING, "database") and levels(fleet.look([]))[-1] == (FAILED, "challenges")


def test_a_site_that_is_to_wait_for_its_record(host: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A desk does not: that is said, and a host that has one cannot join."""
    monkeypatch.setattr(site, "site_names", lambda: ["a.example.org", "b.example.org"])
    monkeypatch.setattr(dane, "is_checked", lambda name: name == "b.example.org")
    (wrong,) = [line for line in fleet.look([]) if line.level == FAILED]
    assert wrong.what == "b.example.org: TLSA" and "has no effect in a fleet" in wrong.why
    answer = host / "answer"
    answer.write_text('kind = "host"\nname = "web1"\ndatabase = "host=x dbname=y"\n')
    before = {path: path.read_bytes() for path in (host / "fleet").iterdir()}
    with pytest.raises(ValueError, match='b.example.org: tlsa = "check" has no effect'):
        command._answered(str(answer))
    assert before == {path: path.read_bytes() for path in (host / "fleet").iterdir()}


def test_a_desk_that_does_not_answer(host: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This host leads there as it should: it is the desk's nginx that wants to be looked at. And the CA's name in CAA is not known here."""
    doing = names.Doing(fleet.AUTHORITY, (fleet.TOKEN, fleet.TOKEN), None, {}, desk=fleet.desk())
    monkeypatch.setattr(fetch, "is_ours", lambda address: True)
    for where, mend in (("acme.example.org", "on the desk: have nginx's server block for acme.example.org"), ("x.example.net", "see what answers there")):
        monkeypatch.setattr(names, "_fetch", lambda *_, where=where: fetch.Fetched(False, 500, "HTTP 500", 1, where))
        (wrong,) = names.reach("a", "a.example.org", "192.0.2.1", doing)
        assert mend in wrong.mend
    monkeypatch.setattr(resolver, "caa", lambda domain: ([resolver.Record(0, "issue", "ca.example")], domain, ""))
    assert names.caa("a.example.org", fleet.AUTHORITY) == []


def test_in_no_fleet(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    assert not fleet.is_host() and fleet.desk() == "" and not os.path.exists(f"{tmp_path}/fleet")

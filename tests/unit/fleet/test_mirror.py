"""What a desk takes in from its database, step by step, with a database that is a table in memory."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import authority, desk
from certdrop.fleet.database import Away, Row, digest

from fleet.test_tree import CSR, ROW, TREE, entries, sign

assert sign                                    # a fixture


class Link:
    """In the place of a Database."""

    def __init__(self) -> None:
        self.rows: dict[Row, tuple[str, str, str]] = {}
        self.bodies: dict[tuple[str, str], str] = {}
        self.replies: list[tuple[Row, int, bytes]] = []
        self.told: dict[Row, str] = {}
        self.past = "[]"

    def take(self, _: object, hosts: list[str]) -> None:
        self.believed = hosts

    def held(self) -> dict[Row, tuple[str, int]]:
        return {row: (digest("".join(texts).encode()), sum(one == row for one, _, _ in self.replies)) for row, texts in self.rows.items()}

    def request(self, row: Row) -> "tuple[str, str, str, str] | None":
        return (*self.rows[row], self.past) if row in self.rows else None

    def states(self) -> dict[tuple[str, str], str]:
        return {place: digest(text.encode()) for place, text in self.bodies.items()}

    def state(self, *place: str) -> str:
        return self.bodies[place]              # type: ignore[index]

    def reply(self, row: Row, number: int, chain: bytes) -> None:
        self.replies.append((row, number, chain))

    def last_answer(self, row: Row) -> str:
        return next((digest(chain) for one, _, chain in reversed(self.replies) if one == row), "")

    def answer_known(self, row: Row) -> str:
        return next((hashlib.sha256(chain).hexdigest() for one, _, chain in reversed(self.replies) if one == row), "")

    def say(self, row: Row, text: str) -> None:
        self.told[row] = text


@pytest.fixture
def mirror(sign: Any) -> Any:
    """A desk with one request, whose site's state is known."""
    link = Link()
    link.rows[ROW] = CSR.decode(), sign("csr"), sign("now")
    link.bodies["web1", "shop.example.org"] = "{}"
    return desk.Mirror(link)                   # type: ignore[arg-type]


def test_a_request_whose_site_is_not_known_waits(mirror: Any) -> None:
    """Without its state it would look as if it had no certificate, and be ordered at once."""
    mirror.link.bodies.clear()
    assert mirror.sync() == (False, []) and entries() == []
    mirror.link.bodies["web1", "shop.example.org"] = "{}"
    assert mirror.sync() == (True, [f"{TREE}@0003.csr"]) and f"{TREE}@0003.csr" in entries()
    assert mirror.sync() == (False, [])


def test_a_reply_goes_down_once(mirror: Any) -> None:
    """And once more, where the database lost it."""
    from certdrop.keeper import keys
    pem, _, _, _ = keys.placeholder(keys.make("ecdsa-p256"), ["shop.example.org"])
    mirror.sync()
    path = pathlib.Path(f"{spool.replies()}/{TREE}@0003.pem")
    path.write_bytes(pem)
    os.chmod(path, 0o640)
    for _ in range(3):
        mirror.answer()
    assert mirror.link.replies == [(ROW, 1, pem)]
    rows, mirror.link.rows, mirror.link.replies = mirror.link.rows, {}, []
    bodies, mirror.link.bodies = mirror.link.bodies, {}
    mirror.sync()
    assert f"{TREE}@0003.csr" in entries(), "it was answered, and comes again"
    mirror.link.rows, mirror.link.bodies = rows, bodies
    mirror.sync()
    mirror.answer()
    assert mirror.link.replies == [(ROW, 1, pem)]


def test_what_another_desk_answered_is_not_ordered_again(mirror: Any) -> None:
    """Whose work it is now, does not matter: the host has yet to fetch the reply, or its root looks at it. If that refuses it, it is ordered."""
    mirror.link.replies.append((ROW, 1, b"chain"))
    for body in ({}, {"refused": {"number": 2, "reply_sha256": hashlib.sha256(b"chain").hexdigest()}},
                 {"refused": {"number": 3, "reply_sha256": hashlib.sha256(b"another").hexdigest()}}, {"refused": "no table"}):
        mirror.link.bodies["web1", "shop.example.org"] = json.dumps(body)
        assert mirror.sync() == (False, []) and entries() == []
    mirror.link.bodies["web1", "shop.example.org"] = json.dumps({"refused": {"number": 3, "reply_sha256": hashlib.sha256(b"chain").hexdigest()}})
    assert mirror.sync() == (True, [f"{TREE}@0003.csr"]) and f"{TREE}@0003.csr" in entries()


def test_what_was_answered_before_lies_beside_it(mirror: Any) -> None:
    """For the signer. It goes with the request, and is never too long."""
    mirror.link.past = '[[1, "csr", "sig"]]'
    mirror.sync()
    assert (pathlib.Path(spool.requests()) / f"{TREE}@0003.past").read_text() == mirror.link.past
    body, sig, _ = mirror.link.rows[ROW]
    mirror.link.past, mirror.link.rows[ROW] = "x" * 200000, (body, sig, "")
    mirror.sync()
    assert f"{TREE}@0003.past" not in entries() and f"{TREE}@0003.csr" in entries()
    mirror.link.rows.clear()
    mirror.sync()
    assert entries() == []


def test_what_is_not_signed_is_said(mirror: Any) -> None:
    body, sig, now = mirror.link.rows[ROW]
    mirror.link.rows[ROW] = body, now, ""
    assert mirror.sync() == (False, []) and entries() == []
    assert "not signed by the key that web1 was enrolled with" in mirror.link.told[ROW]


@pytest.mark.parametrize("now", ["", "x", "csr"])
def test_nobody_waits_unless_root_signed_that(mirror: Any, sign: Any, now: str) -> None:
    """What has no back-off to wait for is not the database's word."""
    body, sig, _ = mirror.link.rows[ROW]
    mirror.link.rows[ROW] = body, sig, sign("csr") if now == "csr" else now
    assert mirror.sync() == (True, [])
    mirror.link.rows[ROW._replace(kind="revoke")] = "{}", "-", "x"
    assert mirror.sync()[1] == []


def test_the_state_of_what_is_not_signed_is_not_laid_down(mirror: Any) -> None:
    """Nor later, while no request of that site is good."""
    good = mirror.link.rows[ROW]
    mirror.link.rows[ROW] = good[0], good[2], ""
    mirror.sync()
    mirror.link.bodies["web1", "shop.example.org"] = '{"installed_at": 1790000001}'
    mirror.sync()
    assert entries("keeper") == []
    mirror.link.rows[ROW] = good
    mirror.sync()
    assert entries("keeper") == [f"{TREE}.json"]
    mirror.link.bodies["web1", "shop.example.org"] = '{"installed_at": 1790000002}'
    assert mirror.sync()[0] and '1790000002' in pathlib.Path(f"{site.STATE}/keeper/{TREE}.json").read_text()


@pytest.fixture
def two(mirror: Any, sign: Any) -> Any:
    """The same, with another host's request; both are answered."""
    seed = authority.seed().decode()
    pathlib.Path(f"{site.ETC}/fleet.d/web2.toml").write_text(f'key = "{authority.public(seed)}"\nnames = ["shop.example.org"]\n')
    pathlib.Path(f"{site.ETC}/fleet/sign.key").write_text(f"web2 {seed}\n")
    mirror.link.rows[OTHER] = CSR.decode(), sign("csr"), ""
    mirror.link.bodies["web2", "shop.example.org"] = "{}"
    mirror.sync()
    for host in ("web1", "web2"):
        path = pathlib.Path(f"{spool.replies()}/{host}_shop.example.org@0003.pem")
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        os.chmod(path, 0o640)
        pathlib.Path(f"{site.STATE}/issuer/{host}_shop.example.org.json").write_text('{"count": 1}')
    return mirror


OTHER = ROW._replace(host="web2")


@pytest.mark.parametrize("bad", [ROW, OTHER])
def test_one_row_that_is_refused_holds_up_no_other(two: Any, monkeypatch: pytest.MonkeyPatch, bad: Any) -> None:
    """Its host is left alone for a while: each try may take seconds, where a courier holds its rows locked."""
    tries, done, locked = [], [], [bad]

    def refuse(row: Any, *_: object) -> None:
        if row in locked:
            tries.append(row)
            raise Away("canceling statement due to lock timeout")
        done.append(row)
    monkeypatch.setattr(two.link, "reply", refuse)
    monkeypatch.setattr(two.link, "say", refuse)
    two.answer()
    two.say()
    two.answer()
    good = OTHER if bad == ROW else ROW
    assert done == [good, good] and tries == [bad]
    locked.clear()
    monkeypatch.setattr(desk.time, "monotonic", lambda: 1e12)
    two.answer()
    two.say()
    assert done == [good, good, bad, bad]


def test_a_connection_that_has_ended_ends_it(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> None:
        raise Away("server closed the connection", True)
    monkeypatch.setattr(two.link, "reply", ended)
    with pytest.raises(Away):
        two.answer()

"""What the judge makes of what services show: the state of a site, the places that are asked, and how long it asks again."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from certdrop import answering, listening
from certdrop.judge import served

HERE, THERE = ("127.0.0.1", 443, ""), ("::1", 443, "")
OLD, NEW, STRANGER = "a" * 64, "b" * 64, "c" * 64


def question(**more: Any) -> dict[str, Any]:
    """The new one is waited for, and was shown by nobody."""
    return {"names": ["example.org"], "key": "ecdsa", "ports": [[443, ""]], "probe": "", "wanted": NEW, "others": [OLD], "known": [], "verify": False,
            "patience": 0.0, **more}


@pytest.mark.parametrize("now, known, state", [
    ({HERE: NEW}, [], "shown"),
    ({HERE: OLD}, [], "other"),
    ({}, [], "other"),
    ({HERE: NEW, THERE: OLD}, [], "other"),                  # one does not show it yet
    ({HERE: NEW, THERE: STRANGER}, [], "shown"),             # sites are bound to some addresses of a host only
    ({HERE: NEW, THERE: STRANGER}, [THERE], "other"),        # but that one showed the site
    ({HERE: NEW}, [THERE], "shown"),                         # it is gone, and shows no other
    ({HERE: NEW, THERE: "nothing"}, [THERE], "other"),
    ({HERE: STRANGER}, [], "other"),
])
def test_what_is_shown(now: dict[served.Place, str], known: list[served.Place], state: str) -> None:
    """By all who showed this site, and no other of the site's own by anybody."""
    asked = json.loads(json.dumps(question(known=known)))
    assert state == served.Client([]).state(asked, now)


@pytest.mark.parametrize("verified, state", [(NEW, "shown"), ("nothing", "untrusted"), (OLD, "untrusted")])
def test_what_is_no_good_is_told_apart(monkeypatch: pytest.MonkeyPatch, verified: str, state: str) -> None:
    """A client that trusts the roots is asked whether it takes what is shown; only where that is wanted, and what is waited for is shown."""
    client, seen = served.Client([]), []
    monkeypatch.setattr(client, "shown", lambda _, place, verify: seen.append((place, verify)) or verified)
    assert state == client.state(question(verify=True), {THERE: NEW}) and [(THERE, True)] == seen
    assert "other" == client.state(question(verify=True), {THERE: OLD}) and "shown" == client.state(question(), {THERE: NEW}) and 1 == len(seen)


@pytest.mark.parametrize("probe, places", [
    ("", [("127.0.0.1", 443, ""), ("192.0.2.1", 25, "smtp"), ("::1", 443, "")]),
    ("proxy-protocol", [("127.0.0.1", 443, "proxy-protocol"), ("192.0.2.1", 25, "proxy-protocol"), ("::1", 443, "proxy-protocol")]),
    ("[2001:db8::1]:8443", [("2001:db8::1", 8443, ""), ("2001:db8::1", 8443, "smtp")]),
])
def test_places_follow_ports_and_probe(probe: str, places: list[served.Place]) -> None:
    """Where somebody listens on the ports that root names, unless the site says where it is to be asked."""
    assert places == served.places([(443, ""), (25, "smtp"), (993, "")], probe, {443: ["::1", "127.0.0.1"], 25: ["192.0.2.1"], 22: ["127.0.0.1"]})


def test_what_the_child_says_is_a_leaf_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took over the process that shakes hands cannot speak of other places."""
    monkeypatch.setattr(served.socket, "create_connection", lambda *_: open(os.devnull, "rb"))
    for said, leaf in ((NEW, NEW), ("", "nothing"), (f"{OLD} ::1,443,={NEW}", "nothing"), (NEW.upper(), "nothing"), ("nobody", "nothing")):
        monkeypatch.setattr(served.sandbox, "run", lambda _, deadline, said=said: said)
        assert leaf == served.ask(served.context("", []), HERE, "example.org")


def test_who_hangs_keeps_no_other_place_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that gives no answer is asked for one kind of key alone, then again after all others, while the look lasts; and last from then on."""
    clock, said = [0.0], list[tuple[int, float]]()
    there = [("127.0.0.1", port, "") for port in (1, 2, 3, 443)]

    def asked(_: object, place: served.Place, name: str, deadline: float = 10.0) -> str:
        said.append((place[1], round(deadline)))
        clock[0] += deadline if place[1] != 443 else 0.01
        return NEW if place[1] == 443 else "nothing"
    monkeypatch.setattr(served.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(served, "ask", asked)
    monkeypatch.setattr(served.listening, "listeners", lambda: {})
    monkeypatch.setattr(served, "places", lambda *_: there)
    client = served.Client([])
    question = {"names": ["a.test"], "key": "ecdsa", "ports": [], "probe": ""}
    assert client.look(question) == {**dict.fromkeys(there[:3], "nothing"), there[3]: NEW}
    assert said == [(1, 3), (2, 3), (3, 3), (443, 3), (1, 10)]
    said.clear()
    assert client.look(question)[there[3]] == NEW and said[0] == (443, 3) and len(said) == 3


def test_it_asks_again_until_it_is_shown_or_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is an answer to a question asked late enough; the patience of each is counted from the first question on."""
    clock = [0.0]
    shown_at = {"late.example": 2.0, "never.example": float("inf")}
    monkeypatch.setattr(served.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(served.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(served.Client, "look", lambda _, asked: {HERE: NEW if clock[0] >= shown_at.get(asked["names"][0], 0.0) else OLD})
    said: list[tuple[str, float]] = []

    def serve(answer: Any) -> None:
        for name in ("late.example", "never.example", "last.example"):
            said.append((answer(json.dumps(question(names=[name], patience=3.0)).encode()).decode(), clock[0]))
    monkeypatch.setattr(answering, "serve", serve)
    assert os.EX_OK == served.serve([])
    assert [f"shown 127.0.0.1,443,={NEW}", f"other 127.0.0.1,443,={OLD}", f"shown 127.0.0.1,443,={NEW}"] == [text for text, _ in said]
    assert [2.0, 3.0, 3.0] == [round(when, 1) for _, when in said]


@pytest.mark.parametrize("domains, probe, name", [
    (["example.org"], "", "example.org"), (["*.example.org", "www.example.org"], "", "www.example.org"), (["*.example.org"], "", "certdrop-asks.example.org"),
    (["*.example.org"], "app.example.org", "app.example.org"), (["*.example.org", "a.test"], "proxy-protocol", "a.test"), (["192.0.2.1"], "", "192.0.2.1"),
    (["*.example.org"], "127.0.0.1:8443", "certdrop-asks.example.org"), (["*.example.org"], "[::1]:8443", "certdrop-asks.example.org")])
def test_which_name_is_asked_for(domains: list[str], probe: str, name: str) -> None:
    """Nobody shakes hands for a star; and a place is no name."""
    assert listening.asked_name(domains, probe) == name
    there = served.places([(443, "")], probe, {443: ["127.0.0.1"]})
    assert there == [("::1" if "[" in probe else "127.0.0.1", 8443 if ":" in probe else 443, probe if probe == "proxy-protocol" else "")]

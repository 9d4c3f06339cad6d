"""Which sockets are a site's: the rule of keeper and watcher, by what is shown."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from certdrop import shown
from certdrop.watcher import places, resolver
from certdrop.watcher.places import Places

V4, V6, ALONE = ("127.0.0.1", 443, ""), ("::1", 443, ""), ("192.0.2.7", 8443, "")
NEVER: Callable[[places.Place], bool] = lambda place: False
ALWAYS: Callable[[places.Place], bool] = lambda place: True


def test_strangers_are_known_beside_ones_own_alone() -> None:
    """Where nobody shows the site's certificate there is no telling whose the sockets are: then all are judged."""
    assert shown.strangers({V4: "mine", V6: "other"}, {"mine", "old"}) == [V6]
    assert shown.strangers({V4: "mine", V6: "old"}, {"mine", "old"}) == []
    assert shown.strangers({V4: "x", V6: "other"}, {"mine"}) == []
    assert places.judged({V4: "x", V6: "other"}, {"mine"}, {V6: "other"}, NEVER) == {V4: "x", V6: "other"}


@pytest.mark.parametrize("to_anybody, leads_there, counts", [
    ("other", NEVER, False),       # a default block's, which it shows to all
    ("default", NEVER, True),      # a block there has the name, and the wrong certificate
    (None, NEVER, True),           # it was not seen what others are shown
    ("other", ALWAYS, True),       # who comes by the name's address gets it
])
def test_a_stranger_counts_where_the_name_has_a_block_or_an_address(to_anybody: str | None, leads_there: Callable[[places.Place], bool], counts: bool) -> None:
    """And never keeps the site's own sockets from being judged."""
    found = places.judged({V4: "mine", V6: "other"}, {"mine"}, {V6: to_anybody} if to_anybody else {}, leads_there)
    assert found == {V4: "mine", **({V6: "other"} if counts else {})}


def test_the_words_for_sockets() -> None:
    """As nginx's listen has them."""
    assert shown.words([V6, ALONE, V4, ("2001:db8::1", 443, "")]) == "0.0.0.0:443, 192.0.2.7:8443, [2001:db8::1]:443, [::]:443"


@pytest.mark.parametrize("looked, leads4, leads6, leads_alone", [
    (resolver.Looked(["198.51.100.1"]), True, False, False),                              # IPv4 alone, perhaps through a router
    (resolver.Looked(["192.0.2.7", "2001:db8::1"]), True, True, True),                    # this host's own IPv6 address
    (resolver.Looked(["2001:db8::2"]), False, False, False),                              # another host's
    (resolver.Looked([], resolver.NO_NAME), False, False, False),
    (resolver.Looked([], resolver.BROKEN), True, True, True),                            # nobody knows: then it is judged
])
def test_where_a_names_addresses_lead(monkeypatch: pytest.MonkeyPatch, looked: resolver.Looked, leads4: bool, leads6: bool, leads_alone: bool) -> None:
    """Asked once a name and run."""
    asked: list[str] = []
    monkeypatch.setattr(places, "addresses6", lambda: {"::1", "2001:db8::1"})
    monkeypatch.setattr(resolver, "addresses", lambda name: asked.append(name) or looked)
    found = Places()
    assert [found.leads_to("a.test", place) for place in (V4, V6, ALONE)] == [leads4, leads6, leads_alone]
    assert asked == ["a.test"]
    silent = Places(resolves=False)
    assert not any(silent.leads_to("a.test", place) for place in (V4, V6, ALONE)) and asked == ["a.test"]


def test_the_dns_is_given_up_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that is silent costs a run its deadline once."""
    asked: list[str] = []
    moments = iter([100.0, 100.0, 100.0 + places.PATIENCE + 1])
    monkeypatch.setattr(resolver, "addresses", lambda name: asked.append(name) or resolver.Looked([], resolver.SILENT))
    found = Places()
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    assert found.leads_to("a.test", V6) and found.leads_to("b.test", V6)
    assert asked == ["a.test"]


def test_this_hosts_ipv6_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As proc(5) writes them; none where the kernel has no IPv6."""
    text = "20010db8000000000000000000000001 02 40 00 80 eth0\n00000000000000000000000000000001 01 80 10 80 lo\n"
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(text))
    assert places.addresses6() == {"2001:db8::1", "::1"}

    def none(*_: object, **__: object) -> io.StringIO:
        raise FileNotFoundError
    monkeypatch.setattr("builtins.open", none)
    assert places.addresses6() == set()

"""The page: what it shows, that it is whole in itself, and that nobody's words become part of it."""

from __future__ import annotations

import html.parser
import json
import os
import re
import time
from pathlib import Path

import pytest

from watcher.test_evidence import DAY, ISSUER, World
from certdrop.status import command as status
from certdrop.status import webpage
from certdrop.watcher import evidence, verdict
from status.test_status import run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the configuration must be root's")
NASTY = '"><script>alert(1)</script><img src=x onerror=alert(2)>&#106;\' style="x" \x1b[31m\u202e'
VOID = {"meta", "br", "img"}


def tally(world: World, said: object) -> None:
    """What the issuer wrote of its orders."""
    world.put(world.state / "issuer/tally", json.dumps(said).encode())
    os.chown(world.state / "issuer/tally", ISSUER, ISSUER)


class Reading(html.parser.HTMLParser):
    """Which elements and attributes there are, and whether they are nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def page(*argv: str) -> Reading:
    text = run("--html", "--no-probe", *argv)[1]
    assert text.isascii() and text.startswith("<!DOCTYPE html>")
    return harmless(text)


def harmless(text: str) -> Reading:
    """Nothing in it is fetched or run: only these elements, only these attributes, styles that are lengths."""
    found = Reading(text)
    assert {tag for tag, _ in found.elements} <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "br", "ul", "li", "div", "span", "i",
                                                  "details", "summary", "dl", "dt", "dd", "code"}
    for tag, attributes in found.elements:
        allowed = {"charset", "name", "content", "http-equiv"} if tag == "meta" else {"class", "style", "title", "lang"}
        assert set(attributes) <= allowed, (tag, attributes)
        assert re.fullmatch(r"(display:grid[a-z0-9:;(),. %-]*|((left|width|height):\d+\.\d+%;?)*)", attributes.get("style") or ""), attributes
    assert not re.search(r"url\(|@import|https?:|javascript:", text)
    assert "default-src 'none'" in text
    return found


def test_what_it_shows(world: World) -> None:
    """A site that is well: its bar, its dates, its key, the next one; and no list of what is wrong."""
    world.usual("example.org")
    found = page()
    assert "All is well" in found.text and "example.org" in found.text and "What is wrong" not in found.text
    marks = [attributes["class"] for tag, attributes in found.elements if tag == "i"]
    assert marks.count("life ok") == 1 and marks.count("gone") == marks.count("now") == 1
    assert "next key" in found.text and re.search(r"valid20\d\d-", found.text)


def test_what_is_wrong_comes_first(world: World) -> None:
    """The gravest first, with its error and since when."""
    world.usual("example.org")
    world.usual("late.example.org", begin=-90 * DAY, end=-3 * DAY)
    world.ledger("example.org", kind="CA unreachable", count=3, last_error="no route", since=int(time.time() - 7200))
    found = page()
    assert "Something is wrong" in found.text
    begin = found.text.index("What is wrong")
    assert begin < found.text.index("late.example.org", begin) < found.text.index("no route", begin) < found.text.index("Certificates", begin)
    assert re.search("for 2h.*: CA unreachable: no route", found.text)


@pytest.mark.parametrize("where", ["last_error", "class"])
def test_the_issuers_words_stay_words(world: World, where: str) -> None:
    """Whatever the ledger holds, and the CA said, is text."""
    world.usual("example.org")
    ledger = {"count": 3, "class": "x", "last_error": "x", "renew_at": int(time.time() + DAY), "renew_why": "x", where: NASTY}
    world.ledger("example.org", json.dumps(ledger).encode())
    found = page()
    assert "<script>alert(1)" in found.text


@pytest.mark.parametrize("said", [
    {"days": {NASTY: {"orders": 1}, "2026-11-01": {"orders": NASTY, "issued": -1, "failed": 1e400}, "2026-99-99": 5}, "limit": NASTY, "recent": [], "at": -5},
    {"days": [1, 2], "limit": 1e30, "recent": float("nan"), "at": 1e300}, {"days": {f"20{n:02d}-01-01": {"orders": n} for n in range(100)}}, [], "x", {},
])
def test_a_hostile_tally(world: World, said: object) -> None:
    """Nonsense is left out; the rest of the page stands."""
    world.usual("example.org")
    tally(world, said)
    assert "example.org" in page().text


def test_the_orders(world: World) -> None:
    """A column for each of the last 90 days, and what is used of the CA's limit."""
    world.usual("example.org")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    said = {"days": {today: {"orders": 5, "issued": 3, "failed": 1}, "2019-01-01": {"orders": 7}}, "limit": 300, "recent": 2, "at": int(time.time())}
    tally(world, said)
    found = page()
    columns = [attributes["title"] for tag, attributes in found.elements if tag == "span" and "title" in attributes]
    assert len(columns) == 90 and columns[-1] == f"{today}: orders 5, certificates 3, failed validations 1"
    assert "2 of 300" in found.text and [attributes["style"] for tag, attributes in found.elements if (attributes.get("style") or "").startswith("height")] == [
        "height:60.0%", "height:20.0%", "height:20.0%"]


@pytest.mark.parametrize("begin, end", [(-900 * DAY, 900 * DAY), (-2, -1), (DAY, 2 * DAY), (0, 1), (-DAY, 4e9)])
def test_bars_stay_in_their_row(begin: float, end: float) -> None:
    """Whatever the dates are."""
    now = 1.8e9
    live = evidence.Certificate(int(now + begin), int(now + end), "0" * 64)
    found = evidence.Evidence("a.test", ["a.test"], live=2, certificate=live, renew_at=int(now + end / 2), window=(live.not_before, live.not_after))
    site = verdict.judge(found, None, now, verdict.Thresholds())
    shown = harmless(webpage.render(webpage.Page("h", [site], {"a.test": [evidence.Past(1, int(now - 3e8), int(now - 2e8))]}, now=now)))
    for _, attributes in shown.elements:
        numbers = dict(re.findall(r"(left|width):([0-9.]+)%", attributes.get("style") or ""))
        assert float(numbers.get("left", 0)) + float(numbers.get("width", 0)) <= 100.02


def test_no_site(world: World) -> None:
    """A host without sites has a page too."""
    assert "No site yet" in page().text


def test_the_file_is_replaced_whole(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new page, or the old one; by its absolute path alone."""
    world.usual("example.org")
    target = tmp_path / "page.html"
    monkeypatch.setattr(status, "as_watcher", lambda program, argv, work, otherwise, out=1: work())
    assert 0 == status.main(["--no-probe", "--html", str(target)]) and harmless(target.read_text()) and os.listdir(tmp_path).count("page.html") == 1
    monkeypatch.setattr(webpage, "render", lambda page: 1 / 0)
    before = target.read_text()
    with pytest.raises(ZeroDivisionError):
        status.main(["--no-probe", "--html", str(target)])
    assert target.read_text() == before and not list(tmp_path.glob("*.new"))
    assert 3 == status.main(["--html", "page.html"])

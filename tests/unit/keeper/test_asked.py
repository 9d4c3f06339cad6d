"""A run that the issuer asked for looks at the sites that something is to be done with, and at no other; root's own run looks at all."""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

import handing
import pytest
from keeper.test_damage import DAMAGED, OTHER, _closed, _world, certify, configured, keep  # noqa: F401

from certdrop import spool
from certdrop.config import site
from certdrop.issuer import answers
from certdrop.keeper import generations, install, integrity, intake, judges, keys, notes, reader, run, state, switch
from certdrop.keeper.judges import Accepted

LIST = "answers.listed = lambda _: b'+' + {!r}"


@pytest.fixture(name="looked", autouse=True)
def _looked(world: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sites that were looked at, as often as they were; both sites are configured."""
    found: list[str] = []
    see = state.Observed.__init__

    def noted(self: state.Observed, name: str, *more: Any) -> None:
        found.append(name)
        see(self, name, *more)
    for name in (DAMAGED, OTHER):
        pathlib.Path(site.ETC, "sites.d", f"{name}.toml").write_text("")
    monkeypatch.setattr(state.Observed, "__init__", noted)
    return found


def asked() -> run.Run:
    """A run that the issuer asked for."""
    one = run.Run("certdrop-install", True, False)
    install.reconcile(one)
    return one


def reply(name: str, text: bytes = b"") -> str:
    """Puts a reply to the site's request there: what is accepted, unless it is said otherwise. Returns its path."""
    number = state.Observed(name).next or 0
    key = pathlib.Path(state.directory(name, number), "privkey.pem").read_bytes()
    path = pathlib.Path(spool.replies(), spool.entry(name, number, "pem"))
    path.write_bytes(text or keys.placeholder(key, [name])[0])
    path.chmod(0o644)
    return str(path)


@pytest.fixture(name="accepts")
def _accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that accepts whatever it is asked about."""
    def verdicts(_: str, cases: list[tuple[dict[str, object], bytes]], meanwhile: Any = None) -> Any:
        for _, block in cases:
            sha256, tbs = intake._fingerprints(block)
            yield Accepted(sha256, int(time.time()), int(time.time()) + 80 * 86400, tbs)
    monkeypatch.setattr(judges, "verdicts", verdicts)
    monkeypatch.setattr(intake, "_identity", lambda _: [])


def unfinished() -> list[str]:
    """What is noted as begun and not ended."""
    return pathlib.Path(site.STATE, "keeper/unfinished").read_text().split()


def test_nobody_is_looked_at_where_nothing_lies_there(looked: list[str]) -> None:
    """And nothing is written but the time of the run."""
    before = {entry: os.stat(f"{site.STATE}/keeper/{entry}").st_ino for entry in os.listdir(site.STATE + "/keeper")}
    assert 0 == asked().exit_code()
    assert [] == looked
    assert before == {entry: os.stat(f"{site.STATE}/keeper/{entry}").st_ino for entry in os.listdir(site.STATE + "/keeper")}


def test_a_reply_has_its_site_looked_at(accepts: None, looked: list[str]) -> None:
    """It is installed; nobody looks at another, and nothing is left of it on the list."""
    reply(OTHER)
    looked.clear()
    asked()
    assert {OTHER} == set(looked)
    assert 4 == state.Observed(OTHER).live == state.Observed(OTHER).proven
    assert [] == unfinished()


def test_a_refused_reply_has_its_site_looked_at(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_identity", lambda _: [])
    reply(DAMAGED, b"no certificate\n")
    looked.clear()
    assert os.EX_DATAERR == asked().exit_code()
    assert {DAMAGED} == set(looked)


def test_damage_waits_for_roots_own_run(world: pathlib.Path, looked: list[str]) -> None:
    """A run that the issuer asked for neither sees it nor forgets that it was whole; how root's own run ended stays on record."""
    (world / "sites" / DAMAGED / "0003" / "chain.pem").unlink()
    examined = (world / "keeper/examined").read_bytes()
    assert 0 == asked().exit_code() and [] == looked
    assert examined == (world / "keeper/examined").read_bytes()
    code, said = keep()
    assert os.EX_IOERR == code and "generation 0003 is damaged" in said[0]
    asked()
    assert f'"exit": {os.EX_IOERR}' in (world / "keeper/last-run").read_text()


def test_no_run_that_the_issuer_asked_for_stands_for_roots_own(world: pathlib.Path, looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its exit code nor its time: it looked at few sites, and who watches must see that nobody looks at the others."""
    monkeypatch.setattr(intake, "_identity", lambda _: [])
    keep()
    path = world / "keeper/last-run"
    os.utime(path, (1_700_000_000, 1_700_000_000))
    before = path.read_bytes()
    assert os.EX_OK == asked().exit_code()
    reply(OTHER, b"no certificate\n")
    assert os.EX_DATAERR == asked().exit_code()
    assert (before, 1_700_000_000) == (path.read_bytes(), int(path.stat().st_mtime))


@pytest.mark.parametrize("where", [(generations, "make_next"), (switch, "switch"), (generations, "move"), (install, "withdraw"), (install, "post")],
                         ids=lambda where: str(where[1]))
@pytest.mark.parametrize("own", [True, False])
def test_a_run_that_was_killed_is_gone_on_with(accepts: None, own: bool, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reply was accepted, whoever had asked for that run: by the next that the issuer asks for, though it has removed the reply."""
    path = reply(OTHER)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(*where, killed)
        with pytest.raises(KeyboardInterrupt):
            keep() if own else asked()
    assert [OTHER] == unfinished()
    os.unlink(path)
    asked()
    seen = state.Observed(OTHER)
    assert 4 == seen.live == seen.proven and 5 == seen.next
    assert [] == unfinished()


def test_what_was_put_off_is_tried_again(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When its time has come, in a run that the issuer asks for: whoever put it off."""
    wanted = configured(OTHER)
    wanted.services = ["nowhere"]
    monkeypatch.setattr(site, "load_site", lambda name, _: wanted if name == OTHER else configured(name))
    certify(OTHER, 4)
    keep()
    assert [OTHER] == unfinished() and 4 == notes.Notes(OTHER).install["number"]
    looked.clear()
    asked()
    assert {OTHER} == set(looked)
    assert [OTHER] == unfinished()
    wanted.services = []
    noted = notes.Notes(OTHER)
    noted.install["next_try"] = 0
    noted.save()
    asked()
    assert 4 == state.Observed(OTHER).proven and [] == unfinished()


def test_a_list_that_is_lost_is_made_anew(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By root's own run, from what is on disk; nonsense in it has nobody looked at, and what is no more leaves it."""
    path = pathlib.Path(site.STATE, "keeper/unfinished")
    for text in (b"\xff\x00", b"../../etc\n/\n\nno.such.site", b"[" * 100):
        path.write_bytes(text)
        asked()
        assert [] == looked
    path.write_bytes(b"no.such.site")
    keep()
    assert b"" == path.read_bytes()


def test_a_list_that_cannot_be_written_holds_up_nobody(accepts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put = notes.put

    def full(entry: str, *more: Any) -> None:
        if entry == "unfinished":
            raise OSError(28, "No space left on device")
        put(entry, *more)
    monkeypatch.setattr(notes, "put", full)
    reply(OTHER)
    asked()
    assert 4 == state.Observed(OTHER).proven


@pytest.mark.parametrize("listed", [b"no.such.site@0004.pem", b"../damaged.example@0004.pem", DAMAGED.encode() + b"@0003.pem", DAMAGED.encode() + b"@0004.csr",
                                    b"\xff@0004.pem", b"\n\n\0", b"@0004.pem", DAMAGED.encode() + b"@0004.pem.pem"])
def test_a_list_of_replies_names_requests_of_roots_or_nothing(listed: bytes, looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the process that looks there says: other names, other numbers, no names."""
    pathlib.Path(spool.replies(), "something").write_bytes(b"")
    handing.change(monkeypatch, LIST.format(listed))
    assert 0 == asked().exit_code()
    assert [] == looked


def test_a_list_too_long_for_root_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that looks; one that says more is not heard."""
    names = [f"{number:0190d}@0001.pem" for number in range(7000)]
    for name in names:
        pathlib.Path(spool.replies(), name).touch()
    one = run.Run("certdrop-install", True, False)
    one.posted = {name.partition("@")[0]: {(1, "csr")} for name in names}
    assert spool.MAX_LISTED // 210 < len(reader.answered(one)) < 7000
    handing.change(monkeypatch, LIST.format(b"x" * (spool.MAX_LISTED + 1)))
    assert set() == reader.answered(one) and os.EX_TEMPFAIL == one.exit_code()


def test_what_is_looked_at_by_name_is_examined_wholly(accepts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what former runs found; and root's own run recalls these."""
    examined: list[str] = []
    examine = integrity._examine
    monkeypatch.setattr(integrity, "_examine", lambda place, files: (examined.append(place), examine(place, files)))
    reply(OTHER)
    monkeypatch.setattr(integrity, "_examined", {})
    monkeypatch.setattr(integrity, "_recalled", {})
    asked()
    assert {2, 3, 4} <= {int(place[-4:]) for place in examined if OTHER in place}
    assert not [place for place in examined if DAMAGED in place]


def test_a_list_that_nobody_can_make_is_no_empty_list(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run says that it could not look, by its exit code."""
    reply(OTHER)
    looked.clear()
    handing.change(monkeypatch, "def broken(_):\n    raise spool.Refused('busy')\nanswers.listed = broken")
    one = run.Run("certdrop-install", True, True)
    install.reconcile(one)
    assert os.EX_TEMPFAIL == one.exit_code() and "replies" in one.said[0]
    assert [] == looked


def test_many_replies_are_not_examined_anew_each_time(accepts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many sites are looked at, what former runs found is recalled, and what is found is noted: nobody has root read all keys again and again."""
    monkeypatch.setattr(install, "FEW", 1)
    monkeypatch.setattr(intake, "_identity", lambda _: [])
    keep()
    for name in (DAMAGED, OTHER):
        reply(name, b"no certificate\n")

    def examined() -> list[str]:
        found: list[str] = []
        examine = integrity._examine
        with monkeypatch.context() as patch:
            patch.setattr(integrity, "_examine", lambda place, files: (found.append(place[-4:]), examine(place, files)))
            patch.setattr(integrity, "_examined", {})
            patch.setattr(integrity, "_recalled", None)
            asked()
        return found
    assert [] == examined()
    for name in (DAMAGED, OTHER):
        os.utime(state.directory(name, 3) + "/cert.pem")
    assert {"0003"} == set(examined())
    assert [] == examined()


def test_a_run_whose_time_is_up_leaves_the_rest_to_the_next(accepts: None, looked: list[str]) -> None:
    """Also where it looks at sites, before any reply is judged."""
    for name in (DAMAGED, OTHER):
        reply(name)
    looked.clear()
    one = run.Run("certdrop-install", True, False)
    one.end = time.monotonic() - 1
    install.reconcile(one)
    assert [] == looked and {DAMAGED, OTHER} == {name for name in (DAMAGED, OTHER) if os.path.exists(f"{spool.replies()}/{spool.entry(name, 4, 'pem')}")}
    asked()
    assert 4 == state.Observed(OTHER).proven == state.Observed(DAMAGED).proven


def test_a_switch_that_was_broken_off_is_gone_on_with(accepts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was moved and nobody saw it shown, it is still on the list of what was begun."""
    reply(OTHER)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(switch, "_installed", full)
        asked()
    seen = state.Observed(OTHER)
    assert 4 == seen.live and 4 != seen.proven
    assert [OTHER] == unfinished()
    asked()
    assert 4 == state.Observed(OTHER).proven and [] == unfinished()


def test_what_a_closed_directory_hides_is_not_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the issuer's user cannot enter it, nobody sees a reply; opened again, which changes no directory of ours, the next run takes it."""
    monkeypatch.setattr(intake, "_identity", lambda _: [])
    monkeypatch.setattr(reader, "SETTLED", -1e9)
    keep()
    reply(DAMAGED, b"no certificate\n")
    handing.change(monkeypatch, "def shut(_):\n    raise PermissionError(13, 'x')\nspool.open_directory = shut")
    keep()
    asked()
    handing.change(monkeypatch)
    assert os.EX_DATAERR == asked().exit_code()


def test_one_site_named_twice_does_not_stand_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """That no reply lies there is noted where each request was looked for."""
    monkeypatch.setattr(intake, "_identity", lambda _: [])
    monkeypatch.setattr(reader, "SETTLED", -1e9)
    keep()
    reply(DAMAGED, b"no certificate\n")
    install.reconcile(run.Run("certdrop", False, True), [OTHER, OTHER])
    assert os.EX_DATAERR == keep()[0]


def test_a_list_is_never_longer_than_root_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the longest names, too."""
    for number in range(12):
        pathlib.Path(spool.replies(), f"{number:0200d}@{number:09d}.pem").touch()
    for most in range(700, 1200, 50):
        monkeypatch.setattr(spool, "MAX_LISTED", most)
        directory = spool.open_directory(spool.replies())
        assert len(answers.listed(directory)) <= 1 + most
        os.close(directory)


@pytest.mark.parametrize("what", ['{"x": 1e999}', '{"x": "y"}', "[]", "", "{" * 100000])
def test_nonsense_in_what_was_examined_stops_nothing(world: pathlib.Path, what: str) -> None:
    """Everything is examined again."""
    (world / "keeper/examined").write_text(what)
    assert 0 == keep()[0]


def test_no_file_in_place_of_what_was_examined(world: pathlib.Path) -> None:
    """Nobody waits for who would write into it."""
    (world / "keeper/examined").unlink(missing_ok=True)
    os.mkfifo(world / "keeper/examined")
    assert 0 == keep()[0]

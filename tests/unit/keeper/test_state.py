"""The recovery table: from what is on disk follows the next step, and by steps every site settles."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certdrop.config import site
from certdrop.keeper import generations, install, state
from certdrop.keeper.judges import Accepted

NAME = "example.org"


@pytest.fixture
def wanted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> site.Site:
    """A site of two names, in a state directory of its own."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    for entry in ("sites", "live", "proven", "keeper/retired"):
        (tmp_path / entry).mkdir(parents=True)
    found = site.Site(NAME, site.Config())
    found.domains = ["example.org", "www.example.org"]
    return found


def look(wanted: site.Site, *posted: tuple[int, str]) -> str:
    """The next step."""
    return state.step(state.Observed(NAME), wanted, set(posted))


def settled(wanted: site.Site) -> None:
    """A placeholder, live, and a next that is wanted now."""
    generations.make_placeholder(wanted, 1)
    generations.move("live", NAME, 1)
    generations.make_next(wanted, 2, None, now=True)


def fill(number: int) -> None:
    """Complete a generation, with anything that is hashed well."""
    block = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(b"%d" % number) + b"\n-----END CERTIFICATE-----\n"
    generations.complete(NAME, number, [block, block], Accepted(hashlib.sha256(b"%d" % number).hexdigest(), 1, 2))


def test_each_step_leads_to_the_next(wanted: site.Site) -> None:
    """From nothing to a site that waits, in the table's order."""
    assert look(wanted) == state.PLACEHOLDER
    generations.make_placeholder(wanted, 1)
    assert look(wanted) == state.LINK
    generations.move("live", NAME, 1)
    assert look(wanted) == state.NEXT
    generations.make_next(wanted, 2, None, now=True)
    assert look(wanted) == state.POST
    assert look(wanted, (2, "csr")) == state.POST
    assert look(wanted, (2, "csr"), (2, "now")) == state.WAIT
    fill(2)
    assert look(wanted, (2, "csr"), (2, "now")) == state.NEXT
    generations.make_next(wanted, 3, None, now=False)
    assert look(wanted, (2, "csr"), (2, "now")) == state.POST
    assert look(wanted, (2, "csr"), (2, "now"), (3, "csr")) == state.WITHDRAW
    assert look(wanted, (3, "csr")) == state.WAIT


def test_a_wish_that_was_cancelled_is_withdrawn(wanted: site.Site) -> None:
    """A `now` in the spool that next does not carry is taken out."""
    settled(wanted)
    os.unlink(state.directory(NAME, 2) + "/now")
    assert look(wanted, (2, "csr"), (2, "now")) == state.WITHDRAW


def test_a_revocation_request_is_no_stranger(wanted: site.Site) -> None:
    """Requests to revoke have the number of an older generation, and stay."""
    settled(wanted)
    assert look(wanted, (2, "csr"), (2, "now"), (1, "revoke")) == state.WAIT


@pytest.mark.parametrize("change", ["domains", "key"])
def test_a_changed_configuration_replaces_next(wanted: site.Site, change: str) -> None:
    """Other names or another kind of key: another next; the order of the names is no change."""
    settled(wanted)
    wanted.domains.reverse()
    assert look(wanted, (2, "csr"), (2, "now")) == state.WAIT
    if change == "domains":
        wanted.domains.append("new.example.org")
    else:
        wanted.key = "ecdsa-p384"
    assert look(wanted, (2, "csr"), (2, "now")) == state.REPLACE


def test_what_a_killed_run_left_comes_first(wanted: site.Site) -> None:
    """A link set aside is put back, and half a generation swept, before anything else is decided."""
    settled(wanted)
    os.mkdir(state.directory(NAME) + "/.new-0003")
    assert look(wanted, (2, "csr"), (2, "now")) == state.SWEEP
    generations.sweep(NAME, state.Observed(NAME).leftovers)
    with open(state.directory(NAME, 2) + "/.withdrawn.new", "wb"):
        pass
    assert look(wanted, (2, "csr"), (2, "now")) == state.SWEEP
    generations.sweep(NAME, state.Observed(NAME).leftovers)
    assert look(wanted, (2, "csr"), (2, "now")) == state.WAIT
    os.rename(f"{site.STATE}/live/{NAME}", f"{site.STATE}/live/.{NAME}.aside")
    assert look(wanted, (2, "csr"), (2, "now")) == state.PUT_BACK


def test_a_withdrawn_generation_is_not_the_newest(wanted: site.Site) -> None:
    """After a rollback the older one is C, and the withdrawn one is never next."""
    settled(wanted)
    for number in (2, 3):
        fill(number)
        generations.make_next(wanted, number + 1, None, now=False)
    generations.mark(NAME, 3, "withdrawn")
    observed = state.Observed(NAME)
    assert (observed.newest, observed.next) == (2, 4)


def test_numbers_are_never_used_twice(wanted: site.Site) -> None:
    """Not even after the site was removed: its last number is kept."""
    settled(wanted)
    assert state.Observed(NAME).highest == 2
    (pathlib.Path(site.STATE) / "keeper/retired" / NAME).write_text("41")
    assert state.Observed(NAME).highest == 41


def test_old_generations_are_those_nobody_needs(wanted: site.Site) -> None:
    """Three complete ones are kept, and whatever live and proven point at; keys of others go."""
    settled(wanted)
    for number in range(2, 7):
        fill(number)
        generations.make_next(wanted, number + 1, None, now=False)
    generations.move("proven", NAME, 2)
    generations.move("live", NAME, 6)
    assert state.Observed(NAME).old == [1, 3]
    generations.destroy(NAME, 1)
    assert 1 not in state.Observed(NAME).numbers


def test_a_private_key_is_never_open_to_others(wanted: site.Site) -> None:
    """0600 whatever the umask."""
    before = os.umask(0)
    try:
        settled(wanted)
    finally:
        os.umask(before)
    for number in (1, 2):
        assert os.stat(state.directory(NAME, number) + "/privkey.pem").st_mode & 0o777 == 0o600
        assert os.stat(state.directory(NAME, number) + "/request.json").st_mode & 0o777 == 0o644


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["fill", "withdraw", "unlink live", "aside", "leftover", "forget next"]), max_size=8), st.sets(
    st.tuples(st.integers(1, 6), st.sampled_from(["csr", "now"]))))
def test_every_site_settles(wanted: site.Site, harm: list[str], posted: set[tuple[int, str]]) -> None:
    """From whatever stands there, the steps come to an end, and at the end a complete generation is live and one is posted."""
    import shutil
    shutil.rmtree(site.STATE + "/sites")
    shutil.rmtree(site.STATE + "/live")
    os.mkdir(site.STATE + "/sites")
    os.mkdir(site.STATE + "/live")
    settled(wanted)
    for what in harm:
        observed = state.Observed(NAME)
        if what == "fill" and observed.next:
            fill(observed.next)
        elif what == "withdraw" and observed.newest:
            generations.mark(NAME, observed.newest, "withdrawn")
        elif what == "unlink live" and observed.live:
            os.unlink(f"{site.STATE}/live/{NAME}")
        elif what == "aside" and observed.live:
            os.rename(f"{site.STATE}/live/{NAME}", f"{site.STATE}/live/.{NAME}.aside")
        elif what == "leftover":
            os.makedirs(state.directory(NAME) + "/.new-0009", exist_ok=True)
        elif what == "forget next" and observed.next:
            generations.destroy(NAME, observed.next)
    for _ in range(30):
        observed = state.Observed(NAME)
        step = state.step(observed, wanted, posted)
        if step == state.WAIT:
            break
        if step == state.PUT_BACK:
            os.rename(f"{site.STATE}/live/.{NAME}.aside", f"{site.STATE}/live/{NAME}")
        elif step == state.SWEEP:
            generations.sweep(NAME, observed.leftovers)
        elif step == state.PLACEHOLDER:
            generations.make_placeholder(wanted, observed.highest + 1)
        elif step == state.LINK:
            generations.move("live", NAME, observed.newest or 0)
        elif step in (state.NEXT, state.REPLACE):
            generations.make_next(wanted, observed.highest + 1, None, now=False)
        elif step == state.WANT:
            generations.mark(NAME, observed.next or 0, "now")
        elif step == state.POST:
            posted |= state.required(observed)
        elif step == state.WITHDRAW:
            posted &= state.required(observed)
        elif step == state.PRUNE:
            for number in observed.old:
                generations.destroy(NAME, number)
    else:
        raise AssertionError("the steps do not end")
    assert observed.live in observed.whole and observed.next is not None and (observed.next, "csr") in posted


def test_a_key_that_is_too_old_is_replaced(wanted: site.Site) -> None:
    """A carried key older than key_max_age makes another next, wanted now; a younger one does not."""
    wanted.key_max_age = "180d"
    settled(wanted)
    assert look(wanted, (2, "csr"), (2, "now")) == state.WAIT
    path = pathlib.Path(state.directory(NAME, 2)) / "request.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "key_created": known["key_created"] - 180 * 86400}))
    assert look(wanted, (2, "csr"), (2, "now")) == state.REPLACE
    wanted.key_max_age = "181d"
    assert look(wanted, (2, "csr"), (2, "now")) == state.WAIT


@pytest.mark.parametrize("ahead, carried", [(0, True), (-179, True), (-180, False), (1, False), (30000, False)])
def test_a_key_of_another_clocks_is_not_carried_on(wanted: site.Site, ahead: int, carried: bool) -> None:
    """What was made under a clock that stood ahead would not grow old for years: the next generation has another key. Nothing is wanted now for that."""
    wanted.key_max_age = "180d"
    settled(wanted)
    fill(2)
    path = pathlib.Path(state.directory(NAME, 2)) / "request.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "key_created": known["key_created"] + ahead * 86400}))
    assert install.key_to_carry(wanted, state.Observed(NAME)) == (2 if carried else None)
    generations.make_next(wanted, 3, None, now=False)
    assert look(wanted, (3, "csr")) == (state.WANT if ahead == -180 else state.WAIT)


def test_an_old_key_that_serves_wants_the_next_one(wanted: site.Site) -> None:
    """Where next has a young key of its own, and the newest certificate's is too old, next is wanted now."""
    wanted.key_max_age = "180d"
    settled(wanted)
    fill(2)
    generations.make_next(wanted, 3, None, now=False)
    assert look(wanted, (3, "csr")) == state.WAIT
    path = pathlib.Path(state.directory(NAME, 2)) / "request.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "key_created": known["key_created"] - 180 * 86400}))
    assert look(wanted, (3, "csr")) == state.WANT
    generations.mark(NAME, 3, "now")
    assert look(wanted, (3, "csr"), (3, "now")) == state.WAIT

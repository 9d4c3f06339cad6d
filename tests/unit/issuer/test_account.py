"""The account at a CA: found, registered once, and never replaced unless a person says so."""

from __future__ import annotations

import json

import pytest
from issuer.test_ports import BASE, SmallCA, key  # noqa: F401

from certdrop.config import general, site
from certdrop.issuer import account, manage
from certdrop.issuer.failure import REFUSED, Failure

PLACE, OTHER = BASE + "/account/1", BASE + "/account/2"
GONE = (400, {"type": "urn:ietf:params:acme:error:accountDoesNotExist", "detail": "no"}, {})


@pytest.fixture
def ca(tmp_path, monkeypatch):
    """A CA, and a place for notes."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    (tmp_path / "issuer").mkdir()
    return SmallCA()


def session(ca, key) -> account.Session:  # noqa: F811
    """What a run begins with: from the notes of the one before."""
    return account.Session(account.Account(BASE + "/dir", [], key), ca)


def test_it_is_registered_once(ca, key):  # noqa: F811
    """The first order makes it; later runs know it."""
    first = session(ca, key)
    assert first.kid() == PLACE and first.account.registered_now
    assert session(ca, key).kid() == PLACE and ca.asked.count("/newAccount") == 1


def test_one_that_was_lost_is_not_replaced(ca, key):  # noqa: F811
    """Not by the run that finds out, nor by a later one; the CA is asked for it once a run, and what to do is said."""
    session(ca, key).kid()
    ca.odd["/newAccount"] = [GONE] * 3
    assert session(ca, key).find() == ""                                       # as certdrop-account show asks
    for _ in range(2):
        ca.payloads.clear()
        run = session(ca, key)
        for _ in range(3):
            with pytest.raises(Failure) as raised:
                run.kid()
        assert ca.payloads["/newAccount"] == [{"onlyReturnExisting": True}]
        assert raised.value.kind == REFUSED and raised.value.problem == account.NOT_KNOWN
        assert all(words in raised.value.text for words in (PLACE, "clone of this host", "sudo certdrop-account register", "a CAA record with accounturi"))


def test_an_order_that_finds_out(ca, key):  # noqa: F811
    """The CA says in mid-order that there is no such account: it is asked for by the key, and not made anew."""
    session(ca, key).kid()
    run = session(ca, key)
    run.account.forget(PLACE)
    ca.odd["/newAccount"] = [GONE]
    with pytest.raises(Failure, match="certdrop-account register"):
        run.kid()
    assert ca.payloads["/newAccount"][1:] == [{"onlyReturnExisting": True}]


def test_who_registers_says_so(ca, key):  # noqa: F811
    """certdrop-account register makes another; which one it replaces stays known, for the CAA record may still name that."""
    session(ca, key).kid()
    ca.odd["/newAccount"] = [GONE, GONE]
    session(ca, key).find()
    run = session(ca, key)
    run.may_replace = True
    ca.odd["/newAccount"] = [GONE, (201, {}, {"Location": OTHER})]
    run.find()
    assert run.kid() == OTHER and run.account.registered_now
    again = session(ca, key)
    assert again.kid() == OTHER and again.account.known["before"] == PLACE


def test_a_key_that_comes_back(ca, key):  # noqa: F811
    """The clone's key is put here, or the CA finds its accounts again: nothing was replaced, and orders go on."""
    session(ca, key).kid()
    ca.odd["/newAccount"] = [GONE, (200, {}, {"Location": PLACE})]
    assert session(ca, key).find() == ""
    run = session(ca, key)
    assert run.kid() == PLACE and not run.account.known.get("before") and not run.account.registered_now


def test_a_key_that_leads_to_another_account(ca, key):  # noqa: F811
    """A CA that gave its accounts other URLs: ours is used, and the former URL stays known for what a CAA record says."""
    session(ca, key).kid()
    ca.odd["/newAccount"] = [(200, {}, {"Location": OTHER})]
    run = session(ca, key)
    assert run.is_another(PLACE) and run.kid() == OTHER and run.account.known["before"] == PLACE


def test_one_that_was_deactivated_here(ca, key):  # noqa: F811
    """Who ended it was told that the next order makes another."""
    first = session(ca, key)
    first.kid()
    first.account.forget(PLACE, agreed=True)
    ca.odd["/newAccount"] = [(201, {}, {"Location": OTHER})]
    assert session(ca, key).kid() == OTHER
    assert session(ca, key).account.known["before"] == PLACE
    ca.odd["/newAccount"] = [GONE] * 2
    assert session(ca, key).find() == ""
    with pytest.raises(Failure, match="certdrop-account register"):            # that was agreed to once, not for ever
        session(ca, key).kid()


@pytest.mark.parametrize("before", ["https://evil.example.org/1", 7, None, ["x"]])
def test_a_note_of_what_was_before_that_makes_no_sense(ca, key, before):  # noqa: F811
    """Holds up nobody."""
    path = f"{site.STATE}/issuer/{account.Account(BASE + '/dir', [], key)._entry}"
    with open(path, "w", encoding="ascii") as stream:
        stream.write(json.dumps({"before": before, "agreed": "yes"}))
    assert session(ca, key).kid() == PLACE


# ---- certdrop-account show

def asked(ca, key):  # noqa: F811
    """What show finds of the account that the notes have."""
    run = session(ca, key)
    known = str(run.account.known.get("account") or "")
    ca.asked.clear()
    return manage.Verbs(general.Config(), key, run.account, run)._asked(known)


def test_a_known_account_is_asked_at_its_url(ca, key):  # noqa: F811
    """And newAccount, which CAs limit, is left alone."""
    session(ca, key).kid()
    ca.odd["/account/1"] = [(200, {"status": "valid"}, {})]
    assert asked(ca, key) == (PLACE, {"status": "valid"}) and "/newAccount" not in ca.asked


@pytest.mark.parametrize("status, problem", [(400, "accountDoesNotExist"), (400, "malformed"), (403, "unauthorized"), (404, ""), (405, "malformed")])
def test_where_the_url_is_not_ours_any_more(ca, key, status, problem):  # noqa: F811
    """The CA is asked by the key: it may know it by another URL, or not at all."""
    session(ca, key).kid()
    no = (status, {"type": f"urn:ietf:params:acme:error:{problem}"}, {})
    ca.odd = {"/account/1": [no], "/newAccount": [(200, {}, {"Location": OTHER})], "/account/2": [(200, {"status": "valid"}, {})]}
    assert asked(ca, key) == (OTHER, {"status": "valid"})
    ca.odd = {"/account/2": [no], "/newAccount": [GONE]}
    assert asked(ca, key) == ("", {}) and session(ca, key).account.known["before"] == OTHER


def test_a_ca_in_trouble_has_not_lost_it(ca, key):  # noqa: F811
    """What says nothing of the account is passed on, and asked no further."""
    session(ca, key).kid()
    ca.odd["/account/1"] = [(500, {"type": "urn:ietf:params:acme:error:serverInternal"}, {})]
    with pytest.raises(Failure, match="serverInternal"):
        asked(ca, key)
    assert "/newAccount" not in ca.asked and session(ca, key).account.known["account"] == PLACE


@pytest.mark.parametrize("body", [b"", b"\x1f\x8b", b"[]", b"<html>"])
def test_an_answer_that_is_no_account(ca, key, body):  # noqa: F811
    """Is not shown as one with lines left out."""
    session(ca, key).kid()
    ca.odd["/account/1"] = [(200, body, {})]
    with pytest.raises(Failure, match="answered with something that is no account"):
        asked(ca, key)

"""What root posts in a fleet: signed, once, by a key of its own. And without a fleet: as ever."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import time
from typing import Any

import pytest

from certdrop import events, spool
from certdrop.config import site
from certdrop.fleet import authority, local, members
from certdrop.fleet.database import Row
from certdrop.keeper import generations, install, revoke, signing, state

NAME = "example.org"


class Run:
    """In the place of a Run: the spool, and what is posted in it."""

    def __init__(self) -> None:
        self.requests, self.group = spool.open_directory(spool.requests()), -1
        self.posted: dict[str, set[tuple[int, str]]] = {NAME: set()}
        self.log = events.Log("nobody")


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site with a next generation that is wanted now, and not posted yet."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(site, "ETC", str(tmp_path / "etc"))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path / "spool"))
    for entry in ("sites", "live", "proven", "keeper/retired", "spool/requests", "spool/replies", "etc/fleet", "issuer"):
        (tmp_path / entry).mkdir(parents=True)
    wanted = site.Site(NAME, site.Config())
    wanted.domains = [NAME]
    generations.make_next(wanted, 2, None, now=True)
    return Run()


def join() -> members.Member:
    """This host joins a fleet, as web1; as a desk knows it."""
    seed, member = authority.seed(), members.Member()
    pathlib.Path(f"{site.ETC}/fleet/sign.key").write_bytes(b"web1 " + seed + b"\n")
    member.key = authority.public(seed.decode())
    return member


def entries() -> "dict[str, bytes]":
    return {entry: pathlib.Path(f"{spool.requests()}/{entry}").read_bytes() for entry in sorted(os.listdir(spool.requests()))}


def test_without_a_fleet_nothing_is_signed(run: Any) -> None:
    install.post(run, NAME, state.Observed(NAME))
    found = entries()
    assert list(found) == [f"{NAME}@0002.csr", f"{NAME}@0002.now"] and found[f"{NAME}@0002.now"] == b""
    revoke.put(run, NAME, 1, {"payload": {"certificate": "x"}, "not_after": 1}, "superseded")
    assert "sig" not in json.loads(entries()[f"{NAME}@0001.revoke"])


def test_each_request_has_a_signature_of_its_own(run: Any) -> None:
    """For the CSR beside it, for now in the place of nothing, for a revocation in it: none stands for another."""
    member = join()
    install.post(run, NAME, state.Observed(NAME))
    revoke.put(run, NAME, 1, {"payload": {"certificate": "x"}, "not_after": 1}, "superseded")
    found = entries()
    csr, wanted = found[f"{NAME}@0002.csr"], json.loads(found[f"{NAME}@0001.revoke"])
    signature = wanted.pop("sig")
    at, _, urging = found[f"{NAME}@0002.now"].partition(b" ")
    assert abs(int(at) - time.time()) < 600
    signed = {"csr": (found[f"{NAME}@0002.sig"], 2, csr), "now": (urging, 2, at + b" " + csr), "revoke": (signature, 1, json.dumps(wanted).encode())}
    for kind, (one, number, data) in signed.items():
        for other in signed:
            assert members.is_signed(member, signing.statement("web1", NAME, number, other, data), one) == (kind == other)
    assert run.posted[NAME] == {(2, "csr"), (2, "now"), (1, "revoke")}
    assert {oct(os.stat(f"{spool.requests()}/{entry}").st_mode & 0o777) for entry in found} == {"0o640"}


def test_a_signature_goes_with_its_request(run: Any) -> None:
    join()
    install.post(run, NAME, state.Observed(NAME))
    for kind in ("now", "csr"):
        install.withdraw(run, NAME, 2, kind)
    assert not entries() and not run.posted[NAME]


def test_what_is_signed_again_is_signed_once(run: Any) -> None:
    """A revocation for a graver reason has no signature but its own."""
    member = join()
    revoke.put(run, NAME, 1, {"payload": {"certificate": "x"}, "not_after": 1}, "superseded")
    found = json.loads(entries()[f"{NAME}@0001.revoke"])
    revoke.put(run, NAME, 1, {**found, "payload": {"certificate": "x", "reason": 1}}, "keyCompromise")
    again = json.loads(entries()[f"{NAME}@0001.revoke"])
    signature = again.pop("sig")
    assert members.is_signed(member, signing.statement("web1", NAME, 1, "revoke", json.dumps(again).encode()), signature)


@pytest.mark.parametrize("text", ["", "web1", "web1 x y", "web1 !", "web1 " + base64.b64encode(b"short").decode()])
def test_a_damaged_key_is_said(run: Any, text: str) -> None:
    """As the trouble of a file, which holds up nothing but what is to be posted."""
    pathlib.Path(f"{site.ETC}/fleet/sign.key").write_text(text)
    with pytest.raises(OSError, match="damaged"):
        install.post(run, NAME, state.Observed(NAME))


def test_the_courier_carries_what_is_signed(run: Any) -> None:
    """And says of the rest that it does not, and how to mend it."""
    install.post(run, NAME, state.Observed(NAME))
    found, left = local.requests()
    assert found == {} and "request 0002 is not signed for the fleet" in left[0]
    for kind in ("now", "csr"):
        install.withdraw(run, NAME, 2, kind)
    join()
    install.post(run, NAME, state.Observed(NAME))
    found, left = local.requests()
    posted = entries()
    assert left == [] and found == {Row("", NAME, 2, "csr"): tuple(posted[f"{NAME}@0002.{kind}"].decode() for kind in ("csr", "sig", "now"))}


def test_a_patterns_names() -> None:
    member = members.Member()
    member.names = ["shop.example.org", "*.customers.example.org", "2001:db8::7"]
    assert all(map(member.may_have, ["shop.example.org", "a.customers.example.org", "a.b.customers.example.org", "2001:db8::7"]))
    assert all(map(member.may_have, ["*.customers.example.org", "*.a.customers.example.org"]))
    assert not any(map(member.may_have, ["*.example.org", "*.shop.example.org", "*.*.customers.example.org", "*.org", "*", "*.", "x*.customers.example.org"]))
    assert not any(map(member.may_have, ["example.org", "customers.example.org", "xcustomers.example.org", "a.shop.example.org", "2001:db8::8", ""]))


@pytest.mark.parametrize("line", ["", "certdrop-fleet-1 host web1 x y", "certdrop-fleet-2 host web1 {key} {point}", "certdrop-fleet-1 host Web1 {key} {point}",
                                  "certdrop-fleet-1 host postgres {key} {point}", "certdrop-fleet-1 root web1 {key} {point}",
                                  "certdrop-fleet-1 host web1 {key} {key}", "certdrop-fleet-1 host web1;drop {key} {point}"])
def test_a_line_that_no_machine_printed(line: str) -> None:
    tls = authority.tls_key()
    good = authority.line("host", "web1", authority.public(authority.seed().decode()), tls)
    assert authority.applicant(good).name == "web1"
    _, _, _, key, point = good.split()
    with pytest.raises(ValueError):
        authority.applicant(line.format(key=key, point=point))

"""What root posts to have a certificate revoked, and how long it stays."""

from __future__ import annotations

import json
import os
import pathlib
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from certdrop import events, site, spool
from certdrop.issuer.jose import unb64
from certdrop.keeper import generations, install, keys, notes, revoke, state
from certdrop.keeper.judges import Accepted

NAME = "example.org"
END = int(time.time()) + 86400


class Run:
    """In the place of a Run: the spool, and what is posted in it."""

    def __init__(self) -> None:
        self.requests, self.group = spool.open_directory(spool.requests()), -1
        self.posted: dict[str, set[tuple[int, str]]] = {}
        self.log = events.Log("nobody")


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site whose second generation is live, with a certificate."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path / "spool"))
    for entry in ("sites", "live", "proven", "keeper/retired", "spool/requests"):
        (tmp_path / entry).mkdir(parents=True)
    wanted = site.Site(NAME, site.Config())
    wanted.domains = [NAME]
    generations.make_next(wanted, 2, None, now=False)
    with open(state.directory(NAME, 2) + "/privkey.pem", "rb") as stream:
        pem, sha256, begin, _ = keys.placeholder(stream.read(), [NAME])
    generations.complete(NAME, 2, [pem], Accepted(sha256, begin, END))
    generations.move("live", NAME, 2)
    return Run()


def posted(number: int = 2) -> Any:
    return json.loads(pathlib.Path(f"{spool.requests()}/{NAME}@{number:04d}.revoke").read_text())


@pytest.mark.parametrize("reason, code", [("keyCompromise", 1), ("affiliationChanged", 3), ("superseded", 4), ("cessationOfOperation", 5)])
def test_what_is_posted_is_what_is_sent(run: Any, reason: str, code: int) -> None:
    """The certificate as RFC 8555 section 7.6 wants it, the reason as RFC 5280 counts them; readable for the issuer, and nobody else."""
    revoke.post(run, NAME, 2, reason)
    found = posted()
    assert list(found) == ["payload", "not_after"] and list(found["payload"]) == ["certificate", "reason"]
    assert found["payload"]["reason"] == code and found["not_after"] == END
    leaf = x509.load_der_x509_certificate(unb64(found["payload"]["certificate"]))
    assert leaf.fingerprint(hashes.SHA256()).hex() == state.facts(NAME, 2, "cert")["sha256"]
    assert leaf.public_bytes(serialization.Encoding.PEM) == pathlib.Path(state.directory(NAME, 2) + "/cert.pem").read_bytes()
    assert os.stat(f"{spool.requests()}/{NAME}@0002.revoke").st_mode & 0o777 == 0o640
    assert run.posted == {NAME: {(2, "revoke")}}


def test_unspecified_is_said_by_saying_nothing(run: Any) -> None:
    """RFC 5280 section 5.3.1 wants it so."""
    revoke.post(run, NAME, 2, "unspecified")
    assert list(posted()["payload"]) == ["certificate"]


def test_it_is_noted_for_all_to_see_and_never_taken_again(run: Any) -> None:
    """Status reads the notes; the judge is told of every fingerprint in `spent`."""
    revoke.post(run, NAME, 2, "superseded")
    known = notes.Notes(NAME)
    assert known.spent == {state.facts(NAME, 2, "cert")["sha256"]: END}
    assert known.revoke["0002"]["reason"] == "superseded" and known.revoke["0002"]["not_after"] == END


def test_notes_of_what_has_ended_are_dropped(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the certificate's end there is nothing left to say."""
    revoke.post(run, NAME, 2, "superseded")
    known = notes.Notes(NAME)
    monkeypatch.setattr(time, "time", lambda: END + 1)
    known.save()
    assert notes.Notes(NAME).revoke == {}


def test_a_request_stays_until_the_certificate_has_ended(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the site is gone; damaged files stay, and hold up nothing."""
    revoke.post(run, NAME, 2, "superseded")
    run.posted["gone.example.org"] = {(7, "revoke"), (8, "csr")}
    run.posted["odd.example.org"] = {(1, "revoke")}
    pathlib.Path(f"{spool.requests()}/gone.example.org@0007.revoke").write_text(json.dumps({"payload": {}, "not_after": 7}))
    pathlib.Path(f"{spool.requests()}/odd.example.org@0001.revoke").write_text("{")
    assert revoke.ended(run) == [("gone.example.org", 7)]
    monkeypatch.setattr(time, "time", lambda: END)
    assert revoke.ended(run) == [(NAME, 2), ("gone.example.org", 7)]


def test_settling_leaves_it_there(run: Any) -> None:
    """Withdrawing what is strange, the keeper passes over requests to revoke; of generations that are gone, too."""
    wanted = site.Site(NAME, site.Config())
    wanted.domains = [NAME]
    generations.make_next(wanted, 3, None, now=False)
    for number, kind in ((1, "revoke"), (2, "revoke"), (2, "csr"), (2, "now")):
        pathlib.Path(f"{spool.requests()}/{NAME}@{number:04d}.{kind}").write_text("{}")
        run.posted.setdefault(NAME, set()).add((number, kind))
    install.settle(run, wanted)
    assert sorted(os.listdir(spool.requests())) == [f"{NAME}@0001.revoke", f"{NAME}@0002.revoke", f"{NAME}@0003.csr"]

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

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import generations, install, keys, notes, revoke, state
from certdrop.keeper.judges import Accepted
from certdrop.signer.jose import unb64

NAME = "example.org"
END = int(time.time()) + 86400


class Run:
    """In the place of a Run: the spool, and what is posted in it."""

    def __init__(self) -> None:
        self.requests, self.group = spool.open_directory(spool.requests()), -1
        self.posted: dict[str, set[tuple[int, str]]] = {}
        self.observed: dict[str, state.Observed] = {}
        self.log = events.Log("nobody")

    @property
    def burnt(self) -> frozenset[str]:
        return state.burnt()

    def look(self, name: str) -> state.Observed:
        self.observed[name] = state.Observed(name)
        return self.observed[name]

    seen = look


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
    assert leaf.fingerprint(hashes.SHA256()).hex() == state.Observed(NAME).sha256(2)
    assert leaf.public_bytes(serialization.Encoding.PEM) == pathlib.Path(state.directory(NAME, 2) + "/cert.pem").read_bytes()
    assert os.stat(f"{spool.requests()}/{NAME}@0002.revoke").st_mode & 0o777 == 0o640
    assert run.posted == {NAME: {(2, "revoke")}}


def test_unspecified_is_said_by_saying_nothing(run: Any) -> None:
    """RFC 5280 section 5.3.1 wants it so."""
    revoke.post(run, NAME, 2, "unspecified")
    assert list(posted()["payload"]) == ["certificate"]


@pytest.mark.parametrize("live, reasons", [(2, [0, 5]), (3, [0, 4])])
def test_which_reason_fits_where_a_ca_demands_one(run: Any, live: int, reasons: list[int]) -> None:
    """RFC 5280 section 5.3.1: superseded, where another certificate is live; cessationOfOperation, where this one is. Root says so, nobody after it."""
    os.symlink(f"../sites/{NAME}/{live:04d}", site.STATE + "/live/other")
    os.rename(site.STATE + "/live/other", f"{site.STATE}/live/{NAME}")
    os.makedirs(f"{site.STATE}/sites/{NAME}/{live:04d}", exist_ok=True)
    revoke.post(run, NAME, 2, "unspecified")
    assert posted()["reasons"] == reasons


def test_it_is_noted_for_all_to_see_and_never_taken_again(run: Any) -> None:
    """Status reads the notes; the judge is told of every fingerprint in `spent`."""
    revoke.post(run, NAME, 2, "superseded")
    known = notes.Notes(NAME)
    assert known.spent == {state.Observed(NAME).sha256(2): END}
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


# ---- a compromised key

def spki(number: int) -> str:
    return state.Observed(NAME).spki(number)


def burn(*numbers: int) -> None:
    """What `certdrop rotate --compromised` writes first."""
    notes.put("burnt", "".join(f"{spki(number)}\n" for number in numbers).encode())


def fill(number: int) -> None:
    """Complete a generation, with a certificate for its key."""
    with open(state.directory(NAME, number) + "/privkey.pem", "rb") as stream:
        pem, sha256, begin, _ = keys.placeholder(stream.read(), [NAME])
    generations.complete(NAME, number, [pem], Accepted(sha256, begin, END))


@pytest.fixture
def leaked(run: Any) -> Any:
    """Generation 2 is live and proven, with a compromised key; 1 had the same, 3 is next."""
    wanted = site.Site(NAME, site.Config())
    wanted.domains, wanted.key_max_age = [NAME], "180d"
    generations.make_next(wanted, 1, 2, now=False)
    fill(1)
    generations.move("proven", NAME, 2)
    install.settle(run, wanted)
    assert spki(1) == spki(2) == spki(3)
    burn(2)
    run.wanted = wanted
    run.tell = lambda *words: None
    return run


def asked() -> list[str]:
    return [entry for entry in sorted(os.listdir(spool.requests())) if entry.endswith("revoke")]


def test_a_key_that_got_out_is_not_carried_on(leaked: Any) -> None:
    """Next gets another one, wanted now, by whatever run comes next."""
    install.settle(leaked, leaked.wanted)
    observed = state.Observed(NAME)
    assert observed.next == 4 and spki(4) != spki(2) and state.Observed(NAME).has(4, "now")
    assert {(4, "csr"), (4, "now")} <= leaked.posted[NAME]
    install.settle(leaked, leaked.wanted)
    assert state.Observed(NAME).next == 4


def test_a_fresh_next_is_only_wanted_now(leaked: Any) -> None:
    """Where next has a key of its own already, that one is used."""
    install.settle(leaked, leaked.wanted)
    os.unlink(state.directory(NAME, 4) + "/now")
    install.settle(leaked, leaked.wanted)
    assert state.Observed(NAME).next == 4 and state.Observed(NAME).has(4, "now")


def test_nothing_is_revoked_before_another_is_proven(leaked: Any) -> None:
    """Written, moved, proven: only then, and then all that were issued for the key, each once."""
    install.settle(leaked, leaked.wanted)
    revoke.post_owed(leaked, NAME)
    fill(4)
    revoke.post_owed(leaked, NAME)
    generations.move("live", NAME, 4)
    revoke.post_owed(leaked, NAME)
    assert asked() == []
    generations.move("proven", NAME, 4)
    revoke.post_owed(leaked, NAME)
    assert asked() == [f"{NAME}@0001.revoke", f"{NAME}@0002.revoke"] and posted(1)["payload"]["reason"] == posted(2)["payload"]["reason"] == 1
    before = [os.stat(f"{spool.requests()}/{entry}").st_ino for entry in asked()]
    revoke.post_owed(leaked, NAME)
    assert before == [os.stat(f"{spool.requests()}/{entry}").st_ino for entry in asked()]


def test_where_nobody_serves_a_site_installing_is_enough(leaked: Any) -> None:
    """But not while an installation waits for its next try."""
    os.unlink(f"{site.STATE}/proven/{NAME}")
    install.settle(leaked, leaked.wanted)
    fill(4)
    generations.move("live", NAME, 4)
    known = notes.Notes(NAME)
    known.put_off(4, "issued-not-served", "x")
    known.save()
    revoke.post_owed(leaked, NAME)
    assert asked() == []
    known.install = {}
    known.save()
    revoke.post_owed(leaked, NAME)
    assert asked() == [f"{NAME}@0001.revoke", f"{NAME}@0002.revoke"]


def test_what_is_to_be_revoked_is_kept_until_that_is_posted(leaked: Any) -> None:
    """However many generations follow: the certificate is needed for the request."""
    for number in (4, 5, 6, 7):
        install.settle(leaked, leaked.wanted)
        fill(number)
        generations.move("live", NAME, number)
    install.settle(leaked, leaked.wanted)
    assert state.Observed(NAME).numbers == [1, 2, 5, 6, 7, 8]
    generations.move("proven", NAME, 7)
    revoke.post_owed(leaked, NAME)
    install.settle(leaked, leaked.wanted)
    assert state.Observed(NAME).numbers == [5, 6, 7, 8] and asked() == [f"{NAME}@0001.revoke", f"{NAME}@0002.revoke"]


def test_what_has_ended_needs_no_revocation(leaked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA would not take it, and nobody would look."""
    install.settle(leaked, leaked.wanted)
    fill(4)
    for link in ("live", "proven"):
        generations.move(link, NAME, 4)
    monkeypatch.setattr(time, "time", lambda: END)
    revoke.post_owed(leaked, NAME)
    assert asked() == []


def test_other_keys_are_left_alone(leaked: Any) -> None:
    """A generation with another key is neither burnt nor revoked."""
    install.settle(leaked, leaked.wanted)
    fill(4)
    for link in ("live", "proven"):
        generations.move(link, NAME, 4)
    burn(1)
    assert not state.Observed(NAME).is_burnt(4) and state.owed(state.Observed(NAME), set()) == [1, 2]
    notes.put("burnt", b"")
    assert state.owed(state.Observed(NAME), set()) == []


def test_the_graver_reason_wins(run: Any) -> None:
    """What was to be revoked for any reason, and whose key was compromised after, is to be revoked as keyCompromise; also where its generation is gone."""
    run.tell = lambda *_: None
    revoke.post(run, NAME, 2, "superseded")
    notes.put("burnt", f"{state.Observed(NAME).spki(2)}\n".encode())
    generations.make_next(_wanted(), 3, None, now=False)
    generations.destroy(NAME, 2)
    revoke.aggravate(run, NAME)
    assert posted()["payload"]["reason"] == 1 and notes.Notes(NAME).revoke["0002"]["reason"] == "keyCompromise"
    before = os.stat(f"{spool.requests()}/{NAME}@0002.revoke").st_ino
    revoke.aggravate(run, NAME)
    assert os.stat(f"{spool.requests()}/{NAME}@0002.revoke").st_ino == before


def test_a_lesser_reason_stays_where_no_key_got_out(run: Any) -> None:
    """Nothing is changed of what another site's key has to do with."""
    revoke.post(run, NAME, 2, "superseded")
    notes.put("burnt", b"0" * 64 + b"\n")
    revoke.aggravate(run, NAME)
    assert posted()["payload"]["reason"] == 4


def _wanted() -> site.Site:
    wanted = site.Site(NAME, site.Config())
    wanted.domains = [NAME]
    return wanted

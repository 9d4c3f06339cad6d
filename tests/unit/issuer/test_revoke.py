"""What the issuer does with root's requests to revoke: when it asks, what it sends, and what it remembers."""

from __future__ import annotations

import json
import os
import pathlib
import time

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.issuer import due, posted, revoke
from certdrop.issuer.options import Options, Usage
from certdrop.issuer.failure import REFUSED, UNREACHABLE, Failure

NOW = float(int(time.time()))
ENTRY, OTHER = "a.test@0002.revoke", "b.test@0011.revoke"
PAYLOAD = {"certificate": "YQ", "reason": 4}


@pytest.fixture(autouse=True)
def disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A spool in which two certificates are to be revoked."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path / "spool"))
    for name in ("issuer", "spool/requests", "spool/replies"):
        (tmp_path / name).mkdir(parents=True)
    for entry in (ENTRY, OTHER):
        (tmp_path / "spool/requests" / entry).write_text(json.dumps({"payload": PAYLOAD, "not_after": int(NOW) + 9}))
    return tmp_path


class Session:
    """In the place of a session: a CA with one answer."""

    def __init__(self, answer: Failure | None = None, **directory: str) -> None:
        self.answer, self.found = answer, directory or {"revokeCert": "https://ca.test/revoke"}
        self.asked: list[tuple[str, object, str]] = []

    def directory(self) -> dict[str, str]:
        return self.found

    def post(self, url: str, payload: object, kid: str | None = None, request: str = "") -> None:
        self.asked.append((url, payload, request))
        if self.answer:
            raise self.answer


def failure(problem: str, retry_after: float = 0.0) -> Failure:
    return Failure(REFUSED, f"the CA says {problem}: no", retry_after, problem)


def test_the_ca_is_sent_what_root_posted():
    """To the directory's revokeCert, naming the request that it is for."""
    session = Session()
    revoke.ask(session, ENTRY)                                                     # type: ignore[arg-type]
    assert session.asked == [("https://ca.test/revoke", PAYLOAD, ENTRY)]


def test_already_revoked_is_as_good():
    """RFC 8555 section 7.6: somebody was faster, or we were, and were killed."""
    revoke.ask(Session(failure("alreadyRevoked")), ENTRY)                          # type: ignore[arg-type]
    with pytest.raises(Failure):
        revoke.ask(Session(failure("unauthorized")), ENTRY)                        # type: ignore[arg-type]


class Demanding(Session):
    """A CA that takes only some reasons, and refuses the others by one word."""

    def __init__(self, takes: list[object], problem: str) -> None:
        super().__init__(failure(problem))
        self.takes = takes

    def post(self, url: str, payload: object, kid: str | None = None, request: str = "") -> None:
        self.asked.append((url, payload, request))
        if isinstance(payload, dict) and payload.get("reason") not in self.takes and self.answer:
            raise self.answer


def post_without_a_reason(disk: pathlib.Path, **more: object) -> None:
    (disk / "spool/requests" / ENTRY).write_text(json.dumps({"payload": {"certificate": "YQ"}, "not_after": int(NOW) + 9, **more}))


@pytest.mark.parametrize("problem", ["badRevocationReason", "malformed"])
@pytest.mark.parametrize("takes, sent", [([None], [None]), ([0, 4], [None, 0]), ([4, 5], [None, 0, 4]), ([5], [None, 0, 4])])
def test_a_ca_that_demands_a_reason(disk: pathlib.Path, problem: str, takes: list[object], sent: list[object]) -> None:
    """Where root gave none: it is left out first (RFC 5280 section 5.3.1), then said in a number, then the one that root says fits."""
    post_without_a_reason(disk, reasons=[0, 4])
    session = Demanding(takes, problem)
    try:
        revoke.ask(session, ENTRY)                                                 # type: ignore[arg-type]
        assert set(sent) & set(takes)
    except Failure as failure:
        assert failure.problem == problem and not set(sent) & set(takes)
    assert [payload.get("reason") for _, payload, _ in session.asked if isinstance(payload, dict)] == sent


@pytest.mark.parametrize("problem", ["unauthorized", "serverInternal", "rateLimited", "badNonce"])
def test_what_no_other_reason_heals(disk: pathlib.Path, problem: str) -> None:
    """One request."""
    post_without_a_reason(disk, reasons=[0, 4])
    session = Demanding([0], problem)
    with pytest.raises(Failure):
        revoke.ask(session, ENTRY)                                                 # type: ignore[arg-type]
    assert len(session.asked) == 1


def test_a_reason_that_root_gave_is_no_other(disk: pathlib.Path) -> None:
    """keyCompromise, or any, is not softened because a CA does not like it."""
    session = Demanding([0, 5], "badRevocationReason")
    with pytest.raises(Failure):
        revoke.ask(session, ENTRY)                                                 # type: ignore[arg-type]
    assert [payload for _, payload, _ in session.asked] == [PAYLOAD]


def test_a_request_of_an_older_version(disk: pathlib.Path) -> None:
    """Has no list of reasons: there, 0 says what leaving it out says."""
    post_without_a_reason(disk)
    session = Demanding([0], "malformed")
    revoke.ask(session, ENTRY)                                                     # type: ignore[arg-type]
    assert [payload.get("reason") for _, payload, _ in session.asked if isinstance(payload, dict)] == [None, 0]


def test_a_ca_that_revokes_nothing():
    """Its directory does not say where."""
    with pytest.raises(Failure, match="does not offer"):
        revoke.ask(Session(newOrder="https://ca.test/order"), ENTRY)               # type: ignore[arg-type]


def test_requests_to_revoke_are_seen():
    """Beside the others, whose site they need not have."""
    assert sorted(posted.requests()[2]) == [ENTRY, OTHER]


def test_done_is_remembered_and_not_repeated():
    """As the issuer's word, also for another run."""
    found = revoke.Revocations([ENTRY, OTHER])
    first, second = found.due(NOW, [], False)
    assert (first.name, first.number, second.name, second.number) == ("a.test", 2, "b.test", 11)
    first.succeeded(NOW)
    found.save()
    again = revoke.Revocations([ENTRY, OTHER])
    assert [one.entry for one in again.due(NOW, [], True)] == [OTHER] and again.all[0].done == NOW


def test_failures_are_put_off_and_an_administrator_does_not_wait():
    """The back-off of orders; an administrator's try comes at once, but never before the CA's Retry-After."""
    found = revoke.Revocations([ENTRY, OTHER])
    found.all[0].failed(Failure(UNREACHABLE, "no route"), NOW)
    found.all[1].failed(failure("rateLimited", 600.0), NOW)
    found.save()
    again = revoke.Revocations([ENTRY, OTHER])
    assert again.due(NOW, [], False) == [] and [one.entry for one in again.due(NOW, [], True)] == [ENTRY]
    assert [one.entry for one in again.due(NOW + 2 * due.MINUTE, [], False)] == [ENTRY]
    assert {one.entry for one in again.due(NOW + 2 * due.DAY, [], False)} == {ENTRY, OTHER}
    assert (again.all[0].kind, again.all[0].last_error, again.all[0].count) == (UNREACHABLE, "no route", 1)
    again.all[0].succeeded(NOW)
    assert again.all[0].noted() == {"done": int(NOW)}


def test_the_plan_shows_what_is_left(capsys):
    """What is not done, now or after its back-off; what is done, no more."""
    found = revoke.Revocations([ENTRY, OTHER])
    found.all[1].failed(failure("unauthorized"), NOW)
    found.show([], NOW)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a.test  now  root wants generation 0002 revoked" and "b.test  20" in second and "unauthorized" in second
    found.all[0].succeeded(NOW)
    found.show(["a.test"], NOW)
    assert capsys.readouterr().out == ""


def test_only_the_sites_that_are_named():
    """A run for one site leaves the others."""
    assert [one.entry for one in revoke.Revocations([ENTRY, OTHER]).due(NOW, ["b.test"], True)] == [OTHER]


def test_what_root_wants_no_more_is_forgotten(disk):
    """A request that is gone leaves no note."""
    found = revoke.Revocations([ENTRY, OTHER])
    for one in found.all:
        one.succeeded(NOW)
    found.save()
    revoke.Revocations([OTHER]).save()
    assert list(json.loads((disk / "issuer/revocations.json").read_text())) == [OTHER]
    assert os.stat(disk / "issuer/revocations.json").st_mode & 0o777 == 0o644


@pytest.mark.parametrize("text", [
    "", "{", "[]", "1", '{"a.test@0002.revoke": 1}', '{"a.test@0002.revoke": {"done": "x", "count": -1, "class": 1}}', "[" * 100000])
def test_notes_that_are_damaged(disk, text):
    """Whatever stands there, the CA is asked again: that costs a request."""
    (disk / "issuer/revocations.json").write_text(text)
    assert [one.entry for one in revoke.Revocations([ENTRY]).due(NOW, [], False)] == [ENTRY]


@pytest.mark.parametrize("argv", [["--revoke", "--force", "a"], ["--revoke", "--plan"], ["--revoke", "--dry-run"], ["--revoke", "--cron"]])
def test_revoke_goes_with_nothing_else(argv):
    """It places no order, so nothing that is about orders."""
    with pytest.raises(Usage):
        Options(argv, False)


@pytest.mark.parametrize("argv", [["--revoke"], ["--revoke", "a.test"], ["--dry-run"], ["--dry-run", "a"], ["--plan"]])
def test_what_goes_by_itself(argv):
    """Each of them alone."""
    assert Options(argv, False).revoke == ("--revoke" in argv)

"""Nonsense in the issuer's own files, every kind in every file: an honest run goes on as if the file were not there, and puts a good one in its place."""

from __future__ import annotations

import json
import os
import time

import pytest
from issuer.test_state import DAY, Disk, configured, disk, request  # noqa: F401

from certdrop.config import site
from certdrop.issuer import budget, due, ledger, notes, plan, posted, revoke
from certdrop.issuer.account import Account
from certdrop.issuer.agenda import Agenda
from certdrop.issuer.options import Options
from certdrop.issuer.failure import VALIDATION, Failure

REVOKED = "a.test@0002.revoke"
ACCOUNT = Account("https://ca.example.org/dir", [], None, keep=False)._entry
FILES = ("a.test.json", ACCOUNT, "agenda", "revocations.json", "budget", "last-run")
TABLES = ("count", "own", "cut_off", "next_try", "failed_at", "retry_after", "issued_at", "hurries", "window_end", "poll_at", "polls_failed", "class",
          "last_error", "window_of", "unreplaced", "done", "directory", "directory_at", "account", "contact", "changing", REVOKED)
NONSENSE = {
    "nothing": b"", "nested": b"[" * 100000, "nested tables": b'{"a":' * 100000, "no UTF-8": b"\xff\xfe\x00", "no JSON": b"{", "a list": b"[1, 2]",
    "a number": b"1e999", "a text": b'"x"', "null": b"null", "digits": b"1" * 60000, "zeros": b"\x00" * 4096, "long": b" " * ((16 << 20) + 1),
    "lines": b"\n" * 5000,
    **{f"{value} everywhere": ("{" + ", ".join(f'"{key}": {value}' for key in TABLES) + "}").encode()
       for value in ("NaN", "Infinity", "-Infinity", "1e308", "-1", "9" * 4000, "true", "null", "[]", "[[[]]]", "{}", '{"count": NaN}', '"\\ud800\\u001b[2J"')},
    "an agenda of infinities": b"NOW CONFIG\na.test inf inf SAME\n", "an agenda of no numbers": b"NOW CONFIG\na.test nan nan SAME\n",
    "an agenda of 2111": b"NOW CONFIG\na.test 4449513600 4449513600 SAME\n", "a budget of 2111": b"4449513600 CA begun a.test\n" * 99,
    "a budget of huge numbers": b"9" * 400 + b" CA failed a.test\n",
}
KINDS = ("a directory", "a full directory", "a link", "a link to nowhere", "a FIFO", "a file that nobody may read", "a temporary directory")


def put(path: str, what: str) -> None:
    """Put nonsense there."""
    if what in NONSENSE:
        text = NONSENSE[what].replace(b"NOW", str(int(time.time())).encode()).replace(b"SAME", posted.identity(request()).encode())
        text = text.replace(b"CONFIG", posted.stamp(site.ETC + "/certdrop.toml").encode())
        with open(path, "wb") as stream:
            stream.write(text.replace(b"CA", budget.Budget(configured(), time.time()).ca.encode()))
    elif what.endswith("directory"):
        place = path if "temporary" not in what else f"{os.path.dirname(path)}/.{os.path.basename(path)}.new"
        os.makedirs(place + ("/x" if "full" in what else ""))
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "a file that nobody may read":
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o000))
    else:
        os.symlink("/nowhere" if "nowhere" in what else "/etc/passwd", path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", [*NONSENSE, *KINDS])
def test_an_honest_run_goes_on(disk, file, what):  # noqa: F811
    """All is read, what is due is due, all is written; and what was written is read again."""
    disk.site("a.test", 3, now=True)
    where = f"{disk.top}/state/issuer/"
    put(where + file, what)
    now = time.time()
    agenda = Agenda(now)
    assert agenda.when(request()) <= now
    task = plan.Task(request(), Options([], False))
    task.decide(now)
    assert task.when <= now or "true everywhere" in what
    plan.show([task], now)
    found = revoke.Revocations([REVOKED])
    found.all[0].is_due(now, False)
    account = Account("https://ca.example.org/dir", [], None)
    assert isinstance(account.known.get("account", ""), str) and isinstance(account.known.get("directory", {}), dict)
    spent = budget.Budget(configured(), now)
    assert spent.refusal(["a.test"], False, now) == ("", 0.0) and spent.since(budget.BEGUN, "a.test", 0.0, now) == []
    # what is written
    task.ledger.forget_failures()
    task.ledger.failed(Failure(VALIDATION, "x"), None, now)
    found.all[0].succeeded(now)
    found.save()
    account.note(account="https://ca.example.org/account/1")
    spent.note(budget.FAILED, "a.test", now)
    plan.finish([task], posted.requests()[0], agenda, 0, 1)
    # and read again
    assert ledger.Ledger("a.test").count == 1 and revoke.Revocations([REVOKED]).all[0].done == int(now)
    assert Account("https://ca.example.org/dir", [], None).known["account"] == "https://ca.example.org/account/1"
    assert Agenda(now).when(request()) > now
    assert budget.Budget(configured(), now + 1).done[budget.FAILED, "a.test"] == [int(now)]
    assert json.loads(notes.read("last-run"))["exit"] == 0


def test_what_cannot_be_read_just_now_is_not_forgotten(disk, monkeypatch):  # noqa: F811
    """No descriptor left is this host's trouble, and no reason to take a ledger for empty."""
    found = ledger.Ledger("a.test")
    found.failed(Failure(VALIDATION, "x"), None, time.time())
    found.save()
    original = os.open

    def none_left(path: str, *arguments: object, **named: object) -> int:
        if path == "a.test.json":
            raise OSError(24, "Too many open files", path)
        return original(path, *arguments, **named)
    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(OSError):
        ledger.Ledger("a.test")


def test_text_in_the_ledger_is_cleaned(disk):  # noqa: F811
    """--plan shows it to whoever sits at a terminal."""
    disk.put("state/issuer/a.test.json", json.dumps({"count": 1, "class": "\x1b[2J", "last_error": "\x1b]0;x\x07" * 9000}))
    found = ledger.Ledger("a.test")
    assert "\x1b" not in found.kind + found.last_error and len(found.last_error) <= ledger.LONGEST and due.DAY == DAY

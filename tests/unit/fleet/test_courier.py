"""What a courier believes of its database: an answer is taken once, if it is one; and root is started for nothing else."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import courier, database, walls
from certdrop.fleet.database import Row, digest
from certdrop.issuer import command
from certdrop.issuer.options import Options
from certdrop.keeper import keys

CHAIN = keys.placeholder(keys.make("ecdsa-p256"), ["a"])[0].decode()


class Link:
    """In the place of a Database: each run finds the next of these answers, and the last one again and again."""

    answers_: list[str] = []

    def __init__(self, _: str) -> None:
        self.found = Link.answers_.pop(0) if len(Link.answers_) > 1 else Link.answers_[0]

    def listen(self, _: str) -> None:
        pass

    def tell(self, _: object) -> None:
        pass

    def post(self, _: object) -> int:
        return 0

    def answers(self) -> dict[Row, str]:
        return {Row("", "a", 3, "csr"): digest(self.found.encode())}

    def answer(self, _: Row) -> bytes:
        return self.found.encode("ascii", "replace")

    def progress(self) -> dict[Row, tuple[str, str]]:
        return {}


@pytest.fixture
def looks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host with one request; how often root was started, in a run of cron's that finds these answers."""
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(site, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(site, "ETC", str(tmp_path / "etc"))
    for entry in ("spool/requests", "spool/replies", "state/issuer", "state/sites", "state/live", "state/keeper", "etc/sites.d"):
        (tmp_path / entry).mkdir(parents=True)
    for kind in ("csr", "sig"):
        (tmp_path / f"spool/requests/a@0003.{kind}").write_text(kind)
    monkeypatch.setattr(courier, "Database", Link)
    monkeypatch.setattr(walls, "shut_in", lambda *_, **__: [])
    monkeypatch.setattr(courier.time, "sleep", lambda _: None)
    monkeypatch.setattr(courier, "_in_child", courier._talk)
    started: list[int] = []

    def look() -> None:
        started.append(1)
        assert len(started) < 50, "without end"
    monkeypatch.setattr(command, "_have_root_look", look)
    machine = database.Machine("host")
    machine.name, machine.database = "web1", "host=x dbname=y"

    def count(*answers: str) -> int:
        started.clear()
        Link.answers_ = list(answers)
        assert courier._run(Options(["--cron"], False), machine) == os.EX_OK
        return len(started)
    return count


@pytest.mark.parametrize("answer", ["", "no chain", "cert \u00e9", CHAIN.replace("M", "\u00e9", 1), CHAIN + "x" * spool.MAX_REPLY, "\n" * 70000, CHAIN * 11])
def test_what_is_no_chain_is_not_taken(looks: Any, answer: str) -> None:
    assert looks(answer) == 0
    assert os.listdir(spool.replies()) == []


def test_an_answer_is_taken_once(looks: Any) -> None:
    assert looks(CHAIN) == 1 and looks(CHAIN) == 0
    assert pathlib.Path(f"{spool.replies()}/a@0003.pem").read_text() == CHAIN


def test_answers_without_end(looks: Any) -> None:
    """Each of them is another, and good: root looks a few times, and then when cron starts the next run."""
    assert looks(*[CHAIN * times for times in (1, 2, 3, 4, 5)] * 20) == courier.MOST_LOOKS

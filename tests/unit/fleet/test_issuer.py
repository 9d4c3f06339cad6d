"""The issuer on a desk: what one host posted, whatever it makes a library raise, is that host's trouble alone. Elsewhere root posted it, and it is a defect."""

from __future__ import annotations

import os
import pathlib
import threading
import types
from typing import Any

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import walls
from certdrop.issuer import command, network, plan, posted, revoke
from certdrop.issuer.options import Options
from certdrop.signer import protocol


class Strange(Exception):
    """As cryptography's own: of none of the kinds that anybody expects."""


@pytest.fixture
def net(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What talks with the CA, on a desk with two hosts' sites; the first raises what is strange."""
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(site, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(site, "ETC", str(tmp_path / "etc"))
    monkeypatch.setattr(protocol, "HOSTS", str(tmp_path / "etc/fleet.d"))
    for entry in ("spool/requests", "spool/replies", "spool/challenges", "state/sites", "state/live", "state/keeper", "state/issuer", "etc/sites.d"):
        (tmp_path / entry).mkdir(parents=True)
    for host in ("web1", "web2"):
        (tmp_path / f"spool/requests/{host}_a@0005.csr").write_text("x")
        (tmp_path / f"spool/requests/{host}_a@0004.revoke").write_text("[" * 16000 if host == "web1" else '{"payload": {}}')
    made = network.Network.__new__(network.Network)
    made.lock, made.down, made.codes, made.in_vain, made._sessions, made._idle = threading.Lock(), None, set(), 0, [], []
    made.config = types.SimpleNamespace(workers=2, directory_url="https://ca.test/dir")             # type: ignore[assignment]
    made.log = types.SimpleNamespace(warning=lambda *_, **__: None, error=lambda *_, **__: None, info=lambda *_, **__: None)
    made.options, made.progress = Options([], False), types.SimpleNamespace(at=lambda *_: None, done=lambda *_: None)          # type: ignore[assignment]
    made._by_our_account = lambda work: work()                 # type: ignore[method-assign]
    made._session = lambda: types.SimpleNamespace(directory=lambda: {"revokeCert": "https://ca/x"}, post=lambda *_, **__: None)    # type: ignore
    return made


def strange(task: Any) -> None:
    if task.name == "web1_a":
        raise Strange("odd")


def test_an_order(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, _, _ = posted.requests()
    tasks = plan.make(Options([], False), listed, 0)
    net._was_cut_off, net._order = lambda _: False, strange
    net._each(tasks, net._try)
    assert [task.ledger.count for task in tasks] == [1, 0] and "Strange: odd" in tasks[0].ledger.last_error
    monkeypatch.setattr(protocol, "HOSTS", "")
    with pytest.raises(Strange):
        net._each(tasks, net._try)


def test_a_revocation(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = revoke.Revocations(posted.requests()[2]).all
    net.carry_out(wanted)
    assert [(one.name, bool(one.done), one.count) for one in wanted] == [("web1_a", False, 1), ("web2_a", True, 0)]
    monkeypatch.setattr(protocol, "HOSTS", "")
    with pytest.raises(RecursionError):
        net.carry_out(wanted)


def test_a_window(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    tasks: list[Any] = []
    for name in ("web1_a", "web2_a"):
        ledger = types.SimpleNamespace(note_no_window=lambda *_, name=name: noted.append(name), note_window=lambda *_: None, window_url="")
        tasks.append(types.SimpleNamespace(name=name, certificate=object(), ledger=ledger))
    monkeypatch.setattr(network, "_identifier", strange)
    net._session = lambda: types.SimpleNamespace(transport=None, directory=lambda: {})
    window = types.SimpleNamespace(start=1, end=2, retry_after=0, url="")
    monkeypatch.setattr(network.ari, "fetch", lambda _, __, identify: (identify(), window)[1])
    net._each(tasks, net._poll)
    assert noted == ["web1_a"]
    monkeypatch.setattr(protocol, "HOSTS", "")
    with pytest.raises(Strange):
        net._each(tasks, net._poll)


def test_a_plan(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, _, _ = posted.requests()
    whole = plan.Task

    def task(request: Any, *rest: Any) -> Any:
        strange(request)
        return whole(request, *rest)
    monkeypatch.setattr(plan, "Task", task)
    assert [one.name for one in plan.make(Options([], False), listed, 0)] == ["web2_a"]
    monkeypatch.setattr(protocol, "HOSTS", "")
    with pytest.raises(Strange):
        plan.make(Options([], False), listed, 0)


def test_a_host_in_a_fleet_without_a_courier(net: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """The package was removed, and somebody kept the file: a line, not a traceback."""
    os.mkdir(f"{site.ETC}/fleet")
    pathlib.Path(f"{site.ETC}/fleet/host.toml").write_text("")
    monkeypatch.setattr(command, "COURIER", f"{site.ETC}/none")
    assert command.main(["--cron"]) == os.EX_CONFIG
    assert "this host is in a fleet, and nobody carries what it wants" in capfd.readouterr().err


def test_what_talks_with_the_database_has_so_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the database answers, it takes no more of the machine's."""
    monkeypatch.setattr(walls.jail, "landlock", lambda *_: None)
    monkeypatch.setattr(walls.syscalls.Filter, "enter", lambda _: None)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            walls.shut_in((), (), ())
            code = 2
            bytearray(walls.MEMORY)
        except MemoryError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""certdrop-watch as a whole: the shut-in reader, the sender, and what they tell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import pytest

from watcher.test_evidence import DAY, World, make_world
from certdrop import events, listening
from certdrop.config import layout
from certdrop.config import site as configuration
from certdrop.walls import jail
from certdrop.watcher import mailer
from certdrop.watcher import command as watch

pytest.importorskip("structlog")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the configuration must be root's")


class Host:
    """A world with a way out: a command that keeps each message in a file."""

    def __init__(self, world: World, place: Path) -> None:
        self.world, self.box, self.place = world, place / "box", place
        self.box.mkdir()
        self.script = place / "way-out"
        self.take()
        self.more: dict[str, object] = {}
        self.logs = place / "logs"

    def take(self) -> None:
        self.script.write_text(f"#!/bin/sh\ncat > {self.box}/$(date +%s%N)\n")
        self.script.chmod(0o755)

    def refuse(self) -> None:
        self.script.write_text("#!/bin/sh\nexit 75\n")

    def run(self) -> int:
        """One run of the watcher."""
        return watch.run(mailer.Route({"via": f"command:{self.script}", **self.more}))

    def mails(self) -> list[str]:
        """All messages so far; the box is empty afterwards."""
        found = []
        for entry in sorted(self.box.iterdir()):
            found.append(entry.read_text())
            entry.unlink()
        return found

    def subjects(self) -> list[str]:
        return [line[9:].split(": ", 1)[1] for mail in self.mails() for line in mail.replace("\n ", " ").splitlines() if line.startswith("Subject: ")]

    def state(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.world.state / "watcher/state.json").read_text())
        return found

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.logs / "watcher.log").read_text().splitlines()]

    def a_day_later(self) -> None:
        """What was mailed was mailed yesterday."""
        state = self.state()
        state["mailed"] = int(time.time()) - DAY
        (self.world.state / "watcher/state.json").write_text(json.dumps(state))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    world = make_world(tmp_path, monkeypatch)
    monkeypatch.setattr(listening, "listeners", lambda: {})
    monkeypatch.setattr(watch, "CONFIRM", 0)
    monkeypatch.setattr(layout, "deviations", lambda: [])
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/watcher.log").touch()
    monkeypatch.setattr(events, "LOGS", str(tmp_path / "logs"))
    world.ran()
    stamp = world.state / "issuer/last-run"
    world.put(stamp, b'{"exit": 0}')
    os.chown(stamp, 4711, 4711)
    found = Host(world, tmp_path)
    world.usual("example.org")
    world.site("example.org", text='probe = "off"\n')
    (world.state / "proven/example.org").unlink()
    return found


def fail(host: Host, count: int = 5) -> None:
    host.world.ledger("example.org", kind="dns", count=count, since=int(time.time()) - 9000, next_try=int(time.time()) + 600, last_error="no such host")


def test_all_well_is_quiet(host: Host) -> None:
    """Nothing is mailed, the run is noted and logged."""
    assert 0 == host.run() and [] == host.mails()
    assert abs(int(str(host.state()["ran"])) - time.time()) < 5
    assert ["looked"] == [line["event"] for line in host.log()]


def test_what_each_run_writes_needs_no_structlog(tmp_path: Path) -> None:
    """Loading it would take a third of a run that finds all well; what it writes has the same form."""
    log = tmp_path / "watcher.log"
    log.touch()
    program = (f"import sys; from certdrop import events; events.LOGS = {str(tmp_path)!r}; from certdrop.watcher import command; "
               "journal = command.log.open_log(); journal.looked(sites=1, problems=0); print('structlog' in sys.modules, 'asyncio' in sys.modules); "
               "journal.info('mailed', kind='new', problems=1, error=''); print('structlog' in sys.modules); "
               "sys.modules['structlog'] = None; journal = command.log.open_log(); journal.warning('mailed', kind='new', problems=1, error='')")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                          stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
    first, by_structlog, without = map(json.loads, log.read_text().splitlines())
    assert list(by_structlog) == list(without) and ["time", "run"] == list(without)[:2]
    assert [*by_structlog.items()][2:] == [*without.items()][2:]
    assert list(first) == ["time", "run", "event", "sites", "problems"]
    assert 1 == len({line["run"].rpartition("-")[2] for line in (first, by_structlog, without)})  # the second at which a log is opened may differ


def test_the_life_of_a_problem(host: Host) -> None:
    """Told when it is new, not again, again after a day, and once when all is well."""
    assert 0 == host.run()
    fail(host)
    assert [0, 0, 0] == [host.run() for _ in range(3)]
    assert ["example.org: renewing keeps failing"] == host.subjects()
    host.a_day_later()
    assert [0, 0] == [host.run(), host.run()]
    assert ["still: example.org: renewing keeps failing"] == host.subjects()
    (host.world.state / "issuer/example.org.json").unlink()
    assert [0, 0] == [host.run(), host.run()]
    assert ["all is well again"] == host.subjects()


def test_one_mail_for_all_sites(host: Host) -> None:
    """Hundreds of sites that fail are one message, once."""
    fail(host)
    for n in range(600):
        host.world.site(f"{'long' * 40}-{n}", text="kay = 1\n")
    assert [0, 0] == [host.run(), host.run()]
    assert 1 == len(host.subjects())


def test_failing_way_out_is_tried_again(host: Host) -> None:
    """What could not be sent is sent by the next run; meanwhile the exit code, the log and the state say so."""
    fail(host)
    host.refuse()
    assert os.EX_TEMPFAIL == host.run()
    assert "ended with 75" in str(host.state()["failed"]) and {} == host.state()["told"]
    assert "mail-failed" in [line["event"] for line in host.log()]
    host.take()
    assert 0 == host.run()
    assert 1 == len(host.mails()) and "" == host.state()["failed"]


def test_silence_is_told(host: Host) -> None:
    """A keeper that has not run for hours is a mail."""
    host.world.ran(ago=5 * 3600)
    assert 0 == host.run()
    assert ["the keeper has not run for 5h"] == host.subjects()


def test_disorder_of_directories_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not as the table of owners and modes says is a mail, with the command that mends it."""
    monkeypatch.setattr(layout, "deviations", lambda: ["/var/lib/certdrop: has mode 0777; mend with chmod 0755 /var/lib/certdrop"])
    assert 0 == host.run()
    assert "mend with chmod 0755 /var/lib/certdrop" in host.mails()[0]


def test_log_tail_is_in_the_mail(host: Host) -> None:
    """The last lines of the issuer's log are quoted, cleaned; a log that is no file is left alone."""
    (host.logs / "issuer.log").write_text("old\n" * 5000 + '{"event": "failed", "error": "\x1b[2Jno such host"}\n')
    os.mkfifo(host.logs / "keeper.log")
    fail(host)
    assert 0 == host.run()
    mail = host.mails()[0]
    assert '"error": "\\x1b[2Jno such host"' in mail and "keeper.log" not in mail


@pytest.mark.parametrize("well", [True, False])
def test_heartbeat_only_when_all_is_well(host: Host, well: bool) -> None:
    """The URL is fetched if there is no problem, and not otherwise."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        seen.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        connection.close()
    threading.Thread(target=serve, daemon=True).start()
    host.more["heartbeat"] = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    if not well:
        fail(host)
    assert 0 == host.run()
    listener.close()
    assert well == bool(seen)


def test_hostile_state_is_survived(host: Host) -> None:
    """FIFO, links, deep JSON and foreign files in the issuer's place end in a mail about them, not in a hang or a crash."""
    issuer = host.world.state / "issuer"
    os.mkfifo(issuer / "example.org.json")
    (issuer / "last-run").unlink()
    os.mkfifo(issuer / "last-run")
    begin = time.monotonic()
    assert 0 == host.run()
    assert time.monotonic() - begin < 10
    assert "cannot be used" in host.mails()[0]


def inside(host: Host, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[], object]) -> str:
    """Try something in the shut-in reader; how it ended."""
    result = host.world.state / "watcher/result"

    def look(*_: object) -> list[object]:
        try:
            attempt()
            said = "done"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        result.write_text(said)
        return []
    monkeypatch.setattr(watch, "look_twice", look)
    host.run()
    return result.read_text()


@pytest.mark.skipif(jail.landlock_abi() < 1, reason="this kernel has no Landlock")
@pytest.mark.parametrize("attempt", [
    lambda: open(configuration.ETC + "/smtp-password"), lambda: open("/etc/passwd"), lambda: os.listdir("/home"), lambda: open("/tmp/certdrop-test", "w"),
    lambda: os.execv("/bin/true", ["true"])], ids=["password", "passwd", "home", "write", "exec"])
def test_reader_is_shut_in(host: Host, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[], object]) -> None:
    """Code inside the reader, as root even, reads no other file, writes nowhere else and starts nothing."""
    (host.world.etc / "smtp-password").write_text("secret")
    assert inside(host, monkeypatch, attempt).startswith("PermissionError")


@pytest.mark.skipif(jail.landlock_abi() < 4, reason="this kernel's Landlock knows no ports")
def test_reader_connects_nowhere_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that no service listens on for TLS cannot be reached."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        assert inside(host, monkeypatch, lambda: socket.create_connection(address)).startswith("PermissionError")


@pytest.mark.parametrize("manner", ["dies", "lies", "floods", "hangs"])
def test_reader_that_does_not_end_well_is_told(host: Host, monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    """A reader that dies, talks nonsense, floods the pipe or hangs is a mail of the sender's own, once a day, and exit 70."""
    monkeypatch.setattr(watch, "TIME", 2)

    def read_and_write(pipes: tuple[int, int], _: mailer.Route) -> int:
        if manner == "dies":
            os.kill(os.getpid(), 9)
        if manner == "lies":
            watch.transmit(pipes[1], {"do": "exec"})
        if manner == "floods":
            try:
                os.write(pipes[1], b"x" * 10_000_000)
            except OSError:
                pass
        if manner == "hangs":
            time.sleep(60)
        return 0
    monkeypatch.setattr(watch, "read_and_write", read_and_write)
    assert [os.EX_SOFTWARE] * 2 == [host.run(), host.run()]
    assert ["nobody watches the certificates"] == host.subjects()


def test_reader_can_send_one_mail_only(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that was taken over does not send a hundred mails, nor any to others."""
    def read_and_write(pipes: tuple[int, int], _: mailer.Route) -> int:
        for _n in range(100):
            watch.ask(pipes, {"do": "mail", "subject": "a\r\nTo: x@example.org", "body": "b" * 60000, "to": "x@example.org"})
        return 0
    monkeypatch.setattr(watch, "read_and_write", read_and_write)
    assert os.EX_SOFTWARE == host.run()
    mails = host.mails()
    assert 2 == len(mails)                     # its one, and the sender's own about it
    assert all("\nTo: root\n" in mail and "\nTo: x" not in mail for mail in mails)


def test_full_log_does_not_fail_a_run(host: Host) -> None:
    """A log that cannot be written changes nothing."""
    (host.logs / "watcher.log").unlink()
    (host.logs / "watcher.log").symlink_to("/dev/full")
    fail(host)
    assert 0 == host.run() and 1 == len(host.mails())


def test_test_says_where_it_went(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """--test sends one now, and says how."""
    assert 0 == watch.send_test(mailer.Route({"via": f"command:{host.script}"}))
    assert f"handed over for root by {host.script}" in capsys.readouterr().out and 1 == len(host.mails())


def test_test_says_that_it_went_nowhere(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where no terminal is: who asks is told."""
    assert os.EX_TEMPFAIL == watch.send_test(mailer.Route({"via": "command:/nowhere"}))
    assert "/nowhere is not there" in capsys.readouterr().err


@pytest.mark.parametrize("argv, code", [(["--frobnicate"], 64), (["--test", "x"], 64)])
def test_usage(argv: list[str], code: int) -> None:
    """A command line that is not understood is 64."""
    assert code == watch.main(argv)


def test_a_reader_that_nobody_can_kill(monkeypatch, tmp_path):
    """Hangs in the kernel: the sender waits for the pipe alone, and tells that nobody watches."""
    import os
    import signal
    import time
    os.mkdir(tmp_path / "watcher")
    monkeypatch.setattr(watch.configuration, "STATE", str(tmp_path))
    monkeypatch.setattr(watch, "TIME", 0.3)
    monkeypatch.setattr(watch, "GRACE", 0.3)
    monkeypatch.setattr(watch, "read_and_write", lambda *_: time.sleep(60))
    told, hanging, kill = [], [], os.kill
    monkeypatch.setattr(watch.os, "kill", lambda process, _: hanging.append(process))
    monkeypatch.setattr(watch.mailer, "deliver", lambda _, subject, body: told.append(subject + body))
    monkeypatch.setattr(watch.log, "open_log", lambda: type("Log", (), {"warning": lambda *_, **__: None})())
    route = type("Route", (), {"host": "host.example", "name": "host.example"})()
    begin = time.monotonic()
    assert watch.run(route) == os.EX_SOFTWARE
    assert time.monotonic() - begin < 10
    kill(hanging[0], signal.SIGKILL)
    os.waitpid(hanging[0], 0)
    assert len(told) == 1 and "nobody watches" in told[0] and "hangs, and cannot be killed" in told[0]

"""The fleet's database by itself: two desks share the work, leases end by its clock, and a host has its own rows. Roles log in without TLS here."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
import sys
import threading
from typing import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT / "tests" / "stage"), "/usr/lib/python3/dist-packages"]

import world as stage  # noqa: E402
from certdrop.fleet import command, database  # noqa: E402
from certdrop.fleet.database import Away, Database, Row  # noqa: E402
from fleet import Postgres  # noqa: E402

PORT = 5499
HOSTS = ["web1", "web2", "web3"]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with the schema, three hosts and two desks."""
    made = Postgres("alone", PORT)
    made.make()
    stage.write(f"{made.data}/pg_hba.conf", "local all postgres peer\nhost certdrop all 127.0.0.1/32 trust\n", 0o600)
    shutil.chown(f"{made.data}/pg_hba.conf", "postgres", "postgres")
    made.start()
    made.psql("CREATE DATABASE certdrop", "postgres")
    schema = (ROOT / "share/fleet/schema.sql").read_text()
    made.psql(schema)
    made.psql(schema)
    for name in ("web1", "web2", "web3"):
        made.psql(command.enrolling(name, "host", 30))
    for name in ("desk1", "desk2"):
        made.psql(command.enrolling(name, "desk", 30))
    yield made
    made.stop()


OPEN: "list[Database]" = []


@pytest.fixture(autouse=True)
def empty(server: Postgres) -> Iterator[None]:
    server.psql("DELETE FROM certdrop.request; DELETE FROM certdrop.state; UPDATE certdrop.machine SET seen = NULL, knows = '{}'")
    yield
    while OPEN:
        OPEN.pop().connection.close()
    stage.wait_for(lambda: server.psql("SELECT count(*) FROM pg_stat_activity WHERE usename ~ '^(web|desk)'") == "0", 10, "connections to end")


def connect(name: str) -> Database:
    OPEN.append(Database(f"host=127.0.0.1 port={PORT} dbname=certdrop user={name}"))
    return OPEN[-1]


def wanted(*names: str, number: int = 2, now: str = "") -> "dict[Row, tuple[str, str, str]]":
    return {Row("", name, number, "csr"): (f"csr of {name}", "sig", now) for name in names}


def test_what_a_host_posts_stands_there(server: Postgres) -> None:
    """And what it does not post any more goes, with all that hangs on it; nothing changes where nothing did."""
    host = connect("web1")
    assert host.post(wanted("a", "b")) == 2 and host.post(wanted("a", "b")) == 0
    assert host.post(wanted("a", "b", now="n")) == 2
    assert host.post(wanted("b", number=3)) == 3
    assert server.psql("SELECT host, name, number, now FROM certdrop.request") == "web1|b|3|"
    assert server.psql("SELECT count(*) FROM certdrop.work") == "1"


def test_two_desks_share_the_work(server: Postgres) -> None:
    """Each has its part, all of it is had, nothing twice; also where both take at once. What comes again comes to the same one."""
    def take(names: "dict[str, str]") -> "list[set[Row]]":
        for host, some in names.items():
            connect(host).post(wanted(*some))
        for _ in range(3):
            threads = [threading.Thread(target=desk.take, args=([], HOSTS)) for desk in desks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return [set(desk.held()) for desk in desks]
    desks = [connect("desk1"), connect("desk2")]
    for desk in desks:
        desk.ask("SELECT here(%s)", HOSTS)
    names = {"web1": "abcdefghij", "web2": "klmnopqrst"}
    held = take(names)
    assert len(held[0] | held[1]) == 20 and not held[0] & held[1]
    assert min(map(len, held)) > 3
    server.psql("DELETE FROM certdrop.request")
    assert take(names) == held


def test_what_one_held_that_died_another_takes(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its lease has ended and it is silent, by the server's clock, and not before; also not where the other has only just come."""
    connect("web1").post(wanted("a", "b", "c", "d"))
    first, second = connect("desk1"), connect("desk2")
    first.take([], HOSTS)
    second.take([], HOSTS)
    assert len(first.held()) == 4 and not second.held()
    server.psql("UPDATE certdrop.machine SET seen = now() - interval '1 hour' WHERE name = 'desk1'")
    monkeypatch.setattr(database, "SILENT", 0)
    second.take([], HOSTS)
    assert not second.held(), "it has its lease"
    monkeypatch.undo()
    server.psql("UPDATE certdrop.work SET until = now() - interval '1 second'")
    second.take([], HOSTS)
    assert len(second.held()) < 4, "it may come back"
    monkeypatch.setattr(database, "SILENT", 0)
    second.take([], HOSTS)
    assert len(second.held()) == 4 and not first.held()
    with pytest.raises(Away, match="row-level security"):
        first.reply(Row("web1", "a", 2, "csr"), 1, b"late")


def test_what_somebody_waits_for_is_taken_soon(server: Postgres) -> None:
    """By whichever desk comes, if the one whose it is does not."""
    first, second = connect("desk1"), connect("desk2")
    second.ask("SELECT here(%s)", HOSTS)
    connect("web1").post(wanted(*"abcdefgh"))
    first.take([], HOSTS)
    mine = set(first.held())
    assert 0 < len(mine) < 8
    connect("web1").post(wanted(*"abcdefgh", now="n"))
    first.take([], HOSTS)
    assert set(first.held()) == mine
    server.psql("UPDATE certdrop.request SET posted = now() - interval '1 minute'")
    first.take([], HOSTS)
    assert len(first.held()) == 8


def test_a_desk_takes_for_whom_it_believes(server: Postgres) -> None:
    """What a host wants that only the other desk believes waits for that one; what it does not believe any more it gives back; and what is another's, when
    that one is there."""
    first, second = connect("desk1"), connect("desk2")
    for host in HOSTS:
        connect(host).post(wanted(*"abcdefgh"))
    first.take([], ["web1", "web2"])
    assert len(first.held()) == 16
    for _ in range(2):
        second.take([], ["web2"])
        first.take([row for row in first.held() if row.name == "a"], ["web1", "web2"])
    assert [row.host for row in first.held()].count("web1") == 8
    counts = [[row.host for row in desk.held()].count("web2") for desk in (first, second)]
    assert sum(counts) == 8 and min(counts) > 0 and Row("web2", "a", 2, "csr") in first.held()
    assert server.psql("SELECT count(*) FROM certdrop.work WHERE host = 'web3' AND desk = ''") == "8"
    second.take([], ["web3"])
    first.take([], ["web1", "web2"])
    assert {row.host for row in second.held()} == {"web3"} and len(first.held()) == 16


def test_answers(server: Postgres) -> None:
    """The newest counts; only who holds the work answers; and the host is told."""
    host, desk = connect("web1"), connect("desk1")
    host.post(wanted("a"))
    host.listen("certdrop_host_web1")
    desk.take([], HOSTS)
    row = Row("web1", "a", 2, "csr")
    assert host.wait(5.0), "taken"
    desk.reply(row, 1, b"first")
    desk.reply(row, 2, b"second")
    desk.say(row, '{"count": 1}')
    assert host.wait(5.0)
    mine = row._replace(host="")
    assert host.answers() == {mine: database.digest(b"second")} and host.answer(mine) == b"second"
    assert host.progress() == {mine: ("desk1", '{"count": 1}')} and desk.last_answer(row) == database.digest(b"second")
    assert connect("web2").answers() == {} and connect("web2").progress() == {}


def test_what_was_answered_before(server: Postgres) -> None:
    """Each desk learns of it beside the next request of that site, whoever answered: the newest four, and no other site's. It is no host's to see."""
    host, first, second = connect("web1"), connect("desk1"), connect("desk2")
    for number in range(2, 8):
        host.post(wanted("a", "b", number=number))
        first.take([], HOSTS)
        if number < 7:
            first.reply(Row("web1", "a", number, "csr"), 1, b"chain")
            first.reply(Row("web1", "a", number, "csr"), 2, b"another")
    found = second.request(Row("web1", "a", 7, "csr"))
    assert found and json.loads(found[3]) == [[number, "csr of a", "sig"] for number in range(3, 7)]
    assert (second.request(Row("web1", "b", 7, "csr")) or ())[3:] == ("[]",)
    assert host.ask("SELECT count(*) FROM past") == [(0,)]
    with pytest.raises(Away, match="permission denied"):
        first.ask("DELETE FROM past")


def test_the_desk_is_told(server: Postgres) -> None:
    desk = connect("desk1")
    desk.listen("certdrop_desk")
    assert not desk.wait(0.0)
    connect("web1").post(wanted("a"))
    assert desk.wait(5.0)


def test_a_flood(server: Postgres) -> None:
    """One host's quota is its own; what it had stands, and others go on."""
    host = connect("web1")
    with pytest.raises(Away, match="quota of web1"):
        host.post(wanted(*(f"a{number}" for number in range(50))))
    assert server.psql("SELECT count(*) FROM certdrop.request") == "30"
    assert connect("web2").post(wanted("b")) == 1
    connect("web1")
    connect("web1")
    with pytest.raises(Away, match="too many connections"):
        connect("web1")


def test_a_transaction_that_stays_open(server: Postgres) -> None:
    """What one host holds locked, desks pass over, soon; what another wants goes its way."""
    row, other = Row("web1", "a", 2, "csr"), Row("web2", "b", 2, "csr")
    busy, desk, second = connect("web1"), connect("desk1"), connect("desk2")
    busy.post(wanted("a", "c"))
    desk.take([row], HOSTS)
    assert row in desk.held()
    connect("web2").post(wanted("b"))
    busy.ask("SET idle_in_transaction_session_timeout = 0")
    busy.ask("BEGIN")
    busy.ask("SELECT forget_request('a', 2, 'csr')")
    busy.ask("SELECT FROM request FOR UPDATE")
    busy.ask("UPDATE request SET now = 'x'")
    desk.take([row], HOSTS)
    second.take([], HOSTS)
    assert {other} <= set(desk.held()) | set(second.held())
    holder = desk if other in desk.held() else second
    holder.reply(other, 1, b"chain")
    holder.say(other, "{}")
    for deed in (lambda: desk.reply(row, 1, b"chain"), lambda: desk.say(row, "{}")):
        with pytest.raises(Away, match="lock timeout") as found:
            deed()
        assert not found.value.is_over
    assert connect("web2").answers()
    busy.ask("ROLLBACK")
    desk.take([row], HOSTS)
    desk.reply(row, 1, b"chain")


def test_an_idle_transaction_ends(server: Postgres) -> None:
    """As the role is enrolled. A host that is bad can set that back, and is passed over all the same."""
    assert {"idle_in_transaction_session_timeout=10s", "lock_timeout=2s", "temp_file_limit=16MB"} <= set(
        server.psql("SELECT unnest(setconfig) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname = 'web1'").split())
    assert connect("web1").ask("SHOW idle_in_transaction_session_timeout") == [("10s",)]


def test_who_was_enrolled_before_gets_what_is_new(server: Postgres) -> None:
    """With the schema, which is run again after an upgrade. Who is being withdrawn does not get the right to log in back."""
    server.psql("ALTER ROLE web3 RESET ALL; ALTER ROLE web3 CONNECTION LIMIT -1 NOLOGIN")
    server.psql((ROOT / "share/fleet/schema.sql").read_text())
    assert server.psql("SELECT rolconnlimit, rolcanlogin, rolconfig FROM pg_roles WHERE rolname = 'web3'") == (
        "3|f|{temp_file_limit=16MB,idle_in_transaction_session_timeout=10s,lock_timeout=2s}")
    server.psql(command.enrolling("web3", "host", 30))
    assert connect("web3").ask("SHOW lock_timeout") == [("2s",)]


def test_a_connection_whose_role_is_gone(server: Postgres) -> None:
    """One that logged in while its role was being removed is seen, and ended, when that is done; others stay."""
    server.psql(command.enrolling("web8", "host", 30))
    host, other = connect("web8"), connect("web2")
    server.psql("DELETE FROM certdrop.machine WHERE name = 'web8'; DROP ROLE web8")
    server.psql(command.orphans())
    for _ in itertools.repeat(None, 2):
        with pytest.raises(Away):
            host.ask("SELECT 1")
    assert other.ask("SELECT 1") == [(1,)]


DEEDS = {
    "INSERT INTO request (name, number, kind, body, sig, host) VALUES ('a', 1, 'csr', '', '', 'web2')": "permission denied",
    "INSERT INTO reply (host, name, number, answer, chain) VALUES ('web1', 'a', 1, 1, '')": "permission denied",
    "UPDATE work SET desk = 'web1'": "permission denied",
    "UPDATE machine SET quota = 100000": "permission denied",
    "UPDATE machine SET seen = 'infinity'": "permission denied",
    "SELECT here('{web1}'::text[])": "permission denied",
    "DELETE FROM request": "permission denied",
    "DELETE FROM state": "permission denied",
    "BEGIN; LOCK TABLE request": "permission denied",
    "BEGIN; LOCK TABLE state IN SHARE MODE": "permission denied",
    "BEGIN; LOCK TABLE work IN EXCLUSIVE MODE": "permission denied",
    "BEGIN; LOCK TABLE reply IN ROW EXCLUSIVE MODE": "permission denied",
    "BEGIN; LOCK TABLE machine": "permission denied",
    "SELECT FROM work FOR UPDATE": "permission denied",
    "SELECT FROM machine FOR UPDATE": "permission denied",
    "SET temp_file_limit = -1": "permission denied",
    "SELECT certdrop.posting()": "permission denied",
    "UPDATE request SET body = ''": "permission denied",
    "INSERT INTO request (name, number, kind, body, sig) VALUES ('../a', 1, 'csr', '', '')": "check constraint",
    "INSERT INTO request (name, number, kind, body, sig) VALUES ('a', 1, 'csr', repeat('x', 20000), '')": "check constraint",
    "INSERT INTO state (name, body) VALUES ('a', repeat('x', 70000))": "check constraint",
    "CREATE TABLE mine (x int)": "permission denied",
    "CREATE TEMP TABLE mine (x int)": "permission denied",
    "CREATE TABLE public.mine (x int)": "permission denied",
    "SELECT lo_create(0)": "permission denied",
    "SELECT pg_sleep(1)": "permission denied",
    "SELECT pg_notify('certdrop_desk', '')": "permission denied",
    "SELECT pg_advisory_lock(1)": "permission denied",
    "SELECT pg_logical_emit_message(false, 'a', 'b')": "permission denied",
    "DO $$ BEGIN END $$": "permission denied",
    "SELECT pg_read_file('/etc/passwd')": "permission denied",
    "COPY state TO PROGRAM 'id'": "pg_execute_server_program",
    "SELECT certdrop.posted()": "permission denied",
    "TRUNCATE request": "permission denied",
    "SET ROLE desk1": "permission denied",
    "SET SESSION AUTHORIZATION desk1": "permission denied",
    "ALTER TABLE request DISABLE ROW LEVEL SECURITY": "must be owner",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_a_host_may_not(server: Postgres, deed: str) -> None:
    with pytest.raises(Away, match=DEEDS[deed]):
        connect("web1").ask(deed)


@pytest.mark.parametrize("deed", ["DELETE FROM request", "INSERT INTO request (name, number, kind, body, sig) VALUES ('a', 1, 'csr', '', '')",
                                  "UPDATE request SET now = 'x'", "UPDATE reply SET chain = ''", "DELETE FROM reply", "DELETE FROM work",
                                  "UPDATE state SET body = ''", "INSERT INTO machine VALUES ('x', 'host')", "SET ROLE web1",
                                  "SELECT forget_request('a', 1, 'csr')", "SELECT forget_state('a')"])
def test_what_a_desk_may_not(server: Postgres, deed: str) -> None:
    connect("web1").post(wanted("a"))
    with pytest.raises(Away, match="permission denied"):
        connect("desk1").ask(deed)


def test_rows_of_others_are_not_there(server: Postgres) -> None:
    """For reading, changing, and taking away."""
    connect("web2").post(wanted("a"))
    connect("web2").tell({"a": "{}"})
    host = connect("web1")
    for table in ("request", "state", "work", "reply", "past"):
        assert host.ask(f"SELECT count(*) FROM {table}") == [(0,)]
    assert host.ask("SELECT name FROM machine") == [("web1",)]
    host.ask("SELECT forget_request('a', 2, 'csr'), forget_state('a'), here()")
    host.ask("UPDATE request SET now = 'x'")
    host.ask("UPDATE state SET body = 'x'")
    assert server.psql("SELECT (SELECT count(*) FROM certdrop.request), (SELECT count(*) FROM certdrop.state),"
                       " (SELECT count(*) FROM certdrop.machine WHERE seen IS NOT NULL AND name <> 'web2')") == "1|1|1"


def test_who_is_withdrawn(server: Postgres) -> None:
    """Its connections end, its rows are gone, and it does not come back; what it had is listed. A name that another has is refused."""
    server.psql(command.enrolling("web9", "host", 30))
    host, busy = connect("web9"), connect("web9")
    host.post(wanted("a"))
    host.tell({"a": json.dumps({"cert": {"not_after": 1800000000, "sha256": "a" * 64}, "chain": "x" * 60000}), "b": "no json", "c": "{" * 60000,
               "d": '{"cert": {"sha256": "\x1b[2J"}}', "e": '{"cert": {"\\u0000\\": 1}}', "f": '"cert": {' + "\\" * 50000})
    busy.ask("BEGIN")
    busy.ask("SELECT forget_request('a', 2, 'csr')")
    busy.ask("SELECT FROM state FOR UPDATE")
    server.psql(command.shutting("web9"))
    with pytest.raises(Away, match="not permitted to log in"):
        connect("web9")
    server.psql(command.ending("web9"))
    assert command.listed(server.psql(command.listing("web9"))) == [f"a  {'a' * 64}  2027-01-15T08:00:00Z"]
    server.psql(command.withdrawing("web9"))
    assert server.psql("SELECT count(*) FROM certdrop.state WHERE host = 'web9'") == "0"
    for _ in itertools.repeat(None, 2):
        with pytest.raises(Away):
            host.answers()
    with pytest.raises(Away, match="does not exist"):
        connect("web9")
    with pytest.raises(stage.WorldError, match="there is a role desk1 already"):
        server.psql(command.enrolling("desk1", "host", 30))

"""The fleet's database, as a machine of the fleet sees it: who it is, how it gets there, and the statements of hosts and desks.

Runs as: _certdrop, shut in. Trusts: nothing that comes from there, but its form. Reads: /etc/certdrop/fleet. Sources: libpq's connection parameters;
psycopg2, which is loaded here alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import select
from collections.abc import Iterable
from typing import Any, NamedTuple

from certdrop import events, spool
from certdrop.config import site
from certdrop.fleet import members

PATIENCE = 10                      # seconds to connect, for each address
LONGEST = 60                       # seconds for a statement
LOCKED = 2                         # seconds for a row that another connection holds
MOST = 16384                       # bytes of a request
MOST_STATE = 65536
LEASE = 900                        # seconds that a desk has a request without saying so again: cron starts one that ended again before that
SILENT = 120                       # seconds without a word from a desk, after which another takes what is its
URGENT = 30                        # seconds after which any desk takes what somebody waits for
PORT = 5432
_PLACE = re.compile(r"((host|hostaddr|port|dbname)=[A-Za-z0-9.,:_-]+( |$))+")


# The desk that a site belongs to, of those that believe its host; and for how many seconds it has been silent. A desk that has just come cannot know that:
# after a failover, or where yesterday's database was restored, the others come in the same minute.
DESKS = ("WITH desks AS MATERIALIZED (SELECT name, knows, extract(epoch FROM now() - greatest(seen, (SELECT backend_start FROM pg_stat_activity"
         " WHERE pid = pg_backend_pid()))) AS silent FROM machine WHERE kind = 'desk')")
OWNER = ("CROSS JOIN LATERAL (SELECT d.name, d.silent FROM desks d WHERE w.host = ANY (d.knows) OR d.name = session_user"
         " ORDER BY w.host = ANY (d.knows) DESC, md5(concat_ws('/', d.name, w.host, w.name)) LIMIT 1) owner")


class Away(Exception):
    """The database cannot be reached, or does not do what is asked; the text says why. `is_over`: the connection has ended."""

    def __init__(self, text: str, is_over: bool = False) -> None:
        super().__init__(text)
        self.is_over = is_over


class Machine:
    """Who this machine is, in one of its roles."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = ""
        self.database = ""                     # where the database is: host, port and dbname, as libpq has them

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports to connect to; and the DNS's."""
        found = re.search(r"port=([0-9,]+)", self.database)
        return (53, *(int(port) for port in found[1].split(",") if port)) if found else (53, PORT)

    @property
    def info(self) -> str:
        """libpq's parameters: of several hosts, the one that can be written to."""
        place = f"{site.ETC}/fleet"
        return (f"{self.database} user={self.name} sslmode=verify-full sslrootcert={place}/ca.pem sslcert={place}/{self.kind}.pem "
                f"sslkey={place}/{self.kind}.key connect_timeout={PATIENCE} target_session_attrs=read-write application_name=certdrop "
                f"keepalives_idle=20 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=30000 gssencmode=disable passfile={place}/none")


def is_place(text: str) -> bool:
    """Whether it says where a database is."""
    return bool(_PLACE.fullmatch(text)) and "host" in text and "dbname=" in text


def machine(kind: str) -> Machine:
    """This machine as a "host" or a "desk". Raises site.ConfigMissing where it is none, site.ConfigError."""
    path, found = f"{site.ETC}/fleet/{kind}.toml", Machine(kind)
    site.fill(path, found, {"name": "name", "database": "database"})
    if not members.is_name(found.name) or not is_place(found.database):
        raise site.ConfigError(f'{path}: give name and database = "host=... dbname=...", as certdrop-fleet join writes them')
    return found


class Row(NamedTuple):
    """A request, by what it is known by."""

    host: str
    name: str
    number: int
    kind: str


class Database:
    """A connection. Whatever is asked raises Away where it fails."""

    def __init__(self, info: str) -> None:
        import psycopg2  # type: ignore
        self._error = psycopg2.Error
        try:
            self.connection = psycopg2.connect(info)
            self.connection.autocommit = True
            self._cursor = self.connection.cursor()
            self.ask("SET search_path = certdrop, pg_catalog")
            self.ask(f"SET statement_timeout = {LONGEST * 1000}")
            self.ask(f"SET lock_timeout = {LOCKED * 1000}")
        except psycopg2.Error as error:
            raise Away(_plainly(error)) from error

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """A statement's rows."""
        try:
            self._cursor.execute(statement, values or None)
            return list(self._cursor.fetchall()) if self._cursor.description else []
        except self._error as error:
            raise Away(_plainly(error), bool(self.connection.closed)) from error

    @property
    def where(self) -> str:
        """The host that it is connected to."""
        return events.clean(self.connection.info.host or "", 100)

    def listen(self, channel: str) -> None:
        """Be told of changes."""
        self.ask(f'LISTEN "{channel}"')

    def wait(self, seconds: float, *others: int) -> bool:
        """Whether it was told of a change within this time, or one of the other descriptors can be read."""
        if self.connection.notifies:
            self.connection.notifies.clear()
            return True
        ready = select.select([self.connection.fileno(), *others], [], [], max(0.0, seconds))[0]
        try:
            self.connection.poll()
        except self._error as error:
            raise Away(_plainly(error)) from error
        told = bool(self.connection.notifies) or any(fd in ready for fd in others)
        self.connection.notifies.clear()
        return told

    # ---- what a host does

    def post(self, wanted: dict[Row, tuple[str, str, str]]) -> int:
        """Have just these requests stand there: (body, signature, signature for now) of each; how many changed. One that is refused holds up none."""
        known = {Row("", *row[:3]): row[3:] for row in self.ask("SELECT name, number, kind, md5(body || sig), now FROM request")}
        changed, refusal = 0, None
        for row in known:
            if row not in wanted or known[row][0] != _md5("".join(wanted[row][:2])):
                self.ask("SELECT forget_request(%s, %s, %s)", *row[1:])
                changed += 1
        for row, (body, sig, now) in wanted.items():
            is_there = row in known and known[row][0] == _md5(body + sig)
            try:
                if not is_there:
                    self.ask("INSERT INTO request (name, number, kind, body, sig, now) VALUES (%s, %s, %s, %s, %s, %s)", *row[1:], body, sig, now)
                elif known[row][1] != now:
                    self.ask("UPDATE request SET now = %s WHERE name = %s AND number = %s AND kind = %s", now, *row[1:])
                changed += not is_there or known[row][1] != now
            except Away as away:
                refusal = away
        if refusal:
            raise refusal
        return changed

    def tell(self, states: dict[str, str]) -> None:
        """Have just these states stand there."""
        known = {str(row[0]): str(row[1]) for row in self.ask("SELECT name, md5(body) FROM state")}
        for name in set(known) - set(states):
            self.ask("SELECT forget_state(%s)", name)
        for name, body in states.items():
            if name not in known:
                self.ask("INSERT INTO state (name, body) VALUES (%s, %s)", name, body)
            elif known[name] != _md5(body):
                self.ask("UPDATE state SET body = %s WHERE name = %s", body, name)
        self.ask("SELECT here()")

    def answers(self) -> dict[Row, str]:
        """Which requests have an answer: how the newest is known (MD5)."""
        rows = self.ask("SELECT DISTINCT ON (name, number, kind) name, number, kind, md5(chain) FROM reply ORDER BY name, number, kind, answer DESC")
        return {Row("", row[0], row[1], row[2]): row[3] for row in rows}

    def answer(self, row: Row) -> bytes:
        """The newest answer; nothing where there is none any more."""
        found = self.ask("SELECT chain FROM reply WHERE name = %s AND number = %s AND kind = %s ORDER BY answer DESC LIMIT 1", *row[1:])
        return str(found[0][0]).encode("ascii", "replace") if found else b""

    def progress(self) -> dict[Row, tuple[str, str]]:
        """(which desk has it, what that says) of each request."""
        return {Row("", row[0], row[1], row[2]): (str(row[3]), str(row[4])) for row in self.ask("SELECT name, number, kind, desk, said FROM work")}

    # ---- what a desk does

    def take(self, kept: Iterable[Row], hosts: list[str]) -> None:
        """Say again what this desk has, by the server's clock; take what nobody has; and give back what is another's, but for what is `kept`.

        Only of the `hosts` that it believes. Where several desks believe one, each site has a desk of its own among them, by a hash: so what comes again,
        after the database lost it, comes to the desk that has the reply. What is another's it takes when that one is silent, and what somebody waits for
        soon."""
        self.ask("SELECT here(%s::text[])", hosts)
        self.ask("UPDATE work SET until = now() + %s * interval '1 second' WHERE (host, name, number, kind) IN"
                 " (SELECT host, name, number, kind FROM work WHERE desk = session_user AND host = ANY (%s) FOR UPDATE SKIP LOCKED)", LEASE, hosts)
        self.ask(f"{DESKS} UPDATE work SET desk = '', until = '-infinity' WHERE desk = session_user AND (host, name, number, kind) IN"
                 f" (SELECT w.host, w.name, w.number, w.kind FROM work w JOIN request r USING (host, name, number, kind) {OWNER}"
                 " WHERE w.desk = session_user AND (w.host <> ALL (%s) OR (owner.name <> session_user AND owner.silent < %s AND r.now = ''"
                 " AND concat_ws('/', w.host, w.name, w.number, w.kind) <> ALL (%s))) FOR UPDATE OF w SKIP LOCKED)",
                 hosts, SILENT, ["/".join(map(str, row)) for row in kept])
        self.ask(f"{DESKS} UPDATE work SET desk = session_user, until = now() + %s * interval '1 second' WHERE (host, name, number, kind) IN"
                 f" (SELECT w.host, w.name, w.number, w.kind FROM work w JOIN request r USING (host, name, number, kind) {OWNER}"
                 " WHERE (w.desk = '' OR w.until < now()) AND w.desk <> session_user AND w.host = ANY (%s) AND (owner.name = session_user"
                 " OR owner.silent >= %s OR (r.now <> '' AND r.posted < now() - %s * interval '1 second')) FOR UPDATE OF w SKIP LOCKED)",
                 LEASE, hosts, SILENT, URGENT)

    def held(self) -> dict[Row, tuple[str, int]]:
        """What this desk has: how each is known (MD5; another where it was posted anew), and how many answers there are."""
        rows = self.ask("SELECT host, name, number, kind, md5(body || sig || now || posted),"
                        " (SELECT count(*) FROM reply r WHERE (r.host, r.name, r.number, r.kind) = (w.host, w.name, w.number, w.kind))"
                        " FROM work w JOIN request USING (host, name, number, kind) WHERE w.desk = session_user")
        return {Row(*row[:4]): (row[4], int(row[5])) for row in rows}

    def request(self, row: Row) -> tuple[str, str, str, str] | None:
        """(body, signature, signature for now, what was answered before of this site: JSON, a list of number, body and signature)."""
        found = self.ask("SELECT body, sig, now, (SELECT coalesce(json_agg(json_build_array(p.number, p.body, p.sig) ORDER BY p.number), '[]')::text"
                         " FROM past p WHERE (p.host, p.name) = (r.host, r.name) AND p.number <> r.number)"
                         " FROM request r WHERE (host, name, number, kind) = (%s, %s, %s, %s)", *row)
        return (str(found[0][0]), str(found[0][1]), str(found[0][2]), str(found[0][3])) if found else None

    def states(self) -> dict[tuple[str, str], str]:
        """How the states of the sites that this desk has are known (MD5)."""
        rows = self.ask("SELECT DISTINCT s.host, s.name, md5(s.body) FROM state s JOIN work w USING (host, name) WHERE w.desk = session_user")
        return {(row[0], row[1]): row[2] for row in rows}

    def state(self, host: str, name: str) -> str:
        """A site's state; "" where there is none."""
        found = self.ask("SELECT body FROM state WHERE (host, name) = (%s, %s)", host, name)
        return str(found[0][0]) if found else ""

    def reply(self, row: Row, number: int, chain: bytes) -> None:
        """Answer a request, for the `number`-th time."""
        self.ask("INSERT INTO reply (host, name, number, answer, chain) VALUES (%s, %s, %s, %s, %s)", row.host, row.name, row.number, number,
                 chain.decode("ascii", "replace"))

    def last_answer(self, row: Row) -> str:
        """How the newest answer is known (MD5); "" where there is none."""
        found = self.ask("SELECT md5(chain) FROM reply WHERE (host, name, number, kind) = (%s, %s, %s, %s) ORDER BY answer DESC LIMIT 1", *row)
        return str(found[0][0]) if found else ""

    def answer_known(self, row: Row) -> str:
        """How root of a host knows the newest answer (SHA-256, hexadecimal); "" where there is none."""
        found = self.ask("SELECT encode(sha256(convert_to(chain, 'UTF8')), 'hex') FROM reply WHERE (host, name, number, kind) = (%s, %s, %s, %s)"
                         " ORDER BY answer DESC LIMIT 1", *row)
        return str(found[0][0]) if found else ""

    def say(self, row: Row, text: str) -> None:
        """What came of a request so far."""
        self.ask("UPDATE work SET said = %s WHERE (host, name, number, kind) = (%s, %s, %s, %s) AND desk = session_user", text, *row)


def _md5(text: str) -> str:
    """As PostgreSQL says it: to see what differs, and no more."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def digest(data: bytes) -> str:
    """The same of a reply."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def as_table(text: str | bytes) -> dict[str, object]:
    """The JSON object that a text is; an empty one where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _plainly(error: Exception) -> str:
    return events.clean(" ".join(str(error).split()) or type(error).__name__, 300)


def is_row(row: Row) -> bool:
    """Whether what came from the database names a request of a host's: it becomes file names."""
    return (isinstance(row.host, str) and isinstance(row.name, str) and type(row.number) is int
            and members.is_name(row.host) and spool.is_site_name(row.name) and len(row.name) <= 160
            and 0 < row.number < 10 ** 9 and row.kind in ("csr", "revoke"))

"""A whole fleet on a stage: three web hosts, two desks, PostgreSQL with a streaming standby, and the CA outside, each a machine (several.py).

    with Whole() as fleet:
        fleet.web[0].run("certdrop", "renew", fleet.site(fleet.web[0]))

It is made as docs/fleet.md says. `web`, `desk` and `db` are machines with what belongs to their task.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from typing import Optional

import world as stage
from fleet import CA, program
from several import DOMAIN, Done, Machine, Network, Running
from world import WorldError, read, wait_for

LONGEST = 200.0                    # seconds for which a test has desks at work, at most
VALIDATION = f"acme.{DOMAIN}"
ROOTS, BUNDLE, PAGE = "/etc/certdrop/fleet-roots.pem", "/etc/certdrop/fleet-bundle.pem", "a page\n"
ADMIN = f"host=db1.{DOMAIN},db2.{DOMAIN} dbname=certdrop user=postgres target_session_attrs=read-write connect_timeout=5"
# Who may log in. The administrator's own ways are beside those of docs/fleet.md: the superuser by password, and the standby.
HBA = """\
local   all         all         peer
hostssl certdrop    postgres    samenet   scram-sha-256
host    replication replicator  samenet   trust
hostssl certdrop +certdrop_host,+certdrop_desk,+certdrop_watch all cert
"""
CONF = """
listen_addresses = '*'
ssl = on
ssl_ca_file = 'ca.pem'
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
fsync = off
"""
# The validation name leads to any of the desks. What that one does not have, it sends to the other's own name.
SERVER = """\
server {{ listen 80; server_name {validation}; error_page 404 http://{other}$request_uri; include /etc/nginx/snippets/certdrop-desk.conf; }}
server {{ listen 80; server_name {own}; include /etc/nginx/snippets/certdrop-desk.conf; location / {{ return 404; }} }}
"""


class Cluster:
    """PostgreSQL on a machine."""

    def __init__(self, there: Machine) -> None:
        self.there, self.data = there, "/var/lib/postgresql/main"

    def _as_postgres(self, *words: str, code: Optional[int] = 0) -> Done:
        return self.there.run(*words, user="postgres", code=code)

    def make(self) -> None:
        """An empty one, as docs/fleet.md says."""
        self._as_postgres(program("initdb"), "-D", self.data, "-A", "peer", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        self.there.write(f"{self.data}/pg_hba.conf", HBA, 0o600)
        with open(self.there.path(f"{self.data}/postgresql.conf"), "a", encoding="ascii") as stream:
            stream.write(CONF)
        self.there.run("chown", "-R", "postgres:postgres", self.data, code=0)

    def follow(self, first: "Cluster") -> None:
        """A standby of the other one, by streaming replication."""
        self._as_postgres(program("pg_basebackup"), "-D", self.data, "-R", "-N", "-c", "fast", "-d",
                          f"host={first.there.address} user=replicator sslmode=disable")

    def start(self) -> None:
        self.there.run("install", "-d", "-o", "postgres", "/var/log/postgresql", code=0)
        self._as_postgres(program("pg_ctl"), "-w", "-t", "30", "-D", self.data, "-l", "/var/log/postgresql/server.log", "-o", "-k /tmp", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._as_postgres(program("pg_ctl"), "-w", "-m", mode, "-D", self.data, "stop")

    def restart(self) -> None:
        self.stop("fast")
        self.start()

    def promote(self) -> None:
        self._as_postgres(program("pg_ctl"), "-w", "-D", self.data, "promote")

    def psql(self, text: str, database: str = "certdrop") -> str:
        """What the superuser's statements print."""
        return self.there.run("psql", "-h", "/tmp", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", database, user="postgres", code=0, given=text).text.strip()


class Web(Machine):
    """A web host: nginx, certdrop, the courier."""

    def serve(self, name: str) -> None:
        """Have nginx serve a site by the server blocks that certdrop-nginx prints."""
        self.write(f"/etc/nginx/sites-enabled/{name}", self.output("certdrop-nginx", name))
        self.run("nginx", "-s", "reload", code=0)

    def waiting(self, *names: str) -> str:
        """A site that waits for its first certificate, served; its name."""
        self.run("certdrop", "add", *names, "--no-issue", code=0)
        self.serve(names[0])
        return names[0]

    def courier(self, *words: str) -> Done:
        """One run of the courier's, as cron has it, but at once."""
        return self.run("certdrop-courier", *(words or ("--quiet",)))

    def live(self, name: str) -> int:
        """The number of the live generation."""
        return int(os.readlink(self.path(f"/var/lib/certdrop/live/{name}")).rpartition("/")[2])

    def fetch(self, name: str) -> str:
        """A page over HTTPS from this host, the chain verified, by somebody outside."""
        done = subprocess.run(["curl", "-sS", "--fail", "--max-time", "10", "--cacert", self.path(ROOTS), "--resolve", f"{name}:443:{self.address}",
                               f"https://{name}/"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise WorldError(f"{name} at {self.name}: {done.stderr}\n{self.logs()}")
        return done.stdout


class Desk(Machine):
    """A desk."""

    def work(self) -> Running:
        """The desk, at work, as from cron. Such a run ends at a full ten minutes, as cron begins the next one; so it waits for them where they are near."""
        left = 600 - time.time() % 600
        if left < LONGEST:
            time.sleep(left + 1)
        with open(f"/tmp/world/{self.name}.log", "ab") as log:
            return self.launch("certdrop-desk", "--cron", "--verbose", user="_certdrop", out=log)


class Whole:
    """The fleet, as its administrator sees it, and the world around it."""

    def __init__(self, **pebble: object) -> None:
        self.world, self.network = stage.World(**pebble), Network()
        self.world.dns.listen = self.world.pebble.listen = "0.0.0.0"
        self.web: list[Web] = []
        self.desk: list[Desk] = []
        self.db: list[Cluster] = []
        self.numbers = itertools.count(1)

    def __enter__(self) -> "Whole":
        self.world.start()
        try:
            self.network.__enter__()
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.network.__exit__()
        self.world.stop()

    def begin(self) -> None:
        """All of docs/fleet.md."""
        self.open()
        self.first_desk()
        self.database()
        self.enrol(self.desk[0])
        self.account()
        self.enrol(self.desk[1])
        self.second_desk()
        for host in self.web:
            self.enrol(host, f"*.{host.name}.example.org", "shared.example.org")
        self.believe()

    def open(self) -> None:
        """The machines, and the names of the DNS."""
        os.makedirs("/var/www/html", exist_ok=True)
        stage.write("/var/www/html/index.html", PAGE)
        stage.write("/etc/certdrop/certdrop.toml", f'directory = "{self.world.pebble.directory_url}"\ncontact = ["hostmaster@example.org"]\n'
                    f'ca_bundle = "{BUNDLE}"\ntrust_roots = "{ROOTS}"\nself_check = "off"\n')
        stage.write(BUNDLE, read(self.world.pebble.ca_bundle))
        stage.write(ROOTS, read(self.world.pebble.root()))
        for kind, found, count, first in ((Web, self.web, 3, 11), (Desk, self.desk, 2, 21)):
            for number in range(1, count + 1):
                found.append(self._machine(kind(f"{kind.__name__.lower()}{number}", f"10.77.0.{first + number - 1}")))       # type: ignore[attr-defined]
        for number in (1, 2):
            self.db.append(Cluster(self._machine(Machine(f"db{number}", f"10.77.0.{30 + number}"))))
        self.world.dns.set_addresses(VALIDATION, [one.address for one in self.desk])
        for host in (*self.web, *self.desk):
            host.run("nginx", code=0)

    def _machine(self, made: Machine) -> Machine:
        made.start()
        self.network.machines[made.name] = made
        self.world.dns.set_addresses(f"{made.name}.{DOMAIN}", [made.address])
        return made

    def first_desk(self) -> str:
        """The fleet's CA."""
        return self.desk[0].output("certdrop-fleet", "init", "--database", f"db1.{DOMAIN},db2.{DOMAIN}/certdrop", "--validation", VALIDATION)

    def database(self) -> None:
        """PostgreSQL with the schema, and its standby."""
        first, second = self.db
        first.make()
        for name in ("ca.pem", "server.pem", "server.key"):
            first.there.write(f"{first.data}/{name}", self.desk[0].read(f"{CA}/{name}"), 0o600)
            first.there.run("chown", "postgres:postgres", f"{first.data}/{name}", code=0)
        first.start()
        first.psql("CREATE DATABASE certdrop; CREATE ROLE replicator LOGIN REPLICATION; ALTER ROLE postgres PASSWORD 'of-the-administrator'", "postgres")
        first.psql(self.desk[0].output("certdrop-fleet", "schema"))
        second.follow(first)
        second.start()
        self.desk[0].write("/root/.pgpass", "*:5432:certdrop:postgres:of-the-administrator\n", 0o600)

    def admin(self, text: str) -> str:
        """What the superuser's statements print, at the server that can be written to."""
        return self.desk[0].run("psql", ADMIN, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", code=0, given=text).text.strip()

    def enrol(self, there: Machine, *patterns: str) -> None:
        """Two commands, one on each side."""
        what = ["--desk"] if isinstance(there, Desk) else []
        line, answer = f"/root/{there.name}.line", f"/root/{there.name}.answer"
        self.desk[0].write(line, there.output("certdrop-fleet", "join", there.name, *what))
        there.write(answer, self.desk[0].output("certdrop-fleet", "enrol", line, *patterns, "--psql", f"psql '{ADMIN}'"))
        there.run("certdrop-fleet", "join", "--answer", answer, code=0)
        if isinstance(there, Desk):
            other = next(one for one in self.desk if one is not there)
            there.write("/etc/nginx/sites-enabled/desk", SERVER.format(validation=VALIDATION, own=f"{there.name}.{DOMAIN}", other=f"{other.name}.{DOMAIN}"))
            there.run("nginx", "-s", "reload", code=0)

    def account(self) -> None:
        """The fleet's ACME account."""
        self.desk[0].run("certdrop-desk", "account", "register", "--yes", code=0)

    def second_desk(self) -> None:
        """What the first desk has, the second has as well."""
        self.desk[0].give("/var/lib/certdrop-fleet/account", self.desk[1])

    def believe(self) -> None:
        """Which hosts the first desk believes, the second does as well."""
        self.desk[0].give("/etc/certdrop/fleet.d", self.desk[1])

    # ---- what happens in it

    def site(self, host: Web) -> str:
        """A site of this host's that waits for its first certificate; its name, which no other test has."""
        name = f"s{next(self.numbers)}.{host.name}.example.org"
        self.world.dns.set_addresses(name, [host.address])
        return host.waiting(name)

    def issued(self) -> int:
        """How many certificates the CA issued."""
        return self.world.pebble.log_text().count("Issued certificate serial")

    def answered(self, name: str) -> bool:
        """Whether the database has a reply for the site."""
        return self.admin(f"SELECT count(*) FROM certdrop.reply WHERE name = '{name}'") != "0"

    def dump(self) -> str:
        """A dump of the data, as an administrator takes one each night."""
        return self.db[0].there.output("pg_dump", "-h", "/tmp", "--data-only", "--schema=certdrop", "certdrop", user="postgres")

    def restore(self, dump: str) -> None:
        """As after the database was lost: connections end, and what is in it is yesterday's."""
        self.db[0].psql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename ~ '^(web|desk)';"
                        " SET session_replication_role = replica; TRUNCATE certdrop.machine CASCADE;\n" + dump)

    def desk_of(self, name: str) -> str:
        """Which desk has a site's work."""
        return self.admin(f"SELECT desk FROM certdrop.work WHERE name = '{name}' ORDER BY number DESC LIMIT 1")

    def said(self, name: str) -> str:
        """What the desk said last of the site."""
        return self.admin(f"SELECT said FROM certdrop.work WHERE name = '{name}' ORDER BY number DESC LIMIT 1")

    def until(self, answer: str, query: str, timeout: float = 60) -> None:
        """Wait for the database to answer so."""
        wait_for(lambda: self.admin(query) == answer, timeout, f"{query} to be {answer}")

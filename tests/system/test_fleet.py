"""A fleet, from an empty PostgreSQL to a certificate: this machine is its database's server, its desk, and a host of it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
from typing import Iterator

import pytest

import world as stage
from conftest import SPOOL, STATE, Host
from fleet import Postgres
from terminal import Terminal

PLACE = "host=db.example.org dbname=certdrop"
VALIDATION = "validation.example.org"
DESK = "server { listen 80; listen [::]:80; server_name %s; include /etc/nginx/snippets/certdrop-desk.conf; location / { return 404; } }\n" % VALIDATION


class Desk:
    """A desk at work, as cron keeps it: one ends at the full ten minutes, and the next begins."""

    def __init__(self) -> None:
        log = open("/tmp/world/desk.log", "ab")
        again = "while :; do runuser -u _certdrop -- certdrop-desk --cron --verbose; done"
        self.process = subprocess.Popen(["/bin/sh", "-c", again], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def end(self) -> None:
        """End it, with all that belongs to it."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)
        stage.wait_for(lambda: subprocess.run(["pgrep", "-g", str(self.process.pid)], stdout=subprocess.DEVNULL).returncode == 1, 60, "the desk's end")


class Fleet:
    """The fleet, as its administrator sees it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.db = Postgres()

    def begin(self) -> None:
        """As docs/fleet.md begins."""
        run = self.host.run
        run("certdrop-fleet", "init", "--database", "db.example.org/certdrop", "--validation", VALIDATION, code=0)
        self.db.make()
        self.db.use_tls()
        self.db.start()
        self.db.psql("CREATE DATABASE certdrop", "postgres")
        self.db.psql(run("certdrop-fleet", "schema", code=0).text)
        self.join("desk1", "--desk")
        self.join("web1", patterns=["*.example.org"])
        self.host.world.nginx.add_site(VALIDATION, DESK)
        self.host.world.nginx.reload()

    def join(self, name: str, *options: str, patterns: "list[str] | None" = None) -> None:
        """Two commands, one on each side."""
        line, answer = f"/tmp/{name}.line", f"/tmp/{name}.answer"
        with open(line, "wb") as out:
            subprocess.run(["certdrop-fleet", "join", name, *options], stdout=out, check=True)
        with open(answer, "wb") as out:
            subprocess.run(["certdrop-fleet", "enrol", line, *(patterns or []), "--psql", self.db.admin], stdout=out, check=True)
        self.host.run("certdrop-fleet", "join", "--answer", answer, code=0)

    def waiting(self) -> str:
        """A site that waits for its first certificate, served by the server blocks that certdrop-nginx prints; its name."""
        return self.host.waiting()

    def courier(self) -> None:
        """One run of the courier's: as cron has it, but at once."""
        self.host.run("certdrop-courier", "--quiet", code=0)

    def asked(self) -> int:
        """How many certificates the CA was asked for."""
        return self.host.world.pebble.log_text().count("/finalize-order/")

    def answered(self, name: str) -> bool:
        """Whether the database has a reply for the site."""
        return self.db.psql(f"SELECT count(*) FROM certdrop.reply WHERE name = '{name}'") != "0"

    def said(self, name: str) -> str:
        """What the desk said last of the site."""
        return self.db.psql(f"SELECT said FROM certdrop.work WHERE name = '{name}' ORDER BY number DESC LIMIT 1")

    def desk(self) -> "Desk":
        """The desk, at work."""
        return Desk()


@pytest.fixture(scope="module")
def fleet(session_host: Host) -> Iterator[Fleet]:
    """The fleet, begun."""
    made = Fleet(session_host)
    made.begin()
    yield made
    made.db.stop()


@pytest.fixture
def at_work(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, with a desk at work."""
    desk = fleet.desk()
    yield fleet
    desk.end()


def test_a_certificate_while_an_administrator_waits(at_work: Fleet) -> None:
    """Posted, taken, ordered, here: the key never left, the host talked with no CA, and what is served is good."""
    name = at_work.waiting()
    done = at_work.host.run("certdrop", "renew", name)
    assert done.code == 0, (done, stage.log_tails(40))
    assert "taken by desk1" in done.text and "installed, and served" in done.text, done
    assert at_work.host.pair_matches(name)
    assert "a page" in at_work.host.fetch(name)
    assert "acme-challenge/" in stage.read("/etc/nginx/snippets/certdrop-fleet.conf") and VALIDATION in at_work.host.run("nginx", "-T").text
    assert not list(pathlib.Path(f"{STATE}/account").iterdir()), "the host has no account"
    assert list(pathlib.Path("/var/lib/certdrop-fleet/account").glob("*.key"))


def test_nobody_waits(at_work: Fleet) -> None:
    """Cron's courier carries it up, brings the reply, has root install it, and carries up what follows; what the desk plans is known here."""
    name = at_work.waiting()
    at_work.courier()
    stage.wait_for(lambda: at_work.answered(name), 30, "a reply")
    at_work.courier()
    assert at_work.host.live(name) == 2
    at_work.courier()
    stage.wait_for(lambda: '"renew_at": ' in at_work.said(name), 30, "the desk to say when it renews")
    at_work.courier()
    assert at_work.host.status(name)["state"] == "serving"
    assert name in at_work.host.run("certdrop-issue", "--plan", code=0).text


def test_at_a_terminal(at_work: Fleet) -> None:
    """Whoever waits sees how it goes, in this order: posted, taken by which desk, asked for, here. Again after a failure, for root says so again."""
    name = at_work.waiting()
    with Terminal() as person:
        person.type(f"certdrop renew {name}\n")
        shown = person.wait_prompt(120)
        assert person.code() == 0
    steps = ["posted; waiting for a desk", "taken by desk1", "desk1 asks the CA", "issued; the reply for request 0002 waits for root", "installed, and served"]
    assert [step for step in sorted(steps, key=lambda step: shown.find(step))] == steps and all(step in shown for step in steps), shown


def test_who_waits_again_after_a_failure(at_work: Fleet) -> None:
    """Root's word skips the back-off, each time that it is given. The same word, brought again by the database's owner, does not."""
    name = "s1.elsewhere.example.net"
    at_work.host.run("certdrop", "add", name, "--no-issue", code=0)
    for _ in range(2):
        assert "web1 may not have all of these names" in at_work.host.run("certdrop", "renew", name).text
    count = json.loads(at_work.said(name))["count"]
    assert count == 2
    at_work.db.psql("ALTER TABLE certdrop.request DISABLE TRIGGER posting")
    posted = at_work.db.psql(f"SELECT posted FROM certdrop.request WHERE name = '{name}'")
    at_work.db.psql(f"UPDATE certdrop.request SET posted = now() WHERE name = '{name}'")
    other = at_work.waiting()
    assert at_work.host.run("certdrop", "renew", other).code == 0, "the desk has looked since"
    assert posted != at_work.db.psql(f"SELECT posted FROM certdrop.request WHERE name = '{name}'")
    assert json.loads(at_work.said(name))["count"] == count
    at_work.db.psql("ALTER TABLE certdrop.request ENABLE TRIGGER posting")
    at_work.host.run("certdrop", "remove", name, code=0)


def test_what_the_doctor_says(at_work: Fleet) -> None:
    """On a host of a fleet: of the database, the key, and challenges that come by way of the desk; nothing of an account, or of the CA."""
    name = at_work.waiting()
    said = {(line["what"], line["level"]): line["why"] for line in json.loads(at_work.host.run("certdrop-check", name, "--json").text)}
    assert "this host is web1; root signs" in said["fleet", "ok"] and "needs no account" in said["CA", "ok"] and VALIDATION in said["CA", "ok"]
    assert f"{name}: port 80", "ok" in said and ("account", "ok") not in said and ("courier", "ok") in said
    assert any("lets web1 in" in why for (what, _), why in said.items() if what == "database") or "is good until" in said["database", "ok"]
    stage.write("/etc/nginx/sites-enabled/away", "")
    at_work.host.world.nginx.remove_site(VALIDATION)
    at_work.host.world.nginx.reload()
    try:
        lines = json.loads(at_work.host.run("certdrop-check", name, "--json", code=78).text)
        (wrong,) = [line for line in lines if line["what"] == f"{name}: port 80"]
        assert f"on the desk: have nginx's server block for {VALIDATION}" in wrong["mend"], wrong
    finally:
        os.unlink("/etc/nginx/sites-enabled/away")
        at_work.host.world.nginx.add_site(VALIDATION, DESK)
        at_work.host.world.nginx.reload()


def test_a_name_that_this_host_may_not_have(at_work: Fleet) -> None:
    """The CA would issue it: the fleet's administrator says who may have which name, and the signer holds to that."""
    name = "s1.elsewhere.example.net"
    at_work.host.run("certdrop", "add", name, "--no-issue", code=0)
    at_work.host.serve(name)
    done = at_work.host.run("certdrop", "renew", name)
    assert done.code == 75 and "web1 may not have all of these names (fleet.d)" in done.text, done
    assert name not in at_work.host.world.pebble.log_text()            # which names what it validates
    at_work.host.world.nginx.remove_site(name)
    at_work.host.world.nginx.reload()
    at_work.host.run("certdrop", "remove", name, code=0)


@pytest.mark.parametrize("deed", ["another csr", "another host", "another name"])
def test_who_owns_the_database(at_work: Fleet, deed: str) -> None:
    """It can write what it likes there, as PostgreSQL's superuser. What root of a host did not sign is never ordered."""
    mine = subprocess.run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/tmp/mine.key", "-subj", "/",
                           "-addext", "subjectAltName=DNS:s1.example.org"], capture_output=True, text=True, check=True).stdout
    name = at_work.waiting()
    at_work.courier()
    stage.wait_for(lambda: at_work.answered(name), 30, "a reply")
    before = at_work.asked()
    at_work.db.psql("ALTER TABLE certdrop.request DISABLE TRIGGER posting")
    if deed == "another csr":
        at_work.db.psql(f"INSERT INTO certdrop.request SELECT host, name, number + 1, kind, $${mine}$$, sig, now, posted FROM certdrop.request"
                        f" WHERE name = '{name}'")
    elif deed == "another host":
        at_work.db.psql(f"INSERT INTO certdrop.machine VALUES ('web9', 'host'); INSERT INTO certdrop.request SELECT 'web9', name, number, kind, body, sig, now"
                        f" FROM certdrop.request WHERE name = '{name}'; INSERT INTO certdrop.state SELECT 'web9', name, body FROM certdrop.state"
                        f" WHERE name = '{name}'")
    else:
        at_work.db.psql(f"INSERT INTO certdrop.request SELECT host, 'x' || name, number, kind, body, sig, now FROM certdrop.request"
                        f" WHERE name = '{name}'; INSERT INTO certdrop.state SELECT host, 'x' || name, body FROM certdrop.state WHERE name = '{name}'")
    wrong = f"SELECT count(*) FROM certdrop.work WHERE name LIKE '%{name}' AND said LIKE '%{{}}%'"
    if deed == "another host":                 # no desk takes what it does not believe
        other = at_work.waiting()
        at_work.courier()
        stage.wait_for(lambda: at_work.answered(other), 30, "a reply for what came after it")
        assert at_work.db.psql("SELECT DISTINCT desk FROM certdrop.work WHERE host = 'web9'") == ""
        before += 1
    else:
        stage.wait_for(lambda: at_work.db.psql(wrong.format("not signed by the key that web1 was enrolled with")) == "1", 30, "the desk to refuse it")
    assert at_work.asked() == before
    at_work.db.psql("DELETE FROM certdrop.machine WHERE name = 'web9'; DELETE FROM certdrop.request WHERE name LIKE 'x%'")
    at_work.db.psql("ALTER TABLE certdrop.request ENABLE TRIGGER posting")
    at_work.courier()


def test_a_reply_of_somebody_elses(at_work: Fleet) -> None:
    """A chain that is not for root's key is refused by root, and the desk asks again."""
    name = at_work.waiting()
    at_work.courier()
    stage.wait_for(lambda: at_work.answered(name), 30, "a reply")
    foreign = stage.read(at_work.host.world.pebble.root())
    at_work.db.psql(f"UPDATE certdrop.reply SET chain = $${foreign}$$ WHERE name = '{name}'")
    at_work.courier()
    assert at_work.host.live(name) == 1
    assert '"reply-refused"' in stage.read("/var/log/certdrop/keeper.log")


def test_the_part_that_talks_with_the_network(at_work: Fleet) -> None:
    """What it lays down by itself, as _certdrop, the signer does not sign for: the desk's own tree is not believed."""
    tree = "/var/spool/certdrop-fleet/requests"
    before = at_work.asked()
    csr = next(path for path in pathlib.Path(f"{SPOOL}/requests").glob("*.csr"))
    forged = f"{tree}/web1_forged.example.org@0001"
    name = at_work.waiting()
    at_work.courier()

    def is_refused() -> bool:
        for ending, source in (("csr", csr), ("sig", csr.with_suffix(".sig"))):
            if not os.path.exists(f"{forged}.{ending}"):       # the desk's other part tidies up
                stage.write(f"{forged}.{ending}", source.read_text(), 0o640)
                shutil.chown(f"{forged}.{ending}", "_certdrop", "_certdrop")
        at_work.db.psql("NOTIFY certdrop_desk; UPDATE certdrop.state SET body = body || ' '")
        return "not signed by the root of its host" in stage.read("/var/log/certdrop/issuer.log")
    stage.wait_for(is_refused, 60, "the signer to refuse it")
    stage.wait_for(lambda: at_work.answered(name), 30, "a reply for what was posted beside it")
    assert at_work.asked() == before + 1
    for ending in ("csr", "sig"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{forged}.{ending}")
    at_work.courier()


def test_a_host_and_the_rows_of_others(fleet: Fleet) -> None:
    """A courier that was taken over has its own role's rights: its own rows, and so many of them."""
    psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", f"{PLACE} user=web1 sslmode=verify-full sslrootcert=/etc/certdrop/fleet/ca.pem "
            "sslcert=/etc/certdrop/fleet/host.pem sslkey=/etc/certdrop/fleet/host.key", "-c"]
    for deed, refusal in {
            "INSERT INTO certdrop.request (name, number, kind, body, sig, host) VALUES ('a', 1, 'csr', '', '', 'web2')": "permission denied",
            "INSERT INTO certdrop.reply (host, name, number, answer, chain) VALUES ('web1', 'a', 1, 1, '')": "permission denied",
            "UPDATE certdrop.work SET desk = 'web1'": "permission denied",
            "UPDATE certdrop.machine SET quota = 100000": "permission denied",
            "UPDATE certdrop.request SET body = ''": "permission denied",
            "INSERT INTO certdrop.state (name, body) VALUES ('a', repeat('x', 70000))": "violates check constraint",
            "INSERT INTO certdrop.state (name, body) SELECT 'a' || n, '' FROM generate_series(1, 5000) n": "quota of web1",
            "CREATE TABLE certdrop.mine (x int)": "permission denied",
            "CREATE TEMP TABLE mine (x int)": "permission denied",
            "CREATE TABLE public.mine (x int)": "permission denied",
            "SELECT lo_create(0)": "permission denied",
            "SELECT pg_sleep(1)": "permission denied",
            "SELECT pg_notify('certdrop_desk', '')": "permission denied",
            "SELECT pg_advisory_lock(1)": "permission denied",
            "SELECT pg_read_file('/etc/passwd')": "permission denied",
            "COPY certdrop.state TO PROGRAM 'id'": "pg_execute_server_program",
            "SET ROLE desk1": "permission denied",
            "SET SESSION AUTHORIZATION desk1": "permission denied"}.items():
        done = fleet.host.run(*psql, deed)
        assert done.code and refusal in done.text, (deed, done)
    fleet.db.psql("INSERT INTO certdrop.machine VALUES ('web8', 'host'); INSERT INTO certdrop.state VALUES ('web8', 'a', 'x')")
    assert "web8" not in fleet.host.run(*psql, "SELECT host FROM certdrop.state UNION SELECT name FROM certdrop.machine", code=0).text
    fleet.db.psql("DELETE FROM certdrop.machine WHERE name = 'web8'")


def test_the_database_is_away(fleet: Fleet) -> None:
    """The host serves on, and says so to who waits; what was posted meanwhile goes its way when the database is back."""
    name = fleet.waiting()
    fleet.db.stop()
    desk = fleet.desk()
    done = fleet.host.run("certdrop", "renew", name)
    assert done.code == 75 and "the fleet's database: " in done.text and "cron goes on trying" in done.text, done
    fleet.db.start()
    fleet.courier()
    stage.wait_for(lambda: fleet.answered(name), 60, "a reply")
    fleet.courier()
    assert fleet.host.live(name) == 2
    desk.end()


def test_a_restore_from_yesterday(at_work: Fleet) -> None:
    """All rows are gone: the hosts post again, the desks answer again with what they have, and nothing is ordered twice."""
    name = at_work.waiting()
    at_work.courier()
    stage.wait_for(lambda: at_work.answered(name), 30, "a reply")
    before = at_work.asked()
    at_work.db.psql("DELETE FROM certdrop.request; DELETE FROM certdrop.state")
    at_work.courier()
    at_work.courier()
    stage.wait_for(lambda: at_work.host.live(name) == 2 or at_work.courier(), 30, "the certificate")
    assert at_work.asked() == before


def test_one_view(at_work: Fleet) -> None:
    """Each form of certdrop-fleet status has every machine and site."""
    name = at_work.waiting()
    at_work.host.run("certdrop", "renew", name, code=0)
    at_work.courier()
    stage.wait_for(lambda: at_work.db.psql("SELECT count(*) FROM certdrop.work WHERE desk = ''") == "0", 30, "all work to be taken")
    found = json.loads(at_work.host.run("certdrop-fleet", "status", "--json", code=0).text)
    assert {one["name"] for one in found["machines"]} == {"desk1", "web1"}
    site = next(one for one in found["sites"] if one["site"] == name)
    assert site["host"] == "web1" and site["desk"] == "desk1" and site["not_after"]
    assert name in at_work.host.run("certdrop-fleet", "status", code=0).text
    assert f'site="{name}"' in at_work.host.run("certdrop-fleet", "status", "--prometheus", code=0).text
    assert at_work.host.run("certdrop-fleet", "status", "--nagios").text.startswith("FLEET ")
    assert "web1  *.example.org" in at_work.host.run("certdrop-fleet", "list", code=0).text


def test_the_watcher_mails_for_the_fleet(fleet: Fleet) -> None:
    """From a desk, by its report: a host that is silent, once that has lasted; and the database, once it has been away for hours."""
    host, mail = fleet.host, fleet.host.world.mail
    fleet.db.psql("INSERT INTO certdrop.machine (name, kind, seen) VALUES ('web7', 'host', now() - interval '5 hours')")
    host.run("certdrop-desk", "--once", code=0)
    mail.clear()
    host.run("certdrop-watch", code=0)
    assert "fleet: host web7: not heard of since " in mail.messages()[0].body and "certdrop-fleet withdraw" in mail.messages()[0].body
    fleet.db.psql("DELETE FROM certdrop.machine WHERE name = 'web7'")
    fleet.db.stop()
    host.run("certdrop-desk", "--once")
    report = pathlib.Path("/var/lib/certdrop-fleet/report/report.json")
    found = json.loads(report.read_text())
    assert found["away"] and found["away_since"]
    report.write_text(json.dumps({**found, "away_since": found["away_since"] - 7 * 3600}))
    mail.clear()
    host.run("certdrop-watch", code=0)
    assert "the fleet's database has been away for " in mail.messages()[0].body
    fleet.db.start()
    host.run("certdrop-desk", "--once", code=0)
    assert "away" not in json.loads(report.read_text())


def test_zz_who_is_withdrawn(fleet: Fleet) -> None:
    """From that moment it can do nothing; its certificates are listed; and once it has left, its issuer talks with the CA itself again."""
    done = fleet.host.run("certdrop-fleet", "withdraw", "web1", "--psql", fleet.db.admin, code=0)
    assert "shut out" in done.text and "s1.example.org  " in done.text, done
    done = fleet.host.run("certdrop-courier", "--verbose")
    assert done.code == 75 and "the fleet's database: " in done.text, done
    fleet.host.run("certdrop-fleet", "join", "--leave", code=0)
    assert "certdrop-issue" in fleet.host.run("certdrop-issue", "--help", code=0).text.splitlines()[0]

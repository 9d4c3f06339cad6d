"""A clock that was wrong: for every program on the stage, sudo and the judge among them, by a library that each of them loads. The CA's own is right.

When it is right again, what is due is asked for and served, and no program shows a moment or a duration that cannot be. What the kernel notes (the times
of files) it does by the right clock; where those count, the test sets them as a wrong one would have.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import time
from typing import Any, Iterator

import pytest
from between import HOST, PORT, Between
from conftest import CONFIG, SPOOL, STATE, Host
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import world as stage

OFFSET, LIBRARY, PRELOADED = "/run/clock-offset", "/usr/local/lib/wrong-clock.so", "/etc/ld.so.preload"
SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset;                    /* seconds; read once, while files can still be opened */
__attribute__((constructor)) static void begin(void) {
    char text[32] = "";
    int fd = open("/run/clock-offset", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) { if (read(fd, text, sizeof text - 1) > 0) offset = atol(text); close(fd); }
}
int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += offset;
    return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec; at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
HOUR, DAY = 3600, 86400
CLOCKS = {"an hour ahead": HOUR, "100 days ahead": 100 * DAY, "in 2038": 2147483700, "in 2111": 4449600000, "in 1970": DAY + 60, "100 days behind": -100 * DAY}
STAMPS = ("keeper/last-run", "issuer/last-run", "issuer/account-looked-at")
MOMENT = re.compile(r"\b(?:19|20|21)\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\dZ?)?")
NEGATIVE = re.compile(r"(?<![\w.-])-\d+(?:\.\d+)? ?(?:[smhd]\b|min|hour|day|week|second)")
DAYS = re.compile(r"\b(\d+)(?:\.\d+)? ?d(?:ays?)?\b")


class Clock:
    """That of all programs that are started from now on."""

    def __init__(self) -> None:
        self.ahead = 0

    def show(self, moment: int) -> None:
        """Have it wrong: ahead of the right one by so many seconds, or showing this moment."""
        self.ahead = moment if abs(moment) <= 100 * DAY and moment != CLOCKS["in 1970"] else moment - int(time.time())
        stage.write(OFFSET, str(self.ahead))

    def right(self) -> None:
        """Have it right again. The stamps that were set meanwhile bear the wrong time."""
        for path in [f"{STATE}/{name}" for name in STAMPS] + [f"{STATE}/account/{name}" for name in os.listdir(f"{STATE}/account") if name.endswith(".key")]:
            if os.path.exists(path):
                moment = os.stat(path).st_mtime
                os.utime(path, (max(0, moment + self.ahead),) * 2)
        stage.write(OFFSET, "0")
        self.ahead = 0


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc: make deps")
    source = stage.write("/tmp/wrong-clock.c", SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", LIBRARY, source], check=True)
    stage.write(OFFSET, "0")
    stage.write(PRELOADED, LIBRARY + "\n")
    yield Clock()
    os.unlink(PRELOADED)


@pytest.fixture(scope="module")
def ca(session_host: Host) -> Iterator[Between]:
    """The CA, by way of a server whose certificate is good at any time; and one of its own trust."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(datetime.datetime(1970, 1, 1)).not_valid_after(datetime.datetime(2200, 1, 1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), False).add_extension(x509.BasicConstraints(True, None), True)
    certificate = stage.write("/tmp/world/always.pem", made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())
    private = stage.write("/tmp/world/always.key", key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(), 0o600)
    between = Between(session_host.world.pebble, (certificate, private))
    yield between
    between.close()


@pytest.fixture
def configured(host: Host, ca: Between) -> Host:
    host.configure(directory=f'"https://{HOST}:{PORT}/dir"', ca_bundle='"/tmp/world/always.pem"', account_key_max_age='"90d"')
    return host


@pytest.fixture(scope="module")
def sites(session_host: Host, ca: Between) -> tuple[str, str]:
    """One that root will want anew, one whose time the CA will say has come."""
    host = session_host
    host.configure(directory=f'"https://{HOST}:{PORT}/dir"', ca_bundle='"/tmp/world/always.pem"')
    return host.add(host.name()), host.add(host.name())


def want(host: Host, sites: tuple[str, str]) -> None:
    """Both are due."""
    now = datetime.datetime.now(datetime.timezone.utc)
    hour = datetime.timedelta(hours=1)
    host.world.pebble.set_renewal_info(stage.read(f"{STATE}/live/{sites[1]}/cert.pem"), now - 2 * hour, now - hour)
    host.run("certdrop", "rotate", sites[0], "--next", code=0)
    for mark in (f"{STATE}/sites/{sites[0]}/{host.next(sites[0]):04d}/now", f"{SPOOL}/requests/{sites[0]}@{host.next(sites[0]):04d}.now"):
        stage.write(mark, "")
    path = f"{STATE}/issuer/{sites[1]}.json"
    found = json.loads(stage.read(path))
    found["poll_at"] = 1
    with open(path, "r+") as stream:           # it stays the issuer's own
        stream.truncate()
        json.dump(found, stream)


def tick(host: Host) -> str:
    """What cron does in an hour, and what it says."""
    said = host.run("certdrop-issue", "--cron", "--verbose", user="_certdrop").text
    said += host.run("certdrop-install").text
    return said + host.run("certdrop-watch", user="_certdrop-watch").text


def shown(host: Host, sites: tuple[str, str], all_of_it: bool) -> dict[str, str]:
    """What each program says now."""
    commands = [["certdrop-status", *sites], ["certdrop-status", "--json"], ["certdrop-issue", "--plan"]]
    commands += [["certdrop-status"], ["certdrop-status", "--nagios"], ["certdrop-status", "--prometheus"], ["certdrop-account", "show"],
                 ["certdrop-check", sites[0]]] if all_of_it else []
    found = {" ".join(argv): host.run(*argv).text for argv in commands}
    return {**found, "mail": "\n".join(mail.subject + "\n" + re.sub(r"(?m)^.*\{.*$", "", mail.body) for mail in host.world.mail.messages())}


def can_be(where: str, text: str, right: bool) -> None:
    """No duration is negative; and by the right clock no moment is far from now."""
    assert not NEGATIVE.search(text) and "Traceback" not in text and "internal error" not in text, (where, text)
    if right:
        now = time.time()
        for moment in MOMENT.findall(text):
            at = datetime.datetime.fromisoformat(moment.rstrip("Z").replace(" ", "T")).replace(tzinfo=datetime.timezone.utc).timestamp()
            assert now - 2 * DAY < at < now + 400 * DAY * 5, (where, moment, text)
        assert all(int(days) < 5 * 400 for days in DAYS.findall(text)), (where, text)
        if "prometheus" in where:
            assert all(now - 2 * DAY < float(value) < now + 2000 * DAY for value in re.findall(r"^certdrop_\w*timestamp_seconds\S* (\S+)$", text, re.M)), text


def ledger(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stage.read(f"{STATE}/issuer/{name}.json"))
    return found


@pytest.mark.parametrize("moment, answers", [(moment, True) for moment in CLOCKS] + [(moment, False) for moment in ("an hour ahead", "in 2111", "in 1970")])
def test_a_clock_that_was_wrong(configured: Host, clock: Clock, ca: Between, sites: tuple[str, str], moment: str, answers: bool) -> None:
    """Wrong for a while, with a CA that answers then and one that does not; then right: at once all is well."""
    host, waits = configured, sites[0]
    tick(host)
    want(host, sites)
    before = [host.live(name) for name in sites]
    host.world.mail.clear()
    clock.show(CLOCKS[moment])
    seen = host.run("/usr/bin/python3", "-c", "import time; print(int(time.time()))").text
    assert abs(int(seen) - time.time() - clock.ahead) < 60
    if not answers:
        host.configure(directory=f'"https://{HOST}:{PORT}/dir"', ca_bundle='"/tmp/world/always.pem"', proxy='"http://127.0.0.1:9"')
    orders = len(ca.orders)
    said = [tick(host), host.run("certdrop-issue", "--cron", "--verbose", user="_certdrop").text]
    assert len(ca.orders) - orders <= 4 and (answers or len(ca.orders) == orders), said
    for where, text in {**shown(host, sites, False), "cron": "".join(said)}.items():
        can_be(where, text, False)
    clock.right()
    host.configure(directory=f'"https://{HOST}:{PORT}/dir"', ca_bundle='"/tmp/world/always.pem"', account_key_max_age='"90d"')
    host.world.mail.clear()
    said += ["-- right --", tick(host)]
    for name, live in zip(sites, before):
        # an hour is no more than a look at the CA's window may be put off, so that one may wait for its time
        assert host.live(name) > live or (name != waits and moment == "an hour ahead" and not answers), (name, said, ledger(name), stage.log_tails())
        assert host.served(name) == host.on_disk(name)
        found = host.status(name)
        assert (found["state"], found["severity"], found["last_error"]) == ("serving", 0, None), found
    for where, text in {**shown(host, sites, moment == "in 2111"), "cron": said[-1]}.items():
        can_be(where, text, True)
    orders = len(ca.orders)
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    assert len(ca.orders) == orders, "it goes on asking"
    assert all("count" not in ledger(name) for name in sites), (said, *map(ledger, sites))


def test_an_account_key_that_was_made_in_2111(configured: Host, clock: Clock, sites: tuple[str, str]) -> None:
    """Is of no age that could be told."""
    configured.configure(directory=f'"https://{HOST}:{PORT}/dir"', ca_bundle='"/tmp/world/always.pem"')
    clock.show(CLOCKS["in 2111"])
    clock.right()
    text = configured.run("certdrop-account", "show", code=0).text
    can_be("account", text, True)
    assert "made by a wrong clock, kept" in text, text


def test_a_key_that_was_made_in_2111(configured: Host, clock: Clock) -> None:
    """Its age does not count: the site gets another with the next certificate, where it is to be changed by age at all."""
    host = configured
    host.configure(directory=f'"https://{HOST}:{PORT}/dir"', ca_bundle='"/tmp/world/always.pem"', key_max_age='"90d"')
    name = host.name()
    clock.show(CLOCKS["in 2111"])
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    clock.right()
    key = stage.read(f"{STATE}/sites/{name}/{host.next(name):04d}/request.csr")
    host.run("certdrop", "renew", name, code=0)
    host.run("certdrop", "renew", "--force", name, code=0)
    created = json.loads(stage.read(f"{STATE}/live/{name}/request.json"))["key_created"]
    assert created <= time.time() + 60 and stage.read(f"{STATE}/live/{name}/request.csr") != key
    kept = host.status(name)
    host.run("certdrop", "renew", "--force", name, code=0)
    assert host.status(name)["key_created"] == kept["key_created"] and os.path.exists(CONFIG)

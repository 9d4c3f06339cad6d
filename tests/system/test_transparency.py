"""Debian's certspotter, a log on loopback, and certdrop's hook: silent about certificates for our own keys, mail about others."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import world as stage
from conftest import STATE, Host
from ctlog import Log

HOOK = "/usr/share/certdrop/certspotter/mail-foreign"
USER = "_certspotter"
ROOM = pathlib.Path("/tmp/certspotter")
LISTS = pathlib.Path("/etc/certspotter/own-keys.d")

pytestmark = pytest.mark.skipif(not shutil.which("certspotter"), reason="the stage needs --with transparency")


@pytest.fixture(autouse=True)
def room(host: Host) -> Iterator[None]:
    """certspotter with our hook as its only one; no mail yet."""
    shutil.rmtree(ROOM, ignore_errors=True)
    shutil.rmtree(LISTS, ignore_errors=True)
    (ROOM / "hooks.d").mkdir(parents=True)
    (ROOM / "hooks.d" / "mail-foreign").symlink_to(HOOK)
    (ROOM / "state").mkdir()
    shutil.chown(ROOM / "state", USER, USER)
    (ROOM / "watchlist").write_text(".example.org\n")
    host.world.mail.clear()
    yield
    host.world.mail.refuse(False)
    host.world.mail.clear()


def somebody_elses(name: str) -> str:
    """A certificate for this name and a key of somebody else's."""
    place = str(ROOM / "theirs.pem")
    stage.Authority._make(place, str(ROOM / "theirs.key"), name, f"subjectAltName=DNS:{name}\n", [])
    return stage.read(place)


@contextlib.contextmanager
def monitor(certificates: list[str]) -> Iterator[subprocess.Popen[str]]:
    """certspotter, at work on a log that holds these certificates, as the user of its package."""
    authority = stage.Authority()
    log = Log(certificates, *authority.issue("ctlog", "ctlog.stage.test"))
    stage.write(str(ROOM / "logs.json"), log.listed())
    environment = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": authority.bundle,
                   "CERTSPOTTER_CONFIG_DIR": str(ROOM), "CERTSPOTTER_STATE_DIR": str(ROOM / "state")}
    running = subprocess.Popen(["certspotter", "-logs", str(ROOM / "logs.json"), "-verbose"], user=USER, group=USER, extra_groups=[], env=environment, cwd="/",
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield running
    finally:
        running.terminate()
        print(running.communicate()[0])
        log.close()


def looked(count: int) -> None:
    """Wait until certspotter has told its hook of so many certificates, and the hook ended well."""
    stage.wait_for(lambda: len(list((ROOM / "state").rglob("*.notified"))) == count, 60, "certspotter to look at all certificates")


def live(name: str) -> str:
    return stage.read(f"{STATE}/live/{name}/cert.pem")


def test_only_what_is_not_ours_is_mailed(host: Host) -> None:
    """Ours, live and older, pass in silence; one for the same name and another key is a mail, by the way of the watcher's."""
    name = host.add(host.name())
    old = live(name)
    host.run("certdrop", "rotate", name, code=0)
    theirs = somebody_elses(name)
    with monitor([old, theirs, live(name)]):
        looked(3)
    mail, = host.world.mail.messages()
    assert mail.uid == pwd.getpwnam(USER).pw_uid and mail.argv == ("-i", "--", "root")
    assert mail.subject.startswith("[certspotter] ") and "iscovered for .example.org" in mail.subject
    assert "its key is none of yours." in mail.body and name in mail.body and stage.fingerprint(theirs) in mail.body


def test_next_is_in_the_list_before_its_certificate_exists(host: Host) -> None:
    """So no certificate of ours is mailed, however soon certspotter sees it."""
    name = host.add(host.name())
    spki = host.status(name)["next_key_spki_sha256"]
    assert f"{spki} {name}@{host.next(name):04d}\n" in host.run("certdrop-status", "--own-keys", user=USER, code=0).text
    host.run("certdrop", "renew", name, code=0)
    with monitor([live(name)]):
        looked(1)
    assert host.world.mail.messages() == []


def test_a_burnt_key_is_not_ours(host: Host) -> None:
    """A certificate that comes up for it is mailed."""
    name = host.add(host.name())
    stolen = live(name)
    host.run("certdrop", "rotate", name, "--compromised", code=0)
    with monitor([stolen, live(name)]):
        looked(2)
    mail, = host.world.mail.messages()
    assert stage.fingerprint(stolen) in mail.body


def test_what_cannot_be_compared_is_mailed(host: Host) -> None:
    """Where certdrop-status gives no list, our own certificate is mailed, with the reason."""
    name = host.add(host.name())
    os.rename(f"{STATE}/keeper/burnt", f"{STATE}/keeper/burnt.aside") if os.path.exists(f"{STATE}/keeper/burnt") else None
    os.mkdir(f"{STATE}/keeper/burnt")
    try:
        with monitor([live(name)]):
            looked(1)
    finally:
        os.rmdir(f"{STATE}/keeper/burnt")
        os.rename(f"{STATE}/keeper/burnt.aside", f"{STATE}/keeper/burnt") if os.path.exists(f"{STATE}/keeper/burnt.aside") else None
    mail, = host.world.mail.messages()
    assert "as far as could be seen (this host's own keys: certdrop-status: " in mail.body


@pytest.mark.parametrize("mode, mails", [(0o644, 0), (0o666, 1)])
def test_lists_of_other_hosts_count_where_they_are_roots(mode: int, mails: int, host: Host) -> None:
    """A list that others can write is not believed, and that is said."""
    theirs = somebody_elses("other.example.org")
    key = subprocess.run("openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum", shell=True, input=theirs, capture_output=True, text=True,
                         check=True).stdout.split()[0]
    LISTS.mkdir(parents=True)
    stage.write(str(LISTS / "other"), f"{key} other.example.org@0003\n", mode)
    with monitor([theirs]):
        looked(1)
    assert len(host.world.mail.messages()) == mails
    assert all("own-keys.d/other: must be a file that root owns" in mail.body for mail in host.world.mail.messages())


def test_mail_that_does_not_go_out_is_tried_again(host: Host) -> None:
    """certspotter ends, as its unit then starts it again; and it tells the hook of the same certificate."""
    theirs = somebody_elses("www.example.org")
    host.world.mail.refuse()
    with monitor([theirs]) as running:
        assert running.wait(60) != 0
    host.world.mail.refuse(False)
    assert host.world.mail.messages() == []
    with monitor([theirs]):
        looked(1)
    assert len(host.world.mail.messages()) == 1

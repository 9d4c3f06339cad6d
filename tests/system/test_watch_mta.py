"""certdrop-watch through Debian's real mail servers, into a mailbox.

Runs on a stage with the set `exim4` or `postfix` (tests/stage/packages.exim4, packages.postfix); elsewhere there is nothing to test.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stage"))

import world as stage  # noqa: E402

USER, STATE = "_certdrop-watch", "/var/lib/certdrop"
EXIM, POSTFIX = os.path.exists("/usr/sbin/exim4"), os.path.exists("/usr/sbin/postfix")
MAILBOX = "/var/mail/admin"

pytestmark = pytest.mark.skipif(not (EXIM or POSTFIX), reason="no mail server on this stage")


def run(*argv: str, user: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, user=user or None, group=user or None, extra_groups=[] if user else None, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """The mail server, with a local user whose mailbox we read."""
    if run("id", "admin").returncode:
        assert run("adduser", "--quiet", "--disabled-password", "--gecos", "", "admin").returncode == 0
    with open("/etc/aliases", "a") as stream:
        stream.write("root: admin\n")
    if POSTFIX:
        assert run("newaliases").returncode == 0 and run("postfix", "start").returncode == 0
    yield
    if POSTFIX:
        run("postfix", "stop")


def wait_for_mail(subject: str) -> str:
    return stage.wait_for(lambda: os.path.exists(MAILBOX) and subject in stage.read(MAILBOX) and stage.read(MAILBOX), 20, f"a mail: {subject}")


@pytest.mark.parametrize("user", ["", USER], ids=["root", "watcher"])
def test_test_message_is_delivered(server: None, user: str) -> None:
    """--test, by root and by the watcher's own user, ends in the mailbox of root's alias, from the watcher."""
    if os.path.exists(MAILBOX):
        os.unlink(MAILBOX)
    done = run("certdrop-watch", "--test", user=user)
    assert done.returncode == 0 and "handed over for root by /usr/sbin/sendmail" in done.stdout, done
    text = wait_for_mail("a test")
    assert text.startswith(f"From {USER}@") and "mail of certdrop-watch goes this way" in text


def test_alarm_of_the_shut_in_reader_is_delivered(server: None) -> None:
    """The reader has no_new_privs, the sender beside it has not: set-id mail delivery works."""
    name = "mta.example.org"
    assert run("certdrop", "add", name, "--no-issue").returncode == 0
    issuer = pwd.getpwnam("_certdrop")
    path = f"{STATE}/issuer/{name}.json"
    stage.write(path, json.dumps({"count": 4, "class": "dns", "since": int(time.time()) - 9000, "last_error": "no such host"}))
    os.chown(path, issuer.pw_uid, issuer.pw_gid)
    done = run("certdrop-watch", user=USER)
    assert (done.returncode, done.stdout) == (0, "")
    text = wait_for_mail(f"{name}: the first certificate cannot be had")
    assert "dns: no such host" in text and "certdrop renew" in text


@pytest.mark.skipif(not POSTFIX, reason="Postfix is asked here")
def test_certificate_of_a_real_postfix_is_seen_after_starttls(server: None) -> None:
    """What status asks of a mail server, as services.d/postfix.toml describes it, is answered by Postfix with its certificate."""
    certificate, key = stage.Authority().issue("mta", "mta.example.org")
    for line in (f"smtpd_tls_chain_files={key}, {certificate}", "smtpd_tls_security_level=may", "smtpd_tls_cert_file=", "smtpd_tls_key_file="):
        assert run("postconf", "-e", line).returncode == 0
    assert run("postfix", "reload").returncode == 0
    program = ("import sys; sys.path.insert(0, '/usr/share/certdrop')\n"
               "from certdrop.watcher import handshake, places\n"
               "found = places.Places().of(['postfix'], '')\n"
               "print(found, set(handshake.ask([(place, 'mta.example.org', '') for place in found]).values()))\n")
    wanted = stage.fingerprint(stage.read(certificate))
    stage.wait_for(lambda: f"{{'{wanted}'}}" in run("/usr/bin/python3", "-c", program, user=USER).stdout, 20, "Postfix to show its certificate")
    assert "25, 'smtp')" in run("/usr/bin/python3", "-c", program, user=USER).stdout

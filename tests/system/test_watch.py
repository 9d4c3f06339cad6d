"""certdrop-watch as installed: through sendmail and SMTP, as its own user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import time
from collections.abc import Iterator

import pytest

from conftest import STATE, Host

import world as stage

USER = "_certdrop-watch"
PASSWORD_FILE = "/etc/certdrop/smtp-password"
SECRET = "n0t-in-any-log"


@pytest.fixture
def quiet(host: Host) -> Iterator[Host]:
    """A host on which the watcher has told nothing yet, and has nothing to tell."""
    host.run("certdrop-install")
    for name in os.listdir(STATE + "/watcher"):
        os.unlink(f"{STATE}/watcher/{name}")
    host.run("certdrop-watch", user=USER, code=0)
    host.world.mail.clear()
    yield host
    host.world.mail.refuse(False)
    host.world.mail.clear()
    for path in (PASSWORD_FILE, f"{STATE}/watcher/state.json"):
        if os.path.exists(path):
            os.unlink(path)


@pytest.fixture
def failing(quiet: Host) -> Iterator[str]:
    """A site whose first certificate cannot be had."""
    name = quiet.name()
    quiet.run("certdrop", "add", name, "--no-issue", code=0)
    fail(name)
    yield name
    os.unlink(f"{STATE}/issuer/{name}.json")


def fail(name: str) -> None:
    path, issuer = f"{STATE}/issuer/{name}.json", pwd.getpwnam("_certdrop")
    stage.write(path, json.dumps({"count": 4, "class": "dns", "since": int(time.time()) - 9000, "next_try": int(time.time()) + 600,
                                  "last_error": "no such host"}))
    os.chown(path, issuer.pw_uid, issuer.pw_gid)


def use_smtp(host: Host, scheme: str = "smtp+starttls", mode: int = 0o640, bundle: str = "") -> None:
    stage.write(PASSWORD_FILE, SECRET + "\n", mode)
    shutil.chown(PASSWORD_FILE, "root", USER)
    sink = host.world.mail
    host.configure(mail=f'{{ to = ["ops@example.org"], via = "{scheme}://watcher@{sink.host}:{sink.port}", ca_bundle = "{bundle or sink.ca_bundle}" }}')


def test_the_life_of_a_problem_by_sendmail(failing: str, quiet: Host) -> None:
    """Told once when it is new, and once when it is over, by sendmail as the watcher's user; not a word on standard output."""
    for _ in range(2):
        assert quiet.run("certdrop-watch", user=USER, code=0).text == ""
    mail, = quiet.world.mail.messages()
    assert mail.uid == pwd.getpwnam(USER).pw_uid and mail.argv == ("-i", "--", "root")
    assert mail.subject.endswith(f"{failing}: the first certificate cannot be had")
    assert "why:       dns: no such host, " not in mail.body and "dns: no such host" in mail.body and f"certdrop renew {failing}" in mail.body
    quiet.world.mail.clear()
    os.truncate(f"{STATE}/issuer/{failing}.json", 0)
    os.unlink(f"{STATE}/issuer/{failing}.json")
    for _ in range(2):
        quiet.run("certdrop-watch", user=USER, code=0)
    assert [mail.subject.rpartition(": ")[2] for mail in quiet.world.mail.messages()] == ["all is well again"]
    fail(failing)


def test_root_started_is_the_same(failing: str, quiet: Host) -> None:
    """By hand, as root, the mail is the watcher's too."""
    quiet.run("certdrop-watch", code=0)
    assert [mail.uid for mail in quiet.world.mail.messages()] == [pwd.getpwnam(USER).pw_uid]


def test_refusing_sendmail_is_shown_and_tried_again(failing: str, quiet: Host) -> None:
    """75, a line in status and in the log; the next run sends."""
    quiet.world.mail.refuse()
    quiet.run("certdrop-watch", user=USER, code=os.EX_TEMPFAIL)
    assert "mail fails: /usr/sbin/sendmail ended with 75" in quiet.run("certdrop-status").text
    assert "mail fails" in quiet.run("certdrop-status", "--nagios").text
    assert '"mail-failed"' in stage.read("/var/log/certdrop/watcher.log")
    quiet.world.mail.refuse(False)
    quiet.run("certdrop-watch", user=USER, code=0)
    assert len(quiet.world.mail.messages()) == 1
    assert "mail fails" not in quiet.run("certdrop-status").text


def test_silence_of_the_keeper_is_told(quiet: Host) -> None:
    """A stamp of five hours ago is a mail, though nothing else is wrong."""
    name = quiet.name()
    quiet.run("certdrop", "add", name, "--no-issue", code=0)
    os.utime(STATE + "/keeper/last-run", (time.time() - 5 * 3600,) * 2)
    quiet.run("certdrop-watch", user=USER, code=0)
    assert "the keeper has not run for 5h" in quiet.world.mail.messages()[-1].body


def test_changed_modes_are_told(quiet: Host) -> None:
    """A private key that others can read, and a directory that others can write."""
    name = quiet.name()
    quiet.run("certdrop", "add", name, "--no-issue", code=0)
    key = os.path.realpath(f"{STATE}/live/{name}") + "/privkey.pem"
    os.chmod(key, 0o644)
    os.chmod(STATE + "/live", 0o777)
    try:
        quiet.run("certdrop-watch", user=USER, code=0)
    finally:
        os.chmod(key, 0o600)
        os.chmod(STATE + "/live", 0o755)
    body = quiet.world.mail.messages()[-1].body
    assert f"{key} is a private key that others than root may use" in body and f"chmod 0755 {STATE}/live" in body


def test_smtp_with_starttls_and_login(failing: str, quiet: Host) -> None:
    """The password goes to the server, over TLS, and nowhere else: no log, no output."""
    use_smtp(quiet)
    done = quiet.run("certdrop-watch", "--test", code=0)
    quiet.run("certdrop-watch", user=USER, code=0)
    test, alarm = quiet.world.mail.messages()
    assert (test.tls, test.user, test.password, test.recipients) == (True, "watcher", SECRET, ("ops@example.org",))
    assert failing in alarm.subject and "a test message was handed over for ops@example.org" in done.text
    logs = "".join(stage.read(f"/var/log/certdrop/{name}") for name in os.listdir("/var/log/certdrop"))
    assert SECRET not in logs + done.text


def test_smtp_that_nobody_vouches_for_gets_no_password(quiet: Host) -> None:
    """A certificate that the bundle does not know: no login, no mail, one clear line."""
    use_smtp(quiet, bundle="/etc/ssl/certs/ca-certificates.crt")
    done = quiet.run("certdrop-watch", "--test", code=os.EX_TEMPFAIL)
    assert quiet.world.mail.messages() == [] and SECRET not in done.text


def test_password_that_others_can_read_is_not_used(quiet: Host) -> None:
    """The check says what is wrong and how to mend it."""
    use_smtp(quiet, mode=0o644)
    assert "chmod 640" in quiet.run("certdrop-watch", "--check", code=os.EX_CONFIG).text


@pytest.mark.parametrize("mail, said", [('{ via = "pigeon" }', "mail.via"), ('{ to = ["-oQ/tmp"] }', "mail.to"), ('{ too = ["root"] }', "unknown key")])
def test_wrong_configuration_is_one_line(quiet: Host, mail: str, said: str) -> None:
    """78, the file, the key."""
    quiet.configure(mail=mail)
    done = quiet.run("certdrop-watch", user=USER, code=os.EX_CONFIG)
    assert said in done.text and done.text.count("\n") == 1


def test_reader_cannot_read_the_password_or_start_anything(quiet: Host) -> None:
    """The kernel's answer to code inside the installed reader."""
    stage.write(PASSWORD_FILE, SECRET, 0o640)
    shutil.chown(PASSWORD_FILE, "root", USER)
    program = ("import os, sys; sys.path.insert(0, '/usr/share/certdrop')\n"
               "from certdrop.watcher import command\n"
               "command.shut_in({443})\n"
               f"for attempt in (lambda: open({PASSWORD_FILE!r}), lambda: os.execv('/bin/true', ['true']), os.fork, lambda: os.listdir('/etc'),\n"
               "                lambda: open('/tmp/x', 'w'), lambda: os.kill(1, 0)):\n"
               "    try:\n"
               "        attempt(); print('DONE')\n"
               "    except OSError as error:\n"
               "        print(error.strerror)\n")
    done = quiet.run("/usr/bin/python3", "-c", program, user=USER, code=0)
    assert "DONE" not in done.text and len(done.text.splitlines()) == 6, done


@pytest.mark.parametrize("shell, code, said", [
    ("trap '' CHLD; certdrop-status", 0, ""),
    ("certdrop-status >&- 2>&- <&-", 0, ""),
    ("certdrop-status > /dev/full", 3, "No space left"),
    ("certdrop-watch >&- 2>&- <&-", 0, ""),
    ("trap '' CHLD; certdrop-watch", 0, ""),
    ("ulimit -n 30; certdrop-watch", 0, ""),
    ("ulimit -n 20; certdrop-status --nagios", 0, "CERTDROP OK"),
    ("umask 077; certdrop-watch; certdrop-status", 0, "watcher ran"),
    ("umask 0; certdrop-watch && stat -c %a /var/lib/certdrop/watcher/state.json", 0, "644")])
def test_odd_callers(quiet: Host, shell: str, code: int, said: str) -> None:
    """Closed descriptors, ignored signals, a full disk, small limits: the programs work, or say so in one line and by their exit code."""
    sites = json.loads(quiet.run("certdrop-status", "--json").text)
    for site in sites:
        if site["severity"]:
            quiet.world.nginx.remove_site(site["name"])
            quiet.run("certdrop", "remove", site["name"])
    if all(site["severity"] for site in sites):
        quiet.add(quiet.name())
    done = quiet.run("bash", "-c", shell)
    assert done.code == code and said in done.text and "Traceback" not in done.text, done


def test_not_everybody_has_a_mail_sent(host: Host) -> None:
    """--test is for root (or the watcher itself): it sends mail in this host's name. So does a run: nobody else's, which sees nothing, raises an alarm."""
    before = len(host.world.mail.messages())
    done = host.run("certdrop-watch", "--test", user="_certdrop-judge", code=os.EX_NOPERM)
    assert "--test must be run as root" in done.text
    done = host.run("certdrop-watch", user="_certdrop-judge", code=os.EX_NOPERM)
    assert "certdrop-watch: must be run as root" in done.text and before == len(host.world.mail.messages())

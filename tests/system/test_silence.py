"""Who would hear of trouble: said by the doctor, by status and at the end of `certdrop add`, from what is so now. There is no systemd on a stage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from conftest import STATE, Host

SENDMAIL = "/usr/sbin/sendmail"
NOBODY = "if cron stops, nobody tells you"
ALIVE, DEAD = "http://127.0.0.1/alive", "http://127.0.0.1:9/dead"


@pytest.fixture
def quiet(host: Host) -> Iterator[Host]:
    """A host with one site, of which the watcher has nothing to tell: no placeholder is of a day's age."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.world.nginx.add_site("alive", "server { listen 80; server_name 127.0.0.1; location /alive { return 200 yes; } }\n")
    host.world.nginx.reload()
    host.run("certdrop-install", code=0)
    yield host
    host.world.nginx.remove_site("alive")
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)
    host.run("rm", "-f", f"{STATE}/watcher/state.json")
    host.configure()


def doctor(host: Host, *argv: str, **more: str) -> dict[str, tuple[str, str]]:
    """The doctor's lines on who hears."""
    lines = json.loads(host.run("certdrop-check", "--offline", "--json", *argv, **more).text)
    return {line["what"]: (line["level"], line["why"]) for line in lines if line["what"] in ("mail", "heartbeat", "silence")}


def beat(host: Host, url: str) -> None:
    """Have this URL fetched."""
    host.configure(mail=f'{{ heartbeat = "{url}" }}')


def test_no_way_out_for_mail(quiet: Host) -> None:
    """No sendmail: the doctor and the end of add say so, and no more when there is one."""
    os.rename(SENDMAIL, SENDMAIL + ".away")
    try:
        level, why = doctor(quiet)["mail"]
        assert level == "warning" and SENDMAIL in why and "nobody is told" in why
        name = quiet.name()
        assert SENDMAIL in quiet.run("certdrop", "add", name, "--no-issue", code=0).text.splitlines()[-1]
    finally:
        os.rename(SENDMAIL + ".away", SENDMAIL)
    assert doctor(quiet)["mail"][0] == "ok"
    quiet.run("certdrop", "remove", name, code=0)


def test_nobody_notices_that_cron_stops(quiet: Host) -> None:
    """Without systemd and without a heartbeat: said by the doctor, by certdrop-watch --check, and last by add, with what to configure; and then no more."""
    names = [quiet.name(), quiet.name()]
    level, why = doctor(quiet)["silence"]
    assert level == "warning" and NOBODY in why
    assert doctor(quiet, user="www-data")["silence"] == (level, why)
    end = quiet.run("certdrop", "add", names[0], "--no-issue", code=0).text.splitlines()[-1]
    assert NOBODY in end and "heartbeat" in end and "--nagios" in end, end
    beat(quiet, ALIVE)
    assert "silence" not in doctor(quiet) and doctor(quiet)["heartbeat"][0] == "ok"
    assert NOBODY not in quiet.run("certdrop", "add", names[1], "--no-issue", code=0).text
    for name in names:
        quiet.run("certdrop", "remove", name, code=0)


def test_a_heartbeat_that_fails_is_shown(quiet: Host) -> None:
    """By status, Nagios and the doctor, until it is taken; and no longer than it is configured."""
    beat(quiet, DEAD)
    quiet.run("certdrop-watch", user="_certdrop-watch", code=75)
    for text in (quiet.run("certdrop-status").text, quiet.run("certdrop-status", "--nagios").text):
        assert "the heartbeat fails: " in text and "Connection refused" in text and "mail fails" not in text
    assert doctor(quiet)["heartbeat"][0] == "warning"
    assert "takes this host for dead" in quiet.run("certdrop-watch", "--check", code=0).text
    quiet.configure()
    assert "heartbeat" not in quiet.run("certdrop-status").text and "heartbeat" not in doctor(quiet)
    beat(quiet, ALIVE)
    quiet.run("certdrop-watch", user="_certdrop-watch", code=0)
    assert "heartbeat" not in quiet.run("certdrop-status").text and doctor(quiet)["heartbeat"][0] == "ok"


def test_the_run_that_finds_all_well_again_beats(quiet: Host) -> None:
    """A mail that all is well again is no reason to let the heartbeat out."""
    beat(quiet, DEAD)
    quiet.run("certdrop-watch", user="_certdrop-watch", code=75)
    with open(f"{STATE}/watcher/state.json", encoding="ascii") as stream:
        noted = json.load(stream)
    noted["told"] = {"x:failing": 1}
    with open(f"{STATE}/watcher/state.json", "w", encoding="ascii") as stream:
        json.dump(noted, stream)
    before = len(quiet.world.mail.messages())
    beat(quiet, ALIVE)
    quiet.run("certdrop-watch", user="_certdrop-watch", code=0)
    assert "all is well again" in quiet.world.mail.messages()[before].subject
    with open("/var/log/certdrop/watcher.log", encoding="ascii") as stream:
        events = [json.loads(line)["event"] for line in stream]
    assert events[-3:] == ["mailed", "heartbeat", "looked"]

"""What goes wrong in front of the keyboard: one clear line, the right exit code, and nothing changed."""

from __future__ import annotations

import os
import subprocess
from typing import Iterator

import pytest
from conftest import CONFIG, SPOOL, STATE, Host, stage


def inventory() -> str:
    """Every name, type, owner, mode and link below certdrop's directories, but for the stamps of runs (the last one, one that stopped) and locks."""
    passed_over = ("/last-run", "/stopped", "/lock", "/waiting", "/agenda")
    argv = ["find", "/etc/certdrop", STATE, SPOOL, "-type", "d", "-printf", "%p %M %u:%g\\n", "-o", "-printf", "%p %M %u:%g %s %l\\n"]
    found = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
    return "\n".join(sorted(line for line in found.splitlines() if not any(part in line for part in passed_over)))


@pytest.fixture
def unchanged(host: Host) -> Iterator[None]:
    """Nothing may have changed when the test ends."""
    stage.wait_for(lambda: not subprocess.run(["pgrep", "-u", "_certdrop"], stdout=subprocess.PIPE, check=False).stdout, 30,
                   what="the signer of a run before, which may still be writing a key that it was asked to make")
    before = inventory()
    yield
    assert inventory() == before


@pytest.mark.parametrize("argv,code,words", [
    ([], os.EX_USAGE, "what is to be done"),
    (["frobnicate"], os.EX_USAGE, "no such verb"),
    (["ad", "a.example.org"], os.EX_USAGE, "'ad': no such verb; did you mean add? certdrop --help shows how"),
    (["renew", "a.example.org", "--forse"], os.EX_USAGE, "no such option of renew; did you mean --force? certdrop renew --help shows how"),
    (["add", "a.example.org", "--contact=--"], os.EX_USAGE, "no mail address"),
    (["add", "a.example.org", "--contact"], os.EX_USAGE, "--contact needs a value"),
    (["remove", "a.example.org", "--yes=no"], os.EX_USAGE, "--yes takes no value"),
    (["add"], os.EX_USAGE, "needs a domain"),
    (["add", "a.example.org", "--nonsense"], os.EX_USAGE, "no such option"),
    (["add", "a.example.org", "--key", "dsa"], os.EX_USAGE, "ecdsa-p256"),
    (["add", "not_a_host.example.org"], os.EX_DATAERR, "no host name"),
    (["add", "localhost"], os.EX_DATAERR, "no host name"),
    (["add", "-x.example.org", "--"], os.EX_USAGE, "no such option"),
    (["add", "*.example.org", "--validation", "http-01"], os.EX_DATAERR, "no wildcard can be proven by http-01"),
    (["add", "*.*.example.org"], os.EX_DATAERR, "no host name"),
    (["add", "*.org"], os.EX_DATAERR, "no host name"),
    (["add", "a.example.org", "A.example.org"], os.EX_DATAERR, "twice"),
    (["add", "a.example.org", "--contact", "nobody"], os.EX_USAGE, "no mail address"),
    (["add", "a" * 64 + ".example.org"], os.EX_DATAERR, "no host name"),
    (["add", "a.example.org", "--name", "x" * 201], os.EX_DATAERR, "no site's name"),
    (["add", "a.example.org", "--name", "../x"], os.EX_DATAERR, "no site's name"),
    (["add", ".".join(["a" * 60] * 5)], os.EX_DATAERR, "no host name"),
    (["add", "a.example.org", "a.example.org"], os.EX_DATAERR, "twice"),
    (["renew"], os.EX_USAGE, "needs the name of a site"),
    (["renew", "nobody.example.org"], os.EX_DATAERR, "no such site"),
    (["rotate", "nobody.example.org"], os.EX_DATAERR, "no such site"),
    (["rotate", "--all", "a.example.org"], os.EX_USAGE, "not both"),
    (["rollback", "nobody.example.org"], os.EX_DATAERR, "no such site"),
    (["remove", "nobody.example.org"], os.EX_DATAERR, "no such site"),
    (["remove", "../../etc"], os.EX_DATAERR, "no such site")])
def test_certdrop_refuses(host: Host, unchanged: None, argv: list[str], code: int, words: str) -> None:
    """One line that says what is wrong."""
    done = host.run("certdrop", *argv, code=code)
    assert words in done.text and len(done.text.splitlines()) == 1, done


def test_a_site_that_exists(host: Host) -> None:
    """A second `add` of the same name says what to do instead."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    before = inventory()
    done = host.run("certdrop", "add", name, code=os.EX_DATAERR)
    assert "this site exists" in done.text and f"certdrop renew {name}" in done.text
    assert inventory() == before


@pytest.mark.parametrize("program", ["certdrop", "certdrop-install"])
def test_not_root(host: Host, unchanged: None, program: str) -> None:
    """Somebody who is not root is told so."""
    argv = [f"/usr/sbin/{program}", *(["renew", "x.example.org"] if program == "certdrop" else [])]
    done = host.run(*argv, user="_certdrop-watch", code=os.EX_NOPERM)
    assert "must be run as root" in done.text and len(done.text.splitlines()) == 1


@pytest.mark.parametrize("text,words", [
    ("directroy = \"letsencrypt\"\n", "the nearest known one is directory"),
    ("directory = 3\n", "must be a string"),
    ("directory = \"http://ca.example.org\"\n", "https://"),
    ("key = \"dsa\"\n", "ecdsa-p256"),
    ("key_max_age = \"6 months\"\n", "180d"),
    ("= nonsense\n", "certdrop.toml")])
def test_a_wrong_configuration(host: Host, text: str, words: str) -> None:
    """Names the file, the key and what would be right; nothing is changed."""
    with open(CONFIG, "w") as stream:
        stream.write(text)
    before = inventory()
    for argv in (["certdrop", "add", "x.example.org"], ["certdrop-install"]):
        done = host.run(*argv, code=os.EX_CONFIG)
        assert words in done.text and CONFIG in done.text and len(done.text.splitlines()) == 1, done
    assert inventory() == before


@pytest.mark.parametrize("changes,words", [({"workers": "0"}, "from 1 to 128"), ({"mail": '{ vai = "x" }'}, "the nearest known one is via")])
def test_what_root_does_not_use(host: Host, changes: dict[str, str], words: str) -> None:
    """It is refused in the same way by the administrator's verbs and by whom it concerns; root's own run does its work all the same."""
    name = host.add(host.name())
    host.configure(**changes)
    before, live = inventory(), host.live(name)
    for argv in (["certdrop", "add", "x.example.org"], ["certdrop", "renew", name], ["certdrop-account", "show"]):
        done = host.run(*argv, code=os.EX_CONFIG)
        assert words in done.text and CONFIG in done.text and len(done.text.splitlines()) == 1, done
    assert words in host.run("certdrop-check", "--offline").text
    assert inventory() == before
    host.run("certdrop-install", code=0)
    assert host.live(name) == live
    host.configure()


def test_a_configuration_that_others_can_write(host: Host, unchanged: None) -> None:
    """A file that somebody else may write is not believed."""
    os.chmod(CONFIG, 0o666)
    done = host.run("certdrop-install", code=os.EX_CONFIG)
    os.chmod(CONFIG, 0o644)
    assert "chmod 644" in done.text


def test_a_bad_site_does_not_stop_the_others(host: Host) -> None:
    """One site's file is wrong: that is said, and another site is renewed in the same run."""
    bad, good = host.name(), host.add(host.name())
    number = host.next(good)
    with open(f"/etc/certdrop/sites.d/{bad}.toml", "w") as stream:
        stream.write('domain = ["x"]\n')
    try:
        host.run("certdrop", "renew", "--force", good, code=0)
        done = host.run("certdrop-install", code=os.EX_CONFIG)
        assert "the nearest known one is domains" in done.text
        assert host.live(good) == number
    finally:
        os.unlink(f"/etc/certdrop/sites.d/{bad}.toml")


def test_no_nginx(host: Host, unchanged: None) -> None:
    """Without nginx nothing is added, and the line says how to get it."""
    os.rename("/usr/sbin/nginx", "/usr/sbin/nginx.away")
    try:
        done = host.run("certdrop", "add", "x.example.org", code=os.EX_CONFIG)
        assert "nginx is not installed" in done.text and len(done.text.splitlines()) == 1
    finally:
        os.rename("/usr/sbin/nginx.away", "/usr/sbin/nginx")


def test_no_ca_answers(host: Host) -> None:
    """The CA is away: the site is added with its placeholder, the message says what comes next, 75."""
    name = host.name()
    host.configure(directory='"https://ca.stage.test:1/dir"')
    done = host.run("certdrop", "add", name, code=os.EX_TEMPFAIL)
    assert "the placeholder stays" in done.text
    assert host.live(name) == 1 and os.listdir(SPOOL + "/challenges") == []


def test_the_ca_refuses(host: Host) -> None:
    """A name that the CA does not allow: its own words reach the administrator, and the live pair stays."""
    host.world.pebble.restart(blocked=["blocked.example.net"])
    host.configure()
    try:
        done = host.run("certdrop", "add", "blocked.example.net")
        assert done.code in (os.EX_DATAERR, os.EX_TEMPFAIL)
        assert "rejectedIdentifier" in done.text, repr(done)
        assert host.live("blocked.example.net") == 1
    finally:
        host.world.pebble.restart(blocked=[])
        host.run("certdrop", "remove", "blocked.example.net", code=0)


@pytest.mark.parametrize("tool", ["certdrop", "certdrop-install", "certdrop-issue", "certdrop-account", "certdrop-status", "certdrop-watch", "certdrop-nginx",
                                  "certdrop-import", "certdrop-check", "certdrop add", "certdrop-account show"])
def test_nobody_listens(host: Host, unchanged: None, tool: str) -> None:
    """Help that nobody can read is no error, and no traceback: standard output is closed, or full."""
    for where in (">&-", ">/dev/full"):
        done = host.run("sh", "-c", f"{tool} --help {where}")
        assert "Traceback" not in done.text and (done.code == 0 or where != ">&-"), (where, done)

"""Rotation: a new key is posted, used when its certificate came and is proven, and the old one serves until then; and the way back."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Iterator

import pytest
import world as stage
from conftest import SPOOL, STATE, Host
from forger import INSTALL, Case, Forger

SITES_D = "/etc/certdrop/sites.d"
CHALLENGE = "include /etc/nginx/snippets/certdrop-challenge.conf;\n"


@pytest.fixture(scope="module")
def forger() -> Forger:
    """One CA for all of these tests."""
    return Forger()


@pytest.fixture
def case(host: Host, forger: Forger) -> Iterator[Case]:
    """A site with a certificate, that nginx serves."""
    forger.trust(host)
    found = Case(host, forger)
    found.serve("80,443 ssl", rest=CHALLENGE)
    found.install()
    yield found
    host.world.nginx.remove_site(found.name)
    host.world.nginx.reload()
    host.run("certdrop", "remove", found.name, code=0)


@pytest.fixture
def alone(case: Case) -> Iterator[Case]:
    """The same, with all other sites' configuration put aside: what is done to all sites is done to this one."""
    others = [entry for entry in os.listdir(SITES_D) if entry != f"{case.name}.toml"]
    for entry in others:
        os.rename(f"{SITES_D}/{entry}", f"{SITES_D}/{entry}.aside")
    yield case
    for entry in others:
        os.rename(f"{SITES_D}/{entry}.aside", f"{SITES_D}/{entry}")


def key(case: Case) -> str:
    """The live private key."""
    return stage.read(f"{STATE}/live/{case.name}/privkey.pem")


def spki(case: Case, number: int) -> str:
    """The SHA-256 of a generation's public key, as openssl has it."""
    text = case.host.run("sh", "-c", f"openssl pkey -in {STATE}/sites/{case.name}/{number:04d}/privkey.pem -pubout -outform DER | sha256sum", code=0).text
    return text.split()[0]


def set_age(case: Case, days: int) -> None:
    """Let the key that live has, and next carries on, have been made so many days ago."""
    for number in (case.host.live(case.name), case.host.next(case.name)):
        path = f"{STATE}/sites/{case.name}/{number:04d}/request.json"
        stage.write(path, json.dumps({**json.loads(stage.read(path)), "key_created": int(time.time()) - days * 86400}))


def keep_keys(case: Case, days: int) -> None:
    """Have the site keep its key for a while."""
    stage.write(f"{SITES_D}/{case.name}.toml", f'domains = ["{case.name}"]\nkey_max_age = "{days}d"\n')


def test_next_is_known_before_it_is_used(case: Case) -> None:
    """rotate --next posts a new key, shows its hash (as status does), asks for nothing now; the next certificate is for that key."""
    live, number, shown = case.host.live(case.name), case.host.next(case.name), case.host.served(case.name)
    done = case.host.run("certdrop", "rotate", "--next", case.name, code=0)
    next_key = spki(case, number + 1)
    assert next_key in done.text and case.host.status(case.name)["next_key_spki_sha256"] == next_key
    assert case.host.posted(case.name) == [f"{case.name}@{number + 1:04d}.csr"]                  # the one before is withdrawn; no .now
    assert case.host.live(case.name) == live and case.host.served(case.name) == shown
    assert case.install() == number + 1
    assert spki(case, case.host.proven(case.name)) == next_key and case.served


def test_a_rotation_that_the_ca_does_not_answer(case: Case) -> None:
    """It stays posted and wanted, the command fails and says so; the old certificate serves; a later run, cron's, finishes it."""
    old, live, number = key(case), case.host.live(case.name), case.host.next(case.name)
    case.host.world.pebble.stop()
    done = case.host.run("certdrop", "rotate", case.name)
    assert done.code in (os.EX_TEMPFAIL, os.EX_UNAVAILABLE) and "cron goes on trying" in done.text, done
    assert case.host.posted(case.name) == [f"{case.name}@{number:04d}.csr", f"{case.name}@{number:04d}.now"]
    assert case.host.live(case.name) == live and case.served
    assert case.install() == number == case.host.proven(case.name)
    assert key(case) != old
    assert case.host.posted(case.name) == [f"{case.name}@{number + 1:04d}.csr"]


def test_cancel_withdraws_the_wish(case: Case) -> None:
    """--cancel takes back that it is wanted now, and leaves the key posted for its time."""
    number = case.host.next(case.name)
    case.host.world.pebble.stop()
    case.host.run("certdrop", "rotate", case.name)
    case.host.run("certdrop", "rotate", "--cancel", case.name, code=0)
    assert case.host.posted(case.name) == [f"{case.name}@{number:04d}.csr"]
    case.host.run(INSTALL, code=0)
    assert case.host.posted(case.name) == [f"{case.name}@{number:04d}.csr"]


def test_the_old_one_serves_until_the_new_is_accepted(case: Case) -> None:
    """A reply that is refused changes nothing that is served, and the request stays."""
    number, shown = case.host.next(case.name), case.host.served(case.name)
    case.forger.answer(case.host, case.name)
    path = f"{SPOOL}/replies/{case.name}@{number:04d}.pem"
    text = stage.read(path)
    with open(path, "w") as stream:
        stream.write(text[:200])
    case.host.run(INSTALL, code=os.EX_DATAERR)
    assert case.host.served(case.name) == shown and case.host.next(case.name) == number
    with open(path, "w") as stream:
        stream.write(text)
    case.host.run(INSTALL, code=0)
    assert case.host.proven(case.name) == number and case.served


def test_a_kept_key_is_rotated_when_it_is_due(alone: Case) -> None:
    """rotate --due leaves a key that is young, and changes one that is older than key_max_age, with a certificate."""
    keep_keys(alone, 30)
    alone.host.run("certdrop", "rotate", "--next", alone.name, code=0)
    alone.install()
    old, live = key(alone), alone.host.live(alone.name)
    set_age(alone, 29)
    alone.host.run("certdrop", "rotate", "--due", code=0)
    assert (key(alone), alone.host.live(alone.name)) == (old, live)
    set_age(alone, 31)
    alone.host.run("certdrop", "rotate", "--due", code=0)
    assert key(alone) != old and alone.host.proven(alone.name) > live and alone.served


def test_a_due_key_is_posted_without_a_command(alone: Case) -> None:
    """The hourly run alone posts a new key, wanted now, where one is older than key_max_age: the issuer does the rest."""
    keep_keys(alone, 30)
    alone.install()
    old = key(alone)
    set_age(alone, 31)
    alone.host.run(INSTALL, code=0)
    assert any(entry.endswith(".now") for entry in alone.host.posted(alone.name))
    alone.install()
    assert key(alone) != old and alone.served


def test_a_renewal_keeps_a_kept_key(case: Case) -> None:
    """Until it is due, every next one carries the key."""
    keep_keys(case, 30)
    case.host.run("certdrop", "rotate", "--next", case.name, code=0)
    case.install()
    old = key(case)
    for _ in range(2):
        case.install()
        assert key(case) == old and case.served


def test_rotate_all(alone: Case) -> None:
    """--all rotates every site."""
    other = Case(alone.host, alone.forger)
    other.serve("80,443 ssl", rest=CHALLENGE)
    other.install()
    keys = key(alone), key(other)
    alone.host.run("certdrop", "rotate", "--all", code=0)
    assert key(alone) not in keys and key(other) not in keys and alone.served and other.served
    alone.host.world.nginx.remove_site(other.name)
    alone.host.world.nginx.reload()
    alone.host.run("certdrop", "remove", other.name, code=0)


def test_another_kind_of_key(case: Case) -> None:
    """A changed `key` is posted by the next run, and is what the next certificate is for."""
    with open(f"{SITES_D}/{case.name}.toml", "a") as stream:
        stream.write('key = "rsa-2048"\n')
    case.host.run(INSTALL, code=0)
    case.install()
    text = case.host.run("openssl", "x509", "-in", f"{STATE}/live/{case.name}/cert.pem", "-noout", "-text", code=0).text
    assert "rsaEncryption" in text and case.served and case.host.pair_matches(case.name)


def test_three_generations_are_kept(case: Case) -> None:
    """Besides next, the newest three; of the others nothing is left, their private keys least of all."""
    for _ in range(5):
        case.install()
    live = case.host.live(case.name)
    assert sorted(os.listdir(f"{STATE}/sites/{case.name}")) == [f"{number:04d}" for number in range(live - 2, live + 2)]


def test_rollback_and_on(case: Case) -> None:
    """The one before serves, a fresh next with another key is posted; the withdrawn one does not come back, and the next certificate is installed."""
    first, shown = case.host.live(case.name), case.host.served(case.name)
    second = case.install()
    withdrawn = key(case)
    case.host.run("certdrop", "rollback", case.name, code=0)
    assert case.host.served(case.name) == shown and case.standing() == (first, first, second + 2)
    case.host.run(INSTALL, code=0)
    assert case.standing() == (first, first, second + 2) and case.served
    case.install()
    assert case.standing() == (second + 2, second + 2, second + 3) and case.served and key(case) != withdrawn


def test_rollback_is_refused_without_a_generation_that_serves(case: Case) -> None:
    """Neither to a placeholder nor to a certificate that has expired; nothing changes."""
    before = case.standing()
    done = case.host.run("certdrop", "rollback", case.name, code=os.EX_DATAERR)
    assert "no earlier generation" in done.text and case.standing() == before
    case.install()
    before = case.standing()
    path = f"{STATE}/sites/{case.name}/{before[0] - 1:04d}/cert.json"
    stage.write(path, re.sub('"not_after": [0-9]+', f'"not_after": {int(time.time()) - 1}', stage.read(path)))
    done = case.host.run("certdrop", "rollback", case.name, code=os.EX_DATAERR)
    assert "has expired" in done.text and case.standing() == before and case.served


@pytest.mark.parametrize("argv, code", [(["rotate"], 64), (["rotate", "nobody.example.org"], 65), (["rotate", "a", "--all"], 64),
                                        (["rollback", "a", "b"], 64), (["rotate", "--nxet", "a"], 64), (["rotate", "--all", "--name", "x"], 64)])
def test_what_is_not_understood(host: Host, argv: list[str], code: int) -> None:
    """A word that is missing, unknown or too many: the right exit status, and nothing is done."""
    host.run("certdrop", *argv, code=code)


DHPARAM = f"{STATE}/dhparam.pem"
DH_CONF = "/etc/nginx/conf.d/dh.conf"


@pytest.fixture
def dh(host: Host) -> Iterator[Host]:
    """nginx told to use the parameters; an openssl whose search ends at once, in a group that is known."""
    assert "nginx does not use it: no line of its configuration names it" in host.run("certdrop", "dhparam", "2048", code=0).text
    stage.write(DH_CONF, f"ssl_dhparam {DHPARAM};\n")
    os.rename("/usr/bin/openssl", "/usr/bin/openssl.real")
    stage.write("/usr/bin/openssl", '#!/bin/sh\nid -un > /tmp/dh-user; printf "..+..*\\n" >&2\n[ "$*" = "dhparam -2 3072" ] && cat /tmp/group.pem\n', 0o755)
    yield host
    os.rename("/usr/bin/openssl.real", "/usr/bin/openssl")
    os.unlink(DH_CONF)
    host.world.nginx.reload()
    os.unlink(DHPARAM)


def test_a_group_of_rfc_7919_is_there_at_once(dh: Host) -> None:
    """nginx takes it; sites whose RSA key is longer are named."""
    name = dh.name()
    dh.run("certdrop", "add", name, "--key", "rsa-3072", "--no-issue", code=0)
    done = dh.run("certdrop", "dhparam", "2048", code=0)
    assert f"{name}: warning" in done.text and "does not use it" not in done.text
    assert "warning" not in dh.run("certdrop", "dhparam", code=0).text
    text = dh.run("/usr/bin/openssl.real", "dhparam", "-in", DHPARAM, "-noout", "-text", code=0).text
    assert "ffdhe3072" in text and dh.world.nginx.test()[0]
    dh.run("certdrop", "remove", name, code=0)


def test_a_group_of_our_own(dh: Host) -> None:
    """openssl searches it as _certdrop-judge; what it prints is checked; rotate --due searches another when it is old."""
    dh.run("certdrop", "dhparam", "3072", code=0)
    stage.write("/tmp/group.pem", stage.read(DHPARAM))
    dh.run("certdrop", "dhparam", "2048", code=0)
    dh.run("certdrop", "dhparam", "3072", "--own", code=0)
    assert stage.read(DHPARAM) == stage.read("/tmp/group.pem") and stage.read("/tmp/dh-user") == "_certdrop-judge\n"
    stage.write("/tmp/group.pem", "nonsense\n")
    assert "stay" in dh.run("certdrop", "dhparam", "3072", "--own", code=os.EX_DATAERR).text
    assert "DH PARAMETERS" in stage.read(DHPARAM)
    os.unlink("/tmp/dh-user")
    stage.write(f"{STATE}/keeper/dhparam.json", json.dumps({"bits": 3072, "own": True, "made": int(time.time()) - 181 * 86400}))
    aside = [entry for entry in os.listdir(SITES_D) if entry.endswith(".toml")]
    for entry in aside:
        os.rename(f"{SITES_D}/{entry}", f"{SITES_D}/{entry}.aside")
    dh.run("certdrop", "rotate", "--due", code=os.EX_DATAERR)
    for entry in aside:
        os.rename(f"{SITES_D}/{entry}.aside", f"{SITES_D}/{entry}")
    assert stage.read("/tmp/dh-user") == "_certdrop-judge\n"


def test_parameters_that_nginx_does_not_take_are_taken_back(dh: Host) -> None:
    """The file is as it was, and the command says why."""
    before = stage.read(DHPARAM)
    stage.write("/etc/nginx/conf.d/other.conf", "bogus;\n")
    try:
        assert "stay" in dh.run("certdrop", "dhparam", "4096", code=os.EX_DATAERR).text
    finally:
        os.unlink("/etc/nginx/conf.d/other.conf")
    assert stage.read(DHPARAM) == before

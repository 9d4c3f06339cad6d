"""Revocation, with a real CA: root's word, carried out by the issuer, tried again until the CA did it, and shown on the way."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time
from typing import Any

import pytest
import world as stage
from between import URN, Between, jws
from conftest import SPOOL, STATE, Host

CERTDROP = ["certdrop", "revoke"]
NOTES = f"{STATE}/issuer/revocations.json"


@pytest.fixture
def name(host: Host) -> str:
    """A site, served, with a certificate of the CA's in generation 2."""
    return host.add(host.name())


def at_ca(host: Host, pem: str) -> str:
    """"Valid" or "Revoked", says the CA, of a certificate."""
    done = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=pem, stdout=subprocess.PIPE, text=True, check=True)
    return host.world.pebble.status(done.stdout.strip().removeprefix("serial="))


def pem(name: str, number: int) -> str:
    return stage.read(f"{STATE}/sites/{name}/{number:04d}/cert.pem")


def shown(host: Host, name: str) -> dict[str, Any]:
    """The one revocation that status shows."""
    (found,) = host.status(name)["revocations"]
    return dict(found)


def unreachable(host: Host) -> None:
    """The way to the CA is cut; the CA itself goes on, and forgets nothing."""
    host.configure(proxy='"http://127.0.0.1:9"')


def let_time_pass() -> None:
    """To the end of the back-off."""
    note({entry: {**one, "next_try": 1} for entry, one in json.loads(stage.read(NOTES)).items()})


def note(found: dict[str, Any]) -> None:
    """Have the issuer remember this."""
    with open(NOTES, "r+", encoding="ascii") as stream:      # the issuer's file stays the issuer's
        stream.truncate(0)
        json.dump(found, stream)


def asked(host: Host) -> int:
    """How often the CA was asked to revoke something."""
    return host.world.pebble.requests().count("POST /revoke-cert")


def test_a_replaced_certificate_is_revoked(host: Host, name: str) -> None:
    """The one before, by its number: the CA has it revoked, the live one not; once done it is not asked for again; the request stays."""
    old, before = host.live(name), asked(host)
    host.run("certdrop", "renew", "--force", name, code=0)
    done = host.run(*CERTDROP, name, "--number", str(old), "--reason", "superseded", "--yes", code=0)
    assert "is revoked" in done.text and "still served" not in done.text
    assert (at_ca(host, pem(name, old)), at_ca(host, pem(name, host.live(name)))) == ("Revoked", "Valid")
    assert f"{name}@{old:04d}.revoke" in host.posted(name)
    found = shown(host, name)
    assert (found["state"], found["reason"], found["generation"]) == ("revoked", "superseded", old) and host.status(name)["severity"] == 0
    host.run("certdrop-issue", user="_certdrop", code=0)
    host.run(*CERTDROP, name, "--number", str(old), "--yes", code=0)
    assert asked(host) == before + 1


def test_the_live_one_is_revoked_only_with_a_warning(host: Host, name: str) -> None:
    """Nobody to be asked: nothing is done. With --yes it is done, and said what that means; the next certificate ends it."""
    live = host.live(name)
    assert "--yes confirms" in host.run(*CERTDROP, name, code=os.EX_DATAERR).text
    assert at_ca(host, pem(name, live)) == "Valid" and len(host.posted(name)) == 1
    done = host.run(*CERTDROP, name, "--yes", code=0)
    assert "still served" in done.text and "rotate" in done.text
    assert at_ca(host, pem(name, live)) == "Revoked" and host.served(name) == host.on_disk(name)
    assert "it is revoked, says the issuer: run certdrop rotate" in host.status(name)["last_error"]
    host.run("certdrop", "renew", name, code=0)
    assert host.live(name) > live and host.status(name)["last_error"] is None
    assert "is revoked" in host.run("certdrop", "rollback", name, code=os.EX_DATAERR).text


def test_a_terminal_is_asked(host: Host, name: str) -> None:
    """No means no; yes, and it goes on in a session of its own."""
    for answer, state in (("n", "Valid"), ("y", "Revoked")):
        script = f"import pty, os; pid, fd = pty.fork(); pid or os.execlp('certdrop', 'certdrop', 'revoke', '{name}'); os.write(fd, b'{answer}\\n')\n" \
            "while True:\n    try:\n        os.read(fd, 1000) or exit()\n    except OSError:\n        break\nos.waitpid(pid, 0)"
        host.run("python3", "-c", script)
        assert at_ca(host, pem(name, host.live(name))) == state


def test_a_failure_is_shown_and_tried_again(host: Host, name: str) -> None:
    """The CA cannot be reached: root's word stays, status says so and why; under its back-off nobody asks; then any run does it."""
    live = host.live(name)
    unreachable(host)
    done = host.run(*CERTDROP, name, "--yes", code=os.EX_TEMPFAIL)
    assert "is not revoked" in done.text and "cron goes on trying" in done.text
    found = shown(host, name)
    assert found["state"] == "failing" and found["next_try"] and "refused" in found["last_error"]
    host.configure()
    before = asked(host)
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert asked(host) == before and at_ca(host, pem(name, live)) == "Valid"
    let_time_pass()
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert at_ca(host, pem(name, live)) == "Revoked" and shown(host, name)["state"] == "revoked"


def test_revoked_already_is_done(host: Host, name: str) -> None:
    """The issuer was killed after the CA had done it, and before it noted that: it asks again, and is content."""
    host.run(*CERTDROP, name, "--yes", code=0)
    before = asked(host)
    note({entry: one for entry, one in json.loads(stage.read(NOTES)).items() if not entry.startswith(name + "@")})
    assert shown(host, name)["state"] == "pending"
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert asked(host) == before + 1 and shown(host, name)["state"] == "revoked"


def test_a_ca_that_refuses(host: Host, name: str) -> None:
    """A certificate of another account's: what the CA says is shown, and an administrator's exit code is that of a refusal."""
    unreachable(host)
    host.run(*CERTDROP, name, "--yes", code=os.EX_TEMPFAIL)
    host.configure()
    aside = []
    for path in [*pathlib.Path(f"{STATE}/account").glob("*.key"), *pathlib.Path(f"{STATE}/issuer").glob("account@*")]:
        aside.append((path, path.rename(f"/root/{path.name}")))
    done = host.run(*CERTDROP, name, "--yes", code=None)
    assert done.code in (os.EX_DATAERR, os.EX_TEMPFAIL) and "unauthorized" in done.text, done
    assert "unauthorized" in shown(host, name)["last_error"] and "unauthorized" in host.run("certdrop-status", name).text
    for path, there in aside:
        os.replace(there, path)
    host.run(*CERTDROP, name, "--yes", code=0)
    assert at_ca(host, pem(name, host.live(name))) == "Revoked"


@pytest.mark.parametrize("takes, problem", [([0], "badRevocationReason"), ([0], "malformed"), ([4], "badRevocationReason")])
def test_a_ca_that_demands_a_reason(host: Host, between: Between, takes: list[int], problem: str) -> None:
    """And says so in one word or another: it is told one that root left open; nothing was given by hand."""
    name = host.add(host.name())
    host.run("certdrop", "renew", "--force", name, code=0)
    sent = []

    def refusing(path: str, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        if "revoke" not in path:
            return None
        reason = jws(body)[1].get("reason")
        sent.append(reason)
        return None if reason in takes else (400, {}, json.dumps({"type": URN + problem, "detail": "Malformed payload."}).encode())
    between.refusal = refusing                         # type: ignore[method-assign]
    old = host.live(name)
    host.run("certdrop", "renew", "--force", name, code=0)
    host.run("certdrop", "revoke", name, "--number", str(old), "--yes", code=0)
    assert sent == [None, 0, 4][:[0, 4].index(takes[0]) + 2] and at_ca(host, pem(name, old)) == "Revoked"
    assert [one["state"] for one in host.status(name)["revocations"]] == ["revoked"]


def test_it_outlives_the_site_and_ends_with_the_certificate(host: Host, name: str) -> None:
    """Removing the site withdraws its other requests; the issuer carries on; after not_after root takes the request back."""
    live = pem(name, host.live(name))
    unreachable(host)
    host.run(*CERTDROP, name, "--reason", "cessationOfOperation", "--yes", code=os.EX_TEMPFAIL)
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)
    (left,) = host.posted(name)
    host.configure()
    let_time_pass()
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert at_ca(host, live) == "Revoked"
    host.run("certdrop-install", code=0)
    assert host.posted(name) == [left]
    path = f"{SPOOL}/requests/{left}"
    found = json.loads(stage.read(path))
    stage.write(path, json.dumps({**found, "not_after": int(time.time()) - 1}))
    host.run("certdrop-install", code=0)
    assert host.posted(name) == []


@pytest.fixture(scope="module")
def quiet(session_host: Host) -> str:
    """One site for all that is refused."""
    return session_host.add(session_host.name(), serve=False)


@pytest.mark.parametrize("argv, code, says", [
    (["nobody.example.org"], 65, "no such site"), (["../etc"], 65, "no such site"), ([], 64, "needs the name"),
    (["NAME", "--number", "7"], 65, "kept are those of: 0002 (live)"),
    (["NAME", "--number", "1"], 65, "there is no certificate"), (["NAME", "--number", "x"], 64, "--number"),
    (["NAME", "--reason", "removeFromCRL"], 64, "--reason"),
    (["NAME", "OTHER"], 64, "needs the name"), (["NAME", "--all"], 64, "no such option")])
def test_what_cannot_be_revoked(host: Host, quiet: str, argv: list[str], code: int, says: str) -> None:
    """A placeholder, what is not there, reasons that only a CA may give: refused, and nothing is posted."""
    done = host.run(*CERTDROP, *(quiet if word == "NAME" else word for word in argv), "--yes", code=code)
    assert says in done.text and len(host.posted(quiet)) == 1


def test_a_key_that_got_out_is_the_graver_reason(host: Host, name: str) -> None:
    """A revocation that the CA could not be asked for yet becomes one for the compromised key, in root's notes and in what the CA is sent."""
    old = host.live(name)
    host.world.pebble.stop()
    host.run(*CERTDROP, name, "--reason", "superseded", "--yes", code=os.EX_TEMPFAIL)
    assert json.loads(stage.read(f"{SPOOL}/requests/{name}@{old:04d}.revoke"))["payload"]["reason"] == 4
    host.run("certdrop", "rotate", name, "--compromised", code=os.EX_TEMPFAIL)
    assert json.loads(stage.read(f"{SPOOL}/requests/{name}@{old:04d}.revoke"))["payload"]["reason"] == 1
    assert json.loads(stage.read(f"{STATE}/keeper/{name}.json"))["revoke"][f"{old:04d}"]["reason"] == "keyCompromise"

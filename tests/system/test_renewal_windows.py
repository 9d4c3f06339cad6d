"""When certificates are renewed, against a real CA: renewal windows moved through its management interface, profiles, replaces, plans."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import STATE, Host
from renewal import ca, gone_afterwards, restart

import world as stage

__all__ = ["ca", "gone_afterwards"]


def ledger(name: str) -> dict[str, Any]:
    """What the issuer remembers of a site."""
    found: dict[str, Any] = json.loads(stage.read(f"{STATE}/issuer/{name}.json"))
    return found


def leaf(name: str) -> str:
    return stage.read(f"{STATE}/live/{name}/cert.pem")


def now() -> datetime:
    return datetime.now(timezone.utc)


def window(host: Host, name: str, start: float, end: float) -> None:
    """Set the CA's window for the live certificate (hours from now), and have the issuer ask for it again."""
    host.world.pebble.set_renewal_info(leaf(name), now() + timedelta(hours=start), now() + timedelta(hours=end))
    forget_window(name)


def forget_window(name: str) -> None:
    """Make the next poll due, as time would."""
    path = f"{STATE}/issuer/{name}.json"
    found = ledger(name)
    found["poll_at"] = 1
    stage.write(path, json.dumps(found))
    os.chown(path, *owner())


def owner() -> tuple[int, int]:
    found = os.stat(STATE + "/issuer")
    return found.st_uid, found.st_gid


def issue(host: Host, *argv: str, code: int | None = 0) -> str:
    return host.run("certdrop-issue", *argv, code=code).text


def asked(host: Host, since: int) -> list[str]:
    return host.world.pebble.requests()[since:]


def test_a_fresh_certificate_is_left_alone(host: Host) -> None:
    """The CA's window is asked for once; then a run does nothing, and uses no network."""
    name = host.add(host.name())
    issue(host)
    assert ledger(name)["window_end"] > time.time() and ledger(name)["renew_why"] == "the CA's renewal window"
    before = len(host.world.pebble.requests())
    number = host.next(name)
    issue(host, "--cron")
    assert asked(host, before) == [] and host.next(name) == number


def test_a_window_in_the_past_means_now(host: Host) -> None:
    """As after a mass revocation: the next poll renews, the order names what it replaces, and the new certificate is installed."""
    name = host.add(host.name())
    issue(host)
    live = host.live(name)
    window(host, name, -48, -24)
    issue(host, "--cron")
    host.run("certdrop-install", code=0)       # for the issuer, root installs a site once an hour at most
    assert host.live(name) == live + 1 and host.served(name) == host.on_disk(name)
    assert '"replaces": true' in stage.read("/var/log/certdrop/issuer.log").splitlines()[-1]


def test_a_window_to_come_is_waited_for(host: Host) -> None:
    """One moment in the window is chosen and kept; it moves only with the window."""
    name = host.add(host.name())
    issue(host)
    window(host, name, 5, 50)
    issue(host)
    first = ledger(name)["renew_at"]
    assert time.time() + 4.9 * 3600 < first < time.time() + 50.1 * 3600
    issue(host, name)
    assert ledger(name)["renew_at"] == first
    window(host, name, 100, 101)
    issue(host)
    assert time.time() + 99.9 * 3600 < ledger(name)["renew_at"] < time.time() + 101.1 * 3600


@pytest.mark.parametrize("answer", ["{", "[]", '{"suggestedWindow": 3}', '{"suggestedWindow": {"start": "x", "end": "y"}}', "[" * 100000,
                                    '{"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}}'])
def test_a_window_that_makes_no_sense_is_passed_over(host: Host, answer: str) -> None:
    """The window that was known stays, and the run is fine."""
    name = host.add(host.name())
    issue(host)
    before = ledger(name)
    host.world.pebble.set_renewal_answer(leaf(name), answer)
    forget_window(name)
    issue(host)
    after = ledger(name)
    assert after["window_end"] == before["window_end"] and after["poll_at"] > time.time() and after["polls_failed"] == 1


def test_a_replaced_certificate_is_not_named_twice(host: Host) -> None:
    """Where the CA knows the certificate as replaced already, the order is placed again without saying so."""
    name = host.add(host.name())
    number = host.next(name)
    issue(host, "--force", "--no-install", name)
    os.unlink(f"/var/spool/certdrop/replies/{name}@{number:04d}.pem")
    issue(host, "--force", "--no-install", name)
    assert '"replaces": false' in stage.read("/var/log/certdrop/issuer.log").splitlines()[-1]


def test_a_profile_is_asked_for(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """The profile of a site decides about the lifetime; a short one leaves a half, not a third."""
    restart(host, profiles={"shortlived": 160 * 3600, "classic": 90 * 86400})
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    with open(f"/etc/certdrop/sites.d/{name}.toml", "a") as stream:
        stream.write('profile = "shortlived"\n')
    host.serve(name)
    host.run("certdrop", "renew", name, code=0)
    found = json.loads(stage.read(f"{STATE}/live/{name}/cert.json"))
    assert abs(found["not_after"] - found["not_before"] - 160 * 3600) < 3700


def test_an_unknown_profile_lists_what_there_is(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """Refused here, with the names of those that the CA offers, and without an order."""
    restart(host, profiles={"shortlived": 160 * 3600, "classic": 90 * 86400})
    host.configure(profile='"tlsserver"')
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    before = len(ca.requests())
    text = issue(host, "--verbose", "--no-install", name, code=os.EX_DATAERR)
    assert 'no profile "tlsserver"; it offers classic, shortlived' in text
    assert not [line for line in asked(host, before) if "order" in line]


def test_an_alternate_chain(host: Host, ca: stage.Pebble) -> None:  # noqa: F811
    """The chain that leads to the preferred root is taken."""
    restart(host, alternate_roots=2)
    roots = stage.read(ca.root())
    wanted = roots.split("-----END CERTIFICATE-----\n")[1] + "-----END CERTIFICATE-----\n"
    common_name = openssl(host, wanted, "-subject").rpartition("= ")[2].strip()
    host.configure(preferred_chain=f'"{common_name}"')
    name = host.add(host.name())
    chain = stage.read(f"{STATE}/live/{name}/chain.pem")
    last = chain[chain.rindex("-----BEGIN"):]
    assert common_name in openssl(host, last, "-issuer")


def openssl(host: Host, pem: str, what: str) -> str:
    """What openssl says of a certificate."""
    path = stage.write("/tmp/certificate.pem", pem)
    return host.run("openssl", "x509", "-in", path, "-noout", what, "-nameopt", "multiline", code=0).text


def test_the_plan_changes_nothing(host: Host) -> None:
    """--plan says what is due, when and why; it uses no network and writes nothing."""
    name, other = host.add(host.name()), host.name()
    issue(host)
    host.run("certdrop", "add", other, "--no-issue", code=0)
    before, files = len(host.world.pebble.requests()), listing()
    lines = {line.split()[0]: line for line in issue(host, "--plan").splitlines()}
    assert "the CA's renewal window" in lines[name] and lines[other].split(maxsplit=2)[1:] == ["now", "root wants it now"]
    assert asked(host, before) == [] and listing() == files


def listing() -> list[tuple[str, int]]:
    """What there is, and when it was written; but for the lock, which names its holder."""
    return sorted((f"{parent}/{entry}", os.stat(f"{parent}/{entry}").st_mtime_ns) for top in (STATE + "/issuer", "/var/spool/certdrop", STATE + "/account")
                  for parent, _, entries in os.walk(top) for entry in entries if entry != "lock")


def test_a_dry_run_keeps_nothing(host: Host) -> None:
    """A whole order, and neither reply, nor ledger, nor account, nor token."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    before, files = len(host.world.pebble.requests()), listing()
    assert "thrown away" in issue(host, "--dry-run", name)
    assert any("finalize" in line for line in asked(host, before))
    assert [entry for entry, _ in listing() if "/lock" not in entry] == [entry for entry, _ in files if "/lock" not in entry]


def test_few_requests_for_an_order(host: Host) -> None:
    """Once account and directory are known: at most 8 for one name, and one for each poll that was answered with pending; on one connection."""
    host.add(host.name())
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    before = len(host.world.pebble.requests())
    host.run("certdrop-issue", "--no-install", name, code=0)
    seen = asked(host, before)
    polls = max(0, sum("authZ" in line for line in seen) - 2) + max(0, sum("my-order" in line for line in seen) - 1)
    assert len(seen) - polls <= 8, seen


def test_a_waiting_reply_is_no_reason_to_ask(host: Host) -> None:
    """Until root took it, or refused it; a refused one is a failure under back-off."""
    issue(host, "--no-install", code=None)     # what other tests left
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    host.serve(name)
    issue(host, "--no-install", name)
    before = len(host.world.pebble.requests())
    assert "a reply waits for root" in issue(host, "--verbose", "--no-install", name)
    assert asked(host, before) == []
    reply = f"/var/spool/certdrop/replies/{name}@{host.next(name):04d}.pem"
    stage.write(reply, "nonsense\n", 0o640)
    os.chown(reply, *owner())
    host.run("certdrop-install", code=os.EX_DATAERR)
    text = issue(host, "--verbose", "--no-install", code=None)
    assert not [line for line in asked(host, before) if "order" in line], text
    assert ledger(name)["class"] == "refused" and "grammar" in ledger(name)["last_error"] and ledger(name)["next_try"] > time.time() + 40
    host.run("certdrop", "renew", name, code=0)
    issue(host)
    assert "class" not in ledger(name) and host.served(name) == host.on_disk(name)

"""Whether browsers take what is served: seen anew whenever somebody looks, said by every tool, and mended where the configured CA can."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from conftest import CONFIG, STATE, Host, stage
from forger import Case, Forger

STORE = "/etc/ssl/certs/ca-certificates.crt"
STAGING = "/etc/certdrop/roots.d/letsencrypt-staging.pem"


@pytest.fixture
def site(host: Host) -> Iterator[str]:
    """A site with a certificate of Pebble's, which this host is told to trust."""
    name = host.add(host.name())
    yield name
    if os.path.exists(STAGING):
        os.unlink(STAGING)
    host.configure()
    forget(host, name)


def forget(host: Host, name: str) -> None:
    """Take a site out again: what another test looks at is its own alone."""
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)


def said(host: Host, name: str) -> dict[str, str]:
    """What each tool says of a site's certificate."""
    check = json.loads(host.run("certdrop-check", name, "--offline", "--json").text)
    return {"table": host.run("certdrop-status").text, "page": host.run("certdrop-status", name).text, "nagios": host.run("certdrop-status", "--nagios").text,
            "check": "\n".join(f"{line['level']} {line['what']}: {line['why']}" for line in check if line["what"].startswith(name))}


def be_staging(host: Host) -> None:
    """As after `certdrop add --staging`: its roots are there, under its name, and the CA is the one here."""
    stage.write(STAGING, stage.read(host.world.pebble.root()))
    stage.write(CONFIG, 'directory = "letsencrypt-staging"\n')


def due(host: Host, name: str) -> str:
    """What `certdrop-issue --plan` says of a site."""
    return next(line for line in host.run("certdrop-issue", "--plan", code=0).text.splitlines() if line.startswith(name + " "))


def test_a_private_ca_is_no_matter(host: Host, site: str) -> None:
    """A chain that leads to the configured roots, whichever they are, is fine everywhere."""
    found = host.status(site)
    assert (found["state"], found["severity"], found["refused_by_browsers"], found["last_error"]) == ("serving", 0, False, None)
    assert all("browsers" not in text for text in said(host, site).values())
    assert f'certdrop_refused_by_browsers{{site="{site}"}} 0' in host.run("certdrop-status", "--prometheus").text


def test_a_staging_certificate_is_told_by_every_tool(host: Host, site: str) -> None:
    """Served, and good by staging's roots: a warning, with words, in table, page, JSON, Nagios, Prometheus and the doctor. Nothing is due."""
    be_staging(host)
    found = host.status(site)
    assert (found["state"], found["severity"], found["served"], found["refused_by_browsers"]) == ("serving", 1, True, True)
    texts = said(host, site)
    assert all("browsers refuse the live certificate" in text for text in texts.values()), texts
    assert "warning" in texts["check"] and "staging" in texts["page"] and "CERTDROP WARNING" in texts["nagios"]
    assert host.run("certdrop-status").code == 1
    assert f'certdrop_refused_by_browsers{{site="{site}"}} 1' in host.run("certdrop-status", "--prometheus").text


def test_what_stayed_after_staging_is_told_mailed_and_replaced(host: Host, site: str) -> None:
    """The line is taken out, and nobody says renew: it is critical, and mailed, until the CA that is configured now was asked, which cron does by itself."""
    be_staging(host)
    host.run("rm", "-f", f"{STATE}/watcher/state.json")
    host.configure(trust_roots=f'"{STORE}"')
    found = host.status(site)
    assert (found["state"], found["severity"], found["refused_by_browsers"]) == ("serving", 2, True)
    before = len(host.world.mail.messages())
    host.run("certdrop-watch", code=0)
    mails = host.world.mail.messages()[before:]
    assert len(mails) == 1 and f"{site}: browsers refuse the live certificate" in str(mails[0])
    assert all("browsers refuse the live certificate" in text for text in said(host, site).values())
    host.configure()
    assert host.status(site)["refused_by_browsers"] is False
    host.run("certdrop-watch", code=0)


def test_a_certificate_of_another_ca_is_replaced_by_cron(host: Host) -> None:
    """It came from elsewhere and leads to none of the roots: due at once, asked for by cron's own run, installed by root's; and then nothing more is due."""
    forger = Forger()
    forger.trust(host)
    case = Case(host, forger)
    host.serve(case.name)
    case.install()
    assert host.status(case.name)["state"] == "serving" and "another CA" not in due(host, case.name)
    host.configure()
    assert "now" in due(host, case.name) and "another CA" in due(host, case.name)
    found = host.status(case.name)
    assert found["refused_by_browsers"] and "another CA" in found["renew_reason"], found
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    host.run("certdrop-install", code=0)
    found = host.status(case.name)
    assert (found["state"], found["refused_by_browsers"], found["severity"]) == ("serving", False, 0), found
    assert "another CA" not in due(host, case.name)
    number = host.live(case.name)
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    assert host.live(case.name) == number and not [entry for entry in os.listdir("/var/spool/certdrop/replies") if entry.startswith(case.name)]
    forget(host, case.name)


def test_what_another_client_had_of_a_trusted_ca_is_not_ordered_anew(host: Host) -> None:
    """Nobody noted whose it is, and the roots are fine with it: it is renewed in its time, not before."""
    forger = Forger()
    forger.trust(host)
    case = Case(host, forger)
    host.serve(case.name)
    case.install()
    before = host.on_disk(case.name)
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    host.run("certdrop-install", code=0)
    assert host.on_disk(case.name) == before and host.status(case.name)["refused_by_browsers"] is False
    forget(host, case.name)
    host.configure()


def test_another_directory_in_certdrop_toml_is_another_ca(host: Host, site: str) -> None:
    """By the issuer's own note of where it had the certificate, although every root agrees; seen by the next run of cron, without a word of root's."""
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    assert "another CA" not in due(host, site)
    other = host.world.pebble.directory_url.replace("ca.stage.test", "localhost")
    assert other != host.world.pebble.directory_url
    host.configure(directory=f'"{other}"')
    assert "another CA" in due(host, site)
    before = host.on_disk(site)
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    host.run("certdrop-install", code=0)
    assert host.on_disk(site) != before and "another CA" not in due(host, site)


def test_a_placeholder_is_nobody_s_to_refuse(host: Host) -> None:
    """It is no certificate: nothing is said of browsers."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    assert host.status(name)["refused_by_browsers"] is None
    assert "browsers" not in host.run("certdrop-status", name).text
    host.run("certdrop", "remove", name, code=0)

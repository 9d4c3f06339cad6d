"""certdrop-account with a real CA: registration with and without a binding, a change of keys and what is left where it was killed, the end."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import re
import time

import pytest
from conftest import CONFIG, STATE, Host

import world as stage

KID, SECRET = "customer-1", base64.urlsafe_b64encode(b"a shared secret, of 32 bytes....").decode().rstrip("=")
LOG, EAB = "/var/log/certdrop/issuer.log", "/etc/certdrop/eab.toml"
DAY = 86400


def restart(host: Host, **options: object) -> None:
    """Another CA at the same address, which knows nobody."""
    host.world.pebble.restart(**options)
    host.configure()
    for path in [*pathlib.Path(f"{STATE}/account").iterdir(), *pathlib.Path(f"{STATE}/issuer").glob("account@*")]:
        path.unlink()


@pytest.fixture(autouse=True)
def fresh(host: Host):
    restart(host, eab={})
    yield
    pathlib.Path(EAB).unlink(missing_ok=True)
    restart(host, eab={})


def account(host: Host, *argv: str, code: int = os.EX_OK) -> str:
    return host.run("certdrop-account", *argv, code=code).text


def shown(host: Host, name: str) -> str:
    return re.search(rf"^{name}: +(.*)$", account(host, "show"), re.M)[1]


def files() -> dict[str, bytes]:
    """The keys: by the end of their name."""
    return {path.name.rpartition(".")[2].partition("-")[0]: path.read_bytes() for path in pathlib.Path(f"{STATE}/account").iterdir() if path.suffix != ".url"}


def events() -> list[str]:
    return [json.loads(line)["event"] for line in stage.read(LOG).splitlines()]


@pytest.fixture(scope="module")
def name(session_host: Host) -> str:
    """A site whose request waits for the issuer, whatever was replied to it before."""
    found = session_host.name()
    session_host.run("certdrop", "add", found, "--no-issue", code=0)
    session_host.serve(found)
    return found


def issued(host: Host, name: str) -> bool:
    """Whether the CA gives a certificate: the reply, which root is kept from."""
    reply = pathlib.Path(f"/var/spool/certdrop/replies/{name}@{host.next(name):04d}.pem")
    reply.unlink(missing_ok=True)
    host.run("certdrop-issue", "--force", "--no-install", name, code=0)
    return reply.exists()


def test_register_show_and_contact(host: Host) -> None:
    """The terms are shown, nobody's silence is consent; show has the CA's own words and the CAA record; a new contact is told."""
    assert "certdrop-account register makes it" in account(host, "show", code=os.EX_DATAERR)
    assert "terms of service: data:text/plain" in account(host, "register", code=os.EX_USAGE)
    text = account(host, "register", "--yes")
    place = re.search(r"^account: +(https://ca\.stage\.test:14000/my-account/\w+)$", text, re.M)[1]
    assert re.search(rf'^CAA record: +example\.org\. CAA 0 issue "[^"]+; accounturi={re.escape(place)}; validationmethods=http-01"$', text, re.M)
    assert (shown(host, "status"), shown(host, "contact")) == ("valid", "mailto:hostmaster@example.org")
    assert "there is an account already" in account(host, "register")
    host.configure(contact='["a@example.org", "b@example.org"]')
    account(host, "contact")
    assert (shown(host, "account"), shown(host, "contact")) == (place, "mailto:a@example.org mailto:b@example.org")
    assert events()[-2:] == ["account-registered", "account-contact"]
    host.world.pebble.stop()
    assert place in account(host, "show", code=os.EX_TEMPFAIL)


def test_as_which_user(host: Host) -> None:
    """root becomes _certdrop; nobody else may."""
    account(host, "register", "--yes")
    (path,) = (path for path in pathlib.Path(f"{STATE}/account").iterdir() if path.suffix != ".url")
    assert path.owner() == "_certdrop" and path.stat().st_mode & 0o777 == 0o600
    assert host.run("certdrop-account", "show", user="_certdrop").code == os.EX_OK
    assert host.run("certdrop-account", "show", user="nobody" if host.run("getent", "group", "nobody").code == 0 else "www-data").code == os.EX_NOPERM


def test_a_binding_that_the_ca_demands(host: Host, name: str) -> None:
    """Without one nothing is made, and it is said what is missing; with one, an order makes the account; its secret is neither shown nor logged."""
    restart(host, eab={KID: SECRET})
    text = host.run("certdrop-issue", "--force", "--verbose", name, code=os.EX_DATAERR).text
    assert "without an external account binding" in text and "/etc/certdrop/eab.toml" in text
    stage.write(EAB, f'[letsencrypt]\nkid = "other"\nhmac_key = "AAAA"\n["{host.world.pebble.directory_url}"]\n'
                     f'kid = "{KID}"\nhmac_key = "{SECRET}"\n')
    assert "every user can read this secret" in host.run("certdrop-issue", "--force", "--verbose", name).text
    os.chmod(EAB, 0o640)
    host.run("chgrp", "_certdrop", EAB, code=0)
    text = host.run("certdrop-issue", "--force", "--verbose", "--no-install", name, code=0).text
    assert "registered an account" in text
    os.unlink(EAB)
    assert issued(host, name) and SECRET not in stage.read(LOG) + text


def test_a_wrong_binding(host: Host) -> None:
    """Is the CA's to refuse."""
    restart(host, eab={KID: SECRET})
    stage.write(EAB, f'["{host.world.pebble.directory_url}"]\nkid = "{KID}"\nhmac_key = "{SECRET[::-1]}"\n', 0o640)
    host.run("chgrp", "_certdrop", EAB, code=0)
    assert "external account binding" in account(host, "register", "--yes", code=os.EX_DATAERR)


def test_a_change_of_keys(host: Host, name: str) -> None:
    """The account stays, and orders go on; the key before is kept beside it, and the CA takes it no more."""
    account(host, "register", "--yes")
    place, before = shown(host, "account"), files()
    text = account(host, "rollover")
    after = files()
    assert f"the account {place} has a new key" in text and after["other"] == before["key"] != after["key"]
    assert shown(host, "account") == place and issued(host, name)


@pytest.mark.parametrize("step, follows", [
    ("before it is asked", "issue"), ("before the answer", "issue"), ("before the exchange", "rollover"), ("after the exchange", "issue")])
def test_a_change_of_keys_that_was_killed(host: Host, name: str, step: str, follows: str) -> None:
    """kill -9 at each step: the next run finds the key that the CA holds, of the same account, and goes on with it."""
    account(host, "register", "--yes")
    place = shown(host, "account")
    killer = {"before it is asked": "session.post = lambda *_, **__: killed()", "before the answer": "session.transport.request = after_sending",
              "before the exchange": "holder.exchange = killed", "after the exchange": "counter.log.write = killed"}[step]
    program = f"""
import os, signal, sys
sys.path.insert(0, "/usr/share/certdrop")
from certdrop.issuer import manage

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class Killed(manage.Verbs):
    def __init__(self, config, holder, account, session):
        super().__init__(config, holder, account, session)
        request = session.transport.request

        def after_sending(method, url, body=None, kind=""):
            answer = request(method, url, body, kind)
            if "rollover" in url:
                killed()
            return answer
        counter = self
        make_other = holder.make_other

        def armed():
            make_other()
            {killer}
        holder.make_other = armed
manage.Verbs = Killed
sys.exit(manage.main(["rollover"]))
"""
    stage.write("/usr/local/share/killed.py", program)
    assert host.run("/usr/bin/python3", "-I", "/usr/local/share/killed.py", user="_certdrop").code == -9
    if follows == "rollover":
        account(host, "rollover")
    assert issued(host, name)
    assert shown(host, "account") == place


def test_cron_changes_an_old_key(host: Host) -> None:
    """Once a day, where account_key_max_age says so, and quietly; a young key stays."""
    account(host, "register", "--yes")
    place, before = shown(host, "account"), files()["key"]
    (path,) = pathlib.Path(f"{STATE}/account").glob("*.key")
    stamp = pathlib.Path(f"{STATE}/issuer/account-looked-at")

    def tick(days: int, limit: str) -> bytes:
        host.configure(account_key_max_age=f'"{limit}"')
        (path,) = pathlib.Path(f"{STATE}/account").glob("*.key")
        os.utime(path, (time.time() - days * DAY,) * 2)
        done = host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
        assert done.text == ""
        return files()["key"]
    host.run("certdrop-watch", user="_certdrop-watch")         # whose silence would be told
    stamp.unlink(missing_ok=True)
    assert tick(200, "") == before
    stamp.unlink()
    assert tick(100, "180d") == before
    assert tick(200, "180d") == before, "looked at a moment ago"
    os.utime(stamp, (time.time() - DAY - 5,) * 2)
    assert tick(200, "180d") != before
    assert shown(host, "account") == place and "account-key-changed" in events()


def test_deactivate(host: Host, name: str) -> None:
    """After a question; for ever: the CA says so, the key is set aside, and the next order makes another account."""
    account(host, "register", "--yes")
    place, key = shown(host, "account"), files()["key"]
    assert "there is no terminal to ask at" in account(host, "deactivate", code=os.EX_USAGE) and shown(host, "status") == "valid"
    assert f"the account {place} is deactivated" in account(host, "deactivate", "--yes")
    assert files() == {"deactivated": key}
    assert issued(host, name) and shown(host, "account") != place
    account(host, "deactivate", "--directory", "https://localhost:14000/dir", "--yes", code=os.EX_DATAERR)
    assert shown(host, "status") == "valid"


def test_deactivated_elsewhere(host: Host) -> None:
    """A key of an account that is no more, for whatever reason, is set aside by the same word."""
    account(host, "register", "--yes")
    key = files()["key"]
    account(host, "deactivate", "--yes")
    (aside,) = (path for path in pathlib.Path(f"{STATE}/account").iterdir() if path.suffix != ".url")
    aside.rename(str(aside).partition(".deactivated")[0])
    assert files() == {"key": key}
    account(host, "deactivate", "--yes")
    assert files() == {"deactivated": key}


def test_notes_of_an_older_version_are_found(host: Host, name: str) -> None:
    """Account and contact stand where they stood before there was a signer: no other account is made."""
    account(host, "register", "--yes")
    place = shown(host, "account")
    (notes,) = pathlib.Path(f"{STATE}/issuer").glob("account@*.json")
    notes.rename(f"{STATE}/account/{notes.name.partition('@')[2]}")
    before = len(host.world.pebble.requests())
    assert issued(host, name)
    assert "POST /sign-me-up" not in host.world.pebble.requests()[before:]
    assert shown(host, "account") == place and not list(pathlib.Path(f"{STATE}/account").glob("*.json"))


def test_stagings_roots(host: Host) -> None:
    """Who adds a site with Let's Encrypt's staging is told which roots to fetch, and where to; not where they are."""
    stage.write(CONFIG, 'directory = "letsencrypt-staging"\nservices = []\n')
    assert "> /etc/certdrop/roots.d/letsencrypt-staging.pem" in host.run("certdrop", "add", host.name(), "--no-issue", code=0).text
    roots = pathlib.Path("/etc/certdrop/roots.d/letsencrypt-staging.pem")
    roots.write_text(stage.read(host.world.pebble.root()))
    assert "roots.d" not in host.run("certdrop", "add", host.name(), "--no-issue", code=0).text
    roots.unlink()

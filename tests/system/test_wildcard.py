"""Wildcards, proven by a TXT record that stays (dns-persist-01): with Pebble, which looks the record up, and nginx, which serves what is below."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest
import world as stage
from conftest import STATE, Host
from cryptography import x509
from terminal import Terminal

ISSUER = "pebble.letsencrypt.org"  # what Pebble calls itself in records, unless it is told otherwise
BLOCK = """\
server {{
    listen 443 ssl;
    server_name {names};
    include /var/lib/certdrop/live/{site}/nginx.conf;
    return 200 "wild\\n";
}}
"""


def account(host: Host) -> str:
    """The URL of the account, which is made where there is none."""
    text = host.run("certdrop-account", "register", "--yes", code=0).text
    found = re.search("^account: +(https://\\S+)$", text, re.M)
    assert found, text
    return found[1]


@pytest.fixture
def name(host: Host) -> Iterator[str]:
    """A name that no site has, and after the test no record; nor is a site left that would fail in other tests."""
    found = host.name()
    yield found
    host.world.dns.set_txt(f"_validation-persist.{found}.")
    for path in pathlib.Path("/etc/certdrop/sites.d").glob("*.toml"):
        if "dns-persist-01" in path.read_text(encoding="ascii"):
            host.run("certdrop", "remove", path.name[:-5], code=0)


def publish(host: Host, name: str, *texts: str) -> None:
    host.world.dns.set_txt(f"_validation-persist.{name}.", *texts)


def names_in(site: str) -> set[str]:
    leaf = x509.load_pem_x509_certificate(stage.read(f"{STATE}/live/{site}/cert.pem").encode())
    return set(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName))


def served(name: str) -> str:
    """The serial number of what nginx shows for a name."""
    return subprocess.run(f"openssl s_client -connect 127.0.0.1:443 -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -serial",
                          shell=True, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def test_issued_installed_and_served(host: Host, name: str) -> None:
    """One record proves the name and the wildcard below it; nginx shows the certificate to any name there, and the keeper sees that it does."""
    publish(host, name, "other.example; accounturi=https://other.example/1; policy=wildcard", f"{ISSUER}; accounturi={account(host)}; policy=wildcard")
    host.run("certdrop", "add", f"*.{name.upper()}", "--no-issue", code=0)
    assert stage.read(f"/etc/certdrop/sites.d/{name}.toml") == f'domains = ["*.{name}"]\nvalidation = "dns-persist-01"\n'
    host.world.nginx.add_site(name, BLOCK.format(names=f"*.{name} {name}", site=name))
    host.world.nginx.reload() if host.world.nginx.pid() else host.world.nginx.start(443)
    done = host.run("certdrop", "renew", name, code=0)
    assert "installed, and served" in done.text and os.listdir("/var/spool/certdrop/challenges") == [], done
    assert names_in(name) == {f"*.{name}"} and host.live(name) == host.proven(name) == 2
    live = host.run("openssl", "x509", "-noout", "-serial", "-in", f"{STATE}/live/{name}/cert.pem", code=0).text.strip()
    assert live == served(f"any.{name}") == served(f"other.{name}")
    assert host.status(name)["served"] is True and host.status(name)["domains"] == [f"*.{name}"]
    host.run("certdrop-status", "--html", "/tmp/wild.html")
    assert f"*.{name}" in stage.read("/tmp/wild.html") and f"*.{name}" in host.run("certdrop-status", name).text
    assert host.run("certdrop-status", "--own-keys", code=0).text.count("\n") >= 2
    host.run("certdrop", "add-name", name, name, code=0)
    assert names_in(name) == {name, f"*.{name}"}
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()


def test_the_server_block_that_is_there(host: Host, name: str) -> None:
    """certdrop-nginx --apply has it serve what is below the wildcard by HTTPS, and leads there what comes by http: one label, no other name of the block."""
    other = host.name()
    publish(host, name, f"{ISSUER}; accounturi={account(host)}; policy=wildcard")
    host.world.nginx.add_site(name, f"server {{ listen 80; server_name *.{name} {other}; location / {{ return 200 plain; }} }}\n")
    host.world.nginx.reload() if host.world.nginx.pid() else host.world.nginx.start(80)
    host.run("certdrop", "add", f"*.{name}", code=0)
    host.run("certdrop-nginx", name, "--apply", code=0)
    assert host.fetch(f"x.{name}") == "plain" and host.status(name)["served"] is True
    shown = {each: host.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{each}/").text for each in (f"x.{name}", f"a.b.{name}", other)}
    assert shown == {f"x.{name}": "301", f"a.b.{name}": "200", other: "200"}
    host.run("certdrop-nginx", name, "--undo", code=0)
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()


@pytest.mark.parametrize("said, why", [
    ("", "No TXT records found"), ("{issuer}; accounturi={account}", "policy mismatch"),
    ("{issuer}; accounturi={account}; policy=wildcard; persistUntil=1", "persistUntil")])
def test_a_record_that_does_not_suffice(host: Host, name: str, said: str, why: str) -> None:
    """Who waits hears what the CA says of it; a run that nobody waits for does not ask the CA, and tries again in the next one."""
    publish(host, name, *[said.format(issuer=ISSUER, account=account(host))] * bool(said))
    host.run("certdrop", "add", f"*.{name}", "--no-issue", code=0)
    before = host.world.pebble.requests().count("POST /order-plz")
    host.run("certdrop-issue", user="_certdrop")
    found = host.status(name)
    assert f"_validation-persist.{name}." in found["last_error"] and host.world.pebble.requests().count("POST /order-plz") == before, found
    done = host.run("certdrop", "renew", name)
    assert done.code == os.EX_TEMPFAIL and why in done.text, done
    assert host.status(name)["last_error"] and host.live(name) == 1


def test_what_is_printed_is_what_the_ca_wants(host: Host, name: str) -> None:
    """certdrop add says what to publish, and asks for nothing before it is there; published as printed, a run of cron's goes on by itself."""
    done = host.run("certdrop", "add", f"*.{name}", f"www.{name}", code=os.EX_TEMPFAIL)
    records = re.findall(r'^(_validation-persist\.\S+) IN TXT "([^"]*)"$', done.text, re.M)
    assert [owner for owner, _ in records] == [f"_validation-persist.{name}.", f"_validation-persist.www.{name}."], done
    assert "policy=wildcard" in records[0][1] and "policy" not in records[1][1] and f"certdrop renew {name} asks at once" in done.text
    assert done.text.count(" IN CAA 0 issue ") == 2 and host.live(name) == 1
    for owner, text in records:
        host.world.dns.set_txt(owner, text)
    host.run("certdrop-issue", user="_certdrop", code=0)
    assert names_in(name) == {f"*.{name}", f"www.{name}"} and host.live(name) == 2
    checked = host.run("certdrop-check", name)
    assert f"ok      {name}: names: {name}, www.{name}: the TXT record is there" in checked.text and f"{name}: port 80" not in checked.text, checked
    host.world.dns.set_txt(records[1][0])
    checked = host.run("certdrop-check", name)
    assert f"{records[1][0]}: there is no record; the record of {name} covers it by the draft" in checked.text, checked
    watched = Terminal()
    assert f"{name}: a TXT record that proves its names does not do" in watched.run("certdrop-watch")
    said = host.run("certdrop-account", "show", "--records", name, "--wait", "--until", "2030-01-01")
    assert said.code == os.EX_TEMPFAIL and f"; {name}: it is there" in said.text and f"; www.{name}: there is no record" in said.text, said
    assert "policy=wildcard; persistUntil=1893542399" in said.text and "validationmethods=dns-persist-01" in said.text


def test_a_person_waits(host: Host, name: str) -> None:
    """At a terminal certdrop add waits for the record, and goes on when it is there; Ctrl-C ends the waiting and nothing else."""
    with Terminal() as person:
        person.type(f"certdrop add '*.{name}'\n")
        person.wait("waiting for the record")
        publish(host, name, f"{ISSUER}; accounturi={account(host)}; policy=wildcard")
        person.wait_prompt()
        assert person.code() == 0 and names_in(name) == {f"*.{name}"}
        other = host.name()
        person.type(f"certdrop add '*.{other}'\n")
        person.wait("waiting for the record")
        person.type("\x03")
        assert "cron asks the CA again" in person.wait_prompt()
        assert host.live(other) == 1 and f"{other}@0002.now" in host.posted(other)


def test_a_site_that_is_proven_by_http_stays_so(host: Host) -> None:
    """Not even a record that would do has another challenge answered; and a wildcard is none of its names."""
    name = host.add(host.name())
    text = host.world.pebble.log_text()
    assert "dns-persist-01" not in text.partition(f"validation for {name}")[2].partition("\n")[0]
    done = host.run("certdrop", "add-name", name, f"*.{name}", code=os.EX_DATAERR)
    assert "no wildcard can be proven by http-01" in done.text, done
    with open(f"/etc/certdrop/sites.d/{name}.toml", "w", encoding="ascii") as stream:
        stream.write(f'domains = ["{name}", "*.{name}"]\n')
    assert host.run("certdrop-install").code == os.EX_CONFIG
    with open(f"/etc/certdrop/sites.d/{name}.toml", "w", encoding="ascii") as stream:
        stream.write(f'domains = ["{name}"]\n')


def test_who_changes_the_account_hears_which_records_change(host: Host, name: str) -> None:
    """Before it is over, and not where the key alone is another."""
    host.run("certdrop", "add", f"*.{name}", "--no-issue", code=0)
    before = account(host)
    done = host.run("certdrop-account", "rollover", code=0)
    assert "so no TXT or CAA record changes" in done.text and account(host) == before, done
    with Terminal() as person:
        person.type("certdrop-account deactivate\n")
        assert f"_validation-persist.{name}." in person.wait(r"Deactivate it\?")
        person.type("n\n")
        person.wait_prompt()
    assert account(host) == before


def test_no_other_account_is_ever_printed(host: Host, name: str, tmp_path: pathlib.Path) -> None:
    """Whatever the issuer's notes say, and whoever the CA has an account for: who publishes another's URL gives it certificates for all of this."""
    ours, key, csr = account(host), tmp_path / "key.pem", tmp_path / "csr.pem"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], stderr=subprocess.DEVNULL, check=True)
    subprocess.run(["openssl", "req", "-new", "-key", key, "-subj", f"/CN={host.name()}", "-out", csr], check=True)
    said = host.run("acme-tiny", "--account-key", str(key), "--csr", str(csr), "--acme-dir", str(tmp_path), "--directory-url",
                    host.world.pebble.directory_url, env={**os.environ, "SSL_CERT_FILE": host.world.pebble.ca_bundle}).text
    theirs = re.search(r"Account ID: (\S+)", said)
    assert theirs and theirs[1] != ours, said
    host.run("certdrop", "add", f"*.{name}", "--no-issue", code=0)
    (note,) = pathlib.Path(f"{STATE}/issuer").glob("account@ca.stage.test*.json")
    for forged in (theirs[1], ours + "0", ours + ";policy=wildcard", ours.rpartition("/")[0] + "/../x"):
        note.write_text(json.dumps({**json.loads(note.read_text()), "account": forged, "issuers": [ISSUER, 'x.example"; y']}))
        done = host.run("certdrop-account", "show", "--records", name)
        found = re.findall(r"accounturi=([^;\"\s]+)", done.text)
        assert set(found) <= {ours} and (found or done.code), (forged, done)
        assert f"accounturi={forged}" not in host.run("certdrop-check", name).text
    assert account(host) == ours

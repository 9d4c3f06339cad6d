"""The main job, end to end: add a site, issue, install, serve, renew, rotate, roll back, remove."""

from __future__ import annotations

import os
import stat

from conftest import SPOOL, STATE, Host


def test_add_issues_installs_and_serves(host: Host) -> None:
    """`add` alone brings a site of two names from nothing to a certificate that a browser accepts."""
    name = host.name()
    host.run("certdrop", "add", name, "www." + name, "--no-issue", code=0)
    host.serve(name)
    assert stat.S_IMODE(os.stat(f"{STATE}/live/{name}/privkey.pem").st_mode) == 0o600
    done = host.run("certdrop", "renew", name, code=0)
    assert "installed, and served" in done.text, done
    host.fetch(name)
    host.fetch("www." + name)
    assert host.served(name) == host.on_disk(name)
    assert host.pair_matches(name)
    assert host.live(name) == host.proven(name) == 2
    assert host.status(name)["state"] == "serving"


def test_next_waits_with_another_key(host: Host) -> None:
    """After an installation the next key is made and its request posted, not wanted before its time."""
    name = host.add(host.name())
    assert host.posted(name) == [f"{name}@0003.csr"]
    keys = {host.run("openssl", "pkey", "-in", f"{STATE}/sites/{name}/{number}/privkey.pem", "-pubout").text for number in ("0001", "0002", "0003")}
    assert len(keys) == 3


def test_renew_and_rotate_change_the_key(host: Host) -> None:
    """By default a renewal and a rotation both bring a new key and a new certificate, served."""
    name = host.add(host.name())
    seen = {host.served(name)}
    for verb in (["renew", "--force"], ["rotate"]):
        host.run("certdrop", *verb, name, code=0)
        assert host.served(name) == host.on_disk(name)
        seen.add(host.served(name))
    assert len(seen) == 3


def test_a_kept_key_is_carried_until_rotate(host: Host) -> None:
    """With key_max_age = "180d" a renewal keeps the key, and rotate changes it."""
    name = host.name()
    host.configure(key_max_age='"180d"')
    host.add(name)
    key = open(f"{STATE}/live/{name}/privkey.pem").read()
    host.run("certdrop", "renew", "--force", name, code=0)
    assert open(f"{STATE}/live/{name}/privkey.pem").read() == key
    host.run("certdrop", "rotate", name, code=0)
    assert open(f"{STATE}/live/{name}/privkey.pem").read() != key
    assert host.served(name) == host.on_disk(name)


def test_rollback_serves_the_generation_before(host: Host) -> None:
    """`rollback` has nginx serve the generation before, and posts a fresh next."""
    name = host.add(host.name())
    before, number = host.served(name), host.next(name)
    host.run("certdrop", "rotate", name, code=0)
    assert host.served(name) != before
    host.run("certdrop", "rollback", name, code=0)
    assert host.served(name) == host.on_disk(name) == before
    assert host.next(name) > number + 1


def test_remove_is_refused_while_nginx_needs_the_site(host: Host) -> None:
    """`remove` puts everything back where nginx names the site, and leaves nothing of it where not; its numbers are never used again."""
    name = host.add(host.name())
    number = host.next(name)
    done = host.run("certdrop", "remove", name, code=os.EX_DATAERR)
    assert f"still in use: nginx's configuration names {STATE}/live/{name}/" in done.text
    assert host.served(name) == host.on_disk(name)
    host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)
    assert not os.path.exists(f"{STATE}/sites/{name}") and not host.posted(name)
    host.run("certdrop", "add", name, "--no-issue", code=0)
    assert host.next(name) > number


def test_nothing_is_left_in_the_challenge_directory(host: Host) -> None:
    """Tokens are removed after use."""
    host.add(host.name())
    assert os.listdir(SPOOL + "/challenges") == []


def test_a_changed_list_of_domains_is_asked_for(host: Host) -> None:
    """Editing the site's file is enough: the keeper posts a request for the new names, and the next issue has them."""
    name = host.add(host.name())
    with open(f"/etc/certdrop/sites.d/{name}.toml", "w") as stream:
        stream.write(f'domains = ["{name}", "new.{name}"]\n')
    host.run("certdrop-install", code=0)
    assert len(host.posted(name)) == 2
    host.run("certdrop", "renew", name, code=0)
    text = host.run("openssl", "x509", "-in", f"{STATE}/live/{name}/cert.pem", "-noout", "-ext", "subjectAltName").text
    assert f"DNS:new.{name}" in text

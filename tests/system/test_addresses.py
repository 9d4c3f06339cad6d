"""IP addresses in a certificate (RFC 8738): ordered as what they are, proven, installed, seen served without a name in the handshake."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from typing import Iterator

import pytest
from conftest import STATE, Host, stage
from cryptography import x509

HERE = ["127.0.0.1", *(["::1"] if os.path.exists("/proc/net/if_inet6") else [])]


@pytest.fixture(scope="module")
def site(session_host: Host) -> Iterator[str]:
    """A site of one name and this host's own addresses, served by a block that certdrop-nginx wrote."""
    host, name = session_host, session_host.name()
    host.run("certdrop", "add", *HERE, name, "--name", "addresses", "--no-issue", code=0)
    text = host.run("certdrop-nginx", "addresses", code=0).text
    assert " default_server ssl" in text and f"server_name {' '.join(f'[{each}]' if ':' in each else each for each in HERE)} {name};" in text
    host.world.nginx.add_site("addresses", text.replace("listen 80;", "listen 80 default_server;").replace("listen [::]:80;", "listen [::]:80 default_server;"))
    host.world.nginx.reload() if host.world.nginx.pid() else host.world.nginx.start(443)
    yield "addresses"


def test_issued_installed_and_served(host: Host, site: str) -> None:
    """The certificate names just the addresses and the name, and nginx shows it to who goes to an address."""
    done = host.run("certdrop", "renew", site, code=0)
    assert "installed, and served" in done.text, done
    leaf = x509.load_pem_x509_certificate(stage.read(f"{STATE}/live/{site}/cert.pem").encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.IPAddress)) == set(map(ipaddress.ip_address, HERE)) and len(list(names)) == len(HERE) + 1
    for each in HERE:
        there = f"[{each}]" if ":" in each else each
        host.run("curl", "-sS", "--fail", "--cacert", host.world.pebble.root(), f"https://{there}/", code=0)
    found = host.status(site)
    assert (found["state"], found["served"]) == ("serving", True) and found["domains"][:len(HERE)] == HERE
    assert host.live(site) == host.proven(site) == 2


def test_rotated(host: Host, site: str) -> None:
    """A new key, and the next certificate."""
    assert "installed, and served" in host.run("certdrop", "rotate", site, code=0).text
    assert host.live(site) == host.proven(site) == 3


def test_an_address_alone(host: Host, site: str) -> None:
    """A certificate for one address and nothing else; the site's name is the address."""
    done = host.run("certdrop", "add", "127.0.0.2", code=0)
    assert "issued" in done.text, done
    shown = subprocess.run(["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", f"{STATE}/live/127.0.0.2/cert.pem"],
                           stdout=subprocess.PIPE, text=True, check=True).stdout
    assert shown.split("\n")[1].strip() == "IP Address:127.0.0.2"


def test_the_doctor(host: Host, site: str) -> None:
    """certdrop-check asks for a token at the addresses, looks up no record of theirs, and finds who answers without a name."""
    done = host.run("certdrop-check", site)
    assert f"ok      {site}: port 443" in done.text and f"ok      {site}: port 80" in done.text, done
    assert not any(f"{each}: does not exist" in done.text or f"{each}: has no address" in done.text for each in HERE), done


@pytest.mark.parametrize("text", ["192.0.2", "192.0.2.256", "192.0.02.1", "192.0.2.1/24", "::ffff:192.0.2.1", "fe80::1%eth0", "[::1", "1.2.3.4.5", ":::"])
def test_what_is_no_address(host: Host, text: str) -> None:
    """Said so, and nothing is made."""
    done = host.run("certdrop", "add", text, "--no-issue", code=os.EX_DATAERR)
    assert "no host name" in done.text and ("or an IP address" in done.text or done.text.endswith("; try: certdrop add 192.0.2.1\n"))


def test_the_profile_that_may_name_an_address(host: Host) -> None:
    """Let's Encrypt has one; it is written into the site's file, unless somebody names another."""
    host.configure(directory='"letsencrypt"')
    for argv, expected in ((["192.0.2.7"], 'domains = ["192.0.2.7"]\nprofile = "shortlived"\n'), (["a7.example.org"], 'domains = ["a7.example.org"]\n'),
                           (["2001:db8::7", "--profile", "other"], 'domains = ["2001:db8::7"]\nprofile = "other"\n')):
        host.run("certdrop", "add", *argv, "--no-issue", code=0)
        name = argv[0] if ":" not in argv[0] else "ip6-" + argv[0].replace(":", "-")
        assert stage.read(f"/etc/certdrop/sites.d/{name}.toml") == expected
        host.run("certdrop", "remove", name, code=0)

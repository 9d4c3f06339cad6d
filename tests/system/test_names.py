"""certdrop add-name and drop-name, for real: the file, the server block, one certificate; and all of it undone where nginx says no."""

from __future__ import annotations

import os
import pathlib
from typing import Iterator

import pytest
import world as stage
from conftest import Host
from cryptography import x509

SITES = pathlib.Path("/etc/certdrop/sites.d")
AVAILABLE = pathlib.Path("/etc/nginx/sites-available")


@pytest.fixture
def name(host: Host) -> Iterator[str]:
    """A site that nginx serves by the block that certdrop-nginx wrote; both are taken away."""
    found = host.name()
    host.run("certdrop", "add", found, "--no-issue", code=0)
    host.run("certdrop-nginx", found, "--write", code=0)
    assert host.status(found)["served"]
    yield found
    if os.path.exists(SITES / f"{found}.toml"):
        host.run("certdrop", "remove", found, "--yes", code=0)


def names_of(host: Host, name: str) -> list[str]:
    """Those of the certificate that is served."""
    leaf = x509.load_pem_x509_certificate(stage.served_certificate(name).encode())
    return sorted(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName))


def test_more_names_and_fewer(host: Host, name: str) -> None:
    """One order each; the block answers for them, for challenges too, and is still certdrop's own."""
    www = "www." + name
    done = host.run("certdrop", "add-name", name, www, code=0)
    assert names_of(host, name) == sorted([name, www]) and names_of(host, www) == sorted([name, www]), done
    assert (SITES / f"{name}.toml").read_text() == f'domains = ["{name}", "{www}"]\n'
    assert f"server_name {name} {www};" in (AVAILABLE / name).read_text()
    host.run("certdrop", "drop-name", name, www, code=0)
    assert names_of(host, name) == [name] and f"server_name {name};" in (AVAILABLE / name).read_text()
    assert "already; nothing was changed" in host.run("certdrop", "add-name", name, name, code=0).text
    host.run("certdrop", "remove", name, "--yes", code=0)
    assert not (AVAILABLE / name).exists()                      # it was its own to the end


def test_a_block_that_was_edited_is_left_alone(host: Host, name: str) -> None:
    """The file of the site is changed, and it is said what is for the administrator."""
    block = AVAILABLE / name
    block.write_text(block.read_text() + "# mine\n")
    before = block.read_text()
    done = host.run("certdrop", "add-name", name, "www." + name, "--no-issue", code=0)
    assert f"www.{name}: change server_name there" in done.text and block.read_text() == before
    assert f'"www.{name}"' in (SITES / f"{name}.toml").read_text()
    block.unlink()
    os.unlink(f"/etc/nginx/sites-enabled/{name}")
    host.world.nginx.reload()


def test_nginx_refuses_the_names(host: Host, name: str) -> None:
    """One that is too long for its table of names, which it makes where there are several blocks: all files are as they were, and nothing was asked."""
    host.world.nginx.add_site("other", "server { listen 80; server_name other.example.org; }\n")
    before = (SITES / f"{name}.toml").read_text(), (AVAILABLE / name).read_text()
    done = host.run("certdrop", "add-name", name, f"{'a' * 60}.{'b' * 60}.{name}")
    host.world.nginx.remove_site("other")
    assert done.code and "server_names_hash" in done.text and "all files are as they were" in done.text
    assert before == ((SITES / f"{name}.toml").read_text(), (AVAILABLE / name).read_text()) and host.status(name)["domains"] == [name]


def test_nginx_is_broken(host: Host, name: str) -> None:
    """By something else: nothing is begun."""
    before = (SITES / f"{name}.toml").read_text(), (AVAILABLE / name).read_text()
    broken = pathlib.Path("/etc/nginx/conf.d/broken.conf")
    broken.write_text("nonsense on;\n")
    try:
        done = host.run("certdrop", "add-name", name, "www." + name)
    finally:
        broken.unlink()
    assert done.code and "nonsense" in done.text and "nothing was changed; mend that" in done.text
    assert before == ((SITES / f"{name}.toml").read_text(), (AVAILABLE / name).read_text()) and host.status(name)["domains"] == [name]


@pytest.mark.parametrize("words, code, said", [
    (["add-name", "NAME"], os.EX_USAGE, "the domains that it is to have"), (["drop-name", "NAME", "x.example.org"], os.EX_DATAERR, "is none of its names"),
    (["drop-name", "NAME", "NAME"], os.EX_DATAERR, "certdrop remove"), (["add-name", "none.example.org", "x.example.org"], os.EX_DATAERR, "no such site"),
    (["add-name", "NAME", "my_shop.NAME"], os.EX_DATAERR, "try: certdrop add-name NAME my-shop.NAME"),
])
def test_what_makes_no_sense(host: Host, name: str, words: list[str], code: int, said: str) -> None:
    """It is said why, and nothing is changed."""
    before = (SITES / f"{name}.toml").read_text()
    done = host.run("certdrop", *(word.replace("NAME", name) for word in words), code=code)
    assert said.replace("NAME", name) in done.text and (SITES / f"{name}.toml").read_text() == before


def test_a_name_that_another_block_has(host: Host, name: str) -> None:
    """Its block is named; ours does not take it."""
    other = "other." + name
    host.world.nginx.add_site(other, f"server {{ listen 80; server_name {other}; include snippets/certdrop-challenge.conf; }}\n")
    host.world.nginx.reload()
    done = host.run("certdrop", "add-name", name, other, code=0)
    assert f"{other} has a server block already, at /etc/nginx/" in done.text and other not in (AVAILABLE / name).read_text()
    assert names_of(host, name) == sorted([name, other])
    host.world.nginx.remove_site(other)
    host.world.nginx.reload()

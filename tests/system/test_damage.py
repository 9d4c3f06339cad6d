"""Damage is one site's own: with any file of one site empty, garbled or missing, the other sites are renewed and installed in the same run, status shows all
of them, nginx serves on, and the damaged site gets another certificate."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Callable, Iterator

import pytest
from conftest import STATE, Host
from forger import INSTALL, Forger

import world as stage

HARMS: dict[str, Callable[[pathlib.Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "garbled": lambda path: path.write_bytes(bytes(range(256))) and None,
    "missing": lambda path: path.unlink(),
    "deep": lambda path: path.write_bytes(b"[" * 50000) and None,
}
LINKS: dict[str, Callable[[pathlib.Path], None]] = {
    "empty": lambda path: path.touch(),
    "garbled": lambda path: path.symlink_to("../sites/nowhere/0009"),
    "missing": lambda path: None,
    "deep": lambda path: path.mkdir(),
}
FILES = {
    "live": ["request.json", "cert.json", "cert.pem", "chain.pem", "fullchain.pem", "nginx.conf", "privkey.pem"],
    "next": ["request.json", "request.csr", "privkey.pem"],
    "elsewhere": ["keeper/{name}.json", "live/{name}", "proven/{name}", "/etc/certdrop/sites.d/{name}.toml"],
}


@pytest.fixture(name="sites", scope="module")
def _sites(session_host: Host) -> Iterator[tuple[Forger, list[str]]]:
    """Three sites that nginx serves, whose CA answers at once; two certificates each."""
    host, forger = session_host, Forger()
    forger.trust(host)
    names = [host.name() for _ in range(3)]
    for name in names:
        host.run("certdrop", "add", name, "--no-issue", code=0)
        host.serve(name)
    for _ in range(2):
        for name in names:
            forger.answer(host, name)
        host.run(INSTALL, code=0)
    yield forger, names
    for name in names:
        host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    for name in names:
        host.run("certdrop", "remove", name, code=0)


@pytest.mark.parametrize("what", HARMS)
@pytest.mark.parametrize("entry", [f"{kind} {entry}" for kind, entries in FILES.items() for entry in entries])
def test_the_others_are_renewed_and_the_damaged_one_is_healed(host: Host, sites: tuple[Forger, list[str]], entry: str, what: str) -> None:
    """One run of root's; then status; then the CA's answer for the damaged one."""
    forger, names = sites
    forger.trust(host)
    for one in names:
        stage.write(f"/etc/certdrop/sites.d/{one}.toml", f'domains = ["{one}"]\n')
    name, others = names[1], [names[0], names[2]]
    kind, _, file = entry.partition(" ")
    number = host.live(name) if kind == "live" else host.next(name)
    path = pathlib.Path(STATE, file.format(name=name) if kind == "elsewhere" else f"sites/{name}/{number:04d}/{file}")
    kept = path.read_bytes() if file.endswith(".toml") else b""
    if os.path.islink(path):
        path.unlink()
        LINKS[what](path)
    else:
        HARMS[what](path)
    before = {other: host.live(other) for other in others}
    shown = host.served(name)
    for other in others:
        forger.answer(host, other)
    listed = json.loads(host.run("certdrop-status", "--json").text)
    gone = {name} if file.endswith(".toml") and what == "missing" else set()       # without its file it is no configured site
    assert set(names) - gone <= {site["name"] for site in listed}
    done = host.run(INSTALL)
    assert "Traceback" not in done.text and done.code in (os.EX_OK, os.EX_IOERR, os.EX_CONFIG), done
    for other in others:
        assert host.live(other) == host.proven(other) == before[other] + 1 and host.served(other) == host.on_disk(other)
    assert host.world.nginx.test()[0]
    harmless = what == "missing" and kind == "elsewhere" and not file.startswith("/etc")
    if kind != "elsewhere":
        assert done.code == os.EX_IOERR and name in done.text and file.split(".")[0] in done.text, done
    if file.endswith(".toml"):
        assert path.exists() == (what != "missing") and host.served(name) == shown
        stage.write(str(path), kept.decode())
    assert host.pair_matches(name) and host.served(name) == host.on_disk(name)
    if kind == "live":
        assert host.live(name) < number and f"{name}@{host.next(name):04d}.now" in host.posted(name)
    again = host.run(INSTALL)
    assert again.code == os.EX_OK and not again.text or harmless, again
    forger.answer(host, name)
    host.run(INSTALL, code=0)
    assert host.live(name) == host.proven(name) and host.served(name) == host.on_disk(name) != shown
    assert host.status(name)["state"] == "serving" and host.status(name)["disorder"] == []

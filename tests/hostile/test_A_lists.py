"""Attacks on root's lists: one case, or one place, that would keep the others from being looked at."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from conftest import OTHER, STATE, VICTIM, Ground, stage
from test_4_beyond import replaced

CHAIN = "/usr/share/certdrop/certdrop/judge/chain.py"
MARK = '    """The answer for one reply, in words."""\n'


@pytest.mark.parametrize("words", ["return 'lacks anything'", "return 'accept ' + 'x' * 1000", "os._exit(0)"])
def test_135_a_case_that_speaks_for_the_list(ground: Ground, words: str) -> None:
    """Goal: having taken over the child that parses one reply, keep the other replies of the run from being installed."""
    assert OTHER < VICTIM
    ground.an_hour_passes(forget=True)
    ground.install()                           # what another attack left is done
    asked, real = ground.next(VICTIM), stage.read(CHAIN)
    assert MARK in real
    ground.reply(OTHER)
    ground.reply(VICTIM)
    with replaced(CHAIN, real.replace(MARK, MARK + f'    if "{OTHER}" in expected["names"]:\n        {words}\n'), 0o644):
        ground.install()
    assert ground.live(VICTIM) == asked == ground.proven(VICTIM) and ground.reason(OTHER) == "judge-failed"


@contextlib.contextmanager
def listening(places: list[tuple[str, int]], shows: bool) -> Iterator[None]:
    """Somebody accepts connections there, and shows the other site's certificate, or says nothing for ever."""
    child = os.fork()
    if child == 0:
        try:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(f"{STATE}/live/{OTHER}/fullchain.pem", f"{STATE}/live/{OTHER}/privkey.pem")
            found, kept = [socket.create_server(place, backlog=100, reuse_port=True) for place in places], []
            while True:
                for one in select.select(found, [], [])[0]:
                    connection = one.accept()[0]
                    if not shows:
                        kept.append(connection)
                        continue
                    with contextlib.suppress(OSError), connection, tls.wrap_socket(connection, server_side=True):
                        pass
        finally:
            os._exit(0)
    stage.wait_for(lambda: not socket.socket().connect_ex(places[-1]), what="who listens")
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@contextlib.contextmanager
def beside_nginx(name: str, port: int) -> Iterator[None]:
    """Another service that the victim's site names."""
    path, service = f"/etc/certdrop/sites.d/{VICTIM}.toml", f"/etc/certdrop/services.d/{name}.toml"
    text = stage.read(path)
    stage.write(service, f'test = ["/bin/true"]\nreload = ["/bin/true"]\nport = {port}\n', 0o644)
    stage.write(path, text + f'\nservices = ["nginx", "{name}"]\n', 0o644)
    try:
        yield
    finally:
        stage.write(path, text, 0o644)
        os.unlink(service)


@pytest.mark.parametrize("places, shows", [([("127.0.0.1", 143)], False), ([(f"127.0.1.{number}", 444) for number in range(1, 251)], True)],
                         ids=["one that hangs", "250 that show another certificate"])
def test_136_places_beside_nginx(ground: Ground, places: list[tuple[str, int]], shows: bool) -> None:
    """Goal: by what listens beside nginx, have a good certificate that nginx shows taken for one that is not shown."""
    ground.an_hour_passes(forget=True)
    ground.install()
    asked = ground.next(VICTIM)
    with beside_nginx("beside", places[0][1]), listening(places, shows):
        ground.reply(VICTIM)
        began = time.monotonic()
        ground.install(timeout=400)
        print(f"{time.monotonic() - began:.0f} s")
        assert ground.live(VICTIM) == asked == ground.proven(VICTIM)

"""Nobody notices: clients open TLS connections without pause while keys and certificates change and somebody else reloads nginx.

CERTDROP_ROTATIONS is how many rotations, and as many renewals, are done (20; the bench does 200). The longest stall is printed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
import world as stage
from conftest import STATE, Host
from forger import BUNDLE, Case, Forger

ROUNDS = int(os.environ.get("CERTDROP_ROTATIONS", "20"))
CLIENTS = 4
SITES = 3

# One client: a new session each time, chain and name verified, one request answered; until its standard input ends.
CLIENT = r"""
import hashlib, json, os, select, socket, ssl, sys, time
os.nice(10)                         # what is tested here has few processors, and should get on
roots, first, *names = sys.argv[1:]
context = ssl.create_default_context(cafile=roots)
context.verify_flags &= ~ssl.VERIFY_X509_STRICT     # Python 3.13's default; what is forged here lacks some of RFC 5280's finer points
count, longest, failures, leaves = 0, 0.0, [], set()
while not select.select([0], [], [], 0)[0]:
    name = names[(int(first) + count) % len(names)]
    step, began = "connect", time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", 443), 10) as raw:
            step = "handshake"
            with context.wrap_socket(raw, server_hostname=name) as tls:
                leaves.add(hashlib.sha256(tls.getpeercert(True)).hexdigest())
                longest = max(longest, time.monotonic() - began)
                step = "request"
                tls.sendall(b"GET / HTTP/1.1\r\nHost: " + name.encode() + b"\r\nConnection: close\r\n\r\n")
                if not tls.recv(100).startswith(b"HTTP/1.1 200"):
                    raise ConnectionError("no answer")
    except OSError as error:
        failures.append(f"{time.time():.3f} {name}: {step}: {error!r}")
    count += 1
json.dump({"count": count, "longest": longest, "failures": failures[:20], "failed": len(failures), "leaves": sorted(leaves)}, sys.stdout)
"""


class Clients:
    """Several of them, from start to stop."""

    def __init__(self, roots: str, names: list[str]) -> None:
        self.processes = [subprocess.Popen([sys.executable, "-c", CLIENT, roots, str(number), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                          for number in range(CLIENTS)]

    def stop(self) -> list[dict[str, Any]]:
        """What each of them saw."""
        return [json.loads(process.communicate(b"stop")[0]) for process in self.processes]


class Meddler(threading.Thread):
    """Somebody else, who reloads nginx at random moments."""

    def __init__(self) -> None:
        super().__init__()
        self.ended, self.reloads, self.dice = threading.Event(), 0, random.Random(4)

    def run(self) -> None:
        while not self.ended.wait(self.dice.uniform(0.02, 1.0)):
            subprocess.run(["/usr/sbin/nginx", "-s", "reload"], stderr=subprocess.DEVNULL, check=False)
            self.reloads += 1


def test_no_handshake_fails(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Through rotations, renewals that keep the key, and others' reloads: no failed handshake, no unverified chain, no request unanswered."""
    forger = Forger()
    forger.trust(host, key_max_age='"180d"')
    sites = [Case(host, forger) for _ in range(SITES)]
    for site in sites:
        site.serve()
        site.install()
    names = [site.name for site in sites]
    clients, meddler = Clients(BUNDLE, names), Meddler()
    meddler.start()
    seen, keys = set(), set()
    try:
        for number in range(ROUNDS * 2):
            site = sites[number // 2 % SITES]
            if number % 2:
                host.run("certdrop", "rotate", "--next", site.name, code=0)
            assert site.install() == host.live(site.name) == host.proven(site.name)
            seen.add(host.on_disk(site.name))
            keys.add(stage.read(f"{STATE}/live/{site.name}/privkey.pem"))
    finally:
        meddler.ended.set()
        meddler.join()
        found = clients.stop()
        for name in names:
            host.world.nginx.remove_site(name)
        host.world.nginx.reload()
        for name in names:
            host.run("certdrop", "remove", name, code=0)
    handshakes, stall = sum(one["count"] for one in found), max(one["longest"] for one in found)
    with capsys.disabled():
        print(f"\n{ROUNDS} rotations, {ROUNDS} renewals, {meddler.reloads} reloads by others: {handshakes} handshakes by {CLIENTS} clients, "
              f"{sum(one['failed'] for one in found)} failed, the longest took {stall * 1000:.0f} ms")
    assert [failure for one in found for failure in one["failures"]] == []
    assert len(seen) == ROUNDS * 2 and ROUNDS <= len(keys) <= ROUNDS + SITES
    assert len(seen & {leaf for one in found for leaf in one["leaves"]}) > ROUNDS          # the clients did see them change
    stage.wait_for(lambda: host.world.nginx.workers(), 5, "nginx")

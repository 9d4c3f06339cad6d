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

ROUNDS = int(os.environ.get("CERTDROP_ROTATIONS", "20"))
CLIENTS = 4
SITES = 3

# One client: a new session each time, chain and name verified, one request answered; until its standard input ends.
CLIENT = r"""
import hashlib, json, os, select, socket, ssl, sys, time
os.nice(10)                         # what is tested here has few processors, and should get on
roots, first, *names = sys.argv[1:]
context = ssl.create_default_context(cafile=roots)
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
    """Through rotations, renewals (one site keeps its key in them) and others' reloads: no failed handshake, no unverified chain, no request unanswered."""
    names = [host.name() for _ in range(SITES)]
    for name in names:
        host.run("certdrop", "add", name, "--no-issue", code=0)
        host.world.nginx.add_site(name, f"server {{ listen 80; server_name {name}; include /etc/nginx/snippets/certdrop-challenge.conf; }}\n"
                                  f"server {{ listen 443 ssl; server_name {name}; include {STATE}/live/{name}/nginx.conf; return 200 hello; }}\n")
    with open(f"/etc/certdrop/sites.d/{names[0]}.toml", "a") as stream:
        stream.write('key_max_age = "180d"\n')
    host.world.nginx.reload()
    host.run("certdrop", "renew", *names, code=0)
    assert [host.proven(name) for name in names] == [host.live(name) for name in names]
    clients, meddler = Clients(host.world.pebble.root(), names), Meddler()
    meddler.start()
    seen = set()
    try:
        for number in range(ROUNDS):
            chosen = [name for name in names if name != names[number // 2 % SITES]]        # two at a time
            host.run("certdrop", ("rotate", "renew")[number % 2], *chosen, code=0)
            assert [host.proven(name) for name in chosen] == [host.live(name) for name in chosen]
            seen.update(host.on_disk(name) for name in chosen)
    finally:
        meddler.ended.set()
        meddler.join()
        found = clients.stop()
        for name in names:
            host.world.nginx.remove_site(name)
        host.world.nginx.reload()
    handshakes, stall = sum(one["count"] for one in found), max(one["longest"] for one in found)
    with capsys.disabled():
        print(f"\n{ROUNDS} rotations, {ROUNDS} renewals, {meddler.reloads} reloads by others: {handshakes} handshakes by {CLIENTS} clients, "
              f"{sum(one['failed'] for one in found)} failed, the longest took {stall * 1000:.0f} ms")
    assert [failure for one in found for failure in one["failures"]] == []
    assert len(seen) == ROUNDS * 2
    assert len(seen & {leaf for one in found for leaf in one["leaves"]}) > ROUNDS          # the clients did see them change
    assert stall < 5
    stage.wait_for(lambda: host.world.nginx.workers(), 5, "nginx")

"""This host's own trouble: parts that are killed, full disks, no process to be had. It is told as what it is, and the next run tries again: the CA is
not to blame, so its back-off does not hold. On real processes, file systems and limits; `gate` is where an order is held while that happens."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socketserver
import subprocess
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, Iterator

import pytest
from conftest import SPOOL, STATE, Host
from renewal import gone_afterwards

import world as stage

__all__ = ["gone_afterwards"]

TICK = ["/usr/sbin/certdrop-issue", "--cron", "--verbose"]
FULL = "No space left on device"


class Gate(socketserver.ThreadingTCPServer):
    """Answers challenges in nginx's place, when it is open."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gate.reached.set()
                gate.opened.wait(60)
                with contextlib.suppress(OSError):
                    body = stage.read(f"{SPOOL}/challenges/{self.path.rpartition('/')[2]}").encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass
        super().__init__(("127.0.0.1", 9997), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as found:
        yield found
        found.opened.set()
        found.shutdown()


@pytest.fixture
def name(host: Host, gate: Gate) -> str:
    """A site that waits for its first certificate, and whose challenges are answered at the gate."""
    found = host.name()
    host.run("certdrop", "add", found, "--no-issue", code=0)
    host.world.nginx.add_site(found, f"server {{ listen 80; server_name {found}; location / {{ proxy_pass http://127.0.0.1:9997; }} }}\n"
                              f"server {{ listen 443 ssl; server_name {found}; include {STATE}/live/{found}/nginx.conf; }}\n")
    host.world.nginx.reload()
    return found


def begin(gate: Gate) -> subprocess.Popen[str]:
    """A run of cron's that has placed its order, and waits for the name to be proven."""
    gate.reached.clear()
    gate.opened.clear()
    process = subprocess.Popen(TICK, user="_certdrop", group="_certdrop", extra_groups=[], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    assert gate.reached.wait(60), "no challenge was asked for"
    return process


def end(process: subprocess.Popen[str], code: int) -> str:
    """What the run said."""
    text = process.communicate(timeout=60)[0]
    assert process.returncode == code, (process.returncode, text, stage.log_tails())
    assert "the CA's answers cannot be used" not in text and "Traceback" not in text, text
    return text


def child(pid: int) -> int:
    """The one child of a process."""
    found = [int(word) for task in os.listdir(f"/proc/{pid}/task") for word in stage.read(f"/proc/{pid}/task/{task}/children").split()]
    assert len(found) == 1, found
    return found[0]


def ledger(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stage.read(f"{STATE}/issuer/{name}.json"))
    return found


def log(name: str) -> list[dict[str, Any]]:
    """What the issuer's log has of a site."""
    return [found for line in stage.read("/var/log/certdrop/issuer.log").splitlines() if (found := json.loads(line)).get("site") == name]


def is_told(host: Host, name: str, words: str) -> None:
    """Ledger, log and status say what it was, by its class, and that nothing has to be waited for."""
    found = ledger(name)
    assert found["class"] == "local" and words in found["last_error"] and found["next_try"] <= found["failed_at"] and found["own"] == found["count"]
    assert log(name)[-1]["kind"] == "local" and words in log(name)[-1]["error"]
    assert words in json.dumps(host.status(name)) and words in host.run("certdrop-status", name).text


def heals(host: Host, name: str, gate: Gate) -> None:
    """The next run by cron, with nobody's help, asks the CA and has the site served."""
    gate.opened.set()
    before, asked = host.live(name), len(host.world.pebble.requests())
    text = host.run(*TICK, user="_certdrop", code=0).text
    assert "issued; the reply for request" in text and len(host.world.pebble.requests()) > asked, text
    assert host.live(name) > before and host.served(name) == host.on_disk(name)
    assert "count" not in ledger(name)


# ---- killed

def test_the_signer_is_killed(host: Host, name: str, gate: Gate) -> None:
    """In the middle of an order: one line, 75; the next run places another."""
    process = begin(gate)
    os.kill(child(child(process.pid)), signal.SIGKILL)
    gate.opened.set()
    text = end(process, os.EX_TEMPFAIL)
    assert f"{name}: the signer has ended; the placeholder stays; the next run tries again" in text, text
    is_told(host, name, "the signer has ended")
    assert ledger(name)["cut_off"] == 1
    heals(host, name, gate)


def test_the_network_part_is_killed(host: Host, name: str, gate: Gate) -> None:
    """In the middle of an order: the parent says so, and the next run knows of it from the journal. What goes on to cut off orders is
    under the back-off from the third order on, for each makes the CA work in vain."""
    for count in range(1, 4):
        process = begin(gate)
        os.kill(child(process.pid), signal.SIGKILL)
        assert "the part that talks to the CA was ended by signal 9; the live certificates stay; the next run tries again" in end(process, os.EX_TEMPFAIL)
        gate.opened.set()
        if count < 3:
            assert not os.path.exists(f"{STATE}/issuer/{name}.json") or ledger(name)["own"] == count - 1
    orders = host.world.pebble.requests().count("POST /order-plz")
    host.run(*TICK, user="_certdrop", code=0)
    found = ledger(name)
    assert (found["count"], found["own"], found["cut_off"]) == (3, 2, 3) and found["next_try"] > found["failed_at"] + 40, found
    assert "a run was ended in the middle of an order" in found["last_error"] and host.world.pebble.requests().count("POST /order-plz") == orders
    assert "a run was ended in the middle of an order" in host.run("certdrop-status", name).text
    found["next_try"] = found["failed_at"]
    path = f"{STATE}/issuer/{name}.json"
    with open(path, "r+") as stream:           # it stays the issuer's own
        stream.truncate()
        json.dump(found, stream)
    os.unlink(f"{STATE}/issuer/agenda")
    heals(host, name, gate)


def test_the_network_part_is_killed_once(host: Host, name: str, gate: Gate) -> None:
    """One kill puts nothing off."""
    process = begin(gate)
    os.kill(child(process.pid), signal.SIGKILL)
    end(process, os.EX_TEMPFAIL)
    heals(host, name, gate)


def test_the_whole_run_is_killed(host: Host, name: str, gate: Gate) -> None:
    """As one kill of the network part, which ends with its parent."""
    process = begin(gate)
    network = child(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    stage.wait_for(lambda: not os.path.exists(f"/proc/{network}"), what="the network part to end with its parent")
    heals(host, name, gate)


# ---- full

class Room:
    """A directory on a small file system of its own, beside what was there."""

    def __init__(self, path: str) -> None:
        self.path, self.filler = path, f"{path}/.filler"
        at, aside = os.stat(path), f"/run/aside{path.replace('/', '-')}"
        shutil.rmtree(aside, ignore_errors=True)
        subprocess.run(["cp", "-a", path, aside], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=1m,mode={at.st_mode & 0o777:o},uid={at.st_uid},gid={at.st_gid}", "small", path], check=True)
        subprocess.run(["cp", "-a", f"{aside}/.", path], check=True)

    def fill(self) -> None:
        os.mkdir(self.filler)                  # of which the issuer's tidying does not free us
        with contextlib.suppress(OSError), open(f"{self.filler}/x", "wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)

    def empty(self) -> None:
        shutil.rmtree(self.filler, ignore_errors=True)

    def close(self) -> None:
        self.empty()
        subprocess.run(["cp", "-a", self.path, f"/run/back{self.path.replace('/', '-')}"], check=True)
        subprocess.run(["umount", "-l", self.path], check=True)
        subprocess.run(["cp", "-a", f"/run/back{self.path.replace('/', '-')}/.", self.path], check=True)
        shutil.rmtree(f"/run/back{self.path.replace('/', '-')}")


@contextlib.contextmanager
def small(path: str) -> Iterator[Room]:
    found = Room(path)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("path", [f"{SPOOL}/replies", f"{STATE}/issuer"])
def test_full_before(host: Host, name: str, gate: Gate, path: str) -> None:
    """There is no room for a reply, or for the ledger: the CA is not even asked."""
    asked = len(host.world.pebble.requests())
    with small(path) as room:
        room.fill()
        for _ in range(3):
            text = end(subprocess.Popen(TICK, user="_certdrop", group="_certdrop", extra_groups=[], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True), os.EX_TEMPFAIL)
            assert f"{path}: {FULL}; the placeholder stays; the next run tries again" in text, text
            assert log(name)[-1]["kind"] == "local" and FULL in log(name)[-1]["error"]
        assert len(host.world.pebble.requests()) == asked
        if path.endswith("replies"):
            is_told(host, name, FULL)
        room.empty()
        heals(host, name, gate)


def test_no_room_for_a_token(host: Host, name: str, gate: Gate) -> None:
    """The order is placed, and its token cannot be written: acme-tiny meets it, and it is not taken for an answer of the CA's."""
    with small(f"{SPOOL}/challenges") as room:
        room.fill()
        text = end(subprocess.Popen(TICK, user="_certdrop", group="_certdrop", extra_groups=[], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True), os.EX_TEMPFAIL)
        assert f"{SPOOL}/challenges: {FULL}; the placeholder stays; the next run tries again" in text, text
        is_told(host, name, FULL)
        assert ledger(name)["cut_off"] == 1
        room.empty()
        heals(host, name, gate)


def test_full_when_the_reply_comes(host: Host, name: str, gate: Gate) -> None:
    """There was room when the order was placed, and there is none for its certificate."""
    with small(f"{SPOOL}/replies") as room:
        process = begin(gate)
        room.fill()
        gate.opened.set()
        text = end(process, os.EX_TEMPFAIL)
        assert f"{SPOOL}/replies: {FULL}; the placeholder stays; the next run tries again" in text, text
        is_told(host, name, FULL)
        room.empty()
        heals(host, name, gate)


def test_full_when_the_ledger_is_written(host: Host, name: str, gate: Gate) -> None:
    """The reply came, and how it came cannot be written down: root is called for it all the same, in this very run."""
    with small(f"{STATE}/issuer") as room:
        process = begin(gate)
        before = host.live(name)
        room.fill()
        gate.opened.set()
        assert f"certdrop-issue: {STATE}/issuer/{name}.json: {FULL}; " in end(process, os.EX_TEMPFAIL)
        assert host.live(name) > before and host.served(name) == host.on_disk(name)
        room.empty()
        host.run(*TICK, user="_certdrop", code=0)
        assert "count" not in ledger(name)


# ---- no process to be had

def test_no_process_to_be_had(host: Host, name: str, gate: Gate) -> None:
    """With ever more processes that _certdrop may have: wherever the run meets the limit, it is this host's trouble, and none of the CA's."""
    gate.opened.set()
    met = set()
    for most in range(1, 12):
        process = subprocess.Popen(TICK, user="_certdrop", group="_certdrop", extra_groups=[], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (most, most)))
        text = process.communicate(timeout=60)[0]
        if process.returncode == 0:
            break
        assert process.returncode == os.EX_TEMPFAIL and "Traceback" not in text, (most, text)
        assert "Resource temporarily unavailable" in text or "can't start new thread" in text, (most, text)
        assert "tries again" in text and "next try at" not in text and "the CA" not in text, (most, text)
        met.add(text)
        if os.path.exists(f"{STATE}/issuer/{name}.json"):
            assert ledger(name).get("count", 0) == ledger(name).get("own", 0)
    assert met, "no limit was ever met"
    host.run(*TICK, user="_certdrop", code=0)              # nothing was put off
    assert host.live(name) > 1 and host.served(name) == host.on_disk(name) and "count" not in ledger(name)

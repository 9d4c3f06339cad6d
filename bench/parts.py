"""The parts of the benchmark, each a function of how much is wanted that yields its numbers as they come.  Runs as root inside the stage."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Iterator, Sequence

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "stage"))

import world as stage  # noqa: E402

import clients  # noqa: E402
from certdrop.issuer import plan  # noqa: E402
import measure  # noqa: E402
from forge import Forge  # noqa: E402
from setting import Place, placed  # noqa: E402

SIZES = (1, 100, 1000, 10000)
WORKERS = 16
TRIES = 12
INTERPRETER = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]


class Extent:
    """How much is measured."""

    def __init__(self, rounds: int, large: bool, quick: bool) -> None:
        self.rounds, self.large, self.quick = rounds, large, quick
        self.patience = 6.0 if quick else 15.0     # seconds; a command that takes longer is measured once
        self.budget = 12.0 if quick else 60.0      # seconds that a tick of many sites may be expected to take; beyond that it is left out


def versions() -> dict[str, str]:
    names = ("certdrop", *(rival.package for rival in clients.RIVALS), "nginx", "python3", "python3-cryptography", "openssl", "sudo")
    return {**{name: clients.version(name) for name in names}, "pebble": pebble_version()}


def pebble_version() -> str:
    found = re.search(r"^Version: (\S+)", subprocess.run(["sh", "-c", "cat /opt/stage/DEBIAN/control /opt/stage/pebble.version 2>/dev/null"],
                                                         stdout=subprocess.PIPE, text=True, check=False).stdout, re.MULTILINE)
    return found[1] if found else "Debian testing's"


def made(kinds: Sequence[type[clients.Client]], place: Place) -> list[clients.Client]:
    """The clients, each with an account; one that cannot have one here is left out, and said so."""
    found = []
    for kind in kinds:
        client = kind(place.url, place.world.pebble.root())
        try:
            client.prepare()
            found.append(client)
        except RuntimeError as error:
            say(f"{client.name}: left out: {error}")
    return found


def say(text: str) -> None:
    print(f"bench: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def cost_of(cost: measure.Cost) -> dict[str, float]:
    return {"wall": cost.wall, "cpu": cost.cpu, "memory": cost.memory}


def tick(extent: Extent) -> Iterator[dict[str, Any]]:
    """A run that finds nothing to do."""
    numbers: dict[str, Any] = {"sizes": list(SIZES), "costs": {}}
    with placed() as place:
        known, expected, forge = made((clients.Certdrop, *clients.RIVALS), place), dict[str, float](), Forge()
        call_root()
        for size, before in zip(SIZES, (0, *SIZES)):
            names = [f"s{number:05d}.example.org" for number in range(size)]
            commands: dict[str, tuple[list[str], str]] = {"python3 -I -S -c pass": (INTERPRETER, "")}
            budget = extent.budget if size > 100 else 60.0         # what one site takes is mostly the start
            for client in list(known):
                if size > client.tick_most or expected.get(client.name, 0.0) * size > budget:
                    known.remove(client)
                    continue
                client.forge(names[before:], forge)
                commands[client.name] = ["sh", "-c", client.tick(names)], client.run_as
            commands["certdrop, sudo certdrop-install after it"] = (["sh", "-c", "certdrop-issue --cron; exec sudo -n /usr/sbin/certdrop-install"], "_certdrop")
            commands["certdrop-install, by root's cron"] = (["/usr/sbin/certdrop-install"], "")
            say(f"tick: {size} sites")
            measured = {name: functools.partial(_quiet, place, *command) for name, command in commands.items()}
            for name, cost in measure.rounds(measured, extent.rounds, extent.patience).items():
                numbers["costs"].setdefault(name, {})[str(size)] = cost_of(cost)
                expected[name] = cost.wall / size if cost.wall == cost.wall else extent.budget
            yield numbers


def _quiet(place: Place, argv: list[str], user: str, with_memory: bool) -> measure.Cost:
    """A run that must not order anything; some clients ask for the directory all the same."""
    before = len(place.requests())
    cost = measure.run(argv, user, with_memory)
    orders = [request for request in place.requests()[before:] if "order" in request]
    if orders:
        say(f"{argv[-1][:60]}: this was no tick with nothing due: {orders[0]}")
        return measure.Cost(float("nan"), float("nan"))
    return cost


def call_root() -> None:
    """Nothing may wait when ticks are measured, and what is looked at once a day has been looked at."""
    clients.call("certdrop-install")
    clients.call("certdrop-issue", "--cron")


class Asked:
    """What a piece of work asked of the CA."""

    def __init__(self, place: Place) -> None:
        self.place, self.connections, self.requests = place, place.connections(), len(place.requests())

    def since(self) -> tuple[int, int]:
        """(requests, connections)"""
        return len(self.place.requests()) - self.requests, self.place.connections() - self.connections


def issue(extent: Extent) -> Iterator[dict[str, Any]]:
    """One certificate, and many, with the CA near and far."""
    numbers: dict[str, Any] = {"one": {}, "many": {}}
    with placed() as place:
        known = made((clients.Certdrop, *clients.RIVALS), place)
        certdrop = known[0]
        fresh = (f"i{number:05d}.example.org" for number in range(100000))
        for trip in (0.1, 0.0):
            place.distance(trip)
            rows = {client.name: _one(place, client, fresh) for client in known}
            rows["certdrop, without root's part"] = _one(place, certdrop, fresh, certdrop.one("NAME") + " --no-install")
            numbers["one"][str(trip)] = found = _measured(rows, extent.rounds, extent.patience)
            say(f"one certificate at {trip * 1000:.0f} ms: " + ", ".join(f"{name} {row['wall']:.2f}" for name, row in found.items()))
            yield numbers
            fastest = min((client for client in known[1:] if not client.trips), key=lambda client: float(found[client.name]["wall"]))
            many: dict[str, Callable[[], dict[str, float]]] = {}
            for client in known:
                if client.trips or extent.quick and client not in (certdrop, fastest):
                    continue
                count = 50 if client is certdrop or client is fastest and (trip or not extent.quick) else 5
                many[client.name] = _many(place, client, fresh, count, client.many)
            many["certdrop, without root's part"] = _many(place, certdrop, fresh, 50, lambda names: certdrop.many(names) + " --no-install")
            many[f"{fastest.name}, xargs -P {WORKERS}"] = _many(place, fastest, fresh, 50, lambda names: fastest.xargs(names, WORKERS))
            if extent.large:
                many["certdrop, 500"] = _many(place, certdrop, fresh, 500, certdrop.many)
                many[f"{fastest.name}, 500, xargs -P {WORKERS}"] = _many(place, fastest, fresh, 500, lambda names: fastest.xargs(names, WORKERS))
            numbers["many"][str(trip)] = found = _measured(many, min(extent.rounds, 3), extent.patience)
            say(f"many at {trip * 1000:.0f} ms: " + ", ".join(f"{name} {row['wall']:.2f}" for name, row in found.items()))
            yield numbers


def _one(place: Place, client: clients.Client, fresh: Iterator[str], command: str = "") -> Callable[[], dict[str, float]]:
    def work() -> dict[str, float]:
        name = next(fresh)
        client.expect([name])
        row = _issue(place, client, [name], (command or client.one("NAME")).replace("NAME", name))
        for name in itertools.islice(fresh, TRIES if client.trips else 0):
            if not row["failed"]:
                break
            row = _issue(place, client, [name], client.one(name))
        return row
    return work


def _many(place: Place, client: clients.Client, fresh: Iterator[str], count: int, command: Callable[[Sequence[str]], str]) -> Callable[[], dict[str, float]]:
    def work() -> dict[str, float]:
        names = [next(fresh) for _ in range(count)]
        client.expect(names)
        return _issue(place, client, names, command(names))
    return work


def _issue(place: Place, client: clients.Client, names: Sequence[str], command: str) -> dict[str, float]:
    asked = Asked(place)
    try:
        cost = measure.run(["sh", "-c", command], client.run_as, with_memory=len(names) >= 50)
    except measure.Failed as error:
        if not client.trips:
            say(f"{client.name}: {error}")
        return {"wall": float("nan"), "count": len(names), "failed": 1}
    requests, connections = asked.since()
    missing = [name for name in names if not _there(client, name)]
    client.forget(names)
    if missing:
        say(f"{client.name}: no certificate for {len(missing)} of {len(names)}, the first {missing[0]}")
    return {"wall": cost.wall, "cpu": cost.cpu, "memory": cost.memory, "requests": requests, "connections": connections, "count": len(names),
            "failed": len(missing)}


def _there(client: clients.Client, name: str) -> bool:
    if isinstance(client, clients.Certdrop):
        return os.path.exists(client.has(name)) or os.path.exists(f"/var/lib/certdrop/live/{name}/cert.json") and \
            not os.path.exists(f"/var/lib/certdrop/live/{name}/placeholder")
    return os.path.exists(client.has(name))


def _measured(commands: dict[str, Callable[[], dict[str, float]]], rounds: int, patience: float) -> dict[str, dict[str, float]]:
    """The medians, of all that went well; commands that take long run once."""
    import statistics
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, work in commands.items():
            so_far = rows.setdefault(name, [])
            if so_far and so_far[0]["wall"] > patience:
                continue
            so_far.append(work())
    found = {}
    for name, runs in rows.items():
        good = [run for run in runs if not run["failed"]] or runs
        found[name] = {key: statistics.median(run.get(key, 0.0) for run in good) for key in ("wall", "cpu", "memory", "requests", "connections", "count")}
        found[name].update(runs=len(runs), bad=sum(1 for run in runs if run["failed"]))
    return found


class Visitor(threading.Thread):
    """Shakes hands with each of the sites in turn, all the time."""

    def __init__(self, names: Sequence[str], roots: str) -> None:
        super().__init__(daemon=True)
        self.names, self.context = names, ssl.create_default_context(cafile=roots)
        self.count, self.failures, self.slowest = 0, list[str](), 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            for name in self.names:
                began = time.monotonic()
                try:
                    with socket.create_connection(("127.0.0.1", 443), 5) as raw, self.context.wrap_socket(raw, server_hostname=name):
                        self.count += 1
                except OSError as error:
                    self.failures.append(f"{name}: {error}")
                self.slowest = max(self.slowest, time.monotonic() - began)


def rotate(extent: Extent) -> Iterator[dict[str, Any]]:
    """New keys for 50 sites at once, all of ECDSA or ten of them of RSA 4096, while somebody shakes hands with all of them."""
    numbers: dict[str, Any] = {}
    with placed() as place:
        certdrop = made((clients.Certdrop,), place)[0]
        for kind, slow in (("50 ecdsa-p256", 0), ("40 ecdsa-p256, 10 rsa-4096", 10)):
            names = [f"slow{slow}-{number:02d}.example.org" for number in range(50)]
            for key, some in (("rsa-4096", names[:slow]), ("ecdsa-p256", names[slow:])):
                clients.Certdrop.key = key
                certdrop.expect(some)
            clients.call("certdrop", "renew", *names)
            visitor = Visitor(names, place.world.pebble.root())
            visitor.start()
            stage.wait_for(lambda: visitor.count > 50, 20, "the visitor")
            count, reloads, asked, before = visitor.count, _reloads(), Asked(place), _keys(names)
            cost = measure.run(["certdrop", "rotate", *names])
            visitor.ended.set()
            visitor.join()
            requests, connections = asked.since()
            numbers[kind] = {**cost_of(cost), "sites": len(names), "changed": len(_keys(names) - before), "reloads": _reloads() - reloads,
                             "handshakes": visitor.count - count, "failed": len(visitor.failures), "slowest": visitor.slowest,
                             "requests": requests, "connections": connections}
            say(f"rotate: {kind}: {numbers[kind]}")
            for failure in visitor.failures[:3]:
                say(failure)
            clients.call("sh", "-c", "rm -f " + " ".join(f"/etc/nginx/sites-enabled/{name}" for name in names))
            yield numbers


def day(extent: Extent) -> Iterator[dict[str, Any]]:
    """What certdrop's programs cost in a day, each of them once: the report adds them up. All sites are served, and have three generations."""
    sizes = SIZES[:-1] if extent.quick else SIZES
    numbers: dict[str, Any] = {"sizes": list(sizes), "most": plan.MOST_POLLS, "costs": {}}
    with placed() as place:
        forge = Forge()
        roots = "/tmp/world/day.pem"
        pathlib.Path(roots).write_bytes(pathlib.Path(place.world.pebble.root()).read_bytes() + forge.root_pem)
        certdrop = clients.Certdrop(place.url, roots)
        certdrop.prepare()
        serve_all(place)
        unused = iter(f"s{number:05d}.example.org" for number in range(100000))
        for size, before in zip(sizes, (0, *sizes)):
            names = [f"s{number:05d}.example.org" for number in range(size)]
            certdrop.forge(names[before:], forge, 3)
            call_root()
            polled = min(max(size // 6, 1), plan.MOST_POLLS)       # four times a day each, once an hour
            say(f"day: {size} sites, {polled} polled together")
            commands: dict[str, Callable[[bool], measure.Cost]] = {
                "tick": functools.partial(_quiet, place, ["certdrop-issue", "--cron"], "_certdrop"),
                "root": functools.partial(measure.run, ["/usr/sbin/certdrop-install"], ""),
                "watcher": functools.partial(measure.run, ["/usr/sbin/certdrop-watch"], "_certdrop-watch"),
                "poll": functools.partial(_polled, place, names[:polled]),
                "poll one": functools.partial(_polled, place, names[:1]),
                "renewal": functools.partial(_renewed, unused if size > 1 else itertools.repeat(names[0]))}
            for name, cost in measure.rounds(commands, extent.rounds, extent.patience).items():
                numbers["costs"].setdefault(name, {})[str(size)] = {**cost_of(cost), **({"sites": polled} if name == "poll" else {})}
            if '"problems": 0' not in stage.read("/var/log/certdrop/watcher.log").splitlines()[-1]:
                say("day: the watcher found problems: " + subprocess.run(["certdrop-watch"], stdout=subprocess.PIPE, text=True, check=False).stdout[:300])
            say(f"day: {size} sites: " + ", ".join(f"{name} {costs[str(size)]['cpu']:.3f}" for name, costs in numbers["costs"].items()))
            yield numbers


def serve_all(place: Place) -> None:
    """One block of nginx's for all forged sites, which reads certificate and key at each handshake: ten thousand blocks would be nginx's time, not ours."""
    text = pathlib.Path("/etc/nginx/nginx.conf").read_text()
    clients.put("/etc/nginx/nginx.conf", re.sub(r"(?m)^user .*;", "user root;", text))
    live = "/var/lib/certdrop/live/$ssl_server_name"
    place.world.nginx.add_site("all", "server { listen 80; listen 443 ssl; listen [::]:443 ssl; server_name ~^s[0-9]+; include snippets/certdrop-challenge.conf; "
                               f"ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem; root {clients.WEBROOT}; }}\n")
    clients.call("nginx", "-t")
    place.world.nginx.stop()
    place.world.nginx.start(80, 443)


def _polled(place: Place, names: Sequence[str], with_memory: bool) -> measure.Cost:
    """A run that asks for the renewal windows of these sites, whose time has come."""
    for name in names:
        path = f"/var/lib/certdrop/issuer/{name}.json"
        found = json.loads(stage.read(path))
        clients.put(path + ".new", json.dumps({**found, "poll_at": 1}))
        os.chown(path + ".new", *clients.ids("_certdrop"))
        os.rename(path + ".new", path)
    before = len(place.requests())
    cost = measure.run(["certdrop-issue", "--cron"], "_certdrop", with_memory)
    asked = sum("renewal-info" in request or "renewalInfo" in request or "/draft-ietf" in request for request in place.requests()[before:])
    if asked < len(names):
        say(f"{len(names)} were to be polled, and {asked} were")
    return cost


def _renewed(names: Iterator[str], with_memory: bool) -> measure.Cost:
    """One renewal, from the order to what nginx serves, by the issuer and the command that sudo allows it."""
    name = next(names)
    path = f"/var/lib/certdrop/keeper/{name}.json"
    if os.path.exists(path):                   # else the same site once an hour at most
        clients.put(path, json.dumps({**json.loads(stage.read(path)), "installed_at": 0}))
    before = os.readlink(f"/var/lib/certdrop/live/{name}")
    cost = measure.run(["certdrop-issue", "--quiet", "--force", name], "_certdrop", with_memory)
    if os.readlink(f"/var/lib/certdrop/live/{name}") == before:
        say(f"{name} was not renewed")
        return measure.Cost(float("nan"), float("nan"))
    call_root()
    return cost


def _reloads() -> int:
    return stage.read("/var/log/nginx/error.log").count("(SIGHUP) received")


def _keys(names: Sequence[str]) -> set[str]:
    return {stage.read(f"/var/lib/certdrop/live/{name}/privkey.pem") for name in names}


def profile(extent: Extent) -> Iterator[dict[str, Any]]:
    """Where the time goes."""
    import where
    with placed() as place:
        certdrop = made((clients.Certdrop,), place)[0]
        yield where.profile(place, certdrop, extent.rounds)

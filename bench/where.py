"""Where the time goes: a profile of one tick, one order and one installation, and what the single acts cost here."""

from __future__ import annotations

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

import clients
from setting import Place

HERE = pathlib.Path(__file__).resolve().parent
SYSCALLS = ("fsync", "rename", "renameat", "connect", "execve", "openat", "clone", "clone3", "vfork", "fork")

# What a function of the profile counts as; the first that fits.
KINDS = (
    ("waiting for the CA", r"_SSLSocket|do_handshake|'read(line|into)?' of '_io.Buffered|socket\.connect|getaddrinfo|'recv|'send|socketpair"),
    ("waiting for judge, services, other threads and processes", r"select\.|posix\.waitpid|posix\.read|'acquire'|fork_exec|'fork'|poll"),
    ("sleep", r"time\.sleep"),
    ("fsync", r"posix\.fsync"),
    ("keys and signatures", r"openssl|sign|generate_private_key|_hashlib|load_pem|private_bytes|_rust"),
    ("imports", r"importlib|marshal|_imp\.|builtins\.(compile|exec|__build_class__)|posix\.listdir|io\.open_code"),
    ("files", r"posix\.(open|stat|lstat|unlink|rename|readlink|listdir|scandir|mkdir|close|write|fstat|chmod|fchmod)|io\.open|_io"),
)


def profile(place: Place, certdrop: clients.Certdrop, rounds: int) -> dict[str, Any]:
    """Numbers for the report."""
    clients.call("certdrop-issue", "--cron")           # what is asked once, about the first site, is not to be seen here
    numbers: dict[str, Any] = {"acts": _acts(place, rounds), "imports": {}, "syscalls": {}, "kinds": {}}
    names = iter(f"p{number:05d}.example.org" for number in range(10000))
    commands: dict[str, tuple[list[str], str, Callable[[], None]]] = {}
    issuer, keeper = "/usr/sbin/certdrop-issue", "/usr/sbin/certdrop-install"

    def nothing() -> None:
        pass

    def one() -> None:
        certdrop.expect([next(names)])

    def answered() -> None:
        certdrop.expect([next(names)])
        subprocess.run([issuer, "--no-install"], user="_certdrop", group="_certdrop", extra_groups=[], check=True)

    commands["tick"] = [issuer, "--cron"], "_certdrop", nothing
    commands["certdrop-install with nothing to do"] = [keeper], "", nothing
    commands["one order"] = [issuer, "--no-install"], "_certdrop", one
    commands["one installation"] = [keeper], "", answered
    for name, (argv, user, before) in commands.items():
        before()
        numbers["imports"][name] = _imports(argv, user)
        before()
        numbers["syscalls"][name] = _syscalls(argv, user)
        before()
        numbers["kinds"][name] = _kinds(argv, user)
        clients.call("certdrop-install")
    place.distance(0.1)
    one()
    numbers["kinds"]["one order at 100 ms"] = _kinds([issuer, "--no-install"], "_certdrop")
    return numbers


def _as(user: str) -> dict[str, Any]:
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def _imports(argv: list[str], user: str) -> dict[str, Any]:
    """What `python3 -X importtime` says: milliseconds of all, and the dearest with what they import."""
    with open("/tmp/imports", "w+", encoding="utf-8") as found:
        subprocess.run(["/usr/bin/python3", "-I", *(["-S"] if "install" in argv[0] else []), "-X", "importtime", *argv], stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=found, check=False, **_as(user))
        found.seek(0)
        lines = [(int(match[1]), int(match[2]), len(match[3]), match[4]) for match in
                 re.finditer(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)", found.read())]
    dear = sorted(((whole, name) for _, whole, _, name in lines if "." not in name or name.startswith(("certdrop", "cryptography"))), reverse=True)
    return {"ms": sum(own for own, *_ in lines) / 1000, "modules": len(lines), "dear": [[name, whole / 1000] for whole, name in dear[:10]]}


def _syscalls(argv: list[str], user: str) -> dict[str, int]:
    path = f"/tmp/strace-{os.getpid()}"
    command = [*(["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []), *argv]
    subprocess.run(["strace", "-f", "-qq", "-e", "trace=" + ",".join(SYSCALLS), "-o", path, *command], stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    text = pathlib.Path(path).read_text(errors="replace")
    return {name: len(re.findall(rf"^\d+ +{name}\(", text, re.MULTILINE)) for name in SYSCALLS}


def _kinds(argv: list[str], user: str) -> dict[str, Any]:
    """A run under cProfile, all its threads: seconds by kind, and the dearest functions."""
    os.makedirs("/tmp/profiles", exist_ok=True)
    os.chmod("/tmp/profiles", 0o1777)
    path = f"/tmp/profiles/{time.monotonic_ns()}"
    began = time.monotonic()
    subprocess.run(["/usr/bin/python3", "-I", str(HERE / "profiled.py"), path, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=False, **_as(user))
    wall = time.monotonic() - began
    rows = [row for part in pathlib.Path("/tmp/profiles").glob(os.path.basename(path) + "*") for row in json.loads(part.read_text() or "[]")]
    kinds: dict[str, float] = {}
    for label, _, own in rows:
        kind = next((kind for kind, pattern in KINDS if re.search(pattern, label)), "the rest of Python")
        kinds[kind] = kinds.get(kind, 0.0) + own
    rows.sort(key=lambda row: -row[2])
    return {"wall": wall, "kinds": kinds, "dear": rows[:15]}


def _acts(place: Place, rounds: int) -> dict[str, float]:
    """Milliseconds, medians: what single acts cost."""
    import ssl
    import socket
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    account = rsa.generate_private_key(65537, 4096)
    context = ssl.create_default_context(cafile=place.world.pebble.ca_bundle)

    def handshake() -> None:
        with socket.create_connection(("127.0.0.1", place.world.pebble.port)) as raw, context.wrap_socket(raw, server_hostname=place.world.pebble.host):
            pass

    def fsync() -> None:
        fd = os.open("/out/.fsync", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, b"x" * 4096)
        os.fsync(fd)
        os.close(fd)
        os.rename("/out/.fsync", "/out/.synced")
        fd = os.open("/out", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    found = {
        "python3 -I -S -c pass": _time(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True), 9),
        "sudo -n true": _time(lambda: subprocess.run(["sudo", "-n", "true"], check=True), 9),
        "nginx -t": _time(lambda: subprocess.run(["nginx", "-t", "-q"], check=True), 9),
        "TLS handshake with the CA, at 0 ms": _time(handshake, 9),
        "key, ECDSA P-256": _time(lambda: ec.generate_private_key(ec.SECP256R1()), 9),
        "key, RSA 2048": _time(lambda: rsa.generate_private_key(65537, 2048), 9),
        "key, RSA 4096": _time(lambda: rsa.generate_private_key(65537, 4096), 9),
        "signature, RSA 4096 (the account's)": _time(lambda: account.sign(b"x", padding.PKCS1v15(), hashes.SHA256()), 9),
        "write, fsync, rename, fsync the directory (this machine's disk; the stage itself is in memory)": _time(fsync, 9),
    }
    os.unlink("/out/.synced")
    return found


def _time(act: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        began = time.monotonic()
        act()
        times.append(time.monotonic() - began)
    return statistics.median(times) * 1000

"""Attacks 90 to 95: code inside the issuer's own jail, entered by the very function that the issuer's network part calls."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any, Iterator

import pytest
from conftest import OTHER, PLAYGROUND, SECRETS, STATE, VICTIM, Ground, stage

from certdrop import jail

PROGRAM = '''
import ctypes, json, os, signal, socket, subprocess, sys, time
sys.path.insert(0, "/usr/share/certdrop")
from certdrop import site
from certdrop.issuer import network, orders, ports
ports.load()
libc = ctypes.CDLL(None, use_errno=True)
WITHOUT
config = site.load_config()
abi = orders.shut_in(config, [config.directory_url, ""])
tries = json.loads(sys.argv[1])

def ok(value):
    if value is None or value == -1:
        raise OSError(ctypes.get_errno(), "")

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(3)
        made.connect(address if not isinstance(address, list) else tuple(address))

def static_program(path):
    """A whole program of 132 bytes that ends with 42."""
    code = bytes.fromhex("b83c000000bf2a0000000f05")
    head = b"\\x7fELF\\2\\1\\1" + b"\\0" * 9 + (2).to_bytes(2, "little") + (62).to_bytes(2, "little") + (1).to_bytes(4, "little")
    head += (0x400078).to_bytes(8, "little") + (64).to_bytes(8, "little") + b"\\0" * 8 + b"\\0" * 4
    head += (64).to_bytes(2, "little") + (56).to_bytes(2, "little") + (1).to_bytes(2, "little") + b"\\0" * 6
    segment = (1).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"\\0" * 8 + (0x400000).to_bytes(8, "little") * 2
    segment += (132).to_bytes(8, "little") * 2 + (4096).to_bytes(8, "little")
    with open(path, "wb") as stream:
        stream.write(head + segment + code)
    os.chmod(path, 0o755)
    return path

def run(*argv):
    child = os.fork()
    if child == 0:
        try:
            os.execv(argv[0], argv)
        finally:
            os._exit(99)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (0, 42):
        raise OSError

def write(path):
    with open(path, "wb") as stream:
        stream.write(b"x")

DEEDS = {
    "read": lambda path: open(path, "rb").read(1), "list": os.listdir, "write": write,
    "append": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)),
    "mkdir": os.mkdir, "unlink": os.unlink, "chmod": lambda path: os.chmod(path, 0o777),
    "link": lambda path: os.link(path, "/var/spool/certdrop/replies/linked"),
    "rename": lambda path: os.rename("/var/spool/certdrop/replies/own", path), "symlink": lambda path: os.symlink("/etc/shadow", path),
    "exec": run, "exec own": lambda path: run(static_program(path)), "tcp": lambda port: connect(socket.AF_INET, ["127.0.0.1", port]),
    "tcp6": lambda port: connect(socket.AF_INET6, ["::1", port]), "listen": lambda port: socket.create_server(("127.0.0.1", port)).close(),
    "unix": lambda path: connect(socket.AF_UNIX, path), "abstract": lambda name: connect(socket.AF_UNIX, "\\0" + name),
    "ptrace": lambda pid: ok(libc.ptrace(16, pid, 0, 0)), "kill": lambda pid: os.kill(pid, 0),
    "sudo": lambda _: run("/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install"),
    "setuid": os.setuid, "mount": lambda path: ok(libc.mount(b"none", path.encode(), b"tmpfs", 0, None)), "chroot": os.chroot,
    "fd of": lambda pid: os.listdir(f"/proc/{pid}/fd"), "mem of": lambda pid: open(f"/proc/{pid}/mem", "rb").close(),
}
done = []
for what, *arguments in tries:
    try:
        DEEDS[what](*arguments)
        done.append([what, *arguments])
    except Exception:
        pass
print(json.dumps({"abi": abi, "done": done}))
'''


@pytest.fixture
def inside(ground: Ground) -> Iterator[Any]:
    """What of a list of deeds succeeds inside the jail: inside([what, argument]...) -> the ones that did."""
    path = "/usr/local/share/inside.py"
    listeners = [socket.create_server(("127.0.0.1", port)) for port in (14000, 2525, 6379)]
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0somebody")
    abstract.listen()
    sibling = subprocess.Popen(["/bin/sleep", "100"], user="_certdrop", group="_certdrop", extra_groups=[])

    def found(*tries: list[Any], without: str = "") -> list[list[Any]]:
        stage.write(path, PROGRAM.replace("WITHOUT", without))
        done = ground.run("/usr/bin/python3", "-I", path, json.dumps(tries), user="_certdrop", code=0)
        answer = json.loads(done.text.splitlines()[-1])
        found.abi = answer["abi"]              # type: ignore[attr-defined]
        return list(answer["done"])
    found.sibling = sibling.pid                # type: ignore[attr-defined]
    yield found
    sibling.kill()
    sibling.wait()
    for one in (*listeners, abstract):
        one.close()
    os.unlink(path)


def test_90_what_the_issuer_needs(inside: Any, ground: Ground) -> None:
    """Goal (of the issuer): do its work: read requests, public state, CA certificates; write replies, challenges, ledger, log; talk to the CA."""
    needs = [["list", "/var/spool/certdrop/requests"], ["read", f"/var/spool/certdrop/requests/{VICTIM}@{ground.next(VICTIM):04d}.csr"],
             ["read", f"{STATE}/live/{VICTIM}/cert.pem"], ["read", f"{STATE}/keeper/{VICTIM}.json"], ["read", "/etc/certdrop/certdrop.toml"],
             ["read", "/etc/hosts"], ["read", "/etc/ssl/certs/ca-certificates.crt"], ["write", "/var/spool/certdrop/replies/own"],
             ["write", "/var/spool/certdrop/challenges/own"], ["write", f"{STATE}/issuer/own"],
             ["append", "/var/log/certdrop/issuer.log"], ["tcp", 14000], ["tcp", 80], ["unlink", "/var/spool/certdrop/challenges/own"],
             ["unlink", f"{STATE}/issuer/own"]]
    with ground.stands(recovers=False):
        assert inside(*needs) == needs
        ground.install(code=0)


def test_91_files(inside: Any, ground: Ground) -> None:
    """Goal: having taken over the network part, read or write what is not the issuer's, even where modes allow every user to."""
    with open("/var/tmp/everybodys", "w", encoding="ascii") as stream:
        os.fchmod(stream.fileno(), 0o666)
    ground.put(f"{PLAYGROUND}/issuers-own", b"x")
    tries = [["read", path] for path in (f"{STATE}/live/{VICTIM}/privkey.pem", f"{STATE}/sites/{VICTIM}/{ground.next(VICTIM):04d}/privkey.pem", f"{SECRETS}/x",
                                         "/etc/passwd", "/etc/shadow", "/etc/crontab", "/var/tmp/everybodys", f"{PLAYGROUND}/issuers-own",
                                         "/proc/1/environ", "/proc/self/environ", "/proc/self/maps", "/var/log/certdrop/keeper.log", "/root/.profile", "/home")]
    tries += [["list", path] for path in ("/", "/etc", "/home", "/tmp", "/proc", "/var/log", "/dev")]
    tries += [[deed, path] for deed in ("write", "mkdir", "symlink", "rename") for path in (
        "/var/tmp/x", "/tmp/x", "/dev/shm/x", f"{STATE}/keeper/x", f"{STATE}/live/x", "/var/spool/certdrop/requests/x",
        "/etc/certdrop/x", "/var/log/certdrop/x", "/var/mail/x", "/var/spool/cron/crontabs/_certdrop", "/nonexistent/x")]
    tries += [["append", "/var/tmp/everybodys"], ["unlink", "/var/tmp/everybodys"], ["link", "/var/tmp/everybodys"], ["write", "/dev/tty"],
              ["mount", "/tmp"], ["chroot", "/tmp"], ["mkdir", "/var/spool/certdrop/x"], ["unlink", f"{PLAYGROUND}/issuers-own"]]
    with ground.stands(recovers=False, but=("/var/tmp",)):
        ground.put("/var/spool/certdrop/replies/own", b"x")
        assert inside(*tries) == []
        ground.install(code=0)
    os.unlink("/var/tmp/everybodys")


def test_92_programs(inside: Any, ground: Ground) -> None:
    """Goal: execute anything: a shell, sudo, Python, a program of our own making in the issuer's own directories."""
    with ground.stands(recovers=False):
        assert inside(["exec", "/bin/true"], ["exec", "/bin/sh", "-c", "exit 0"], ["exec", "/usr/bin/python3", "-c", "0"], ["sudo", ""],
                      ["exec own", f"{STATE}/issuer/own"], ["exec own", "/var/spool/certdrop/replies/own"], ["setuid", 0]) == []
        ground.install(code=0)
    os.unlink(f"{STATE}/issuer/own")


def test_93_ports_and_sockets(inside: Any, ground: Ground) -> None:
    """Goal: talk to other servers of this host: mail, a database, nginx's own port, an abstract socket; or be a server."""
    tries = [["tcp", 2525], ["tcp", 6379], ["tcp", 443], ["tcp6", 443], ["listen", 8080], ["abstract", "somebody"]]
    done = inside(*tries)
    if inside.abi >= 6:
        assert done == []
    assert jail.landlock_abi() == inside.abi


def test_94_other_processes(inside: Any, ground: Ground) -> None:
    """Goal: trace, signal or read another process of the same user, which is not shut in, and so get out."""
    pid = inside.sibling
    done = inside(["ptrace", pid], ["mem of", pid], ["fd of", pid], ["ptrace", 1], ["kill", 1], ["kill", pid], ["kill", os.getpid()])
    assert done == [] if inside.abi >= 6 else [["kill", pid]]


def test_95_without_landlock(inside: Any, ground: Ground) -> None:
    """Goal: see what is left where the kernel has no Landlock: it runs, knows it, gets no privileges, and modes still hold."""
    tries = [["read", "/etc/passwd"], ["read", f"{STATE}/live/{VICTIM}/privkey.pem"], ["sudo", ""], ["setuid", 0], ["write", f"{STATE}/keeper/x"],
             ["write", "/var/spool/certdrop/requests/x"], ["read", f"{SECRETS}/x"]]
    with ground.stands(other=False, recovers=False):
        assert inside(*tries, without="from certdrop import jail; jail.landlock_abi = lambda: 0") == [["read", "/etc/passwd"]]
        assert inside.abi == 0
    assert OTHER

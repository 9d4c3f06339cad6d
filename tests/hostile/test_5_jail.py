"""Attacks 90 to 98: code inside the issuer's own jail, entered by the very function that the issuer's network part calls."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time
from typing import Any, Iterator

import pytest
from conftest import OTHER, PLAYGROUND, SECRETS, STATE, VICTIM, Ground, stage

from certdrop.walls import jail

PROGRAM = '''
import ctypes, json, mmap, os, resource, signal, socket, subprocess, sys, time
sys.path.insert(0, "/usr/share/certdrop")
from certdrop.config import general
from certdrop.issuer import network, orders, ports
ports.load()
libc = ctypes.CDLL(None, use_errno=True)
WITHOUT
config = general.load_config()
abi = orders.shut_in(config, [config.directory_url, ""])
tries = json.loads(sys.argv[1])

def ok(value):
    if value is None or value == -1:
        raise OSError(ctypes.get_errno(), "")

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(3)
        made.connect(address if not isinstance(address, list) else tuple(address))

def static_code():
    """A whole program of 132 bytes that ends with 42."""
    code = bytes.fromhex("b83c000000bf2a0000000f05")
    head = b"\\x7fELF\\2\\1\\1" + b"\\0" * 9 + (2).to_bytes(2, "little") + (62).to_bytes(2, "little") + (1).to_bytes(4, "little")
    head += (0x400078).to_bytes(8, "little") + (64).to_bytes(8, "little") + b"\\0" * 8 + b"\\0" * 4
    head += (64).to_bytes(2, "little") + (56).to_bytes(2, "little") + (1).to_bytes(2, "little") + b"\\0" * 6
    segment = (1).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"\\0" * 8 + (0x400000).to_bytes(8, "little") * 2
    segment += (132).to_bytes(8, "little") * 2 + (4096).to_bytes(8, "little")
    return head + segment + code

def static_program(path):
    with open(path, "wb") as stream:
        stream.write(static_code())
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

def fast_open(how, port):
    with socket.socket() as made:
        if how == "sendto":
            made.sendto(b"x", 0x20000000, ("127.0.0.1", port))
        elif how == "sendmsg":
            made.sendmsg([b"x"], (), 0x20000000, ("127.0.0.1", port))
        else:
            made.setsockopt(socket.IPPROTO_TCP, 30, 1)
            made.connect(("127.0.0.1", port))
            made.send(b"x")

def multipath(port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as made:
        made.settimeout(3)
        made.connect(("127.0.0.1", port))

def run_memory():
    fd = os.memfd_create("x", os.MFD_CLOEXEC)
    os.write(fd, static_code())
    child = os.fork()
    if child == 0:
        try:
            os.execve(fd, ["x"], {})
        finally:
            os._exit(99)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 42:
        raise OSError

def call_memory(_):
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b82a000000c3"))
    assert ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))() == 42

def call_file(path):
    with open(path, "wb") as stream:
        stream.write(bytes.fromhex("b82a000000c3"))
    libc.mmap.restype = ctypes.c_void_p
    with open(path, "rb") as stream:
        place = libc.mmap(None, ctypes.c_size_t(4096), 5, 2, stream.fileno(), ctypes.c_long(0))
    ok(-1 if place == ctypes.c_void_p(-1).value else 0)
    assert ctypes.CFUNCTYPE(ctypes.c_int)(place)() == 42

DEEDS = {
    "call file": call_file,
    "unshare": lambda flag: ok(libc.unshare(flag)), "prlimit": lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64)),
    "priority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19), "scheduler": lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    "fast open": fast_open, "multipath": multipath, "io_uring": lambda _: ok(libc.syscall(425, 8, ctypes.create_string_buffer(256))),
    "keyctl": lambda _: ok(libc.syscall(250, 0, -3, 1)), "memfd": lambda _: os.memfd_create("x"), "memfd exec": lambda _: run_memory(),
    "call memory": call_memory,
    "fork": lambda _: os.fork() or os._exit(0), "x32": lambda _: ok(libc.syscall(0x40000000 + 39)),
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
    pathlib.Path(path).unlink(missing_ok=True)


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
        assert inside(*tries, without="from certdrop.walls import jail; jail._version = lambda: (-1, 38)") == [["read", "/etc/passwd"]]
        assert inside.abi == 0
    assert OTHER


def test_96_calls_that_landlock_does_not_know(inside: Any, ground: Ground) -> None:
    """Goal: a namespace of its own, root's part by its limits or priority, a port by another way than connect(2), or the kernel's less watched parts."""
    path = "/tmp/open-to-all.sock"
    open_to_all = socket.socket(socket.AF_UNIX)
    open_to_all.bind(path)
    os.chmod(path, 0o777)
    open_to_all.listen()
    try:
        tries = [["unshare", flag] for flag in (0x10000000, 0x20000000, 0x40000000)]
        tries += [[what, pid] for what in ("prlimit", "priority", "scheduler", "kill", "ptrace") for pid in (inside.sibling, os.getpid())]
        tries += [["fast open", "sendto", 2525], ["fast open", "sendmsg", 2525], ["fast open", "connect", 2525], ["multipath", 2525], ["unix", path],
                  ["io_uring", 0], ["keyctl", 0], ["memfd", 0], ["memfd exec", 0], ["call memory", 0], ["fork", 0]]
        own = ["call file", f"{STATE}/issuer/own"]              # a filter sees no paths: this is told in SECURITY.md
        assert inside(*tries, own) == [own]
        os.unlink(own[1])
    finally:
        open_to_all.close()
        os.unlink(path)


def test_97_without_the_filter(inside: Any, ground: Ground) -> None:
    """Goal: see what is left without python3-seccomp: it runs, and Landlock holds files and ports all the same."""
    tries = [["read", f"{STATE}/live/{VICTIM}/privkey.pem"], ["tcp", 2525], ["exec", "/bin/true"], ["keyctl", 0], ["fork", 0]]
    assert inside(*tries, without="from certdrop.walls import syscalls; syscalls.seccomp = None") == [["keyctl", 0], ["fork", 0]]


def test_98_the_walls_of_a_run(inside: Any, ground: Ground) -> None:
    """Goal: none; a run that waits for the CA is looked at: the network part and the signer are filtered, and may gain nothing by a set-id bit."""
    run = subprocess.Popen(["/usr/sbin/certdrop-issue", "--force", "--no-install", VICTIM], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    found: dict[int, tuple[str, str]] = {}
    try:
        end = time.monotonic() + 30
        while [*found.values()].count(("2", "1")) < 2 and time.monotonic() < end:
            time.sleep(0.1)
            found = {pid: walls for pid in processes(ground.uid) - {inside.sibling} if (walls := seen(pid))}
        assert sorted(found.values()) == [("0", "0"), ("2", "1"), ("2", "1")]
    finally:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        run.wait()


def processes(uid: int) -> set[int]:
    """Whose effective user is this one."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/status", encoding="ascii", errors="replace") as stream:
                if f"\nUid:\t{uid}\t" in stream.read():
                    found.add(int(entry))
    return found


def seen(pid: int) -> tuple[str, str] | None:
    """What the kernel says of a process: Seccomp (2: filtered), NoNewPrivs."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
            status = dict(line.split(":", 1) for line in stream.read().splitlines())
    except OSError:
        return None
    return status["Seccomp"].strip(), status["NoNewPrivs"].strip()

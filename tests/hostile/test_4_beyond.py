"""Attacks 70 to 89: past the spool: the judge's place, the terminal, the file system, the ports, the challenges, whoever reads along."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import pty
import py_compile
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import textwrap
import time
from typing import Any, Callable, Iterator

import forger
import pytest
from conftest import OTHER, PLAYGROUND, REPLIES, SECRETS, STATE, VICTIM, Ground, stage

JUDGE = "/usr/share/certdrop/certdrop/judge/__main__.py"
ISSUE = "/usr/sbin/certdrop-issue"
NGINX_TOML = "/etc/certdrop/services.d/nginx.toml"


@contextlib.contextmanager
def replaced(path: str, text: str, mode: int = 0o755) -> Iterator[None]:
    """Hostile code in a program's place, as if somebody had taken over its process."""
    def compiled() -> int:
        cache = importlib.util.cache_from_source(path)
        return os.stat(cache).st_mtime_ns if os.path.exists(cache) else 0

    kept, known = (stage.read(path), os.stat(path)) if os.path.exists(path) else (None, os.stat("/"))
    compiled_then = compiled()
    try:
        stage.write(path, text, mode)
        yield
    finally:
        if kept is None:
            os.unlink(path)
        else:
            stage.write(path, kept, 0o755 if path.startswith("/usr/sbin") else 0o644)
            os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))    # what is compiled is known by the source's time
            if compiled() != compiled_then:
                py_compile.compile(path)                                 # what root's next run would do


SANDBOX = '''
import ctypes, json, mmap, os, resource, signal, socket, sys, threading
sys.path[:0] = ["/usr/share/certdrop"]
from certdrop.walls import jail
from certdrop.judge import sandbox
jail.give_up_privileges()
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getpid()
static = bytes.fromhex("7f454c4602010100000000000000000002003e0001000000780040000000000040000000000000000000000000000000000000004000380001000000000000000100"
                       "000005000000000000000000000000004000000000000000400000000000880000000000000088000000000000000010000000000000"
                       "b83c000000bf2a0000000f05")

def case():
    got = []
    def attempt(what, deed):
        try:
            deed()
            got.append(what)
        except BaseException:
            pass
    def ok(value):
        if value is None or value == -1:
            raise OSError
    for path in ("/etc/passwd", "/etc/certdrop/certdrop.toml", "/proc/self/mem", "/dev/null", "/var/spool/certdrop/requests", "/"):
        attempt("read " + path, lambda: os.open(path, os.O_RDONLY))
    for path in ("/tmp/x", "/var/tmp/x", "/dev/shm/x", "/var/spool/certdrop/replies/x"):
        attempt("write " + path, lambda: os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        attempt("mkdir " + path, lambda: os.mkdir(path))
        attempt("symlink " + path, lambda: os.symlink("x", path))
        attempt("fifo " + path, lambda: os.mkfifo(path))
    for family, kind in ((2, 1), (2, 2), (10, 1), (1, 1), (16, 3), (17, 3)):
        attempt(f"socket {family} {kind}", lambda: socket.socket(family, kind))
    attempt("pipe", os.pipe)
    attempt("dup", lambda: os.dup(2))
    attempt("memfd", lambda: os.memfd_create("x"))
    attempt("namespace", lambda: ok(libc.unshare(0x10000000)))
    attempt("keyring", lambda: ok(libc.syscall(250, 0, -3, 1)))
    attempt("parent's limits", lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (0, 0)))
    attempt("parent's priority", lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
    attempt("parent's scheduler", lambda: os.sched_setscheduler(parent, os.SCHED_IDLE, os.sched_param(0)))
    attempt("kill parent", lambda: os.kill(parent, 0))
    attempt("personality", lambda: ok(libc.personality(0x0400000)))
    attempt("code", lambda: mmap.mmap(-1, 4096, prot=7))
    attempt("epoll", lambda: ok(libc.epoll_create1(0)))
    attempt("io_uring", lambda: ok(libc.syscall(425, 8, ctypes.create_string_buffer(256))))
    attempt("userfaultfd", lambda: ok(libc.syscall(323, 1)))
    attempt("fork", os.fork)
    attempt("thread", lambda: threading.Thread(target=int).start())
    attempt("exec", lambda: os.execv("/bin/true", ["true"]))
    attempt("exec sudo", lambda: os.execv("/usr/bin/sudo", ["sudo", "-n", "/usr/sbin/certdrop-install"]))
    attempt("ptrace parent", lambda: ok(libc.ptrace(16, parent, 0, 0)))
    attempt("seize parent", lambda: ok(libc.ptrace(0x4206, parent, 0, 0)))
    attempt("trace root", lambda: ok(libc.ptrace(16, 1, 0, 0)))
    attempt("unlimit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10)))
    attempt("setuid", lambda: os.setuid(0))
    attempt("kill root", lambda: os.kill(1, 0))
    attempt("kill sibling", lambda: os.kill(SIBLING, 0))
    attempt("stdin", lambda: os.read(0, 1))
    attempt("stdout", lambda: os.write(1, b"accept\\n"))
    for fd in range(3, 64):
        try:
            os.fstat(fd)
            got.append(f"fd {fd}")
        except OSError:
            pass
    return ";".join(got) or "nothing"

print(sandbox.run(case))
'''


# What loading ctypes leaves open: from 3.5 on libffi its own file, or memory of its name, which the filter lets nobody map as code.
LENT = "import ctypes, os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')])"


def test_70_code_in_the_sandbox(ground: Ground) -> None:
    """Goal: having taken over the child that parses one reply, reach anything: a file, the network, a process, its parent, another case."""
    program = "/usr/local/lib/sandbox.py"
    sibling = subprocess.Popen(["/bin/sleep", "100"], user="_certdrop-judge", group="_certdrop-judge", extra_groups=[])
    try:
        with replaced(program, SANDBOX.replace("SIBLING", str(sibling.pid)), 0o644):
            found = ground.run("/usr/bin/python3", "-I", "-S", program, user="_certdrop-judge", code=0).text.strip()
        got = set(found.split(";"))
        assert {one for one in got if not one.startswith("fd ")} <= {"nothing"} | ({"kill sibling"} if landlock_abi() < 6 else set())
        of_libffi = "libffi" in subprocess.run(["/usr/bin/python3", "-c", LENT], stdout=subprocess.PIPE, text=True, check=True).stdout
        assert len({one for one in got if one.startswith("fd ")}) <= 1 + of_libffi, "nothing but the pipe to answer through, and what libffi keeps open"
    finally:
        sibling.kill()
        sibling.wait()


def landlock_abi() -> int:
    from certdrop.walls import jail
    return jail.landlock_abi()


LIAR = '''
import base64, hashlib, os, struct, sys, time
def say(*words):
    text = " ".join(map(str, words)).encode()
    os.write(1, struct.pack(">I", len(text)) + text)
while True:
    head = sys.stdin.buffer.read(4)
    if not head:
        break
    case = sys.stdin.buffer.read(*struct.unpack(">I", head))
    if sys.argv[1] == "chain":
        der = base64.b64decode(b"".join(case.partition(b"\\n")[2].split(b"-----END")[0].splitlines()[1:]))
        begin = 2 + der[1] % 128 * (der[1] > 127)
        tbs = der[begin:][:2 + der[begin + 1]] if der[begin + 1] < 128 else der[begin:]
        if der[begin + 1] > 127:
            head = 2 + der[begin + 1] % 128
            tbs = tbs[:head + int.from_bytes(tbs[2:head], "big")]
        signed = hashlib.sha256(tbs).hexdigest()
        say("accept", LIE, int(time.time()) - 10, int(time.time()) + 86400, SIGNED, "0" * 64)
    else:
        SHOWN
'''


def test_71_a_judge_that_accepts_everything(ground: Ground) -> None:
    """Goal: with hostile code in the judge's place, and the issuer's help, have a foreign key's chain installed, or stop nginx."""
    other = ground.good(OTHER)
    with ground.stands(other=False, but=(JUDGE, os.path.dirname(JUDGE))):
        before = ground.live(OTHER)
        ground.reply(OTHER, other)
        ground.reply(VICTIM, key=forger.new_key().public_key())
        shown = "say('other')"
        with replaced(JUDGE, LIAR.replace("LIE", "hashlib.sha256(der).hexdigest()").replace("SIGNED", "signed").replace("SHOWN", shown), 0o644):
            done = ground.install()
            assert done.code == os.EX_TEMPFAIL and "service-failed" in ground.events()
        assert ground.world.nginx.test()[0]
        ground.an_hour_passes()
        ground.install()
        assert ground.live(OTHER) == before + 1 and ground.served(OTHER) == ground.on_disk(OTHER)


@pytest.mark.parametrize("lie, signed", [("'0' * 64", "signed"), ("hashlib.sha256(b'another').hexdigest()", "signed"),
                                         ("hashlib.sha256(der).hexdigest()[:63]", "signed"), ("'accept ' + 'a' * 64", "signed"),
                                         ("hashlib.sha256(der).hexdigest()", "'0' * 64"), ("hashlib.sha256(der).hexdigest()", "signed[:63]")])
def test_72_a_judge_that_speaks_of_another_leaf(ground: Ground, lie: str, signed: str) -> None:
    """Goal: have root write down another fingerprint than that of the certificate that it installs, or of what is signed in it."""
    with ground.stands(other=False, but=(JUDGE, os.path.dirname(JUDGE))):
        ground.reply(VICTIM)
        with replaced(JUDGE, LIAR.replace("LIE", lie).replace("SIGNED", signed).replace("SHOWN", "say('other')"), 0o644):
            assert ground.install().code == os.EX_TEMPFAIL
        assert ground.reason() == "judge-failed"


def test_73_a_judge_that_lies_about_what_is_shown(ground: Ground) -> None:
    """Goal: with hostile code in the place of the judge that shakes hands, stop a good certificate: it is undone, or stays, and nginx serves on."""
    with ground.stands(other=False, recovers=False, but=(JUDGE, os.path.dirname(JUDGE))):
        before = ground.live(OTHER)
        ground.reply(OTHER)
        real = stage.read(JUDGE)
        text = real.replace("from certdrop.judge import served\n        return lambda: served.serve(argv[1:])",
                            "from certdrop import answering\n"
                            "        answering.serve(lambda _: b'other 127.0.0.1,443,=' + b'f' * 64)\n        return 0")
        assert text != real
        with replaced(JUDGE, text, 0o644):
            ground.install()
        assert ground.served(OTHER) == ground.on_disk(OTHER) and ground.pair_matches(OTHER)
        ground.an_hour_passes()
        ground.install(code=0)
        assert ground.live(OTHER) == before + 1 == ground.proven(OTHER)


@pytest.mark.parametrize("lost", [0, 3])
def test_85_a_chain_of_the_right_key_that_nobody_trusts(ground: Ground, lost: int) -> None:
    """Goal: with hostile code in the place of the judge of replies, have the site's own key certified by a CA that no browser knows: it is undone.

    And served no more, even where the reload that undoes it (the third; one asks again while it waits) is lost.
    """
    service, reloads = stage.read(NGINX_TOML), f"/run/reloads-{lost}"
    counting = f'"/bin/sh", "-c", "echo >>{reloads}; [ $(wc -l <{reloads}) = {lost} ] || nginx -s reload"'
    with ground.stands(other=False, but=(JUDGE, os.path.dirname(JUDGE), NGINX_TOML, os.path.dirname(NGINX_TOML))):
        ground.reply(VICTIM, signer=ground.ca.stranger, above=[ground.ca.stranger[0]])
        real = stage.read(JUDGE)
        liar = LIAR.replace("LIE", "hashlib.sha256(der).hexdigest()").replace("SIGNED", "signed").replace("SHOWN", "pass")
        with replaced(JUDGE, real.replace("def main(", f'if sys.argv[1] == "chain":{textwrap.indent(liar, "    ")}\n\ndef main('), 0o644), \
             replaced(NGINX_TOML, service.replace('"/usr/sbin/nginx", "-s", "reload"', counting), 0o644):
            assert ground.install().code == os.EX_TEMPFAIL
        assert len(stage.read(reloads)) == (4 if lost else 3)
        assert "issued-not-served" in ground.events() and "does not verify" in ground.notes(VICTIM)["install"]["error"]
        assert "the one before serves again" in ground.notes(VICTIM)["install"]["error"]


def hostile_issuer(body: str) -> str:
    return f"#!/usr/bin/python3 -IS\nimport contextlib, fcntl, os, signal, sys, termios, time\n{body}\n"


def at_a_terminal(ground: Ground, *argv: str, seconds: float = 60) -> tuple[int, bytes, bytes]:
    """Run a command as root at a terminal: its exit code, what was shown, and what stands in the terminal's input afterwards."""
    child, terminal = pty.fork()
    if child == 0:
        inner = subprocess.run(argv, check=False)
        import fcntl
        import termios
        waiting = bytearray(4)
        attributes = termios.tcgetattr(0)
        attributes[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        fcntl.ioctl(0, termios.FIONREAD, waiting)
        os.write(1, b"\nWAITING " + str(int.from_bytes(waiting, "little")).encode() + b"\n")
        os._exit(inner.returncode)
    shown, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    text, _, waiting = shown.rpartition(b"WAITING ")
    return os.waitstatus_to_exitcode(status), text, waiting.strip()


TYPE = '''
got = []
for fd in (0, 1, 2):
    for character in b"id >/root/typed\\n":
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, termios.TIOCSTI, bytes([character]))
with contextlib.suppress(OSError):
    fd = os.open("/dev/tty", os.O_RDWR)
    for character in b"id >/root/typed\\n":
        fcntl.ioctl(fd, termios.TIOCSTI, bytes([character]))
for entry in os.listdir("/dev/pts"):
    with contextlib.suppress(OSError):
        fd = os.open("/dev/pts/" + entry, os.O_RDWR)
        os.write(fd, b"written by the attacker")
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
with contextlib.suppress(OSError):
    os.kill(-1, signal.SIGKILL)
print("\\x1b]0;owned\\x07 \\x1b[2J", "\\u202e", "x" * 100000)
'''


def test_74_typing_into_roots_terminal(ground: Ground) -> None:
    """Goal: type a command into the terminal of a root who runs `certdrop rotate` (TIOCSTI, CVE-2005-4890), or write escape sequences to it."""
    with ground.stands(other=False, recovers=False, but=(ISSUE, os.path.dirname(ISSUE))):
        with replaced(ISSUE, hostile_issuer(TYPE)):
            code, shown, waiting = at_a_terminal(ground, "certdrop", "rotate", VICTIM)
        assert code == os.EX_TEMPFAIL and waiting == b"0", (code, waiting)
        assert b"\x1b" not in shown and b"\x07" not in shown and b"written by the attacker" not in shown and b"id >/root" not in shown
        assert not os.path.exists("/root/typed")


def test_75_typing_from_the_issuer_itself(ground: Ground) -> None:
    """Goal: as before, where root runs certdrop-issue by hand, and the network part was taken over."""
    begin, found = stage.read(ISSUE), 'run("certdrop-issue", "certdrop.issuer.command", quick=True)'
    assert begin.count(found) == 1
    text = begin.replace(found, "from certdrop.issuer import command\nimport contextlib, fcntl, os, signal, termios\n\n"
                                "def hostile(*_):\n    " + TYPE.replace("\n", "\n    ").replace('os.kill(-1, signal.SIGKILL)', "pass")
                                .replace('print("\\\\x1b', 'str("\\\\x1b')
                                + "\n    return 0, False, 0.0\n\ncommand._look = hostile\n" + found)
    text = "\n".join(line for line in text.splitlines() if not line.strip().startswith("print("))
    with ground.stands(other=False, recovers=False, but=(ISSUE, os.path.dirname(ISSUE))):
        with replaced(ISSUE, text):
            _, shown, waiting = at_a_terminal(ground, "certdrop-issue")
        assert waiting == b"0", (waiting, shown)
        assert not os.path.exists("/root/typed")


def test_76_an_issuer_that_never_ends(ground: Ground) -> None:
    """Goal: hold up root's `certdrop renew` for ever by leaving somebody behind who goes on writing."""
    body = ("if os.fork() == 0:\n    os.setsid()\n    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n    end = time.time() + 60\n"
            "    while time.time() < end:\n        os.write(1, b'flood\\n' * 100)\n        time.sleep(0.01)\n")
    with ground.stands(other=False, recovers=False, but=(ISSUE, os.path.dirname(ISSUE))):
        with replaced(ISSUE, hostile_issuer(body)):
            begin = time.monotonic()
            done = ground.run("certdrop", "renew", "--force", VICTIM, timeout=100)
            assert done.code == os.EX_TEMPFAIL and time.monotonic() - begin < 20


@pytest.fixture
def small_file_system(ground: Ground) -> Iterator[Callable[[str], None]]:
    """Put a directory on a file system of its own, of 1 MB."""
    mounted: list[str] = []

    def move(path: str) -> None:
        aside = f"/run/aside-{len(mounted)}"
        shutil.rmtree(aside, ignore_errors=True)
        subprocess.run(["/bin/cp", "-a", path, aside], check=True)
        mode = os.stat(path).st_mode & 0o777
        subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size=1m,nr_inodes=2000,mode={mode:o}", "small", path], check=True)
        mounted.append(path)
        subprocess.run(["/bin/cp", "-a", f"{aside}/.", path], check=True)
    yield move
    for number, path in enumerate(mounted):
        aside = f"/run/back-{number}"
        shutil.rmtree(aside, ignore_errors=True)
        subprocess.run(["/bin/cp", "-a", path, aside], check=True)
        subprocess.run(["/bin/umount", "-l", path], check=True)
        subprocess.run(f"find {path} -mindepth 1 -delete; cp -a {aside}/. {path}", shell=True, check=True)


def fill(directory: str) -> None:
    """Write until nothing more fits."""
    for size in (65536, 4096, 1):
        with contextlib.suppress(OSError):
            with open(f"{directory}/fill-{size}", "wb", buffering=0) as stream:
                while True:
                    stream.write(b"x" * size)
    with contextlib.suppress(OSError):
        for number in range(3000):
            os.close(os.open(f"{directory}/n{number}", os.O_CREAT | os.O_WRONLY))


def test_77_the_spool_is_full(ground: Ground, small_file_system: Callable[[str], None]) -> None:
    """Goal: stop root by filling the file system that the spool is on, after another site's good reply has come."""
    small_file_system("/var/spool/certdrop")
    before = ground.live(OTHER), ground.live(VICTIM)
    ground.reply(OTHER)
    ground.act(lambda: fill(REPLIES))
    done = ground.install()
    assert done.code == os.EX_TEMPFAIL, done
    assert ground.live(OTHER) == before[0] + 1 and ground.served(OTHER) == ground.on_disk(OTHER), "it was installed although its successor cannot be posted"
    assert ground.live(VICTIM) == before[1] and ground.served(VICTIM) == ground.on_disk(VICTIM)
    ground.act(lambda: [os.unlink(entry.path) for entry in os.scandir(REPLIES)] and None)
    ground.install(code=0)
    ground.reply(OTHER)
    ground.install(code=0)
    assert ground.live(OTHER) == before[0] + 2


def test_78_all_of_the_state_is_full(ground: Ground, small_file_system: Callable[[str], None]) -> None:
    """Goal: leave root's state half written, by filling the file system that it shares with the issuer's, at the worst moment."""
    small_file_system("/var/lib/certdrop")
    before = ground.live(OTHER), ground.live(VICTIM)
    ground.reply(OTHER)
    for spare in (0, 1, 3, 8):
        ground.act(lambda: fill(f"{STATE}/issuer"))
        for number in range(spare):
            with contextlib.suppress(OSError):
                os.truncate(f"{STATE}/issuer/fill-65536", max(0, os.stat(f"{STATE}/issuer/fill-65536").st_size - 4096))
                os.unlink(f"{STATE}/issuer/n{number}")
        done = ground.install()
        assert done.code in (0, os.EX_TEMPFAIL), done
        for name in (VICTIM, OTHER):
            assert ground.pair_matches(name) and ground.served(name) in {ground.on_disk(name)} | {ground.served(name)}
        assert ground.world.nginx.test()[0], "nginx could not be started"
    ground.act(lambda: [os.unlink(entry.path) for entry in os.scandir(f"{STATE}/issuer") if entry.name.startswith(("n", "fill"))] and None)
    ground.an_hour_passes()
    ground.install(code=0)
    assert ground.live(OTHER) == before[0] + 1 and ground.served(OTHER) == ground.on_disk(OTHER) and ground.live(VICTIM) == before[1]


def test_79_somebody_else_at_the_port(ground: Ground) -> None:
    """Goal: have a good certificate taken back, by listening at the service's port on another address and showing what we like there."""
    server = ("import socket, ssl, sys\ncontext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\ncontext.load_cert_chain(sys.argv[1])\n"
              "made = socket.create_server(('127.0.0.9', 8443))\nopen('/tmp/attacker/listens', 'w')\n"
              "while True:\n    try:\n        context.wrap_socket(made.accept()[0], server_side=True).close()\n    except OSError:\n        pass\n")
    pair, key = ground.ca.intermediate[0], ground.ca.intermediate[1]
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    ground.put(f"{PLAYGROUND}/pair.pem", forger.pem(pair) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    kept = stage.read("/etc/certdrop/services.d/nginx.toml")
    blocks = {name: stage.read(f"/etc/nginx/sites-available/{name}") for name in (VICTIM, OTHER)}
    process = subprocess.Popen(["/usr/bin/python3", "-I", "-c", server, f"{PLAYGROUND}/pair.pem"], user="_certdrop", group="_certdrop", extra_groups=[])
    try:
        for name, text in blocks.items():
            text = re.sub(r"\n[^\n]*listen \[::\]:443[^\n]*", "", text)
            ground.world.nginx.add_site(name, text.replace("listen 443 ssl", "listen 127.0.0.1:8443 ssl"))
        stage.write("/etc/certdrop/services.d/nginx.toml", kept.replace("port = 443", "port = 8443") if "port = 443" in kept else kept + "port = 8443\n")
        ground.world.nginx.reload()
        stage.wait_for(lambda: os.path.exists(f"{PLAYGROUND}/listens"), 10, "the attacker")
        before = ground.live(OTHER)
        ground.reply(OTHER)
        ground.install(code=0)
        assert ground.live(OTHER) == before + 1 == ground.proven(OTHER) and ground.served(OTHER, 8443) == ground.on_disk(OTHER)
    finally:
        process.kill()
        process.wait()
        stage.write("/etc/certdrop/services.d/nginx.toml", kept)
        for name, text in blocks.items():
            ground.world.nginx.add_site(name, text)
        ground.world.nginx.reload()


def test_80_challenges(ground: Ground) -> None:
    """Goal: have nginx show root's or other users' files, or run a script in a visitor's browser, through challenges/."""
    challenges = "/var/spool/certdrop/challenges"
    with open(f"{SECRETS}/x", "w", encoding="ascii") as stream:
        stream.write("secret")

    def deed() -> None:
        os.chdir(challenges)
        for number, target in enumerate(("/etc/passwd", f"{SECRETS}/x", f"{STATE}/live/{VICTIM}/privkey.pem", "/proc/self/environ", "../requests", "/")):
            os.symlink(target, f"token-link-{number:010d}")
        with open("token-script-0000000", "w", encoding="ascii") as out:
            out.write("<html><script>alert(document.cookie)</script>")
        os.mkfifo("token-pipe-0000000000")
        os.mkdir("token-directory-00000")
    try:
        ground.act(deed)
        with ground.stands():
            for number in range(6):
                found = get(ground, f"token-link-{number:010d}")
                assert " 200 " not in found.splitlines()[0] and "root:" not in found and "secret" not in found, found
            found = get(ground, "token-script-0000000")
            assert " 200 " in found.splitlines()[0] and "content-type: text/plain" in found.lower() and "nosniff" in found.lower()
            for odd in ("token-pipe-0000000000", "token-directory-00000", "token-directory-00000/", "../requests/", "%2e%2e/requests/", "."):
                assert " 200 " not in get(ground, odd).splitlines()[0]
            ground.install(code=0)
    finally:
        shutil.rmtree(f"{challenges}/token-directory-00000", ignore_errors=True)
        for entry in os.scandir(challenges):
            os.unlink(entry.path)


def get(ground: Ground, token: str) -> str:
    return str(ground.run("curl", "-sSi", "--path-as-is", "-m", "5", f"http://{VICTIM}/.well-known/acme-challenge/{token}",
                          "--resolve", f"{VICTIM}:80:127.0.0.1").text)


HOSTILE_STATE: dict[str, Any] = {
    "a pipe": lambda path: os.mkfifo(path), "a link to a secret": lambda path: os.symlink(f"{SECRETS}/state.json", path),
    "a link to a device": lambda path: os.symlink("/dev/zero", path), "a circle": lambda path: os.symlink(path, path),
    "a directory": lambda path: os.mkdir(path),
    "10 GB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644), 10 << 30),
    "nested": lambda path: pathlib.Path(path).write_text('{"a":' * 8000),
    "a long number": lambda path: pathlib.Path(path).write_text('{"count": ' + "9" * 50000 + "}"),
    "escapes": lambda path: pathlib.Path(path).write_text(json.dumps({"count": 3, "class": "\x1b[2J\x07", "last_error": "\x1b]0;x\x07\u202e" + "y" * 50000,
                                                                      "since": 1e308,
                                                                      "next_try": -5, "renew_at": 1e400 if False else 99999999999999, "renew_why": "\x9b31m"})),
    "not text": lambda path: pathlib.Path(path).write_bytes(bytes(range(256)) * 100),
}


@pytest.mark.parametrize("turn", range(3))
def test_81_whoever_reads_along(ground: Ground, turn: int) -> None:
    """Goal: hang, mislead or crash status, watch and check, which root runs at a terminal, or have them read and show what we may not read."""
    with open(f"{SECRETS}/state.json", "w", encoding="ascii") as stream:
        json.dump({"count": 1, "class": "secret-class", "last_error": "secret-text"}, stream)
    kinds = list(HOSTILE_STATE.values())
    names = [f"{STATE}/issuer/{VICTIM}.json", f"{STATE}/issuer/last-run", f"{STATE}/issuer/agenda.json", f"{STATE}/issuer/{OTHER}.json"]

    def deed() -> None:
        for number, path in enumerate(names):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            kinds[(turn * len(names) + number) % len(kinds)](path)
            if os.path.isfile(path) and not os.path.islink(path):
                os.utime(path, (2 ** 33, 2 ** 33))
        os.truncate("/var/log/certdrop/issuer.log", 0)
        with open("/var/log/certdrop/issuer.log", "ab") as out:
            out.write(b"\x1b[2J\x07\xff\n" + b"A" * 100000 + b"\n")
    try:
        with ground.stands():
            ground.act(deed)
            for argv in (["certdrop-status"], ["certdrop-status", "--json"], ["certdrop-status", VICTIM], ["certdrop-status", "--nagios"],
                         ["certdrop-status", "--prometheus"], ["certdrop-watch"], ["certdrop-check", "--offline"], ["certdrop-check", "--offline", "--json"]):
                if not shutil.which(argv[0]):
                    continue
                done = ground.run(*argv, timeout=30)
                assert "Traceback" not in done.text and "secret-" not in done.text, (argv, done)
                assert all(c.isprintable() or c == "\n" for c in done.text) and len(done.text) < 100000, (argv, done)
                if "--json" in argv:
                    json.loads(done.text)
            ground.install(code=0)
    finally:
        for path in names:
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.path.lexists(path) and os.unlink(path)
        os.truncate("/var/log/certdrop/issuer.log", 0)


def test_82_a_reply_that_is_changed_while_it_is_judged(ground: Ground) -> None:
    """Goal: have the judge see a good reply and root install another, by rewriting the file all the time."""
    path, good = ground.entry(VICTIM), ground.good(VICTIM)
    bad = ground.good(VICTIM, key=forger.new_key().public_key())

    def rewrite() -> None:
        for data in (bad, b"x", bad + bad):
            with open(path, "wb", buffering=0) as stream:
                stream.write(data)
    with ground.stands():
        assert len(good) == len(ground.good(VICTIM)) or good
        with ground.attacker(rewrite):
            for _ in range(10):
                ground.install()
                ground.an_hour_passes()
        assert set(ground.events()) <= {"key", "grammar", "broken-chain", "mode", "untrusted"}


def is_install(entry: str) -> bool:
    """Whether an entry of /proc is a process of certdrop-install's, still there."""
    try:
        return entry.isdigit() and b"certdrop-install" in pathlib.Path(f"/proc/{entry}/cmdline").read_bytes()
    except OSError:
        return False


def test_83_root_of_its_own_run_is_never_kept_out(ground: Ground) -> None:
    """Goal: keep root's hourly run out by asking for installations without pause."""
    def ask() -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install"], check=False, stdin=subprocess.DEVNULL, timeout=30)
    with ground.stands(recovers=False):
        said = ground.notes(OTHER)
        stage.write(f"{STATE}/keeper/{OTHER}.json", json.dumps({**said, "installed_at": int(time.time())}))      # so that these runs leave it alone
        with ground.attacker(ask), ground.attacker(ask), ground.attacker(ask):
            time.sleep(0.5)
            ground.install(code=0, timeout=100)
        stage.wait_for(lambda: not any(map(is_install, os.listdir("/proc"))), 60, "the runs that were asked for")


def test_84_signals(ground: Ground) -> None:
    """Goal: kill, stop or trouble root's run, or the judge, by signals to every process, as fast as they can be sent."""
    def strike() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) > 1 and int(entry) != os.getpid():
                for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
                    with contextlib.suppress(OSError):
                        if os.stat(f"/proc/{entry}").st_uid != os.getuid():
                            os.kill(int(entry), number)
    with ground.stands():
        with ground.attacker(strike):
            ground.install(code=0, timeout=60)


@contextlib.contextmanager
def file_system_that_never_answers(ground: Ground, place: str) -> Iterator[None]:
    """A file system in user space (FUSE) of the issuer's, mounted there by Debian's fusermount3, which answers no question at all."""
    try:
        if not os.path.exists("/dev/fuse"):
            os.mknod("/dev/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
            os.chmod("/dev/fuse", 0o666)
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"no FUSE in this kernel, or none for this stage: {error.strerror}")

    def mount() -> None:
        ours, its = socket.socketpair()
        subprocess.run(["/usr/bin/fusermount3", "-o", "fsname=hostile", "--", place], pass_fds=[its.fileno()], check=True, stdin=subprocess.DEVNULL,
                       env={"PATH": "/usr/bin:/bin", "_FUSE_COMMFD": str(its.fileno())})
        kept = socket.recv_fds(ours, 1, 1)[1]
        assert kept
        signal.pause()
    process = ground.start(mount)
    try:
        stage.wait_for(lambda: f" {place} " in stage.read("/proc/self/mountinfo"), 10, "the mount")
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        subprocess.run(["umount", "-l", place], check=True)


def test_86_a_file_system_that_never_answers(ground: Ground) -> None:
    """Goal: have root, or the watcher, wait for ever: a file system of ours over replies/, and over what status reads."""
    before = {name: (ground.live(name), ground.on_disk(name)) for name in (VICTIM, OTHER)}
    ground.reply(OTHER)
    with file_system_that_never_answers(ground, REPLIES):
        done = ground.install(timeout=30)
        assert done.code == os.EX_NOPERM and done.text == f"certdrop-install: {REPLIES}: Permission denied; certdrop-check says what is wrong\n", done
        assert "2 serving" in ground.run("certdrop-status", timeout=30).text          # its code tells of mail, too
        assert {name: (ground.live(name), ground.on_disk(name)) for name in before} == before
    ground.install(code=0)
    assert ground.live(OTHER) == before[OTHER][0] + 1 and ground.live(VICTIM) == before[VICTIM][0]
    for place in (f"{STATE}/issuer", f"{STATE}/account", "/var/spool/certdrop/challenges"):
        with file_system_that_never_answers(ground, place):
            ground.install(timeout=30, code=0)
            said = ground.run("certdrop-status", timeout=30).text
            assert "2 serving" in said and bool(re.search(r"issuer/victim\S+json cannot be used: ", said)) == place.endswith("issuer"), said
            assert "Traceback" not in ground.run("certdrop-watch", timeout=60).text
    assert all(ground.served(name) == ground.on_disk(name) and ground.pair_matches(name) for name in before)


def test_87_a_lifetime_of_half_an_hour(ground: Ground) -> None:
    """What keeps the issuer from having a site installed all the time does not let a short certificate expire: it waits for an eighth of its lifetime.

    Nor does the back-off after a refusal or a failed test; and the issuer knows it: it calls when root would take the reply.
    """
    from certdrop.issuer import posted

    def short() -> bytes:
        return ground.reply(OTHER, begin=forger.now() - forger.HOUR / 120, end=forger.now() + forger.HOUR / 2)

    def passes(seconds: int) -> None:
        found = ground.notes(OTHER)
        found["installed_at"] -= seconds
        stage.write(f"{STATE}/keeper/{OTHER}.json", json.dumps(found))
    short()
    ground.install(code=0)
    before = ground.live(OTHER)
    short()
    ground.sudo(code=0)
    assert ground.live(OTHER) == before, "at once it is not"
    [request] = [one for one in posted.requests()[0] if one.name == OTHER]
    assert abs(posted.Standing(request).look_at - time.time() - 30.5 * 60 / 8) < 30
    passes(240)
    ground.sudo(code=0)
    assert ground.live(OTHER) == before + 1 and ground.served(OTHER) == ground.on_disk(OTHER)
    for number in range(3):
        ground.reply(OTHER, b"nonsense %d" % number)
        ground.an_hour_passes()
        ground.sudo()
    assert ground.notes(OTHER)["refused"]["tries"] == 3 and ground.notes(OTHER)["refused"]["next_try"] - time.time() < 240

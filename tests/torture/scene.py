"""Where the torture happens: namespaces of its own inside the stage, with nginx, a CA that signs at once, and states to go back to.

Runs as root inside a stage, in a process namespace of its own, so that several can work side by side and whatever a killed run
leaves behind is seen, and ends with the scene.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import tracer

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(os.path.dirname(HERE), name) for name in ("stage", "hostile")]

import world as stage  # noqa: E402

STATE, SPOOL, ETC = "/var/lib/certdrop", "/var/spool/certdrop", "/etc/certdrop"
COPIES = "/etc/copies"
KEPT = (STATE, SPOOL, ETC, COPIES, "/etc/nginx")
OURS = (STATE, SPOOL, ETC, COPIES)
RUN = "/run/torture"
SITE = "t.example.org"
INSTALL = ["/usr/sbin/certdrop-install"]
ISSUE = "/usr/sbin/certdrop-issue"
TEMPORARY = re.compile(r"\..*")                    # whatever begins with a dot, below our directories, is unfinished work


class Done(NamedTuple):
    """How a run ended, and what it said."""

    code: int
    text: str


def enter(argv: list[str]) -> None:
    """Run argv in mount, network and process namespaces of its own: returns in there, never outside."""
    if "TORTURE_SCENE" not in os.environ:
        os.environ["TORTURE_SCENE"] = "1"
        os.execv("/usr/bin/unshare", ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
                                      "/bin/sh", "-c", '"$@"; exit $?', "sh", "/usr/bin/python3", "-B", *argv])          # the shell reaps


class Scene:
    """One site on one host."""

    def __init__(self) -> None:
        marker = stage.read("/run/stage") if os.path.isfile("/run/stage") else ""
        if not os.path.exists("/run/stage"):
            raise stage.WorldError("this is not a stage: see tests/stage/README.md")
        run("ip", "link", "set", "lo", "up")
        for path in ("/run", "/tmp", "/var/log", *KEPT):
            _on_a_file_system_of_its_own(path)
        with open("/run/stage", "w", encoding="utf-8") as stream:
            stream.write(marker)
        os.makedirs(RUN, exist_ok=True)
        self._make_ca()
        self.stands_in = False
        self.pebble: stage.Pebble | None = None           # a real CA, once a case wants one
        self.nginx = stage.Nginx()
        stage.write("/etc/nginx/conf.d/default.conf", "server { listen 80 default_server; include snippets/certdrop-challenge.conf; }\n"
                    "server { listen 443 ssl default_server; server_name _; ssl_reject_handshake on; }\n")

    def _make_ca(self) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        from forger import Forger, pem
        forger = Forger()
        key = forger.intermediate[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        stage.write(f"{RUN}/ca.pem", (key + pem(forger.intermediate[0])).decode())
        stage.write(f"{RUN}/roots.pem", pem(forger.root[0]).decode())
        stage.write(f"{RUN}/asked", "", 0o666)
        for path, mode in ((f"{HERE}/stand-in", 0o755), (f"{HERE}/../hostile/forger.py", 0o644)):      # the issuer cannot read the checkout
            stage.write(f"{RUN}/{os.path.basename(path)}", stage.read(path), mode)

    def use_stand_in(self, wanted: bool) -> None:
        """Have the stand-in, or the real issuer, be certdrop-issue."""
        if wanted != self.stands_in:
            run(*(["mount", "--bind", f"{RUN}/stand-in", ISSUE] if wanted else ["umount", ISSUE]))
            self.stands_in = wanted

    def use_forger(self) -> None:
        """Have certdrop trust the CA that the stand-in signs with."""
        stage.write(f"{ETC}/certdrop.toml", f'trust_roots = "{RUN}/roots.pem"\n')

    def use_ca(self) -> None:
        """Have Pebble and its DNS run, and certdrop use it."""
        if self.pebble is None:
            self.dns, self.pebble = stage.Challtestsrv(), stage.Pebble()
            self.dns.start()
            self.pebble.start()
        stage.write(f"{ETC}/certdrop.toml", f'directory = "{self.pebble.directory_url}"\nca_bundle = "{self.pebble.ca_bundle}"\n'
                    f'trust_roots = "{self.pebble.root()}"\ncontact = ["hostmaster@example.org"]\n')

    def accounts(self) -> int:
        """How many accounts the CA has."""
        found = re.findall(r"There are now (\d+) accounts", self.pebble.log_text()) if self.pebble else []
        return int(found[-1]) if found else 0

    # ---- states

    def keep(self, name: str) -> None:
        """Keep the present state under a name."""
        for path in KEPT:
            run("cp", "-a", path, f"{RUN}/{name}{path.replace('/', '-')}")
        shutil.copy(f"{RUN}/asked", f"{RUN}/{name}-asked")

    def restore(self, name: str) -> None:
        """Be in that state again; nginx too."""
        self.nginx.stop()
        for path in KEPT:
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
        run("sh", "-c", "; ".join(f"cp -a {RUN}/{name}{path.replace('/', '-')}/. {path}/" for path in KEPT))
        with open(f"{RUN}/{name}-asked", encoding="ascii") as old, open(f"{RUN}/asked", "w", encoding="ascii") as stream:
            stream.write(old.read())
        self.nginx.start()

    def forget(self) -> None:
        """No site, and no state of one."""
        self.nginx.stop()
        run("sh", "-c", f"rm -rf {STATE}/sites/* {STATE}/sites/.[!.]* {STATE}/live/* {STATE}/live/.[!.]* {STATE}/proven/* {STATE}/keeper/*.json "
                        f"{STATE}/keeper/retired/* {STATE}/issuer/* {STATE}/account/* {SPOOL}/*/* {ETC}/sites.d/* {COPIES}/*; : > {RUN}/asked")
        self.nginx.remove_site(SITE)
        self.nginx.start()

    def serve(self) -> None:
        """Have nginx serve the site."""
        self.nginx.add_site(SITE, f"server {{ listen 443 ssl; server_name {SITE}; include {STATE}/live/{SITE}/nginx.conf; return 200; }}\n")
        self.nginx.reload()

    def leave_pair(self, name: str) -> None:
        """A key and a chain for the site, as another client would have left them, which nginx serves."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
        from forger import Forger, new_key, pem
        signer, _, certificate = stage.read(f"{RUN}/ca.pem").encode().partition(b"-----BEGIN CERT")
        forger, key = Forger.__new__(Forger), new_key()
        forger.intermediate = x509.load_pem_x509_certificate(b"-----BEGIN CERT" + certificate), load_pem_private_key(signer, None)
        stage.write(f"{RUN}/{name}.pem", pem(forger.leaf(key.public_key(), [SITE]), forger.intermediate[0]).decode())
        stage.write(f"{RUN}/{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode(), 0o600)
        self.nginx.add_site(SITE, f"server {{ listen 443 ssl; server_name {SITE}; ssl_certificate {RUN}/{name}.pem; ssl_certificate_key {RUN}/{name}.key; "
                            "return 200; }\n")
        self.nginx.reload()

    def configure(self, text: str = "") -> None:
        """Write the site's file."""
        stage.write(f"{ETC}/sites.d/{SITE}.toml", f'domains = ["{SITE}"]\n{text}')

    # ---- runs

    def plain(self, *argv: str) -> Done:
        """Run something as cron would, to its end."""
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
        return Done(done.returncode, done.stdout)

    def traced(self, argv: list[str], trace: tracer.Tracer) -> Done:
        """Run something at a terminal, under the tracer."""
        master, terminal = os.openpty()
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            code = trace.run(argv, (null, terminal, terminal))
            os.set_blocking(master, False)
            text = b""
            try:
                while more := os.read(master, 65536):
                    text += more
            except OSError:
                pass
        finally:
            for fd in (master, terminal, null):
                os.close(fd)
        return Done(code, text.decode("utf-8", "replace").replace("\r\n", "\n"))

    def tick(self) -> list[Done]:
        """What cron does: the issuer asks for what root wants now, root's keeper takes what waits."""
        return [self.plain(ISSUE), self.plain(*INSTALL)]

    def let_time_pass(self) -> None:
        """Have whatever was put off be due."""
        path = f"{STATE}/keeper/{SITE}.json"
        if os.path.exists(path):
            text = stage.read(path)
            stage.write(path, re.sub(r'"next_try": \d+', '"next_try": 1', text))

    # ---- what is seen

    def live(self) -> int:
        """The live generation; 0 for none."""
        return _linked(f"{STATE}/live/{SITE}")

    def proven(self) -> int:
        """The generation last seen served; 0 for none."""
        return _linked(f"{STATE}/proven/{SITE}")

    def posted(self) -> list[str]:
        """Root's requests."""
        return sorted(entry for entry in os.listdir(f"{SPOOL}/requests") if not entry.startswith("."))

    def asked(self) -> list[str]:
        """What the CA was asked for so far: the stand-in's replies, or Pebble's orders."""
        orders = [line for line in self.pebble.requests() if "order" in line] if self.pebble else []
        return stage.read(f"{RUN}/asked").split() if self.stands_in else orders

    def arrived(self) -> list[str]:
        """The replies that are in the spool."""
        return sorted(entry for entry in os.listdir(f"{SPOOL}/replies") if not entry.startswith("."))

    def fact(self, number: int, kind: str, key: str) -> Any:
        """What root wrote down about a generation."""
        return json.loads(stage.read(f"{STATE}/sites/{SITE}/{number:04d}/{kind}.json"))[key]

    def is_complete(self, number: int) -> bool:
        """Whether a generation has all its files."""
        return os.path.exists(f"{STATE}/sites/{SITE}/{number:04d}/nginx.conf")

    def served(self) -> str:
        """The fingerprint of what nginx shows for the site; "" for nothing."""
        try:
            return stage.fingerprint(stage.served_certificate(SITE))
        except (OSError, ssl.SSLError, stage.WorldError):
            return ""

    def shows(self, fingerprint: str) -> bool:
        """Whether nginx shows this one, once the workers of a reload before it (which serve for another 100 ms) are told to end."""
        end = time.monotonic() + 1
        while self.served() != fingerprint:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def generations(self) -> list[int]:
        """The numbers of the site's generations."""
        path = f"{STATE}/sites/{SITE}"
        return sorted(int(entry) for entry in os.listdir(path) if entry.isdigit()) if os.path.isdir(path) else []


def wrong_at_any_time(scene: Scene) -> list[str]:
    """What must hold at every moment, and does not: nginx can start, with a pair that matches; keys are root's alone."""
    found = []
    passes, text = scene.nginx.test()
    if not passes:
        found.append(f"nginx -t fails: {text.strip().splitlines()[:1]}")
    if scene.live():
        pair = f"{STATE}/live/{SITE}"
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"{pair}/fullchain.pem", f"{pair}/privkey.pem")
        except (OSError, ssl.SSLError) as error:
            found.append(f"the live pair does not match: {error}")
    return found + readable_keys() + half_replies()


def half_replies() -> list[str]:
    """Replies that are not whole: not a chain for the key in the CSR."""
    found = []
    for entry in os.listdir(f"{SPOOL}/replies"):
        number = entry.rpartition("@")[2].partition(".")[0]
        key = f"{STATE}/sites/{SITE}/{number}/privkey.pem"
        if not entry.startswith(".") and os.path.exists(key):
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"{SPOOL}/replies/{entry}", key)
            except (OSError, ssl.SSLError) as error:
                found.append(f"half a reply, {entry}: {error}")
    return found


def readable_keys() -> list[str]:
    """Files with a private key that others than root may read (but a copy for a group, where its directory has it)."""
    found = []
    for top in OURS:
        for folder, _, files in os.walk(top):
            for name in files:
                path = f"{folder}/{name}"
                try:
                    with open(path, "rb") as stream:
                        secret = b"PRIVATE KEY" in stream.read()
                        status = os.fstat(stream.fileno())
                except FileNotFoundError:
                    continue
                owner = pwd.getpwnam("_certdrop").pw_uid if folder == f"{STATE}/account" else 0
                if secret and (status.st_uid != owner or status.st_mode & (0o037 if folder == COPIES else 0o077)):
                    found.append(f"{path} holds a private key and has mode {status.st_mode & 0o7777:04o}")
    return found


def leftovers() -> list[str]:
    """Unfinished work: temporary files and directories, links set aside, tokens."""
    found = []
    for top in OURS:
        for folder, folders, files in os.walk(top):
            found += [f"{folder}/{name}" for name in (*folders, *files) if TEMPORARY.fullmatch(name)]
    found += [f"{SPOOL}/challenges/{name}" for name in os.listdir(f"{SPOOL}/challenges")]
    with open(f"{STATE}/keeper/lock", "a", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append("the lock is held")
    return found


def processes() -> list[str]:
    """The command lines of certdrop's processes in this scene."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as stream:
                line = stream.read().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if re.search("/usr/s?bin/certdrop|/usr/share/certdrop", line):
            found.append(line)
    return found


def fingerprint_on_disk() -> str:
    """Of the live certificate."""
    return stage.fingerprint(stage.read(f"{STATE}/live/{SITE}/cert.pem"))


def watch_keys(wrong: list[str]) -> Any:
    """A watcher for the tracer: notes each write of a private key into a file that others may read at that moment."""
    def see(pid: int, fd: int, data: bytes) -> None:
        if b"PRIVATE KEY" not in data:
            return
        status, path = tracer.mode_of(pid, fd), os.readlink(f"/proc/{pid}/fd/{fd}")
        allowed = 0o037 if path.startswith(COPIES) else 0o077
        if status and (status.st_mode & allowed):
            wrong.append(f"a key is written to {path} while its mode is {status.st_mode & 0o7777:04o}")
    return see


def run(*argv: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True, timeout=60)


def until(predicate: Any, seconds: float) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def digest(path: str) -> str:
    """The SHA-256 of a file; "" where there is none."""
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except FileNotFoundError:
        return ""


def _linked(path: str) -> int:
    try:
        return int(os.readlink(path).rpartition("/")[2])
    except FileNotFoundError:
        return 0


def _on_a_file_system_of_its_own(path: str) -> None:
    os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as kept:
        run("cp", "-a", f"{path}/.", kept)
        run("mount", "-t", "tmpfs", "-o", "mode=755", "none", path)
        run("cp", "-a", f"{kept}/.", path)
    os.chmod(path, 0o1777 if path == "/tmp" else 0o755)

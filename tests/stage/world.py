"""The real servers around certdrop, for the demo and the system tests: a CA, its DNS, nginx, cron, mail.

Runs as root inside a stage, never on a host.  Each class starts and stops one server and
keeps what it writes below /tmp/world, which everybody may read; nothing here sleeps for
what it can watch.

    with World() as world:
        world.nginx.add_site("example.org", "server { listen 80; ... }")
        world.nginx.start()
        directory, bundle, roots = world.pebble.directory_url, world.pebble.ca_bundle, world.pebble.root()
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.message
import email.policy
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Mapping, Optional, Sequence, TypeVar

WORLD = "/tmp/world"
MAIL = "/var/mail-sink"
NOT_FOUND = 404

Result = TypeVar("Result")


class WorldError(Exception):
    """A server did not do what it was asked for; the message ends with what the logs say."""


def wait_for(predicate: Callable[[], Result], timeout: float = 10.0, what: str = "") -> Result:
    """Ask until the answer is true; answer it.  After `timeout` seconds raise WorldError with the ends of all logs."""
    end = time.monotonic() + timeout
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() > end:
            raise WorldError(f"waited {timeout:g} s in vain for {what or predicate}\n{log_tails()}")
        time.sleep(0.01)


def log_tails(lines: int = 15) -> str:
    """The last lines of everything that the world's servers wrote."""
    paths = [os.path.join(WORLD, name) for name in sorted(os.listdir(WORLD)) if name.endswith(".log")] if os.path.isdir(WORLD) else []
    tails = []
    for path in paths + ["/var/log/nginx/error.log"]:
        with contextlib.suppress(OSError):
            text = read(path).rstrip()
            if text:
                tails.append(f"--- {path}\n" + "\n".join(text.splitlines()[-lines:]))
    return "\n".join(tails)


def read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write(path: str, text: str, mode: int = 0o644) -> str:
    """Write a file whole, so that a reader sees the old or the new one; answer its path."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    os.rename(path + ".new", path)
    return path


def home() -> str:
    if not os.path.exists("/run/stage"):
        raise WorldError("this is not a stage: see tests/stage/README.md")
    os.makedirs(WORLD, mode=0o755, exist_ok=True)
    os.chmod(WORLD, 0o755)
    return WORLD


def listening(port: int) -> list[str]:
    """The local addresses, in the kernel's hexadecimal, on which somebody listens at this TCP port."""
    found = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in read(name).splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                address, number = local.split(":")
                if state == "0A" and int(number, 16) == port:
                    found.append(address)
    return found


def wait_listening(port: int, timeout: float = 10.0) -> None:
    wait_for(lambda: listening(port), timeout, f"a listener at port {port}")


def served_certificate(name: str, address: str = "127.0.0.1", port: int = 443) -> str:
    """Shake hands as `name` with whoever listens there; answer the leaf as PEM, unverified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)      # the default one loads all of the system's roots first, which takes 40 ms
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((address, port), timeout=5) as raw, context.wrap_socket(raw, server_hostname=name) as shaken:
        der = shaken.getpeercert(binary_form=True)
    if der is None:
        raise WorldError(f"{address}:{port} showed no certificate for {name}")
    return ssl.DER_cert_to_PEM_cert(der)


def fingerprint(pem: str) -> str:
    """SHA-256 of the first certificate, in lower-case hexadecimal."""
    first = pem[:pem.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN"):] + "\n")).hexdigest()


class Authority:
    """The small CA for the world's own HTTPS and mail servers; it is not the CA that is tested."""

    def __init__(self) -> None:
        self.bundle = os.path.join(home(), "world-ca.pem")
        self.key = os.path.join(home(), "world-ca.key")
        if not os.path.exists(self.bundle):
            self._make(self.bundle, self.key, "World CA", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n", [])

    def issue(self, name: str, host: str) -> tuple[str, str]:
        """Make a key and a certificate for a server; answer the paths of certificate and key."""
        certificate, key = os.path.join(WORLD, f"{name}.pem"), os.path.join(WORLD, f"{name}.key")
        extensions = (f"basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
                      f"authorityKeyIdentifier=keyid\nsubjectAltName=DNS:{host},DNS:localhost,IP:127.0.0.1,IP:::1\n")
        self._make(certificate, key, host, extensions, ["-CA", self.bundle, "-CAkey", self.key])
        return certificate, key

    @staticmethod
    def _make(certificate: str, key: str, subject: str, extensions: str, signer: Sequence[str]) -> None:
        config = write(certificate + ".cnf", "[req]\ndistinguished_name=dn\nprompt=no\nx509_extensions=ext\n"
                                             f"[dn]\nCN={subject}\n[ext]\nsubjectKeyIdentifier=hash\n{extensions}")
        done = subprocess.run(["/usr/bin/openssl", "req", "-x509", "-config", config, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                               "-days", "30", "-sha256", "-keyout", key, "-out", certificate, *signer],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise WorldError(f"openssl req failed: {done.stderr}")
        os.chmod(key, 0o600)
        os.chmod(certificate, 0o644)


class Server:
    """A child process in the foreground, with its output in /tmp/world/NAME.log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log = os.path.join(home(), f"{name}.log")
        self.process: Optional[subprocess.Popen[bytes]] = None

    def launch(self, argv: Sequence[str], environment: Optional[Mapping[str, str]] = None) -> None:
        if self.running():
            raise WorldError(f"{self.name} runs already")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            env={**os.environ, **(environment or {})}, start_new_session=True)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, *ports: int) -> None:
        """Wait until every port is listened at; raise at once if the server ended instead."""
        def ready() -> bool:
            if not self.running():
                raise WorldError(f"{self.name} ended with {self.process.returncode if self.process else None}\n{log_tails()}")
            return all(listening(port) for port in ports)
        wait_for(ready, 15, f"{self.name} at port {', '.join(map(str, ports))}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, if it runs; nothing listens any more when this returns."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def log_text(self) -> str:
        return read(self.log) if os.path.exists(self.log) else ""


def pebble_program(name: str) -> str:
    for path in (f"/opt/stage/usr/bin/{name}", f"/usr/bin/{name}"):
        if os.path.exists(path):
            return path
    raise WorldError(f"no {name} in this stage")


class Challtestsrv(Server):
    """The DNS of the stage: every name is at 127.0.0.1, unless told otherwise."""

    def __init__(self, ipv4: str = "127.0.0.1", ipv6: str = "", port: int = 53, management_port: int = 8055) -> None:
        super().__init__("challtestsrv")
        self.ipv4, self.ipv6, self.port, self.management_port = ipv4, ipv6, port, management_port
        self.listen = "127.0.0.1"                           # several.py has other machines ask, too

    def start(self) -> None:
        program = pebble_program("pebble-challtestsrv")
        usage = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stderr
        listen = "-dnsserver" if "-dnsserver " in usage else "-dns01"      # its name until 2.4
        argv = [program, listen, f"{self.listen}:{self.port}", "-management", f"127.0.0.1:{self.management_port}", "-http01", "", "-https01", "",
                "-tlsalpn01", "", "-defaultIPv4", self.ipv4, "-defaultIPv6", self.ipv6]
        self.launch(argv + (["-doh", ""] if "-doh " in usage else []))
        self.wait_ready(self.port, self.management_port)

    def ask(self, path: str, **fields: object) -> str:
        """POST to the management interface."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.management_port}/{path}", json.dumps(fields).encode(), method="POST")
        return fetch(request).decode()

    def set_default(self, ipv4: Optional[str] = None, ipv6: Optional[str] = None) -> None:
        """The addresses of every name that has none of its own; an empty one is no answer."""
        if ipv4 is not None:
            self.ask("set-default-ipv4", ip=ipv4)
        if ipv6 is not None:
            self.ask("set-default-ipv6", ip=ipv6)

    def set_addresses(self, host: str, ipv4: Sequence[str] = (), ipv6: Sequence[str] = ()) -> None:
        for kind, addresses in (("a", ipv4), ("aaaa", ipv6)):
            self.ask(f"clear-{kind}", host=host)
            if addresses:
                self.ask(f"add-{kind}", host=host, addresses=list(addresses))

    def clear_addresses(self, host: str) -> None:
        self.set_addresses(host)

    def set_servfail(self, host: str) -> None:
        """Let every query for this name fail, until clear_servfail."""
        self.ask("set-servfail", host=host)

    def clear_servfail(self, host: str) -> None:
        self.ask("clear-servfail", host=host)

    def set_caa(self, host: str, *issuers: str) -> None:
        self.ask("clear-caa", host=host)
        if issuers:
            self.ask("add-caa", host=host, policies=[{"tag": "issue", "value": issuer} for issuer in issuers])

    def set_txt(self, host: str, *texts: str) -> None:
        """The TXT records of a name, in place of those that it had."""
        self.ask("clear-txt", host=host)
        for text in texts:
            self.ask("set-txt", host=host, value=text)


def fetch(request: urllib.request.Request, context: Optional[ssl.SSLContext] = None, timeout: float = 10.0) -> bytes:
    """One HTTP request, past whatever proxy the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(request, timeout=timeout) as answer:
        body: bytes = answer.read()
        return body


@dataclass
class PebbleOptions:
    """What can be set at a Pebble; change them and restart."""
    validity: Optional[int] = None                      # seconds; of the default profile, where there are profiles
    profiles: Mapping[str, int] = field(default_factory=dict)       # name: seconds; an order that names none gets any of them
    common_names: Sequence[str] = ()                    # the profiles that put a name into the subject, too
    nonce_reject: int = 0                               # per cent of good nonces refused
    authz_reuse: int = 0                                # per cent of valid authorizations used again
    chain_length: int = 1                               # intermediates
    alternate_roots: int = 0
    retry_after: tuple[int, int] = (0, 0)               # seconds; for authorizations, for orders
    eab: Mapping[str, str] = field(default_factory=dict)            # kid: base64url MAC key; with any, binding is required
    key_algorithm: str = "ecdsa"                        # of the CA's own keys: ecdsa, rsa
    blocked: Sequence[str] = ()                         # names the CA refuses
    caa_identities: Sequence[str] = ()
    http_port: int = 80
    tls_port: int = 443
    dns: str = "127.0.0.1:53"
    strict: bool = False
    always_valid: bool = False
    sleep: int = 0                                      # seconds at most before a validation; 0: none
    env: Mapping[str, str] = field(default_factory=dict)            # any further environment


class Pebble(Server):
    """The CA.  A restart makes new roots, as Pebble keeps nothing: ask `root()` again after it."""

    def __init__(self, name: str = "pebble", host: str = "ca.stage.test", port: int = 14000, management_port: int = 15000, **options: Any) -> None:
        super().__init__(name)
        self.host, self.port, self.management_port = host, port, management_port
        self.listen = "127.0.0.1"
        self.options = PebbleOptions(**options)
        authority = Authority()
        self.ca_bundle = authority.bundle
        self.certificate, self.key = authority.issue(name, host)
        self.context = ssl.create_default_context(cafile=self.ca_bundle)

    @property
    def directory_url(self) -> str:
        return f"https://{self.host}:{self.port}/dir"

    def _config(self) -> str:
        options = self.options
        pebble: dict[str, object] = {
            "listenAddress": f"{self.listen}:{self.port}", "managementListenAddress": f"127.0.0.1:{self.management_port}",
            "certificate": self.certificate, "privateKey": self.key, "httpPort": options.http_port, "tlsPort": options.tls_port,
            "ocspResponderURL": "", "externalAccountBindingRequired": bool(options.eab), "externalAccountMACKeys": dict(options.eab),
            "domainBlocklist": list(options.blocked), "retryAfter": {"authz": options.retry_after[0], "order": options.retry_after[1]},
            "keyAlgorithm": options.key_algorithm,
        }
        if options.caa_identities:
            pebble["caaIdentities"] = list(options.caa_identities)
        if options.validity is not None:
            pebble["certificateValidityPeriod"] = options.validity
        profiles = dict(options.profiles)
        if options.validity is not None:
            profiles.setdefault("default", options.validity)        # where there are profiles, the period above is not looked at
        if profiles:
            pebble["profiles"] = {name: {"description": f"{seconds} seconds", "validityPeriod": seconds, "promoteCommonName": name in options.common_names}
                                  for name, seconds in profiles.items()}
        return json.dumps({"pebble": pebble}, indent=2) + "\n"

    def _environment(self) -> dict[str, str]:
        options = self.options
        environment = {"PEBBLE_WFE_NONCEREJECT": str(options.nonce_reject), "PEBBLE_AUTHZREUSE": str(options.authz_reuse),
                       "PEBBLE_CHAIN_LENGTH": str(options.chain_length), "PEBBLE_ALTERNATE_ROOTS": str(options.alternate_roots)}
        if options.sleep:
            environment["PEBBLE_VA_SLEEPTIME"] = str(options.sleep)
        else:
            environment["PEBBLE_VA_NOSLEEP"] = "1"
        if options.always_valid:
            environment["PEBBLE_VA_ALWAYS_VALID"] = "1"
        return {**environment, **options.env}

    def start(self) -> None:
        config = write(os.path.join(WORLD, f"{self.name}.json"), self._config())
        argv = [pebble_program("pebble"), "-config", config, "-dnsserver", self.options.dns]
        self.launch(argv + (["-strict"] if self.options.strict else []), self._environment())
        self.wait_ready(self.port, self.management_port)

    def restart(self, **changes: Any) -> None:
        """Stop, change these options, start: a CA that has forgotten everything, with new roots."""
        for name, value in changes.items():
            if not hasattr(self.options, name):
                raise TypeError(f"Pebble has no option {name}")
            setattr(self.options, name, value)
        self.stop()
        self.start()

    def get(self, path: str, management: bool = False) -> bytes:
        port = self.management_port if management else self.port
        return fetch(urllib.request.Request(f"https://localhost:{port}/{path}"), self.context)

    def directory(self) -> dict[str, Any]:
        directory: dict[str, Any] = json.loads(self.get("dir"))
        return directory

    @property
    def has_ari(self) -> bool:
        return "renewalInfo" in self.directory()

    @property
    def has_profiles(self) -> bool:
        return "profiles" in self.directory().get("meta", {})

    def _numbered(self, what: str) -> list[str]:
        return [self.get(f"{what}/{number}", management=True).decode() for number in range(self.options.alternate_roots + 1)]

    def root(self) -> str:
        """Fetch the roots (and intermediates beside them); answer the path of a file for `trust_roots`.

        The roots alone are in NAME-roots.pem, the intermediates that Pebble shows in NAME-intermediates.pem.
        """
        write(os.path.join(WORLD, f"{self.name}-intermediates.pem"), "".join(self._numbered("intermediates")))
        return write(os.path.join(WORLD, f"{self.name}-roots.pem"), "".join(self._numbered("roots")))

    def set_renewal_info(self, certificate: str, start: datetime, end: datetime, explanation: str = "") -> None:
        """Say when this certificate (PEM, its first one counts) should be renewed (Pebble 2.8 and later)."""
        window = {"start": rfc3339(start), "end": rfc3339(end)}
        answer: dict[str, object] = {"suggestedWindow": window}
        if explanation:
            answer["explanationURL"] = explanation
        self.set_renewal_answer(certificate, json.dumps(answer))

    def set_renewal_answer(self, certificate: str, answer: str) -> None:
        """Answer just this when asked for the certificate's renewal information, well-formed or not."""
        leaf = certificate[:certificate.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"
        body = json.dumps({"Certificate": leaf, "ARIResponse": answer}).encode()
        fetch(urllib.request.Request(f"https://localhost:{self.management_port}/set-renewal-info/", body, method="POST"), self.context)

    def status(self, serial: str) -> str:
        """"Valid" or "Revoked", or "" for a serial number (hexadecimal) that this CA never issued."""
        try:
            answer = json.loads(self.get(f"cert-status-by-serial/{serial.lower().removeprefix('0x')}", management=True))
        except urllib.error.HTTPError as error:
            if error.code == NOT_FOUND:
                return ""
            raise
        return str(answer["Status"])

    def requests(self) -> list[str]:
        """The requests so far in all runs of this Pebble, as "POST /order-plz"."""
        return [match.replace(" -> calling handler()", "") for match in re.findall(r"(?:GET|HEAD|POST) /\S* -> calling handler\(\)", self.log_text())]

    def orders(self) -> int:
        """The orders that it took, so far, in all its runs. A request for one may be refused, and sent again: Pebble does not find the order that is to be
        replaced where the certificate's serial number begins with a zero, which one in sixteen does."""
        return len(re.findall(r"Added order \S+ to the db", self.log_text()))


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Nginx:
    """Debian's nginx as it comes, without the sites that the package or the host has."""

    def __init__(self) -> None:
        home()
        for name in ("sites-enabled", "conf.d"):
            folder = os.path.join("/etc/nginx", name)
            os.makedirs(folder, exist_ok=True)
            for entry in os.listdir(folder):
                os.unlink(os.path.join(folder, entry))

    def add_site(self, name: str, text: str) -> None:
        """Write sites-available/NAME and link it; takes effect at the next start or reload."""
        write(f"/etc/nginx/sites-available/{name}", text)
        link = f"/etc/nginx/sites-enabled/{name}"
        if not os.path.lexists(link):
            os.symlink(f"../sites-available/{name}", link)

    def remove_site(self, name: str) -> None:
        for folder in ("sites-enabled", "sites-available"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/etc/nginx/{folder}/{name}")

    @staticmethod
    def _call(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["/usr/sbin/nginx", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False, timeout=30)

    def test(self) -> tuple[bool, str]:
        """nginx -t: whether it passes, and what it says."""
        done = self._call("-t")
        return done.returncode == 0, done.stdout

    def pid(self) -> int:
        """The master's, or 0."""
        try:
            pid = int(read("/run/nginx.pid"))
            return pid if "nginx" in read(f"/proc/{pid}/comm") else 0
        except (OSError, ValueError):
            return 0

    def workers(self) -> set[int]:
        """The children that serve: those that shut down are left out."""
        try:
            children = read(f"/proc/{self.pid()}/task/{self.pid()}/children").split()
        except OSError:
            return set()
        serving = set()
        for child in map(int, children):
            with contextlib.suppress(OSError):
                if "shutting down" not in read(f"/proc/{child}/cmdline"):
                    serving.add(child)
        return serving

    def start(self, *ports: int) -> None:
        """Start it, and wait for its pid file, its workers and these ports."""
        done = self._call()
        if done.returncode != 0:
            raise WorldError(f"nginx does not start: {done.stdout}")
        wait_for(lambda: self.pid() and self.workers(), 10, "nginx")
        for port in ports:
            self.wait_listening(port)

    def stop(self) -> None:
        pid = self.pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not self.pid() and not os.path.exists(f"/proc/{pid}"), 10, "nginx's end")

    def reload(self) -> None:
        """nginx -s reload, until new workers serve; raises where they do not come."""
        before = self.workers()
        done = self._call("-s", "reload")
        if done.returncode != 0:
            raise WorldError(f"nginx does not reload: {done.stdout}")
        wait_for(lambda: self.workers() - before and not self.workers() & before, 10, "nginx's new workers")

    @staticmethod
    def wait_listening(port: int, timeout: float = 10.0) -> None:
        wait_listening(port, timeout)

    @staticmethod
    def error_log() -> str:
        return read("/var/log/nginx/error.log")


class Cron(Server):
    """Debian's cron; the host's own jobs are not in the stage.  It looks at its tables at every full minute."""

    def __init__(self) -> None:
        super().__init__("cron")

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/run/crond.pid")
        self.launch(["/usr/sbin/cron", "-f"])
        wait_for(lambda: os.path.exists("/run/crond.pid") or not self.running(), 5, "cron")
        if not self.running():
            raise WorldError(f"cron ended\n{log_tails()}")


SENDMAIL = """#!/usr/bin/python3 -I
# The stage's sendmail: keeps what it is given, with its arguments and who called it.
import json, os, sys, time
if os.path.exists("{mail}/.refuse"):
    sys.exit(75)
name = "{mail}/%020d-%d" % (time.time_ns(), os.getpid())
text = sys.stdin.buffer.read()
descriptor = os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
with os.fdopen(descriptor, "wb") as file:
    file.write(json.dumps(dict(uid=os.getuid(), argv=sys.argv[1:])).encode() + b"\\n" + text)
os.rename(name + ".new", name + ".mail")
"""


@dataclass(frozen=True)
class Mail:
    """One message as it arrived: by sendmail (argv, uid) or by SMTP (sender, recipients, tls, user)."""
    text: bytes
    uid: int = -1
    argv: tuple[str, ...] = ()
    sender: str = ""
    recipients: tuple[str, ...] = ()
    tls: bool = False
    user: str = ""
    password: str = ""

    @property
    def message(self) -> email.message.EmailMessage:
        parsed = email.message_from_bytes(self.text, policy=email.policy.default)
        if not isinstance(parsed, email.message.EmailMessage):
            raise WorldError("not a message")
        return parsed

    @property
    def subject(self) -> str:
        return str(self.message["Subject"] or "")

    @property
    def body(self) -> str:
        return str(self.message.get_content())


class MailSink:
    """Where mail ends up: a /usr/sbin/sendmail, and an SMTP server with STARTTLS and AUTH at a port of 127.0.0.1."""

    def __init__(self, port: int = 587, host: str = "mail.stage.test") -> None:
        self.port, self.host = port, host
        authority = Authority()
        self.ca_bundle = authority.bundle
        certificate, key = authority.issue("mail", host)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.received: list[Mail] = []
        self.server: Optional[SmtpServer] = None

    def start(self) -> None:
        os.makedirs(MAIL, exist_ok=True)
        os.chmod(MAIL, 0o1777)
        self.clear()
        self.refuse(False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/usr/sbin/sendmail")         # the host's may be a link into another package
        write("/usr/sbin/sendmail", SENDMAIL.format(mail=MAIL), 0o755)
        self.server = SmtpServer(self)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def refuse(self, refusing: bool = True) -> None:
        """Let sendmail fail with EX_TEMPFAIL and SMTP answer 451, or take mail again."""
        if refusing:
            write(f"{MAIL}/.refuse", "")
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{MAIL}/.refuse")

    def messages(self) -> list[Mail]:
        """Everything so far; what came by sendmail first, each in the order of arrival."""
        found = []
        for name in sorted(os.listdir(MAIL)):
            if name.endswith(".mail"):
                with open(os.path.join(MAIL, name), "rb") as file:
                    about = json.loads(file.readline())
                    found.append(Mail(file.read(), uid=about["uid"], argv=tuple(about["argv"])))
        return found + list(self.received)

    def clear(self) -> None:
        for name in os.listdir(MAIL):
            if name.endswith(".mail"):
                os.unlink(os.path.join(MAIL, name))
        self.received.clear()

    def wait_message(self, timeout: float = 10.0) -> Mail:
        """The newest message, as soon as there is one."""
        return wait_for(self.messages, timeout, "a mail")[-1]


class SmtpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, sink: MailSink) -> None:
        self.sink = sink
        super().__init__(("127.0.0.1", sink.port), SmtpSession)


class SmtpSession(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs to hand over a message."""

    server: SmtpServer

    def say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")
        self.wfile.flush()

    def hear(self) -> str:
        return self.rfile.readline().decode("utf-8", "replace").rstrip("\r\n")

    def decoded(self, text: str) -> str:
        return base64.b64decode(text).decode("utf-8", "replace")

    def handle(self) -> None:
        tls, user, password, sender, recipients = False, "", "", "", list[str]()
        self.say("220 sink ESMTP")
        while True:
            line = self.hear()
            verb, _, rest = line.partition(" ")
            verb = verb.upper()
            if not line or verb == "QUIT":
                if line:
                    self.say("221 bye")
                return
            if verb == "EHLO":
                self.say("250-sink")
                if not tls:
                    self.say("250-STARTTLS")
                self.say("250-AUTH PLAIN LOGIN")
                self.say("250 8BITMIME")
            elif verb == "STARTTLS":
                self.say("220 go")
                self.request = self.server.sink.context.wrap_socket(self.request, server_side=True)
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb")
                tls = True
            elif verb == "AUTH":
                user, password = self.authenticate(rest)
                self.say("235 welcome")
            elif verb == "MAIL":
                if os.path.exists(f"{MAIL}/.refuse"):
                    self.say("451 not now")
                    continue
                sender, recipients = address_of(rest), []
                self.say("250 ok")
            elif verb == "RCPT":
                recipients.append(address_of(rest))
                self.say("250 ok")
            elif verb == "DATA":
                self.say("354 go on")
                text = self.text()
                self.server.sink.received.append(Mail(text, sender=sender, recipients=tuple(recipients), tls=tls, user=user, password=password))
                self.say("250 kept")
            elif verb in ("HELO", "RSET", "NOOP"):
                self.say("250 ok")
            else:
                self.say("502 unknown")

    def finish(self) -> None:
        super().finish()
        self.request.close()            # the server closes the socket below TLS only

    def authenticate(self, rest: str) -> tuple[str, str]:
        kind, _, first = rest.partition(" ")
        if kind.upper() == "PLAIN":
            if not first:
                self.say("334 ")
                first = self.hear()
            parts = self.decoded(first).split("\0")
            return parts[1], parts[2]
        if not first:
            self.say("334 VXNlcm5hbWU6")
            first = self.hear()
        self.say("334 UGFzc3dvcmQ6")
        return self.decoded(first), self.decoded(self.hear())

    def text(self) -> bytes:
        lines = []
        for line in self.rfile:
            if line == b".\r\n":
                break
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(lines)


def address_of(rest: str) -> str:
    match = re.search(r"<([^>]*)>", rest)
    return match.group(1) if match else ""


class World:
    """All of them: DNS, the CA and the mail sink started, nginx and cron ready to be."""

    def __init__(self, **pebble_options: Any) -> None:
        shutil.rmtree(home())
        self.dns = Challtestsrv()
        self.pebble = Pebble(**pebble_options)
        self.nginx = Nginx()
        self.cron = Cron()
        self.mail = MailSink()

    def start(self) -> "World":
        self.dns.start()
        self.pebble.start()
        self.mail.start()
        self.pebble.root()
        return self

    def stop(self) -> None:
        self.cron.stop()
        self.nginx.stop()
        self.pebble.stop()
        self.mail.stop()
        self.dns.stop()

    def __enter__(self) -> "World":
        return self.start()

    def __exit__(self, *failure: object) -> None:
        self.stop()

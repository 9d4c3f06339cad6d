"""The ways out: hands a message to the local sendmail, to an SMTP server or to a command, and fetches the heartbeat.

Runs as: _certdrop-watch, not shut in: sendmail needs its set-id bits. It reads nothing that others wrote, but the message it
carries, which it bounds. Trusts: root's configuration. Reads: /etc/certdrop/smtp-password, CA certificates. Writes: to the way out.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import urllib.parse
from typing import Iterator
from contextlib import contextmanager

from certdrop import events
from certdrop import foreign, spool
from certdrop.config import site as configuration
from certdrop.walls import users

SENDMAIL = "/usr/sbin/sendmail"
SENDER = "CERTDROP_SENDER"         # the environment's: a socket at which somebody delivers for us
TIMEOUT = 60                       # seconds for one delivery
PATIENCE = 30                      # seconds for one answer of a server
MAX_SUBJECT, MAX_LINE, MAX_LINES = 200, 500, 1000
NO_BEAT = "the heartbeat failed: "
PASSWORD = "smtp-password"         # below /etc/certdrop

_ADDRESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._%+=-]{0,63}(@[A-Za-z0-9][A-Za-z0-9.-]{0,250})?")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,250}|\[[0-9a-f:.]+\]")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


class Undelivered(Exception):
    """The way out did not take the message; the text says why, and holds no secret."""


class Route:
    """Where messages go, from [mail] of certdrop.toml; all checked. Raises configuration.ConfigError."""

    def __init__(self, mail: dict[str, object]) -> None:
        path = configuration.ETC + "/certdrop.toml"

        def text(key: str, default: str) -> str:
            value = mail.get(key, default)
            if not isinstance(value, str) or not value.isprintable() or not value.isascii():
                raise configuration.ConfigError(f"{path}: mail.{key}: must be a string of plain characters")
            return value

        to = mail.get("to", ["root"])
        self.to = [to] if isinstance(to, str) else [str(part) for part in to] if isinstance(to, list) else []
        if not self.to or not all(_ADDRESS.fullmatch(part) for part in self.to):
            raise configuration.ConfigError(f'{path}: mail.to: give a list of mail addresses or local users, such as ["root"]')
        self.name, self.host = host_name(), mail_name()
        self.sender = text("from", f"_certdrop-watch@{self.host}")
        if not _ADDRESS.fullmatch(self.sender):
            raise configuration.ConfigError(f"{path}: mail.from: give one mail address")
        self.ca_bundle = text("ca_bundle", "/etc/ssl/certs/ca-certificates.crt")
        self.heartbeat = text("heartbeat", "")
        if self.heartbeat and not self.heartbeat.startswith(("https://", "http://")):
            raise configuration.ConfigError(f"{path}: mail.heartbeat: give an https:// URL")
        self.via = text("via", "sendmail")
        self.scheme, _, rest = self.via.partition(":")
        self.server, self.port, self.user, self.command = "", 0, "", ""
        if self.scheme == "command" and rest.startswith("/"):
            self.command = rest
        elif self.scheme in _PORTS and rest.startswith("//"):
            user, _, place = rest[2:].rstrip("/").rpartition("@")
            found = re.fullmatch(rf"({_HOST.pattern})(?::([0-9]{{1,5}}))?", place)
            if not found or (found[2] and not 0 < int(found[2]) < 65536):
                raise configuration.ConfigError(f"{path}: mail.via: {self.via!a:.80}: no host and port")
            self.server, self.port, self.user = found[1], int(found[2] or _PORTS[self.scheme]), urllib.parse.unquote(user)
            if ":" in user:
                raise configuration.ConfigError(f"{path}: mail.via: a password must not stand here; write it to {configuration.ETC}/{PASSWORD}")
            if self.scheme == "smtp" and (self.user or self.server not in _LOCAL):
                raise configuration.ConfigError(f"{path}: mail.via: smtp:// goes only to this host and without a login; give smtp+starttls:// or smtps://")
        elif self.via != "sendmail":
            raise configuration.ConfigError(f'{path}: mail.via: {self.via!a:.80}: give "sendmail", "smtp+starttls://USER@HOST:PORT", '
                                            '"smtps://USER@HOST:PORT" or "command:/PATH"')

    def words(self) -> str:
        """Where a message goes, for people."""
        to = ", ".join(self.to)
        return f"{to} by " + (SENDMAIL if self.via == "sendmail" else self.command or f"{self.scheme}, {self.server}:{self.port}")


def check(route: Route) -> None:
    """Whether the way out is there at all, without sending. Raises Undelivered."""
    if route.server:
        if route.user:
            password()
    elif not os.access(route.command or SENDMAIL, os.X_OK):
        raise Undelivered(f"{route.command or SENDMAIL} is not there or cannot be run; "
                          "install a mail server (apt install exim4-daemon-light), or set mail.via")


def deliver(route: Route, subject: str, body: str) -> None:
    """Hand over one message, whoever wrote it: cleaned and bounded once more. Raises Undelivered."""
    if os.environ.get(SENDER):
        return relay(os.environ[SENDER], subject, body)
    text = compose(route, subject, body)
    check(route)
    with _deadline():
        if route.server:
            _smtp(route, text)
        else:
            _run([route.command] if route.command else [SENDMAIL, "-i", "--", *route.to], text)


def relay(path: str, subject: str, body: str) -> None:
    """Have a process outside deliver it, where systemd has shut this one in (certdrop-watch.socket). Raises Undelivered."""
    try:
        with socket.socket(socket.AF_UNIX) as outside:
            outside.settimeout(2 * TIMEOUT)
            outside.connect(path)
            outside.sendall(json.dumps({"subject": subject[:MAX_SUBJECT], "body": body}).encode() + b"\n")
            outside.shutdown(socket.SHUT_WR)
            answer = b""
            while (more := outside.recv(4096)) and len(answer) < 4096:
                answer += more
    except OSError as error:
        raise Undelivered(f"{path}: {error.strerror or error}") from None
    if answer != b"delivered\n":
        raise Undelivered(events.clean(answer.decode("utf-8", "replace").strip() or f"{path}: no answer", 300))


def compose(route: Route, subject: str, body: str) -> bytes:
    """The message with its headers (RFC 5322; RFC 3834 for Auto-Submitted)."""
    from email.message import EmailMessage
    from email.policy import default
    from email.utils import formatdate, make_msgid
    message = EmailMessage(default.clone(max_line_length=900))         # RFC 5322 allows 998, and nobody likes a folded subject
    message["From"] = route.sender
    message["To"] = ", ".join(_qualified(route))
    message["Subject"] = events.clean(subject, MAX_SUBJECT)
    message["Date"] = formatdate(localtime=True)
    message["Message-ID"] = make_msgid("certdrop", route.host)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("".join(events.clean(line, MAX_LINE) + "\n" for line in body.splitlines()[:MAX_LINES]), cte="7bit")
    return message.as_bytes()


def beat(route: Route) -> None:
    """Fetch the heartbeat's URL; redirects are not followed. Raises Undelivered."""
    import http.client
    import urllib.request
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(context=_context(route)),
                    urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    with _deadline():
        try:
            with opener.open(urllib.request.Request(route.heartbeat, headers={"User-Agent": "certdrop-watch"}), timeout=PATIENCE) as answer:
                answer.read(1024)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Undelivered(f"{NO_BEAT}{events.clean(error, 150)}") from None


def host_name() -> str:
    """The host's own name: its mail's domain may be that of all hosts of a company."""
    return _plain(os.uname().nodename)


def mail_name() -> str:
    """The domain of the addresses of this host: /etc/mailname, else its own name."""
    try:
        with open("/etc/mailname", encoding="ascii") as stream:
            name = stream.readline().strip()
    except (OSError, ValueError):
        name = ""
    return _plain(name, os.uname().nodename)


def _plain(*names: str) -> str:
    """The first of these that is a name."""
    return next((known for known in names if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,250}", known)), "localhost")


def password() -> str:
    """The password, from a file that root owns and others cannot read. Raises Undelivered."""
    path = f"{configuration.ETC}/{PASSWORD}"
    mend = f"mend with chown root:_certdrop-watch {path}; chmod 640 {path}"
    try:
        fd = spool.open_directory(configuration.ETC)
        try:
            if os.stat(PASSWORD, dir_fd=fd, follow_symlinks=False).st_mode & 0o007:
                raise Undelivered(f"{path} can be read by others; {mend}")
            return foreign.read(fd, PASSWORD, 0, 4096).decode().rstrip("\r\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise Undelivered(f"{path}: {error.strerror}; {mend}") from None
    except (spool.Refused, ValueError) as error:
        raise Undelivered(f"{path} cannot be used ({events.clean(error, 40)}); {mend}") from None


def _qualified(route: Route) -> list[str]:
    return [to if "@" in to or not route.server else f"{to}@{route.host}" for to in route.to]


def _context(route: Route) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=route.ca_bundle)
    except OSError as error:
        raise Undelivered(f"{route.ca_bundle}: {events.clean(error, 100)}") from None


def _smtp(route: Route, text: bytes) -> None:
    import smtplib
    secret = password() if route.user else ""
    server = route.server.strip("[]")
    try:
        if route.scheme == "smtps":
            client: smtplib.SMTP = smtplib.SMTP_SSL(server, route.port, route.host, timeout=PATIENCE, context=_context(route))
        else:
            client = smtplib.SMTP(server, route.port, route.host, timeout=PATIENCE)
        with client:
            if route.scheme == "smtp+starttls":
                client.starttls(context=_context(route))
            if route.user:
                client.login(route.user, secret)
            refused = client.sendmail(route.sender, _qualified(route), text.replace(b"\n", b"\r\n"))      # RFC 5321 section 2.3.8
        if refused:
            raise Undelivered(f"{route.server}:{route.port} took no mail for {', '.join(sorted(refused))}")
    except (OSError, smtplib.SMTPException, ValueError) as error:
        raise Undelivered(f"{route.server}:{route.port}: {_without(secret, route.user, error)}") from None


def _without(secret: str, user: str, error: Exception) -> str:
    """The error in words; a server that echoes what it was given does not bring a password into a log."""
    parts = [part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in error.args] or [type(error).__name__]
    said = " ".join(parts)
    if secret:
        for form in (secret, *(base64.b64encode(raw.encode()).decode() for raw in (secret, f"\0{user}\0{secret}"))):
            said = said.replace(form, "(password)")
    return events.clean(said, 200)


def _run(command: list[str], text: bytes) -> None:
    try:
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT, env=users.ENVIRONMENT,
                              cwd="/", start_new_session=True, check=False)
    except subprocess.TimeoutExpired:
        raise Undelivered(f"{command[0]} did not end within {TIMEOUT} s") from None
    except OSError as error:
        raise Undelivered(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise Undelivered(f"{command[0]} ended with {done.returncode}" + (f": {events.clean(said[-1], 150)}" if said else ""))


@contextmanager
def _deadline() -> Iterator[None]:
    """A server that drips its answers cannot hold us up: everything together must end in time."""
    def late(*_: object) -> None:
        raise TimeoutError(f"no end within {TIMEOUT + 5} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(TIMEOUT + 5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

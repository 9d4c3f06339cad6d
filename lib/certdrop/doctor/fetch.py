"""Fetches a token as the CA would: over one address of a name, with its redirects (RFC 8555 section 8.3).

Runs as: _certdrop-watch, or anyone. Trusts: nothing that comes over a connection; bounded in time and size. Reads and writes: no file.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from certdrop.config.site import as_host
from certdrop.events import clean

PATIENCE = 8.0                     # seconds for one request
MOST = 16384                       # bytes of an answer
REDIRECTS = 10                     # as many as CAs follow

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]*))?\r?\n")
_SERVER = re.compile(rb"^server:[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)
_LOCATION = re.compile(rb"^location:[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)

_CHUNKED = re.compile(rb"^transfer-encoding:.*chunked", re.IGNORECASE | re.MULTILINE)

WORDS = {
    errno.ETIMEDOUT: "no answer in time: packets to its port 80 are dropped, as a firewall does",
    errno.ECONNREFUSED: "nobody listens there",
    errno.ENETUNREACH: "no packet was sent: this host has no route there",
    errno.EHOSTUNREACH: "no route to that host: it is not up, or a firewall says so",
    errno.EPERM: "no packet was sent: this host's own firewall forbids it",
    errno.EACCES: "no packet was sent: this host's own routes forbid it",
}


class Fetched(NamedTuple):
    """Whether the token came; the status (0: no answer), what is to be said of it, how many redirects there were, and to which name the last led."""

    came: bool
    status: int
    words: str
    redirects: int = 0
    where: str = ""
    server: str = ""               # what the server calls itself
    error: int = 0                 # the errno of a connection that did not come about


def fetch(address: str, name: str, path: str, content: str) -> Fetched:
    """Ask for http://name/path at this address. Raises nothing."""
    host, target, port, tls, server = name, path, 80, False, ""
    for turn in range(REDIRECTS + 1):
        try:
            data = _once(address, host, target, port, tls)
        except (OSError, ValueError) as error:                 # ssl.SSLError and UnicodeError among them
            why = _why(error) if not turn else f"redirected to http{'s' if tls else ''}://{as_host(host)}, and from there: {_why(error)}"
            return Fetched(False, 0, why, turn, host, "", 0 if turn else _number(error))
        found = _STATUS.match(data)
        if found is None:
            return Fetched(False, 0, f"no HTTP answer: {clean(data[:40].decode('latin-1'), 60)}" if data else "closed without an answer", turn, host)
        status = int(found[1])
        head, _, body = data.partition(b"\r\n\r\n")
        called = _SERVER.search(head)
        server = clean(called[1].decode("latin-1").strip(), 40) if called else ""
        if status == 200:
            came = (_whole(body) if _CHUNKED.search(head) else body).rstrip() == content.encode()          # as RFC 8555 section 8.3 has it
            return Fetched(came, status, "" if came else f"another content: {clean(body[:60].decode('latin-1'), 60)}", turn, host, server)
        location = _LOCATION.search(head)
        if status not in (301, 302, 303, 307, 308) or location is None:
            return Fetched(False, status, f"HTTP {status} {clean((found[2] or b'').decode('latin-1'), 40)}".strip(), turn, host, server)
        leading = clean(location[1].decode("latin-1").strip(), 200)
        try:
            parts = urlsplit(urljoin(f"http{'s' if tls else ''}://{as_host(host)}{target}", leading))
            tls = parts.scheme == "https"
            port = parts.port or (443 if tls else 80)
            if parts.scheme not in ("http", "https") or port not in (80, 443) or not parts.hostname:
                raise ValueError
            if parts.hostname != host:
                host = parts.hostname
                address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        except (OSError, ValueError):
            return Fetched(False, status, f"redirected to {leading}, where the CA does not go", turn + 1, host, server)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Fetched(False, status, "redirected again and again", REDIRECTS, host, server)


def _once(address: str, host: str, target: str, port: int, tls: bool) -> bytes:
    end = time.monotonic() + PATIENCE
    with socket.create_connection((address, port), PATIENCE) as plain:
        connection = _unverified().wrap_socket(plain, server_hostname=host) if tls else plain
        try:
            words = f"GET {target} HTTP/1.1\r\nHost: {as_host(host)}\r\nUser-Agent: certdrop-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            connection.sendall(words.encode("ascii"))
            data = b""
            while len(data) < MOST:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError("timed out")
                connection.settimeout(left)
                more = connection.recv(MOST)
                if not more:
                    break
                data += more
            return data
        finally:
            connection.close()


def _whole(body: bytes) -> bytes:
    """What was sent in chunks (RFC 9112 section 7.1)."""
    parts = list[bytes]()
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16) if re.match(rb"[0-9A-Fa-f]{1,8} *(;|\Z)", line) else 0
        if not size:
            return b"".join(parts)
        parts.append(body[:size])
        body = body[size + 2:]


def _unverified() -> ssl.SSLContext:
    """As the CA follows a redirect to HTTPS: whatever certificate is shown."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def _number(error: Exception) -> int:
    """Its errno; that of a time that is up."""
    return errno.ETIMEDOUT if isinstance(error, TimeoutError) else getattr(error, "errno", None) or errno.EPROTO


def _why(error: Exception) -> str:
    return WORDS.get(_number(error)) or clean(getattr(error, "strerror", None) or error, 100)


def is_ours(address: str) -> bool:
    """Whether it is an address of this host."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return True
    except OSError:
        return False

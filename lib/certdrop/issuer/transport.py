"""HTTP to the CA: persistent, verified TLS connections, with limits on time and size; and nothing but https.

Runs as: _certdrop, shut in. Trusts: `ca_bundle`. Reads: it, and the network. Writes: the network.
"""

from __future__ import annotations

import email.message
import http.client
import ssl
import time
import urllib.parse

from certdrop import VERSION
from certdrop.issuer.trouble import UNREACHABLE, Trouble

REQUEST = 30.0                     # seconds for one request
MAX_ANSWER = 1 << 20               # bytes
AGENT = f"certdrop/{VERSION} (acme-tiny)"


class Answer:
    """What a server answered, in the shape that urllib's answers have."""

    def __init__(self, status: int, headers: email.message.Message, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def read(self) -> bytes:
        """The body."""
        return self.body

    def getcode(self) -> int:
        """The status."""
        return self.status


class Transport:
    """Connections that one worker keeps. Not for two threads."""

    def __init__(self, context: ssl.SSLContext, deadline: float) -> None:
        self.context = context
        self.deadline = deadline               # time.monotonic() by which all must be done
        self.requests = 0
        self._open: dict[tuple[str, int], http.client.HTTPSConnection] = {}

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def request(self, method: str, url: str, body: bytes | None = None, kind: str = "") -> Answer:
        """One request over a kept connection; a connection that the server had closed meanwhile is replaced once. Raises Trouble."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.username is not None:
            raise Trouble(UNREACHABLE, f"{url}: not an https URL; certdrop speaks nothing else to a CA")
        place = (parts.hostname, parts.port or 443)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": AGENT, **({"Content-Type": kind} if kind else {})}
        while True:
            kept = self._open.pop(place, None)
            connection = kept or http.client.HTTPSConnection(*place, timeout=REQUEST, context=self.context)
            try:
                answer = self._once(connection, method, target, body, headers)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept and isinstance(error, (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError)):
                    continue                   # it had been idle for too long
                raise Trouble(UNREACHABLE, f"{parts.hostname}: {_words(error)}") from error
            except BaseException:
                connection.close()
                raise
            self._open[place] = connection
            return answer

    def _once(self, connection: http.client.HTTPSConnection, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        begin = time.monotonic()
        left = self.deadline - begin
        if left <= 0:
            raise Trouble(UNREACHABLE, "the order was not finished within its time")
        connection.timeout = min(REQUEST, left)
        if connection.sock:
            connection.sock.settimeout(connection.timeout)
        self.requests += 1
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        chunks, size = [], 0
        while True:
            chunk = response.read1(65536)
            if not chunk:
                break
            size += len(chunk)
            chunks.append(chunk)
            if size > MAX_ANSWER:
                raise Trouble(UNREACHABLE, f"{connection.host}: an answer longer than {MAX_ANSWER} bytes")
            if time.monotonic() - begin > REQUEST:
                raise TimeoutError(f"no complete answer within {REQUEST:g} s")
        response.close()                       # after HEAD nothing else does
        return Answer(response.status, response.headers, b"".join(chunks))


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate does not verify: {error.verify_message}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

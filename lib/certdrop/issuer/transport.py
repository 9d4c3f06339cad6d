"""HTTP to the CA: persistent, verified TLS connections, with limits on time and size; and nothing but https.

Runs as: _certdrop, shut in. Trusts: `ca_bundle`. Reads: it, and the network. Writes: the network.
"""

from __future__ import annotations

import email.message
import functools
import http.client
import io
import socket
import ssl
import threading
import time
import urllib.parse

from certdrop import VERSION
from certdrop.config import general, site
from certdrop.issuer import connect
from certdrop.issuer.failure import OURS, RATE_LIMITED, UNREACHABLE, Failure, of_this_host, seconds_of
from certdrop.trust import roots

REQUEST = 30.0                     # seconds for one request, from the name's lookup to the last byte
MAX_ANSWER = 1 << 20               # bytes
PATIENCE = 30.0                    # seconds that a run waits by itself when the CA says Retry-After; longer is for the next run
TRIES = 3                          # at a request that the CA puts off
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


class Gate:
    """Where all workers wait when the CA asks one of them to (Retry-After)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0                      # time.monotonic()

    def close(self, seconds: float) -> None:
        """Let nobody through for so long."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds until it opens."""
        with self._lock:
            return max(0.0, self._until - time.monotonic())

    def pass_through(self, deadline: float) -> None:
        """Wait until it is open. Raises Failure where that is too long."""
        while (left := self.left()) > 0:
            if left > PATIENCE or time.monotonic() + left > deadline:
                raise Failure(RATE_LIMITED, "the CA asked us to wait", left)
            time.sleep(left)


def context(config: general.Config) -> ssl.SSLContext:
    """What the CA's own server is verified against. Raises site.ConfigError."""
    first, *more = roots.bundles(config)
    path = first
    try:
        made = ssl.create_default_context(cafile=first)
        for path in more:
            made.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise site.ConfigError(f"{site.ETC}/certdrop.toml: ca_bundle: {path}: {getattr(error, 'strerror', None) or error}") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


class Transport:
    """Connections that one worker keeps. Not for two threads."""

    def __init__(self, context: ssl.SSLContext, deadline: float, gate: Gate, proxy: str = "", dialled: connect.Connecting | None = None) -> None:
        self.context, self.gate = context, gate
        self.deadline = deadline               # time.monotonic() by which all must be done
        self.requests = 0
        found = urllib.parse.urlsplit(proxy)
        self.proxy = (found.hostname, found.port or 3128) if found.hostname else None
        self._dialled = dialled                # a connection that is being made already
        self._open: dict[tuple[str, int], http.client.HTTPSConnection] = {}

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def request(self, method: str, url: str, body: bytes | None = None, kind: str = "") -> Answer:
        """One request; sent again, after a wait, where the CA says so. Raises Failure."""
        for tries in range(1, TRIES + 1):
            self.gate.pass_through(self.deadline)
            answer = self._request(method, url, body, kind)
            wait = seconds_of(answer.headers.get("Retry-After"))
            if answer.status not in (429, 503) or not wait:
                break
            if wait <= PATIENCE or answer.status == 503:
                self.gate.close(wait)
            if wait > PATIENCE or tries == TRIES:
                break
        return answer

    def _request(self, method: str, url: str, body: bytes | None, kind: str) -> Answer:
        parts = _split(url)
        place = (str(parts.hostname), parts.port or 443)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": AGENT, **({"Content-Type": kind} if kind else {})}
        while True:
            kept = self._open.pop(place, None)
            connection = kept or self._connection(place)
            try:
                answer = self._once(connection, method, target, body, headers)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                connection.close()
                if kept and isinstance(error, (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                    continue                   # it had been idle for too long; the next one is new, so this happens once
                if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in OURS:
                    raise of_this_host(error) from error
                raise Failure(UNREACHABLE, f"{parts.hostname}: {_words(error)}") from error
            except BaseException:
                connection.close()
                raise
            if connection.sock is not None:
                self._open[place] = connection
            return answer

    def _connection(self, place: tuple[str, int]) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(*(self.proxy or place), timeout=REQUEST, context=self.context)
        if self.proxy:
            connection.set_tunnel(*place)
        return connection

    def _connect(self, end: float, address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        dialled, self._dialled = self._dialled, None
        return dialled.take(end) if dialled and dialled.address == address else connect.connect(end, address)

    def _once(self, connection: http.client.HTTPSConnection, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        end = min(self.deadline, time.monotonic() + REQUEST)
        if end <= time.monotonic():
            raise Failure(UNREACHABLE, "the order was not finished within its time")
        connection.timeout = end - time.monotonic()
        setattr(connection, "_create_connection", functools.partial(self._connect, end))
        setattr(connection, "response_class", functools.partial(_Response, end))
        if connection.sock:
            connection.sock.settimeout(connection.timeout)
        self.requests += 1
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        chunks, size = [], 0
        while chunk := response.read1(65536):
            size += len(chunk)
            chunks.append(chunk)
            if size > MAX_ANSWER:
                raise Failure(UNREACHABLE, f"{connection.host}: an answer longer than {MAX_ANSWER} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()                       # of an answer to HEAD, reading tells nobody that it has ended
        return Answer(response.status, response.headers, b"".join(chunks))


class _Timed(io.RawIOBase):
    """A socket's bytes until a moment: a server that sends one byte now and then gets no more time than one that sends none."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        super().__init__()
        self._sock, self._end = sock, end

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: object) -> int:
        """Some bytes. Raises TimeoutError."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)  # type: ignore[arg-type]


class _Response(http.client.HTTPResponse):
    """An answer that must be complete by `end`."""

    def __init__(self, end: float, sock: socket.socket, *arguments: object, **named: object) -> None:
        super().__init__(sock, *arguments, **named)  # type: ignore[arg-type]
        self._file = self.fp                   # keeps the socket open where the server says Connection: close
        self.fp = io.BufferedReader(_Timed(sock, end))

    def close(self) -> None:
        """Close it, and what it kept open."""
        try:
            super().close()
        finally:
            self._file.close()


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "https" and parts.hostname and parts.username is None and (parts.port is None or parts.port) and url.isascii():
            return parts
    except ValueError:
        pass
    raise Failure(UNREACHABLE, f"{url}: not an https URL; certdrop speaks nothing else to a CA")


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate does not verify: {error.verify_message}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended in the middle of an answer"
    if isinstance(error, TimeoutError):
        return f"no complete answer within {REQUEST:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

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
from certdrop.issuer import coding, connect
from certdrop.issuer.failure import OURS, PROXY, RATE_LIMITED, REFUSED, UNREACHABLE, Failure, of_this_host, seconds_of
from certdrop.issuer.proxy import Proxy
from certdrop.signer import jose
from certdrop.trust import roots

REQUEST = 30.0                     # seconds for one request, from the name's lookup to the last byte
MAX_ANSWER = 1 << 20               # bytes
PATIENCE = 30.0                    # seconds that a run waits by itself when the CA says Retry-After; longer is for the next run
TRIES = 3                          # at a request that the CA puts off
REDIRECTING, REDIRECTS = (301, 302, 303, 307, 308), 5
INTERIM = 32                       # answers that are not the final one, before it
AGENT = f"certdrop/{VERSION} (acme-tiny)"


class Answer:
    """What a server answered, in the shape that urllib's answers have."""

    def __init__(self, status: int, headers: email.message.Message, body: bytes, url: str = "") -> None:
        self.status, self.headers, self.body = status, headers, body
        self.url = url                         # where it came from, after redirects

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

    def __init__(self, context: ssl.SSLContext, deadline: float, gate: Gate, proxy: Proxy = Proxy(), dialled: connect.Connecting | None = None,
                 tries: int = TRIES) -> None:
        self.context, self.gate, self.tries = context, gate, tries
        self.deadline = deadline               # time.monotonic() by which all must be done
        self.requests = 0
        self.proxy = proxy
        self._dialled = dialled                # a connection that is being made already
        self._open: dict[tuple[str, int], _Connection] = {}

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def request(self, method: str, url: str, body: bytes | None = None, kind: str = "") -> Answer:
        """One request; sent again, after a wait, where the CA says so, and to where it redirects, at its host, what is not signed.
        Raises Failure."""
        for tries in range(1, self.tries + 1):
            self.gate.pass_through(self.deadline)
            answer = self._followed(method, url, body, kind)
            wait = seconds_of(answer.headers.get("Retry-After"))
            if answer.status not in (429, 503) or not wait:
                break
            if wait <= PATIENCE or answer.status == 503:
                self.gate.close(wait)
            if wait > PATIENCE or tries == self.tries:
                break
        return answer

    def _followed(self, method: str, url: str, body: bytes | None, kind: str) -> Answer:
        answer = self._request(method, url, body, kind)
        for _ in range(REDIRECTS):
            there = answer.headers.get("Location") if answer.status in REDIRECTING else None
            if not there:
                return answer
            target = urllib.parse.urljoin(answer.url, str(there))
            _split(target)
            if body is not None:
                raise Failure(REFUSED, f"{url} redirects to {target}; what is signed is for one URL (RFC 8555 section 6.4), so that is not followed")
            if None in (jose.place_of(url), jose.place_of(target)) or jose.place_of(target) != jose.place_of(url):
                return answer                  # nothing is asked of another host than the configured one
            answer = self._request(method, target, None, kind)
        raise Failure(UNREACHABLE, f"{url} redirects again and again")

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
                answer.url = url
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                connection.close()
                if kept and isinstance(error, (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                    continue                   # it had been idle for too long; the next one is new, so this happens once
                if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in OURS:
                    raise of_this_host(error) from error
                if not connection.is_through:
                    raise self._of_the_proxy(place, error) from error
                raise Failure(UNREACHABLE, f"{parts.hostname}: {_words(error)}") from error
            except BaseException:
                connection.close()
                raise
            if connection.sock is not None:
                self._open[place] = connection
            return answer

    def _connection(self, place: tuple[str, int]) -> _Connection:
        connection = _Connection(*(self.proxy.place or place), timeout=REQUEST, context=self.context)
        if self.proxy.place:
            connection.set_tunnel(*place, headers={"Proxy-Authorization": self.proxy.header} if self.proxy.header else {})
            connection.is_through = False
        return connection

    def _of_the_proxy(self, place: tuple[str, int], error: Exception) -> Failure:
        """What went wrong before the proxy led anywhere."""
        proxy, there = self.proxy.words(), f"{site.as_host(place[0])}:{place[1]}"
        _, refused, said = self.proxy.without_secrets(str(error)).partition("Tunnel connection failed: ")      # http.client's words
        if not refused:
            return Failure(UNREACHABLE, f"the proxy {proxy}: {self.proxy.without_secrets(_words(error))}; the CA was not asked", problem=PROXY)
        why = ("; it does not take the user and the password that it was given" if self.proxy.header else "; it wants a user and a password")
        why = why if said.startswith("407") else ""
        down = said.startswith(("502", "503", "504"))          # what a proxy says of a server that it does not reach (RFC 9110 section 15.6)
        return Failure(UNREACHABLE, f"the proxy {proxy} does not lead to {there}: {said}{why}; the CA was not asked", problem="" if down else PROXY)

    def _connect(self, end: float, address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        dialled, self._dialled = self._dialled, None
        return dialled.take(end) if dialled and dialled.address == address else connect.connect(end, address)

    def _once(self, connection: _Connection, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
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
                raise Failure(UNREACHABLE, f"{connection.place}: an answer longer than {MAX_ANSWER} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()                       # of an answer to HEAD, reading tells nobody that it has ended
        return Answer(response.status, response.headers, _plain(b"".join(chunks), response.headers, method, connection.place))


class _Connection(http.client.HTTPSConnection):
    """A connection of which is known how far it came. Raises as its base does."""

    is_through = True                          # to the CA's own server: where there is a proxy, it has agreed

    @property
    def place(self) -> str:
        """The CA's host."""
        return str(getattr(self, "_tunnel_host", None) or self.host)

    def connect(self) -> None:
        """TCP, the proxy's consent where there is one, and TLS."""
        http.client.HTTPConnection.connect(self)
        self.is_through = True
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.place)

    def __init__(self, host: str, port: int, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls = context


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

    def _read_status(self) -> tuple[str, int, str]:
        """The status line of the final answer: interim ones (RFC 9110 section 15.2) are passed over. The base knows 100 alone, and reads a
        proxy's answer to CONNECT by this, too."""
        for _ in range(INTERIM):
            found: tuple[str, int, str] = super()._read_status()       # type: ignore[misc]
            if not 100 <= found[1] < 200 or found[1] == 101:           # 101 is final
                return found
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("interim answers, and no other")

    def close(self) -> None:
        """Close it, and what it kept open."""
        try:
            super().close()
        finally:
            self._file.close()


def _plain(body: bytes, headers: email.message.Message, method: str, host: str) -> bytes:
    """A body that something in between compressed, unpacked. Raises Failure."""
    codings = ", ".join(map(str, headers.get_all("Content-Encoding") or []))
    if not codings or not body or method == "HEAD":
        return body
    try:
        return coding.plain(body, codings, MAX_ANSWER)
    except coding.TooLong as error:
        raise Failure(UNREACHABLE, f"{host}: an answer longer than {MAX_ANSWER} bytes") from error
    except coding.Undecodable as error:
        raise Failure(UNREACHABLE, f"{host}: its answer is compressed ({error}), which was not asked for, and cannot be read; see whether something in "
                      "between, such as a proxy, does that") from error


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

"""A TCP connection by a moment; also ahead of need, in a thread, while other things are being loaded.

Runs as: _certdrop, shut in. Trusts: the resolver. Reads and writes: nothing over the connection; that is for who takes it.
"""

from __future__ import annotations

import errno
import socket
import threading
import time


def connect(end: float, address: tuple[str, int]) -> socket.socket:
    """A connection by `end` (time.monotonic()): every address of the host gets its share of the time. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError = TimeoutError("timed out")
    for number, (family, kind, protocol, _name, place) in enumerate(found):
        left = end - time.monotonic()
        if left <= 0:
            break
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left / (len(found) - number))
            made.connect(place)
            made.settimeout(max(0.001, end - time.monotonic()))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            made.close()
            failure = error
    raise failure


class Connecting(threading.Thread):
    """A connection that is being made. Raises OSError where no thread can be started: no memory, or a limit on processes."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        super().__init__(daemon=True)
        self.address = address
        self._end = time.monotonic() + seconds
        self._made: socket.socket | None = None
        self._failure: Exception = TimeoutError("timed out")
        try:
            self.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error

    def run(self) -> None:
        """In the thread."""
        try:
            self._made = connect(self._end, self.address)
        except (OSError, UnicodeError) as failure:
            self._failure = failure

    def take(self, end: float) -> socket.socket:
        """The connection, by `end`. Raises OSError, UnicodeError."""
        self.join(max(0.0, end - time.monotonic()))
        if self._made is None:
            raise self._failure
        self._made.settimeout(max(0.001, end - time.monotonic()))
        return self._made

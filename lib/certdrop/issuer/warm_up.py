"""The first words with the CA, while the rest of the network part is still being loaded: for each worker a connection, TLS, and a nonce.

That is three round trips in which there is nothing to do but wait, and loading takes about as long. So nothing that is imported here may
load `cryptography` or `structlog`; a test looks. Nothing is asked but what the first orders ask for.
Runs as: _certdrop, shut in before: a thread that was started earlier would not be. Trusts: see transport.py. Reads: notes of the account.
"""

from __future__ import annotations

import errno
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING

from certdrop.config import general
from certdrop.issuer.connect import Connecting
from certdrop.issuer.proxy import Proxy

if TYPE_CHECKING:
    from certdrop.issuer.account import Session
    from certdrop.signer.process import Signer

REQUEST = 30.0                     # seconds, as for any other request
OPENING = 60.0                     # seconds for all of it


class WarmUp:
    """Sessions with the CA of the configuration, in the making: `count`, the first of them with a head start."""

    def __init__(self, config: general.Config, holder: Signer, count: int = 1, through: Proxy | None = None) -> None:
        through = through or Proxy(config.proxy)
        place = urllib.parse.urlsplit(config.directory_url)
        address = through.place or (str(place.hostname), place.port or 443)
        dialled = Connecting(address, REQUEST)
        from certdrop.issuer import transport                  # 40 ms, in which the first packet is on its way
        from certdrop.issuer.account import Account, Session
        self.context, self.gate = transport.context(config), transport.Gate()
        self.account = Account(config.directory_url, config.contact, holder)
        lines = [transport.Transport(self.context, time.monotonic() + OPENING, self.gate, through, None if number else dialled)
                 for number in range(count)]
        try:
            self._begun = [_Begun(Session(self.account, line)) for line in lines]
        except RuntimeError as error:                          # "can't start new thread": no memory, or a limit on processes
            raise OSError(errno.EAGAIN, str(error)) from error

    def take(self) -> Session | None:
        """The next session, ready to order; None where all are taken. Raises what went wrong, as if the taker had tried himself."""
        try:
            begun = self._begun.pop(0)
        except IndexError:
            return None
        return begun.take()


class _Begun(threading.Thread):
    """A session that is being made ready."""

    def __init__(self, session: Session) -> None:
        super().__init__(daemon=True)
        self._session = session
        self._failure: Exception | None = None
        self.start()

    def run(self) -> None:
        """In the thread."""
        try:
            self._session.take_back(self._session.nonce())
            self._session.ahead = self._session.transport.requests
        except Exception as failure:           # whatever it is: it is raised again where it can be handled
            self._failure = failure

    def take(self) -> Session:
        """The session. Raises what went wrong."""
        self.join()
        if self._failure is not None:
            raise self._failure
        return self._session

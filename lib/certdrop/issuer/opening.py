"""The first words with the CA, while the rest of the network part is still being loaded: a connection, TLS, and a nonce for the first order.

That is three round trips in which there is nothing to do but wait, and loading takes about as long. So nothing that is imported here may
load `cryptography` or `structlog`; a test looks. Nothing is asked but what the first order asks for.
Runs as: _certdrop, shut in before: a thread that was started earlier would not be. Trusts: see transport.py. Reads: notes of the account.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
from typing import TYPE_CHECKING

from certdrop import site
from certdrop.issuer.dial import Dial

if TYPE_CHECKING:
    from certdrop.issuer.account import Session
    from certdrop.issuer.signer import Signer

REQUEST = 30.0                     # seconds, as for any other request
OPENING = 60.0                     # seconds for all of it


class Opening:
    """A session with the CA at `directory_url`, in the making. What goes wrong is told to whoever takes it, as if he had tried himself."""

    def __init__(self, config: site.Config, holder: Signer) -> None:
        proxy, place = (urllib.parse.urlsplit(url) for url in (config.proxy, config.directory_url))
        address = (proxy.hostname, proxy.port or 3128) if proxy.hostname else (str(place.hostname), place.port or 443)
        dialled = Dial(address, REQUEST)
        from certdrop.issuer import transport                  # 40 ms, in which the first packet is on its way
        from certdrop.issuer.account import Account, Session
        self.context, self.gate = transport.context(config.ca_bundle), transport.Gate()
        self.account = Account(config.directory_url, config.contact, holder)
        line = transport.Transport(self.context, time.monotonic() + OPENING, self.gate, config.proxy, dialled)
        self._session = Session(self.account, line)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self._session.take_back(self._session.nonce())
            self._session.ahead = self._session.transport.requests
        except Exception as failure:           # whatever it is: it is raised again where it can be handled
            self._failure = failure

    def take(self) -> Session:
        """The session, ready to order. Raises what went wrong."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._session

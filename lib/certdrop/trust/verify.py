"""Whether a chain leads to a root that is trusted: the one rule by which the judge takes a reply, and issuer, status, watcher and doctor speak of what is live.

Nothing is remembered beyond a run: whoever says it has looked. Verification is OpenSSL's (RFC 5280 section 6), at this moment.
Runs as: whoever imports it; never root. Trusts: the files of roots that it is given. Reads: those files. Writes: nothing.
"""

from __future__ import annotations

import hashlib
import warnings

from OpenSSL import crypto

END = b"-----END CERTIFICATE-----"
MOST = 20                          # certificates of a chain that are looked at


class Store:
    """The roots of a file. Raises OSError and ValueError where there are none to be had."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store = crypto.X509Store()
        self._known: dict[bytes, str] = {}
        for root in load(path):
            self.store.add_cert(root)

    def refusal(self, pem: bytes) -> str:
        """What refusal() says of a chain in PEM, looked at once a run. Raises ValueError."""
        key = hashlib.sha256(pem).digest()
        if key not in self._known:
            self._known[key] = refusal(certificates(pem)[:MOST], self.store)
        return self._known[key]


def refusal(chain: list[crypto.X509], store: crypto.X509Store) -> str:
    """Why a chain, the leaf first, does not lead to one of these roots now, in OpenSSL's words; "" where it does."""
    try:
        crypto.X509StoreContext(store, chain[0], chain[1:]).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error) or "refused"
    return ""


def load(path: str) -> list[crypto.X509]:
    """The certificates of a file of roots, at least one. Raises OSError, ValueError."""
    with open(path, "rb") as stream:
        return certificates(stream.read())


def certificates(pem: bytes) -> list[crypto.X509]:
    """The certificates of a text in PEM, at least one. Raises ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                # of old roots' odd numbers, which are the system's business
        try:
            found = [crypto.load_certificate(crypto.FILETYPE_PEM, block[block.index(b"-----BEGIN"):] + END + b"\n") for block in pem.split(END)[:-1]]
        except crypto.Error as error:
            raise ValueError("a certificate in PEM that cannot be read") from error
    if not found:
        raise ValueError("no certificates in PEM")
    return found

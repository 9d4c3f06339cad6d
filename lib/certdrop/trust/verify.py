"""Whether a chain leads to a root that is trusted: the one rule by which the judge takes a reply, and issuer, status, watcher and doctor speak of what is live.

Nothing is remembered beyond a run: whoever says it has looked. Verification is OpenSSL's (RFC 5280 section 6), at this moment.
Runs as: whoever imports it; never root. Trusts: the files of roots that it is given. Reads: those files. Writes: nothing.
"""

from __future__ import annotations

import warnings

from OpenSSL import crypto

END = b"-----END CERTIFICATE-----"
Certificate = crypto.X509
MOST = 20                          # certificates of a chain that are looked at


class Store:
    """The roots of a file. Raises OSError and ValueError where there are none to be had."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store = crypto.X509Store()
        for root in load(path):
            self.store.add_cert(root)


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
    return [certificate(block) for block in blocks(pem)]


def blocks(pem: bytes) -> list[bytes]:
    """The certificates of a text in PEM, at least one, each in PEM. Raises ValueError."""
    found = [block[block.index(b"-----BEGIN"):] + END + b"\n" for block in pem.split(END)[:-1]]
    if not found:
        raise ValueError("no certificates in PEM")
    return found


def certificate(block: bytes) -> crypto.X509:
    """A certificate in PEM. Raises ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                # of old roots' odd numbers, which are the system's business
        try:
            return crypto.load_certificate(crypto.FILETYPE_PEM, block)
        except crypto.Error as error:
            raise ValueError("a certificate in PEM that cannot be read") from error

"""The keys of an ACME account: the current one, and the other one of a change of keys (RFC 8555 section 7.3.5).

Before a change the other key is the one that shall follow; after it, the one that was. The files change places when the CA has said yes, so
that at any moment the key that the CA holds is on disk, whatever was killed. Runs as: _certdrop, in the signer. Trusts: its own directory.
Reads and writes: /var/lib/certdrop/account, ENTRY.key, ENTRY.other and ENTRY.url for each CA's directory.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from certdrop import spool
from certdrop.config import site
from certdrop.issuer.failure import LOCAL, Failure
from certdrop.signer import jose

BITS = 3072                        # acme-tiny knows RSA alone


class Key:
    """A private key. By itself it is an account to throw away, which has no other key and is bound to nobody."""

    has_other = False

    def __init__(self, pem: bytes) -> None:
        found = _load(pem)
        if not isinstance(found, rsa.RSAPrivateKey):
            raise Failure(LOCAL, "the account key is no RSA key, which acme-tiny needs")
        self._key = found
        try:
            found.public_key().verify(found.sign(b"", padding.PKCS1v15(), hashes.SHA256()), b"", padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature as error:
            raise ValueError("it does not sign") from error
        public = found.public_key().public_numbers()
        self.numbers = jose.Numbers(public.n, public.e)

    def sign(self, data: bytes, _request: str = "") -> bytes:
        """RS256 (RFC 7518 section 3.3)."""
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def jwk(self, _other: bool = False) -> dict[str, str]:
        """The public key."""
        return jose.jwk(self.numbers)

    def binding(self, _url: str) -> str:
        """Nothing: see process.Signer."""
        return ""

    def exchange(self) -> None:
        """Nothing: there is no other."""


def _load(pem: bytes) -> object:
    """The key, without a test of its primes, which takes 90 ms at each start: of a file of ours, it is enough that it signs. Raises ValueError, TypeError."""
    untested: dict[str, Any] = {"unsafe_skip_rsa_key_validation": True}
    try:
        return serialization.load_pem_private_key(pem, None, **untested)
    except TypeError:                          # before cryptography 39, as in Debian 12, the same is asked of the backend
        from cryptography.hazmat.backends import default_backend
        backend: Any = default_backend()
        backend._rsa_skip_check_key = True
        try:
            return serialization.load_pem_private_key(pem, None)
        finally:
            backend._rsa_skip_check_key = False


def make_key() -> bytes:
    """A new account key, PEM."""
    key = rsa.generate_private_key(65537, BITS)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Keyring:
    """The keys of the account at one CA; the first is made where there is none. Raises Failure, OSError."""

    def __init__(self, directory_url: str) -> None:
        self.entry = jose.entry(directory_url)
        self._place = f"{site.STATE}/account/{self.entry}"
        self._mend()
        found = self._load("key")
        if found is None:
            pem = make_key()
            self._put("key", pem)
            found = Key(pem)
        self.current, self.other = found, self._load("other")
        if not os.path.exists(self._place + ".url"):
            self._put("url", directory_url.encode())       # whose account it is, where who talks with the network cannot write: see issuer/revoke.py

    def make_other(self) -> None:
        """A new key, to follow the current one; a former other key is no more."""
        pem = make_key()
        self._put("other", pem)
        self.other = Key(pem)

    def exchange(self) -> None:
        """The other key becomes the current one, and the current one the other. Killed anywhere, both are there."""
        if self.other is None:
            raise FileNotFoundError(errno.ENOENT, "there is no other key")
        os.link(self._place + ".key", self._place + ".was")
        os.rename(self._place + ".other", self._place + ".key")
        os.rename(self._place + ".was", self._place + ".other")
        self._sync()
        self.current, self.other = self.other, self.current

    def other_is_younger(self) -> bool:
        """Whether the other key is one that shall follow: it was made after the current one."""
        try:
            return os.stat(self._place + ".other").st_mtime_ns > os.stat(self._place + ".key").st_mtime_ns
        except FileNotFoundError:
            return False

    def set_aside(self) -> None:
        """No account has these keys any more. They stay, under names that nothing looks for."""
        for ending in ("other", "key"):
            try:
                os.rename(f"{self._place}.{ending}", f"{self._place}.{ending}.deactivated-{int(time.time())}")
            except FileNotFoundError:
                pass
        self._sync()

    def _mend(self) -> None:
        """Finish or undo an exchange that was killed."""
        was, other = self._place + ".was", self._place + ".other"
        if os.path.lexists(was) and os.path.lexists(other):
            os.unlink(was)                     # killed before the first rename
        elif os.path.lexists(was):
            os.rename(was, other)

    def _load(self, ending: str) -> Key | None:
        path = f"{self._place}.{ending}"
        try:
            with open(path, "rb") as stream:
                return Key(stream.read(spool.MAX_REPLY))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Failure(LOCAL, f"{path}: not a private key: {error}") from error

    def _put(self, ending: str, data: bytes) -> None:
        fd = spool.open_directory(site.STATE + "/account")
        try:
            spool.write(fd, f"{self.entry}.{ending}", data, 0o600)
        finally:
            os.close(fd)

    def _sync(self) -> None:
        fd = spool.open_directory(site.STATE + "/account")
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

"""The ACME account: its key, made on first use, and what the CA called it (RFC 8555 section 7.3).

Runs as: _certdrop. Trusts: its own directory. Reads and writes: /var/lib/certdrop/account, a key and what is known for each CA.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import urllib.parse

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from certdrop import site, spool
from certdrop.issuer.transport import Answer, Transport
from certdrop.issuer.trouble import LOCAL, AccountUnknown, Trouble, from_answer

BITS = 3072                        # acme-tiny knows RSA alone
JOSE = "application/jose+json"
NONCES = 10                        # tries at a request whose nonce is refused (RFC 8555 section 6.5)


def b64(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Key:
    """The account key. All that is asked of it is to sign; a process of its own could answer just so."""

    def __init__(self, pem: bytes) -> None:
        found = serialization.load_pem_private_key(pem, None)
        if not isinstance(found, rsa.RSAPrivateKey):
            raise Trouble(LOCAL, "the account key is no RSA key, which acme-tiny needs")
        self._key = found
        self.numbers = found.public_key().public_numbers()

    def sign(self, data: bytes) -> bytes:
        """RS256 (RFC 7518 section 3.3)."""
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def jwk(self) -> dict[str, str]:
        """The public key as a JWK (RFC 7517)."""
        e, n = self.numbers.e, self.numbers.n
        return {"e": b64(e.to_bytes((e.bit_length() + 7) // 8, "big")), "kty": "RSA", "n": b64(n.to_bytes((n.bit_length() + 7) // 8, "big"))}


class Account:
    """The account at one CA, with the CA's directory and the nonces that it gave."""

    def __init__(self, directory_url: str, contact: list[str], transport: Transport) -> None:
        host = urllib.parse.urlsplit(directory_url).hostname or "ca"
        self.directory_url = directory_url
        self.contact = [f"mailto:{address}" for address in contact]
        self.transport = transport
        self.place = f"{site.STATE}/account/{host}-{hashlib.sha256(directory_url.encode()).hexdigest()[:8]}"
        self.registered_now = False
        self.key = self._load_key()
        self._known = self._load()

    @property
    def directory(self) -> dict[str, object]:
        """The CA's directory object (RFC 8555 section 7.1.1), as kept, or asked for. Raises Trouble."""
        known = self._known.get("directory")
        if not isinstance(known, dict):
            answer = self.transport.request("GET", self.directory_url)
            if answer.status != 200:
                raise from_answer(self.directory_url, answer.status, answer.body, answer.headers.get("Retry-After"))
            try:
                known = json.loads(answer.body)
            except ValueError:
                known = None
            if not isinstance(known, dict) or not all(isinstance(known.get(name), str) for name in ("newNonce", "newAccount", "newOrder")):
                raise Trouble("CA unreachable", f"{self.directory_url} is no ACME directory")
            self._known["directory"] = known
            self._save()
        return known

    @property
    def kid(self) -> str:
        """The account's URL; registers it, or its new contact, where that is due. Raises Trouble."""
        known = self._known.get("account")
        if isinstance(known, str) and self._known.get("contact") == self.contact:
            return known
        payload: dict[str, object] = {"termsOfServiceAgreed": True, **({"contact": self.contact} if self.contact else {})}
        if isinstance(known, str):
            place, update = known, True
        else:
            answer = self.post(str(self.directory["newAccount"]), payload, None)
            place = str(answer.headers.get("Location") or "")
            if not place:
                raise Trouble("CA unreachable", "the CA did not say the account's URL")
            self.registered_now = answer.status == 201
            update = answer.status == 200 and bool(self.contact)
        if update:
            self.post(place, {"contact": self.contact}, place)
        self._known.update(account=place, contact=self.contact)
        self._save()
        return place

    def forget(self) -> None:
        """The CA does not know this account, or answers otherwise than the directory says: ask again for both."""
        self._known = {}
        self._save()

    def post(self, url: str, payload: object, kid: str | None, nonce: str | None = None) -> Answer:
        """A signed request (RFC 8555 section 6.2), tried again where its nonce is refused. Raises Trouble."""
        for _ in range(NONCES):
            who: dict[str, object] = {"kid": kid} if kid else {"jwk": self.key.jwk()}
            protected: dict[str, object] = {"alg": "RS256", "nonce": nonce or self.nonce(), "url": url, **who}
            first = b64(json.dumps(protected).encode())
            second = "" if payload is None else b64(json.dumps(payload).encode())
            signature = b64(self.key.sign(f"{first}.{second}".encode()))
            body = json.dumps({"protected": first, "payload": second, "signature": signature}).encode()
            answer = self.transport.request("POST", url, body, JOSE)
            nonce = answer.headers.get("Replay-Nonce")
            if answer.status < 300:
                return answer
            trouble = from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
            if trouble.problem != "badNonce":
                raise trouble
        raise trouble

    def nonce(self, transport: Transport | None = None) -> str:
        """A fresh nonce from the CA (over a worker's own connection). Raises Trouble."""
        url = str(self.directory["newNonce"])
        answer = (transport or self.transport).request("HEAD", url)
        nonce = answer.headers.get("Replay-Nonce")
        if not nonce:
            raise from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
        return str(nonce)

    def _load_key(self) -> Key:
        try:
            with open(self.place + ".key", "rb") as stream:
                return Key(stream.read())
        except FileNotFoundError:
            key = rsa.generate_private_key(65537, BITS)
            pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            self._put(".key", pem)
            return Key(pem)
        except ValueError as error:
            raise Trouble(LOCAL, f"{self.place}.key: not a private key: {error}") from error

    def _load(self) -> dict[str, object]:
        try:
            with open(self.place + ".json", encoding="utf-8") as stream:
                found = json.load(stream)
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self) -> None:
        self._put(".json", json.dumps(self._known).encode())

    def _put(self, ending: str, data: bytes) -> None:
        fd = spool.open_directory(site.STATE + "/account")
        try:
            spool.write(fd, self.place.rpartition("/")[2] + ending, data, 0o600)
        finally:
            os.close(fd)


__all__ = ["Account", "AccountUnknown", "Key", "b64"]

"""The ACME account: its key, made on first use, and what the CA called it (RFC 8555 section 7.3).

Runs as: _certdrop. Trusts: its own directory. Reads and writes: /var/lib/certdrop/account, a .key and a .json for each CA's directory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
import urllib.parse

from certdrop import site, spool
from certdrop.issuer.transport import Answer, Transport
from certdrop.issuer.trouble import LOCAL, REFUSED, UNREACHABLE, Trouble, from_answer

BITS = 3072                        # acme-tiny knows RSA alone
JOSE = "application/jose+json"
NONCES = 50                        # tries at a request whose nonce is refused (RFC 8555 section 6.5)
DIRECTORY_AGE = 86400.0            # seconds after which the CA's directory is asked for again


def b64(data: bytes) -> str:
    """base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Key:
    """The account key. All that is asked of it is to sign; a process of its own could answer just so."""

    def __init__(self, pem: bytes) -> None:
        from cryptography.hazmat.primitives import serialization           # here and below: see opening.py
        from cryptography.hazmat.primitives.asymmetric import rsa
        found = serialization.load_pem_private_key(pem, None)
        if not isinstance(found, rsa.RSAPrivateKey):
            raise Trouble(LOCAL, "the account key is no RSA key, which acme-tiny needs")
        self._key = found
        self.numbers = found.public_key().public_numbers()

    def sign(self, data: bytes) -> bytes:
        """RS256 (RFC 7518 section 3.3)."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def jwk(self) -> dict[str, str]:
        """The public key as a JWK (RFC 7517)."""
        e, n = self.numbers.e, self.numbers.n
        return {"e": b64(e.to_bytes((e.bit_length() + 7) // 8, "big")), "kty": "RSA", "n": b64(n.to_bytes((n.bit_length() + 7) // 8, "big"))}


def make_key() -> bytes:
    """A new account key, PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    key = rsa.generate_private_key(65537, BITS)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Account:
    """The account at one CA, and the CA's directory. For several threads. With `keep` false nothing is read or written: an account to throw away."""

    def __init__(self, directory_url: str, contact: list[str], keep: bool = True) -> None:
        host = urllib.parse.urlsplit(directory_url).hostname or "ca"
        self.directory_url = directory_url
        self.contact = [f"mailto:{address}" for address in contact]
        self.lock = threading.RLock()
        self.registered_now = False
        self.known: dict[str, object] = {}     # directory, directory_at, account, contact
        self._entry = f"{host}-{hashlib.sha256(directory_url.encode()).hexdigest()[:8]}"
        self._keep = keep
        self._key: Key | None = None
        if keep:
            self._load()

    @property
    def key(self) -> Key:
        """The account key, loaded (or made) when it is first needed. Raises Trouble, OSError."""
        with self.lock:
            if self._key is None:
                self._key = self._load_key() if self._keep else Key(make_key())
            return self._key

    def note(self, **facts: object) -> None:
        """Remember what the CA said. Raises OSError."""
        self.known.update(facts)
        self._save()

    def forget(self, account: str) -> None:
        """The CA does not know the account of this URL: the next session registers again, and asks for the directory again."""
        with self.lock:
            if self.known.get("account") == account:
                self.known = {}
                self._save()

    def _load_key(self) -> Key:
        path = f"{site.STATE}/account/{self._entry}.key"
        try:
            with open(path, "rb") as stream:
                return Key(stream.read())
        except FileNotFoundError:
            pem = make_key()
            self._put(".key", pem)
            return Key(pem)
        except ValueError as error:
            raise Trouble(LOCAL, f"{path}: not a private key: {error}") from error

    def _load(self) -> None:
        try:
            with open(f"{site.STATE}/account/{self._entry}.json", encoding="utf-8") as stream:
                found = json.load(stream)
        except (FileNotFoundError, ValueError):
            return
        self.known = found if isinstance(found, dict) else {}

    def _save(self) -> None:
        if self._keep:
            self._put(".json", json.dumps(self.known).encode())

    def _put(self, ending: str, data: bytes) -> None:
        fd = spool.open_directory(site.STATE + "/account")
        try:
            spool.write(fd, self._entry + ending, data, 0o600)
        finally:
            os.close(fd)


class Session:
    """One worker's talk with the CA in the account's name: over its connections, with the nonces that it was given."""

    def __init__(self, account: Account, transport: Transport) -> None:
        self.account, self.transport = account, transport
        self.ahead = 0                         # requests that were made before there was an order to count them for
        self._nonce = ""

    def directory(self, fresh: bool = False) -> dict[str, object]:
        """The CA's directory object (RFC 8555 section 7.1.1), as kept, or asked for. Raises Trouble."""
        with self.account.lock:
            known, at = self.account.known.get("directory"), self.account.known.get("directory_at")
            if not fresh and isinstance(known, dict) and isinstance(at, int) and 0 <= time.time() - at < DIRECTORY_AGE:
                return known
            url = self.account.directory_url
            answer = self.transport.request("GET", url)
            if answer.status != 200:
                raise from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
            found = as_object(answer)
            if not all(isinstance(found.get(name), str) for name in ("newNonce", "newAccount", "newOrder")):
                raise Trouble(UNREACHABLE, f"{url} is no ACME directory")
            self.account.note(directory=found, directory_at=int(time.time()))
            return found

    def url(self, name: str) -> str:
        """One of the directory's URLs. Raises Trouble."""
        return str(self.directory()[name])

    def kid(self) -> str:
        """The account's URL; registers it, or its new contact, where that is due. Raises Trouble."""
        account = self.account
        with account.lock:
            known = account.known.get("account")
            if isinstance(known, str) and account.known.get("contact") == account.contact:
                return known
            if isinstance(known, str):
                place, update = known, True
            else:
                payload: dict[str, object] = {"termsOfServiceAgreed": True, **({"contact": account.contact} if account.contact else {})}
                answer = self.post(self.url("newAccount"), payload, "")
                place = str(answer.headers.get("Location") or "")
                if not place:
                    raise Trouble(UNREACHABLE, "the CA did not say the account's URL")
                account.registered_now = answer.status == 201
                update = answer.status == 200 and bool(account.contact)
            if update:
                self.post(place, {"contact": account.contact}, place)
            account.note(account=place, contact=account.contact)
            return place

    def post(self, url: str, payload: object, kid: str | None = None) -> Answer:
        """A signed request (RFC 8555 section 6.2), by the account of `kid` (ours unless given; "" by the key alone), tried again where its
        nonce is refused. Raises Trouble."""
        who: dict[str, object] = {"jwk": self.account.key.jwk()} if kid == "" else {"kid": kid or self.kid()}
        for _ in range(NONCES):
            first = b64(json.dumps({"alg": "RS256", "nonce": self.nonce(), "url": url, **who}).encode())
            second = "" if payload is None else b64(json.dumps(payload).encode())
            signature = b64(self.account.key.sign(f"{first}.{second}".encode()))
            answer = self.send(url, json.dumps({"protected": first, "payload": second, "signature": signature}).encode())
            if answer.status < 300:
                return answer
            trouble = from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
            if trouble.problem != "badNonce":
                raise trouble
        raise trouble

    def send(self, url: str, body: bytes) -> Answer:
        """A request that is signed already; the nonce of the answer is kept. Raises Trouble."""
        answer = self.transport.request("POST", url, body, JOSE)
        self._nonce = str(answer.headers.get("Replay-Nonce") or "")
        return answer

    def nonce(self) -> str:
        """A nonce: that of the last answer, or a fresh one from the CA. Raises Trouble."""
        nonce, self._nonce = self._nonce, ""
        if nonce:
            return nonce
        url = self.url("newNonce")
        answer = self.transport.request("HEAD", url)
        nonce = str(answer.headers.get("Replay-Nonce") or "")
        if not nonce:
            raise from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
        return nonce

    def take_back(self, nonce: str) -> None:
        """A nonce that was not used."""
        self._nonce = self._nonce or nonce

    def check_profile(self, profile: str) -> None:
        """Raise Trouble, listing what there is, unless the CA offers this profile (draft-ietf-acme-profiles section 3)."""
        for fresh in (False, True):
            meta = self.directory(fresh).get("meta")
            offered = meta.get("profiles") if isinstance(meta, dict) else None
            if isinstance(offered, dict) and profile in offered:
                return
        there = f"it offers {', '.join(sorted(map(str, offered)))}" if isinstance(offered, dict) and offered else "it offers none"
        raise Trouble(REFUSED, f'the CA has no profile "{profile}"; {there}', problem="invalidProfile")


def as_object(answer: Answer) -> dict[str, object]:
    """The JSON object in an answer; empty where there is none."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

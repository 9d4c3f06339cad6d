"""What the signer signs: a JWS (RFC 8555 section 6.2) of a known form, for the configured CA, and of orders and revocations only root's own.

Whoever asks may have been taken over, so nothing is taken from his words but which request of root's he means. A payload is not understood
and judged: the one text that is allowed is written down here, and must be the one that was sent, byte for byte. An order alone is read, because
its names may stand in any order; it must then be as we would write it, so that no CA can read in it what was not read here.
Runs as: _certdrop, in the signer. Trusts: root's configuration and requests/, its own keys. Reads: requests/. Writes: nothing.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certdrop import foreign, spool
from certdrop.signer.jose import b64, place_of, unb64
from certdrop.signer.keyring import Key, Keyring
from certdrop.signer.protocol import DEACTIVATE, MOST, ROLL_OVER, revocations

_NONCE = re.compile(r"[A-Za-z0-9_-]{1,1000}")
_PROFILE = re.compile(r"[!#-\[\]-~]{1,100}")
_REPLACES = re.compile(r"[A-Za-z0-9_-]{1,100}\.[A-Za-z0-9_-]{1,100}")


class Refused(Exception):
    """This is not signed; the text says why, and quotes nothing of it."""


class Proof(Protocol):
    """Of a desk: what shows that root of a host in its fleet wants something (fleet/proof.py). Each raises Refused unless it does, or OSError."""

    def order(self, request: str, data: bytes) -> None:
        """That this CSR is ordered."""

    def final(self, request: str, data: bytes) -> None:
        """That it is finalized, as is noted: to be called last, when all else is as it must be."""

    def revocation(self, request: str, data: bytes) -> None:
        """That this is revoked."""


class Policy:
    """What may be signed for one CA. `contact` has mailto: URLs; `may` is what the signer was started for beside certificates."""

    def __init__(self, directory_url: str, contact: list[str], keys: Keyring, may: frozenset[str] = frozenset()) -> None:
        self.keys, self.may, self.contact = keys, may, contact
        self.place = place_of(directory_url)
        if self.place is None:
            raise Refused("the configured directory is no plain https URL")
        self.bindings: set[str] = set()        # external account bindings that were made here
        self.changes: set[str] = set()         # requests for a change of keys that were made here
        self.serves: Callable[[str], bool] | None = None       # whether root's configuration lets this CA be asked for a site; None: it is the only one
        self.proof: Proof | None = None        # on a desk: what shows that root of a host posted it

    def key_for(self, request: str, data: bytes) -> Key:
        """The key to sign with. `request` is the entry of requests/ that it is for, where it is for one. Raises Refused."""
        header, payload = _parts(data)
        if not isinstance(header.get("nonce"), str) or not _NONCE.fullmatch(str(header["nonce"])) or header.get("alg") != "RS256":
            raise Refused("its header has no nonce, or another algorithm")
        self.check_url(header.get("url"))
        if set(header) == {"alg", "nonce", "url", "jwk"}:
            return self._by_key(header["jwk"], payload)
        if set(header) != {"alg", "nonce", "url", "kid"}:
            raise Refused("its header has another form")
        self.check_url(header["kid"])
        if not self._allowed(request, payload, header["url"] == header["kid"]):
            raise Refused("it asks the CA for something that nobody wants here")
        return self.keys.current

    def check_url(self, url: object) -> None:
        """Raise Refused unless a URL is one of the configured directory's host."""
        if not isinstance(url, str) or place_of(url) != self.place:
            raise Refused("its URL is not at the host of the configured directory")

    # ---- the payloads that there are

    def _by_key(self, jwk: object, payload: str) -> Key:
        """By the key alone an account is made or asked for (RFC 8555 section 7.3)."""
        if payload == json.dumps({"onlyReturnExisting": True}):
            for key in (self.keys.current, self.keys.other):
                if key is not None and jwk == key.jwk():
                    return key
        wanted: dict[str, object] = {"termsOfServiceAgreed": True, **({"contact": self.contact} if self.contact else {})}
        allowed = [wanted, *({**wanted, "externalAccountBinding": json.loads(binding)} for binding in self.bindings)]
        if jwk == self.keys.current.jwk() and payload in map(json.dumps, allowed):
            return self.keys.current
        raise Refused("by the key alone only the account is asked for, as it is configured")

    def _allowed(self, request: str, payload: str, at_account: bool) -> bool:
        """Whether a payload is one that is wanted. Raises Refused, with the reason, where it is about a request."""
        if payload in ("", "{}", json.dumps({"contact": self.contact})):       # to read; to have a challenge looked at; the account's contact
            return True
        if payload in self.changes:
            return ROLL_OVER in self.may
        if payload == json.dumps({"status": "deactivated"}):
            return DEACTIVATE in self.may and at_account
        if payload.startswith('{"csr": '):
            csr, data = self._posted(request)
            fits = payload == json.dumps({"csr": b64(csr.public_bytes(Encoding.DER))})
            if fits and self.proof:
                self.proof.final(request, data)
            return fits
        if payload.startswith('{"identifiers": '):
            return _orders(payload, names_of(self._posted(request)[0]))
        if payload.startswith('{"certificate": '):
            return payload in self._revocations(request)
        return False

    def _posted(self, request: str) -> tuple[x509.CertificateSigningRequest, bytes]:
        """The CSR that root posted under this name, and its file's content; now, and by root. Raises Refused."""
        data = _read(request, "csr")
        if self.serves and not self.serves((spool.parse_entry(request) or ("",))[0]):
            raise Refused("the configuration of its site names another CA")
        if self.proof:
            self.proof.order(request, data)
        try:
            return x509.load_pem_x509_csr(data), data
        except ValueError as error:
            raise Refused("root posted no such request") from error

    def _revocations(self, request: str) -> list[str]:
        """The payloads of the revocation that root posted under this name; now, and by root. Where it gave no reason, those that it left open.
        Raises Refused."""
        data = _read(request, "revoke")
        if self.proof:
            self.proof.revocation(request, data)
        try:
            return [json.dumps(payload) for payload in revocations(json.loads(data))]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused("root posted no such request") from error


def names_of(csr: x509.CertificateSigningRequest) -> set[tuple[str, str]]:
    """The identifiers (type, value) of a request of root's (RFC 8555 section 9.7.7, RFC 8738). Raises Refused."""
    try:
        listed = list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise Refused("the request that root posted has no names") from error
    found = set()
    for name in listed:
        if isinstance(name, x509.DNSName):
            found.add(("dns", name.value))
        elif isinstance(name, x509.IPAddress) and isinstance(name.value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            found.add(("ip", str(name.value)))
        else:
            raise Refused("the request that root posted has a name of another kind")
    return found


def _orders(payload: str, names: set[tuple[str, str]]) -> bool:
    """Whether this is an order (RFC 8555 section 7.4) for just these names."""
    order = _object(payload)
    listed = order["identifiers"]
    if not set(order) <= {"identifiers", "profile", "replaces"} or not isinstance(listed, list):
        return False
    for key, form in (("profile", _PROFILE), ("replaces", _REPLACES)):
        value = order.get(key, "a.b")
        if not isinstance(value, str) or not form.fullmatch(value):
            return False
    found = []
    for one in listed:
        if not isinstance(one, dict) or set(one) != {"type", "value"} or not all(isinstance(value, str) for value in one.values()):
            return False
        found.append((one["type"], one["value"]))
    if len(found) != len(set(found)) or set(found) != names:
        raise Refused("it is an order for other names than those that root posted")
    return True


def _read(request: str, kind: str) -> bytes:
    """An entry of requests/, of this kind, which is root's. Raises Refused."""
    known = spool.parse_entry(request)
    if known is None or known[2] != kind:
        raise Refused("it names no request" + " to revoke" * (kind == "revoke"))
    try:
        fd = spool.open_directory(spool.requests())
        try:
            return foreign.read(fd, request, os.fstat(fd).st_uid)
        finally:
            os.close(fd)
    except (OSError, spool.Refused) as error:
        raise Refused("root posted no such request") from error


def _parts(data: bytes) -> tuple[dict[str, object], str]:
    """(protected header, payload's text) of what is to be signed (RFC 7515 section 5.1). Raises Refused."""
    if len(data) > MOST:
        raise Refused("it is too long")
    try:
        first, second = data.decode("ascii").split(".")
        return _object(unb64(first).decode("ascii")), unb64(second).decode("ascii")
    except ValueError as error:
        raise Refused("it is no JWS") from error


def _object(text: str) -> dict[str, object]:
    """A JSON object, written as we would. Raises Refused."""
    try:
        found = json.loads(text)
        if isinstance(found, dict) and json.dumps(found) == text:
            return found
    except (ValueError, RecursionError):
        pass
    raise Refused("it is not JSON as we write it")

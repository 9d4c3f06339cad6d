"""What a desk's signer wants to see before it signs: that root of an enrolled host signed the request, that this host may have these names, and
that no later request of the same site was finalized before. Whoever carried it here, and whoever asks, is not believed.

The journal says what was finalized, a line each: the host's key, host, site, number, how the CSR and its key are known (SHA-256). Numbers only rise;
the newest may be finalized again, as often as a CA may lose an answer. A certificate is revoked for the host whose request its key was in.
Runs as: _certdrop, in the signer. Trusts: root's fleet.d, its own journal, the hosts' keys. Reads: fleet.d, requests/. Writes: account/finalized.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import time

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certdrop import spool
from certdrop.config import site
from certdrop.fleet import members
from certdrop.keeper.signing import statement
from certdrop.signer.policy import Refused

JOURNAL = "finalized"              # below account/
AGAIN = 20                         # times that the same CSR is finalized: nonces that are refused, answers that are lost, replies that root refuses
KEPT = 420 * 86400                 # seconds that a line is kept: longer than any certificate lasts
COUNTED = 100 * 86400              # seconds that a site counts after its last certificate
LONGEST = 64 << 20                 # bytes


class Line:
    """A CSR that was finalized, `at` this moment; it was so many `times`."""

    def __init__(self, at: int, key: str, host: str, name: str, number: int, csr: str, spki: str) -> None:
        self.at, self.key, self.host, self.name, self.number, self.csr, self.spki = at, key, host, name, number, csr, spki
        self.times = 1

    def __str__(self) -> str:
        return f"{self.at} {self.key} {self.host} {self.name} {self.number} {self.csr} {self.spki}\n"


class Proof:
    """What the hosts' roots have signed, held against what was finalized before. Raises OSError, ValueError where the journal cannot be read."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.last: dict[tuple[str, str], Line] = {}            # (host's key, site): the newest
        self.keys: dict[str, set[str]] = {}                    # SPKI: the keys of the hosts whose requests it was in
        for line in _read():
            self._learn(line)

    def order(self, request: str, data: bytes, csr: x509.CertificateSigningRequest, names: set[tuple[str, str]], final: bool) -> None:
        """Raise Refused unless this CSR may be ordered, or finalized, which is noted."""
        host, name, number, member = self._member(request)
        signature = _beside(request)
        if not members.is_signed(member, statement(host, name, number, "csr", data), signature):
            raise Refused("the request is not signed by the root of its host")
        if not all(member.may_have(value) for _, value in names):
            raise Refused(f"{host} may not have all of these names (fleet.d)")
        key, digest = _short(member.key), hashlib.sha256(data).hexdigest()
        last = self.last.get((key, name))
        if last and (number < last.number or (number == last.number and digest != last.csr)):
            raise Refused("a later request of this site was finalized before")
        if last is None and self._sites(key) >= member.max_sites:
            raise Refused(f"{host} has as many sites as it may have (max_sites in fleet.d)")
        if not final:
            return
        if last and last.number == number and last.times >= AGAIN:
            raise Refused("this request was finalized too often")
        spki = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        line = Line(int(time.time()), key, host, name, number, digest, hashlib.sha256(spki).hexdigest())
        _append(line)                          # before it is signed: what cannot be noted is not
        self._learn(line)

    def revocation(self, request: str, data: bytes) -> None:
        """Raise Refused unless root of this host wants that revoked, and the certificate is for a key of its own."""
        host, name, number, member = self._member(request)
        try:
            found = json.loads(data)
            signature, payload = str(found.pop("sig")), found["payload"]
            text = str(payload["certificate"])
            leaf = x509.load_der_x509_certificate(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Refused("it is no request to revoke that a host signed") from error
        if not members.is_signed(member, statement(host, name, number, "revoke", json.dumps(found).encode()), signature):
            raise Refused("the request to revoke is not signed by the root of its host")
        if _short(member.key) not in self.keys.get(hashlib.sha256(spki).hexdigest(), set()):
            raise Refused(f"the certificate is for no key that was in a request of {host}, as far as this desk knows")

    def _member(self, request: str) -> tuple[str, str, int, members.Member]:
        known = spool.parse_entry(request)
        place = members.parse_tree_name(known[0]) if known else None
        if known is None or place is None:
            raise Refused("it names no request of a host's")
        try:
            return *place, known[1], members.load(self.directory, place[0])
        except site.ConfigMissing as error:
            raise Refused(f"{place[0]} is not enrolled") from error
        except site.ConfigError as error:
            raise Refused(str(error)) from error

    def _learn(self, line: Line) -> None:
        last = self.last.get((line.key, line.name))
        if last is None or last.number <= line.number:
            line.times += last.times if last and last.number == line.number else 0
            self.last[line.key, line.name] = line
        self.keys.setdefault(line.spki, set()).add(line.key)

    def _sites(self, key: str) -> int:
        since = time.time() - COUNTED
        return sum(line.at > since for (known, _), line in self.last.items() if known == key)


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _beside(request: str) -> bytes:
    """The signature beside a CSR. Raises Refused."""
    known = spool.parse_entry(request)
    try:
        fd = spool.open_directory(spool.requests())
        try:
            return spool.read(fd, spool.entry(known[0], known[1], "sig") if known else "", os.fstat(fd).st_uid, 200)
        finally:
            os.close(fd)
    except (OSError, spool.Refused) as error:
        raise Refused("there is no signature of a host's beside the request") from error


def _read() -> list[Line]:
    """The journal; shortened, where much of it is old. A line that a crash cut is passed over: what it would have said was not signed."""
    fd = spool.open_directory(f"{site.STATE}/account")
    try:
        try:
            text = spool.read(fd, JOURNAL, os.geteuid(), LONGEST).decode("ascii", "replace")
        except FileNotFoundError:
            return []
        except spool.Refused as refused:
            raise OSError(errno.EIO, f"the journal cannot be read ({refused.reason})", f"{site.STATE}/account/{JOURNAL}") from refused
        found = []
        for row in text.splitlines(keepends=True):
            parts = row.split()
            if len(parts) == 7 and parts[0].isdecimal() and parts[4].isdecimal() and row.endswith("\n"):
                found.append(Line(int(parts[0]), parts[1], parts[2], parts[3], int(parts[4]), parts[5], parts[6]))
        newest = {(line.key, line.name): line for line in found}
        since = time.time() - KEPT
        kept = [line for line in found if line.at > since or newest[line.key, line.name] is line]
        if len(kept) < text.count("\n") // 2 or (text and not text.endswith("\n")):
            spool.write(fd, JOURNAL, "".join(map(str, kept)).encode(), 0o600)
        return kept
    finally:
        os.close(fd)


def _append(line: Line) -> None:
    """Write it down, on the disk. Raises OSError."""
    fd = os.open(f"{site.STATE}/account/{JOURNAL}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, str(line).encode("ascii"))
        os.fsync(fd)
    finally:
        os.close(fd)

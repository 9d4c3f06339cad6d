"""What a desk's signer wants to see before it signs: that root of an enrolled host signed the request, that this host may have these names, and
that no later request of the same site was finalized before. Whoever carried it here, and whoever asks, is not believed.

Of what other desks finalized it learns by what the database kept of it: the hosts' own signed requests. Whoever owns the database can hide them.

The journal says what was finalized, a line each: the host's key, host, site, number, how the CSR and its key are known (SHA-256). Numbers only rise;
the newest may be finalized again, as often as a CA may lose an answer. A certificate is revoked for the host whose request its key was in; so a CSR
counts only with the signature of its own key. Nothing is parsed before root's signature on it is verified, but the JSON that it stands in; whatever
that raises is a refusal of this one request.
Runs as: _certdrop, in the signer. Trusts: root's fleet.d, its own journal, the hosts' keys. Reads: fleet.d, requests/. Writes: account/finalized.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certdrop import foreign, spool
from certdrop.config import site
from certdrop.fleet import members
from certdrop.keeper.signing import statement
from certdrop.signer import protocol
from certdrop.signer.policy import Refused, names_of

JOURNAL = "finalized"              # below account/
AGAIN = 20                         # times in a week that the same CSR is finalized: nonces that are refused, answers that are lost, replies that root refuses
WEEK = 7 * 86400.0                 # seconds
KEPT = 420 * 86400                 # seconds that a key is kept: longer than any certificate lasts
COUNTED = 100 * 86400              # seconds that a site counts after its last certificate


class Line:
    """A CSR that was finalized `at` this moment."""

    def __init__(self, at: int, key: str, host: str, name: str, number: int, csr: str, spki: str) -> None:
        self.at, self.key, self.host, self.name, self.number, self.csr, self.spki = at, key, host, name, number, csr, spki
        self.recent = [at]                     # when this number was finalized, the last times

    def __str__(self) -> str:
        return f"{self.at} {self.key} {self.host} {self.name} {self.number} {self.csr} {self.spki}\n"


class Proof:
    """What the hosts' roots have signed, held against what was finalized before. Raises OSError, ValueError where the journal cannot be read."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.last: dict[tuple[str, str], Line] = {}            # (host's key, site): the newest
        self.keys: dict[str, set[str]] = {}                    # SPKI: the keys of the hosts whose requests it was in
        self.known: set[tuple[str, str]] = set()               # (host's key, CSR)
        for line in _read():
            self._learn(line)

    def order(self, request: str, data: bytes) -> None:
        """Raise Refused unless this CSR may be ordered."""
        with _one_alone():
            self._line(request, data)

    def final(self, request: str, data: bytes) -> None:
        """Raise Refused unless this CSR may be finalized; note that it is. Raises OSError where it cannot be noted."""
        with _one_alone():
            line = self._line(request, data)
            last, now = self.last.get((line.key, line.name)), time.time()
            if last and last.number == line.number and sum(spool.is_credible(at, (WEEK, 0.0), now) for at in last.recent) >= AGAIN:
                raise Refused("this request was finalized too often in a week")
            _append(line)                      # before it is signed: what cannot be noted is not
            self._learn(line)

    def _line(self, request: str, data: bytes) -> Line:
        """What is to be noted of a CSR that may be ordered. Raises Refused, and whatever a parser does."""
        host, name, number, member = self._member(request)
        if not members.is_signed(member, statement(host, name, number, "csr", data), _beside(request)):
            raise Refused("the request is not signed by the root of its host")
        csr = x509.load_pem_x509_csr(data)
        if not csr.is_signature_valid:
            raise Refused("the request is not signed by its own key")      # which may be another's, whose certificate this host could have revoked
        names = names_of(csr)
        if not all(site.is_address(value) == (kind == "ip") and member.may_have(value) for kind, value in names):
            raise Refused(f"{host} may not have all of these names (fleet.d)")
        if not {("dns", str(one.value)) for one in csr.subject} <= names or _is_for_a_ca(csr):
            raise Refused("the request asks for more than names")
        self._remember(request, host, name, member)
        key, digest = _short(member.key), hashlib.sha256(data).hexdigest()
        last = self.last.get((key, name))
        if last and (number < last.number or (number == last.number and digest != last.csr)):
            raise Refused("a later request of this site was finalized before")
        if last is None and self._sites(key) >= member.max_sites:
            raise Refused(f"{host} has as many sites as it may have (max_sites in fleet.d)")
        return Line(int(time.time()), key, host, name, number, digest, _known(csr))

    def revocation(self, request: str, data: bytes) -> None:
        """Raise Refused unless root of this host wants that revoked, and the certificate is for a key of its own."""
        with _one_alone():
            host, name, number, member = self._member(request)
            try:
                found = json.loads(data)
                signature, text = str(found.pop("sig")), str(found["payload"]["certificate"])
                signed = json.dumps(found).encode()
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise Refused("it is no request to revoke that a host signed") from error
            if not members.is_signed(member, statement(host, name, number, "revoke", signed), signature):
                raise Refused("the request to revoke is not signed by the root of its host")
            self._remember(request, host, name, member)
            leaf = x509.load_der_x509_certificate(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            if _short(member.key) not in self.keys.get(_known(leaf), set()):
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

    def _remember(self, request: str, host: str, name: str, member: members.Member) -> None:
        """Note what other desks finalized of this site, as far as what carries it shows it: each signed by root of the host, for another number than the
        request's. Raises OSError where it cannot be noted."""
        for number, body, sig in _past(request):
            data, key = body.encode("ascii", "replace"), _short(member.key)
            digest = hashlib.sha256(data).hexdigest()
            if (key, digest) in self.known or not members.is_signed(member, statement(host, name, number, "csr", data), sig):
                continue
            csr = x509.load_pem_x509_csr(data)
            if csr.is_signature_valid:
                line = Line(int(time.time()), key, host, name, number, digest, _known(csr))
                _append(line)
                self._learn(line)

    def _learn(self, line: Line) -> None:
        self.known.add((line.key, line.csr))
        last = self.last.get((line.key, line.name))
        if last is None or last.number <= line.number:
            if last and last.number == line.number:
                line.recent = [*last.recent[-AGAIN:], line.at]
            self.last[line.key, line.name] = line
        self.keys.setdefault(line.spki, set()).add(line.key)

    def _sites(self, key: str) -> int:
        since = time.time() - COUNTED
        return sum(line.at > since for (known, _), line in self.last.items() if known == key)


@contextlib.contextmanager
def _one_alone() -> Iterator[None]:
    """What goes wrong in here is a refusal of this one request, and the signer goes on. A parser's panic is no Exception."""
    try:
        yield
    except (Refused, OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Refused("the request cannot be understood") from error


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _known(found: x509.CertificateSigningRequest | x509.Certificate) -> str:
    """How its public key is known: the SHA-256 of the SPKI."""
    return hashlib.sha256(found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _is_for_a_ca(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _beside(request: str) -> bytes:
    """The signature beside a CSR. Raises Refused."""
    known = spool.parse_entry(request)
    try:
        fd = spool.open_directory(spool.requests())
        try:
            return foreign.read(fd, spool.entry(known[0], known[1], "sig") if known else "", os.fstat(fd).st_uid, 200)
        finally:
            os.close(fd)
    except (OSError, spool.Refused) as error:
        raise Refused("there is no signature of a host's beside the request") from error


def _past(request: str) -> list[tuple[int, str, str]]:
    """(number, CSR, signature) of what was answered before of a request's site, as it is said beside it; nothing of it is believed yet."""
    known = spool.parse_entry(request)
    try:
        fd = spool.open_directory(spool.requests())
        try:
            found = json.loads(foreign.read(fd, spool.entry(known[0], known[1], "past"), os.fstat(fd).st_uid, protocol.PAST)) if known else []
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError, spool.Refused):
        return []
    return [(one[0], one[1], one[2]) for one in (found if isinstance(found, list) else []) if isinstance(one, list) and len(one) == 3
            and type(one[0]) is int and 0 < one[0] < 10 ** 9 and isinstance(one[1], str) and isinstance(one[2], str)]


def _read() -> list[Line]:
    """The journal; shortened, where much of it is old, or it is long. A line that a crash cut is passed over: what it would have said was not signed."""
    fd = spool.open_directory(f"{site.STATE}/account")
    try:
        try:
            text = foreign.read(fd, JOURNAL, os.geteuid(), protocol.JOURNAL).decode("ascii", "replace")
        except FileNotFoundError:
            return []
        except spool.Refused as refused:
            raise OSError(errno.EIO, f"the journal cannot be read ({refused.reason})", f"{site.STATE}/account/{JOURNAL}") from refused
        found = []
        for row in text.splitlines(keepends=True):
            parts = row.split()
            if len(parts) == 7 and parts[0].isdecimal() and parts[4].isdecimal() and row.endswith("\n"):
                found.append(Line(int(parts[0]), parts[1], parts[2], parts[3], int(parts[4]), parts[5], parts[6]))
        is_long = len(text) > protocol.JOURNAL // 2
        kept = _shortened(found, protocol.JOURNAL // 4 if is_long else protocol.JOURNAL)
        if len(kept) < text.count("\n") // 2 or (is_long and len(kept) < len(found)) or (text and not text.endswith("\n")):
            spool.write(fd, JOURNAL, "".join(map(str, kept)).encode(), 0o600)
        return kept
    finally:
        os.close(fd)


def _shortened(found: list[Line], most: int) -> list[Line]:
    """Those lines that still say something: the newest of each host and site; then, in `most` bytes and the younger first, one for each key of a host's,
    and how often the newest was finalized this week."""
    newest: dict[tuple[str, str], Line] = {}
    for line in found:
        if (line.key, line.name) not in newest or newest[line.key, line.name].number <= line.number:
            newest[line.key, line.name] = line
    keys = {(line.key, line.spki): line for line in found}
    now = time.time()
    ranked = []
    for at, line in enumerate(found):
        last = newest[line.key, line.name]
        if line is last:
            ranked.append((0, 0, at))
        elif line is keys[line.key, line.spki] and line.at > now - KEPT:
            ranked.append((1, -line.at, at))
        elif line.number == last.number and line.at > now - WEEK:
            ranked.append((2, -line.at, at))
    kept, size = [], 0
    for rank, _, at in sorted(ranked):
        size += len(str(found[at]))
        if rank and size > most:
            break
        kept.append(at)
    return [found[at] for at in sorted(kept)]


def _append(line: Line) -> None:
    """Write it down, on the disk, whole or not at all. Raises OSError."""
    path, data = f"{site.STATE}/account/{JOURNAL}", str(line).encode("ascii")
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data                # a line that was cut, and could not be taken back, must not swallow this one
        if size + len(data) > protocol.JOURNAL:
            raise OSError(errno.EFBIG, "the journal is full, until the next run shortens it", path)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
    if not size:
        fd = spool.open_directory(f"{site.STATE}/account")
        try:
            os.fsync(fd)                       # its name, too
        finally:
            os.close(fd)

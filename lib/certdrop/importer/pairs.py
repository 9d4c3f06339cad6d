"""What another client left, as something to take over: pairs of key and chain, account keys; and the examiner that says what they are.

Root finds the PEM blocks (a grammar, no parser) and hands them to examiner.py, which runs as _certdrop-judge; it believes an answer of a
fixed form. Runs as: root. Trusts: of the examiner, the form. Reads: through files.py. Writes: nothing.
"""

from __future__ import annotations

import json
import os
import re
from typing import NamedTuple

from certdrop import frames, spool, words
from certdrop.config import persist, site
from certdrop.importer.files import Reader, Unreadable
from certdrop.keeper import children, judges, state

PROGRAM = children.LIB + "/importer/examiner.py"
LIMIT = 1 << 16                    # bytes of an answer
EXPIRED, UNTRUSTED = "expired", "untrusted"

WHY = {                            # why a pair, or an account key, stays where it is
    "no-key": "its key cannot be parsed",
    "passphrase": "its key has a passphrase; certdrop's keys have none: root alone reads them",
    "kind": "its key is neither RSA nor ECDSA",
    "account-kind": "no RSA key, which acme-tiny needs; certdrop makes an account of its own",
    "chain": "its certificate cannot be parsed",
    "names": "its certificate has no names that certdrop could ask for",
    "key": "certificate and key do not belong together",
    "judge-failed": "it could not be examined",
    "grammar": "its chain is no PEM of certificates",
    "count": f"its chain has more than {spool.MAX_CERTIFICATES} certificates",
    "names-wildcard": "its certificate has a wildcard in its subject alone",
    "names-missing": "its certificate has no names that certdrop could ask for",
    "names-extra": "its certificate has a name (an IP address, or one in the subject alone) that certdrop does not ask for",
    "not-yet-valid": "its certificate is not valid yet",
    "key-usage": "its certificate is not for servers",
    "ca-as-leaf": "its certificate is an authority's",
    "encoding": "its certificate is encoded oddly",
    "broken-chain": "the certificates of its chain do not sign each other in this order",
}

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{1,65536}?-----END CERTIFICATE-----\n")
_PAIR = re.compile(r"pair ([a-z0-9-]{1,40}) ([0-9a-f]{64}) ([0-9a-f]{64}) ([0-9]{1,12}) ([0-9]{1,12}) ([a-z-]{1,20}) ([a-z0-9*._,-]*) ([A-Za-z0-9+/]+=*)")
_ACCOUNT = re.compile(r"account ([a-z0-9-]{1,40}) ([A-Za-z0-9+/]+=*)")


class Pair(NamedTuple):
    """What the examiner says of a key and a chain."""

    kind: str                      # ecdsa-p256, rsa-2048, ..., or one that certdrop does not make
    spki: str
    sha256: str
    begin: int
    end: int
    verdict: str                   # accept, expired, untrusted, or another reason of the judge's
    domains: list[str]
    key: bytes                     # PKCS #8 PEM
    blocks: list[bytes]
    readers: str                   # who beside root could read the key
    written: int                   # when the key was made, at the latest


class Found:
    """A key and a chain that a client left."""

    def __init__(self, client: str, name: str, key: str, chains: list[str], ca: str = "") -> None:
        self.client, self.name, self.key, self.chains = client, name.lower(), key, chains
        self.ca = ca               # the CA's directory, where the client notes it
        self.pair: Pair | None = None
        self.why = ""              # why it stays
        self.again = False         # that was our trouble: another try may do
        self.site = ""             # the site that it is already
        self.remarks: list[str] = []
        self.by_name_only = False  # nginx uses it, and no client is known to renew it

    def examine(self, reader: Reader, examiner: Examiner, untrusted: bool = False) -> None:
        """Read it and have it looked at; says in `why` what speaks against taking it over."""
        try:
            content = reader.read(self.key)
            blocks = pem_blocks(b"".join(reader.read(path).data + b"\n" for path in self.chains))
            self.pair = examiner.pair(content.data, blocks, content.readers, content.written)
            self.why = _obstacle(self.pair, untrusted)
        except FileNotFoundError as error:
            self.why = f"{error.filename or self.key}: no such file"
        except Unreadable as error:
            self.why = str(error)
        except OSError as error:
            self.why, self.again = f"{error.filename or self.key}: {error.strerror}", True
        except spool.Refused as refused:
            self.why, self.again = WHY[refused.reason], refused.reason == "judge-failed"
        if self.pair and not spool.may_name_a_new_site(self.name):
            self.name = self.pair.domains[0].removeprefix("*.")
        if self.pair and self.name in self.pair.domains:
            self.pair.domains.sort(key=lambda domain: domain != self.name)         # the one that it is called by stands first


class Account:
    """An account key that a client left."""

    def __init__(self, client: str, path: str, ca: str, contact: str = "") -> None:
        self.client, self.path, self.ca, self.contact = client, path, ca, contact
        self.kind, self.key, self.why = "", b"", ""

    def examine(self, reader: Reader, examiner: Examiner) -> None:
        """Read it and have it looked at."""
        try:
            self.kind, self.key = examiner.account(reader.read(self.path).data)
            if not self.kind.startswith("rsa-"):
                self.why = f"{self.kind}: {WHY['account-kind']}"
            elif int(self.kind[4:]) < 2048:
                self.why = f"{self.kind} is too short"
        except (Unreadable, OSError) as error:
            self.why = str(error)
        except spool.Refused as refused:
            self.why = WHY[refused.reason]


class Examiner:
    """examiner.py, as something to ask. Use as a context."""

    def __init__(self, roots: str) -> None:
        self._roots, self._pipe = roots, -1
        self._child: children.Child | None = None

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.end()
            os.close(self._pipe)
            self._child = None

    def ask(self, *parts: bytes) -> str:
        """The answer's line; "" where there is none in time: then another process has the next case."""
        case = json.dumps([part.decode("latin-1") for part in parts]).encode()
        try:
            if self._child is None:
                asked, self._pipe = os.pipe()
                with open(asked, "rb"):
                    self._child = judges.start([PROGRAM, "examine", self._roots], asked)
            words.put(self._pipe, frames.HEAD.pack(len(case)) + case)
            return self._child.answer(judges.DEADLINE, LIMIT).decode("ascii", "replace")
        except OSError:
            self.__exit__()
            return ""

    def pair(self, key: bytes, blocks: list[bytes], readers: str, written: int) -> Pair:
        """What a key and a chain are. Raises spool.Refused with a reason of WHY."""
        answer = self.ask(b"pair", key, b"".join(blocks))
        found = _PAIR.fullmatch(answer)
        if not found or (found[6] not in spool.REASONS and found[6] != "accept"):
            raise spool.Refused(_reason(answer))
        kind, spki, sha256, begin, end, verdict, names, body = found.groups()
        return Pair(kind, spki, sha256, int(begin), int(end), verdict, names.split(","), _pem(body), blocks, readers, min(written, int(begin)))

    def account(self, key: bytes) -> tuple[str, bytes]:
        """The kind of an account key, and the key as PEM. Raises spool.Refused."""
        answer = self.ask(b"account", key)
        found = _ACCOUNT.fullmatch(answer)
        if not found:
            raise spool.Refused(_reason(answer))
        return found[1], _pem(found[2])


def pem_blocks(data: bytes) -> list[bytes]:
    """The certificates in a file that may have comments, or lines as other systems end them; by the spool's grammar. Raises spool.Refused."""
    return spool.pem_blocks(b"".join(_BLOCK.findall(data.replace(b"\r\n", b"\n"))))


def _obstacle(pair: Pair, untrusted: bool) -> str:
    """Why a pair is not taken over; "" where nothing stands against it."""
    if pair.verdict in ("untrusted", "broken-chain") and not untrusted:
        return f"{WHY['broken-chain'] if pair.verdict != UNTRUSTED else 'its chain leads to no trusted root'}; --untrusted takes it anyway"
    if pair.verdict not in ("accept", EXPIRED, UNTRUSTED, "broken-chain"):
        return WHY.get(pair.verdict, WHY["judge-failed"])
    if pair.spki in state.burnt():
        return "its key was marked as compromised, and is never used again; certdrop add gets a certificate with a new key"
    return next(filter(None, (site.refusal(domain, persist.validation_of(pair.domains, persist.HTTP)) for domain in pair.domains)), "")


def _reason(answer: str) -> str:
    reason = answer.removeprefix("no ")
    return reason if reason in WHY else "judge-failed"


def _pem(body: str) -> bytes:
    lines = "\n".join(body[i:i + 64] for i in range(0, len(body), 64))
    return f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\n".encode()

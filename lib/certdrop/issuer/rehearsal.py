"""What root's judge would say of a reply, for a dry run: the judge's own code, asked the same question, where nothing is installed by the answer.

Runs as: _certdrop, shut in. Trusts: the files of trusted roots. Reads: these, once. Writes: nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certdrop import spool
from certdrop.config import general
from certdrop.trust import roots

if TYPE_CHECKING:
    from certdrop.issuer.due import Certificate


class Judge:
    """The judge, as far as a dry run needs it."""

    def __init__(self, config: general.Config) -> None:
        from OpenSSL import crypto             # which nothing else of the issuer's needs

        self._store: crypto.X509Store | None = None
        from certdrop.judge import chain
        warnings.simplefilter("ignore")        # as the judge itself has it
        self._verdict, self.files = chain.verdict, [path for path in roots.rehearsed(config) if os.path.exists(path)]
        # The directory that a dry run asks may be another CA's, staging's, whose root no real reply has.
        self.knows_no_root = config.staging_url != config.directory_url and self.files == [config.trust_roots]
        try:
            self._store = chain.trusted(b"\n".join(map(_content, self.files)))
        except (OSError, ValueError, LookupError, crypto.Error):
            pass                               # a judge of root's would not begin

    def refusal(self, reply: bytes, csr: x509.CertificateSigningRequest, names: list[str], live: Certificate | None) -> str:
        """Why the reply would be refused; "" where it would be taken. `live` is what it would replace."""
        now = time.time()
        spki = csr.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        begin, end = (int(live.not_before), int(live.not_after)) if live else (0, 0)
        question: dict[str, object] = {"spki": hashlib.sha256(spki).hexdigest(), "names": names, "spent": [],     # nothing was ever live with this key
                                       "earliest": begin if spool.is_credible(begin, spool.HAPPENED, now) else 0, "until": end}
        try:
            if len(reply) > spool.MAX_REPLY:
                return "size"
            if self._store is None:
                return "judge-failed"
            answer = self._verdict(json.loads(json.dumps(question)), b"".join(spool.pem_blocks(reply)), self._store)
        except spool.Refused as refused:
            return refused.reason
        except Exception:                      # what would end a judge of root's
            return "judge-failed"
        return "" if answer.startswith("accept ") else answer.removeprefix("refuse ")


def _content(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()

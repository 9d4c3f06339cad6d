"""What browsers think of a live certificate, and whether it is of the configured CA: one rule for status, watcher, doctor and issuer.

Runs as: whoever imports it; never root. Trusts: root's configuration. Reads: the files of roots that it names. Writes: nothing.
"""

from __future__ import annotations

import hashlib

from certdrop.config import general, site
from certdrop.trust import roots, verify


class Browsers:
    """By a configuration: its roots, and whether its CA is one for trying things. What was looked at is known for a run."""

    def __init__(self, config: general.Config) -> None:
        self.config, self._stores = config, dict[str, verify.Store]()
        self._said = dict[tuple[str, bytes], str]()            # by the roots and the chain
        self._above = dict[bytes, verify.Certificate]()        # what stands above leaves: many sites have the same, and OpenSSL takes 0.2 ms for each
        self._last: tuple[bytes | None, list[verify.Certificate]] = None, []
        self.for_trying = roots.is_for_trying(config)

    def load(self) -> None:
        """Load now what will be needed: a process that shuts itself in can not later. Raises OSError, ValueError."""
        self._store(self.config.trust_roots)
        if self.config.trust_roots != site.STORE:
            self._store(site.STORE)

    def refusal(self, pem: bytes) -> str:
        """Why browsers refuse a chain, in words that follow "the live certificate"; "" where they do not. Raises OSError, ValueError.

        They take what leads to a root of the system's; and to any of `trust_roots`, which some administrator's browsers have, but for what
        staging issued: its roots are configured so that it can be installed.
        """
        why, trying = self._refusal(self.config.trust_roots, pem), self.for_trying or self._calls_itself_staging(pem)
        if not (why or trying) or not self._refusal(site.STORE, pem):
            return ""
        return f"leads to none of the roots in {self.config.trust_roots} ({why})" if why else "is of a staging CA, which is for trying things"

    def is_foreign(self, pem: bytes, of_ours: bool | None) -> bool:
        """Whether a chain is not of the configured CA: by the note of where it came from (roots.is_of), or, where there is none, by the roots: what leads
        to any of `trust_roots` may well be, however many the CA has. Raises OSError, ValueError."""
        if of_ours is not None:
            return not of_ours
        if roots.missing(self.config):
            return False                       # nothing else would come of asking
        return bool(self._refusal(self.config.trust_roots, pem)) or (not self.for_trying and bool(self.refusal(pem)))

    def _refusal(self, path: str, pem: bytes) -> str:
        """What verify.refusal() says of a chain, by the roots in a file; looked at once. Raises OSError, ValueError."""
        key = path, hashlib.sha256(pem).digest()
        if key not in self._said:
            self._said[key] = verify.refusal(self._chain(pem), self._store(path).store)
        return self._said[key]

    def _calls_itself_staging(self, pem: bytes) -> bool:
        """Whether an issuer in a chain bears the mark of Let's Encrypt's staging, as all of them do."""
        return any(value.startswith(b"(STAGING)") for one in self._chain(pem) for _, value in one.get_issuer().get_components())

    def _chain(self, pem: bytes) -> list[verify.Certificate]:
        """The certificates of a chain, the leaf first. Raises ValueError."""
        if self._last[0] != pem:
            leaf, *above = verify.blocks(pem)[:verify.MOST]
            for block in above:
                if block not in self._above:
                    self._above[block] = verify.certificate(block)
            self._last = pem, [verify.certificate(leaf), *map(self._above.__getitem__, above)]
        return self._last[1]

    def _store(self, path: str) -> verify.Store:
        if path not in self._stores:
            self._stores[path] = verify.Store(path)
        return self._stores[path]

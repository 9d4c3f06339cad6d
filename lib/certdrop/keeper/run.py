"""One run of the keeper: the configuration, what is posted, what was seen and said, and how it ends.

Runs as: root, under the keeper's lock. Trusts: root's own files. Reads: certdrop.toml, requests/. Writes: standard error.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from certdrop import events, spool, words
from certdrop.config import site
from certdrop.keeper import integrity, notes, state
from certdrop.keeper.state import Observed
from certdrop.walls import users

PATIENCE = 600                     # seconds that a run goes on asking judges; what is left waits for the next


class Run:
    """One run of the keeper: the configuration, what is posted, what was seen and said, and how it ends."""

    def __init__(self, program: str, asked_by_issuer: bool, talk: bool) -> None:
        self.program = program
        self.asked_by_issuer = asked_by_issuer
        self.talk = talk
        self.log = events.Log("keeper")
        self.end = time.monotonic() + PATIENCE
        if not asked_by_issuer:                            # which looks at few, and so at these wholly
            integrity.recall()
        self.config = site.load_config()
        self.issuer, self.group = users.user_ids(spool.ISSUER)
        self.burnt = state.burnt()                         # the keys that got out
        self.posted: dict[str, set[tuple[int, str]]] = {}
        self.observed: dict[str, Observed] = {}                 # how each site stood when it was last looked at
        self.stirred: set[str] = set()                     # the sites that something was done with since they settled
        self.unfinished = notes.unfinished()               # the sites that something was begun with
        self.failures: set[int] = set()
        self.said: list[str] = []
        for entry in os.listdir(spool.requests()):         # root's own directory: nobody else can write there
            found = spool.parse_entry(entry)
            if found:
                self.posted.setdefault(found[0], set()).add(found[1:])
        self.requests = spool.open_directory(spool.requests())
        self.replies = spool.open_directory(spool.replies())

    def look(self, name: str) -> Observed:
        """How a site stands now."""
        self.observed[name] = Observed(name, self.burnt)
        return self.observed[name]

    def seen(self, name: str) -> Observed:
        """How a site stood when it was last looked at."""
        return self.observed.get(name) or self.look(name)

    def note(self, unfinished: set[str]) -> None:
        """Write down what was begun, before it is; and what of it is left. Where that cannot be written, root's own run looks at all sites anyway."""
        if unfinished != self.unfinished:
            with contextlib.suppress(OSError):
                notes.put("unfinished", "\n".join(sorted(unfinished)).encode("ascii"))
                self.unfinished = unfinished

    def tell(self, name: str, text: str) -> None:
        """Say something to a person who watches: later, by flush(), because a lock is never held while output could block."""
        if self.talk:
            self.said.append(f"{self.program}: {name}: {text}")

    def progress(self, text: str) -> None:
        """Say at once what takes its time, where somebody watches: into a file in memory (session.py), so that it waits for nobody."""
        if self.talk and words.at_terminal(2):
            words.say(f"{self.program}: {text}")

    def fail(self, name: str, text: str, code: int) -> None:
        """Say what went wrong, where somebody watches or must act at once, and remember it for the exit code."""
        self.failures.add(code)
        if self.talk or code in (os.EX_SOFTWARE, os.EX_NOPERM, os.EX_CONFIG, os.EX_IOERR):
            self.said.append(f"{self.program}: {name}: {text}")

    @contextlib.contextmanager
    def goes_on(self, name: str, stays: str = "the live certificate stays; the next run tries again") -> Iterator[None]:
        """Some work for a site, whose trouble is said and holds up no other site."""
        try:
            yield
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self.fail(name, f"{where}{error.strerror or error}; {stays}", os.EX_TEMPFAIL)

    def flush(self) -> None:
        """Print what was said. A terminal that is gone loses the words, never the work."""
        said, self.said = self.said, []
        words.say(*said)

    def exit_code(self) -> int:
        """0 where the wanted state holds, else the gravest of what went wrong."""
        for code in (os.EX_SOFTWARE, os.EX_CONFIG, os.EX_NOPERM, os.EX_IOERR, os.EX_DATAERR, os.EX_TEMPFAIL):
            if code in self.failures:
                return code
        return os.EX_TEMPFAIL if self.failures else os.EX_OK          # the issuer's own codes, or the signal that ended it

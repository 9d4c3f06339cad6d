"""Where a request stands within nginx: the block that answers, the location, the path, what it has been guessed of it; and how it leaves a phase.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

from certdrop.nginx.configuration import Configuration, Server
from certdrop.nginx.expression import Unknown
from certdrop.nginx.request.asked import Asked, End
from certdrop.nginx.request.locations import plain_path
from certdrop.nginx.syntax import Directive

CYCLES = 10                        # NGX_HTTP_MAX_URI_CHANGES
GUESSES = 6                        # in one request, of which every combination is tried


class Guesses:
    """What is taken to be so of what cannot be known: first what was given, then always yes. `made` are all of them, `why` what they are about."""

    def __init__(self, given: tuple[bool, ...] = ()) -> None:
        self._given, self._known = given, dict[object, bool]()
        self.made: list[bool] = []
        self.why: list[str] = []

    def guess(self, what: object, why: str) -> bool:
        """The same answer for the same question. Raises Unknown where there are too many."""
        if what not in self._known:
            if len(self.made) >= GUESSES:
                raise Unknown(why)
            self._known[what] = self._given[len(self.made)] if len(self.made) < len(self._given) else True
            self.made.append(self._known[what])
            self.why.append(why)
        return self._known[what]


class Over(Exception):
    """The request has ended."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end


class Status(Exception):
    """It is answered with this status, unless an error_page has something else to say."""

    def __init__(self, status: int, at: Directive | None = None, redirect: str = "") -> None:
        super().__init__()
        self.status, self.at, self.redirect = status, at, redirect


class Elsewhere(Exception):
    """It begins anew within nginx, with this path, or in this named location."""

    def __init__(self, path: str, query: str = "") -> None:
        super().__init__()
        self.path, self.query = path, query


class State:
    """Of one request. `passed` are the directives of the rewrite module that are taken to be somewhere else."""

    def __init__(self, config: Configuration, server: Server, asked: Asked, guesses: Guesses, token: str = "", passed: frozenset[int] = frozenset()) -> None:
        self.config, self.server, self.asked, self.guesses, self.token, self.passed = config, server, asked, guesses, token, passed
        merges = config.settings(server, "merge_slashes")
        self.uri, self.args = plain_path(asked.path, not merges or merges[0].value != "off"), asked.args
        self.original = asked.path + (f"?{asked.args}" if asked.args else "")
        self.values: dict[str, str | None] = {}            # of `set` and of named groups
        self.cached: dict[str, str | None] = {}            # of maps
        self.groups: tuple[str, ...] | None = ()           # of the expression that matched last
        self.locations: tuple[Directive, ...] = ()
        self.inner: Directive | None = None                # the `if` or limit_except that holds within the location
        self.left, self.internal, self.moved_by = CYCLES, False, list[Directive]()
        self.status = 0                                    # of the error whose page this is
        self.failed: Status | None = None
        self.is_page = self.is_sub = self.valid = False
        self.top: Directive | None = None                  # the directive of the server block that comes before every location

    def over(self, kind: str, status: int, what: str, at: Directive | None = None) -> Over:
        """Its end, to be raised."""
        early = self.top or (self.moved_by[0] if self.moved_by else None)
        return Over(End(kind, status, what, at, early, self.locations))

    def inside(self, one: Directive) -> list[Directive]:
        """The directives of a block, its includes resolved."""
        return self.config.expand(one.block)

    def levels(self) -> list[list[Directive]]:
        """The blocks whose settings hold, the innermost first; but for http's."""
        within = [self.inner] if self.inner else []
        return [*(self.inside(one) for one in (*within, *reversed(self.locations))), self.server.inside]

    def setting(self, *names: str) -> list[Directive]:
        """The directives of these names, where the innermost block that has any has them."""
        for block in self.levels():
            found = [one for one in block if one.name in names]
            if found:
                return found
        return [one for name in names for one in self.config.set_for_all(name)]


def words(one: Directive) -> str:
    """A directive as a message says it."""
    return " ".join([one.name, *one.args])[:120]

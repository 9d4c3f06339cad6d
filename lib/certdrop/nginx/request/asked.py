"""A request, and what became of it.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from certdrop.nginx.syntax import Directive


class Asked(NamedTuple):
    """A request: the name it is for, the address of this host that it comes to ("*" and "[::]" are any), how, and its path."""

    name: str
    address: str
    path: str
    args: str = ""
    tls: bool = False
    again: bool = False            # right behind another one, that was redirected

    @property
    def port(self) -> int:
        """The port that it comes to."""
        return 443 if self.tls else 80

    @property
    def ipv6(self) -> bool:
        """Whether it comes over IPv6."""
        return self.address.startswith("[")


class End(NamedTuple):
    """What became of it. `kind` is "file" (`what` is its path), "redirect" (`what` is where to), "status" (`what` is the text that comes with it, if
    any) or "other" (another server or program answers). `at` is the directive that made it so, `top` the one of the server block that it is in, if
    that comes before every location; `locations` are those that were chosen, the outermost first."""

    kind: str
    status: int
    what: str
    at: Directive | None = None
    top: Directive | None = None
    locations: tuple[Directive, ...] = ()

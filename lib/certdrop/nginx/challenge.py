"""What becomes of a request of the CA's for a challenge, by nginx's configuration: whether it leads to certdrop, what is in the way, and how to mend that.

Each request is followed through nginx's phases (request/), and where it is redirected as CAs follow (RFC 8555 section 8.3). What hangs on something that
nobody can know beforehand is tried both ways; where these differ the answer is that it cannot be told. It is a reading: a token that is fetched decides.
Runs as: anyone; root in certdrop-check. Trusts, reads: as request/files.py does. Writes: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from certdrop import tokens
from certdrop.config import site
from certdrop.nginx import expression, snippets
from certdrop.nginx.configuration import Configuration, Server, listened, rank
from certdrop.nginx.request import phases
from certdrop.nginx.request.asked import Asked, End
from certdrop.nginx.request.locations import kind_of
from certdrop.nginx.request.state import Guesses, words
from certdrop.nginx.syntax import Directive

PATH = "/.well-known/acme-challenge/"
TOKEN = "certdrop-looks-for-the-way-to-its-challenge"          # as long as one of the CA's
WRITE = "certdrop-nginx --write"
REDIRECTS = 10                     # as many as CAs follow
MANY = 64                          # combinations of guesses that are tried
PLACES = 40                        # that are looked at, where each leads to others


class Way(NamedTuple):
    """What becomes of a challenge: the block that answers first; what is in the way ("" where nothing is) and how to mend it. With `unclear` it cannot be
    told whether it is, and `why` says why not."""

    server: Server | None
    why: str = ""
    mend: str = ""
    unclear: bool = False

    @property
    def is_blocked(self) -> bool:
        """Whether challenges surely do not come through, as far as a configuration can tell."""
        return bool(self.why) and not self.unclear

    def mend_for(self, site: str) -> str:
        """How to mend it, with the name of the site in the command."""
        return self.mend.replace(WRITE, f"certdrop-nginx {site} --write")


class Wish(NamedTuple):
    """What advice has to know of a site: its names; and whether `certdrop-nginx --write` would put a block in place for it."""

    domains: Sequence[str] = ()
    can_write: bool = True


class _Outcome(NamedTuple):
    """One of those that may be: why it is none ("" for one that leads to certdrop), and the directive of the first server block to move, if one is."""

    why: str = ""
    mend: str = ""
    unclear: bool = False


_Known = dict[tuple[Asked, int], _Outcome]                     # what comes of a request, by the redirects that it may still follow


def addresses(config: Configuration) -> list[str]:
    """Where nginx listens at port 80, the wildcards as the loopback's; the loopback where it does not."""
    return config.answers.addresses(80) or ["127.0.0.1"]


def first_blocked(config: Configuration, name: str, wish: Wish = Wish()) -> Way | None:
    """The first way to this name, at any address that nginx listens at, that is not free; one that is blocked before one that is unclear."""
    ways = {address: way(config, address, name, wish) for address in addresses(config)}
    bad = [(address, one) for address, one in ways.items() if one.why]
    if not bad:
        return None
    address, found = min(bad, key=lambda pair: pair[1].unclear)
    return found if len(bad) == len(ways) else found._replace(why=f"asked for at {address}: {found.why}")          # which the name need not have


def way(config: Configuration, address: str, name: str, wish: Wish = Wish()) -> Way:
    """For a name, asked for at an address of this host ("192.0.2.1", "[2001:db8::1]"; "*" and "[::]" are any other one)."""
    name = site.as_host(name)
    server = None
    try:
        server = config.answers.find(address, 80, name)
        found = _together(config, Asked(name, address, PATH + TOKEN))
    except expression.Unknown as unknown:
        found = _Outcome(str(unknown), unknown.mend, True)
    if not found.why:
        return Way(server)
    mend = found.mend or _mend(config, address, name, server, wish)
    why = f"cannot tell from nginx's configuration where challenges for {name} go: {found.why}" if found.unclear else found.why
    return Way(server, why, mend, found.unclear)


def _together(config: Configuration, asked: Asked, hops: int = REDIRECTS, known: _Known | None = None) -> _Outcome:
    """What all guesses come to. `known` is what is known of places that were looked at on the way. Raises Unknown."""
    known = {} if known is None else known
    if (asked, hops) not in known:
        if len(known) >= PLACES:
            raise expression.Unknown("too much in it hangs on what cannot be known")
        known[asked, hops] = _looked_at(config, asked, hops, known)
    return known[asked, hops]


def _looked_at(config: Configuration, asked: Asked, hops: int, known: _Known) -> _Outcome:
    """The same, not yet known."""
    if config.cut:
        return _Outcome("it is longer, or nested deeper, than is read", unclear=True)
    server = config.answers.find(asked.address, asked.port, asked.name)
    if server is None:
        family = " over IPv6" if asked.ipv6 and config.answers.addresses(asked.port) else ""
        return _Outcome(f"nginx does not listen on port {asked.port}{family}")
    wrapped = _wrapped(config, asked, server)
    if wrapped.why:
        return wrapped
    found: dict[_Outcome, str] = {}
    for end, why in ends(config, server, asked):
        found.setdefault(_outcome(config, server, asked, end, hops, known) if isinstance(end, End) else _Outcome(str(end), end.mend, True), why)
    bad = [one for one in found if one.why]
    unclear = [one for one in bad if one.unclear]
    if not bad or (len(bad) == len(found) and not unclear):
        return bad[0] if bad else _Outcome()
    return unclear[0] if unclear else _Outcome(found[bad[0]], unclear=True)


def ends(config: Configuration, server: Server, asked: Asked, passed: frozenset[int] = frozenset()) -> Iterator[tuple[End | expression.Unknown, str]]:
    """What may become of a request in a server block, and on what it hangs, if on anything."""
    waiting: list[tuple[bool, ...]] = [()]
    for _ in range(MANY):
        if not waiting:
            return
        given = waiting.pop()
        guesses = Guesses(given)
        end: End | expression.Unknown
        try:
            end = phases.end(config, server, asked, guesses, f"{tokens.directory()}/{TOKEN}", passed)
        except expression.Unknown as unknown:
            end = unknown
        yield end, guesses.why[0] if guesses.why else ""
        waiting += [(*guesses.made[:at], not guesses.made[at]) for at in range(len(given), len(guesses.made))]
    yield expression.Unknown("too much in it hangs on what cannot be known"), ""


def _wrapped(config: Configuration, asked: Asked, server: Server) -> _Outcome:
    """Whether a request can be read at all at that place."""
    wrapped, ssl = config.answers.wrapped(asked.address, asked.port), _ssl_on(config, asked)
    if ssl and wrapped in ("", "http2"):
        if not asked.tls:
            return _Outcome(f"{ssl.place}: {words(ssl)} makes port 80 one that does not speak plain HTTP",
                            f"put the word ssl into each listen for TLS, in place of the {words(ssl)} at {ssl.place}")
        wrapped = "ssl"
    if wrapped == ("ssl" if asked.tls else ""):
        verify = [one for one in config.settings(server, "ssl_verify_client") if one.value == "on"] if asked.tls else []
        refused = [one for one in config.settings(server, "ssl_reject_handshake") if one.value == "on"] if asked.tls else []
        return _Outcome(f"{(verify + refused)[0].place}: {words((verify + refused)[0])} refuses the CA") if verify + refused else _Outcome()
    at = [one for other in config.servers for one in other.all("listen")
          if wrapped and wrapped in one.args and any(found.port == asked.port for found in listened(*one.args))]
    if not at:
        return _Outcome(f"port {asked.port} does not speak {'TLS' if asked.tls else 'plain HTTP'}")
    if wrapped == "http2":
        return _Outcome(f"{at[0].place}: {words(at[0])}: before 1.25.1, nginx speaks nothing but HTTP/2 there", _take_out(wrapped, at), True)
    return _Outcome(f"{at[0].place}: {words(at[0])} makes port {asked.port} one that does not speak {'TLS' if asked.tls else 'plain HTTP'}",
                    _take_out(wrapped, at))


def _ssl_on(config: Configuration, asked: Asked) -> Directive | None:
    """The `ssl on` of the first block of a place, which holds for all of them there (ngx_http_init_connection); gone since nginx 1.25.1."""
    first = config.answers.first(asked.address, asked.port)
    found = config.settings(first, "ssl") if first else []
    return found[0] if found and found[0].value.lower() == "on" else None


def _take_out(word: str, at: list[Directive]) -> str:
    return f"take the word {word} out of " + " and ".join(f"the listen at {one.place}" for one in at)


def _outcome(config: Configuration, server: Server, asked: Asked, end: End, hops: int, known: _Known) -> _Outcome:
    """What an end means for a challenge."""
    name, at = asked.name, end.at
    if end.kind == "file" and end.status == 200 and _is_the_token(end.what):
        return _Outcome()
    said = f"{at.place}: {words(at)}" if at else _block(server)
    if end.top:
        by = at if at and (at is end.top or at in config.expand(end.top.block)) else end.top
        said = f"{by.place}: {words(by)} of the server block comes before every location"
    if end.kind == "redirect":
        return _followed(config, asked, end, (hops, known), said if end.top else f"{said} takes the challenges for {name}")
    if end.top:
        return _Outcome(said)
    if not end.locations and end.kind != "other":
        if end.status in (401, 403) and at:
            return _Outcome(f"{said} refuses the challenges for {name}")
        return _Outcome(f"{_block(server)} answers for {name} and has no challenge location")
    if end.kind == "other":
        return _Outcome(f"{said} takes the challenges for {name}", unclear=at is not None and _is_ourselves(config, at))
    if at is None or at.name in ("root", "alias", "try_files"):
        return _Outcome(f"{_block(server)} answers for {name}, and its location at {end.locations[-1].place} does not lead to {tokens.directory()}")
    if at.name == "return":
        return _Outcome(f"{said} takes the challenges for {name}")
    return _Outcome(f"{said} refuses the challenges for {name}")


def _is_the_token(path: str) -> bool:
    return path.rpartition("/")[2] == TOKEN


def _is_ourselves(config: Configuration, one: Directive) -> bool:
    """Whether a proxy_pass leads to this nginx, perhaps."""
    found = re.match(r"https?://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::(\d+))?(?:/|\Z)", one.value)
    return one.name == "proxy_pass" and found is not None and bool(config.answers.addresses(int(found[2] or 80)))


def _followed(config: Configuration, asked: Asked, end: End, so_far: tuple[int, _Known], said: str) -> _Outcome:
    """Where a redirect leads: CAs go to ports 80 and 443, ten times."""
    parts = re.fullmatch(r"(?:(\w+):)?(?://(\[[^\]]*\]|[^/?#:]+)(?::(\d+))?)?([^?#]*)(?:\?([^#]*))?(?:#.*)?", end.what, re.DOTALL)
    scheme = (parts and parts[1] or f"http{'s' if asked.tls else ''}").lower()
    port, host = (parts[3] if parts else ""), (parts and parts[2] or asked.name).lower()
    if not parts or (not parts[2] and (parts[1] or parts[4].startswith("//"))) or scheme not in ("http", "https") or (
            port not in (None, {"http": "80", "https": "443"}[scheme])):
        return _Outcome(f"{said}: it leads to {end.what[:120]}, where CAs do not go")
    hops, known = so_far
    if hops <= 0:
        return _Outcome(f"{said}: redirected again and again")
    path = parts[4] if parts[4].startswith("/") or parts[2] else asked.path.rpartition("/")[0] + "/" + parts[4]
    to = Asked(host, asked.address, path or "/", parts[5] or "", scheme == "https", True)
    if host != asked.name and not any(_is_for(server, host) for server in config.servers):
        return _Outcome(f"{said}: it leads to {scheme}://{host}, which is another host", unclear=True)
    found = _together(config, to, hops - 1, known)
    return found._replace(why=f"{said}: it leads to {scheme}://{host}, and {found.why}", mend="") if found.why else found


def _is_for(server: Server, host: str) -> bool:
    """Whether a block was written for this name, or those of its kind."""
    return server.has_name(host) or any(rank(name, host) is not None for name in server.names)


def _mend(config: Configuration, address: str, name: str, server: Server | None, wish: Wish) -> str:
    """What lets the challenges through, and is not there already. A block that answers only for want of a better one need not be touched."""
    if server and server.has_name(name):
        return _let_in(config, server, address, [name, *map(site.as_host, wish.domains)])
    line = f"listen {config.answers.listen_for(address, 80)};"
    for other in config.servers:
        if other.has_name(name):                           # and it does not listen here
            add, let_in = f"add to {_block(other)}: ", _let_in(config, other, address, [name])
            return add + line + (f" {let_in.removeprefix(add)}" if let_in.startswith(add) else f", and {let_in}" if let_in else "")
    for other in config.servers:
        if any(other.has_name(site.as_host(one)) for one in wish.domains) and any(one.port == 80 for one in other.listens):
            named = other.all("server_name")[0]
            return f"add {name} to the server_name at {named.place}"
    if wish.can_write:
        return f"{WRITE} gives the name a server block of its own"
    return _let_in(config, server, address, [name]) if server else "put the server block for port 80 that certdrop-nginx prints where nginx reads it"


def _let_in(config: Configuration, server: Server, address: str, names: list[str]) -> str:
    """What to change in a server block, for those of these names that it answers for."""
    names = [names[0], *(name for name in names[1:] if server.has_name(name))]
    early: dict[int, Directive] = {}
    for name in names:
        for _ in range(len(server.inside)):
            tops = [end.top for end, _ in ends(config, server, Asked(name, address, PATH + TOKEN), frozenset(early)) if isinstance(end, End) and end.top]
            if not tops:
                break
            early.update({id(top): top for top in tops})
    steps = []
    if early:
        there = next((one for one in server.inside if one.name == "location" and one.args in (["/"], ["^~", "/"])), None)
        moved = " and ".join(f"the {one.name} at {one.place}" for one in server.inside if id(one) in early)
        steps.append(f"move {moved} into " + (f"the location / at {there.place}" if there else "a location / { }"))
    own = next((one for one in server.inside if one.name == "location" and kind_of(one)[0] in ("", "^~") and kind_of(one)[1] == PATH), None)
    culprit = None if not own else _keeps_from(config, server, names[0], address)
    if own and culprit and own.file == snippets.challenge():
        steps.append(f"keep the {culprit.name} at {culprit.place} from {PATH}")
    elif own and culprit:
        steps.append(f"put in place of the location at {own.place}: include {snippets.challenge()};")
    elif not own:
        steps.append(f"add to {_block(server)}: include {snippets.challenge()};")
    return ", and ".join(steps)


def _keeps_from(config: Configuration, server: Server, name: str, address: str) -> Directive | None:
    """What keeps the location that a block has for challenges from serving them, if only they came to it; None where nothing does."""
    early = frozenset(id(one) for one in server.inside)
    for end, _ in ends(config, server, Asked(name, address, PATH + TOKEN), early):
        if not isinstance(end, End) or end.kind != "file" or end.status != 200 or not _is_the_token(end.what):
            return (end.at if isinstance(end, End) else None) or server.directive
    return None


def _block(server: Server) -> str:
    return f"the server block at {server.directive.place}"

"""What nginx would do with a request of the CA's for a challenge, by its configuration: which block answers, and what is in the way.

Follows nginx's own order: the server block's return, rewrite and if come first, then one location is chosen. What cannot be
known from the text (a variable of somebody else's) is passed over: a real request tells. Runs as: anyone. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from certdrop import spool
from certdrop.config import site
from certdrop.nginx import expression
from certdrop.nginx.configuration import Configuration, Server, listened
from certdrop.nginx.syntax import Directive

PATH = "/.well-known/acme-challenge/"
TOKEN = "certdrop-looks-for-the-way-to-its-challenges"
SNIPPET = "include /etc/nginx/snippets/certdrop-challenge.conf;"
WRITE = "certdrop-nginx --write"
HANDLERS = ("proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "return", "memcached_pass")


class Way(NamedTuple):
    """What becomes of a challenge: the block that answers; what is in the way ("" where nothing is) and how to mend it; the locations chosen."""

    server: Server | None
    why: str = ""
    mend: str = ""
    locations: tuple[Directive, ...] = ()

    def mend_for(self, site: str) -> str:
        """How to mend it, with the name of the site in the command."""
        return self.mend.replace(WRITE, f"certdrop-nginx {site} --write")


class Wish(NamedTuple):
    """What advice has to know of a site: its names; and whether `certdrop-nginx --write` would put a block in place for it."""

    domains: Sequence[str] = ()
    can_write: bool = True


def addresses(config: Configuration) -> list[str]:
    """Where nginx listens at port 80, the wildcards as the loopback's; the loopback where it does not."""
    return config.answers.addresses(80) or ["127.0.0.1"]


def first_trouble(config: Configuration, name: str, wish: Wish = Wish()) -> Way | None:
    """The first way to this name, at any address that nginx listens at, that is not free."""
    return next((found for address in addresses(config) if (found := way(config, address, name, wish)).why), None)


def way(config: Configuration, address: str, name: str, wish: Wish = Wish()) -> Way:
    """For a name, asked for at an address of this host ("192.0.2.1", "[2001:db8::1]"; "*" and "[::]" are any other one)."""
    name = site.as_host(name)
    try:
        found = _way(config, address, name)
        return found._replace(mend=_mend(config, address, name, found, wish)) if found.why and not found.mend else found
    except expression.Unknown as unknown:
        return Way(None, f"cannot tell from nginx's configuration where challenges for {name} go: {unknown}", unknown.mend)


def _way(config: Configuration, address: str, name: str) -> Way:
    """The same, with no advice but where it is known already."""
    server = config.answers.find(address, 80, name)
    if server is None:
        return Way(None, f"nginx does not listen on port 80{' over IPv6' if address.startswith('[') and config.answers.addresses(80) else ''}")
    wrapped = config.answers.wrapped(address, 80)
    if wrapped:
        at = [one for other in config.servers for one in other.all("listen") if wrapped in one.args and any(found.port == 80 for found in listened(*one.args))]
        return Way(server, f"{at[0].place}: {_words(at[0])} makes port 80 one that does not speak plain HTTP",
                   f"take the word {wrapped} out of " + " and ".join(f"the listen at {one.place}" for one in at))
    path = PATH + TOKEN
    known = _known(name)
    early = _early(server.inside, config, path, known)
    if early and early.name != "break":                    # which spares it the rest of the block's own
        return Way(server, f"{early.place}: {_words(early)} of the server block comes before every location")
    chosen = _locate(config, server.inside, path)
    if not chosen:
        return Way(server, f"{_block(server)} answers for {name} and has no challenge location")
    for inner in config.expand(chosen[-1].block):          # of an outer location such a handler is not handed down
        if inner.name in HANDLERS:
            return Way(server, f"{inner.place}: {_words(inner)} takes the challenges for {name}", "", chosen)
    if _file(config, server, chosen, path) != f"{spool.challenges()}/{TOKEN}":
        return Way(server, f"{_block(server)} answers for {name}, and its location at {chosen[-1].place} does not lead to {spool.challenges()}", "", chosen)
    return Way(server, locations=chosen)


def _mend(config: Configuration, address: str, name: str, found: Way, wish: Wish) -> str:
    """What lets the challenges through, and is not there already. A block that answers only for want of a better one need not be touched."""
    server = found.server
    if server and name in server.names:
        return _let_in(config, server, [name, *map(site.as_host, wish.domains)])
    line = f"listen {'[::]:' if address.startswith('[') else ''}80;"
    for other in config.servers:
        if name in other.names:                            # and it does not listen here
            return f"add to {_block(other)}: " + (line if _has_challenges(config, other) else f"{line} {SNIPPET}")
    for other in config.servers:
        if {site.as_host(one) for one in wish.domains} & set(other.names) and any(one.port == 80 for one in other.listens):
            named = other.all("server_name")[0]
            return f"add {name} to the server_name at {named.place}"
    if wish.can_write:
        return f"{WRITE} gives the name a server block of its own"
    return _let_in(config, server, [name]) if server else "put the server block for port 80 that certdrop-nginx prints where nginx reads it"


def _let_in(config: Configuration, server: Server, names: list[str]) -> str:
    """What to change in a server block, for those of these names that it answers for."""
    path = PATH + TOKEN
    names = [names[0], *(name for name in names[1:] if name in server.names)]
    early = [one for one in server.inside if one.name != "break" and any(_early([one], config, path, _known(name)) for name in names)]
    steps = []
    if early:
        there = next((one for one in server.inside if one.name == "location" and one.args in (["/"], ["^~", "/"])), None)
        moved = " and ".join(f"the {one.name} at {one.place}" for one in early)
        steps.append(f"move {moved} into " + (f"the location / at {there.place}" if there else "a location / { }"))
    own = next((one for one in server.inside if one.name == "location" and _kind(one)[0] in ("", "^~") and _kind(one)[1] == PATH), None)
    if own and not _has_challenges(config, server):
        steps.append(f"put in place of the location at {own.place}: {SNIPPET}")
    elif not own:
        steps.append(f"add to {_block(server)}: {SNIPPET}")
    return ", and ".join(steps)


def _has_challenges(config: Configuration, server: Server) -> bool:
    """Whether the location that a block has for challenges would serve them, if only they came to it."""
    chosen = _locate(config, server.inside, PATH + TOKEN)
    return bool(chosen) and _file(config, server, chosen, PATH + TOKEN) == f"{spool.challenges()}/{TOKEN}"


def _known(name: str) -> dict[str, str]:
    """The variables of such a request."""
    path = PATH + TOKEN
    return {"host": name, "http_host": name, "scheme": "http", "https": "", "server_port": "80", "request_uri": path, "uri": path,
            "document_uri": path, "request_method": "GET", "args": "", "server_name": name}


def _block(server: Server) -> str:
    return f"the server block at {server.directive.place}"


def _words(one: Directive) -> str:
    return " ".join([one.name, *one.args])[:120]


def _early(inside: list[Directive], config: Configuration, path: str, known: dict[str, str]) -> Directive | None:
    """The directive of the rewrite phase that takes the request, if any."""
    for one in inside:
        if one.name in ("return", "break"):
            return one
        if one.name == "rewrite" and len(one.args) > 1 and _search(one.value, path):
            return one
        if one.name == "if" and _holds(one.args, known):
            taken = _early(config.expand(one.block), config, path, known)
            if taken:
                return taken
    return None


def _holds(args: list[str], known: dict[str, str]) -> bool:
    """Whether an `if` is true for such a request; False where that cannot be known."""
    if not args or not args[0].startswith("(") or not args[-1].endswith(")"):
        return False
    words = [args[0][1:], *args[1:]]                       # as ngx_http_rewrite_if_condition takes the parentheses off: a quoted
    words[-1] = words[-1][:-1]                             # word before the last one is a word of its own
    words = words[0 if words[0] else 1:None if words[-1] else -1]
    value = known.get(words[0][1:].strip("{}")) if words and words[0].startswith("$") else None
    if value is None:
        return False
    if len(words) == 1:
        return value not in ("", "0")
    if len(words) != 3:                                    # nginx refuses it
        return False
    _, operator, other = words
    if operator in ("=", "!="):
        return (value == other) == (operator == "=")
    if operator.lstrip("!") in ("~", "~*"):
        return _search(other, value, operator.endswith("*")) != operator.startswith("!")
    return False


def _search(pattern: str, text: str, ignoring_case: bool = False) -> bool:
    return expression.search(pattern, text, ignoring_case) is not None


def _locate(config: Configuration, inside: list[Directive], path: str, depth: int = 8) -> tuple[Directive, ...]:
    """The locations that take a path, the outermost first (nginx's manual of `location`)."""
    locations = [one for one in inside if one.name == "location" and one.args and one.block is not None]
    best: Directive | None = None
    for one in locations:
        kind, where = _kind(one)
        if kind == "=" and where == path:
            return (one,)
        if kind in ("", "^~") and path.startswith(where) and (best is None or len(where) > len(_kind(best)[1])):
            best = one
    inner = _locate(config, config.expand(best.block), path, depth - 1) if best and depth else ()
    if best and inner and _kind(inner[-1])[0] in ("~", "~*", "="):
        return (best, *inner)
    if best is None or _kind(best)[0] != "^~":
        for one in locations:
            kind, where = _kind(one)
            if kind in ("~", "~*") and _search(where, path, kind == "~*"):
                return (one, *(_locate(config, config.expand(one.block), path, depth - 1) if depth else ()))
    return (best, *inner) if best else ()


def _kind(one: Directive) -> tuple[str, str]:
    """The modifier of a location, and what it names."""
    if len(one.args) > 1:
        return one.args[0], one.args[1]
    found = re.match(r"(\^~|=|~\*|~)?(.*)", one.value, re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", one.value)


def _file(config: Configuration, server: Server, chosen: tuple[Directive, ...], path: str) -> str:
    """The file that is served for a path, as far as the text says."""
    for one in reversed(chosen):
        for inner in config.expand(one.block):
            if inner.name == "root":
                return _plain(inner.value) + path
            if inner.name == "alias":
                kind, where = _kind(one)
                found = expression.search(where, path, kind == "~*") if kind.startswith("~") else None
                return _filled(inner.value, found) if found else inner.value + path[len(where):]
    roots = config.settings(server, "root")
    return _plain(roots[0].value) + path if roots else ""


def _plain(root: str) -> str:
    return root.rstrip("/")


def _filled(text: str, found: tuple[str, ...]) -> str:
    """A path with the groups of a regular expression put in for $1 to $9."""
    groups = [*found, *[""] * 9]
    return re.sub(r"\$\{?([1-9])\}?", lambda number: groups[int(number[1])], text)


def setting(config: Configuration, found: Way, name: str) -> Directive | None:
    """The directive of that name that holds where a challenge is served."""
    for one in reversed(found.locations):
        for inner in config.expand(one.block):
            if inner.name == name:
                return inner
    there = config.settings(found.server, name) if found.server else []
    return there[0] if there else None

"""nginx's configuration, as `nginx -T` prints it: its files, and which server block answers for a name.

A reader, not a judge: whatever it is given it makes something of, and raises nothing. Runs as: anyone. Trusts, reads, writes: nothing.
Debian 12 has no package that does this (python3-crossplane is younger).
"""

from __future__ import annotations

import collections
import fnmatch
import functools
import gc
import ipaddress
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from certdrop.nginx import directives, expression
from certdrop.nginx.syntax import DEPTH, Directive, Source, parse

MOST = 500_000                     # directives that includes bring into one block
MANY = 1_000                       # server blocks, of which the garbage collector need know nothing
HOST = os.uname().nodename.lower()                              # nginx's $hostname

_ADDRESS = re.compile(r"\*|\[[0-9a-f:.]+\]|[0-9.]+")
_HEADER = re.compile(r"^# configuration file (/.*):$", re.MULTILINE)


class Listen(NamedTuple):
    """One `listen`: address ("*", "[::]", "127.0.0.1", ...; a path for a unix socket, whose port is 0), port, and the other words."""

    address: str
    port: int
    words: tuple[str, ...]

    @property
    def ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return self.address.startswith("[")

    @property
    def wrapped(self) -> str:
        """The word by which it does not speak plain HTTP, "" where it does."""
        return next((word for word in ("proxy_protocol", "ssl", "http2") if word in self.words), "")


class Server:
    """A server block of the http part."""

    def __init__(self, directive: Directive, listens: list[Listen], names: list[str], expand: Callable[[list[Directive] | None], list[Directive]]) -> None:
        self.directive, self.listens, self.names, self._expand = directive, listens, names, expand

    @functools.cached_property
    def inside(self) -> list[Directive]:
        """Its directives, its includes resolved."""
        return self._expand(self.directive.block)

    def has_name(self, name: str) -> bool:
        """Whether it is for this very name."""
        return name in self.names or f".{name}" in self.names

    def ports(self) -> set[int]:
        """Where it listens."""
        return {listen.port for listen in self.listens}

    def beside(self, names: list[str]) -> list[str]:
        """The other names that it answers for: what belongs to these, too, is not to be changed for the sake of `names`."""
        return sorted(set(self.names) - {*names, "", "_", "localhost"})

    def all(self, name: str) -> list[Directive]:
        """The directives of that name directly inside."""
        return [one for one in self.inside if one.name == name]


def sources(dump: str) -> list[Source]:
    """The files in what `nginx -T` prints, in its order: the main file first."""
    heads = list(_HEADER.finditer(dump))
    found: dict[str, str] = {}
    for head, following in zip(heads, [*heads[1:], None]):
        text = dump[head.end() + 1:following.start() if following else len(dump)]
        found.setdefault(head[1], text.removesuffix("\n"))            # nginx ends each file's text with one of its own
    return [Source(path, text) for path, text in found.items()]


class Configuration:
    """All files of a configuration, the main one first."""

    def __init__(self, files: list[Source]) -> None:
        collects = gc.isenabled()
        gc.disable()                                           # nothing of this is garbage, and there may be a million objects
        try:
            self._read(files)
        finally:
            if collects:
                gc.enable()
        if len(self.servers) > MANY:
            gc.freeze()                                        # nor is it to be looked through again and again

    def _read(self, files: list[Source]) -> None:
        parsed = {source.path: parse(source) for source in files}
        self.parsed = {path: one.top for path, one in parsed.items()}
        self.cut = any(one.cut for one in parsed.values())     # whether there is more than is read
        self.texts = dict(files)
        self.main = files[0].path if files else "/etc/nginx/nginx.conf"
        self._known: dict[str, list[str]] = {}                 # the files that an include brings, by its pattern
        self._brought: dict[str, list[Directive]] = {}         # and what stands in them
        self.top = self.expand(self.parsed.get(self.main))
        self.http = [inner for one in self.top if one.name == "http" for inner in self.expand(one.block)]
        self.servers = [self._server(one) for one in self.http if one.name == "server" and one.block is not None]
        self.answers = Answers(self.servers)
        self._set: dict[str, list[Directive]] = {}             # what the http part itself says
        for one in self.http:
            self._set.setdefault(one.name, []).append(one)

    def included(self, pattern: str) -> list[str]:
        """The files that an `include` brings, in the order of glob(3)."""
        if pattern not in self._known:
            path = self._absolute(pattern)
            found = sorted(known for known in self.parsed if matches(known, path)) if re.search(r"[*?\[]", path) else []
            self._known[pattern] = [path] if path in self.parsed else found
        return self._known[pattern]

    def patterns(self) -> list[str]:
        """What the http part itself includes, as absolute patterns, whether there is a file or not."""
        return [self._absolute(one.value) for part in self.top if part.name == "http" for one in part.block or [] if one.name == "include"]

    def _absolute(self, pattern: str) -> str:
        return os.path.normpath(os.path.join(os.path.dirname(self.main), pattern))

    def expand(self, block: list[Directive] | None) -> list[Directive]:
        """The directives of a block, what its includes bring in their place."""
        if not block or not any(one.name == "include" for one in block):
            return block or []
        found: list[Directive] = []
        for one in block:
            if one.name != "include":
                found.append(one)
                continue
            if one.value not in self._brought:
                self._brought[one.value] = []
                self._into(self._brought[one.value], [one], (), [MOST])
            found += self._brought[one.value]
            if len(found) > MOST:
                self.cut = True
                break
        return found

    def _into(self, found: list[Directive], block: list[Directive], above: tuple[str, ...], left: list[int]) -> None:
        for one in block:
            left[0] -= 1
            if left[0] < 0:
                self.cut = True
                return
            if one.name != "include":
                found.append(one)
                continue
            for path in self.included(one.value):
                if path not in above and len(above) < DEPTH:
                    self._into(found, self.parsed[path], (*above, path), left)
                elif path not in above:
                    self.cut = True

    def includes(self, server: Server, path: str) -> bool:
        """Whether a server block includes this file itself."""
        return any(one.name == "include" and path in self.included(one.value) for one in server.directive.block or [])

    def _server(self, one: Directive) -> Server:
        listens, names = list[Listen](), list[str]()
        for inner in self.expand(one.block):
            if inner.name == "listen":
                listens += listened(*inner.args)
            elif inner.name == "server_name":
                names += [HOST if name == "$hostname" else name if name.startswith("~") else name.lower() for name in inner.args]
        return Server(one, listens or [Listen("*", 80, ())], names or [""], self.expand)

    @functools.cached_property
    def listens(self) -> dict[tuple[str, int], list[Listen]]:
        """By address and port, every `listen`."""
        found: dict[tuple[str, int], list[Listen]] = {}
        for server in self.servers:
            for one in server.listens:
                found.setdefault((one.address, one.port), []).append(one)
        return found

    @functools.cached_property
    def _times(self) -> collections.Counter[int]:
        return collections.Counter(id(one.directive) for one in self.servers)

    def times_read(self, server: Server) -> int:
        """How often its block is read: a file may be included twice."""
        return self._times[id(server.directive)]

    def set_for_all(self, name: str) -> list[Directive]:
        """The directives of that name that the http part itself has."""
        return self._set.get(name, [])

    @functools.cached_property
    def strangers(self) -> list[Directive]:
        """The directives of the http part itself of which nothing is known."""
        return [one for name, found in self._set.items() if not directives.is_known(name) for one in found]

    @functools.cached_property
    def variables(self) -> dict[str, Directive]:
        """By name, in lower case, what makes a variable for all."""
        found = {}
        for one in [*self.set_for_all("map"), *self.set_for_all("geo"), *self.set_for_all("split_clients")]:
            if one.args:
                found[one.args[-1].lstrip("$").lower()] = one
        return found

    @functools.cached_property
    def assigned(self) -> set[str]:
        """The variables, in lower case, that a `set` or an expression somewhere gives a value: "" until it does."""
        return {name.lower() for text in self.texts.values() for name in re.findall(r"(?:\bset\s+[\"']?\$|\(\?P?[<'])(\w+)", text, re.ASCII)}

    def settings(self, server: Server, name: str) -> list[Directive]:
        """The directives of that name that hold in a server block: its own, else those of the http part."""
        return server.all(name) or self._set.get(name, [])


@functools.lru_cache(maxsize=1024)
def listened(where: str = "", *words: str) -> tuple[Listen, ...]:
    """What a `listen` says (ngx_parse_url): a place for each of its addresses; of a range of ports its first one, and those that challenges come to."""
    if where.startswith("unix:"):
        return (Listen(where, 0, words),)
    found = re.fullmatch(r"(?:(\[[^\]]*\]|[^:\[]*):)?(\d{1,5})(?:-(\d{1,5}))?|(\[[^\]]*\]|[^:\[]*)", where)
    if found is None:
        return (Listen(where, 0, words),)
    first = int(found[2] or 80)
    ports = [first, *(port for port in (80, 443) if first < port <= int(found[3] or 0))]
    return tuple(Listen(address, port, words) for address in _addresses(found[1] or found[4] or "") for port in ports)


def _addresses(host: str) -> list[str]:
    """The host part of a `listen` as addresses; what has none here as it stands."""
    if host in ("", "*"):
        return ["*"]
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return _hosts().get(host.lower(), [host.lower()])
    if not int(address):
        return ["*" if address.version == 4 else "[::]"]
    return [str(address) if address.version == 4 else f"[{address}]"]


@functools.lru_cache(maxsize=1)
def _hosts() -> dict[str, list[str]]:
    """The names of /etc/hosts. Others are not looked up."""
    found: dict[str, list[str]] = {}
    try:
        with open("/etc/hosts", encoding="utf-8", errors="replace") as stream:
            lines = stream.read(1 << 20).splitlines()
    except OSError:
        return {}
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            try:
                found.setdefault(name.lower(), []).extend(_addresses(str(ipaddress.ip_address(address))))
            except ValueError:
                continue
    return found


class _Place:
    """The blocks that listen at one address and port."""

    def __init__(self) -> None:
        self.exact: dict[str, Server] = {}     # the first block with a name has it, as with nginx
        self.patterns: list[tuple[str, Server]] = []
        self.default: Server | None = None
        self.is_marked = self.takes_both = False
        self.wrapped = ""                      # "ssl" or "proxy_protocol": one block's word holds for all at this place

    def add(self, server: Server, one: Listen) -> None:
        """A block that listens here."""
        for name in server.names:
            if name[:1] not in "*.~" and name[-2:] != ".*":
                self.exact.setdefault(name, server)
            elif name[:1] != "." or name[1:] not in self.exact:            # a conflict for the name itself: nginx passes over all of it
                self.exact.setdefault(name.removeprefix("."), server)      # .name is for the name itself, too
                if name:
                    self.patterns.append((name, server))
        marked = "default_server" in one.words or "default" in one.words
        if self.default is None or marked and not self.is_marked:
            self.default, self.is_marked = server, self.is_marked or marked
        self.takes_both = self.takes_both or "ipv6only=off" in one.words
        self.wrapped = self.wrapped or one.wrapped

    def find(self, name: str) -> Server | None:
        """By nginx's order (its manual's "Server names"), then the default. Raises expression.Unknown."""
        if name in self.exact:
            return self.exact[name]
        best: tuple[tuple[int, int], Server] | None = None
        for pattern, server in self.patterns:
            how_well = rank(pattern, name)
            if how_well is not None and (best is None or how_well > best[0]):
                best = how_well, server
        if best:
            return best[1]
        expressions = ((pattern[1:], server) for pattern, server in self.patterns if pattern.startswith("~"))
        return next((server for pattern, server in expressions if expression.search(pattern, name, True) is not None), self.default)


class Answers:
    """Who answers: server blocks by the address, the port and the name that is asked for."""

    def __init__(self, servers: list[Server]) -> None:
        self._places: dict[tuple[str, int], _Place] = {}
        for server in servers:
            for one in server.listens:
                if "quic" not in one.words:
                    self._places.setdefault((one.address, one.port), _Place()).add(server, one)
        self._unresolved = {port: address for address, port in self._places if port and not _ADDRESS.fullmatch(address)}

    def addresses(self, port: int) -> list[str]:
        """The addresses at which somebody listens, IPv4 first, the wildcards as the loopback's."""
        found = {{"*": "127.0.0.1", "[::]": "[::1]"}.get(address, address) for address, at in self._places if at == port}
        return sorted(found, key=lambda address: (address.startswith("["), address))

    def find(self, address: str, port: int, name: str) -> Server | None:
        """The block that answers for a name at an address of this host ("192.0.2.1", "[2001:db8::1]"); None where none listens there.

        An exact address goes before the wildcard. Raises expression.Unknown.
        """
        place = self._at(address, port)
        unknown = self._unresolved.get(port, "") if (address, port) not in self._places else ""
        if unknown:
            raise expression.Unknown(f"it listens at {unknown}, which is none of the names in /etc/hosts", f"write the address in place of {unknown}")
        return place.find(name.lower()) if place else None

    def wrapped(self, address: str, port: int) -> str:
        """The word of `listen` by which plain HTTP is not spoken there, "" where it is."""
        place = self._at(address, port)
        return place.wrapped if place else ""

    def first(self, address: str, port: int) -> Server | None:
        """The block that answers there for want of a better one."""
        place = self._at(address, port)
        return place.default if place else None

    def listen_for(self, address: str, port: int) -> str:
        """What a block has to listen at to be asked there: where another one listens at this very address, that one alone is."""
        if (address, port) in self._places and address not in ("*", "[::]"):
            return f"{address}:{port}"
        return f"[::]:{port}" if address.startswith("[") else f"{port}"

    def _at(self, address: str, port: int) -> _Place | None:
        place = self._places.get((address, port)) or self._places.get(("[::]" if address.startswith("[") else "*", port))
        if place is None and not address.startswith("["):
            both = self._places.get(("[::]", port))            # `listen [::]:80 ipv6only=off` takes IPv4 too
            place = both if both and both.takes_both else None
        return place


def rank(pattern: str, name: str) -> tuple[int, int] | None:
    """How well a pattern of server_name matches: *.name by length, then name.* by length."""
    if pattern.startswith("."):
        return (4, -1) if pattern[1:] == name else (3, len(pattern)) if name.endswith(pattern) else None
    if pattern.startswith("*."):
        return (3, len(pattern) - 1) if name.endswith(pattern[1:]) else None
    if pattern.endswith(".*"):
        return (2, len(pattern)) if name.startswith(pattern[:-1]) else None
    return None


def matches(path: str, pattern: str) -> bool:
    """Whether an absolute pattern of `include` names this path, as glob(3) has it."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        fnmatch.fnmatchcase(part, want) and not (part.startswith(".") and not want.startswith(".")) for part, want in zip(parts, wanted))

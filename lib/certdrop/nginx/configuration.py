"""nginx's configuration, as `nginx -T` prints it: files, directives with file and line, and which server block answers for a name.

A reader, not a judge: whatever it is given it makes something of, and raises nothing. Tokens are cut as nginx cuts them
(ngx_conf_read_token); Lua blocks are passed over. Runs as: anyone. Trusts, reads, writes: nothing.
Debian 12 has no package that does this (python3-crossplane is younger).
"""

from __future__ import annotations

import bisect
import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from certdrop.nginx import expression

DEPTH = 64                         # includes and blocks within each other that are followed
MOST = 500_000                     # directives

_HEADER = re.compile(r"^# configuration file (/.*):$", re.MULTILINE)
_SPACE = " \t\r\n"
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}


class Source(NamedTuple):
    """One file."""

    path: str
    text: str


@dataclass
class Directive:
    """One directive. `start` and `end` are offsets into its file's text, with its `;` or `}`; `line` and `last` the lines of these, from 1."""

    name: str
    args: list[str]
    file: str
    line: int
    start: int
    last: int = 0
    end: int = 0
    block: list[Directive] | None = None

    @property
    def place(self) -> str:
        """FILE:LINE."""
        return f"{self.file}:{self.line}"

    @property
    def value(self) -> str:
        """The first argument, "" where there is none."""
        return self.args[0] if self.args else ""


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
        return next((word for word in self.words if word in ("ssl", "proxy_protocol")), "")


@dataclass
class Server:
    """A server block of the http part, its includes resolved."""

    directive: Directive
    listens: list[Listen]
    names: list[str] = field(default_factory=list)
    inside: list[Directive] = field(default_factory=list)

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


def parse(source: Source) -> list[Directive]:
    """The directives of one file; what is inside a block in `block`. Broken text gives what there is up to where it breaks."""
    top: list[Directive] = []
    open_blocks = [top]
    owners: list[Directive] = []
    words: list[str] = []
    start = count = 0
    lexer = _Lexer(source.text)
    for kind, word, begin, end in lexer:
        if kind == "word":
            start = begin if not words else start
            words.append(word)
            continue
        if kind == "}":
            if owners:
                owners[-1].end, owners[-1].last = end, lexer.line_of(end - 1)
                owners.pop()
                open_blocks.pop()
            words = []
            continue
        if not words:
            continue
        one = Directive(words[0], words[1:], source.path, lexer.line_of(start), start, lexer.line_of(end - 1), end)
        words, count = [], count + 1
        open_blocks[-1].append(one)
        if count >= MOST:
            break
        if kind == "{":
            one.block = []
            if one.name.endswith("_by_lua_block"):
                one.end = lexer.pass_lua()
                one.last = lexer.line_of(one.end - 1)
                continue
            owners.append(one)
            open_blocks.append(one.block if len(owners) <= DEPTH else [])
    for owner in owners:                                   # never closed
        owner.end, owner.last = len(source.text), lexer.line_of(len(source.text))
    return top


class Configuration:
    """All files of a configuration, the main one first."""

    def __init__(self, files: list[Source]) -> None:
        self.parsed = {source.path: parse(source) for source in files}
        self.texts = dict(files)
        self.main = files[0].path if files else "/etc/nginx/nginx.conf"
        self.top = self.expand(self.parsed.get(self.main))
        self.http = [inner for one in self.top if one.name == "http" for inner in self.expand(one.block)]
        self.servers = [self._server(one) for one in self.http if one.name == "server" and one.block is not None]
        self.answers = Answers(self.servers)
        self._set: dict[str, list[Directive]] = {}             # what the http part itself says
        for one in self.http:
            self._set.setdefault(one.name, []).append(one)

    def included(self, pattern: str) -> list[str]:
        """The files that an `include` brings, in the order of glob(3)."""
        path = self._absolute(pattern)
        if path in self.parsed:
            return [path]
        return sorted(known for known in self.parsed if matches(known, path)) if re.search(r"[*?\[]", path) else []

    def patterns(self) -> list[str]:
        """What the http part itself includes, as absolute patterns, whether there is a file or not."""
        return [self._absolute(one.value) for part in self.top if part.name == "http" for one in part.block or [] if one.name == "include"]

    def _absolute(self, pattern: str) -> str:
        return os.path.normpath(os.path.join(os.path.dirname(self.main), pattern))

    def expand(self, block: list[Directive] | None) -> list[Directive]:
        """The directives of a block, what its includes bring in their place."""
        found: list[Directive] = []
        self._into(found, block or [], (), [MOST])
        return found

    def _into(self, found: list[Directive], block: list[Directive], above: tuple[str, ...], left: list[int]) -> None:
        for one in block:
            left[0] -= 1
            if left[0] < 0:
                return
            if one.name != "include":
                found.append(one)
                continue
            for path in self.included(one.value):
                if path not in above and len(above) < DEPTH:
                    self._into(found, self.parsed[path], (*above, path), left)

    def _server(self, one: Directive) -> Server:
        inside = self.expand(one.block)
        listens = [listen(inner.args) for inner in inside if inner.name == "listen" and inner.args]
        names = [name if name.startswith("~") else name.lower() for inner in inside if inner.name == "server_name" for name in inner.args]
        return Server(one, listens or [Listen("*", 80, ())], names or [""], inside)

    def settings(self, server: Server, name: str) -> list[Directive]:
        """The directives of that name that hold in a server block: its own, else those of the http part."""
        return server.all(name) or self._set.get(name, [])


def listen(args: list[str]) -> Listen:
    """What a `listen` says (ngx_parse_url)."""
    where, words = args[0], tuple(args[1:])
    if where.startswith("unix:"):
        return Listen(where, 0, words)
    if where[:1].isdigit() and re.fullmatch(r"\d{1,5}(-\d+)?", where):
        return Listen("*", int(where.partition("-")[0]), words)
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d{1,5})(?:-\d+)?)?", where)
    if found is None:
        return Listen(where, 0, words)
    address = {"0.0.0.0": "*", "": "*", "[::0]": "[::]"}.get(found[1], found[1].lower())
    return Listen(address, int(found[2] or 80), words)


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
            self.exact.setdefault(name, server)
            if name.startswith(("*", ".", "~")) or name.endswith(".*"):
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
            rank = _rank(pattern, name)
            if rank is not None and (best is None or rank > best[0]):
                best = rank, server
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

    def addresses(self, port: int) -> list[str]:
        """The addresses at which somebody listens, IPv4 first, the wildcards as the loopback's."""
        found = {{"*": "127.0.0.1", "[::]": "[::1]"}.get(address, address) for address, at in self._places if at == port}
        return sorted(found, key=lambda address: (address.startswith("["), address))

    def find(self, address: str, port: int, name: str) -> Server | None:
        """The block that answers for a name at an address of this host ("192.0.2.1", "[2001:db8::1]"); None where none listens there.

        An exact address goes before the wildcard. Raises expression.Unknown.
        """
        place = self._at(address, port)
        return place.find(name.lower()) if place else None

    def wrapped(self, address: str, port: int) -> str:
        """The word of `listen` by which plain HTTP is not spoken there, "" where it is."""
        place = self._at(address, port)
        return place.wrapped if place else ""

    def _at(self, address: str, port: int) -> _Place | None:
        place = self._places.get((address, port)) or self._places.get(("[::]" if address.startswith("[") else "*", port))
        if place is None and not address.startswith("["):
            both = self._places.get(("[::]", port))            # `listen [::]:80 ipv6only=off` takes IPv4 too
            place = both if both and both.takes_both else None
        return place


def _rank(pattern: str, name: str) -> tuple[int, int] | None:
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


class _Lexer:
    """Tokens as (kind, word, begin, end): kind is "word", ";", "{" or "}"."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self._lines = [found.start() for found in re.finditer("\n", text)]

    def line_of(self, offset: int) -> int:
        """The line of an offset, from 1."""
        return bisect.bisect_left(self._lines, offset) + 1

    def __iter__(self) -> Iterator[tuple[str, str, int, int]]:
        text = self.text
        while self.at < len(text):
            begin, char = self.at, text[self.at]
            if char in _SPACE:
                self.at += 1
            elif char == "#":
                end = text.find("\n", begin)
                self.at = len(text) if end < 0 else end
            elif char in ";{}":
                self.at += 1
                yield char, char, begin, self.at
            elif char in "\"'":
                word = self._quoted(char)
                yield "word", word, begin, self.at
            else:
                word = self._bare()
                yield "word", word, begin, self.at

    def _quoted(self, quote: str) -> str:
        begin = self.at + 1
        end = begin
        while end < len(self.text) and self.text[end] != quote:
            end += 2 if self.text[end] == "\\" else 1
        self.at = min(end + 1, len(self.text))
        return _plain(self.text[begin:end])

    def _bare(self) -> str:
        text, begin = self.text, self.at
        variable = False
        while self.at < len(text):
            char = text[self.at]
            if char == "{" and variable:
                variable = False
            elif char in _SPACE or char in ";{":
                break
            elif char == "\\":
                self.at += 1
            else:
                variable = char == "$"
            self.at += 1
        self.at = min(self.at, len(text))
        return _plain(text[begin:self.at])

    def pass_lua(self) -> int:
        """Go past a block of Lua, by its braces; the offset after it."""
        depth = 1
        while depth and self.at < len(self.text):
            depth += {"{": 1, "}": -1}.get(self.text[self.at], 0)
            self.at += 1
        return self.at


def _plain(text: str) -> str:
    if "\\" not in text:
        return text
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), text, flags=re.DOTALL)

"""nginx's syntax: a file cut into directives, each with its words and its place.

A reader, not a judge: whatever it is given it makes something of, and raises nothing. Tokens are cut as nginx cuts them
(ngx_conf_read_token); Lua blocks are passed over as OpenResty does (ngx_http_lua_conf_lua_block_parse). One regular expression, without
backtracking, finds the end of each directive, and its words are cut when they are asked for: a host may have 40,000 server blocks.
Runs as: anyone. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

import bisect
import re
from typing import NamedTuple

DEPTH = 64                         # blocks within each other that are read
MOST = 2_000_000                   # directives of one file

_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}
# Each text has one way to match: no search goes back over what it has. (Possessive quantifiers would say so, but Python 3.11.2's are wrong.)
_PASSED = r"[ \t\r\n]*(?:\#[^\n]*(?:\n|\Z)[ \t\r\n]*)*"
_QUOTED = r""" "[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z) | '[^'\\]*(?:\\.[^'\\]*)*(?:'|\\?\Z) """
_BARE = r""" (?=[^ \t\r\n;{}"'\#]) [^ \t\r\n;{\\$]* (?:(?:\\.|\\\Z|\$(?!\{)|\$\{+(?!\{)) [^ \t\r\n;{\\$]*)* (?=[ \t\r\n;{]|\Z)"""
_WORD = f"(?:{_QUOTED}|{_BARE})"
_SPECIAL = re.compile(r"[\"'\\#\x0b\x0c\x1c-\x1f\x7f-\U0010ffff]")
_PLAIN = r"[^;{}\"'\\\#$\x0b\x0c\x1c-\x1f\x7f-\U0010ffff]*"               # words with nothing to take off, and blanks: what most directives are
_FIND = re.compile(rf"""{_PASSED} (?: ([a-z_0-9]+)(?=[ \t\r\n;{{]) {_PLAIN}(?:\$(?!\{{){_PLAIN})* (?:(;)|(\{{)) | (\}})
                        | ({_WORD}) (?:{_PASSED}{_WORD})* {_PASSED} (?:(;)|(\{{)) | [;{{] | (?:{_WORD}{_PASSED})+ | \Z )""", re.VERBOSE | re.DOTALL)
_WORDS = re.compile(rf"\#[^\n]*|({_WORD})", re.VERBOSE | re.DOTALL)
_LUA = re.compile(r"""--\[(=*)\[.*?\]\1\] | --[^\n]* | \[(=*)\[.*?\]\2\] | "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | ([{}])""", re.VERBOSE | re.DOTALL)


class Source(NamedTuple):
    """One file."""

    path: str
    text: str


class Text:
    """A file's text, and the offsets at which its lines end."""

    def __init__(self, source: Source) -> None:
        self.path, self.text = source
        self._ends: list[int] | None = None

    def line_of(self, offset: int) -> int:
        """The line of an offset, from 1."""
        if self._ends is None:
            self._ends = [found.start() for found in re.finditer("\n", self.text)]
        return bisect.bisect_left(self._ends, offset) + 1


class Directive:
    """One directive. `start` and `end` are offsets into its file's text, with its `;` or `}`; `line` and `last` the lines of these, from 1."""

    __slots__ = ("name", "start", "end", "block", "_from", "_rest", "_until", "_args")

    def __init__(self, name: str, text: Text, start: int, rest: int, end: int) -> None:
        self.name, self.start, self.end, self._from, self._rest, self._until = name, start, end, text, rest, end - 1
        self.block: list[Directive] | None = None
        self._args: list[str] | None = None

    def __repr__(self) -> str:
        return f"{self.place}: {' '.join([self.name, *self.args])}"

    @property
    def args(self) -> list[str]:
        """What stands behind its name."""
        if self._args is None:
            rest = self._from.text[self._rest:self._until]
            self._args = [plain(one[1]) for one in _WORDS.finditer(rest) if one[1]] if _SPECIAL.search(rest) else rest.split()
        return self._args

    @property
    def opening(self) -> int:
        """Of one with a block, the offset behind its `{`."""
        return self._until + 1

    @property
    def text(self) -> str:
        """The text of its file."""
        return self._from.text

    @property
    def file(self) -> str:
        """Where it stands."""
        return self._from.path

    @property
    def line(self) -> int:
        """Where it begins."""
        return self._from.line_of(self.start)

    @property
    def last(self) -> int:
        """Where it ends."""
        return self._from.line_of(max(self.start, self.end - 1))

    @property
    def place(self) -> str:
        """FILE:LINE."""
        return f"{self.file}:{self.line}"

    @property
    def value(self) -> str:
        """The first argument, "" where there is none."""
        return self.args[0] if self.args else ""


class Parsed(NamedTuple):
    """The directives of a file; whether there are more, or deeper ones, than are read."""

    top: list[Directive]
    cut: bool = False


def parse(source: Source) -> Parsed:
    """The directives of one file; what is inside a block in `block`. Broken text gives what there is up to where it breaks."""
    text, top = source.text, list[Directive]()
    whole, inside = Text(source), top
    owners, blocks = list[Directive](), [top]
    at, begin, count, cut = 0, -1, 0, False
    while at > begin and count <= MOST:
        begin = at
        for found in _FIND.finditer(text, begin):
            what = found.lastindex
            if what == 2:
                inside.append(Directive(found[1], whole, found.start(1), found.end(1), found.end()))
                count += 1
                if count > MOST:
                    break
            elif what == 4:
                if owners:
                    owners.pop().end = found.end()
                    blocks.pop()
                    inside = blocks[-1]
            elif what is not None:
                end = found.end()
                one = Directive(found[1], whole, found.start(1), found.end(1), end) if what == 3 else \
                    Directive(plain(found[5]), whole, found.start(5), found.end(5), end)
                inside.append(one)
                count += 1
                if what == 6:
                    continue
                one.block = []
                if count > MOST:
                    break
                if one.name.endswith("_by_lua_block"):
                    at = one.end = _after_lua(text, end)
                    break                                      # the expression goes on from there
                owners.append(one)
                cut = cut or len(owners) > DEPTH
                inside = one.block if len(owners) <= DEPTH else []
                blocks.append(inside)
    for owner in owners:                                       # never closed
        owner.end = len(text)
    return Parsed(top, cut or count > MOST)


def _after_lua(text: str, at: int) -> int:
    """The offset after a block of Lua: its strings and comments may have braces, too."""
    depth = 1
    for found in _LUA.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(found[3], 0)
        if not depth:
            return found.end()
    return len(text)


def plain(word: str) -> str:
    """A word as it stands in the text, without its quotes and escapes."""
    if word[:1] in ("'", '"'):
        word = word[1:-1] if word[-1] == word[0] and len(word) > 1 else word[1:]
    return word if "\\" not in word else re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), word, flags=re.DOTALL)

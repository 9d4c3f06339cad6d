"""The location that takes a path.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing. Source: ngx_http_core_module.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from certdrop.nginx.syntax import Directive


def locate(inside: list[Directive], path: str, expand: Callable[[Directive], list[Directive]],
           match: Callable[[str, bool, Directive], bool]) -> tuple[Directive, ...]:
    """ngx_http_core_find_location: the locations that take the path, the outermost first. `match` says whether an expression does."""
    locations = [one for one in inside if one.name == "location" and one.args and one.block is not None]
    best: Directive | None = None
    longest = -1
    for one in locations:
        kind, where = kind_of(one)
        if kind == "=" and where == path:
            return (one,)
        if kind in ("", "^~") and len(where) > longest and not where.startswith("@") and path.startswith(where):
            best, longest = one, len(where)
    inner = locate(expand(best), path, expand, match) if best else ()
    if best and inner and kind_of(inner[-1])[0] in ("~", "~*", "="):
        return (best, *inner)
    if best is None or kind_of(best)[0] != "^~":
        for one in locations:
            kind, where = kind_of(one)
            if kind in ("~", "~*") and match(where, kind == "~*", one):
                return (one, *locate(expand(one), path, expand, match))
    return (best, *inner) if best else ()


def kind_of(one: Directive) -> tuple[str, str]:
    """The modifier of a location, and what it names."""
    if len(one.args) > 1:
        return one.args[0], one.args[1]
    found = re.match(r"(\^~|=|~\*|~)?(.*)", one.value, re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", one.value)


def plain_path(path: str, merges: bool = True) -> str:
    """A path as locations see it (ngx_http_parse_complex_uri): decoded, without dots and empty parts."""
    path = re.sub(r"%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), path)
    parts: list[str] = []
    for part in path.split("/")[1:]:
        if part == "..":
            del parts[-1:]
        elif part != "." and (part or not merges):
            parts.append(part)
    return "/" + "/".join(parts) + ("/" if parts and merges and re.search(r"/(\.\.?)?\Z", path) else "")

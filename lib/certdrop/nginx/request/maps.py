"""What a `map` or a `geo` makes of what it is given.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing. Sources: ngx_http_map_module.c, ngx_http_geo_module.c.
"""

from __future__ import annotations

from collections.abc import Callable

from certdrop.nginx.configuration import rank
from certdrop.nginx.request import addresses
from certdrop.nginx.syntax import Directive


def mapped(inside: list[Directive], source: str | None, match: Callable[[str, str, bool], bool]) -> str | None:
    """The value, its variables not filled in; None where `source` is not known, and more than one value may be."""
    hosts = any(inner.name == "hostnames" for inner in inside)
    default, exact, patterns, expressions = "", dict[str, str](), list[tuple[str, str]](), list[tuple[str, str]]()
    for inner in inside:
        if inner.name in ("hostnames", "volatile") and not inner.args:
            continue
        if inner.name == "default":
            default = inner.value
        elif inner.name.startswith("~"):
            expressions.append((inner.name[1:], inner.value))
        elif hosts and (inner.name.startswith(("*.", ".")) or inner.name.endswith(".*")):
            patterns.append((inner.name.lower(), inner.value))
        else:
            exact.setdefault(inner.name.removeprefix("\\").lower(), inner.value)
    if source is None:
        values = {default, *exact.values(), *(value for _, value in [*patterns, *expressions])}
        return values.pop() if len(values) == 1 else None
    key = source.lower()
    if key in exact:
        return exact[key]
    best = [(how_well, value) for pattern, value in patterns if (how_well := rank(pattern, key)) is not None]
    if best:
        return max(best)[1]
    for pattern, value in expressions if source else ():
        if match(pattern.removeprefix("*"), source, pattern.startswith("*")):
            return value
    return default


def of_an_address(one: Directive, inside: list[Directive]) -> str | None:
    """What a geo has for an address of the Internet that nobody knows; None where it has more than one."""
    if len(one.args) > 1 or any(inner.name == "ranges" for inner in inside):
        return None
    default = next((inner.value for inner in inside if inner.name == "default"), "")
    for inner in inside:
        if inner.name in ("default", "delete", "proxy", "proxy_recursive") or inner.value == default:
            continue
        if addresses.are_of_the_internet(inner.name):
            return None
    return default

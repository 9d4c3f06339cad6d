"""Does what the reader of nginx's configuration advises, word for word, in a configuration's text: advice is a promise, and nginx says whether it helped."""

from __future__ import annotations

import re
from collections.abc import Iterator

from certdrop.nginx import syntax

OWN = """server {{ listen 80; listen [::]:80; server_name {};
include /etc/nginx/snippets/certdrop-challenge.conf; location / {{ return 301 https://$host$request_uri; }} }}
"""


def carried_out(text: str, mend: str, name: str) -> str:
    """The text after it; "" where this is no advice on what to write where. A name that is to have a block of its own gets one at the end of http."""
    top = syntax.parse(syntax.Source("/n", text)).top
    edits: list[tuple[int, int, str]] = []
    for step in mend.split(", and "):
        found = re.fullmatch(r"add to the server block at \S+:(\d+): (.+)", step)
        if found:
            inside = text.index("{", _at(top, "server", found[1]).start) + 1
            edits.append((inside, inside, f" {found[2]} "))
            continue
        found = re.fullmatch(r"put in place of the location at \S+:(\d+): (.+)", step)
        if found:
            one = _at(top, "location", found[1])
            edits.append((one.start, one.end, found[2]))
            continue
        found = re.fullmatch(r"move (the .+) into (?:the location / at \S+:(\d+)|a location / \{ \})", step)
        if found:
            moved = [_at(top, *words) for words in re.findall(r"the (\w+) at \S+:(\d+)", found[1])]
            edits += [(one.start, one.end, "") for one in moved]
            words = " ".join(text[one.start:one.end] for one in moved)
            if found[2]:
                inside = text.index("{", _at(top, "location", found[2]).start) + 1
                edits.append((inside, inside, f" {words} "))
            else:
                block = next(one for one in _all(top) if one.block and moved[0] in one.block)
                edits.append((block.end - 1, block.end - 1, f"location / {{ {words} }} "))
            continue
        found = re.fullmatch(r"add (\S+) to the server_name at \S+:(\d+)", step)
        if found:
            one = _at(top, "server_name", found[2])
            edits.append((one.end - 1, one.end - 1, f" {found[1]}"))
        elif re.match(r"certdrop-nginx \S+ gives the name|put the server block for port 80", step):
            edits.append((text.rindex("}"), text.rindex("}"), OWN.format(name)))
        else:
            return ""
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def _at(top: list[syntax.Directive], name: str, line: str) -> syntax.Directive:
    return next(one for one in _all(top) if one.name == name and one.line == int(line))


def _all(block: list[syntax.Directive]) -> Iterator[syntax.Directive]:
    for one in block:
        yield one
        yield from _all(one.block or [])

"""What is served: a file that try_files or the path names, or what another handler answers; and what the filters make of it.

Runs as: anyone; root in certdrop-check. Trusts, reads: as files.py does. Writes: nothing. Sources: ngx_http_try_files_module.c,
ngx_http_static_module.c, and the filters'.
"""

from __future__ import annotations

import os
import re
from typing import NoReturn

from certdrop.nginx import directives
from certdrop.nginx.expression import Unknown
from certdrop.nginx.request import access, files, values
from certdrop.nginx.request.asked import End
from certdrop.nginx.request.state import Elsewhere, State, Status, words
from certdrop.nginx.syntax import Directive

HANDED_DOWN = ("proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass")      # into limit_except; into `if`, all


def try_files(state: State) -> str | None:
    """NGX_HTTP_PRECONTENT_PHASE: the path of the file that was found, if it is there at all. It is not handed down. Raises Status, Elsewhere."""
    block = state.inside(state.locations[-1]) if state.locations else state.server.inside
    found = next((one for one in block if one.name == "try_files" and len(one.args) > 1), None)
    if found is None or state.inner:
        return None
    for word in found.args[:-1]:
        name = values.text(state, word.rstrip("/") or word)
        path = None if name is None else values.path(state, name)
        if path is None:
            raise Unknown(f"{found.place}: whether {word} is there")
        if files.is_there(state, path, "d" if word.endswith("/") else "f", found):
            return path
    last = found.args[-1]
    if last.startswith("="):
        raise Status(int(last[1:]) if last[1:].isdigit() else 500, found)
    where = values.text(state, last)
    if where is None:
        raise Unknown(f"{found.place}: where {words(found)} leads")
    path, _, args = where.partition("?")
    raise Elsewhere(path, args)


def serve(state: State, tried: str | None, beside: access.Beside) -> NoReturn:
    """NGX_HTTP_CONTENT_PHASE, and what the filters make of it. Raises Over, Status."""
    handler = _handler(state)
    if handler:
        raise state.over("other", 0, "", handler)
    if state.uri.endswith("/") and tried is None:
        raise Status(404)
    root, location = files.root(state)
    if root and root.name == "alias" and location and not state.valid:
        raise Status(500, root)                            # the file that try_files found is mapped again, too
    path = tried if tried is not None else values.path(state)
    if path is None:
        raise Unknown(f"{root.place if root else 'nginx'}: where {words(root) if root else 'root'} leads")
    if not files.is_token(state, path):
        if path.startswith("/") and os.path.isdir(path):
            raise Status(301, root, state.uri + "/")
        if not path.startswith("/") or not os.path.isfile(path):               # the former is below nginx's own prefix
            raise Status(404, root)
        raise state.over("file", state.status or 200, path, root)
    refused = _refuses_links(state, path) or access.is_too_much(state) or _alters(state, beside)
    if refused:
        raise Status(403, refused)
    if state.status not in (0, 200):
        raise state.over("status", state.status, "", state.failed.at if state.failed else root)
    raise state.over("file", 200, path, root)


def _handler(state: State) -> Directive | None:
    """The directive that has something else than files answer there."""
    blocks = [state.inside(state.locations[-1])] if state.locations else [state.server.inside]
    if state.inner:
        within = state.inside(state.inner)
        blocks = [within, [one for one in blocks[0] if state.inner.name == "if" or one.name in HANDED_DOWN]]
    return next((one for block in blocks for one in block if directives.is_handler(one)), None)


def _refuses_links(state: State, path: str) -> Directive | None:
    """The disable_symlinks that refuses a link on this way."""
    found = state.setting("disable_symlinks")
    if not found or found[0].value not in ("on", "if_not_owner"):
        return None
    spared = next((values.text(state, word[5:]) or "" for word in found[0].args if word.startswith("from=")), "").rstrip("/")
    return found[0] if files.refuses_links(path, found[0], spared) else None


def _alters(state: State, beside: access.Beside) -> Directive | None:
    """The filter that would change what is served. A token has no extension, so default_type says what it is."""
    default = state.setting("default_type")
    kind = (values.text(state, default[0].value) or "") if default else "text/plain"
    for name in ("add_before_body", "add_after_body") if not state.is_sub else ():
        for one in state.setting(name):
            if one.value and _is_of_type(state, kind, "addition_types") and not _is_empty(beside(one.value)):
                return one
    for one in state.setting("sub_filter"):
        if _is_of_type(state, kind, "sub_filter_types") and re.fullmatch(r"[A-Za-z0-9._-]+", one.value) and state.guesses.guess(
                ("sub", id(one)), f"{one.place}: whether {words(one)} finds something in a token"):
            return one
    return next((one for one in state.setting("image_filter", "xslt_stylesheet")
                 if one.value != "off" and (one.name == "image_filter" or _is_of_type(state, kind, "xslt_types", "text/xml"))), None)


def _is_empty(end: End) -> bool:
    """Whether an answer has no text; that of an error has one."""
    return end.kind == "status" and 200 <= end.status < 300 and not end.what


def _is_of_type(state: State, kind: str, name: str, usual: str = "text/html") -> bool:
    """Whether a filter is for content of that type."""
    return kind == usual or any(word in (kind, "*") for one in state.setting(name) for word in one.args)

"""Variables, and texts that have some.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing. Sources: ngx_http_variables.c, ngx_http_script.c.
"""

from __future__ import annotations

import os
import re

from certdrop.nginx import expression
from certdrop.nginx.configuration import HOST
from certdrop.nginx.request import files, maps
from certdrop.nginx.request.state import State, words
from certdrop.nginx.syntax import Directive

AGENTS = ("user_agent", "accept", "accept_encoding", "accept_language", "accept_charset", "cache_control", "connection", "from", "pragma", "te")


def match(state: State, pattern: str, text: str | None, ignoring_case: bool, about: Directive | str, forgets: bool = False) -> bool:
    """Whether an expression matches; its groups are kept. One that does not match `forgets` those of the one before, where the rewrite module asks
    (ngx_http_script_regex_start_code).
    """
    if text is None:
        place = f"{about.place}: whether {words(about)} holds" if isinstance(about, Directive) else about
        guessed = state.guesses.guess((pattern, ignoring_case, place), place)
        state.groups = None if guessed else () if forgets else state.groups
        return guessed
    found = expression.match(pattern, text, ignoring_case)
    if found is None:
        state.groups = () if forgets else state.groups
        return False
    state.groups = found.groups
    state.values.update({name.lower(): value for name, value in found.names.items()})
    return True


def text(state: State, raw: str) -> str | None:
    """With its variables filled in; None where one of them is not known."""
    if "$" not in raw:
        return raw
    parts = []
    at = 0
    for found in re.finditer(r"\$(?:\{(\w+)\}|([1-9])|(\w+))", raw, re.ASCII):
        value = variable(state, found[1] or found[2] or found[3])
        if value is None:
            return None
        parts += [raw[at:found.start()], value]
        at = found.end()
    return "".join([*parts, raw[at:]])


def variable(state: State, name: str) -> str | None:
    """Its value; None where it is not known."""
    name = name.lower()
    if re.fullmatch("[1-9]", name):
        return None if state.groups is None else state.groups[int(name)] if int(name) < len(state.groups) else ""
    if name in state.values:
        return state.values[name]
    if name in state.cached:
        return state.cached[name]
    made = state.config.variables.get(name)
    if made is None:
        return builtin(state, name)
    state.cached[name] = _mapped(state, made) if made.name == "map" else maps.of_an_address(made, state.inside(made)) if made.name == "geo" else None
    return state.cached[name]


def _mapped(state: State, one: Directive) -> str | None:
    value = maps.mapped(state.inside(one), text(state, one.value), lambda pattern, source, ignoring_case: match(state, pattern, source, ignoring_case, one))
    return None if value is None else text(state, value)


def builtin(state: State, name: str) -> str | None:
    """One of nginx's own."""
    asked = state.asked
    if name.startswith("arg_"):
        return next((part.partition("=")[2] for part in state.args.split("&") if part.lower().startswith(name[4:] + "=")), "")
    if name.startswith("http_") and name != "http_host":
        return None if name[5:] in AGENTS else ""
    if name.startswith("ssl_"):
        return None if asked.tls else ""
    if name.startswith(("cookie_", "upstream_", "sent_http_", "proxy_protocol_")):
        return ""
    first = state.server.names[0]
    known = {
        "host": asked.name, "http_host": asked.name, "hostname": HOST, "scheme": "https" if asked.tls else "http", "https": "on" if asked.tls else "",
        "server_port": str(asked.port), "server_addr": None if asked.address in ("*", "[::]") else asked.address.strip("[]"),
        "server_name": first[1:] if first.startswith(("~", ".")) else first, "request_uri": state.original, "uri": state.uri,
        "document_uri": state.uri, "args": state.args, "query_string": state.args, "is_args": "?" if state.args else "", "request_method": "GET",
        "request": f"GET {state.original} HTTP/1.1", "server_protocol": "HTTP/1.1", "remote_user": "", "content_length": "", "content_type": "",
        "request_body": "", "request_body_file": "", "http2": None if asked.tls else "", "http3": "", "uid_got": "", "pipe": ".", "request_completion": "",
    }
    if name in known:
        return known[name]
    if name == "invalid_referer":
        valid = state.setting("valid_referers")
        return "" if not valid or any("none" in one.args for one in valid) else "1"
    if name in ("request_filename", "document_root", "realpath_root"):
        return path(state) if name == "request_filename" else root_text(state, name == "realpath_root")
    return "" if name in state.config.assigned else None


def root_text(state: State, real: bool) -> str | None:
    """$document_root, $realpath_root."""
    found, _ = files.root(state)
    value = text(state, found.value) if found else None
    return value and os.path.realpath(value) if real else value


def path(state: State, name: str | None = None) -> str | None:
    """The file of the path, or of `name` (try_files); None where that is not known. Raises Status."""
    found, _ = files.root(state)
    value = text(state, found.value) if found else "html"
    return None if value is None else files.below(state, value, name)

"""The rewrite module: set, if, rewrite, return, break.

Runs as: anyone; root in certdrop-check. Trusts, reads: as files.py does. Writes: nothing. Sources: ngx_http_rewrite_module.c, ngx_http_script.c.
"""

from __future__ import annotations

import re
from typing import NoReturn

from certdrop.nginx.expression import Unknown
from certdrop.nginx.request import files, values
from certdrop.nginx.request.state import State, Status, words
from certdrop.nginx.syntax import Directive

REDIRECTS = (301, 302, 303, 307, 308)


def run(state: State, inside: list[Directive], location: Directive | None) -> bool:
    """Run its directives of a block; whether another location is to be found."""
    changed = [False]
    _run(state, inside, location, changed)
    return changed[0]


def _run(state: State, inside: list[Directive], location: Directive | None, changed: list[bool], top: Directive | None = None) -> bool:
    """Whether the rest is left out."""
    for one in inside:
        if one.name not in ("set", "if", "rewrite", "return", "break") or id(one) in state.passed:
            continue
        state.top = None if location else top or one
        if one.name == "set" and len(one.args) == 2:
            name = one.args[0][1:].lower()
            if name == "args":
                value = values.text(state, one.args[1])
                state.args = value or ""
            else:
                state.values[name] = values.text(state, one.args[1])
        elif one.name == "break":
            state.valid = state.valid and not changed[0]   # ngx_http_script_break_code: as "rewrite ... break"
            changed[0] = False
            return True
        elif one.name == "return":
            _return(state, one)
        elif one.name == "rewrite" and len(one.args) > 1:
            if _rewritten(state, one, changed):
                return True
        elif one.name == "if" and _holds(state, one):
            state.inner = one if location else None
            if _run(state, state.inside(one), location, changed, top or one):
                return True
    return False


def _return(state: State, one: Directive) -> NoReturn:
    """ngx_http_script_return_code, ngx_http_send_response."""
    code, text = one.value, one.args[1] if len(one.args) > 1 else None
    if not re.fullmatch(r"\d{3}", code):
        code, text = "302", one.value
    status = int(code)
    if status in REDIRECTS and text:
        where = values.text(state, text)
        if where is None:
            raise Unknown(f"{one.place}: where {words(one)} leads")
        raise Status(status, one, where)
    if text is not None:
        raise state.over("status", status, values.text(state, text) or "", one)
    raise (Status(status, one) if status >= 300 or status in (201, 204) else state.over("status", status, "", one))


def _rewritten(state: State, one: Directive, changed: list[bool]) -> bool:
    """ngx_http_rewrite: whether it ends the phase."""
    pattern, new, *flags = one.args
    flag = flags[0] if flags else ""
    if not values.match(state, pattern, state.uri, False, one, forgets=True):
        return False
    keeps = not new.endswith("?")
    new = new if keeps else new[:-1]
    text = values.text(state, new)
    leads = new.startswith(("http://", "https://", "$scheme")) or flag in ("redirect", "permanent")
    if text is None:
        raise Unknown(f"{one.place}: where {words(one)} leads")
    state.internal, given = True, state.args
    path, mark, args = text.partition("?")
    if leads:
        tail = (("&" if mark else "?") + given) if keeps and given else ""
        raise Status(301 if flag == "permanent" else 302, one, text + tail)
    state.args = "&".join(part for part in (args if mark else "", given if keeps else "") if part)
    if not path:
        raise Status(500, one)
    state.uri = path
    if state.top:
        state.moved_by.append(state.top)
    changed[0] = flag != "break"
    if flag == "break":
        state.valid = False
    return flag in ("last", "break")


def _holds(state: State, one: Directive) -> bool:
    """ngx_http_rewrite_if_condition: the parentheses come off; a quoted word before the last one is a word of its own."""
    args = one.args
    if not args or not args[0].startswith("(") or not args[-1].endswith(")"):
        return False                                       # nginx refuses it
    parts = [args[0][1:], *args[1:]]
    parts[-1] = parts[-1][:-1]
    parts = parts[0 if parts[0] else 1:None if parts[-1] else -1]
    if len(parts) == 2 and parts[0].lstrip("!") in ("-f", "-d", "-e", "-x"):
        path = values.text(state, parts[1])
        found = _guess(state, one) if path is None else files.is_there(state, path, parts[0][-1], one)
        return found != parts[0].startswith("!")
    if not parts or not parts[0].startswith("$") or len(parts) not in (1, 3):
        return False
    value = values.variable(state, parts[0][1:])
    if len(parts) == 1:
        return _guess(state, one) if value is None else value not in ("", "0")
    _, operator, other = parts
    if operator in ("=", "!="):
        wanted = values.text(state, other)
        found = _guess(state, one) if value is None or wanted is None else value == wanted
        return found == (operator == "=")
    if operator in ("~", "~*", "!~", "!~*"):
        return values.match(state, other, value, operator.endswith("*"), one, forgets=True) != operator.startswith("!")
    return False


def _guess(state: State, one: Directive) -> bool:
    """Whether what an `if` asks is so: nobody knows."""
    return state.guesses.guess((" ".join(one.args).replace("!", ""), state.uri), f"{one.place}: whether {words(one)} holds")

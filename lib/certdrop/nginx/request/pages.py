"""What answers in place of an error, and where a redirect leads.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing. Sources: ngx_http_special_response.c, ngx_http_header_filter_module.c.
"""

from __future__ import annotations

from typing import NoReturn

from certdrop.nginx.expression import Unknown
from certdrop.nginx.request import rewrite, values
from certdrop.nginx.request.state import Elsewhere, State, Status, words


def instead(state: State, status: Status) -> NoReturn:
    """ngx_http_special_response_handler. Raises Over, Elsewhere."""
    state.failed = state.failed or status
    found = state.setting("error_page") if not state.is_page and state.left > 0 else []
    for one in found:
        codes, answer, page = _parts(one.args)
        if status.status not in codes:
            continue
        recursive = state.setting("recursive_error_pages")
        state.is_page = not (recursive and recursive[0].value == "on")
        state.status = status.status if answer is None else answer
        where = values.text(state, page)
        if where is None:
            raise Unknown(f"{one.place}: where {words(one)} leads")
        if where.startswith("@"):
            raise Elsewhere(where)
        if where.startswith("/"):
            path, _, args = where.partition("?")
            raise Elsewhere(path, args)
        raise state.over("redirect", answer if answer in rewrite.REDIRECTS else 302, where, one)
    if status.redirect:
        raise state.over("redirect", status.status, _absolute(state, status.redirect), status.at)
    raise state.over("status", status.status, "", status.at)


def _absolute(state: State, where: str) -> str:
    """ngx_http_header_filter: a path is led by scheme and host."""
    relative, named = state.setting("absolute_redirect"), state.setting("server_name_in_redirect")
    if not where.startswith("/") or (relative and relative[0].value == "off"):
        return where
    host = values.builtin(state, "server_name") if named and named[0].value == "on" else ""
    return f"http{'s' if state.asked.tls else ''}://{host or state.asked.name}{where}"


def _parts(args: list[str]) -> tuple[set[int], int | None, str]:
    """The statuses of an error_page, the status that it answers with (0: that of the page; None: the same), and the page."""
    *codes, page = args or [""]
    answer: int | None = None
    if codes and codes[-1].startswith("="):
        word = codes.pop()[1:]
        answer = int(word) if word.isdigit() else 0
    return {int(code) for code in codes if code.isdigit()}, answer, page

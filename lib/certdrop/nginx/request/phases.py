"""A request's way through nginx's phases: the server block's rewrite directives, one location, that location's own, who may come in, try_files, and
what serves; then error_page.

What hangs on something that nobody can know beforehand (a header, an address, another server's answer) is guessed, and the caller tries each guess.
Runs as: anyone; root in certdrop-check. Trusts: nginx's configuration, which is root's. Reads: whether files that it names are there.
Writes: nothing. Sources: ngx_http_core_module.c, ngx_http_script.c and the modules that each file here names.
"""

from __future__ import annotations

from typing import NoReturn

from certdrop.nginx import directives
from certdrop.nginx.configuration import Configuration, Server
from certdrop.nginx.request import access, content, locations, pages, rewrite, values
from certdrop.nginx.request.asked import Asked, End
from certdrop.nginx.request.state import Elsewhere, Guesses, Over, State, Status


def end(config: Configuration, server: Server, asked: Asked, guesses: Guesses, token: str = "", passed: frozenset[int] = frozenset()) -> End:
    """What becomes of a request in a server block. `token` is the file of the token that is asked for. Raises Unknown."""
    state = State(config, server, asked, guesses, token, passed)
    if asked.name not in server.names:
        _by_name(state)
    return _end(state)


def _end(state: State) -> End:
    path, args = state.uri, state.args
    while True:
        try:
            state.valid = True
            if path.startswith("@"):
                _in_named(state, path)
            state.uri, state.args = path, args
            _from_server(state)
        except Over as over:
            return _checked(state, over.end)
        except Status as status:
            try:
                pages.instead(state, status)
            except Over as over:
                return _checked(state, over.end)
            except Elsewhere as elsewhere:
                path, args = elsewhere.path, elsewhere.query
        except Elsewhere as elsewhere:
            path, args = elsewhere.path, elsewhere.query
        state.left -= 1
        state.internal = True
        if state.left <= 0:
            return _checked(state, state.over("status", 500, "").end)


def _checked(state: State, found: End) -> End:
    """The same. Raises Unknown where a directive holds there of which nothing is known."""
    seen = set[str]()
    for block in [*state.levels(), state.config.strangers]:
        for one in block:
            if one.name not in seen and not directives.is_known(one.name) and one.args != ["off"]:
                if state.guesses.guess(("stranger", id(one)), f"{one.place}: what {one.name} does there is not known"):
                    return End("other", 0, "", one, None, state.locations)
        seen.update(one.name for one in block)             # what holds further in
    return found


def _by_name(state: State) -> None:
    """The groups of the expression by which the server block was chosen."""
    for name in state.server.names:
        if name.startswith("~") and values.match(state, name[1:], state.asked.name, True, name):
            return


def _from_server(state: State) -> NoReturn:
    """NGX_HTTP_SERVER_REWRITE_PHASE, and all behind it."""
    state.locations, state.inner = (), None
    rewrite.run(state, state.server.inside, None)
    state.top = None
    _from_location(state)


def _in_named(state: State, name: str) -> NoReturn:
    """ngx_http_named_location."""
    state.locations, state.inner = (), None
    found = next((one for one in state.server.inside if one.name == "location" and one.args == [name]), None)
    if found is None:
        raise Status(500)
    state.locations = (found,)
    _after_find(state)


def _from_location(state: State) -> NoReturn:
    """NGX_HTTP_FIND_CONFIG_PHASE."""
    state.inner = None
    state.locations = locations.locate(state.server.inside, state.uri, state.inside,
                                       lambda pattern, ignoring_case, one: values.match(state, pattern, state.uri, ignoring_case, one))
    inner = state.locations[-1] if state.locations else None
    if inner and not state.internal and any(one.name == "internal" for one in state.inside(inner)):
        raise Status(404, next(one for one in state.inside(inner) if one.name == "internal"))
    _after_find(state)


def _after_find(state: State) -> NoReturn:
    """NGX_HTTP_REWRITE_PHASE to NGX_HTTP_CONTENT_PHASE."""
    if state.locations:
        inside = state.inside(state.locations[-1])
        limited = next((one for one in inside if one.name == "limit_except" and not {"GET", "HEAD"} & {word.upper() for word in one.args}), None)
        state.inner = limited
        if not limited and rewrite.run(state, inside, state.locations[-1]):
            state.left -= 1
            if state.left <= 0:
                raise Status(500)
            _from_location(state)

    def beside(path: str) -> End:
        return _beside(state, path)

    if not state.is_sub:
        access.pass_in(state, beside)
    content.serve(state, content.try_files(state), beside)


def _beside(state: State, path: str) -> End:
    """What becomes of a request for another path, within this one."""
    beside = State(state.config, state.server, state.asked._replace(path=path), state.guesses, state.token)
    if state.asked.name not in state.server.names:
        _by_name(beside)
    beside.is_sub = beside.internal = True
    beside.original = state.original
    return _end(beside)

"""Which file a path leads to, and whether it is there.

Runs as: anyone; root in certdrop-check. Trusts: nginx's configuration, which is root's. Reads: whether files that it names are there.
Writes: nothing. Source: ngx_http_core_module.c (ngx_http_map_uri_to_path, ngx_http_set_disable_symlinks).
"""

from __future__ import annotations

import os

from certdrop.nginx.request.locations import kind_of
from certdrop.nginx.request.state import State, Status
from certdrop.nginx.syntax import Directive


def root(state: State) -> tuple[Directive | None, Directive | None]:
    """The root or alias that holds, and the location that has the alias."""
    within = [state.inner] if state.inner else []
    for location in (*within, *reversed(state.locations)):
        found = next((one for one in state.inside(location) if one.name in ("root", "alias")), None)
        if found:
            return found, location
    found = next((one for one in [*state.server.all("root"), *state.config.set_for_all("root")]), None)
    return found, None


def below(state: State, text: str, name: str | None) -> str:
    """ngx_http_map_uri_to_path: the file of the path, or of `name` (try_files), where `text` is the root or the alias. Raises Status."""
    found, location = root(state)
    if found is None or found.name == "root" or location is None:
        return f"{text.rstrip('/')}{state.uri if name is None else name}"
    if name is None and not state.valid:
        raise Status(500, found)                           # "alias" cannot be used in a location where the URI was rewritten
    kind, where = kind_of(location)
    if kind in ("~", "~*"):
        return text + (name or "")
    rest = state.uri if name is None else name
    return text + (rest[len(where):] if rest.startswith(where) or name is None else rest)


def is_there(state: State, path: str, what: str, at: Directive) -> bool:
    """Whether a file ("f"), a directory ("d"), or anything ("e") is there; the token is."""
    if is_token(state, path):
        return what in "fe"
    if not path.startswith("/"):                           # below nginx's prefix, where no token is
        return not path.endswith(state.token.rpartition("/")[2]) and state.guesses.guess((path, what), f"{at.place}: whether {path} is there")
    if what == "x":
        return os.access(path, os.X_OK)
    return {"f": os.path.isfile, "d": os.path.isdir, "e": os.path.exists}[what](path)


def is_token(state: State, path: str) -> bool:
    """Whether this is the file of the token that is asked for."""
    folder, _, name = os.path.normpath(path).rpartition("/")
    wanted, _, token = state.token.rpartition("/")
    return bool(token) and name == token and not path.endswith("/") and (folder == wanted or os.path.realpath(folder) == os.path.realpath(wanted))


def refuses_links(path: str, found: Directive, spared: str) -> bool:
    """Whether disable_symlinks refuses a link on this way, but for those in `spared`."""
    at = spared if spared and path.startswith(spared + "/") else ""
    for part in path[len(at):].strip("/").split("/")[:-1]:
        at += "/" + part
        try:
            link, target = os.lstat(at), os.stat(at)
        except OSError:
            return False
        if os.path.islink(at) and (found.value == "on" or link.st_uid != target.st_uid):
            return True
    return False

"""What nginx does with one request, by its configuration: phase after phase, as nginx 1.22 to 1.29 go through them.

The server block's rewrite directives, one location, that location's own, who may come in, try_files, and what serves; then error_page. What
hangs on something that nobody can know beforehand (a header, an address, another server's answer) is guessed, and the caller tries each guess.
Runs as: anyone; root in certdrop-check. Trusts: nginx's configuration, which is root's. Reads: whether files that it names are there.
Writes: nothing. Sources: ngx_http_core_module.c, ngx_http_script.c and the modules that the phases below name.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple, NoReturn

from certdrop.nginx import directives, expression
from certdrop.nginx.configuration import HOST, Configuration, Server
from certdrop.nginx.configuration import rank as rank_of
from certdrop.nginx.expression import Unknown
from certdrop.nginx.syntax import Directive

CYCLES = 10                        # NGX_HTTP_MAX_URI_CHANGES
GUESSES = 6                        # in one request, of which every combination is tried
BURST = 5                          # requests of one CA's right behind each other
REDIRECTS = (301, 302, 303, 307, 308)
AGENTS = ("user_agent", "accept", "accept_encoding", "accept_language", "accept_charset", "cache_control", "connection", "from", "pragma", "te")
HANDED_DOWN = ("proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass")      # into the `if` of a location


class Asked(NamedTuple):
    """A request: the name it is for, the address of this host that it comes to ("*" and "[::]" are any), how, and its path."""

    name: str
    address: str
    path: str
    args: str = ""
    tls: bool = False
    again: bool = False            # right behind another one, that was redirected

    @property
    def port(self) -> int:
        """The port that it comes to."""
        return 443 if self.tls else 80

    @property
    def ipv6(self) -> bool:
        """Whether it comes over IPv6."""
        return self.address.startswith("[")


class End(NamedTuple):
    """What became of it. `kind` is "file" (`what` is its path), "redirect" (`what` is where to), "status" (`what` is the text that comes with it, if
    any) or "other" (another server or program answers). `at` is the directive that made it so, `top` the one of the server block that it is in, if
    that comes before every location; `locations` are those that were chosen, the outermost first."""

    kind: str
    status: int
    what: str
    at: Directive | None = None
    top: Directive | None = None
    locations: tuple[Directive, ...] = ()


class Guesses:
    """What is taken to be so of what cannot be known: first what was given, then always yes. `made` are all of them, `why` what they are about."""

    def __init__(self, given: tuple[bool, ...] = ()) -> None:
        self._given, self._known = given, dict[object, bool]()
        self.made: list[bool] = []
        self.why: list[str] = []

    def guess(self, what: object, why: str) -> bool:
        """The same answer for the same question. Raises Unknown where there are too many."""
        if what not in self._known:
            if len(self.made) >= GUESSES:
                raise Unknown(why)
            self._known[what] = self._given[len(self.made)] if len(self.made) < len(self._given) else True
            self.made.append(self._known[what])
            self.why.append(why)
        return self._known[what]


class _Over(Exception):
    """The request has ended."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end


class _Status(Exception):
    """It is answered with this status, unless an error_page has something else to say."""

    def __init__(self, status: int, at: Directive | None = None, redirect: str = "") -> None:
        super().__init__()
        self.status, self.at, self.redirect = status, at, redirect


class _Elsewhere(Exception):
    """It begins anew within nginx, with this path, or in this named location."""

    def __init__(self, path: str, query: str = "") -> None:
        super().__init__()
        self.path, self.query = path, query


class Request:
    """One request. `serves` says of a path whether that file is there, beside those that are."""

    def __init__(self, config: Configuration, server: Server, asked: Asked, guesses: Guesses, token: str = "", passed: frozenset[int] = frozenset()) -> None:
        self._config, self._server, self._asked, self._guesses, self._token, self._passed = config, server, asked, guesses, token, passed
        merges = config.settings(server, "merge_slashes")
        self._uri, self._args = plain_path(asked.path, not merges or merges[0].value != "off"), asked.args
        self._original = asked.path + (f"?{asked.args}" if asked.args else "")
        self._values: dict[str, str | None] = {}           # of `set` and of named groups
        self._cached: dict[str, str | None] = {}           # of maps
        self._groups: tuple[str, ...] | None = ()          # of the expression that matched last
        self._locations: tuple[Directive, ...] = ()
        self._inner: Directive | None = None               # the `if` or limit_except that holds within the location
        self._left, self._internal, self._moved_by = CYCLES, False, list[Directive]()
        self._status = 0                                   # of the error whose page this is
        self._failed: _Status | None = None
        self._is_page = self._is_sub = self._valid = False
        self._top: Directive | None = None
        if asked.name not in server.names:
            self._by_name()

    def end(self) -> End:
        """What becomes of it. Raises Unknown."""
        path, args = self._uri, self._args
        while True:
            try:
                self._valid = True
                if path.startswith("@"):
                    self._in_named(path)
                self._uri, self._args = path, args
                self._from_server()
            except _Over as over:
                return self._checked(over.end)
            except _Status as status:
                try:
                    self._error_page(status)
                except _Over as over:
                    return self._checked(over.end)
                except _Elsewhere as elsewhere:
                    path, args = elsewhere.path, elsewhere.query
            except _Elsewhere as elsewhere:
                path, args = elsewhere.path, elsewhere.query
            self._left -= 1
            self._internal = True
            if self._left <= 0:
                return self._checked(self._ended("status", 500, "").end)

    # ---- how it ends

    def _ended(self, kind: str, status: int, what: str, at: Directive | None = None) -> _Over:
        early = self._top or (self._moved_by[0] if self._moved_by else None)
        return _Over(End(kind, status, what, at, early, self._locations))

    def _checked(self, end: End) -> End:
        """The same. Raises Unknown where a directive holds there of which nothing is known."""
        seen = set[str]()
        for block in [*self._levels(), self._config.strangers]:
            for one in block:
                if one.name not in seen and not directives.is_known(one.name) and one.args != ["off"]:
                    if self._guesses.guess(("stranger", id(one)), f"{one.place}: what {one.name} does there is not known"):
                        return End("other", 0, "", one, None, self._locations)
            seen.update(one.name for one in block)         # what holds further in
        return end

    def _error_page(self, status: _Status) -> NoReturn:
        """ngx_http_special_response_handler."""
        self._failed = self._failed or status
        found = self._setting("error_page") if not self._is_page and self._left > 0 else []
        for one in found:
            codes, answer, page = _error_codes(one.args)
            if status.status not in codes:
                continue
            recursive = self._setting("recursive_error_pages")
            self._is_page = not (recursive and recursive[0].value == "on")
            self._status = status.status if answer is None else answer
            where = self._text(page)
            if where is None:
                raise Unknown(f"{one.place}: where {_words(one)} leads")
            if where.startswith("@"):
                raise _Elsewhere(where)
            if where.startswith("/"):
                path, _, args = where.partition("?")
                raise _Elsewhere(path, args)
            raise self._ended("redirect", answer if answer in REDIRECTS else 302, where, one)
        if status.redirect:
            raise self._ended("redirect", status.status, self._absolute(status.redirect), status.at)
        raise self._ended("status", status.status, "", status.at)

    def _absolute(self, where: str) -> str:
        """ngx_http_header_filter: a path is led by scheme and host."""
        relative, named = self._setting("absolute_redirect"), self._setting("server_name_in_redirect")
        if not where.startswith("/") or (relative and relative[0].value == "off"):
            return where
        host = self._builtin("server_name") if named and named[0].value == "on" else ""
        return f"http{'s' if self._asked.tls else ''}://{host or self._asked.name}{where}"

    # ---- the phases

    def _by_name(self) -> None:
        """The groups of the expression by which the server block was chosen."""
        for name in self._server.names:
            if name.startswith("~") and self._match(name[1:], self._asked.name, True, name):
                return

    def _from_server(self) -> NoReturn:
        """NGX_HTTP_SERVER_REWRITE_PHASE, and all behind it."""
        self._locations, self._inner = (), None
        self._rewrite(self._server.inside, None)
        self._top = None
        self._from_location()

    def _in_named(self, name: str) -> NoReturn:
        """ngx_http_named_location."""
        self._locations, self._inner = (), None
        found = next((one for one in self._server.inside if one.name == "location" and one.args == [name]), None)
        if found is None:
            raise _Status(500)
        self._locations = (found,)
        self._after_find()

    def _from_location(self) -> NoReturn:
        """NGX_HTTP_FIND_CONFIG_PHASE."""
        self._inner = None
        self._locations = self._locate(self._server.inside)
        inner = self._locations[-1] if self._locations else None
        if inner and not self._internal and any(one.name == "internal" for one in self._inside(inner)):
            raise _Status(404, next(one for one in self._inside(inner) if one.name == "internal"))
        self._after_find()

    def _after_find(self) -> NoReturn:
        """NGX_HTTP_REWRITE_PHASE to NGX_HTTP_CONTENT_PHASE."""
        if self._locations:
            inside = self._inside(self._locations[-1])
            limited = next((one for one in inside if one.name == "limit_except" and not {"GET", "HEAD"} & {word.upper() for word in one.args}), None)
            self._inner = limited
            if not limited and self._rewrite(inside, self._locations[-1]):
                self._left -= 1
                if self._left <= 0:
                    raise _Status(500)
                self._from_location()
        if not self._is_sub:
            self._access()
        path = self._try_files()
        self._content(path)

    def _inside(self, one: Directive) -> list[Directive]:
        return self._config.expand(one.block)

    def _levels(self) -> list[list[Directive]]:
        """The blocks whose settings hold, the innermost first; but for http's."""
        within = [self._inner] if self._inner else []
        return [*(self._inside(one) for one in (*within, *reversed(self._locations))), self._server.inside]

    def _setting(self, *names: str) -> list[Directive]:
        """The directives of these names, where the innermost block that has any has them."""
        for block in self._levels():
            found = [one for one in block if one.name in names]
            if found:
                return found
        return [one for name in names for one in self._config.set_for_all(name)]

    # ---- ngx_http_rewrite_module

    def _rewrite(self, inside: list[Directive], location: Directive | None) -> bool:
        """Run its directives of a block; whether another location is to be found."""
        changed = [False]
        self._run(inside, location, changed)
        return changed[0]

    def _run(self, inside: list[Directive], location: Directive | None, changed: list[bool], top: Directive | None = None) -> bool:
        """Whether the rest is left out."""
        for one in inside:
            if one.name not in ("set", "if", "rewrite", "return", "break") or id(one) in self._passed:
                continue
            self._top = None if location else top or one
            if one.name == "set" and len(one.args) == 2:
                name = one.args[0][1:].lower()
                if name == "args":
                    value = self._text(one.args[1])
                    self._args = value or ""
                else:
                    self._values[name] = self._text(one.args[1])
            elif one.name == "break":
                changed[0] = False
                return True
            elif one.name == "return":
                self._return(one)
            elif one.name == "rewrite" and len(one.args) > 1:
                if self._rewritten(one, changed):
                    return True
            elif one.name == "if" and self._holds(one):
                self._inner = one if location else None
                if self._run(self._inside(one), location, changed, top or one):
                    return True
        return False

    def _return(self, one: Directive) -> NoReturn:
        """ngx_http_script_return_code, ngx_http_send_response."""
        code, text = one.value, one.args[1] if len(one.args) > 1 else None
        if not re.fullmatch(r"\d{3}", code):
            code, text = "302", one.value
        status = int(code)
        if status in REDIRECTS and text:
            where = self._text(text)
            if where is None:
                raise Unknown(f"{one.place}: where {_words(one)} leads")
            raise _Status(status, one, where)
        if text is not None:
            raise self._ended("status", status, self._text(text) or "", one)
        raise (_Status(status, one) if status >= 300 or status in (201, 204) else self._ended("status", status, "", one))

    def _rewritten(self, one: Directive, changed: list[bool]) -> bool:
        """ngx_http_rewrite: whether it ends the phase."""
        pattern, new, *flags = one.args
        flag = flags[0] if flags else ""
        if not self._match(pattern, self._uri, False, one):
            return False
        keeps = not new.endswith("?")
        new = new if keeps else new[:-1]
        text = self._text(new)
        leads = new.startswith(("http://", "https://", "$scheme")) or flag in ("redirect", "permanent")
        if text is None:
            raise Unknown(f"{one.place}: where {_words(one)} leads")
        self._internal, given = True, self._args
        path, mark, args = text.partition("?")
        if leads:
            tail = (("&" if mark else "?") + given) if keeps and given else ""
            raise _Status(301 if flag == "permanent" else 302, one, text + tail)
        self._args = "&".join(part for part in (args if mark else "", given if keeps else "") if part)
        if not path:
            raise _Status(500, one)
        self._uri = path
        if self._top:
            self._moved_by.append(self._top)
        changed[0] = flag != "break"
        if flag == "break":
            self._valid = False
        return flag in ("last", "break")

    def _holds(self, one: Directive) -> bool:
        """ngx_http_rewrite_if_condition: the parentheses come off; a quoted word before the last one is a word of its own."""
        args = one.args
        if not args or not args[0].startswith("(") or not args[-1].endswith(")"):
            return False                                   # nginx refuses it
        words = [args[0][1:], *args[1:]]
        words[-1] = words[-1][:-1]
        words = words[0 if words[0] else 1:None if words[-1] else -1]
        if len(words) == 2 and words[0].lstrip("!") in ("-f", "-d", "-e", "-x"):
            path = self._text(words[1])
            found = self._guess(one) if path is None else self._is_there(path, words[0][-1], one)
            return found != words[0].startswith("!")
        if not words or not words[0].startswith("$") or len(words) not in (1, 3):
            return False
        value = self._variable(words[0][1:])
        if len(words) == 1:
            return self._guess(one) if value is None else value not in ("", "0")
        _, operator, other = words
        if operator in ("=", "!="):
            wanted = self._text(other)
            found = self._guess(one) if value is None or wanted is None else value == wanted
            return found == (operator == "=")
        if operator in ("~", "~*", "!~", "!~*"):
            return self._match(other, value, operator.endswith("*"), one) != operator.startswith("!")
        return False

    def _guess(self, one: Directive) -> bool:
        """Whether what an `if` asks is so: nobody knows."""
        return self._guesses.guess((" ".join(one.args).replace("!", ""), self._uri), f"{one.place}: whether {_words(one)} holds")

    def _match(self, pattern: str, text: str | None, ignoring_case: bool, about: Directive | str) -> bool:
        """Whether an expression matches; its groups are kept."""
        if text is None:
            place = f"{about.place}: whether {_words(about)} holds" if isinstance(about, Directive) else about
            self._groups = None if self._guesses.guess((pattern, ignoring_case, place), place) else self._groups
            return self._groups is None
        found = expression.match(pattern, text, ignoring_case)
        if found is None:
            return False
        self._groups = found.groups
        self._values.update({name.lower(): value for name, value in found.names.items()})
        return True

    # ---- values

    def _text(self, text: str) -> str | None:
        """With its variables filled in; None where one of them is not known."""
        if "$" not in text:
            return text
        parts = []
        at = 0
        for found in re.finditer(r"\$(?:\{(\w+)\}|([1-9])|(\w+))", text, re.ASCII):
            value = self._variable(found[1] or found[2] or found[3])
            if value is None:
                return None
            parts += [text[at:found.start()], value]
            at = found.end()
        return "".join([*parts, text[at:]])

    def _variable(self, name: str) -> str | None:
        name = name.lower()
        if re.fullmatch("[1-9]", name):
            return None if self._groups is None else self._groups[int(name)] if int(name) < len(self._groups) else ""
        if name in self._values:
            return self._values[name]
        if name in self._cached:
            return self._cached[name]
        made = self._config.variables.get(name)
        if made is None:
            return self._builtin(name)
        self._cached[name] = self._map(made) if made.name == "map" else self._geo(made) if made.name == "geo" else None
        return self._cached[name]

    def _builtin(self, name: str) -> str | None:
        asked, server = self._asked, self._server
        if name.startswith("arg_"):
            return next((part.partition("=")[2] for part in self._args.split("&") if part.lower().startswith(name[4:] + "=")), "")
        if name.startswith("http_") and name != "http_host":
            return None if name[5:] in AGENTS else ""
        if name.startswith("ssl_"):
            return None if asked.tls else ""
        if name.startswith(("cookie_", "upstream_", "sent_http_", "proxy_protocol_")):
            return ""
        first = server.names[0]
        known = {
            "host": asked.name, "http_host": asked.name, "hostname": HOST, "scheme": "https" if asked.tls else "http", "https": "on" if asked.tls else "",
            "server_port": str(asked.port), "server_addr": None if asked.address in ("*", "[::]") else asked.address.strip("[]"),
            "server_name": first[1:] if first.startswith(("~", ".")) else first, "request_uri": self._original, "uri": self._uri,
            "document_uri": self._uri, "args": self._args, "query_string": self._args, "is_args": "?" if self._args else "", "request_method": "GET",
            "request": f"GET {self._original} HTTP/1.1", "server_protocol": "HTTP/1.1", "remote_user": "", "content_length": "", "content_type": "",
            "request_body": "", "request_body_file": "", "http2": None if asked.tls else "", "http3": "", "uid_got": "", "pipe": ".", "request_completion": "",
        }
        if name in known:
            return known[name]
        if name == "invalid_referer":
            valid = self._setting("valid_referers")
            return "" if not valid or any("none" in one.args for one in valid) else "1"
        if name in ("request_filename", "document_root", "realpath_root"):
            return self._path() if name == "request_filename" else self._root_text(name == "realpath_root")
        return "" if name in self._config.assigned else None

    def _map(self, one: Directive) -> str | None:
        """ngx_http_map_module."""
        source = self._text(one.value)
        inside = self._inside(one)
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
            return self._text(values.pop()) if len(values) == 1 else None
        key = source.lower()
        if key in exact:
            return self._text(exact[key])
        best = [(rank, value) for pattern, value in patterns if (rank := rank_of(pattern, key)) is not None]
        if best:
            return self._text(max(best)[1])
        for pattern, value in expressions if source else ():
            if self._match(pattern.removeprefix("*"), source, pattern.startswith("*"), one):
                return self._text(value)
        return self._text(default)

    def _geo(self, one: Directive) -> str | None:
        """ngx_http_geo_module, for an address of the Internet that nobody knows."""
        inside = self._inside(one)
        if len(one.args) > 1 or any(inner.name == "ranges" for inner in inside):
            return None
        default = next((inner.value for inner in inside if inner.name == "default"), "")
        for inner in inside:
            if inner.name in ("default", "delete", "proxy", "proxy_recursive") or inner.value == default:
                continue
            if _is_of_the_internet(inner.name):
                return None
        return default

    # ---- locations and files

    def _locate(self, inside: list[Directive]) -> tuple[Directive, ...]:
        """ngx_http_core_find_location: the locations that take the path, the outermost first."""
        locations = [one for one in inside if one.name == "location" and one.args and one.block is not None]
        best: Directive | None = None
        longest = -1
        for one in locations:
            kind, where = kind_of(one)
            if kind == "=" and where == self._uri:
                return (one,)
            if kind in ("", "^~") and len(where) > longest and not where.startswith("@") and self._uri.startswith(where):
                best, longest = one, len(where)
        inner = self._locate(self._inside(best)) if best else ()
        if best and inner and kind_of(inner[-1])[0] in ("~", "~*", "="):
            return (best, *inner)
        if best is None or kind_of(best)[0] != "^~":
            for one in locations:
                kind, where = kind_of(one)
                if kind in ("~", "~*") and self._match(where, self._uri, kind == "~*", one):
                    return (one, *self._locate(self._inside(one)))
        return (best, *inner) if best else ()

    def _root(self) -> tuple[Directive | None, Directive | None]:
        """The root or alias that holds, and the location that has the alias."""
        within = [self._inner] if self._inner else []
        for location in (*within, *reversed(self._locations)):
            found = next((one for one in self._inside(location) if one.name in ("root", "alias")), None)
            if found:
                return found, location
        found = next((one for one in [*self._server.all("root"), *self._config.set_for_all("root")]), None)
        return found, None

    def _root_text(self, real: bool) -> str | None:
        found, _ = self._root()
        text = self._text(found.value) if found else None
        return text and os.path.realpath(text) if real else text

    def _path(self, name: str | None = None) -> str | None:
        """ngx_http_map_uri_to_path: the file of the path, or of `name` (try_files); None where that is not known. Raises _Status."""
        found, location = self._root()
        text = self._text(found.value) if found else "html"
        if text is None:
            return None
        if found is None or found.name == "root" or location is None:
            return f"{text.rstrip('/')}{self._uri if name is None else name}"
        if name is None and not self._valid:
            raise _Status(500, found)                      # "alias" cannot be used in a location where the URI was rewritten
        kind, where = kind_of(location)
        if kind in ("~", "~*"):
            return text + (name or "")
        rest = self._uri if name is None else name
        return text + (rest[len(where):] if rest.startswith(where) or name is None else rest)

    def _is_there(self, path: str, what: str, at: Directive) -> bool:
        """Whether a file ("f"), a directory ("d"), or anything ("e") is there; the token is."""
        if self._is_token(path):
            return what in "fe"
        if not path.startswith("/"):                       # below nginx's prefix, where no token is
            return not path.endswith(self._token.rpartition("/")[2]) and self._guesses.guess((path, what), f"{at.place}: whether {path} is there")
        if what == "x":
            return os.access(path, os.X_OK)
        return {"f": os.path.isfile, "d": os.path.isdir, "e": os.path.exists}[what](path)

    def _is_token(self, path: str) -> bool:
        folder, _, name = os.path.normpath(path).rpartition("/")
        wanted, _, token = self._token.rpartition("/")
        return bool(token) and name == token and (folder == wanted or os.path.realpath(folder) == os.path.realpath(wanted))

    # ---- who may come in

    def _access(self) -> None:
        """NGX_HTTP_ACCESS_PHASE: by address, by password, by another's word, in this order."""
        satisfy = self._setting("satisfy")
        anyhow = bool(satisfy) and satisfy[0].value == "any"
        refused: _Status | None = None
        for check in (self._by_address, self._by_password, self._by_request):
            found = check()
            if found is True and anyhow:
                return
            if isinstance(found, _Status):
                if not anyhow:
                    raise found
                refused = refused or found
        if refused:
            raise refused

    def _by_address(self) -> _Status | bool | None:
        """ngx_http_access_module: True where it lets in, None where it has nothing to say. A CA comes from the Internet."""
        for one in self._setting("allow", "deny"):
            value, lets_in = one.value, one.name == "allow"
            if value == "all":
                return True if lets_in else _Status(403, one)
            network = _network(value)
            if network is None or (network.version == 6) != self._asked.ipv6 or not _is_of_the_internet(value):
                continue
            if network.prefixlen == 0:
                return True if lets_in else _Status(403, one)
            if self._guesses.guess(("from", value), f"{one.place}: whether the CA comes from {value}"):
                return True if lets_in else _Status(403, one)
        return None

    def _by_password(self) -> _Status | bool | None:
        """ngx_http_auth_basic_module, and the like."""
        realm, users = self._setting("auth_basic"), self._setting("auth_basic_user_file")
        if realm and users and self._text(realm[0].value) != "off":
            return _Status(401, realm[0])
        token = self._setting("auth_jwt", "auth_digest", "auth_gss", "auth_pam", "auth_ldap")
        if token and token[0].value != "off":
            return _Status(401, token[0])
        return None

    def _by_request(self) -> _Status | bool | None:
        """ngx_http_auth_request_module."""
        found = self._setting("auth_request")
        if not found or found[0].value == "off":
            return None
        where = self._text(found[0].value)
        if where is None:
            raise Unknown(f"{found[0].place}: what {_words(found[0])} asks")
        sub = Request(self._config, self._server, self._asked._replace(path=where.partition("?")[0]), self._guesses, self._token)
        sub._is_sub = sub._internal = True
        sub._original = self._original
        end = sub.end()
        if end.kind in ("other", "redirect", "file"):
            why = f"{found[0].place}: what {_words(found[0])} answers"
            return True if end.kind != "redirect" and self._guesses.guess(("auth", where), why) else _Status(403, found[0])
        return True if 200 <= end.status < 300 else _Status(end.status if end.status in (401, 403) else 500, found[0])

    # ---- what is served

    def _try_files(self) -> str | None:
        """NGX_HTTP_PRECONTENT_PHASE: the path of the file that was found, if it is there at all. It is not handed down."""
        block = self._inside(self._locations[-1]) if self._locations else self._server.inside
        found = next((one for one in block if one.name == "try_files" and len(one.args) > 1), None)
        if found is None or self._inner:
            return None
        for word in found.args[:-1]:
            name = self._text(word.rstrip("/") or word)
            path = None if name is None else self._path(name)
            if path is None:
                raise Unknown(f"{found.place}: whether {word} is there")
            if self._is_there(path, "d" if word.endswith("/") else "f", found):
                return path
        last = found.args[-1]
        if last.startswith("="):
            raise _Status(int(last[1:]) if last[1:].isdigit() else 500, found)
        where = self._text(last)
        if where is None:
            raise Unknown(f"{found.place}: where {_words(found)} leads")
        path, _, args = where.partition("?")
        raise _Elsewhere(path, args)

    def _content(self, tried: str | None) -> NoReturn:
        """NGX_HTTP_CONTENT_PHASE, and what the filters make of it."""
        handler = self._handler()
        if handler:
            raise self._ended("other", 0, "", handler)
        if self._uri.endswith("/") and tried is None:
            raise _Status(404)
        root, location = self._root()
        if root and root.name == "alias" and location and not self._valid:
            raise _Status(500, root)                       # the file that try_files found is mapped again, too
        path = tried if tried is not None else self._path()
        if path is None:
            raise Unknown(f"{root.place if root else 'nginx'}: where {_words(root) if root else 'root'} leads")
        if not self._is_token(path):
            if not path.startswith("/") or not os.path.isfile(path):           # the former is below nginx's own prefix
                raise _Status(404, root)
            raise self._ended("file", self._status or 200, path, root)
        refused = self._refuses_links(path) or self._is_too_much() or self._alters()
        if refused:
            raise _Status(403, refused)
        if self._status not in (0, 200):
            raise self._ended("status", self._status, "", self._failed.at if self._failed else root)
        raise self._ended("file", 200, path, root)

    def _handler(self) -> Directive | None:
        """The directive that has something else than files answer there."""
        blocks = [self._inside(self._locations[-1])] if self._locations else [self._server.inside]
        if self._inner:
            within = self._inside(self._inner)
            blocks = [within, [one for one in blocks[0] if one.name in HANDED_DOWN]]
        return next((one for block in blocks for one in block if directives.is_handler(one)), None)

    def _refuses_links(self, path: str) -> Directive | None:
        """The disable_symlinks that refuses a link on this way (ngx_http_set_disable_symlinks)."""
        found = self._setting("disable_symlinks")
        if not found or found[0].value not in ("on", "if_not_owner"):
            return None
        spared = next((self._text(word[5:]) or "" for word in found[0].args if word.startswith("from=")), "").rstrip("/")
        at = spared if spared and path.startswith(spared + "/") else ""
        for part in path[len(at):].strip("/").split("/")[:-1]:
            at += "/" + part
            try:
                link, target = os.lstat(at), os.stat(at)
            except OSError:
                return None
            if os.path.islink(at) and (found[0].value == "on" or link.st_uid != target.st_uid):
                return found[0]
        return None

    def _is_too_much(self) -> Directive | None:
        """The limit_req that may refuse a request right behind another, as after a redirect; or for the sake of others', if it counts them together."""
        zones = {word.removeprefix("zone=").partition(":")[0]: one.value for one in self._config.set_for_all("limit_req_zone") for word in one.args[1:]}
        dry = self._setting("limit_req_dry_run")
        for one in self._setting("limit_req") if not dry or dry[0].value != "on" else ():
            burst = next((int(word[6:]) for word in one.args if re.fullmatch(r"burst=\d{1,6}", word)), 0)
            zone = next((word[5:] for word in one.args if word.startswith("zone=")), "")
            alone = "remote_addr" in zones.get(zone, "") and not self._asked.again
            why = f"{one.place}: whether {_words(one)} refuses a request right behind another"
            if burst < BURST and not alone and self._guesses.guess(("limit", id(one)), why):
                return one
        return None

    def _alters(self) -> Directive | None:
        """The filter that would change what is served. A token has no extension, so default_type says what it is."""
        default = self._setting("default_type")
        kind = (self._text(default[0].value) or "") if default else "text/plain"
        for name in ("add_before_body", "add_after_body"):
            for one in self._setting(name):
                if one.value and self._is_of_type(kind, "addition_types"):
                    return one
        for one in self._setting("sub_filter"):
            if self._is_of_type(kind, "sub_filter_types") and re.fullmatch(r"[A-Za-z0-9._-]+", one.value) and self._guesses.guess(
                    ("sub", id(one)), f"{one.place}: whether {_words(one)} finds something in a token"):
                return one
        return next((one for one in self._setting("image_filter", "xslt_stylesheet")
                     if one.value != "off" and (one.name == "image_filter" or self._is_of_type(kind, "xslt_types", "text/xml"))), None)

    def _is_of_type(self, kind: str, name: str, usual: str = "text/html") -> bool:
        """Whether a filter is for content of that type."""
        return kind == usual or any(word in (kind, "*") for one in self._setting(name) for word in one.args)


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


def kind_of(one: Directive) -> tuple[str, str]:
    """The modifier of a location, and what it names."""
    if len(one.args) > 1:
        return one.args[0], one.args[1]
    found = re.match(r"(\^~|=|~\*|~)?(.*)", one.value, re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", one.value)


def _words(one: Directive) -> str:
    return " ".join([one.name, *one.args])[:120]


def _error_codes(args: list[str]) -> tuple[set[int], int | None, str]:
    """The statuses of an error_page, the status that it answers with (0: that of the page; None: the same), and the page."""
    *codes, page = args or [""]
    answer: int | None = None
    if codes and codes[-1].startswith("="):
        word = codes.pop()[1:]
        answer = int(word) if word.isdigit() else 0
    return {int(code) for code in codes if code.isdigit()}, answer, page


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_of_the_internet(text: str) -> bool:
    """Whether a network may have an address of a CA's."""
    network = _network(text)
    return network is not None and (network.prefixlen < 8 or network.is_global)

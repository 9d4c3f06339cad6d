"""What is to be put into the server blocks that nginx has, for a site to answer challenges and HTTPS there: as new texts of their files.

An editor of texts, by the offsets that the reader found: it inserts one stretch of lines behind the `{` of a server block, sets certificates of
others aside as comments, and touches nothing else. The stretch names its site and has a checksum, so that it can be found, made anew and taken out
again: what is left then is the text as it was. Before a change is offered the reader reads the new texts, and whatever answered must answer as before.
What it does not understand it refuses, by file and line. Runs as: anyone. Trusts: nginx's configuration, which is root's. Reads: the snippets.
Writes: nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from certdrop.config import site
from certdrop.nginx import challenge, expression, snippets
from certdrop.nginx.blocks import HSTS, Build, Refused
from certdrop.nginx.configuration import Configuration, Server, listened, rank
from certdrop.nginx.syntax import Directive, Source

TLS = "/etc/nginx/snippets/certdrop-tls.conf"
SETTINGS = {"ssl_protocols", "ssl_ciphers", "ssl_prefer_server_ciphers", "ssl_session_timeout", "ssl_session_cache", "ssl_session_tickets", "ssl_ecdh_curve"}
STRANGER = "certdrop-looks-for-the-default.invalid"
EARLY = {"return", "rewrite", "if", "break", "set"}            # what the rewrite module has run before a location is looked for
BEHIND = "; what follows stood behind the brace"


Pieces = list[tuple[int, str]]     # what is put where


class NoBlock(Exception):
    """None of the names has a server block."""


class Wanted(NamedTuple):
    """What is wanted for the sites that share their names."""

    names: Sequence[str]           # of the sites
    domains: Sequence[str]         # as hosts
    build: Build
    tls: bool = True               # not only challenges: for what has a certificate
    redirect: bool = True
    hsts: bool = False
    more: Sequence[str] = ()       # domains that the site's block is to have, where no block has them
    pending: Sequence[str] = ()    # domains for which the live certificate is not yet: http does not lead to https

    @property
    def name(self) -> str:
        """The site whose name the lines bear."""
        return self.names[0]

    @property
    def lives(self) -> list[str]:
        """The files that name the sites' key and certificate."""
        return [f"{site.STATE}/live/{name}/nginx.conf" for name in self.names]


class Change(NamedTuple):
    """A file's text, and what it is to be."""

    path: str
    old: str
    new: str


class Found(NamedTuple):
    """The lines of a site in a text: what they say, and the text without them."""

    inside: str
    rest: str


def bears(text: str, name: str) -> bool:
    """Whether a text has lines of certdrop's for a site."""
    return f"# certdrop {name} " in text


def borne(text: str) -> set[str]:
    """The sites for which a text has lines of certdrop's."""
    return set(re.findall(r"# certdrop (\S+) ", text)) if "# certdrop " in text else set()


def found(path: str, text: str, name: str) -> Found:
    """What certdrop wrote for a site into this text. Raises Refused where somebody edited it since."""
    inside, rest = _found(path, text, {name})
    return Found("".join(inside.get(name, [])), rest)


def _found(path: str, text: str, names: Collection[str]) -> tuple[dict[str, list[str]], str]:
    """The same for several sites: what it says for each, and the text without any."""
    inside: dict[str, list[str]] = {}

    def out(match: re.Match[str]) -> str:
        if match["name"] not in names:
            return match[0]
        if _sum(match["inside"]) != match["sum"]:
            raise _edited(path, text[:match.start()].count("\n") + 2, match["name"])
        inside.setdefault(match["name"], []).append(match["inside"])
        return match["break"] if match["break"] and text[match.start() - 1:match.start()] != "{" else ""       # else a comment would take it in
    if "# certdrop " not in text:
        return inside, text
    mark = re.escape(*names) if len(names) == 1 else r"\S+"
    rest = re.sub(rf"\r?\n[ \t]*# certdrop (?P<name>{mark}) (?P<sum>[0-9a-f]{{8}}): [^\n]*\n(?P<inside>(?:(?![ \t]*# certdrop (?P=name) )[^\n]*\n)*)"
                  rf"[ \t]*# certdrop (?P=name) ends(?:{BEHIND}(?P<break>\r?\n))?", out, text)
    rest = re.sub(rf"^([ \t]*)# certdrop ({mark}) keeps: ", lambda match: match[1] if match[2] in names else match[0], rest, flags=re.M)
    for left in re.finditer(rf"# certdrop ({mark}) ", rest):
        if left[1] in names:
            raise _edited(path, rest[:left.start()].count("\n") + 1, left[1])
    return inside, rest


def _edited(path: str, line: int, name: str) -> Refused:
    return Refused(f"{name}: {path}:{line}: these lines are certdrop's, and were edited since; nothing was changed; take them out by hand, "
                   f"then run this again")


def _sum(text: str) -> str:
    return hashlib.sha256("".join(text.split("\r")).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def without(config: Configuration, name: str) -> tuple[Configuration, str]:
    """The configuration as it is without a site's lines; and these lines. Raises Refused."""
    plain, lines = _without(config, {name})
    return plain, lines.get(name, "")


def _without(config: Configuration, names: Collection[str]) -> tuple[Configuration, dict[str, str]]:
    lines, texts = dict[str, str](), list[Source]()
    for path, text in config.texts.items():
        inside, rest = _found(path, text, names)
        for name, those in inside.items():
            lines[name] = lines.get(name, "") + "".join(those)
        texts.append(Source(path, rest))
    return (config if not lines and texts == [Source(*pair) for pair in config.texts.items()] else Configuration(texts)), lines


def changes(config: Configuration, wanted: Wanted) -> list[Change]:
    """The files to change, with their new texts; none where all is as wanted. Raises Refused; NoBlock where no block has one of the names."""
    _refuse_cut(config, wanted)
    plain, lines = without(config, wanted.name)
    wanted, texts = _as_before(wanted, lines), dict[str, str]()
    try:
        texts = _changed(plain, [wanted.name], _edits(plain, wanted))
        after = _read(plain, texts)
        try:
            _refuse_what_changes(plain, after, wanted)
        except _AsChanged as refused:
            raise Refused(placed(str(refused), texts, plain.texts)) from refused
    except Refused as refused:
        raise Refused(placed(str(refused), plain.texts, config.texts)) from refused
    return _differing(config, {**plain.texts, **texts})


class Apart(Exception):
    """What these need together cannot be told: each is to be looked at by itself."""


def of_all(config: Configuration, wishes: Sequence[Wanted]) -> tuple[list[Change], dict[str, Refused | NoBlock]]:
    """The same for several sites in one go; if some are refused, no changes, and why, by the site's name. Raises Apart.

    The work grows with the configuration, not with its square. What is decided is decided as for each alone, which is where it is explained.
    """
    names, refused = [one.name for one in wishes], dict[str, Refused | NoBlock]()
    edited: dict[str, Pieces] = {}
    for wanted in wishes[:1]:
        _refuse_cut(config, wanted)
    try:
        plain, lines = _without(config, {*names})
        wishes = [_as_before(one, lines.get(one.name, "")) for one in wishes]
        for wanted in wishes:
            try:
                for path, pieces in _edits(plain, wanted).items():
                    edited.setdefault(path, []).extend(pieces)
            except (Refused, NoBlock) as why:
                refused[wanted.name] = why if isinstance(why, NoBlock) else Refused(placed(str(why), plain.texts, config.texts))
        if refused:
            return [], refused
        if any(len({at for at, _ in pieces}) != len(pieces) for pieces in edited.values()):
            raise Apart()                      # two sites in a block: the second is to see what the first has put there
        new = {place for pieces in edited.values() for _, piece in pieces for place in re.findall(r"^\s*listen (\S*)443 ssl", piece, re.M)}
        if len({place in ("", "[::]:") for place in new}) > 1:
            raise Apart()                      # at one address and at all: where the second listens depends on the first
        texts = _changed(plain, names, edited)
        every = wishes[0]._replace(domains=[name for one in wishes for name in one.domains], more=[name for one in wishes for name in one.more])
        _refuse_what_changes(plain, _read(plain, texts), every)
    except (Refused, _AsChanged) as why:
        raise Apart() from why
    return _differing(config, {**plain.texts, **texts}), {}


def _refuse_cut(config: Configuration, wanted: Wanted) -> None:
    if config.cut:
        raise Refused(f"{wanted.name}: nginx's configuration is longer, or nested deeper, than is read; nothing was changed")


def _differing(config: Configuration, new: Mapping[str, str]) -> list[Change]:
    return [Change(path, text, new[path]) for path, text in config.texts.items() if text != new[path]]


def as_changed(config: Configuration, edits: Sequence[Change]) -> Configuration:
    """The configuration as nginx would read it with these changes."""
    return _read(config, {one.path: one.new for one in edits})


class _AsChanged(Exception):
    """Refused; the text has lines of the texts as they would be."""


def placed(message: str, seen: Mapping[str, str], real: Mapping[str, str]) -> str:
    """A message with its FILE:LINE places in one text as those in another."""
    def place(found: re.Match[str]) -> str:
        path, line = found[1], int(found[2]) - 1
        if path in seen and path in real and seen[path] != real[path]:
            matcher = difflib.SequenceMatcher(None, seen[path].split("\n"), real[path].split("\n"), False)
            line = next((to + line - start for start, to, size in matcher.get_matching_blocks() if start <= line < start + size), line)
        return f"{path}:{line + 1}"
    return re.sub(r"(/[^\s:]+):(\d+)", place, message)


def _changed(plain: Configuration, names: Sequence[str], edited: Mapping[str, Pieces]) -> dict[str, str]:
    """The new texts. Raises Refused where they could not be made the old ones again."""
    texts = {path: _inserted(plain.texts[path], pieces) for path, pieces in edited.items()}
    for path, text in texts.items():
        if _found(path, text, {*names})[1] != plain.texts[path]:
            raise Refused(f"{names[0]}: {path}: its lines could not be taken out again; nothing was changed; put the lines in by hand")
    return texts


def _as_before(wanted: Wanted, lines: str) -> Wanted:
    """With what was asked for when these lines were written."""
    had = re.findall(r"^[ \t]*server_name ([^;]+);", lines, re.M)
    more = [*wanted.more, *(name for names in had for name in names.split() if name in wanted.domains)]
    served = "\n" in lines and f"{site.STATE}/live/" in lines and " listen " in lines
    return wanted._replace(more=more, hsts=wanted.hsts or HSTS in lines, redirect=wanted.redirect and not (served and "return 301" not in lines))


def _read(plain: Configuration, texts: dict[str, str]) -> Configuration:
    """The configuration with these texts, and the snippets that they include."""
    sources = [Source(path, texts.get(path, text)) for path, text in plain.texts.items()]
    for path in {snippets.challenge(), TLS, *re.findall(rf"include ({re.escape(site.STATE)}/live/[^;]+);", "".join(texts.values()))} - plain.texts.keys():
        try:
            with open(path, encoding="utf-8") as stream:
                sources.append(Source(path, stream.read()))
        except OSError:
            continue                           # nginx's test says so
    return Configuration(sources)


def _inserted(text: str, pieces: Pieces) -> str:
    parts, last = list[str](), 0
    for at, piece in sorted(pieces):
        parts += [text[last:at], piece]
        last = at
    return "".join(parts) + text[last:]


def _asked(config: Configuration, port: int, domain: str) -> Iterator[tuple[str, Server]]:
    """By address, the blocks that answer for a name. Raises Refused."""
    for address in config.answers.addresses(port):
        try:
            server = config.answers.find(address, port, domain)
        except expression.Unknown as unknown:
            raise Refused(f"{domain}: which server block answers for it cannot be told: {unknown}; nothing was changed; {unknown.mend}") from unknown
        if server is not None:
            yield address, server


class _Block(NamedTuple):
    """A server block that is to be changed: the names of the site that it has on port 80, and on 443."""

    server: Server
    plain: list[str]
    tls: list[str]


def _blocks(config: Configuration, wanted: Wanted) -> list[_Block]:
    """The server blocks of the names. Raises Refused, NoBlock."""
    blocks: dict[int, _Block] = {}
    for port in (80, 443):
        for domain in wanted.domains:
            for _, server in _asked(config, port, domain):
                if server.has_name(domain):
                    block = blocks.setdefault(id(server.directive), _Block(server, [], []))
                    has = block.tls if port == 443 else block.plain
                    if domain not in has:
                        has.append(domain)
    if not blocks:
        raise NoBlock()
    there = list(blocks.values())
    if not any(one.plain for one in there):
        raise Refused(f"{wanted.name}: {there[0].server.directive.place}: the server block does not listen on port 80, where challenges come; nothing was "
                      "changed; add listen 80; there, or a server block for port 80, then run this again")
    for port, having in ((80, [(one.server, one.plain) for one in there if one.plain]), (443, [(one.server, one.tls) for one in there if one.tls])):
        has = [name for _, names in having for name in names]
        lacking = [name for name in wanted.domains if name not in has and name not in wanted.more]
        if has and lacking:
            raise Refused(f"{wanted.name}: {lacking[0]} has no server block on port {port}, and {has[0]} has one; nothing was changed; "
                          f"add {' '.join(lacking)} to the server_name at {_named(having[0][0])}, then run this again")
    return there


def _named(server: Server) -> str:
    return (server.all("server_name") or [server.directive])[0].place


def _edits(config: Configuration, wanted: Wanted) -> dict[str, Pieces]:
    """By file, what is put into it, and where. Raises Refused, NoBlock."""
    edits: dict[str, Pieces] = {}
    blocks = _blocks(config, wanted)
    has_tls = any(one.tls for one in blocks)
    for block in blocks:
        server, pieces = block.server, Pieces()
        _refuse_block(config, block, wanted, wanted.tls and not has_tls)
        lines = [f"server_name {' '.join(wanted.more)};"] if wanted.more else []
        if wanted.tls and block.tls:
            aside, include = _certificate(server, wanted)
            pieces += aside
            lines += include
        opened = wanted.tls and not has_tls
        if opened:
            lines += _listens(config, server, wanted)
        if block.plain:
            lines += _challenge(config, server, block.plain, wanted, opened)
        if opened:
            lines += [f"include {path};" for path in wanted.lives]
            if not any(one.name in SETTINGS for one in server.inside):
                lines += [f"include {TLS};", f"ssl_ecdh_curve {wanted.build.curves};"]
        if wanted.tls and wanted.hsts and (opened or block.tls):
            lines += _hsts(config, server, wanted)
        if lines:
            edits.setdefault(server.directive.file, []).extend([*pieces, _stretch(config, server, wanted.name, lines)])
    return edits


def _refuse_block(config: Configuration, block: _Block, wanted: Wanted, opened: bool) -> None:
    """Raise Refused for a block of which this is not known to be right."""
    server = block.server
    if config.times_read(server) > 1:
        raise Refused(f"{wanted.name}: {server.directive.place}: the file is included twice; nothing was changed; take one of the includes away")
    patterns = [name for name in server.names if name.startswith("~")]
    if patterns and wanted.tls:
        raise Refused(f"{wanted.name}: {_named(server)}: server_name {patterns[0]} is a regular expression: what it is for cannot be told; "
                      "nothing was changed; put the lines in by hand")
    beside = [name for name in server.beside([*wanted.domains])]
    if block.tls and wanted.tls and beside and not _is_served(server, wanted):
        raise Refused(f"{wanted.name}: {server.directive.place}: the server block is for {beside[0]} on port 443, too, for which the certificate is not; "
                      f"nothing was changed; certdrop add-name {wanted.name} {beside[0]}, or give it a server block of its own")
    for one in _all(server.inside) if opened else ():
        if one.name in ("return", "rewrite") and any(_leads_back(arg, server) for arg in one.args):
            raise Refused(f"{wanted.name}: {one.place}: {' '.join([one.name, *one.args])[:120]} leads to https, where the same server block would answer "
                          "and lead there again; nothing was changed; take it out, then run this again")


def _leads_back(word: str, server: Server) -> bool:
    found = re.match(r"https://(\$\w+|[^/:?$]+)", word)
    return found is not None and (found[1].lower() in ("$host", "$server_name", "$http_host") or server.has_name(found[1].lower()))


def _all(block: Sequence[Directive]) -> Iterator[Directive]:
    for one in block:
        yield one
        yield from _all(one.block or [])


def _is_served(server: Server, wanted: Wanted) -> bool:
    """Whether a block has the live pairs already."""
    files = {one.file for one in server.inside}
    included = {one.value for one in server.directive.block or [] if one.name == "include"}
    return all(path in files or path in included for path in wanted.lives)


def _certificate(server: Server, wanted: Wanted) -> tuple[Pieces, list[str]]:
    """The pieces that set a block's certificates aside, and the lines for the live ones. Raises Refused."""
    if _is_served(server, wanted):
        return [], []
    pieces = Pieces()
    for one in server.inside:
        if one.name not in ("ssl_certificate", "ssl_certificate_key"):
            continue
        if one.file != server.directive.file or not any(one is own for own in server.directive.block or []):
            raise Refused(f"{wanted.name}: {one.place}: {one.name} is in a file that the server block at {server.directive.place} includes, perhaps as "
                          "others do; nothing was changed; move it into the server block, then run this again")
        text = one.text
        line = text[text.rfind("\n", 0, one.start) + 1:one.start]
        behind = text[one.end:].split("\n", 1)[0]
        if line.strip() or "\n" in text[one.start:one.end] or not re.fullmatch(r"\s*(#.*)?", behind):
            raise Refused(f"{wanted.name}: {one.place}: {one.name} does not have a line of its own; nothing was changed; give it one, then run this again")
        pieces.append((one.start, f"# certdrop {wanted.name} keeps: "))
    return pieces, [f"include {path};" for path in wanted.lives]


def _challenge(config: Configuration, server: Server, domains: list[str], wanted: Wanted, redirects: bool) -> list[str]:
    """The lines that lead challenges to certdrop before anything else, and the redirect."""
    lines, early = [], any(one.name in EARLY for one in server.inside)
    own = any(one.name == "location" and one.args[-1:] == [challenge.PATH] for one in server.inside)
    redirect = _redirect(server, [*domains, *wanted.more], wanted) if redirects and wanted.redirect else []
    blocked = any(_in_the_way(config, domain) for domain in domains) or bool(wanted.more)
    if (early and blocked) or redirect:
        lines.append(r'if ($uri ~ "^/\.well-known/acme-challenge/") { break; }')
    if blocked and not own:
        lines.append(f"include {snippets.challenge()};")
    return lines + redirect


def has_own(config: Configuration, address: str, domain: str) -> bool:
    """Whether a block of its own answers for a name at an address, by http. Raises Refused."""
    return any(server.has_name(domain) for at, server in _asked(config, 80, domain) if at == address)


def _in_the_way(config: Configuration, domain: str, domains: Sequence[str] = ()) -> list[challenge.Way]:
    """What is in the way of challenges where a block of the name's own is asked: at other addresses the name need not have, other blocks answer."""
    ways = [challenge.way(config, address, domain, challenge.Wish(domains, False)) for address, server in _asked(config, 80, domain) if server.has_name(domain)]
    return [one for one in ways if one.why]


def _redirect(server: Server, domains: list[str], wanted: Wanted) -> list[str]:
    """From http to https: for the site's names alone, whatever else the block answers for."""
    if not _answers_for_others(server, wanted) and not wanted.pending:
        return ["if ($scheme = http) { return 301 https://$host$request_uri; }"]
    return ["set $certdrop $scheme://$host;", *(f"if ($certdrop {_is_http(domain)}) {{ return 301 https://$host$request_uri; }}"
                                                for domain in dict.fromkeys(domains) if domain not in wanted.pending)]


def _is_http(domain: str) -> str:
    """An nginx condition: this name, by http; of a wildcard, one label below, for which the certificate is."""
    return f'~ "^http://[^.]+{re.escape(domain[1:])}$"' if domain.startswith("*.") else f"= http://{domain}"


def below(domain: str) -> str:
    """A name that can be asked for: of a wildcard one below it, which no block is likely to have to itself."""
    return f"certdrop-asks{domain[1:]}" if domain.startswith("*.") else domain


def _answers_for_others(server: Server, wanted: Wanted) -> bool:
    return bool(set(server.names) - {*wanted.domains}) or any("default" in word for one in server.listens for word in one.words)


def _listens(config: Configuration, server: Server, wanted: Wanted) -> list[str]:
    """For each address that a block listens at on port 80, the same on 443, in nginx's form. Where others listen there already, as they do."""
    there, places = config.listens, list[str]()
    for one in server.listens:
        if one.port != 80 or one.address.startswith("unix:"):
            continue
        wild = "[::]" if one.ipv6 else "*"
        places.append(wild if (one.address, 443) not in there and (wild, 443) in there else one.address)
        if "ipv6only=off" in one.words:
            places.append("*")
    for domain in wanted.domains:              # where somebody listens at one address alone, nobody else is asked there
        places += [address for address, block in _asked(config, 80, domain) if block is server and (address, 443) in there]
    separate, lines = wanted.build.separate_http2, list[str]()
    if not server.all("listen"):               # nginx listens at *:80 then, but not beside a listen of ours
        lines.append("listen 80;")
    for place in dict.fromkeys(places):
        others = there.get((place, 443), [])
        http2 = "" if separate or (others and not any("http2" in one.words for one in others)) else " http2"
        lines.append(f"listen {'' if place == '*' else place + ':'}443 ssl{http2};")
    if separate and not config.settings(server, "http2"):
        lines.append("http2 on;")
    return lines


def _hsts(config: Configuration, server: Server, wanted: Wanted) -> list[str]:
    if any(one.args[:1] and one.args[0].lower() == "strict-transport-security" for one in server.all("add_header")):
        return []
    inherited = config.set_for_all("add_header")
    if inherited and not server.all("add_header"):
        raise Refused(f"{wanted.name}: {inherited[0].place}: this add_header would not hold any more in a server block that has one of its own; "
                      f"nothing was changed; leave --hsts out, or write both into the server block at {server.directive.place}")
    return [HSTS]


def _stretch(config: Configuration, server: Server, name: str, lines: list[str]) -> tuple[int, str]:
    """Where lines are put into a block, and as what."""
    text, at = config.texts[server.directive.file], server.directive.opening
    newline = "\r\n" if "\r\n" in text else "\n"
    start = text.rfind("\n", 0, server.directive.start) + 1
    margin = re.match(r"[ \t]*", text[start:])
    inner = (margin[0] if margin else "") + "    "
    first = server.directive.block[0] if server.directive.block else None
    if first is not None and first.file == server.directive.file:
        before = text[text.rfind("\n", 0, first.start) + 1:first.start]
        inner = before if before and not before.strip() else inner
    body = "".join(f"{inner}{line}{newline}" for line in lines)
    behind = text[at:].split("\n", 1)[0].strip()
    head = f"{inner}# certdrop {name} {_sum(body)}: these lines are certdrop's; certdrop-nginx {name} --undo takes them out{newline}"
    return at, f"{newline}{head}{body}{inner}# certdrop {name} ends" + (f"{BEHIND}{newline}" if behind else "")


def _refuse_what_changes(before: Configuration, after: Configuration, wanted: Wanted) -> None:
    """Raise Refused where challenges would not come through, or something would be answered by another block than before."""
    for domain in wanted.domains:
        way = next((one for one in _in_the_way(after, domain, wanted.domains) if one.is_blocked), None)
        if way:
            raise _AsChanged(f"{wanted.name}: {way.why}; nothing was changed; {way.mend}, then run this again")
    if len(before.servers) != len(after.servers):
        raise Refused(f"{wanted.name}: nginx's configuration was not understood: it would have other server blocks; nothing was changed; "
                      "put the lines in by hand")
    number = {id(server): at for at, server in enumerate(before.servers)}, {id(server): at for at, server in enumerate(after.servers)}
    names = {STRANGER, *(probe for server in before.servers for name in server.names for probe in _probes(name))}
    ports, own = {one.port for server in before.servers for one in server.listens if one.port}, {*wanted.domains, *map(below, wanted.domains)}
    for port in (80, 443):
        for address in before.answers.addresses(port):
            for name in wanted.domains:        # where another block was there for all names that have none, it was for nobody's site
                was, now = _which(before, number[0], address, port, name), _which(after, number[1], address, port, name)
                if was == now or was is None or was < 0:
                    continue
                server = before.servers[was]
                by_default = is_by_default(server, name) and (port == 443 or name in wanted.more)
                if not by_default and not _is_ours(server, port):
                    raise Refused(f"{wanted.name}: {server.directive.place}: answers for {name} at {address}:{port}, by server_name "
                                  f"{' '.join(server.names)[:120]}, and would not any more; nothing was changed; give {name} a server block of its own "
                                  f"on port {port} with what it should serve there, then run this again")
    for port in sorted(ports):
        for address in before.answers.addresses(port):
            for name in sorted(names - own):
                was, now = _which(before, number[0], address, port, name), _which(after, number[1], address, port, name)
                if was != now and was is not None and not (was >= 0 and is_by_default(before.servers[was], name) and _is_ours(before.servers[was], port)):
                    place, other = (before.servers[at].directive.place for at in (was, was if now is None else now))
                    is_no_name = name in (STRANGER, "_", "localhost")
                    what = "names that no block has" if is_no_name else name
                    raise Refused(f"{wanted.name}: {place}: answers at {address}:{port} for {what}, and {other} would; nothing was changed; "
                                  + (f"add default_server to the listen of {place}" if is_no_name else
                                     f"give {name} a server block of its own on port {port}") + ", then run this again")


def is_by_default(server: Server, name: str) -> bool:
    """Whether a block is for this name only where no other is."""
    return not server.has_name(name) and not any(rank(one, name) is not None or one.startswith("~") for one in server.names)


def has_lines(server: Server, name: str = "") -> re.Match[str] | None:
    """certdrop's lines in a block, for this site or any."""
    mark = re.escape(name) if name else r"\S+"
    stretch = re.compile(rf"\s*# certdrop ({mark}) [0-9a-f]{{8}}: [^\n]*\n(?:.*\n)*?[ \t]*# certdrop \1 ends")
    return stretch.match(server.directive.text, server.directive.opening)


def _is_ours(server: Server, port: int) -> bool:
    """Whether a block answers at a port by certdrop's lines alone, or is one that --write made: who is asked for names that no block has was nobody's wish."""
    if server.directive.text.startswith(f"# {(server.names or [''])[0]}: printed by certdrop-nginx "):
        return True
    stretch = has_lines(server)
    return bool(stretch) and all(one.file == server.directive.file and one.start < stretch.end() for one in server.all("listen")
                                 if stretch and any(found.port == port for found in listened(*one.args)))


def _which(config: Configuration, number: dict[int, int], address: str, port: int, name: str) -> int | None:
    try:
        server = config.answers.find(address, port, name)
    except expression.Unknown:
        return -1
    return None if server is None else number[id(server)]


def _probes(name: str) -> list[str]:
    """Names that a word of server_name is for."""
    if name.startswith("~"):
        return []
    return [name.removeprefix("*.").removeprefix("."), "certdrop-asks" + name.removeprefix("*")] if name.startswith(("*.", ".")) else \
        [name[:-1] + "certdrop-asks"] if name.endswith(".*") else [name] if name else []

"""The change to nginx's configuration that moves sites over to certdrop, as one unified diff: the old pairs out, the live include in, the challenge
location in before any redirect. Nothing is edited here: apply.py does that, or the administrator with patch(1).

Runs as: root. Trusts: what `nginx -T` names; those files are read as text. Reads: them. Writes: nothing.
Source: ngx_http_rewrite_module, whose directives in a server block come before every location, in the order in which they stand.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator

from certdrop import events, tokens
from certdrop.config import site
from certdrop.nginx import challenge, run
from certdrop.nginx import configuration as nginxconf
from certdrop.nginx.configuration import Configuration, Server
from certdrop.nginx.syntax import Directive, Source
from certdrop.walls import users

TIMEOUT = 60                       # seconds for nginx -T
LARGEST = 4 << 20                  # bytes of one of nginx's files
CHALLENGE = "/.well-known/acme-challenge/"
SNIPPET = "/etc/nginx/snippets/certdrop-challenge.conf"
BREAK = r"if ($uri ~ ^/\.well-known/acme-challenge/) { break; }    # no redirect of this block for challenges"
BESIDE = ("include", "ssl_dhparam", "ssl_trusted_certificate", "ssl_password_file", "ssl_session_ticket_key")

_NAME = re.compile(r"/[A-Za-z0-9._@%+=:,/-]+")                  # file names that every patch(1) reads alike

Edit = tuple[int, int, str]        # what stands from, to in a file's text, and what shall stand there


class Nginx:
    """nginx's configuration, as it is now. Where there is no nginx, or it fails its test, there are no files, and `trouble` says why."""

    def __init__(self, files: list[Source] | None = None) -> None:
        self.trouble = ""
        self.changes: list[tuple[str, str, str]] = []      # of the last diff: path, text before, text after
        self.ways: set[str] = set()        # the remarks on what would become of challenges
        self.places: list[str] = []        # the old clients' directories
        self.files = self._sources() if files is None else files
        self.configuration = Configuration(self.files)

    def _sources(self) -> list[Source]:
        if not os.path.exists(run.show()[0]):
            return []
        try:
            done = subprocess.run(run.show(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=users.ENVIRONMENT,
                                  timeout=TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.trouble = f"{' '.join(run.show())}: {error}"
            return []
        if done.returncode:
            self.trouble = "nginx does not pass its test as it is: " + events.clean(done.stderr.decode("utf-8", "replace").strip(), 300)
            return []
        return nginxconf.sources(done.stdout.decode("utf-8", "surrogateescape"))

    def pairs(self) -> list[tuple[str, str]]:
        """The (certificate, key) files that it names, each once, but for certdrop's own."""
        found: dict[tuple[str, str], None] = {}
        for block in self._blocks():
            for certificate, key in _pairs(block):
                path, other = self._path(certificate.value), self._path(key.value)
                if path and other and not path.startswith(site.STATE + "/"):
                    found[path, other] = None
        return list(found)

    def diff(self, replaced: Callable[[str], str], domains: dict[str, list[str]]) -> tuple[str, list[str]]:
        """The diff, and what it cannot do: `replaced` says of a certificate's file whose site's it is, `domains` what the sites' names are."""
        self.edits: dict[str, set[Edit]] = {source.path: set() for source in self.files}
        self.remarks: dict[str, None] = dict.fromkeys([self.trouble] if self.trouble else [])
        for block in self._blocks():
            self._replace(block, replaced)
        ours = {domain for names in domains.values() for domain in names}
        for domain in sorted(ours):
            self._challenge(domain, ours)
        self._check(sorted(ours))
        self._note_others(replaced)
        self.changes = list(self._changed())
        return "".join(unified(path[1:], before, after) for path, before, after in self.changes), list(self.remarks)

    def _blocks(self) -> Iterator[list[Directive]]:
        rest = list(self.configuration.parsed.values())
        while rest:
            block = rest.pop(0)
            yield block
            rest += [one.block for one in block if one.block]

    def _path(self, value: str) -> str:
        """A file that a directive names; "" for what is none."""
        if "$" in value or value.startswith(("data:", "engine:")) or not value:
            return ""
        return os.path.normpath(os.path.join(os.path.dirname(self.configuration.main), value))

    def _text(self, path: str) -> str:
        return self.configuration.texts[path]

    def _replace(self, block: list[Directive], replaced: Callable[[str], str]) -> None:
        """The old pairs out, the include in."""
        for certificate, key in _pairs(block):
            path = self._path(certificate.value)
            name = replaced(path) if path and not path.startswith(site.STATE + "/") else ""
            if name:
                self._put(certificate, f"include {site.STATE}/live/{name}/nginx.conf;")
                self._put(key, "")
        for one in block:
            if one.name == "ssl_trusted_certificate" and self._path(one.value):
                name = replaced(self._path(one.value))
                if name and not one.value.startswith(site.STATE):
                    self._put(one, f"ssl_trusted_certificate {site.STATE}/live/{name}/chain.pem;")

    def _challenge(self, domain: str, ours: set[str]) -> None:
        """The challenge location into the blocks that answer for a domain on port 80, where its way is not free."""
        for address in challenge.addresses(self.configuration):
            way = challenge.way(self.configuration, address, domain)
            if way.server is None or not way.why or not self._clear(way.server):
                continue
            self._insert(way.server)
            others = [name for name in way.server.names if name not in ours and "." in name and not name.startswith((".", "~", "*"))]
            if others:
                self.remarks[f"{way.server.directive.place}: answers for {' '.join(others[:5])} too, which certdrop does not renew: another client can prove "
                             "them no longer over HTTP there"] = None

    def _check(self, domains: Iterable[str]) -> None:
        """Whether challenges get through once the diff is applied, as far as that can be told before there is something to be fetched."""
        changed = [Source(source.path, apply(source.text, self.edits[source.path])) for source in self.files]
        if SNIPPET not in self.edits and changed:
            changed.append(Source(SNIPPET, _on_disk(SNIPPET) or ""))
        configuration = Configuration(changed)
        for domain in domains if changed else ():
            trouble = challenge.first_blocked(configuration, domain)
            if trouble and trouble.is_blocked:
                self.ways.add(f"{domain}: the CA's challenges would not get through: {trouble.why}; {trouble.mend}")
        self.remarks.update(dict.fromkeys(sorted(self.ways)))

    def _clear(self, server: Server) -> bool:
        """Take out an older location of the same name, which nginx would not have beside ours. Whether that could be done."""
        for one in server.directive.block or []:
            brought = list(self.configuration.expand([one])) if one.name == "include" else [one]
            if any(_is_challenge(inner) and not _is_ours(inner) for inner in brought):
                if len(brought) > 1:
                    self.remarks[f"{one.place}: what it includes has a location {CHALLENGE} among other things; put \"include {SNIPPET};\" in its "
                                 "place by hand"] = None
                    return False
                self._put(one, "")
        return True

    def _insert(self, server: Server) -> None:
        block = server.directive.block or []
        text = self._text(server.directive.file)
        lines = [] if any(tokens.directory() in word for one in _all(server.inside) for word in one.args) else [f"include {SNIPPET};"]
        if any(one.name in ("return", "rewrite", "if") for one in server.inside):
            lines.append(BREAK)
        if not block or not lines:
            return
        begin = text.rfind("\n", 0, block[0].start) + 1
        indent = text[begin:block[0].start]
        if indent.strip():                                     # all of the block stands on one line
            self.edits[server.directive.file].add((block[0].start, block[0].start, "".join(line.partition("    #")[0] + " " for line in lines)))
        else:
            self.edits[server.directive.file].add((begin, begin, "".join(f"{indent}{line}\n" for line in lines)))

    def _put(self, one: Directive, new: str) -> None:
        """Have other text, or none, in the place of a directive; the line goes with it where nothing else stands there."""
        text = self._text(one.file)
        begin, end = text.rfind("\n", 0, one.start) + 1, text.find("\n", one.end)
        end = len(text) if end < 0 else end
        rest = text[one.end:end].strip()
        alone = not text[begin:one.start].strip() and (not rest or rest.startswith("#"))
        if alone and not new:
            self.edits[one.file].add((begin, min(end + 1, len(text)), ""))
        else:
            self.edits[one.file].add((one.start, end if alone and "managed by" in rest else one.end, new))

    def _note_others(self, replaced: Callable[[str], str]) -> None:
        """What else of the old clients nginx uses: it must not be removed with them."""
        for block in self._blocks():
            for one in block:
                path = self._path(one.value)
                if one.name in BESIDE and path.startswith(tuple(place + "/" for place in self.places)) and not replaced(path):
                    self.remarks[f"nginx uses {path} too: keep that file, or change {one.place}, before you remove the old client"] = None

    def _changed(self) -> Iterator[tuple[str, str, str]]:
        """(path, text before, text after) of each file that a diff can be made for."""
        done: dict[str, set[Edit]] = {}
        for source in self.files:
            path = os.path.realpath(source.path)
            edits = self.edits[source.path]
            if not edits or done.get(path) == edits:
                continue
            if not _NAME.fullmatch(path) or "//" in path or path in done or _on_disk(path) != source.text:
                self.remarks[f"{source.path}: has a name, or a content, that a diff cannot be made for; change it by hand"] = None
                continue
            done[path] = edits
            yield path, source.text, apply(source.text, edits)


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits made; of two that meet, the first is made."""
    parts, at = [], 0
    for begin, end, new in sorted(edits):
        if begin >= at:
            parts += [text[at:begin], new]
            at = end
    return "".join([*parts, text[at:]])


def unified(path: str, old: str, new: str) -> str:
    """A unified diff for `patch -p0 -d /`."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    lines = difflib.unified_diff(before, after, path, path)
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def _pairs(block: list[Directive]) -> Iterator[tuple[Directive, Directive]]:
    """The certificates of a block, each with its key: nginx takes them in their order."""
    return zip([one for one in block if one.name == "ssl_certificate"], [one for one in block if one.name == "ssl_certificate_key"])


def _all(block: list[Directive]) -> Iterator[Directive]:
    for one in block:
        yield one
        yield from _all(one.block or [])


def _is_challenge(one: Directive) -> bool:
    return one.name == "location" and one.args in ([CHALLENGE], ["^~", CHALLENGE])


def _is_ours(one: Directive) -> bool:
    return any(tokens.directory() in word for inner in _all(one.block or []) for word in inner.args)


def _on_disk(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as stream:
            return stream.read(LARGEST).decode("utf-8", "surrogateescape") if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None

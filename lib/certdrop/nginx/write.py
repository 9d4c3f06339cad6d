"""Puts a new server block where nginx reads it: written, enabled, tested, reloaded; and all taken back where the test fails, or a page becomes another.

Never touches a file that is there, but for one that it made and nobody edited. Where another block answered for a name, both serve what that did, and http
leads to https only once the certificate is there. Runs as: root, by hand. Trusts: the configuration of certdrop and of nginx. Reads: what `nginx -T` prints.
Writes: /etc/nginx/sites-available/NAME and its link in sites-enabled, or /etc/nginx/conf.d/NAME.conf; where that name is taken, certdrop-NAME.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import services
from certdrop.keeper.command import as_root
from certdrop.nginx import edit, expression, fetched, pages, run, vacancy
from certdrop.nginx import configuration as nginxconf
from certdrop.nginx.blocks import BINDS, HSTS, TIMEOUT, Absent, Build, Refused, blocks
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.vacancy import PLAIN, TLS
from certdrop.walls import users

CERTDROP = "/usr/sbin/certdrop"
LARGEST = 32 << 20                 # bytes of a configuration that are read


class Wishes(NamedTuple):
    """What was asked for."""

    redirect: bool = True
    hsts: bool = False
    anyway: bool = False           # even where the block makes another page of one that is there
    dry_run: bool = False
    ask: bool = True


Seen = tuple[pages.Asked, tuple[pages.Page, pages.Page]]


class Plan(NamedTuple):
    """What is to be done for the sites that share a server block."""

    sites: list[site.Site]
    path: str                      # the file that is written
    link: str                      # what enables it; "" where the file alone does
    text: str                      # "" where nothing is missing
    now: str = ""                  # what is written while nothing but a placeholder is there, if it is another text: http does not lead to it
    pages: Sequence[Seen] = ()     # pages that work now, by http
    by: str = ""                   # FILE:LINE of the server block that answers with the first of them
    shows: Sequence[pages.Asked] = ()                      # where the certificate is shown once nginx has loaded the block

    @property
    def first(self) -> str:
        """What is written first."""
        return self.now or self.text


def write(groups: list[list[site.Site]], build: Build, wishes: Wishes) -> int:
    """Do it for each group of sites with the same domains; then, where only a placeholder is there, have the issuer ask. Raises Refused, Absent."""
    return as_root(lambda: _write(groups, build, wishes))


def _write(groups: list[list[site.Site]], build: Build, wishes: Wishes) -> int:
    try:
        service = services.find("nginx")
        service.test()
    except services.Failed as error:
        raise Absent(f"nginx does not pass its own test now: {error}; nothing was written; mend that first (nginx -t)") from error
    config = configuration()
    plans = [plan(group, build, config, wishes) for group in groups]
    if wishes.dry_run:
        for one in plans:
            waiting = [found.name for found in one.sites if _is_waiting(found.name)]
            for line in (f"write {one.path}:\n\n{one.text}" if one.text else "", f"link {one.link} to it" if one.text and one.link else "",
                         "test nginx, and reload it",
                         f"ask the CA for a certificate, as certdrop renew {' '.join(waiting)} does" if waiting and wishes.ask else ""):
                if line:
                    say(one, f"would {line}")
        return os.EX_OK
    if not _apply(plans, service, wishes.anyway):
        return os.EX_TEMPFAIL
    for one in plans:
        say(one, f"nginx reloaded; what the site serves is said at the end of {one.path}: edit it there" if one.text else
            "its names have server blocks already, with all they need; nginx reloaded")
    if wishes.hsts:
        print(f"certdrop-nginx: {BINDS}")
    waiting = [found.name for one in plans for found in one.sites if _is_waiting(found.name)]
    if not waiting:
        say(plans[0], "next: certdrop-status shows what is served")
        return os.EX_OK
    names, code = " ".join(waiting), os.EX_OK
    if wishes.ask:
        say(plans[0], f"certdrop renew {names}: asks the CA for a certificate now")
        sys.stdout.flush()
        code = subprocess.run([CERTDROP, "renew", *waiting], stdin=subprocess.DEVNULL, env=users.ENVIRONMENT, check=False).returncode
    else:
        say(plans[0], f"next: certdrop renew {names} asks the CA for a certificate now; cron does within ten minutes")
    _finish([one for one in plans if one.now], service)
    return code


def _finish(plans: list[Plan], service: services.Service) -> None:
    """Have http lead to https where the certificate is there now."""
    for one in plans:
        if any(_is_waiting(found.name) for found in one.sites):
            say(one, f"http://{site.as_host(one.sites[0].domains[0])}/ serves the page that it did, and leads to https once the certificate is there and "
                     f"certdrop-nginx {one.sites[0].name} --write is run again")
            continue
        _apply([one._replace(now="", pages=[])], service, True)


def say(one: Plan, text: str) -> None:
    """One thing that was done, or comes next."""
    print(f"certdrop-nginx: {one.sites[0].name}: {text}", flush=True)


def _is_waiting(name: str) -> bool:
    """Whether a site has nothing but its placeholder."""
    return os.path.exists(f"{site.STATE}/live/{name}/placeholder")


def configuration() -> Configuration:
    """What nginx reads."""
    done = subprocess.run(run.show(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT,
                          env=users.ENVIRONMENT, cwd="/", start_new_session=True, check=False)
    return Configuration(nginxconf.sources(done.stdout[:LARGEST].decode("utf-8", "replace")))


def plan(group: list[site.Site], build: Build, config: Configuration, wishes: Wishes) -> Plan:
    """What to write for these sites. Raises Refused where another block has one of the names, or all files are taken."""
    name = group[0].name
    for found in group:
        if not os.path.exists(f"{site.STATE}/live/{found.name}/nginx.conf"):
            raise Refused(f"{found.name}: has no certificate yet, not even a placeholder; run certdrop-install, then this again")
    ours = {blocks(group, build, *how) for how in itertools.product(((PLAIN, TLS), (TLS,), (PLAIN,)), (True, False), (True, False))}
    try:
        path, link = vacancy.place(config, name, lambda path: _content(path) in ours)
        parts = vacancy.lacking(config, group, (path, link))
    except vacancy.Occupied as error:
        raise Refused(events.clean(error, 600)) from error
    hosts, there = [site.as_host(domain) for domain in group[0].domains], _content(path)
    wishes = wishes._replace(hsts=wishes.hsts or HSTS in there)
    plain = [server.directive.place for server in config.servers if 80 in server.ports() and any(map(server.has_name, hosts))]
    if plain and parts == (TLS,) and not there:
        with contextlib.suppress(edit.NoBlock):
            edit.changes(config, edit.Wanted([found.name for found in group], hosts, build))       # or what is in the way of that
        raise Refused(f"{name}: its names have a server block already, at {plain[0]}, and a new one would serve something else by https; nothing was written; "
                      f"certdrop-nginx {name} --apply has that block serve it by https, too (--diff shows how)")
    blocked = "" if PLAIN in parts else vacancy.blocked(config, group)
    if blocked and fetched.at_port_80([found.name for found in group]):        # which decides
        raise Refused(events.clean(blocked, 600))
    text = blocks(group, build, parts, wishes.redirect, wishes.hsts) if parts else ""
    if not text or there == text:
        return Plan(group, path, link, text)
    shows = [("127.0.0.1", edit.below(host), "https") for host in hosts[:1] if TLS in parts and ("127.0.0.1", 443) not in config.listens]
    seen = _that_work(config, hosts)
    waits = any(_is_waiting(found.name) for found in group) and PLAIN in parts and wishes.redirect and (seen or there)
    now = blocks(group, build, parts, False, wishes.hsts) if waits else ""
    by = config.answers.find(seen[0][0][0], 80, seen[0][0][1]) if seen else None
    return Plan(group, path, link, text, now, [] if there else seen, by.directive.place if by else "", shows)


def _that_work(config: Configuration, hosts: Sequence[str]) -> list[Seen]:
    """The pages of names that are no error now, and not those of another's block, which is asked for want of a better one."""
    asked = [(address, host, "http") for address in config.answers.addresses(80) for host in map(edit.below, hosts)
             if not config.answers.wrapped(address, 80) and not _is_of_others(config, address, host)]
    return [(one, seen) for one, seen in zip(asked, pages.stable(asked)) if 200 <= seen[1].status < 400]


def _is_of_others(config: Configuration, address: str, host: str) -> bool:
    """Whether a block answers that is for other names, and for these only by default."""
    try:
        server = config.answers.find(address, 80, host)
    except expression.Unknown:
        return False
    return server is not None and edit.is_by_default(server, host) and bool(server.beside([host]))


def _content(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as stream:
        return stream.read(spool.MAX_REPLY).decode("utf-8", "replace")


def _apply(plans: list[Plan], service: services.Service, anyway: bool) -> bool:
    """Write and enable all, have nginx load it, and look at the pages; all of it is taken back where nginx refuses it, a page is another, or somebody ends
    this meanwhile. False where nginx was not reloaded. Raises Refused."""
    made, replaced, loaded = list[str](), list[tuple[str, str]](), False
    signal.signal(signal.SIGTERM, _stop)                   # the terminal's signals do not reach this session
    try:
        for one in plans:
            if not one.text:
                continue                                   # the names have all they need
            if not os.path.lexists(one.path):
                create(one.path, one.first.encode(), made)
                say(one, f"wrote {one.path}")
            elif (old := _content(one.path)) != one.first:
                replaced.append((one.path, old))
                _replace(one.path, one.first)
                say(one, f"wrote {one.path} anew")
            if one.link and not os.path.lexists(one.link):
                os.symlink(f"../sites-available/{os.path.basename(one.path)}", one.link)
                made.append(one.link)
                say(one, f"linked {one.link} to it")
        service.test()
        try:
            loaded = True
            service.reload()
        except services.Failed as error:
            say(plans[0], f"nginx was not reloaded: {error}; the new file stays, nginx -t passes; start nginx, then certdrop renew {plans[0].sites[0].name}")
            return False
        for one in plans:
            apart = _others(one)
            for line in apart if anyway else ():
                say(one, f"differs: {line}")
            if apart and not anyway:
                name, domains = one.sites[0].name, " ".join(map(site.as_host, one.sites[0].domains))
                raise _Differs(f"{name}: differs: {apart[0]}; the server block at {one.by} answers for it: add {domains} to its server_name, then "
                               f"certdrop-nginx {name} --apply (--write --anyway makes the new block all the same)")
        return True
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)      # what is begun is taken back, whoever is in a hurry
        left = _taken_back(made, replaced)
        if loaded:
            try:
                service.test()
                service.reload()
            except services.Failed as failed:
                left.append(f"nginx has not read that: {failed}")
        follows = "; ".join(left) or "all was taken back"
        if isinstance(error, services.Failed):
            raise Refused(f"{plans[0].sites[0].name}: nginx refuses the new server block: {error}; {follows}, nginx was not reloaded") from error
        if isinstance(error, OSError):
            raise Refused(f"{plans[0].sites[0].name}: {error.filename or 'a file'}: {error.strerror or error}; {follows}") from error
        if isinstance(error, Refused):
            raise Refused(f"{error}; {follows}") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _taken_back(made: Sequence[str], replaced: Sequence[tuple[str, str]]) -> list[str]:
    """Take away what was made, and write the old texts; what was not, in words."""
    left = []
    for path, old in [*((path, "") for path in reversed(made)), *replaced]:
        try:
            if old:
                _replace(path, old)
            else:
                _unlink(path)
        except OSError as error:
            left.append(f"{path} was not taken back ({error.strerror or error})")
    return left


class _Differs(Refused):
    """A page that worked would be another."""


def _others(one: Plan) -> list[str]:
    """The pages that worked, and are others now, by http or by https: a line each. Raises Refused where nobody can look."""
    if one.shows:
        pages.until_shown(one.shows, {pages.fingerprint(found.name) for found in one.sites})
    before = {asked: seen for asked, seen in one.pages}
    tls = [(address, name, "https") for address, name, _ in before if address in ("127.0.0.1", "[::1]")]       # the new block listens at all addresses
    found = list[str]()
    for scheme, asked in (("http", [*before]), ("https", tls)):
        was = [before[address, name, "http"] for address, name, _ in asked]
        found += pages.differences(asked, was, pages.look(asked), [scheme] * len(asked))
    return found


def _replace(path: str, text: str) -> None:
    fd = spool.open_directory(os.path.dirname(path))
    try:
        spool.write(fd, os.path.basename(path), text.encode(), 0o644)
    finally:
        os.close(fd)


def create(path: str, data: bytes, made: list[str]) -> None:
    """Make a file whole or not at all, never in place of another; then it is noted in `made`. Raises FileExistsError."""
    parent, _, name = path.rpartition("/")
    temporary = f".{name}.certdrop-new"
    fd = spool.open_directory(parent)
    try:
        spool.write(fd, temporary, data, 0o644)
        try:
            os.link(temporary, name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            made.append(path)
        finally:
            os.unlink(temporary, dir_fd=fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _stop(number: int, _: object) -> NoReturn:
    raise Refused(f"ended by signal {number}")

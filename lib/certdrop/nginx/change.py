"""Changes the server blocks that nginx has, for a site: the edits of edit.py shown as a difference, made, looked at, and taken back.

Challenges first; TLS and the redirect once the real certificate is live. Each file is replaced whole, by a rename, after a copy of it lies in
keeper/nginx/NAME, where nginx does not read. nginx tests all, then reloads; the certificate must be shown, and the pages must be those of before, else
every file is put back. Who is killed in between leaves each file old or new, and `begun`: the next run says so, tests, reloads and looks again.
Runs as: root, by hand; anyone to show. Trusts: nginx's configuration where it is root's alone. Reads: what `nginx -T` prints, live/.
Writes: files below /etc/nginx, keeper/nginx/.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from certdrop import events, spool, words
from certdrop.config import site
from certdrop.keeper import services
from certdrop.keeper.command import as_root
from certdrop.nginx import configuration, edit, pages, run, write
from certdrop.nginx.blocks import TIMEOUT, Absent, Build, Refused
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.edit import Change, Wanted
from certdrop.walls import users

KEPT = site.STATE + "/keeper/nginx"            # NAME/ has a copy of each file as it was, and `begun` while somebody is at work
INSTALL = "/usr/sbin/certdrop-install"         # notes that the certificate is served now
OTHERS = 40                                    # names of other blocks whose pages are looked at, too
AS_THEY_WERE = "all files are as they were"
STAY = "the lines that an earlier run put in stay; certdrop-nginx {} --undo takes them out"


class Ended(Refused):
    """Somebody ended it by a signal."""


class NotPutBack(Refused):
    """What was changed could not be put back: lines are in the files, or nginx has not taken it."""


class NotLoaded(Refused):
    """The files are as wanted, and nginx has not read them."""


class Options(NamedTuple):
    """What was asked for."""

    redirect: bool = True
    hsts: bool = False
    anyway: bool = False
    ask: bool = True               # the CA, where only a placeholder is there


def show(group: list[site.Site], build: Build, options: Options) -> int:
    """Print what --apply would change, as a unified difference of the very files. Raises Refused, Absent, edit.NoBlock."""
    name, config = group[0].name, configuration_now()
    changes = edit.changes(config, wanted(group, build, options, True))
    for one in changes:
        path = os.path.realpath(one.path)
        text = "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
                       for line in difflib.unified_diff(_shown(one.old), _shown(one.new), path, path))
        if words.at_terminal(1):
            print(text.expandtabs(), end="")
        else:
            words.put(1, text.encode("utf-8", "surrogateescape"))       # for patch(1): each byte as it is
    if not changes:
        print(f"certdrop-nginx: {name}: its server blocks have all they need; nothing is to be changed")
    sys.stdout.flush()
    return os.EX_OK


def _shown(text: str) -> list[str]:
    return [line + "\n" for line in text.removesuffix("\n").split("\n")] if text.endswith("\n") else text.splitlines(True)


def undo(name: str) -> int:
    """Take all of a site's lines out of nginx's files. Raises Refused, Absent."""
    if not spool.is_site_name(name):               # the copies lie below it
        raise Refused(f"{name!a:.80}: no site's name: certdrop-status lists the sites; nothing was changed")
    return as_root(lambda: _undo(name))


def _undo(name: str) -> int:
    service = service_here()
    with at_work(name):
        tell_of_begun(name)
        edits = lines_taken_out(configuration_now(), name)
        try:
            put(name, service, edits, lambda: "", loads=False)
        except NotLoaded as error:
            say(name, str(error))
            return os.EX_TEMPFAIL
        copies = [entry for entry in os.listdir(f"{KEPT}/{name}") if entry.startswith("%2F")]
        if not edits:
            say(name, "nginx's files have no lines of certdrop's for it; nothing was changed"
                      + f"; the files as they were stay in {KEPT}/{name}" * bool(copies))
            return os.EX_OK
        for entry in copies:
            os.unlink(f"{KEPT}/{name}/{entry}")
        return os.EX_OK


def lines_taken_out(config: Configuration, name: str) -> list[Change]:
    """The files with a site's lines, and their texts without them; where nginx does not even show them, those that were changed. Raises Refused."""
    texts = dict(config.texts)
    for entry in os.listdir(f"{KEPT}/{name}") if os.path.isdir(f"{KEPT}/{name}") else []:
        path = entry.replace("%2F", "/").replace("%25", "%")
        if path.startswith("/") and not any(os.path.realpath(one) == path for one in texts) and os.path.isfile(path):
            texts[path] = _text(path)
    found = [Change(path, text, edit.found(path, text, name).rest) for path, text in texts.items() if edit.bears(text, name)]
    return [one for one in found if one.old != one.new]


def can_be_taken_out(name: str) -> list[Change]:
    """The same, where nothing names the site's live pair then; none where somebody edited certdrop's lines, or has lines of his own. Raises Absent."""
    config = configuration_now()
    try:
        edits = lines_taken_out(config, name)
    except Refused:
        return []
    texts = {**config.texts, **{one.path: one.new for one in edits}}
    named = any(f"{site.STATE}/live/{name}/" in line.partition("#")[0] for text in texts.values() for line in text.splitlines())
    return [] if named else edits


def take_out(name: str, edits: Sequence[Change]) -> None:
    """Have nginx go on without these lines, before the site is removed. Raises Refused, Absent."""
    with at_work(name):
        try:
            put(name, service_here(), edits, lambda: "", loads=False)
        except NotLoaded as error:
            say(name, str(error))
    for entry in os.listdir(f"{KEPT}/{name}"):
        os.unlink(f"{KEPT}/{name}/{entry}")
    os.rmdir(f"{KEPT}/{name}")


def renamed(group: list[site.Site], build: Build, write_site: Callable[[], None], pending: Sequence[str] = ()) -> list[str]:
    """Change the blocks that have a site's lines for other domains of the site, and have its file written then; the files. None where no block has lines.

    `pending` are domains that the live certificate is not for. Raises Refused, where somebody edited the lines, or a domain has another block, too; then
    all is as it was.
    """
    name, config = group[0].name, configuration_now()
    lines = edit.without(config, name)[1]
    if not lines:
        return []
    hosts = [site.as_host(domain) for domain in group[0].domains]
    for server in config.servers:
        own = next((host for host in hosts if server.has_name(host) and not {80, 443}.isdisjoint(server.ports()) and not edit.has_lines(server, name)), "")
        if own:
            raise Refused(f"{name}: {server.directive.place}: {own} has a server block of its own, without certdrop's lines; nothing was changed; "
                          f"certdrop add {own} gives it a certificate of its own")
    more = [host for host in hosts if not any(server.has_name(host) and 80 in server.ports() for server in config.servers)]
    wanted = Wanted([name], hosts, build, f"{site.STATE}/live/" in lines, more=more, pending=[site.as_host(domain) for domain in pending])
    try:
        edits = edit.changes(config, wanted)
    except edit.NoBlock:
        edits = lines_taken_out(config, name)

    def look() -> str:
        write_site()
        return ""
    with at_work(name):
        put(name, service_here(), edits, look)
    return [os.path.realpath(one.path) for one in edits]


def put(name: str, service: services.Service, edits: Sequence[Change], look: Callable[[], str], more: Sequence[str] = (),
        loads: bool = True) -> None:
    """Write the files; test, reload, look; and put all back where one of these fails, or somebody ends this meanwhile. Raises Refused.

    With `loads` false the files stay where nginx only cannot be reloaded, since it does not run: NotLoaded says so, and `begun` stays.

    `more` are other sites that are changed together with this one. What a run that was killed has begun with is tested and loaded, even where no file is to
    be changed any more. Raises Ended where it was ended, and NotPutBack where lines stay in the files, both of which are Refused.
    """
    files = _checked(name, edits)
    done: list[tuple[str, bytes, bytes]] = []
    begun = {one: paths for one in (name, *more) if (paths := _begun(one))}
    before, not_loaded = signal.getsignal(signal.SIGTERM), ""
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _stop)               # the terminal's signals do not reach this session
    try:
        if files:
            for one in (name, *more):
                _note(f"{KEPT}/{one}", "begun", "\n".join(dict.fromkeys([*begun.get(one, []), *(path for path, _, _ in files)])).encode())
        for path, old, new in files:
            kept = ""
            for one in sorted({name, *more} & edit.borne(new.decode("utf-8", "surrogateescape")) - edit.borne(old.decode("utf-8", "surrogateescape"))):
                kept = _keep(one, path, old, kept)
            done.append((path, old, new))
            _replace(path, old, new)
            say(name, f"changed {path}")
        if files or begun:
            service.test()
            try:
                service.reload()
            except services.Failed as error:
                if loads:
                    raise
                not_loaded = str(error)
        why = look()
        if why:
            raise Refused(why)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)      # what is begun is taken back, whoever is in a hurry
        left, not_taken = _put_back(service, done)
        if not left and not not_taken:
            _forget_begun(*({name, *more} - {*begun}))
        follows = f"{'; '.join(left)}; certdrop-nginx {' '.join([name, *more])} --undo takes certdrop's lines out" if left else AS_THEY_WERE
        follows += f"; nginx has not read them: {not_taken}; start it, or have it read them (nginx -s reload)" if not_taken else ""
        kind = Ended if isinstance(error, Ended) else NotPutBack if left or not_taken else Refused
        if isinstance(error, services.Failed):
            raise kind(f"{name}: nginx refuses the change: {error}; {follows}") from error
        if isinstance(error, OSError):
            raise kind(f"{name}: {error.filename or 'a file'}: {error.strerror or error}; {follows}") from error
        if isinstance(error, Refused):
            raise kind(f"{name}: {error}; {follows}") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if not_loaded:
        raise NotLoaded(f"certdrop's lines are out of nginx's files, which pass its test; nginx was not reloaded: {not_loaded}; it reads them when it starts")
    _forget_begun(name, *more)


def _put_back(service: services.Service, done: Sequence[tuple[str, bytes, bytes]]) -> tuple[list[str], str]:
    """Take back what was written, each file by itself, and none that somebody has changed since; what is not as it was, and why nginx has not read it."""
    left, not_taken = [], ""
    for path, old, new in reversed(done):
        try:
            if _bytes(path) != old:
                _replace(path, new, old)
        except (Refused, OSError) as error:
            left.append(f"{path} was not put back ({getattr(error, 'strerror', None) or 'it was changed meanwhile'})")
    if done:
        try:
            service.test()
            service.reload()
        except services.Failed as error:
            not_taken = str(error)
    return left, not_taken


def _checked(name: str, edits: Sequence[Change]) -> list[tuple[str, bytes, bytes]]:
    """The real files, their bytes now and then. Raises Refused where others than root can change one, or it is not what nginx showed."""
    files: dict[str, tuple[str, bytes, bytes]] = {}
    for one in edits:
        path = os.path.realpath(one.path)
        if path in files:
            raise Refused(f"{name}: {path}: nginx reads it by two names ({one.path}); nothing was changed; take one of them away")
        for part in (path, *map(str, pathlib.PurePath(path).parents)):
            at = os.stat(part)
            above = part not in (path, os.path.dirname(path)) and at.st_mode & stat.S_ISVTX          # nobody takes away there what is root's
            if at.st_uid != 0 or (at.st_mode & 0o022 and not above):
                raise Refused(f"{name}: {part}: others than root can write there; nothing was changed; chown root:root and chmod go-w it, then run this again")
        at = os.stat(path)
        if not stat.S_ISREG(at.st_mode) or at.st_nlink != 1:
            what = "has another name (a hard link)" if stat.S_ISREG(at.st_mode) else "is no file"
            raise Refused(f"{name}: {path}: {what}; nothing was changed; put the lines in by hand")
        old = _bytes(path)
        if old.decode("utf-8", "surrogateescape") != one.old:
            raise Refused(f"{name}: {path}: was changed meanwhile; nothing was changed; run this again")
        files[path] = path, old, one.new.encode("utf-8", "surrogateescape")
    return list(files.values())


def _replace(path: str, old: bytes, new: bytes) -> None:
    """Put a text in place of a file, whole or not at all: its mode and group stay. Raises Refused where it is not `old`."""
    at = os.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(at.st_mode) or _bytes(path) != old:
        raise Refused(f"{path}: was changed meanwhile")
    fd = spool.open_directory(os.path.dirname(path))
    try:
        spool.write(fd, os.path.basename(path), new, stat.S_IMODE(at.st_mode), at.st_gid)
    finally:
        os.close(fd)


def _keep(name: str, path: str, old: bytes, same: str) -> str:
    """A copy of a file as it was before any line of the site was in it; by another name of `same`, where that is one already. Its path."""
    entry = path.replace("%", "%25").replace("/", "%2F")
    mine = f"{KEPT}/{name}/{entry}"
    if same:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(mine)
        os.link(same, mine, follow_symlinks=False)
    else:
        _note(f"{KEPT}/{name}", entry, old)
    return mine


def _note(folder: str, entry: str, data: bytes) -> None:
    fd = spool.open_directory(folder)
    try:
        spool.write(fd, entry, data, 0o600)
    finally:
        os.close(fd)


def _forget_begun(*names: str) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{KEPT}/{name}/begun")


def _begun(name: str) -> list[str]:
    """The files that a run which was killed was at."""
    try:
        return _bytes(f"{KEPT}/{name}/begun").decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []


def is_begun(name: str) -> bool:
    """Whether a run was killed that changed nginx's files for this site: whether nginx has read them is not known."""
    return os.path.lexists(f"{KEPT}/{name}/begun")


def tell_of_begun(name: str) -> bool:
    """Say what a run that was killed has left, if there was one."""
    for path in _begun(name):
        has = os.path.isfile(path) and edit.bears(_text(path), name)
        say(name, f"an earlier run did not come to its end: {events.clean(path, 300)} {'has' if has else 'does not have'} certdrop's lines; "
                  "this run goes on from there")
    return is_begun(name)


def is_served(asked: Sequence[pages.Asked], names: Sequence[str]) -> bool:
    """Whether one of these names shows one of these sites' live certificates."""
    prints = {pages.fingerprint(name) for name in names}
    return any(page.shown in prints for page in pages.look([(address, domain, "https") for address, domain, _ in asked]))


def refuse_where_none_answers(name: str, service: services.Service, asked: Sequence[pages.Asked], seen: Sequence[tuple[pages.Page, pages.Page]]) -> None:
    """Raise Refused where nobody listens at port 80: nginx would not take a change, nor take it back."""
    if seen and all("refused" in page.why.lower() for _, page in seen):
        start = f"systemctl start {service.unit.removesuffix('.service')}" if service.unit and os.path.isdir("/run/systemd/system") else "service nginx start"
        raise Refused(f"{name}: nothing answers at {asked[0][0]}:80 ({seen[0][1].why}): nginx does not run, or has not read this configuration yet; nothing "
                      f"was changed; start it ({start}), or have it read it (nginx -s reload), then run this again")


@contextlib.contextmanager
def ending(name: str) -> Iterator[None]:
    """A signal to end comes as Ended at any time, and what was changed then is not left without a word."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except Ended as ended:
        said = str(ended).removeprefix(f"{name}: ").replace(AS_THEY_WERE, "what it was at is put back")
        raise Ended(f"{name}: {said}; the same command again does the rest") from ended
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def at_work(name: str, *more: str) -> Iterator[None]:
    """Be the only one who changes nginx's files. Raises Refused."""
    for folder in (KEPT, f"{KEPT}/{name}", *(f"{KEPT}/{one}" for one in more)):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    fd = os.open(KEPT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Refused(f"{name}: another certdrop-nginx is at work; nothing was changed; run this again when it has ended") from None
    try:
        yield
    finally:
        os.close(fd)


def service_here() -> services.Service:
    """nginx, as it is described here. Raises Absent."""
    try:
        return services.find("nginx")
    except services.Failed as error:
        raise Absent(str(error)) from error


def tested(service: services.Service) -> Configuration:
    """What nginx reads, where it passes its own test. Raises Absent."""
    try:
        service.test()
    except services.Failed as error:
        raise Absent(f"nginx does not pass its own test now: {error}; nothing was changed; mend that first (nginx -t)") from error
    return configuration_now()


def configuration_now() -> Configuration:
    """What nginx reads, each byte of it kept. Raises Absent."""
    done = subprocess.run(run.show(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT,
                          env=users.ENVIRONMENT, cwd="/", start_new_session=True, check=False)
    if len(done.stdout) > write.LARGEST:
        raise Absent(f"{' '.join(run.show())} shows more than {write.LARGEST >> 20} MiB; certdrop-nginx changes none of it; put the lines in by hand "
                     "(certdrop-nginx NAME prints them)")
    sources = configuration.sources(done.stdout.decode("utf-8", "surrogateescape"))
    if not sources:
        raise Absent(f"{' '.join(run.show())} shows no configuration{'' if os.geteuid() == 0 else ' to others than root; try sudo'}")
    return Configuration(sources)


def wanted(group: list[site.Site], build: Build, options: Options, tls: bool) -> Wanted:
    """What is wanted for sites that share their names. Raises Refused where one has no files yet."""
    for found in group:
        if not os.path.exists(f"{site.STATE}/live/{found.name}/nginx.conf"):
            raise Refused(f"{found.name}: has no certificate yet, not even a placeholder; run certdrop-install, then this again")
    return Wanted([found.name for found in group], [site.as_host(domain) for domain in group[0].domains], build, tls, options.redirect, options.hsts)


def to_be_asked(config: Configuration, domains: Sequence[str]) -> tuple[list[pages.Asked], list[pages.Asked]]:
    """The pages of the site's names, by http, of a wildcard one just below it; and those of others, as they are served."""
    def at(port: int, scheme: str, names: Sequence[str]) -> list[pages.Asked]:
        return [(address, name, scheme) for address in config.answers.addresses(port) for name in names
                if config.answers.wrapped(address, port) == ("ssl" if port == 443 else "")]
    others = sorted({name for server in config.servers for name in server.names if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", name)} - {*domains})[:OTHERS]
    mine = [(address, edit.below(name), scheme) for address, name, scheme in at(80, "http", domains) if edit.has_own(config, address, name)]
    return mine, [*at(80, "http", others), *at(443, "https", others)]


def _bytes(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(write.LARGEST)


def _text(path: str) -> str:
    return _bytes(path).decode("utf-8", "surrogateescape")


def say(name: str, text: str) -> None:
    """One thing that was done, or seen, for a site."""
    print(f"certdrop-nginx: {name}: {text}", flush=True)        # in turn with what goes to standard error


def _stop(number: int, _: object) -> NoReturn:
    raise Ended(f"ended by signal {number}")

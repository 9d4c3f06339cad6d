"""Puts a new server block where nginx reads it: written, enabled, tested, reloaded; and all taken back where the test fails.

Never touches a file that is there. Runs as: root, by hand. Trusts: the configuration of certdrop and of nginx. Reads: what `nginx -T` prints.
Writes: /etc/nginx/sites-available/NAME and its link in sites-enabled, or /etc/nginx/conf.d/NAME.conf; where that name is taken, certdrop-NAME.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import NamedTuple, NoReturn

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import services
from certdrop.keeper.command import as_root
from certdrop.nginx import fetched, run, vacancy
from certdrop.nginx import configuration as nginxconf
from certdrop.nginx.blocks import TIMEOUT, Absent, Build, Refused, blocks
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.vacancy import PLAIN, TLS
from certdrop.walls import users

CERTDROP = "/usr/sbin/certdrop"
LARGEST = 32 << 20                 # bytes of a configuration that are read


class Plan(NamedTuple):
    """What is to be done for the sites that share a server block."""

    sites: list[site.Site]
    path: str                      # the file that is written
    link: str                      # what enables it; "" where the file alone does
    text: str                      # "" where nothing is missing
    beside: str = ""               # the block of the names for port 80, FILE:LINE, where only the one for 443 is new


def write(groups: list[list[site.Site]], build: Build, dry_run: bool, ask: bool) -> int:
    """Do it for each group of sites with the same domains; then, where only a placeholder is there, have the issuer ask. Raises Refused, Absent."""
    return as_root(lambda: _write(groups, build, dry_run, ask))


def _write(groups: list[list[site.Site]], build: Build, dry_run: bool, ask: bool) -> int:
    try:
        service = services.find("nginx")
        service.test()
    except services.Failed as error:
        raise Absent(f"nginx does not pass its own test now: {error}; nothing was written; mend that first (nginx -t)") from error
    config = configuration()
    plans = [plan(group, build, config) for group in groups]
    if dry_run:
        for one in plans:
            waiting = [found.name for found in one.sites if _is_waiting(found.name)]
            for line in (f"write {one.path}:\n\n{one.text}" if one.text else "", f"link {one.link} to it" if one.text and one.link else "",
                         "test nginx, and reload it",
                         f"ask the CA for a certificate, as certdrop renew {' '.join(waiting)} does" if waiting and ask else ""):
                if line:
                    say(one, f"would {line}")
        return os.EX_OK
    _apply(plans, service)
    try:
        service.reload()
    except services.Failed as error:
        say(plans[0], f"nginx was not reloaded: {error}; the new file stays, nginx -t passes; start nginx, then certdrop renew {plans[0].sites[0].name}")
        return os.EX_TEMPFAIL
    waiting = [found.name for one in plans for found in one.sites if _is_waiting(found.name)]
    for one in plans:
        say(one, f"nginx reloaded; what the site serves is said at the end of {one.path}: edit it there" if one.text else
            "its names have server blocks already, with all they need; nginx reloaded")
        if one.beside:
            say(one, f"https serves what that file says, http what the server block at {one.beside} has; to serve the same by both, remove that file and run "
                     f"certdrop-nginx {one.sites[0].name} --apply")
    if not waiting:
        say(plans[0], "next: certdrop-status shows what is served")
        return os.EX_OK
    names = " ".join(waiting)
    if not ask:
        say(plans[0], f"next: certdrop renew {names} asks the CA for a certificate now; cron does within ten minutes")
        return os.EX_OK
    say(plans[0], f"certdrop renew {names}: asks the CA for a certificate now")
    sys.stdout.flush()
    return subprocess.run([CERTDROP, "renew", *waiting], stdin=subprocess.DEVNULL, env=users.ENVIRONMENT, check=False).returncode


def _is_waiting(name: str) -> bool:
    """Whether a site has nothing but its placeholder."""
    return os.path.exists(f"{site.STATE}/live/{name}/placeholder")


def say(one: Plan, text: str) -> None:
    """One thing that was done, or comes next."""
    print(f"certdrop-nginx: {one.sites[0].name}: {text}")


def configuration() -> Configuration:
    """What nginx reads."""
    done = subprocess.run(run.show(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT,
                          env=users.ENVIRONMENT, cwd="/", start_new_session=True, check=False)
    return Configuration(nginxconf.sources(done.stdout[:LARGEST].decode("utf-8", "replace")))


def plan(group: list[site.Site], build: Build, config: Configuration) -> Plan:
    """What to write for these sites. Raises Refused where another block has one of the names, or all files are taken."""
    name = group[0].name
    for found in group:
        if not os.path.exists(f"{site.STATE}/live/{found.name}/nginx.conf"):
            raise Refused(f"{found.name}: has no certificate yet, not even a placeholder; run certdrop-install, then this again")
    texts = [blocks(group, build, parts).encode() for parts in ((PLAIN, TLS), (TLS,), (PLAIN,))]
    try:
        path, link = vacancy.place(config, name, lambda path: _content(path) in texts)
        parts = vacancy.lacking(config, group, (path, link))
    except vacancy.Occupied as error:
        raise Refused(events.clean(error, 600)) from error
    blocked = "" if PLAIN in parts else vacancy.blocked(config, group)
    if blocked and fetched.at_port_80([found.name for found in group]):        # which decides
        raise Refused(events.clean(blocked, 600))
    hosts = [site.as_host(domain) for domain in group[0].domains]
    plain = [server.directive.place for server in config.servers if 80 in server.ports() and any(map(server.has_name, hosts))]
    return Plan(group, path, link, blocks(group, build, parts) if parts else "", plain[0] if plain and tuple(parts) == (TLS,) else "")


def _content(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(fd, "rb") as stream:
        return stream.read(spool.MAX_REPLY)


def _apply(plans: list[Plan], service: services.Service) -> None:
    """Write and enable all; take all of it back where nginx refuses it, or somebody ends this meanwhile."""
    made: list[str] = []
    signal.signal(signal.SIGTERM, _stop)                   # the terminal's signals do not reach this session
    try:
        for one in plans:
            if not one.text:
                continue                                   # the names have all they need
            if not os.path.lexists(one.path):
                create(one.path, one.text.encode(), made)
                say(one, f"wrote {one.path}")
            if one.link and not os.path.lexists(one.link):
                os.symlink(f"../sites-available/{os.path.basename(one.path)}", one.link)
                made.append(one.link)
                say(one, f"linked {one.link} to it")
        service.test()
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)      # what is begun is taken back, whoever is in a hurry
        for path in reversed(made):
            _unlink(path)
        if isinstance(error, services.Failed):
            raise Refused(f"{plans[0].sites[0].name}: nginx refuses the new server block: {error}; all was taken back, nginx was not reloaded") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    raise Refused(f"ended by signal {number}; nothing was changed")

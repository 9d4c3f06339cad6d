"""Puts a new server block where nginx reads it: written, enabled, tested, reloaded; and all taken back where the test fails.

Never touches a file that is there. Runs as: root, by hand. Trusts: the configuration of certdrop and of nginx. Reads: what `nginx -T` prints.
Writes: /etc/nginx/sites-available/NAME and its link in sites-enabled, or /etc/nginx/conf.d/NAME.conf.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import NamedTuple, NoReturn

from certdrop import events, jail, nginxconf, port80, site, spool
from certdrop.admin.nginx import NGINX, PLAIN, TIMEOUT, TLS, Absent, Build, Refused, blocks
from certdrop.keeper import services
from certdrop.keeper.command import as_root
from certdrop.nginxconf import Configuration, Server

CERTDROP = "/usr/sbin/certdrop"
ETC_NGINX = "/etc/nginx"
LARGEST = 32 << 20                 # bytes of a configuration that are read


class Plan(NamedTuple):
    """What is to be done for the sites that share a server block."""

    sites: list[site.Site]
    path: str                      # the file that is written
    link: str                      # what enables it; "" where the file alone does
    text: str


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
            for line in (f"write {one.path}:\n\n{one.text}", f"link {one.link} to it" if one.link else "", "test nginx, and reload it",
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
        say(one, f"nginx reloaded; what the site serves is said at the end of {one.path}: edit it there")
    if not waiting:
        say(plans[0], "next: certdrop-status shows what is served")
        return os.EX_OK
    names = " ".join(waiting)
    if not ask:
        say(plans[0], f"next: certdrop renew {names} asks the CA for a certificate now; cron does within ten minutes")
        return os.EX_OK
    say(plans[0], f"certdrop renew {names}: asks the CA for a certificate now")
    sys.stdout.flush()
    return subprocess.run([CERTDROP, "renew", *waiting], stdin=subprocess.DEVNULL, env=jail.ENVIRONMENT, check=False).returncode


def _is_waiting(name: str) -> bool:
    """Whether a site has nothing but its placeholder."""
    return os.path.exists(f"{site.STATE}/live/{name}/placeholder")


def say(one: Plan, text: str) -> None:
    """One thing that was done, or comes next."""
    print(f"certdrop-nginx: {one.sites[0].name}: {text}")


def configuration() -> Configuration:
    """What nginx reads."""
    done = subprocess.run([NGINX, "-T", "-q"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT,
                          env=jail.ENVIRONMENT, cwd="/", start_new_session=True, check=False)
    return Configuration(nginxconf.sources(done.stdout[:LARGEST].decode("utf-8", "replace")))


def plan(group: list[site.Site], build: Build, config: Configuration) -> Plan:
    """What to write for these sites. Raises Refused where another block has one of the names, or a file is in the way."""
    name, domains = group[0].name, [site.as_host(domain) for domain in group[0].domains]
    for found in group:
        if not os.path.exists(f"{site.STATE}/live/{found.name}/nginx.conf"):
            raise Refused(f"{found.name}: has no certificate yet, not even a placeholder; run certdrop-install, then this again")
    path, link = place(config, name)
    texts = [blocks(group, build), blocks(group, build, (TLS,))]
    if os.path.lexists(path):
        mine = _content(path) in [text.encode() for text in texts]
        if not mine:
            raise Refused(f"{name}: {path} is there already, and certdrop-nginx changes no file; move it away, or add its lines by hand "
                          f"(certdrop-nginx {name} prints them)")
    others = [server for server in config.servers if server.directive.file not in (path, link)]
    for server in others:
        same = sorted(set(domains) & set(server.names))
        if same and any(_is_tls(listen.port, listen.words) for listen in server.listens):
            beside = server.beside(domains)
            if beside:
                raise Refused(f"{name}: {same[0]} has a server block already, at {server.directive.place}, which is for {events.clean(beside[0], 100)}, too; "
                              f"give {same[0]} one of its own, or have both in domains of one site")
            raise Refused(f"{name}: {same[0]} has a server block already, at {server.directive.place}; put this line into it, in place of its "
                          f"ssl_certificate and ssl_certificate_key: include {site.STATE}/live/{name}/nginx.conf;")
    return Plan(group, path, link, blocks(group, build, (PLAIN, TLS) if _needs_port_80(name, domains, others, config) else (TLS,)))


def _needs_port_80(name: str, domains: list[str], others: list[Server], config: Configuration) -> bool:
    """Whether no block has these names at port 80. Raises Refused where one has, and does not answer challenges."""
    there = [server for server in others if 80 in server.ports() and set(domains) & set(server.names)]
    missing = [domain for domain in domains if not any(domain in server.names for server in there)]
    for server in there:
        for domain in sorted(set(domains) & set(server.names)):
            way = port80.first_trouble(config, domain)
            if way:
                raise Refused(f"{name}: {domain} has a server block already, at {server.directive.place}, which does not answer challenges: "
                              f"{events.clean(way.why, 300)}; {events.clean(way.mend, 300)} (then run this again)")
    if there and missing:
        raise Refused(f"{name}: {there[0].names[0]} has a server block for port 80 already, at {there[0].directive.place}, and {missing[0]} has none; "
                      f"add {missing[0]} to its server_name; then run this again")
    return not there


def place(config: Configuration, name: str) -> tuple[str, str]:
    """The file to write, and the link that enables it, by what nginx's http part includes. Raises Refused where it includes neither."""
    patterns = config.patterns()
    available, enabled, single = f"{ETC_NGINX}/sites-available/{name}", f"{ETC_NGINX}/sites-enabled/{name}", f"{ETC_NGINX}/conf.d/{name}.conf"
    if os.path.isdir(ETC_NGINX + "/sites-available") and any(nginxconf.matches(enabled, pattern) for pattern in patterns):
        return available, enabled
    if os.path.isdir(ETC_NGINX + "/conf.d") and any(nginxconf.matches(single, pattern) for pattern in patterns):
        return single, ""
    raise Refused(f"{name}: nginx includes neither {ETC_NGINX}/sites-enabled/* nor {ETC_NGINX}/conf.d/*.conf; put the blocks that certdrop-nginx {name} "
                  "prints where it reads them")


def _is_tls(port: int, words: tuple[str, ...]) -> bool:
    return port == 443 or "ssl" in words


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
            if not os.path.lexists(one.path):
                create(one.path, one.text.encode(), made)
                say(one, f"wrote {one.path}")
            if one.link and not os.path.lexists(one.link):
                os.symlink(f"../sites-available/{one.sites[0].name}", one.link)
                made.append(one.link)
                say(one, f"linked {one.link} to it")
            elif one.link and not os.path.samefile(one.link, one.path):
                raise Refused(f"{one.sites[0].name}: {one.link} is there already, and leads elsewhere; certdrop-nginx changes no file")
        service.test()
    except BaseException as error:
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

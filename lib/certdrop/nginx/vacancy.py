"""Whether nginx has room for a new server block: the file it would be, which blocks the names lack, and what is there already.

`certdrop-nginx --write` goes by it, and so does whoever advises it: what it would refuse is not advised. Runs as: anyone. Trusts: nginx's
configuration, which is root's. Reads: whether files are there. Writes: nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from certdrop.config import site
from certdrop.nginx import challenge, configuration
from certdrop.nginx.configuration import Configuration, Server

ETC_NGINX = "/etc/nginx"
PLAIN, TLS = "plain", "tls"        # the two server blocks


class Occupied(Exception):
    """Something is there already; the text says what, and what to do."""


def place(config: Configuration, name: str, is_ours: Callable[[str], bool] = lambda path: False) -> tuple[str, str]:
    """The file to write, and the link that enables it ("" where the file alone does), by what nginx's http part includes. Raises Occupied."""
    patterns = config.patterns()
    taken = []
    for stem in (name, f"certdrop-{name}"):                # the former is where many administrators have a file of their own
        available, enabled, single = f"{ETC_NGINX}/sites-available/{stem}", f"{ETC_NGINX}/sites-enabled/{stem}", f"{ETC_NGINX}/conf.d/{stem}.conf"
        if os.path.isdir(ETC_NGINX + "/sites-available") and any(configuration.matches(enabled, pattern) for pattern in patterns):
            path, link = available, enabled
        elif os.path.isdir(ETC_NGINX + "/conf.d") and any(configuration.matches(single, pattern) for pattern in patterns):
            path, link = single, ""
        else:
            raise Occupied(f"{name}: nginx includes neither {ETC_NGINX}/sites-enabled/* nor {ETC_NGINX}/conf.d/*.conf; put the blocks that certdrop-nginx "
                           f"{name} prints where it reads them")
        if (os.path.lexists(path) and not is_ours(path)):
            taken.append(path)
        elif link and os.path.lexists(link) and os.path.realpath(link) != os.path.realpath(path):
            taken.append(link)
        else:
            return path, link
    raise Occupied(f"{name}: {' and '.join(taken)} are there already, and certdrop-nginx changes no file; move one of them away, or add its lines by hand "
                   f"(certdrop-nginx {name} prints them)")


def lacking(config: Configuration, sites: Sequence[site.Site], ours: Sequence[str] = ()) -> tuple[str, ...]:
    """Which of the two blocks these sites of the same names lack, but for what the files `ours` have. Raises Occupied where a block has some of the
    names and not all, or has another certificate."""
    name, domains = sites[0].name, [site.as_host(domain) for domain in sites[0].domains]
    others = [server for server in config.servers if server.directive.file not in ours]
    found, partial, without = [], list[str](), list[str]()
    for part, has in ((PLAIN, _is_plain), (TLS, _is_tls)):
        there = [server for server in others if has(server) and any(map(server.has_name, domains))]
        missing = [domain for domain in domains if not any(server.has_name(domain) for server in there)]
        if not there:
            found.append(part)
            continue
        for server in there:
            mine = next(filter(server.has_name, domains))
            if part == TLS:
                _refuse_certificate(name, mine, server, [one.name for one in sites], server.beside(domains))
        if missing:
            partial += [f"at {there[0].all('server_name')[0].place}"]
            without = missing
    if partial:
        raise Occupied(f"{name}: some of its names have a server block already, and {without[0]} has none; "
                       f"add {' '.join(without)} to the server_name {' and '.join(partial)}; then run this again")
    return tuple(found)


def can_write(config: Configuration, found: site.Site) -> bool:
    """Whether `certdrop-nginx --write` would put a block for port 80 in place."""
    try:
        place(config, found.name)
        return PLAIN in lacking(config, [found])
    except Occupied:
        return False


def blocked(config: Configuration, sites: Sequence[site.Site]) -> str:
    """What is in the way of challenges for a name of these sites that has a block already, and what to change there; "" where nothing is seen, or it cannot
    be told. Only a token that is fetched says whether it is so."""
    domains = [site.as_host(domain) for domain in sites[0].domains]
    for server in config.servers:
        for domain in domains if _is_plain(server) else ():
            if server.has_name(domain):
                way = challenge.first_blocked(config, domain, challenge.Wish(domains, False))
                if way and way.is_blocked:
                    return (f"{sites[0].name}: {domain} has a server block already, at {server.directive.place}, which does not answer challenges: "
                            f"{way.why}; {way.mend} (then run this again)")
    return ""


def _refuse_certificate(name: str, domain: str, server: Server, sites: list[str], beside: Sequence[str]) -> None:
    wanted = [f"{site.STATE}/live/{one}/nginx.conf" for one in sites]
    absent = [path for path in wanted if not any(one.file == path for one in server.inside)]
    if absent and beside:
        raise Occupied(f"{name}: {domain} has a server block already, at {server.directive.place}, which is for {beside[0]}, too; "
                       f"give {domain} one of its own, or have both in domains of one site")
    if absent:
        raise Occupied(f"{name}: {domain} has a server block already, at {server.directive.place}; put this line into it, in place of its "
                       f"ssl_certificate and ssl_certificate_key: include {absent[0]};")


def _is_plain(server: Server) -> bool:
    return 80 in server.ports()


def _is_tls(server: Server) -> bool:
    return any(listen.port == 443 or "ssl" in listen.words for listen in server.listens)

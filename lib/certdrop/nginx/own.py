"""Where a configuration names a site's live pair; and the server block that certdrop-nginx wrote for it, taken away with the site if nobody changed it.

Runs as: root, by hand. Trusts: root's files, and what `nginx -T` prints of them. Reads: them. Writes: takes away one file of nginx's, and the link to it.
"""

from __future__ import annotations

import itertools
import os
import re

from certdrop import spool
from certdrop.by_hand import Refused
from certdrop.config import general, site
from certdrop.keeper import services
from certdrop.nginx import configuration
from certdrop.nginx.blocks import Build, blocks
from certdrop.nginx.vacancy import PLAIN, TLS

ETC_NGINX = "/etc/nginx"


def uses(shown: str, name: str) -> list[str]:
    """The FILE:LINE places where a configuration names the site's live pair. Of a service that shows no files, none."""
    needle, found = f"{site.STATE}/live/{name}/", []
    for source in configuration.sources(shown):
        found += [f"{source.path}:{number}" for number, line in enumerate(source.text.splitlines(), 1) if needle in line.partition("#")[0]]
    return found


def elsewhere(shown: str, path: str) -> dict[str, str]:
    """The names that server blocks outside this file have, each with the FILE:LINE of such a block."""
    return {name: server.directive.place for server in configuration.Configuration(configuration.sources(shown)).servers for name in server.names
            if os.path.realpath(server.directive.place.rpartition(":")[0]) != path}


def own(places: list[str], name: str) -> str:
    """The file in which all these places are, where certdrop-nginx wrote it for this site and nobody changed it since; else ""."""
    files = {os.path.realpath(place.rpartition(":")[0]) for place in places}
    if len(files) != 1:
        return ""
    (path,) = files
    return path if path.startswith(ETC_NGINX + "/") and _is_unmodified(path, name) else ""


def _is_unmodified(path: str, name: str) -> bool:
    """Whether certdrop-nginx would print just this, for the nginx and the names that it was printed for."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(spool.MAX_REPLY)
    except (OSError, UnicodeError):
        return False
    head = re.match(r"# \S+: printed by certdrop-nginx for nginx ([0-9.]+);", text)
    names = re.search(r"^    server_name ([^;]+);$", text, re.M)
    if not head or not names:
        return False
    found = site.Site(name, general.Config())
    found.domains = [domain.strip("[]") for domain in names[1].split()]
    nginx = tuple(int(part) for part in head[1].split(".") if part)
    builds = [Build(nginx, openssl, ipv6) for openssl, ipv6 in itertools.product([(3, 0), (3, 5)], [False, True])]
    ways = itertools.product(builds, ((PLAIN, TLS), (TLS,), (PLAIN,)), (True, False), (True, False))
    return any(blocks([found], *way) == text for way in ways)


def take_away(path: str, service: services.Service) -> str:
    """Remove the file and what links to it; where the service does not pass its test then, put both back. How the reload went. Raises Refused."""
    links = {}
    for folder in (ETC_NGINX + "/sites-enabled", ETC_NGINX + "/conf.d"):
        for entry in os.listdir(folder) if os.path.isdir(folder) else []:
            link = f"{folder}/{entry}"
            if os.path.islink(link) and os.path.realpath(link) == path:
                links[link] = os.readlink(link)
    aside = f"{os.path.dirname(path)}/.{os.path.basename(path)}.certdrop-removed"
    try:
        os.rename(path, aside)
        for link in links:
            os.unlink(link)
        service.test()
    except (services.Failed, OSError) as error:
        if os.path.lexists(aside):
            os.rename(aside, path)
        for link, target in links.items():
            if not os.path.lexists(link):
                os.symlink(target, link)
        why = f"{path}: {error.strerror}" if isinstance(error, OSError) else f"without it {error}"
        raise Refused(f"{path}: stays: {why}; nothing was changed") from error
    os.unlink(aside)
    try:
        service.reload()
    except services.Failed as error:
        return f"was not reloaded: {error}"        # where it does not run, it comes without the block
    return "reloaded"

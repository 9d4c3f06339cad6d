"""Looks at nginx's configuration: whether challenges are answered, the live certificates included, and TLS as the guideline has it.

Runs as: root, which alone can have nginx print it; what stands there was written by root, and goes no further than into these lines.
Trusts: nginx. Reads: what `nginx -V` and `nginx -T` print; owners and modes. Writes: nothing.
Sources: Mozilla's server-side TLS guideline 6.0; nginx's CHANGES.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from typing import NamedTuple

from certdrop import tokens
from certdrop.config import persist
from certdrop.config import site as configuration
from certdrop.doctor.ask import ask
from certdrop.doctor.line import FAILED, OK, WARNING, Line, verdict
from certdrop.events import clean
from certdrop.listening import asked_name
from certdrop.nginx import challenge, expression, run, vacancy
from certdrop.nginx import configuration as nginxconf
from certdrop.nginx.configuration import Configuration, Server
from certdrop.nginx.syntax import Directive

PID = "/run/nginx.pid"             # Debian's, where the configuration names none
OLDEST = (1, 18)
TICKETS = (1, 23, 2)               # from here on nginx renews the tickets' keys by itself
SAFE_BY_DEFAULT = (1, 27, 3)       # from here on ssl_protocols is TLSv1.2 and TLSv1.3 by default
GOOD_PROTOCOLS = {"TLSv1.2", "TLSv1.3"}

_WEAK = re.compile(r"NULL|EXP|RC4|RC2|3?DES(?!CRIPT)|MD5|IDEA|SEED|ADH|AECDH|LOW|PSK|SRP|CAMELLIA", re.IGNORECASE)


def look(sites: list[configuration.Site]) -> tuple[list[Line], Seen | None]:
    """All of it, for these sites; and what names are to be compared with, None where nginx serves none of them."""
    if not any("nginx" in found.services for found in sites):
        return [Line(OK, "nginx", "no site names it among its services")] if sites else [], None
    asked = ask(*run.command("-V"))
    version = re.search(r"nginx version: \S*?/([0-9]+(?:\.[0-9]+)*)", asked.words + asked.out)
    if version is None:
        return [Line(FAILED, "nginx", f"does not say its version: {asked.words or 'nothing'}",
                     run.missing(asked.words))], None
    numbers = tuple(map(int, version[1].split(".")))
    lines = [] if numbers >= OLDEST else [
        Line(WARNING, "nginx", f"version {version[1]} is older than any that certdrop was tried with", "upgrade to Debian 12 or later")]
    tested = ask(*run.command("-t", "-q"))
    if tested.code:
        runs = is_running(PID)
        return [*lines, Line(FAILED, "nginx", f"does not pass its own test: {_emergency(tested.words)}; "
                             f"{'certificates are not installed until it does' if runs else 'so it does not run, and nobody answers the CA'}",
                             f"mend that line; then {'nginx -s reload' if runs else _start()}")], Seen(runs, _start(), [], {}, True)
    config = Configuration(nginxconf.sources(ask(*run.show()).out))
    runs = is_running(next((one.value for one in config.top if one.name == "pid" and one.args), PID))
    lines.append(Line(OK, "nginx", f"version {version[1]} runs") if runs else
                 Line(FAILED, "nginx", f"version {version[1]} is installed and does not run: nobody answers the CA, or serves a certificate", _start()))
    mine = [found for found in sites if "nginx" in found.services]
    kept_out = readable(config)
    for found in mine:
        lines += certificate(config, found)
    ways = {found.name: trouble for found in mine if (trouble := in_the_way(config, found))}
    return lines + tls(config, mine, numbers), Seen(runs, _start(), config.answers.addresses(80), ways, False, kept_out[0] if kept_out else None)


class Seen(NamedTuple):
    """What root saw of nginx: whether it runs, what starts it, where it listens at port 80; by site and name what is in the way of challenges, by its
    configuration: (the address, why, what mends it, whether it cannot be told); and whether it fails its test, so that nothing is known of that."""

    runs: bool
    start: str
    addresses: list[str]
    ways: dict[str, dict[str, list[tuple[str, str, str, bool]]]]
    broken: bool = False
    kept_out: tuple[str, str] | None = None                # why its workers cannot read the challenges, and what mends it

    def trouble(self, site: str, domain: str, address: str) -> tuple[str, str] | None:
        """Why, and what mends it, for a challenge that came to this address."""
        family = "[::]" if ":" in address else "*"
        known = {where: (why, mend) for where, why, mend, _ in self.ways.get(site, {}).get(domain, [])}
        exact = configuration.as_host(address)
        return known.get(exact if exact in self.addresses else family)


def by_reading(seen: Seen, sites: list[configuration.Site]) -> list[Line]:
    """What is in the way of challenges by nginx's configuration alone, where no token is fetched, which alone decides."""
    lines = [Line(WARNING, "nginx challenges", *seen.kept_out)] if seen.kept_out else []
    for found in sites:
        if found.validation == persist.METHOD:
            continue                           # nobody asks port 80 for it
        wrong: dict[tuple[str, str], None] = {}
        for ways in seen.ways.get(found.name, {}).values():
            ways = [one for one in ways if one[0] in seen.addresses or not seen.addresses]
            for where, why, mend, unclear in ways:         # an address that the name need not have is named
                wrong[f"asked for at {where}: {why}" if seen.addresses and len(ways) < len(seen.addresses) else why,
                      "certdrop-check fetches a token, which tells" if unclear else mend] = None
        if not seen.broken and "nginx" in found.services:
            lines += verdict(f"{found.name}: port 80", list(wrong), "nothing is seen in the way in nginx's configuration; no token was fetched to prove it",
                             WARNING)
    return lines


def _start() -> str:
    return "systemctl start nginx" if os.path.isdir("/run/systemd/system") else "service nginx start"


def _emergency(words: str) -> str:
    """nginx's words, without the time and the numbers of its process."""
    words = re.sub(r"^(\S+ \S+ )?\[(emerg|alert|crit)\] (\d+#\d+: )?", "", words.removeprefix("nginx: "))
    return words.partition(" nginx: configuration file ")[0]


def is_running(pid_file: str) -> bool:
    """Whether the process that its pid file names is an nginx."""
    try:
        with open(pid_file, encoding="ascii") as stream:
            number = int(stream.read(20))
        with open(f"/proc/{number}/comm", encoding="ascii", errors="replace") as stream:
            return stream.read().startswith("nginx")
    except (OSError, ValueError):
        return False


def in_the_way(config: Configuration, found: configuration.Site) -> dict[str, list[tuple[str, str, str, bool]]]:
    """By name what keeps challenges from certdrop, at each address that nginx listens at, and at any other one ("*", "[::]"); or that it cannot be told."""
    trouble: dict[str, list[tuple[str, str, str, bool]]] = {}
    write: list[bool] = []                     # asked for when it is needed
    for domain in found.domains if found.validation == persist.HTTP else ():
        ways: dict[str, challenge.Way] = {}
        for address in dict.fromkeys([*config.answers.addresses(80), "*", "[::]"]):
            loopback = {"*": "127.0.0.1", "[::]": "[::1]"}.get(address, "")
            same = ways.get(loopback) if loopback and config.answers.listen_for(loopback, 80) == config.answers.listen_for(address, 80) else None
            way = same if same and not same.why else challenge.way(config, address, domain, challenge.Wish((), False))
            ways[address] = way
            if way.why:
                write = write or [vacancy.can_write(config, found)]
                mend = challenge.way(config, address, domain, challenge.Wish(found.domains, write[0])).mend_for(found.name)
                trouble.setdefault(domain, []).append((address, clean(way.why, 300), clean(mend, 300), way.unclear))
    return trouble


def certificate(config: Configuration, found: configuration.Site) -> list[Line]:
    """Whether the block that answers for each name over TLS has the live certificate by its one include."""
    include = f"{configuration.STATE}/live/{found.name}/nginx.conf"
    wrong, absent = [], []
    port = 443
    places = config.answers.addresses(port)
    for domain in found.domains:
        try:
            servers = [server for address in places if (server := config.answers.find(address, port, sni(domain)))]
        except expression.Unknown as unknown:
            return [Line(WARNING, f"{found.name}: port {port}", f"cannot tell from nginx's configuration which block answers for {domain}: "
                         f"{clean(str(unknown), 200)}", unknown.mend)]
        below = _below(config, found, domain, include) if domain.startswith("*.") else None
        if below is not None:
            wrong += below
            continue
        own = [server for server in servers if server.has_name(configuration.as_host(domain))]
        servers = own or servers               # where it has no block another answers, rightly; what is served there is asked
        if not servers:
            absent.append(domain)
        for server in servers:
            named = server.all("ssl_certificate") or config.settings(server, "ssl_certificate")
            wrong += _certificate(server, named, include, found, domain)
    what = f"{found.name}: port {port}"
    if absent and len(absent) == len(found.domains):
        return [Line(WARNING, what, "nginx serves nothing there", f"certdrop-nginx {found.name} --write puts a server block in place")]
    return verdict(what, list(dict.fromkeys(wrong)), f"nginx includes {include}", WARNING)         # what is served is asked by a handshake, which decides


def _below(config: Configuration, found: configuration.Site, domain: str, include: str) -> list[tuple[str, str]] | None:
    """What is wrong where no block has a wildcard, and blocks of single names below it have its certificate; None where it is not so."""
    if any(server.has_name(domain) for server in config.servers):
        return None
    names = [name for server in config.servers if config.includes(server, include) for name in server.names
             if name.partition(".")[2] == domain[2:] and configuration.is_host_name(name)]
    asked = asked_name(found.domains, found.probe)
    if not names or asked in names or not asked.endswith(domain[1:]):
        return [] if names else None
    return [(f"no server block has {domain}, and those below it that have its certificate are not asked for it: after a renewal certdrop asks for {asked}",
             f'write probe = "{names[0]}" into {configuration.ETC}/sites.d/{found.name}.toml')]


def sni(domain: str) -> str:
    """What a TLS client says of where it goes: nothing, where that is an address (RFC 6066 section 3), and the default server answers."""
    return "" if configuration.is_address(domain) else domain


def _certificate(server: Server, named: list[Directive], include: str, site: configuration.Site, domain: str) -> list[tuple[str, str]]:
    name, others = site.name, server.beside([configuration.as_host(one) for one in site.domains])
    mend = f"put there: include {include};"
    if not server.has_name(configuration.as_host(domain)):  # a block of others' is not ours to change
        mend = f"certdrop-nginx {name} --write puts a server block of its own in place"
    elif others:
        mend = f"give {domain} a server block of its own, for that one is for {clean(others[0], 100)}, too; or have both in domains of one site"
    if any(one.file == include for one in named):
        return []
    live = configuration.STATE + "/live/"
    lent = [one.file[len(live):].partition("/")[0] for one in named if one.file.startswith(live)]
    if lent:
        return [(f"{server.directive.place} answers for {domain} with the certificate of the site {lent[0]}", mend)]
    if not server.has_name(configuration.as_host(domain)) and not any(configuration.STATE in one.value for one in named):
        return [(f"{domain} has no server block of its own; {server.directive.place} answers for it, with another certificate",
                 f"certdrop-nginx {name} --write puts one in place")]
    for one in named:
        if one.value.startswith(f"{configuration.STATE}/live/{name}/"):
            return [(f"{one.place} names the certificate itself: a reload in the middle of a swap reads a key and a chain that do not match", mend)]
        if one.value.startswith(f"{configuration.STATE}/sites/"):
            return [(f"{one.place} names one generation: renewals never show there", mend)]
    shown = clean(named[0].value, 120) if named else "none"
    return [(f"{server.directive.place} answers for {domain} with another certificate ({shown})", mend)]


def tls(config: Configuration, sites: list[configuration.Site], version: tuple[int, ...]) -> list[Line]:
    """The TLS settings of the blocks that serve these sites, against the guideline's intermediate level."""
    includes = {f"{configuration.STATE}/live/{found.name}/nginx.conf" for found in sites}
    servers = [server for server in config.servers if any(config.includes(server, path) for path in includes)]
    if not servers:
        return []
    wrong: dict[str, str] = {}                 # what mends it: in the block, as what http says may be there once only
    for server in servers:
        for why in _settings(config, server, version):
            wrong.setdefault(clean(why, 300), "take that line out" if "ssl_stapling" in why else "put into the server block at "
                             f"{server.directive.place}, in place of such lines of its own: include /etc/nginx/snippets/certdrop-tls.conf;")
    return verdict("TLS settings", list(wrong.items()), f"of {len(servers)} server blocks are as the guideline's intermediate level has them", WARNING)


def _settings(config: Configuration, server: Server, version: tuple[int, ...]) -> list[str]:
    def setting(name: str) -> Directive | None:
        found = config.settings(server, name)
        return found[0] if found else None

    wrong = []
    protocols = setting("ssl_protocols")
    if protocols is None:
        if version < SAFE_BY_DEFAULT:
            wrong.append(f"{server.directive.place}: no ssl_protocols: this nginx then speaks TLS 1.0 and 1.1 too")
    elif set(protocols.args) - GOOD_PROTOCOLS:
        wrong.append(f"{protocols.place}: {' '.join(sorted(set(protocols.args) - GOOD_PROTOCOLS))} is weak; the guideline has TLSv1.2 and TLSv1.3")
    elif "TLSv1.3" not in protocols.args:
        wrong.append(f"{protocols.place}: TLSv1.3 is missing")
    ciphers = setting("ssl_ciphers")
    weak = [word for word in re.split(r"[:, ]", ciphers.value) if not word.startswith(("!", "-")) and _WEAK.search(word)] if ciphers else []
    if ciphers and weak:
        wrong.append(f"{ciphers.place}: weak ciphers: {' '.join(weak[:5])}")
    elif ciphers is None:
        wrong.append(f"{server.directive.place}: no ssl_ciphers: nginx's default has ciphers without forward secrecy")
    tickets = setting("ssl_session_tickets")
    if version < TICKETS and (tickets is None or tickets.value != "off"):
        wrong.append(f"{(tickets or server.directive).place}: session tickets of this nginx keep one key for as long as it runs; ssl_session_tickets off")
    stapling = setting("ssl_stapling")
    if stapling and stapling.value == "on":
        wrong.append(f"{stapling.place}: ssl_stapling does nothing: Let's Encrypt ended OCSP in 2025")
    return wrong


def readable(config: Configuration) -> list[tuple[str, str]]:
    """What keeps nginx's workers from reading the challenges."""
    user = next((one for one in config.top if one.name == "user" and one.args), None)
    name = user.value if user else "nobody"
    try:
        known = pwd.getpwnam(name)
    except KeyError:
        return [(f"nginx's user {clean(name, 40)} does not exist", "see `user` in /etc/nginx/nginx.conf")]
    groups = {known.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
    path = tokens.directory()
    for folder in [*reversed(_above(path)), path]:
        try:
            found = os.stat(folder)
        except OSError as error:
            return [(f"{folder}: {error.strerror}", "install the package again")]
        shift = 6 if found.st_uid == known.pw_uid else 3 if found.st_gid in groups else 0
        if known.pw_uid != 0 and not found.st_mode >> shift & 1:
            return [(f"nginx's user {name} may not go through {folder}: the CA's challenges are answered with 403", f"chmod a+x {folder}")]
    return []


def _above(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found

"""Looks at the configuration, whether root's and the issuer's runs come, and what is served.

Runs as: anyone; _certdrop-watch where root asked. Trusts: root's configuration; of what the issuer wrote, what evidence.py checked.
Reads: /etc/certdrop, the state, and by handshakes what the services of this host show. Writes: nothing.
"""

from __future__ import annotations

import difflib
import os
import stat
import time
from collections.abc import Collection

from certdrop import events
from certdrop.config import service as described
from certdrop.config import dane, general
from certdrop.config import site as configuration
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.doctor.line import verdict as lines_of
from certdrop.trust import roots
from certdrop.watcher import verdict
from certdrop.watcher.evidence import Reader
from certdrop.watcher.look import look as judged_sites
from certdrop.watcher.places import Places

STARTS = "see the lines on cron; /etc/cron.d/certdrop starts it"
SILENT = 2 * 3600                  # seconds after which a run was due, be it the first


def look(names: list[str]) -> list[Line]:
    """The configuration: of these sites, or all."""
    try:
        config = general.load_config()
        names = names or configuration.site_names()
    except configuration.ConfigError as error:
        return [Line(FAILED, "configuration", events.clean(error), "nothing is renewed until then")]
    wrong, services = [], dict.fromkeys(config.services)
    trusted = set[str]()
    for name in names:
        try:
            wanted = configuration.load_site(name, config)
            services.update(dict.fromkeys(wanted.services))
            trusted |= {*wanted.roots, *map(configuration.own_roots, general.directories(wanted))}
            dane.is_checked(name)
        except configuration.ConfigError as error:
            wrong.append((events.clean(error), f"{name} is not renewed until then"))
    wrong += [(events.clean(why), f"nothing is installed for {service} until then; /usr/share/doc/certdrop/examples/services.d has the file as it came")
              for service in services if (why := _described_badly(service))]
    for key, path in (("ca_bundle", config.ca_bundle), ("trust_roots", config.trust_roots)):
        why, mend = unreadable(path)
        if why:
            wrong.append((f"{key}: {why}: issuer and judge have to read it", mend or f"correct {key} in {configuration.ETC}/certdrop.toml"))
    return lines_of("configuration", wrong, f"{len(names)} sites" if len(names) != 1 else f"site {names[0]}") + _roots(config, trusted)


def _described_badly(service: str) -> str:
    """What the keeper would say of services.d/NAME.toml; "" where nothing."""
    path = described.path(service)
    try:
        found = described.read(service)
    except configuration.ConfigMissing:
        return f"{path} does not exist; it says how to test and reload {service}"
    except configuration.ConfigError as error:
        return str(error)
    good = all(command[:1] and os.path.isabs(command[0]) for command in (found.test, found.reload))
    return "" if good else f"{path}: test and reload must name a program by its absolute path, then its arguments"


def _roots(config: general.Config, trusted: Collection[str] = ()) -> list[Line]:
    """Files of roots that nobody reads, as those whose name is not the CA's: the configured one's, or one of those that a site names, which are `trusted`."""
    place, used = configuration.ETC + "/roots.d", {config.own_roots, config.trust_roots, config.ca_bundle, *trusted}
    return [Line(WARNING, "roots", f"{place}/{entry}: no configured CA uses it; the roots of {roots.ca_named(config)} are looked for in {config.own_roots}",
                 "rename it to that, where it is this CA's; else remove it")
            for entry in sorted(_entries(place)) if f"{place}/{entry}" not in used and not entry.startswith(".")]


def untrusted(sites: list[configuration.Site], config: general.Config) -> list[Line]:
    """Where root's judge refused what the CA issued, because it leads to none of trust_roots."""
    try:
        reader = Reader()
    except configuration.ConfigError:
        return []
    found = []
    for one in sites:
        refused = reader.site(one.name).refused
        if refused and refused.what == "untrusted":
            found.append(Line(FAILED, f"{one.name}: roots", f"what the CA issued leads to no root that {' or '.join(one.roots)} has",
                              _roots_for(config.asking(one.directory))))
    return found


def _roots_for(config: general.Config) -> str:
    """How the CA's roots come to where they are looked for."""
    own, folder = config.own_roots, f"{configuration.ETC}/roots.d"
    others = [entry for entry in _entries(folder) if entry.endswith(".pem")]
    again = "; then certdrop renew asks the CA again"
    if config.trust_roots == configuration.STORE and len(others) == 1 and not os.path.exists(own):
        return f"mv {folder}/{others[0]} {own} if that is this CA's, as only a file of that name counts for it{again}"
    return f"put the CA's root certificates (PEM) into {config.trust_roots if config.trust_roots not in (configuration.STORE, own) else own}{again}"


def unreadable(path: str) -> tuple[str, str]:
    """What keeps everybody from reading a file ("" where nothing does), and the command that mends it ("" where there is none)."""
    at = ""
    for part in path.split("/")[1:]:
        at += "/" + part
        try:
            found = os.stat(at)
        except FileNotFoundError:
            near = difflib.get_close_matches(part, _entries(os.path.dirname(at)), 1)
            return f"{at} is not there" + (f"; {os.path.dirname(at)}/{near[0]} is" if near else ""), ""
        except OSError as error:
            return f"{at}: {error.strerror}", ""
        if stat.S_ISDIR(found.st_mode) and at == path:
            return f"{path} is a directory", ""
        if stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o001:
            return f"{path} lies below {at}, which is closed to others", f"chmod o+x {at}"
        if at == path and not found.st_mode & 0o004:
            return f"{path} is closed to others", f"chmod a+r {path}"
    return "", ""


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def failures(sites: list[configuration.Site]) -> dict[str, str]:
    """By name, what the CA said when it could last not reach it."""
    try:
        reader = Reader()
    except configuration.ConfigError:
        return {}                              # said already
    found = {}
    for one in sites:
        failing = reader.site(one.name).failing
        if failing and failing.what == "validation":
            domain, colon, words = failing.error.partition(": ")
            if colon and domain in one.domains:
                found[domain] = events.clean(words.removeprefix("the CA says "), 200)
    return found


def runs(now: float | None = None) -> list[Line]:
    """Whether cron (or what else was set up) still starts what it should."""
    now = time.time() if now is None else now
    try:
        reader = Reader()
    except configuration.ConfigError:
        return []                              # said already
    found = []
    began = min(map(reader.configured_at, reader.names()), default=0)
    last = {"keeper": reader.last_run("keeper").at, "issuer": reader.last_run("issuer").at, "watcher": reader.watcher().at}
    for principal, often in (("keeper", "hourly"), ("issuer", "every ten minutes"), ("watcher", "hourly")):
        ran = last[principal]
        principal = "courier" if principal == "issuer" and os.path.exists(f"{configuration.ETC}/fleet/host.toml") else principal
        if ran is None and now - began < SILENT:
            found.append(Line(OK, principal, f"has not run yet, which is well: it is new, and runs {often}"))
        elif ran is None:
            found.append(Line(WARNING, principal, f"has not run yet, and should run {often}", STARTS))
        elif now - ran > SILENT:
            found.append(Line(FAILED, principal, f"has not run since {events.stamp(ran)}, and should run {often}", STARTS))
        else:
            found.append(Line(OK, principal, f"ran at {events.stamp(min(ran, now))}"))
    return found + ([] if last["keeper"] is None else _by_whom(now, began))


def _by_whom(now: float, began: float) -> list[Line]:
    """When root's own run came last, and when one that the issuer asked for: each can stop while the other goes on."""
    own, asked = (_root_wrote(f"{configuration.STATE}/keeper/{entry}") for entry in ("own-run", "asked-run"))
    beside = f"the issuer last asked for one at {events.stamp(min(asked, now))}" if asked else "the issuer has not asked for one yet"
    if own and now - own <= SILENT:
        return [Line(OK, "keeper's own run", f"root's hourly run came at {events.stamp(min(own, now))}; {beside}")]
    if not own and now - began < SILENT:
        return [Line(OK, "keeper's own run", f"root's hourly run has not come yet, which is well: certdrop is new; {beside}")]
    when = f"has not come since {events.stamp(own)}" if own else "has not come yet"
    return [Line(FAILED, "keeper's own run", f"root's hourly run {when}: what sudo does not bring is not installed; {beside}",
                 "see root's line in /etc/cron.d/certdrop, and what cron logs of it")]


def _root_wrote(path: str) -> float:
    """When root last wrote a file; 0 where it did not."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    return found.st_mtime if found.st_uid == 0 and stat.S_ISREG(found.st_mode) else 0


def served(names: list[str], resolves: bool = True) -> list[Line]:
    """What certdrop-status says of each site, after asking its services."""
    try:
        judged = judged_sites(Reader(), names, Places(resolves), verdict.Thresholds(), time.time())
    except configuration.ConfigError:
        return []
    found = []
    for one in judged:
        name, days = one.evidence.name, one.days_left
        until = f", {days:.0f} days left" if days is not None else ""
        shown = {True: "its live certificate is served", False: "another certificate than the live one is served", None: "nobody serves it here"}[one.served]
        level = {verdict.OK: OK, verdict.WARNING: WARNING}.get(one.severity, FAILED)
        if one.served is False and level == OK:
            level = WARNING
        why = f"{one.state}: {shown}{until}" + "".join(f"; {text}" for text in dict.fromkeys((one.last_error, one.browsers)) if text)
        found.append(Line(level, f"{name}: served", why, "" if level == OK else f"certdrop-status {name} says more"))
    return found

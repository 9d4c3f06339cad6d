"""certdrop-check: examines everything that makes issuing or renewing fail; says what is wrong, why that matters, and how to mend it.

Runs as: anyone; started by root it looks at what only root may see (seen_as_root: each program asked in a session of its own), has
_certdrop put one token among the challenges, then goes on as _certdrop-watch, shut in: it can write nothing. Trusts: the kernel, root's
files. Reads: see the other modules here. Writes: standard output; through token.py one file, for as long as it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any

from certdrop import events, spool, terminal, tokens, words
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import general
from certdrop.config import site as configuration
from certdrop.doctor import ca, clients, cron, dane, fallback, fleet, host, kernel, keys, mail, nginx
from certdrop.doctor import paths, users
from certdrop.doctor import names as check_names
from certdrop.doctor import sites as check_sites
from certdrop.doctor import token as check_token
from certdrop.doctor.ask import Said
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.progress import Progress
from certdrop.walls import jail, syscalls
from certdrop.walls import users as walls_users
from certdrop.watcher.principal import as_watcher, seen_by_root

LINE = Program("certdrop-check", "certdrop-check(8)", Syntax(
    ("[NAME...] [--issuing] [--offline] [--quiet] [--json]", "DOMAIN... --new [--quiet] [--json]"), """\
Examines everything that makes issuing or renewing fail, for these sites or all of them: one line each, ok, warning or failed, with why it matters
and how to mend it. Changes nothing; as root, a token lies among the challenges while it runs, and is fetched over every address of every name,
as the CA would.""", {
        "--issuing": "only what keeps the CA from issuing: as certdrop add and renew show it",
        "--new": "the words are domains that no site need have yet: whether they lead here, and challenges come through; certdrop add goes by it",
        "--offline": "leave the network alone: no DNS, no CA, no token",
        "--quiet": "only warnings and failures",
        "--json": "a list of objects: level, what, why, mend",
    }, """\
sudo certdrop-check               everything
sudo certdrop-check example.org   one site, and what all sites need
""", "Exit status: 0 nothing failed, 78 something did."))
MARKS = {OK: "ok     ", WARNING: "warning", FAILED: "failed "}
COLOURS = {OK: terminal.GOOD, WARNING: terminal.DOUBTFUL, FAILED: terminal.BAD}

Parts = dict[str, Any]             # what root saw, by part: lists of lines, and more


def main(argv: list[str]) -> int:
    """The program; returns 0 where nothing failed, 78 where something did, 64 for usage, 65 for a site that is not there."""
    return LINE.main(argv, lambda typed: _look(typed, argv))


def _look(typed: Words, argv: list[str]) -> int:
    names, options = typed.names, typed.options
    for wrong in filter(None, map(configuration.refusal, names if "--new" in options else [])):
        print(f"certdrop-check: {events.clean(wrong, 200)}", file=sys.stderr)
        return os.EX_DATAERR
    if "--new" in options and (not names or not {"--issuing", "--offline"}.isdisjoint(options)):
        raise Usage("--new needs domains" if not names else "--new excludes --issuing and --offline")
    unknown = [name for name in names if "--new" not in options and name not in _site_names()]
    if unknown:
        print(f"certdrop-check: {unknown[0]!a:.80}: no such site; certdrop-status lists them", file=sys.stderr)
        return os.EX_DATAERR
    token = None
    try:
        seen = b""
        if os.geteuid() == 0 and walls_users.lacking(walls_users.BECOMING):
            return show(iter([kernel.capabilities()]), options)            # nothing more can be seen as another user
        if os.geteuid() == 0:
            sites, config = not_yet(names) if "--new" in options else usable(names)
            parts = seen_as_root(sites, not {"--issuing", "--new"}.isdisjoint(options))
            if fleet.is_host():
                parts["fleet"], parts["token"] = fleet.as_root("--offline" in options), None if "--offline" in options else fleet.token()
            else:
                parts["account"] = ca.as_root(config) if config and {"--offline", "--issuing", "--new"}.isdisjoint(options) else []
                parts["by proxy"] = ca.by_proxy(config) if config and {"--offline", "--new"}.isdisjoint(options) else None
                token, parts["no token"] = check_token.put() if "--offline" not in options else (None, [])
                parts["token"] = [token.name, token.content] if token else None
            seen = json.dumps(parts).encode()
        return as_watcher("certdrop-check", argv, lambda: _work(names, options), os.EX_SOFTWARE, seen)
    except KeyError as error:                  # no such user: the network is not for root
        lines = [*everything(names, json.loads(seen), True), [Line(FAILED, "users", events.clean(error), "install the package again")]]
        return show(iter(lines), options)
    except BrokenPipeError:
        return os.EX_OK                        # whoever read has seen enough
    except TimeoutError as error:
        words.say(f"certdrop-check: {error}")
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        return os.EX_TEMPFAIL
    finally:
        if token and not token.remove():
            words.say(f"certdrop-check: the process of {spool.ISSUER}'s that held the token did not end by itself, and was killed; its file "
                      f"{token.name} may lie in {tokens.directory()}; the next run of certdrop-issue removes it")


def _work(names: list[str], options: Collection[str]) -> int:
    """What is left once root has looked."""
    seen = seen_by_root()
    parts = None if seen is None else json.loads(seen)
    if seen is not None:                       # a process of our own, that has nothing else to do
        try:
            jail.give_up_privileges()
            jail.landlock(read=("/",))
            syscalls.Filter(syscalls.DOCTOR).enter()
        except jail.Unconfined:
            pass                               # said by the line "sandbox"
    with Progress("certdrop-check", shown={"--quiet", "--json"}.isdisjoint(options)) as progress:
        if "--new" in options:
            return show(before(names, parts, progress), options)
        return show(everything(names, parts, "--offline" in options, "--issuing" in options, progress), options)


def _site_names() -> list[str]:
    try:
        return configuration.site_names()
    except configuration.ConfigError:
        return []


def usable(names: list[str]) -> tuple[list[configuration.Site], general.Config | None]:
    """These sites (all, where none is named), those that cannot be read left out, and the configuration; check_sites says what is wrong."""
    try:
        config = general.load_config()
    except configuration.ConfigError:
        return [], None
    found = []
    for name in names or _site_names():
        try:
            found.append(configuration.load_site(name, config))
        except configuration.ConfigError:
            continue
    return found, config


def not_yet(domains: list[str]) -> tuple[list[configuration.Site], general.Config | None]:
    """Each domain as if it were a site, and the configuration, if there is one already."""
    _, config = usable([])
    found = []
    for domain in dict.fromkeys(domains):
        found.append(configuration.Site(domain, config or general.Config()))
        found[-1].domains = [domain]
    return found, config


def before(domains: list[str], parts: Parts | None, progress: Progress | None = None) -> Iterator[list[Line]]:
    """What is to be said of domains that are no site's yet: does each lead here, and does a token come through? The CA is not asked."""
    sites, config = not_yet(domains)
    seen = nginx.Seen(*parts["seen"]) if parts and parts["seen"] else None
    yield [line for line in map(lambda line: Line(*line), (parts or {}).get("nginx", [])) if line.what == "nginx"]
    if progress:
        progress.at("now", f"asking the DNS, and for a token over each address of {len(domains)} name{'' if len(domains) == 1 else 's'}")
    token = (parts or {}).get("token")
    public = config is not None and os.path.exists(f"{configuration.ETC}/certdrop.toml") and config.directory_url in configuration.DIRECTORIES.values()
    identities = ["letsencrypt.org"] if public and config is not None and config.directory.startswith("letsencrypt") else []
    doing = check_names.Doing(fleet.AUTHORITY if fleet.is_host() else check_names.Authority(identities, "", public), (token[0], token[1]) if token else None,
                              seen, {}, True, fleet.desk())
    yield check_names.look(sites, doing, [Line(*line) for line in (parts or {}).get("no token", [])])


def seen_as_root(sites: list[configuration.Site], issuing: bool) -> Parts:
    """What only root may see; of that, where it is about `issuing` alone, what nginx says."""
    lines, seen = nginx.look(sites)
    if issuing:
        return {"nginx": lines, "seen": seen, "keys": None}
    return {"users": users.as_root(), "walls": kernel.walls(), "cron": cron.as_root(),
            "nginx": lines, "seen": seen, "clients": clients.look(sites), "keys": keys.fingerprints([found.name for found in sites])}


def everything(names: list[str], parts: Parts | None, offline: bool, issuing: bool = False, progress: Progress | None = None) -> Iterator[list[Line]]:
    """All that is looked at, in order, part by part. `parts` is what root saw before; None where nobody could look.

    With `issuing` only what can keep the CA from issuing: `certdrop add` and `renew` say that where no certificate came.
    """
    def by_root(part: str) -> list[Line]:
        return [Line(*line) for line in (parts or {}).get(part, [])]

    def now(what: str) -> None:
        if progress:
            progress.at("now", what)

    sites, config = usable(names)
    now("the configuration, users and walls")
    yield check_sites.look(names)
    yield paths.look()
    if issuing:
        yield host.space()
    else:
        yield [*users.look(), *by_root("users")]
        if parts is None:
            yield [Line(WARNING, "root", "only root can see what sudo, sshd and nginx are told, locked passwords, and other clients", "sudo certdrop-check")]
        yield [*by_root("walls"), *kernel.look(parts is not None)]
        yield [*(cron.look() if parts is None else by_root("cron")), *check_sites.runs(), *mail.look(parts is not None)] if _site_names() else []
    yield by_root("nginx")
    token, seen = (parts or {}).get("token"), nginx.Seen(*parts["seen"]) if parts and parts["seen"] else None
    if seen and not token:
        yield nginx.by_reading(seen, sites)
    if config and not offline:
        through = (parts or {}).get("by proxy")
        now("asking the fleet's database" if fleet.is_host() else "asking the CA")
        by_ca: dict[str, list[configuration.Site]] = {} if sites else {config.directory_url: []}
        for one in sites:
            by_ca.setdefault(config.directory_url if fleet.is_host() else general.directories(one)[0], []).append(one)
        no_token = by_root("no token")
        for directory, those in by_ca.items():
            if fleet.is_host():
                said, authority = fleet.look(by_root("fleet")), fleet.AUTHORITY
            else:
                account = by_root("account") if directory == config.directory_url else []
                said, authority = ca.look(config.asking(directory), those, account, Said(*through) if through and directory == config.directory_url else None)
            doing = check_names.Doing(authority, (token[0], token[1]) if token else None, seen, check_sites.failures(those), desk=fleet.desk())
            now(f"asking the DNS, and for a token over each address of {len(those)} site{'' if len(those) == 1 else 's'}")
            yield check_names.look(those, doing, no_token)
            yield said
            no_token = []
        yield fallback.look(sites, config) if not issuing and not fleet.is_host() else []
    if config:
        yield check_sites.untrusted(sites, config)
    if issuing:
        return
    yield host.look()
    now("TLSA records")
    yield dane.look(sites) if not offline else []
    yield keys.look([found.name for found in sites], parts["keys"] if parts else None)
    now("asking the services of this host")
    yield check_sites.served([found.name for found in sites], not offline)
    yield by_root("clients")


def show(parts: Iterator[list[Line]], options: Collection[str]) -> int:
    """Print the lines as they come; the exit code."""
    lines: list[Line] = []
    coloured = terminal.colours(1)
    for part in parts:
        lines += part
        if "--json" not in options:
            for line in part:
                if line.level != OK or "--quiet" not in options:
                    text = words.clean(f" {line.what}: {line.why}" + (f"; {line.mend}" if line.mend else ""))      # the only colour is the mark's
                    print(terminal.paint(MARKS[line.level], COLOURS[line.level], coloured) + text)
            sys.stdout.flush()
    if "--json" in options:
        print(json.dumps([line._asdict() for line in lines if line.level != OK or "--quiet" not in options], indent=1))
    elif "--quiet" not in options:
        count = {level: sum(line.level == level for line in lines) for level in MARKS}
        print(f"{count[OK]} ok, {count[WARNING]} to be looked at, {count[FAILED]} failed")
    return os.EX_CONFIG if any(line.level == FAILED for line in lines) else os.EX_OK

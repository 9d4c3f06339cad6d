"""certdrop-status: what is on disk, what is served, when each certificate is renewed, and what goes wrong.

Runs as: anyone; started by root it does all of its work in a child that became _certdrop-watch, in a session of its own.
Trusts: see evidence.py. Reads: public state; asks the services of this host by handshake. Writes: standard output, or the
file that --prometheus or --html names.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TextIO

from certdrop import events, terminal
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import dane
from certdrop.config import site as configuration
from certdrop.progress import Progress
from certdrop.status import report, table
from certdrop.watcher import phrases, verdict
from certdrop.watcher.evidence import Reader, Run, read_only
from certdrop.watcher.look import look
from certdrop.watcher.places import Places
from certdrop.watcher.principal import as_watcher, at_terminal
from certdrop.watcher.verdict import Thresholds, Verdict

LINE = Program("certdrop-status", "certdrop-status(1)", Syntax((
    "[--no-probe] [--warning PERCENT] [--critical PERCENT]\n[--json | --nagios | --prometheus [FILE] | --html [FILE] |\n"
    "--own-keys [FILE] | --tlsa] [NAME...]",),
    "Shows what is on disk, what the services of this host show, when each certificate is renewed, and the last error.", {
        "--json": "a list of objects, for programs",
        "--nagios": "one line, exit code 0, 1, 2 or 3, performance data",
        "--prometheus [FILE]": "metrics; into FILE, whole or not at all, for node_exporter's textfile collector",
        "--html [FILE]": "one web page, whole in itself; into FILE, whole or not at all",
        "--own-keys [FILE]": "the keys whose certificates are ours, for who watches the logs of Certificate Transparency; into FILE, whole or not at all",
        "--tlsa": "the TLSA records (DANE) to publish, for the live key and the next",
        "--no-probe": "ask no service",
        "--warning PERCENT": "of the lifetime that is left: so much or less is a warning",
        "--critical PERCENT": "and so much or less is critical",
    }, """\
certdrop-status                     all sites, a line each
certdrop-status example.org         all that is known of one
"""))


class Options:
    """What was given. Raises Usage."""

    def __init__(self, words: Words) -> None:
        forms = [form for form in ("json", "nagios", "prometheus", "html", "own-keys", "tlsa") if f"--{form}" in words.options]
        if len(forms) > 1:
            raise Usage(f"--{forms[0]} and --{forms[1]} exclude each other")
        self.form = forms[0] if forms else "table"
        self.file = words.options.get(f"--{self.form}", "") if self.form in ("prometheus", "html", "own-keys") else ""
        if self.file and not self.file.startswith("/"):
            raise Usage(f"--{self.form}: give the whole path of a file, from / on")
        self.probe = "--no-probe" not in words.options
        self.thresholds = Thresholds()
        for option in ("--warning", "--critical"):
            if option in words.options:
                setattr(self.thresholds, option[2:], _share(option, words.options[option]))
        self.names = words.names


def main(argv: list[str]) -> int:
    """The program; returns Nagios' exit codes: 0 fine, 1 warning, 2 critical, 3 not known."""
    return LINE.main(argv, lambda words: _checked(Options(words), argv), verdict.UNKNOWN)


def _checked(options: Options, argv: list[str]) -> int:
    try:
        if options.file:
            return _to_file(options, argv)
        code = as_watcher("certdrop-status", argv, lambda: show(options, sys.stdout), verdict.UNKNOWN)
        sys.stdout.flush()
        return code
    except (BrokenPipeError, KeyboardInterrupt):
        return verdict.UNKNOWN
    except (OSError, KeyError) as error:
        print(f"certdrop-status: {events.clean(error)}", file=sys.stderr)
        return verdict.UNKNOWN


def show(options: Options, out: TextIO) -> int:
    """Look, judge and print; returns the exit code."""
    now = time.time()
    try:
        reader = Reader()
        names = reader.names()
        unknown = [name for name in options.names if name not in names]
    except configuration.ConfigError as error:
        print(f"certdrop-status: {events.clean(error)}", file=sys.stderr)
        return verdict.UNKNOWN
    if unknown:
        print(f"certdrop-status: {unknown[0]!a:.80}: no such site; certdrop-status lists them", file=sys.stderr)
        return verdict.UNKNOWN
    if options.form == "own-keys":
        return own_keys(reader, options.names or names, out)
    if options.form == "tlsa":
        print("\n".join(line for name in options.names or names for line in tlsa(reader, name)), file=out)
        return verdict.OK
    with Progress("certdrop-status", shown=options.form == "table") as progress:
        progress.at("all", "asking the services of this host")
        sites = together(look(reader, options.names or names, Places() if options.probe else None, options.thresholds, now))
    keeper, issuer = reader.last_run("keeper"), reader.last_run("issuer")
    watcher = reader.watcher()
    runs = {"keeper": keeper, "issuer": issuer, "watcher": Run(watcher.at)}
    silences = verdict.silences(runs, [site.evidence for site in sites], now)
    host = verdict.of_host(runs, read_only())
    mute = verdict.WARNING if watcher.mute else verdict.OK
    code = max([mute, *(severity for severity, _ in host), *(one.severity for one in silences), *(site.severity for site in sites)])
    if options.form == "json":
        print(report.as_json(sites, silences, host), file=out)
    elif options.form == "nagios":
        print(report.as_nagios(sites, code, silences, [text for _, text in host], watcher.mute), file=out)
    elif options.form == "prometheus":
        out.write(report.as_prometheus(sites, runs, silences, host, bool(watcher.mute), now))
    elif options.form == "html":
        from certdrop.status import webpage
        problems = [*host, *((one.severity, phrases.silence(one.who, one.quiet)) for one in silences if one.severity),
                    *((verdict.WARNING, f"the watcher: {text}") for text in watcher.mute)]
        out.write(webpage.render(webpage.Page(os.uname().nodename, sites, {site.evidence.name: reader.past(site.evidence.name) for site in sites},
                                              reader.orders(), runs, problems, now)))
    elif options.names:
        print("\n".join(line for site in sites for line in table.page(site, now)), file=out)
    elif not sites:
        print("no site yet: certdrop add DOMAIN... adds one", file=out)
    else:
        print("\n".join(table.render(sites, now, _width(out), _is_coloured(out))), file=out)
        print(table.summary(sites, keeper, issuer, watcher, now), file=out)
    for _, text in host if options.form == "table" else ():
        print(f"certdrop-status: {text}", file=sys.stderr)
    for one in silences if options.form == "table" else ():
        if one.severity and not runs[one.who].stopped:
            print(f"certdrop-status: {phrases.silence(one.who, one.quiet)}; it should run every {phrases.span(verdict.OFTEN[one.who])}; "
                  "sudo certdrop-check says what keeps it from running", file=sys.stderr)
    return code


def own_keys(reader: Reader, names: list[str], out: TextIO) -> int:
    """Print a line for each key: its hash, and whose it is. All of them or none, so that no list is taken for whole that is not."""
    try:
        found = sorted({f"{key.spki} {name}@{key.number:04d}" for name in names for key in reader.keys(name)})
    except (OSError, ValueError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"certdrop-status: {events.clean(why)}; our own keys are not all known; sudo certdrop-check says what is wrong", file=sys.stderr)
        return verdict.UNKNOWN
    out.write("".join(line + "\n" for line in found))
    return verdict.OK


def tlsa(reader: Reader, name: str) -> list[str]:
    """The records of a site, as a zone's file has them, each with a comment that says whose key it is."""
    found = reader.site(name)
    try:
        owners = dane.owners(configuration.load_site(name, reader.config))
    except configuration.ConfigError as error:
        return [f"; {name}: {events.clean(error)}"]
    live = "" if found.placeholder else found.spki or ""
    keys = {found.next_spki or "": "next", live: "live, and next" if live == found.next_spki else "live"}
    lines = [f"{dane.record(owner, spki)} ; {whose}" for owner in owners for spki, whose in reversed(keys.items()) if spki]
    return lines or [f"; {name}: {'no key yet' if owners else 'no name or service that has a TLSA record'}"]


def together(sites: list[Verdict]) -> list[Verdict]:
    """The same, those for the same names beside each other (RSA beside ECDSA), each knowing of the others."""
    groups: dict[frozenset[str], list[Verdict]] = {}
    for one in sites:
        groups.setdefault(frozenset(one.evidence.domains or [one.evidence.name]), []).append(one)
    for group in groups.values():
        for one in group:
            one.evidence.beside = [other.evidence.name for other in group if other is not one]
    return [one for group in groups.values() for one in group]


def _to_file(options: Options, argv: list[str]) -> int:
    """Write whole or not at all. Started by root, root opens and renames, the watcher writes."""
    temporary = f"{options.file}.{os.getpid()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as out:
            def work() -> int:
                code = show(options, out)
                out.flush()
                return code
            again = [f"--{options.form}" if word.startswith(f"--{options.form}=") else word for word in argv if word != options.file]
            code = as_watcher("certdrop-status", again, work, verdict.UNKNOWN, out=fd)
        if code != verdict.UNKNOWN:
            os.chmod(temporary, 0o644)
            os.rename(temporary, options.file)
            return verdict.OK                  # what is to be said stands in the file
        return code
    finally:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass


def _width(out: TextIO) -> int:
    try:
        return os.get_terminal_size(out.fileno()).columns
    except (OSError, ValueError):
        return shutil.get_terminal_size((table.NARROW, 0)).columns if at_terminal(out) else table.NARROW


def _is_coloured(out: TextIO) -> bool:
    try:
        return terminal.colours(out.fileno())
    except (OSError, ValueError):
        return False


def _share(option: str, text: str) -> float:
    try:
        value = float(text.rstrip("%"))
    except ValueError as error:
        raise Usage(f"{option}: give the percentage of the lifetime that is left") from error
    if not 0 <= value <= 100:
        raise Usage(f"{option}: give a number from 0 to 100")
    return value / 100

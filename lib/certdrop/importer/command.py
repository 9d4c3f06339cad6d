"""`certdrop-import`: takes over what other ACME clients left; shows it first, and does it where told to.

Runs as: root, by hand alone: neither cron nor sudo reaches it. Trusts: the administrator's words, after checking them. Writes: through
take.py; and standard output.
"""

from __future__ import annotations

import json
import os
import shlex
import sys

from certdrop import events, spool
from certdrop import words as saying
from certdrop.by_hand import Refused, guard
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import general, site
from certdrop.importer import apply, leftovers, take
from certdrop.importer.clients import CLIENTS, Client
from certdrop.importer.pairs import Found
from certdrop.importer.survey import Choice, Survey
from certdrop.keeper.command import as_root
from certdrop.nginx import fetched
from certdrop.walls import users

PROGRAM = "certdrop-import"
LINE = Program(PROGRAM, "certdrop-import(8)", Syntax((
    "[NAME...] [--yes | --dry-run | --diff | --apply | --json]\n[--client CLIENT [--dir DIRECTORY]] [--ca URL] [--owner USER]\n[--untrusted] [--no-account]",
    "--key FILE --chain FILE [--name NAME] [--account FILE] ..."), "Takes over what other ACME clients left (certbot, dehydrated, acme.sh, lacme, uacme, \
lego, acme-tiny): certificates, keys, account, without a new order. Without --yes it only shows what it would do. The old client's files stay as they are.", {
    "--yes": "take over all of it, or only the sites NAME",
    "--dry-run": "only show what would be done (the default)",
    "--diff": "print the change to nginx's configuration, as a unified diff",
    "--apply": "make that change; undo all of it if nginx's test fails",
    "--json": "show it as JSON, for programs",
    "--client CLIENT": "only what this client left",
    "--dir DIRECTORY": "where its files are, if not in the usual place",
    "--key FILE": "a file with a key that belongs to no known client",
    "--chain FILE": "the file with its certificate and the intermediate ones",
    "--name NAME": "the name of the site that key and chain become",
    "--account FILE": "a file with an account key",
    "--ca URL": "the URL of the ACME directory, if the client does not record it",
    "--owner USER": "trust the files of this user as if they were root's",
    "--untrusted": "also take chains that lead to no trusted root",
    "--no-account": "leave the account key where it is",
}, """\
certdrop-import                                what is there?
certdrop-import --yes                          take it over
certdrop-import --diff                         what would change for nginx?
certdrop-import --apply                        change it, test nginx, reload it
"""))


def main(argv: list[str]) -> int:
    """`certdrop-import`. Returns a code of sysexits.h."""
    return guard(PROGRAM, lambda: LINE.main(argv, _checked))


def _checked(words: Words) -> int:
    choice, flags = parse(words)
    return as_root(lambda: _do(choice, flags))


def parse(words: Words) -> tuple[Choice, set[str]]:
    """What was given. Raises Usage."""
    choice, values, flags = Choice(), words.options, set(words.options)
    choice.names = [name.lower() for name in words.names]
    if len(flags & {"--yes", "--dry-run", "--diff", "--apply", "--json"}) > 1:
        raise Usage("--yes, --dry-run, --diff, --apply and --json exclude each other")
    for option in ("--dir", "--key", "--chain", "--account"):
        if option in values:
            values[option] = os.path.abspath(values[option])           # root's own world begins in another directory
    if ("--key" in values) != ("--chain" in values):
        raise Usage("--key and --chain belong together")
    if "--key" in values and ("--client" in values or choice.names):
        raise Usage("--key and --chain are of no client; --name gives the site's name")
    if ("--name" in values or "--account" in values) and "--key" not in values:
        raise Usage("--name and --account go with --key and --chain")
    if "--dir" in values and "--client" not in values:
        raise Usage("--dir says where the files of one client are; say with --client of which")
    names = {kind.name: kind for kind in CLIENTS}
    if values.get("--client", "certbot") not in names:
        raise Usage(f"--client: give one of {', '.join(names)}")
    if "--dir" in values and not names[values["--client"]].places:
        raise Usage(f"{values['--client']} has no directory of its own")
    if not values.get("--ca", "https://").startswith("https://"):
        raise Usage("--ca: give the https:// URL of an ACME directory")
    if not spool.may_name_a_new_site(values.get("--name", "a")):
        raise Usage(f"--name: up to {spool.MAX_NAME} of a-z 0-9 . _ - with a letter or digit first")
    if "--owner" in values:
        try:
            choice.owner = users.user_ids(values["--owner"])[0]
        except KeyError as error:
            raise Usage(f"--owner: {values['--owner']!a:.80}: no such user") from error
    choice.words = [word for option in ("--owner", "--client", "--dir") if option in values for word in (option, values[option])]
    choice.clients = [values["--client"]] if "--client" in values else []
    choice.directory, choice.ca = values.get("--dir", ""), values.get("--ca", "")
    choice.key, choice.chain, choice.name = values.get("--key", ""), values.get("--chain", ""), values.get("--name", "")
    choice.account = values.get("--account", "")
    choice.untrusted, choice.with_account = "--untrusted" in flags, "--no-account" not in flags
    return choice, flags


def _do(choice: Choice, flags: set[str]) -> int:
    survey = Survey(choice, general.load_config())
    unknown = [name for name in choice.names if name not in {one.name for one in survey.found}]
    if unknown:
        raise Refused(f"{unknown[0]!a:.80}: no client has a certificate of this name; {PROGRAM} shows what there is")
    if "--diff" in flags or "--apply" in flags:
        return _diff(survey, "--apply" in flags)
    if "--json" in flags:
        print(json.dumps([_as_object(one) for one in survey.found], indent=1))
        return os.EX_OK
    _print(describe(survey))
    if "--yes" not in flags:
        _print(what_next(survey, done=not survey.taken))
        return os.EX_OK
    code, after = os.EX_OK, survey
    if survey.taken:
        account = survey.account
        run = take.take(survey.taken, [account] if account else [], survey.settings())
        run.flush()
        code, after = run.exit_code(), Survey(choice, general.load_config())
    _print(what_next(after, done=True))
    here = {one.site for one in after.here}                    # of two of one name, one is taken
    missed = [one for one in survey.found if one.why and not one.site and (one.again or choice.key or one.name in choice.names) and one.name not in here]
    saying.say(*[f"{PROGRAM}: {events.clean(one.name)}: not taken over: {events.clean(one.why)}; nothing was changed for it" for one in missed])
    return code or (os.EX_TEMPFAIL if any(one.again for one in missed) else os.EX_DATAERR if missed else os.EX_OK)


def _diff(survey: Survey, make: bool) -> int:
    """Print the change to nginx's configuration, or make it."""
    if make and survey.taken:
        raise Refused(f"{len(survey.taken)} of these sites are not taken over yet, and nginx would not find them; {PROGRAM} --yes first")
    domains = {one.site or one.name: one.pair.domains for one in [*survey.here, *survey.taken] if one.pair}
    text, remarks = survey.nginx.diff(survey.replaced, domains)
    sys.stdout.flush()
    if make:
        if text or apply.begun():
            kept = apply.apply(survey.nginx.changes, text)
            saying.say(*[f"{PROGRAM}: {path}: changed" for path, _, _ in survey.nginx.changes])
            saying.say(f"{PROGRAM}: nginx passed its test and was reloaded; patch -R -p0 -d / < {kept} undoes the change; certdrop-status shows what is served")
            remarks = [one for one in remarks if one not in survey.nginx.ways] + list(map(str, fetched.at_port_80(domains)))      # now it can be seen
    else:
        _put(text)
    saying.say(*[f"{PROGRAM}: {line}" for line in remarks])
    if survey.taken:
        saying.say(f"{PROGRAM}: {len(survey.taken)} of these sites are not taken over yet: {PROGRAM} --yes first, else nginx does not find them")
    if not text:
        saying.say(f"{PROGRAM}: nothing to change in nginx's configuration")
    return os.EX_OK


def _put(text: str) -> None:
    saying.put(1, (saying.clean(text) if saying.at_terminal(1) else text).encode("utf-8", "surrogateescape"))     # a program gets every byte


def describe(survey: Survey) -> list[str]:
    """What was found, for people."""
    lines = []
    for client in survey.all:
        if client.found or client.accounts or client.troubles:
            lines.append(f"{client.name}{f' ({client.place})' if client.place else ''}")
            for one in client.found:
                lines += [events.clean(line) for line in _row(one)]
            for account in client.accounts:
                what = f"stays: {account.why}" if account.why else f"is taken over: {account.kind}, for {account.ca}"
                lines.append(f"  account  {events.clean(account.path)}: {events.clean(what)}")
            lines += [f"  trouble  {events.clean(text)}" for text in client.troubles] + [""]
    return lines or ["No other ACME client's files were found in the usual places; --key and --chain name a pair, --client and --dir a place."]


def _row(one: Found) -> list[str]:
    if one.site:
        rest = f"is the site {one.site} already"
    elif one.why:
        rest = f"stays: {one.why}"
    elif one.pair:
        rest = f"{one.pair.kind}, until {events.stamp(one.pair.end)[:10]}: {' '.join(one.pair.domains[:4])}{' ...' if len(one.pair.domains) > 4 else ''}"
    word = "here" if one.site else "stays" if one.why else "take"
    name = one.name if one.name != "-" else one.chains[0]
    return [f"  {word:<8} {name}: {rest.removeprefix('stays: ')}", *(f"           note: {text}" for text in one.remarks)]


def what_next(survey: Survey, done: bool) -> list[str]:
    """What the administrator does now."""
    if not survey.found and not survey.all[0].accounts:
        return []
    if not done:
        account = survey.account
        return [f"{len(survey.taken)} to take over{', and an account' if account else ''}. Nothing was changed: {PROGRAM} --yes does it.",
                *([] if os.path.exists(site.ETC + "/certdrop.toml") else ["It will write /etc/certdrop/certdrop.toml:", survey.settings().rstrip("\n")])]
    here = [one.site for one in survey.here]
    lines = [] if survey.taken else [f"{len(here)} taken over already: {' '.join(here[:5])}{' ...' if len(here) > 5 else ''}; nothing else to take over."
                                     if here else "Nothing to take over."]
    domains = {one.site: one.pair.domains for one in survey.here if one.pair}
    text, remarks = survey.nginx.diff(survey.replaced, domains)
    steps = []
    if text:
        command = shlex.join([PROGRAM, *survey.choice.words])
        steps.append("nginx still reads the old files. Have it read certdrop's: the first command shows the change, the second makes it, tests nginx and\n"
                     f"     reloads it, or takes all of it back:\n     {command} --diff\n     {command} --apply")
    steps += [events.clean(remark) for remark in remarks]
    served = survey.here
    others = leftovers.other_uses({path: one.site for one in served for path in _paths(one)})
    if others:
        steps.append("Other services name the old client's files; for them see \"copy\" and \"services\" in certdrop.toml(5):" + _indented(others))
    for client in survey.clients:
        if any(one.site for one in client.found):
            steps += _switch_off(survey, client)
    if not steps:
        return lines
    return [*lines, "What comes next:", *(f"  {number}. {step}" for number, step in enumerate(steps, 1))]


def _switch_off(survey: Survey, client: Client) -> list[str]:
    """How this client is switched off."""
    mine = leftovers.cron_entries(survey.lines, client.words)
    users = {line.user for line in survey.lines if client.words.search(line.text)}
    rules = leftovers.sudo_rules(client.words, users)
    timers = leftovers.timers(client.words)
    here = {one.site for one in survey.here}
    steps, kept = [], [one.name if one.name != "-" else one.chains[0] for one in client.found if not one.site and one.name not in here]
    if kept:
        steps.append(f"{client.name} must go on for {' '.join(kept[:5])}{' ...' if len(kept) > 5 else ''}, but not for the others: {client.forget}.")
    elif mine or timers:
        steps.append(f"Switch {client.name} off:" + _indented([*timers, *mine]))
    if rules:
        steps.append("Take back what sudo allowed for it:" + _indented(rules))
    if client.hooks:
        steps.append(f"{client.name} ran these; what they do, \"services\" and \"copy\" in certdrop.toml(5) can:" + _indented(client.hooks))
    return steps


def _paths(one: Found) -> list[str]:
    paths = [one.key, *one.chains]
    return [*paths, *{os.path.dirname(path) for path in paths if one.client in ("certbot", "dehydrated", "acme.sh")}]


def _indented(lines: list[str]) -> str:
    shown = [events.clean(line, 300) for line in lines[:20]] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
    return "".join(f"\n     {line}" for line in shown)


def _as_object(one: Found) -> dict[str, object]:
    pair = one.pair
    found: dict[str, object] = {"client": one.client, "name": one.name, "state": "here" if one.site else "stays" if one.why else "take", "why": one.why,
                                "site": one.site, "key_file": one.key, "chain_files": one.chains, "remarks": one.remarks}
    if pair:
        found.update(domains=pair.domains, key=pair.kind, not_after=events.stamp(pair.end), fingerprint_sha256=pair.sha256, verdict=pair.verdict,
                     key_read_by=pair.readers)
    return found


def _print(lines: list[str]) -> None:
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        pass                                   # whoever read has seen enough

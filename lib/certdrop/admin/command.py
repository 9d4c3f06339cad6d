"""`certdrop`: the administrator's command line.

Runs as: root. Trusts: the administrator's words, after checking them. Reads and writes: nothing by itself.
"""

from __future__ import annotations

import os
import re
import sys

from certdrop import VERSION, site
from certdrop.admin import sites
from certdrop.keeper.command import Usage, as_root, guard

HELP = """\
usage: certdrop add DOMAIN... [--name NAME] [--key KIND] [--contact ADDRESS] [--staging] [--no-issue]
       certdrop renew NAME...
       certdrop rotate NAME... | --all | --due   [--next | --cancel]
       certdrop rollback NAME
       certdrop remove NAME

  add       a new site: one certificate for these domains, its first domain its name
  renew     get a certificate now
  rotate    get one with a new key now; --next only posts the new key, --cancel withdraws the wish
  rollback  go back to the generation before
  remove    forget a site, its keys and certificates

certdrop add example.org www.example.org --contact hostmaster@example.org
certdrop-nginx example.org          prints the server blocks for it
certdrop-status                     shows how all is

See certdrop(8).
"""


def main(argv: list[str]) -> int:
    """`certdrop`. Returns a code of sysexits.h."""
    if argv[:1] in (["--help"], ["-h"], ["help"]) or argv[1:2] == ["--help"]:
        sys.stdout.write(HELP)
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop {VERSION}")
        return os.EX_OK
    return guard("certdrop", lambda: _checked(argv))


def _checked(argv: list[str]) -> int:
    verb, names, options = _parse(argv)
    return as_root(lambda: _do(verb, names, options))


def _parse(argv: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(verb, names, options). Raises Usage."""
    valued = {"--name": "add", "--key": "add", "--contact": "add"}
    flags = {"--staging": "add", "--no-issue": "add", "--all": "rotate", "--due": "rotate", "--next": "rotate", "--cancel": "rotate"}
    if not argv or argv[0] not in ("add", "renew", "rotate", "rollback", "remove"):
        raise Usage(f"{argv[0]!a:.80}: no such verb" if argv else "what is to be done? add, renew, rotate, rollback or remove")
    verb, names, options, rest = argv[0], [], {}, argv[1:]
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=")
        if option in valued and valued[option] == verb:
            if "=" not in word and not rest:
                raise Usage(f"{option} needs a value")
            options[option] = value if "=" in word else rest.pop(0)
        elif flags.get(word) == verb:
            options[word] = "yes"
        elif word.startswith("-"):
            raise Usage(f"{word!a:.80}: no such option of {verb}")
        else:
            names.append(word)
    everything = "--all" in options or "--due" in options
    if bool(names) == everything or (verb in ("rollback", "remove") and len(names) != 1):
        raise Usage(f"{verb} needs {'a domain' if verb == 'add' else 'the name of a site'}{', or --all or --due, not both' if verb == 'rotate' else ''}")
    if not re.fullmatch(r"[!#-\[\]-~]+@[!#-\[\]-~]+", options.get("--contact", "a@b")):
        raise Usage("--contact: give a mail address")
    if options.get("--key", "ecdsa-p256") not in site.KEYS:
        raise Usage(f"--key: give one of {', '.join(site.KEYS)}")
    return verb, names, options


def _do(verb: str, names: list[str], options: dict[str, str]) -> int:
    if verb == "add":
        settings = 'directory = "letsencrypt-staging"\n' if "--staging" in options else ""
        if "--contact" in options:
            settings += f'contact = ["{options["--contact"]}"]\n'
        return sites.add(names, options.get("--name", names[0]), options.get("--key", ""), settings, "--no-issue" not in options)
    if verb == "renew":
        return sites.renew(names)
    if verb == "rollback":
        return sites.rollback(names[0])
    if verb == "remove":
        return sites.remove(names[0])
    if "--due" in options:
        return sites.rotate_due()
    names = site.site_names() if "--all" in options else names
    return sites.cancel(names) if "--cancel" in options else sites.rotate(names, "--next" in options)

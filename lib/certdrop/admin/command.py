"""`certdrop`: the administrator's command line.

Runs as: root. Trusts: the administrator's words, after checking them. Reads and writes: nothing by itself.
"""

from __future__ import annotations

import os
import re
import sys

from certdrop import VERSION, terminal
from certdrop.admin import dhparam, first_use, revoke, sites
from certdrop.by_hand import Refused, Usage, guard
from certdrop.config import general, site
from certdrop.keeper.command import as_root
from certdrop.keeper.revoke import REASONS
from certdrop.trust import roots

VERBS = ("add", "renew", "rotate", "rollback", "revoke", "remove", "dhparam")
HELP = """\
usage: certdrop add DOMAIN... [--name NAME] [--key KIND] [--profile PROFILE]
                    [--ca CA | --staging] [--contact ADDRESS] [--yes] [--no-issue] [--dry-run]
       certdrop renew NAME... [--force]
       certdrop rotate NAME... | --all | --due   [--next | --cancel | --compromised | --force]
       certdrop rollback NAME
       certdrop revoke NAME [--number N] [--reason REASON] [--yes]
       certdrop remove NAME [--yes]
       certdrop dhparam [2048 | 3072 | 4096] [--own]

  add       a new site: one certificate for these domains, its first domain its name. The first time it asks
            for the CA and a contact, unless --ca, --staging, --contact or --yes say; --dry-run only says what it would do
  renew     get a certificate now; --force also where the live one is not a day old, or where it could not be served
  rotate    get one with a new key now; --next only posts the new key, --cancel withdraws the wish; --compromised, because
            the key got out: it is never used again, and once the new one is served, what was issued for it is revoked
  rollback  go back to the generation before
  revoke    have the CA revoke a certificate: the live one, or that of generation --number; --reason is one of
            unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation
  remove    forget a site, its keys and certificates; and the server block that certdrop-nginx wrote, if nobody changed it
  dhparam   for those who still need Diffie-Hellman parameters: RFC 7919's, or searched with --own

certdrop add example.org www.example.org --contact hostmaster@example.org
certdrop-nginx example.org          prints the server blocks for it
certdrop-status                     shows how all is

See certdrop(8).
"""


def main(argv: list[str]) -> int:
    """`certdrop`. Returns a code of sysexits.h."""
    if argv[:1] in (["--help"], ["-h"], ["help"]) or argv[1:2] == ["--help"]:
        print(HELP, end="")
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop {VERSION}")
        return os.EX_OK
    return guard("certdrop", lambda: _checked(argv))


def _checked(argv: list[str]) -> int:
    verb, names, options = _parse(argv)
    if verb == "add":
        names = [sites.a_label(name) for name in names]
        if ":" in names[0]:
            options.setdefault("--name", "ip6-" + names[0].replace(":", "-"))      # no site's name has a colon
        sites.refuse(names, options.get("--name", names[0]))
        settings = first_use.settle(options) if os.geteuid() == 0 else ""
        if "--dry-run" in options:
            return _foretell(names, options)
        return as_root(lambda: sites.add(names, options.get("--name", names[0]), options.get("--key", ""), options.get("--profile", ""), settings,
                                         "--no-issue" not in options))
    if verb == "remove" and os.geteuid() == 0 and "--yes" not in options and sys.stdin.isatty() and sys.stderr.isatty():
        block = sites.own_block(names[0])
        if not terminal.agrees(f"The configuration, keys and certificates of {names[0]!a:.80} are deleted{', and its server block in ' * bool(block)}{block}. "
                               "Remove it?"):
            raise Refused(f"{names[0]!a:.80}: not agreed; nothing was changed")
        options["--yes"] = "yes"
    if verb == "revoke" and os.geteuid() == 0:
        number = int(options["--number"]) if "--number" in options else None
        options["--number"] = str(revoke.ask(names[0], number, options.setdefault("--reason", "unspecified"), "--yes" in options))
    return as_root(lambda: _do(verb, names, options))


def _foretell(names: list[str], options: dict[str, str]) -> int:
    name, config = options.get("--name", names[0]), general.load_config()
    config.directory = options.get("--ca", config.directory)
    for line in (f"write /etc/certdrop/sites.d/{name}.toml for {' '.join(names)}", "" if os.path.exists(first_use.CONFIG) else f"write {first_use.CONFIG}",
                 f"make a key and a placeholder certificate; live/{name} would lead to them", "post a request for the issuer",
                 "" if "--no-issue" in options else f"have the issuer ask {roots.ca_named(config)} for it now, and install what comes"):
        if line:
            print(f"certdrop: {name}: would {line}")
    return os.EX_OK


def _parse(argv: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """(verb, names, options). Raises Usage."""
    valued = {"--name": "add", "--key": "add", "--profile": "add", "--contact": "add", "--ca": "add", "--number": "revoke", "--reason": "revoke"}
    flags = {"--staging": "add", "--no-issue": "add", "--dry-run": "add",
             "--all": "rotate", "--due": "rotate", "--next": "rotate", "--cancel": "rotate", "--compromised": "rotate", "--own": "dhparam"}
    if not argv or argv[0] not in VERBS:
        raise Usage(f"{argv[0]!a:.80}: no such verb" if argv else f"what is to be done? {', '.join(VERBS)}")
    verb, names, options, rest = argv[0], [], {}, argv[1:]
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=")
        if option in valued and valued[option] == verb:
            if "=" not in word and not rest:
                raise Usage(f"{option} needs a value")
            options[option] = value if "=" in word else rest.pop(0)
        elif flags.get(word) == verb or (word == "--yes" and verb in ("add", "revoke", "remove") or word == "--force" and verb in ("renew", "rotate")):
            options[word] = "yes"
        elif word.startswith("-"):
            raise Usage(f"{word!a:.80}: no such option of {verb}")
        else:
            names.append(word)
    if verb == "dhparam":
        if names not in ([], *([str(bits)] for bits in dhparam.OFFSETS)):
            raise Usage("dhparam takes one of 2048, 3072, 4096")
        return verb, names, options
    everything = "--all" in options or "--due" in options
    if bool(names) == everything or (verb in ("rollback", "revoke", "remove") and len(names) != 1):
        raise Usage(f"{verb} needs {'a domain' if verb == 'add' else 'the name of a site'}{', or --all or --due, not both' if verb == 'rotate' else ''}")
    if len({"--next", "--cancel", "--compromised"} & options.keys()) > 1 or {"--due", "--compromised"} <= options.keys():
        raise Usage("--next, --cancel and --compromised exclude each other, and --compromised goes with names or --all")
    first_use.refuse_contact(options.get("--contact", "a@b"))
    first_use.refuse_ca(options.get("--ca", "letsencrypt"))
    if not re.fullmatch("[0-9]{1,9}", options.get("--number", "1")):
        raise Usage("--number: give the number of a generation")
    if options.get("--reason", "unspecified") not in REASONS:
        raise Usage(f"--reason: give one of {', '.join(REASONS)}")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", options.get("--profile", "x")):
        raise Usage("--profile: give the name of one of the CA's profiles")
    if options.get("--key", "ecdsa-p256") not in site.KEYS:
        raise Usage(f"--key: give one of {', '.join(site.KEYS)}")
    return verb, names, options


def _do(verb: str, names: list[str], options: dict[str, str]) -> int:
    general.load_config()                      # all of it is looked at, whatever of it a verb needs
    if verb == "renew":
        return sites.renew(names, "--force" in options)
    if verb == "rollback":
        return sites.rollback(names[0])
    if verb == "revoke":
        return revoke.carry_out(names[0], int(options["--number"]), options["--reason"])
    if verb == "remove":
        return sites.remove(names[0], "--yes" in options)
    if verb == "dhparam":
        return dhparam.make(int((names or ["3072"])[0]), "--own" in options)
    if "--due" in options:
        return sites.rotate_due() or (dhparam.renew() if dhparam.is_due() else os.EX_OK)
    names = site.site_names() if "--all" in options else names
    if "--compromised" in options:
        return revoke.compromised(names)
    return sites.cancel(names) if "--cancel" in options else sites.rotate(names, "--next" in options, "--force" in options)

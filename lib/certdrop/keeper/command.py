"""The keeper's two programs: `certdrop` for administrators, `certdrop-install` for cron and, through sudo, the issuer.

Runs as: root. Trusts: the administrator's command line; of a caller through sudo, nothing. Reads and writes: nothing by itself.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable

from certdrop import events, jail, site, spool
from certdrop.keeper import install, lock

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
INSTALL_HELP = "usage: certdrop-install   (no arguments: takes what the spool holds, judges, installs, reloads; see certdrop-install(8))\n"


class Usage(Exception):
    """The command line is not understood; the text says what of it."""


def main(argv: list[str]) -> int:
    """`certdrop`. Returns a code of sysexits.h."""
    if argv[:1] in (["--help"], ["-h"], ["help"]) or argv[1:2] == ["--help"]:
        sys.stdout.write(HELP)
        return os.EX_OK
    if argv == ["--version"]:
        from certdrop import VERSION
        print(f"certdrop {VERSION}")
        return os.EX_OK
    return _guard("certdrop", lambda: _as_root(lambda: _verb(argv), lambda: _parse(argv)))


def install_main(argv: list[str]) -> int:
    """`certdrop-install`. Returns a code of sysexits.h; 0 too where another keeper is at work."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(INSTALL_HELP)
        return os.EX_OK
    if argv:
        sys.stderr.write("certdrop-install: takes no arguments\n" + INSTALL_HELP)
        return os.EX_USAGE
    asked_by_issuer = os.environ.get("SUDO_USER") == spool.ISSUER
    return _guard("certdrop-install", lambda: _as_root(lambda: _install(asked_by_issuer), lambda: None))


def _install(asked_by_issuer: bool) -> int:
    talk = not asked_by_issuer and sys.stderr.isatty()
    try:
        with lock.Lock(patient=False):
            run = install.Run("certdrop-install", asked_by_issuer, talk)
            install.reconcile(run)
    except lock.Busy as busy:
        if talk:
            install.say([f"certdrop-install: another keeper is at work ({busy}); it does what there is to do"])
        return os.EX_OK
    run.flush()
    return run.exit_code()


def _as_root(work: Callable[[], int], check: Callable[[], object]) -> int:
    check()
    if os.geteuid() != 0:
        raise PermissionError("must be run as root; try sudo")
    jail.make_own_world()
    jail.detach()
    return work()


def _guard(program: str, work: Callable[[], int]) -> int:
    from certdrop.keeper import rotate
    try:
        return work()
    except Usage as error:
        text, code = f"{error}; certdrop --help shows how", os.EX_USAGE
    except rotate.Refused as error:
        text, code = str(error), os.EX_DATAERR
    except site.Wrong as error:
        text, code = str(error), os.EX_CONFIG
    except PermissionError as error:
        text, code = str(error), os.EX_NOPERM
    except lock.Busy as error:
        text, code = f"another keeper is at work ({error}); try again later", os.EX_TEMPFAIL
    except OSError as error:
        text, code = f"{error}; the live certificates stay; try again later", os.EX_TEMPFAIL
    except Exception as error:                      # our bug: the one case for a traceback
        text, code = f"internal error: {error!r}; the live certificates stay; please report this\n{traceback.format_exc()}", os.EX_SOFTWARE
    install.say([f"{program}: {text}"])
    events.Log("keeper").write("error", text=text)
    return code


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


def _verb(argv: list[str]) -> int:
    from certdrop.keeper import rotate
    verb, names, options = _parse(argv)
    if verb == "add":
        settings = 'directory = "letsencrypt-staging"\n' if "--staging" in options else ""
        if "--contact" in options:
            settings += f'contact = ["{options["--contact"]}"]\n'
        return rotate.add(names, options.get("--name", names[0]), options.get("--key", ""), settings, "--no-issue" not in options)
    if verb == "renew":
        return rotate.renew(names)
    if verb == "rollback":
        return rotate.rollback(names[0])
    if verb == "remove":
        return rotate.remove(names[0])
    if "--due" in options:
        return rotate.rotate_due()
    names = site.site_names() if "--all" in options else names
    return rotate.cancel(names) if "--cancel" in options else rotate.rotate(names, "--next" in options)

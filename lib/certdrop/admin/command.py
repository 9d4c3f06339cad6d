"""`certdrop`: the administrator's command line.

Runs as: root. Trusts: the administrator's words, after checking them. Reads and writes: nothing by itself.
"""

from __future__ import annotations

import os
import re
import sys

from certdrop import terminal
from certdrop.admin import candidates, dhparam, first_use, revoke, sites, telling
from certdrop.admin import names as site_names
from certdrop.by_hand import Refused, guard
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import general, persist, site
from certdrop.keeper.command import as_root
from certdrop.keeper.revoke import REASONS
from certdrop.trust import roots

VERBS = {
    "add": Syntax((
        "DOMAIN... [--name NAME] [--key KIND] [--profile PROFILE] [--validation METHOD]\n[--ca CA | --staging] [--contact ADDRESS] [--yes]"
        "\n[--apply [--no-redirect] [--hsts] | --no-apply | --no-issue]\n[--dry-run]",
        "[--from-nginx] [DOMAIN...] [--ca CA | --staging] [--contact ADDRESS]\n[--no-redirect] [--hsts] [--yes] [--dry-run]",
    ), "a new site: one certificate for these domains, named for the first; without domains, sites for what nginx answers for", {
        "--from-nginx": "a site for each server block on port 80 that has no certificate, or for those of these domains; the blocks are changed to "
                        "serve HTTPS, in one go. Domains with + between them (a.example+b.example) share one certificate. Without --yes it asks which",
        "--apply": "change the server block that nginx has for the domains, so that it serves HTTPS, as certdrop-nginx NAME --apply does",
        "--no-apply": "leave nginx's server blocks alone, and do not ask",
        "--no-redirect": "with the change of a server block: leave http as it is; without it, http leads to https",
        "--hsts": "with the change of a server block: tell browsers to use nothing but HTTPS for these names, for two years; what they were told cannot be "
                  "taken back",
        "--name NAME": "the site's name; by default, its first domain",
        "--key KIND": f"the kind of key: {', '.join(site.KEYS)}",
        "--profile PROFILE": "one of the CA's profiles, such as shortlived",
        "--validation METHOD": f"how the names are proven: {', '.join(site.VALIDATIONS)} (a TXT record that you publish; wildcards need it, and get it)",
        "--ca CA": "a name such as letsencrypt or zerossl, or the https:// URL of an ACME directory; the first site's is that of all, a later one's is its own",
        "--staging": "the same as --ca letsencrypt-staging: for tests; browsers do not trust it",
        "--contact ADDRESS": "the mail address that the CA may write to; only for the first site",
        "--yes": "ask no questions",
        "--no-issue": "do not ask the CA now; a placeholder serves until certdrop renew or cron asks",
        "--dry-run": "only say what would be done",
    }, "certdrop add example.org www.example.org --contact hostmaster@example.org\ncertdrop add --from-nginx --yes",
        "The first time, it asks for the CA and a contact unless options give them. At a terminal it asks whether to change the server block that nginx has."),
    "renew": Syntax(("NAME... [--force]",), "get a certificate now", {
        "--force": "even if the live certificate is less than a day old, a new one could not be served, or its key's TLSA record is not there",
    }, "certdrop renew example.org"),
    "rotate": Syntax(("NAME... | --all | --due\n[--next | --cancel | --compromised] [--force]",), "get a certificate with a new key", {
        "--all": "for all sites",
        "--due": "for the sites whose key is older than key_max_age; root's hourly run does this automatically",
        "--next": "only post the new key, and print its SHA-256, for a TLSA record",
        "--cancel": "withdraw the request for a certificate now",
        "--compromised": "the key is compromised: never use it again, and revoke what was issued for it once a new certificate is served",
        "--force": "even if the certificate could not be served, or its key's TLSA record is not there",
    }, "certdrop rotate example.org"),
    "rollback": Syntax(("NAME",), "go back to the generation before the live one", {}, "certdrop rollback example.org"),
    "revoke": Syntax(("NAME [--number N] [--reason REASON] [--yes]",), "have the CA revoke a certificate, for ever", {
        "--number N": "the certificate of this generation instead of the live one",
        "--reason REASON": f"one of {', '.join(REASONS)}",
        "--yes": "do not ask",
    }, "certdrop revoke example.org --number 7 --reason superseded",
        "If the key is compromised, use certdrop rotate --compromised: it gets another certificate first."),
    "add-name": Syntax(("SITE DOMAIN... [--no-issue]",), "more names for a site: its file, its own server block, and one new certificate", {
        "--no-issue": "do not ask the CA now; cron does",
    }, "certdrop add-name example.org www.example.org",
        "The server block is changed only where certdrop-nginx wrote or changed it and nobody edited that since."),
    "drop-name": Syntax(("SITE DOMAIN... [--no-issue]",), "fewer names for a site: its file, its own server block, and one new certificate", {
        "--no-issue": "do not ask the CA now; cron does",
    }, "certdrop drop-name example.org www.example.org"),
    "remove": Syntax(("NAME [--yes]",), "forget a site, its keys and certificates; and what certdrop-nginx wrote for it, if nobody edited that", {
        "--yes": "do not ask",
    }, "certdrop remove example.org", "Refused while a service still needs them."),
    "dhparam": Syntax(("[2048 | 3072 | 4096] [--own]",), "install Diffie-Hellman parameters for old clients: RFC 7919's, of this many bits (3072)", {
        "--own": "search for a group of your own instead; this takes minutes",
    }, "certdrop dhparam 4096"),
}


def quietly(syntax: Syntax) -> Syntax:
    """What each verb takes besides."""
    return syntax._replace(usage=tuple(f"{form} [--quiet]" for form in syntax.usage), options={**syntax.options, "--quiet": "say only what went wrong"})


LINE = Program("certdrop", "certdrop(8)", Syntax(
    (), "Gets and renews certificates from an ACME CA, for nginx and others.", {}, """\
certdrop add                        lists what nginx answers for, and has HTTPS served for it
certdrop add example.org            a certificate for one name
certdrop-status                     shows how all is
"""), {name: quietly(syntax) for name, syntax in VERBS.items()})


def main(argv: list[str]) -> int:
    """`certdrop`. Returns a code of sysexits.h."""
    return guard("certdrop", lambda: LINE.main(argv, _checked))


def _checked(words: Words) -> int:
    verb, names, options = words
    _refuse(words)
    telling.begin("--quiet" in options)
    if verb == "add" and names and "--from-nginx" not in options and "--apply" not in options and not {"--hsts", "--no-redirect"}.isdisjoint(options):
        raise Usage("--hsts and --no-redirect go with --apply or --from-nginx")
    if verb == "add" and ("--from-nginx" in options or not names):
        return _from_nginx(names, options)
    if verb == "add":
        names = [sites.a_label(name) for name in names]
        if ":" in names[0]:
            options.setdefault("--name", "ip6-" + names[0].replace(":", "-"))      # no site's name has a colon
        name, validation = options.get("--name", sites.name_for(names)), options.get("--validation", persist.validation_of(names, ""))
        sites.refuse(names, name, validation or persist.HTTP)
        if os.geteuid() == 0:
            sites.refuse_existing(names, name, options.get("--key", ""))
        here = candidates.offered(name, names, options) if os.geteuid() == 0 and validation != persist.METHOD else None
        settings = first_use.settle(options) if os.geteuid() == 0 else ""
        if "--dry-run" in options:
            return _foretell(names, options)
        if here and "directory" not in options:
            return as_root(candidates.taking(here, name, names, settings, options))
        return as_root(lambda: sites.add(names, name, options.get("--key", ""), options.get("--profile", ""), settings,
                                         "--no-issue" not in options, validation, options.get("directory", "")))
    if verb == "remove" and os.geteuid() == 0 and "--yes" not in options and sys.stdin.isatty() and sys.stderr.isatty():
        block = sites.own_block(names[0])
        if not terminal.agrees(f"The configuration, keys and certificates of {names[0]!a:.80} are deleted{', and ' * bool(block)}{block}. "
                               "Remove it?"):
            raise Refused(f"{names[0]!a:.80}: not agreed; nothing was changed")
        options["--yes"] = "yes"
    if verb == "revoke" and os.geteuid() == 0:
        number = int(options["--number"]) if "--number" in options else None
        options["--number"] = str(revoke.ask(names[0], number, options.setdefault("--reason", "unspecified"), "--yes" in options))
    return as_root(lambda: _do(verb, names, options))


def _from_nginx(names: list[str], options: dict[str, str]) -> int:
    if not names and "--from-nginx" not in options and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Usage("add needs a domain; or --from-nginx, which takes what nginx answers for (at a terminal, certdrop add lists it)")
    if not names and "--yes" in options and "--from-nginx" not in options:
        raise Usage("add --yes needs a domain; certdrop add --from-nginx --yes takes all that nginx answers for")
    for option in ("--name", "--key", "--profile", "--validation", "--apply", "--no-apply", "--no-issue"):
        if option in options:
            raise Usage(f"{option} goes with domains, and without --from-nginx")
    return candidates.from_nginx(names, options)


def _foretell(names: list[str], options: dict[str, str]) -> int:
    name, config = options.get("--name", sites.name_for(names)), general.load_config()
    config.directory = options.get("--ca", config.directory)
    for line in (f"write /etc/certdrop/sites.d/{name}.toml for {' '.join(names)}", "" if os.path.exists(first_use.CONFIG) else f"write {first_use.CONFIG}",
                 f"make a key and a placeholder certificate; live/{name} would lead to them", "post a request for the issuer",
                 "" if "--no-issue" in options else f"have the issuer ask {roots.ca_named(config)} for it now, and install what comes"):
        if line:
            print(f"certdrop: {name}: would {line}")
    return os.EX_OK


def _refuse(words: Words) -> None:
    """Raise Usage for what makes no sense."""
    verb, names, options = words
    if verb == "dhparam":
        if names not in ([], *([str(bits)] for bits in dhparam.OFFSETS)):
            raise Usage("dhparam takes one of 2048, 3072, 4096")
        return
    if verb in ("add-name", "drop-name"):
        if len(names) < 2:
            raise Usage(f"{verb} needs the name of a site, and the domains that it is to {'have, too' if verb == 'add-name' else 'lose'}")
        return
    everything = "--all" in options or "--due" in options
    if len({"--apply", "--no-apply", "--no-issue"} & options.keys()) > 1:
        raise Usage("--apply, --no-apply and --no-issue exclude each other")
    if (bool(names) == everything and verb != "add") or (verb in ("rollback", "revoke", "remove") and len(names) != 1):
        raise Usage(f"{verb} needs the name of a site{', or --all or --due, not both' if verb == 'rotate' else ''}")
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
    if options.get("--validation", persist.HTTP) not in site.VALIDATIONS:
        raise Usage(f"--validation: give one of {', '.join(site.VALIDATIONS)}")
    if "--apply" in options and persist.METHOD in (options.get("--validation"), persist.validation_of(names, "")):
        raise Usage("--apply goes with names that are proven by http; certdrop-nginx NAME --apply changes the server block afterwards")
    if options.get("--key", "ecdsa-p256") not in site.KEYS:
        raise Usage(f"--key: give one of {', '.join(site.KEYS)}")


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
    if verb in ("add-name", "drop-name"):
        change = site_names.add if verb == "add-name" else site_names.drop
        return change(names[0], [sites.a_label(domain) for domain in names[1:]], "--no-issue" not in options)
    if verb == "dhparam":
        return dhparam.make(int((names or ["3072"])[0]), "--own" in options)
    if "--due" in options:
        return sites.rotate_due() or (dhparam.renew() if dhparam.is_due() else os.EX_OK)
    names = site.site_names() if "--all" in options else names
    if "--compromised" in options:
        return revoke.compromised(names)
    return sites.cancel(names) if "--cancel" in options else sites.rotate(names, "--next" in options, "--force" in options)

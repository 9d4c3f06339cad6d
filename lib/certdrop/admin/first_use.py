"""What the first `certdrop add` settles for the whole host: the CA, its terms of service, a contact; and what a later one may no longer settle.

Root opens no connection: what the CA says of itself comes from `certdrop-account terms`, which runs as _certdrop. Runs as: root, by hand.
Trusts: the administrator's words, after checking them. Reads: certdrop.toml, and a file of roots that is named. Writes: roots.d/ and eab.toml.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from certdrop import events, spool, terminal
from certdrop.by_hand import Refused
from certdrop.commandline import Usage
from certdrop.config import general, site
from certdrop.trust import roots
from certdrop.walls import become, users

ACCOUNT = "/usr/sbin/certdrop-account"
CONFIG = site.ETC + "/certdrop.toml"
EAB = site.ETC + "/eab.toml"
WAIT = 150                         # seconds for the CA to say what it is


def settle(options: dict[str, str]) -> str:
    """The text of a certdrop.toml that is to be written, or "" where there is one. Asks on a terminal. Raises Usage, Refused, site.ConfigError."""
    if "--staging" in options:
        if options.get("--ca", "letsencrypt-staging") != "letsencrypt-staging":
            raise Usage("--staging and --ca name two CAs; give one of them")
        options["--ca"] = "letsencrypt-staging"
    if os.path.lexists(CONFIG):
        _settle_for_sites(options)
        return ""
    if {"--yes", "--contact", "--ca"}.isdisjoint(options) and "--dry-run" not in options and sys.stdin.isatty() and sys.stderr.isatty():
        _ask(options)
    text = f'# See certdrop.toml(5).\ndirectory = "{options.get("--ca", "letsencrypt")}"\n'
    return text + (f'contact = ["{options["--contact"]}"]\n' if "--contact" in options else "")


def refuse_ca(text: str) -> None:
    """Raise Usage unless this names a CA: one that is known by name, or the https URL of a directory."""
    if text not in site.DIRECTORIES and not re.fullmatch(r"https://([A-Za-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?(/[!#-\[\]-~]*)?", text):
        raise Usage(f"{text!a:.80}: no CA; give {', '.join(site.DIRECTORIES)}, or the https:// URL of an ACME directory")


def refuse_contact(text: str) -> None:
    """Raise Usage unless this is a mail address."""
    if not re.fullmatch(r"[!#-\[\]-~]+@[!#-\[\]-~]+", text):
        raise Usage(f"{text!a:.80}: no mail address; give one such as hostmaster@example.org")


def _settle_for_sites(options: dict[str, str]) -> None:
    """With a certdrop.toml, another CA than it names is these sites' alone (options["directory"]). Raises Refused for a contact, which is for all."""
    if {"--ca", "--contact"}.isdisjoint(options):
        return
    config = general.load_config()
    wanted = options.get("--ca", config.directory)
    if site.DIRECTORIES.get(wanted, wanted) != config.directory_url:
        options["directory"] = wanted
    if options.get("--contact", next(iter(config.contact), "")) not in ("", *config.contact):
        raise Refused(f"--contact cannot take effect: {_place('contact')} decides; nothing was added; to change it, write "
                      f'contact = ["{options["--contact"]}"] there, and run certdrop-account contact')


def _place(key: str) -> str:
    """The line of certdrop.toml that sets a key, or that none does."""
    with open(CONFIG, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if re.match(rf'\s*"?{key}"?\s*=', line):
                return f"{CONFIG}, line {number},"
    return f"{CONFIG}, which has no {key} and so the default,"


def _ask(options: dict[str, str]) -> None:
    print(f"This is the first site. {CONFIG} will say which CA issues the certificates:\n"
          "  letsencrypt           Let's Encrypt\n"
          "  letsencrypt-staging   its staging, for trying things: browsers refuse its certificates\n"
          f"  {', '.join(name for name in site.DIRECTORIES if not name.startswith('letsencrypt'))}   other CAs, which ask for a customer's key\n"
          "  https://...           the URL of any other ACME directory", file=sys.stderr)
    while True:
        options["--ca"] = _answer("CA [letsencrypt]: ", refuse_ca) or "letsencrypt"
        config = general.Config()
        config.directory = options["--ca"]
        copied = config.directory not in site.DIRECTORIES and _offer_roots(config)
        taken = False
        try:
            taken = _agree(config)
        finally:
            if copied and not taken:               # who named a wrong file is asked again
                os.unlink(config.own_roots)
        if taken:
            break
    print("The CA may write to you about your account. Leave it empty for none.", file=sys.stderr)
    contact = _answer("Mail address: ", refuse_contact)
    if contact:
        options["--contact"] = contact


def _offer_roots(config: general.Config) -> bool:
    """Take a file of roots for a CA that may be a private one. Whether there is one now that was not there."""
    if os.path.exists(config.own_roots):
        return False

    def refuse(path: str) -> None:
        import ssl                             # for a private CA's file alone
        try:
            with open(path, encoding="ascii") as stream:
                text = stream.read(spool.MAX_REPLY)
            ssl.create_default_context(cadata=text)
        except (OSError, ValueError) as error:             # SSLError and UnicodeDecodeError among them
            raise Usage(f"{path!a:.200}: no file of certificates in PEM: {getattr(error, 'strerror', None) or error}") from None
    path = _answer("If it is a private CA, the file with its root certificates (PEM; empty if every system trusts it): ", refuse)
    if path:
        with open(path, "rb") as stream:
            write(config.own_roots, stream.read(spool.MAX_REPLY), 0o644)
        print(f"copied to {config.own_roots}", file=sys.stderr)
    return bool(path)


def _agree(config: general.Config) -> bool:
    """Show what the CA says of itself, and have its terms agreed to. False where another CA is wanted."""
    print(f"asking {roots.ca_named(config)} for its terms ...", file=sys.stderr)
    said = _terms(config)
    if "error" in said:
        return bool(re.match("[yY]", _answer(f"{said['error']}\nUse this CA anyway? [y/N] ")))
    if said.get("binding") == "required" and not _is_bound(config):
        print("This CA makes accounts for its customers only: it shows you a key identifier and an HMAC key.", file=sys.stderr)
        identifier = _answer("Key identifier: ", _refuse_word)
        if not identifier:
            return False
        secret = _answer("HMAC key: ", _refuse_word)
        old = b""
        if os.path.exists(EAB):
            with open(EAB, "rb") as stream:
                old = stream.read(spool.MAX_REPLY).rstrip() + b"\n\n"
        table = f'["{config.directory}"]\nkid = "{identifier}"\nhmac_key = "{secret}"\n'
        write(EAB, old + table.encode(), 0o640, users.user_ids(spool.ISSUER)[1])
    terms = said.get("terms", "")
    if terms and not re.match("[yY]", _answer(f"Its terms of service: {terms}\nDo you agree to them? [y/N] ")):
        raise Refused("the terms of service are not agreed to; nothing was added")
    return True


def _terms(config: general.Config) -> dict[str, str]:
    """What `certdrop-account terms` says: `terms`, `binding`, or `error`."""
    try:
        done = subprocess.run([*become.as_user(*users.user_ids(spool.ISSUER)), ACCOUNT, "terms", "--directory", config.directory],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=users.ENVIRONMENT,
                              start_new_session=True, timeout=WAIT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"{config.directory_url}: no answer in {WAIT} s"}
    lines = [events.clean(line, 400) for line in done.stdout.decode("utf-8", "replace").splitlines()]
    found = {key: value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
    if done.returncode:
        said = events.clean(done.stderr.decode("utf-8", "replace").strip(), 400)
        return {"error": said.removeprefix("certdrop-account: ") or f"certdrop-account terms ended with {done.returncode}"}
    return found


def _is_bound(config: general.Config) -> bool:
    import tomllib
    try:
        with open(EAB, "rb") as stream:
            return any(site.DIRECTORIES.get(name, name) == config.directory_url for name in tomllib.load(stream))
    except FileNotFoundError:
        return False
    except ValueError as error:                # TOMLDecodeError
        raise site.ConfigError(f"{EAB}: {error}; see certdrop-account(8)") from None


def _refuse_word(text: str) -> None:
    if not re.fullmatch(r"[!#-\[\]-~]+", text):
        raise Usage("give it as the CA shows it: letters, digits and signs, no spaces")


def _answer(question: str, refuse: object = None) -> str:
    """What is typed, asked again until `refuse` has nothing against it; empty is always taken. Raises Refused at Ctrl-C and Ctrl-D."""
    while True:
        try:
            text = terminal.ask(question)
        except terminal.Declined:
            raise Refused("not agreed; nothing was added") from None
        if text and callable(refuse):
            try:
                refuse(text)
            except Usage as error:
                print(error, file=sys.stderr)
                continue
        return text


def write(path: str, data: bytes, mode: int, group: int = -1) -> None:
    """Write one of root's own files, whole or not at all."""
    parent, _, name = path.rpartition("/")
    fd = spool.open_directory(parent)
    try:
        spool.write(fd, name, data, mode, group)
    finally:
        os.close(fd)

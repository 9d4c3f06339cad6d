"""Takes over a pair as a site's first generation, and an account key; each whole or not at all.

The generation is made in sites/.removed-NAME, then the site's configuration is written, then one rename puts the generation in its place. Killed
before that rename, the keeper's next run takes the rest for a removal and finishes it: nothing was imported. Killed after it, the next run goes on
with row 5 of the recovery table (state.py). Runs as: root, under the keeper's lock. Trusts: the pair, which was examined, and judged.
Reads and writes: sites/, sites.d/, and keeper/NAME.json; the account key is written by a child that is _certdrop, in _certdrop's directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import urllib.parse

from certdrop import happened, spool
from certdrop.config import general, persist, site
from certdrop.importer.pairs import Account, Found, Pair
from certdrop.keeper import generations, install, lock, notes, services
from certdrop.keeper.judges import Accepted
from certdrop.keeper.run import Run
from certdrop.keeper.state import Observed
from certdrop.walls import become, users

PROGRAM = "certdrop-import"
DEADLINE = 60                      # seconds for the child that writes the account key


def take(found: list[Found], accounts: list[Account], settings: str) -> Run:
    """Take these over, and have the keeper go on with them. `settings` is certdrop.toml, where there is none yet. Raises site.ConfigError and lock.Busy."""
    with lock.held():
        install.finish_removals()
        config = general.load_config()
        for service in config.services:
            try:
                services.find(service).test()
            except services.Failed as error:
                raise site.ConfigError(f"{service} does not pass its test as it is: {error}; nothing was imported") from error
        if settings and not os.path.exists(site.ETC + "/certdrop.toml"):
            _put(site.ETC, "certdrop.toml", settings.encode())
            config = general.load_config()
        run = Run(PROGRAM, False, True)
        for account in accounts:
            _take_account(run, account)
        taken = []
        for one in found:
            try:
                _take_pair(run, one, config)
                taken.append(one.name)
            except OSError as error:
                run.fail(one.name, f"{error.filename or ''}: {error.strerror}; not imported", os.EX_TEMPFAIL)
        install.reconcile(run, taken)
    return run


def _take_pair(run: Run, found: Found, config: general.Config) -> None:
    pair, name = found.pair, found.name
    if pair is None or Observed(name).numbers or os.path.lexists(f"{site.ETC}/sites.d/{name}.toml"):
        run.fail(name, "there is a site of this name; not imported", os.EX_DATAERR)        # since it was looked at
        return
    number = Observed(name).highest + 1
    hidden = f"{site.STATE}/sites/.removed-{name}"
    os.mkdir(hidden)
    os.chmod(hidden, 0o755)
    generation = f"{hidden}/{number:04d}"
    os.mkdir(generation)
    os.chmod(generation, 0o755)
    for entry, data in _files(name, number, pair).items():
        _put(generation, entry, data, 0o600 if entry == "privkey.pem" else 0o644)
    known = notes.Notes(name)
    known.spent[pair.sha256] = pair.end
    known.save()
    _put(site.ETC + "/sites.d", f"{name}.toml", configuration(found, config).encode())
    generations.sync(hidden)
    os.rename(hidden, f"{site.STATE}/sites/{name}")
    generations.sync(site.STATE + "/sites")
    run.log.write(happened.ADDED, site=name, domains=" ".join(pair.domains), imported_from=found.client)
    run.tell(name, f"taken over from {found.client}; its names: {' '.join(pair.domains)}")


def _files(name: str, number: int, pair: Pair) -> dict[str, bytes]:
    """A complete generation, but for the CSR, which no CA was asked with."""
    known = {"key": pair.kind, "key_created": pair.written, "spki_sha256": pair.spki, "domains": sorted(pair.domains)}
    accepted = Accepted(pair.sha256, pair.begin, pair.end)
    return {"privkey.pem": pair.key, "request.json": json.dumps(known).encode(),
            **generations.certified(name, number, pair.blocks[0], b"".join(pair.blocks[1:]), accepted)}


def configuration(found: Found, config: general.Config) -> str:
    """The text of sites.d/NAME.toml."""
    pair = found.pair
    if pair is None:
        return ""
    kind = nearest_kind(pair.kind)
    text = f"# Taken over from {found.client}, {found.key}, on {time.strftime('%Y-%m-%d')}. See certdrop.toml(5).\n" if found.key.isprintable() else ""
    text += "domains = [" + ", ".join(f'"{domain}"' for domain in pair.domains) + "]\n"
    how = persist.validation_of(pair.domains, config.validation)
    return text + (f'key = "{kind}"\n' if kind != config.key else "") + (f'validation = "{how}"\n' if how != config.validation else "")


def nearest_kind(kind: str) -> str:
    """The kind of key that certdrop makes for a site that had one of this kind."""
    if kind in site.KEYS:
        return kind
    if kind.startswith("rsa-"):
        bits = int(kind[4:])
        return "rsa-2048" if bits < 2500 else "rsa-3072" if bits < 3500 else "rsa-4096"
    return "ecdsa-p384"


def account_entry(ca: str) -> str:
    """The name that the issuer gives the account's key at this CA, without its ending."""
    return f"{urllib.parse.urlsplit(ca).hostname or 'ca'}-{hashlib.sha256(ca.encode()).hexdigest()[:8]}"


def has_account(ca: str) -> bool:
    """Whether the issuer has a key for an account at this CA."""
    return os.path.lexists(f"{site.STATE}/account/{account_entry(ca)}.key")


def _take_account(run: Run, account: Account) -> None:
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "account.py")
    try:                                               # its exit status is all that is heard of a process that others of its user can reach
        code = subprocess.run([*become.as_user(*users.user_ids(spool.ISSUER)), "/usr/bin/python3", "-I", "-S", program, account_entry(account.ca)],
                              input=account.key, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env=users.ENVIRONMENT,
                              start_new_session=True, timeout=DEADLINE, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        code = os.EX_OSERR
    if code == os.EX_OK:
        run.tell("account", f"the key of the account at {account.ca} is taken over from {account.client}")
    else:
        why = "there is one already" if code == os.EX_CANTCREAT else "it could not be written"
        run.fail("account", f"the key of the account at {account.ca} was not taken over: {why}; certdrop makes an account of its own", os.EX_TEMPFAIL)


def _put(parent: str, entry: str, data: bytes, mode: int = 0o644) -> None:
    fd = spool.open_directory(parent)
    try:
        spool.write(fd, entry, data, mode)
    finally:
        os.close(fd)

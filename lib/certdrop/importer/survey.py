"""What there is to take over on this host: looks at every client's known places, and at what nginx uses, and says of each what becomes of it.

Runs as: root. Trusts: paths as files.py does. Reads: the clients' files, cron's, nginx's configuration, certdrop's own state. Writes: nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from certdrop import spool
from certdrop.config import general, persist, site
from certdrop.importer import take
from certdrop.importer.clients import CLIENTS, AcmeTiny, Client
from certdrop.importer.files import Reader, Unreadable
from certdrop.importer.leftovers import cron_lines
from certdrop.importer.nginx import Nginx
from certdrop.importer.pairs import EXPIRED, Account, Examiner, Found, pem_blocks
from certdrop.keeper import notes
from certdrop.keeper.state import Observed

MOST = 10000                       # pairs that are looked at


class Choice:
    """What the administrator gave on the command line."""

    def __init__(self) -> None:
        self.names: list[str] = []         # sites alone, by name
        self.clients: list[str] = []       # these clients alone
        self.directory = ""                # where the one client keeps its files
        self.key = self.chain = self.name = self.account = ""          # a bare key and chain
        self.ca = ""                       # the CA, where a client does not note it
        self.owner = 0                     # a uid whose files are trusted too
        self.untrusted = False
        self.with_account = True
        self.words: list[str] = []         # what is to be said again to see the same files


class Survey:
    """All that was found."""

    def __init__(self, choice: Choice, config: general.Config) -> None:
        self.choice, self.config = choice, config
        self.reader = Reader(choice.owner)
        self.lines = cron_lines()
        self.nginx = Nginx()
        self.clients: list[Client] = []
        self.bare = Client(self.reader, "")                    # what was named by hand
        self.used = Client(self.reader, "")                    # what nginx uses, and no client is known for
        self.used.name = "nginx"
        with Examiner(config.trust_roots) as examiner:
            self._look(examiner)
        known = _known()
        for one in self.found:
            self._place(one, known)
        self._settle_names()
        self._settle_accounts()

    @property
    def found(self) -> list[Found]:
        """All pairs."""
        return [one for client in self.all for one in client.found]

    @property
    def all(self) -> list[Client]:
        """The clients, what was named by hand, and what nginx uses."""
        return [*self.clients, self.bare, self.used]

    @property
    def taken(self) -> list[Found]:
        """What would be taken over."""
        return [one for one in self.found if not one.why and not one.site]

    @property
    def here(self) -> list[Found]:
        """What is a site already."""
        return [one for one in self.found if one.site]

    @property
    def account(self) -> Account | None:
        """The account key that would be taken over."""
        return next((one for client in self.all for one in client.accounts if not one.why), None)

    @property
    def directory(self) -> str:
        """The directory of the CA that certdrop asks, or will ask."""
        if self.choice.ca:
            return self.choice.ca
        if os.path.exists(site.ETC + "/certdrop.toml"):
            return self.config.directory_url
        said = Counter(one.ca for one in self.taken if one.ca)
        return said.most_common(1)[0][0] if said else self.config.directory_url

    def settings(self) -> str:
        """What certdrop.toml would say, where there is none."""
        name = next((name for name, url in site.DIRECTORIES.items() if url == self.directory), self.directory)
        contact = self.account.contact if self.account else ""
        return f'# See certdrop.toml(5).\ndirectory = "{name}"\n' + (f'contact = ["{contact}"]\n' if contact else "")

    def replaced(self, path: str) -> str:
        """The site whose certificate this file of nginx's holds; "" where it is none's."""
        return self._by_path.get(os.path.realpath(path), "")

    def _look(self, examiner: Examiner) -> None:
        choice = self.choice
        known = choice.ca or (self.config.directory_url if os.path.exists(site.ETC + "/certdrop.toml") else "") or site.DIRECTORIES["letsencrypt"]
        texts = [line.text for line in self.lines]
        if choice.key:
            self.bare.name = "files"
            self.bare.found = [Found("files", choice.name or "-", choice.key, [choice.chain], choice.ca)]
            self.bare.accounts = [Account("files", choice.account, known)] if choice.account else []
        else:
            for kind in CLIENTS:
                if choice.clients and kind.name not in choice.clients:
                    continue
                for place in [choice.directory] if choice.directory else kind.where(self.reader, texts):
                    client = kind(self.reader, place, texts, known)
                    client.look()
                    self.clients.append(client)
        for client in self.all:
            for one in client.found[:MOST]:
                one.examine(self.reader, examiner, choice.untrusted)
        self._look_at_nginx(examiner, known)
        for client in self.all:
            for account in client.accounts:
                if not account.why:
                    account.examine(self.reader, examiner)
        self.nginx.places = [client.place for client in self.clients if client.place]
        self.clients = [client for client in self.clients if client.found or client.accounts or client.troubles]

    def _look_at_nginx(self, examiner: Examiner, known: str) -> None:
        """Tell the files that nginx uses by what is in them: copies are known so, whoever made them; and pairs that no client is known for."""
        self.fingerprints: dict[str, str] = {}
        tiny = next((client for client in self.clients if isinstance(client, AcmeTiny)), None)
        seen = {one.pair.sha256 for one in self.found if one.pair} | {os.path.realpath(path) for one in self.found for path in one.chains}
        for certificate, key in self.nginx.pairs():
            sha256 = self._fingerprint(certificate)
            self.fingerprints[os.path.realpath(certificate)] = sha256
            if {sha256, os.path.realpath(certificate)} & seen or self.choice.key:
                continue
            seen |= {sha256 or certificate, os.path.realpath(certificate)}
            by = tiny if tiny and {os.path.dirname(certificate), os.path.dirname(key)} & tiny.directories else self.used
            if by is self.used and self.choice.clients:
                continue
            one = Found(by.name, "-", key, [certificate], (by.said("--directory-url") or known) if by is tiny else "")
            one.by_name_only = by is self.used
            one.examine(self.reader, examiner, self.choice.untrusted)
            by.found.append(one)

    def _fingerprint(self, path: str) -> str:
        """The SHA-256 of the first certificate in a file: base64 and a hash, no parser."""
        try:
            block = pem_blocks(self.reader.read(path).data)[0]
            return hashlib.sha256(base64.b64decode(b"".join(block.splitlines()[1:-1]))).hexdigest()
        except (Unreadable, OSError, spool.Refused, binascii.Error):
            return ""

    def _place(self, one: Found, known: dict[str, str]) -> None:
        """Whether it is a site already, or may become one of its name."""
        pair = one.pair
        if pair is None:
            return
        names = site.site_names()
        if pair.sha256 in known:
            one.site = known[pair.sha256]
        elif one.name in names and not one.why:
            try:
                domains = site.load_site(one.name, self.config).domains
            except site.ConfigError as error:
                one.why = str(error)
                return
            observed = Observed(one.name)
            live = observed.live
            if live is None or observed.has(live, "placeholder"):
                one.why = f"there is a site {one.name} that has no certificate yet; certdrop remove {one.name} makes room for this one"
            elif sorted(domains) == sorted(pair.domains):
                one.site = one.name
                one.remarks.append(f"{one.client} has another certificate for it than certdrop")
            else:
                one.why = f"there is a site {one.name} for other domains"
        elif Observed(one.name).numbers and not one.why:
            one.why = f"there are files of a site {one.name} that has no configuration; certdrop remove {one.name} forgets them"
        if not one.why and not one.site:
            self._remark(one)

    def _remark(self, one: Found) -> None:
        pair = one.pair
        if pair is None:
            return
        if persist.validation_of(pair.domains, "") == persist.METHOD:
            one.remarks.append(f"its wildcard is proven otherwise from now on, by a TXT record that stays ({persist.METHOD}): publish what "
                               f"certdrop-account show --records {one.name} prints before the certificate ends")
        if pair.readers:
            one.remarks.append(f"its key could be read by {pair.readers}; change it soon: certdrop rotate {one.name}")
        if pair.verdict == EXPIRED:
            one.remarks.append("its certificate has expired; certdrop asks for another at its next run")
        elif pair.verdict != "accept":
            one.remarks.append("its chain leads to no trusted root: until the next certificate, certdrop-status will say so")
        if pair.kind != take.nearest_kind(pair.kind):
            one.remarks.append(f"its key is {pair.kind}; the next one will be {take.nearest_kind(pair.kind)}")
        days = site.age_in_days(self.config.key_max_age)
        if days is not None and pair.written + days * 86400 <= time.time():
            one.remarks.append(f"its key is older than key_max_age ({self.config.key_max_age}): a certificate with a new one is asked for at once")
        if one.ca and one.ca != self.directory:
            one.remarks.append(f"its certificate is from {one.ca}; the next one will be from {self.directory}")

    def _settle_names(self) -> None:
        """One pair a name: the one that nginx uses, else the one that lasts longest. And of the names, those that were asked for."""
        shown = set(self.fingerprints.values())
        best: dict[str, Found] = {}
        for one in sorted(self.taken, key=lambda one: (one.pair is not None and one.pair.sha256 in shown, one.pair.end if one.pair else 0)):
            best[one.name] = one
        for one in self.taken:
            if self.choice.names and one.name not in self.choice.names:
                one.why = "was not asked for"
            elif one.by_name_only and one.name not in self.choice.names:
                one.why = f"nobody is known to renew it; certdrop-import {one.name} takes it over anyway"
            elif best[one.name] is not one:
                other = best[one.name]
                one.why = f"{other.client if other.client != one.client else other.key} has another one of this name, " \
                    + ("which nginx uses" if other.pair and other.pair.sha256 in shown else "which lasts longer")
        self._by_path = dict(self._paths())

    def _paths(self) -> Iterator[tuple[str, str]]:
        sites = {one.pair.sha256: one.site or one.name for one in [*self.here, *self.taken] if one.pair}
        for path, sha256 in self.fingerprints.items():
            if sha256 in sites:
                yield path, sites[sha256]
        for one in [*self.here, *self.taken]:
            for path in one.chains:
                yield os.path.realpath(path), one.site or one.name
                if one.pair and len(one.pair.blocks) > 1:      # what ssl_trusted_certificate names
                    yield from ((os.path.realpath(f"{os.path.dirname(path)}/{entry}"), one.site or one.name) for entry in ("chain.pem", "ca.cer"))

    def _settle_accounts(self) -> None:
        """One account key, for the CA that certdrop asks."""
        first = True
        for account in (one for client in self.all for one in client.accounts if not one.why):
            if not self.choice.with_account:
                account.why = "--no-account"
            elif account.ca != self.directory:
                account.why = f"it is for {account.ca or 'a CA that is not noted with it (--ca says which)'}; certdrop asks {self.directory}"
            elif take.has_account(account.ca):
                account.why = "certdrop has an account there"
            elif not first:
                account.why = "one account is enough"
            else:
                first = False


def _known() -> dict[str, str]:
    """The fingerprints of all certificates that certdrop has, or had, and the sites they are of."""
    found: dict[str, str] = {}
    for name in site.site_names():
        found.update(dict.fromkeys(notes.Notes(name).spent, name))
        observed = Observed(name)
        found.update({observed.sha256(number): name for number in observed.whole})
    return found


def stay(found: Iterable[Found]) -> list[Found]:
    """Those that stay where they are."""
    return [one for one in found if one.why and not one.site]

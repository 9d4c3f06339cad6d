"""Where other ACME clients keep their certificates and accounts, one class each: certbot, dehydrated, acme.sh, lacme, uacme, lego, acme-tiny.

What is read here are names of files and directories, and lines of a client's own configuration; keys and certificates are examined elsewhere.
Runs as: root. Trusts: root's own files, read by files.py. Writes: nothing.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from certdrop.config import site
from certdrop.importer.files import Reader, Unreadable
from certdrop.importer.pairs import Account, Found

LETSENCRYPT = site.DIRECTORIES["letsencrypt"]

_REQUEST = re.compile(r"--csr[ =]+[\"']?(/[^\s\"']+)")
_MAIL = re.compile(r'"(?:mailto:|email"\s*:\s*")([!#-\[\]-~]{1,64}@[!#-\[\]-~]{1,190})"')


class Client:
    """One client's data directory."""

    name = ""
    places: tuple[str, ...] = ()   # where it may be
    options: tuple[str, ...] = ()  # how it is told another place
    words = re.compile("$^")       # how a line that runs it can be told
    forget = "take them out of what cron runs"             # how it renews some of its certificates no longer

    def __init__(self, reader: Reader, place: str, lines: Iterable[str] = (), ca: str = "") -> None:
        self.reader, self.place, self.lines, self.ca = reader, place, [line for line in lines if self.words.search(line)], ca
        self.found: list[Found] = []
        self.accounts: list[Account] = []
        self.troubles: list[str] = []      # what could not be read
        self.hooks: list[str] = []         # what it ran after a renewal

    @classmethod
    def where(cls, reader: Reader, lines: Iterable[str]) -> list[str]:
        """The places that there are: the usual ones, and the one that a line says which runs it; one of no name for a client without any."""
        said = cls(reader, "", lines).said(*cls.options) if cls.options else ""
        found = [place for place in dict.fromkeys([*cls.places, said.rstrip("/")]) if place.startswith("/") and os.path.isdir(place)]
        return found if cls.places else [""]

    def look(self) -> None:
        """Fill in what is there; what cannot be read is a trouble."""
        for part in (self.look_for_pairs, self.look_for_accounts, self.look_for_hooks):
            try:
                part()
            except (Unreadable, OSError) as error:
                self.troubles.append(str(error))

    def look_for_pairs(self) -> None:
        """Fill in `found`. Raises Unreadable and OSError."""

    def look_for_accounts(self) -> None:
        """Fill in `accounts`. Raises Unreadable and OSError."""

    def look_for_hooks(self) -> None:
        """Fill in `hooks`. Raises Unreadable and OSError."""

    def entries(self, *parts: str) -> list[tuple[str, str]]:
        """(name, path) of what is in a directory below the client's, sorted."""
        path = os.path.join(self.place, *parts)
        return [(name, os.path.join(path, name)) for name in self.reader.entries(path)]

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(path)

    def said(self, *options: str) -> str:
        """What is given after one of these options in a line that runs the client; "" where nothing is."""
        for line in self.lines:
            found = re.search(rf"(?:{'|'.join(map(re.escape, options))})[ =]+[\"']?([^\s\"';|&]+)", line)
            if found:
                return found[1]
        return ""


class Certbot(Client):
    """live/NAME links into archive/NAME; renewal/NAME.conf; accounts/HOST/PATH/ID with a JWK."""

    name, places, words = "certbot", ("/etc/letsencrypt",), re.compile(r"\b(certbot|letsencrypt-auto|letsencrypt renew)\b")
    options = ("--config-dir",)
    forget = "move their files out of /etc/letsencrypt/renewal"

    def look_for_pairs(self) -> None:
        self.used: Counter[str] = Counter()
        for name, path in self.entries("live"):
            if not os.path.isdir(path):
                continue
            settings = self.settings(name)
            one = Found(self.name, name, path + "/privkey.pem", [path + "/fullchain.pem"], settings.get("server", LETSENCRYPT))
            self.found.append(one)
            self.used[settings.get("account", "")] += 1
            if settings.get("authenticator", "").startswith("dns") or settings.get("authenticator") == "manual":
                one.remarks.append(f"was proved by certbot's {settings['authenticator']}; certdrop proves names over port 80, which must answer for them")
            self.hooks += [f"{self.place}/renewal/{name}.conf: {key} = {settings[key]}" for key in ("renew_hook", "post_hook", "pre_hook") if key in settings]

    def settings(self, name: str) -> dict[str, str]:
        """What renewal/NAME.conf says (ConfigObj, of which we take lines alone)."""
        text = self.reader.text(f"{self.place}/renewal/{name}.conf")
        return dict(re.findall(r"^([a-z_]+) *= *(\S.*?) *$", text, re.M))

    def look_for_accounts(self) -> None:
        found = []
        for directory in self._below("accounts", 6):
            if "private_key.json" not in self.reader.entries(os.path.join(self.place, directory)):
                continue
            path = os.path.join(self.place, directory)
            url = "https://" + os.path.dirname(directory).removeprefix("accounts/")
            found.append(Account(self.name, path + "/private_key.json", url, mail(self.reader.text(path + "/regr.json"))))
        self.accounts = sorted(found, key=lambda account: -self.used[account.path.split("/")[-2]])

    def _below(self, path: str, depth: int) -> Iterator[str]:
        for name, inner in self.entries(path):
            if os.path.isdir(inner) and not os.path.islink(inner) and depth:       # a link stands for another CA's directory of the same account
                yield f"{path}/{name}"
                yield from self._below(f"{path}/{name}", depth - 1)

    def look_for_hooks(self) -> None:
        for kind in ("deploy", "post", "pre"):
            self.hooks += [path for _, path in self.entries("renewal-hooks", kind)]


class Dehydrated(Client):
    """certs/NAME; accounts/ID, where ID is the CA's URL in base64url."""

    name, places, words = "dehydrated", ("/var/lib/dehydrated", "/etc/dehydrated"), re.compile(r"\b(dehydrated|letsencrypt\.sh)\b")
    forget = "take their lines out of its domains.txt"

    def look_for_pairs(self) -> None:
        ca = self._urls()[:1]
        for name, path in self.entries("certs"):
            if self.has(path + "/privkey.pem"):
                self.found.append(Found(self.name, name, path + "/privkey.pem", [path + "/fullchain.pem"], "".join(ca)))

    def look_for_accounts(self) -> None:
        for name, path in self.entries("accounts"):
            url = self._url(name)
            if url and self.has(path + "/account_key.pem"):
                self.accounts.append(Account(self.name, path + "/account_key.pem", url, mail(self.reader.text(path + "/registration_info.json"))))

    def _urls(self) -> list[str]:
        return list(filter(None, (self._url(name) for name, _ in self.entries("accounts"))))

    @staticmethod
    def _url(name: str) -> str:
        try:
            url = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode("ascii").strip()
        except (ValueError, binascii.Error):
            return ""
        return url if url.startswith("https://") else ""

    def look_for_hooks(self) -> None:
        for path in ["/etc/dehydrated/config", self.place + "/config", *(inner for _, inner in sorted(self.entries("/etc/dehydrated/conf.d")))]:
            self.hooks += [f"{path}: {line}" for line in re.findall(r"^HOOK=.+$", self.reader.text(path), re.M)]


class AcmeSh(Client):
    """NAME or NAME_ecc, each with NAME.key, fullchain.cer and NAME.conf; ca/HOST/PATH/account.key."""

    name, places, words = "acme.sh", ("/root/.acme.sh", "/etc/acme.sh", "/usr/local/share/acme.sh"), re.compile(r"\bacme\.sh\b")
    options = ("--home", "--config-home")
    forget = "acme.sh --remove -d NAME"

    def look_for_pairs(self) -> None:
        for name, path in self.entries():
            domain = name.removesuffix("_ecc")
            if not self.has(f"{path}/{domain}.key") or not self.has(path + "/fullchain.cer"):
                continue
            text = self.reader.text(f"{path}/{domain}.conf")
            settings = dict(re.findall(r"^(Le_[A-Za-z]+)='(.+)'$", text, re.M))
            one = Found(self.name, name, f"{path}/{domain}.key", [path + "/fullchain.cer"], settings.get("Le_API", LETSENCRYPT))
            if settings.get("Le_Webroot", "").startswith("dns"):
                one.remarks.append("was proved over DNS; certdrop proves names over port 80, which must answer for them")
            self.hooks += [f"{path}/{domain}.conf: {key}" for key in ("Le_ReloadCmd", "Le_DeployHook", "Le_RenewHook", "Le_PostHook") if settings.get(key)]
            self.found.append(one)

    def look_for_accounts(self) -> None:
        contact = re.search(r"^ACCOUNT_EMAIL='([^']+@[^']+)'$", self.reader.text(self.place + "/account.conf"), re.M)
        for host, path in self.entries("ca"):
            for inner in self._keys(path):
                url = f"https://{host}{inner.removeprefix(path).removesuffix('/account.key')}"
                self.accounts.append(Account(self.name, inner, url, contact[1] if contact else ""))

    def _keys(self, path: str, depth: int = 3) -> list[str]:
        found = []
        for name in self.reader.entries(path):
            if name == "account.key":
                found.append(f"{path}/{name}")
            elif depth and os.path.isdir(f"{path}/{name}"):
                found += self._keys(f"{path}/{name}", depth - 1)
        return found


class Lacme(Client):
    """lacme-certs.conf and .d: a section for each certificate; the account key where lacme-accountd.conf says."""

    name, places, words = "lacme", ("/etc/lacme",), re.compile(r"\blacme\b")
    forget = "take their sections out of its lacme-certs.conf"

    def look_for_pairs(self) -> None:
        for path in [self.place + "/lacme-certs.conf", *(inner for _, inner in self.entries("lacme-certs.conf.d"))]:
            section, values = "", dict[str, str]()
            for line in [*self.reader.text(path).splitlines(), "[]"]:
                head = re.fullmatch(r"\s*\[(.*)\]\s*", line)
                found = re.fullmatch(r"\s*([a-z-]+)\s*=\s*(\S.*?)\s*", line)
                if found:
                    values[found[1]] = found[2]
                if head:
                    self._section(section, values)
                    section, values = head[1], {}

    def _section(self, section: str, values: dict[str, str]) -> None:
        chain = values.get("certificate-chain") or values.get("certificate")
        if section and chain and "certificate-key" in values and self.has(self._path(chain)):
            self.found.append(Found(self.name, section, self._path(values["certificate-key"]), [self._path(chain)], self._server()))
            if "notify" in values:
                self.hooks.append(f"{section}: notify = {values['notify']}")

    def _path(self, text: str) -> str:
        return os.path.join(self.place, text)

    def _server(self) -> str:
        said = re.search(r"^\s*server\s*=\s*(https://\S+)", self.reader.text(self.place + "/lacme.conf"), re.M)
        return said[1] if said else LETSENCRYPT

    def look_for_accounts(self) -> None:
        text = self.reader.text(self.place + "/lacme-accountd.conf") + "\n" + self.reader.text(self.place + "/lacme.conf")
        said = re.search(r"^\s*privkey\s*=\s*(gpg|file):(\S+)", text, re.M)
        if said:
            account = Account(self.name, self._path(said[2]), self._server())
            account.why = "it is encrypted by GnuPG" if said[1] == "gpg" else ""
            self.accounts.append(account)


class Uacme(Client):
    """NAME/cert.pem and private/NAME/key.pem; private/key.pem is the account's. The CA stands on its command line alone."""

    name, places, words = "uacme", ("/etc/ssl/uacme", "/etc/uacme", "/etc/uacme.d", "/var/lib/uacme"), re.compile(r"\buacme\b")
    options = ("-c", "--confdir")

    def look_for_pairs(self) -> None:
        for name, path in self.entries():
            key = f"{self.place}/private/{name}/key.pem"
            if self.has(path + "/cert.pem") and self.has(key):
                self.found.append(Found(self.name, name, key, [path + "/cert.pem"], self._ca()))

    def look_for_accounts(self) -> None:
        if self.has(self.place + "/private/key.pem"):
            self.accounts.append(Account(self.name, self.place + "/private/key.pem", self._ca()))

    def _ca(self) -> str:
        return self.said("-a", "--acme-url") or self.ca


class Lego(Client):
    """certificates/NAME.key, .crt, .issuer.crt; accounts/HOST/MAIL/keys/MAIL.key, and account.json beside it."""

    name, places, words = "lego", ("/var/lib/lego", "/etc/lego", "/root/.lego", "/.lego"), re.compile(r"\blego\b")
    options = ("--path",)

    def look_for_pairs(self) -> None:
        names = {name for name, _ in self.entries("certificates")}
        for name in sorted(names):
            base, _, ending = name.rpartition(".")
            if ending == "key" and base + ".crt" in names:
                chain = [base + ".crt", *([base + ".issuer.crt"] if self._is_leaf_alone(base) and base + ".issuer.crt" in names else [])]
                path = self.place + "/certificates/"
                self.found.append(Found(self.name, base, path + name, [path + part for part in chain], self.said("--server", "-s") or self.ca))

    def _is_leaf_alone(self, base: str) -> bool:
        """Whether lego ran with --no-bundle."""
        return self.reader.text(f"{self.place}/certificates/{base}.crt").count("-----BEGIN CERTIFICATE-----") == 1

    def look_for_accounts(self) -> None:
        for host, path in self.entries("accounts"):
            for address, inner in self.entries("accounts", host):
                text = self.reader.text(inner + "/account.json")
                self.accounts += [Account(self.name, key, self._url(host), mail(text)) for name, key in self.entries("accounts", host, address, "keys")
                                  if name.endswith(".key")]

    def _url(self, host: str) -> str:
        """The directory at that host: lego keeps the host alone, its colon as an underscore."""
        known = [*site.DIRECTORIES.values(), self.said("--server", "-s"), self.ca]
        return next((url for url in known if url.partition("://")[2].partition("/")[0].replace(":", "_") == host), "")


class AcmeTiny(Client):
    """Has no directory of its own: what it works on stands in the line that runs it, and in the server block that names the outcome."""

    name, places, words = "acme-tiny", (), re.compile(r"\bacme[-_]tiny(\.py)?\b")

    def look_for_pairs(self) -> None:
        """A request of the same name as a key, and the file that the line writes; what else there is, nginx's configuration tells."""
        for line in self.lines:
            request, outcome = _REQUEST.search(line), re.search(r">\s*[\"']?(/[^\s\"';|&$]+)", line)
            if request and outcome:
                key, chain = request[1].removesuffix(".csr") + ".key", outcome[1].removesuffix(".tmp")
                if self.has(key) and self.has(chain):
                    self.found.append(Found(self.name, "-", key, [chain], self.said("--directory-url") or self.ca))

    @property
    def directories(self) -> set[str]:
        """Where the requests lie that it is run with; a shell's variable may stand for the rest of the name."""
        return {os.path.dirname(said[1].partition("$")[0]) for line in self.lines if (said := _REQUEST.search(line))}

    def look_for_accounts(self) -> None:
        path = self.said("--account-key")
        if path.startswith("/") and "$" not in path:
            self.accounts.append(Account(self.name, path, self.said("--directory-url") or self.ca, self.said("--contact").removeprefix("mailto:")))


CLIENTS: tuple[type[Client], ...] = (Certbot, Dehydrated, AcmeSh, Lacme, Uacme, Lego, AcmeTiny)


def mail(text: str) -> str:
    """The first mail address in an account's JSON; "" for none."""
    found = _MAIL.search(text)
    return found[1] if found else ""

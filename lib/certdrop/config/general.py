"""All of certdrop.toml: what root uses of it (site.py), and what concerns issuer, watcher and whoever is asked by hand.

Runs as: anyone; root's runs by cron and sudo do not come here. Trusts, reads: as site.py. Writes: nothing.
"""

from __future__ import annotations

import copy
import re

from certdrop.config import site
from certdrop.config.site import DIRECTORIES, ConfigError

LIMITS = ("failed_per_name_and_hour", "issued_per_names_and_week", "orders_per_three_hours")
SHORT = "shortlived"               # Let's Encrypt's profile of 160 hours
MAIL = ("to", "via", "from", "heartbeat", "ca_bundle")


class Config(site.Config):
    """certdrop.toml, with the default of every key."""

    whole: Config | None = None                # of one that is for a CA beside the configured one (asking): the configuration as it stands

    def __init__(self) -> None:
        super().__init__()
        self.contact: list[str] = []
        self.preferred_chain = ""
        self.staging = ""
        self.proxy = ""
        self.ca_bundle = site.STORE
        self.account_key_max_age = ""
        self.workers = 16
        self.self_check = "warn"
        self.mail: dict[str, object] = {"to": ["root"], "via": "sendmail"}
        self.limits: dict[str, object] = {}

    def asking(self, directory: str) -> Config:
        """The same for who asks another CA, by its name or the URL of its directory."""
        found = copy.copy(self)
        found.whole = self
        if site.DIRECTORIES.get(directory, directory) != self.directory_url:
            if self.trust_roots in (site.STORE, self.own_roots):
                found.trust_roots = site.roots_of(directory)
            names = [name for name, url in site.DIRECTORIES.items() if url == directory]
            found.directory, found.staging, found.preferred_chain = (names or [directory])[0], "", ""
        return found

    @property
    def staging_url(self) -> str:
        """The URL of the directory that a dry run asks: the CA's staging, where it is known or configured, else the CA itself."""
        if self.staging:
            return DIRECTORIES.get(self.staging, self.staging)
        return DIRECTORIES["letsencrypt-staging"] if self.directory_url == DIRECTORIES["letsencrypt"] else self.directory_url

    def profile_of(self, names: list[str]) -> str:
        """The profile for these names, where their site has none: what is configured, or the only one that may name an address at Let's Encrypt."""
        return self.profile or (SHORT if self.directory.startswith("letsencrypt") and any(map(site.is_address, names)) else "")


def directories(wanted: site.Site) -> list[str]:
    """The URLs of the directories of the CAs that a site's orders may go to, the first one first."""
    return list(dict.fromkeys(DIRECTORIES.get(one, one) for one in (wanted.directory, *wanted.fallback)))


def load_config() -> Config:
    """certdrop.toml; the defaults where there is none. Raises ConfigError."""
    config = Config()
    path = site.ETC + "/certdrop.toml"
    if not site.read_config(config):
        return config
    if config.workers not in range(1, 129):
        raise ConfigError(f"{path}: workers: {config.workers}: give a number from 1 to 128")
    if config.self_check not in ("warn", "require", "off"):
        raise ConfigError(f'{path}: self_check: "{config.self_check}": give "warn", "require" or "off"')
    if config.account_key_max_age and site.age_in_days(config.account_key_max_age) is None:
        raise ConfigError(f'{path}: account_key_max_age: "{config.account_key_max_age}": give an age in days such as "180d", or nothing')
    if config.staging and not config.staging_url.startswith("https://"):
        raise ConfigError(f'{path}: staging: "{config.staging}": give {", ".join(DIRECTORIES)} or an https:// URL')
    user, _, place = config.proxy.removeprefix("http://").rpartition("@")
    if ":" in user:
        raise ConfigError(f"{path}: proxy: a password must not stand here; write it to {site.ETC}/proxy-password")
    if config.proxy and not (config.proxy.startswith("http://") and re.fullmatch(r"([a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/?", place)
                             and re.fullmatch(r"([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*", user) and ("@" in config.proxy) == bool(user)):
        raise ConfigError(f'{path}: proxy: "{config.proxy}": give http://HOST:PORT or http://USER@HOST:PORT')
    for key, value in config.limits.items():
        site.refuse_unknown(path, key, LIMITS)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{path}: limits: {key}: give a whole number, 0 for no limit")
    for address in config.contact:
        if "@" not in address or not address.isascii() or any(c.isspace() for c in address):
            raise ConfigError(f'{path}: contact: "{address}": give mail addresses')
    for key in config.mail:
        site.refuse_unknown(path, key, MAIL)
    return config

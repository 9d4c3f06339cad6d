"""What a site is, and the rest of the configuration: reads /etc/certdrop, checks all of it, then hands it out.

Runs as: anyone. Trusts: files that root owns and nobody else can write (anything else is
refused). Reads: /etc/certdrop/certdrop.toml and /etc/certdrop/sites.d/NAME.toml. Writes: nothing.
"""

from __future__ import annotations

import os
import re
import stat

from certdrop import spool

ETC = "/etc/certdrop"
STATE = "/var/lib/certdrop"

DIRECTORIES = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
KEYS = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096")
MAX_DOMAINS = 100                  # Let's Encrypt's limit for one certificate

_AGE = re.compile(r"([1-9][0-9]{0,3})d")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SERVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_SITE_ONLY = ("domains", "probe")
_BOTH = ("key", "key_max_age", "profile", "services")


class Wrong(Exception):
    """The configuration (or a name given by hand) is not usable; the text names the file, the key and what to do."""


class Missing(Wrong):
    """There is no such file."""


class Config:
    """certdrop.toml, with the default of every key."""

    def __init__(self) -> None:
        self.directory = "letsencrypt"
        self.contact: list[str] = []
        self.profile = ""
        self.ca_bundle = "/etc/ssl/certs/ca-certificates.crt"
        self.trust_roots = "/etc/ssl/certs/ca-certificates.crt"
        self.key = "ecdsa-p256"
        self.key_max_age = "renewal"
        self.workers = 16
        self.self_check = "warn"
        self.services: list[str] = ["nginx"]
        self.mail: dict[str, object] = {"to": ["root"], "via": "sendmail"}

    @property
    def directory_url(self) -> str:
        """The URL of the ACME directory (RFC 8555 section 7.1.1)."""
        return DIRECTORIES.get(self.directory, self.directory)


class Site:
    """sites.d/NAME.toml over the defaults of certdrop.toml."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.domains: list[str] = []
        self.probe = ""                        # empty: where the service listens; "ADDR:PORT", "proxy-protocol", "off"
        self.key = config.key
        self.key_max_age = config.key_max_age
        self.profile = config.profile
        self.services = list(config.services)


def age_in_days(text: str) -> int | None:
    """The days of an age like "180d"; None for "renewal" (a new key every time)."""
    found = _AGE.fullmatch(text)
    return int(found[1]) if found else None


def is_host_name(text: str) -> bool:
    """Whether text is a DNS host name of two labels or more, in lower case (RFC 1123 section 2.1; an IDN as A-labels)."""
    labels = text.split(".")
    return len(text) <= 253 and len(labels) > 1 and not labels[-1].isdigit() and all(_LABEL.fullmatch(part) for part in labels)


def refuse_domain(text: str) -> None:
    """Raise Wrong, saying why, unless text is a name that HTTP-01 can prove (RFC 8555 section 8.3)."""
    if text.startswith("*."):
        raise Wrong(f"{text}: a wildcard needs the DNS-01 challenge, which certdrop does not do; name each host instead")
    if not is_host_name(text):
        raise Wrong(f"{text!a:.80}: no host name; give a full DNS name such as www.example.org (an IDN as its xn-- form)")


def load_config() -> Config:
    """certdrop.toml; the defaults where there is none. Raises Wrong."""
    config = Config()
    path = ETC + "/certdrop.toml"
    try:
        found = _read(path)
    except Missing:
        return config
    for key, value in found.items():
        _known(path, key, vars(config), ())
        _set(path, config, key, value)
    if config.workers not in range(1, 129):
        raise Wrong(f"{path}: workers: {config.workers}: give a number from 1 to 128")
    if config.self_check not in ("warn", "require", "off"):
        raise Wrong(f'{path}: self_check: "{config.self_check}": give "warn", "require" or "off"')
    if not config.directory_url.startswith("https://"):
        raise Wrong(f'{path}: directory: "{config.directory}": give {", ".join(DIRECTORIES)} or an https:// URL')
    for address in config.contact:
        if "@" not in address or not address.isascii() or any(c.isspace() for c in address):
            raise Wrong(f'{path}: contact: "{address}": give mail addresses')
    for key in config.mail:
        _known(path, key, {"to": 0, "via": 0, "heartbeat": 0}, ())
    _check_policy(path, config)
    return config


def load_site(name: str, config: Config) -> Site:
    """sites.d/NAME.toml over the defaults. Raises Missing and Wrong."""
    path = f"{ETC}/sites.d/{name}.toml"
    if not spool.is_site_name(name):
        raise Wrong(f"{name!a:.80}: no site's name: up to {spool.MAX_NAME} of a-z 0-9 . _ - with a letter or digit first")
    site = Site(name, config)
    for key, value in _read(path).items():
        _known(path, key, dict.fromkeys(_SITE_ONLY + _BOTH), vars(config))
        _set(path, site, key, value)
    if not site.domains:
        raise Wrong(f'{path}: domains is missing; give domains = ["{name}"]')
    if len(site.domains) > MAX_DOMAINS:
        raise Wrong(f"{path}: domains: {len(site.domains)} names; at most {MAX_DOMAINS} fit in one certificate")
    for domain in site.domains:
        try:
            refuse_domain(domain)
        except Wrong as error:
            raise Wrong(f"{path}: domains: {error}") from error
    if len(set(site.domains)) != len(site.domains):
        raise Wrong(f"{path}: domains: a name stands there twice")
    if site.probe not in ("", "off", "proxy-protocol") and not re.fullmatch(r"(\[[0-9a-f:]+\]|[0-9.]+):[0-9]{1,5}", site.probe):
        raise Wrong(f'{path}: probe: "{site.probe}": give "ADDRESS:PORT", "proxy-protocol" or "off"')
    _check_policy(path, site)
    return site


def site_names() -> list[str]:
    """The names of the configured sites, sorted. Raises Wrong where sites.d cannot be read."""
    try:
        entries = os.listdir(ETC + "/sites.d")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Wrong(f"{ETC}/sites.d: {error.strerror}") from error
    return sorted(e[:-5] for e in entries if e.endswith(".toml") and spool.is_site_name(e[:-5]))


def _check_policy(path: str, found: Config | Site) -> None:
    if found.key not in KEYS:
        raise Wrong(f'{path}: key: "{found.key}": give one of {", ".join(KEYS)}')
    if found.key_max_age != "renewal" and age_in_days(found.key_max_age) is None:
        raise Wrong(f'{path}: key_max_age: "{found.key_max_age}": give "renewal" or an age such as "180d"')
    if not all(_SERVICE.fullmatch(service) for service in found.services):
        raise Wrong(f"{path}: services: give names of files in services.d")


def _read(path: str) -> dict[str, object]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Missing(f"{path}: no such file") from error
    except OSError as error:
        raise Wrong(f"{path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as stream:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise Wrong(f"{path}: must be a file that root owns and nobody else can write; mend with chown root {path}; chmod 644 {path}")
        text = stream.read(spool.MAX_REPLY + 1)
    if len(text) > spool.MAX_REPLY:
        raise Wrong(f"{path}: longer than {spool.MAX_REPLY} bytes")
    import tomllib                             # 14 ms, and most runs need no configuration
    try:
        return tomllib.loads(text.decode())
    except ValueError as error:                # TOMLDecodeError and UnicodeDecodeError
        raise Wrong(f"{path}: {error}") from error


def _known(path: str, key: str, keys: dict[str, object], elsewhere: dict[str, object] | tuple[()]) -> None:
    if key in keys:
        return
    if key in elsewhere:
        raise Wrong(f"{path}: {key}: this key belongs in {ETC}/certdrop.toml")
    import difflib
    near = difflib.get_close_matches(key, keys, 1, 0)
    raise Wrong(f"{path}: {key!a:.80}: unknown key; the nearest known one is {near[0]}")


def _set(path: str, target: Config | Site, key: str, value: object) -> None:
    wanted = getattr(target, key)
    fits = type(value) is type(wanted) and (not isinstance(value, list) or all(isinstance(part, str) for part in value))
    if not fits:
        kind = {str: "a string", int: "a whole number", list: "a list of strings", dict: "a table"}[type(wanted)]
        raise Wrong(f"{path}: {key}: must be {kind}")
    setattr(target, key, value)

"""What a site is, and what root uses of the rest of the configuration; general.py reads all of it, for whom that concerns.

Runs as: anyone. Trusts: files that root owns and nobody else can write (anything else is
refused). Reads: /etc/certdrop/certdrop.toml and /etc/certdrop/sites.d/NAME.toml. Writes: nothing.
"""

from __future__ import annotations

import os
import stat

from certdrop import spool

ETC = "/etc/certdrop"
STATE = "/var/lib/certdrop"

DIRECTORIES = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
    "zerossl": "https://acme.zerossl.com/v2/DV90",
    "google": "https://dv.acme-v02.api.pki.goog/directory",
    "sslcom": "https://acme.ssl.com/sslcom-dv-rsa",
    "actalis": "https://acme-api.actalis.com/acme/directory",
}
STORE = "/etc/ssl/certs/ca-certificates.crt"
KEYS = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096")
MAX_DOMAINS = 100                  # Let's Encrypt's limit for one certificate
VALIDATIONS = ("http-01", "dns-persist-01")     # how names are proven (RFC 8555 section 8.3, draft-ietf-acme-dns-persist): wildcards by the second alone

_AGE = "[1-9][0-9]{0,3}d"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"({_LABEL}\.)+(?![0-9]+$){_LABEL}"
_ADDRESS = r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-f]*:[0-9a-f:]*"
_PORT = r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_DIRECTORY = rf"https://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:({_PORT}))?(/[!-~]*)?"
_PATH = r"(/[A-Za-z0-9._@+-]+){2,}"
_SERVICE = r"[a-z0-9][a-z0-9-]{0,30}"
_roots: dict[str, str] = {}        # by directory: see roots_of
_SITE_ONLY = ("domains", "probe", "copy")
_BOTH = ("key", "key_max_age", "profile", "services", "validation", "directory", "fallback")
# Keys of certdrop.toml that root passes over: general.py is about them.
OTHERS = ("contact", "preferred_chain", "staging", "proxy", "ca_bundle", "account_key_max_age", "workers", "self_check", "mail", "limits")


class ConfigError(Exception):
    """The configuration (or a name given by hand) is not usable; the text names the file, the key and what to do."""


class ConfigMissing(ConfigError):
    """There is no such file."""


class Config:
    """What root uses of certdrop.toml, with the defaults."""

    def __init__(self) -> None:
        self.directory, self.profile, self.trust_roots = "letsencrypt", "", STORE
        self.key = "ecdsa-p256"
        self.key_max_age = "renewal"
        self.services: list[str] = ["nginx"]
        self.validation = VALIDATIONS[0]
        self.fallback: list[str] = []          # the CAs to ask when that of `directory` is down for long

    @property
    def directory_url(self) -> str:
        """The URL of the ACME directory (RFC 8555 section 7.1.1)."""
        return DIRECTORIES.get(self.directory, self.directory)

    @property
    def own_roots(self) -> str:
        """The file of this directory's own roots, which stands in for trust_roots where that is not configured."""
        return own_roots(self.directory)


class Site:
    """sites.d/NAME.toml over the defaults of certdrop.toml."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.domains: list[str] = []
        self.copy: list[dict[str, str]] = []   # tables of path, owner, group, mode, what (see keeper/copies.py)
        self.probe = ""                        # empty: where the service listens; "ADDR:PORT", "proxy-protocol", a name below a wildcard, "off"
        self.key = config.key
        self.key_max_age = config.key_max_age
        self.profile = config.profile
        self.services = list(config.services)
        self.validation = config.validation
        self.directory = config.directory
        self.fallback = list(config.fallback)
        own = config.trust_roots not in (STORE, config.own_roots)
        self.trust_roots = config.trust_roots if own else ""

    @property
    def roots(self) -> tuple[str, ...]:
        """The files of the roots that its certificates may lead to: trust_roots, where that is configured, else those of each CA that it may have."""
        return (self.trust_roots,) if self.trust_roots else tuple(sorted({roots_of(one) for one in (self.directory, *self.fallback)}))


def own_roots(directory: str) -> str:
    """The file of a CA's own roots: named as the CA, or its host. The host may have its port in that name, or not; of several files the first one counts."""
    url = DIRECTORIES.get(directory, directory)
    host = url.split("/")[2]
    bare = host if host.endswith("]") else host.rpartition(":")[0] or host
    files = [f"{ETC}/roots.d/{name}.pem" for name in [*(name for name in DIRECTORIES if DIRECTORIES[name] == url), host, bare]]
    return next(filter(os.path.exists, files), files[0])


def roots_of(directory: str) -> str:
    """A CA's own roots, where they were put; else the system's. Looked for once in a reading of the configuration: a run asks for each of its sites."""
    if directory not in _roots:
        _roots[directory] = own if os.path.exists(own := own_roots(directory)) else STORE
    return _roots[directory]


def _match(pattern: str, text: str) -> bool:
    import re                                  # 3 ms, and most runs of the issuer need no configuration
    return bool(re.fullmatch(pattern, text))


def age_in_days(text: str) -> int | None:
    """The days of an age like "180d"; None for "renewal" (a new key every time)."""
    return int(text[:-1]) if _match(_AGE, text) else None


def is_host_name(text: str) -> bool:
    """Whether text is a DNS host name of two labels or more, in lower case (RFC 1123 section 2.1; an IDN as A-labels)."""
    return len(text) <= 253 and _match(_HOST, text)


def is_address(text: str) -> bool:
    """Whether text is an IP address as a certificate may name it (RFC 8738), in its canonical form (RFC 5952): no zone, not IPv4-mapped."""
    if not _match(_ADDRESS, text):
        return False
    import ipaddress                           # few need it
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return str(found) == text and not getattr(found, "ipv4_mapped", None)


def as_host(domain: str) -> str:
    """A domain as a URL, or nginx, names a host: an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    return f"[{domain}]" if ":" in domain else domain


def as_a_labels(text: str) -> str:
    """An internationalized name in its xn-- form (RFC 5891, mapped as browsers do); any other text as it is."""
    if text.isascii():
        return text
    try:
        import idna                            # python3-idna; few need it
        return "*." * text.startswith("*.") + str(idna.encode(text.removeprefix("*."), uts46=True).decode())
    except (ImportError, UnicodeError):        # IDNAError is one
        return text


def refusal(text: str, validation: str = VALIDATIONS[0]) -> str:
    """Why text is no name that can be proven so; "" where it is. A wildcard has one label that is a star, and two at least behind it (RFC 9525 section 6.3)."""
    if text.startswith("*.") and validation == VALIDATIONS[0]:
        return f'{text}: no wildcard can be proven by {validation}; write validation = "{VALIDATIONS[1]}", or name each host'
    host = is_host_name(text.removeprefix("*.")) and len(text) <= 253
    or_address = ", or an IP address" * (validation == VALIDATIONS[0])
    return "" if host or (or_address and is_address(text)) else f"{text!a:.80}: no host name; give a full DNS name such as www.example.org{or_address}"


def load_config() -> Config:
    """What root uses of certdrop.toml; the defaults where there is none. Raises ConfigError."""
    config = Config()
    read_config(config)
    return config


def read_config(config: Config) -> bool:
    """Set what certdrop.toml says of these keys; whether there is one. Raises ConfigError."""
    path = ETC + "/certdrop.toml"
    _roots.clear()
    try:
        fill(path, config, {key: key for key in vars(config)}, OTHERS)
    except ConfigMissing:
        return False
    _check_policy(path, config)
    if config.trust_roots == STORE:
        config.trust_roots = roots_of(config.directory)
    return True


def load_site(name: str, config: Config) -> Site:
    """sites.d/NAME.toml over the defaults. Raises ConfigMissing and ConfigError."""
    path = f"{ETC}/sites.d/{name}.toml"
    if not spool.is_site_name(name):
        raise ConfigError(f"{name!a:.80}: no site's name: up to {spool.MAX_NAME} of a-z 0-9 . _ - with a letter or digit first")
    site = Site(name, config)
    fill(path, site, {key: key for key in _SITE_ONLY + _BOTH}, ("tlsa",), elsewhere=(*vars(config), *OTHERS))
    if not site.domains:
        raise ConfigError(f'{path}: domains is missing; give domains = ["{name}"]')
    if len(site.domains) > MAX_DOMAINS:
        raise ConfigError(f"{path}: domains: {len(site.domains)} names; at most {MAX_DOMAINS} fit in one certificate")
    site.domains = [as_a_labels(domain) for domain in site.domains]
    for wrong in filter(None, (refusal(domain, site.validation) for domain in site.domains)):
        raise ConfigError(f"{path}: domains: {wrong}")
    if len(set(site.domains)) != len(site.domains):
        raise ConfigError(f"{path}: domains: a name stands there twice")
    if site.probe not in ("", "off", "proxy-protocol") and not _match(rf"(\[[0-9a-f:]+\]|[0-9.]+):[0-9]{{1,5}}|{_HOST}", site.probe):
        raise ConfigError(f'{path}: probe: "{site.probe}": give "ADDRESS:PORT", a name below a wildcard, "proxy-protocol" or "off"')
    _check_copies(path, site.copy)
    _check_policy(path, site)
    return site


def site_names() -> list[str]:
    """The names of the configured sites, sorted. Raises ConfigError where sites.d cannot be read."""
    try:
        entries = os.listdir(ETC + "/sites.d")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{ETC}/sites.d: {error.strerror}") from error
    return sorted(e[:-5] for e in entries if e.endswith(".toml") and spool.is_site_name(e[:-5]))


def _check_policy(path: str, found: Config | Site) -> None:
    for one in (found.directory, *found.fallback):
        if one not in DIRECTORIES and not _match(_DIRECTORY, one):
            raise ConfigError(f'{path}: directory or fallback: "{one}": give {", ".join(DIRECTORIES)} or an https:// URL')
    for key, known in (("key", KEYS), ("validation", VALIDATIONS)):
        if getattr(found, key) not in known:
            raise ConfigError(f'{path}: {key}: "{getattr(found, key)}": give one of {", ".join(known)}')
    if found.key_max_age != "renewal" and age_in_days(found.key_max_age) is None:
        raise ConfigError(f'{path}: key_max_age: "{found.key_max_age}": give "renewal" or an age such as "180d"')
    if not all(_match(_SERVICE, service) for service in found.services):
        raise ConfigError(f"{path}: services: give names of files in services.d")


def _read(path: str) -> dict[str, object]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigMissing(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise ConfigError(f"{path}: must be a file that root owns and nobody else can write; mend with chown root {path}; chmod 644 {path}")
        text = os.read(fd, spool.MAX_REPLY + 1)
    finally:
        os.close(fd)
    if len(text) > spool.MAX_REPLY:
        raise ConfigError(f"{path}: longer than {spool.MAX_REPLY} bytes")
    import tomllib                             # 5 ms, and most runs of the issuer need no configuration
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:              # TOMLDecodeError and UnicodeDecodeError among them
        raise ConfigError(f"{path}: {error}") from error


def fill(path: str, target: object, keys: dict[str, str], passed: tuple[str, ...] = (), elsewhere: tuple[str, ...] = ()) -> None:
    """Set target's attributes from a TOML file: `keys` maps its keys to them, and what stands there now says which type is wanted.
    Others read what is `passed`, and what is `elsewhere` belongs in certdrop.toml. Raises ConfigError."""
    for key, value in _read(path).items():
        if key not in keys:
            if key in passed:
                continue
            refuse_unknown(path, key, (*keys, *passed), elsewhere)
        wanted = getattr(target, keys[key])
        part = dict if key == "copy" else str
        if key == "copy" and isinstance(value, dict):
            value = [value]
        if type(value) is not type(wanted) or (isinstance(value, list) and not all(isinstance(one, part) for one in value)):
            kind = {str: "a string", int: "a whole number", list: "a list of strings", dict: "a table"}[type(wanted)]
            raise ConfigError(f"{path}: {key}: must be {'a table' if key == 'copy' else kind}")
        setattr(target, keys[key], value)


def refuse_unknown(path: str, key: str, keys: tuple[str, ...], elsewhere: tuple[str, ...] = ()) -> None:
    """Raise ConfigError, naming the nearest known one, unless this key is one of `keys`."""
    if key in keys:
        return
    if key in elsewhere:
        raise ConfigError(f"{path}: {key}: this key belongs in {ETC}/certdrop.toml")
    import difflib
    near = difflib.get_close_matches(key, keys, 1, 0)
    raise ConfigError(f"{path}: {key!a:.80}: unknown key; the nearest known one is {near[0]}")


def _check_copies(path: str, copies: list[dict[str, str]]) -> None:
    for copy in copies:
        if set(copy) != {"path", "owner", "group", "mode", "what"} or not all(isinstance(value, str) for value in copy.values()):
            raise ConfigError(f"{path}: copy: give path, owner, group, mode and what, each a string")
        if not _match(_PATH, copy["path"]) or "/../" in copy["path"] or "/./" in copy["path"]:
            raise ConfigError(f'{path}: copy: path: "{copy["path"]}": give an absolute path')
        if copy["what"] not in ("combined", "fullchain", "cert", "chain", "key"):
            raise ConfigError(f'{path}: copy: what: "{copy["what"]}": give combined, fullchain, cert, chain or key')
        if not _match("0?[0-6][04]0", copy["mode"]) and not (copy["what"] in ("fullchain", "cert", "chain") and copy["mode"] in ("0644", "0444")):
            raise ConfigError(f'{path}: copy: mode: "{copy["mode"]}": give one such as "0640", with nothing for others and no writing for the group')

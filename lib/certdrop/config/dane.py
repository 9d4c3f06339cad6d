"""Where a site's TLSA records stand in the DNS, what they say, and whether a renewal waits for them (RFC 6698, RFC 7671).

The records are 3 1 1: the SHA-256 of the key's SubjectPublicKeyInfo, so that they outlive a renewal with the same key. Root passes over all of this.
Runs as: whoever imports it. Trusts: root's configuration. Reads: sites.d, services.d. Writes: nothing.
"""

from __future__ import annotations

from certdrop.config import service, site

CHECK, OFF = "check", "off"


class _Said:
    def __init__(self) -> None:
        self.tlsa = OFF


def is_checked(name: str) -> bool:
    """Whether a renewal of this site with another key waits for its record. Raises site.ConfigError."""
    path, said = f"{site.ETC}/sites.d/{name}.toml", _Said()
    site.fill(path, said, {"tlsa": "tlsa"}, passed=(*vars(site.Site(name, site.Config())),))
    if said.tlsa not in (CHECK, OFF):
        raise site.ConfigError(f'{path}: tlsa: "{said.tlsa}": give "{CHECK}" or "{OFF}"')
    return said.tlsa == CHECK


def owners(found: site.Site) -> list[str]:
    """The names in the DNS at which a site's records stand: each of its names, at the port of each of its services. Raises site.ConfigError."""
    ports = sorted({port for name in found.services if (port := service.read(name).port)})
    return [f"_{port}._tcp.{domain}." for domain in found.domains if site.is_host_name(domain) for port in ports]


def record(owner: str, spki_sha256: str) -> str:
    """A record as a zone's file has it."""
    return f"{owner} IN TLSA 3 1 1 {spki_sha256}"

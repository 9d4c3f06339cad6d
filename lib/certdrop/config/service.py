"""What services.d/NAME.toml says of a service, for those who ask about it; the keeper, who runs what stands there, has stricter eyes of its own.

Runs as: whoever imports it. Trusts: root's configuration. Reads: services.d. Writes: nothing.
"""

from __future__ import annotations

from certdrop.config import site


class Service:
    """A service's description: commands, systemd's unit, where it is asked for a certificate (port 0: it cannot be), and what comes before TLS."""

    def __init__(self) -> None:
        self.port, self.starttls = 443, ""
        self.unit, self.test, self.reload, self.show = "", list[str](), list[str](), list[str]()


def path(name: str) -> str:
    """The file that describes it."""
    return f"{site.ETC}/services.d/{name}.toml"


def read(name: str) -> Service:
    """The description. Raises site.ConfigMissing and site.ConfigError."""
    found = Service()
    site.fill(path(name), found, {key: key for key in vars(found)})
    return found

"""The HTTP proxy to the CA, and what it wants to know of us: a name in certdrop.toml, a password in a file of its own.

Runs as: _certdrop, before it is shut in; the doctor, as root. Trusts: root's configuration. Reads: /etc/certdrop/proxy-password. Writes: nothing.
"""

from __future__ import annotations

import base64
import os
import urllib.parse

from certdrop import foreign, spool
from certdrop.config import general, site

PORT = 3128                        # where the URL has none
PASSWORD = "proxy-password"        # below /etc/certdrop
LONGEST = 4096                     # bytes of that file


class Proxy:
    """Where it is (`place`, None for no proxy), and the header that lets us through, "" for none: it goes into CONNECT, and nowhere else."""

    def __init__(self, url: str = "", password: str = "") -> None:
        found = urllib.parse.urlsplit(url)
        self.place = (found.hostname, found.port or PORT) if found.hostname else None
        self.user, self._password = urllib.parse.unquote(found.username or ""), password
        self.header = f"Basic {base64.b64encode(f'{self.user}:{password}'.encode()).decode()}" if self.user else ""

    def words(self) -> str:
        """Its host and port."""
        host, port = self.place or ("", 0)
        return f"{site.as_host(host)}:{port}"

    def without_secrets(self, text: str) -> str:
        """What it said, in case it echoes what it was told."""
        for secret in (self.header.removeprefix("Basic "), self._password, base64.b64encode(self._password.encode()).decode()):
            text = text.replace(secret, "(password)") if secret else text
        return text


def of(config: general.Config) -> Proxy:
    """The configured one. Raises ConfigError where it has a user, and the password's file is not as it must be."""
    return Proxy(config.proxy, password() if urllib.parse.urlsplit(config.proxy).username else "")


def password() -> str:
    """The password, from a file that root owns and others cannot read. Raises ConfigError, which does not quote it."""
    path = f"{site.ETC}/{PASSWORD}"
    mend = f"mend with chown root:{spool.ISSUER} {path}; chmod 640 {path}"
    try:
        fd = os.open(site.ETC, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.stat(PASSWORD, dir_fd=fd, follow_symlinks=False).st_mode & 0o007:
                raise site.ConfigError(f"{path} can be read by others; {mend}")
            found = foreign.read(fd, PASSWORD, os.fstat(fd).st_uid, LONGEST).decode().rstrip("\r\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise site.ConfigError(f"{path}: {error.strerror}: the proxy's password is its only line; {mend}") from None
    except (spool.Refused, UnicodeError) as error:
        reason = error.reason if isinstance(error, spool.Refused) else "no UTF-8"
        raise site.ConfigError(f"{path} cannot be used ({reason}); {mend}") from None
    if not found or not found.isprintable():
        raise site.ConfigError(f"{path} cannot be used (not one line of text); {mend}")
    return found

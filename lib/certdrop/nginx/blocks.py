"""The text of server blocks for sites, right for the nginx and the OpenSSL that are installed here.

Runs as: anyone. Trusts: the configuration, and what `nginx -V` says. Reads: /etc/certdrop. Writes: nothing.
Sources: Mozilla's server-side TLS guideline 6.0; nginx's CHANGES for 1.25.1 (http2) and its manual of ssl_ecdh_curve.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import NamedTuple

from certdrop.config import general, site
from certdrop.nginx import run as nginxrun
from certdrop.nginx import snippets
from certdrop.nginx.vacancy import PLAIN, TLS

TIMEOUT = 30                       # seconds for nginx -V
CLASSIC_CURVES = "X25519:prime256v1:secp384r1"
HSTS = 'add_header Strict-Transport-Security "max-age=63072000" always;'
BINDS = ("HSTS binds: every browser that has been here goes to these names by HTTPS alone, for two years, and lets nobody pass a bad certificate; "
         "taking the line out does not undo it in browsers (max-age=0, served long enough, does)")
HYBRID_CURVES = "X25519MLKEM768:" + CLASSIC_CURVES       # an OpenSSL before 3.5 refuses the name, and nginx would not start


class Absent(Exception):
    """nginx is not here, or does not say what it is; the text says so."""


class Refused(Exception):
    """What was asked cannot be done; the text says why, and nothing was changed."""


class Build(NamedTuple):
    """What decides how a server block must be written."""

    nginx: tuple[int, ...]
    openssl: tuple[int, ...]       # empty where nginx uses another library
    ipv6: bool

    @property
    def separate_http2(self) -> bool:
        """Whether HTTP/2 is a directive of its own (from 1.25.1), not a word of `listen`."""
        return self.nginx >= (1, 25, 1)

    @property
    def curves(self) -> str:
        """The curves of ssl_ecdh_curve."""
        return HYBRID_CURVES if self.openssl >= (3, 5) else CLASSIC_CURVES


def load(name: str) -> site.Site:
    """A configured site. Raises site.ConfigMissing, in words for whoever mistyped it, and site.ConfigError."""
    config = general.load_config()
    try:
        return site.load_site(name, config)
    except site.ConfigMissing as error:
        raise site.ConfigMissing(f"{name}: no such site; certdrop-status lists them, certdrop add makes one") from error
    except site.ConfigError as error:
        if name not in site.site_names():
            raise site.ConfigMissing(str(error)) from error
        raise


def same_domains(sites: list[site.Site]) -> list[list[site.Site]]:
    """The sites in groups that have the same domains, in the order given."""
    groups: dict[frozenset[str], list[site.Site]] = {}
    for found in sites:
        groups.setdefault(frozenset(found.domains), []).append(found)
    return list(groups.values())


def detect() -> Build:
    """What is installed here. Raises Absent."""
    try:
        done = subprocess.run(nginxrun.command("-V"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT,
                              env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}, check=False)
    except FileNotFoundError as error:
        raise Absent(f"{error.filename}: not installed; the blocks depend on nginx's version; {nginxrun.missing('not there')}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"{' '.join(nginxrun.command('-V'))}: {error}") from error
    return understand(done.stdout.decode("utf-8", "replace"), os.path.exists("/proc/net/if_inet6"))


def understand(text: str, ipv6: bool) -> Build:
    """What `nginx -V` says. The OpenSSL that runs counts, not the one nginx was built with. Raises Absent."""
    nginx = re.search(r"nginx version: \S*?/([0-9.]+)", text)
    if nginx is None:
        raise Absent(f"{' '.join(nginxrun.command('-V'))} does not say which version it is")
    openssl = re.search(r"running with OpenSSL ([0-9.]+)", text) or re.search(r"built with OpenSSL ([0-9.]+)", text)
    return Build(_numbers(nginx[1]), _numbers(openssl[1]) if openssl else (), ipv6)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


def blocks(sites: list[site.Site], build: Build, which: tuple[str, ...] = (PLAIN, TLS), redirect: bool = True, hsts: bool = False) -> str:
    """The server blocks for sites of the same domains, for port 80 and 443: their text for nginx. Without `redirect` both serve the same."""
    name, domains = sites[0].name, " ".join(map(site.as_host, sites[0].domains))
    # A client that goes to an address names no host in its handshake (RFC 6066 section 3): the default server answers.
    default = " default_server" if any(map(site.is_address, sites[0].domains)) else ""
    includes = "".join(f"    include {site.STATE}/live/{found.name}/nginx.conf;\n" for found in sites)
    http2 = "    http2 on;\n" if build.separate_http2 else ""
    head = f"# {name}: printed by certdrop-nginx for nginx {'.'.join(map(str, build.nginx))}; print it anew after an upgrade to another release.\n"
    serves = """\
    # What this site serves:
    root /var/www/html;
    index index.html index.htm index.nginx-debian.html;
    location / {
        try_files $uri $uri/ =404;
    }
}
"""
    leads = """\
    location / {
        return 301 https://$host$request_uri;
    }
}
"""
    plain = f"""\
server {{
{_listen(80, "", build)}    server_name {domains};

    include {snippets.challenge()};

{leads if redirect else serves}"""
    tls = f"""\
server {{
{_listen(443, default + (" ssl" if build.separate_http2 else " ssl http2"), build)}{http2}    server_name {domains};

    # Key and certificate of the live generation, by one link: do not name the files themselves.
{includes}    include /etc/nginx/snippets/certdrop-tls.conf;
    ssl_ecdh_curve {build.curves};
{f"    {HSTS}" + chr(10) if hsts else ""}
{serves}"""
    return head + "\n".join({PLAIN: plain, TLS: tls}[part] for part in which)


def _listen(port: int, words: str, build: Build) -> str:
    lines = f"    listen {port}{words};\n"
    return lines + f"    listen [::]:{port}{words};\n" if build.ipv6 else lines

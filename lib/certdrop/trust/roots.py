"""What is known of a CA before it is asked: its name, the roots that its own server is verified against, and which ones an administrator has to fetch.

Runs as: whoever imports it. Trusts: root's configuration. Reads and writes: nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from certdrop.config import general, site

PLACE = "https://letsencrypt.org/certs/staging/{letsencrypt-stg-root-x1,letsencrypt-stg-root-x2,gen-y/root-ye,gen-y/root-yr}.pem"


def missing(config: general.Config) -> str:
    """What to do before certificates of Let's Encrypt's staging are accepted, whose roots are in no system's store; empty where all is well."""
    if not is_for_trying(config) or config.trust_roots != site.STORE:
        return ""
    return (f"no system trusts the roots of Let's Encrypt's staging, so its certificates will be refused until {config.own_roots} has them: "
            f"curl -fsS {PLACE} > {config.own_roots}")


def rehearsed(config: general.Config) -> list[str]:
    """The files of the roots that a reply in a dry run may lead to: trust_roots, and, where another CA's directory is asked, that one's own."""
    if config.staging_url == config.directory_url:
        return [config.trust_roots]
    asked = general.Config()
    asked.directory = config.staging_url
    return [config.trust_roots, asked.own_roots]


def is_for_trying(config: general.Config) -> bool:
    """Whether the configured CA is one for trying things, whose certificates browsers refuse."""
    return config.directory_url == site.DIRECTORIES["letsencrypt-staging"]


def ca_named(config: general.Config) -> str:
    """The configured CA as a person knows it: its name, if it has one here, and its directory."""
    return f"{config.directory} ({config.directory_url})" if config.directory in site.DIRECTORIES else config.directory_url


def bundles(config: general.Config) -> list[str]:
    """The files that the CA's own server is verified against: ca_bundle, and where that is the system's store, this CA's own roots as well."""
    own = [config.own_roots] if config.ca_bundle == site.STORE and os.path.exists(config.own_roots) else []
    return [config.ca_bundle, *own]


def is_of(directories: Collection[str], answered_by: str, answered_with: str, sha256: str) -> bool | None:
    """Whether a certificate is of one of the CAs that are configured for its site, by the issuer's note of where its last reply came from; None where nobody
    noted it, as of one that another client had."""
    return answered_by in directories if answered_by and answered_with == sha256 else None

"""Which roots an administrator has to fetch, and where to, before a CA's certificates can be accepted.

Runs as: whoever imports it. Trusts: root's configuration. Reads and writes: nothing.
"""

from __future__ import annotations

from certdrop import site

PLACE = "https://letsencrypt.org/certs/staging/{letsencrypt-stg-root-x1,letsencrypt-stg-root-x2,gen-y/root-ye,gen-y/root-yr}.pem"


def missing(config: site.Config) -> str:
    """What to do before certificates of Let's Encrypt's staging are accepted, whose roots are in no system's store; empty where all is well."""
    if config.directory_url != site.DIRECTORIES["letsencrypt-staging"] or config.trust_roots != site.STORE:
        return ""
    return (f"no system trusts the roots of Let's Encrypt's staging, so its certificates will be refused until {config.own_roots} has them: "
            f"curl -fsS {PLACE} > {config.own_roots}")

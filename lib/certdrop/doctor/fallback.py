"""Looks at the CAs to fall back on: whether each answers, has an account of ours, and may issue for the names by their CAA records.

Runs as: anyone, as the doctor does. Trusts: see ca.py. Reads: the issuer's notes of its accounts; asks the CA for its directory, and the DNS. Writes: nothing.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from certdrop.config import general
from certdrop.config import site as configuration
from certdrop.doctor import ca, names
from certdrop.doctor.line import FAILED, OK, WARNING, Line
from certdrop.events import clean

MOST = 20                          # lines about CAA records


def look(sites: list[configuration.Site], config: general.Config) -> list[Line]:
    """All of it; nothing where no site has another CA to fall back on."""
    found: dict[str, list[configuration.Site]] = {}
    for one in sites:
        for url in general.directories(one)[1:]:
            found.setdefault(url, []).append(one)
    return [line for url, those in found.items() for line in _of_one(config.asking(url), those)]


def _of_one(config: general.Config, sites: list[configuration.Site]) -> list[Line]:
    host = clean(urlsplit(config.directory_url).hostname, 100)
    said, authority = ca.look(config, [], [], None)
    wrong = [line._replace(level=WARNING, what="fallback") for line in said if line.level == FAILED or (line.what == "CA" and line.level != OK)]
    if not authority.account:
        wrong.append(Line(WARNING, "fallback", f"{host}: there is no account, so it is never asked",
                          f"sudo certdrop-account register --directory {config.directory}"))
    asked = dict.fromkeys((name, one.validation) for one in sites for name in one.domains)
    forbidden = [Line(WARNING, "fallback", f"{host}: {one.why}", one.mend) for domain, method in asked
                 for one in names.caa(domain.removeprefix("*."), authority, method, domain.startswith("*."))]
    return wrong + forbidden[:MOST] or [Line(OK, "fallback", f"{host} answers, has an account of ours, and may issue for {len(sites)} "
                                                             f"site{'' if len(sites) == 1 else 's'}")]

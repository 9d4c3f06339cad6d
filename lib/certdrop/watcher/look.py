"""Looks at sites: what is on disk, what the services of this host show, and what both together mean. One way for status, watcher and doctor.

Runs as: whoever imports it. Trusts: see evidence.py. Reads: public state; asks the services of this host by handshake. Writes: nothing.
"""

from __future__ import annotations

from certdrop import shown
from certdrop.config import site as configuration
from certdrop.listening import asked_name
from certdrop.shown import Place
from certdrop.watcher import handshake, verdict
from certdrop.watcher.evidence import Evidence, Reader
from certdrop.watcher.places import Places, judged
from certdrop.watcher.verdict import Thresholds, Verdict

NOBODYS = "nobody.certdrop.invalid"             # a name that no block has (RFC 6761 section 6.4)


def look(reader: Reader, names: list[str], places: Places | None, thresholds: Thresholds, now: float) -> list[Verdict]:
    """The verdict on each of these sites. Without `places` no service is asked."""
    found = [reader.site(name) for name in names]
    seen = served(found, places) if places else {}
    return [verdict.judge(site, seen.get(site.name), now, thresholds) for site in found]


def served(sites: list[Evidence], places: Places) -> dict[str, set[str]]:
    """What the services of this host show for each site; a site that nobody was asked for is not there."""
    asked = {site.name: [(place, asked_name(site.domains, site.probe), site.kind) for place in places.of(site.services, site.probe)]
             for site in sites
             if site.certificate and site.services and site.probe != "off" and site.domains
             and not configuration.refusal(site.domains[0], configuration.VALIDATIONS[site.domains[0].startswith("*.")])}
    answers = handshake.ask([question for questions in asked.values() for question in questions])
    seen = {name: {question[0]: answers[question] for question in questions} for name, questions in asked.items() if all(q in answers for q in questions)}
    return {site.name: _judged(site, seen[site.name], places) for site in sites if site.name in seen}


def _judged(site: Evidence, seen: dict[Place, str], places: Places) -> set[str]:
    """What is shown at the sockets that are this site's; where it is not the live certificate is noted in `site`."""
    live = {site.certificate.sha256} if site.certificate else set()
    listening = {place: leaf for place, leaf in seen.items() if leaf != handshake.NOBODY}
    doubted = shown.strangers(listening, live)
    to_anybody = handshake.ask([(place, NOBODYS, site.kind) for place in doubted]) if doubted else {}
    name = asked_name(site.domains, site.probe)
    found = judged(listening, live, {place: leaf for (place, _, _), leaf in to_anybody.items()}, lambda place: places.leads_to(name, place))
    site.astray = shown.words([place for place, leaf in found.items() if leaf not in live])
    return set(found.values()) or set(seen.values())

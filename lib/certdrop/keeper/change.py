"""What becomes of a site whose newest generation is not in use yet: decided by what was seen, before and after its services were reloaded.

Rows 12 and 13 of the recovery table. Nothing is done here, that is switch.py's. Runs as: root. Trusts: the judge's answer to "what is shown", in its
form. Reads: what Observed and Notes have read. Writes: nothing.
"""

from __future__ import annotations

from certdrop.config import site
from certdrop.keeper.judges import Seen
from certdrop.keeper.notes import Notes
from certdrop.keeper.services import Service
from certdrop.keeper.state import Observed
from certdrop.shown import Place

PATIENCE = 5.0                     # seconds for a reload to show; as many more for each second that the tests took beyond the first
GRACE = 1.0                        # the same, for a site that nobody showed before

# What is to be done, by plan().
NOTHING = "nothing"
COPY = "put the placeholder's copies where there is nothing yet"
ASK = "moved and put off: ask, for whoever started the service meanwhile had it read what is live"
SWITCH = "have its services use it"

# How it ended, by outcome().
SERVED = "shown, and good"
UNSERVED = "installed; nobody serves the site, now or before"
BACK = "not shown, or no good: the one before was, and is good again"
STAYS = "not shown, and going back would not help; or nobody was asked yet"


class Change:
    """A site whose newest generation is to be used, from `back` to `to`; and what was seen of that."""

    def __init__(self, wanted: site.Site, observed: Observed, noted: Notes, outdated: bool = False) -> None:
        self.wanted, self.name, self.observed, self.notes = wanted, wanted.name, observed, noted
        self.outdated = outdated                               # a copy is not what live has
        self.back = observed.live
        self.to = observed.newest or 0
        self.before: dict[Place, str] = {}                     # what was shown before anything was changed
        self.after = Seen("other", {})                         # what was seen when the new one was last asked for
        self.heard = False                                     # somebody was asked, and said so
        self.is_back = False                                   # the proven one is shown again

    @property
    def own(self) -> set[str]:
        """The fingerprints of all its generations, and of what was live before them."""
        return {*map(self.observed.sha256, self.observed.whole), *self.notes.spent}

    @property
    def was_served(self) -> bool:
        """Whether a certificate of this site was shown: a service knows it, and a reload must show."""
        return not self.own.isdisjoint(self.before.values())

    @property
    def fallback(self) -> int | None:
        """Where live is not proven, and so may have been moved by a run that was killed before it tested: what to try in its place."""
        if self.back in (None, self.observed.proven):
            return None
        below = [number for number in self.observed.complete if number < (self.back or 0)]
        return self.observed.proven or (below[-1] if below else self.to if self.to != self.back else None)

    @property
    def reloads(self) -> bool:
        """Whether a reload may matter: not where it is installed already, and nobody shows this site."""
        return self.back != self.to or self.outdated or self.was_served or self.observed.proven is not None or bool(self.notes.install)

    @property
    def patience(self) -> float:
        """Seconds to wait until it is shown."""
        if self.was_served or self.observed.proven is not None:
            return PATIENCE
        return GRACE if self.reloads and self.before else 0.0

    def question(self, used: dict[str, Service], number: int | None = None, patience: float = 0.0) -> dict[str, object]:
        """What the judge is asked (judge/served.py): whether a generation is shown; for None, just what is.

        The new one is to be shown by all who showed this site, and no other of this site's by anybody; the one before by anybody, and the new one by nobody.
        """
        forward = number == self.to
        known = [place for place, leaf in self.before.items() if leaf in self.own]
        return {"names": self.wanted.domains, "key": str(self.observed.facts(self.to, "request")["key"]).partition("-")[0],
                "ports": [(service.port, service.starttls) for name, service in used.items() if name in self.wanted.services and service.port],
                "probe": self.wanted.probe, "wanted": self.observed.sha256(number), "verify": forward, "known": known if forward else [],
                "others": sorted(self.own - {self.observed.sha256(number)}) if forward else [self.observed.sha256(self.to)], "patience": patience}


def plan(change: Change, insist: bool, asked_by_issuer: bool, now: float) -> str:
    """What is to be done: where it is written and not moved, or moved and not proven, or copied no more, it is switched, unless it has expired, or is put
    off and nobody insists.

    What was put off in a run that the issuer asked for binds no other: its caller may have a hand in why a service failed (aa-exec(1)).
    """
    observed = change.observed
    if observed.stands_in:
        return COPY if change.outdated else NOTHING
    if change.to == change.back == observed.proven and not change.outdated:
        return NOTHING
    insist = insist or (change.notes.install.get("by") == "issuer" and not asked_by_issuer)
    if (insist or not change.notes.is_put_off(change.to)) and observed.moment(change.to, "not_after") > now:
        return SWITCH
    return ASK if change.to == change.back and not change.outdated and change.wanted.probe != "off" else NOTHING


def outcome(change: Change) -> str:
    """How it ended, by what was seen. Going back helps where the proven generation was shown before, or where the new one is no good."""
    proven = change.observed.proven
    if change.after.state == "shown":
        return SERVED
    if proven is None and not change.was_served:
        return UNSERVED
    helps = change.after.state == "untrusted" or change.observed.sha256(proven) in change.before.values()
    return BACK if helps and change.heard and proven not in (None, change.to) else STAYS

"""Takes replies in: what lies in the spool is read, judged, and written into its generation; or refused, with a reason.

Runs as: root, under the keeper's lock. Trusts: of the judge the form of its answers, and what two hashes show to be no lie. Reads: the replies
that root posted requests for, through reader.py. Writes: sites/ and notes, through generations.py and notes.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import generations, judges, keys, notes, reader
from certdrop.keeper.judges import Accepted
from certdrop.keeper.run import Run

COSTLY = ("judge-failed", "busy")   # reasons that a run waited for
AT_ONCE = 64                       # replies in memory: root's, and in the judge's list
HOURLY = 3600                      # seconds between two installations of a site that the issuer asked for; less for short lifetimes


class Case:
    """A reply that is to be judged: for which site's next generation, what it says, and what root expects of it."""

    def __init__(self, run: Run, wanted: site.Site, reply: bytes) -> None:
        self.observed = observed = run.seen(wanted.name)
        self.wanted, self.name, self.number, self.reply = wanted, wanted.name, observed.next or 0, reply
        self.notes = notes.Notes(self.name)
        self.request = observed.facts(self.number, "request")
        self.expected = json.dumps([self.request["spki_sha256"], self.request["domains"], *map(_identity, wanted.roots)])
        self.revoked = (observed.live, "revoke") in run.posted.get(self.name, set())
        self.blocks: list[bytes] = []

    @property
    def waits(self) -> bool:
        """Whether it is too early for it in a run that the issuer asked for: root's own run takes it, at the latest."""
        since, observed = time.time() - self.notes.installed_at, self.observed
        return self.notes.waits(self.number) or (not observed.has(self.number, "now") and 0 <= since < observed.pause(observed.live, HOURLY))

    @property
    def question(self) -> dict[str, object]:
        """What the judge is told to expect, as judge/chain.py explains."""
        observed, live = self.observed, self.observed.live
        stands_in = live is None or observed.has(live, "placeholder")
        since = 0 if live is None or stands_in else observed.moment(live, "not_before")
        no_good = live is None or stands_in or observed.is_burnt(live) or self.revoked
        return {"spki": self.request["spki_sha256"], "names": self.request["domains"],
                "spent": [*self.notes.spent, *(identity for old in observed.whole for identity in observed.identities(old))],
                "earliest": since if spool.is_credible(since, spool.HAPPENED, time.time()) else 0,     # else nothing would ever be newer
                "until": 0 if no_good else observed.moment(live or 0, "not_after")}


def take(run: Run, wanted: list[site.Site]) -> None:
    """Read the replies that wait, have them judged, and write what is accepted into its generation; so many at a time as memory should hold."""
    for roots in sorted({found.roots for found in wanted}):
        cases = _cases(run, [found for found in wanted if found.roots == roots])
        while some := list(itertools.islice(cases, AT_ONCE)):
            _judge(run, some, roots)


def _judge(run: Run, cases: list[Case], roots: tuple[str, ...]) -> None:
    run.note(run.unfinished | {case.name for case in cases})
    asked = [(case.question, b"".join(case.blocks)) for case in cases]
    # The judge loads for a while what it needs; so do we, with a key for nobody.
    answers = judges.verdicts(roots, asked, meanwhile=lambda: keys.request(keys.make("ecdsa-p256"), [cases[0].name]))
    with contextlib.closing(answers), run.goes_on("replies"):
        for answer, case in zip(answers, cases):
            with run.goes_on(case.name):
                _settle(run, case, answer)
            if time.monotonic() > run.end:
                break


def _cases(run: Run, wanted: list[site.Site]) -> Iterator[Case]:
    """The replies that are to be judged. Who cost time before comes last: nobody's replies can keep another's from being judged."""
    waiting = sorted((found for found in wanted if run.seen(found.name).next is not None),
                     key=lambda found: notes.Notes(found.name).refused.get("reason") in COSTLY)
    replies = reader.replies(run, [spool.entry(found.name, run.seen(found.name).next or 0, "pem") for found in waiting])
    with contextlib.closing(replies):
        for reply, found in zip(replies, waiting):           # in this order: so the former comes to its end, and notes what it saw
            if time.monotonic() > run.end:
                break
            case = None
            with run.goes_on(found.name):
                case = _case(run, found, reply) if reply is not None else None
            if case:
                yield case


def _case(run: Run, wanted: site.Site, reply: bytes | spool.Refused) -> Case | None:
    """A reply as a case for the judge; None where there is none to be asked about, which is noted."""
    case = Case(run, wanted, b"" if isinstance(reply, spool.Refused) else reply)
    if run.asked_by_issuer and case.waits:
        return None
    if case.notes.is_refused(case.number, case.reply, case.expected):
        reason = str(case.notes.refused["reason"])
        run.failures.add(_code(reason))
        run.tell(case.name, f"the reply for request {case.number:04d} stays refused ({reason}); {_follows(reason)}")
        return None
    try:
        if isinstance(reply, spool.Refused):
            raise reply
        case.blocks = spool.pem_blocks(reply)
    except spool.Refused as refused:
        _refuse(run, case, refused.reason)
        return None
    return case


def _settle(run: Run, case: Case, answer: Accepted | spool.Refused) -> None:
    """Write what was accepted, where the answer is no lie: base64 and two hashes, no parser."""
    if isinstance(answer, spool.Refused):
        return _refuse(run, case, answer.reason)
    if (answer.sha256, answer.tbs_sha256) != _fingerprints(case.blocks[0]):
        return _refuse(run, case, "judge-failed")
    generations.complete(case.name, case.number, case.blocks, answer)
    run.stirred.add(case.name)
    case.notes.spent.update(dict.fromkeys(run.look(case.name).identities(case.number), answer.not_after))
    case.notes.refused = {}
    case.notes.save()
    run.log.write(events.ACCEPTED, site=case.name, number=case.number, sha256=answer.sha256, not_after=events.stamp(answer.not_after))


def _refuse(run: Run, case: Case, reason: str) -> None:
    case.notes.refuse(case.number, case.reply, case.expected, reason, case.observed.pause(case.observed.live, notes.BACK_OFF[-1]))
    case.notes.save()
    run.log.write(events.REFUSED, site=case.name, number=case.number, reason=reason)
    run.fail(case.name, f"the reply for request {case.number:04d} is refused ({reason}){_roots(reason, case.wanted)}; the live certificate stays; "
             f"{_follows(reason)}, certdrop-spool(5) explains the reason", _code(reason))


def _follows(reason: str) -> str:
    return "a later run judges it again" if reason in spool.TRANSIENT else "the issuer asks again by itself"


def _roots(reason: str, wanted: site.Site) -> str:
    own = " or ".join(map(site.own_roots, (wanted.directory, *wanted.fallback)))
    return f": it leads to no root in {' or '.join(wanted.roots)}; this CA's own roots are looked for in {own}" if reason == "untrusted" else ""


def _code(reason: str) -> int:
    return os.EX_TEMPFAIL if reason == "judge-failed" else os.EX_DATAERR


def _fingerprints(block: bytes) -> tuple[str, str]:
    """The SHA-256 of a certificate, and of what is signed in it: of its first element, whose length stands behind the tag (X.690 section 8.1.3)."""
    import base64                      # a run that finds nothing to do loads nothing of this
    import hashlib
    der = base64.b64decode(b"".join(block.splitlines()[1:-1]))
    padded = der + bytes(256)          # for lengths that lie
    begin = 2 + (padded[1] & 0x7F if padded[1] & 0x80 else 0)
    head = 2 + (padded[begin + 1] & 0x7F if padded[begin + 1] & 0x80 else 0)
    size = int.from_bytes(padded[begin + 2:begin + head], "big") if head > 2 else padded[begin + 1]
    return hashlib.sha256(der).hexdigest(), hashlib.sha256(der[begin:begin + head + size]).hexdigest()


def _identity(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_ino, found.st_size, int(found.st_mtime)]

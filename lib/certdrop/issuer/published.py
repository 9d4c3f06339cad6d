"""Whether the TXT records that prove names (dns-persist-01) are in the DNS, as this host sees it, before the CA is asked to look.

What this host sees decides nothing for long: where the DNS has two faces, the CA sees the other. So an order that nobody waits for is spared while a record
is seen to be lacking, which is looked at again in the next run; and the CA is asked all the same after an hour, six hours, and then daily. What it refuses
then is under no back-off, so that a record is seen when it comes.
Runs as: _certdrop, shut in. Trusts: the resolvers of /etc/resolv.conf, for no more than that. Reads: the network. Writes: nothing.
"""

from __future__ import annotations

import time

from certdrop.config import persist
from certdrop.issuer.failure import NOT_PUBLISHED, VALIDATION, Failure
from certdrop.issuer.plan import Task
from certdrop.watcher import resolver

ALL_THE_SAME = (6, 36)             # looks in vain, ten minutes apart, after which the CA is asked,
DAILY = 144                        # and then each time so many
SHOWN = 2                          # names in a sentence


def lacking(task: Task, names: list[str], issuers: list[str], account: str) -> bool:
    """Whether a record is seen to be lacking. Raises Failure where one is, nobody waits, and it is not the time to ask the CA all the same."""
    wrong = [f"{wanted.owner}: {seen.why}" for wanted, seen in look(persist.wanted(names), issuers, account) if seen.why] if issuers else []
    looks = task.ledger.own
    if wrong and not (task.urged or task.forced or looks in ALL_THE_SAME or (looks and looks % DAILY == 0)):
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise Failure(VALIDATION, f"{', '.join(wrong[:SHOWN])}{more}; certdrop-account show --records {task.name} prints what to publish",
                      problem=NOT_PUBLISHED)
    return bool(wrong)


def look(wanted: list[persist.Wanted], issuers: list[str], account: str) -> list[tuple[persist.Wanted, persist.Seen]]:
    """What is found for each record. Where the DNS does not answer, nothing is known to be wrong."""
    return [(one, _seen(one, issuers, account)) for one in wanted]


def _seen(one: persist.Wanted, issuers: list[str], account: str) -> persist.Seen:
    found = resolver.txt(one.owner)
    if found.problem not in ("", resolver.NO_NAME, resolver.NO_RECORD):
        return persist.Seen(unknown=found.words or found.problem)
    return persist.judged(found.texts, issuers, account, one.below, time.time())

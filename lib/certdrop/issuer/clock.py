"""The issuer's kinds of moments that are noted on disk, for spool.is_credible(): how many seconds ago one may lie, and how many ahead. Pure."""

from __future__ import annotations

from certdrop import spool

_DAY, _EVER = 86400.0, float("inf")
FRESH = (_DAY, 0.0)                # it was, and is good for a day: the CA's directory, the agenda
SPENT = (7 * _DAY, 0.0)            # it was, and counts for a week: what was used of a CA's limits
LOOK = (_EVER, _DAY)               # when the issuer looks at a site again
POLL = (_EVER, _DAY / 2)           # when the CA's window is asked for again
TRY = (_EVER, 1.2 * _DAY)          # the end of a back-off,
PUT_OFF = (_EVER, 7.4 * _DAY)      # and of one after the CA's Retry-After
ALL = (spool.HAPPENED, spool.INSTALL, FRESH, SPENT, LOOK, POLL, TRY, PUT_OFF)

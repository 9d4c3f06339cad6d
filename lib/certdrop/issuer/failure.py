"""What can go wrong with an order, in the five classes that the ledger remembers.

Runs as: _certdrop. Trusts: nothing in a problem document but its form (RFC 7807, RFC 8555 section 6.7). Reads and writes: nothing.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Sequence

from certdrop.events import clean

UNREACHABLE = "CA unreachable"
RATE_LIMITED = "rate limited"
VALIDATION = "validation"
REFUSED = "refused"
LOCAL = "local"                        # this host's own: no room, no memory, a process that was killed

NOT_PUBLISHED = "not-published"        # the problem of a failure that the CA was not asked for: a record that proves a name is not in the DNS
OWN_BUDGET = "budget"                  # the problem of a failure that is our own budget's: the CA was not asked
PROXY = "proxy"                        # the problem of a failure that is the configured proxy's, and not the CA's

OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EMFILE, errno.ENFILE)

URN = "urn:ietf:params:acme:error:"
LONGEST_TEXT = 4000                # characters of what a CA has to say
LONGEST_WAIT = 7 * 86400           # seconds; a Retry-After beyond is not believed

_VALIDATION = ("unauthorized", "dns", "connection", "caa", "incorrectResponse", "tls")
_CA_TROUBLE = ("serverInternal", "badNonce")


class Failure(Exception):
    """An order (or a question to the CA) did not come to its end: its class, the text, when to try again, the problem's type."""

    def __init__(self, kind: str, text: str, retry_after: float = 0.0, problem: str = "", status: int = 0,
                 names: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.kind, self.text, self.retry_after, self.problem, self.status = kind, clean(text, LONGEST_TEXT), retry_after, problem, status
        self.names = list(names)               # whose validation failed


def of_this_host(error: OSError | MemoryError, place: str = "this host") -> Failure:
    """What is this host's own trouble, in words; `place` is where it was met, as far as the error does not say."""
    if isinstance(error, MemoryError):
        return Failure(LOCAL, "this host: no memory")
    return Failure(LOCAL, f"{error.filename or place}: {error.strerror or error}")


SAYS = "the CA says "
_IN_SHORT = {RATE_LIMITED: "the CA's rate limit is reached", UNREACHABLE: "the CA is in trouble", REFUSED: "the CA refuses"}


def in_two(failure: Failure) -> tuple[str, str]:
    """(what failed, in our words; what the CA says of it, which can be long): a line has the second last, so that no other clause is cut off."""
    where, says, said = failure.text.partition(SAYS)
    if not says:
        return failure.text, ""
    where = where.rstrip(": ") or ", ".join(failure.names)
    if failure.kind == VALIDATION and where:
        return f"the CA could not validate {where}", SAYS + said
    return f"{where}: " * bool(where) + _IN_SHORT.get(failure.kind, "the CA refuses"), SAYS + said


class AccountUnknown(Failure):
    """The CA does not know the account (any more): register again."""


def from_answer(url: str, status: int, body: bytes, retry_after: str | None) -> Failure:
    """The trouble that an HTTP answer outside 2xx tells of."""
    wait = seconds_of(retry_after)
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = None
    broken = status >= 500 and status != 501                # 501: what was asked for is not offered, and will not be in an hour
    if not isinstance(problem, dict):
        return Failure(RATE_LIMITED if status == 429 else UNREACHABLE if broken else REFUSED, f"{url} answered with status {status}", wait, "", status)
    name = str(problem.get("type", "about:blank")).removeprefix(URN)
    kind = (RATE_LIMITED if name == "rateLimited" or status == 429 else UNREACHABLE if broken or name in _CA_TROUBLE
            else VALIDATION if name in _VALIDATION else REFUSED)
    made = AccountUnknown if name == "accountDoesNotExist" else Failure
    return made(kind, f"the CA says {told(problem)}", wait, name, status, names_in(problem) if kind == VALIDATION else ())


def told(problem: dict[str, object], depth: int = 0) -> str:
    """A problem document in one line: type, detail, which name, and its subproblems (RFC 8555 section 6.7.1)."""
    text = f"{str(problem.get('type', 'about:blank')).removeprefix(URN)}: {problem.get('detail', '(no detail)')}"
    identifier = problem.get("identifier")
    if isinstance(identifier, dict):
        text = f"{identifier.get('value')}: {text}"
    below = problem.get("subproblems")
    if isinstance(below, list) and depth < 3:
        text += "".join(f"; {told(part, depth + 1)}" for part in below[:100] if isinstance(part, dict))
    return clean(text, LONGEST_TEXT)


def names_in(problem: dict[str, object], depth: int = 0) -> list[str]:
    """The names that a problem document, or one below it, is about."""
    identifier, below = problem.get("identifier"), problem.get("subproblems")
    found = [str(identifier.get("value"))] if isinstance(identifier, dict) else []
    if isinstance(below, list) and depth < 3:
        found += [name for part in below[:100] if isinstance(part, dict) for name in names_in(part, depth + 1)]
    return found


def seconds_of(retry_after: str | None) -> float:
    """A Retry-After header, a number of seconds or a date (RFC 9110 section 10.2.3), as seconds from now; 0 where it says nothing."""
    if not retry_after:
        return 0.0
    retry_after = retry_after.strip()
    if retry_after.isdecimal():
        return min(float(retry_after[:9]), LONGEST_WAIT)
    import email.utils
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
        return min(max(0.0, moment.timestamp() - time.time()), LONGEST_WAIT)
    except (TypeError, ValueError):
        return 0.0

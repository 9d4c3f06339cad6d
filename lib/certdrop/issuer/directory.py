"""The CA's directory (RFC 8555 section 7.1.1): fetched, and looked at, for everybody who asks for it.

Runs as: _certdrop, shut in, or the doctor. Trusts: nothing in it but its form. Reads: the network. Writes: nothing.
"""

from __future__ import annotations

import json
import urllib.parse

from certdrop.issuer.transport import REDIRECTING, Answer, Transport
from certdrop.issuer.failure import REFUSED, UNREACHABLE, Failure, from_answer
from certdrop.signer import jose

NEEDED = ("newNonce", "newAccount", "newOrder")
SIGNED = ("newAccount", "newOrder", "revokeCert", "keyChange")         # what is sent there is signed


def fetch(transport: Transport, url: str) -> tuple[dict[str, object], Answer]:
    """(the directory, the answer that it came with). Redirects are followed, at the same host. Raises Failure."""
    answer = transport.request("GET", url)
    return read(url, answer), answer


def read(url: str, answer: Answer) -> dict[str, object]:
    """The directory in an answer. Raises Failure where it is none."""
    there = answer.headers.get("Location") if answer.status in REDIRECTING else None
    if there:
        raise Failure(REFUSED, f"{url} redirects to another host: {urllib.parse.urljoin(answer.url, str(there))}; give that URL as directory in certdrop.toml")
    if answer.status != 200:
        raise from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
    found = as_object(answer)
    fit = as_directory(url, found)
    if fit is None:
        missing = [name for name in NEEDED if not isinstance(found.get(name), str)]
        elsewhere = [name for name in NEEDED if name in SIGNED and name not in missing and not is_at(url, found[name])]
        why = [f"it lacks {', '.join(missing)}"] if 0 < len(missing) < len(NEEDED) else []
        why += [f"{', '.join(elsewhere)} would be at another host"] if elsewhere else []
        raise Failure(UNREACHABLE, f"{url} is no ACME directory{': ' * bool(why)}{', and '.join(why)}")
    return fit


def as_directory(url: str, found: object) -> dict[str, object] | None:
    """A directory object without what the signer would not sign for, which is all that is not at the host of its URL; None where it is none."""
    if not isinstance(found, dict):
        return None
    fit = {key: value for key, value in found.items() if key not in SIGNED or is_at(url, value)}
    return fit if all(isinstance(fit.get(name), str) for name in NEEDED) else None


def is_at(url: str, other: object) -> bool:
    """Whether another URL is at the same host: the signer signs for no other than the directory's."""
    return isinstance(other, str) and jose.place_of(other) == jose.place_of(url)


def as_object(answer: Answer) -> dict[str, object]:
    """The JSON object in an answer; empty where there is none."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

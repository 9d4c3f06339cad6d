"""When the CA wants a certificate renewed: ACME Renewal Information (RFC 9773).

Runs as: _certdrop, shut in. Trusts: of the answer, two moments that make sense. Reads: the certificate. Writes: nothing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from certdrop.events import clean
from certdrop.issuer.transport import Transport
from certdrop.issuer.failure import UNREACHABLE, Failure, from_answer, seconds_of

if TYPE_CHECKING:
    from cryptography import x509

_MOMENT = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,100}\.[A-Za-z0-9_-]{1,100}")


class Window:
    """The CA's suggested window (seconds since 1970), its explanation, and how long the answer holds (seconds; 0 where it does not say)."""

    def __init__(self, start: float, end: float, url: str, retry_after: float) -> None:
        self.start, self.end, self.url, self.retry_after = start, end, url, retry_after


class Absent(Exception):
    """The CA has no renewal information for this certificate."""

    def __init__(self, retry_after: float = 0.0) -> None:
        super().__init__("the CA has no renewal information for this certificate")
        self.retry_after = retry_after


def identifier(pem: bytes) -> str:
    """A certificate's unique identifier. Raises Absent where it has no authority key identifier, ValueError."""
    from cryptography import x509              # which a run can spare that finds all identifiers noted
    return identifier_of(x509.load_pem_x509_certificate(pem))


def identifier_of(leaf: x509.Certificate) -> str:
    """The certificate's unique identifier (RFC 9773 section 4.1). Raises Absent where it has no authority key identifier, ValueError."""
    from cryptography import x509
    try:
        key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        key = None
    if key is None:
        raise Absent()
    number = leaf.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)      # as in DER: a leading zero where the first bit is set
    return f"{_b64(key)}.{_b64(serial)}"


def is_identifier(text: str) -> bool:
    """Whether a text has the form of a certificate's unique identifier."""
    return bool(_IDENTIFIER.fullmatch(text))


def fetch(transport: Transport, directory: dict[str, object], noted: Callable[[], str]) -> Window:
    """The CA's window for the certificate with this identifier, which only a CA that has windows is asked with. Raises Absent, Failure, ValueError."""
    place = directory.get("renewalInfo")
    if not isinstance(place, str):
        raise Absent()
    url = f"{place.rstrip('/')}/{noted()}"
    answer = transport.request("GET", url)
    wait = seconds_of(answer.headers.get("Retry-After"))
    if answer.status != 200:
        if answer.status in (400, 404, 410):                   # not (any more) a certificate of this CA's
            raise Absent(wait)
        raise from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
    return read(answer.body, wait)


def read(body: bytes, retry_after: float) -> Window:
    """The window in an answer. Raises Failure where it makes no sense (RFC 9773 section 4.2: start before end)."""
    try:
        found = json.loads(body)
        window = found["suggestedWindow"]
        start, end = moment(window["start"]), moment(window["end"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Failure(UNREACHABLE, "the CA's renewal information is not well-formed") from error
    if not start < end:
        raise Failure(UNREACHABLE, "the CA's renewal window ends before it begins")
    url = found.get("explanationURL")
    return Window(start, end, clean(url, 300) if isinstance(url, str) else "", retry_after)


def moment(text: object) -> float:
    """An RFC 3339 date and time as seconds since 1970. Raises ValueError."""
    found = _MOMENT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("no RFC 3339 date and time")
    year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
    offset = timedelta(0)
    if found[8]:
        offset = timedelta(hours=int(found[9]), minutes=int(found[10])) * (1 if found[8] == "+" else -1)
    whole = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=timezone.utc)
    seconds = (whole - datetime(1970, 1, 1, tzinfo=timezone.utc) - offset).total_seconds()
    if seconds < 0:
        return 0.0
    return seconds


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")

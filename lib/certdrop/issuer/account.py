"""The ACME account: made on first use, and what the CA called it (RFC 8555 section 7.3). Its key is the signer's; here is who asks for signatures.

What the signer would not sign for is not kept, whoever said it; what is kept and not fit is forgotten, and asked for again.
Runs as: _certdrop, shut in. Trusts: of its own notes, nothing but their form. Reads and writes: issuer/account@ENTRY.json for each CA's directory.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

from certdrop import spool
from certdrop.config import persist, site
from certdrop.issuer import clock, directory, notes
from certdrop.issuer.transport import Answer, Transport
from certdrop.issuer.failure import REFUSED, UNREACHABLE, AccountUnknown, Failure, from_answer
from certdrop.signer import jose
from certdrop.signer.jose import b64

if TYPE_CHECKING:
    from certdrop.signer.keyring import Key
    from certdrop.signer.process import Signer

JOSE = "application/jose+json"
NONCES = 3                         # tries at a request whose nonce is refused (RFC 8555 section 6.5); then the CA is left alone
LOST = "the CA knows no account {} by this host's key any more: a clone of this host changed the key, or the CA lost or ended the account"
DOUBTFUL = ("malformed", "unauthorized")               # what CAs say of a request by a key that is not the account's any more
NOT_KNOWN = "account-lost"         # the problem of a failure for that
BY_HAND = "no other is made by itself: sudo certdrop-account register makes one, and a CAA record with accounturi must then name that"
FORBIDS = "a CAA record with accounturi={} forbids that: certdrop-account show prints the new record"


class Account:
    """The account at one CA, and the CA's directory. For several threads. With a key in place of a signer nothing is kept: an account to throw away."""

    def __init__(self, directory_url: str, contact: list[str], key: Signer | Key, keep: bool = True) -> None:
        self.directory_url = directory_url
        self.contact = [f"mailto:{address}" for address in contact]
        self.key = key
        self.lock = threading.RLock()
        self.registered_now = False
        self.doubted = False                   # whether the CA was asked again which account this is, in this run,
        self.sought = False                    # and for the one that it lost
        self.is_over = False                   # whether the CA said that the account is deactivated, in this run
        self.known: dict[str, object] = {}     # directory, directory_at, account, contact, changing (the key), before (the account that was,
        # or that the CA lost), agreed (to make another in its place), issuers (the names by which the CA goes in records, as a challenge had them)
        self._entry = f"account@{jose.entry(directory_url)}.json"
        self._keep = keep
        if keep:
            self._load()

    def note(self, **facts: object) -> None:
        """Remember what the CA said. Raises OSError."""
        self.known.update(facts)
        self._save()

    def forget(self, account: str, agreed: bool = False) -> None:
        """The CA does not know the account of this URL: the next session asks again, for the directory as well. Where a person agreed, it registers."""
        with self.lock:
            if self.known.get("account") == account:
                self.known = {"before": account, "agreed": agreed}
                self._save()

    def is_here(self, url: object) -> bool:
        """Whether a URL is at the directory's host: the signer signs for no other."""
        return directory.is_at(self.directory_url, url)

    def _load(self) -> None:
        found = notes.table(self._entry)
        fit = {"directory": directory.as_directory(self.directory_url, found.get("directory")) is not None,
               "directory_at": spool.is_credible(found.get("directory_at"), clock.FRESH, time.time()),
               "account": self.is_here(found.get("account")), "contact": isinstance(found.get("contact"), list),
               "changing": isinstance(found.get("changing"), bool), "before": self.is_here(found.get("before")),
               "agreed": isinstance(found.get("agreed"), bool), "issuers": bool(persist.issuers(found.get("issuers")))}
        self.known = {key: value for key, value in found.items() if fit.get(key)}

    def _save(self) -> None:
        if self._keep:
            notes.put(self._entry, json.dumps(self.known).encode())


class Session:
    """One worker's talk with the CA in the account's name: over its connections, with the nonces that it was given."""

    def __init__(self, account: Account, transport: Transport) -> None:
        self.account, self.transport = account, transport
        self.date = ""                         # what the CA called the time, with its directory
        self.may_replace = False               # a person wants another account in the place of one that the CA lost
        self.ahead = 0                         # requests that were made before there was an order to count them for
        self._nonce = ""

    def directory(self, fresh: bool = False) -> dict[str, object]:
        """The CA's directory object (RFC 8555 section 7.1.1), as kept, or asked for. Raises Failure."""
        with self.account.lock:
            known, at = self.account.known.get("directory"), self.account.known.get("directory_at")
            if not fresh and isinstance(known, dict) and spool.is_credible(at, clock.FRESH, time.time()):
                return known
            found, answer = directory.fetch(self.transport, self.account.directory_url)
            self.date = str(answer.headers.get("Date") or "")
            self.account.note(directory=found, directory_at=int(time.time()))
            return found

    def url(self, name: str) -> str:
        """One of the directory's URLs. Raises Failure."""
        return str(self.directory()[name])

    def kid(self) -> str:
        """The account's URL; registers it, or its new contact, where that is due. In the place of one that was, only where a person agreed: a CAA
        record may name that (RFC 8657). Raises Failure."""
        account = self.account
        with account.lock:
            known, before = (str(account.known.get(what) or "") for what in ("account", "before"))
            is_lost = bool(before) and not (known or account.known.get("agreed") or self.may_replace)
            if account.known.get("changing") or (not known and account.key.has_other) or (is_lost and not account.sought):
                account.sought = is_lost
                known = self.find()
            if is_lost and not known:
                raise Failure(REFUSED, f"{LOST.format(before)}; {BY_HAND}", problem=NOT_KNOWN)
            if known and account.known.get("contact") == account.contact:
                return known
            place, update = known, True
            if not known:
                answer = self.post(self.url("newAccount"), self._registration(), "")
                place = self._place(answer)
                account.registered_now = answer.status == 201 or account.known.get("before", place) != place
                update = answer.status == 200 and bool(account.contact)
            if update:
                self.post(place, {"contact": account.contact}, place)
            account.note(account=place, contact=account.contact, agreed=False)
            return place

    def find(self) -> str:
        """The account's URL as the CA knows it, by the key or, after a change of keys that was killed, by the other (RFC 8555 section 7.3.1);
        "" where the CA knows neither. Raises Failure."""
        account, place = self.account, ""
        for other in (False, True) if account.key.has_other else (False,):
            try:
                answer = self.post(self.url("newAccount"), {"onlyReturnExisting": True}, "", other=other)
            except AccountUnknown:
                continue
            if other:
                account.key.exchange()
            place = self._place(answer)
            break
        known, before = account.known.get("account"), account.known.get("before")
        if place == before:
            before = ""                        # it is back
        elif known and place != known:
            before = known
        account.note(account=place, changing=False, **({"before": before} if before is not None else {}))
        return place

    def _place(self, answer: Answer) -> str:
        """The account's URL, in an answer of newAccount's. Raises Failure where there is none that the signer would sign for."""
        place = str(answer.headers.get("Location") or "")
        if not place:
            raise Failure(UNREACHABLE, "the CA did not say the account's URL")
        if not self.account.is_here(place):
            raise Failure(UNREACHABLE, f"the CA names an account at another host ({place}); it is not used")
        return place

    def is_another(self, known: str) -> bool:
        """Whether the CA knows our key by another account's URL than this one, or by none; asked once in a run. Then the right one is noted."""
        account = self.account
        with account.lock:
            if account.doubted:
                return account.known.get("account") != known
            account.doubted = True
            try:
                return self.find() != known
            except Failure as failure:
                account.is_over = failure.problem == "unauthorized"        # what a CA says of the key of an account that is deactivated
                return False

    def _registration(self) -> dict[str, object]:
        wanted: dict[str, object] = {"termsOfServiceAgreed": True, **({"contact": self.account.contact} if self.account.contact else {})}
        binding = self.account.key.binding(self.url("newAccount"))
        if binding:
            return {**wanted, "externalAccountBinding": json.loads(binding)}
        meta = self.directory().get("meta")
        if isinstance(meta, dict) and meta.get("externalAccountRequired") is True:
            raise Failure(REFUSED, f"{self.account.directory_url} makes no account without an external account binding; put what it gave you "
                          f"into {site.ETC}/eab.toml, see certdrop-account(8)", problem="externalAccountRequired")
        return wanted

    def post(self, url: str, payload: object, kid: str | None = None, request: str = "", other: bool = False) -> Answer:
        """A signed request (RFC 8555 section 6.2), by the account of `kid` (ours unless given; "" by the key alone, or the other one), tried again
        where its nonce is refused. `request` is the entry of requests/ that it is for, where it is for one. Raises Failure."""
        who: dict[str, object] = {"jwk": self.account.key.jwk(other)} if kid == "" else {"kid": kid or self.kid()}
        for _ in range(NONCES):
            first = b64(json.dumps({"alg": "RS256", "nonce": self.nonce(), "url": url, **who}).encode())
            second = "" if payload is None else b64(json.dumps(payload).encode())
            signature = b64(self.account.key.sign(f"{first}.{second}".encode(), request))
            answer = self.send(url, json.dumps({"protected": first, "payload": second, "signature": signature}).encode())
            if answer.status < 300:
                return answer
            failure = from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
            if failure.problem != "badNonce":
                raise failure
        raise failure

    def send(self, url: str, body: bytes) -> Answer:
        """A request that is signed already; the nonce of the answer is kept. Raises Failure."""
        answer = self.transport.request("POST", url, body, JOSE)
        self._nonce = str(answer.headers.get("Replay-Nonce") or "")
        return answer

    def nonce(self) -> str:
        """A nonce: that of the last answer, or a fresh one from the CA. Raises Failure."""
        nonce, self._nonce = self._nonce, ""
        if nonce:
            return nonce
        url = self.url("newNonce")
        answer = self.transport.request("HEAD", url)
        nonce = str(answer.headers.get("Replay-Nonce") or "")
        if not nonce:
            raise from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
        return nonce

    def take_back(self, nonce: str) -> None:
        """A nonce that was not used."""
        self._nonce = self._nonce or nonce

    def issuers(self) -> list[str]:
        """The names by which the CA goes in records that prove names: as a challenge had them, else its directory (RFC 8555 section 9.7.6). Raises Failure."""
        return persist.noted_issuers({**self.account.known, "directory": self.directory()})

    def learn_issuers(self, found: list[str]) -> None:
        """A challenge had these. Raises OSError."""
        with self.account.lock:
            if found and found != self.issuers():
                self.account.note(issuers=found)

    def profiles(self, fresh: bool = False) -> list[str]:
        """The profiles that the CA offers, sorted (draft-ietf-acme-profiles section 3). Raises Failure."""
        meta = self.directory(fresh).get("meta")
        offered = meta.get("profiles") if isinstance(meta, dict) else None
        return sorted(map(str, offered)) if isinstance(offered, dict) else []

    def check_profile(self, profile: str) -> None:
        """Raise Failure, listing what there is, unless the CA offers this profile (draft-ietf-acme-profiles section 3)."""
        for fresh in (False, True):
            offered = self.profiles(fresh)
            if profile in offered:
                return
        there = f"it offers {', '.join(offered) or 'none'}"
        raise Failure(REFUSED, f'the CA has no profile "{profile}"; {there}', problem="invalidProfile")

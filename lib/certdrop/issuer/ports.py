"""acme-tiny, unmodified, with ports: a private copy of its module for each worker, whose four names for the world lead to ours.

acme-tiny is the protocol's logic; `urlopen`, `subprocess`, `time` and `json` are all it knows of the world. What the CA has already said (the
directory, the account, a nonce, the order that finalize returned) is not asked twice; an answer is never invented. Where names are proven by a record
in the DNS, which acme-tiny does not know, an authorization that it asks for is answered once the CA has decided on it (_proven).
Runs as: _certdrop, shut in. Trusts: the installed acme-tiny. Reads: its module. Writes: through it, tokens in the spool's challenges/.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import importlib.util
import inspect
import json
import os
import re
import time
import types
import urllib.parse
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certdrop import spool, tokens
from certdrop.config import persist, site
from certdrop.issuer.account import NONCES, Session
from certdrop.issuer.directory import as_object
from certdrop.issuer.transport import Answer
from certdrop.issuer.failure import (RATE_LIMITED, REFUSED, UNREACHABLE, VALIDATION, Failure, from_answer, names_in, of_this_host,
                                     seconds_of, told)

SELF_CHECK = 10.0                  # seconds to fetch a token from ourselves
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two polls, where the CA does not say
NOT_FOR_IT = ("rateLimited", "badNonce", "accountDoesNotExist", "userActionRequired")     # refusals that are not for what an order replaces
FAILED_POLLS = 6                   # of a challenge that the CA calls pending, and tells an error of
MOST_PAUSE = 60.0                  # seconds between two polls, whatever the CA says
GROWTH = 1.6                       # of the pause from poll to poll

_ALTERNATE = re.compile(r'<([^<>]{1,500})>\s*;\s*rel="?alternate"?')
_LINE_END = re.compile(rb"\r*\n|\r")
_WORLD = ("urlopen", "subprocess", "time", "json")
_PARAMETERS = ("account_key", "csr", "acme_dir", "log", "CA", "disable_check", "directory_url", "contact", "check_port")


class Moved(Exception):
    """This acme-tiny is not the one the ports were made for; the text says what is missing."""


def load() -> types.ModuleType:
    """A private copy of acme_tiny. Raises Moved where one of its ports is not where it was, ImportError where there is none."""
    spec = importlib.util.find_spec("acme_tiny")
    if spec is None or spec.loader is None:
        raise ImportError("acme_tiny is not installed; apt install acme-tiny")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in (*_WORLD, "get_crt", "LOGGER") if not hasattr(module, name)]
    if missing:
        raise Moved(f"this acme_tiny has no {', '.join(missing)}; certdrop works with 5.0.1 to 5.0.3")
    if tuple(inspect.signature(module.get_crt).parameters)[:len(_PARAMETERS)] != _PARAMETERS:
        raise Moved("this acme_tiny's get_crt has other parameters; certdrop works with 5.0.1 to 5.0.3")
    return module


class Order:
    """One order, as acme-tiny places it. `csr` is PEM; `extra` goes into the order's payload (profile, replaces); `chain` names a root to prefer,
    `request` the entry of requests/ that the signer shall look at, `validation` how the names are proven. `may_go_on` is asked before an order is
    placed once more, as no replacement."""

    def __init__(self, session: Session, csr: bytes, extra: dict[str, str], self_check: str = "off", chain: str = "",
                 request: str = "", may_go_on: Callable[[], None] = lambda: None, told: Callable[[str], None] = lambda step: None,
                 validation: str = persist.HTTP) -> None:
        self.session, self.extra, self.self_check, self.chain, self.request = session, dict(extra), self_check, chain, request
        self.validation = validation
        self.issuers: list[str] = []           # the names by which the CA goes in records, as a challenge had them
        self._authorizations: set[str] = set()
        self.csr = x509.load_pem_x509_csr(csr)
        self.names = names_of(self.csr)
        self.may_go_on = may_go_on             # raises Failure
        self.told = told                       # hears which step it has come to
        self._seen: list[str] = []             # the names whose authorization was seen
        self.placed = False                    # the CA took it, or may have
        self.unreplaced: Failure | None = None  # why the CA does not take it as a replacement
        self.warnings: list[str] = []
        self.tokens: dict[str, str] = {}       # token: domain
        self._challenges: dict[str, str] = {}  # URL: token
        self._said: dict[str, Answer] = {}     # what was said of an order before it was asked
        self._nonce = ""
        self._sent = True                      # whether what acme-tiny signs next is sent
        self._finalize = ""
        self._order = ""
        self._certificate = ""
        self._failing: dict[str, int] = {}     # by domain, how often its challenge was seen with an error
        self._pause = FIRST_PAUSE
        self._retry_after = 0.0
        self._refused_nonces = 0

    def place(self, module: types.ModuleType) -> str:
        """Have acme-tiny place the order, prove the names and fetch the chain (PEM). No token is left behind. Raises Failure."""
        setattr(module, "urlopen", self._urlopen)
        setattr(module, "subprocess", types.SimpleNamespace(Popen=self._command, PIPE=-1))
        setattr(module, "time", types.SimpleNamespace(time=time.time, sleep=self._sleep))
        setattr(module, "json", types.SimpleNamespace(loads=self._loads, dumps=self._dumps))
        module.LOGGER.handlers.clear()
        module.LOGGER.setLevel(100)
        self.session.kid()                     # before the order, and outside of acme-tiny's hands
        try:
            chain: object = module.get_crt("account", "csr", tokens.directory(), log=module.LOGGER, disable_check=True,
                                           directory_url=self.session.account.directory_url)
        except OSError as error:               # what is said with the CA raises Failure: this was a token's file
            raise of_this_host(error, tokens.directory()) from error
        except (ValueError, LookupError, AssertionError, TypeError, AttributeError, RecursionError) as error:
            # acme-tiny's own texts quote requests, so its words are not passed on
            raise Failure(UNREACHABLE, f"the CA's answers cannot be used ({_plainly(error)})") from error
        finally:
            for token in self.tokens:
                remove(token)
        if not isinstance(chain, str):
            raise Failure(UNREACHABLE, "what the CA sent is no certificate chain")
        return chain

    # ---- urlopen

    def _urlopen(self, request: object) -> Answer:
        try:
            return self._answer(request)
        except OSError as error:               # acme-tiny would take it for the CA's
            raise of_this_host(error) from error

    def _answer(self, request: object) -> Answer:
        url, body = str(getattr(request, "full_url")), getattr(request, "data")
        if url == self.session.account.directory_url:
            return _made(self.session.directory())
        if url == self.session.url("newNonce"):
            self._nonce = self.session.nonce()
            return _made({}, {"Replay-Nonce": self._nonce})
        if url == self.session.url("newAccount"):
            self.session.take_back(self._nonce)        # what acme-tiny signed with it is not sent
            return _made({"status": "valid"}, {"Location": self.session.kid()})
        if url in self._said:
            return self._said.pop(url)
        if url in self._challenges and self.self_check != "off":
            self._check_self(self._challenges.pop(url))
        self.placed = self.placed or url == self.session.url("newOrder")
        answer = self.session.send(url, body)
        self._retry_after = seconds_of(answer.headers.get("Retry-After")) if answer.status < 300 else 0.0
        if answer.status >= 300:
            failure = from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
            self._refused_nonces += 1
            if failure.problem == "badNonce" and self._refused_nonces < NONCES:
                return answer                  # acme-tiny tries again by itself
            answer = self._another_try(url, body, failure)
        self._refused_nonces = 0
        if url == self.session.url("newOrder"):
            self._learn_order(answer)
        elif url in self._authorizations:
            answer = self._proven(url, answer)
        elif url == self._finalize:
            self._learn_finalized(answer)
        elif url == self._order:
            answer = self._decided(answer)
        elif url == self._certificate:
            answer = self._preferred(with_plain_lines(answer))
        return answer

    def _another_try(self, url: str, body: bytes, failure: Failure) -> Answer:
        """What another request may heal: an order that the CA does not take as a replacement, a finalize that came too early. Raises Failure."""
        if url == self.session.url("newOrder"):
            return self._another_order(url, body, failure)
        if url == self._finalize and failure.problem == "orderNotReady":
            while True:
                self._sleep(1.0)
                found = as_object(self.session.post(self._order, None)).get("status")
                if found in ("ready", "invalid"):
                    return self.session.post(url, _payload(body), request=self.request)
                if found != "pending":
                    raise failure
        raise failure

    def _another_order(self, url: str, body: bytes, failure: Failure) -> Answer:
        """The order once more, as no replacement (RFC 9773 section 5): a CA may refuse one in many words, as for a certificate of another account's."""
        if "replaces" not in self.extra or failure.kind == RATE_LIMITED or failure.problem in NOT_FOR_IT:
            raise _of_an_order(failure)
        self.unreplaced = failure
        del self.extra["replaces"]
        self.may_go_on()
        payload = _payload(body)
        payload.pop("replaces", None)
        try:
            return self.session.post(url, payload, request=self.request)
        except Failure as again:
            raise _of_an_order(again)

    def _learn_order(self, answer: Answer) -> None:
        order, place = as_object(answer), answer.headers.get("Location")
        if not place:
            raise Failure(UNREACHABLE, "the CA did not say the order's URL")
        self._order, self._finalize = str(place), str(order.get("finalize"))
        listed = order.get("authorizations")
        self._authorizations = {str(one) for one in listed} if isinstance(listed, list) and self.validation == persist.METHOD else set()

    def _proven(self, url: str, answer: Answer) -> Answer:
        """An authorization as the CA has it once it looked for the record in the DNS: acme-tiny goes on from one that is valid. Raises Failure."""
        found = as_object(answer)
        name, challenge = persist.name_of(found), _challenge(found, persist.METHOD)
        if found.get("status") != "pending" or name not in self.names:
            return answer
        if challenge is None:
            raise Failure(REFUSED, f"{name}: the CA offers no {persist.METHOD} challenge for it")
        self.issuers = persist.issuers(challenge.get("issuer-domain-names"))
        if not self.issuers:
            raise Failure(REFUSED, f"{name}: the CA's {persist.METHOD} challenge does not say which names the CA goes by")
        if challenge.get("accounturi", self.session.kid()) != self.session.kid():
            self.warnings.append(f"{name}: the CA would rather have another accounturi in the record than our account's URL; that is not published")
        self._pause = FIRST_PAUSE
        self.session.post(str(challenge.get("url")), {})
        while True:
            answer = self.session.post(url, None)
            found = as_object(answer)
            if found.get("status") != "pending":
                return answer
            error = (_challenge(found, persist.METHOD) or {}).get("error")
            self._give_up(name, [error] if isinstance(error, dict) else [])
            self._retry_after = seconds_of(answer.headers.get("Retry-After"))
            self._sleep(1.0)

    def _learn_finalized(self, answer: Answer) -> None:
        self.told("waiting for the certificate")
        self._pause = FIRST_PAUSE
        order = as_object(answer)
        if order.get("status") == "valid" and order.get("certificate"):
            self._said[self._order] = answer
            self._certificate = str(order["certificate"])

    def _decided(self, answer: Answer) -> Answer:
        """The order, asked again while the CA's left hand still calls it ready after its right hand took the finalize."""
        while (order := as_object(answer)).get("status") == "ready" or (order.get("status") == "valid" and not order.get("certificate")):
            self._sleep(1.0)
            answer = self.session.post(self._order, None)
            self._retry_after = seconds_of(answer.headers.get("Retry-After"))
        if order.get("status") == "valid":
            self._certificate = str(order["certificate"])
        return answer

    def _preferred(self, answer: Answer) -> Answer:
        """The chain that leads to the preferred root, among those that the CA offers (RFC 8555 section 7.4.2); the first where none does, or none
        is preferred."""
        if not self.chain or leads_to(answer.body, self.chain):
            return answer
        for header in answer.headers.get_all("Link") or []:
            for target in _ALTERNATE.findall(str(header))[:8]:
                other = with_plain_lines(self.session.post(urllib.parse.urljoin(self._certificate, target), None))
                if leads_to(other.body, self.chain):
                    return other
        self.warnings.append(f'the CA offers no chain to "{self.chain}"; its first is taken')
        return answer

    def _check_self(self, token: str) -> None:
        """Fetch the token as the CA will (RFC 8555 section 8.3), from this host: a wish, not a condition, unless configured so."""
        domain = self.tokens[token]
        place = f"http://{site.as_host(domain)}/.well-known/acme-challenge/{token}"
        connection = http.client.HTTPConnection(domain, 80, timeout=SELF_CHECK)
        try:
            with open(f"{tokens.directory()}/{token}", "rb") as stream:
                expected = stream.read()
            connection.request("GET", f"/.well-known/acme-challenge/{token}")
            response = connection.getresponse()
            found = response.read(4096).strip()
            if response.status == 200 and found == expected:
                return
            seen = f"answers with status {response.status}" if response.status != 200 else "answers with something else"
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            seen = f"cannot be fetched from here ({getattr(error, 'strerror', None) or error})"
        finally:
            connection.close()
        text = f"{place}, asked for from here, {seen}"
        if self.self_check == "require":
            raise Failure(VALIDATION, text)
        self.warnings.append(text)

    # ---- json

    def _loads(self, text: str) -> object:
        found = json.loads(text)
        if isinstance(found, dict):
            if isinstance(found.get("identifier"), dict) and isinstance(found.get("challenges"), list):
                self._learn_authorization(found)
            elif found.get("status") == "invalid" and ("finalize" in found or "authorizations" in found):
                error = found.get("error")
                names = names_in(error) if isinstance(error, dict) else []
                said = told(error) if isinstance(error, dict) else "that the order is invalid"
                raise Failure(VALIDATION if names else REFUSED, f"the CA says {said}", names=names)
        return found

    def _learn_authorization(self, authorization: dict[str, object]) -> None:
        challenges, domain = authorization["challenges"], persist.name_of(authorization)
        self._seen += [domain] if domain in self.names and domain not in self._seen else []
        self.told(f"validating {len(self._seen)} of {len(self.names)}")
        listed = [challenge for challenge in challenges if isinstance(challenge, dict)] if isinstance(challenges, list) else []
        if domain not in self.names:
            raise Failure(REFUSED, f"the CA wants {domain!a} to be proven, which was not asked for")
        if authorization.get("status") in ("invalid", "deactivated", "expired", "revoked"):
            errors = [challenge["error"] for challenge in listed if isinstance(challenge.get("error"), dict)]
            said = "; ".join(told(error) for error in errors) or f"that the authorization is {authorization['status']}"
            raise Failure(VALIDATION, f"{domain}: the CA says {said}", names=[domain])
        if self.validation == persist.METHOD and authorization.get("status") != "valid":
            raise Failure(REFUSED, f"{domain}: the CA came to no decision about it, and it is proven by {persist.METHOD} alone")
        offered = [challenge for challenge in listed if challenge.get("type") == "http-01" and self.validation == persist.HTTP]
        self._give_up(domain, [error for one in offered if one.get("status") != "valid" and isinstance(error := one.get("error"), dict)])
        if authorization.get("status") == "pending" and not offered:
            raise Failure(REFUSED, f"{domain}: the CA offers no http-01 challenge for it")
        for challenge in offered:
            token = str(challenge.get("token"))
            if not tokens.is_token(token):
                raise Failure(REFUSED, f"{domain}: the CA's token is not one that nginx would serve")
            if token not in self.tokens:
                remove(token)                  # acme-tiny opens it by name: nothing may stand there
                self.tokens[token] = domain
                self._challenges[str(challenge.get("url"))] = token
                self._pause = FIRST_PAUSE

    def _give_up(self, domain: str, errors: list[dict[str, object]]) -> None:
        """Raise Failure where a CA goes on calling a challenge pending that failed, with the reason in it (RFC 8555 section 8.2 allows another try)."""
        if not errors:
            return
        self._failing[domain] = self._failing.get(domain, 0) + 1
        if self._failing[domain] >= FAILED_POLLS:
            raise Failure(VALIDATION, f"{domain}: the CA says {'; '.join(told(error) for error in errors)}", names=[domain])

    def _dumps(self, value: object, **how: object) -> str:
        if isinstance(value, dict) and "identifiers" in value:
            value = {**value, **self.extra}
            value["identifiers"] = [_identifier(one) for one in value["identifiers"]]
        if isinstance(value, dict) and "nonce" in value:
            self._sent = "jwk" not in value    # only newAccount is signed by the key alone, and the account is known
        return json.dumps(value, sort_keys=bool(how.get("sort_keys")), separators=(",", ":") if "separators" in how else None)

    # ---- time, subprocess

    def _sleep(self, seconds: float) -> None:
        """A pause between two polls: the CA's, or short ones that grow. acme-tiny's own, of two seconds each time, only says that it is to be one."""
        if not seconds:
            return
        pause = max(self._pause, min(self._retry_after, MOST_PAUSE))
        self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)
        if time.monotonic() + pause > self.session.transport.deadline:
            raise Failure(UNREACHABLE, "the CA did not come to a decision within the order's time")
        time.sleep(pause)

    def _command(self, argv: list[str], **_: object) -> types.SimpleNamespace:
        """Answer one of acme-tiny's openssl commands."""
        def communicate(data: bytes | None = None) -> tuple[bytes, bytes]:
            if argv[1:3] == ["rsa", "-in"]:
                return self._key_text().encode(), b""
            if argv[1:2] == ["dgst"]:
                return self.session.account.key.sign(data or b"", self.request) if self._sent else b"", b""
            if argv[1:2] == ["req"] and "DER" in argv:
                return self.csr.public_bytes(Encoding.DER), b""
            if argv[1:2] == ["req"] and "-text" in argv:
                return ("X509v3 Subject Alternative Name: \n    " + ", ".join(f"DNS:{name}" for name in self.names) + "\n").encode(), b""
            raise Moved(f"this acme_tiny runs openssl {' '.join(argv[1:])}, which certdrop does not know")
        return types.SimpleNamespace(communicate=communicate, returncode=0)

    def _key_text(self) -> str:
        numbers = self.session.account.key.numbers
        modulus = f"00{numbers.n:x}" if len(f"{numbers.n:x}") % 2 == 0 else f"000{numbers.n:x}"
        pairs = ":".join(modulus[i:i + 2] for i in range(0, len(modulus), 2))
        return f"modulus:\n    {pairs}\npublicExponent: {numbers.e} ({numbers.e:#x})\n"


def request(csr: bytes) -> x509.CertificateSigningRequest:
    """A request in PEM. Raises ValueError."""
    return x509.load_pem_x509_csr(csr)


def names_of(csr: x509.CertificateSigningRequest) -> list[str]:
    """The DNS names and IP addresses that a request asks for. Raises Failure where it has none."""
    try:
        found = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise Failure(REFUSED, "the request has no names") from error
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def _challenge(authorization: dict[str, object], kind: str) -> dict[str, object] | None:
    """The challenge of this type."""
    listed = authorization.get("challenges")
    return next((one for one in listed if isinstance(one, dict) and one.get("type") == kind), None) if isinstance(listed, list) else None


def _identifier(one: dict[str, str]) -> dict[str, str]:
    """An identifier of acme-tiny's, who calls all of them names, as the order has it (RFC 8738 section 3)."""
    return {"type": "ip" if site.is_address(one["value"]) else "dns", "value": one["value"]}


def with_plain_lines(answer: Answer) -> Answer:
    """A chain whose lines end as the spool has it: RFC 7468 section 3 has a reader take CRLF, CR and LF, and blanks before them; a proxy may make these."""
    lines = [line.rstrip(b" \t") for line in _LINE_END.split(answer.body.strip())]
    return Answer(answer.status, answer.headers, b"\n".join([*lines, b""]))


def leads_to(chain: bytes, name: str) -> bool:
    """Whether the last certificate of a chain names this root (its common name) as its issuer."""
    try:
        last = x509.load_pem_x509_certificate(spool.pem_blocks(chain)[-1])
        return any(part.value == name for part in last.issuer.get_attributes_for_oid(NameOID.COMMON_NAME))
    except (spool.Refused, ValueError, KeyError):
        return False


def _of_an_order(failure: Failure) -> Failure:
    """A refusal of newOrder: no name was validated yet."""
    failure.kind = REFUSED if failure.kind == VALIDATION and not failure.names else failure.kind
    return failure


def _payload(body: bytes) -> dict[str, object]:
    """What acme-tiny signed in a request."""
    text = str(json.loads(body)["payload"])
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error):
        return {}
    return found if isinstance(found, dict) else {}


def _made(said: dict[str, object], headers: dict[str, str] | None = None) -> Answer:
    message = http.client.HTTPMessage()
    for name, value in (headers or {}).items():
        message[name] = value
    return Answer(200, message, json.dumps(said).encode())


def _plainly(error: Exception) -> str:
    if isinstance(error, LookupError):
        return f"{error} is missing"
    return "one is not as RFC 8555 has it"


def remove(token: str) -> None:
    """Remove a token's file, where there is one."""
    try:
        os.unlink(f"{tokens.directory()}/{token}")
    except OSError:
        pass                                   # not there; or the directory is broken, which writing will say


def sweep() -> None:
    """Remove what a killed run left in challenges/. Only under the lock, while no order is under way."""
    for entry in os.listdir(tokens.directory()):
        if tokens.is_token(entry):
            remove(entry)

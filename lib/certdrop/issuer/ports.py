"""acme-tiny, unmodified, with ports: a private copy of its module for each worker, whose four names for the world lead to ours.

acme-tiny is the protocol's logic; `urlopen`, `subprocess`, `time` and `json` are all it knows of the world. What the CA has already said (the
directory, the account, a nonce, the order that finalize returned) is not asked twice; an answer is never invented.
Runs as: _certdrop, shut in. Trusts: the installed acme-tiny. Reads: its module. Writes: through it, tokens in the spool's challenges/.
"""

from __future__ import annotations

import http.client
import importlib.util
import inspect
import json
import os
import socket
import time
import types
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certdrop import spool
from certdrop.issuer.account import NONCES, Account
from certdrop.issuer.transport import Answer, Transport
from certdrop.issuer.trouble import LOCAL, REFUSED, UNREACHABLE, VALIDATION, Trouble, from_answer, seconds_of, told

ORDER = 600.0                      # seconds for one order
SELF_CHECK = 10.0                  # seconds to fetch a token from ourselves
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0   # seconds between two polls

_WORLD = ("urlopen", "subprocess", "time", "json")
_PARAMETERS = ("account_key", "csr", "acme_dir", "log", "CA", "disable_check", "directory_url", "contact", "check_port")


class Moved(Exception):
    """This acme-tiny is not the one the ports were made for; the text says what is missing."""


def load() -> types.ModuleType:
    """A private copy of acme_tiny. Raises Moved where one of its ports is not where it was."""
    spec = importlib.util.find_spec("acme_tiny")
    if spec is None or spec.loader is None:
        raise Moved("acme_tiny is not installed; apt install acme-tiny")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in _WORLD if not hasattr(module, name)]
    if missing:
        raise Moved(f"this acme_tiny has no {', '.join(missing)}; certdrop works with 5.0.1 to 5.0.3")
    if tuple(inspect.signature(module.get_crt).parameters)[:len(_PARAMETERS)] != _PARAMETERS:
        raise Moved("this acme_tiny's get_crt has other parameters; certdrop works with 5.0.1 to 5.0.3")
    return module


class Order:
    """One order, as acme-tiny places it. `csr` is PEM; `warn` hears what is worth a warning."""

    def __init__(self, account: Account, transport: Transport, csr: bytes, extra: dict[str, str], self_check: str, warn: Callable[[str], None]) -> None:
        self.account, self.transport, self.extra, self.self_check, self.warn = account, transport, extra, self_check, warn
        self.csr = x509.load_pem_x509_csr(csr)
        self.tokens: dict[str, str] = {}       # token: domain
        self._challenges: dict[str, str] = {}  # URL: token
        self._nonce: str | None = None
        self._said: dict[str, Answer] = {}     # what was said of an order before it was asked
        self._finalize: dict[str, str] = {}    # finalize URL: order URL
        self._pause = FIRST_PAUSE
        self._retry_after = 0.0
        self._refused_nonces = 0

    def place(self, module: types.ModuleType) -> str:
        """Have acme-tiny place the order, prove the names and fetch the chain (PEM). No token is left behind. Raises Trouble."""
        setattr(module, "urlopen", self._urlopen)
        setattr(module, "subprocess", types.SimpleNamespace(Popen=self._command, PIPE=-1))
        setattr(module, "time", types.SimpleNamespace(time=time.time, sleep=self._sleep))
        setattr(module, "json", types.SimpleNamespace(loads=self._loads, dumps=self._dumps))
        module.LOGGER.handlers.clear()
        module.LOGGER.setLevel(100)
        try:
            chain: str = module.get_crt("account", "csr", spool.challenges(), log=module.LOGGER, disable_check=True,
                                        directory_url=self.account.directory_url)
            return chain
        except (ValueError, OSError, IndexError, AssertionError, KeyError, TypeError, AttributeError) as error:
            # acme-tiny's own texts quote requests, so its word is not passed on
            raise Trouble(LOCAL if isinstance(error, OSError) else UNREACHABLE, f"acme-tiny gave up ({_plainly(error)})") from error
        finally:
            for token in self.tokens:
                _remove(token)

    # ---- urlopen

    def _urlopen(self, request: object) -> Answer:
        url, body = str(getattr(request, "full_url")), getattr(request, "data")
        if url == self.account.directory_url:
            return _made(self.account.directory)
        if url == self.account.directory["newNonce"]:
            nonce, self._nonce = self._nonce or self.account.nonce(self.transport), None
            return _made({}, {"Replay-Nonce": nonce})
        if url == self.account.directory["newAccount"]:
            return _made({"status": "valid"}, {"Location": self.account.kid})
        if url in self._said:
            return self._said.pop(url)
        if url in self._challenges and self.self_check != "off":
            self._check_self(self._challenges[url])
        answer = self.transport.request("POST", url, body, "application/jose+json")
        self._nonce = answer.headers.get("Replay-Nonce") or self._nonce
        self._retry_after = seconds_of(answer.headers.get("Retry-After")) if answer.status < 300 else 0.0
        if answer.status >= 300:
            trouble = from_answer(url, answer.status, answer.body, answer.headers.get("Retry-After"))
            self._refused_nonces += trouble.problem == "badNonce"
            if trouble.problem == "badNonce" and self._refused_nonces <= NONCES * 3:
                return answer                  # acme-tiny tries again by itself
            raise trouble
        if url == self.account.directory["newOrder"]:
            self._learn_order(answer)
        elif url in self._finalize:
            self._learn_finalized(self._finalize[url], answer)
        return answer

    def _learn_order(self, answer: Answer) -> None:
        order, place = _object(answer), answer.headers.get("Location")
        if place and isinstance(order.get("finalize"), str):
            self._finalize[str(order["finalize"])] = place

    def _learn_finalized(self, place: str, answer: Answer) -> None:
        if _object(answer).get("status") == "valid":
            self._said[place] = answer

    def _check_self(self, token: str) -> None:
        """Fetch the token as the CA will (RFC 8555 section 8.3), from this host: a wish, not a condition, unless configured so."""
        domain = self.tokens[token]
        place = f"http://{domain}/.well-known/acme-challenge/{token}"
        connection = http.client.HTTPConnection(domain, 80, timeout=SELF_CHECK)
        try:
            with open(f"{spool.challenges()}/{token}", "rb") as stream:
                expected = stream.read()
            connection.request("GET", f"/.well-known/acme-challenge/{token}")
            response = connection.getresponse()
            found = response.read(4096).strip()
            if response.status == 200 and found == expected:
                return
            seen = f"answers with status {response.status}" if response.status != 200 else "answers with something else"
        except (OSError, http.client.HTTPException, socket.timeout) as error:
            seen = f"cannot be fetched from here ({getattr(error, 'strerror', None) or error})"
        finally:
            connection.close()
        text = f"{place} {seen}; does the server block for {domain} on port 80 include snippets/certdrop-challenge.conf?"
        if self.self_check == "require":
            raise Trouble(VALIDATION, text)
        self.warn(text)

    # ---- json

    def _loads(self, text: str) -> object:
        found = json.loads(text)
        if isinstance(found, dict):
            if isinstance(found.get("identifier"), dict) and isinstance(found.get("challenges"), list):
                self._learn_authorization(found)
            elif found.get("status") == "invalid" and isinstance(found.get("error"), dict):
                raise Trouble(VALIDATION if "finalize" in found else REFUSED, f"the CA says {told(found['error'])}")
        return found

    def _learn_authorization(self, authorization: dict[str, object]) -> None:
        identifier, challenges = authorization["identifier"], authorization["challenges"]
        domain = str(identifier.get("value")) if isinstance(identifier, dict) else ""
        listed = [challenge for challenge in challenges if isinstance(challenge, dict)] if isinstance(challenges, list) else []
        if authorization.get("status") in ("invalid", "deactivated", "expired", "revoked"):
            errors = [challenge["error"] for challenge in listed if isinstance(challenge.get("error"), dict)]
            said = "; ".join(told(error) for error in errors) or f"the authorization is {authorization['status']}"
            raise Trouble(VALIDATION, f"{domain}: the CA says {said}")
        offered = [challenge for challenge in listed if challenge.get("type") == "http-01"]
        if authorization.get("status") == "pending" and not offered:
            raise Trouble(REFUSED, f"{domain}: the CA offers no http-01 challenge for it")
        for challenge in offered:
            token = str(challenge.get("token"))
            if not spool.is_token(token):
                raise Trouble(REFUSED, f"{domain}: the CA's token is not one that nginx would serve")
            if token not in self.tokens:
                _remove(token)                 # acme-tiny opens it by name: nothing may stand there
            self.tokens[token] = domain
            self._challenges[str(challenge.get("url"))] = token

    def _dumps(self, value: object, **how: object) -> str:
        if isinstance(value, dict) and "identifiers" in value:
            value = {**value, **self.extra}
        return json.dumps(value, sort_keys=bool(how.get("sort_keys")), separators=(",", ":") if "separators" in how else None)

    # ---- time, subprocess

    def _sleep(self, seconds: float) -> None:
        if seconds:
            pause = max(self._pause, min(self._retry_after, LONGEST_PAUSE * 6))
            self._pause = min(self._pause * 1.5, LONGEST_PAUSE)
            if time.monotonic() + pause > self.transport.deadline:
                raise Trouble(UNREACHABLE, "the CA did not come to a decision within the order's time")
            time.sleep(pause)

    def _command(self, argv: list[str], **_: object) -> types.SimpleNamespace:
        """Answer one of acme-tiny's openssl commands."""
        def communicate(data: bytes | None = None) -> tuple[bytes, bytes]:
            if argv[1:3] == ["rsa", "-in"]:
                return self._key_text().encode(), b""
            if argv[1:2] == ["dgst"]:
                return self.account.key.sign(data or b""), b""
            if argv[1:2] == ["req"] and "DER" in argv:
                return self.csr.public_bytes(Encoding.DER), b""
            if argv[1:2] == ["req"]:
                names = self.csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
                return ("X509v3 Subject Alternative Name: \n    " + ", ".join(f"DNS:{name}" for name in names) + "\n").encode(), b""
            raise Moved(f"this acme_tiny runs openssl {argv[1] if argv[1:] else ''}, which certdrop does not know")
        return types.SimpleNamespace(communicate=communicate, returncode=0)

    def _key_text(self) -> str:
        numbers = self.account.key.numbers
        modulus = f"00{numbers.n:x}" if len(f"{numbers.n:x}") % 2 == 0 else f"000{numbers.n:x}"
        pairs = ":".join(modulus[i:i + 2] for i in range(0, len(modulus), 2))
        return f"modulus:\n    {pairs}\npublicExponent: {numbers.e} ({numbers.e:#x})\n"


def _made(said: dict[str, object], headers: dict[str, str] | None = None) -> Answer:
    message = http.client.HTTPMessage()
    for name, value in (headers or {}).items():
        message[name] = value
    return Answer(200, message, json.dumps(said).encode())


def _object(answer: Answer) -> dict[str, object]:
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _plainly(error: Exception) -> str:
    text = str(error)
    return type(error).__name__ if "Data:" in text or len(text) > 200 else f"{type(error).__name__}: {text}"


def _remove(token: str) -> None:
    try:
        os.unlink(f"{spool.challenges()}/{token}")
    except FileNotFoundError:
        pass
    except OSError:
        pass


def sweep() -> None:
    """Remove what a killed run left in challenges/. Only while no order is under way."""
    for entry in os.listdir(spool.challenges()):
        if spool.is_token(entry):
            _remove(entry)

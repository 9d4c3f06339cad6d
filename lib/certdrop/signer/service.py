"""What the signer answers, in its own process (protocol.py has the questions, process.py the other end).

Runs as: _certdrop, shut in. Trusts: root's configuration, its own files; nothing that it is asked. Reads: requests/, the account's keys,
eab.toml. Writes: the account's keys; the log, where it refuses.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
from collections.abc import Callable

from certdrop import events, foreign, happened, spool
from certdrop.config import general, site
from certdrop.issuer.failure import Failure
from certdrop.signer import keyring, protocol
from certdrop.signer.jose import b64, unb64
from certdrop.signer.policy import Policy, Refused
from certdrop.signer.protocol import DEACTIVATE, FIND, LONGEST, ROLL_OVER

LOGGED = 20                        # refusals that are logged; whoever goes on asking fills no disk


def serve(sock: socket.socket, config: general.Config, may: frozenset[str], log: events.Log, message: bytes, following: Callable[[], bytes]) -> None:
    """Answer this message and what is following, until that is empty; say in place of the first answer why there can be none. Raises OSError."""
    refused = 0
    try:
        service = Service(config, may)
    except (Failure, OSError, Refused) as error:
        sock.send((b"!" if isinstance(error, OSError) else b"-") + str(error).encode("ascii", "backslashreplace")[:1000])
        return
    while message:
        answer, url = service.answer(message)
        if answer[:1] == b"-":
            refused += 1
            if refused <= LOGGED:
                log.write(happened.NOT_SIGNED, error=answer[1:].decode("ascii", "replace"), url=url)
        sock.send(answer)
        message = following()


def binding_key(config: general.Config) -> tuple[str, bytes] | None:
    """(key identifier, HMAC key) that bind an account at the configured CA to its customer, from eab.toml; None where there is none.

    Raises site.ConfigError.
    """
    path = site.ETC + "/eab.toml"
    try:
        fd = os.open(site.ETC, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)     # of what is in it, this process may read one file
        try:
            text = foreign.read(fd, "eab.toml", os.fstat(fd).st_uid)
            if os.stat("eab.toml", dir_fd=fd).st_mode & 0o007:
                raise site.ConfigError(f"{path}: every user can read this secret; chmod 640 {path}; chgrp {spool.ISSUER} {path}")
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except spool.Refused as refused:
        raise site.ConfigError(f"{path}: must be a file that root owns and nobody else can write ({refused.reason}), "
                               f"and that {spool.ISSUER} can read") from refused
    import tomllib
    try:
        tables = tomllib.loads(text.decode())
        for name, found in tables.items():
            if site.DIRECTORIES.get(name, name) == config.directory_url:
                if set(found) != {"kid", "hmac_key"} or not str(found["kid"]).isascii():
                    raise ValueError(f'"{name}": give kid and hmac_key')
                return str(found["kid"]), unb64(str(found["hmac_key"]).rstrip("="))
    except (ValueError, TypeError) as error:   # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise site.ConfigError(f"{path}: {error}; see certdrop-account(8)") from None
    return None


class Service:
    """What the signer answers."""

    def __init__(self, config: general.Config, may: frozenset[str]) -> None:
        self.ring = keyring.Keyring(config.directory_url)
        self.policy = Policy(config.directory_url, [f"mailto:{address}" for address in config.contact], self.ring, may)
        self.config = config
        self.policy.serves = lambda name: config.directory_url in general.directories(_site(name, config.whole or config))
        if protocol.HOSTS:
            from certdrop.fleet import proof
            self.policy.proof = proof.Proof(protocol.HOSTS)

    def answer(self, message: bytes) -> tuple[bytes, str]:
        """(the answer, which URL it was about where it is refused)."""
        what: dict[bytes, Callable[[bytes], bytes]] = {
            b"K": self._keys, b"S": self._sign, b"E": self._bind, b"N": self._make_other, b"C": self._change, b"X": self._exchange, b"D": self._deactivated}
        try:
            if len(message) > LONGEST or message[:1] not in what:
                raise Refused("it is no question that the signer knows")
            return b"+" + what[message[:1]](message[1:]), ""
        except Refused as refused:
            return b"-" + str(refused).encode("ascii", "backslashreplace")[:1000], _url_in(message)
        except OSError as error:
            return b"!" + f"its files: {error.strerror}".encode("ascii", "replace"), ""

    def _keys(self, _: bytes = b"") -> bytes:
        listed = [key.numbers for key in (self.ring.current, self.ring.other) if key is not None]
        return "\n".join(f"{numbers.n:x} {numbers.e:x}" for numbers in listed).encode()

    def _sign(self, text: bytes) -> bytes:
        request, _, data = text.partition(b"\n")
        return self.policy.key_for(request.decode("ascii", "replace"), data).sign(data)

    def _bind(self, text: bytes) -> bytes:
        """RFC 8555 section 7.3.4."""
        url = text.decode("ascii", "replace")
        self.policy.check_url(url)
        try:
            found = binding_key(self.config)
        except site.ConfigError as wrong:
            raise Refused(str(wrong)) from wrong
        if found is None:
            return b""
        kid, key = found
        first = b64(json.dumps({"alg": "HS256", "kid": kid, "url": url}).encode())
        second = b64(json.dumps(self.ring.current.jwk()).encode())
        made = json.dumps({"protected": first, "payload": second, "signature": b64(hmac.digest(key, f"{first}.{second}".encode(), "sha256"))})
        self.policy.bindings = {made}
        return made.encode()

    def _may(self, what: str) -> None:
        if what not in self.policy.may:
            raise Refused(f"this signer was not started for it ({what})")

    def _make_other(self, _: bytes) -> bytes:
        self._may(ROLL_OVER)
        self.ring.make_other()
        return self._keys()

    def _change(self, text: bytes) -> bytes:
        """RFC 8555 section 7.3.5: the inner JWS, by the key that shall follow."""
        self._may(ROLL_OVER)
        url, _, account = text.decode("ascii", "replace").partition("\n")
        self.policy.check_url(url)
        self.policy.check_url(account)
        if self.ring.other is None:
            raise Refused("there is no other key")
        first = b64(json.dumps({"alg": "RS256", "jwk": self.ring.other.jwk(), "url": url}).encode())
        second = b64(json.dumps({"account": account, "oldKey": self.ring.current.jwk()}).encode())
        made = json.dumps({"protected": first, "payload": second, "signature": b64(self.ring.other.sign(f"{first}.{second}".encode()))})
        self.policy.changes = {made}
        return made.encode()

    def _exchange(self, _: bytes) -> bytes:
        """Forward always, where a change that was begun is found to have been done; back only where a person looks on."""
        if not self.ring.other_is_younger() and ROLL_OVER not in self.policy.may:
            self._may(FIND)
        self.ring.exchange()
        return self._keys()

    def _deactivated(self, _: bytes) -> bytes:
        self._may(DEACTIVATE)
        self.ring.set_aside()
        return b""


def _site(name: str, config: general.Config) -> site.Site:
    """A site as root configured it; what is configured for all, where it has no file of its own, as a host's in a fleet. Raises Refused."""
    try:
        return site.load_site(name, config)
    except site.ConfigMissing:
        return site.Site(name, config)
    except site.ConfigError as wrong:
        raise Refused(str(wrong)) from wrong


def _url_in(message: bytes) -> str:
    """Where somebody wanted to go with what was refused; for the log, which cleans it."""
    try:
        found = json.loads(unb64(message.partition(b"\n")[2].partition(b".")[0].decode("ascii")))
        return str(found["url"])[:500]
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""

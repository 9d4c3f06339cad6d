"""Looks at what services show: shakes hands at this host's addresses, on the ports that root named, and waits for what root wants to be shown.

Runs as: _certdrop-judge. The connection is made first, by a process that reads nothing from it; the handshake
happens in the sandbox. Trusts: nothing that comes over the connection. Reads: what the keeper asks, /proc/self/net.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import ssl
import time

from certdrop import answering, listening
from certdrop.judge import sandbox

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from typing import Any

CONNECT = 3.0                      # seconds
FRESH = 0.25                       # seconds for which a look at who listens is good: the kernel takes 20 ms for one, and each site asks
QUICK = 3.0                        # seconds for an answer while other places wait; who took longer is asked again, after them
ROUND = 15.0                       # seconds of a look after which no place that hangs is asked again
NOBODY, NOTHING = "nobody", "nothing"             # in place of a fingerprint: no connection, no handshake

Place = tuple[str, int, str]       # address, port, and what is said before the handshake
PREFACES = {                       # what is said before the handshake, and how the last line of the answer must begin
    "": (),
    "proxy-protocol": ((b"PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n", b""),),
    "smtp": ((b"", b"220 "), (b"EHLO localhost\r\n", b"250 "), (b"STARTTLS\r\n", b"220 ")),       # RFC 3207
    "imap": ((b"", b"* OK"), (b"a STARTTLS\r\n", b"a OK")),                                       # RFC 9051 section 6.2.1
    "pop3": ((b"", b"+OK"), (b"STLS\r\n", b"+OK")),                                               # RFC 2595 section 4
}
_LEAF = frozenset("0123456789abcdef")
CIPHERS = {"ecdsa": "aECDSA", "rsa": "aRSA"}      # the suites of TLS 1.2 that need a key of this kind; those of 1.3 do not say


def serve(roots: list[str]) -> int:
    """Answer each question about a site: `STATE`, and `ADDRESS,PORT,PREFACE=LEAF` for each place where somebody answers (the leaf's SHA-256, or `nothing`).

    Asked for is one of its `names`, for its `key` (a kind), at the `ports` ([port, STARTTLS]), by its `probe`. The state is `shown` where the `wanted` leaf is
    shown: by each place of those `known`, and none of the `others` by any. Where the question says `verify`, it is `untrusted` unless OpenSSL's TLS client
    finds name and chain good, up to these roots: a second opinion on what was accepted, by other code, in a process that never saw the reply.
    All else is `other`. For that it is asked again, until so many seconds of `patience` passed since the first question.
    """
    client = Client(roots)
    began = time.monotonic()

    def answer(question: bytes) -> bytes:
        asked = json.loads(question)
        while True:
            since = time.monotonic() - began                # what counts is an answer to a question asked late enough
            now = client.look(asked)
            state = client.state(asked, now)
            if state == "shown" or since >= asked["patience"]:
                return " ".join([state, *(",".join(map(str, place)) + "=" + leaf for place, leaf in now.items())]).encode("ascii")
            time.sleep(0.02)                                # a reload says nothing when it is done
    answering.serve(answer)
    return os.EX_OK


class Client:
    """Shakes hands."""

    def __init__(self, roots: list[str]) -> None:
        self.context = functools.cache(lambda key, verify: context(key, roots if verify else []))
        self.context("", False)                             # before the first question
        self._listeners: dict[int, list[str]] = {}
        self._looked = -FRESH
        self._hung = set[Place]()                           # what did not answer in time, when it was asked last

    def look(self, asked: dict[str, Any]) -> dict[Place, str]:
        """What is shown for a site, on each address where somebody answers. One that hangs keeps none from being asked."""
        end = time.monotonic() + ROUND
        if time.monotonic() > self._looked + FRESH:
            self._listeners, self._looked = listening.listeners(), time.monotonic()
        there = places(asked["ports"], asked["probe"], self._listeners)
        found = {place: self.shown(asked, place, False, QUICK) for place in there if place not in self._hung}
        for place in there:
            if place in self._hung:
                found[place] = self.shown(asked, place, False) if time.monotonic() < end else NOTHING
        return {place: found[place] for place in there if found[place] != NOBODY}

    def state(self, asked: dict[str, Any], now: dict[Place, str]) -> str:
        """What that means. An address that shows something else, and did before, is another's: sites are bound to some addresses of a host only."""
        new, seen = asked["wanted"], set(now.values())
        known = [(host, port, preface) for host, port, preface in asked["known"]]
        if new not in seen or not seen.isdisjoint(asked["others"]) or any(now.get(place, new) != new for place in known):
            return "other"
        shown = next(place for place, leaf in now.items() if leaf == new)
        return "shown" if not asked["verify"] or self.shown(asked, shown, True) == new else "untrusted"

    def shown(self, asked: dict[str, Any], place: Place, verify: bool, deadline: float = sandbox.DEADLINE) -> str:
        """The SHA-256 of the leaf that is shown there. A service may have two certificates for a name, RSA beside ECDSA: the site's own kind of key is
        asked for first, and whatever the service likes where that fails, as it does where TLS 1.2 is switched off."""
        answer, end = NOTHING, time.monotonic() + deadline
        for key in dict.fromkeys((asked["key"], "")):
            if answer == NOTHING and time.monotonic() < end:           # who hangs for one kind of key is not asked for another
                answer = ask(self.context(key, verify), place, listening.asked_name(asked["names"], asked["probe"]), end - time.monotonic())
        if time.monotonic() < end:
            self._hung.discard(place)
        else:
            self._hung.add(place)
        return answer


def places(ports: list[tuple[int, str]], probe: str, listeners: dict[int, list[str]]) -> list[Place]:
    """The places to ask, by a site's `probe`: where somebody listens on its services' ports, unless it says otherwise."""
    if ":" in probe:
        host, _, port = probe.rpartition(":")
        return sorted({(host.strip("[]"), int(port), preface) for _, preface in ports})
    return sorted({(address, port, probe if probe == "proxy-protocol" else preface) for port, preface in ports for address in listeners.get(port, [])})


def context(key: str, roots: list[str]) -> ssl.SSLContext:
    """How we shake hands: for this kind of key, if any; what is shown is compared by root, whoever may trust it, unless there are roots."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if key:
        made.maximum_version = ssl.TLSVersion.TLSv1_2
        made.set_ciphers(CIPHERS[key])
    for path in roots:
        made.load_verify_locations(path)
    if not roots:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def ask(tls: ssl.SSLContext, place: Place, name: str, deadline: float = sandbox.DEADLINE) -> str:
    """One connection, and what is shown on it in so many seconds."""
    try:
        connection = socket.create_connection(place[:2], CONNECT)
    except OSError:
        return NOBODY
    with connection:
        answer = sandbox.run(lambda: shown(tls, connection, name, place[2]), deadline=deadline)
    return answer if _LEAF.issuperset(answer) and len(answer) == 64 else NOTHING           # it hangs, or lies


def shown(context: ssl.SSLContext, connection: socket.socket, name: str, preface: str) -> str:
    """The SHA-256 of the leaf that the service shows for `name` (SNI, RFC 6066 section 3)."""
    connection.settimeout(None)                             # poll(2) fails where no descriptor is allowed; the sandbox has the deadline
    for say, expected in PREFACES[preface]:
        connection.sendall(say)
        if expected and not _hears(connection, expected):
            return NOTHING
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()   # wrap_socket would want a new descriptor
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            data = connection.recv(16384)
            if not data:
                return NOTHING
            incoming.write(data)
        except ssl.SSLError:
            return NOTHING
    connection.sendall(outgoing.read())
    leaf = tls.getpeercert(True)
    return hashlib.sha256(leaf).hexdigest() if leaf else NOTHING


def _hears(connection: socket.socket, expected: bytes) -> bool:
    """Whether the service answers so, in a line that is not continued, within 4 KiB."""
    heard = b""
    while len(heard) < 4096:
        more = connection.recv(1024)
        heard += more
        if not more:
            return False
        if heard.endswith(b"\n"):
            last = heard.splitlines()[-1]
            if last.startswith(expected):
                return True
            if last[3:4] != b"-":
                return False
    return False

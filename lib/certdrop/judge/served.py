"""Looks at what a service shows: shakes hands with local addresses that root named, answers the fingerprint of the leaf.

Runs as: _certdrop-judge. The connection is made first, by a process that reads nothing from it; the handshake
happens in the sandbox. Trusts: nothing that comes over the connection. Reads: the keeper's pipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
from typing import Any

from certdrop.judge import sandbox

CONNECT = 3.0                      # seconds
PREFACES = {                       # what is said before the handshake, and how the last line of the answer must begin
    "": (),
    "proxy-protocol": ((b"PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n", b""),),
    "smtp": ((b"", b"220 "), (b"EHLO localhost\r\n", b"250 "), (b"STARTTLS\r\n", b"220 ")),       # RFC 3207
    "imap": ((b"", b"* OK"), (b"a STARTTLS\r\n", b"a OK")),                                       # RFC 9051 section 6.2.1
    "pop3": ((b"", b"+OK"), (b"STLS\r\n", b"+OK")),                                               # RFC 2595 section 4
}
CIPHERS = {"ecdsa": "aECDSA", "rsa": "aRSA"}      # the suites of TLS 1.2 that need a key of this kind; those of 1.3 do not say


def serve(roots: str) -> int:
    """One line a case: the leaf's SHA-256 in hex, or `nobody` (no connection), or `nothing` (no handshake).

    A service may have two certificates for a name, RSA beside ECDSA: the site's own kind of key is asked for first (`key`), and whatever
    the service likes where that fails, as it does where TLS 1.2 is switched off.
    Where the case says `verify`, there is no handshake unless OpenSSL's TLS client finds name and chain good, up to these roots: a second
    opinion on what was accepted, by other code, in a process that never saw the reply.
    """
    contexts = {("", False): context("", "")}
    sandbox.say("ready")
    for (question,) in sandbox.frames():
        asked = json.loads(question)
        answer = "nothing"
        for key in dict.fromkeys((asked["key"], "")):
            if answer == "nothing":
                kind = key, asked["verify"]
                contexts[kind] = contexts.get(kind) or context(key, roots if asked["verify"] else "")
                answer = ask(contexts[kind], asked)
        sandbox.say(answer or "nothing")
    return os.EX_OK


def context(key: str, roots: str) -> ssl.SSLContext:
    """How we shake hands: for this kind of key, if any; what is shown is compared by root, whoever may trust it, unless there are roots."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if key:
        made.maximum_version = ssl.TLSVersion.TLSv1_2
        made.set_ciphers(CIPHERS[key])
    if roots:
        made.load_verify_locations(roots)
    else:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def ask(tls: ssl.SSLContext, asked: dict[str, Any]) -> str:
    """One connection, and what is shown on it; "" where it hangs."""
    try:
        connection = socket.create_connection((asked["address"], asked["port"]), CONNECT)
    except OSError:
        return "nobody"
    with connection:
        return sandbox.run(lambda: shown(tls, connection, asked["name"], asked["preface"]))


def shown(context: ssl.SSLContext, connection: socket.socket, name: str, preface: str) -> str:
    """The SHA-256 of the leaf that the service shows for `name` (SNI, RFC 6066 section 3)."""
    connection.settimeout(None)                             # poll(2) fails where no descriptor is allowed; the sandbox has the deadline
    for say, expected in PREFACES[preface]:
        connection.sendall(say)
        if expected and not _hears(connection, expected):
            return "nothing"
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
                return "nothing"
            incoming.write(data)
        except ssl.SSLError:
            return "nothing"
    connection.sendall(outgoing.read())
    leaf = tls.getpeercert(True)
    return hashlib.sha256(leaf).hexdigest() if leaf else "nothing"


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

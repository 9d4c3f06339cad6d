"""Looks at what a service shows: shakes hands with local addresses that root named, answers the fingerprint of the leaf.

Runs as: _certdrop-judge. The connection is made first, by a process that reads nothing from it; the handshake
happens in the booth. Trusts: nothing that comes over the connection. Reads: the keeper's pipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl

from certdrop.judge import booth

CONNECT = 3.0                      # seconds
PREFACES = {                       # what is said before the handshake, and how the last line of the answer must begin
    "": (),
    "proxy-protocol": ((b"PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n", b""),),
    "smtp": ((b"", b"220 "), (b"EHLO localhost\r\n", b"250 "), (b"STARTTLS\r\n", b"220 ")),       # RFC 3207
    "imap": ((b"", b"* OK"), (b"a STARTTLS\r\n", b"a OK")),                                       # RFC 9051 section 6.2.1
    "pop3": ((b"", b"+OK"), (b"STLS\r\n", b"+OK")),                                               # RFC 2595 section 4
}


def serve(roots: str) -> int:
    """One line a case: the leaf's SHA-256 in hex, or `nobody` (no connection), or `nothing` (no handshake).

    Where the case says `verify`, there is no handshake unless OpenSSL's TLS client finds name and chain good, up to these roots: a second
    opinion on what was accepted, by other code, in a process that never saw the reply.
    """
    contexts = {False: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
    contexts[False].check_hostname = False              # what is shown is compared by root, whoever may trust it
    contexts[False].verify_mode = ssl.CERT_NONE
    booth.say("ready")
    for (question,) in booth.frames():
        asked = json.loads(question)
        if asked["verify"] and True not in contexts:
            contexts[True] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            contexts[True].load_verify_locations(roots)
        try:
            connection = socket.create_connection((asked["address"], asked["port"]), CONNECT)
        except OSError:
            booth.say("nobody")
            continue
        with connection:
            booth.say(booth.hear(lambda: shown(contexts[asked["verify"]], connection, asked["name"], asked["preface"])) or "nothing")
    return os.EX_OK


def shown(context: ssl.SSLContext, connection: socket.socket, name: str, preface: str) -> str:
    """The SHA-256 of the leaf that the service shows for `name` (SNI, RFC 6066 section 3)."""
    connection.settimeout(None)                             # poll(2) fails where no descriptor is allowed; the booth has the deadline
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

"""Asks the services of this host, by TLS handshakes, which certificate they show for a name.

Many at once in one thread, without waiting for the slow: after the deadline what did not answer was not seen.
Runs as: whoever imports it. Trusts: nothing that comes over a connection. Reads and writes: no file.
"""

from __future__ import annotations

import errno
import hashlib
import selectors
import socket
import ssl
import time

from certdrop.shown import Place

AT_ONCE = 64                       # handshakes
PATIENCE = 5.0                     # seconds for one handshake
DEADLINE = 30.0                    # seconds for all of them
MAX_ANSWER = 4096                  # bytes of an answer before the handshake

NOBODY = "nobody"                  # in place of a fingerprint: nothing listens
NOTHING = "nothing"                # ... or it listens, and shows no certificate

PREFACES = {                       # what is said before the handshake, and how the last line of the answer must begin
    "": (),
    "proxy-protocol": ((b"PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n", b""),),
    "smtp": ((b"", b"220 "), (b"EHLO localhost\r\n", b"250 "), (b"STARTTLS\r\n", b"220 ")),       # RFC 3207
    "imap": ((b"", b"* OK"), (b"a STARTTLS\r\n", b"a OK")),                                       # RFC 9051 section 6.2.1
    "pop3": ((b"", b"+OK"), (b"STLS\r\n", b"+OK")),                                               # RFC 2595 section 4
}

CIPHERS = {"ecdsa": "aECDSA", "rsa": "aRSA"}      # the suites of TLS 1.2 that need a key of this kind; those of 1.3 do not say

Question = tuple[Place, str, str]  # where, for which name, and which kind of key ("" for any) is asked for first


def context(key: str = "") -> ssl.SSLContext:
    """How we shake hands, for this kind of key: what is shown is compared, whoever may trust it."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if key:
        made.maximum_version = ssl.TLSVersion.TLSv1_2
        made.set_ciphers(CIPHERS[key])
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def ask(questions: list[Question], seconds: float = DEADLINE) -> dict[Question, str]:
    """The SHA-256 of the leaf shown for each question, or NOBODY or NOTHING. A question that the deadline cut off has no answer.

    A service may have two certificates for a name, RSA beside ECDSA: where it has none for the kind of key, or no TLS 1.2, it is asked
    once more for whatever it likes.
    """
    answers: dict[Question, str] = {}
    waiting = [(question, question[2]) for question in dict.fromkeys(questions)][::-1]
    end = time.monotonic() + seconds
    open_now: dict[_Handshake, float] = {}
    tls = {key: context(key) for key in {"", *(question[2] for question in questions)}}
    with selectors.DefaultSelector() as selector:
        while (waiting or open_now) and time.monotonic() < end:
            while waiting and len(open_now) < AT_ONCE:
                try:
                    started = _Handshake(*waiting[-1], tls)
                except OSError:                # no more descriptors for now
                    if open_now:
                        break
                    return answers
                del waiting[-1]
                open_now[started] = time.monotonic() + PATIENCE
                selector.register(started.connection, selectors.EVENT_WRITE, started)
            ready = {key.data for key, _ in selector.select(0.2)}
            for one, patience in list(open_now.items()):
                shown = one.step() if one in ready else NOTHING if time.monotonic() > patience else None
                if shown is not None:
                    if shown == NOTHING and one.key and one in ready:
                        waiting.append((one.question, ""))
                    else:
                        answers[one.question] = shown
                    selector.unregister(one.connection)
                    one.connection.close()
                    del open_now[one]
                elif one in ready:
                    selector.modify(one.connection, one.wants, one)
        for one in open_now:
            one.connection.close()
    return answers


class _Handshake:
    """One connection on its way, never blocking."""

    def __init__(self, question: Question, key: str, tls: dict[str, ssl.SSLContext]) -> None:
        self.question, self.key = question, key
        (host, port, preface), name, _ = question
        self.dialogue = list(PREFACES.get(preface, ()))
        self.heard = b""
        self.unsent = b""
        self.connected = False
        self.wants = selectors.EVENT_WRITE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = tls[key].wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.connection.setblocking(False)
        self.refused = self.connection.connect_ex((host, port)) not in (0, errno.EINPROGRESS)

    def step(self) -> str | None:
        """Go on; the answer, or None as long as there is none."""
        try:
            return self._step()
        except BlockingIOError:
            return None
        except OSError:                        # ssl.SSLError is one
            return NOTHING

    def _step(self) -> str | None:
        if not self.connected:
            if self.refused or self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return NOBODY
            self.connected = True
            self._say()
        elif self.wants == selectors.EVENT_READ:
            data = self.connection.recv(16384)
            if not data or not self._hear(data):
                return NOTHING
        if not self.dialogue:
            try:
                self.tls.do_handshake()
                return self._shown()
            except ssl.SSLWantReadError:
                self.unsent += self.outgoing.read()
        self.unsent = self.unsent[self.connection.send(self.unsent):] if self.unsent else b""
        self.wants = selectors.EVENT_WRITE if self.unsent else selectors.EVENT_READ
        return None

    def _say(self) -> None:
        """Say what comes before the handshake, up to where an answer is waited for."""
        while self.dialogue:
            self.unsent += self.dialogue[0][0]
            if self.dialogue[0][1]:
                return
            del self.dialogue[0]

    def _hear(self, data: bytes) -> bool:
        """Take what came; whether it is as expected, so far."""
        if not self.dialogue:
            self.incoming.write(data)
            return True
        self.heard += data
        if not self.heard.endswith(b"\n"):
            return len(self.heard) < MAX_ANSWER
        last = self.heard.splitlines()[-1]
        if last.startswith(self.dialogue[0][1]):
            self.heard = b""
            del self.dialogue[0]
            self._say()
            return True
        return last[3:4] == b"-" and len(self.heard) < MAX_ANSWER

    def _shown(self) -> str:
        leaf = self.tls.getpeercert(True)
        try:
            self.connection.send(self.outgoing.read())         # the end of the handshake, so that the service sees no error
        except OSError:
            pass
        return hashlib.sha256(leaf).hexdigest() if leaf else NOTHING

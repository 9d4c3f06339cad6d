"""A name server on loopback that answers for TLSA records itself, and asks the stage's DNS for all else.

With `authentic` it says, as a resolver that validates, that DNSSEC proves its answers (AD).
"""

from __future__ import annotations

import contextlib
import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

ADDRESS = "127.0.0.53"
BEYOND = ("127.0.0.1", 53)


class NameServer:
    """Serves `records` (owner: what each says after TLSA) with this TTL, at ADDRESS, port 53, by UDP."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.ttl, self.authentic, self.broken = 1, True, False
        self.asked: list[str] = []             # the owners
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ADDRESS, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                data, place = self._socket.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            threading.Thread(target=self._answer, args=(data, place), daemon=True).start()

    def _answer(self, data: bytes, place: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        if question.rdtype != dns.rdatatype.TLSA:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beyond:
                beyond.settimeout(5)
                beyond.sendto(data, BEYOND)
                self._socket.sendto(beyond.recv(4096), place)
            return
        owner = question.name.to_text()
        self.asked.append(owner)
        answer = dns.message.make_response(query, recursion_available=True)
        if self.broken:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif owner in self.records:
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, dns.rdataclass.IN, dns.rdatatype.TLSA, *self.records[owner]))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if self.authentic:
            answer.flags |= dns.flags.AD
        self._socket.sendto(answer.to_wire(), place)

    def close(self) -> None:
        """No more."""
        with contextlib.suppress(OSError):     # not connected; but whoever waits in recvfrom() is woken
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

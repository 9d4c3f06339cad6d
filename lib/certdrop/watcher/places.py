"""Where on this host the services of a site can be asked for its certificate, and what to say there before the handshake.

Runs as: anyone. Trusts: root's configuration, and the kernel. Reads: /etc/certdrop/services.d, /proc/self/net; in doubt, the DNS. Writes: nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from certdrop import listening
from certdrop.config import service as described
from certdrop.config import site as configuration
from certdrop.config.service import Service
from certdrop.shown import Place, strangers

PATIENCE = 10.0                    # seconds for the DNS, in a run
MOST = 16                          # addresses of a port that are asked


class Places:
    """The listeners of this host, and its services' ports; looked up once."""

    def __init__(self, resolves: bool = True) -> None:
        self.listening = listening.listeners()
        self.ours = addresses6()
        self._resolves, self._end = resolves, 0.0
        self._addresses: dict[str, list[str] | None] = {}
        self.known: dict[str, Service | None] = {}

    def of(self, services: list[str], probe: str) -> list[Place]:
        """Where a site is asked for; nothing for `probe` "off", and where nobody listens. Services that are described badly are passed over."""
        found: list[Place] = []
        if probe == "off":
            return found
        for service in filter(None, map(self.service, services)):
            if ":" not in probe:
                preface = probe if probe == "proxy-protocol" else service.starttls
                found += [(address, service.port, preface) for address in self.listening.get(service.port, [])[:MOST]]
                continue
            host, _, port = probe.rpartition(":")
            found += [(host.strip("[]"), int(port), service.starttls)] if int(port) < 65536 else []
        return found

    def leads_to(self, name: str, place: Place) -> bool:
        """Whether a name's addresses lead to a socket, as far as this host can tell: IPv4 may lead here through a router that translates, IPv6 does not.
        Where the DNS does not answer, they may."""
        if name not in self._addresses:
            self._addresses[name] = self._look_up(name)
        found = self._addresses[name]
        if found is None:
            return self._resolves
        if place[0] == "::1":
            return not self.ours.isdisjoint(found)
        return any("." in address for address in found) if place[0] == "127.0.0.1" else place[0] in found

    def _look_up(self, name: str) -> list[str] | None:
        if configuration.is_address(name):
            return [name]
        self._end = self._end or time.monotonic() + PATIENCE
        if not self._resolves or time.monotonic() > self._end:
            return None
        from certdrop.watcher import resolver             # few runs meet a doubt
        looked = resolver.addresses(name)
        return looked.addresses if looked.addresses or looked.problem in (resolver.NO_NAME, resolver.NO_RECORD) else None

    def service(self, name: str) -> Service | None:
        """A service's description; None where there is none to use."""
        if name not in self.known:
            try:
                self.known[name] = described.read(name)
            except configuration.ConfigError:
                self.known[name] = None        # the keeper says so
        return self.known[name]


def addresses6() -> set[str]:
    """The IPv6 addresses of this host (proc(5), /proc/net/if_inet6)."""
    try:
        with open("/proc/self/net/if_inet6", encoding="ascii") as stream:
            return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in stream}
    except OSError:
        return set()                           # a kernel without IPv6


def judged(now: dict[Place, str], own: set[str], to_anybody: dict[Place, str], leads_there: Callable[[Place], bool]) -> dict[Place, str]:
    """What counts of what is shown: without strangers at sockets that are others'. A stranger's is the site's all the same, if it shows the name something
    else than it shows anybody (`to_anybody`: asked for a name that nobody has), for then a block there has this name; or if the name's addresses lead there."""
    passed = {place for place in strangers(now, own) if now[place] == to_anybody.get(place) and not leads_there(place)}
    return {place: leaf for place, leaf in now.items() if place not in passed}

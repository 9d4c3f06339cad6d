"""Which sockets of this host are a site's, of all that are asked for its certificate: the keeper's part of one rule; the rest is in watcher/places.py. Pure.

A site may be bound to some addresses of a host only; at the others some other block answers for its name, as for any name, and rightly shows its own.
Runs as: whoever imports it. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

Place = tuple[str, int, str]       # where a service is asked: address, port, and what is said before the handshake


def strangers(now: dict[Place, str], own: set[str]) -> list[Place]:
    """The sockets that show what is none of the site's `own` certificates (SHA-256), where others show one. By place: what is shown."""
    return sorted(place for place, leaf in now.items() if leaf not in own) if not own.isdisjoint(now.values()) else []


def words(places: list[Place]) -> str:
    """Sockets as nginx's `listen` writes them; the loopback stands for the wildcard of its family, which is asked there."""
    hosts = {"127.0.0.1": "0.0.0.0", "::1": "[::]"}
    return ", ".join(f"{hosts.get(host) or (f'[{host}]' if ':' in host else host)}:{port}" for host, port, _ in sorted(places))

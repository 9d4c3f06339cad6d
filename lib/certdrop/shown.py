"""Which sockets of this host are a site's, of all that are asked for its certificate: one rule for keeper, status, watcher and doctor. Pure.

A site may be bound to some addresses of a host only; at the others some other block answers for its name, as for any name, and rightly shows its own.
Runs as: whoever imports it. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Place = tuple[str, int, str]   # address, port, and what is said before the handshake


def strangers(now: dict[Place, str], own: set[str]) -> list[Place]:
    """The sockets that show what is none of the site's `own` certificates (SHA-256), where others show one. By place: what is shown."""
    return sorted(place for place, leaf in now.items() if leaf not in own) if not own.isdisjoint(now.values()) else []


def judged(now: dict[Place, str], own: set[str], to_anybody: dict[Place, str], leads_there: Callable[[Place], bool]) -> dict[Place, str]:
    """What counts of what is shown: without strangers at sockets that are others'. A stranger's is the site's all the same, if it shows the name something
    else than it shows anybody (`to_anybody`: asked for a name that nobody has), for then a block there has this name; or if the name's addresses lead there."""
    passed = {place for place in strangers(now, own) if now[place] == to_anybody.get(place) and not leads_there(place)}
    return {place: leaf for place, leaf in now.items() if place not in passed}


def words(places: Iterable[Place]) -> str:
    """Sockets as nginx's `listen` writes them; the loopback stands for the wildcard of its family, which is asked there."""
    hosts = {"127.0.0.1": "0.0.0.0", "::1": "[::]"}
    return ", ".join(f"{hosts.get(host) or (f'[{host}]' if ':' in host else host)}:{port}" for host, port, _ in sorted(places))

"""Networks, as allow, deny and geo name them, and whether a CA may come from one.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

import ipaddress


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """What it names, if it names one."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def are_of_the_internet(text: str) -> bool:
    """Whether a network may have an address of a CA's."""
    found = network(text)
    return found is not None and (found.prefixlen < 8 or found.is_global)

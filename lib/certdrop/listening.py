"""On which addresses of this host somebody listens, and by which name: how the judge and the watcher ask services for their certificates.

Runs as: whoever imports it. Trusts: the kernel. Reads: /proc/self/net. Writes: nothing.
"""

from __future__ import annotations

import socket
import sys


def listeners() -> dict[int, list[str]]:
    """The addresses of this host on which somebody listens, by TCP port; the wildcards as the loopback's (proc(5)).

    At a high port anybody can listen too, on another address, and show what he likes: where root listens, its addresses alone are named.
    """
    found: dict[int, list[str]] = {}
    roots: dict[int, list[str]] = {}
    for path, family in (("/proc/self/net/tcp", socket.AF_INET), ("/proc/self/net/tcp6", socket.AF_INET6)):
        try:
            with open(path, encoding="ascii") as stream:
                lines = stream.readlines()[1:]
        except OSError:
            continue                           # a kernel without IPv6
        for line in lines:
            fields = line.split()
            host, _, port = fields[1].partition(":")
            if fields[3] == "0A":              # LISTEN
                address = _address(host, family)
                for listed in (found, roots) if fields[7] == "0" else (found,):
                    if address not in listed.setdefault(int(port, 16), []):
                        listed[int(port, 16)].append(address)
    return {**found, **roots}


def asked_name(domains: list[str], probe: str) -> str:
    """The name by which services are asked for a site: its `probe`, if that is a name; else its first domain that is no wildcard; else one just below the
    first, which no server block is likely to have to itself."""
    if "." in probe and ":" not in probe:
        return probe
    return next((domain for domain in domains if not domain.startswith("*.")), "certdrop-asks" + domains[0][1:])


def _address(text: str, family: socket.AddressFamily) -> str:
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":              # each 32-bit word is in the host's order
        raw = b"".join(raw[i:i + 4][::-1] for i in range(0, len(raw), 4))
    address = socket.inet_ntop(family, raw)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)

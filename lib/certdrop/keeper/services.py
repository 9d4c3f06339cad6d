"""What uses the certificates: tests it, reloads it, and says on which addresses of this host it can be asked.

Runs as: root. Trusts: /proc, and the programs it names by absolute path. Reads: /proc/net/tcp and tcp6. Writes: nothing.
"""

from __future__ import annotations

import os
import subprocess

from certdrop import events, jail

TIMEOUT = 60                       # seconds for a test or a reload
PORT = 443


class Failed(Exception):
    """A service's test or reload failed; the text is the last line it said."""


class Service:
    """A program to test and to reload, by fixed argument lists."""

    def __init__(self, name: str, test: list[str], reload: list[str]) -> None:
        self.name = name
        self.test_command = test
        self.reload_command = reload

    def test(self) -> None:
        """Whether its configuration would load. Raises Failed."""
        _run(self.test_command)

    def reload(self) -> None:
        """Have it read its certificates again. Raises Failed where the command says so; only a handshake proves that it did."""
        _run(self.reload_command)


def find(name: str) -> Service:
    """The service of that name. Raises Failed where this host does not have it, or certdrop does not know it."""
    if name != "nginx":
        raise Failed(f"{name}: no such service; certdrop knows nginx")
    if not os.path.exists("/usr/sbin/nginx"):
        raise Failed("nginx is not installed (/usr/sbin/nginx); install it with apt install nginx")
    if os.path.isdir("/run/systemd/system"):
        return Service(name, ["/usr/sbin/nginx", "-t", "-q"], ["/usr/bin/systemctl", "reload", "nginx.service"])
    return Service(name, ["/usr/sbin/nginx", "-t", "-q"], ["/usr/sbin/nginx", "-s", "reload"])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT,
                              env=jail.ENVIRONMENT, cwd="/", start_new_session=True, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} did not end within {TIMEOUT} s") from error
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if "test failed" not in line]
        raise Failed(events.clean(lines[-1] if lines else f"{command[0]} ended with {done.returncode}", 300))


def addresses(probe: str) -> list[tuple[str, int, str]]:
    """(address, port, preface) of each place to ask, by a site's `probe`: where somebody listens on port 443, unless it says otherwise."""
    if probe == "off":
        return []
    if probe not in ("", "proxy-protocol"):
        host, _, port = probe.rpartition(":")
        return [(host.strip("[]"), int(port), "")]
    found: set[str] = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path, encoding="ascii") as stream:
                lines = stream.readlines()[1:]
        except FileNotFoundError:
            continue                             # a kernel without IPv6
        for line in lines:
            local, state = line.split()[1], line.split()[3]
            address, port = local.split(":")
            if state == "0A" and int(port, 16) == PORT:            # TCP_LISTEN
                found.add(_address(address))
    return [(address, PORT, probe) for address in sorted(found)]


def _address(text: str) -> str:
    """An address as /proc/net/tcp writes it (32-bit words in the host's order); the loopback one where it is the wildcard."""
    import struct
    from ipaddress import ip_address
    words = struct.pack(f"={len(text) // 8}I", *(int(text[i:i + 8], 16) for i in range(0, len(text), 8)))
    address = ip_address(words)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)

"""How nginx is called on this host: as services.d/nginx.toml tests it, which may be OpenResty, a build of one's own, or one in a container.

Runs as: whoever imports it. Trusts: root's configuration. Reads: services.d/nginx.toml. Writes: nothing.
"""

from __future__ import annotations

from certdrop.config import service, site

USUAL = ["/usr/sbin/nginx"]        # Debian's


def command(*arguments: str) -> list[str]:
    """The command that calls nginx with these arguments: what stands before -t in its test, or Debian's where that cannot be told."""
    test = _nginx().test
    return [*(test[:test.index("-t")] if "-t" in test else USUAL), *arguments]


def missing(error: str) -> str:
    """What mends it where nginx cannot be called."""
    program = command()
    return "apt install nginx" if program == USUAL else f"see test in {service.path('nginx')} ({' '.join(program)}: {error})"


def show() -> list[str]:
    """The command that prints all of its configuration."""
    return _nginx().show or command("-T", "-q")


def _nginx() -> service.Service:
    try:
        return service.read("nginx")
    except site.ConfigError:
        return service.Service()         # the keeper says what is wrong with it

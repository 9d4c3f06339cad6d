"""How nginx is called on this host: as services.d/nginx.toml tests it, which may be OpenResty, a build of one's own, or one in a container.

Runs as: whoever imports it. Trusts: root's configuration. Reads: services.d/nginx.toml. Writes: nothing.
"""

from __future__ import annotations

from certdrop import site

USUAL = ["/usr/sbin/nginx"]        # Debian's


class _Described:
    """What services.d/nginx.toml says; test and show count here."""

    def __init__(self) -> None:
        self.test: list[str] = []
        self.show: list[str] = []
        self.reload: list[str] = []
        self.unit = self.starttls = ""
        self.port = 443


def command(*arguments: str) -> list[str]:
    """The command that calls nginx with these arguments: what stands before -t in its test, or Debian's where that cannot be told."""
    test = _described().test
    return [*(test[:test.index("-t")] if "-t" in test else USUAL), *arguments]


def missing(error: str) -> str:
    """What mends it where nginx cannot be called."""
    program = command()
    return "apt install nginx" if program == USUAL else f"see test in {site.ETC}/services.d/nginx.toml ({' '.join(program)}: {error})"


def show() -> list[str]:
    """The command that prints all of its configuration."""
    return _described().show or command("-T", "-q")


def _described() -> _Described:
    found = _Described()
    try:
        site.fill(f"{site.ETC}/services.d/nginx.toml", found, {key: key for key in vars(found)})
    except site.Wrong:
        return _Described()                # the keeper says what is wrong with it
    return found

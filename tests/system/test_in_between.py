"""What a proxy, a load balancer or a scanner between this host and the CA makes of the CA's answers: what means the same is taken as the same."""

from __future__ import annotations

from between import Between, Said
from conftest import STATE, Host

import world as stage


def crlf(path: str, body: bytes, said: Said) -> Said:
    """Chains with the ends of lines that Windows has."""
    status, headers, text = said
    return status, headers, text.replace(b"\n", b"\r\n") if text.startswith(b"-----BEGIN") else text


def test_other_ends_of_lines(host: Host, between: Between) -> None:
    """RFC 7468 has a reader take CRLF; the spool, and what is installed, have one form."""
    name = host.waiting()
    between.rewrite = crlf
    assert "installed, and served" in host.run("certdrop", "renew", name, code=0).text
    assert "\r" not in stage.read(f"{STATE}/live/{name}/fullchain.pem") and host.served(name) == host.on_disk(name)

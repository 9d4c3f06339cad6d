"""What each name's first page is, from this host: status, length, where it leads; and the certificate that is shown. Before a change, and after it.

Run by itself, as _certdrop-watch: standard input has a JSON list of [address, name, "http" or "https"], standard output a list of what was seen, in
order. Redirects are followed to the same address while they stay at one of the names. Trusts: nothing that comes over a connection; bounded in
time and size. Reads and writes: no file.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import sys
from urllib.parse import urljoin, urlsplit

PATIENCE = 10.0                    # seconds for one request
MOST = 4 << 20                     # bytes of a page that are counted
REDIRECTS = 5
LONGEST = 2000                     # characters of a URL that are told

Seen = dict[str, object]


def look(address: str, name: str, scheme: str, names: set[str]) -> Seen:
    """The first page of a name: `status` (0: none, and `why`), `length` and `sum` (https:// taken as http://), `chain` (where it leads), `shown`."""
    url, chain, shown, seen = f"{scheme}://{name}/", list[str](), "", {name + "/"}
    for _ in range(REDIRECTS + 1):
        try:
            parts = urlsplit(url)
            status, location, body, certificate = _once(address.strip("[]"), parts.hostname or "", parts.scheme == "https",
                                                        (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        except (OSError, ValueError, http.client.HTTPException) as error:
            return {"status": 0, "length": 0, "sum": "", "chain": chain, "shown": shown, "why": str(error)[:100] or type(error).__name__}
        shown = shown or certificate
        if status in (301, 302, 303, 307, 308) and location:
            try:
                url, goes_on = _leads_to(url, location, names)
            except ValueError:                                             # it is no URL
                url, goes_on = location, False
            bare = re.sub(r"^https?://", "", url)[:LONGEST]
            if bare not in seen or not url.startswith("https:"):           # the way from http to https alone is no other page
                chain.append(bare)
            seen.add(bare)
            if goes_on:
                continue
        body = body.replace(b"https://", b"http://")
        return {"status": status, "length": len(body), "sum": hashlib.sha256(body).hexdigest(), "chain": chain, "shown": shown, "why": ""}
    return {"status": 0, "length": 0, "sum": "", "chain": chain, "shown": shown, "why": "redirected again and again"}


def _leads_to(url: str, location: str, names: set[str]) -> tuple[str, bool]:
    """Where a redirect leads, and whether that is one of our names still. Raises ValueError."""
    url = urljoin(url, location)
    to = urlsplit(url)
    return url, to.hostname in names and to.port in (None, 80, 443)


def _once(address: str, host: str, tls: bool, target: str) -> tuple[int, str, bytes, str]:
    plain = socket.create_connection((address, 443 if tls else 80), PATIENCE)
    shown, connection = "", plain
    try:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE       # the certificate itself is compared
            wrapped = context.wrap_socket(plain, server_hostname=host)
            connection, shown = wrapped, hashlib.sha256(wrapped.getpeercert(True) or b"").hexdigest()
        client = http.client.HTTPConnection(host)
        client.sock = connection
        client.request("GET", target, headers={"Host": f"[{host}]" if ":" in host else host, "User-Agent": "certdrop", "Accept": "*/*", "Connection": "close"})
        answer = client.getresponse()
        return answer.status, answer.getheader("Location") or "", answer.read(MOST), shown
    finally:
        connection.close()


def main() -> int:
    """Look at all that is asked for."""
    asked = json.load(sys.stdin)
    names = {name for _, name, _ in asked}
    print(json.dumps([look(address, name, scheme, names) for address, name, scheme in asked]))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(os.EX_NOPERM if os.getuid() == 0 else main())

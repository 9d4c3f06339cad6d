"""A CA, by way of something in between: each answer can be put off, refused, or changed."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import re
import ssl
import threading
import time
from typing import Any, Callable

from cryptography import x509

import world as stage

HOST, PORT = "between.stage.test", 14200
URN = "urn:ietf:params:acme:error:"
Said = tuple[int, dict[str, str], bytes]           # status, headers, body


def jws(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """(header, payload) of a signed request."""
    found = json.loads(body)
    header, payload = (json.loads(base64.urlsafe_b64decode(found[part] + "==") or b"{}") for part in ("protected", "payload"))
    return header, payload


class Between:
    """Hands all requests on to the CA, but those that `odd` has an answer for: the pattern of a path, and (status, problem, headers) one after the other.

    The CA makes its URLs from the Host header, so that all of them lead here.
    """

    def __init__(self, pebble: stage.Pebble, certificate: tuple[str, str] | None = None) -> None:
        self.odd: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        self.asked: list[tuple[float, str]] = []
        self.orders: list[dict[str, Any]] = []             # the payloads of newOrder
        self.payloads: list[tuple[str, Any]] = []          # (path, payload) of all signed requests
        self.odd_headers: dict[str, dict[str, str]] = {}   # the pattern of a path, and headers in place of the CA's
        self.of_another_account: tuple[int, str] | None = None         # (status, problem) for an order that replaces another account's certificate
        self.owners: dict[str, str] = {}                   # certificate (RFC 9773): account
        self.interim = b""                                 # said before each answer
        self.rewrite: Callable[[str, bytes, Said], Said] = lambda path, body, said: said      # what becomes of an answer of the CA's
        between = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def hand_on(self) -> None:
                between.asked.append((time.time(), f"{self.command} {self.path}"))
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if body.startswith(b"{"):
                    between.payloads.append((self.path, jws(body)[1]))
                refusal = between.refusal(self.path, body)
                if refusal:
                    self.say(*refusal)
                    return
                for pattern, answers in between.odd.items():
                    if re.search(pattern, self.path) and answers:
                        status, problem, headers = answers.pop(0)
                        headers = {name: value() if callable(value) else value for name, value in headers.items()}      # a moment, counted from now
                        self.say(status, headers, json.dumps({"type": URN + problem, "detail": "said by something in between"}).encode())
                        return
                upstream = http.client.HTTPSConnection(pebble.host, pebble.port, timeout=60, context=pebble.context)
                headers = {key: value for key, value in self.headers.items() if key.lower() not in ("connection", "content-length")}
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                text = answer.read()
                kept = {key: value for key, value in answer.getheaders() if key.lower() not in ("connection", "content-length", "transfer-encoding", "date")}
                for pattern, headers in between.odd_headers.items():
                    kept.update(headers if re.search(pattern, self.path) else {})
                between.learn(body, text)
                self.say(*between.rewrite(self.path, body, (answer.status, kept, text)))
                upstream.close()

            do_GET = do_HEAD = do_POST = hand_on

            def say(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.wfile.write(between.interim)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(certificate or stage.Authority().issue("between", HOST)))
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def refusal(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        """As Boulder does, and Pebble does not: an order that replaces a certificate must be by the account that it was issued to."""
        if "order-plz" not in path:
            return None
        header, payload = jws(body)
        self.orders.append(payload)
        if self.of_another_account and "replaces" in payload and self.owners.get(payload["replaces"]) != header["kid"]:
            status, problem = self.of_another_account
            detail = "requester account did not request the certificate being replaced by this order"
            return status, {}, json.dumps({"type": URN + problem, "detail": detail}).encode()
        return None

    def learn(self, body: bytes, text: bytes) -> None:
        """Whose certificate is downloaded."""
        if text.startswith(b"-----BEGIN CERTIFICATE"):
            leaf = x509.load_pem_x509_certificate(text)
            key: Any = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
            serial = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
            name = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (key.key_identifier, serial))
            self.owners[name] = jws(body)[0]["kid"]

    def times(self, pattern: str) -> list[float]:
        """When such requests came."""
        return [moment for moment, line in self.asked if re.search(pattern, line)]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

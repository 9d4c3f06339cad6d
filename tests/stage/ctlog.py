"""A log of Certificate Transparency (RFC 6962) on loopback, so that a monitor can be run for real without a network.

It holds the certificates that it is given, signs its tree head, and answers get-sth and get-entries. It never grows, so that no consistency is asked for.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import ssl
import threading
import time
import urllib.parse

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def leaf_input(der: bytes, moment: int) -> bytes:
    """MerkleTreeLeaf of an x509_entry (RFC 6962 section 3.4)."""
    return b"\0\0" + moment.to_bytes(8, "big") + b"\0\0" + len(der).to_bytes(3, "big") + der + b"\0\0"


def root_hash(leaves: list[bytes]) -> bytes:
    """The Merkle Tree Hash (RFC 6962 section 2.1)."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\1" + root_hash(leaves[:half]) + root_hash(leaves[half:])).digest()


class Log:
    """Serves these certificates (PEM) at https://127.0.0.1:PORT/, with the certificate and key of a file each."""

    def __init__(self, certificates: list[str], certificate: str, key: str) -> None:
        moment = int(time.time() * 1000)
        leaves = [leaf_input(ssl.PEM_cert_to_DER_cert(pem), moment) for pem in certificates]
        root, self._key = root_hash(leaves), ec.generate_private_key(ec.SECP256R1())
        signed = self._key.sign(b"\0\1" + moment.to_bytes(8, "big") + len(leaves).to_bytes(8, "big") + root, ec.ECDSA(hashes.SHA256()))
        head = {"tree_size": len(leaves), "timestamp": moment, "sha256_root_hash": base64.b64encode(root).decode(),
                "tree_head_signature": base64.b64encode(b"\4\3" + len(signed).to_bytes(2, "big") + signed).decode()}
        entries = [{"leaf_input": base64.b64encode(leaf).decode(), "extra_data": base64.b64encode(b"\0\0\0").decode()} for leaf in leaves]

        class Answers(http.server.BaseHTTPRequestHandler):
            """get-sth and get-entries (RFC 6962 sections 4.3 and 4.6)."""

            def do_GET(self) -> None:
                parts = urllib.parse.urlsplit(self.path)
                asked = {name: int(values[0]) for name, values in urllib.parse.parse_qs(parts.query).items()}
                found = {"/ct/v1/get-sth": head, "/ct/v1/get-entries": {"entries": entries[asked.get("start", 0):asked.get("end", 0) + 1]}}.get(parts.path)
                body = json.dumps(found).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def listed(self) -> str:
        """A list of logs with this one in it, as monitors read it (log_list_schema.json, version 3)."""
        key = self._key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        log = {"description": "the stage's", "log_id": base64.b64encode(hashlib.sha256(key).digest()).decode(), "key": base64.b64encode(key).decode(),
               "url": f"https://127.0.0.1:{self._server.server_port}/", "mmd": 86400, "state": {"usable": {"timestamp": "2026-01-01T00:00:00Z"}}}
        return json.dumps({"version": "1.0", "log_list_timestamp": "2026-01-01T00:00:00Z",
                           "operators": [{"name": "stage", "email": ["root@localhost"], "logs": [log]}]})

    def close(self) -> None:
        """No more."""
        self._server.shutdown()
        self._server.server_close()

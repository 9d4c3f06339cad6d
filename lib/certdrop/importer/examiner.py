"""Parses the keys and chains that are to be taken over, and says what they are: the process that root starts as _certdrop-judge for it.

`python3 -I -S .../importer/examiner.py examine ROOTS`. Each case is looked at in the judge's sandbox, shut in before the first byte; what the
judge asks of a reply is asked of a chain here by the same code. Runs as: _certdrop-judge; refuses to be root. Trusts: nothing it is sent.
Reads: the trusted roots, then pipes; a private key comes by pipe and goes back by pipe, re-encoded.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import sys
import time
import warnings
from typing import Any

if __name__ == "__main__":         # -S leaves Debian's modules out, -I ours
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
    sys.path.append("/usr/lib/python3/dist-packages")
    if os.getuid() == 0:
        sys.exit(os.EX_NOPERM)
    from certdrop.walls import jail
    jail.give_up_privileges()
    jail.keep_cases_apart()

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: E402
from OpenSSL import crypto  # noqa: E402

from certdrop import answering  # noqa: E402
from certdrop.judge import sandbox, chain  # noqa: E402
from certdrop.spool import Refused  # noqa: E402

LIMIT = 64 * 1024                  # bytes of an answer: a hundred names, and a key
END = b"-----END CERTIFICATE-----\n"
CURVES = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384"}

_NAME = re.compile(r"[a-z0-9*_][a-z0-9._-]{0,252}")


class Unusable(Exception):
    """A key or a chain cannot be taken over; the text is one of import_pairs.WHY."""


def serve(roots: str) -> int:
    """Answer one line a case: `pair ...`, `account ...` as import_pairs reads them, or `no REASON`."""
    warnings.simplefilter("ignore")
    store = crypto.X509Store()
    try:
        store.load_locations(roots)
    except (OSError, crypto.Error):
        return os.EX_NOINPUT
    _rehearse(store)

    def examined(case: bytes) -> bytes:
        task, *parts = [part.encode("latin-1") for part in json.loads(case)]
        return (sandbox.run(lambda: answer(task, parts, store), LIMIT) or "no judge-failed").encode("ascii", "replace")
    answering.serve(examined)
    return os.EX_OK


def answer(task: bytes, parts: list[bytes], store: crypto.X509Store) -> str:
    """The line for one case."""
    try:
        return pair(parts[0], parts[1], store) if task == b"pair" else account(parts[0])
    except Unusable as error:
        return f"no {error}"


def pair(key_text: bytes, chain_text: bytes, store: crypto.X509Store) -> str:
    """What a private key and a chain of PEM blocks (the leaf first) are: `pair KIND SPKI SHA256 BEGIN END VERDICT NAMES KEY`."""
    key = _load(key_text)
    spki = hashlib.sha256(key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    try:
        leaf = x509.load_pem_x509_certificate(chain_text)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = list(dict.fromkeys(name.lower() for name in names.get_values_for_type(x509.DNSName)))
        begin, end = chain.dates(leaf)
        sha256 = leaf.fingerprint(hashes.SHA256()).hex()
    except x509.ExtensionNotFound as error:
        raise Unusable("names") from error
    except Exception as error:                         # on odd input the parsers raise many kinds
        raise Unusable("chain") from error
    if not all(map(_NAME.fullmatch, dns)) or len(dns) > 100 or begin < 0:
        raise Unusable("names")
    verdict = _judge(spki, dns, chain_text, store, leaf)
    if verdict == "key":
        raise Unusable("key")
    return f"pair {_kind(key)} {spki} {sha256} {begin} {end} {verdict} {','.join(dns)} {_encode(key)}"


def account(text: bytes) -> str:
    """What an account key is, PEM or JWK (RFC 7517, as certbot keeps it): `account KIND KEY`."""
    key = _from_jwk(text) if text.lstrip().startswith(b"{") else _load(text)
    return f"account {_kind(key)} {_encode(key)}"


def _judge(spki: str, names: list[str], text: bytes, store: crypto.X509Store, leaf: x509.Certificate) -> str:
    expected: dict[str, object] = {"spki": spki, "names": names, "spent": [], "earliest": 0, "until": 0}
    try:
        chain.examine(expected, text, store, time.time())
    except Refused as refused:
        return _judge_expired(text, store, leaf) if refused.reason == "expired" else refused.reason
    return "accept"


def _judge_expired(text: bytes, store: crypto.X509Store, leaf: x509.Certificate) -> str:
    """Whether an expired chain led to a trusted root while it was valid."""
    store.set_time(datetime.datetime.fromtimestamp(chain.dates(leaf)[1] - 1, datetime.timezone.utc))
    try:
        blocks = [block + END for block in text.split(END)[1:-1]]
        above = [crypto.load_certificate(crypto.FILETYPE_PEM, block) for block in blocks]
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(leaf), above).verify_certificate()
    except (crypto.X509StoreContextError, crypto.Error):
        return "untrusted"
    return "expired"


def _load(text: bytes) -> Any:
    try:
        key = serialization.load_pem_private_key(text, None)
    except TypeError as error:
        raise Unusable("passphrase") from error
    except Exception as error:
        raise Unusable("no-key") from error
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise Unusable("kind")
    return key


def _from_jwk(text: bytes) -> Any:
    try:
        found = json.loads(text)
        if found["kty"] != "RSA":
            raise Unusable("account-kind")
        n, e, d, p, q, dp, dq, qi = (_number(found[part]) for part in ("n", "e", "d", "p", "q", "dp", "dq", "qi"))
        return rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, rsa.RSAPublicNumbers(e, n)).private_key()
    except Unusable:
        raise
    except Exception as error:
        raise Unusable("no-key") from error


def _number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _kind(key: Any) -> str:
    return f"rsa-{key.key_size}" if isinstance(key, rsa.RSAPrivateKey) else CURVES.get(key.curve.name, f"ecdsa-{key.curve.name}")


def _encode(key: Any) -> str:
    """PKCS #8 (RFC 5958), as the keeper's own keys are, in base64."""
    how = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return base64.b64encode(key.private_bytes(*how)).decode()


def _rehearse(store: crypto.X509Store) -> None:
    """Go through all of it once: whatever is loaded on first use cannot be loaded in the sandbox."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.example")])
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("a.example")]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    text = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pair(b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(base64.b64decode(_encode(key))) + b"-----END PRIVATE KEY-----\n", text, store)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[2]))

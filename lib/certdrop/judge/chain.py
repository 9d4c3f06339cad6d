"""Decides whether a reply is a certificate chain for the request that root posted (rules 5 to 7 of certdrop-spool(5)).

Runs as: _certdrop-judge, in the sandbox. Trusts: the expectations, which are root's, and the roots. Reads: the file of
trusted roots, once, at the start; then pipes. Verification is OpenSSL's (RFC 5280 section 6); what it does
not look at (the key, the names, the use of the key, the encoding, replays) is looked at here.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import time
import warnings

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from certdrop import answering
from certdrop.judge import sandbox
from certdrop.spool import REASONS, Refused
from certdrop.trust import verify

PARTIAL_CHAIN = 0x80000            # X509_V_FLAG_PARTIAL_CHAIN of OpenSSL's x509_vfy.h; not every pyOpenSSL's types know it
SLACK = 48 * 3600                  # seconds that a new leaf may begin before the live one
SHORT = 10 * 86400                 # below this lifetime the issuer renews when half of it is left, else a third
ORDERS = (                         # of the curves that authorities sign with (SEC 2, sections 2.4.2 and 2.5.1)
    0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551,
    0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973,
)


def serve(roots: list[str]) -> int:
    """Load the roots, then answer each case, which is the expectations in one line, and then the reply:
    `accept SHA256 NOT_BEFORE NOT_AFTER TBS ISSUER_AND_SERIAL` (three of them SHA-256) or `refuse REASON`."""
    warnings.simplefilter("ignore")
    try:
        text = b""
        for path in roots:
            with open(path, "rb") as stream:
                text += stream.read() + b"\n"
        store = trusted(text)
    except (OSError, ValueError):
        return os.EX_NOINPUT

    def answer(case: bytes) -> bytes:
        expected, _, reply = case.partition(b"\n")
        said = sandbox.run(lambda: verdict(json.loads(expected), reply, store))
        return (said if said.startswith(("accept ", "refuse ")) else "refuse judge-failed").encode("ascii", "replace")     # a case speaks for no other
    answering.serve(answer)
    return os.EX_OK


def trusted(text: bytes) -> crypto.X509Store:
    """The certificates in it (PEM, and anything around them), to be trusted. Raises ValueError, also where there are none."""
    found = verify.certificates(text)
    store = crypto.X509Store()
    for root in found:
        store.add_cert(root)
    _key_is(found[0].to_cryptography(), "")            # whatever this loads on first use cannot be loaded in the sandbox
    return store


def verdict(expected: dict[str, object], reply: bytes, store: crypto.X509Store) -> str:
    """The answer for one reply, in words."""
    try:
        leaf = examine(expected, reply, store, time.time())
    except Refused as refused:
        return f"refuse {refused.reason if refused.reason in REASONS else 'judge-failed'}"
    begin, end = dates(leaf)
    sha256, tbs, issued, *_ = identities(leaf)
    return f"accept {sha256} {begin} {end} {tbs} {issued}"


def identities(leaf: x509.Certificate) -> list[str]:
    """What a certificate is known by, each a SHA-256 in hex: all its bytes; what is signed; issuer and serial number (RFC 5280 section 4.1.2.2);
    and all its bytes with each other signature that says the same: where (r, s) is good for ECDSA, so is (r, n - s)."""
    der, serial = leaf.public_bytes(Encoding.DER), b"%x" % leaf.serial_number
    found = [der, leaf.tbs_certificate_bytes, b"issuer and serial number\n" + leaf.issuer.public_bytes() + b"\n" + serial]
    try:
        r, s = decode_dss_signature(leaf.signature)
        found += [_signed(leaf, encode_dss_signature(r, n - s)) for n in ORDERS if s < n]
    except ValueError:                                 # RSA's is no such pair
        pass
    return [hashlib.sha256(one).hexdigest() for one in found]


def _signed(leaf: x509.Certificate, signature: bytes) -> bytes:
    """The certificate with another signature, in DER: what stands between the signed part and the signature is the algorithm's name."""
    der, tbs = leaf.public_bytes(Encoding.DER), leaf.tbs_certificate_bytes
    begin = der.index(tbs)
    algorithm = der[begin + len(tbs):][:2 + der[begin + len(tbs) + 1]]
    content = tbs + algorithm + _element(3, b"\0" + signature)
    return _element(0x30, content)


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = b"" if size < 128 else size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length) if length else size]) + length + content


def dates(certificate: x509.Certificate) -> tuple[int, int]:
    """not_before and not_after, in seconds since 1970 (cryptography 42 renamed both, Debian 12 has 38)."""
    found = []
    for name in ("not_valid_before", "not_valid_after"):
        moment = getattr(certificate, name + "_utc", None) or getattr(certificate, name).replace(tzinfo=datetime.timezone.utc)
        found.append(int(moment.timestamp()))
    return found[0], found[1]


def examine(expected: dict[str, object], reply: bytes, store: crypto.X509Store, now: float) -> x509.Certificate:
    """The leaf of an acceptable reply. `expected` has spki (SHA-256, hex), names, spent (what identities() says of what was live), earliest (seconds),
    and until (seconds: when what is live ends, 0 where that is no good). Raises Refused."""
    chain = [_canonical(block) for block in reply.split(b"-----END CERTIFICATE-----\n")[:-1]]
    leaf = chain[0]
    try:
        if not _key_is(leaf, expected["spki"]):
            raise Refused("key")
        _examine_names(leaf, expected["names"])
        _examine_use(leaf)
        if not all(map(_may_vouch_for_servers, chain[1:])):
            raise Refused("key-usage")
        known_by = identities(leaf)
    except Refused:
        raise
    except Exception as error:                         # on odd input the parsers raise many kinds, even KeyError
        raise Refused("encoding") from error
    begin, end = dates(leaf)
    if begin > now:
        raise Refused("not-yet-valid")
    if end <= now:
        raise Refused("expired")
    spent, earliest, until = expected["spent"], expected["earliest"], expected.get("until", 0)
    if not isinstance(spent, list) or not isinstance(earliest, int) or not isinstance(until, int):
        raise Refused("judge-failed")
    if not {*spent}.isdisjoint(known_by) or begin < earliest - SLACK:
        raise Refused("replay")
    if end < until and end - now < (end - begin) / (2 if end - begin < SHORT else 3):
        raise Refused("stale")                         # it would be renewed at once, and ends before what it replaces
    _verify([crypto.X509.from_cryptography(certificate) for certificate in chain], store)
    return leaf


def _canonical(block: bytes) -> x509.Certificate:
    body = block.split(b"\n", 1)[1].replace(b"\n", b"")
    try:
        der = base64.b64decode(body, validate=True)
        certificate = x509.load_der_x509_certificate(der)
        again = certificate.public_bytes(Encoding.DER)
        openssl = crypto.dump_certificate(crypto.FILETYPE_ASN1, crypto.X509.from_cryptography(certificate))
    except Exception as error:
        raise Refused("encoding") from error
    if not der == again == openssl or base64.b64encode(der) != body:
        raise Refused("encoding")
    return certificate


def _key_is(leaf: x509.Certificate, spki: object) -> bool:
    try:
        found = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm):       # whatever kind of key this is, it is none of ours
        return False
    return hashlib.sha256(found).hexdigest() == spki


def _examine_names(leaf: x509.Certificate, names: object) -> None:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise Refused("names-missing") from error
    shown = {name.lower() for name in found.get_values_for_type(x509.DNSName)}
    if any(":" in name or name.rpartition(".")[2].isdigit() for name in shown):        # an address, said to be a name
        raise Refused("names-extra")
    shown |= {str(address) for address in found.get_values_for_type(x509.IPAddress)}      # RFC 8738
    wanted = set(names) if isinstance(names, list) else set()
    common = {str(part.value).lower() for part in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    if any("*" in name for name in (shown | common) - wanted):
        raise Refused("names-wildcard")
    if wanted - shown:
        raise Refused("names-missing")
    if (shown | common) - wanted or any(not isinstance(name, (x509.DNSName, x509.IPAddress)) for name in found):
        raise Refused("names-extra")


def _examine_use(leaf: x509.Certificate) -> None:
    extensions = leaf.extensions
    found: dict[type, object] = {type(extension.value): extension.value for extension in extensions}
    constraints = found.get(x509.BasicConstraints)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise Refused("ca-as-leaf")
    extended = found.get(x509.ExtendedKeyUsage)
    if not isinstance(extended, x509.ExtendedKeyUsage) or ExtendedKeyUsageOID.SERVER_AUTH not in extended:
        raise Refused("key-usage")
    use = found.get(x509.KeyUsage)
    if isinstance(use, x509.KeyUsage) and (use.key_cert_sign or not use.digital_signature):
        raise Refused("ca-as-leaf" if use.key_cert_sign else "key-usage")


def _may_vouch_for_servers(authority: x509.Certificate) -> bool:
    """Whether an authority is not restricted to other uses, such as mail (browsers look at that, OpenSSL does so only where told the purpose)."""
    for extension in authority.extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            return ExtendedKeyUsageOID.SERVER_AUTH in extension.value or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in extension.value
    return True


def _verify(chain: list[crypto.X509], store: crypto.X509Store) -> None:
    """Each signed by the next, and the leaf up to a trusted root. A cross-signed end that OpenSSL's own path leaves out is looked at too."""
    for below, above in zip(chain, chain[1:]):
        link = crypto.X509Store()
        link.set_flags(PARTIAL_CHAIN)
        link.add_cert(above)
        try:
            crypto.X509StoreContext(link, below).verify_certificate()
        except crypto.X509StoreContextError as error:
            raise Refused("broken-chain") from error
        if below.get_issuer() != above.get_subject():
            raise Refused("broken-chain")
    if verify.refusal(chain, store):
        raise Refused("untrusted")

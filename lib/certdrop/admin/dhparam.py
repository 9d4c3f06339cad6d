"""Diffie-Hellman parameters for TLS 1.2 clients that know nothing better: a group of RFC 7919, or one of our own.

`certdrop dhparam` writes /var/lib/certdrop/dhparam.pem, for `ssl_dhparam`, whole or not at all, and takes it back where a service does not
pass its test with it. A group of our own is searched by openssl, as _certdrop-judge, at low priority; of what it says only two numbers are taken.
Runs as: root. Trusts: of the child, an odd number of the right length. Reads and writes: dhparam.pem and keeper/dhparam.json.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time

from certdrop import spool, words
from certdrop.admin import sites, telling
from certdrop.by_hand import Refused
from certdrop.config import general, site
from certdrop.keeper import lock, notes, services
from certdrop.walls import become, session, users

OFFSETS = {2048: 560316, 3072: 2625351, 4096: 5736041}         # X of ffdhe2048, 3072, 4096: RFC 7919, appendix A
USER = "_certdrop-judge"                                       # owns nothing
OPENSSL = "/usr/bin/openssl"
DEADLINE = 4 * 3600                                            # seconds for the search
MAX_AGE = 180                                                  # days after which a group of our own is due

_PEM = re.compile(rb"-----BEGIN DH PARAMETERS-----\n([A-Za-z0-9+/=\n]{100,2000})-----END DH PARAMETERS-----\n")


def make(bits: int, own: bool) -> int:
    """Install a group of that size: RFC 7919's at once, or (`own`) one that is searched first, which takes minutes. Raises Refused."""
    prime = search(bits) if own else ffdhe(bits)
    with lock.held():
        before = _current()
        notes.put("dhparam.pem", pem(prime), below="")
        try:
            used = _services()
            for service in used:
                service.test()
        except services.Failed as error:
            _put_back(before)
            raise Refused(f"dhparam.pem: with the new parameters {error}; the ones before stay") from error
        notes.put("dhparam.json", json.dumps({"bits": bits, "own": own, "made": int(time.time())}).encode())
        telling.say(f"certdrop: dhparam.pem: {'our own group' if own else f'ffdhe{bits}'} of {bits} bits is in place")
        said = [*warnings(bits), *(f"certdrop: dhparam.pem: {text}" for text in _unused(used))]
        for service in used:
            try:
                service.reload()
            except services.Failed as error:
                said.append(f"certdrop: dhparam.pem: {service.name} did not reload ({error}); it uses the new parameters from its next reload on")
    words.say(*said)
    return os.EX_OK


def is_due() -> bool:
    """Whether there is a group of our own, and it is old. Those of RFC 7919 are for ever."""
    found = known()
    if found.get("own") is not True:
        return False
    age = time.time() - int(str(found.get("made", 0)))
    return not -spool.STEP <= age < MAX_AGE * 86400            # made by a clock that was ahead: as if it were old


def renew() -> int:
    """Another group of our own, of the size that there is. Raises Refused."""
    return make(int(str(known()["bits"])), own=True)


def known() -> dict[str, object]:
    """What was installed: bits, own, made (seconds since 1970); empty for nothing."""
    try:
        with open(f"{site.STATE}/keeper/dhparam.json", encoding="ascii") as stream:
            found = json.load(stream)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def warnings(bits: int) -> list[str]:
    """A sentence for each site whose RSA key is longer than the group: the exchange would be its weakest part."""
    found, config = [], general.load_config()
    for name in site.site_names():
        try:
            key = site.load_site(name, config).key
        except site.ConfigError:
            continue
        if key.startswith("rsa-") and int(key[4:]) > bits:
            found.append(f"certdrop: {name}: warning: {bits} bits of Diffie-Hellman are weaker than its RSA key of {key[4:]}; "
                         f"certdrop dhparam {key[4:]} mends that")
    return found


def ffdhe(bits: int) -> int:
    """The prime of RFC 7919's group: 2^b - 2^(b-64) + {[2^(b-130) e] + X } * 2^64 - 1 (appendix A)."""
    scale, term, euler, n = 1 << bits, 1 << bits, 0, 0
    while term:                                                # e = sum of 1/n!, in fixed point
        euler += term
        n += 1
        term //= n
    return scale - (1 << (bits - 64)) + (((euler >> 130) + OFFSETS[bits]) << 64) - 1


def pem(prime: int) -> bytes:
    """DHParameter of PKCS #3, section 9, with the generator 2, as PEM."""
    number = prime.to_bytes(prime.bit_length() // 8 + 1, "big")
    body = base64.b64encode(_der(0x30, _der(0x02, number) + _der(0x02, b"\x02")))
    lines = b"\n".join(body[i:i + 64] for i in range(0, len(body), 64))
    return b"-----BEGIN DH PARAMETERS-----\n" + lines + b"\n-----END DH PARAMETERS-----\n"


def prime_of(text: bytes, bits: int) -> int:
    """The prime in what openssl printed, where that is parameters as pem() writes them (openssl may add a length). Raises Refused."""
    found = _PEM.search(text)
    data = base64.b64decode(found[1]) if found else b""
    size = bits // 8 + 1
    prime = int.from_bytes(data[8:8 + size], "big")
    if data[4:8] != bytes((0x02, 0x82)) + size.to_bytes(2, "big") or data[8 + size:11 + size] != b"\x02\x01\x02" or not prime & 1 or prime.bit_length() != bits:
        raise Refused("dhparam.pem: openssl did not print parameters; the ones before stay")
    return prime


def search(bits: int) -> int:
    """A safe prime of our own, with progress for whoever watches: openssl finds it, without privileges. Raises Refused."""
    telling.say(f"certdrop: dhparam.pem: searching a prime of {bits} bits; this takes minutes, and the ones before stay until then")
    shows = words.at_terminal(2) and not telling.is_quiet()
    try:
        with subprocess.Popen([*become.as_user(*users.user_ids(USER)), OPENSSL, "dhparam", "-2", str(bits)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, cwd="/", env=users.ENVIRONMENT, start_new_session=True,
                              preexec_fn=lambda: os.nice(19) and None) as process:
            text = _watch(process, shows)
    except subprocess.TimeoutExpired as error:
        why = "the search was interrupted" if session.interrupted else f"no prime was found within {DEADLINE} s"
        raise Refused(f"dhparam.pem: {why}; the ones before stay") from error
    return prime_of(text, bits)


def _watch(process: subprocess.Popen[bytes], shows: bool) -> bytes:
    import selectors
    text, end = b"", time.monotonic() + DEADLINE
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            if stream:
                selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and len(text) <= spool.MAX_REPLY:
            if time.monotonic() > end or session.interrupted:
                os.killpg(process.pid, 9)
                raise subprocess.TimeoutExpired(OPENSSL, DEADLINE)
            for key, _ in selector.select(1.0):
                more = os.read(key.fd, 4096)
                if not more:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    text += more
                elif shows:
                    sys.stderr.write(re.sub(r"[^.+*\n]", "", more.decode("ascii", "replace")))
                    sys.stderr.flush()
    return text


def _der(tag: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes((size,)) if size < 128 else bytes((0x82,)) + size.to_bytes(2, "big")
    return bytes((tag,)) + length + body


def _services() -> list[services.Service]:
    found = []
    for name in general.load_config().services:
        try:
            found.append(services.find(name))
        except services.Failed:
            pass                                               # one that this host does not have does not use it
    return found


def _unused(used: list[services.Service]) -> list[str]:
    """That no service's configuration names the file, where that can be seen."""
    showing = [service for service in used if service.show_command]
    path = f"{site.STATE}/dhparam.pem"
    if not showing or any(path in sites.configuration_of(service) for service in showing):
        return []
    return [f"but {' and '.join(service.name for service in showing)} does not use it: no line of its configuration names it; where an old client needs it, "
            f"add ssl_dhparam {path}; and a DHE suite to ssl_ciphers (certdrop-tls.conf has none)"]


def _current() -> bytes | None:
    try:
        with open(f"{site.STATE}/dhparam.pem", "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _put_back(before: bytes | None) -> None:
    if before is None:
        os.unlink(f"{site.STATE}/dhparam.pem")
    else:
        notes.put("dhparam.pem", before, below="")

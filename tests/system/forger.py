"""A CA of the tests' own: answers a posted request at once, as the issuer would, without one.

The keeper's tests are about what happens after a reply has come; a real order would cost each of them a second.
"""

from __future__ import annotations

import datetime
import json
import os
import pwd
import re
from typing import Any

import world as stage
from conftest import SPOOL, STATE, Host
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

INSTALL = "certdrop-install"
BUNDLE = "/tmp/forger-roots.pem"


class Forger:
    """A root and an intermediate; the keeper trusts the root once trust() was called."""

    def __init__(self) -> None:
        self.root_key, self.key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.root = self._certificate("Forger Root", self.root_key.public_key(), "Forger Root", self.root_key, authority=True)
        self.intermediate = self._certificate("Forger Intermediate", self.key.public_key(), "Forger Root", self.root_key, authority=True)

    def trust(self, host: Host, **changes: str) -> None:
        """Configure the host to trust this CA beside Pebble."""
        stage.write(BUNDLE, stage.read(host.world.pebble.root()) + _pem(self.root))
        host.configure(trust_roots=f'"{BUNDLE}"', **changes)

    def answer(self, host: Host, name: str) -> int:
        """Put a reply to the site's posted request into the spool, as the issuer; the request's number."""
        number = host.next(name)
        with open(f"{SPOOL}/requests/{name}@{number:04d}.csr", "rb") as stream:
            request = x509.load_pem_x509_csr(stream.read())
        names: Any = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf = self._certificate("", request.public_key(), "Forger Intermediate", self.key, names)
        path = f"{SPOOL}/replies/{name}@{number:04d}.pem"
        issuer = pwd.getpwnam("_certdrop")
        with open(f"{path}.new", "w") as file:
            os.fchown(file.fileno(), issuer.pw_uid, issuer.pw_gid)
            os.fchmod(file.fileno(), 0o640)
            file.write(_pem(leaf) + _pem(self.intermediate))
        os.rename(f"{path}.new", path)
        return number

    def _certificate(self, subject: str, public: Any, issuer: str, key: Any, names: Any = None, authority: bool = False) -> x509.Certificate:
        begin = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) - datetime.timedelta(hours=1)
        builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer)).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=90))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        return builder.sign(key, hashes.SHA256())


class Case:
    """A site whose replies are forged."""

    def __init__(self, host: Host, forger: Forger) -> None:
        self.host, self.forger, self.name = host, forger, host.name()
        host.run("certdrop", "add", self.name, "--no-issue", code=0)

    def serve(self, listen: str = "443 ssl", include: str = "", **more: str) -> None:
        """Have nginx serve it, by a block of our own."""
        include = include or f"{STATE}/live/{self.name}/nginx.conf"
        self.host.world.nginx.add_site(self.name, "server {\n" + "".join(f"listen {one};\n" for one in listen.split(",")) +
                                       f"server_name {self.name};\ninclude {include};\nlocation / {{ return 200 hello; }}\n{more.get('rest', '')}}}\n")
        if self.host.world.nginx.pid():
            self.host.world.nginx.reload()

    def install(self, code: int | None = 0, answer: bool = True) -> int:
        """A reply comes, root's own run of the keeper takes it; the number of its request."""
        number = self.forger.answer(self.host, self.name) if answer else 0
        self.host.run(INSTALL, code=code)
        return number

    @property
    def served(self) -> bool:
        """Whether nginx shows what is live."""
        return self.host.served(self.name) == self.host.on_disk(self.name)

    @property
    def notes(self) -> dict[str, Any]:
        """What root noted about the installation that was put off; empty for none."""
        found: dict[str, Any] = json.loads(stage.read(f"{STATE}/keeper/{self.name}.json"))["install"]
        return found

    def let_time_pass(self) -> None:
        """To the end of the back-off."""
        path = f"{STATE}/keeper/{self.name}.json"
        stage.write(path, re.sub(r'"next_try": [0-9]+', '"next_try": 1', stage.read(path)))

    def standing(self) -> tuple[int, int, int]:
        """Live, proven, next."""
        return self.host.live(self.name), self.host.proven(self.name), self.host.next(self.name)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

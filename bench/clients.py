"""certdrop and the other clients, each as its users run it: an account, one certificate, many, and the tick that finds nothing to do.

Each has `prepare` (an account at the CA), `one` (a command that gets one certificate), `many` (one that gets several: a loop, where the client
has nothing better), `forge` (makes sites with certificates on disk) and `tick`.  All write their challenges where nginx serves them.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from typing import Sequence

sys.path.insert(0, "/usr/share/certdrop")

from certdrop.config import site  # noqa: E402
from certdrop.keeper import generations, state  # noqa: E402
from certdrop.keeper.judges import Accepted  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes  # noqa: E402

from forge import Forge, base32, link, put  # noqa: E402

WEBROOT = "/srv/www"
CHALLENGES = WEBROOT + "/.well-known/acme-challenge"
MAIL = "hostmaster@example.org"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
DAY = 86400


def shell(*words: object) -> str:
    return shlex.join(str(word) for word in words)


def ids(user: str) -> tuple[int, int]:
    """(uid, gid)"""
    found = pwd.getpwnam(user)
    return found.pw_uid, found.pw_gid


def call(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)[:300]}: exit {done.returncode}: {done.stdout[-2000:]}")


class Client:
    """A client: `name` in the table, `package` of Debian's, `run_as` for what is measured."""

    name = package = run_as = ""
    tick_most = 1000               # sites: beyond that a tick is not measured
    trips = False                  # over the challenge without a token that this CA offers, in any order, beside HTTP-01: fails two times in three

    def __init__(self, directory_url: str, roots: str) -> None:
        self.url, self.roots = directory_url, roots

    def prepare(self) -> None:
        """Have an account, and whatever is made once."""

    def expect(self, names: Sequence[str]) -> None:
        """What an administrator does before the certificates are asked for (not measured)."""

    def forget(self, names: Sequence[str]) -> None:
        """Have these sites no more (not measured): what is measured next is not to pay for them."""

    def one(self, name: str) -> str:
        """A shell command for one certificate."""
        raise NotImplementedError

    def many(self, names: Sequence[str]) -> str:
        """A shell command for many."""
        return "for name in " + " ".join(names) + "; do " + self.one("NAME").replace("NAME", "$name") + " || exit 1; done"

    def xargs(self, names: Sequence[str], workers: int) -> str:
        """The same, `workers` at once."""
        return f"printf '%s\\n' {' '.join(names)} | xargs -P {workers} -I NAME {self.one('NAME')}"

    def has(self, name: str) -> str:
        """Where the certificate lies afterwards."""
        raise NotImplementedError

    def forge(self, names: Sequence[str], made: Forge) -> None:
        """Make sites on disk as this client would have."""
        raise NotImplementedError

    def tick(self, names: Sequence[str]) -> str:
        """A shell command that looks whether anything is due."""
        raise NotImplementedError


class Lego(Client):
    name = package = "lego"

    def _lego(self, name: str) -> str:
        return shell("lego", "--accept-tos", "-m", MAIL, "-s", self.url, "--path", "/var/lib/lego", "--http", "--http.webroot", WEBROOT, "-d", name)

    def prepare(self) -> None:
        call("sh", "-c", self.one("lego-first.example.org"))

    def one(self, name: str) -> str:
        return self._lego(name) + " run"

    def has(self, name: str) -> str:
        return f"/var/lib/lego/certificates/{name}.crt"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        for name in names:
            base = f"/var/lib/lego/certificates/{name}"
            put(base + ".crt", made.leaf(name) + made.root_pem)
            put(base + ".issuer.crt", made.root_pem)
            put(base + ".key", made.key_pem, 0o600)
            put(base + ".json", json.dumps({"domain": name, "certUrl": self.url, "certStableUrl": self.url}), 0o600)

    def tick(self, names: Sequence[str]) -> str:
        return "for name in " + " ".join(names) + "; do " + self._lego("NAME").replace("NAME", "$name") + " renew --no-random-sleep || exit 1; done"


class Certbot(Client):
    name = package = "certbot"

    def prepare(self) -> None:
        call("certbot", "register", "-n", "--agree-tos", "-m", MAIL, "--server", self.url)

    def one(self, name: str) -> str:
        return shell("certbot", "certonly", "-n", "-q", "--agree-tos", "--server", self.url, "--webroot", "-w", WEBROOT, "--key-type", "ecdsa", "-d", name)

    def has(self, name: str) -> str:
        return f"/etc/letsencrypt/live/{name}/fullchain.pem"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        account = os.listdir("/etc/letsencrypt/accounts/" + self.url.removeprefix("https://"))[0]
        for name in names:
            leaf, base = made.leaf(name), "/etc/letsencrypt"
            for kind, data in (("cert", leaf), ("chain", made.root_pem), ("fullchain", leaf + made.root_pem), ("privkey", made.key_pem)):
                put(f"{base}/archive/{name}/{kind}1.pem", data, 0o600 if kind == "privkey" else 0o644)
                link(f"{base}/live/{name}/{kind}.pem", f"../../archive/{name}/{kind}1.pem")
            paths = "".join(f"{kind} = {base}/live/{name}/{kind}.pem\n" for kind in ("cert", "privkey", "chain", "fullchain"))
            put(f"{base}/renewal/{name}.conf", f"version = 2.1.0\narchive_dir = {base}/archive/{name}\n{paths}\n[renewalparams]\naccount = {account}\n"
                f"server = {self.url}\nauthenticator = webroot\nwebroot_path = {WEBROOT},\nkey_type = ecdsa\n[[webroot_map]]\n{name} = {WEBROOT}\n")

    def tick(self, names: Sequence[str]) -> str:
        return "certbot renew -q --no-random-sleep-on-renew"


class Dehydrated(Client):
    name = package = "dehydrated"

    def prepare(self) -> None:
        put("/etc/dehydrated/conf.d/bench.sh", f'CA="{self.url}"\nKEY_ALGO=prime256v1\nWELLKNOWN={CHALLENGES}\nCONTACT_EMAIL={MAIL}\n')
        call("dehydrated", "--register", "--accept-terms")

    def one(self, name: str) -> str:
        return shell("dehydrated", "-c", "-n", "-d", name)

    def many(self, names: Sequence[str]) -> str:
        put("/etc/dehydrated/domains.txt", "".join(name + "\n" for name in names))
        return "dehydrated -c"

    def has(self, name: str) -> str:
        return f"/var/lib/dehydrated/certs/{name}/fullchain.pem"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        put("/etc/dehydrated/domains.txt", "".join(name + "\n" for name in names))
        for name in names:
            leaf = made.leaf(name)
            for kind, data in (("cert", leaf), ("chain", made.root_pem), ("fullchain", leaf + made.root_pem), ("privkey", made.key_pem)):
                put(f"/var/lib/dehydrated/certs/{name}/{kind}.pem", data, 0o600)

    def tick(self, names: Sequence[str]) -> str:
        return "dehydrated -c"


class Uacme(Client):
    name = package = "uacme"
    trips = True

    def prepare(self) -> None:
        call("uacme", "-y", "-a", self.url, "-c", "/var/lib/uacme", "new", MAIL)

    def one(self, name: str) -> str:
        return f"env UACME_CHALLENGE_PATH={CHALLENGES} " + shell("uacme", "-a", self.url, "-c", "/var/lib/uacme", "-t", "EC", "-h", "/usr/share/uacme/uacme.sh",
                                                                 "issue", name)

    def has(self, name: str) -> str:
        return f"/var/lib/uacme/{name}/cert.pem"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        for name in names:
            put(f"/var/lib/uacme/{name}/cert.pem", made.leaf(name) + made.root_pem)
            put(f"/var/lib/uacme/private/{name}/key.pem", made.key_pem, 0o600)

    def tick(self, names: Sequence[str]) -> str:
        return "for name in " + " ".join(names) + "; do " + self.one("NAME").replace("NAME", "$name") + " || [ $? = 1 ] || exit 1; done"


class Lacme(Client):
    """As it is quickest: all certificates in one file. With a file each, a run that finds nothing to do takes twice as long."""

    name = package = "lacme"
    tick_most = 10000

    def prepare(self) -> None:
        self.known: list[str] = []
        put("/etc/lacme/lacme.conf", f"config-certs = lacme-certs.conf\n[client]\nserver = {self.url}\n[webserver]\nlisten =\n"
            f"challenge-directory = {CHALLENGES}\n[accountd]\n")
        put("/etc/lacme/lacme-certs.conf", "")
        call("openssl", "genrsa", "-out", "/etc/lacme/account.key", "2048")
        put("/etc/lacme/lacme-accountd.conf", "privkey = file:/etc/lacme/account.key\n")
        call("lacme", "account", "--register", "--tos-agreed", f"mailto:{MAIL}")

    def expect(self, names: Sequence[str]) -> None:
        for name in names:
            call("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"/etc/lacme/keys-{name}.pem")
        self._configure(names)

    def _configure(self, names: Sequence[str]) -> None:
        self.known += names
        put("/etc/lacme/lacme-certs.conf", "".join(
            f"[{name}]\ncertificate-key = /etc/lacme/keys-{name}.pem\ncertificate-chain = {self.has(name)}\nsubject = /CN={name}\n"
            f"subjectAltName = DNS:{name}\nCAfile = {self.roots}\n" for name in self.known))

    def one(self, name: str) -> str:
        return shell("lacme", "newOrder", name)

    def many(self, names: Sequence[str]) -> str:
        return shell("lacme", "newOrder", *names)

    def has(self, name: str) -> str:
        return f"/etc/lacme/{name}.chain.pem"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        for name in names:
            put(self.has(name), made.leaf(name) + made.root_pem)
            put(f"/etc/lacme/keys-{name}.pem", made.key_pem, 0o600)
        self._configure(names)

    def tick(self, names: Sequence[str]) -> str:
        return "lacme newOrder"


class Acmetool(Client):
    name = package = "acmetool"

    def prepare(self) -> None:
        put("/var/lib/acme/conf/target", f"request:\n  provider: {self.url}\n  key:\n    type: ecdsa\n    ecdsa-curve: nistp256\n"
            f"  challenge:\n    webroot-paths:\n    - {CHALLENGES}\n")
        answers = {"acme-enter-email": MAIL, "acmetool-quickstart-complete": True,
                   "acme-agreement:data:text/plain,Do%20what%20thou%20wilt": True}
        put("/var/lib/acme/conf/responses", json.dumps(answers))
        call("sh", "-c", self.one("acmetool-first.example.org"))

    def one(self, name: str) -> str:
        return shell("acmetool", "--batch", "want", name)

    def many(self, names: Sequence[str]) -> str:
        return " && ".join([shell("acmetool", "--batch", "want", "--no-reconcile", *names), "acmetool --batch reconcile"])

    def has(self, name: str) -> str:
        return f"/var/lib/acme/live/{name}/fullchain"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        base = "/var/lib/acme"
        account, key = os.listdir(f"{base}/accounts")[0], base32(made.spki)
        sub = os.path.relpath(next(root for root, _, files in os.walk(f"{base}/accounts") if "privkey" in files), base)
        del account
        put(f"{base}/keys/{key}/privkey", made.key_pem, 0o600)
        for number, name in enumerate(names):
            leaf, url = made.leaf(name), f"{self.url.removesuffix('dir')}my-order/forged{number}"
            place = f"{base}/certs/{base32(url.encode())}"
            for kind, data in (("cert", leaf), ("chain", made.root_pem), ("fullchain", leaf + made.root_pem), ("url", url.encode())):
                put(f"{place}/{kind}", data)
            link(place + "/privkey", f"../../keys/{key}/privkey")
            link(place + "/account", f"../../{sub}")
            put(f"{base}/desired/{name}", "")
            link(f"{base}/live/{name}", "../" + os.path.relpath(place, base))

    def tick(self, names: Sequence[str]) -> str:
        return "acmetool --batch reconcile"


class AcmeTiny(Client):
    """With the script that its README tells to write."""
    name, package = "acme-tiny, renew.sh", "acme-tiny"
    base = "/var/lib/acme-tiny"

    def prepare(self) -> None:
        os.makedirs(self.base, exist_ok=True)
        call("openssl", "genrsa", "-out", self.base + "/account.key", "2048")
        self.expect(["tiny-first.example.org"])
        call("sh", "-c", self.one("tiny-first.example.org"))

    def expect(self, names: Sequence[str]) -> None:
        for name in names:
            key, request = f"{self.base}/{name}.key", f"{self.base}/{name}.csr"
            call("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", request,
                 "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")

    def one(self, name: str) -> str:
        ask = f"acme-tiny --account-key {self.base}/account.key --csr {self.base}/{name}.csr --acme-dir {CHALLENGES}/ --directory-url {self.url}"
        return shell("sh", "-c", f"{ask} > {self.base}/{name}.tmp && mv {self.base}/{name}.tmp {self.has(name)}")

    def many(self, names: Sequence[str]) -> str:
        return " && ".join(self.one(name) for name in names)

    def has(self, name: str) -> str:
        return f"{self.base}/{name}.crt"

    def forge(self, names: Sequence[str], made: Forge) -> None:
        for name in names:
            put(self.has(name), made.leaf(name) + made.root_pem)

    def tick(self, names: Sequence[str]) -> str:
        return f"for name in {' '.join(names)}; do openssl x509 -checkend {30 * DAY} -noout -in {self.base}/$name.crt || exit 1; done"


class Certdrop(Client):
    name, package, run_as = "certdrop", "certdrop", "_certdrop"
    tick_most = 10000
    key = "ecdsa-p256"

    def configure(self) -> None:
        # More orders in three hours than Let's Encrypt allows, as this CA has no such limit.
        put("/etc/certdrop/certdrop.toml", f'directory = "{self.url}"\ncontact = ["{MAIL}"]\ntrust_roots = "{self.roots}"\n'
            'limits = {orders_per_three_hours = 0}\n')

    def prepare(self) -> None:
        self.configure()
        self.expect(["certdrop-first.example.org"])
        call("certdrop", "renew", "certdrop-first.example.org")

    def expect(self, names: Sequence[str]) -> None:
        for name in names:
            put(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\nkey = "{self.key}"\n')
        call("certdrop-install")
        for name in names:
            blocks = subprocess.run(["certdrop-nginx", name], stdout=subprocess.PIPE, text=True, check=True).stdout
            put(f"/etc/nginx/sites-enabled/{name}", blocks)
        call("nginx", "-s", "reload")
        time.sleep(1)

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            shutil.rmtree(f"{site.STATE}/sites/{name}")
            paths = [f"/etc/certdrop/sites.d/{name}.toml", f"/etc/nginx/sites-enabled/{name}", f"{site.STATE}/issuer/{name}.json"]
            for path in [*paths, *(f"{site.STATE}/{part}/{name}" for part in ("live", "proven")), f"{site.STATE}/keeper/{name}.json"]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            for path in glob.glob(f"/var/spool/certdrop/re*/{name}@*"):
                os.unlink(path)

    def one(self, name: str) -> str:
        return shell("certdrop-issue", "--quiet", name)

    def many(self, names: Sequence[str]) -> str:
        return shell("certdrop-issue", "--quiet", *names)

    def has(self, name: str) -> str:
        return f"/var/spool/certdrop/replies/{name}@{state.Observed(name).next or 0:04d}.pem"

    def forge(self, names: Sequence[str], made: Forge, kept: int = 1) -> None:
        """By the keeper's own code, each site with keys of its own, but for the judge; and the renewal windows that the issuer would have asked for.
        `kept` are the complete generations: after half a year every site has three."""
        os.umask(0o022)
        config = site.load_config()
        for name in names:
            put(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\n')
            begin, sha256 = int(made.now.timestamp()) - DAY, ""
            for number in range(1, kept + 1):
                generations.make_next(site.load_site(name, config), number, None, now=False)
                with open(state.directory(name, number) + "/request.csr", "rb") as stream:
                    request = x509.load_pem_x509_csr(stream.read())
                leaf = made.leaf(name, request.public_key())      # type: ignore[arg-type]
                sha256 = x509.load_pem_x509_certificate(leaf).fingerprint(hashes.SHA256()).hex()
                generations.complete(name, number, [leaf, made.root_pem], Accepted(sha256, begin, begin + 90 * DAY))
            for place in ("live", "proven"):
                generations.move(place, name, kept)
            put(f"/var/lib/certdrop/issuer/{name}.json", json.dumps({
                "window_of": sha256, "window_start": begin + 58 * DAY, "window_end": begin + 60 * DAY, "poll_at": int(time.time()) + DAY,
                "answered_by": self.url, "answered_with": sha256}))
        call("chown", "-R", "_certdrop:_certdrop", "/var/lib/certdrop/issuer")
        call("certdrop-install")
        call("certdrop-issue", "--quiet")

    def tick(self, names: Sequence[str]) -> str:
        return "certdrop-issue --cron"


RIVALS = (Lego, Certbot, Lacme, Uacme, Acmetool, Dehydrated, AcmeTiny)


def version(package: str) -> str:
    """Of a Debian package."""
    return subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], stdout=subprocess.PIPE, text=True, check=False).stdout

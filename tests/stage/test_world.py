"""Tests of world.py, inside a stage: the servers do what the system tests rely on.

    tests/stage/stage run -- /usr/bin/python3 -m unittest discover -s tests/stage -p 'test_world.py'
"""

from __future__ import annotations

import base64
import json
import os
import smtplib
import socket
import ssl
import subprocess
import sys
import unittest
from datetime import datetime, timedelta, timezone

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

import world  # noqa: E402

CHALLENGES = "/var/www/challenges"
SITE = "server {{ listen 80 default_server; listen [::]:80 default_server; location /.well-known/acme-challenge/ {{ alias {}/; }} }}\n"


def run(*command: str, **environment: str) -> str:
    return subprocess.run(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def certificate_id(chain: str) -> str:
    """RFC 9773, section 4.1: key identifier of the issuer and serial number of the leaf."""
    said = run("openssl", "x509", "-in", world.write("/tmp/leaf.pem", chain), "-noout", "-serial", "-ext", "authorityKeyIdentifier")
    serial = bytes.fromhex(said.partition("serial=")[2].splitlines()[0])
    issuer = bytes.fromhex(said.partition("Identifier:")[2].strip().splitlines()[0].removeprefix("keyid:").replace(":", ""))
    if serial[0] >= 0x80:
        serial = b"\0" + serial
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (issuer, serial))


@unittest.skipUnless(os.path.exists("/run/stage"), "needs a stage")
class WorldTest(unittest.TestCase):

    def setUp(self) -> None:
        self.world = world.World(authz_reuse=0).start()
        self.addCleanup(self.world.stop)
        os.makedirs(CHALLENGES, exist_ok=True)
        self.world.nginx.add_site("challenges", SITE.format(CHALLENGES))
        self.world.nginx.start(80)

    def issue(self, name: str) -> str:
        """A chain from the CA for this one name, by acme-tiny."""
        account, key, csr = "/tmp/account.key", f"/tmp/{name}.key", f"/tmp/{name}.csr"
        if not os.path.exists(account):
            run("openssl", "genrsa", "-out", account, "2048")
        run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", csr, "-subj", "/",
            "-addext", f"subjectAltName=DNS:{name}")
        return run("acme-tiny", "--account-key", account, "--csr", csr, "--acme-dir", CHALLENGES, "--directory-url", self.world.pebble.directory_url,
                   "--quiet", SSL_CERT_FILE=self.world.pebble.ca_bundle)

    def test_issue_and_serve(self) -> None:
        """acme-tiny gets a certificate that leads to Pebble's root, and nginx serves it after a reload."""
        chain = self.issue("a.example.org")
        path = world.write("/tmp/a.pem", chain)
        run("openssl", "verify", "-CAfile", self.world.pebble.root(), "-untrusted", path, path)
        self.world.nginx.add_site("a", f"server {{ listen 443 ssl; ssl_certificate {path}; ssl_certificate_key /tmp/a.example.org.key; }}\n")
        self.world.nginx.reload()
        self.world.nginx.wait_listening(443)
        self.assertEqual(world.fingerprint(chain), world.fingerprint(world.served_certificate("a.example.org")))
        serial = run("openssl", "x509", "-in", path, "-noout", "-serial").strip().partition("=")[2]
        self.assertEqual(("Valid", ""), (self.world.pebble.status(serial), self.world.pebble.status("abcdef")))
        self.assertIn("POST /order-plz", self.world.pebble.requests())

    def test_validity_and_chain(self) -> None:
        """A restart with other options gives certificates of another kind, and other roots."""
        before = world.read(self.world.pebble.root())
        self.world.pebble.restart(validity=160 * 3600, chain_length=3, alternate_roots=1, retry_after=(1, 1))
        roots = world.read(self.world.pebble.root())
        self.assertNotIn(before, roots)
        self.assertEqual(2, roots.count("BEGIN CERTIFICATE"))
        chain = self.issue("b.example.org")
        self.assertEqual(4, chain.count("BEGIN CERTIFICATE"))
        end = ssl.cert_time_to_seconds(run("openssl", "x509", "-in", world.write("/tmp/b.pem", chain), "-noout", "-enddate").strip().partition("=")[2])
        self.assertAlmostEqual(160.0, (end - datetime.now(timezone.utc).timestamp()) / 3600, delta=0.1)

    def test_renewal_information(self) -> None:
        """A test may say when a certificate is to be renewed, and profiles are offered, where Pebble is new enough."""
        self.world.pebble.restart(profiles={"classic": 7776000, "shortlived": 576000})
        if not self.world.pebble.has_ari:
            self.skipTest("this Pebble knows no ARI")
        self.assertTrue(self.world.pebble.has_profiles)
        self.assertLessEqual({"classic", "shortlived"}, set(self.world.pebble.directory()["meta"]["profiles"]))
        now = datetime.now(timezone.utc)
        chain = self.issue("c.example.org")
        self.world.pebble.set_renewal_info(chain, now - timedelta(hours=2), now - timedelta(hours=1))
        window = json.loads(self.world.pebble.get("draft-ietf-acme-ari-03/renewalInfo/" + certificate_id(chain)))["suggestedWindow"]
        self.assertEqual({"start": world.rfc3339(now - timedelta(hours=2)), "end": world.rfc3339(now - timedelta(hours=1))}, window)

    def test_names(self) -> None:
        """Every name is here, until a test says otherwise."""
        self.assertEqual("127.0.0.1", socket.gethostbyname("whatever.example.net"))
        self.world.dns.set_addresses("six.example.net", ipv6=["::1"])
        self.assertIn("::1", {info[4][0] for info in socket.getaddrinfo("six.example.net", 80)})
        self.world.dns.set_servfail("bad.example.net")
        with self.assertRaises(socket.gaierror):
            socket.gethostbyname("bad.example.net")

    def test_mail(self) -> None:
        """Mail by sendmail keeps its sender's uid and arguments, mail by SMTP whether it was encrypted and who sent it."""
        subprocess.run(["runuser", "-u", "www-data", "--", "/usr/sbin/sendmail", "-t"], input="To: root\nSubject: one\n\nbody\n", text=True, check=True)
        mail = self.world.mail.wait_message()
        self.assertEqual(("one", "body\n", 33, ("-t",)), (mail.subject, mail.body, mail.uid, mail.argv))
        self.world.mail.clear()
        with smtplib.SMTP("mail.stage.test", 587) as client:
            client.starttls(context=ssl.create_default_context(cafile=self.world.mail.ca_bundle))
            client.login("user", "secret")
            client.sendmail("a@example.org", ["b@example.org"], "Subject: two\n\n.dot\n")
        mail = self.world.mail.wait_message()
        self.assertEqual(("two", "a@example.org", ("b@example.org",), True, "user", "secret"),
                         (mail.subject, mail.sender, mail.recipients, mail.tls, mail.user, mail.password))
        self.world.mail.refuse()
        self.assertEqual(75, subprocess.run(["/usr/sbin/sendmail", "root"], input="x", text=True, check=False).returncode)

    def test_waiting_says_why(self) -> None:
        """What was waited for in vain comes with the ends of the logs."""
        with self.assertRaisesRegex(world.WorldError, r"in vain for rain(.|\n)*pebble.log"):
            world.wait_for(lambda: False, 0.05, "rain")

    def test_cron(self) -> None:
        """cron starts, and stops."""
        self.world.cron.start()
        self.assertTrue(self.world.cron.running())
        self.world.cron.stop()
        self.world.cron.start()


if __name__ == "__main__":
    unittest.main()

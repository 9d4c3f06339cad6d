"""What the watcher finds on disk: right where root wrote it, bounded and cleaned where the issuer did.

The World here makes the directories as the keeper leaves them; the other tests of the watcher use it too.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIB = str(Path(__file__).resolve().parents[3] / "lib")
if LIB not in sys.path:
    sys.path.insert(0, LIB)

from certdrop.config import site as configuration  # noqa: E402
from certdrop.status import report, table  # noqa: E402
from certdrop.walls import users  # noqa: E402
from certdrop.watcher import evidence, verdict  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the configuration must be root's")
DAY = 86400
ISSUER = 4711                      # a uid that is nobody's


def make_certificate(names: list[str], begin: float, end: float) -> tuple[bytes, bytes]:
    """(certificate, key) as PEM, self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])

    def moment(seconds: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).replace(tzinfo=None)
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(moment(begin)).not_valid_after(moment(end))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False).sign(key, hashes.SHA256()))
    pem = serialization.Encoding.PEM
    return made.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class World:
    """A /etc/certdrop and a /var/lib/certdrop to look at."""

    def __init__(self, root: Path) -> None:
        self.etc, self.state = root / "etc", root / "state"
        for path in (self.etc / "sites.d", *(self.state / part for part in ("sites", "live", "proven", "keeper", "issuer", "watcher"))):
            path.mkdir(parents=True)
            path.chmod(0o755)
        os.chown(self.state / "issuer", ISSUER, ISSUER)
        (self.etc / "services.d").mkdir()
        self.put(self.etc / "services.d/nginx.toml", b'test = ["/bin/true"]\nreload = ["/bin/true"]\n')

    def site(self, name: str, *more: str, text: str = "") -> None:
        """A configured site."""
        path = self.etc / "sites.d" / f"{name}.toml"
        path.write_text(f"domains = {json.dumps([name, *more])}\n{text}")
        path.chmod(0o644)

    def generation(self, name: str, number: int, begin: float = -10 * DAY, end: float = 80 * DAY, complete: bool = True, marker: str = "") -> str:
        """A generation; times are seconds from now. Returns the fingerprint."""
        place = self.state / "sites" / name / f"{number:04d}"
        place.mkdir(parents=True)
        place.chmod(0o755)
        place.parent.chmod(0o755)
        asked = {"key": "ecdsa-p256", "key_created": int(time.time() + begin), "spki_sha256": "ab" * 32, "domains": [name]}
        self.put(place / "request.json", json.dumps(asked).encode())
        certificate, key = make_certificate([name], time.time() + begin, time.time() + end)
        if not marker:                         # self-signed as they all are, so each is a root of its own
            with open(self.etc / "roots.pem", "ab") as stream:
                stream.write(certificate)
        self.put(place / "privkey.pem", key, 0o600)
        if marker:
            self.put(place / marker, b"")
        if complete:
            for entry in ("cert.pem", "fullchain.pem"):
                self.put(place / entry, certificate)
            self.put(place / "chain.pem", b"")
            self.put(place / "cert.json", b'{"sha256": ""}')
            self.put(place / "nginx.conf", f"ssl_certificate {place}/fullchain.pem;\nssl_certificate_key {place}/privkey.pem;\n".encode())
        return evidence.parse(certificate).sha256

    def link(self, which: str, name: str, number: int) -> None:
        """live or proven."""
        path = self.state / which / name
        path.unlink(missing_ok=True)
        path.symlink_to(f"../sites/{name}/{number:04d}")

    def usual(self, name: str, begin: float = -10 * DAY, end: float = 80 * DAY) -> str:
        """A site that is served and waits for its next certificate."""
        self.site(name, f"www.{name}")
        fingerprint = self.generation(name, 1, begin, end)
        self.generation(name, 2, 0, 1, complete=False)
        self.link("live", name, 1)
        self.link("proven", name, 1)
        return fingerprint

    def notes(self, name: str, **notes: object) -> None:
        """Root's notes on a site."""
        self.put(self.state / "keeper" / f"{name}.json", json.dumps(notes).encode())

    def ledger(self, name: str, data: bytes | None = None, kind: str = "", **entries: object) -> Path:
        """The issuer's ledger of a site; `kind` is its `class`."""
        path = self.state / "issuer" / f"{name}.json"
        self.put(path, json.dumps({"class": kind, **entries}).encode() if data is None else data)
        os.chown(path, ISSUER, ISSUER)
        return path

    def ran(self, ago: float = 60, exit: int = 0) -> None:
        """Root's stamp."""
        path = self.state / "keeper" / "last-run"
        self.put(path, json.dumps({"time": int(time.time()), "exit": exit}).encode())
        os.utime(path, (time.time() - ago,) * 2)

    @staticmethod
    def put(path: Path, data: bytes, mode: int = 0o644) -> None:
        """A file with a mode."""
        path.write_bytes(data)
        path.chmod(mode)


def make_world(root: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A World that the program under test takes for the real one."""
    world = World(root)
    monkeypatch.setattr(configuration, "ETC", str(world.etc))
    monkeypatch.setattr(configuration, "STATE", str(world.state))
    monkeypatch.setattr(configuration, "STORE", str(world.etc / "roots.pem"))
    monkeypatch.setattr(users, "user_ids", lambda user: (ISSUER, ISSUER) if user == "_certdrop" else (0, 0))
    return world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def look(name: str) -> evidence.Evidence:
    return evidence.Reader().site(name)


def test_usual_site_is_found_whole(world: World) -> None:
    """Numbers, dates, fingerprint and keys come from where they belong."""
    fingerprint = world.usual("example.org")
    found = look("example.org")
    assert (1, 1, 2, 1) == (found.live, found.proven, found.next, found.newest)
    assert found.certificate is not None and fingerprint == found.certificate.sha256
    assert ["example.org", "www.example.org"] == found.domains
    assert "ab" * 32 == found.next_spki
    assert [] == found.disorder and "" == found.wrong


def test_dates_come_from_the_certificate_not_from_a_note(world: World) -> None:
    """A cert.json that says otherwise is not believed."""
    world.usual("example.org", end=5 * DAY)
    world.put(world.state / "sites/example.org/0001/cert.json", b'{"not_after": 9999999999, "sha256": "00"}')
    found = look("example.org").certificate
    assert found is not None and 5 == round((found.not_after - time.time()) / DAY)


def test_openssl_reads_the_same_dates(world: World) -> None:
    """Our reading of a date is OpenSSL's."""
    world.usual("example.org")
    path = world.state / "sites/example.org/0001/cert.pem"
    said = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", str(path)], capture_output=True, text=True, check=True).stdout
    end = datetime.datetime.strptime(said.strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=datetime.timezone.utc)
    found = look("example.org").certificate
    assert found is not None and end.timestamp() == found.not_after


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"[" * 60000, b'{"a":' * 12000, b'{"count": 1e999, "class": "x"}',
                                  b'{"count": true, "class": "x"}', b'{"count": -1, "class": "x"}', b'{"count": NaN, "class": 3}',
                                  b'{"count": ' + b"9" * 50000 + b"}", b"\xff\xfe\x00", b'{"renew_at": "soon"}'])
def test_ledger_of_nonsense_says_nothing(world: World, data: bytes) -> None:
    """Whatever the issuer writes, the site is still read, and nothing of it is believed."""
    world.usual("example.org")
    world.ledger("example.org", data)
    found = look("example.org")
    assert found.failing is None and found.renew_at is None and found.certificate is not None


def test_ledger_text_is_cleaned_and_bounded(world: World) -> None:
    """Escapes, newlines and length do not reach a terminal."""
    world.usual("example.org")
    world.ledger("example.org", kind="dns\x1b[2J", count=3, last_error="\x1b]0;owned\x07\n" + "A" * 5000)
    failing = look("example.org").failing
    assert failing is not None
    assert (failing.what + failing.error).isprintable() and len(failing.error) <= evidence.TEXT


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/shadow")


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with open(path, "wb") as stream:
        stream.truncate(10 << 30)


def _directory(path: Path) -> None:
    path.mkdir()


def _foreign(path: Path) -> None:
    path.write_text('{"count": 5, "class": "lie"}')


def _hard_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text('{"count": 5, "class": "lie"}')
    os.link(other, path)


@pytest.mark.parametrize("make", [_fifo, _link, _endless, _sparse, _directory, _foreign, _hard_link])
def test_hostile_ledger_file_is_survived_and_said(world: World, make: Any) -> None:
    """What is no plain file of the issuer's is neither followed, waited for, nor believed; status says so."""
    world.usual("example.org")
    path = world.state / "issuer/example.org.json"
    make(path)
    if make not in (_foreign,):
        os.chown(path, ISSUER, ISSUER, follow_symlinks=False)
    begin = time.monotonic()
    found = look("example.org")
    assert found.failing is None and time.monotonic() - begin < 2
    assert any("issuer/example.org.json cannot be used" in line for line in found.disorder)


def test_live_link_to_elsewhere_is_disorder(world: World) -> None:
    """A live link is followed only to a generation of its own site."""
    world.usual("example.org")
    path = world.state / "live/example.org"
    path.unlink()
    path.symlink_to("/etc")
    found = look("example.org")
    assert found.live is None and any("no link to a generation" in line for line in found.disorder)


def test_run_is_dated_by_the_stamp_not_by_its_words(world: World) -> None:
    """What the stamp says of its time is not believed, its mtime is; a stamp of somebody else's is none."""
    world.ran(ago=7200)
    reader = evidence.Reader()
    at = reader.last_run("keeper").at
    assert at is not None and 7200 == round(time.time() - at, -1)
    os.chown(world.state / "keeper/last-run", ISSUER, ISSUER)
    assert reader.last_run("keeper").at is None


def test_wrong_configuration_does_not_hide_the_certificate(world: World) -> None:
    """A typing error in sites.d is said, and the certificate is shown all the same."""
    world.usual("example.org")
    world.site("example.org", text="kay = 1\n")
    found = look("example.org")
    assert "unknown key" in found.wrong and found.certificate is not None and ["example.org"] == found.domains


@pytest.mark.parametrize("data", [b"", bytes(range(256)), b"[" * 60000, b"[]", None,
                                  b'{"spki_sha256": [], "key": {}, "domains": 1, "refused": {"number": []}, "revoke": []}', "directory"],
                         ids=lambda data: type(data).__name__ + str(len(data or b"")))
@pytest.mark.parametrize("entry", ["cert.pem", "chain.pem", "fullchain.pem", "nginx.conf", "privkey.pem", "request.json", "cert.json",
                                   "../0002/request.json",
                                   "../../../keeper/example.org.json", "../../../live/example.org", "../../../proven/example.org",
                                   "../../../keeper/burnt", "."])
def test_damage_is_one_sites_own(world: World, entry: str, data: Any) -> None:
    """Whatever becomes of a file of root's: the site has a row, the other one is as ever, and what can be seen of it without its key is said."""
    world.usual("example.org")
    world.usual("other.org")
    path = Path(os.path.normpath(world.state / "sites/example.org/0001" / entry))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if data == "directory":
        path.mkdir()
    elif data is not None:
        world.put(path, data)
    reader = evidence.Reader()
    found = verdict.judge(reader.site("example.org"), None, time.time(), verdict.Thresholds())
    assert verdict.SERVING == verdict.judge(reader.site("other.org"), None, time.time(), verdict.Thresholds()).state
    if path.name in ("cert.pem", "fullchain.pem", "nginx.conf", "0001") or (data in (b"", "directory") and path.name == "privkey.pem"):
        assert (verdict.DAMAGED, verdict.CRITICAL) == (found.state, found.severity) and str(path) in found.last_error
    table.render([found], time.time(), 80, False)
    table.page(found, time.time())
    report.as_json([found], [], [])


@pytest.mark.parametrize("noted, lost", [
    ({}, ""), ({"account": "https://ca.test/1"}, ""), ({"before": "https://ca.test/1"}, "https://ca.test/1"),
    ({"before": "https://ca.test/1", "account": ""}, "https://ca.test/1"),
    ({"before": "https://ca.test/1", "account": "https://ca.test/2"}, ""), ({"before": "https://ca.test/1", "agreed": True}, ""),
    ({"before": "https://ca.test/1", "agreed": "x"}, "https://ca.test/1"), ({"before": ["x"]}, ""), ({"before": "\x1b[2J"}, "\\x1b[2J"), ([], "")])
def test_an_account_that_the_ca_lost(world: World, noted: object, lost: str) -> None:
    """By the issuer's note for the configured CA; whoever took the issuer over brings nothing on a terminal."""
    world.usual("example.org")
    reader = evidence.Reader()
    path = world.state / "issuer" / evidence.account_file(reader.config.directory_url)
    path.write_text(json.dumps(noted))
    os.chown(path, ISSUER, ISSUER)
    assert reader.last_run("issuer").lost == lost and reader.last_run("keeper").lost == ""


def test_what_a_run_could_not_do_is_told_by_what_it_is(world: World) -> None:
    """Why root's run did not begin that the issuer asked for, and the account that is lost, are not each other."""
    world.usual("example.org")
    world.ran()
    (world.state / "keeper/stopped-asked").write_text("sudo lets this run start no program")
    found = evidence.Reader().last_run("keeper")
    assert (found.asked, found.lost, found.stopped) == ("sudo lets this run start no program", "", "")

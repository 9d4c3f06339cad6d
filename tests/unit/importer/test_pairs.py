"""What is said of keys and chains that are to be taken over, odd and hostile ones among them; and how that is understood."""

from __future__ import annotations

import base64
import datetime
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from certdrop import spool
from certdrop.commandline import Usage
from certdrop.config import site
from certdrop.importer import pairs, take
from certdrop.importer import command as import_command
from certdrop.importer import examiner as import_sandbox
from certdrop.importer.pairs import Examiner, Found
from certdrop.signer import jose

NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
KEY, CA_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def pem(key, form="PKCS8", passphrase=None):
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), how)


def certificate(key, names=("a.test",), begin=NOW - DAY, end=NOW + 80 * DAY, authority=False, subject="", signer=CA_KEY, issuer="CA"):
    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else [])
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(authority, None), True)
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([one if isinstance(one, x509.GeneralName) else x509.DNSName(one) for one in names]), False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


ROOT = certificate(CA_KEY, (), NOW - 1000 * DAY, NOW + 1000 * DAY, True, "CA")


@pytest.fixture
def examiner(monkeypatch):
    """Asks import_sandbox in this process, without a jail: what it decides is tested here."""
    store = crypto.X509Store()
    store.add_cert(crypto.load_certificate(crypto.FILETYPE_PEM, ROOT))
    monkeypatch.setattr(Examiner, "ask", lambda self, task, *parts: import_sandbox.answer(task, list(parts), store))
    return Examiner("")


def examine(examiner, key, *chain):
    """The pair, or the reason against it."""
    try:
        return examiner.pair(key, pairs.pem_blocks(b"".join(chain)), "", 2 ** 40)
    except spool.Refused as refused:
        return refused.reason


@pytest.mark.parametrize("key, kind", [(KEY, "ecdsa-p256"), (RSA, "rsa-2048"), (ec.generate_private_key(ec.SECP521R1()), "ecdsa-secp521r1")])
@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_a_pair_is_understood(examiner, key, kind, form):
    """Whatever kind of key, in either form; what comes back is the key as the keeper's own are."""
    found = examine(examiner, pem(key, form), certificate(key, ("b.test", "a.test")), ROOT)
    assert (found.kind, found.verdict, found.domains, found.key) == (kind, "accept", ["b.test", "a.test"], pem(key))
    assert found.written == found.begin == int((NOW - DAY).timestamp())


@pytest.mark.parametrize("key, reason", [
    (b"", "no-key"), (b"\0" * 1000, "no-key"), (pem(KEY)[:100], "no-key"), (pem(KEY).replace(b"M", b"N", 1), "no-key"),
    (pem(KEY, passphrase=b"secret"), "passphrase"), (pem(RSA, "TraditionalOpenSSL", b"secret"), "passphrase"),
    (pem(ed25519.Ed25519PrivateKey.generate()), "kind"), (pem(RSA), "key"), (ROOT, "no-key")])
def test_keys_that_stay(examiner, key, reason):
    """Broken, closed, of another kind, another's."""
    assert examine(examiner, key, certificate(KEY), ROOT) == reason


@pytest.mark.parametrize("leaf, outcome", [
    (certificate(KEY, ("*.a.test",)), "accept"), (certificate(KEY, ("a.test",), subject="*.test"), "names-wildcard"),
    (certificate(KEY, ()), "names"), (certificate(KEY, ("a.test",), subject="b.test"), "names-extra"),
    (certificate(KEY, ("a.test", x509.RFC822Name("a@b.test"))), "names-extra"), (certificate(KEY, begin=NOW + DAY), "not-yet-valid"),
    (certificate(KEY, begin=NOW - 90 * DAY, end=NOW - DAY), "expired"), (certificate(KEY, authority=True), "ca-as-leaf"),
    (certificate(KEY, signer=KEY), "broken-chain"), (certificate(KEY, ("a b\n",)), "names"), (certificate(KEY, ("a,pair",)), "names"),
    (certificate(KEY, [f"{number}.test" for number in range(101)]), "names")])
def test_certificates_are_judged(examiner, leaf, outcome):
    """By what the judge asks of every reply; an expired one is said to be that."""
    found = examine(examiner, pem(KEY), leaf, ROOT)
    assert (found if isinstance(found, str) else found.verdict) == outcome


def test_an_expired_chain_of_nobody(examiner):
    """It leads to no trusted root, and did not when it was valid."""
    alone = certificate(KEY, begin=NOW - 90 * DAY, end=NOW - DAY, signer=KEY)
    assert examine(examiner, pem(KEY), alone).verdict == "untrusted"


@pytest.mark.parametrize("text", [b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ROOT.replace(b"M", b"N", 2)])
def test_a_broken_certificate(examiner, text):
    """Is told, and nothing is taken."""
    assert examine(examiner, pem(KEY), text) in ("chain", "key", "names")


@pytest.mark.parametrize("data, count", [(ROOT, 1), (b"subject=x\n" + ROOT + b"noise\n" + ROOT, 2), (ROOT.replace(b"\n", b"\r\n"), 1)])
def test_chains_with_comments(data, count):
    """As openssl prints them, and as other systems end lines."""
    assert pairs.pem_blocks(data) == [ROOT] * count


@pytest.mark.parametrize("data, reason", [(b"", "grammar"), (b"noise", "grammar"), (ROOT[:-5], "grammar"), (ROOT * 11, "count")])
def test_what_is_no_chain(data, reason):
    """By the spool's grammar."""
    with pytest.raises(spool.Refused) as refused:
        pairs.pem_blocks(data)
    assert refused.value.reason == reason


@pytest.mark.parametrize("answer, reason", [
    ("", "judge-failed"), ("no key", "key"), ("no such reason", "judge-failed"), ("pair x", "judge-failed"), ("account rsa-2048 AAAA", "judge-failed"),
    (f"pair ecdsa-p256 {'0' * 64} {'0' * 64} 1 2 splendid a.test AAAA", "judge-failed"),
    (f"pair ecdsa-p256 {'0' * 64} {'0' * 64} 1 2 accept a.test/../x AAAA", "judge-failed"),
    (f"pair ecdsa-p256 {'0' * 64} {'0' * 64} 1 2 accept a.test AA\nAA", "judge-failed")])
def test_a_lying_examiner(monkeypatch, answer, reason):
    """Only an answer of the form is believed."""
    monkeypatch.setattr(Examiner, "ask", lambda *_: answer)
    with pytest.raises(spool.Refused) as refused:
        Examiner("").pair(b"", [], "", 0)
    assert refused.value.reason == reason


def test_names_that_are_no_hosts(monkeypatch):
    """What the examiner says are names is checked as if an administrator had typed it."""
    pair = pairs.Pair("ecdsa-p256", "", "", 1, 2 ** 40, "accept", ["a.test", "localhost"], b"", [], "", 1)
    assert "no host name" in pairs._obstacle(pair, False)


def test_a_key_that_got_out_stays_out(examiner, monkeypatch, tmp_path):
    """Whatever its certificate is worth: burnt once, it is never taken over again."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    pair = examine(examiner, pem(KEY), certificate(KEY), ROOT)
    assert pairs._obstacle(pair, True) == ""
    (tmp_path / "keeper").mkdir()
    (tmp_path / "keeper" / "burnt").write_text(f"{'0' * 64}\n{pair.spki}\n")
    assert "compromised" in pairs._obstacle(pair, True)


def jwk(**changes):
    numbers = RSA.private_numbers()
    found = {"kty": "RSA", **{name: _b64(value) for name, value in (
        ("n", numbers.public_numbers.n), ("e", numbers.public_numbers.e), ("d", numbers.d), ("p", numbers.p), ("q", numbers.q), ("dp", numbers.dmp1),
        ("dq", numbers.dmq1), ("qi", numbers.iqmp))}, **changes}
    return json.dumps({name: value for name, value in found.items() if value is not None}).encode()


def _b64(number):
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode().rstrip("=")


def test_an_account_key(examiner):
    """certbot's JWK and everybody's PEM are one key."""
    assert examiner.account(jwk()) == examiner.account(pem(RSA, "TraditionalOpenSSL")) == ("rsa-2048", pem(RSA))
    assert examiner.account(pem(KEY))[0] == "ecdsa-p256"


@pytest.mark.parametrize("text, reason", [
    (b"{", "no-key"), (b"{" * 100000, "no-key"), (b"{}", "no-key"), (jwk(kty="EC"), "account-kind"), (jwk(d=None), "no-key"), (jwk(d="AQAB"), "no-key"),
    (jwk(n=7), "no-key"), (jwk(p=_b64(1)), "no-key"), (b'{"kty": [1]}', "account-kind")])
def test_broken_account_keys(examiner, text, reason):
    """Each is refused by a reason, whatever a parser raises."""
    with pytest.raises(spool.Refused) as refused:
        examiner.account(text)
    assert refused.value.reason == reason


@pytest.mark.parametrize("url", ["https://acme-v02.api.letsencrypt.org/directory", "https://ca.test:14000/dir"])
def test_the_account_is_put_where_the_issuer_looks(url):
    """Under the name that the issuer's own code makes of the CA's directory."""
    assert take.account_entry(url) == jose.entry(url)


@pytest.mark.parametrize("kind, nearest", [("ecdsa-p256", "ecdsa-p256"), ("rsa-4096", "rsa-4096"), ("rsa-1024", "rsa-2048"), ("rsa-2432", "rsa-2048"),
                                           ("rsa-8192", "rsa-4096"), ("ecdsa-secp521r1", "ecdsa-p384")])
def test_the_next_key(kind, nearest):
    """Of the kind that it was, or the nearest that certdrop makes."""
    assert take.nearest_kind(kind) == nearest


def understood(argv):
    """The choice and the flags that certdrop-import makes of words."""
    return import_command.parse(import_command.LINE.read(argv))


@pytest.mark.parametrize("argv", [
    ["--yes", "--diff"], ["--key", "x"], ["--chain", "x"], ["--name", "x"], ["--account", "x"], ["--key"], ["--what"], ["--dir", "/x"], ["--client", "x"],
    ["--client", "acme-tiny", "--dir", "/x"], ["--ca", "http://x"], ["--owner", "nobody-at-all"], ["--key", "a", "--chain", "b", "site"],
    ["--key", "a", "--chain", "b", "--name", "../x"], ["--key", "a", "--chain", "b", "--client", "lego"]])
def test_words_that_make_no_sense(argv):
    """Are refused before anything is looked at."""
    with pytest.raises(Usage):
        understood(argv)


def test_words_that_do(monkeypatch, tmp_path):
    """Paths are taken from where the administrator stands: root's own world begins elsewhere."""
    monkeypatch.chdir(tmp_path)
    choice, flags = understood(["--key=a.key", "--chain", "b.pem", "--yes", "--untrusted", "--no-account"])
    assert (choice.key, choice.chain, choice.untrusted, choice.with_account) == (f"{tmp_path}/a.key", f"{tmp_path}/b.pem", True, False)
    assert "--yes" in flags and understood(["A.test"])[0].names == ["a.test"]


def test_what_is_found_is_told_in_one_line_each(tmp_path):
    """Whatever a file's name is, a terminal is not driven by it."""
    one = Found("files", "-", "/x\x1b[2J", ["/x\x1b[2J\n"])
    one.why = "no such file"
    survey = type("Survey", (), {"all": [type("Client", (), {"name": "files", "place": "", "found": [one], "accounts": [], "troubles": []})()]})()
    lines = import_command.describe(survey)
    assert all(line.isprintable() for line in lines) and "\\x1b" in lines[1]

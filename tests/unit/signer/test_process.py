"""The signer as a process of its own, on real files: what it answers, what it keeps to itself, when it ends; and its keys, whatever was killed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from certdrop import events, happened, spool
from certdrop.config import general, site
from certdrop.issuer.failure import Failure
from certdrop.signer import jose, keyring, process, protocol, service
from certdrop.signer.jose import b64

CA = "https://ca.example.org:14000"
DIRECTORY = CA + "/dir"
ENTRY = jose.entry(DIRECTORY)
PEMS = [keyring.make_key() for _ in range(3)]


@pytest.fixture
def top(tmp_path, monkeypatch):
    """certdrop's directories, and keys that need not be waited for."""
    for name in ("state/account", "state/issuer", "spool/requests", "etc", "log"):
        os.makedirs(tmp_path / name)
    (tmp_path / "log/issuer.log").write_text("")
    monkeypatch.setattr(site, "STATE", f"{tmp_path}/state")
    monkeypatch.setattr(site, "ETC", f"{tmp_path}/etc")
    monkeypatch.setattr(spool, "SPOOL", f"{tmp_path}/spool")
    monkeypatch.setattr(events, "LOGS", f"{tmp_path}/log")
    monkeypatch.setattr(keyring, "make_key", iter(PEMS).__next__)
    return tmp_path


@pytest.fixture
def config():
    made = general.Config()
    made.directory, made.contact = DIRECTORY, ["a@example.org"]
    return made


def start(config: general.Config, *may: str) -> process.Signer:
    return process.start(config, frozenset(may))


def get(url: str) -> bytes:
    header = {"alg": "RS256", "nonce": "n", "url": url, "kid": CA + "/account/1"}
    return f"{b64(json.dumps(header).encode())}.".encode()


def public(pem: bytes) -> dict[str, str]:
    return keyring.Key(pem).jwk()


def test_it_signs(top, config):
    """With the key on disk, made on first use, which its owner alone can read; the signature is RS256."""
    found = start(config)
    data = get(CA + "/order/1")
    assert found.sign(data) == keyring.Key(PEMS[0]).sign(data) and found.jwk() == public(PEMS[0]) and not found.has_other
    path, url = sorted((top / "state/account").iterdir())
    assert path.read_bytes() == PEMS[0] and path.stat().st_mode & 0o777 == 0o600
    assert url.name == f"{ENTRY}.url" and url.read_text() == DIRECTORY and url.stat().st_mode & 0o777 == 0o600


def test_it_loads_nothing_unasked(top, config):
    """A run that places no order costs a fork, and no key is made."""
    found = start(config)
    assert os.listdir(top / "state/account") == []
    found.wake()
    assert found.jwk() == public(PEMS[0])


def test_what_it_refuses_is_told_and_logged(top, config):
    """Both sides know why; a flood fills no disk; and it goes on working."""
    found = start(config)
    for _ in range(service.LOGGED + 30):
        with pytest.raises(Failure) as raised:
            found.sign(get("https://evil.example.org/\x1b[2J"))
    assert raised.value.text == "the signer: its URL is not at the host of the configured directory"
    assert found.sign(get(CA + "/x"))
    lines = [json.loads(line) for line in (top / "log/issuer.log").read_text().splitlines()]
    assert len(lines) == service.LOGGED
    assert (lines[0]["event"], lines[0]["url"]) == (happened.NOT_SIGNED, r"https://evil.example.org/\x1b[2J")


@pytest.mark.parametrize("message", [b"", b"Z", b"S", b"S\n", b"S\n.", b"E", b"Ehttps://evil.test/", b"N", b"X", b"D", b"C",
                                     b"C" + CA.encode() + b"\n" + CA.encode(), b"S" * protocol.LONGEST, b"S" * (protocol.LONGEST + 1), b"S" * 150000,
                                     b"S" + b"\xff" * 300 + b"\n" + b"\xff" * 300])
def test_odd_questions(top, config, message):
    """Each is one refusal (a message of no length is the end), and the next question is answered."""
    found = start(config)
    assert found.jwk()
    found._sock.send(message)
    answer = found._sock.recv(1000)
    assert answer[:1] == b"-" or (not message and not answer)
    if message:
        assert found.sign(get(CA + "/x"))


def test_descriptors_that_are_sent_go_nowhere(top, config):
    """A message may carry some; they are dropped."""
    found = start(config)
    found.jwk()
    reader, writer = os.pipe()
    socket.send_fds(found._sock, [b"S\n" + get(CA + "/x")], [writer])
    os.close(writer)
    assert found._answer() and os.read(reader, 1) == b""
    os.close(reader)


def test_it_ends_with_the_socket(top, config):
    """Closed at the other end: the process is gone, and its status is 0."""
    before = set(children())
    found = start(config)
    found.jwk()
    (child,) = set(children()) - before
    found._sock.close()
    assert os.waitpid(child, 0) == (child, 0)


def test_it_does_not_outlive_its_parent(top, config):
    """Whoever kept the socket from a parent that has ended gets no answer."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        found = start(config)
        found.jwk()
        socket.send_fds(theirs, [b"x"], [found._sock.fileno()])
        os._exit(0)
    _, (kept,), _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    left = socket.socket(fileno=kept)
    left.settimeout(30)
    answer = b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):       # gone before it was asked, or with the question unread
        left.send(b"S\n" + get(CA + "/x"))
        answer = left.recv(1000)
    assert answer == b""


def test_a_signer_that_was_killed(top, config):
    """Is one clear failure, at once."""
    before = set(children())
    found = start(config)
    found.jwk()
    (child,) = set(children()) - before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for _ in range(2):
        with pytest.raises(Failure):
            found.sign(get(CA + "/x"))


def test_a_signer_that_was_killed_before_it_was_asked(top, config):
    """To wake it is no failure of its own: who wants an answer is told."""
    before = set(children())
    found = start(config)
    (child,) = set(children()) - before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found.wake()
    with pytest.raises(Failure):
        found.jwk()


def test_it_keeps_no_descriptor(top, config):
    """Not the lock, not a pipe: what its parent had is closed in it."""
    reader, writer = os.pipe()
    found = start(config)
    os.close(writer)
    assert select.select([reader], [], [], 30)[0] and os.read(reader, 1) == b""
    assert found.jwk()
    os.close(reader)


def test_a_broken_key_file(top, config):
    """Is told as what it is; nothing is overwritten."""
    path = top / f"state/account/{ENTRY}.key"
    path.write_bytes(b"nonsense")
    with pytest.raises(Failure) as raised:
        start(config).jwk()
    assert "not a private key" in raised.value.text and path.read_bytes() == b"nonsense"


def test_notes_of_an_older_version(top, config):
    """Go to where the network part can read and write them."""
    (top / f"state/account/{ENTRY}.json").write_text("{}")
    start(config)
    assert os.listdir(top / "state/account") == [] and os.listdir(top / "state/issuer") == [f"account@{ENTRY}.json"]


def test_something_in_the_way_of_the_notes(top, config):
    """Which the network part may have put there, stops nobody."""
    (top / f"state/account/{ENTRY}.json").write_text("{}")
    (top / f"state/issuer/account@{ENTRY}.json").mkdir()
    assert start(config).jwk() == public(PEMS[0])


# ---- external account binding

def bind(top, config, text: str, mode: int = 0o640) -> str:
    (top / "etc/eab.toml").write_text(text)
    os.chmod(top / "etc/eab.toml", mode)
    return start(config).binding(CA + "/newAccount")


def test_a_binding(top, config):
    """RFC 8555 section 7.3.4: our public key, by the CA's key for this directory."""
    import hashlib
    import hmac
    made = json.loads(bind(top, config, f'["{DIRECTORY}"]\nkid = "k1"\nhmac_key = "{b64(b"secret" * 6)}"\n[zerossl]\nkid = "k2"\nhmac_key = "AA"\n'))
    first, second = made["protected"], made["payload"]
    assert json.loads(jose.unb64(first)) == {"alg": "HS256", "kid": "k1", "url": CA + "/newAccount"} and json.loads(jose.unb64(second)) == public(PEMS[0])
    assert jose.unb64(made["signature"]) == hmac.digest(b"secret" * 6, f"{first}.{second}".encode(), hashlib.sha256)


def test_a_registration_with_its_binding(top, config):
    """Is signed; with another binding it is not."""
    (top / "etc/eab.toml").write_text(f'["{DIRECTORY}"]\nkid = "k1"\nhmac_key = "AAAA"\n')
    os.chmod(top / "etc/eab.toml", 0o640)
    found = start(config)
    header = b64(json.dumps({"alg": "RS256", "nonce": "n", "url": CA + "/newAccount", "jwk": found.jwk()}).encode())

    def register(binding: object) -> bytes:
        payload = {"termsOfServiceAgreed": True, "contact": ["mailto:a@example.org"], "externalAccountBinding": binding}
        return found.sign(f"{header}.{b64(json.dumps(payload).encode())}".encode())
    made = json.loads(found.binding(CA + "/newAccount"))
    assert register(made)
    with pytest.raises(Failure):
        register({**made, "signature": "AA"})


@pytest.mark.parametrize("text, mode, said", [
    ("[", 0o640, "eab.toml"), ('[zerossl]\nkid = "a"\n', 0o640, ""), (f'["{DIRECTORY}"]\nkid = "a"\n', 0o640, "give kid and hmac_key"),
    (f'["{DIRECTORY}"]\nkid = "a"\nhmac_key = "se cret"\n', 0o640, "eab.toml"), (f'["{DIRECTORY}"]\nkid = "a"\nhmac_key = "AAAA"\n', 0o644, "chmod 640"),
    (f'["{DIRECTORY}"]\nkid = "a"\nhmac_key = "AAAA"\n', 0o660, "nobody else can write")])
def test_a_wrong_file_of_bindings(top, config, text, mode, said):
    """Is told, without the secret; one for other CAs binds nothing."""
    if not said:
        assert bind(top, config, text, mode) == ""
        return
    with pytest.raises(Failure) as raised:
        bind(top, config, text, mode)
    assert said in raised.value.text and "se cret" not in raised.value.text and "AAAA" not in raised.value.text


# ---- a change of keys

def test_a_change_of_keys(top, config):
    """The other key is made, the request is by both, then they change places; nothing of it without the word."""
    found = start(config, protocol.ROLL_OVER)
    found.make_other()
    assert found.jwk(True) == public(PEMS[1])
    inner = json.loads(found.change(CA + "/keyChange", CA + "/account/1"))
    assert json.loads(jose.unb64(inner["protected"])) == {"alg": "RS256", "jwk": public(PEMS[1]), "url": CA + "/keyChange"}
    assert json.loads(jose.unb64(inner["payload"])) == {"account": CA + "/account/1", "oldKey": public(PEMS[0])}
    outer = get(CA + "/keyChange") + b64(json.dumps(inner).encode()).encode()
    assert found.sign(outer) == keyring.Key(PEMS[0]).sign(outer)
    found.exchange()
    assert (found.jwk(), found.jwk(True)) == (public(PEMS[1]), public(PEMS[0]))
    assert found.sign(get(CA)) == keyring.Key(PEMS[1]).sign(get(CA))


def test_forward_only(top, config):
    """A run of certdrop-issue may finish a change of keys, and no more: not begin one, not go back."""
    found = start(config, protocol.ROLL_OVER)
    found.make_other()
    other = start(config)
    for attempt in (other.make_other, lambda: other.change(CA, CA)):
        with pytest.raises(Failure):
            attempt()
    other.exchange()
    with pytest.raises(Failure):
        other.exchange()
    assert other.jwk() == public(PEMS[1])
    looking = start(config, protocol.FIND)
    looking.exchange()
    assert looking.jwk() == public(PEMS[0])
    with pytest.raises(Failure):
        looking.make_other()


@pytest.mark.parametrize("killed", range(5))
def test_an_exchange_that_was_killed(top, killed, monkeypatch):
    """Wherever: both keys are there, one of them current."""
    ring = keyring.Keyring(DIRECTORY)
    ring.make_other()
    steps = []

    def step(name: str):
        real = getattr(os, name)

        def counted(*arguments, **named):
            if len(steps) == killed:
                raise KeyboardInterrupt
            steps.append(name)
            return real(*arguments, **named)
        return counted
    with monkeypatch.context() as patched:
        for name in ("link", "rename", "fsync"):
            patched.setattr(keyring.os, name, step(name))
        try:
            ring.exchange()
        except KeyboardInterrupt:
            pass
    again = keyring.Keyring(DIRECTORY)
    assert again.other is not None
    assert {json.dumps(key.jwk()) for key in (again.current, again.other)} == {json.dumps(public(pem)) for pem in PEMS[:2]}
    assert sorted(os.listdir(top / "state/account")) == [f"{ENTRY}.key", f"{ENTRY}.other", f"{ENTRY}.url"]


@pytest.mark.parametrize("damaged, said", [(("n",), "does not sign"), (("e",), "does not sign"), (("d", "p"), "does not sign"), (("p",), ""), (("d",), "")])
def test_a_damaged_key_is_used_where_it_signs(damaged, said):
    """Its primes are not tested at each start: a key whose signatures hold is good, by whatever way they were made; another one is refused."""
    private = serialization.load_pem_private_key(PEMS[0], None).private_numbers()
    numbers = {"n": private.public_numbers.n, "e": private.public_numbers.e, "d": private.d, "p": private.p, "q": private.q, "dp": private.dmp1,
               "dq": private.dmq1, "qi": private.iqmp}
    for name in damaged:
        numbers[name] ^= 1 << 40

    def der(tag: int, data: bytes) -> bytes:
        size = len(data)
        return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")) + data
    body = der(2, b"\0") + b"".join(der(2, number.to_bytes(number.bit_length() // 8 + 1, "big")) for number in numbers.values())
    pem = b"-----BEGIN RSA PRIVATE KEY-----\n" + base64.encodebytes(der(48, body)) + b"-----END RSA PRIVATE KEY-----\n"
    if said:
        with pytest.raises(ValueError, match=said):
            keyring.Key(pem)
        return
    signed = keyring.Key(pem).sign(b"x")
    private.public_numbers.public_key().verify(signed, b"x", padding.PKCS1v15(), hashes.SHA256())


def test_set_aside(top, config):
    """After a deactivation both keys are kept under other names, and the next account has a new one."""
    with pytest.raises(Failure):
        start(config).deactivated()
    start(config, protocol.DEACTIVATE).deactivated()
    url, left = sorted(os.listdir(top / "state/account"), reverse=True)
    assert url == f"{ENTRY}.url" and left.startswith(f"{ENTRY}.key.deactivated-") and (top / "state/account" / left).read_bytes() == PEMS[0]


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as stream:
        return [int(part) for part in stream.read().split()]

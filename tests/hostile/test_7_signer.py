"""Attacks 100 to 108: code as the issuer's network part, which wants the account key, or its word.

The part is made by the function that certdrop-issue calls: the signer is forked, then the door closes. What the attacker runs, he runs in
there, with the descriptors and the memory that the part has.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pathlib
import subprocess
from typing import Any, Iterator

import pytest
from conftest import OTHER, STATE, VICTIM, Ground, stage
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certdrop.walls import jail

CA = "https://ca.stage.test:14000"
LOG = "/var/log/certdrop/issuer.log"
PROGRAM = '''
import ctypes, json, os, resource, signal, struct, sys
sys.path.insert(0, "/usr/share/certdrop")
WITHOUT
from certdrop.issuer import orders
from certdrop.issuer.options import Options

def children():
    return [int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()]

def close_the_door(*arguments):
    pids.extend(children())
    return shut_in(*arguments)

pids, shut_in = [], orders.shut_in
orders.shut_in = close_the_door
from certdrop.config import general
network, = orders._networks(Options([], False), {general.load_config().directory_url: 1}).values()
key = network._holder
assert key.jwk() and len(pids) == 1
pid, libc = pids[0], ctypes.CDLL(None, use_errno=True)

def ok(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), "")

def find(place):
    return [open(f"{place}/{entry}", "rb").read() for entry in os.listdir(place)]

def read_memory():
    room = ctypes.create_string_buffer(64)
    local, remote = struct.pack("QQ", ctypes.addressof(room), 64), struct.pack("QQ", ctypes.addressof(room), 64)
    ok(libc.process_vm_readv(pid, local, 1, remote, 1, 0))

def duplicate():
    fd = os.pidfd_open(pid)
    ok(libc.syscall(438, fd, 3, 0))

def from_a_child(deed):
    child = os.fork()
    if child == 0:
        try:
            deed()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise OSError

DEEDS = {
    "read the files": lambda: find("/var/lib/certdrop/account"),
    "write a file": lambda: open("/var/lib/certdrop/account/x", "w"),
    "write the key": lambda: open(NAME, "wb"),
    "read the key": lambda: open(NAME, "rb").read(),
    "link the key": lambda: os.link(NAME, "/var/lib/certdrop/issuer/key"),
    "move the key": lambda: os.rename(NAME, "/var/lib/certdrop/issuer/key"),
    "move the directory": lambda: os.rename("/var/lib/certdrop/account", "/var/lib/certdrop/issuer/account"),
    "bind": lambda: open("/etc/certdrop/eab.toml").read(),
    "memory": lambda: open(f"/proc/{pid}/mem", "rb"), "maps": lambda: open(f"/proc/{pid}/maps").read(), "core file": lambda: os.listdir(f"/proc/{pid}"),
    "vm": read_memory, "vm of a child": lambda: from_a_child(read_memory), "descriptor": duplicate,
    "attach": lambda: ok(libc.ptrace(16, pid, 0, 0)), "seize": lambda: ok(libc.ptrace(0x4206, pid, 0, 0)),
    "attach from a child": lambda: from_a_child(lambda: ok(libc.ptrace(16, pid, 0, 0))),
    "core limit": lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (1 << 30, 1 << 30)),
    "signal": lambda: os.kill(pid, 0), "core": lambda: os.kill(pid, signal.SIGQUIT),
}

def attack(message):
    """A deed, or a question to the signer: what it says, "" where it refuses."""
    if message in DEEDS:
        try:
            DEEDS[message]()
        except Exception:
            return ""
        return "done"
    key._sock.send(bytes.fromhex(message))
    answer = key._sock.recv(70000)
    return answer[1:].hex() if answer[:1] == b"+" else ""

for line in sys.stdin:
    request = json.loads(line)
    NAME = request["name"]
    print(json.dumps([os.getpid(), pid, attack(request["message"])]), flush=True)
'''


class Inside:
    """The network part, taken over."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.pid, self.signer = process, 0, 0

    def tries(self, message: str | bytes) -> str:
        """Have it do or ask something: what came of it, "" for nothing."""
        assert self.process.stdin and self.process.stdout
        text = message.hex() if isinstance(message, bytes) else message
        names = [str(path) for path in pathlib.Path(f"{STATE}/account").glob("ca.stage.test-*.key")]
        self.process.stdin.write(json.dumps({"message": text, "name": (names or ["?"])[0]}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the attacker's program has ended"
        self.pid, self.signer, answer = json.loads(line)
        return str(answer)


@contextlib.contextmanager
def taken_over(without: str = "") -> Iterator[Inside]:
    path = stage.write("/usr/local/share/inside-signer.py", PROGRAM.replace("WITHOUT", without))
    process = subprocess.Popen(["/usr/bin/python3", "-I", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
                               user="_certdrop", group="_certdrop", extra_groups=[])
    try:
        yield Inside(process)
    finally:
        process.kill()
        process.communicate()
        os.unlink(path)


@pytest.fixture
def inside(ground: Ground) -> Iterator[Inside]:
    with taken_over() as found:
        yield found


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def question(payload: object, entry: str = "", url: str = f"{CA}/x", **header: object) -> bytes:
    """What is asked of the signer: a JWS for the CA, well-formed, by the account."""
    fields = {"alg": "RS256", "nonce": "n", "url": url, **(header or {"kid": f"{CA}/account/1"})}
    text = "" if payload is None else json.dumps(payload)
    return f"S{entry}\n{b64(json.dumps(fields).encode())}.{b64(text.encode())}".encode()


def der(ground: Ground, name: str) -> bytes:
    return x509.load_pem_x509_csr(ground.csr(name)).public_bytes(serialization.Encoding.DER)


def entry(ground: Ground, name: str) -> str:
    return f"{name}@{ground.next(name):04d}.csr"


def order(*names: str) -> dict[str, object]:
    return {"identifiers": [{"type": "dns", "value": name} for name in names]}


def foreign(name: str) -> bytes:
    """A CSR for our name, by the attacker's own key."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def memory_of(pid: int) -> bytes:
    """All that a process has in memory and can write, as root sees it."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            where, rights, *_ = line.split()
            begin, end = (int(part, 16) for part in where.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError):
                    memory.seek(begin)
                    found.append(memory.read(end - begin))
    return b"".join(found)


def test_100_what_the_issuer_needs(inside: Inside, ground: Ground) -> None:
    """Goal (of the issuer): have its orders signed: root's names, root's request, and what goes with them."""
    at = entry(ground, VICTIM)
    for message in (question(None), question({}), question(order(VICTIM), at), question({"csr": b64(der(ground, VICTIM))}, at)):
        assert len(inside.tries(message)) == 2 * 384


def test_101_the_file(inside: Inside, ground: Ground) -> None:
    """Goal: read the account key, or put another in its place."""
    inside.tries(question(None))
    stage.write("/etc/certdrop/eab.toml", "", 0o640)
    os.chown("/etc/certdrop/eab.toml", 0, ground.gid)
    for deed in ("read the files", "read the key", "write the key", "write a file", "link the key", "move the key", "move the directory", "bind"):
        assert inside.tries(deed) == "", deed
    os.unlink("/etc/certdrop/eab.toml")


def test_102_the_process(inside: Inside, ground: Ground) -> None:
    """Goal: read the signer's memory: by /proc, ptrace, process_vm_readv, a descriptor of its, a core; also from a process forked for it."""
    inside.tries(question(None))
    deeds = ["memory", "maps", "core file", "vm", "vm of a child", "descriptor", "attach", "seize", "attach from a child", "core limit"]
    assert [deed for deed in deeds if inside.tries(deed)] == []
    if jail.landlock_abi() >= 6:
        assert inside.tries("signal") == inside.tries("core") == ""
        assert inside.tries(question(None)), "it lives"
    with open(f"/proc/{inside.signer}/limits", encoding="ascii") as stream:
        assert any(line.split()[:5] == ["Max", "core", "file", "size", "0"] for line in stream)
    assert os.stat(f"/proc/{inside.signer}/mem").st_uid == 0, "a process that is not dumpable is root's"


def test_103_its_own_memory(inside: Inside, ground: Ground) -> None:
    """Goal: find the key in what is left of before the signer was forked. As root sees it: it was never there; the signer has it, so the search works."""
    inside.tries(question(None))
    (path,) = pathlib.Path(f"{STATE}/account").glob("ca.stage.test-*.key")
    pem = path.read_bytes()
    key: Any = serialization.load_pem_private_key(pem, None)
    numbers = key.private_numbers()
    secrets = [pem.splitlines()[4], *(number.to_bytes(192, order) for number in (numbers.p, numbers.q) for order in ("big", "little"))]
    assert [secret in memory_of(inside.pid) for secret in secrets] == [False] * 5
    assert any(secret in memory_of(inside.signer) for secret in secrets)


def test_104_orders_of_ones_own(inside: Inside, ground: Ground) -> None:
    """Goal: a certificate for a key of the attacker's, or for names that root did not post."""
    here = entry(ground, VICTIM)
    asked = [question({"csr": b64(foreign(VICTIM))}, at) for at in (here, "", "evil@0001.csr", f"../challenges/{here}")]
    others = (["evil.example.org"], [VICTIM, "evil.example.org"], [VICTIM, OTHER], [f"*.{VICTIM}"], [VICTIM, f"*.{VICTIM}"], ["*.example.org"], ["*"])
    asked += [question(order(*names), at) for names in others for at in (here, "")]
    asked += [question({"csr": b64(der(ground, VICTIM))}, entry(ground, OTHER)), question(order(VICTIM), entry(ground, OTHER)),
              question({"csr": b64(der(ground, VICTIM)), "CSR": b64(foreign(VICTIM))}, here), question({"csr": b64(der(ground, VICTIM))}, f"{VICTIM}@0001.csr")]
    ground.put("/var/spool/certdrop/challenges/evil@0001.csr", b"x")
    assert [message for message in asked if inside.tries(message)] == []


def test_105_the_account(inside: Inside, ground: Ground) -> None:
    """Goal: deactivate the account, change its key or contact, revoke a certificate, or have something signed for somebody else; each is logged."""
    size = os.stat(LOG).st_size
    leaf = x509.load_pem_x509_certificate(pathlib.Path(f"{STATE}/live/{VICTIM}/cert.pem").read_bytes()).public_bytes(serialization.Encoding.DER)
    account = f"{CA}/account/1"
    jwk = {"e": "AQAB", "kty": "RSA", "n": b64(b"\xc0" * 384)}
    change = {"protected": b64(json.dumps({"alg": "RS256", "jwk": jwk, "url": f"{CA}/key"}).encode()), "payload": "e30", "signature": "AA"}
    asked = [question({"status": "deactivated"}, url=account), question({"contact": ["mailto:evil@example.org"]}, url=account), question(change),
             *(question({"certificate": b64(leaf), **more}, at) for more in ({}, {"reason": 1}) for at in ("", entry(ground, VICTIM), f"{VICTIM}@0001.revoke")),
             question(None, url="https://evil.example.org/x"), question({"status": "deactivated"}, jwk=jwk),
             b"N", b"X", b"D", f"C{CA}/key\n{account}".encode(), b"Ehttps://evil.example.org/x", b"?" * 3000]
    assert [message for message in asked if inside.tries(message)] == []
    with open(LOG, encoding="ascii") as stream:
        stream.seek(size)
        lines = [json.loads(line) for line in stream]
    assert [line["event"] for line in lines] == ["not-signed"] * len(asked)
    assert inside.tries(question(None)), "and it goes on working"


def test_108_revocations_of_ones_own(inside: Inside, ground: Ground) -> None:
    """Goal: have a certificate revoked that root did not post, where root wants another one revoked; or that one for a worse reason."""
    leaf, other = (x509.load_pem_x509_certificate(pathlib.Path(f"{STATE}/live/{name}/cert.pem").read_bytes()).public_bytes(serialization.Encoding.DER)
                   for name in (VICTIM, OTHER))
    at = f"{OTHER}@{ground.live(OTHER):04d}.revoke"
    ground.run("certdrop", "revoke", OTHER, "--reason", "superseded", "--yes")         # the CA is not there, so it stays to be done
    wanted = {"certificate": b64(other), "reason": 4}
    asked = [question(payload, entry) for payload in ({"certificate": b64(leaf), "reason": 4}, {**wanted, "reason": 1}, {"certificate": b64(other)},
             {**wanted, "more": 1}, [wanted]) for entry in (at, "", f"{VICTIM}@{ground.live(VICTIM):04d}.revoke", f"../replies/{at}")]
    asked += [question(wanted, entry) for entry in ("", f"{VICTIM}@{ground.live(VICTIM):04d}.revoke", f"../replies/{at}", "evil@0001.revoke")]
    asked += [question(wanted, at, url="https://evil.example.org/revoke"), question(wanted, at, jwk={"e": "AQAB", "kty": "RSA", "n": b64(b"\xc0" * 384)})]
    forged = json.dumps({"payload": {"certificate": b64(leaf), "reason": 4}, "not_after": 1 << 40}).encode()
    for place in ("replies", "challenges"):
        ground.put(f"/var/spool/certdrop/{place}/{at}", forged)
        ground.put(f"/var/spool/certdrop/{place}/evil@0001.revoke", forged)
    assert [message for message in asked if inside.tries(message)] == []
    assert len(inside.tries(question(wanted, at))) == 2 * 384, "what root posted is signed"
    os.unlink(f"/var/spool/certdrop/requests/{at}")


def test_106_without_landlock(ground: Ground) -> None:
    """Goal: see what is left where the kernel has no Landlock: the file can be read, and that is said; the memory still cannot."""
    with taken_over("from certdrop.walls import jail; jail._version = lambda: (-1, 38)") as inside:
        inside.tries(question(None))
        assert inside.tries("read the key") == "done"
        assert [deed for deed in ("memory", "vm", "attach", "seize", "descriptor", "core limit") if inside.tries(deed)] == []


def test_107_a_link_to_the_key(ground: Ground) -> None:
    """Goal: have the part that is not shut in touch a key's file, by a link in the ledger's directory: its age is what a change of keys goes by."""
    with taken_over() as inside:
        inside.tries(question(None))
    (path,) = pathlib.Path(f"{STATE}/account").glob("ca.stage.test-*.key")
    os.utime(path, (1, 1))
    for entry in ("last-run", "account-looked-at", "agenda", "lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{STATE}/issuer/{entry}")
        ground.act(lambda entry=entry: os.symlink(path, f"{STATE}/issuer/{entry}"))        # type: ignore[misc]
        for _ in range(2):
            ground.run("certdrop-issue", "--cron", user="_certdrop")
        os.unlink(f"{STATE}/issuer/{entry}")
    assert path.stat().st_mtime == 1 and b"PRIVATE KEY" in path.read_bytes()

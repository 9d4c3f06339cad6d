"""The judge's real process, as the keeper starts it: what it answers, and what becomes of one that dies, hangs or babbles. As root only."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any, Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "hostile"))

import forger  # noqa: E402
from forger import Forger, pem  # noqa: E402

from certdrop import spool  # noqa: E402
from certdrop.keeper import children, judges  # noqa: E402

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process as somebody else")

LIB = pathlib.Path(judges.__file__).resolve().parents[1]
CA = Forger()
KEY = forger.new_key()
NAMES = ["example.org"]
SPKI = hashlib.sha256(KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
QUESTION = {"spki": SPKI, "names": NAMES, "spent": [], "earliest": 0}


@pytest.fixture(scope="module")
def readable() -> Iterator[pathlib.Path]:
    """A directory that every user can enter, with our code as the package installs it: the checkout may lie where no other user gets to it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as found:
        os.chmod(found, 0o755)
        for path in [LIB, *(path for path in sorted(LIB.rglob("*")) if "__pycache__" not in path.parts)]:
            copy = pathlib.Path(found, path.relative_to(LIB.parent))
            if path.is_dir():
                copy.mkdir(0o755)
            else:
                shutil.copyfile(path, copy)
                copy.chmod(0o644)
        yield pathlib.Path(found)


@pytest.fixture
def place(readable: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """That directory, with the roots, and the judge from there; it is `nobody`, for the host has no _certdrop-judge."""
    monkeypatch.setattr(judges, "USER", "nobody")
    monkeypatch.setattr(judges, "PROGRAM", str(readable / "certdrop" / "judge" / "__main__.py"))
    path = pathlib.Path(tempfile.mkdtemp(dir=readable))
    path.chmod(0o755)
    (path / "roots").write_bytes(pem(CA.stranger[0]) + pem(CA.root[0]))
    return path


def judged(place: pathlib.Path, *replies: bytes, roots: str = "roots") -> list[str | judges.Accepted]:
    """What the judge says of each: why it refuses it, or what it accepts."""
    found = judges.verdicts((str(place / roots),), [(QUESTION, reply) for reply in replies])
    return [one.reason if isinstance(one, spool.Refused) else one for one in found]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are started."""
    found: list[int] = []
    start = children.Child.__init__

    def noted(self: children.Child, *arguments: Any) -> None:
        start(self, *arguments)
        found.append(self.process.pid)
    monkeypatch.setattr(children.Child, "__init__", noted)
    return found


def test_one_process_judges_many(place: pathlib.Path, started: list[int]) -> None:
    """Good, bad and odd replies one after the other, each in a child of its own, all answered by one process."""
    leaf = CA.leaf(KEY.public_key(), NAMES)
    replies = [pem(leaf, CA.intermediate[0]), pem(CA.leaf(forger.new_key().public_key(), NAMES)), pem(leaf), forger.armour(forger.deep(3000)), b""]
    answers = judges.verdicts((str(place / "roots"),), [(QUESTION, reply) for _ in range(3) for reply in replies])
    for _ in range(3):
        accepted = next(answers)
        assert isinstance(accepted, judges.Accepted) and accepted.sha256 == leaf.fingerprint(hashes.SHA256()).hex()
        assert ["key", "untrusted", "encoding", "judge-failed"] == [str(next(answers)) for _ in replies[1:]]
    assert [] == [*answers] and 1 == len(started)


def test_what_a_judge_is(place: pathlib.Path, started: list[int]) -> None:
    """Another user, with no other group and no capability; a session, a network and a PID namespace of its own; the list, its answers, and nothing else."""
    answers = judges.verdicts((str(place / "roots"),), [(QUESTION, forger.armour(forger.deep(3000)))] * 5000)      # more than a pipe takes answers
    assert "encoding" == str(next(answers))
    pid, = started
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "Gid:\t65534\t65534\t65534\t65534" in status and "Groups:\t \n" in status
    assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status and "CapPrm:\t0000000000000000" in status
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert os.stat(f"/proc/{pid}/environ").st_uid == 0              # not dumpable: nobody of its uid may trace it
    assert os.getsid(pid) == pid
    lent = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    ours = {fd for fd, place in lent.items() if "libffi" not in place}       # libffi 3.5 keeps its file open, or memory
    assert {"0", "1", "2"} <= ours and lent["0"].startswith("/memfd:cases")
    assert all(lent[fd].startswith("pipe:") for fd in ours - {"0", "2"}), "a case's own pipe beside them"
    answers.close()
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("key", ["rsa", "dsa", "ed25519", "ed448"])
def test_every_kind_of_key_is_judged_in_the_sandbox(place: pathlib.Path, key: str) -> None:
    """Nothing is loaded late, where no file can be opened any more: a foreign kind of key is `key`, not `judge-failed`."""
    from cryptography.hazmat.primitives.asymmetric import dsa, ed448, ed25519, rsa
    made = {"rsa": lambda: rsa.generate_private_key(65537, 2048), "dsa": lambda: dsa.generate_private_key(1024),
            "ed25519": ed25519.Ed25519PrivateKey.generate, "ed448": ed448.Ed448PrivateKey.generate}[key]()
    assert ["key"] == judged(place, pem(CA.leaf(made.public_key(), NAMES), CA.intermediate[0]))


def test_names_and_uses_are_judged_in_the_sandbox(place: pathlib.Path) -> None:
    """As above, for what is parsed of extensions."""
    import ipaddress

    from cryptography import x509
    sans: list[x509.GeneralName] = [x509.DNSName("example.org"), x509.IPAddress(ipaddress.ip_address("::1")), x509.RFC822Name("a@b.example"),
                                    x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))]
    extra = [(x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.23.140.1.2.1"), ["https://cps.example"])]), False),
             (x509.AuthorityKeyIdentifier.from_issuer_public_key(CA.intermediate[1].public_key()), False),
             (x509.TLSFeature([x509.TLSFeatureType.status_request]), False),
             (x509.CRLDistributionPoints([x509.DistributionPoint([x509.UniformResourceIdentifier("http://c.example")], None, None, None)]), False),
             (x509.AuthorityInformationAccess([x509.AccessDescription(x509.ObjectIdentifier("1.3.6.1.5.5.7.48.2"),
                                                                      x509.UniformResourceIdentifier("http://i.example"))]), False)]
    first, accepted, last = judged(place, pem(CA.leaf(KEY.public_key(), NAMES, sans=sans, extra=extra), CA.intermediate[0]),
                                   pem(CA.leaf(KEY.public_key(), NAMES, extra=extra, usage=forger.usage("digital_signature")), CA.intermediate[0]),
                                   pem(CA.leaf(KEY.public_key(), [*NAMES, "ä.example".encode("idna").decode()]), CA.intermediate[0]))
    assert ("names-extra", "names-extra") == (first, last)
    assert isinstance(accepted, judges.Accepted) and accepted.not_after > accepted.not_before


def test_without_roots_there_is_no_verdict(place: pathlib.Path) -> None:
    """A file of roots that is missing, empty or no certificates: judge-failed, and nothing accepted."""
    (place / "empty").touch()
    (place / "odd").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for roots in ("none", "empty", "odd"):
        assert ["judge-failed"] == judged(place, pem(CA.leaf(KEY.public_key(), NAMES), CA.intermediate[0]), roots=roots)


def _command(pid: str) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""                                  # it is gone


@pytest.mark.parametrize("act", ["os._exit(0)", "ctypes.string_at(0)", "time.sleep(3600)", "say(b'x' * 100000)", "say(b'accept')",
                                 "say(b'accept ' + b'a' * 64 + b' 1 2 3')", "say(b'refuse nonsense')",
                                 "say(b'accept ' + b'a' * 64 + b' 1 2\\nready\\nready')",
                                 "say(bytes(range(255)))", "os.write(1, bytes([255] * 4)); time.sleep(3600)", "os.write(1, bytes(2))",
                                 "signal.signal(15, signal.SIG_IGN); time.sleep(3600)"])
def test_a_judge_that_fails_costs_one_case(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """It dies, hangs, babbles or lies out of form: that case is judge-failed, within its time, the next one has a judge again, and no process stays."""
    program = place / "failing.py"
    program.write_text(f"""import ctypes, os, signal, struct, sys, time
def say(answer):
    os.write(1, struct.pack(">I", len(answer)) + answer)
while head := os.read(0, 4):
    if os.read(0, *struct.unpack(">I", head)).endswith(b"anything"):
        {act}
    else:
        say(b"refuse key")
""")
    program.chmod(0o755)
    monkeypatch.setattr(judges, "PROGRAM", str(program))
    monkeypatch.setattr(judges, "DEADLINE", 0.5)
    assert ["judge-failed"] == judged(place, b"anything")
    assert ["judge-failed", "key"] == judged(place, b"anything", b"another")
    assert [pid for pid in filter(str.isdigit, os.listdir("/proc")) if str(place) in _command(pid)] == []


@pytest.mark.parametrize("dates", [(0, 1), (1 << 39, (1 << 39) + 1), (-1, 5)])
def test_dates_that_cannot_be_are_a_lie(monkeypatch: pytest.MonkeyPatch, dates: tuple[int, int]) -> None:
    """Accepted means valid now; whoever says otherwise would have later replies refused as replays, or this one never installed."""
    said = f"accept {'a' * 64} {dates[0]} {dates[1]} {'b' * 64} {'c' * 64}".encode()
    monkeypatch.setattr(children, "answers", lambda *arguments: (re.fullmatch(arguments[2], said) for _ in range(1)))
    assert ["judge-failed"] == judged(pathlib.Path("/"), b"")


def test_a_judge_that_lacks_something_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot load is nobody's fault: the run says so, and the reply is judged by the next."""
    monkeypatch.setattr(children, "answers", lambda *arguments: (re.fullmatch(arguments[2], b"lacks No module named 'OpenSSL'") for _ in range(1)))
    with pytest.raises(OSError, match="the judge cannot load what it needs: No module named 'OpenSSL'"):
        judged(pathlib.Path("/"), b"")

"""The judge's real process, as the keeper starts it: what it answers, and what becomes of one that dies, hangs or babbles. As root only."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "hostile"))

import forger  # noqa: E402
from forger import Forger, pem  # noqa: E402

from certdrop import spool  # noqa: E402
from certdrop.keeper import judges  # noqa: E402

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
    monkeypatch.setattr(judges, "__file__", str(readable / "certdrop" / "keeper" / "judges.py"))
    path = pathlib.Path(tempfile.mkdtemp(dir=readable))
    path.chmod(0o755)
    (path / "roots").write_bytes(pem(CA.stranger[0]) + pem(CA.root[0]))
    return path


def reason(judge: judges.Judge, reply: bytes) -> str:
    with pytest.raises(spool.Refused) as caught:
        judges.ask_chain(judge, QUESTION, reply)
    return caught.value.reason


def test_one_process_judges_many(place: pathlib.Path) -> None:
    """Good, bad and odd replies one after the other, each in a child of its own, all answered by one process."""
    with judges.Judge("chain", str(place / "roots")) as judge:
        leaf = CA.leaf(KEY.public_key(), NAMES)
        for _ in range(3):
            accepted = judges.ask_chain(judge, QUESTION, pem(leaf, CA.intermediate[0]))
            assert accepted.sha256 == leaf.fingerprint(hashes.SHA256()).hex()
            assert judge.process
            pid = judge.process.pid
            assert reason(judge, pem(CA.leaf(forger.new_key().public_key(), NAMES))) == "key"
            assert reason(judge, pem(leaf)) == "untrusted"
            assert reason(judge, forger.armour(forger.deep(3000))) == "encoding"
            assert reason(judge, b"") == "judge-failed"
            assert judge.process and judge.process.pid == pid
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "Gid:\t65534\t65534\t65534\t65534" in status and "Groups:\t \n" in status
        assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status and "CapPrm:\t0000000000000000" in status
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0              # not dumpable: nobody of its uid may trace it
        assert os.getsid(pid) == pid
        lent = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert {fd for fd, place in lent.items() if "libffi" not in place} == {"0", "1", "2"}    # libffi 3.5 keeps its file open, or memory


@pytest.mark.parametrize("key", ["rsa", "dsa", "ed25519", "ed448"])
def test_every_kind_of_key_is_judged_in_the_sandbox(place: pathlib.Path, key: str) -> None:
    """Nothing is loaded late, where no file can be opened any more: a foreign kind of key is `key`, not `judge-failed`."""
    from cryptography.hazmat.primitives.asymmetric import dsa, ed448, ed25519, rsa
    made = {"rsa": lambda: rsa.generate_private_key(65537, 2048), "dsa": lambda: dsa.generate_private_key(1024),
            "ed25519": ed25519.Ed25519PrivateKey.generate, "ed448": ed448.Ed448PrivateKey.generate}[key]()
    with judges.Judge("chain", str(place / "roots")) as judge:
        assert reason(judge, pem(CA.leaf(made.public_key(), NAMES), CA.intermediate[0])) == "key"


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
    with judges.Judge("chain", str(place / "roots")) as judge:
        assert reason(judge, pem(CA.leaf(KEY.public_key(), NAMES, sans=sans, extra=extra), CA.intermediate[0])) == "names-extra"
        accepted = judges.ask_chain(judge, QUESTION, pem(CA.leaf(KEY.public_key(), NAMES, extra=extra, usage=forger.usage("digital_signature")),
                                                         CA.intermediate[0]))
        assert accepted.not_after > accepted.not_before
        assert reason(judge, pem(CA.leaf(KEY.public_key(), [*NAMES, "ä.example".encode("idna").decode()]), CA.intermediate[0])) == "names-extra"


def test_without_roots_there_is_no_verdict(place: pathlib.Path) -> None:
    """A file of roots that is missing, empty or no certificates: judge-failed, and nothing accepted."""
    (place / "empty").touch()
    (place / "odd").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for roots in ("none", "empty", "odd"):
        with judges.Judge("chain", str(place / roots)) as judge:
            assert reason(judge, pem(CA.leaf(KEY.public_key(), NAMES), CA.intermediate[0])) == "judge-failed"


def _command(pid: str) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""                                  # it is gone


@pytest.mark.parametrize("act", ["os._exit(0)", "os.kill(os.getpid(), 11)", "time.sleep(3600)", "print('x' * 100000, flush=True)",
                                 "print('accept', flush=True)",
                                 "print('ready', flush=True); os.read(0, 10); print('accept ' + 'a' * 64 + ' 1 2 3', flush=True)",
                                 "print('ready', flush=True); os.read(0, 10); print('refuse nonsense', flush=True)",
                                 "print('ready', flush=True); os.read(0, 10); print('accept ' + 'a' * 64 + ' 1 2\\nready\\nready', flush=True)",
                                 "print('ready', flush=True); os.read(0, 10); sys.stdout.buffer.write(bytes(range(255)) + b'\\n'); sys.stdout.flush()",
                                 "signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(3600)"])
def test_a_judge_that_fails_costs_one_case(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """It dies, hangs, babbles or lies out of form: that case is judge-failed, within its time, and no process stays."""
    program = place / "lib" / "judge" / "__main__.py"
    program.parent.mkdir(parents=True)
    (place / "lib" / "keeper").mkdir()
    program.write_text(f"import os, signal, sys, time\n{act}\n")
    for path in (place / "lib", program.parent, program):
        os.chmod(path, 0o755)
    monkeypatch.setattr(judges, "__file__", str(place / "lib" / "keeper" / "judges.py"))
    monkeypatch.setattr(judges, "DEADLINE", 0.5)
    with judges.Judge("chain", str(place / "roots")) as judge:
        assert reason(judge, b"anything") == "judge-failed"
    assert judge.process is None
    assert [pid for pid in filter(str.isdigit, os.listdir("/proc")) if str(place) in _command(pid)] == []


@pytest.mark.parametrize("dates", [(0, 1), (1 << 39, (1 << 39) + 1), (-1, 5)])
def test_dates_that_cannot_be_are_a_lie(monkeypatch: pytest.MonkeyPatch, dates: tuple[int, int]) -> None:
    """Accepted means valid now; whoever says otherwise would have later replies refused as replays, or this one never installed."""
    judge = judges.Judge("chain", "roots")
    monkeypatch.setattr(judge, "ask", lambda *parts: f"accept {'a' * 64} {dates[0]} {dates[1]} {'b' * 64} {'c' * 64}")
    assert reason(judge, b"") == "judge-failed"

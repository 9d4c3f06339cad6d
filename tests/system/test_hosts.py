"""Hosts as administrators have them: what is laid in certdrop's way, and what it says of it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Iterator

import pytest
from conftest import Host

MARK = pathlib.Path("/tmp/their-python-ran")
PROGRAMS = {"certdrop": ("rotate", "--due"), "certdrop-install": (), "certdrop-issue": ("--plan",), "certdrop-account": ("show",), "certdrop-status": (),
            "certdrop-watch": ("--check",), "certdrop-check": (), "certdrop-import": (), "certdrop-nginx": ("their.example.org",)}


@pytest.fixture(scope="module")
def theirs(session_host: Host) -> Iterator[Host]:
    """An administrator's Python: packages of pip's that cannot be loaded, a sitecustomize and a .pth that say who ran them, and a hostile environment."""
    host = session_host
    host.add("their.example.org")
    place = pathlib.Path(f"/usr/local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/dist-packages")
    place.mkdir(parents=True, exist_ok=True)
    before = set(place.iterdir())
    mark = f"import os; open({str(MARK)!r}, 'a').write(str(os.getuid()) + ' ' + open('/proc/self/cmdline').read() + '\\n')"
    for name in ("sitecustomize", "usercustomize"):
        (place / f"{name}.py").write_text(mark + "\n")
    (place / "own.pth").write_text(mark + "\n")
    for name in ("cryptography", "OpenSSL", "structlog", "seccomp", "idna", "dns", "acme_tiny", "certdrop"):
        (place / name).mkdir(exist_ok=True)
        (place / name / "__init__.py").write_text("raise ImportError('pip has broken this')\n")
    (place / "structlog-21.1.0.dist-info").mkdir()
    (place / "structlog-21.1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: structlog\nVersion: 21.1.0\n")
    MARK.write_text("")
    MARK.chmod(0o666)
    yield host
    for path in set(place.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    MARK.unlink()


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_their_python_is_not_ours(theirs: Host, program: str) -> None:
    """Every program runs on Debian's packages alone, by root and by anybody; nothing of the administrator's own is loaded."""
    control = subprocess.run(["/usr/bin/python3", "-c", ""], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert control.returncode == 0 and MARK.read_text(), "this test has no bait"
    MARK.write_text("")
    (path,) = [found for found in (f"/usr/sbin/{program}", f"/usr/bin/{program}") if os.path.exists(found) and not os.path.islink(found)]
    hostile = {**os.environ, "PYTHONPATH": "/usr/local/lib", "PYTHONSTARTUP": "/usr/local/own.py", "PYTHONHOME": "/nonexistent", "PYTHONINSPECT": "1"}
    for user in ("", "_certdrop", "_certdrop-watch", "nobody"):
        done = theirs.run(path, *PROGRAMS[program], user=user, env=hostile) if user != "nobody" else \
            theirs.run(path, "--help", env=hostile, preexec_fn=lambda: os.setuid(65534))
        assert "Traceback" not in done.text and "pip has broken" not in done.text and "21.1.0" not in done.text, (user, done)
        assert done.code in (0, 1, os.EX_NOPERM, os.EX_CONFIG), (user, done)
    assert MARK.read_text() == ""


def test_a_renewal_beside_it(theirs: Host) -> None:
    """From cron's line to the handshake."""
    done = theirs.run("certdrop", "renew", "--force", "their.example.org", code=0)
    assert "installed, and served" in done.text and MARK.read_text().count("certdrop") == 0


def test_the_doctor_is_where_a_users_path_leads(host: Host) -> None:
    """Anyone may run it, so it is found without /usr/sbin; and by its old name."""
    path = {**os.environ, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = host.run("certdrop-check", "--version", env=path, code=0)
    assert done.text.startswith("certdrop-check ") and os.path.realpath("/usr/sbin/certdrop-check") == "/usr/bin/certdrop-check"


@pytest.fixture
def elsewhere(host: Host) -> Iterator[str]:
    """An nginx of the administrator's own, and none of Debian's: services.d/nginx.toml says where."""
    path, described = "/opt/own/sbin/nginx", pathlib.Path("/etc/certdrop/services.d/nginx.toml")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy2("/usr/sbin/nginx", path)
    name, before = host.add(host.name()), described.read_text()
    described.write_text(before.replace("/usr/sbin/nginx", path))
    os.rename("/usr/sbin/nginx", "/usr/sbin/nginx.debian")
    yield name
    os.rename("/usr/sbin/nginx.debian", "/usr/sbin/nginx")
    described.write_text(before)


def test_nginx_elsewhere(host: Host, elsewhere: str) -> None:
    """Every program asks services.d: the doctor finds it, blocks are printed for it, and it is renewed."""
    done = host.run("certdrop-check", elsewhere)
    assert "apt install nginx" not in done.text and "failed  nginx" not in done.text and "ok      nginx: version" in done.text, done
    assert "server_name" in host.run("certdrop-nginx", elsewhere, code=0).text
    assert "installed, and served" in host.run("certdrop", "renew", "--force", elsewhere, code=0).text
    host.run("certdrop-import", code=0)
    os.rename("/opt/own/sbin/nginx", "/opt/own/sbin/away")
    try:
        done = host.run("certdrop-check", elsewhere)
        assert "see test in /etc/certdrop/services.d/nginx.toml" in done.text and "apt install nginx" not in done.text, done
    finally:
        os.rename("/opt/own/sbin/away", "/opt/own/sbin/nginx")


@pytest.mark.parametrize("text", ["", 'test = ["/usr/sbin/nginx", "-t', "test = 5\n", 'tests = ["/usr/sbin/nginx"]\n', "\0"])
def test_a_service_that_is_described_badly(host: Host, text: str) -> None:
    """An empty or cut-short services.d/nginx.toml: each program says so, or goes on without; none dies."""
    name, path = host.add(host.name()), pathlib.Path("/etc/certdrop/services.d/nginx.toml")
    before = path.read_text()
    path.write_text(text)
    try:
        for program, *argv in (("certdrop-status",), ("certdrop-status", "--nagios"), ("certdrop-check",), ("certdrop-watch",), ("certdrop-install",)):
            done = host.run(program, *argv)
            assert "Traceback" not in done.text and "internal error" not in done.text, (program, done)
        done = host.run("certdrop", "renew", "--force", name)
        assert done.code and str(path) in done.text, done
        assert f"failed  configuration: {path}: " in host.run("certdrop-check", name).text
    finally:
        path.write_text(before)
    host.run("certdrop-install", code=0)

"""sudo for real: the issuer may have one command run as root, without arguments, and whatever else it hands over is refused or harmless."""

from __future__ import annotations

import os
import pathlib
import re
import resource
import signal
import subprocess

import pytest
from conftest import Host

INSTALL = "/usr/sbin/certdrop-install"


def sudo(host: Host, *argv: str, **more: object) -> tuple[int, str]:
    """`sudo -n ...` as _certdrop."""
    done = host.run("/usr/bin/sudo", "-n", *argv, user="_certdrop", **more)
    return done.code, done.text


def test_the_file_is_as_sudo_wants_it(host: Host) -> None:
    """Syntax, owner and mode of the installed file pass sudo's own strict check."""
    host.run("/usr/sbin/visudo", "-c", "-s", "-O", "-P", "-f", "/etc/sudoers.d/certdrop", code=0)
    listed = host.run("/usr/bin/sudo", "-n", "-l", "-U", "_certdrop", code=0).text
    assert [line.strip() for line in listed.splitlines() if "NOPASSWD" in line] == [f'(root) NOPASSWD: {INSTALL} ""']


def test_the_one_command_runs(host: Host) -> None:
    """Without arguments it runs, quietly, and ends well."""
    assert sudo(host, INSTALL) == (0, "")


@pytest.mark.parametrize("argv", [
    [INSTALL, "--help"], [INSTALL, "example.org"], [INSTALL, ""], ["/usr/sbin/certdrop", "rotate", "--all"], ["/usr/sbin/certdrop-issue"],
    ["/bin/sh"], ["-s"], ["-i"], ["-u", "_certdrop-judge", INSTALL], ["-u", "nobody", INSTALL], ["-g", "root", INSTALL],
    ["/tmp/certdrop-install"], ["-e", "/etc/shadow"],
    ["/usr/bin/python3", INSTALL], ["-E", INSTALL], ["PYTHONPATH=/tmp", INSTALL], ["LD_PRELOAD=/tmp/x.so", INSTALL], ["-C", "100", INSTALL],
    ["-D", "/tmp", INSTALL], ["-R", "/tmp", INSTALL], ["-b", "/bin/sh"]])
def test_everything_else_is_refused(host: Host, argv: list[str]) -> None:
    """Another verb, another path, another user, an argument (even an empty one), the environment: not allowed."""
    code, text = sudo(host, *argv)
    assert code == 1, (code, text)


def hostile_modules(tmp: str) -> None:
    """Modules that would tell on themselves, were they imported by root."""
    os.makedirs(tmp, exist_ok=True)
    for module in ("certdrop", "json", "subprocess", "sitecustomize", "usercustomize", "os", "re"):
        with open(f"{tmp}/{module}.py", "w") as stream:
            stream.write(f"open('/tmp/hostile-ran', 'w').write('{module}')\n")
    os.chmod(tmp, 0o755)


def test_the_environment_is_harmless(host: Host) -> None:
    """Whatever is in the caller's environment and directory, root imports only its own."""
    hostile_modules("/tmp/hostile")
    environment = {"PYTHONPATH": "/tmp/hostile", "PYTHONHOME": "/tmp/hostile", "PYTHONSTARTUP": "/tmp/hostile/os.py", "PYTHONUSERBASE": "/tmp/hostile",
                   "PYTHONINSPECT": "1", "PATH": "/tmp/hostile:/usr/bin", "HOME": "/tmp/hostile", "LC_ALL": "/tmp/hostile", "OPENSSL_CONF": "/tmp/hostile/x",
                   "SSL_CERT_FILE": "/tmp/hostile/x", "SUDO_USER": "root", "PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1", "TMPDIR": "/tmp/hostile"}
    assert sudo(host, INSTALL, env=environment, cwd="/tmp/hostile") == (0, "")
    assert not os.path.exists("/tmp/hostile-ran")


def test_ignored_signals_hide_nothing(host: Host) -> None:
    """With SIGCHLD ignored by the caller, a failing service is still seen to fail."""
    name = host.add(host.name())
    before = host.live(name)
    host.run("certdrop", "rotate", "--next", name, code=0)
    host.run("certdrop-issue", "--no-install", "--force", name, code=0)
    with open("/etc/nginx/conf.d/broken.conf", "w") as stream:
        stream.write("bogus;\n")
    try:
        def ignore() -> None:
            for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
        os.utime(f"/var/lib/certdrop/keeper/{name}.json")
        code, text = sudo(host, INSTALL, preexec_fn=ignore)
        assert host.live(name) == before
        assert code in (0, os.EX_TEMPFAIL) and text == ""
    finally:
        os.unlink("/etc/nginx/conf.d/broken.conf")


@pytest.mark.parametrize("limit,value", [("NOFILE", 10), ("FSIZE", 0), ("CPU", 1), ("NPROC", 60), ("CORE", 0), ("STACK", 1 << 20)])
def test_tiny_limits_hurt_nobody(host: Host, limit: str, value: int) -> None:
    """Root sets its own limits: the caller's stop neither the run nor what it starts. Where root may not
    (a container), it is 75, logged, and the next run is well."""
    code, text = sudo(host, INSTALL, preexec_fn=lambda: resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value)))
    capabilities = re.findall(r"CapEff:\t([0-9a-f]+)", pathlib.Path("/proc/self/status").read_text())[0]
    may_raise = int(capabilities, 16) >> 24 & 1                    # CAP_SYS_RESOURCE
    assert (code, text) == (0, "") or (not may_raise and (code, text) == (os.EX_TEMPFAIL, ""))
    host.run(INSTALL, code=0)


def test_the_work_goes_on_when_sudo_is_killed(host: Host) -> None:
    """Killing sudo, as its caller may, does not kill an installation that has begun."""
    name = host.add(host.name())
    number = host.next(name)
    host.run("certdrop", "rotate", "--next", name, code=0)
    host.run("certdrop-issue", "--no-install", "--force", name, code=0)
    process = subprocess.Popen(["/usr/bin/sudo", "-n", INSTALL], user="_certdrop", group="_certdrop", extra_groups=[], stdin=subprocess.DEVNULL)
    process.kill()
    process.wait()
    host.run(INSTALL, code=0)
    assert host.live(name) > number and host.served(name) == host.on_disk(name)

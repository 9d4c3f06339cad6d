"""Hosts as administrators have them: what is laid in certdrop's way, and what it says of it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Iterator

import pytest
from between import Between
from conftest import STATE, Host

import world as stage

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


# ---- a clone of the host, with the same account

@contextmanager
def on_a_clone(host: Host) -> Iterator[None]:
    """What is done here is done on a clone: the account's files are then as they were."""
    for part in ("account", "issuer"):
        shutil.copytree(f"{STATE}/{part}", f"/root/{part}")
    yield
    for part, pattern in (("account", "*"), ("issuer", "account@*")):
        for path in pathlib.Path(f"{STATE}/{part}").glob(pattern):
            path.unlink()
        for path in pathlib.Path(f"/root/{part}").glob(pattern):
            shutil.copy(path, f"{STATE}/{part}/{path.name}")
            shutil.chown(f"{STATE}/{part}/{path.name}", "_certdrop", "_certdrop")
        shutil.rmtree(f"/root/{part}")


def account(host: Host) -> str:
    found = re.search(r"^account: +(https://\S+)$", host.run("certdrop-account", "show").text, re.M)
    assert found
    return found[1]


def asked_for(host: Host, between: Between) -> list[dict[str, Any]]:
    """The payloads that newAccount got."""
    return [payload for path, payload in between.payloads if "sign-me-up" in path]


@pytest.mark.parametrize("word", ["as Pebble says it", "accountDoesNotExist", "unauthorized", "malformed"])
def test_a_clone_changed_the_accounts_key(host: Host, between: Between, word: str) -> None:
    """Nothing makes another account by itself, neither an order nor a check: a CAA record may name this one. What happened and what to do is said by all
    who speak of the site; the live certificate stays. An administrator's word makes another, and then it is said which record to change."""
    name = host.add(host.name())
    before, served = account(host), host.served(name)
    with on_a_clone(host):
        host.run("certdrop-account", "rollover", code=0)
    if word in ("accountDoesNotExist", "unauthorized", "malformed"):
        between.odd["order-plz"] = [(401 if word == "unauthorized" else 400, word, {})]
    for argv in (["certdrop-issue", "--force", "--no-install", name], ["certdrop-check", name], ["certdrop-issue", "--force", "--no-install", name],
                 ["certdrop-account", "show"], ["certdrop-issue", "--cron", "--no-install"]):
        host.run(*argv)
    assert asked_for(host, between)[1:] == [{"onlyReturnExisting": True}] * (len(asked_for(host, between)) - 1) and host.served(name) == served
    words = (before, "a clone of this host", "sudo certdrop-account register")
    error = host.status(name)["last_error"]
    assert host.status(name)["state"] == "failing" and all(one in error for one in (*words, "accounturi")), error
    checked = next(line for line in host.run("certdrop-check", name).text.splitlines() if line.startswith("failed  account: "))
    assert all(one in checked for one in words), checked
    nagios = host.run("certdrop-status", "--nagios", name)
    assert nagios.code in (1, 2) and "the CA knows no account" in nagios.text and "sudo certdrop-account register" in nagios.text, nagios
    assert "register" in host.run("certdrop-status", name).text
    shown = host.run("certdrop-account", "show", code=os.EX_DATAERR).text
    assert all(one in shown for one in words), shown
    done = host.run("certdrop-account", "register", "--yes", code=0).text
    after = account(host)
    assert before != after and f"in place of {before}; a CAA record with accounturi={before} forbids that" in done and f"accounturi={after};" in done, done
    told = [json.loads(line) for line in stage.read("/var/log/certdrop/issuer.log").splitlines() if "account-replaced" in line][-1]
    assert (told["account"], told["before"]) == (after, before)
    between.odd["order-plz"] = [(403, "caa", {})] * 2
    done = host.run("certdrop-issue", "--force", "--no-install", name)
    assert done.code == 65, [line for _, line in between.asked[-20:]]
    error = host.status(name)["last_error"]
    assert f"accounturi={before} forbids that: certdrop-account show prints the new record" in error and "caa: said by" in error
    between.odd.clear()
    assert "installed, and served" in host.run("certdrop", "renew", "--force", name, code=0).text


def test_the_clones_key_is_put_here(host: Host, between: Between) -> None:
    """The other way out: the account stays, and so do the CAA records."""
    name = host.add(host.name())
    before = account(host)
    (place,) = pathlib.Path(f"{STATE}/account").glob("between*.key")
    with on_a_clone(host):
        host.run("certdrop-account", "rollover", code=0)
        clones = place.read_bytes()
    host.run("certdrop-issue", "--force", "--no-install", name, code=65)
    place.write_bytes(clones)
    assert "installed, and served" in host.run("certdrop", "renew", "--force", name, code=0).text
    assert account(host) == before


def test_a_clone_deactivated_the_account(host: Host, between: Between) -> None:
    """It is said what the account is, and what to do; and that helps."""
    name = host.add(host.name())
    before = account(host)
    with on_a_clone(host):
        host.run("certdrop-account", "deactivate", "--yes", code=0)
    host.run("certdrop-issue", "--force", "--no-install", name)
    error = host.status(name)["last_error"]
    assert f"the account {before} is deactivated" in error and "sudo certdrop-account deactivate" in error, error
    host.run("certdrop-account", "deactivate", "--yes", code=0)
    text = host.run("certdrop-issue", "--force", "--no-install", name, code=0).text
    assert account(host) != before and f"accounturi={before}" in text


# ---- what keeps a principal from its work

MOUNTED = "/root/state"


@contextmanager
def read_only(host: Host, path: str = STATE) -> Iterator[None]:
    """A directory's file system takes no writes any more, as after an error."""
    shutil.rmtree(MOUNTED, ignore_errors=True)
    host.run("cp", "-a", path, MOUNTED, code=0)
    host.run("mount", "-t", "tmpfs", "-o", "mode=755", "state", path, code=0)
    try:
        host.run("cp", "-a", f"{MOUNTED}/.", path, code=0)
        host.run("mount", "-o", "remount,ro", path, code=0)
        yield
    finally:
        host.run("umount", path, code=0)


def nagios(host: Host) -> str:
    return host.run("certdrop-status", "--nagios").text


def aged(path: str, hours: float) -> None:
    """A stamp as it will be in so many hours."""
    moment = time.time() - hours * 3600
    os.utime(path, (moment, moment))


def test_a_state_that_is_read_only(host: Host) -> None:
    """Is seen by looking: by status in all forms and by mail, once; and no more when it can be written."""
    name = host.add(host.name())
    host.run("certdrop-watch", user="_certdrop-watch", code=0)
    words = f"{STATE} is read-only: nothing can be renewed"
    assert words not in nagios(host)
    aged(f"{STATE}/watcher/state.json", 1)
    with open(f"{STATE}/watcher/state.json", encoding="ascii") as stream:
        noted = {**json.load(stream), "ran": int(time.time()) - 3600}
    stage.write(f"{STATE}/watcher/state.json", json.dumps(noted))
    shutil.chown(f"{STATE}/watcher/state.json", "_certdrop-watch", "_certdrop-watch")
    before = len(host.world.mail.messages())
    with read_only(host):
        assert words in nagios(host) and nagios(host).startswith("CERTDROP CRITICAL")
        assert f"certdrop-status: {words}" in host.run("certdrop-status", code=2).text and words in host.status(name)["host"]
        for program, user in (("certdrop-install", ""), ("certdrop-issue", "_certdrop")):
            done = host.run(program, *["--cron"] * bool(user), user=user, code=75)
            assert done.text == "", done
        host.run("certdrop-watch", user="_certdrop-watch", code=0)
        (mail,) = host.world.mail.messages()[before:]
        assert words in mail.subject and "dmesg" in mail.body
    assert words not in nagios(host) and not host.status(name)["host"]


def test_noexec_in_sudoers(host: Host) -> None:
    """The run that sudo starts may start nothing: no reply is refused for it, what is to be done is said, root's own run installs, and the advice helps."""
    name = host.add(host.name())
    host.run("certdrop", "rotate", "--next", name, code=0)
    number = host.next(name)
    stage.write("/etc/sudoers.d/zz-hardened", "Defaults noexec\n", 0o440)
    try:
        os.utime(f"{STATE}/keeper/{name}.json")
        notes = json.loads(stage.read(f"{STATE}/keeper/{name}.json"))
        stage.write(f"{STATE}/keeper/{name}.json", json.dumps({**notes, "installed_at": 0}))
        host.run("certdrop-issue", "--force", name, code=0)
        assert host.live(name) < number and not host.status(name)["last_error"]
        told = host.run("certdrop-status").text
        assert "Defaults:_certdrop !noexec" in told and "Defaults:_certdrop !noexec" in nagios(host), told
        host.run("certdrop-install", code=0)
        assert host.live(name) == number and host.served(name) == host.on_disk(name)
        (line,) = re.findall(r"put into sudoers: (\S+ \S+)[;)]", host.run("certdrop-status").text)
        stage.write("/etc/sudoers.d/zz-hardened", f"Defaults noexec\n{line}\n", 0o440)
        (command,) = re.findall(r"\(to try it: (.*?)\)", told)
        host.run("/bin/sh", "-c", command, code=0)
        assert "noexec" not in host.run("certdrop-status").text
    finally:
        os.unlink("/etc/sudoers.d/zz-hardened")
    host.run("certdrop", "remove", name)


def test_runs_that_stop_at_once(host: Host) -> None:
    """A directory is gone: after hours of that, it is not called silence of cron's, and it is over with the next good run."""
    name = host.add(host.name())
    host.run("certdrop-install", code=0)
    os.rename("/var/spool/certdrop/replies", "/var/spool/certdrop/replies.away")
    try:
        host.run("certdrop-install", code=75)
        host.run("certdrop-issue", "--cron", user="_certdrop", code=75)
        told = host.run("certdrop-status").text
        assert "the keeper's last run did nothing: " in told and "replies" in told and "the issuer's last run did nothing: " in told, told
        for who in ("keeper", "issuer"):
            aged(f"{STATE}/{who}/last-run", 7)
        told = host.run("certdrop-status").text
        assert "it should run every" not in told
        before = len(host.world.mail.messages())
        host.run("certdrop-watch", user="_certdrop-watch", code=0)
        (mail,) = host.world.mail.messages()[before:]
        assert "the keeper does nothing: each of its runs stops early" in mail.body and "the issuer does nothing" in mail.body
        assert "cron" not in mail.body.split("The last lines")[0]
    finally:
        os.rename("/var/spool/certdrop/replies.away", "/var/spool/certdrop/replies")
    host.run("certdrop-install", code=0)
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    assert "did nothing" not in host.run("certdrop-status").text and not host.status(name)["host"]


def tick(host: Host, who: str) -> str:
    """What cron would mail of a run."""
    if who == "keeper":
        return host.run("certdrop-install", code=0).text
    return host.run("certdrop-issue", "--cron", user="_certdrop", code=0).text


def test_each_tells_of_the_others(host: Host) -> None:
    """Root's hourly run and the issuer's say once a day who was not seen to run; not on the first day, nor where the host slept."""
    host.add(host.name())
    daily = {"keeper": f"{STATE}/keeper/silence", "issuer": f"{STATE}/issuer/account-looked-at"}
    stamps = {"keeper": f"{STATE}/keeper/last-run", "issuer": f"{STATE}/issuer/last-run", "watcher": f"{STATE}/watcher/state.json"}
    host.run("certdrop-watch", user="_certdrop-watch", code=0)
    for who, stamp in daily.items():
        if os.path.exists(stamp):
            os.unlink(stamp)
        others = [other for other in stamps if other != who]
        seen = {other: os.path.dirname(stamps[other]) if who == "keeper" else stamps[other] for other in others}       # root looks for no name there
        for other in others:
            aged(seen[other], 40)
        assert tick(host, who) == "", "the first day"
        assert tick(host, who) == ""
        aged(stamp, 24.5)
        for other in others:
            aged(seen[other], 25)
        assert tick(host, who) == "", "seen"
        aged(stamp, 40)
        for other in others:
            aged(seen[other], 40)
        assert tick(host, who) == "", "the host slept"
        aged(stamp, 24.5)
        text = tick(host, who)
        assert [line for line in text.splitlines() if "was not seen to run for more than a day" in line] == text.splitlines() != []
        assert sorted(re.findall(r": the (\w+) was not seen", text)) == sorted(others), text
        assert tick(host, who) == "", "told today"
        aged(stamp, 24.5)
        os.unlink(stamps["watcher"])
        if who == "keeper":
            aged(seen["watcher"], 40)
        for other in others:
            if other != "watcher":
                os.utime(seen[other])
        assert re.findall(r": the (\w+) was not seen", tick(host, who)) == ["watcher"], "it never ran"
        host.run("certdrop-watch", user="_certdrop-watch", code=0)
    assert '"not-seen-to-run"' in stage.read("/var/log/certdrop/issuer.log")


# ---- half an upgrade

DPKG = ("/var/lib/dpkg/updates", "/var/lib/dpkg/info", "/var/lib/dpkg/status")
LIBRARY = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
DIST = "/usr/lib/python3/dist-packages"


@contextmanager
def lacking(host: Host, path: str) -> Iterator[None]:
    """A module, or all that is in a package, is not there, as while apt replaces it."""
    if os.path.isdir(path):
        host.run("mount", "-t", "tmpfs", "none", path, code=0)
    else:
        os.rename(path, path + ".dpkg-tmp")
    try:
        yield
    finally:
        host.run("umount", path, code=0) if os.path.isdir(path) else os.rename(path + ".dpkg-tmp", path)


def dpkg(at_work: bool) -> None:
    """dpkg changed something just now; or days ago."""
    moment = time.time() - (0 if at_work else 3 * 86400)
    for path in DPKG:
        os.utime(path, (moment, moment))


def half(name: str) -> str:
    """Where a module lies."""
    places = (f"{LIBRARY}/lib-dynload", f"{name}.cpython-*-linux-gnu.so"), (DIST, name), (DIST, f"{name}.py")
    return str(next(found for place, pattern in places for found in pathlib.Path(place).glob(pattern)))


@pytest.mark.parametrize("module", ["_ctypes", "_ssl", "cryptography", "OpenSSL", "structlog", "acme_tiny"])
def test_half_an_upgrade(host: Host, module: str) -> None:
    """Whatever is missing, and wherever it is loaded: a line that names it, 75, nobody's refusal; nothing in cron's mail while dpkg is at work.

    When it is back, the next runs renew.
    """
    name = host.add(host.name())
    before, ledger = host.live(name), f"{STATE}/issuer/{name}.json"
    with lacking(host, half(module)):
        dpkg(at_work=False)
        for program, argv in PROGRAMS.items():
            done = host.run(program, *(name if word == "their.example.org" else word for word in argv))
            assert "Traceback" not in done.text and "internal error" not in done.text, done
            assert done.code in (0, 1, 2, os.EX_TEMPFAIL, os.EX_CONFIG * (program == "certdrop-check")), (program, done)
            if done.code == os.EX_TEMPFAIL and (done.text or program != "certdrop-install"):       # root's run leaves to the next what waits, and says nothing
                assert module.partition(".")[0] in done.text and done.text.count("\n") <= 2, (program, done)
        host.run("certdrop", "rotate", "--next", name)
        for at_work in (False, True):
            dpkg(at_work)
            done = host.run("certdrop-issue", "--force", name, "--no-install", user="_certdrop")
            assert done.code in (0, os.EX_TEMPFAIL) and "Traceback" not in done.text, done
            assert (done.text == "") if at_work or not done.code else module in done.text, (at_work, done)
        with open(ledger, encoding="ascii") as stream:
            assert "count" not in json.load(stream)
    dpkg(at_work=False)
    host.run("certdrop", "rotate", "--next", name, code=0)
    host.run("certdrop-issue", "--force", name, "--no-install", code=0)
    number = host.next(name)
    with lacking(host, half(module)):
        for at_work in (False, True):
            dpkg(at_work)
            done = host.run("certdrop-install")
            assert done.code in (0, os.EX_TEMPFAIL) and "Traceback" not in done.text, done
            assert not at_work or done.text == "", done
    with open(f"{STATE}/keeper/{name}.json", encoding="ascii") as stream:
        notes = json.load(stream)
    assert not notes["refused"] and not notes["install"], notes
    host.run("certdrop-issue", "--cron", user="_certdrop", code=0)
    host.run("certdrop-install", code=0)
    assert host.live(name) == number > before and host.served(name) == host.on_disk(name) and host.status(name)["state"] == "serving"


def test_the_signer_cannot_load_what_it_needs(host: Host) -> None:
    """It is said what, not that the signer ended."""
    host.add(host.name())
    dpkg(at_work=False)
    with lacking(host, half("cryptography")):
        done = host.run("certdrop-account", "show", code=os.EX_TEMPFAIL)
    assert "cryptography" in done.text and "the signer has ended" not in done.text, done

"""Attacks 50 to 69: what the issuer can do with its one command, sudo certdrop-install, and with what a caller hands on."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import resource
import signal
import subprocess
import threading
import time
from typing import Any, Callable

import pytest
from conftest import OTHER, PLAYGROUND, REPLIES, STATE, VICTIM, Ground, stage

SUDO = ("/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install")


def is_installed(ground: Ground, before: int) -> bool:
    return bool(ground.live(OTHER) > before)


def called(ground: Ground, prepare: Callable[[], object] = lambda: None, argv: tuple[str, ...] = SUDO, **more: Any) -> "subprocess.Popen[bytes]":
    """Start the command as _certdrop, after `prepare` in the same process."""
    def ready() -> None:
        os.setgroups([])
        os.setresgid(ground.gid, ground.gid, ground.gid)
        os.setresuid(ground.uid, ground.uid, ground.uid)
        prepare()
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **more}
    return subprocess.Popen(argv, preexec_fn=ready, cwd=streams.pop("cwd", "/"), **streams)


def test_50_fifty_at_once(ground: Ground) -> None:
    """Goal: hold root up, or confuse it, with fifty installations at once: one runs, one waits, the others leave."""
    with ground.stands():
        begin = time.monotonic()
        crowd = [called(ground) for _ in range(50)]
        codes = [one.wait(60) for one in crowd]
        assert set(codes) == {0} and time.monotonic() - begin < 40
        assert ground.events(OTHER).count("reply-accepted") == 1


def test_51_arguments(ground: Ground) -> None:
    """Goal: have the one command do something else by its arguments, its name, or another user or group."""
    with ground.stands():
        for argv in ([*SUDO, "--help"], [*SUDO, VICTIM], [*SUDO, ""], [*SUDO, "--", "x"], ["/usr/bin/sudo", "-n", "/usr/sbin/certdrop", "rotate", "--all"],
                     ["/usr/bin/sudo", "-n", "-u", "_certdrop-judge", "/usr/bin/id"], ["/usr/bin/sudo", "-n", "-g", "adm", *SUDO[2:]],
                     ["/usr/bin/sudo", "-n", "-s"], ["/usr/bin/sudo", "-n", "-e", "/etc/passwd"],
                     ["/usr/bin/sudo", "-n", "-u", "#-1", *SUDO[2:]], ["/usr/bin/sudo", "-n", "-C", "200", *SUDO[2:]], ["/usr/bin/sudo", "-n", "-D", "/tmp",
                                                                                                                        *SUDO[2:]],
                     ["/usr/bin/sudo", "-n", "-E", *SUDO[2:]], ["/usr/bin/sudo", "-n", "PYTHONPATH=/tmp", *SUDO[2:]]):
            done = ground.run(*argv, user="_certdrop")
            assert done.code == 1 and "reply-accepted" not in ground.events(OTHER), (argv, done)
        ground.sudo(code=0)


def test_52_the_environment(ground: Ground) -> None:
    """Goal: run our code as root through the environment: Python's, the loader's, OpenSSL's, the shell's; or pass for somebody else."""
    planted = f"{PLAYGROUND}/planted"

    def plant() -> None:
        os.makedirs(f"{PLAYGROUND}/certdrop")
        for name in ("sitecustomize.py", "usercustomize.py", "certdrop/__init__.py", "json.py", "startup.py", "conf.cnf", "profile"):
            with open(f"{PLAYGROUND}/{name}", "w", encoding="ascii") as stream:
                stream.write(f"open({planted!r}, 'w')\n")
    ground.act(plant)
    names = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONUSERBASE", "PYTHONBREAKPOINT", "PYTHONWARNINGS", "LD_PRELOAD",
             "LD_LIBRARY_PATH", "OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES", "SSL_CERT_FILE", "HOME", "TMPDIR", "XDG_CONFIG_HOME", "BASH_ENV", "ENV",
             "IFS", "NGINX",
             "TERMINFO", "LOCPATH", "NLSPATH", "GCONV_PATH", "MALLOC_TRACE", "PS4", "SHELLOPTS", "TZ", "LC_ALL", "LANGUAGE", "COLUMNS")
    environment = {name: PLAYGROUND for name in names}
    environment.update(PATH=PLAYGROUND, SUDO_USER="root", SUDO_UID="0", SUDO_COMMAND="x", NOTIFY_SOCKET=f"{PLAYGROUND}/n",
                       LC_ALL="../../../tmp/attacker/certdrop",
                       **{"BASH_FUNC_nginx%%": "() { touch /tmp/attacker/planted; }"})
    with ground.stands() as seen:
        done = ground.sudo(env=environment)
        assert (done.code, done.text) == (0, "")
        assert not os.path.exists(planted)
        assert not {path for path, _ in seen.seen if path.startswith(PLAYGROUND + "/")}
    assert "installed_at" in ground.notes(OTHER)


def test_53_sigchld_ignored(ground: Ground) -> None:
    """Goal: have root take a failing nginx -t for a success, by a disposition that sudo hands on."""
    path = "/etc/nginx/sites-enabled/zz-broken"
    with ground.stands(other=False, but=("/etc/nginx/sites-enabled",)):
        ground.reply(OTHER)
        before = ground.live(OTHER)
        stage.write(path, "this is no configuration\n")
        try:
            found = called(ground, lambda: (signal.signal(signal.SIGCHLD, signal.SIG_IGN), signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))))
            assert found.wait(60) == os.EX_TEMPFAIL
            assert ground.live(OTHER) == before and "service-failed" in ground.events(OTHER)
        finally:
            os.unlink(path)
        ground.an_hour_passes()
        ground.install(code=0)
        assert is_installed(ground, before)


def test_54_signals_ignored_and_blocked(ground: Ground) -> None:
    """Goal: have root hang or misbehave because all its signals are ignored and blocked."""
    def prepare() -> None:
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with ground.stands():
        assert called(ground, prepare).wait(60) == 0


LIMITS = [("NOFILE", 10), ("NOFILE", 3), ("FSIZE", 0), ("FSIZE", 100), ("CPU", 1), ("NPROC", 1), ("AS", 60 << 20), ("AS", 1 << 20), ("DATA", 1 << 20),
          ("STACK", 1 << 16), ("MEMLOCK", 0), ("CORE", 0), ("SIGPENDING", 0), ("RTPRIO", 0), ("MSGQUEUE", 0)]
SHED = ("NOFILE-10", "FSIZE-0", "FSIZE-100", "NPROC-1", "MEMLOCK-0", "CORE-0", "SIGPENDING-0", "RTPRIO-0", "MSGQUEUE-0")


def may_raise_limits() -> bool:
    """Whether root has CAP_SYS_RESOURCE here; in some containers it does not."""
    line = next(line for line in stage.read("/proc/self/status").splitlines() if line.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> 24 & 1)


@pytest.mark.parametrize(("name", "value"), LIMITS)
def test_55_limits(ground: Ground, name: str, value: int) -> None:
    """Goal: have root's run die half done by a tiny limit, or blame a good reply for it: it sheds the limit, or begins nothing."""
    def prepare() -> None:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    with ground.stands(recovers=False):
        before = ground.live(OTHER)
        try:
            process = called(ground, prepare)
            said = process.communicate(timeout=60)
            if may_raise_limits() and f"{name}-{value}" in SHED:
                assert process.returncode == 0 and is_installed(ground, before), said
        except (subprocess.SubprocessError, OSError):
            pass                                   # not even the caller started
        assert ground.served(OTHER) == ground.on_disk(OTHER)
        assert "judge-failed" not in ground.events(OTHER)
        ground.install(code=0)


def test_55b_a_low_soft_limit(ground: Ground) -> None:
    """Goal: as before, by soft limits alone, which anybody may raise again."""
    def prepare() -> None:
        for name in ("NOFILE", "FSIZE", "NPROC", "CPU", "DATA"):
            hard = resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1]
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (8 if name == "NOFILE" else 1, hard))
    with ground.stands(recovers=False):
        called(ground, prepare).communicate(timeout=60)
        ground.install(code=0)


def test_56_niceness_and_scheduling(ground: Ground) -> None:
    """Goal: starve root's run: idle scheduling, niceness 19, one processor, first in line for the OOM killer. It takes none of these on."""
    def prepare() -> None:
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(0, {0})
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)         # changing the user made it not dumpable, and its /proc files root's
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write("1000")
    probe = "/usr/local/sbin/probe"
    stage.write(probe,
                f"#!/bin/sh\n(cat /proc/self/stat /proc/self/oom_score_adj; ulimit -a; pwd; umask; env; id; cat /proc/self/status) >{STATE}/keeper/probe\n",
                0o755)
    stage.write("/etc/certdrop/services.d/probe.toml", f'test = ["{probe}"]\nreload = ["{probe}"]\nport = 443\n')
    ground.configure(services='["nginx", "probe"]')
    try:
        with ground.stands(recovers=False):
            # No hogs beside it: what is idle until root sheds that (sudo, the start of Python) is the caller's own time.
            assert called(ground, prepare, cwd=PLAYGROUND).wait(300) == 0
            found = stage.read(f"{STATE}/keeper/probe").splitlines()
            fields = found[0].rpartition(")")[2].split()
            assert (fields[16], fields[38]) == ("0", "0") and found[1] == "0", "niceness, policy, oom score"
            text = "\n".join(found)
            assert f"\n{STATE}" not in text and "\n/\n0077\n" in text and "SUDO" not in text
            assert "groups=0(root)\n" in text and "SigIgn:\t0000000000001000" not in text.replace("SigIgn:\t0000000000001000", "", 1)
            assert f"Cpus_allowed_list:\t0-{(os.cpu_count() or 1) - 1}" in text or os.cpu_count() == 1
    finally:
        ground.configure()
        os.unlink("/etc/certdrop/services.d/probe.toml")
        os.unlink(probe)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{STATE}/keeper/probe")


def test_57_a_hostile_directory_and_umask(ground: Ground) -> None:
    """Goal: have root write where we stand, import what lies there, or make files that others can write or read."""
    def plant() -> None:
        os.makedirs(f"{PLAYGROUND}/here/certdrop")
        for name in ("json.py", "os.py", "certdrop/__init__.py", "nginx"):
            with open(f"{PLAYGROUND}/here/{name}", "w", encoding="ascii") as stream:
                stream.write("raise SystemExit('planted')\n")
    ground.act(plant)
    with ground.stands() as seen:
        assert called(ground, lambda: (os.chdir(f"{PLAYGROUND}/here"), os.umask(0))).wait(60) == 0
        assert not {path for path, _ in seen.seen if path.startswith(f"{PLAYGROUND}/here")}
        place = f"{STATE}/sites/{OTHER}/{ground.next(OTHER):04d}"
        assert os.stat(place + "/privkey.pem").st_mode & 0o777 == 0o600 and os.stat(place).st_mode & 0o777 == 0o755
        assert os.stat(f"{STATE}/keeper/lock").st_mode & 0o777 == 0o600


def test_58_a_directory_that_is_gone(ground: Ground) -> None:
    """Goal: have root fail because its current directory does not exist, and with umask 777."""
    def prepare() -> None:
        os.mkdir(f"{PLAYGROUND}/gone")
        os.chdir(f"{PLAYGROUND}/gone")
        os.rmdir(f"{PLAYGROUND}/gone")
        os.umask(0o777)
    with ground.stands():
        assert called(ground, prepare).wait(60) == 0


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_59_standard_streams_closed(ground: Ground, closed: tuple[int, ...]) -> None:
    """Goal: have root's files opened as descriptors 0 to 2, and printed into; through sudo, and in root's own run."""
    def prepare() -> None:
        for fd in closed:
            os.close(fd)
    with ground.stands(recovers=False):
        process = called(ground, prepare)
        process.communicate(timeout=60)
        assert process.returncode == 0
        subprocess.run(["/usr/sbin/certdrop-install"], preexec_fn=prepare, check=True, timeout=60)
        for place in (f"{STATE}/sites/{OTHER}/{ground.live(OTHER):04d}/cert.pem", f"{STATE}/keeper/lock"):
            assert b"certdrop" not in open(place, "rb").read()


def test_60_nobody_reads_what_root_says(ground: Ground) -> None:
    """Goal: hold the keeper's lock by not reading its output: the pipe is full, and there is something to say."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    path = "/etc/certdrop/sites.d/wrong.toml"
    stage.write(path, 'domain = "x"\n')
    try:
        with ground.stands(recovers=False):
            before = ground.live(OTHER)
            process = called(ground, stdout=writer, stderr=writer)
            stage.wait_for(lambda: is_installed(ground, before) and ground.proven(OTHER) == ground.live(OTHER), 20, "the installation")
            assert ground.install().code == os.EX_CONFIG, "the lock is free although somebody does not read"
            os.close(writer)
            os.close(reader)
            process.wait(60)
    finally:
        os.unlink(path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGSTOP])
def test_61_sudo_killed_and_stopped(ground: Ground, number: int) -> None:
    """Goal: stop a run half done, and leave the lock held, by killing or stopping sudo at any moment."""
    with ground.stands(recovers=False):
        before = ground.live(OTHER)
        started: list["subprocess.Popen[bytes]"] = []
        for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.25):
            process = called(ground, start_new_session=True)
            started.append(process)
            time.sleep(delay)

            def strike(pid: int = process.pid) -> None:
                for one in (pid, *(int(child) for child in stage.read(f"/proc/{pid}/task/{pid}/children").split())):
                    with contextlib.suppress(OSError):
                        os.kill(one, number)
            ground.act(strike)
        try:
            begin = time.monotonic()
            done = ground.install(timeout=60)
            assert done.code == 0 and time.monotonic() - begin < 20
            stage.wait_for(lambda: is_installed(ground, before) and ground.proven(OTHER) == ground.live(OTHER), 20, "the installation")
        finally:
            for process in started:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_62_the_terminal_closes(ground: Ground) -> None:
    """Goal: have a run die half done with the terminal that it was started from."""
    with ground.stands(recovers=False):
        before = ground.live(OTHER)
        for delay in (0.05, 0.15, 0.3):
            child, terminal = pty.fork()
            if child == 0:
                os.setgroups([])
                os.setresgid(ground.gid, ground.gid, ground.gid)
                os.setresuid(ground.uid, ground.uid, ground.uid)
                os.execv(SUDO[0], SUDO)
            time.sleep(delay)
            os.close(terminal)
            ended = threading.Timer(20, os.killpg, (child, 9))         # sudo's child can wait for a lost terminal for ever, before it starts the command
            ended.start()
            os.waitpid(child, 0)
            ended.cancel()
        assert ground.install().code == 0
        stage.wait_for(lambda: is_installed(ground, before) and ground.proven(OTHER) == ground.live(OTHER), 20, "the installation")


def test_63_locks(ground: Ground) -> None:
    """Goal: hold for ever every lock that certdrop might wait for: each file and directory that can be opened, in each way."""
    def deed() -> None:
        kept = []
        for top in ("/var/lib/certdrop", "/var/spool/certdrop", "/etc/certdrop", "/var/log/certdrop", "/usr/share/certdrop", "/run", "/etc/nginx"):
            for folder, _, names in os.walk(top):
                for path in (folder, *(f"{folder}/{name}" for name in names)):
                    with contextlib.suppress(OSError):
                        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                        kept.append(fd)
                        with contextlib.suppress(OSError):
                            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        with contextlib.suppress(OSError):
                            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with open(f"{PLAYGROUND}/{len(kept)}.held", "wb"):
            pass
        time.sleep(100)
    with ground.stands(recovers=False):
        with ground.attacker(deed):
            stage.wait_for(lambda: [name for name in os.listdir(PLAYGROUND) if name.endswith(".held")], 10, "the locks")
            begin = time.monotonic()
            assert ground.sudo(timeout=60).code == 0 and ground.install(timeout=60).code == 0
            ground.run("certdrop", "rotate", VICTIM, "--next", code=0, timeout=60)
            assert time.monotonic() - begin < 30


def test_64_once_an_hour(ground: Ground) -> None:
    """Goal: reload nginx as often as we like: an installation that the issuer asks for waits until an hour after the last one; root's own does not."""
    with ground.stands(other=False, recovers=False):
        before = ground.live(OTHER)
        ground.reply(OTHER)
        ground.sudo(code=0)
        assert ground.live(OTHER) == before + 1
        workers = ground.world.nginx.workers()
        ground.reply(OTHER)
        for _ in range(3):
            ground.sudo(code=0)
        assert ground.live(OTHER) == before + 1 and ground.world.nginx.workers() == workers
        for spoof in ("root", "", "somebody"):
            ground.sudo(code=0, env={"SUDO_USER": spoof, "PATH": "/usr/bin"})
        assert ground.live(OTHER) == before + 1
        ground.install(code=0)
        assert ground.live(OTHER) == before + 2


def test_65_an_alarm_set_before(ground: Ground) -> None:
    """Goal: have root die by a timer that is handed on through exec: real, virtual and processor time."""
    def prepare() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.08)
        signal.setitimer(signal.ITIMER_PROF, 0.05)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
    with ground.stands(recovers=False):
        before = ground.live(OTHER)
        process = called(ground, prepare)
        process.communicate(timeout=60)
        if not is_installed(ground, before):
            ground.install(code=0)


def test_66_descriptors_left_open(ground: Ground) -> None:
    """Goal: hand descriptors on to root's children: hundreds of pipes, and a directory of ours as descriptor 5."""
    def prepare() -> None:
        here = os.open(PLAYGROUND, os.O_RDONLY)
        for number in range(3, 200):
            os.dup2(here, number, inheritable=True)
    with ground.stands(recovers=False):
        assert called(ground, prepare, close_fds=False).wait(60) == 0


def test_67_ptrace_and_memory(ground: Ground) -> None:
    """Goal: trace root's run, or read its memory, descriptors or environment in /proc, as often as it shows."""
    def deed() -> None:
        mine = os.getuid()
        for entry in os.listdir("/proc"):
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid != mine:
                for name in ("mem", "environ", "fd", "maps", "cwd", "root", "exe"):
                    with contextlib.suppress(OSError):
                        if name in ("fd",):
                            found = os.listdir(f"/proc/{entry}/fd")
                        elif name in ("cwd", "root", "exe"):
                            found = [os.readlink(f"/proc/{entry}/{name}")]
                        else:
                            with open(f"/proc/{entry}/{name}", "rb") as stream:
                                found = stream.read(1).split()
                        with open(f"{PLAYGROUND}/got", "a", encoding="ascii") as out:
                            out.write(f"{entry} {name} {found}\n" if found else "")
    with ground.stands(recovers=False):
        with ground.attacker(deed):
            for _ in range(5):
                ground.sudo(code=0)
        assert not os.path.exists(f"{PLAYGROUND}/got") or stage.read(f"{PLAYGROUND}/got") == ""


def test_68_state_is_readable_and_no_more(ground: Ground) -> None:
    """Goal: read a domain key, or write into root's state, as the issuer, the judge, the watcher or nobody."""
    def deed() -> None:
        for folder, folders, names in os.walk("/var/lib/certdrop"):
            for name in names:
                path = f"{folder}/{name}"
                if name == "privkey.pem" or "/refused" in path or name in ("lock", "waiting", "waiting-issuer"):
                    with contextlib.suppress(PermissionError):
                        open(path, "rb").close()
                        raise SystemExit(f"{path} was read")
            if "/issuer" not in folder and "/account" not in folder and os.access(folder, os.W_OK):
                raise SystemExit(f"{folder} can be written")
    with ground.stands(recovers=False):
        ground.act(deed)
        ground.install(code=0)
        for path in (f"{STATE}/live/{VICTIM}/privkey.pem", f"{STATE}/sites/{VICTIM}/{ground.next(VICTIM):04d}/privkey.pem"):
            for user in ("_certdrop", "_certdrop-judge", "_certdrop-watch", "www-data"):
                assert ground.run("/bin/cat", path, user=user).code == 1
        assert json.loads(stage.read(f"{STATE}/keeper/{OTHER}.json"))
        assert REPLIES.startswith("/var/spool")

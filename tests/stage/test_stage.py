"""Tests of the stage itself, on the host: what the command sees, what it returns, and that nothing stays behind.

    /usr/bin/python3 -m unittest discover -s tests/stage -p 'test_stage.py'

They need root and namespaces, as the stage does, and are skipped where those are missing.
"""

from __future__ import annotations

import contextlib
import os
import pty
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from typing import Any, Callable, Iterator, Optional

HERE = os.path.dirname(os.path.realpath(__file__))
STAGE = os.path.join(HERE, "stage")
SPACES = ("mnt", "net", "pid", "uts", "ipc")


def stage(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 300, "check": False}
    settings.update(options)
    done: "subprocess.CompletedProcess[str]" = subprocess.run([STAGE, *arguments], **settings)
    return done


def spaces_of(pid: str) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        if file.read().rpartition(")")[2].split()[0] == "Z":
            return found        # dead; whoever inherited it will reap it
    for space in SPACES:
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/{space}"))
    return found


def inhabitants(spaces: set[str]) -> list[str]:
    """The processes of the host that are in any of these namespaces."""
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and spaces_of(pid) & spaces]


def wait_for(predicate: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.01)


@unittest.skipIf(os.geteuid() != 0, "needs root")
@unittest.skipIf(os.path.exists("/run/stage"), "this is a stage already")
class StageTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls) -> None:
        first = stage("run", "--", "true")
        if first.returncode == os.EX_UNAVAILABLE:
            raise unittest.SkipTest(first.stderr.strip())
        if first.returncode != 0:
            raise AssertionError(first.stderr)

    def output(self, *command: str, **options: Any) -> str:
        done = stage("run", "--", *command, **options)
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        return done.stdout.strip()


class Status(StageTest):

    def test_exit_status(self) -> None:
        """The command's own status comes out."""
        for status in (0, 1, 7, 75, 255):
            self.assertEqual(status, stage("run", "--", "sh", "-c", f"exit {status}").returncode)

    def test_death_by_signal(self) -> None:
        """128 + N, as a shell has it."""
        self.assertEqual(128 + signal.SIGKILL, stage("run", "--", "sh", "-c", "kill -KILL $$").returncode)

    def test_no_such_command(self) -> None:
        """127, and one line that names it."""
        done = stage("run", "--", "no-such-command")
        self.assertEqual((127, "stage: no-such-command: No such file or directory\n"), (done.returncode, done.stderr))

    def test_usage(self) -> None:
        """64 for what makes no sense."""
        for arguments in ((), ("stay",), ("run", "--with", "no-such-set", "true")):
            self.assertEqual(os.EX_USAGE, stage(*arguments).returncode, arguments)

    def test_options_end_at_the_command(self) -> None:
        """What follows the command is the command's."""
        self.assertEqual("--deb -- x", stage("run", "echo", "--deb", "--", "x").stdout.strip())

    def test_streams(self) -> None:
        """Input, output and error output are passed through apart."""
        done = stage("run", "--", "sh", "-c", "cat; echo problem >&2", stdin=None, input="hello\n")
        self.assertEqual(("hello\n", "problem\n"), (done.stdout, done.stderr))

    def test_orphans_are_reaped(self) -> None:
        """A process that lost its parent does not stay a zombie while the command runs."""
        script = "for i in 1 2 3; do (true &) ; done; while grep -qs '^State:.Z' /proc/[0-9]*/status; do :; done"
        self.assertEqual("", self.output("timeout", "10", "sh", "-c", script))

    def test_background_does_not_hold(self) -> None:
        """The end of the command is the end of the stage, whatever still runs."""
        self.assertEqual("", self.output("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"))


class Refusals(StageTest):

    def test_not_root(self) -> None:
        """77 and one line."""
        done = stage("run", "--", "true", user=65534, group=65534, extra_groups=[])
        if "Permission denied" in done.stderr:
            self.skipTest("the repository is not readable for others")
        self.assertEqual((os.EX_NOPERM, 1), (done.returncode, done.stderr.count("\n")))

    def test_no_namespaces(self) -> None:
        """69 and one line that says what would help, as in a default container."""
        done = subprocess.run(["/usr/bin/setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", STAGE, "run", "--", "true"],
                              capture_output=True, text=True, check=False)
        self.assertEqual((os.EX_UNAVAILABLE, 1), (done.returncode, done.stderr.count("\n")), done.stderr)
        self.assertIn("docker run --privileged", done.stderr)

    def test_stage_in_stage(self) -> None:
        """69: there is none inside another."""
        self.assertEqual(os.EX_UNAVAILABLE, stage("run", "--", STAGE, "run", "--", "true").returncode)

    def test_broken_package(self) -> None:
        """65 with what dpkg says."""
        with tempfile.NamedTemporaryFile(suffix=".deb") as deb:
            done = stage("run", "--deb", deb.name, "--", "true")
        self.assertEqual(os.EX_DATAERR, done.returncode)
        self.assertIn("dpkg", done.stderr)


class Inside(StageTest):

    def test_clean_environment(self) -> None:
        """Nothing of the caller's environment but the terminal's kind."""
        os.environ["STAGE_LEAK"] = "1"
        try:
            names = {line.split("=")[0] for line in self.output("env").splitlines()}
            self.assertIn("STAGE_LEAK=1", stage("run", "--keep-env", "--", "env").stdout)
        finally:
            del os.environ["STAGE_LEAK"]
        self.assertEqual(set(), names - {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "COLUMNS", "LINES", "NO_COLOR", "PWD", "SHLVL", "_",
                                         "PYTHONDONTWRITEBYTECODE", "DEBIAN_FRONTEND"})

    def test_no_descriptors(self) -> None:
        """No descriptor of the host's comes along."""
        reader, writer = os.pipe()
        try:
            self.assertEqual("0\n1\n2\n3", self.output("ls", "/proc/self/fd", pass_fds=(reader, writer)))
        finally:
            os.close(reader)
            os.close(writer)

    def test_names(self) -> None:
        """The host is called stage, and knows itself."""
        self.assertEqual("stage", self.output("hostname"))
        self.assertIn("127.0.1.1", self.output("getent", "hosts", "stage"))

    def test_loopback_only(self) -> None:
        """lo is up with both addresses, and there is nothing else."""
        self.assertEqual("lo", self.output("ls", "/sys/class/net"))
        script = "import socket\nfor kind, host in ((2, '127.0.0.1'), (10, '::1')): socket.socket(kind).bind((host, 80))"
        self.assertEqual("", self.output("/usr/bin/python3", "-c", script))

    def test_host_ports_are_apart(self) -> None:
        """What listens on the host is out of reach."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            script = f"import socket, sys; sys.exit(socket.socket().connect_ex(('127.0.0.1', {listener.getsockname()[1]})) == 0)"
            self.assertEqual("", self.output("/usr/bin/python3", "-c", script))

    def test_privileges_work(self) -> None:
        """setuid programs do their work, so no file system is nosuid."""
        script = "echo 'nobody ALL=(root) NOPASSWD: /usr/bin/id' > /etc/sudoers.d/test; setpriv --reuid=nobody --clear-groups sudo -n id -u"
        self.assertEqual("0", self.output("sh", "-c", script))

    def test_modes_despite_umask(self) -> None:
        """A caller's umask does not close / for other users."""
        self.assertEqual("755 755 1777", self.output("stat", "-c", "%a", "/", "/run", "/tmp", umask=0o077).replace("\n", " "))

    def test_kernel_file_systems(self) -> None:
        """Pid 1 is the stage's own, terminals are its own, and systemd does not run."""
        self.assertIn("stage", self.output("cat", "/proc/1/cmdline"))
        self.assertEqual("/dev/pts/0", self.output("script", "-qec", "tty", "/dev/null"))
        self.assertEqual("no", self.output("sh", "-c", "test -e /run/systemd/system && echo yes || echo no"))

    def test_the_command_begins_where_no_other_user_can_enter(self) -> None:
        """A test that has another user read the repository fails wherever the repository lies."""
        script = "pwd; stat -c %a ..; setpriv --reuid=nobody --clear-groups test -r $PWD/lib || echo closed"
        self.assertEqual("/root/certdrop 700 closed", self.output("sh", "-c", script).replace("\n", " "))

    def test_repository_is_readonly(self) -> None:
        """The repository is where it was, and at /root/certdrop and /src, and cannot be written."""
        for place in (os.path.dirname(os.path.dirname(HERE)), "/root/certdrop", "/src"):
            self.assertEqual("no", self.output("sh", "-c", f"test -x {place}/tests/stage/stage && touch {place}/x 2>/dev/null || echo no"))

    def test_out(self) -> None:
        """--out is the one door through which files come out."""
        with tempfile.TemporaryDirectory() as directory:
            self.assertEqual(0, stage("run", "--out", directory, "--", "sh", "-c", "echo result > /out/result").returncode)
            with open(os.path.join(directory, "result"), encoding="utf-8") as file:
                self.assertEqual("result\n", file.read())

    def test_servers_are_there(self) -> None:
        """What tests/stage/packages lists, and Pebble, is installed; nothing has started by itself."""
        self.assertEqual("", self.output("sh", "-c", "command -v nginx sudo cron acme-tiny curl strace ss /opt/stage/usr/bin/pebble >/dev/null"))
        self.assertEqual("", self.output("sh", "-c", "pgrep -x 'nginx|cron' || true"))

    def test_no_host_jobs(self) -> None:
        """cron would find nothing of the host's to do."""
        self.assertEqual("", self.output("sh", "-c", "ls -A /etc/cron.d /etc/cron.daily /var/spool/cron/crontabs | grep -v ':$' | grep ."
                                                     " || true"))

    def test_package(self) -> None:
        """--deb installs for real, with maintainer scripts."""
        with tempfile.TemporaryDirectory() as directory:
            root = os.path.join(directory, "root")
            os.makedirs(os.path.join(root, "DEBIAN"), 0o755)
            os.chmod(directory, 0o755)
            with open(os.path.join(root, "DEBIAN", "control"), "w", encoding="utf-8") as file:
                file.write("Package: stage-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a test\n")
            with open(os.path.join(root, "DEBIAN", "postinst"), "w", encoding="utf-8") as file:
                file.write("#!/bin/sh\necho configured > /etc/stage-test\n")
            os.chmod(os.path.join(root, "DEBIAN", "postinst"), 0o755)
            deb = os.path.join(directory, "stage-test.deb")
            subprocess.run(["dpkg-deb", "-b", root, deb], check=True, capture_output=True)
            self.assertEqual("configured\n", stage("run", "--deb", deb, "--", "cat", "/etc/stage-test").stdout)
        self.assertFalse(os.path.exists("/etc/stage-test"))


class Traces(StageTest):
    """Whatever ends the stage, nothing of it stays on the host."""

    BUSY = ("for s in mnt net pid uts ipc; do readlink /proc/self/ns/$s; done; touch /root/{mark} /etc/{mark} /tmp/{mark}; useradd {mark};"
            " setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 1000; done' & nginx; echo ready; {last}")

    @contextlib.contextmanager
    def busy(self, last: str, terminal: Optional[int] = None) -> Iterator["tuple[subprocess.Popen[str], set[str]]"]:
        """A stage with files, a user, daemons and a stubborn process; checks afterwards that all is gone."""
        mark = "stage" + secrets.token_hex(4)
        mounts = self.mounts()
        with subprocess.Popen([STAGE, "run", "--", "sh", "-c", self.BUSY.format(mark=mark, last=last)], text=True, stdout=subprocess.PIPE,
                              stdin=subprocess.DEVNULL) as outer:
            assert outer.stdout
            spaces: set[str] = set()
            for line in outer.stdout:
                if line.strip() == "ready":
                    break
                spaces.add(line.strip())
            self.assertEqual(len(SPACES), len(spaces))
            self.assertFalse(spaces & spaces_of("self"), "the stage is not apart from the host")
            yield outer, spaces
            wait_for(lambda: not inhabitants(spaces), "the end of all processes of the stage")
        self.assertEqual(mounts, self.mounts())
        for place in ("/root", "/etc", "/tmp"):
            self.assertFalse(os.path.exists(os.path.join(place, mark)))
        with open("/etc/passwd", encoding="utf-8") as file:
            self.assertNotIn(mark, file.read())

    @staticmethod
    def mounts() -> list[str]:
        with open("/proc/self/mounts", encoding="utf-8") as file:
            return file.read().splitlines()

    def test_after_success(self) -> None:
        """Its normal end, twice in a row."""
        for _ in range(2):
            with self.busy("exit 3") as (outer, spaces):
                self.assertEqual(3, outer.wait(20))
                self.assertEqual([], inhabitants(spaces), "all are dead when the status is out")

    def test_after_signal(self) -> None:
        """INT, TERM and HUP reach the command, and end it and everything, twice in a row."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 2:
            with self.busy("exec sleep 1000") as (outer, spaces):
                outer.send_signal(number)
                self.assertEqual(128 + number, outer.wait(20))
                self.assertEqual([], inhabitants(spaces))

    def test_after_kill(self) -> None:
        """Even SIGKILL to the outer process, which cannot clean up, twice in a row."""
        for _ in range(2):
            with self.busy("exec sleep 1000") as (outer, _spaces):
                outer.kill()
                self.assertEqual(-signal.SIGKILL, outer.wait(20))

    def test_second_signal(self) -> None:
        """A command that ignores the first signal does not survive the second."""
        with self.busy("trap '' TERM HUP; while :; do sleep 1000; done") as (outer, _spaces):
            outer.send_signal(signal.SIGTERM)
            outer.send_signal(signal.SIGHUP)
            self.assertEqual(128 + signal.SIGKILL, outer.wait(5))

    def test_trap(self) -> None:
        """The command may tidy up and choose its status."""
        with self.busy("trap 'exit 5' TERM; sleep 1000 & wait") as (outer, _spaces):
            outer.terminate()
            self.assertEqual(5, outer.wait(20))


class Terminal(StageTest):

    def test_interrupt_from_the_keyboard(self) -> None:
        """Control-C reaches the command once, on the caller's own terminal."""
        script = "n=0; trap 'n=$((n+1)); echo interrupted $n' INT; test -t 0 && echo ready; while test $n -lt 1; do sleep 0.05; done; sleep 0.3; exit 1$n"
        pid, master = pty.fork()
        if pid == 0:
            os.execv(STAGE, [STAGE, "run", "--", "sh", "-c", script])
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 1024)
        os.write(master, b"\x03")
        with contextlib.suppress(OSError):
            while True:
                more = os.read(master, 1024)
                if not more:
                    break
                seen += more
        _, status = os.waitpid(pid, 0)
        os.close(master)
        self.assertEqual(11, os.waitstatus_to_exitcode(status), seen)
        self.assertEqual(1, seen.count(b"interrupted"))


class Fetch(StageTest):

    def test_nothing_to_fetch(self) -> None:
        """A complete cache is recognised in well under a second, without the network."""
        started = time.monotonic()
        done = subprocess.run(["/usr/bin/unshare", "--net", STAGE, "fetch"], capture_output=True, text=True, check=False)
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        self.assertLess(time.monotonic() - started, 1.0)

    def test_pebble_is_not_installed(self) -> None:
        """On the host, nothing has changed."""
        self.assertFalse(os.path.exists("/opt/stage"))

    def test_separate_home(self) -> None:
        """CERTDROP_STAGE_DIR moves everything; a cache without network is an error of one kind."""
        with tempfile.TemporaryDirectory() as directory:
            done = subprocess.run(["/usr/bin/unshare", "--net", STAGE, "fetch"], capture_output=True, text=True, check=False, timeout=120,
                                  env={**os.environ, "CERTDROP_STAGE_DIR": os.path.join(directory, "stage")})
            self.assertEqual(os.EX_UNAVAILABLE, done.returncode)
            self.assertIn("apt-get", done.stderr)
            shutil.rmtree(os.path.join(directory, "stage"))


if __name__ == "__main__":
    unittest.main()

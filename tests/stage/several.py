"""Several machines on one stage: each in namespaces of its own (mounts, network, processes, names, IPC), on one private network.

    with World() as world, Network() as network:
        web = network.machine("web1", "10.77.0.11")
        web.run("nginx", code=0)

A machine has the stage's /usr, read-only, and a copy of its /etc and /var: so whatever was installed on the stage before is installed on it, with its
users, sudo's rules and all; that takes a tenth of a second and some MiB. What is made on it later is its own. The stage itself, at GATE, is the
world outside: the CA and the DNS. Runs as root inside a stage; everything ends with the process that made it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import IO, Optional, Sequence

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import machine  # noqa: E402
from tree import copy_tree  # noqa: E402
from world import WorldError, log_tails, read, wait_for, write  # noqa: E402

BRIDGE, GATE, WIDTH, DOMAIN = "machines", "10.77.0.1", 24, "fleet.test"
NOT_COPIED = ("/cache", "/lib/apt", "/lib/dpkg", "/lib/postgresql", "/log/journal")      # below /var
LASTS = 120                        # seconds that a command may take


class Done:
    """How a command ended: `code`, and `text`, all that it printed."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.text}"


class Machine:
    """A machine. `path()` is where one of its files is seen from here."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address, self.pid = name, address, 0
        self._opener: Optional[subprocess.Popen[str]] = None

    def start(self) -> None:
        """Open it, and plug it in."""
        self._opener = subprocess.Popen([sys.executable, os.path.abspath(__file__), self.name, self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        said = self._opener.stdout.readline().split() if self._opener.stdout else []
        if len(said) != 2 or not said[0].isdecimal():
            raise WorldError(f"{self.name} does not start: {said}")
        self.pid = int(said[0])
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        ip("link", "set", self._cable, "master", BRIDGE, "up")
        self.run("ip", "addr", "add", f"{self.address}/{WIDTH}", "dev", "eth0", code=0)
        self.run("ip", "link", "set", "eth0", "up", code=0)

    @property
    def _cable(self) -> str:
        return f"to-{self.name}"

    def stop(self) -> None:
        """As if its power failed: all its processes end at once. What it had is gone."""
        if self._opener:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._opener.wait(30)
            self._opener = None

    def unplug(self) -> None:
        """Nothing comes from it, and nothing reaches it."""
        ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        ip("link", "set", self._cable, "up")

    def path(self, name: str) -> str:
        return f"/proc/{self.pid}/root{name}"

    def read(self, name: str) -> str:
        return read(self.path(name))

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        write(self.path(name), text, mode)

    def give(self, name: str, other: "Machine", owner: str = "") -> None:
        """Copy a file or a directory to the same place on another machine."""
        command = f"tar -C / -c -p --numeric-owner {name.lstrip('/')}"
        with subprocess.Popen(self.words("sh", "-c", command), stdout=subprocess.PIPE) as source:
            subprocess.run(other.words("tar", "-C", "/", "-x", "-p", "--numeric-owner"), stdin=source.stdout, check=True)
        if owner:
            other.run("chown", "-R", owner, name, code=0)

    def words(self, *argv: str, user: str = "") -> list[str]:
        """The words that run this there."""
        become = ["runuser", "-u", user, "--"] if user else []
        return ["/usr/bin/nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i", "--", *become, *argv]

    def run(self, *argv: str, user: str = "", code: Optional[int] = None, given: str = "", timeout: float = LASTS) -> Done:
        """Run a command there to its end; with `code`, it must end so."""
        done = subprocess.run(self.words(*argv, user=user), input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=timeout, check=False)
        found = Done(done.returncode, done.stdout)
        if code is not None and found.code != code:
            raise WorldError(f"{self.name}: {' '.join(argv)}: {found}\n{self.logs()}\n{log_tails()}")
        return found

    def output(self, *argv: str, user: str = "") -> str:
        """What a command there writes to its standard output; it must end with 0."""
        done = subprocess.run(self.words(*argv, user=user), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LASTS, check=False)
        if done.returncode:
            raise WorldError(f"{self.name}: {' '.join(argv)}: {done.returncode} {done.stdout}{done.stderr}\n{self.logs()}")
        return done.stdout

    def launch(self, *argv: str, user: str = "", out: "IO[bytes] | int" = subprocess.DEVNULL) -> "Running":
        """Start a command there, and go on."""
        place = f"/tmp/launched-{os.urandom(6).hex()}"
        process = subprocess.Popen(self.words("sh", "-c", f'echo $$ >{place}.new; mv {place}.new {place}; exec "$@"', "sh", *argv, user=user),
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(lambda: os.path.exists(self.path(place)) or process.poll() is not None, 10, " ".join(argv))
        return Running(self, process, int(self.read(place)))

    def logs(self, lines: int = 15) -> str:
        """The ends of its logs."""
        found = []
        for name in ("/var/log/certdrop/issuer.log", "/var/log/certdrop/keeper.log", "/var/log/nginx/error.log", "/var/log/postgresql/server.log"):
            with contextlib.suppress(OSError):
                text = self.read(name).rstrip()
                if text:
                    found.append(f"--- {self.name}:{name}\n" + "\n".join(text.splitlines()[-lines:]))
        return "\n".join(found)


class Running:
    """A command that runs on a machine; `pid` is its number there."""

    def __init__(self, there: Machine, process: "subprocess.Popen[bytes]", pid: int) -> None:
        self.there, self.process, self.pid = there, process, pid

    def signal(self, number: int) -> None:
        self.there.run("kill", f"-{number}", str(self.pid))

    def kill(self) -> None:
        """kill -9, and wait."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)

    def end(self, timeout: float = 60) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)


class Network:
    """The private network, and the machines on it."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> "Network":
        ip("link", "add", BRIDGE, "address", "02:00:0a:4d:00:01", "type", "bridge")     # else it has that of a port, and another when that goes
        ip("addr", "add", f"{GATE}/{WIDTH}", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *failure: object) -> None:
        for one in self.machines.values():
            one.stop()
        ip("link", "del", BRIDGE)

    def machine(self, name: str, address: str) -> Machine:
        """A new machine: as the stage is at this moment."""
        made = self.machines[name] = Machine(name, address)
        made.start()
        return made


def ip(*words: str) -> None:
    done = subprocess.run(["/usr/sbin/ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorldError(f"ip {' '.join(words)}: {done.stderr.strip()}")


# ---- what makes one

def become(name: str, address: str) -> None:
    """In the first process of a machine: its root, its names; then reap what dies."""
    machine.checked(machine.libc.prctl(machine.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    machine.unshare(machine.CLONE_NEWNS | machine.CLONE_NEWUTS | machine.CLONE_NEWIPC | machine.CLONE_NEWNET)
    machine.mount("none", "/", None, machine.MS_REC | machine.MS_PRIVATE)
    place = f"/run/machines/{name}"
    os.makedirs(f"{place}/root", exist_ok=True)
    machine.mount("machine", f"{place}/root", "tmpfs", 0, "mode=0755")
    os.chdir(place)
    fill("root")
    machine.mount_kernel_parts()
    os.mkdir("root/run/old")
    machine.checked(machine.libc.pivot_root(b"root", b"root/run/old"), "pivot_root")
    os.chdir("/")
    machine.checked(machine.libc.umount2(b"/run/old", machine.MNT_DETACH), "umount")
    os.rmdir("/run/old")
    socket.sethostname(name)
    write("/etc/hostname", name + "\n")
    write("/etc/hosts", f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{name}.{DOMAIN} {name}\n{GATE}\tca.stage.test mail.stage.test\n")
    write("/etc/resolv.conf", f"nameserver {GATE}\noptions timeout:2 attempts:1\n")
    write("/run/stage", "what runs here may do as it likes to this machine\n")
    os.makedirs("/var/mail-sink", exist_ok=True)
    os.chmod("/var/mail-sink", 0o1777)
    machine.raise_loopback()


def fill(root: str) -> None:
    """What a machine has: the stage's programs, and a copy of what they keep."""
    os.mkdir(f"{root}/root", 0o700)
    for entry in os.listdir("/"):
        if os.path.islink(f"/{entry}"):
            os.symlink(os.readlink(f"/{entry}"), f"{root}/{entry}")
    for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "srv", "home"):
        os.mkdir(f"{root}/{name}")
    for name in ("/usr", "/opt", machine.CLOSED):
        machine.bind(name, root + name)
    copy_tree("/etc", f"{root}/etc")
    copy_tree("/var", f"{root}/var", NOT_COPIED)
    os.makedirs(f"{root}/var/cache/nginx", exist_ok=True)
    os.makedirs(f"{root}/var/lib/postgresql")
    with contextlib.suppress(LookupError):
        shutil.chown(f"{root}/var/lib/postgresql", "postgres", "postgres")
    machine.bind("/var/lib/dpkg", f"{root}/var/lib/dpkg")


def main(argv: Sequence[str]) -> int:
    """Open a machine, say under which number its first process is known, and stay until that ends, or nobody listens any more."""
    machine.checked(machine.libc.prctl(machine.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    reader, writer = os.pipe()
    machine.unshare(machine.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.umask(0o022)
        become(argv[0], argv[1])
        os.write(writer, b"1")
        os.close(writer)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        while True:
            try:
                os.wait()
            except ChildProcessError:
                signal.sigwait({signal.SIGCHLD})
    os.close(writer)
    if os.read(reader, 1):
        print(child, "ready", flush=True)
    os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

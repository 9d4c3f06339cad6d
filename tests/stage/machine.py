"""A machine of its own: the host's file system under an overlay, in namespaces, with an init.

Runs as root.  The process that opens it waits outside; pid 1 inside is a child of it, dies with
it, and takes everything along.  Nothing is mounted, changed or left on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, Optional, Sequence

from place import CLOSED, HOME, REPOSITORY, StageError, read, say, write
from tree import copy_tree, remove

GRACE = 10.0                    # seconds between a forwarded signal and the end

# File systems below / that hold a part of the system where they are separate; each gets an
# overlay of its own.  Others (a disk full of films) are an empty directory in the stage.
PARTS = ("/usr", "/usr/local", "/etc", "/var", "/var/cache", "/var/lib", "/var/log", "/var/mail", "/var/spool",
         "/home", "/root", "/opt", "/srv")

HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
127.0.1.1\tstage
127.0.0.1\tca.stage.test mail.stage.test
"""

CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh", "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1", "DEBIAN_FRONTEND": "noninteractive",
}

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
SI_KERNEL = 128                 # the terminal sent it, so the command has it already

libc = ctypes.CDLL(None, use_errno=True)

NOT_ALLOWED = ("namespaces are not allowed here ({}); in a container: docker run --privileged, or --cap-add SYS_ADMIN "
               "--security-opt apparmor=unconfined --security-opt seccomp=unconfined")


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    checked(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: Optional[str] = None, flags: int = 0, options: Optional[str] = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    checked(libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {kind or source} on {target}")


def bind(source: str, target: str, readonly: bool = True) -> None:
    """Show one directory at another place, without what is mounted below it."""
    os.makedirs(target, exist_ok=True)
    mount(source, target, None, MS_BIND)
    if readonly:
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


def raise_loopback() -> None:
    """Bring up lo, with ::1 where the kernel has IPv6."""
    for name in ("all", "default", "lo"):
        with contextlib.suppress(OSError):
            write(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        flags: int = struct.unpack("16sh22x", fcntl.ioctl(control, 0x8913, request))[1]         # SIOCGIFFLAGS
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", flags | 1))                  # SIOCSIFFLAGS, IFF_UP


@dataclass(frozen=True)
class Plan:
    """What to open and what to run in it."""
    command: list[str]
    layer: Optional[str]        # None while the layer itself is built
    environment: dict[str, str]
    directory: str
    debs: list[str]
    binds: list[tuple[str, str, bool]]


def separate_parts() -> list[str]:
    """The PARTS that are file systems of their own, outermost first."""
    mounted = {line.split()[4] for line in read("/proc/self/mountinfo").splitlines()}
    return [part for part in PARTS if part in mounted]


def overlay(top: str, lower: Sequence[str], target: str) -> None:
    """Mount an overlay; all names are relative, so no odd character of the path matters."""
    os.makedirs(f"{top}/upper", exist_ok=True)
    os.makedirs(f"{top}/work", exist_ok=True)
    below = os.stat(lower[-1])
    os.chown(f"{top}/upper", below.st_uid, below.st_gid)
    os.chmod(f"{top}/upper", stat.S_IMODE(below.st_mode))
    mount("stage", target, "overlay", 0,
          f"lowerdir={':'.join(lower)},upperdir={top}/upper,workdir={top}/work,redirect_dir=off,index=off,metacopy=off")


def mount_root(layer: Optional[str]) -> None:
    """Make ./root: the host's file system, above it the layer, above it a tmpfs."""
    for name in ("root", "empty"):
        os.mkdir(name)
    parts = separate_parts()
    wrapped, gone = False, []
    if layer:
        gone = json.loads(read(os.path.join(layer, "gone.json")))
        bind(os.path.join(layer, "tree"), "layer")
        os.mkdir("wrap")
        # A layer below / cannot be a lower side beside / itself (ELOOP), but an overlay
        # of it is another file system.  Where that would be one overlay too many, as in
        # a container, the layer is copied.
        try:
            mount("layer", "wrap", "overlay", MS_RDONLY, "lowerdir=layer:empty")
            overlay("top", ["wrap", "/"], "root")
            wrapped = True
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ELOOP):
                raise
            copy_tree("layer", "top/upper")
    if not wrapped:
        overlay("top", ["/"], "root")
    for number, part in enumerate(parts):
        top = f"top{number}"
        below = [f"wrap{part}"] if wrapped and os.path.isdir(f"wrap{part}") else []
        if layer and not wrapped and os.path.isdir(f"layer{part}"):
            copy_tree(f"layer{part}", f"{top}/upper")
        bind(part, f"part{number}")
        overlay(top, below + [f"part{number}"], f"root{part}")
    for name in gone:
        if name.endswith("/*"):
            folder = name[:-2]
            kept = set(os.listdir(f"layer{folder}"))
            names = [f"{folder}/{entry}" for entry in os.listdir(f"root{folder}") if entry not in kept]
        else:
            names = [name]
        for each in names:
            remove("root" + each)


def mount_kernel_parts() -> None:
    """./root gets its own /proc, /dev, /run and /tmp; nothing of the host's shows through."""
    mount("proc", "root/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with contextlib.suppress(OSError):
        mount("sysfs", "root/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name, mode in (("dev", "0755"), ("run", "0755"), ("tmp", "1777")):
        mount("stage", f"root/{name}", "tmpfs", 0, f"mode={mode}")
    for name, major, minor in (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)):
        node = f"root/dev/{name}"
        try:
            os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.chmod(node, 0o666)
        except PermissionError:
            write(node, "")
            mount(f"/dev/{name}", node, None, MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
                         ("ptmx", "pts/ptmx")):
        os.symlink(target, f"root/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"root/dev/{name}")
    mount("devpts", "root/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    mount("stage", "root/dev/shm", "tmpfs", 0, "mode=1777")
    os.mkdir("root/run/lock")
    os.chmod("root/run/lock", 0o1777)


def settle() -> None:
    """From inside: the names of this machine, and the host's own jobs out of the way."""
    socket.sethostname("stage")
    for path, text in (("/etc/hostname", "stage\n"), ("/etc/hosts", HOSTS), ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n"),
                       ("/run/stage", "what runs here may do as it likes to this machine\n")):
        remove(path)
        write(path, text, 0o644)
    write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    for folder in ("/etc/cron.d", "/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly", "/etc/cron.monthly", "/var/spool/cron/crontabs"):
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                remove(os.path.join(folder, name))
    remove("/etc/crontab")
    raise_loopback()


def enter(plan: Plan) -> None:
    """Build the stage and make it this process's root; whatever goes wrong, the namespace's end cleans up."""
    repository, home = REPOSITORY, os.path.join(HOME, "mnt")
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("stage", home, "tmpfs", 0, "mode=0755")
    os.chdir(home)
    mount_root(plan.layer)
    mount_kernel_parts()
    if not os.path.lexists("root/src"):
        os.symlink(CLOSED, "root/src")
    for place in (repository, CLOSED, *(["/src"] if not os.path.islink("root/src") else [])):
        bind(repository, "root" + place)
    if stat.S_IMODE(os.stat("root/root").st_mode) != 0o700:
        os.chmod("root/root", 0o700)
    for source, place, readonly in plan.binds:
        bind(source, "root" + place, readonly)
    if not plan.layer:                      # who builds the layer sees the overlay's upper side
        os.makedirs("root/run/build/scratch")
        mount(".", "root/run/build/scratch", None, MS_BIND)
    os.mkdir("root/run/stage-debs")
    for number, deb in enumerate(plan.debs):
        target = f"root/run/stage-debs/{number}.deb"
        shutil.copyfile(deb, target)
    os.mkdir("root/run/old")
    checked(libc.pivot_root(b"root", b"root/run/old"), "pivot_root")
    os.chdir("/")
    checked(libc.umount2(b"/run/old", MNT_DETACH), "umount")
    os.rmdir("/run/old")
    settle()


def install(count: int) -> None:
    """Install the packages given with --deb, for real."""
    names = [f"/run/stage-debs/{number}.deb" for number in range(count)]
    if names:
        done = subprocess.run(["/usr/bin/dpkg", "-i", *names], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=CLEAN_ENVIRONMENT, errors="replace", check=False)
        if done.returncode != 0:
            raise StageError(f"dpkg -i failed:\n{done.stdout}", os.EX_DATAERR)
    shutil.rmtree("/run/stage-debs")


def become_init(plan: Plan, alive: int) -> NoReturn:
    """Pid 1 of the stage: set it up, start the command, reap whatever dies, leave with the command's status."""
    running: list[int] = []

    def forward(number: int, frame: Optional[FrameType]) -> None:
        if not running:
            os._exit(128 + number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running[0], number)

    status = os.EX_SOFTWARE
    os.umask(0o022)
    try:
        checked(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        os.set_blocking(alive, False)
        with contextlib.suppress(BlockingIOError):
            os.read(alive, 1)
            os._exit(os.EX_SOFTWARE)        # the other end is closed: it died before it could take us along
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, forward)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        enter(plan)
        install(len(plan.debs))
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            perform(plan)
        running.append(pid)
        os.setpgid(0, 0)                    # the terminal's signals reach the command, and us only what we are to hand on
        while running:
            child, result = os.wait()
            if child == pid:
                running.clear()
                status = os.waitstatus_to_exitcode(result)
                status = 128 - status if status < 0 else status
    except StageError as error:
        say(str(error))
        status = error.status
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            say(NOT_ALLOWED.format(error))
            status = os.EX_UNAVAILABLE
        else:
            say(f"cannot open the stage: {error}")
            status = os.EX_OSERR
    except Exception:                       # our bug; but a child must not go on in its parent's code
        traceback.print_exc()
    os._exit(status)


def perform(plan: Plan) -> NoReturn:
    """In a child of init: become the command."""
    try:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(plan.directory if os.path.isdir(plan.directory) else "/")
        os.execvpe(plan.command[0], plan.command, plan.environment)
    except OSError as error:
        say(f"{plan.command[0]}: {error.strerror}")
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def open_stage(plan: Plan) -> int:
    """Open a stage, run the plan's command in it, wait; answer the status.  When this process ends, so does the stage."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    handled = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    alive, ours = os.pipe2(os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWPID)
    except OSError as error:
        raise StageError(NOT_ALLOWED.format(error)) from None
    child = os.fork()
    if child == 0:
        os.close(ours)
        become_init(plan, alive)
    os.close(alive)
    end: Optional[float] = None
    while True:
        pid, result = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        info = signal.sigwaitinfo(handled) if end is None else signal.sigtimedwait(handled, max(0.0, end - time.monotonic()))
        if info is None:
            os.kill(child, signal.SIGKILL)
            end = time.monotonic() + GRACE
        elif info.si_signo != signal.SIGCHLD and not (info.si_code == SI_KERNEL and info.si_signo in (signal.SIGINT, signal.SIGQUIT)):
            os.kill(child, info.si_signo if end is None else signal.SIGKILL)
            end = time.monotonic() + GRACE
    os.close(ours)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = os.waitstatus_to_exitcode(result)
    return 128 - status if status < 0 else status

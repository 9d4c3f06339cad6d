"""A room: a directory that holds a whole Debian, and a command run in it, in namespaces of its own that end with it.

Runs as root on the host. Trusts the directory. Nothing is mounted where others see it; whatever ends this process ends the room.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
from typing import NoReturn, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "stage"))

import machine  # noqa: E402
from place import read, write  # noqa: E402

ENVIRONMENT = {**machine.CLEAN_ENVIRONMENT, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")


def run(top: str, argv: Sequence[str], log: str, network: bool = True, binds: Sequence[tuple[str, str]] = (), directory: str = "/root") -> int:
    """Run a command in the room `top`/root, with its output appended to `log`; its exit status. `binds` are host directories and places in the room."""
    child = os.fork()
    if child == 0:
        status = os.EX_SOFTWARE
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            machine.libc.prctl(machine.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for fd, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(fd, target)
            machine.unshare(machine.CLONE_NEWPID)
            first = os.fork()
            if first == 0:
                _be_first(top, argv, network, binds, directory)
            status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        finally:
            os._exit(status if status >= 0 else 128 - status)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _be_first(top: str, argv: Sequence[str], network: bool, binds: Sequence[tuple[str, str]], directory: str) -> NoReturn:
    """Pid 1 of the room: enter it, start the command, reap what dies, leave with the command's status."""
    status = os.EX_SOFTWARE
    try:
        machine.libc.prctl(machine.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _enter(top, network, binds)
        command = os.fork()
        if command == 0:
            os.chdir(directory)
            proxies = {name: value for name, value in os.environ.items() if name.lower() in PROXIES} if network else {}
            os.execvpe(argv[0], list(argv), {**ENVIRONMENT, **proxies})
        while True:
            pid, result = os.wait()
            if pid == command:
                status = os.waitstatus_to_exitcode(result)
                break
    except OSError as error:
        print(f"room: {argv[0]}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status if status >= 0 else 128 - status)


def _enter(top: str, network: bool, binds: Sequence[tuple[str, str]]) -> None:
    machine.unshare(machine.CLONE_NEWNS | machine.CLONE_NEWUTS | machine.CLONE_NEWIPC | (0 if network else machine.CLONE_NEWNET))
    machine.mount("none", "/", None, machine.MS_REC | machine.MS_PRIVATE)
    os.chdir(top)
    machine.mount("root", "root", None, machine.MS_BIND)
    machine.mount_kernel_parts()
    names = {name: read(f"/etc/{name}") for name in ("resolv.conf", "hosts") if network}
    for source, place in binds:
        machine.bind(source, "root" + place, readonly=False)
    os.mkdir("root/run/old")
    machine.checked(machine.libc.pivot_root(b"root", b"root/run/old"), "pivot_root")
    os.chdir("/")
    machine.checked(machine.libc.umount2(b"/run/old", machine.MNT_DETACH), "umount")
    os.rmdir("/run/old")
    for name, text in names.items():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/etc/{name}")
        write(f"/etc/{name}", text)
    if not network:
        machine.raise_loopback()

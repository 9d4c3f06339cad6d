"""Memory whose pages never come: what a user who may mount a file system of its own (FUSE) can hold in the kernel with it.

A copy to or from such memory stops with the lock of a directory (that is listed) or of a file (that is written) held, and nobody can kill it but by
ending the file system. Runs as: a user who attacks, inside a stage. Uses: Debian's fusermount3.

    with held.holding(start, "/tmp/mine", held.directory, "/somewhere"):       # start(deed) begins it as that user, in a session of its own
        ...
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from typing import Callable, Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _FLUSH, _RELEASE, _INIT, _BATCH_FORGET = 1, 2, 3, 14, 15, 25, 18, 26, 42
_SIZE = 1 << 20
_NO = -38                          # ENOSYS
_kept: list[ctypes.c_char] = []    # a mapping lasts as long as who refers to it


def device() -> str:
    """Why no user can have FUSE here; "" where each can."""
    try:
        if not os.path.exists("/dev/fuse"):
            os.mknod("/dev/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
        os.chmod("/dev/fuse", 0o666)           # as udev makes it, for each user
        with contextlib.suppress(OSError):
            os.removexattr("/dev/fuse", "system.posix_acl_access")
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no FUSE in this kernel, or none for this stage: {error.strerror}"
    return ""


def mount(place: str) -> int:
    """Have fusermount3 mount a file system of ours there; the descriptor that its questions come from. Raises CalledProcessError."""
    ours, its = socket.socketpair()
    subprocess.run(["/usr/bin/fusermount3", "-o", "fsname=hostile", "--", place], pass_fds=[its.fileno()], check=True, stdin=subprocess.DEVNULL,
                   env={"PATH": "/usr/bin:/bin", "_FUSE_COMMFD": str(its.fileno())})
    return int(socket.recv_fds(ours, 1, 1)[1][0])


def mount_apart(place: str) -> None:
    """Mount one in a namespace of one's own, without fusermount3. Raises CalledProcessError."""
    program = """if True:
        import ctypes, os, sys
        fd = os.open("/dev/fuse", os.O_RDWR)
        if ctypes.CDLL(None).mount(b"hostile", sys.argv[1].encode(), b"fuse", 0, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd):
            sys.exit("cannot mount")
    """
    subprocess.run(["/usr/bin/unshare", "-Urm", "/usr/bin/python3", "-c", program, place], check=True, stdin=subprocess.DEVNULL)


def _serve(fd: int, place: str) -> None:
    """A file system with one file: it can be opened, and no read of it is ever answered."""
    def attributes(node: int) -> bytes:
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == 1 else (stat.S_IFREG | 0o600, _SIZE)
        return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)
    while True:
        question = os.read(fd, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("<IIQQ", question)
        error, answer = 0, b""
        if opcode == _INIT:
            answer = struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 4096, 1, 0, 0, *[0] * 8)
        elif opcode == _LOOKUP:
            answer = struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + attributes(2)
        elif opcode == _GETATTR:
            answer = struct.pack("<Q2I", 3600, 0, 0) + attributes(node)
        elif opcode == _OPEN:
            answer = struct.pack("<Q2I", 0, 0, 0)
        elif opcode == _READ:
            os.close(os.open(place + ".asked", os.O_WRONLY | os.O_CREAT, 0o644))
            continue
        elif opcode in (_FORGET, _BATCH_FORGET):
            continue
        elif opcode not in (_FLUSH, _RELEASE):
            error = _NO
        os.write(fd, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)


def memory(place: str) -> int:
    """The address of memory whose pages never come, for this process; it lasts as long as the session's processes."""
    fd = mount(place)
    if os.fork() == 0:
        try:
            _serve(fd, place)
        finally:
            os._exit(0)
    os.close(fd)
    file = os.open(place + "/file", os.O_RDONLY)
    _kept.append(ctypes.c_char.from_buffer(mmap.mmap(file, _SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)))
    return ctypes.addressof(_kept[-1])


def _and_then(deed: Callable[[], object], place: str) -> None:
    """In a process of its own: when the first copy hangs, wait for the same lock, so that nobody else gets it."""
    if os.fork() == 0:
        while not os.path.exists(place + ".asked"):
            time.sleep(0.01)
        os.close(os.open(place + ".waits", os.O_WRONLY | os.O_CREAT, 0o644))
        with contextlib.suppress(OSError):
            deed()
        os._exit(0)


def directory(place: str, path: str) -> None:
    """Hold a directory that can be listed, and written: nobody looks up a name there that the kernel does not know."""
    listed = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    _and_then(lambda: os.mkdir(path + "/held"), place)
    _libc.getdents64(listed, ctypes.c_void_p(memory(place)), ctypes.c_size_t(4096))


def file(place: str, path: str) -> None:
    """Hold a file that can be written: nobody changes its owner, moves or removes it (on XFS: nor reads it)."""
    written = os.open(path, os.O_WRONLY | os.O_APPEND)
    _libc.write(written, ctypes.c_void_p(memory(place)), ctypes.c_size_t(4096))


def removal(place: str, path: str) -> None:
    """Hold a directory that can be written, whether it can be listed or not: by removing a file there that is held."""
    mine = f"{path}/{'h' * 43}"
    os.close(os.open(mine, os.O_WRONLY | os.O_CREAT, 0o644))
    _and_then(lambda: os.unlink(mine), place)
    file(place, mine)


@contextlib.contextmanager
def holding(start: Callable[[Callable[[], object]], int], place: str, how: Callable[[str, str], None], path: str) -> Iterator[int]:
    """Hold it as whom `start` starts, with a file system at `place`, an empty directory of theirs; afterwards all is let go."""
    process = start(lambda: how(place, path))
    try:
        end = time.monotonic() + 20
        while not (os.path.exists(place + ".asked") and (how is file or os.path.exists(place + ".waits") and _hanging(process))):
            if time.monotonic() > end:
                raise TimeoutError(f"{path} is not held")
            time.sleep(0.01)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        subprocess.run(["umount", "-l", place], check=False)
        for suffix in (".asked", ".waits"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place + suffix)


def _hanging(session: int) -> list[int]:
    """The processes of a session that wait in the kernel and take no signal."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stream:
                words = stream.read().rpartition(")")[2].split()
            if words[0] == "D" and int(words[3]) == session:
                found.append(int(entry))
    return found

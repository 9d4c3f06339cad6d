"""What really happens to files while somebody attacks: every open, read, listing and write, as the kernel reports it (fanotify(7))."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_CLOEXEC, _NONBLOCK, _UNLIMITED = 0x1, 0x2, 0x10
_ADD, _FILESYSTEM = 0x1, 0x100
ACCESS, MODIFY, OPEN, ON_DIRECTORY = 0x1, 0x2, 0x20, 0x40000000
_AT_FDCWD = -100


class Witness:
    """Records (path, mask) of what any process but this one does on some file systems. Use as a context."""

    def __init__(self, *places: str) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._fd = _libc.fanotify_init(_CLOEXEC | _NONBLOCK | _UNLIMITED, os.O_RDONLY | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "fanotify_init: " + os.strerror(ctypes.get_errno()))
        for place in places:
            mask = ctypes.c_uint64(ACCESS | MODIFY | OPEN | ON_DIRECTORY)
            if _libc.fanotify_mark(self._fd, _ADD | _FILESYSTEM, mask, _AT_FDCWD, place.encode()):
                raise OSError(ctypes.get_errno(), f"fanotify_mark: {place}: " + os.strerror(ctypes.get_errno()))
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ended)
        self._thread.join()
        os.close(self._fd)
        os.close(self._end)

    def _watch(self) -> None:
        while True:
            ready = select.select([self._fd, self._end], [], [])[0]
            while self._take():
                pass
            if self._end in ready:
                return

    def _take(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        except OSError:
            return True                        # an object that cannot be opened again; the event is consumed
        while len(data) >= 24:
            size, _, _, _, mask, fd, pid = struct.unpack_from("=IBBHQii", data)
            data = data[size:]
            if fd >= 0:
                if pid != os.getpid():
                    self.seen.add((os.readlink(f"/proc/self/fd/{fd}"), mask & 0xFFFFFFFF))
                os.close(fd)
        return True

    def paths(self, kind: int) -> set[str]:
        """The paths of one kind of event."""
        return {path for path, mask in self.seen if mask & kind}

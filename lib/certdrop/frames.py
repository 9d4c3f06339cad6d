"""How root and those who look at something for it talk: a list of cases one way, an answer to each the other way, each behind its length.

The cases lie in a file in memory, so that whoever asks never waits for whoever reads. Runs as: whoever imports it. Trusts: nothing.
Reads and writes: descriptors that it is given.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HEAD = struct.Struct(">I")         # bytes that follow


def listed(cases: Iterable[bytes]) -> int:
    """A descriptor of a file in memory that has these cases, to be read from its beginning. The caller closes it."""
    fd = os.memfd_create("cases")
    with open(fd, "wb", closefd=False) as stream:
        for case in cases:
            stream.write(HEAD.pack(len(case)) + case)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def cases() -> Iterator[bytes]:
    """Each case in turn; what comes after it is not read before it is asked for."""
    while len(head := _exactly(HEAD.size)) == HEAD.size:
        yield _exactly(*HEAD.unpack(head))


def _exactly(size: int) -> bytes:
    """So many bytes, or what there is of them."""
    data = b""
    while len(data) < size and (more := os.read(0, size - len(data))):
        data += more
    return data


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer each case, in turn."""
    for case in cases():
        say(answer(case))


def say(answer: bytes) -> None:
    """One answer."""
    data = HEAD.pack(len(answer)) + answer
    while data:
        data = data[os.write(1, data):]

"""How those who look at something for root answer: standard input is the list of cases (frames.py), standard output has an answer to each.

Runs as: whoever imports it, which is never root. Trusts: nothing. Reads and writes: descriptors 0 and 1.
"""

from __future__ import annotations

import os

from certdrop.frames import HEAD

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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

"""How root asks those who look at something for it: a list of cases one way, an answer to each the other way (answering.py), each behind its length.

The cases lie in a file in memory, so that whoever asks never waits for whoever reads. Runs as: whoever imports it. Trusts: nothing.
Reads and writes: descriptors that it is given.
"""

from __future__ import annotations

import os
import struct

HEAD = struct.Struct(">I")         # bytes that follow


def listed(cases: list[bytes]) -> int:
    """A descriptor of a file in memory that has these cases, to be read from its beginning. The caller closes it."""
    fd = os.memfd_create("cases")
    with open(fd, "wb", closefd=False) as stream:
        for case in cases:
            stream.write(HEAD.pack(len(case)) + case)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd

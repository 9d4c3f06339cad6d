"""A token among the challenges, for as long as somebody looks: put there as the issuer puts one, and removed again whatever happens.

Run by itself it is the process that has it, as _certdrop: the token lies there until standard input ends, and is put back where a run of
the issuer, which tidies up, took it away. Trusts: its arguments. Reads: nothing. Writes: one file in challenges/.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from certdrop.doctor.line import Line

AGAIN = 0.2                        # seconds between two looks whether it is still there
PATIENCE = 10.0                    # seconds for the process that has it to begin, and to end


class Token(NamedTuple):
    """Its name and its content; the process that has it."""

    name: str
    content: str
    process: subprocess.Popen[bytes]

    def remove(self) -> bool:
        """Have it removed; whether its process did that, and ended, in time. If not it is killed: it may have been stopped."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE) == 0
        except subprocess.TimeoutExpired:
            from certdrop.walls import become        # the process itself, which is this file run alone, has no use for it
            become.kill(self.process)
            return False


def put() -> tuple[Token | None, list[Line]]:
    """Put one; None where that is not possible, and why. To be called as root, which starts a process of _certdrop's for it."""
    from certdrop import spool, tokens
    from certdrop.walls import become
    name = "certdrop-check-" + secrets.token_hex(14)       # it and its content are as long as the CA's and the answer to it (RFC 8555 section 8.1)
    content = f"{name}.{secrets.token_hex(22)[:43]}"
    try:
        process = become.start(spool.ISSUER, ["/usr/bin/python3", "-IS", os.path.abspath(__file__), tokens.directory(), name, content], talk=True)
    except (KeyError, OSError) as error:
        return None, [_none(str(error))]
    found = Token(name, content, process)
    if process.stdout and select.select([process.stdout], [], [], PATIENCE)[0] and process.stdout.read(1) == b"+":
        return found, []
    found.remove()
    return None, [_none("it cannot write there" if process.returncode > 0 else f"it does not begin within {PATIENCE:.0f} s")]


def _none(why: str) -> Line:
    from certdrop import spool, tokens
    from certdrop.doctor.line import WARNING, Line
    return Line(WARNING, "challenges", f"no token could be put to be fetched: a process of {spool.ISSUER}'s does that, and {why}",
                f"see what else runs as {spool.ISSUER}, and {tokens.directory()}")


def hold(directory: str, name: str, content: str) -> int:
    """Be the process that has it. Raises OSError where it cannot be written."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _write(fd, name, content)
        os.write(1, b"+")
        while not select.select([0], [], [], AGAIN)[0] or os.read(0, 1):
            try:
                os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                _write(fd, name, content)
    finally:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
    return os.EX_OK


def _write(directory: int, name: str, content: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.write(fd, content.encode())
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(os.EX_NOPERM if os.getuid() == 0 else hold(*sys.argv[1:]))

"""The watcher's user, and how root's commands become it: by running again, as a fresh interpreter that has nothing of root's.

Root keeps the terminal and copies lines to it; the watcher, which reads what others wrote, has pipes and a session of its own
(TIOCSTI, CVE-2005-4890). Runs as: anyone, to become _certdrop-watch. Trusts: the kernel; of the watcher's words, that they are
to be shown, once they are nothing but text and colours. Reads: the user database. Writes: standard output and error.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
from typing import IO, Callable, TextIO

from certdrop import jail

USER = "_certdrop-watch"
LINE = 65536                       # bytes that are shown as a line, though it has not ended

_TERMINAL = "CERTDROP_TERMINAL"    # which of root's descriptors lead to a terminal, "12" for both
_SEEN = "CERTDROP_SEEN"            # set where standard input is what root saw
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def as_watcher(program: str, argv: list[str], work: Callable[[], int], otherwise: int, seen: bytes = b"", out: int | None = None) -> int:
    """Do `work`; started by root, run `program argv` as _certdrop-watch instead, and show what that says.

    `seen` is handed to it (seen_by_root), `out` is a descriptor to use as its standard output. Returns its exit code, and `otherwise`
    where it died. Raises KeyError where there is no such user, BrokenPipeError where nobody reads.
    """
    _open_standard_streams()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)             # whoever started us may have had it ignored: waiting would fail
    if os.geteuid() != 0:
        return work()
    uid, gid = jail.user_ids(USER)
    sys.stdout.flush()
    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    again = subprocess.Popen(["/usr/bin/python3", "-I", main, program, *argv], user=uid, group=gid, extra_groups=[], umask=0o077, cwd="/",
                             env=_environment(seen), start_new_session=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE if out is None else out, stderr=subprocess.PIPE)
    try:
        _hand_over(again.stdin, seen)
        _relay([(stream, fd) for stream, fd in ((again.stdout, 1), (again.stderr, 2)) if stream])
    finally:                                                  # at its end, or at ours: the terminal's signals do not reach another session
        if again.poll() is None and sys.exc_info()[0]:
            again.terminate()
        code = again.wait()
    return code if code >= 0 else otherwise


def seen_by_root() -> bytes | None:
    """What root handed over; None where root did not start this."""
    return sys.stdin.buffer.read() if _SEEN in os.environ else None


def at_terminal(stream: TextIO) -> bool:
    """Whether a person sees this standard stream, be it by way of root."""
    try:
        return stream.isatty() or str(stream.fileno()) in os.environ.get(_TERMINAL, "")
    except (OSError, ValueError):
        return False


def _environment(seen: bytes) -> dict[str, str]:
    found = {key: os.environ[key] for key in ("NO_COLOR", "TERM") if key in os.environ}
    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    if terminals:
        found["COLUMNS"] = str(os.get_terminal_size(terminals[0].fileno()).columns)
    found[_TERMINAL] = "".join(str(stream.fileno()) for stream in terminals)
    return {**jail.ENVIRONMENT, **found, **({_SEEN: "1"} if seen else {})}


def _hand_over(stream: IO[bytes] | None, seen: bytes) -> None:
    try:
        with stream or open(os.devnull, "wb") as pipe:
            pipe.write(seen)
    except BrokenPipeError:
        pass                                   # it died: its exit code says so


def _relay(pairs: list[tuple[IO[bytes], int]]) -> None:
    """Show line by line what comes, until all have ended."""
    waiting = {fd: b"" for _, fd in pairs}
    with selectors.DefaultSelector() as selector:
        for stream, fd in pairs:
            selector.register(stream, selectors.EVENT_READ, fd)
        while selector.get_map():
            for key, _ in selector.select():
                more = os.read(key.fd, LINE)
                lines, end, rest = (waiting[key.data] + more).rpartition(b"\n")
                if not more or len(rest) > LINE:              # nothing follows, or too much
                    end, rest = end + rest, b""
                waiting[key.data] = rest
                shown = clean((lines + end).decode("utf-8", "replace")).encode()
                while shown:
                    shown = shown[os.write(key.data, shown):]
                if not more:
                    selector.unregister(key.fileobj)


def clean(text: str) -> str:
    """Text and colours, and nothing else that a terminal acts on."""
    parts = _COLOUR.split(text)
    parts[::2] = ("".join(c if c.isprintable() or c == "\n" else "?" for c in part) for part in parts[::2])
    return "".join(parts)


def _open_standard_streams() -> None:
    """Where 0, 1 or 2 were closed, have them lead to /dev/null: the next file opened must not become one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)     # takes the lowest number: this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8")
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")

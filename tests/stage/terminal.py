"""Inside: a person at a terminal, that is an interactive bash on a pseudoterminal, and every byte that it was shown."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from types import TracebackType
from typing import Optional, Type

PROMPT = "ready> "


class Terminal:
    """Somebody types, as root (or as `user`), and reads."""

    def __init__(self, user: str = "", **environment: str) -> None:
        self.shown = b""
        argv = ["/bin/bash", "--norc", "--noprofile", "-i"]
        if user:
            argv = ["/usr/sbin/runuser", "-u", user, "--", *argv]
        self.child, self.fd = pty.fork()
        if self.child == 0:
            os.chdir("/")
            os.execve(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb", "PS1": PROMPT, "HISTFILE": "/dev/null", **environment})
        self.wait_prompt()

    def type(self, text: str) -> None:
        """Type this; "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self.fd, text.encode())

    def read(self, seconds: float) -> str:
        """All that is shown within so many seconds."""
        begin, end = len(self.shown), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.shown += os.read(self.fd, 65536)
                except OSError:
                    break
        return self.shown[begin:].decode("utf-8", "replace")

    def wait(self, pattern: str, timeout: float = 60.0) -> str:
        """Read until what is shown from now on matches; that text."""
        begin, end = len(self.shown), time.monotonic() + timeout
        while not re.search(pattern, self.shown[begin:].decode("utf-8", "replace")):
            if time.monotonic() > end:
                raise AssertionError(f"nothing like {pattern!r} within {timeout} s, but: {self.shown[begin:].decode('utf-8', 'replace')}")
            if select.select([self.fd], [], [], 0.2)[0]:
                self.shown += os.read(self.fd, 65536)
        return self.shown[begin:].decode("utf-8", "replace")

    def wait_prompt(self, timeout: float = 60.0) -> str:
        """Read until the shell asks for the next command; what was shown meanwhile."""
        return self.wait(re.escape(PROMPT) + "$", timeout)

    def run(self, line: str, timeout: float = 60.0) -> str:
        """A command to its end; what it showed, without the line itself and the prompt."""
        self.type(line + "\n")
        shown = self.wait(r"\n(?s:.*)" + re.escape(PROMPT) + "$", timeout)
        return shown.partition("\n")[2].removesuffix(PROMPT)

    def code(self) -> int:
        """How the last command ended."""
        return int(re.findall(r"=(\d+)=", self.run("echo =$?="))[-1])

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.child, 0)

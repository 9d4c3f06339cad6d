"""What uses the certificates: how to test it, how to reload it, and on which port to ask it.

A service is described by a file that root owns, /etc/certdrop/services.d/NAME.toml: fixed argument lists, no shell.
Runs as: root. Trusts: those files. Reads: them. Writes: nothing.
"""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable

from certdrop import events
from certdrop.config import site
from certdrop.walls import users

TIMEOUT = 60                       # seconds for a test or a reload
TOLD = 2                           # seconds after which somebody who watches is told what is waited for
SAID = 16384                       # bytes of what it says that are read

_WRONG = r"(?i)emerg|alert|fatal|error|invalid|unknown"
_NOTHING = r"(?i)test failed|error log may have|errors found in"      # after the line that says what it was


class Failed(Exception):
    """A service cannot be used now; the text says why, with the lines of its test or reload that say what is wrong."""


class Service:
    """What services.d/NAME.toml says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.test_command: list[str] = []      # "test": must end with 0 before and after a change
        self.reload_command: list[str] = []    # "reload": has it read its certificates again
        self.show_command: list[str] = []      # "show": prints all of its configuration; not needed
        self.unit = ""                         # where systemd runs, `systemctl reload UNIT` takes reload's place
        self.port = 443                        # where it is asked; 0: it cannot be, and what counts is how its reload ends
        self.starttls = ""                     # "smtp", "imap", "pop3" before the handshake
        self.waits: Callable[[str], None] = lambda text: None      # hears of a command that takes its time
        self._hung = ""                        # a command that did not end: it is not tried again in this run

    def test(self) -> None:
        """Whether its configuration would load. Raises Failed."""
        self._run(self.test_command)

    def reload(self) -> None:
        """Have it read its certificates again. Raises Failed where the command says so; only a handshake proves that it did."""
        if self.unit and os.path.isdir("/run/systemd/system"):
            self._run(["/usr/bin/systemctl", "reload", self.unit])
        else:
            self._run(self.reload_command)

    def _run(self, command: list[str]) -> None:
        import subprocess                          # here, because most runs start nothing
        words = " ".join(command)
        if words == self._hung:
            raise Failed(f"{words} did not end within {TIMEOUT} s, and was not tried again in this run")
        said = os.memfd_create("said")             # no pipe: what a program leaves running in the background may hold it open for ever
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=users.ENVIRONMENT, cwd="/", start_new_session=True)
            with open(os.pidfd_open(process.pid), "rb", 0) as ended:       # subprocess's own wait with a limit sleeps, up to 50 ms too long
                if not select.select([ended], [], [], TOLD)[0]:
                    self.waits(f"waiting for {words}, {TIMEOUT} s at most")
                if not select.select([ended], [], [], TIMEOUT - TOLD)[0]:
                    self._hung = words
                    os.killpg(process.pid, signal.SIGKILL)
            code, text = process.wait(), os.pread(said, SAID, 0).decode("utf-8", "replace")
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from error
        finally:
            os.close(said)
        if words == self._hung:
            raise Failed(f"{words} did not end within {TIMEOUT} s")
        if code:
            raise Failed(_fault(text) or f"{command[0]} ended with {code}")


def find(name: str) -> Service:
    """The service of that name. Raises Failed where this host does not have it, or nobody described it; site.ConfigError where that is done badly."""
    service, path = Service(name), f"{site.ETC}/services.d/{name}.toml"
    keys = {"test": "test_command", "reload": "reload_command", "show": "show_command", "unit": "unit", "port": "port", "starttls": "starttls"}
    try:
        site.fill(path, service, keys)
    except site.ConfigMissing as error:
        raise Failed(f"{path} does not exist; it says how to test and reload {name}") from error
    for command in (service.test_command, service.reload_command):
        if not command or not os.path.isabs(command[0]):
            raise site.ConfigError(f"{path}: test and reload must name a program by its absolute path, then its arguments")
        try:
            found = os.stat(command[0])
        except OSError as error:
            raise Failed(f"{name} is not installed ({command[0]}: {error.strerror})") from error
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise site.ConfigError(f"{path}: {command[0]} is not root's alone")
    if service.starttls not in ("", "smtp", "imap", "pop3"):
        raise site.ConfigError(f'{path}: starttls: give "smtp", "imap" or "pop3"')
    return service


def _fault(text: str) -> str:
    """What a command says that is wrong: the lines that say so, or its last one; and which rights it may have missed."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not re.search(_NOTHING, line)]
    told = "; ".join([line for line in lines if re.search(_WRONG, line)] or lines[-1:])
    lacking = users.lacking(users.BY_SERVICES) if "ermi" in told else ""       # Permission denied, Operation not permitted
    return events.clean(told, 300) + (f"; root lacks {lacking} here" if lacking else "")

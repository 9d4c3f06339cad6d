"""A session of its own for root's work, so that killing sudo or closing a terminal kills no half-done work; its words go to whoever called.

Runs as: root. Trusts: its own child. Writes: standard output and error, cleaned.
Sources: setsid(2); CVE-2005-4890 and CVE-2016-2779 (TIOCSTI) for why the terminal stays with the parent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from certdrop import TERMINAL

LOOK = 0.1                         # seconds between two looks for words
PART = 1 << 16                     # bytes of them at once

interrupted = False                # a person does not wait any more: what can be left to cron is left


def detach() -> None:
    """Go on in a child that leads a session, without a terminal. What it says it writes to files in memory, so nobody can hold it up by not reading.

    The parent shows that as it comes, and ends with the child's exit status, or at once when it is interrupted; it never returns from here.
    """
    said = {fd: os.memfd_create("said") for fd in (1, 2)}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})          # one that comes meanwhile waits until each is ready for it
    signal.signal(signal.SIGINT, _interrupt)
    child = os.fork()
    if child:
        _end_as(child, said)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
    os.environ[TERMINAL] = "".join(str(fd) for fd in said if os.isatty(fd))
    for fd, file in {0: os.open(os.devnull, os.O_RDONLY), **said}.items():
        os.dup2(file, fd)
        os.close(file)


def _interrupt(*_: object) -> None:
    global interrupted
    interrupted = True


def _end_as(child: int, said: dict[int, int]) -> None:
    """Show what the child says until it has ended, not what it leaves behind; then end as it did."""
    from certdrop import words
    program, process, shown, ended = os.path.basename(sys.argv[0]), os.pidfd_open(child), dict.fromkeys(said, 0), False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        while not ended:
            ended = bool(select.select([process], [], [], LOOK)[0])
            for fd, file in said.items():
                end = os.fstat(file).st_size
                while shown[fd] < end:
                    data = os.pread(file, min(PART, end - shown[fd]), shown[fd])
                    shown[fd] += len(data)
                    with contextlib.suppress(OSError):         # nobody reads any more: that stops nothing
                        words.put(fd, data)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.kill(child, signal.SIGINT)
        follows = "the same command again says what is there, and does the rest" if program == "certdrop-nginx" else (
            "cron asks the CA again; certdrop-status shows how it stands" + "; to have nginx serve it, give the same command again" * ("add" in sys.argv[1:2]))
        words.say(f"{program}: interrupted: nothing more is said here; root's part ends what it has begun; {follows}")
        os._exit(os.EX_TEMPFAIL)
    if code < 0:
        words.say(f"{program}: was ended by signal {-code}; the live certificates stay; the next run finishes or undoes its work")
    os._exit(code if code >= 0 else os.EX_SOFTWARE)

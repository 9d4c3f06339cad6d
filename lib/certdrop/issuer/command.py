"""certdrop-issue: asks the CA for what is due, and puts the replies into the spool.

The process that starts looks only at names, links and times. If something is due, a child shuts itself in and does all that touches the network;
of it the parent takes an exit code, and whether root should look at the spool: then it calls the one command that sudo allows it.
Runs as: _certdrop; started by root it becomes that first. Trusts: root's directories. Reads: requests/, replies/ and challenges/ of the spool (names),
the agenda. Writes: the lock, the time of last-run; the rest is the child's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import sys
import time

from certdrop import TERMINAL, VERSION, spool, tokens
from certdrop.config import site
from certdrop.issuer import posted, turn
from certdrop.issuer.agenda import Agenda
from certdrop.issuer.due import GATHER, TICK, gathered
from certdrop.issuer.options import HELP, Options, Usage
from certdrop.issuer.posted import Request

TYPE_CHECKING = False              # what typing's is, for 2 ms less
if TYPE_CHECKING:
    from collections.abc import Callable

    from certdrop.issuer.revoke import Revocations

SUDO = ["/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install"]
COURIER = "/usr/sbin/certdrop-courier"         # of a host in a fleet
ACCOUNT = ["/usr/sbin/certdrop-account", "rollover", "--due"]
INSTALL = 900                      # seconds for root to look at the spool
LONGEST = 7200.0                   # seconds for a run away from the terminal where it was started
DAY = 86400.0
LATE = 7200.0                      # seconds that a daily look may be late; later, the host slept
STOPPED = "stopped"                # issuer/: why the last run did not come to its end
REPLY = b"r"                       # the network part: a reply is in the spool; at its end b"1" or b"0", whether root should look
TOGETHER = 2.0                     # seconds after a reply for others to come: root looks at them together. By cron it is GATHER: nobody watches then


def main(argv: list[str]) -> int:
    """Returns a code of sysexits.h."""
    if os.path.exists(f"{site.ETC}/fleet/host.toml"):          # then a courier sits here
        try:
            os.execv(COURIER, [COURIER, *argv])
        except OSError as error:
            return _stop(f"{COURIER}: {error.strerror}; this host is in a fleet, and nobody carries what it wants; the live certificates stay; install "
                         f"certdrop-fleet again, or remove {site.ETC}/fleet/host.toml", os.EX_CONFIG)
    if "--help" in argv or "-h" in argv:
        print(HELP, end="")
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop-issue {VERSION}")
        return os.EX_OK
    try:
        options = Options(argv, os.isatty(2) or "2" in os.environ.get(TERMINAL, ""))
    except Usage as error:
        return say(f"{error}{'' if str(error).endswith('?') else ';'} certdrop-issue --help shows how", os.EX_USAGE)
    try:
        return as_issuer(argv, say, "what was asked of the CA may be done; cron asks again for what is due; certdrop-status shows how it stands",
                         lambda: _run(options))
    except (KeyError, PermissionError) as error:
        return _stop(f"{_plainly(error)}; this must run as {spool.ISSUER}, on directories made by certdrop's installation", os.EX_NOPERM, True, options.apart)
    except (OSError, MemoryError) as error:
        return _stop(f"{_plainly(error)}; the live certificates stay; the next run tries again", os.EX_TEMPFAIL, options.loud, options.apart)
    except KeyboardInterrupt:
        return os.EX_TEMPFAIL


def as_issuer(argv: list[str], tell: Callable[[str, int], int], follows: str, work: Callable[[], int]) -> int:
    """Do this as _certdrop: started by root or at a terminal, the same program by _certdrop and away from there, so that whoever takes it over gets nothing
    of the terminal, nor of root's. Who does not wait for its end is told what `follows`. For every program in this seat. Raises KeyError, OSError."""
    uid = pwd.getpwnam(spool.ISSUER).pw_uid
    if os.getuid() == 0 or (os.getuid() == uid and any(map(os.isatty, (0, 1, 2)))):
        from certdrop.walls import become
        try:
            code = become.run(spool.ISSUER if os.getuid() == 0 else "", [os.path.abspath(sys.argv[0]), *argv], LONGEST, outlives=True)
        except become.Stopped as stopped:
            return tell(f"{stopped}; {follows}", os.EX_TEMPFAIL)
        return code if code >= 0 else os.EX_TEMPFAIL
    if os.getuid() != uid:
        return tell(f"must be run as {spool.ISSUER} or root; try sudo", os.EX_NOPERM)
    os.umask(0o022)
    os.chdir("/")
    return work()


def _run(options: Options) -> int:
    """A look at all sites (or those that are named); by cron, another one whenever something is due before the next run."""
    end = time.monotonic() + TICK - time.time() % TICK - 5         # a clock may be set meanwhile; this one is not
    while True:
        code, waits, following = _look(options)
        if waits and options.install and not options.plan and not options.dry_run:
            _have_root_look()
        if options.cron:
            _do_daily()
        pause = following - time.time() + 1                        # to the second of one of them
        if not options.cron or not 1 < pause < end - time.monotonic():
            return code
        time.sleep(pause)                                          # no lock is held meanwhile


def _look(options: Options) -> tuple[int, bool, float]:
    """(exit code, whether root should look at the spool, when the next orders are to be placed)."""
    by_person = not options.cron and bool(options.names or options.plan or options.dry_run)
    lock = turn.take("certdrop-issue", by_person, first=options.force or options.revoke)
    if lock is None:
        return os.EX_OK, False, 0.0            # another run is at it
    try:
        _sweep()
        listed, stale, revoked = posted.requests()
        known = {request.name for request in listed} | {entry.partition("@")[0] for entry in revoked}
        unknown = [name for name in options.names if name not in known]
        if unknown:
            return say(f"{unknown[0]!a:.80}: root has posted no request for such a site; certdrop-status lists the sites", os.EX_DATAERR), False, 0.0
        now = time.time()
        agenda = Agenda(now)
        revocations, wanted = _revocations(options, revoked, now)
        if options.revoke:
            pending = []
        elif options.names:
            pending = [request for request in listed if request.name in options.names]
        elif options.plan or options.dry_run:
            pending = listed
        else:
            pending = [request for request in listed if agenda.when(request) <= now]
        code, waits = os.EX_OK, False
        if pending or stale or wanted or any(map(tokens.is_token, os.listdir(tokens.directory()))) or not _stamped():
            code, waits = _in_child(options, pending, listed, stale, agenda, revocations)
            agenda = Agenda(time.time()) if options.cron else agenda
        if options.revoke and not code:
            code = _still_wanted(options, revoked)
        now = time.time()
        return code, waits, gathered([moment for request in listed if (moment := agenda.order_at(request)) > now])
    finally:
        os.close(lock)


def _revocations(options: Options, entries: list[str], now: float) -> tuple[Revocations | None, bool]:
    """(what root wants revoked, whether the CA is to be asked for some of it now)."""
    if not entries or options.dry_run:
        return None, False
    from certdrop.issuer.revoke import Revocations
    found = Revocations(entries)
    return found, not options.plan and bool(found.due(now, options.names, options.revoke))


def _still_wanted(options: Options, entries: list[str]) -> int:
    """The exit code of a run for revocations alone: 0 where the CA says of all of them that they are done."""
    from certdrop import events
    from certdrop.issuer.revoke import Revocations
    left = [one for one in Revocations(entries).all if not one.done and (not options.names or one.name in options.names)]
    for one in left:
        say(f"{one.name}: generation {one.number:04d} is not revoked yet; the next try is at {events.stamp(one.next_try)}", os.EX_OK, options.loud)
    if any(one.kind == "refused" for one in left):         # failure.REFUSED: the CA says no, or does not offer it, which no later run changes
        return os.EX_DATAERR
    return os.EX_TEMPFAIL if left else os.EX_OK


def _stamped() -> bool:
    """Note that a run looked and found nothing to do: the watcher notices where nobody looks any more."""
    try:
        os.utime(site.STATE + "/issuer/last-run", follow_symlinks=False)       # the network part writes there: no link to a key leads away
        os.utime(site.STATE + "/issuer")       # which is all that root looks at
    except FileNotFoundError:
        return False
    return True


def _sweep() -> None:
    """Remove what a killed run left half written, of the files that no run writes again before the next order. Only under the lock."""
    for entry in ("budget", "tally"):
        with contextlib.suppress(OSError):
            os.unlink(f"{site.STATE}/issuer/.{entry}.new")


def _in_child(options: Options, pending: list[Request], listed: list[Request], stale: set[str], agenda: Agenda,
              revocations: Revocations | None) -> tuple[int, bool]:
    """Have a child do the work: (its exit code, whether root should look at the spool)."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        code = os.EX_SOFTWARE
        try:
            os.close(reader)
            from certdrop import terminal
            from certdrop.walls import jail
            jail.end_with(parent)              # which has the lock
            terminal.begin()
            from certdrop.issuer import orders
            code, waits = orders.run(options, pending, listed, stale, agenda, revocations, lambda: os.write(writer, REPLY))
            os.write(writer, b"1" if waits else b"0")
            sys.stdout.flush()
        except site.ConfigError as error:
            code = _stop(f"{error}; the live certificates stay", os.EX_CONFIG, True, options.apart)
        except (OSError, MemoryError) as error:
            if getattr(error, "errno", 0) == errno.EPERM:      # modes say EACCES: a system call was refused that this part is not known to need
                code = _stop(f"{error}; the live certificates stay; certdrop-check says which walls stand; please report this", os.EX_SOFTWARE)
            else:
                code = _stop(f"{_plainly(error)}; the live certificates stay; the next run tries again", os.EX_TEMPFAIL, options.loud, options.apart)
        except KeyboardInterrupt:
            code = os.EX_TEMPFAIL
        except ImportError as error:
            from certdrop.start import incomplete
            code = incomplete("certdrop-issue", error)
            _stop(str(error), code, False)
        except Exception as error:
            if type(error).__name__ == "Moved":
                _stop(f"{error}; the live certificates stay", os.EX_SOFTWARE)
            else:
                import traceback
                _stop(f"internal error; the live certificates stay; please report this\n{traceback.format_exc()}", os.EX_SOFTWARE)
        finally:
            os._exit(code)
    os.close(writer)
    waits = _hear(reader, options.install, GATHER if options.cron else TOGETHER)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        code = say(f"the part that talks to the CA was ended by signal {-code}; the live certificates stay; the next run tries again",
                   os.EX_TEMPFAIL, options.loud)
    return code, waits


def _hear(reader: int, install: bool, together: float) -> bool:
    """Whether root should look when the child has ended. Of replies that come before, root is told so many seconds after the first of them: then no site
    waits for an order of another's that hangs, and few reload services for many."""
    import select
    look_at = 0.0
    while True:
        if not select.select([reader], [], [], max(0.0, look_at - time.monotonic()) if look_at else None)[0]:
            _have_root_look()
            look_at = 0.0
            continue
        said = os.read(reader, 4096)
        if not said:
            os.close(reader)
            return look_at > 0.0               # it was killed, or could not end as it should: what came before waits all the same
        if said.endswith((b"0", b"1")):
            os.close(reader)
            return said.endswith(b"1")
        if install and REPLY in said:
            look_at = look_at or time.monotonic() + together


def _do_daily() -> None:
    """Once a day: certdrop-account alone may have the account's key changed, and knows when; and whether root and watcher run."""
    stamp, now, age = site.STATE + "/issuer/account-looked-at", time.time(), DAY + LATE
    try:
        age = now - os.stat(stamp, follow_symlinks=False).st_mtime
        if 0 <= age < DAY:
            return
    except FileNotFoundError:
        os.close(os.open(stamp, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
    os.utime(stamp, follow_symlinks=False)
    if 0 <= age < DAY + LATE:                  # else certdrop is new, or the host slept: then it is not known
        _tell_silences(now)
    _call(ACCOUNT)                             # where that fails, tomorrow again


def _tell_silences(now: float) -> None:
    """Say who of root and the watcher was not seen to run for more than a day."""
    for who, entry, follows in (("keeper", "keeper/last-run", "no certificate is installed"), ("watcher", "watcher/state.json", "nobody is told of failures")):
        try:
            seen = now - os.lstat(f"{site.STATE}/{entry}").st_mtime
        except OSError:
            seen = 2 * DAY
        if not -spool.STEP <= seen <= DAY + 2 * LATE:          # the look before may be that old; a moment that has not come says nothing
            from certdrop import events, happened
            events.Log("issuer").write(happened.SILENT, who=who)
            say(f"the {who} was not seen to run for more than a day; without it {follows}; sudo certdrop-check says what keeps it from that", os.EX_OK)


def _have_root_look() -> None:
    _call(SUDO)                                # where that fails, root's own run takes it within the hour


def _call(argv: list[str], seconds: float = INSTALL) -> bool:
    """Run a program of ours from / to its end; whether that came in so many seconds. One that does not end is left behind: root's cannot be killed."""
    import signal

    from certdrop.walls import users
    try:                                       # subprocess would look every 50 ms whether it has ended, and takes 10 ms to be loaded
        child = os.posix_spawn(argv[0], argv, users.ENVIRONMENT, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
                               setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    except OSError:
        return False
    if _has_ended(child, seconds):
        os.waitpid(child, 0)
        return True
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGKILL)
    return False


def _has_ended(child: int, seconds: float) -> bool:
    """Wait so many seconds for a child to end, and no moment longer than it takes (pidfd_open(2), where there is that)."""
    import select
    end = time.monotonic() + seconds
    try:
        ended = os.pidfd_open(child)
    except OSError:                            # a kernel before 5.3, no descriptor
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
            time.sleep(0.02)
        return time.monotonic() < end
    try:
        return bool(select.select([ended], [], [], seconds)[0])
    finally:
        os.close(ended)


def _plainly(error: Exception) -> str:
    """An error in words: of a file, its path and what the system says of it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or "no memory"


def _stop(text: str, code: int, loud: bool = True, apart: bool = False) -> int:
    """Say it, and leave it for those who would ask why nothing runs; returns the code."""
    leave(text)
    return say(text, code, loud, apart)


def leave(text: str) -> None:
    """Note why a run stopped, for those who would ask why nothing runs."""
    try:
        from certdrop.issuer import notes
        if os.geteuid():                       # root writes nothing there
            notes.put(STOPPED, text.encode("utf-8", "replace"))
    except (OSError, MemoryError, ImportError):
        pass                                   # a disk that is full, or read-only: who asks sees that


def say(text: str, code: int, loud: bool = True, apart: bool = False) -> int:
    """A line for a person, where one watches or must act; returns the code. What is kept `apart` goes to standard output."""
    if loud:
        from certdrop import words             # which a run with nothing to say can spare
        words.say(f"certdrop-issue: {text}", to=1 if apart else 2)
    return code

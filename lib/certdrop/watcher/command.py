"""certdrop-watch: tells the administrator what goes wrong, and that nothing runs any more.

Two processes, parted before anything that others wrote is read: the reader shuts itself in, looks and writes the mail's text; the
sender (this process, not shut in, because sendmail needs its set-id bits) gets that text by pipe and hands it to the way out.
Where the reader does not come to its end, the sender says so, by mail. Runs as: _certdrop-watch; started by root it becomes it.
Trusts: root's configuration. Reads: public state. Writes: /var/lib/certdrop/watcher, its log.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import stat
import sys
import time
from typing import Any

from certdrop import events, happened, spool, words
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import layout
from certdrop.config import general, persist
from certdrop.config import site as configuration
from certdrop.doctor import mail
from certdrop.doctor import line as check_line
from certdrop.start import incomplete
from certdrop.trust.browsers import Browsers
from certdrop.walls import jail, syscalls
from certdrop.watcher import alarm, evidence, handshake, log, mailer, message, verdict
from certdrop.watcher.evidence import MailHealth, Reader
from certdrop.watcher.look import look
from certdrop.watcher.places import Places
from certdrop.watcher.principal import USER, as_watcher, at_terminal
from certdrop.watcher.verdict import Thresholds, Verdict

LINE = Program("certdrop-watch", "certdrop-watch(8)", Syntax(
    ("[--test | --check | --deliver]",), "Looks at all sites, and sends one mail when there is something to tell; runs hourly by itself.", {
        "--test": "send a message now, and say where it went",
        "--check": "say whether there is a way out, without using it",
        "--deliver": "send the message on standard input (for certdrop-watch.socket, where systemd shuts the watcher in)",
    }, "sudo certdrop-watch --test", "Where mail goes stands in [mail] of /etc/certdrop/certdrop.toml.", takes_names=False))
TIME = 240                         # seconds for the reader
GRACE = 5.0                        # seconds for the reader to be gone
FRAME = 128 * 1024                 # bytes of a message by pipe
CONFIRM = 3.0                      # seconds until a service that does not show the certificate is asked once more
RESOLVER = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/run/systemd/resolve")
TAIL = 8192                        # bytes of a log's end


def main(argv: list[str]) -> int:
    """The program; returns an exit code of sysexits.h. On a terminal it says what it found."""
    return LINE.main(argv, _checked)


def _checked(typed: Words) -> int:
    asked = list(typed.options)
    if len(asked) > 1:
        raise Usage(f"{asked[0]} and {asked[1]} exclude each other")
    if asked in ([], ["--test"]) and os.geteuid() not in (0, _uid()):
        return _refuse(f"{'--test ' * len(asked)}must be run as root; try sudo: it sends mail in this host's name")
    work = {"--test": send_test, "--check": check, "--deliver": deliver}.get(asked[0], run) if asked else run
    try:
        return as_watcher("certdrop-watch", asked, lambda: _guarded(work), os.EX_SOFTWARE)
    except KeyError as error:
        return _say(f"{events.clean(error)}; install the package again", os.EX_NOPERM)
    except OSError as error:                   # no process, no memory, nobody who reads
        return _say(f"{events.clean(error)}; the next run tries again", os.EX_TEMPFAIL)


def _uid() -> int:
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return 0                               # said later


def _refuse(text: str) -> int:
    words.say(f"certdrop-watch: {text}")       # whoever asks is told, terminal or not
    return os.EX_NOPERM


def _guarded(work: Any) -> int:
    try:
        found: int = work(mailer.Route(general.load_config().mail))
        return found
    except configuration.ConfigError as error:
        return _say(str(error), os.EX_CONFIG)
    except mailer.Undelivered as error:
        return _say(f"{error}; mail does not go out", os.EX_TEMPFAIL)


def send_test(route: mailer.Route) -> int:
    """--test: send a message now, and say where it went."""
    try:
        mailer.deliver(route, f"[certdrop] {route.name}: a test", "This is a test: mail of certdrop-watch goes this way.\n")
    except mailer.Undelivered as error:
        print(f"certdrop-watch: {error}; mail does not go out", file=sys.stderr)       # whoever asks is told, terminal or not
        return os.EX_TEMPFAIL
    print(f"certdrop-watch: a test message was handed over for {route.words()}")
    return os.EX_OK


def check(route: mailer.Route) -> int:
    """--check: say whether there is a way out, without using it."""
    try:
        mailer.check(route)
    except mailer.Undelivered as error:
        return _say(str(error), os.EX_CONFIG)
    print(f"certdrop-watch: mail goes to {route.words()}")
    for line in mail.silence(route, Reader().watcher()):
        if line.level != check_line.OK:        # there is a way out, and something besides that somebody should know
            words.say(f"certdrop-watch: {events.clean(f'{line.what}: {line.why}; {line.mend}')}")
    return os.EX_OK


def deliver(route: mailer.Route) -> int:
    """--deliver: send the message on standard input, and answer `delivered`, or what failed."""
    asked = receive(0, time.monotonic() + mailer.PATIENCE)
    if asked is None:
        return _say("no message on standard input", os.EX_DATAERR)
    try:
        mailer.deliver(route, str(asked.get("subject")), str(asked.get("body")))
    except mailer.Undelivered as error:
        print(error)
        return os.EX_TEMPFAIL
    print("delivered")
    return os.EX_OK


def run(route: mailer.Route) -> int:
    """Look, and tell. Returns 0, 75 where the way out failed, 70 where the reader did not come to its end."""
    mine, its = _pipes()
    child = os.fork()
    if child == 0:
        code = os.EX_SOFTWARE
        try:
            for fd in mine:
                os.close(fd)
            code = read_and_write(its, route)
        except ImportError as error:
            code = incomplete("certdrop-watch", error)
        except Exception as error:             # said, not raised: the sender's code is not for this process
            _say(f"{type(error).__name__}: {events.clean(error)}", code)
        finally:
            sys.stdout.flush()
            os._exit(code)
    for fd in its:
        os.close(fd)
    failed = send(mine, route)
    how = _ended(child, failed is not None)
    if how:
        return _reader_failed(route, how)
    return _say(f"{failed}; the next run tries again", os.EX_TEMPFAIL) if failed else os.EX_OK


def _ended(child: int, properly: bool) -> str:
    """How the reader ended, "" for well. Only the pipe is waited for, not its death: in the kernel a process can hang that nobody can kill."""
    if not properly:
        os.kill(child, signal.SIGKILL)
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return f"its reader ended with {code}" if code or not properly else ""
        time.sleep(0.02)
    return "" if properly else "its reader hangs, and cannot be killed"


# The sender.

def send(pipes: tuple[int, int], route: mailer.Route) -> str | None:
    """Serve the reader until it is done: at most one mail and one heartbeat. Returns what failed, "" for nothing, None for no proper end."""
    end = time.monotonic() + TIME
    failed, allowed = "", {"mail", "heartbeat"}
    while True:
        asked = receive(pipes[0], end)
        if asked is None or asked.get("do") == "done":
            return None if asked is None else failed
        todo = str(asked.get("do"))
        if todo not in allowed:
            return None
        allowed.discard(todo)
        try:
            if todo == "mail":
                mailer.deliver(route, str(asked.get("subject")), str(asked.get("body")))
            else:
                mailer.beat(route)
            error = ""
        except mailer.Undelivered as undelivered:
            error = str(undelivered)
        failed = failed or (error and f"{error}; mail does not go out" * (todo == "mail") or error)
        transmit(pipes[1], {"error": error})


def _reader_failed(route: mailer.Route, how: str) -> int:
    """The eyes are shut: say so, once a day."""
    text = f"certdrop-watch could not look at the certificates: {how}"
    stamp = configuration.STATE + "/watcher/blind"
    try:
        told = os.lstat(stamp).st_mtime
    except OSError:
        told = 0
    if abs(time.time() - told) >= alarm.DAILY:
        try:
            mailer.deliver(route, f"[certdrop] {route.name}: nobody watches the certificates", text + ".\nRun certdrop-watch and certdrop-status by hand.\n")
            os.close(os.open(stamp, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
            os.utime(stamp, follow_symlinks=False)
        except (mailer.Undelivered, OSError) as error:
            text += f"; {events.clean(error)}"
    log.open_log().warning("reader-failed", error=how)
    return _say(text, os.EX_SOFTWARE)


# The reader.

def read_and_write(pipes: tuple[int, int], route: mailer.Route) -> int:
    """Shut in, look at everything, and have the sender tell what is to be told."""
    now = time.time()
    journal = log.open_log()
    reader = Reader()
    places = Places()
    own = spool.open_directory(configuration.STATE + "/watcher")
    read_only = evidence.read_only()
    disorder = layout.deviations()             # root's table, and owners and modes: nothing that others wrote
    for wall in shut_in(ports(reader, places), *reader.loadable()):
        journal.warning(happened.UNCONFINED, error=wall)
    before = reader.watcher()
    sites = look_twice(reader, places, now)
    runs = {"keeper": reader.last_run("keeper"), "issuer": reader.last_run("issuer")}
    problems = alarm.of_host(runs["keeper"], runs["issuer"], sites, disorder, now, read_only)
    problems += [problem for site in sites for problem in alarm.of_site(site, now)]
    if any(site.evidence.validation == persist.METHOD for site in sites):
        from certdrop.watcher import records   # few have what this needs
        problems += records.problems(reader, [site.evidence for site in sites], now)
    if os.path.isdir(f"{configuration.ETC}/fleet"):
        from certdrop.watcher import fleet
        problems += fleet.problems(reader.issuer, now)
    kind = alarm.decide(before, problems, now, configuration.STATE in read_only)
    after = MailHealth(int(now), before.failed if problems else "", before.told, before.mailed)
    if kind:
        tails = {who: tail(f"{events.LOGS}/{who}.log") for who in runs}
        subject, body = message.write(kind, problems, runs, tails, route.name, now)
        after.failed = ask(pipes, {"do": "mail", "subject": subject, "body": body})
        journal.info(happened.MAIL_FAILED if after.failed else happened.MAILED, kind=kind, problems=len(problems), error=after.failed)
        if not after.failed:
            after.mailed = int(now)
            after.told = {problem.key: before.told.get(problem.key, int(now)) for problem in problems}
    if route.heartbeat and not problems:
        after.heartbeat = ask(pipes, {"do": "heartbeat"}).removeprefix(mailer.NO_BEAT)
        journal.info("heartbeat-failed" if after.heartbeat else "heartbeat", error=after.heartbeat)
    noted = {"ran": after.at, "failed": after.failed, "told": after.told, "mailed": after.mailed, "heartbeat": after.heartbeat}
    if configuration.STATE not in read_only:       # else that is told, and what was told is not known
        spool.write(own, "state.json", json.dumps(noted).encode(), 0o644)
    journal.looked(sites=len(sites), problems=len(problems))
    transmit(pipes[1], {"do": "done"})
    if at_terminal(sys.stdout):
        for problem in problems:
            print(f"certdrop-watch: {problem.subject}")
        told = f"mailed to {route.words()}" if kind and not after.failed else "nothing new to mail"
        print(f"certdrop-watch: sites: {len(sites)}, problems: {len(problems)}; {told}")
    return os.EX_OK


def shut_in(reachable: set[int], *browsers: Browsers) -> list[str]:
    """Read public state, write the watcher's own, connect to where services listen, and nothing else, for good. Returns what could not be had."""
    "host.example".encode("idna")              # what would be loaded later is loaded now
    handshake.context()
    evidence.load_parser()
    for loaded in browsers:
        try:
            loaded.load()
        except (OSError, ValueError):
            pass                               # said of each site
    jail.forbid(NPROC=0, CORE=0, NOFILE=256, FSIZE=64 << 20, CPU=180, AS=2 << 30)
    jail.give_up_privileges()
    state = configuration.STATE
    lacking = []
    try:
        jail.landlock(read=(configuration.ETC + "/sites.d", *(f"{state}/{part}" for part in ("sites", "live", "proven", "keeper", "issuer")),
                            configuration.ETC + "/fleet", "/var/lib/certdrop-fleet/report", events.LOGS, "/usr/lib", "/usr/share/certdrop", *RESOLVER),
                      write=(state + "/watcher",), ports=tuple(sorted(reachable | {53})))
    except jail.Unconfined as error:
        lacking.append(str(error))
    try:
        syscalls.Filter(syscalls.READER).enter()
    except jail.Unconfined as error:
        lacking.append(str(error))
    return lacking


def ports(reader: Reader, places: Places) -> set[int]:
    """Where the sites are asked for; all of that is root's configuration."""
    found = set()
    for name in reader.names():
        try:
            site = configuration.load_site(name, reader.config)
            found |= {port for _, port, _ in places.of(site.services, site.probe)}
            for directory in general.directories(site):
                reader.browsers_by(directory)  # their roots are loaded before this process shuts itself in
        except configuration.ConfigError:
            pass                               # said when the site is looked at
    return found


def look_twice(reader: Reader, places: Places, now: float) -> list[Verdict]:
    """The verdicts; who does not show its certificate is asked once more, because services restart."""
    sites = look(reader, reader.names(), places, Thresholds(), now)
    doubted = [site.evidence.name for site in sites if site.state == verdict.NOT_SERVED and not site.evidence.install]
    if doubted:
        time.sleep(CONFIRM)
        again = {site.evidence.name: site for site in look(reader, doubted, places, Thresholds(), now)}
        sites = [again.get(site.evidence.name, site) for site in sites]
    return sites


def tail(path: str) -> list[str]:
    """The last lines of a log that another principal writes; nothing where it cannot be read safely."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return []
        data = os.pread(fd, TAIL, max(0, found.st_size - TAIL))
    except OSError:
        return []
    finally:
        os.close(fd)
    return [events.clean(line, message.WIDTH) for line in data.decode("utf-8", "replace").splitlines()[-message.TAILS:]]


# The pipe between them: one JSON object in a line.

def ask(pipes: tuple[int, int], what: dict[str, object]) -> str:
    """Have the sender do something; what failed, or "" for nothing."""
    transmit(pipes[1], what)
    answer = receive(pipes[0], time.monotonic() + 2 * mailer.TIMEOUT)
    return events.clean(answer.get("error", ""), 300) if answer else "the sender did not answer"


def transmit(fd: int, what: dict[str, object]) -> None:
    """Write one message."""
    view = memoryview(json.dumps(what).encode() + b"\n")
    while view:
        view = view[os.write(fd, view):]


def receive(fd: int, end: float) -> dict[str, object] | None:
    """Read one message; None where none comes in time, or it is too long, or none."""
    data = b""
    while not data.endswith(b"\n"):
        ready = select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]
        more = os.read(fd, 65536) if ready else b""
        if not more or len(data) > FRAME:
            return None
        data += more
    try:
        return evidence.as_object(data)
    except ValueError:
        return None


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """((read, write) of the sender, (read, write) of the reader)."""
    (hear, say), (listen, answer) = os.pipe(), os.pipe()
    return (hear, answer), (listen, say)


def _say(text: str, code: int) -> int:
    """One line for people; under cron and timers only where somebody must act (70, 77, 78)."""
    if at_terminal(sys.stderr) or code in (os.EX_SOFTWARE, os.EX_NOPERM, os.EX_CONFIG):
        words.say(f"certdrop-watch: {events.clean(text)}")
    return code

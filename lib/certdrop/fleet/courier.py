"""certdrop-courier: on a host of a fleet, in certdrop-issue's seat. Carries root's requests to the fleet's database and brings the replies.

The process that starts forks a child that shuts itself in and talks with the database; of it the parent takes an exit code, and whether root should
look at the spool: then it calls the one command that sudo allows it. The same words are understood as by certdrop-issue.
Runs as: _certdrop; started by root it becomes that first. Trusts: root's directories. Reads: requests/, sites/, live/, keeper/. Writes: replies/,
the ledger, last-run, the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import time

from certdrop import TERMINAL, VERSION, events, spool, words
from certdrop.config import dane, site
from certdrop.fleet import database, local, walls
from certdrop.fleet.database import Away, Database, Machine, Row
from certdrop.issuer import command, notes, turn
from certdrop.issuer.due import TICK
from certdrop.issuer.options import Options, Usage

UNTAKEN = 120.0                    # seconds in which a desk should take what somebody waits for
WAIT = 900.0                       # seconds to wait for a reply that a desk is after
AGAIN = (20.0, 60.0)               # seconds to another try, by cron
MOST_LOOKS = 3                     # times that one run has root look, whatever the database goes on to answer
SPREAD = 240                       # seconds of a tick over which the hosts of a fleet come
HELP = """\
usage: certdrop-courier [--cron] [--force] [--plan] [--no-install] [--quiet | --verbose]
                        [--apart] [NAME...]
       certdrop-courier --check

  carries root's requests to the fleet's database, and brings the replies; waits for those of
  the sites that are named

  --plan        only list when each site is to be renewed, as the desk said last
  --force       have a desk try these now, whatever it put off
  --no-install  do not have root look at the replies afterwards
  --cron        say only what needs a person at once, at this host's own second; try again
  --verbose     say what happens although nobody seems to watch
  --quiet       say only what needs a person at once
  --apart       write what failed to standard output, all else to standard error
  --check       only say whether the database lets this host in, and what desks refuse of it

On a host of a fleet certdrop-issue starts this in its place. See certdrop-courier(8).
"""


def main(argv: list[str]) -> int:
    """Returns a code of sysexits.h."""
    if "--help" in argv or "-h" in argv:
        print(HELP, end="")
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop-courier {VERSION}")
        return os.EX_OK
    try:
        if argv == ["--check"]:
            return command.as_issuer(argv, say, "", lambda: _check(database.machine("host")))
        options = Options(argv, os.isatty(2) or "2" in os.environ.get(TERMINAL, ""))
        if options.dry_run:
            raise Usage("--dry-run is the desk's: this host talks with no CA")
    except Usage as error:
        return say(f"{error}{'' if str(error).endswith('?') else ';'} certdrop-courier --help shows how", os.EX_USAGE)
    try:
        return command.as_issuer(argv, say, "what was posted is posted; cron brings the reply; certdrop-status shows how it stands",
                                 lambda: _run(options, database.machine("host")))
    except site.ConfigError as error:
        return _stop(f"{error}; the live certificates stay", os.EX_CONFIG)
    except Away as away:
        return say(f"the fleet's database: {away}", os.EX_TEMPFAIL)
    except (KeyError, PermissionError) as error:
        return _stop(f"{error}; this must run as {spool.ISSUER}, on directories made by certdrop's installation", os.EX_NOPERM)
    except (OSError, MemoryError) as error:
        return _stop(f"{error}; the live certificates stay; the next run tries again", os.EX_TEMPFAIL, options.loud, options.apart)
    except KeyboardInterrupt:
        return os.EX_TEMPFAIL


def _run(options: Options, machine: Machine) -> int:
    if options.plan:
        return _show_plan(options.names)
    for name in options.names:
        with contextlib.suppress(site.ConfigError):            # root says so
            if dane.is_checked(name):
                say(f'{name}: tlsa = "{dane.CHECK}" has no effect in a fleet; the desk orders without waiting for a record', 0, options.loud, options.apart)
    end, looks = time.monotonic() + TICK - time.time() % TICK - 5, 0
    if options.cron:
        time.sleep(int(hashlib.sha256(machine.name.encode()).hexdigest()[:8], 16) % SPREAD)
    while True:
        lock = turn.take("certdrop-courier", bool(options.names) and not options.cron, first=options.force)
        if lock is None:
            return os.EX_OK
        try:
            code, came = _in_child(options, machine)
        finally:
            os.close(lock)
        if came and options.install:
            command._have_root_look()
            looks += 1
            if options.cron and looks < MOST_LOOKS and time.monotonic() < end:
                continue                       # root posted what follows
        pause = random.uniform(*AGAIN)
        if code != os.EX_TEMPFAIL or not options.cron or time.monotonic() + pause > end:
            return code
        time.sleep(pause)


def _check(machine: Machine) -> int:
    """Only look: whether the database lets this host in, and what desks refuse of what it posted. Raises Away."""
    walls.shut_in((), (), machine.ports)
    link = Database(machine.info)
    progress = link.progress()
    print(f"the database at {link.where} lets {machine.name} in; it has {len(progress)} of its requests, {sum(bool(desk) for desk, _ in progress.values())} "
          "of them taken by a desk")
    refused = [found for _, said in progress.values() if (found := database.as_table(said)).get("class") == "refused"]
    for text in sorted({events.clean(found.get("last_error") or "", 300) for found in refused}):
        print(f"refused: {text}")
    return os.EX_OK


def _in_child(options: Options, machine: Machine) -> tuple[int, bool]:
    """Have a child talk with the database: (its exit code, whether root should look at the spool)."""
    from certdrop.walls import jail
    reader, writer = os.pipe()
    sys.stdout.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        code, came = os.EX_SOFTWARE, False
        try:
            os.close(reader)
            jail.end_with(parent)
            code, came = _talk(options, machine)
        except Away as away:
            code = _stop(f"the fleet's database: {away}; the live certificates stay; cron tries again", os.EX_TEMPFAIL, options.loud, options.apart)
        except site.ConfigError as error:
            code = _stop(f"{error}; the live certificates stay", os.EX_CONFIG)
        except (OSError, MemoryError) as error:
            code = _stop(f"{error}; the live certificates stay; the next run tries again", os.EX_TEMPFAIL, options.loud, options.apart)
        except ImportError as error:
            from certdrop.start import incomplete
            code = incomplete("certdrop-courier", error)
        except Exception:
            import traceback
            _stop(f"internal error; the live certificates stay; please report this\n{traceback.format_exc()}", os.EX_SOFTWARE)
        finally:
            os.write(writer, b"1" if came else b"0")
            os._exit(code)
    os.close(writer)
    said = os.read(reader, 1)
    os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (code if code >= 0 else os.EX_TEMPFAIL), said == b"1"


def _talk(options: Options, machine: Machine) -> tuple[int, bool]:
    """In the child: everything up, everything down, and wait for what is named. Raises Away, OSError."""
    state = [f"{site.STATE}/{name}" for name in ("sites", "live", "keeper")]
    for wall in walls.shut_in((spool.requests(), *state), (spool.replies(), f"{site.STATE}/issuer"), machine.ports):
        say(wall, 0, options.loud)
    wanted, left = local.requests()
    for line in left:
        say(f"{line}; it is not carried", 0, options.loud or not options.cron, options.apart)
    named = {row for row in wanted if row.name in options.names and row.kind == ("revoke" if options.revoke else "csr")}
    unknown = sorted(set(options.names) - {row.name for row in named})
    if unknown:
        return say(f"{unknown[0]!a:.80}: root has posted no such request; certdrop-status lists the sites", os.EX_DATAERR), False
    before = {row: _failed_at(notes.table(f"{row.name}.json")) for row in named}
    link = Database(machine.info)
    link.listen(f"certdrop_host_{machine.name}")
    link.tell(local.states({row.name for row in wanted}))      # first: a desk orders for a site whose state it knows
    if named:
        link.post({row: rest for row, rest in wanted.items() if row not in named})     # what is put off is as new
    changed = link.post(wanted)
    local.tidy(set(wanted))
    waiting = Waiting(named, before, options, changed)
    came = False
    while True:
        came |= _bring(link, wanted)
        progress = link.progress()
        for row, (_, said) in progress.items():
            if said and row in wanted and row.kind == "csr":
                local.note(row.name, said)
        if waiting.is_over(progress):
            break
        link.wait(min(5.0, waiting.left))
    notes.put("last-run", json.dumps({"time": int(time.time()), "exit": waiting.code, "sites": len({row.name for row in wanted}), "due": 0}).encode())
    return waiting.code, came


def _bring(link: Database, wanted: dict[Row, tuple[str, str, str]]) -> bool:
    """Bring the answers that are not here; whether there was one."""
    came = False
    for row, digest in link.answers().items():
        if row in wanted and not local.has(row, digest):
            came |= local.have(row, link.answer(row), digest)
    return came


class Waiting:
    """For the replies of the sites that somebody named; it says how that goes."""

    def __init__(self, named: set[Row], before: dict[Row, int], options: Options, changed: int) -> None:
        self.named, self.before, self.options = named, before, options
        self.code = os.EX_OK
        self._said: set[tuple[Row, str]] = set()
        self._begun = self._end = time.monotonic()
        self._end += UNTAKEN if named else 0.0
        self._taken = False
        for row in sorted(named):
            self._say(row, "posted; waiting for a desk")

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end - time.monotonic())

    def is_over(self, progress: dict[Row, tuple[str, str]]) -> bool:
        """Whether nothing is left to wait for."""
        open_ = set()
        for row in sorted(self.named):
            desk, said = progress.get(row, ("", ""))
            if desk:
                self._say(row, f"taken by {events.clean(desk, 40)}")
                self._taken = True
            found = database.as_table(said)
            if desk and found.get("begun") and row.kind == "csr":
                self._say(row, f"{events.clean(desk, 40)} asks the CA")
            if os.path.exists(f"{spool.replies()}/{spool.entry(row.name, row.number, 'pem')}") and row.kind == "csr":
                self._say(row, f"issued; the reply for request {row.number:04d} waits for root")
            elif row.kind == "revoke" and found.get("done"):
                self._say(row, f"the certificate of generation {row.number:04d} is revoked")
            elif _failed_at(found) > self.before[row]:
                self.code = os.EX_TEMPFAIL
                say(f"{row.name}: {events.clean(found.get('last_error'), 2000)}; the live certificate stays; the desk tries again", 0, self.options.loud,
                    self.options.apart)
                self.named = self.named - {row}
            else:
                open_.add(row)
        if not open_:
            return True
        if self._taken and self._end < self._begun + WAIT:
            self._end = self._begun + WAIT
        if not self.left:
            self.code = os.EX_TEMPFAIL
            for row in sorted(open_):
                what = "no answer yet" if progress.get(row, ("", ""))[0] else "no desk has taken it"
                say(f"{row.name}: {what}; the live certificate stays; cron brings the reply", 0, self.options.loud, self.options.apart)
        return not self.left

    def _say(self, row: Row, text: str) -> None:
        if (row, text) not in self._said:
            self._said.add((row, text))
            say(f"{row.name}: {text}", 0, self.options.loud)


def _failed_at(found: dict[str, object]) -> int:
    return notes.number(found, "failed_at") if notes.number(found, "count") else 0


def _show_plan(names: list[str]) -> int:
    wanted, _ = local.requests()
    for name in sorted({row.name for row in wanted if not names or row.name in names}):
        found = notes.table(f"{name}.json")
        when = events.stamp(notes.number(found, "renew_at")) if notes.number(found, "renew_at") else "not known here"
        print(f"{name}  {when}  {events.clean(found.get('renew_why') or '')}".rstrip())
    return os.EX_OK


def _stop(text: str, code: int, loud: bool = True, apart: bool = False) -> int:
    """Say it, and leave it for those who would ask why nothing runs; returns the code."""
    command.leave(text)
    return say(text, code, loud, apart)


def say(text: str, code: int, loud: bool = True, apart: bool = False) -> int:
    """A line for a person, where one watches or must act; returns the code. What is kept `apart` goes to standard output."""
    if loud:
        words.say(f"certdrop-courier: {text}", to=1 if apart else 2)
    return code

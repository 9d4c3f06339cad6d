"""certdrop-desk: takes what the hosts of a fleet want, has the issuer get it from the CA, and answers.

It is today's issuer, signer and all, over a tree that a part of its own keeps: that part alone talks with the database, shut in, and sees no key. The
process that starts goes from look to look until cron starts the next; nothing is lost with it.
Runs as: _certdrop; started by root it becomes that first. Trusts: root's configuration. Reads and writes: /var/spool/certdrop-fleet,
/var/lib/certdrop-fleet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable

from certdrop import TERMINAL, VERSION, events, spool, words
from certdrop.config import site
from certdrop.fleet import database, members, tree, walls
from certdrop.fleet.database import Away, Database, Machine, Row
from certdrop.issuer import command
from certdrop.issuer.due import TICK
from certdrop.issuer.options import Options
from certdrop.signer import protocol

LOOK = 0.5                         # seconds between two looks at replies/, while the issuer works
SAY_AGAIN = 30.0                   # seconds after which it says again what it has
TELL = 240.0                       # seconds after which it tells the watcher of this desk anew how the fleet stands
MOST = 200                         # entries that somebody waits for, in one message
AGAIN = (5.0, 20.0)                # seconds to another try, where the database is away
REST = 60.0                        # seconds that a host is left alone which holds its rows locked
HELP = """\
usage: certdrop-desk [--cron | --once] [--verbose]
       certdrop-desk account VERB [--directory CA]

  takes what the hosts of the fleet want, gets it from the CA, and answers

  --cron     go on until cron starts the next one; say only what needs a person at once
  --once     one look, and answer what comes of it
  --verbose  say what happens
  account    the fleet's ACME account: what certdrop-account(8) does for a single host

certdrop-desk --once --verbose
certdrop-desk account show

See certdrop-desk(8).
"""


def main(argv: list[str]) -> int:
    """Returns a code of sysexits.h."""
    if not argv or "--help" in argv[:1] or "-h" in argv:
        print(HELP, end="")
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop-desk {VERSION}")
        return os.EX_OK
    if argv[0] != "account" and not set(argv) <= {"--cron", "--once", "--verbose"}:
        unknown = min(set(argv) - {"--cron", "--once", "--verbose"})
        return say(f"{unknown!a:.80}: no such option; certdrop-desk --help shows how", os.EX_USAGE)
    try:
        return command.as_issuer(argv, say, "cron goes on", lambda: _work(argv))
    except site.ConfigError as error:
        return say(f"{error}; nothing is ordered", os.EX_CONFIG)
    except (KeyError, PermissionError) as error:
        return say(f"{error}; this must run as {spool.ISSUER}, on directories made by certdrop-fleet's installation", os.EX_NOPERM)
    except (OSError, MemoryError) as error:
        return say(f"{error}; the next run tries again", os.EX_TEMPFAIL)
    except KeyboardInterrupt:
        return os.EX_TEMPFAIL


def _work(argv: list[str]) -> int:
    tree.stand()
    if argv[0] == "account":
        from certdrop.issuer import manage
        fixed = members.answering(protocol.HOSTS) if {"rollover", "deactivate"} & set(argv) else []
        if fixed:
            return say(f"{' '.join(fixed[:5])}{' ...' if len(fixed) > 5 else ''}: answers challenges by the key of this account, which stays; enrol and join "
                       "it again without --stateless first", os.EX_CONFIG)
        return manage.main(argv[1:])
    return _run(database.machine("desk"), "--once" in argv, "--verbose" in argv or "2" in os.environ.get(TERMINAL, ""))


# ---- the process that has the issuer look

def _run(machine: Machine, once: bool, loud: bool) -> int:
    """Look whenever something came, or is due, until the next one of cron's is to begin."""
    lock = os.open(f"{tree.STATE}/issuer/desk", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + (0.0 if once else TICK - time.time() % TICK - 2)
    while not _is_free(lock):
        if once or time.monotonic() >= end:
            return say("another one is at work", os.EX_OK, loud)
        time.sleep(1.0)                        # it ends when it has answered; then no time is lost
    talker, code = _talker(machine, loud), os.EX_OK
    while True:
        said = _hear(talker, 60.0 if once else max(0.0, end - time.monotonic()))
        while said is not None:
            urged = [name for name in said if os.path.exists(f"{spool.requests()}/{name}")]
            code, following = _look(urged, loud)
            with contextlib.suppress(OSError):
                talker.send(b"looked")         # the part has its reply, or its failure, carried on
            if once:
                break
            pause = max(0.0, min(following - time.time() + 1 if following else TICK, end - time.monotonic()))
            said = _hear(talker, pause)
            if said is None and time.monotonic() < end and following and following <= time.time():
                said = []                      # the time of one of them has come
        if once or time.monotonic() >= end:
            break
        talker.close()                         # it ended: the database is away
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(min(random.uniform(*AGAIN), max(0.0, end - time.monotonic())))
        talker = _talker(machine, loud)
    with contextlib.suppress(OSError):
        talker.shutdown(socket.SHUT_WR)
        talker.settimeout(30.0)
        while talker.recv(1 << 16):            # it answers what is left, and ends
            pass
    return code


def _is_free(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _look(urged: list[str], loud: bool) -> tuple[int, float]:
    """Have the issuer look: (its exit code, when the next order is due). What somebody waits for is tried whatever was put off."""
    code = os.EX_OK
    if urged:
        names = sorted({entry.partition("@")[0] for entry in urged})
        code, _, _ = command._look(Options(["--no-install", "--verbose" if loud else "--quiet", *names], False))
    others, _, following = command._look(Options(["--cron", "--no-install"], False))
    return code or others, following


def _hear(talker: socket.socket, seconds: float) -> list[str] | None:
    """The entries that somebody waits for, where something changed; None where nothing did in this time, or the other end is gone."""
    if not select.select([talker], [], [], seconds)[0]:
        return None
    text = talker.recv(1 << 20)
    found = json.loads(text) if text else None
    return [entry for entry in found if isinstance(entry, str) and spool.parse_entry(entry)] if isinstance(found, list) else None


# ---- the part that talks with the database

def _talker(machine: Machine, loud: bool) -> socket.socket:
    """Start it; the socket to it."""
    from certdrop.walls import jail
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            ours.close()
            jail.end_with(parent)
            _talk(machine, its, loud)
        except Away as away:
            tree.away(str(away))
            say(f"the fleet's database: {away}; hosts serve on, and what they want waits", 0, loud)
        except (OSError, ImportError, site.ConfigError) as error:
            say(f"{error}; the next try is soon", 0, loud)
        except Exception:
            import traceback
            say(f"internal error; please report this\n{traceback.format_exc()}", 0)
        finally:
            os._exit(0)
    its.close()
    return ours


def _talk(machine: Machine, sock: socket.socket, loud: bool) -> None:
    """Keep the tree as the database has it, and answer what the issuer wrote. Raises Away, OSError."""
    members.is_signed(members.Member(), b"", b"")          # loads what it takes while that can be loaded
    with contextlib.suppress(ValueError):
        tree.look_into(b"")
    from certdrop.fleet import status
    grow = tuple(f"{site.STATE}/{name}" for name in ("sites", "live", "keeper", "report"))
    for wall in walls.shut_in((f"{site.ETC}/fleet.d", spool.replies(), f"{site.STATE}/issuer"), (spool.requests(),), machine.ports, grow):
        say(wall, 0, loud)
    mirror = Mirror(Database(machine.info), loud)
    mirror.link.listen("certdrop_desk")
    following, first, goes_on, told = 0.0, True, True, 0.0
    while goes_on:
        if time.monotonic() >= told:
            told = time.monotonic() + TELL
            with contextlib.suppress(OSError):
                tree.tell(status.report(*status.look(mirror.link, time.time()), time.time()))
        if time.monotonic() >= following:
            changed, urged = mirror.sync()
            following = time.monotonic() + SAY_AGAIN
            if changed or first:
                sock.send(json.dumps(urged[:MOST]).encode())
                first = False
                mirror.begun(urged[:MOST])
        if mirror.link.wait(LOOK, sock.fileno()):
            following = min(following, time.monotonic() + 0.2)             # several that come at once are one
        ready = select.select([sock], [], [], 0.0)[0]
        if ready:
            goes_on = bool(sock.recv(100))
        mirror.answer()
        if ready:
            mirror.say()


class Mirror:
    """What this desk has of the fleet."""

    def __init__(self, link: Database, loud: bool = False) -> None:
        self.link, self.loud = link, loud
        self.held: dict[Row, str] = {}         # how each request was known when it was laid down
        self.counts: dict[Row, int] = {}       # its answers,
        self.answered: dict[Row, str] = {}     # and how the newest is known
        self.states: dict[tuple[str, str], str] = {}
        self.said: dict[Row, str] = {}
        self._first = True
        self._good: set[Row] = set()           # what root of its host signed
        self._resting: dict[str, float] = {}   # hosts whose rows cannot be had, until when

    def sync(self) -> tuple[bool, list[str]]:
        """Take what there is, and lay it down: (whether something changed, the entries that somebody waits for)."""
        self.link.take(self.held, tree.hosts())
        held = {row: known for row, known in self.link.held().items() if database.is_row(row)}
        changed, urged = False, list[str]()
        gone = set(self.held) - set(held)
        if self._first or gone:
            tree.forget(set(held))
        for row in gone:
            for kept in (self.held, self.counts, self.answered, self.said):
                kept.pop(row, None)            # type: ignore[attr-defined]
            self._good.discard(row)
            changed = True
        known = {place: digest for place, digest in self.link.states().items() if database.is_row(Row(*place, 1, "csr"))}
        self.states = {place: digest for place, digest in self.states.items() if place in known}
        for row in self._good & set(held):     # of others nothing is laid down
            changed |= self._put_state(row, known)
        for row, (digest, count) in held.items():
            if (row.host, row.name) not in known:          # else the site would look as if it had no certificate yet
                continue
            if count < self.counts.get(row, 0):            # it was posted anew, or the database lost it
                self.answered.pop(row, None)
            self.counts[row] = count
            if self.held.get(row) != digest and self._is_answered(row):
                continue
            if self.held.get(row) != digest:
                changed |= self._lay_down(row, known, urged)
                self.held[row] = digest
        self._first = False
        return changed, urged

    def _put_state(self, row: Row, known: dict[tuple[str, str], str]) -> bool:
        place = row.host, row.name
        if self.states.get(place) == known.get(place):
            return False
        tree.put_state(*place, self.link.state(*place))
        self.states[place] = known[place]
        return True

    def _is_answered(self, row: Row) -> bool:
        """Whether another desk's answer stands there, and root of its host did not refuse it: then nothing is to be ordered, whoever has the row now."""
        if row.kind != "csr" or not self.counts[row] or (row.host, row.name, row.number) in tree.replies():
            return False
        refused = database.as_table(self.link.state(row.host, row.name)).get("refused")
        return not isinstance(refused, dict) or refused.get("number") != row.number or refused.get("reply_sha256") != self.link.answer_known(row)

    def _lay_down(self, row: Row, known: dict[tuple[str, str], str], urged: list[str]) -> bool:
        found = self.link.request(row)
        if found is None:
            return False
        refusal = tree.put_request(row, *found, first=lambda: self._put_state(row, known))
        (self._good.discard if refusal else self._good.add)(row)
        if refusal:
            now = int(time.time())
            self._say(row, json.dumps({"class": "refused", "count": 1, "failed_at": now, "last_error": refusal, "since": now}))
            return False
        entry = spool.entry(members.tree_name(row.host, row.name), row.number, row.kind)
        if tree.is_urgent(entry):
            urged.append(entry)
        return True

    def begun(self, urged: list[str]) -> None:
        """Say of what somebody waits for that the issuer has it now. What comes of it is said in its place."""
        for row in self.held:
            if spool.entry(members.tree_name(row.host, row.name), row.number, row.kind) in urged:
                self._say(row, json.dumps({**database.as_table(tree.ledger(row)), "begun": int(time.time())}))

    def answer(self) -> None:
        """Carry down the replies that the issuer wrote, and the database does not have."""
        for (host, name, number), entry in tree.replies().items():
            row = Row(host, name, number, "csr")
            if row not in self.held:
                continue
            chain = tree.reply(entry)
            digest = database.digest(chain)
            if row not in self.answered and self.counts.get(row):
                self.answered[row] = self.link.last_answer(row)
            if chain and self.answered.get(row) != digest:
                self._each(row, self._reply, chain, digest)

    def _reply(self, row: Row, chain: bytes, digest: str) -> None:
        self.link.reply(row, self.counts[row] + 1, chain)
        self.counts[row] += 1
        self.answered[row] = digest

    def _each(self, row: Row, work: Callable[..., object], *values: object) -> None:
        """Do it; that the database refuses it is this host's alone: its row is gone, or its courier holds it locked. Raises Away where all is away."""
        if self._resting.get(row.host, 0.0) > time.monotonic():
            return
        try:
            work(row, *values)
        except Away as away:
            if away.is_over:
                raise
            self._resting[row.host] = time.monotonic() + REST
            say(f"{row.host} {row.name}: {away}; this host waits, others do not", 0, self.loud)

    def say(self) -> None:
        """Carry down what the issuer noted."""
        for row in self.held:
            text = tree.ledger(row)
            if text:
                self._say(row, text)

    def _say(self, row: Row, text: str) -> None:
        if self.said.get(row) != text and len(text) <= database.MOST:
            self._each(row, self._carry, text)

    def _carry(self, row: Row, text: str) -> None:
        self.link.say(row, text)
        self.said[row] = text


def say(text: str, code: int, loud: bool = True) -> int:
    """A line for a person; returns the code."""
    if loud:
        words.say(f"certdrop-desk: {events.clean(text, 4000) if 'internal error' not in text else text}")
    return code

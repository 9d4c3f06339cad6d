"""What a run has to do: each site's standing, ledger and decision. The light half of the child's work: nothing here knows of the network.

Runs as: _certdrop. Trusts: root's public state, its own ledger. Reads: what posted.py and ledger.py read. Writes: the ledger, the agenda, last-run.
"""

from __future__ import annotations

import json
import os
import time

from certdrop import events, spool, tokens, words
from certdrop.config import general, site
from certdrop.issuer import choice, due, ledger, notes
from certdrop.issuer.agenda import Agenda
from certdrop.issuer.options import Options
from certdrop.issuer.posted import Request, Standing
from certdrop.signer import jose, protocol
from certdrop.renewal import HELD
from certdrop.trust import roots

REPLY_WAITS = "a reply waits for root"
MOST_POLLS = 500                   # of the CA's windows in one run, which is 50 a minute; ten thousand sites that poll every six hours make 28


class Task:
    """One site in a run."""

    def __init__(self, request: Request, options: Options, config: general.Config | None = None) -> None:
        self.request, self.name = request, request.name
        self.urged, self.forced = request.name in options.names, options.force
        self.no_wait = options.no_wait
        self.standing = Standing(request)
        self.profile = ""                      # on a desk: that of the host
        if protocol.HOSTS:
            from certdrop.fleet import tree
            self.profile = tree.profile(request.name)
            self.urged = self.urged and request.now and not self.standing.refusal      # that one is the database's word alone: no reason to skip a back-off
        self.ledger = ledger.Ledger(request.name)
        self.certificate = self.standing.certificate
        self.when, self.why = due.NEVER, ""
        noted = self.ledger.answered_by, self.ledger.answered_with
        self.directories = directories(request.name, config) if config else [""]           # of the CAs that may be asked, the first one first
        self.asks = choice.choose(self.directories, self.ledger, self.certificate, time.time(), has_account, request.now)      # that of the next order,
        issuer = self.ledger.issuer_of(self.certificate.sha256) if self.certificate else ""
        self.polls = issuer if issuer in self.directories else self.asks                   # and of who knows when to renew
        of_ours = roots.is_of(self.directories, *noted, self.certificate.sha256) if self.certificate and config else None
        self.foreign = of_ours is False        # not of the CA that is configured now
        self.of_unknown_origin = bool(self.certificate and config) and of_ours is None         # nobody noted whose it is: its chain tells
        self.held: tuple[float, str] | None = None                   # until when, and why, what is due waits all the same
        self.placed = False                    # an order was placed with the CA, in this run
        if self.certificate and self.certificate.sha256 == self.ledger.answered_with:
            self.ledger.installed()

    def decide(self, now: float) -> None:
        """When and why to place an order."""
        if self.request.answered and not self.standing.refusal:
            self.when, self.why = due.NEVER, REPLY_WAITS
            return
        wanted = self.request.now
        if self.standing.refusal:
            self.ledger.refused(self.standing.refusal, self.standing.refused_reply, self.certificate, now, self.directories)
            wanted = True                          # it was due, or root would have had no reply to refuse
        self.when, self.why = due.due(self.name, wanted, self.certificate, self.ledger, now, self.urged, self.forced, self.foreign)
        if self.held and self.when <= now < self.held[0]:
            self.when, self.why = self.held
        alone = choice.left_alone(self.ledger, self.asks, now)                 # of several CAs; a site that has one is held by `due`
        if self.when <= now < alone:
            self.when, self.why = alone, HELD

    def wants_window(self, now: float) -> bool:
        """Whether to ask for the CA's renewal window."""
        return not (self.request.now or self.forced or self.foreign or self.request.answered) and due.poll_due(self.certificate, self.ledger, now)

    def conclude(self, agenda: Agenda, now: float) -> None:
        """Write down where the site stands, for the next run and for those who read along. Raises OSError."""
        self.decide(now)
        self.ledger.plan(self.when, self.why)
        self.ledger.save()
        polled = due.NEVER
        if self.certificate and not (self.request.now or self.request.answered):
            polled = float(self.ledger.poll_at) if now < self.certificate.not_after else due.NEVER
        exact = due.NEVER if self.ledger.count else self.when              # another try after a failure is for a run of cron, no run waits for it
        agenda.note(self.request, min(self.when, polled, self.standing.look_at), exact)


def make(options: Options, pending: list[Request], now: float) -> list[Task]:
    """The tasks, decided."""
    try:
        config = general.load_config()
    except site.ConfigError:
        config = None                          # said where it is needed
    tasks = []
    for request in pending:
        try:
            task = Task(request, options, config)
            task.decide(now)
        except Exception as error:
            if not is_of_a_host(error):
                raise
            if options.loud:
                words.say(f"certdrop-issue: {request.name}: what its host posted cannot be read: {type(error).__name__}: {error}")
            continue
        tasks.append(task)
    return tasks


def directories(name: str, config: general.Config) -> list[str]:
    """The URLs of the directories that a site's orders may go to. A file that names none is not parsed: ten thousand are looked at every day."""
    try:
        with open(f"{site.ETC}/sites.d/{name}.toml", "rb") as stream:
            text = stream.read(spool.MAX_REPLY)
        if b"directory" in text or b"fallback" in text or b"\\" in text:        # a key may be written with escapes
            return general.directories(site.load_site(name, config))
    except (OSError, site.ConfigError):
        pass                                   # root says so; its requests are for the CAs that are configured for all
    return general.directories(site.Site(name, config))


def has_account(url: str) -> bool:
    """Whether there is an account at the CA of this directory, as far as is noted."""
    noted = notes.table(f"account@{jose.entry(url)}.json").get("account")
    return isinstance(noted, str) and jose.place_of(noted) == jose.place_of(url)


def is_of_a_host(error: Exception) -> bool:
    """Whether, on a desk, it came of what one host posted, and so is that host's alone. Elsewhere root posted it, and it is a defect of ours."""
    from certdrop.signer import protocol
    return bool(protocol.HOSTS) and not isinstance(error, (ImportError, OSError, MemoryError)) and type(error).__name__ != "Moved"


def curious(tasks: list[Task], now: float) -> list[Task]:
    """Those whose window the CA is asked for in this run, the nearest to expiry first. More than MOST_POLLS, as when the notes are lost, are put off,
    to one of the next runs each."""
    found = sorted((certificate.not_after, task.name, task, certificate) for task in tasks if (certificate := task.certificate) and task.wants_window(now))
    for at, (_, _, task, certificate) in enumerate(found):
        if at >= MOST_POLLS:
            task.ledger.put_off_window(certificate, now + at // MOST_POLLS * due.TICK)
    return [task for _, _, task, _ in found[:MOST_POLLS]]


def show(tasks: list[Task], now: float) -> None:
    """Print what is due, when, and why; the next first."""
    width = max((len(task.name) for task in tasks), default=0)
    for task in sorted(tasks, key=lambda task: (task.when, task.name)):
        when = "now" if task.when <= now else "not before root did its part" if task.when == due.NEVER else events.stamp(task.when)
        after = f" ({task.ledger.kind}, {task.ledger.count} in a row: {task.ledger.last_error})" if task.ledger.count else ""
        print(f"{task.name:<{width}}  {when:<20}  {task.why}{after}")


def tidy(stale: set[str]) -> None:
    """Remove replies whose request is gone, and tokens that a killed run left. Only under the lock."""
    for parent, entries in ((spool.replies(), stale), (tokens.directory(), {entry for entry in os.listdir(tokens.directory()) if tokens.is_token(entry)})):
        for entry in entries:
            try:
                os.unlink(f"{parent}/{entry}")
            except OSError:
                pass                           # a directory that somebody made there; it harms nobody


def finish(tasks: list[Task], listed: list[Request], agenda: Agenda, code: int, done: int) -> bool:
    """Write down how the run ended; whether root should look at the spool now. Raises OSError."""
    now = time.time()
    for task in tasks:
        task.conclude(agenda, now)
    agenda.save(listed, now)
    notes.put("last-run", json.dumps({"time": int(now), "exit": code, "sites": len(listed), "due": done}).encode())
    return any(task.standing.look_at <= now for task in tasks)

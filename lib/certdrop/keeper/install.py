"""Makes the configured sites so: takes what the spool holds, installs it, and finishes or undoes what a killed run began.

This is the recovery table of DESIGN.md, section 3: settle() is its rows 1 to 9 and 13, take() row 10, switch() rows 11 and 12.
Runs as: root, under the keeper's lock. Trusts: root's own files, and of the judge the form of its answers. Reads: sites.d,
the replies that it posted requests for. Writes: requests/, and all that generations.py and notes.py write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import sys
import time

from certdrop import events, jail, site, spool
from certdrop.keeper import generations, judges, notes, services
from certdrop.keeper.generations import Standing

HOURLY = 3600                      # seconds between two installations of a site that the issuer asked for
PATIENCE = 5.0                     # seconds for a reload to show
OUTPUT = 30                        # seconds for somebody to read what is printed


class Run:
    """One run of the keeper: the configuration, what is posted, what was said, and how it ends."""

    def __init__(self, program: str, asked_by_issuer: bool, talk: bool) -> None:
        self.program = program
        self.asked_by_issuer = asked_by_issuer
        self.talk = talk
        self.log = events.Log("keeper")
        self.config = site.load_config()
        self.issuer, self.group = jail.user_ids(spool.ISSUER)
        self.posted: dict[str, set[tuple[int, str]]] = {}
        self.failures: set[int] = set()
        self.said: list[str] = []
        for entry in os.listdir(spool.requests()):         # root's own directory: nobody else can write there
            found = spool.parse_entry(entry)
            if found:
                self.posted.setdefault(found[0], set()).add(found[1:])
        self.requests = spool.open_directory(spool.requests())
        self.replies = spool.open_directory(spool.replies())

    def tell(self, name: str, text: str) -> None:
        """Say something to a person who watches: later, by flush(), because a lock is never held while output could block."""
        if self.talk:
            self.said.append(f"{self.program}: {name}: {text}")

    def fail(self, name: str, text: str, code: int) -> None:
        """Say what went wrong, where somebody watches or must act at once, and remember it for the exit code."""
        self.failures.add(code)
        if self.talk or code in (os.EX_SOFTWARE, os.EX_NOPERM, os.EX_CONFIG):
            self.said.append(f"{self.program}: {name}: {text}")

    def flush(self) -> None:
        """Print what was said. A terminal that is gone loses the words, never the work."""
        said, self.said = self.said, []
        say(said)

    def exit_code(self) -> int:
        """0 where the wanted state holds, else the gravest of what went wrong."""
        for code in (os.EX_SOFTWARE, os.EX_CONFIG, os.EX_NOPERM, os.EX_DATAERR, os.EX_TEMPFAIL):
            if code in self.failures:
                return code
        return os.EX_OK


def reconcile(run: Run, names: list[str] | None = None) -> None:
    """Make the sites (all unless named) as their configuration wants them. One bad site does not hold up the others."""
    finish_removals()
    wanted: list[site.Site] = []
    for name in site.site_names() if names is None else names:
        try:
            found = site.load_site(name, run.config)
            settle(run, found)
            wanted.append(found)
        except site.Wrong as error:
            run.fail(name, f"{error}; the live certificate stays", os.EX_CONFIG)
        except OSError as error:
            run.fail(name, f"{_words(error)}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)
    take(run, wanted)
    switch(run, wanted)
    for found in wanted:
        try:
            settle(run, found)
        except OSError as error:
            run.fail(found.name, f"{_words(error)}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)
    stamp = {"time": int(time.time()), "exit": run.exit_code(), "sites": len(wanted)}
    notes.put("last-run", json.dumps(stamp).encode())


def settle(run: Run, wanted: site.Site) -> None:
    """A placeholder, a live link, a next generation, its request posted and no other: whatever of that is missing."""
    name = wanted.name
    standing = Standing(name)
    _put_back_aside(name)
    generations.sweep(standing)
    if not standing.complete:
        generations.make_placeholder(wanted, standing.highest() + 1)
        standing = Standing(name)
    if standing.live is None and standing.newest is not None:
        generations.move("live", name, standing.newest)
    if standing.next is None or not _is_as_wanted(wanted, standing.next):
        changed = standing.next is not None
        number, newest = standing.highest() + 1, standing.complete[-1]
        now = changed or generations.has(name, newest, "placeholder") or not _names_are(wanted, newest)
        generations.make_next(wanted, number, key_to_carry(wanted, newest), now)
        standing = Standing(name)
    post(run, name, standing)
    for number in standing.numbers[:-1]:
        kept = [*standing.complete[-generations.KEPT:], standing.live, standing.proven]
        if number not in kept:
            generations.destroy(name, number)


def key_to_carry(wanted: site.Site, newest: int) -> int | None:
    """The generation whose key the next one carries on with, or None where a new key is due."""
    days = site.age_in_days(wanted.key_max_age)
    known = generations.facts(wanted.name, newest, "request")
    if days is None or known["key"] != wanted.key or generations.has(wanted.name, newest, "placeholder"):
        return None
    return newest if int(str(known["key_created"])) + days * 86400 > time.time() else None


def post(run: Run, name: str, standing: Standing) -> None:
    """Put next's request into the spool, and withdraw all others of this site (rows 7 and 8)."""
    number = standing.numbers[-1]
    there = run.posted.setdefault(name, set())
    path = generations.directory(name, number)
    with open(path + "/request.csr", "rb") as stream:
        csr = stream.read()
    for kind, data in (("csr", csr), ("now", b"")):
        if (number, kind) not in there and (kind == "csr" or generations.has(name, number, "now")):
            spool.write(run.requests, spool.entry(name, number, kind), data, 0o640, run.group)
            there.add((number, kind))
            run.log.write(events.POSTED, site=name, number=number, kind=kind)
    for old, kind in sorted(there):
        if old != number and kind != "revoke":
            withdraw(run, name, old, kind)


def withdraw(run: Run, name: str, number: int, kind: str) -> None:
    """Take a request out of the spool."""
    try:
        os.unlink(spool.entry(name, number, kind), dir_fd=run.requests)
    except FileNotFoundError:
        pass
    run.posted[name].discard((number, kind))
    run.log.write(events.WITHDRAWN, site=name, number=number, kind=kind)


def take(run: Run, wanted: list[site.Site]) -> None:
    """Read the replies that wait, have them judged, and write what is accepted into its generation (row 10)."""
    with judges.Judge("chain", run.config.trust_roots) as judge:
        for found in wanted:
            try:
                _take_one(run, found, judge)
            except OSError as error:
                run.fail(found.name, f"{_words(error)}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)


def _take_one(run: Run, wanted: site.Site, judge: judges.Judge) -> None:
    name, standing = wanted.name, Standing(wanted.name)
    number = standing.next
    if number is None:
        return
    reply = b""
    try:
        reply = spool.read(run.replies, spool.entry(name, number, "pem"), run.issuer)
        unreadable = None
    except FileNotFoundError:
        return
    except spool.Refused as refused:
        unreadable = refused
    known = notes.Notes(name)
    if run.asked_by_issuer and not generations.has(name, number, "now") and time.time() < known.installed_at + HOURLY:
        return                                               # root's own run takes it, at the latest
    request = generations.facts(name, number, "request")
    expected = json.dumps([request["spki_sha256"], request["domains"], _identity(run.config.trust_roots)])
    if known.is_refused(number, reply, expected):
        run.failures.add(os.EX_DATAERR)
        return
    try:
        if unreadable:
            raise unreadable
        blocks = spool.pem_blocks(reply)
        live = [] if standing.live is None or generations.has(name, standing.live, "placeholder") else [standing.live]
        earliest = [generations.facts(name, old, "cert")["not_before"] for old in live]
        had = [str(generations.facts(name, old, "cert")["sha256"]) for old in standing.numbers if generations.is_complete(name, old)]
        question = {"spki": request["spki_sha256"], "names": request["domains"], "spent": [*known.spent, *had],
                    "earliest": earliest[0] if earliest else 0}
        accepted = judges.ask_chain(judge, question, b"".join(blocks))
        if accepted.sha256 != _fingerprint(blocks[0]):       # base64 and a hash: no parser needed to catch this lie
            raise spool.Refused("judge-failed")
    except spool.Refused as refused:
        known.refuse(number, reply, expected, refused.reason)
        known.save()
        run.log.write(events.REFUSED, site=name, number=number, reason=refused.reason)
        run.fail(name, f"the reply for request {number:04d} is refused ({refused.reason}); the live certificate stays; "
                 "the issuer asks again by itself, certdrop-spool(5) explains the reason", os.EX_DATAERR)
        return
    generations.complete(name, number, blocks, accepted)
    known.spent[accepted.sha256] = accepted.not_after
    known.refused = {}
    known.save()
    run.log.write(events.ACCEPTED, site=name, number=number, sha256=accepted.sha256, not_after=events.stamp(accepted.not_after))


def switch(run: Run, wanted: list[site.Site]) -> None:
    """Have the services use what was written: test, move live, test, reload, ask; and go back where that helps (rows 11 and 12)."""
    changes = [change for change in map(Change, wanted) if change.is_due()]
    with judges.Judge("served") as judge:
        for name in sorted({service for change in changes for service in change.wanted.services}):
            _switch_service(run, name, [change for change in changes if name in change.wanted.services], judge)
        for change in changes:
            if not change.failed and not change.wanted.services:
                change.move()
                _installed(run, change)


class Change:
    """A site whose newest generation is to be used: from which to which."""

    def __init__(self, wanted: site.Site) -> None:
        self.wanted, self.name = wanted, wanted.name
        self.standing = Standing(wanted.name)
        self.notes = notes.Notes(wanted.name)
        self.back = self.standing.live
        self.to = self.standing.newest or 0
        self.failed = False
        self.was_served = False

    def is_due(self) -> bool:
        """Rows 11 and 12: written and not moved, or moved and not proven; not put off, not a placeholder, not expired."""
        if not self.to or generations.has(self.name, self.to, "placeholder") or self.notes.is_put_off(self.to):
            return False
        if self.to == self.standing.live == self.standing.proven:
            return False
        return int(str(generations.facts(self.name, self.to, "cert")["not_after"])) > time.time()

    def move(self) -> None:
        """live := the new one."""
        if self.back != self.to:
            generations.move("live", self.name, self.to)

    def move_back(self) -> None:
        """live := what it was; never to nothing."""
        if self.back is not None and self.back != self.to:
            generations.move("live", self.name, self.back)

    def sha256(self, number: int | None) -> str:
        """The leaf's fingerprint of a generation."""
        return "" if number is None else str(generations.facts(self.name, number, "cert")["sha256"])

    def shown(self, judge: judges.Judge) -> set[str]:
        """The fingerprints that the service shows for this site, on all its addresses; empty where nobody listens."""
        found = {judges.ask_served(judge, *place[:2], self.wanted.domains[0], place[2]) for place in services.addresses(self.wanted.probe)}
        return found - {"nobody"}


def _switch_service(run: Run, name: str, changes: list[Change], judge: judges.Judge) -> None:
    try:
        service = services.find(name)
        service.test()
    except services.Failed as error:
        for change in changes:
            _put_off(run, change, "service-failed", f"{name} did not pass its test before anything was changed: {error}")
        return
    for change in changes:
        change.was_served = change.standing.proven is not None and change.sha256(change.standing.proven) in change.shown(judge)
    moved = _move_all(run, service, [change for change in changes if not change.failed])
    if not moved:
        return
    try:
        service.reload()
    except services.Failed as error:
        run.log.write(events.SERVICE_FAILED, service=name, error=str(error))
    end = time.monotonic() + PATIENCE
    waiting = moved
    while waiting:
        waiting = [change for change in waiting if not _is_served(run, change, judge)]
        if time.monotonic() > end or not any(change.was_served for change in waiting):
            break
        time.sleep(0.1)                                      # a reload says nothing when it is done
    back = [change for change in waiting if change.was_served and change.back != change.to]
    for change in waiting:
        _not_served(run, change, name)
    if back:
        for change in back:
            generations.move("live", change.name, change.standing.proven or change.to)
            run.log.write(events.WENT_BACK, site=change.name, number=change.standing.proven)
        try:
            service.test()
            service.reload()
        except services.Failed as error:
            run.log.write(events.SERVICE_FAILED, service=name, error=str(error))


def _move_all(run: Run, service: services.Service, changes: list[Change]) -> list[Change]:
    """Move these, test once, and where the test fails find whose fault it is in few tries. Returns those that stay moved."""
    for change in changes:
        change.move()
    try:
        service.test()
        return changes
    except services.Failed as error:
        for change in changes:
            change.move_back()
        reason = str(error)
    if len(changes) > 1:
        half = len(changes) // 2
        return _move_all(run, service, changes[:half]) + _move_all(run, service, changes[half:])
    for change in changes:
        _put_off(run, change, "service-failed", f"{service.name} does not pass its test with generation {change.to:04d}: {reason}")
    return []


def _is_served(run: Run, change: Change, judge: judges.Judge) -> bool:
    if change.wanted.probe == "off":
        _installed(run, change)
        return True
    shown = change.shown(judge)
    if shown != {change.sha256(change.to)}:
        return False
    generations.move("proven", change.name, change.to)
    run.log.write(events.SERVING, site=change.name, number=change.to, sha256=change.sha256(change.to))
    run.tell(change.name, f"generation {change.to:04d} is installed, and served")
    _done(change)
    return True


def _not_served(run: Run, change: Change, service: str) -> None:
    if change.standing.proven is None:
        _installed(run, change)
        return
    went_back = change.was_served and change.back != change.to
    follows = "the one before serves again" if went_back else "it stays in place"
    _put_off(run, change, "issued-not-served", f"{service} was reloaded and does not show generation {change.to:04d}; {follows}")


def _installed(run: Run, change: Change) -> None:
    """Installed, where nobody served this site before, or nobody is to ask: fine."""
    if change.back != change.to:
        run.log.write(events.INSTALLED, site=change.name, number=change.to)
        run.tell(change.name, f"generation {change.to:04d} is installed; nothing serves it yet (certdrop-nginx {change.name} prints a server block)")
    _done(change)


def _done(change: Change) -> None:
    if change.back != change.to:
        change.notes.installed_at = int(time.time())
    change.notes.install = {}
    change.notes.save()


def _put_off(run: Run, change: Change, state: str, text: str) -> None:
    change.failed = True
    again = change.notes.install.get("state") == state and change.notes.install.get("number") == change.to
    change.notes.put_off(change.to, state, text)
    change.notes.save()
    run.log.write(events.NOT_SERVED if state == "issued-not-served" else events.SERVICE_FAILED, site=change.name, number=change.to, error=text, again=again)
    run.fail(change.name, f"{text}; a later run tries again, without asking the CA", os.EX_TEMPFAIL)


def say(lines: list[str]) -> None:
    """Print lines to standard error, and give up after a while where nobody reads."""
    signal.alarm(OUTPUT)
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    except OSError:
        pass
    signal.alarm(0)


def finish_removals() -> None:
    """Go on with removals that were killed (row 1)."""
    parent = site.STATE + "/sites"
    for entry in os.listdir(parent):
        name = entry.removeprefix(".removed-")
        if name != entry and spool.is_site_name(name):
            for path in (f"{site.ETC}/sites.d/{name}.toml", f"{site.STATE}/live/.{name}.aside", f"{site.STATE}/proven/{name}",
                         f"{site.STATE}/keeper/{name}.json"):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
            shutil.rmtree(f"{parent}/{entry}")
            generations.sync(parent)


def _put_back_aside(name: str) -> None:
    live = site.STATE + "/live"
    try:
        os.rename(f"{live}/.{name}.aside", f"{live}/{name}")
    except FileNotFoundError:
        return
    generations.sync(live)


def _is_as_wanted(wanted: site.Site, number: int) -> bool:
    known = generations.facts(wanted.name, number, "request")
    return known["key"] == wanted.key and _names_are(wanted, number)


def _names_are(wanted: site.Site, number: int) -> bool:
    return sorted(wanted.domains) == sorted(_strings(generations.facts(wanted.name, number, "request")["domains"]))


def _strings(value: object) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else []


def _fingerprint(block: bytes) -> str:
    return hashlib.sha256(base64.b64decode(b"".join(block.splitlines()[1:-1]))).hexdigest()


def _identity(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_ino, found.st_size, int(found.st_mtime)]


def _words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"

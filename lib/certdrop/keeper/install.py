"""Makes the configured sites so: takes what the spool holds, installs it, and finishes or undoes what a killed run began.

settle() takes the steps of the recovery table (state.py), take() has the replies judged, switch.py has the services use them.
Runs as: root, under the keeper's lock. Trusts: root's own files, and of the judge the form of its answers. Reads: sites.d,
the replies that it posted requests for. Writes: requests/, and all that generations.py and notes.py write.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import generations, integrity, judges, keys, notes, reader, revoke, state, switch
from certdrop.keeper.run import Run
from certdrop.keeper.state import Observed

COSTLY = ("judge-failed", "busy")   # reasons that a run waited for
HOURLY = 3600                      # seconds between two installations of a site that the issuer asked for; less for short lifetimes


def reconcile(run: Run, names: list[str] | None = None) -> None:
    """Make the sites (all unless named) as their configuration wants them. One bad site does not hold up the others."""
    finish_removals()
    sweep()
    for name, number in revoke.ended(run):
        withdraw(run, name, number, "revoke")
    if state.burnt_is_damaged():
        run.fail("keeper/burnt", "the list of compromised keys is damaged; those that cannot be read there are not known any more; "
                 "certdrop rotate NAME --compromised lists a site's keys again, and mends it", os.EX_IOERR)
    wanted: list[site.Site] = []
    for name in site.site_names() if names is None else names:
        try:
            found = site.load_site(name, run.config)
            settle(run, found)
            wanted.append(found)
        except site.ConfigError as error:
            run.fail(name, f"{error}; the live certificate stays", os.EX_CONFIG)
            _settle_unconfigured(run, name)
        except OSError as error:
            run.fail(name, f"{_words(error)}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)
    take(run, wanted)
    try:
        switch.switch(run, wanted)
    except OSError as error:
        run.fail("services", f"{_words(error)}; what they serve stays; the next run goes on from there", os.EX_TEMPFAIL)
    run.witness.end()
    for found in wanted:
        try:
            revoke.post_owed(run, found.name)
            if found.name in run.stirred or run.burnt:
                settle(run, found)
        except OSError as error:
            run.fail(found.name, f"{_words(error)}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)
    with contextlib.suppress(OSError):         # a disk that is full costs the next run some milliseconds
        if found_whole := integrity.news():
            notes.put("examined", found_whole, 0o600)
    stamp = {"time": int(time.time()), "exit": run.exit_code(), "sites": len(wanted)}
    notes.put("last-run", json.dumps(stamp).encode())


def settle(run: Run, wanted: site.Site | None, name: str = "") -> None:
    """Take the steps of the recovery table until only a reply or a service is waited for. Of a site whose configuration cannot be read, by `name`."""
    name = wanted.name if wanted else name
    while True:
        observed = run.look(name)
        step = state.step(observed, wanted, run.posted.setdefault(name, set()))
        if step == state.PUT_BACK:
            generations.put_back(name)
        elif step == state.SWEEP:
            generations.sweep(name, observed.leftovers)
        elif step == state.PLACEHOLDER and wanted:
            generations.make_placeholder(wanted, observed.highest + 1)
        elif step == state.LINK:
            generations.move("live", name, observed.newest or 0)
        elif step == state.UNLINK:
            generations.unlink("proven", name)
        elif step in (state.NEXT, state.REPLACE) and wanted:
            changed = step == state.REPLACE and not observed.fault
            hurry = observed.fault and observed.has(observed.next, "now")
            if observed.fault:
                _tell_damage(run, name, f"{observed.fault}; the request is made anew, with another key")
            generations.make_next(wanted, observed.highest + 1, key_to_carry(wanted, observed), now=bool(observed.stands_in or changed or hurry))
        elif step == state.WANT:
            generations.mark(name, observed.next or 0, "now")
        elif step == state.GIVE_UP:
            for number, fault in observed.damaged.items():
                follows = f"; generation {observed.live:04d} is live, and another certificate is asked for" if observed.lost else "; it is given up"
                _tell_damage(run, name, f"generation {number:04d} is damaged: {fault}{follows}")
                generations.mark(name, number, "withdrawn")
        elif step == state.POST:
            post(run, name, observed)
        elif step == state.WITHDRAW:
            for number, kind in sorted(state.stray(observed, run.posted[name])):
                withdraw(run, name, number, kind)
        elif step == state.PRUNE:
            for number in state.prunable(observed, run.posted[name]):
                generations.destroy(name, number)
        else:
            return


def _settle_unconfigured(run: Run, name: str) -> None:
    try:
        settle(run, None, name)
    except OSError as error:
        run.fail(name, f"{_words(error)}; the next run tries again", os.EX_TEMPFAIL)


def _tell_damage(run: Run, name: str, text: str) -> None:
    run.log.write(events.DAMAGED, site=name, error=text)
    run.fail(name, text, os.EX_IOERR)


def key_to_carry(wanted: site.Site, observed: Observed) -> int | None:
    """The generation whose key the next one carries on with, or None where a new key is due."""
    newest = observed.newest
    if wanted.key_max_age == "renewal" or newest is None or observed.stands_in:
        return None
    same_kind = observed.facts(newest, "request")["key"] == wanted.key
    dated = spool.is_credible(observed.moment(newest, "key_created"), spool.HAPPENED, time.time())      # else it would not grow old for years
    return newest if same_kind and dated and not observed.is_old_key(wanted, newest) else None


def post(run: Run, name: str, observed: Observed) -> None:
    """Put next's request into the spool: the CSR first, then whether it is wanted now."""
    for number, kind in sorted(state.required(observed) - run.posted[name]):
        data = b""
        if kind == "csr":
            with open(state.directory(name, number) + "/request.csr", "rb") as stream:
                data = stream.read()
        spool.write(run.requests, spool.entry(name, number, kind), data, 0o640, run.group)
        run.posted[name].add((number, kind))
        run.log.write(events.POSTED, site=name, number=number, kind=kind)


def withdraw(run: Run, name: str, number: int, kind: str) -> None:
    """Take a request out of the spool."""
    try:
        os.unlink(spool.entry(name, number, kind), dir_fd=run.requests)
    except FileNotFoundError:
        pass
    run.posted[name].discard((number, kind))
    run.log.write(events.WITHDRAWN, site=name, number=number, kind=kind)


def take(run: Run, wanted: list[site.Site]) -> None:
    """Read the replies that wait, have them judged, and write what is accepted into its generation."""
    observed = {found.name: run.seen(found.name) for found in wanted}
    # Who cost time before comes last: nobody's replies can keep another's from being judged.
    waiting = sorted((found for found in wanted if observed[found.name].next is not None),
                     key=lambda found: notes.Notes(found.name).refused.get("reason") in COSTLY)
    replies = reader.replies(run, [spool.entry(found.name, observed[found.name].next or 0, "pem") for found in waiting])
    with judges.Judge("chain", run.config.trust_roots) as judge, contextlib.closing(replies):
        for reply, found in zip(replies, waiting):           # in this order: so the former comes to its end, and notes what it saw
            if time.monotonic() > run.end:
                break
            try:
                if reply is not None:
                    _take_one(run, found, judge, observed[found.name], reply)
            except OSError as error:
                run.fail(found.name, f"{_words(error)}; the live certificate stays; the next run tries again", os.EX_TEMPFAIL)


def _take_one(run: Run, wanted: site.Site, judge: judges.Judge, observed: Observed, found: bytes | spool.Refused) -> None:
    name, number = wanted.name, observed.next or 0
    unreadable, reply = (found, b"") if isinstance(found, spool.Refused) else (None, found)
    known = notes.Notes(name)
    installed = time.time() - known.installed_at
    if run.asked_by_issuer and (known.waits(number) or not observed.has(number, "now") and 0 <= installed < observed.pause(observed.live, HOURLY)):
        return                                               # root's own run takes it, at the latest
    request = observed.facts(number, "request")
    expected = json.dumps([request["spki_sha256"], request["domains"], _identity(run.config.trust_roots)])
    if known.is_refused(number, reply, expected):
        run.failures.add(_code(str(known.refused["reason"])))
        run.tell(name, f"the reply for request {number:04d} stays refused ({known.refused['reason']}); {_follows(str(known.refused['reason']))}")
        return
    try:
        if unreadable:
            raise unreadable
        blocks = spool.pem_blocks(reply)
        stands_in = observed.live is None or observed.has(observed.live, "placeholder")
        had = [identity for old in observed.whole for identity in observed.identities(old)]
        since = 0 if stands_in else observed.moment(observed.live or 0, "not_before")
        no_good = stands_in or observed.live is None or observed.is_burnt(observed.live) or (observed.live, "revoke") in run.posted.get(name, set())
        question = {"spki": request["spki_sha256"], "names": request["domains"], "spent": [*known.spent, *had],
                    "earliest": since if spool.is_credible(since, spool.HAPPENED, time.time()) else 0,     # else nothing would ever be newer
                    "until": 0 if no_good else observed.moment(observed.live or 0, "not_after")}
        if judge.process is None:                            # each loads for a while what it needs; so do we, with a key for nobody
            judge.start()
            run.witness.start()
            keys.request(keys.make("ecdsa-p256"), [name])
        accepted = judges.ask_chain(judge, question, b"".join(blocks))
        if (accepted.sha256, accepted.tbs) != _fingerprints(blocks[0]):      # base64 and two hashes: no parser needed to catch these lies
            raise spool.Refused("judge-failed")
    except spool.Refused as refused:
        known.refuse(number, reply, expected, refused.reason, observed.pause(observed.live, notes.BACK_OFF[-1]))
        known.save()
        run.log.write(events.REFUSED, site=name, number=number, reason=refused.reason)
        run.fail(name, f"the reply for request {number:04d} is refused ({refused.reason}){_roots(refused.reason, run.config)}; the live certificate stays; "
                 f"{_follows(refused.reason)}, certdrop-spool(5) explains the reason", _code(refused.reason))
        return
    generations.complete(name, number, blocks, accepted)
    run.stirred.add(name)
    known.spent.update(dict.fromkeys(run.look(name).identities(number), accepted.not_after))
    known.refused = {}
    known.save()
    run.log.write(events.ACCEPTED, site=name, number=number, sha256=accepted.sha256, not_after=events.stamp(accepted.not_after))


def _follows(reason: str) -> str:
    return "a later run judges it again" if reason in spool.TRANSIENT else "the issuer asks again by itself"


def _roots(reason: str, config: site.Config) -> str:
    return f": it leads to no root in {config.trust_roots}; this CA's own roots are looked for in {config.own_roots}" if reason == "untrusted" else ""


def _code(reason: str) -> int:
    return os.EX_TEMPFAIL if reason == "judge-failed" else os.EX_DATAERR


def finish_removals() -> None:
    """Go on with removals that were killed."""
    parent = site.STATE + "/sites"
    for entry in os.listdir(parent):
        name = entry.removeprefix(".removed-")
        if name != entry and spool.is_site_name(name):
            for path in (f"{site.ETC}/sites.d/{name}.toml", f"{site.STATE}/live/.{name}.aside", f"{site.STATE}/proven/{name}",
                         f"{site.STATE}/keeper/{name}.json"):
                integrity.clear(path)
            integrity.clear(f"{parent}/{entry}")
            generations.sync(parent)


def sweep() -> None:
    """Remove the temporary files that killed runs left in the directories that only root writes; the lock keeps running ones out."""
    below = [f"{site.STATE}/{entry}" for entry in ("live", "proven", "keeper", "keeper/retired", "keeper/refused")]
    for parent in (spool.requests(), site.ETC + "/sites.d", *below):
        for entry in os.listdir(parent):
            if entry.startswith(".") and entry.endswith(".new"):
                integrity.clear(f"{parent}/{entry}")


def _fingerprints(block: bytes) -> tuple[str, str]:
    """The SHA-256 of a certificate, and of what is signed in it: of its first element, whose length stands behind the tag (X.690 section 8.1.3)."""
    import base64                      # a run that finds nothing to do loads nothing of this
    import hashlib
    der = base64.b64decode(b"".join(block.splitlines()[1:-1]))
    padded = der + bytes(256)          # for lengths that lie
    begin = 2 + (padded[1] & 0x7F if padded[1] & 0x80 else 0)
    head = 2 + (padded[begin + 1] & 0x7F if padded[begin + 1] & 0x80 else 0)
    size = int.from_bytes(padded[begin + 2:begin + head], "big") if head > 2 else padded[begin + 1]
    return hashlib.sha256(der).hexdigest(), hashlib.sha256(der[begin:begin + head + size]).hexdigest()


def _identity(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_ino, found.st_size, int(found.st_mtime)]


def _words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"

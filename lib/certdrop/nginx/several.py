"""The server blocks that nginx has, changed for several sites at once: one reload for their challenges, one order, one reload for HTTPS.

What cannot be done for one site is said, and does not stop the others: what nginx refuses of all together is tried one by one. The files are written by
change.py: copies, nginx's test, reload, the certificates and pages looked at, and all put back where one of these fails.
Runs as: root, by hand. Trusts: nginx's configuration where it is root's alone. Reads: what `nginx -T` prints, live/. Writes: through change.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from certdrop import words
from certdrop.config import site
from certdrop.keeper import services
from certdrop.keeper.command import as_root
from certdrop.nginx import change, edit, fetched, pages, write
from certdrop.nginx.blocks import BINDS, Build, Refused
from certdrop.nginx.change import Options
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.edit import Change, Wanted
from certdrop.nginx.syntax import Source
from certdrop.walls import users


class Failure(NamedTuple):
    """Why a site has no HTTPS now; and a code of sysexits.h: EX_TEMPFAIL where it comes by itself or later."""

    why: str
    code: int = os.EX_DATAERR
    stays: bool = False            # certdrop's lines are in nginx's files, and could not be put back


Failures = dict[str, Failure]                  # by the site's name
GONE = "no server block has one of its names any more; nothing was changed; run this again"


def together(config: Configuration, wishes: Sequence[Wanted]) -> tuple[list[Change], Failures]:
    """The files with all that these sites need, each on top of the others; and what was refused."""
    refused = dict[str, Refused | edit.NoBlock]()
    now = _onto(config, wishes, refused)
    failed = {one.name: Failure(GONE if isinstance(why, edit.NoBlock) else str(why).removeprefix(f"{one.name}: "))
              for one in wishes if (why := refused.get(one.name)) is not None}
    return [Change(path, text, now.texts[path]) for path, text in config.texts.items() if now.texts[path] != text], failed


def _onto(config: Configuration, wishes: Sequence[Wanted], refused: dict[str, Refused | edit.NoBlock]) -> Configuration:
    """What these need on top of a configuration: all in one go, or, where that cannot be told, in halves. Why some are refused goes into `refused`."""
    if not wishes:
        return config
    if len(wishes) > 1:
        try:
            edits, why = edit.of_all(config, wishes)
            refused.update(why)
            return _onto(config, [one for one in wishes if one.name not in why], refused) if why else _with(config, edits)
        except edit.Apart:
            half = len(wishes) // 2
            now = _onto(config, wishes[:half], refused)
            then = dict[str, Refused | edit.NoBlock]()
            last = _onto(now, wishes[half:], then)
            refused.update({name: why if isinstance(why, edit.NoBlock) else Refused(edit.placed(str(why), now.texts, config.texts))
                            for name, why in then.items()})
            return last
    try:
        return _with(config, edit.changes(config, wishes[0]))
    except (Refused, edit.NoBlock) as why:
        refused[wishes[0].name] = why
        return config


def _with(config: Configuration, changes: Sequence[Change]) -> Configuration:
    new = {one.path: one.new for one in changes}
    return Configuration([Source(path, new.get(path, text)) for path, text in config.texts.items()]) if new else config


def apply(groups: Sequence[list[site.Site]], build: Build, options: Options) -> int:
    """certdrop-nginx --apply, for the sites of each group, which share their names. 0, or what the first failure says. Raises Refused, Absent."""
    return as_root(lambda: _apply(groups, build, options))


def _apply(groups: Sequence[list[site.Site]], build: Build, options: Options) -> int:
    def order(left: list[Wanted]) -> tuple[list[Wanted], Failures]:
        failed = {one.name: Failure(f"a token that was put did not come: {bad[0]}") for one in left if (bad := fetched.at_port_80(one.names))}
        left = [one for one in left if one.name not in failed]
        for one in left if not options.ask else ():
            change.say(one.name, f"challenges come through; next: certdrop renew {' '.join(one.names)}, then certdrop-nginx {one.name} --apply puts HTTPS in")
        if not left or not options.ask:
            return [], failed
        names = [name for one in left for name in one.names]
        change.say(left[0].name, f"certdrop renew {' '.join(names)}: asks the CA for a certificate now; nginx serves HTTPS once it is there")
        subprocess.run([write.CERTDROP, "renew", *names], stdin=subprocess.DEVNULL, env=users.ENVIRONMENT, check=False)
        return left, failed                    # what renew says of a certificate that is not served yet is not the end
    failed = take([change.wanted(group, build, options, True) for group in groups], order, options.anyway)
    for name, failure in failed.items():
        if failure.why == GONE:
            failed[name] = Failure(f"no server block has one of its names; nothing was changed; certdrop-nginx {name} --write makes new ones, or put the names "
                                   "into the server_name of yours", failure.code)
    words.say(*[f"certdrop-nginx: {name}: {failure.why.removeprefix(f'{name}: ')}" for name, failure in failed.items()])
    return next((failure.code for failure in failed.values()), os.EX_OK)


def take(wishes: Sequence[Wanted], order: Callable[[list[Wanted]], tuple[list[Wanted], Failures]], anyway: bool = False) -> Failures:
    """Have nginx serve these sites by HTTPS. Those that were not done, and why.

    `order` has what a CA would fetch looked at, makes the sites that are not there yet, and has the CA asked; it says with which to go on, and which failed.
    `anyway`: a page that is another then is only told. Raises Refused and Absent where nothing can be done at all, and change.Ended where somebody ended it.
    """
    service, names = change.service_here(), [one.name for one in wishes]
    with change.ending(names[0]), change.at_work(*names):
        begun = [name for name in names if change.tell_of_begun(name)]
        config = change.tested(service)
        text = "".join(config.texts.values())
        failed = together(config, wishes)[1]               # refused before anything is done
        left = [one for one in wishes if one.name not in failed]
        done = [one for one in left if one.name not in begun and _has_certificate(one)]
        for one in done if not together(config, done)[0] else [one for one in done if not edit.changes(config, one)]:
            change.say(one.name, "its server blocks have all they need; nothing was changed")
            left.remove(one)
        if not left:
            return failed
        ready = [one for one in left if _has_certificate(one)]
        before = _Pages(config, left, anyway)
        change.refuse_where_none_answers(names[0], service, before.asked, [*before.own.values()])
        had = {one.name for one in left if edit.bears(text, one.name) and not (one.name in begun and not change.is_served(before.of(one), one.names))}
        failed.update(_serve(service, ready, had, before))             # what is only to be loaded, or put in again, before others are changed
        left = [one for one in left if one not in ready]
        if not left:
            return failed
        if ready:
            before.take()
        failed.update(_stage(service, [one._replace(tls=False) for one in left], before.changed, before.is_other_by_itself))
        try:
            left, barred = order([one for one in left if one.name not in failed])
        except BaseException:                  # what was put in for sites that are none now
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for name, why in _take_out(service, _no_sites(names)).items():
                words.say(f"certdrop-nginx: {name}: {why}")
            raise
        failed.update(barred)
        for one in left:
            if not _has_certificate(one):
                failed[one.name] = Failure("no certificate came; nginx goes on as before, and lets challenges through, so that cron can go on; then "
                                           f"certdrop-nginx {one.name} --apply does the rest (certdrop-nginx {one.name} --undo takes it back)", os.EX_TEMPFAIL)
        out = [name for name, failure in failed.items() if not failure.stays]
        _add(failed, _take_out(service, dict.fromkeys([*_no_sites(out), *(name for name in out if name in barred and name not in had)])))
        left = [one for one in left if one.name not in failed]
        try:
            before = _Pages(change.configuration_now(), left, anyway)   # the CA may have taken minutes
        except change.Ended:
            raise
        except Refused as refused:
            why = str(refused).removesuffix("; nothing was changed")
            return {**failed, **{one.name: Failure(f"{why}; its certificate is there, and nginx goes on as before; certdrop-nginx {one.name} --apply does the "
                                                   "rest", os.EX_TEMPFAIL) for one in left}}
        failed.update(_serve(service, left, had, before))
    return failed


def _has_certificate(wanted: Wanted) -> bool:
    """Whether each of its sites has more than a placeholder."""
    return all(os.path.exists(path) and not os.path.exists(f"{os.path.dirname(path)}/placeholder") for path in wanted.lives)


def _serve(service: services.Service, wishes: Sequence[Wanted], had: set[str], before: _Pages) -> Failures:
    """Put HTTPS in for sites that have a certificate. Of those that fail no line stays, but for those that `had` some before this run."""
    failed = _stage(service, wishes, before.wrong, before.is_other_by_itself)
    _add(failed, _take_out(service, [name for name, failure in failed.items() if name not in had and not failure.stays]))
    _add(failed, {name: change.STAY.format(name) for name, failure in failed.items() if name in had and not failure.stays})
    _tell([one for one in wishes if one.name not in failed], before)
    return failed


def _add(failed: Failures, words_more: dict[str, str]) -> None:
    """Say this, too, of sites that failed."""
    for name, why in words_more.items():
        if name in failed:
            failed[name] = failed[name]._replace(why=f"{failed[name].why}; {why}")


def _tell(done: Sequence[Wanted], before: _Pages) -> None:
    if not done:
        return
    subprocess.run([change.INSTALL], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=users.ENVIRONMENT, check=False)
    for one in done:
        for domain in dict.fromkeys(domain for _, domain, _ in before.of(one) if domain not in before.others_now):
            change.say(one.name, f"https://{domain}/ is the page that http://{domain}/ was")
        change.say(one.name, f"certdrop-nginx {one.name} --undo takes it back; the files as they were are in {change.KEPT}/{one.name}")
    if any(one.hsts for one in done):
        print(f"certdrop-nginx: {BINDS}", flush=True)


def _stage(service: services.Service, wishes: Sequence[Wanted], look: Callable[[Sequence[Wanted]], dict[str, str]], is_other_by_itself: Callable[[], bool],
           again: bool = True) -> Failures:
    """Change the files for all of them, and look: `look` says of which sites something is wrong ("": nobody knows of which).

    Where that was a page which is another now with the old files, too, all are tried once `again`.
    """
    if not wishes:
        return {}
    edits, failed = together(change.configuration_now(), wishes)
    left, guilty = [one for one in wishes if one.name not in failed], dict[str, str]()
    if not left:
        return failed

    def seen() -> str:
        guilty.update(look(left))
        return next(iter(guilty.values()), "")
    try:
        change.put(left[0].name, service, edits, seen, [one.name for one in left[1:]])
    except change.Ended:
        raise
    except change.NotPutBack as refused:       # no more is tried on files that are not as they were
        return {**failed, **{one.name: Failure(str(refused).removeprefix(f"{left[0].name}: "), stays=True) for one in left}}
    except Refused as refused:
        if "" in guilty and again and is_other_by_itself():
            failed.update(_stage(service, left, look, is_other_by_itself, False))
        elif len(left) == 1:
            failed[left[0].name] = Failure(str(refused).removeprefix(f"{left[0].name}: "))
        elif {*guilty} & {one.name for one in left}:       # then without these
            failed.update({name: Failure(f"{why}; {change.AS_THEY_WERE}") for name, why in guilty.items() if name})
            failed.update(_stage(service, [one for one in left if one.name not in guilty], look, is_other_by_itself))
        else:
            for one in left:
                failed.update(_stage(service, [one], look, is_other_by_itself))
                if any(failure.stays for failure in failed.values()):
                    return {**{other.name: Failure("was not tried: the files are not as they were") for other in left}, **failed}
    return failed


def _no_sites(names: Iterable[str]) -> list[str]:
    return [name for name in names if not os.path.lexists(f"{site.ETC}/sites.d/{name}.toml")]


def _take_out(service: services.Service, names: Collection[str]) -> dict[str, str]:
    """Take the lines of sites out again; by site, why that could not be done."""
    if not names:
        return {}
    config = change.configuration_now()
    now, failed, out = config, dict[str, str](), list[str]()
    for name in names:
        try:
            edits = change.lines_taken_out(now, name)
        except Refused as refused:             # somebody edited them
            failed[name] = str(refused).removeprefix(f"{name}: ")
            continue
        now, out = _with(now, edits), [*out, *[name] * bool(edits)]
    edits = [Change(path, text, now.texts[path]) for path, text in config.texts.items() if now.texts[path] != text]
    if edits:
        change.say(out[0], f"certdrop's lines are taken out again{f', and those for {len(out) - 1} more' * (len(out) > 1)}")
        try:
            change.put(out[0], service, edits, lambda: "", out[1:])
        except change.Ended:
            raise
        except Refused as refused:
            failed.update({name: f"its lines were not taken out: {str(refused).removeprefix(f'{out[0]}: ')}; certdrop-nginx {name} --undo takes them out"
                           for name in out})
    return failed


class _Pages:
    """The pages of sites' names and of others, before a change; and what is not as it was. Every method raises Refused where nobody can look."""

    def __init__(self, config: Configuration, wishes: Sequence[Wanted], anyway: bool) -> None:
        self.anyway, self.others_now = anyway, set[str]()        # domains whose page is another now, which was wanted
        self.asked, self.others = change.to_be_asked(config, [domain for one in wishes for domain in one.domains])
        self.take()

    def take(self) -> None:
        """Look at all of them, twice."""
        self.own, self.apart = dict(zip(self.asked, pages.stable(self.asked))), dict(zip(self.others, pages.stable(self.others)))

    def of(self, wanted: Wanted) -> list[pages.Asked]:
        """Those of a site."""
        names = {*map(edit.below, wanted.domains)}
        return [one for one in self.asked if one[1] in names]

    def changed(self, these: Sequence[Wanted]) -> dict[str, str]:
        """By site the page that is not as it was, by http; "" for what belongs to none of them."""
        return self._compared(these, "http", {}) or self._changed_elsewhere()

    def wrong(self, these: Sequence[Wanted]) -> dict[str, str]:
        """By site what is not as it was, or does not show its certificate; "" for what belongs to none of them."""
        return self._compared(these, "https", {one.name: {*map(pages.fingerprint, one.names)} for one in these}) or self._changed_elsewhere()

    def _compared(self, these: Sequence[Wanted], scheme: str, prints: dict[str, set[str]]) -> dict[str, str]:
        """By site the first thing that is not as it was; the others are said, and all of them where they are wanted so."""
        was = [(one.name, page) for one in these for page in self.of(one)]
        now, wrong = [(address, domain, scheme) for _, (address, domain, _) in was], dict[str, str]()
        if prints:
            pages.until_shown(now, {mark for marks in prints.values() for mark in marks})
        seen = pages.look(now)
        apart = pages.apart([old for _, old in was], [self.own[old] for _, old in was], seen, [scheme] * len(was))
        for at, ((name, _), new, page) in enumerate(zip(was, now, seen)):
            if prints and page.shown not in prints[name]:
                wrong.setdefault(name, f"{new[1]} at {new[0]}: {'another certificate is shown' if page.shown else page.why or 'no certificate is shown'}")
            if at in apart:
                if self.anyway:
                    self.others_now.add(new[1])
                if self.anyway or name in wrong:
                    change.say(name, f"differs: {apart[at]}")
                else:
                    wrong[name] = (f"differs: {apart[at]}: the pages are not those of before (certdrop-nginx {name} --apply --anyway makes the change all the "
                                   "same)")
        return wrong

    def _changed_elsewhere(self) -> dict[str, str]:
        apart = pages.differences(self.others, [*self.apart.values()], pages.look(self.others), [scheme for _, _, scheme in self.others])
        for line in apart if self.anyway else ():
            words.say(f"certdrop-nginx: differs: {line}")
        return {"": f"pages of others are not those of before: {apart[0]}"} if apart and not self.anyway else {}

    def is_other_by_itself(self) -> bool:
        """Whether a page of others stays another, now that the files are as they were. It is taken as it is then."""
        end = time.monotonic() + pages.RELOADED            # until then a worker with the new files may answer
        try:
            while self._changed_elsewhere():
                if time.monotonic() > end:
                    self.take()
                    return True
                time.sleep(0.2)
        except change.Ended:
            raise
        except Refused:                        # nobody can look
            return False
        return False

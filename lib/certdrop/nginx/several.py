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
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from certdrop import words
from certdrop.config import site
from certdrop.keeper import services
from certdrop.nginx import change, edit, fetched, pages
from certdrop.nginx.blocks import Refused
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


def together(config: Configuration, wishes: Sequence[Wanted]) -> tuple[list[Change], Failures]:
    """The files with all that these sites need, each on top of the others; and what was refused."""
    now, failed = config, Failures()
    for wanted in wishes:
        try:
            now = _with(now, edit.changes(now, wanted))
        except Refused as refused:
            failed[wanted.name] = Failure(str(refused).removeprefix(f"{wanted.name}: "))
        except edit.NoBlock:
            failed[wanted.name] = Failure("no server block has one of its names any more; nothing was changed; run this again")
    return [Change(path, text, now.texts[path]) for path, text in config.texts.items() if now.texts[path] != text], failed


def _with(config: Configuration, changes: Sequence[Change]) -> Configuration:
    new = {one.path: one.new for one in changes}
    return Configuration([Source(path, new.get(path, text)) for path, text in config.texts.items()]) if new else config


def take(wishes: Sequence[Wanted], order: Callable[[list[Wanted]], Failures]) -> Failures:
    """Have nginx serve these sites by HTTPS. `order` makes the sites that are not there yet, and has the CA asked. Those that were not done, and why.

    Raises Refused and Absent where nothing can be done at all, and change.Ended where somebody ended it.
    """
    service, names = change.service_here(), [one.name for one in wishes]
    with change.ending(names[0]), change.at_work(*names):
        begun = [name for name in names if change.tell_of_begun(name)]
        config = change.tested(service)
        text = "".join(config.texts.values())
        ready = [one for one in wishes if _has_certificate(one.name)]
        before = _Pages(config, wishes)
        change.refuse_where_none_answers(names[0], service, before.asked, [*before.own.values()])
        had = {one.name for one in wishes if edit.bears(text, one.name) and not (
            one in ready and one.name in begun and not change.is_served(before.of(one), [one.name]))}
        failed = _serve(service, ready, had, before)       # what is only to be loaded, or put in again, before others are changed
        left = [one for one in wishes if one not in ready]
        if not left:
            return failed
        if ready:
            before.take()
        failed.update(_stage(service, [one._replace(tls=False) for one in left], before.changed, before.is_other_by_itself))
        try:
            left, barred = _that_come_through([one for one in left if one.name not in failed])
            failed.update(barred)
            failed.update(order(left) if left else {})
        except BaseException:                  # what was put in for sites that are none now
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for name, why in _take_out(service, _no_sites(names)).items():
                words.say(f"certdrop-nginx: {name}: {why}")
            raise
        for one in left:
            if one.name not in failed and not _has_certificate(one.name):
                failed[one.name] = Failure("no certificate came; nginx goes on as before, and lets challenges through, so that cron can go on; then "
                                           f"certdrop-nginx {one.name} --apply does the rest (certdrop-nginx {one.name} --undo takes it back)", os.EX_TEMPFAIL)
        _add(failed, _take_out(service, _no_sites(name for name, failure in failed.items() if not failure.stays)))
        left = [one for one in left if one.name not in failed]
        try:
            before = _Pages(change.configuration_now(), left)           # the CA may have taken minutes
        except change.Ended:
            raise
        except Refused as refused:
            why = str(refused).removesuffix("; nothing was changed")
            return {**failed, **{one.name: Failure(f"{why}; its certificate is there, and nginx goes on as before; certdrop-nginx {one.name} --apply does the "
                                                   "rest", os.EX_TEMPFAIL) for one in left}}
        failed.update(_serve(service, left, had, before))
    return failed


def _has_certificate(name: str) -> bool:
    return os.path.exists(f"{site.STATE}/live/{name}/nginx.conf") and not os.path.exists(f"{site.STATE}/live/{name}/placeholder")


def _serve(service: services.Service, wishes: Sequence[Wanted], had: set[str], before: _Pages) -> Failures:
    """Put HTTPS in for sites that have a certificate. Of those that fail no line stays, but for those that `had` some before this run."""
    failed = _stage(service, wishes, before.wrong, before.is_other_by_itself)
    _add(failed, _take_out(service, [name for name, failure in failed.items() if name not in had and not failure.stays]))
    _add(failed, {name: change.STAY.format(name) for name, failure in failed.items() if name in had and not failure.stays})
    _tell([one for one in wishes if one.name not in failed], before.asked)
    return failed


def _add(failed: Failures, words_more: dict[str, str]) -> None:
    """Say this, too, of sites that failed."""
    for name, why in words_more.items():
        if name in failed:
            failed[name] = failed[name]._replace(why=f"{failed[name].why}; {why}")


def _tell(done: Sequence[Wanted], asked: Sequence[pages.Asked]) -> None:
    if not done:
        return
    subprocess.run([change.INSTALL], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=users.ENVIRONMENT, check=False)
    for one in done:
        for domain in dict.fromkeys(domain for _, domain, _ in asked if domain in one.domains):
            change.say(one.name, f"https://{domain}/ is the page that http://{domain}/ was")
        if one.hsts:
            change.say(one.name, change.BINDS)
        change.say(one.name, f"certdrop-nginx {one.name} --undo takes it back; the files as they were are in {change.KEPT}/{one.name}")


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


def _that_come_through(wishes: Sequence[Wanted]) -> tuple[list[Wanted], Failures]:
    """The sites, and of their names those, for which a token came as the CA would fetch it; the others are said."""
    bad = fetched.of_new([domain for one in wishes for domain in one.domains]) if wishes else {}
    left, failed = list[Wanted](), Failures()
    for one in wishes:
        good = [domain for domain in one.domains if domain not in bad]
        why = [f"{bad[domain][0].why}{'; ' * bool(bad[domain][0].mend)}{bad[domain][0].mend}" for domain in one.domains if domain in bad]
        if not good:
            failed[one.name] = Failure(why[0])
            continue
        for line in why:
            words.say(f"certdrop-nginx: {one.name}: left out: {line}")
        left.append(one._replace(domains=good))
    return left, failed


def _no_sites(names: Iterable[str]) -> list[str]:
    return [name for name in names if not os.path.lexists(f"{site.ETC}/sites.d/{name}.toml")]


def _take_out(service: services.Service, names: Sequence[str]) -> dict[str, str]:
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

    def __init__(self, config: Configuration, wishes: Sequence[Wanted]) -> None:
        self.asked, self.others = change.to_be_asked(config, [domain for one in wishes for domain in one.domains])
        self.take()

    def take(self) -> None:
        """Look at all of them, twice."""
        self.own, self.apart = dict(zip(self.asked, pages.stable(self.asked))), dict(zip(self.others, pages.stable(self.others)))

    def of(self, wanted: Wanted) -> list[pages.Asked]:
        """Those of a site."""
        return [one for one in self.asked if one[1] in wanted.domains]

    def changed(self, these: Sequence[Wanted]) -> dict[str, str]:
        """By site the page that is not as it was, by http; "" for what belongs to none of them."""
        wrong = dict[str, str]()
        for one in these:
            was = self.of(one)
            for line in pages.differences(was, [self.own[page] for page in was], pages.look(was), ["http"] * len(was)):
                wrong.setdefault(one.name, f"differs: {line}: the pages are not those of before")
        return wrong or self._changed_elsewhere()

    def _changed_elsewhere(self) -> dict[str, str]:
        apart = pages.differences(self.others, [*self.apart.values()], pages.look(self.others), [scheme for _, _, scheme in self.others])
        return {"": f"pages of others are not those of before: {apart[0]}"} if apart else {}

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

    def wrong(self, these: Sequence[Wanted]) -> dict[str, str]:
        """By site what is not as it was, or does not show its certificate; "" for what belongs to none of them."""
        of = {domain: one.name for one in these for domain in one.domains}
        prints = {one.name: change.fingerprint(one.name) for one in these}
        was = [one for one in self.asked if one[1] in of]
        after = [(address, domain, "https") for address, domain, _ in was]
        pages.until_shown(after, {*prints.values()})
        wrong = dict[str, str]()
        for old, one, page in zip(was, after, pages.look(after)):
            if page.shown != prints[of[one[1]]]:
                wrong.setdefault(of[one[1]], f"{one[1]} at {one[0]}: {'another certificate is shown' if page.shown else page.why or 'no certificate is shown'}")
            for line in pages.differences([old], [self.own[old]], [page], ["https"]):
                wrong.setdefault(of[one[1]], f"differs: {line}: the pages are not those of before (certdrop-nginx "
                                             f"{of[one[1]]} --apply --anyway makes the change all the same)")
        return wrong or self._changed_elsewhere()

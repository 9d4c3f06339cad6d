"""The server blocks that nginx has, changed for several sites at once: one reload for their challenges, one order, one reload for HTTPS.

What cannot be done for one site is said, and does not stop the others: what nginx refuses of all together is tried one by one. The files are written by
change.py: copies, nginx's test, reload, the certificates and pages looked at, and all put back where one of these fails.
Runs as: root, by hand. Trusts: nginx's configuration where it is root's alone. Reads: what `nginx -T` prints, live/. Writes: through change.py.
"""

from __future__ import annotations

import os
import subprocess
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

    Raises Refused and Absent where nothing can be done at all.
    """
    service = change.service_here()
    with change.at_work(*(one.name for one in wishes)):
        for one in wishes:
            change.tell_of_begun(one.name)
        config = change.tested(service)
        asked, others = change.to_be_asked(config, [domain for one in wishes for domain in one.domains])
        before = dict(zip(asked, pages.stable(asked))), dict(zip(others, pages.stable(others)))
        failed = _stage(service, [one._replace(tls=False) for one in wishes], lambda _: {})
        left, barred = _that_come_through([one for one in wishes if one.name not in failed])
        failed.update(barred)
        try:
            failed.update(order(left) if left else {})
        except BaseException:                  # what was put in for sites that are none now
            _take_out(service, _no_sites(one.name for one in wishes))
            raise
        left = [one for one in left if one.name not in failed]
        for one in left:
            if not os.path.exists(f"{site.STATE}/live/{one.name}/nginx.conf") or os.path.exists(f"{site.STATE}/live/{one.name}/placeholder"):
                failed[one.name] = Failure("no certificate came; nginx goes on as before, and lets challenges through, so that cron can go on; then "
                                           f"certdrop-nginx {one.name} --apply does the rest (certdrop-nginx {one.name} --undo takes it back)", os.EX_TEMPFAIL)
        _take_out(service, _no_sites(failed))
        left = [one for one in left if one.name not in failed]
        failed.update(_stage(service, left, lambda these: _looked_at(these, *before)))
        _tell([one for one in left if one.name not in failed], asked)
    return failed


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


def _stage(service: services.Service, wishes: Sequence[Wanted], look: Callable[[Sequence[Wanted]], dict[str, str]]) -> Failures:
    """Change the files for all of them, and look: `look` says of which sites something is wrong ("": nobody knows of which)."""
    edits, failed = together(change.configuration_now(), wishes)
    left, guilty = [one for one in wishes if one.name not in failed], dict[str, str]()
    if not left:
        return failed

    def seen() -> str:
        guilty.update(look(left))
        return next(iter(guilty.values()), "")
    try:
        change.put(left[0].name, service, edits, seen, [one.name for one in left[1:]])
    except Refused as refused:
        if len(left) == 1:
            return {**failed, left[0].name: Failure(str(refused).removeprefix(f"{left[0].name}: "))}
        if {*guilty} & {one.name for one in left}:         # then without these
            failed.update({name: Failure(f"{why}; all files are as they were") for name, why in guilty.items() if name})
            failed.update(_stage(service, [one for one in left if one.name not in guilty], look))
        else:
            for one in left:
                failed.update(_stage(service, [one], look))
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


def _take_out(service: services.Service, names: Sequence[str]) -> None:
    """Take the lines of sites that are none out again."""
    config = change.configuration_now()
    now = config
    for name in names:
        now = _with(now, change.lines_taken_out(now, name))
    edits = [Change(path, text, now.texts[path]) for path, text in config.texts.items() if now.texts[path] != text]
    if edits:
        change.say(names[0], f"certdrop's lines are taken out again{f', and those for {len(names) - 1} more' * (len(names) > 1)}")
        change.put(names[0], service, edits, lambda: "", names[1:])


def _looked_at(these: Sequence[Wanted], before: dict[pages.Asked, tuple[pages.Page, pages.Page]],
               others: dict[pages.Asked, tuple[pages.Page, pages.Page]]) -> dict[str, str]:
    """By site what is not as it was, or does not show its certificate; "" for what belongs to none of them."""
    of = {domain: one.name for one in these for domain in one.domains}
    prints = {one.name: change.fingerprint(one.name) for one in these}
    was = [one for one in before if one[1] in of]
    after = [(address, domain, "https") for address, domain, _ in was]
    pages.until_shown(after, {*prints.values()})
    wrong = dict[str, str]()
    for old, one, page in zip(was, after, pages.look(after)):
        if page.shown != prints[of[one[1]]]:
            wrong.setdefault(of[one[1]], f"{one[1]} at {one[0]}: {'another certificate is shown' if page.shown else page.why or 'no certificate is shown'}")
        for line in pages.differences([old], [before[old]], [page], ["https"]):
            wrong.setdefault(of[one[1]], f"differs: {line}: the pages are not those of before (certdrop-nginx "
                                         f"{of[one[1]]} --apply --anyway makes the change all the same)")
    asked = [*others]
    apart = pages.differences(asked, [*others.values()], pages.look(asked), [scheme for _, _, scheme in asked])
    return wrong or ({"": f"pages of others are not those of before: {apart[0]}"} if apart else {})

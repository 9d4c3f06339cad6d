"""certdrop add-name and drop-name: a site gets more names, or fewer. Its file, its own server block, and one order.

The file is changed in its one list, and nowhere else; a server block only where certdrop-nginx wrote or changed it and nobody edited that since. Nginx tests
both before anything is asked of the CA; where it refuses them, both are as they were.
Runs as: root. Trusts: the administrator's words, after checking them, and root's files. Reads and writes: sites.d/NAME.toml, the block, and through
install.py the rest.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Sequence

from certdrop import happened, spool
from certdrop.admin import first_use, sites, telling
from certdrop.by_hand import Refused
from certdrop.config import general, site
from certdrop.keeper import install, lock, services
from certdrop.keeper.state import Observed
from certdrop.nginx import blocks, change, own

LIST = re.compile(r"^domains[ \t]*=[ \t]*\[[^\]]*\]", re.M)


def add(name: str, more: list[str], ask: bool) -> int:
    """These names, too. Raises Refused, ConfigError."""
    try:
        sites.known([name])
        sites.refuse(more, name, site.load_site(name, general.load_config()).validation)
    except Refused as refused:
        raise Refused(str(refused).replace("try: certdrop add ", f"try: certdrop add-name {name} ")) from refused
    return _change(name, more, [], ask)


def drop(name: str, fewer: list[str], ask: bool) -> int:
    """Without these names. Raises Refused, ConfigError."""
    return _change(name, [], fewer, ask)


def _change(name: str, more: list[str], fewer: list[str], ask: bool) -> int:
    with lock.held():
        sites.known([name])
        config, path = general.load_config(), f"{site.ETC}/sites.d/{name}.toml"
        found = site.load_site(name, config)
        before = found.domains
        absent = [domain for domain in fewer if domain not in before]
        if absent:
            raise Refused(f"{name}: {absent[0]!a:.80} is none of its names; they are {' '.join(before)}; nothing was changed")
        domains = [domain for domain in [*before, *(one for one in more if one not in before)] if domain not in fewer]
        if not domains:
            raise Refused(f"{name}: a site needs a name; certdrop remove {name} forgets the site; nothing was changed")
        if len(domains) > site.MAX_DOMAINS:
            raise Refused(f"{name}: {len(domains)} names; at most {site.MAX_DOMAINS} fit in one certificate; nothing was changed")
        if domains == before:
            telling.say(f"{sites.PROGRAM}: {name}: its names are {' '.join(before)} already; nothing was changed")
            return os.EX_OK
        for service in found.services:
            try:
                services.find(service).test()
            except services.Failed as error:
                raise Refused(f"{name}: {error}; nothing was changed; mend that, then run this again") from error
        run = telling.Run()
        for line in _write(found, path, domains):
            run.tell(name, line)
        run.log.write(happened.NAMES, site=name, domains=" ".join(domains))
        run.tell(name, f"its names are now {' '.join(domains)}")
        install.reconcile(run, [name])
        wanted = {name: Observed(name).next}
    run.flush()
    if not ask or run.exit_code() != os.EX_OK:
        return run.exit_code()
    code = sites.issue(wanted)
    if more and not code and "nginx" in found.services:            # the certificate is for them: http may lead to https
        _applied(found, domains, lambda: None)
    return code


def _write(found: site.Site, path: str, domains: list[str]) -> list[str]:
    """Change the site's file, and its own server block; both are put back where nginx refuses them. What is to be said. Raises Refused."""
    old, files, said = _read(path), dict[str, tuple[str, str]](), list[str]()
    new = edited(path, old, domains)
    if "nginx" in found.services:
        changed = _applied(found, domains, lambda: first_use.write(path, new.encode(), 0o644), [one for one in domains if one not in found.domains])
        if changed is not None:
            return changed
        files, what = _block(found.name, found.domains, domains)
        said = [what] if what else []
    files[path] = old, new                     # last: who is killed before it says the same command again
    written: list[str] = []
    try:
        for file, (_, text) in files.items():
            written.append(file)
            first_use.write(file, text.encode(), 0o644)
        if len(files) > 1:
            services.find("nginx").test()
    except (services.Failed, OSError) as error:
        for file in written:
            first_use.write(file, files[file][0].encode(), 0o644)
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise Refused(f"{found.name}: {why}; all files are as they were") from error
    if len(files) > 1:
        try:
            services.find("nginx").reload()
        except services.Failed as error:
            said.append(f"nginx was not reloaded: {error}")
    return said


def _applied(found: site.Site, domains: list[str], write_site: Callable[[], None], pending: Sequence[str] = ()) -> list[str] | None:
    """Change the server blocks that certdrop-nginx --apply changed, and the site's file. None where there are none. Raises Refused."""
    wanted = site.Site(found.name, general.Config())
    wanted.domains = domains
    try:
        files = change.renamed([wanted], blocks.detect(), write_site, pending)
    except (blocks.Refused, blocks.Absent) as error:
        raise Refused(str(error)) from error
    return [f"{path}: changed, too" for path in files] or None


def edited(path: str, text: str, domains: list[str]) -> str:
    """A site's file with another list of names, and nothing else changed. Raises Refused where the list cannot be found for sure."""
    listed = "domains = [" + ", ".join(f'"{domain}"' for domain in domains) + "]"
    new, count = LIST.subn(lambda _: listed, text)
    by_hand = Refused(f"{path}: has another form than certdrop writes; write {listed} there, then run certdrop renew {os.path.basename(path)[:-5]}")
    found = LIST.search(text)
    try:
        if found is None or count != 1 or "#" in found[0] or tomllib.loads(new) != {**tomllib.loads(text), "domains": domains}:
            raise by_hand
    except ValueError as error:
        raise by_hand from error
    return new


def _block(name: str, before: list[str], domains: list[str]) -> tuple[dict[str, tuple[str, str]], str]:
    """({file: (text, new text)} of the server block that certdrop-nginx wrote, what is to be said where that is not done)."""
    shown = sites.configuration_of(services.find("nginx"))
    path = own.own(own.uses(shown, name), name)
    changed = sorted(set(domains) ^ set(before))
    if not path:
        return {}, f"its server block is not one that certdrop-nginx wrote, or was changed; {' '.join(changed)}: change server_name there"
    if any(map(site.is_address, changed)):
        return {}, f"{path}: stays, for an address needs another block; certdrop-nginx {name} prints it"
    text = _read(path)
    others = own.elsewhere(shown, path)
    taken = [f"{domain} has a server block already, at {others[domain]}" for domain in domains if domain not in before and domain in others]
    if taken:
        return {}, f"{path}: stays, for {taken[0]}: have that name the live pair, or take the name out of it"
    now = f"    server_name {' '.join(map(site.as_host, domains))};"
    return {path: (text, re.sub(r"^    server_name [^;]+;$", lambda _: now, text, flags=re.M))}, f"{path}: changed, too"


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as stream:
        return stream.read(spool.MAX_REPLY)

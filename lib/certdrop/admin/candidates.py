"""What nginx answers for on port 80 and has no certificate for: found by server block, said with what is in the way, and taken in one go.

One certificate for each server block, or for those that are joined by "+". certdrop-check says of each name whether it leads here; edit.py says whether
the block can be changed. nginx/several.py changes the blocks; sites.py makes the sites and has the CA asked, for all of them at once.
Runs as: root, by hand. Trusts: the administrator's words, and nginx's configuration where it is root's; its names are cleaned. Reads: what `nginx -T` prints,
sites.d/. Writes: through the others.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from certdrop import events, progress, spool, terminal, words
from certdrop.admin import first_use, sites, telling
from certdrop.by_hand import Refused
from certdrop.config import general, site
from certdrop.keeper.command import as_root
from certdrop.nginx import blocks, challenge, change, edit, fetched, several
from certdrop.nginx.configuration import Configuration, Server
from certdrop.nginx.edit import Wanted

SILENT = ("", "_", "localhost")                # server_names that stand for no name


class Candidate(NamedTuple):
    """The names of a server block that are to share a certificate; and what is to be said of others of its names, or of all (`why`)."""

    name: str                      # of the site
    domains: list[str]
    place: str                     # FILE:LINE of the block
    notes: list[str]
    why: str = ""                  # why it cannot be taken
    blocks: int = 1                # how many are joined


class Known(NamedTuple):
    """What is there already."""

    config: Configuration
    build: blocks.Build
    of: dict[str, str]             # the site of each domain
    redirect: bool = True          # whether http is to lead to https
    hsts: bool = False


def known(options: Mapping[str, str]) -> Known:
    """nginx's configuration, and the sites. Raises Refused, site.ConfigError."""
    config, of = general.load_config(), dict[str, str]()
    for name in site.site_names():
        for domain in site.load_site(name, config).domains:
            of.setdefault(domain, name)
    try:
        return Known(change.tested(change.service_here()), blocks.detect(), of, "--no-redirect" not in options, "--hsts" in options)
    except (blocks.Absent, blocks.Refused) as error:
        raise Refused(str(error)) from error


def wanted(known_here: Known, name: str, domains: Sequence[str]) -> Wanted:
    """What is wanted of a block."""
    return Wanted([name], [site.as_host(domain) for domain in domains], known_here.build, redirect=known_here.redirect, hsts=known_here.hsts)


def by_block(here: Known) -> list[Candidate]:
    """The server blocks on port 80 that have a name without a certificate, in nginx's order. No name is asked for yet."""
    found, seen = list[Candidate](), set[str]()
    text = "".join(here.config.texts.values())
    for server in here.config.servers:
        if not any(one.port == 80 for one in server.listens):
            continue
        domains, notes, begun = list[str](), list[str](), list[str]()
        for name in dict.fromkeys(one.removeprefix(".") for one in server.names):
            if name in seen or name in SILENT:
                continue
            seen.add(name)
            if name in here.of:
                begun += [name] * edit.bears(text, here.of[name])
                continue
            why = _not_for_a_certificate(here.config, name)
            if why:
                notes.append(why)
            else:
                domains.append(name)
        place = server.directive.place
        for name in dict.fromkeys(here.of[one] for one in begun):         # a run that was ended before it was done
            its = [domain for domain in here.of if here.of[domain] == name]
            if all(one.name != name for one in found) and (change.is_begun(name) or several.together(here.config, [wanted(here, name, its)])[0]):
                found.append(Candidate(name, its, place, []))
        if domains:
            found.append(Candidate(domains[0], domains, place, notes, _no_site(domains)))
        elif notes:
            found.append(Candidate(events.clean(notes[0].partition(":")[0], 80), [], place, [], notes[0].partition(": ")[2]))
    return found


def _no_site(domains: list[str]) -> str:
    if len(domains) > site.MAX_DOMAINS:
        return f"{len(domains)} names, and at most {site.MAX_DOMAINS} fit in one certificate; make two server blocks of it"
    if not spool.may_name_a_new_site(domains[0]) or os.path.lexists(f"{site.ETC}/sites.d/{domains[0]}.toml"):
        return f"no new site can have that name; certdrop add {' '.join(domains[:3])}{' ...' if len(domains) > 3 else ''} --name NAME --apply gives it another"
    return ""


def _not_for_a_certificate(config: Configuration, name: str) -> str:
    """Why there is no certificate to be had for a server_name by HTTP-01, or it has one; "" where nothing is seen."""
    shown = events.clean(name, 80)
    if name.startswith("~"):
        return f"{shown}: a regular expression; name each host, with certdrop add"
    if "*" in name:
        return f"{shown}: a wildcard, which a record in the DNS proves; certdrop add '{shown}' says which" if not site.refusal(name, site.VALIDATIONS[1]) \
            else f"{shown}: no wildcard that a CA issues for; name each host, with certdrop add"
    if not site.is_host_name(name):
        return f"{shown}: no full DNS name, and no CA issues for it"
    for server in config.servers:
        if server.has_name(name) and _has_certificate(server):
            return f"{shown}: has a certificate already, at {server.directive.place}; certdrop-import takes it over"
    return ""


def _has_certificate(server: Server) -> bool:
    return bool(server.all("ssl_certificate")) or any(one.port == 443 for one in server.listens)


def examined(here: Known, found: Sequence[Candidate]) -> list[Candidate]:
    """The same, with what the DNS and nginx's configuration say of them: names that cannot be proven are left out."""
    asked = [domain for one in found if not one.why for domain in one.domains]
    lines = fetched.of_new(asked) if asked else {}
    wishes = [wanted(here, one.name, one.domains) for one in found if not one.why]
    edits, failed = several.together(here.config, wishes)
    changed = edit.as_changed(here.config, edits)
    refused = {domain for one in found if one.name in failed for domain in one.domains}
    bad = {domain: why for domain, those in lines.items()
           if (why := next((f"{line.why}; {line.mend}".removesuffix("; ") for line in those if not _is_mended(changed, domain, line, domain in refused)), ""))}
    sifted = []
    for one in found:
        good = [domain for domain in one.domains if domain not in bad]
        left_out = [bad[domain] for domain in one.domains if domain in bad]
        if one.why or one.name in here.of.values():
            sifted.append(one)
        elif not good:
            sifted.append(one._replace(why=left_out[0].removeprefix(f"{one.name}: "), notes=[*one.notes, *left_out[1:]]))
        else:
            name = good[0] if one.name not in good and not _no_site(good) else one.name
            sifted.append(one._replace(name=name, domains=good, notes=[*one.notes, *left_out]))
    left = [wanted(here, one.name, one.domains) for one in sifted if not one.why]
    failed = failed if left == wishes else several.together(here.config, left)[1]
    return [one if one.why or one.name not in failed else one._replace(why=failed[one.name].why) for one in sifted]


def from_nginx(names: list[str], options: dict[str, str]) -> int:
    """`certdrop add` without a domain, and --from-nginx: list, ask, take. Raises Refused, site.ConfigError, PermissionError."""
    if os.geteuid() != 0:
        raise PermissionError("must be run as root; try sudo")
    here = known(options)
    everything, groups = by_block(here), [[sites.a_label(name) for name in word.split("+")] for word in names]
    names = [name for group in groups for name in group]
    absent = [name for name in names if not any(_is_of(one, name) for one in everything)]
    for name in absent:
        words.say(f"certdrop: {name!a:.80}: {_why_absent(here, name)}")
    asked = [one for one in everything if not names or any(_is_of(one, name) for name in names)]
    groups = [group for group in groups if len(group) > 1]
    found = _joined(here, examined(here, asked), [[at for name in group for at, one in enumerate(asked) if _is_of(one, name)] for group in groups])
    can, cannot = [one for one in found if not one.why], [one for one in found if one.why]
    code = os.EX_DATAERR if [name for name in absent if not _is_served(here, name)] or (names and cannot) else os.EX_OK
    if not can:
        _list(can, cannot)
        telling.say("certdrop: nothing is to be done" + (": nothing else that nginx answers for on port 80 can be taken" if cannot else
                                                         ": every name that nginx answers for on port 80 has its certificate" if not names else ""))
        return code
    at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    quiet = "--quiet" in options and "--yes" in options
    _list([] if quiet else can, cannot)
    words.say(*[f"certdrop: {one.name}: left out: {events.clean(note, 400)}" for one in can for note in one.notes if quiet])
    if "--dry-run" in options:
        return code
    if "--yes" not in options:
        if not at_terminal:
            raise Refused("nothing was changed; certdrop add --from-nginx --yes takes all of them, or those of the names that are given")
        can = _chosen(here, can)
    settings = first_use.settle(options)
    if "directory" in options:
        raise Refused(f"another CA than {first_use.CONFIG} names is one site's: certdrop add NAME --ca {options['directory']}; nothing was added")
    return as_root(lambda: take(here, can, settings)) or code


def _is_mended(changed: Configuration, domain: str, line: fetched.Failure, is_refused: bool) -> bool:
    """Whether the change of the server blocks, after which nginx's configuration is this, mends what is in the way: as far as can be told.

    Where the change `is_refused`, that is what is to be said.
    """
    at = re.search(r" over (\S+) the token does not come", line.why)
    if not line.what.endswith(": port 80") or at is None or "firewall" in line.why:
        return line.what.endswith(": port 80") and at is None
    return is_refused or not challenge.way(changed, site.as_host(at[1]), domain, challenge.Wish((), False)).is_blocked


def _is_of(one: Candidate, name: str) -> bool:
    return name in one.domains or name == one.name


def _joined(here: Known, found: Sequence[Candidate], groups: Sequence[Sequence[int]]) -> list[Candidate]:
    """These, those of each group as one, where its first was: with one certificate for all their names. Raises Refused where one is in two groups."""
    gone, made = set[int](), dict[int, Candidate]()
    for group in ([*dict.fromkeys(group)] for group in groups):
        twice = gone.intersection(group)
        if twice:
            raise Refused(f"{found[min(twice)].name}: is to be in two certificates; nothing was changed; name it once")
        gone.update(group)
        made.update({group[0]: _as_one(here, [found[at] for at in group])} if group else {})
    return [made.get(at, one) for at, one in enumerate(found) if at in made or at not in gone]


def _as_one(here: Known, members: Sequence[Candidate]) -> Candidate:
    """Several blocks with one certificate; where that cannot be, `why`."""
    domains, place = [domain for one in members for domain in one.domains], " and ".join(dict.fromkeys(one.place for one in members))
    whole = members[0]._replace(domains=domains, place=place, notes=[note for one in members for note in one.notes], blocks=len(members))
    why = next((f"{one.name}: {one.why}" for one in members if one.why), "") or next(
        (f"{one.name} is a site already; certdrop add-name {one.name} gives it more names" for one in members if one.name in here.of.values()), "")
    if len(members) == 1 or why:
        return members[0] if len(members) == 1 else whole._replace(why=f"cannot be joined: {why}")
    failed = several.together(here.config, [wanted(here, whole.name, domains)])[1]
    return whole._replace(why=_no_site(domains) or "".join(one.why for one in failed.values()))


def _is_served(here: Known, name: str) -> bool:
    """Whether a name's site has its lines in nginx's files, and none is lacking (by_block lists those)."""
    return name in here.of and any(edit.bears(text, here.of[name]) for text in here.config.texts.values())


def _why_absent(here: Known, name: str) -> str:
    if _is_served(here, name):
        return f"is a name of the site {here.of[name]} already, and its server block is changed for it"
    if "," in name:
        return "no name has a comma: put spaces between names, or + between those that are to share a certificate"
    if name in here.of:
        return f"is a name of the site {here.of[name]} already; certdrop-nginx {here.of[name]} --apply has nginx serve it"
    return "nginx has no server block on port 80 with that name; certdrop add makes a site for it all the same"


def _list(can: Sequence[Candidate], cannot: Sequence[Candidate]) -> None:
    """Say what can be taken, numbered, and what cannot, and why."""
    lines = []
    if can:
        lines.append("nginx answers for these on port 80, and they have no certificate of certdrop's:")
    for number, one in enumerate(can, 1):
        lines.append(f"  {number:2}  {' '.join(one.domains[:5])}{f' and {len(one.domains) - 5} more' if len(one.domains) > 5 else ''}   ({one.place})")
        lines += [f"        left out: {events.clean(note, 400)}" for note in one.notes]
    if cannot:
        lines.append("These cannot be taken:")
    for one in cannot:
        lines.append(f"   -  {one.name}   ({one.place}): {events.clean(one.why, 600)}")
        lines += [f"        {events.clean(note, 400)}" for note in one.notes]
    words.say(*lines)


def _chosen(here: Known, can: list[Candidate]) -> list[Candidate]:
    """What is to be taken, asked for until it is understood. Raises Refused."""
    words.say(f"Each gets a certificate, and its server block serves HTTPS with it{'; http then leads there' * here.redirect}. Every page stays\n"
              "what it is, or the change is taken back. certdrop-nginx NAME --undo takes it back later.", *[blocks.BINDS] * here.hsts)
    question = "Take it? [Y/n]: " if len(can) == 1 else "Which? Numbers, names, all or none; 1+2 share one certificate [all]: "
    while True:
        try:
            answer = terminal.ask(question).lower()
        except terminal.Declined:
            answer = "none"
        if answer in ("none", "n", "no"):
            raise Refused("not agreed; nothing was changed")
        if answer in ("", "all", "y", "yes"):
            return can
        groups = [[word.lstrip("0") if word.isascii() else word for word in typed.split("+")]
                  for typed in re.split(r"[\s,;]+", re.sub(r"\s*\+\s*", "+", answer)) if typed]
        meant = [[[at for at, one in enumerate(can) if word == str(at + 1) or word in one.domains] for word in group] for group in groups]
        unknown = [word for group, found in zip(groups, meant) for word, ats in zip(group, found) if not ats]
        try:
            chosen = {at for group in meant for ats in group for at in ats}
            joined = _joined(here, can, [[at for ats in group for at in ats] for group in meant if len(group) > 1])
            taken = [one for one in joined if any(can[at].name == one.name for at in chosen)]
            bad = next((f"{' '.join(one.domains[:5])}: {one.why}" for one in taken if one.why), "")
        except Refused as refused:
            bad = str(refused)
        if groups and not unknown and not bad:
            return taken
        words.say(f"{min(unknown)!a:.80}: none of these" if unknown else f"{answer!a:.80}: none of these" if not groups else events.clean(bad, 600))


def take(here: Known, chosen: Sequence[Candidate], settings: str, key: str = "", profile: str = "") -> int:
    """Have these served: their blocks changed, sites made, certificates ordered together. Raises Refused, site.ConfigError."""
    began, came = time.monotonic(), dict[str, Sequence[str]]()

    def order(left: list[Wanted]) -> tuple[list[Wanted], several.Failures]:
        left, barred = _that_come_through(left)
        came.update({one.name: one.domains for one in left})
        fresh = {one.name: [*one.domains] for one in left if not os.path.lexists(f"{site.ETC}/sites.d/{one.name}.toml")}
        failed = sites.add_several(fresh, key, profile, settings)
        waiting = [one.name for one in left if one.name not in failed and os.path.lexists(f"{site.STATE}/live/{one.name}/placeholder")]
        if waiting:
            with telling.before_it_is_served():
                sites.renew(waiting, False)
        return [one for one in left if one.name not in failed], {**barred, **{name: several.Failure(why) for name, why in failed.items()}}
    try:
        with contextlib.redirect_stdout(io.StringIO() if telling.is_quiet() else sys.stdout):
            failed = several.take([wanted(here, one.name, one.domains) for one in chosen], order)
    except (blocks.Absent, blocks.Refused) as error:
        raise Refused(str(error)) from error
    for name, failure in failed.items():
        words.say(f"certdrop: {name}: {failure.why.removeprefix(f'{name}: ')}")
    names = sum(len(came.get(one.name, ())) for one in chosen if one.name not in failed)
    lacking = any(len(came.get(one.name, one.domains)) < len(one.domains) for one in chosen)
    done = sum(one.blocks for one in chosen if one.name not in failed)
    telling.say(f"certdrop: {done} of {sum(one.blocks for one in chosen)} server blocks serve HTTPS, for {names} name{'' if names == 1 else 's'}, "
                f"{progress.span(time.monotonic() - began)}")
    sites.warn_of_silence()
    codes = {one.code for one in failed.values()} | ({os.EX_DATAERR} if lacking else set())
    return next((code for code in (os.EX_DATAERR, os.EX_TEMPFAIL) if code in codes), os.EX_OK)


def _that_come_through(wishes: Sequence[Wanted]) -> tuple[list[Wanted], several.Failures]:
    """The sites, and of their names those, for which a token came as the CA would fetch it; the others are said."""
    bad = fetched.of_new([domain for one in wishes for domain in one.domains]) if wishes else {}
    left, failed = list[Wanted](), several.Failures()
    for one in wishes:
        good = [domain for domain in one.domains if domain not in bad]
        why = [f"{bad[domain][0].why}{'; ' * bool(bad[domain][0].mend)}{bad[domain][0].mend}" for domain in one.domains if domain in bad]
        if not good:
            failed[one.name] = several.Failure(why[0])
            continue
        for line in why:
            words.say(f"certdrop-nginx: {one.name}: left out: {line}")
        left.append(one._replace(domains=good))
    return left, failed


def taking(here: Known, name: str, domains: list[str], settings: str, options: Mapping[str, str]) -> Callable[[], int]:
    """take() for the names that were typed."""
    return lambda: take(here, [Candidate(name, domains, "", [])], settings, options.get("--key", ""), options.get("--profile", ""))


def block_for(here: Known, name: str, domains: Sequence[str]) -> tuple[str, str]:
    """(FILE:LINE of the server block on port 80 that is for one of these names, why it cannot be changed for them). "" for none."""
    hosts = [site.as_host(domain) for domain in domains]
    at = next((server.directive.place for server in here.config.servers if any(one.port == 80 for one in server.listens)
               and any(map(server.has_name, hosts))), "")
    try:
        if at:
            edit.changes(here.config, wanted(here, name, domains))
    except (blocks.Refused, edit.NoBlock) as error:
        return at, str(error) or "another server block answers for its names"
    return at, ""


def offered(name: str, domains: Sequence[str], options: dict[str, str]) -> Known | None:
    """What nginx has, where the server block for these domains is to be changed: by --apply, or by the answer at a terminal. Else None. Raises Refused."""
    asked = "--apply" in options
    if not asked and (not {"--no-apply", "--no-issue", "--dry-run", "--yes"}.isdisjoint(options) or not (sys.stdin.isatty() and sys.stderr.isatty())):
        return None
    try:
        here = known(options)
        at, why = block_for(here, name, domains)
    except (Refused, site.ConfigError):
        if asked:
            raise
        return None                            # sites.add says what is the matter
    if asked and (why or not at):
        raise Refused(f"{why.removesuffix('.')}; nothing was added" if why else
                      f"{name}: nginx has no server block on port 80 for its names; nothing was added; without --apply it is added, and certdrop-nginx {name} "
                      "--write makes a server block")
    if asked or not at:
        return here if at else None
    if why:
        words.say(f"certdrop: note: {events.clean(why, 600)}")
        return None
    words.say(f"nginx answers for {name} by the server block at {at}. It can be changed to serve HTTPS: every page stays what it is, or the change is\n"
              f"taken back; certdrop-nginx {name} --undo takes it back later.", *[blocks.BINDS] * here.hsts)
    return here if _agrees("Change it? [Y/n]: ") else None


def _agrees(question: str) -> bool:
    """Whether a person says yes, or nothing. Raises Refused at Ctrl-C and Ctrl-D."""
    try:
        return terminal.ask(question).lower() in ("", "y", "yes")
    except terminal.Declined:
        raise Refused("not agreed; nothing was added") from None

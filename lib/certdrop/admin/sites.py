"""The administrator's verbs: add, renew, rotate, rollback, remove. Each states what is wanted on disk, and has install.py make it so.

The issuer runs as _certdrop between two turns of the lock, never under it. Runs as: root. Trusts: the administrator's
words, after checking them. Reads and writes: sites.d/, and through install.py the rest.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence

from certdrop import events, happened, listening, progress, spool, words
from certdrop.admin import first_use, telling
from certdrop.by_hand import Refused
from certdrop.config import general, persist, site
from certdrop.keeper import generations, install, lock, notes, revoke, services, state
from certdrop.keeper.run import Run
from certdrop.keeper.state import Observed
from certdrop.nginx import blocks, change, edit, fetched, own
from certdrop.nginx.edit import Change
from certdrop.trust import roots
from certdrop.walls import become, users

ACCOUNT = "/usr/sbin/certdrop-account"
ISSUE = "/usr/sbin/certdrop-issue"
WATCH = "/usr/sbin/certdrop-watch"
DEADLINE = 3600                    # seconds for the issuer's whole run
PROGRAM = "certdrop"
FRESH = 86400                      # seconds: a certificate that is younger is renewed by force only
NO_NAME = (("://", "that is a URL"), ("@", "that is a mail address"), (r"[,;\s]", "several names are given one by one, with spaces between them"),
           ("/", "that is a path"), (":[0-9]{1,5}$", "no port belongs to it, challenges go to port 80"), ("_", "it has an underscore, for which no CA issues"),
           (r"\.$", "it ends in a dot"), (r"^[^.*]+$", "it has no dot, and no CA issues for such a name"))


def add(domains: list[str], name: str, key: str, profile: str, settings: str, ask: bool, validation: str = "", directory: str = "") -> int:
    """Add a site, ask for its certificate where `ask` says so, and tell what would go wrong unseen. Raises Refused and site.ConfigError."""
    code = _add(domains, name, key, profile, settings, ask, validation, directory)
    warn_of_silence()
    return code


def _add(domains: list[str], name: str, key: str, profile: str, settings: str, ask: bool, validation: str, directory: str) -> int:
    """A site's configuration, a placeholder, a request; then have the issuer run, and install."""
    with lock.held():
        config = general.load_config()
        refuse(domains, name, validation or config.validation)
        _refuse_site(domains, name, key, config)
        config = _ready(settings, config)
        run = telling.Run()
        _describe(run, name, domains, key, profile, config, validation, directory)
        install.reconcile(run, [name])
        wanted = {name: Observed(name).next}
    run.flush()
    config = general.load_config()
    unknown = roots.missing(config.asking(directory or config.directory))
    if unknown:
        words.say(f"{PROGRAM}: note: {unknown}")
    if not ask and validation == persist.METHOD:
        telling.say(f"{PROGRAM}: {name}: certdrop-account show --records {name} prints what to publish in the DNS")
    if not ask or run.exit_code() != os.EX_OK:
        return run.exit_code()
    found = site.load_site(name, config)
    if found.validation == persist.METHOD and not _is_published(name, found.directory):
        words.say(f"{PROGRAM}: {name}: no certificate is asked for now; the placeholder stays; cron asks once the records are in the DNS; "
                  f"certdrop renew {name} asks at once")
        return os.EX_TEMPFAIL
    telling.say(f"{PROGRAM}: {name}: asking {roots.ca_named(config)}")
    code = issue(wanted)
    telling.say(*[f"{PROGRAM}: {name}: {line}" for line in ([] if code else _what_next(name))])
    return code


def _is_published(name: str, directory: str) -> bool:
    """Say what proves a site's names, and wait for it in the DNS where a person looks on. Whether it is there. The account is made, for the records name it."""
    if os.path.exists(f"{site.ETC}/fleet/host.toml"):          # the account is the desks'
        words.say(f"{PROGRAM}: {name}: a desk of the fleet prints what proves its names: certdrop-account show --records DOMAIN...")
        return True
    quiet = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        for argv, out in ((["register", "--yes"], quiet), (["show", "--records", name, "--wait"], 1)):
            code = become.run(spool.ISSUER, [ACCOUNT, *argv, "--directory", directory], DEADLINE * 2, out=out)
            if code:
                return False
        return True
    except become.Stopped as stopped:
        words.say(f"{PROGRAM}: {name}: {ACCOUNT}: {stopped}")
        return False
    finally:
        os.close(quiet)


def add_several(groups: Mapping[str, list[str]], key: str, profile: str, settings: str) -> dict[str, str]:
    """Sites by their names, each for its domains; nothing is ordered yet. Those that could not be added, and why. Raises Refused, site.ConfigError."""
    failed = dict[str, str]()
    if not groups:
        return failed
    with lock.held():
        config, run, is_ready = general.load_config(), telling.Run(), False
        for name, domains in groups.items():
            try:
                refuse(domains, name, config.validation)
                _refuse_site(domains, name, key, config)
            except Refused as refused:
                failed[name] = str(refused).removeprefix(f"{name}: ")
                continue
            if not is_ready:
                config, is_ready = _ready(settings, config), True
            _describe(run, name, domains, key, profile, config)
        install.reconcile(run, [name for name in groups if name not in failed])
    run.flush()
    return failed


def _refuse_site(domains: list[str], name: str, key: str, config: general.Config) -> None:
    """Raise Refused where there is such a site."""
    if os.path.lexists(f"{site.ETC}/sites.d/{name}.toml") or Observed(name).numbers:
        other = "; --name gives the new one another name" if name != domains[0] else ""
        raise Refused(f"{name}: this site exists; to change it edit {site.ETC}/sites.d/{name}.toml and run certdrop renew {name}{other}")
    twin = _twin(domains, key or config.key, config) if name == name_for(domains) else ""
    if twin:
        raise Refused(f"{name}: the site {twin} is for the same names, with the same kind of key; nothing was added; certdrop renew {twin} renews it "
                      "(--name adds a second site for them)")


def refuse_existing(domains: list[str], name: str, key: str) -> None:
    """Raise Refused where there is such a site, before anything is asked or done."""
    _refuse_site(domains, name, key, general.load_config())


def _ready(settings: str, config: general.Config) -> general.Config:
    """The configuration, made where there was none, of services that pass their tests. Raises Refused, site.ConfigError."""
    for service in config.services:
        try:
            services.find(service).test()
        except services.Failed as error:
            why = re.sub(r"\S+ \S+ \[emerg\] \d+#\d+: ", "", str(error))       # nginx's time and numbers
            raise site.ConfigError(f"{service} cannot use a certificate now: {why}; nothing was added; mend that, then run this again") from error
    if settings:
        if os.path.lexists(first_use.CONFIG):
            raise Refused(f"{first_use.CONFIG} was written meanwhile, by somebody else; nothing was added; try again")
        first_use.write(first_use.CONFIG, settings.encode(), 0o644)
        config = general.load_config()
    return config


def _describe(run: Run, name: str, domains: list[str], key: str, profile: str, config: general.Config, validation: str = "", directory: str = "") -> None:
    """Write a site's file."""
    if not (profile or config.profile) and (directory or config.directory).startswith("letsencrypt") and any(map(site.is_address, domains)):
        profile = general.SHORT                        # the only one that may name an address there
    text = "domains = [" + ", ".join(f'"{domain}"' for domain in domains) + "]\n"
    text += "".join(f'{setting} = "{value}"\n' for setting, value in (("key", key), ("profile", profile), ("validation", validation), ("directory", directory))
                    if value)
    first_use.write(f"{site.ETC}/sites.d/{name}.toml", text.encode(), 0o644)
    run.log.write(happened.ADDED, site=name, domains=" ".join(domains))
    run.tell(name, f"added; its names: {' '.join(domains)}")


def _twin(domains: list[str], key: str, config: general.Config) -> str:
    """The name of a site for just these domains, in whatever order, with the same kind of key. Or ""."""
    for name in site.site_names():
        try:
            found = site.load_site(name, config)
        except site.ConfigError:
            continue
        if set(found.domains) == set(domains) and found.key == key:
            return name
    return ""


def _what_next(name: str) -> list[str]:
    if os.path.lexists(f"{site.STATE}/proven/{name}"):
        return []
    return [f"next: certdrop-nginx {name} --write has nginx serve it by a new server block; certdrop-nginx {name} --apply, by the one that is there"]


def warn_of_silence() -> None:
    """Say so where nobody would hear of trouble: mail has no way out, nobody notices that cron stopped (certdrop-watch becomes its user by itself)."""
    if os.path.exists(WATCH):
        done = subprocess.run([WATCH, "--check"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/",
                              env=users.ENVIRONMENT, start_new_session=True, timeout=30, check=False)
        words.say(*[f"{PROGRAM}: note: " + events.clean(line, 300) for line in done.stderr.decode("utf-8", "replace").splitlines()[:5] if line.strip()])


def name_for(domains: list[str]) -> str:
    """The name of a site for these domains, where none is given: its first one; of a wildcard the name below the star, for a site is named as a file is."""
    return domains[0].removeprefix("*.")


def refuse(domains: list[str], name: str, validation: str) -> None:
    """Raise Refused unless these domains, of that name, can be a site, and be proven so."""
    for domain, wrong in ((domain, wrong) for domain in domains if (wrong := site.refusal(domain, validation))):
        meant = [name for text in domains for name in what_is_meant(text)]
        could = meant != domains and meant and not any(site.refusal(one, persist.validation_of([one], validation)) for one in meant)
        why = next((why for sign, why in NO_NAME if re.search(sign, domain) and domain.count(":") < 2), "")       # more look like an address
        raise Refused((f"{domain!a:.80}: no host name: {why}" if why else wrong) + "; nothing was added" +
                      (f"; try: certdrop add {' '.join(map(shlex.quote, dict.fromkeys(meant)))}" if could else ""))
    if len(set(domains)) != len(domains):
        raise Refused("a domain is given twice")
    if not spool.may_name_a_new_site(name):
        raise Refused(f"{name!a:.80}: no site's name: up to {spool.MAX_NAME} of a-z 0-9 . _ - with a letter or digit first; give one with --name")


def what_is_meant(text: str) -> list[str]:
    """The host names in what was typed: of a URL, a list with commas, a mail address, a wildcard, a name with its port or the root's dot, or with "_"."""
    found = []
    for part in re.split(r"[,;\s]+", text):
        part = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", part).partition("/")[0].rpartition("@")[2]
        part = re.sub(r":[0-9]{1,5}$", "", part) if part.count(":") == 1 else part
        part = part.strip(".").replace("_", "-")
        found += [part] if part else []
    return found


def a_label(domain: str) -> str:
    """A domain as it stands in a certificate: lower case, an international one as A-labels (RFC 5890), by python3-idna; an address in its canonical form."""
    if domain.isascii():
        try:
            return str(ipaddress.ip_address(domain[1:-1] if domain.startswith("[") and domain.endswith("]") else domain))
        except ValueError:
            return domain.lower()
    return site.as_a_labels(domain)            # what is none is refused with the others, in words for what was typed


def renew(names: list[str], force: bool) -> int:
    """Ask for a certificate now, with the key of the next generation; install it. Nothing is ordered for nothing, unless forced."""
    return _ask_now(names, fresh=False, force=force)


def rotate(names: list[str], only_post: bool, force: bool) -> int:
    """Ask for a certificate with a new key now (or only post the request, with `only_post`); install it."""
    return _ask_now(names, fresh=True, only_post=only_post, force=force)


def rotate_due() -> int:
    """Rotate the keys that are older than their site's key_max_age: the keeper's every run wants that (state.step); have it done now."""
    with lock.held():
        run = telling.Run()
        install.reconcile(run)
        nexts = [Observed(name) for name in site.site_names()]
        wanted = {observed.name: observed.next for observed in nexts if observed.has(observed.next, "now")}
    run.flush()
    return issue(wanted) if wanted else run.exit_code()


def cancel(names: list[str]) -> int:
    """Withdraw the wish for a certificate now; the next generation stays posted."""
    with lock.held():
        run = telling.Run()
        for name in known(names):
            observed = Observed(name)
            if observed.next is not None and observed.has(observed.next, "now"):
                os.unlink(state.directory(name, observed.next) + "/now")
                install.withdraw(run, name, observed.next, "now")
            run.tell(name, "no certificate is requested before its time")
    run.flush()
    return os.EX_OK


def rollback(name: str) -> int:
    """Go back to the generation before the live one, and post a fresh next. Raises Refused where there is none that serves."""
    known([name])
    with lock.held():
        run = telling.Run()
        wanted, observed = site.load_site(name, run.config), Observed(name)
        older = [number for number in observed.complete if number < (observed.live or 0) and not observed.has(number, "placeholder")]
        if not older:
            raise Refused(f"{name}: there is no earlier generation to go back to")
        if observed.moment(older[-1], "not_after") <= time.time():
            raise Refused(f"{name}: generation {older[-1]:04d} has expired; certdrop renew {name} gets a new certificate")
        if observed.is_burnt(older[-1]):
            raise Refused(f"{name}: the key of generation {older[-1]:04d} is compromised, and is never used again; "
                          f"certdrop renew {name} gets a new certificate")
        if (older[-1], "revoke") in run.posted.get(name, set()):
            raise Refused(f"{name}: generation {older[-1]:04d} is revoked, or about to be; certdrop renew {name} gets a new certificate")
        generations.make_next(wanted, observed.highest + 1, None, now=False)
        for number in reversed(observed.complete):            # killed in between, the live one is still the newest
            if number > older[-1]:
                generations.mark(name, number, "withdrawn")
        install.reconcile(run, [name])
    run.flush()
    return run.exit_code()


def own_block(name: str) -> str:
    """What of nginx's configuration goes with this site: the server block that certdrop-nginx wrote for it, or the lines that it put into others, where nothing
    else names its live pair, and nobody edited them; else ""."""
    if not spool.is_site_name(name):
        return ""
    try:
        block = own.own(own.uses(configuration_of(services.find("nginx")), name), name)
        lines = [] if block else [f"its lines in {os.path.realpath(one.path)}" for one in change.can_be_taken_out(name)]
        return f"its server block in {block}" if block else " and ".join(lines)
    except (services.Failed, blocks.Absent):
        return ""


def remove(name: str, agreed: bool) -> int:
    """Forget a site, its keys and certificates, and its own server block where that was `agreed`; refused while a service still needs it. Raises Refused."""
    with lock.held():
        install.finish_removals()
        if not os.path.lexists(f"{site.ETC}/sites.d/{name}.toml") and not (spool.is_site_name(name) and Observed(name).numbers):
            raise Refused(f"{name!a:.80}: no such site; certdrop-status lists them")
        run, live = telling.Run(), site.STATE + "/live"
        observed = Observed(name)
        used = _used(run, name)
        for service in used:
            shown = configuration_of(service)                # seen without touching anything: a kill leaves nothing aside that is in use
            if f"{live}/{name}/" in shown or edit.bears(shown, name):
                places = own.uses(shown, name)
                block = own.own(places, name)
                edits = change.can_be_taken_out(name) if not block and service.name == "nginx" else []
                if agreed and edits:
                    _take_out(name, edits)
                elif agreed and block:
                    run.tell(name, f"{block}: removed; {service.name} {own.take_away(block, service)}")
                elif places or edits:
                    raise Refused(f"{name}: still in use: {service.name}'s configuration names {live}/{name}/{_where(places)}; "
                                  f"{_freed(name, block, edits, shown)}")
        if os.path.lexists(f"{live}/{name}"):
            os.rename(f"{live}/{name}", f"{live}/.{name}.aside")
            try:
                for service in used:
                    service.test()
            except services.Failed as error:
                os.rename(f"{live}/.{name}.aside", f"{live}/{name}")
                raise Refused(f"{name}: still in use: {error}; take the site out of that service's configuration first") from error
        for number in state.owed(observed, run.posted.get(name, set())):
            revoke.post(run, name, number, "keyCompromise")
        notes.put(name, b"%d" % observed.highest, below="keeper/retired")
        for number, kind in sorted(run.posted.get(name, set())):
            if kind != "revoke":                             # what is to be revoked is revoked, site or no site
                install.withdraw(run, name, number, kind)
        if observed.numbers:
            os.rename(state.directory(name), f"{site.STATE}/sites/.removed-{name}")
            install.finish_removals()
        elif os.path.lexists(f"{site.ETC}/sites.d/{name}.toml"):
            os.unlink(f"{site.ETC}/sites.d/{name}.toml")
        run.log.write(happened.REMOVED, site=name)
        run.tell(name, "removed, with its keys and certificates")
    run.flush()
    return os.EX_OK


def _where(places: list[str]) -> str:
    return f" at {', '.join(places[:5])}{' ...' if len(places) > 5 else ''}" if places else ""


def _freed(name: str, block: str, edits: Sequence[Change], shown: str) -> str:
    """What frees a site that is in use."""
    if block:
        return f"certdrop-nginx wrote {block}, and nobody changed it: certdrop remove {name} --yes takes it away, too"
    if edits:
        return f"these lines are certdrop's, and nobody edited them: certdrop remove {name} --yes takes them out, too"
    if edit.bears(shown, name):
        return f"certdrop-nginx {name} --undo takes certdrop's lines out, or says which were edited"
    return "take the site out of it first"


def _take_out(name: str, edits: Sequence[Change]) -> None:
    try:
        change.take_out(name, edits)
    except (blocks.Refused, blocks.Absent) as error:
        raise Refused(str(error)) from error


def issue(wanted: Mapping[str, int | None], no_wait: bool = False) -> int:
    """Have the issuer ask for these sites' requests now, then install what came. 0 where it is installed, whoever installed it."""
    began = time.monotonic()
    alone = ["--no-install"] if len(wanted) == 1 else []                  # of several, root takes the replies as they come
    code, said = run_issuer([*alone, *["--no-wait"] * no_wait, "--apart", "--force", *wanted])
    if code:
        words.say(*[f"{PROGRAM}: {line}" for line in fetched.in_the_way(wanted)], *said)
    absent = []
    with lock.held():
        run = telling.Run()
        for name, number in wanted.items():
            proven = Observed(name).proven
            if number is not None and proven is not None and proven >= number:
                run.tell(name, f"generation {proven:04d} is installed, and served")
        install.reconcile(run, list(wanted))
        for name, number in wanted.items():
            observed = Observed(name)
            if number is None or observed.newest is None or observed.newest < number:
                absent.append(name)
                stays = "placeholder" if observed.stands_in else "live certificate"
                run.fail(name, f"no certificate was installed; the {stays} stays; cron goes on trying; certdrop renew {name} tries at once",
                         code or os.EX_TEMPFAIL)
    if absent and not code:
        words.say(*[f"{PROGRAM}: {line}" for line in fetched.in_the_way(absent)])
    run.flush()
    if len(wanted) > 1 and words.at_terminal(2):
        telling.say(f"{PROGRAM}: {len(wanted) - len(absent)} of {len(wanted)} certificates are installed, {progress.span(time.monotonic() - began)}")
    return run.exit_code()


def _ask_now(names: list[str], fresh: bool, only_post: bool = False, force: bool = False) -> int:
    known(names)
    posted: dict[str, int | None] = {}
    left = os.EX_OK                            # what was refused or put off before is over where another certificate comes
    with lock.held():
        run = telling.Run()
        before = {name: Observed(name).live for name in names}
        install.reconcile(run, names)
        for name in names:
            wanted, observed = site.load_site(name, run.config), Observed(name)
            if observed.next is None or observed.newest is None:
                continue
            if not (force or only_post):
                trouble = _cannot_be_used(run, wanted, observed)
                if trouble:
                    left = os.EX_TEMPFAIL
                    run.fail(name, f"{trouble}; nothing is ordered (--force orders anyway)", os.EX_TEMPFAIL)
                    continue
                served = not fresh and _serves_already(run, wanted, observed, before[name])
                if served:
                    run.tell(name, f"{served}; nothing is ordered (--force orders anyway)")
                    continue
            carried = observed.spki(observed.next) == observed.spki(observed.newest)
            if fresh and (carried or only_post):
                now = not only_post or observed.stands_in
                generations.make_next(wanted, observed.highest + 1, None, now)
            elif not observed.has(observed.next, "now"):
                generations.mark(name, observed.next, "now")
            else:
                install.withdraw(run, name, observed.next, "now")         # posted anew: a desk of a fleet sees that root wants it since what failed
            install.settle(run, wanted)
            posted[name] = run.seen(name).next
            if only_post:
                run.said.append(f"{PROGRAM}: {name}: the next key is posted; its SPKI's SHA-256 is {run.seen(name).spki(posted[name] or 0)}")
    run.flush()
    if only_post or not posted:
        return run.exit_code()
    return issue(posted, force) or left


def _cannot_be_used(run: Run, wanted: site.Site, observed: Observed) -> str:
    """Why another certificate would not be served either: a service that is broken or does not run, or one that was issued and is not served. Or ""."""
    for name in wanted.services:
        try:
            service = services.find(name)
            service.test()
        except services.Failed as error:
            return f"{name} cannot use a certificate now: {error}"
        listens = wanted.probe not in ("", "proxy-protocol") or service.port in listening.listeners()
        if observed.proven is not None and service.port and not listens:
            return f"{name} does not run: nobody listens on port {service.port}; start it first"
    newest = observed.newest
    if newest is None or _is_spent(run, observed, newest) or newest == observed.proven or (newest == observed.live and observed.proven is None):
        return ""
    return f"generation {newest:04d} was issued, and is not served yet; certdrop-check {wanted.name} says what is in the way"


def _is_spent(run: Run, observed: Observed, number: int) -> bool:
    """Whether a generation is no certificate to go on with: a placeholder, expired, revoked, or with a compromised key."""
    return (observed.has(number, "placeholder") or observed.is_burnt(number) or (number, "revoke") in run.posted.get(observed.name, set())
            or observed.moment(number, "not_after") <= time.time())


def _serves_already(run: Run, wanted: site.Site, observed: Observed, before: int | None) -> str:
    """That a certificate is there which was just installed, or is hours old, where root wants no other and no configuration changed since. Or ""."""
    name, newest = wanted.name, observed.newest
    if newest is None or newest != observed.live or _is_spent(run, observed, newest) or observed.has(observed.next, "now"):
        return ""
    completed = os.stat(f"{state.directory(name, newest)}/nginx.conf").st_mtime
    for path in (f"{site.ETC}/sites.d/{name}.toml", first_use.CONFIG):
        if os.path.exists(path) and os.stat(path).st_mtime > completed:
            return ""
    if newest != before:
        return f"generation {newest:04d}, which was issued already, is installed now"
    begin, end = observed.moment(newest, "not_before"), observed.moment(newest, "not_after")
    if time.time() - begin < min(FRESH, (end - begin) / 3):
        return f"the live certificate is of {events.stamp(begin)}, and good until {events.stamp(end)}"
    return ""


def configuration_of(service: services.Service) -> str:
    """A service's whole configuration, where it can show it."""
    if not service.show_command:
        return ""
    try:
        done = subprocess.run(service.show_command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=users.ENVIRONMENT,
                              cwd="/", timeout=services.TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""                              # the test that follows tells
    return done.stdout.decode("utf-8", "replace")


def _used(run: Run, name: str) -> list[services.Service]:
    """The services of a site that is to be removed; one that this host does not have does not need it."""
    try:
        named = site.load_site(name, run.config).services
    except site.ConfigError:
        named = run.config.services            # its file is gone or wrong, which is no reason to keep it
    found = []
    for service in named:
        try:
            found.append(services.find(service))
        except services.Failed:
            pass
    return found


def known(names: list[str]) -> list[str]:
    """These names, all of them configured sites. Raises Refused."""
    configured = site.site_names()
    for name in names:
        if name not in configured:
            raise Refused(f"{name!a:.80}: no such site; certdrop-status lists them")
    return names


def run_issuer(asked: list[str]) -> tuple[int, list[str]]:
    """Run certdrop-issue as _certdrop, with these words, and pass on what it says; its exit code, and what it said apart (--apart), line by line."""
    apart = os.memfd_create("apart", os.MFD_CLOEXEC)
    try:
        code = become.run(spool.ISSUER, [ISSUE, "--quiet" if telling.is_quiet() else "--verbose", *asked], DEADLINE, out=apart, outlives=True)
    except become.Stopped as stopped:
        words.say(f"{PROGRAM}: {ISSUE}: {stopped}; cron goes on trying")
        code = os.EX_TEMPFAIL
    finally:
        with os.fdopen(apart, "rb") as stream:
            stream.seek(0)
            said = stream.read(spool.MAX_REPLY).decode("utf-8", "replace").splitlines()
    return (code if code >= 0 else os.EX_TEMPFAIL), said

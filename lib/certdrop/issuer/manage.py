"""certdrop-account: the ACME account of the configured CA, by hand: register, show, contact, rollover, deactivate. cron's runs roll over too.

One process: it forks the signer, with a mandate for the verb at hand, and shuts itself in before its first packet, as the issuer's network part.
Runs as: _certdrop; started by root it becomes that first. Trusts: root's configuration; of the CA, what TLS says. Reads and writes: the issuer's
lock, notes of the account, the log; through the signer, its keys.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import pwd
import sys
import time
from collections.abc import Callable

from certdrop import TERMINAL, events, happened, spool, terminal
from certdrop import words as saying
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import general, persist, site
from certdrop.issuer import orders, proxy, published, turn
from certdrop.issuer.account import BY_HAND, DOUBTFUL, FORBIDS, LOST, Account, Session
from certdrop.issuer.directory import as_object
from certdrop.issuer.transport import Gate, Transport, context
from certdrop.issuer.failure import REFUSED, UNREACHABLE, VALIDATION, AccountUnknown, Failure
from certdrop.progress import Progress
from certdrop.signer import jose, process, protocol
from certdrop.trust import roots
from certdrop.walls import become

DAY = 86400
WAIT = 3600.0                      # seconds for records to come into the DNS, where a person waits for that,
LOOK = 5.0                         # and between two looks
PATIENCE = 120.0                   # seconds for all that is said with the CA
CA = {"--directory CA": "in place of the configured one: a name such as letsencrypt, or the https:// URL of an ACME directory"}
LINE = Program("certdrop-account", "certdrop-account(8)", Syntax(
    (), "The ACME account of the configured CA, by hand.", {}, """\
certdrop-account show
certdrop-account register --directory letsencrypt-staging --yes
"""), {
    "register": Syntax(("[--directory CA] [--yes]",), "make an account at the CA; its terms of service are shown", {
        **CA, "--yes": "agree to the terms of service"}, "certdrop-account register --directory letsencrypt-staging --yes", takes_names=False),
    "show": Syntax(("[--directory CA]", "--records [NAME...] [--until DATE] [--wait] [--directory CA]"),
                   "the account, its key, and the CAA record that lets in no other account", {
        **CA, "--records": "the TXT records that prove the names of these sites (or domains), or of all that are proven so, and CAA records",
        "--until DATE": "a record that is good until the end of this day, such as 2027-12-31; without it, for ever",
        "--wait": "at a terminal, until the records are in the DNS; exit status 75 if they are not"}, "certdrop-account show --records example.org"),
    "terms": Syntax(("[--directory CA]",), "what the CA demands: its terms of service, an external account binding, its profiles; makes no account", CA,
                    "certdrop-account terms --directory zerossl", takes_names=False),
    "contact": Syntax(("[--directory CA]",), "tell the CA the contact that certdrop.toml has now", CA, "certdrop-account contact", takes_names=False),
    "rollover": Syntax(("[--directory CA] [--due]",), "give the account a new key", {
        **CA, "--due": "only if the key is older than account_key_max_age"}, "certdrop-account rollover", takes_names=False),
    "deactivate": Syntax(("[--directory CA] [--yes]",), "end the account for ever, after a question", {
        **CA, "--yes": "do not ask"}, "certdrop-account deactivate --directory letsencrypt-staging", takes_names=False),
})


class Options:
    """What was given."""

    def __init__(self, words: Words) -> None:
        self.verb, self.directory = words.verb, words.options.get("--directory", "")
        self.yes, self.due = "--yes" in words.options, "--due" in words.options
        self.records, self.wait, self.sites = "--records" in words.options, "--wait" in words.options, words.names
        self.until = _end_of(words.options["--until"]) if "--until" in words.options else None
        if not self.records and (self.wait or self.until or self.sites):
            raise Usage("names of sites, --until and --wait go with --records")


def main(argv: list[str]) -> int:
    """Returns a code of sysexits.h."""
    return LINE.main(argv, lambda words: _checked(Options(words), argv))


def _checked(options: Options, argv: list[str]) -> int:
    try:
        uid = pwd.getpwnam(spool.ISSUER).pw_uid
        if os.getuid() == 0 or (os.getuid() == uid and become.is_due()):
            return _elsewhere(options, argv)
        if os.getuid() != uid:
            return say(f"must be run as {spool.ISSUER} or root; try sudo", os.EX_NOPERM)
        os.umask(0o022)
        os.chdir("/")
        return _do(options)
    except site.ConfigError as error:
        return say(str(error), os.EX_CONFIG)
    except terminal.Declined as error:
        return say(f"{error}; nothing was changed", os.EX_USAGE, not _asked_elsewhere())
    except Failure as failure:
        return say(failure.text, os.EX_DATAERR if failure.kind in (REFUSED, VALIDATION) else os.EX_TEMPFAIL, not options.due)
    except (KeyError, PermissionError) as error:
        return say(f"{error}; this must run as {spool.ISSUER}, on directories made by certdrop's installation", os.EX_NOPERM)
    except OSError as error:
        return say(f"{error}; try again later", os.EX_TEMPFAIL, not options.due)
    except KeyboardInterrupt:
        return os.EX_TEMPFAIL


def _elsewhere(options: Options, argv: list[str]) -> int:
    """The same by _certdrop, and away from this terminal. What is to be agreed to is asked here: that process hears no answer. Raises terminal.Declined."""
    if options.verb == "deactivate" and not options.yes:
        config = _config(options)
        ask(f"The account at {config.directory_url} ends for ever: no certificate can be renewed, nor revoked, by it any more.{_to_change(config)} "
            "Deactivate it?")
        argv = [argv[0], "--yes", *argv[1:]]
    code = _there(argv)
    if options.verb == "register" and not options.yes and code == os.EX_USAGE:
        ask("Do you agree to them?")
        code = _there([argv[0], "--yes", *argv[1:]])
    return code


def _to_change(config: general.Config) -> str:
    """Which records name an account that is to be another: a sentence, "" where none does."""
    try:
        if general.load_config().directory_url != config.directory_url:
            return ""                          # the records name the account at the configured CA
        owners = list(dict.fromkeys(one.owner for found in proven_by_records(config, []) for one in persist.wanted(found.domains)))
    except site.ConfigError:
        return ""
    more = f" and {len(owners) - 5} more" if len(owners) > 5 else ""
    return f" The TXT records at {', '.join(owners[:5])}{more} name it, and must be changed before these names are renewed." if owners else ""


def _there(argv: list[str]) -> int:
    user = spool.ISSUER if os.getuid() == 0 else ""
    try:
        code = become.run(user, [os.path.abspath(sys.argv[0]), *argv], turn.LONGEST[turn.CRON], outlives=True)
    except become.Stopped as stopped:
        return say(f"{stopped}; what was asked of the CA may be done: certdrop-account show tells", os.EX_TEMPFAIL)
    return code if code >= 0 else os.EX_TEMPFAIL


def _asked_elsewhere() -> bool:
    """Whether the process that started this one is at a terminal, and asks."""
    return "0" in os.environ.get(TERMINAL, "")


def _config(options: Options) -> general.Config:
    config = general.load_config()
    if options.directory:
        if not site.DIRECTORIES.get(options.directory, options.directory).startswith("https://"):
            raise site.ConfigError(f'directory: "{events.clean(options.directory, 80)}": give {", ".join(site.DIRECTORIES)} or an https:// URL')
        config = config.asking(options.directory)      # whose signer orders for no site that does not name that CA
    return config


def _do(options: Options) -> int:
    config = _config(options)
    if options.due and not _is_due(config):
        return os.EX_OK
    if options.verb == "deactivate" and not options.yes:
        raise terminal.Declined("there is no terminal to ask at; --yes confirms")
    turn_lock = turn.take("certdrop-account", not options.due, first=options.verb not in ("show", "terms"))
    if turn_lock is None:
        return os.EX_TEMPFAIL                  # a run of certdrop-issue; the next day is early enough
    may = {"rollover": {protocol.ROLL_OVER}, "deactivate": {protocol.DEACTIVATE, protocol.FIND}}.get(options.verb, {protocol.FIND})
    holder = process.start(config, frozenset(may))
    if options.verb != "terms":                # no account, and no key for one, is needed to read what the CA demands
        holder.wake()
    lacking: list[str] = []
    through = proxy.of(config)
    orders.shut_in(config, [config.directory_url, config.proxy], lacking)
    for wall in lacking:
        say(wall, os.EX_OK, not options.due)
    account = Account(config.directory_url, config.contact, holder)
    line = Transport(context(config), time.monotonic() + PATIENCE, Gate(), through)
    verbs = Verbs(config, holder, account, Session(account, line))
    if options.records:
        return verbs.records(options, turn_lock)
    by_name: dict[str, Callable[[], int]] = {"show": verbs.show, "terms": verbs.terms, "contact": verbs.contact, "deactivate": verbs.deactivate,
                                             "register": lambda: verbs.register(options.yes), "rollover": lambda: verbs.rollover(options.due)}
    return by_name[options.verb]()


def made_at(config: general.Config) -> float | None:
    """When the account's key was made (seconds since 1970); None where there is none."""
    try:
        return os.stat(f"{site.STATE}/account/{jose.entry(config.directory_url)}.key").st_mtime
    except FileNotFoundError:
        return None


def _is_due(config: general.Config) -> bool:
    """Whether the key is older than it may become."""
    days, made = site.age_in_days(config.account_key_max_age), made_at(config)
    now = time.time()
    return days is not None and made is not None and (now - made > days * DAY or not spool.is_credible(made, spool.HAPPENED, now))


class Verbs:
    """The verbs. Each returns a code of sysexits.h and raises Failure, OSError."""

    def __init__(self, config: general.Config, holder: process.Signer, account: Account, session: Session) -> None:
        self.config, self.holder, self.account, self.session = config, holder, account, session
        self.log = events.Log("issuer")

    def register(self, agreed: bool) -> int:
        """Make an account, unless there is one."""
        if self.session.find():
            say("there is an account already", os.EX_OK)
            return self.show()
        meta = self.session.directory().get("meta")
        terms = meta.get("termsOfService") if isinstance(meta, dict) else None
        print(f"terms of service: {events.clean(terms, 300) if isinstance(terms, str) else 'the CA names none'}", flush=True)
        if not agreed:
            raise terminal.Declined("there is no terminal to ask at; --yes confirms")
        self.session.may_replace = True
        place, before = self.session.kid(), str(self.account.known.get("before") or "")
        self.log.write(happened.REPLACED if before else happened.REGISTERED, account=place, **({"before": before} if before else {}))
        follows = f"; certdrop renew NAME tries at once what failed.{_to_change(self.config)}"
        say("registered" + (f", in place of {before}; {FORBIDS.format(before)}{follows}" if before else ""), os.EX_OK)
        return self.show()

    def show(self) -> int:
        """The account as the CA knows it; as remembered, where it cannot be asked."""
        remembered = str(self.account.known.get("account") or "")
        facts = {"CA": roots.ca_named(self.config)}
        try:
            place, found = self._asked(remembered)
        except Failure as failure:
            code = say(f"{failure.text}; what follows is what was known before", os.EX_TEMPFAIL)
            place, found = remembered, {}
        else:
            code = os.EX_OK if place else os.EX_DATAERR
        before = str(self.account.known.get("before") or "")
        is_lost = before and not self.account.known.get("agreed")
        facts["account"] = place or "none: " + (f"{LOST.format(before)}; {BY_HAND}" if is_lost else
                                                "certdrop-account register makes it, or the first order does")
        if found:
            contact = found.get("contact")
            facts["status"] = str(found.get("status"))
            facts["contact"] = " ".join(map(str, contact)) if isinstance(contact, list) and contact else "none"
        facts["key"] = f"RSA {self.holder.numbers.n.bit_length()}, {self._age()}; SHA-256 of its JWK {thumbprint(self.holder.jwk())}"
        if place:
            methods = ",".join(sorted({self.config.validation, *(one.validation for one in proven_by_records(self.config, []))}))
            facts["CAA record"] = f'example.org. CAA 0 issue "{self._identity()}; accounturi={place}; validationmethods={methods}"'
        if roots.missing(self.config):
            facts["note"] = roots.missing(self.config)
        for name, value in facts.items():
            print(f"{name + ':':<12} {events.clean(value, 1000)}")
        return code

    def records(self, options: Options, turn_lock: int) -> int:
        """Print what proves the names of sites, and look whether it is there. Only for an account of which the CA has just said that it is our key's: whoever
        has us publish another account's URL gets certificates for these names."""
        sites = proven_by_records(self.config, options.sites)
        if not sites:
            raise Failure(REFUSED, f"no site here has validation = \"{persist.METHOD}\"; see certdrop.toml(5)")
        place, _ = self._asked(str(self.account.known.get("account") or ""))
        if not place:
            raise Failure(REFUSED, "the records name the account, and there is none yet; certdrop-account register makes one")
        issuers = self.session.issuers()
        if not issuers:
            raise Failure(REFUSED, "the CA does not say by which name it goes in records; its first challenge does: certdrop renew NAME, then ask again")
        if persist.parse(persist.text(issuers[0], place, False)) != persist.Record(issuers[0], place):
            raise Failure(REFUSED, f"the CA calls the account {place}, which no record can name; ask the CA's operator")
        wanted = list(dict.fromkeys(one for found in sites for one in persist.wanted(found.domains)))
        seen = dict(published.look(wanted, issuers, place))
        for one in wanted:
            why = f"{seen[one].why}, as this host sees it" if seen[one].why else f"it cannot be looked up ({seen[one].unknown})" if seen[one].unknown else ""
            print(f"; {one.name}: {events.clean(why, 300) or 'it is there'}")
            print(persist.line(one.owner, persist.text(issuers[0], place, one.below, options.until)), flush=True)
        print("; beside them, that no other account gets certificates for these names, and for what is below and has no CAA record of its own:")
        for one in wanted:
            print(persist.caa(one.name, issuers[0], place, _methods(one.name, self.config)), flush=True)
        if not options.wait:
            return os.EX_OK
        os.close(turn_lock)                    # others need not wait for the DNS
        return _wait(wanted, issuers, place)

    def _asked(self, known: str) -> tuple[str, dict[str, object]]:
        """(the account's URL, "" for none; the account) as the CA has it: asked at its URL, and by the key alone where that is not known, or no more
        ours; CAs limit what may be asked of newAccount. Raises Failure."""
        place, answer = known, None
        if known and not self.account.known.get("changing"):
            try:
                answer = self.session.post(known, None, known)
            except Failure as failure:
                if not isinstance(failure, AccountUnknown) and failure.problem not in DOUBTFUL and failure.status not in (404, 405):
                    raise
        if answer is None:
            place = self.session.find()
            answer = self.session.post(place, None, place) if place else None
        found = as_object(answer) if answer else {}
        if answer and not found:
            raise Failure(UNREACHABLE, f"{place} answered with something that is no account")
        return place, found

    def terms(self) -> int:
        """What the CA's directory says of itself (RFC 8555 section 7.1.1; draft-ietf-acme-profiles section 3)."""
        meta = self.session.directory(fresh=True).get("meta")
        said = meta if isinstance(meta, dict) else {}
        terms, profiles = said.get("termsOfService"), said.get("profiles")
        names, known = said.get("caaIdentities"), self.session.directory()
        facts = {"CA": roots.ca_named(self.config), "terms": terms if isinstance(terms, str) else "",
                 "binding": "required" if said.get("externalAccountRequired") is True else "none",
                 "profiles": " ".join(sorted(map(str, profiles))) if isinstance(profiles, dict) else "",
                 "names in CAA": " ".join(map(str, names)) if isinstance(names, list) else "",
                 "renewal": "the CA tells when (ARI)" if "renewalInfo" in known else "the CA does not tell when (no ARI)",
                 "its clock": self.session.date}
        for name, value in facts.items():
            print(f"{name + ':':<12} {events.clean(value, 1000)}")
        return os.EX_OK

    def contact(self) -> int:
        """Tell the CA whom it may write to."""
        place = self._account()
        self.session.post(place, {"contact": self.account.contact}, place)
        self.account.note(contact=self.account.contact)
        self.log.write(happened.CONTACT, account=place)
        return say(f"the contact is now {' '.join(self.config.contact) or 'nobody'}", os.EX_OK)

    def rollover(self, quiet: bool) -> int:
        """Give the account a new key (RFC 8555 section 7.3.5). Killed anywhere, the next run finds out which key the CA holds."""
        place = self._account()                # so the current key is the one that the CA holds, and no other is lost
        url = self.session.directory().get("keyChange")
        if not isinstance(url, str):
            raise Failure(REFUSED, "the CA does not offer to change the key of an account")
        self.account.note(changing=True)
        self.holder.make_other()
        try:
            self.session.post(url, json.loads(self.holder.change(url, place)), place)
        except Failure as failure:
            self.log.write(happened.FAILED, kind="key change", error=failure.text)
            raise
        self.holder.exchange()
        self._account()                        # by the new key
        self.log.write(happened.KEY_CHANGED, account=place, key=thumbprint(self.holder.jwk()))
        return say(f"the account {place} has a new key; its URL is the same, so no TXT or CAA record changes", os.EX_OK, not quiet)

    def deactivate(self) -> int:
        """End the account (RFC 8555 section 7.3.6)."""
        try:
            place = self._account()
            self.session.post(place, {"status": "deactivated"}, place)
        except Failure as failure:
            if failure.problem != "unauthorized":      # that is what a CA says of an account that is deactivated
                raise
            place = str(self.account.known.get("account") or "")
            say(f"{failure.text}; so the key is set aside", os.EX_OK)
        say(f"the account {place} is over.{_to_change(self.config)}", os.EX_OK, bool(_to_change(self.config)))
        self.account.forget(place, agreed=True)
        self.holder.deactivated()
        self.log.write(happened.DEACTIVATED, account=place)
        return say(f"the account {place} is deactivated; its key is set aside, and the next order at this CA makes another account", os.EX_OK)

    def _account(self) -> str:
        place = self.session.find()
        if not place:
            raise Failure(REFUSED, "the CA knows no account with this key; certdrop-account register makes one")
        return place

    def _age(self) -> str:
        made, limit = made_at(self.config) or time.time(), self.config.account_key_max_age
        age = time.time() - made
        when = f"{events.stamp(made)}, {int(age / DAY)} days ago" if age > -spool.STEP else "by a wrong clock"
        return f"made {when}, " + (f"changed after {limit[:-1]}" if limit else "kept")

    def _identity(self) -> str:
        """The name that the CA looks for in a CAA record (RFC 8659 section 4.2)."""
        meta = self.session.account.known.get("directory")
        listed = meta.get("meta") if isinstance(meta, dict) else None
        names = listed.get("caaIdentities") if isinstance(listed, dict) else None
        return str(names[0]) if isinstance(names, list) and names else "NAME-OF-THE-CA"


def proven_by_records(config: site.Config, names: list[str]) -> list[site.Site]:
    """These sites, or all, as far as their names are proven by records; a domain that no site is called by stands for itself, as on a desk of a fleet. Raises
    site.ConfigError where one that is named cannot be read."""
    found, known = list[site.Site](), site.site_names()
    for name in names or known:
        try:
            if name not in known and not site.refusal(name, persist.METHOD):
                found.append(site.Site(name, config))
                found[-1].domains = [name]
                continue
            one = site.load_site(name, config)
        except site.ConfigError:
            if names:
                raise
            continue                           # the keeper says so
        asked = general.directories(one)
        if names and config.directory_url not in asked:
            raise site.ConfigError(f"{name}: its certificates come from {one.directory}, whose records are others; add --directory {one.directory}")
        found += [one] * (one.validation == persist.METHOD and (bool(names) or config.directory_url in asked))
    return found


def _methods(name: str, config: site.Config) -> list[str]:
    """By which methods sites of this host are proven whose names are under this one's CAA record, as far as it is known."""
    found = {persist.METHOD}
    for other in site.site_names():
        with contextlib.suppress(site.ConfigError):
            one = site.load_site(other, config)
            found |= {one.validation for domain in one.domains if domain == name or domain.endswith("." + name)}
    return sorted(found)


def _wait(wanted: list[persist.Wanted], issuers: list[str], place: str) -> int:
    """Look until the records are there, where a person looks on; else once."""
    end = time.monotonic() + (WAIT if saying.at_terminal(2) else 0.0)
    with Progress("certdrop-account", shown=True) as progress:
        while True:
            lacking = [one for one, seen in published.look(wanted, issuers, place) if seen.why or seen.unknown]
            if not lacking:
                return os.EX_OK
            if time.monotonic() > end:
                break
            more = f", and for {len(lacking) - 1} more" if len(lacking) > 1 else ""
            progress.at(lacking[0].owner, f"waiting for the record{more}; Ctrl-C ends only that")
            time.sleep(LOOK)
    return say(f"{lacking[0].owner} has no record that does, as this host sees it", os.EX_TEMPFAIL)


def _end_of(day: str) -> int:
    """The last second of a day (UTC). Raises Usage."""
    try:
        return int(datetime.datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=datetime.timezone.utc).timestamp()) + DAY - 1
    except ValueError:
        raise Usage("--until: give a day such as 2027-12-31") from None


def thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638."""
    return jose.b64(hashlib.sha256(json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()).digest())


def ask(question: str) -> None:
    """Raise terminal.Declined unless somebody is there and says yes."""
    if not sys.stdin.isatty():
        raise terminal.Declined("there is no terminal to ask at; --yes confirms")
    if not terminal.agrees(question):
        raise terminal.Declined("not agreed")


def say(text: str, code: int, loud: bool = True) -> int:
    """A line for a person; returns the code."""
    if loud:
        saying.say(f"certdrop-account: {text}")
    return code

"""What the child does with the CA: asks for renewal windows and places orders, several at a time, within the budget and the CA's Retry-After.

Runs as: _certdrop, shut in. Trusts: see orders.py. Reads: requests/, sites/, notes of the account. Writes: replies/, challenges/, ledger, log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
import types
from collections.abc import Callable
from typing import TypeVar

from certdrop import events, happened, renewal, spool
from certdrop.config import general, persist, site
from certdrop.issuer import ari, budget, log, plan, revoke
from certdrop.issuer.account import DOUBTFUL, FORBIDS, LOST, Account, Session
from certdrop.issuer.warm_up import WarmUp
from certdrop.issuer.options import Options
from certdrop.issuer.plan import Task
from certdrop.issuer.proxy import Proxy
from certdrop.issuer.transport import Gate, Transport, context
from certdrop.issuer.failure import (LOCAL, NOT_PUBLISHED, OWN_BUDGET, RATE_LIMITED, REFUSED, UNREACHABLE, VALIDATION, AccountUnknown, Failure, in_two,
                                     of_this_host)
from certdrop.progress import Progress, span
from certdrop.signer import protocol
from certdrop.signer.process import Signer
from certdrop.trust import roots
from certdrop.words import at_terminal

CODES = {REFUSED: os.EX_DATAERR}       # what another try will hardly heal; everything else: later
Some = TypeVar("Some")
ORDER = 600.0                      # seconds for one order, or one question
IN_VAIN = 3                        # orders that could not reach the CA, one after the other, after which the run leaves it alone


class Network:
    """The talk of one run with one CA: configuration, log, the account, and what all workers must know."""

    def __init__(self, options: Options, config: general.Config, warm_up: WarmUp | None = None, holder: Signer | None = None,
                 through: Proxy | None = None) -> None:
        self.options, self.config = options, config
        self.proxy = through or Proxy(config.proxy)
        self.log = log.logger()
        self.gate = warm_up.gate if warm_up else Gate()
        self.codes: set[int] = set()
        self.lock = threading.Lock()
        self.budget = budget.Budget(config, time.time())
        self.down: Failure | None = None       # the CA cannot be reached, or wants to be left alone
        self.in_vain = 0
        self.arrived: Callable[[], object] = lambda: None       # hears of each reply that is in the spool
        self._mine = threading.local()
        self._account = warm_up.account if warm_up else None
        self._warm_up, self._holder = warm_up, holder
        self._sessions: list[Session] = []     # all that there are,
        self.progress = Progress("certdrop-issue", shown=False)
        self._idle: list[Session] = []         # and those whose worker has ended
        self.context = warm_up.context if warm_up else context(config)

    def unconfined(self, lacking: str) -> None:
        """Say, once a run, which wall does not stand."""
        self.log.warning(happened.UNCONFINED, text=lacking.partition(":")[0])
        log.say(lacking, self.options.loud)

    # ---- a run

    def poll(self, tasks: list[Task], now: float) -> None:
        """Ask for the windows of certificates that this CA issued, and decide again."""
        curious = plan.curious(tasks, now)
        self._each(curious, self._poll)
        for task in curious:
            task.decide(time.time())

    def work(self, tasks: list[Task]) -> tuple[int, int]:
        """Place the orders: (exit code, how many were due)."""
        wanted = [task for task in tasks if task.when <= time.time()]
        if wanted:
            load()
        self._each(wanted, self._look_at_tlsa)
        wanted = [task for task in wanted if not task.held]
        random.shuffle(wanted)                 # no site is always the last one
        wanted.sort(key=lambda task: not task.request.now)
        if wanted:
            self.log.info(happened.RUN, due=len(wanted), sites=len(tasks))
            if roots.missing(self.config):
                log.say(roots.missing(self.config), self.options.loud)
        if self.options.loud and self.options.names:
            for task in tasks:
                if task not in wanted:
                    log.say_when(task, time.time())
        began = time.monotonic()
        with Progress("certdrop-issue", len(wanted), self.options.loud) as self.progress:
            self._each(wanted, self._try)
        if len(wanted) > 1:
            issued = sum(task.request.answered for task in wanted)
            log.say(f"{len(wanted)} orders: {issued} issued, {len(wanted) - issued} not, {span(time.monotonic() - began)}",
                    self.options.loud and at_terminal(2))
        self.budget.save_tally(time.time())
        return max(self.codes, default=os.EX_OK), len(wanted)

    def look_at_chains(self, tasks: list[Task]) -> None:
        """Whether certificates are the configured CA's, by their chain, where nobody noted whose they are: another client had them, or the ledger was lost."""
        from certdrop.trust.browsers import Browsers             # most runs meet none
        browsers, now = Browsers(self.config), time.time()
        for task in tasks:
            if task.of_unknown_origin and task.certificate and task.certificate.not_before <= now < task.certificate.not_after:
                try:
                    with open(task.standing.place + "/fullchain.pem", "rb") as stream:
                        chain = stream.read(spool.MAX_REPLY)
                    task.foreign = all(found.is_foreign(chain, None) for found in
                                       (browsers, *(Browsers(self.config.asking(other)) for other in task.directories if other != task.asks)))
                except Exception as error:                     # roots that cannot be read: it is renewed in its time
                    if not isinstance(error, (OSError, ValueError)) and not plan.is_of_a_host(error):
                        raise
                    self.log.warning(happened.FAILED, site=task.name, kind="chain", error=events.clean(error))
                task.decide(now)

    def rehearse(self, tasks: list[Task]) -> int:
        """Place whole orders with the CA's staging, for a key, a request and an account to throw away."""
        from certdrop.issuer.rehearsal import Judge
        from certdrop.signer.keyring import Key, make_key
        self._account = Account(self.config.staging_url, self.config.contact, Key(make_key()), keep=False)
        self._judge = Judge(self.config)
        log.say(f"dry run with {self.config.staging_url}", self.options.loud)
        self._each(tasks, self._rehearse)
        return max(self.codes, default=os.EX_OK)

    def carry_out(self, wanted: list[revoke.Revocation]) -> int:
        """Have revoked what root wants revoked; what came of it is noted in each. Returns the run's exit code."""
        self._each(wanted, self._revoke)
        return max(self.codes, default=os.EX_OK)

    def _each(self, tasks: list[Some], work: Callable[[Some], None]) -> None:
        if not tasks:
            return
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(min(self.config.workers, len(tasks))) as pool:
            try:
                started = [pool.submit(work, task) for task in tasks]
            except RuntimeError as error:      # "can't start new thread": no memory, or a limit on processes
                raise OSError(errno.EAGAIN, str(error)) from error
            for done in started:
                done.result()
        self._sessions, self._idle = [], self._sessions + self._idle

    # ---- a worker

    @property
    def account(self) -> Account:
        """The account, loaded when it is first needed."""
        with self.lock:
            if self._account is None:
                if self._holder is None:
                    raise Failure(LOCAL, "this run has no signer")
                self._account = Account(self.config.directory_url, self.config.contact, self._holder)
            return self._account

    def _session(self) -> Session:
        """This worker's session, with a new deadline."""
        found = getattr(self._mine, "session", None)
        if not isinstance(found, Session):
            found = self._mine.session = self._idle_session() or Session(self.account, Transport(self.context, 0.0, self.gate, self.proxy))
            self._sessions.append(found)
        found.transport.deadline = time.monotonic() + ORDER
        return found

    def _idle_session(self) -> Session | None:
        opened = self._warm_up.take() if self._warm_up else None
        with self.lock:
            return opened or (self._idle.pop() if self._idle else None)

    def _module(self) -> types.ModuleType:
        found = getattr(self._mine, "module", None)
        if not isinstance(found, types.ModuleType):
            from certdrop.issuer import ports
            found = self._mine.module = ports.load()
        return found

    def _poll(self, task: Task) -> None:
        """Ask for one certificate's window (RFC 9773)."""
        certificate, ledger = task.certificate, task.ledger
        if certificate is None:
            return
        chance, ours = random.random(), renewal.own_moment(os.uname().nodename)
        try:
            if self.down:
                raise self.down
            session = self._session()
            window = ari.fetch(session.transport, session.directory(), lambda: _identifier(task))
            ledger.note_window(certificate, window.start, window.end, window.retry_after, time.time(), chance, ours)
            if window.url and window.url != ledger.window_url:
                log.say(f"{task.name}: the CA explains its renewal window at {window.url}", self.options.loud)
            ledger.window_url = window.url
            self.reached()
        except ari.Absent as absent:
            ledger.note_no_window(certificate, absent.retry_after, True, time.time(), chance, ours)
        except Exception as error:
            if not isinstance(error, (Failure, OSError, MemoryError, ValueError, KeyError)) and not plan.is_of_a_host(error):
                raise
            retry_after = error.retry_after if isinstance(error, Failure) else 0.0
            ledger.note_no_window(certificate, retry_after, False, time.time(), chance, ours)
            self.log.warning(happened.FAILED, site=task.name, kind="renewal information", error=str(error))
            if isinstance(error, Failure):
                self.learn(error)

    def _look_at_tlsa(self, task: Task) -> None:
        """Whether the order waits for a record in the DNS; most sites want none looked at."""
        from certdrop.config import dane
        try:
            if not task.ledger.tlsa_since and not dane.is_checked(task.name):
                return
        except site.ConfigError:
            return                             # root says so
        from certdrop.issuer import tlsa       # and few load what this needs
        tlsa.look(task, time.time())
        task.decide(time.time())
        if task.held:
            self.log.info(happened.WAITS, site=task.name, number=task.request.number, why=task.ledger.tlsa_lacks)
        elif task.ledger.tlsa_lacks:
            log.say(f"{task.name}: {task.ledger.tlsa_lacks}, and the TLSA record of its key is not known to be everywhere; publish what "
                    f"certdrop-status {task.name} --tlsa prints", self.options.loud)

    def _try(self, task: Task) -> None:
        """One site's order; a failure is this site's alone."""
        self.progress.at(task.name, "ordering")
        try:
            if self.down:
                raise self.down
            if self._is_second(task):
                log.say(f"{task.name}: {task.directories[0]} fails since {events.stamp(task.ledger.away_since)}; asking {self.config.directory_url} instead",
                        self.options.loud)
            if not self._was_cut_off(task):
                self._by_our_account(lambda: self._order(task))
                self.reached()
        except Failure as failure:
            self._failed(task, failure)
        except (OSError, MemoryError) as error:
            self._failed(task, of_this_host(error))
        except site.ConfigError as wrong:
            self._failed(task, Failure(LOCAL, str(wrong)))
        except Exception as error:
            if not plan.is_of_a_host(error):
                raise
            self._failed(task, Failure(REFUSED, f"what its host posted cannot be read: {type(error).__name__}: {error}"))
        finally:
            self.progress.done(task.name)

    def _by_our_account(self, work: Callable[[], None]) -> None:
        """Do it; once more, where it turns out that the account is another one. Raises what work raises."""
        session, before = self._session(), str(self.account.known.get("account") or "")
        try:
            work()
            return
        except AccountUnknown:                 # a CA that lost its accounts, also in mid-order: once more, if it knows our key after all
            self.account.forget(str(self.account.known.get("account")))
        except Failure as failure:             # what is kept may be no account of ours, or none any more
            before = before or str(self.account.known.get("account"))
            doubtful = not failure.names and failure.problem in DOUBTFUL and failure.status
            another = bool(doubtful) and session.is_another(before)
            if self.account.is_over and failure.problem == "unauthorized":
                raise Failure(REFUSED, f"the account {before} is deactivated, here, on a clone of this host or by the CA; sudo certdrop-account deactivate "
                              f"sets its key aside, and the next order makes another account; {failure.text}", problem="unauthorized") from failure
            if not another:
                raise
        session.kid()
        self._registered(session)
        work()

    def _registered(self, session: Session) -> str:
        """The account's URL. Where it was registered now that is told; loudly where it takes another's place, for a CAA record may name that."""
        place, account = session.kid(), session.account
        with account.lock:
            new, account.registered_now = account.registered_now, False
        before = account.known.get("before")
        if new and before:
            self.log.warning(happened.REPLACED, account=place, before=before)
            log.say(f"{LOST.format(before)}; registered another: {place}; {FORBIDS.format(before)}", True)
        elif new:
            self.log.info(happened.REGISTERED, account=place)
            log.say(f"registered an account at {self.config.directory_url}: {place}", self.options.loud)
        return place

    def _was_cut_off(self, task: Task) -> bool:
        """Whether runs that had placed an order for this site ended before they could tell, so often that this one has to wait."""
        ledger = task.ledger
        begun = self.budget.since(budget.BEGUN, task.name, max(ledger.failed_at, ledger.issued_at), time.time())
        for moment in begun:
            ledger.failed(Failure(LOCAL, "a run was ended in the middle of an order"), task.certificate, moment, placed=True)
        if begun:
            task.decide(time.time())
        return bool(begun) and task.when > time.time()

    def _order(self, task: Task) -> None:
        """From the request to the reply. Raises Failure, OSError."""
        from certdrop.issuer import ports, reply as replies
        session, request, ledger = self._session(), task.request, task.ledger
        wanted = site.load_site(request.name, self.config) if os.path.exists(f"{site.ETC}/sites.d/{request.name}.toml") else None
        extra = {}
        profile = wanted.profile if wanted else task.profile or self.config.profile
        if protocol.HOSTS and not profile:
            profile = self.config.profile_of(ports.names_of(ports.request(request.csr())))
        if profile and not (self._is_second(task) and profile not in session.profiles()):        # its name is the first CA's word
            session.check_profile(profile)
            extra["profile"] = profile
        replaces = self._replaces(task, session)
        if replaces:
            extra["replaces"] = replaces
        validation, is_lacking = self._validation(wanted, request.csr()), False
        if validation == persist.METHOD:
            from certdrop.issuer import published              # few have what this needs
            is_lacking = published.lacking(task, ports.names_of(ports.request(request.csr())), session.issuers(), session.kid())
            self._registered(session)
        order = ports.Order(session, request.csr(), extra, self.config.self_check, self.config.preferred_chain, request.entry,
                            lambda: self._spend(order.names, False), lambda step: self.progress.at(task.name, step), validation)
        self._spend(order.names, bool(replaces))
        begin, before = time.monotonic(), session.transport.requests - session.ahead
        session.ahead = 0
        self._registered(session)
        self.budget.note(budget.BEGUN, task.name, time.time())
        try:
            sent = order.place(self._module()).encode("ascii", "replace")
        except Failure as failure:
            for name in failure.names if failure.kind == VALIDATION else ():
                self.budget.note(budget.FAILED, name, time.time())
            if is_lacking and failure.kind == VALIDATION:
                failure.problem = NOT_PUBLISHED
            gone = session.account.known.get("before")
            caa = [f"the account is a new one; {FORBIDS.format(gone)}"] if gone and "caa: " in failure.text else []
            failure.text = "; ".join([*caa, failure.text, *order.warnings])
            if order.unreplaced and order.unreplaced.status < 500 and task.certificate:
                ledger.unreplaced = task.certificate.sha256            # the next try names nothing
            raise
        finally:
            task.placed = order.placed
            session.learn_issuers(order.issuers)
        leaf = replies.examine(sent, order.csr)
        self.budget.note(budget.ISSUED, budget.set_of(order.names), time.time())
        replies.put_reply(request.reply, sent)
        self.arrived()
        by_time = None if request.now or task.forced or task.foreign else task.certificate
        ledger.issued(self.config.directory_url, replies.sha256(leaf), by_time, time.time(), task.directories[0])
        with contextlib.suppress(ari.Absent, ValueError):
            ledger.renewal_id, ledger.renewal_id_of = ari.identifier_of(leaf), ledger.answered_with
        request.answered = True
        task.standing.refusal, task.standing.look_at = "", 0.0
        self.log.info(happened.ISSUED, site=task.name, number=request.number, why=task.why, requests=session.transport.requests - before,
                      seconds=round(time.monotonic() - begin, 2), replaces="replaces" in order.extra,
                      **({"profile": extra["profile"]} if "profile" in extra else {}),
                      **({"instead_of": task.directories[0], "directory": self.config.directory_url} if self._is_second(task) else {}),
                      **({"unreplaced": order.unreplaced.text} if order.unreplaced else {}))
        for warning in order.warnings:
            self.log.warning(happened.FAILED, site=task.name, kind="warning", error=warning)
            log.say(f"{task.name}: {warning}", self.options.loud)
        log.say(f"{task.name}: issued; the reply for request {request.number:04d} waits for root", self.options.loud)

    def _is_second(self, task: Task) -> bool:
        """Whether this CA is asked in place of the first."""
        return self.config.directory_url != task.directories[0] != ""

    def _validation(self, wanted: site.Site | None, csr: bytes) -> str:
        """How a request's names are proven: as root's configuration says; on a desk, which has no site's file, as the names demand."""
        from certdrop.issuer import ports
        return wanted.validation if wanted else persist.validation_of(ports.names_of(ports.request(csr)), self.config.validation)

    def _spend(self, names: list[str], replaces: bool) -> None:
        """Count an order that replaces nothing. Raises Failure where it would go beyond the budget."""
        now = time.time()
        refusal, until = self.budget.refusal(names, replaces, now)
        if refusal:
            raise Failure(RATE_LIMITED, refusal, until - now, OWN_BUDGET)
        if not replaces:
            self.budget.note(budget.ORDERED, "", now)

    def _replaces(self, task: Task, session: Session) -> str:
        """What to name as replaced (RFC 9773 section 5): the certificate that this CA issued, where it has renewal information."""
        certificate, ledger = task.certificate, task.ledger
        if ledger.issuer_of(certificate.sha256 if certificate else "") not in ("", self.config.directory_url):
            return ""
        if certificate is None or task.foreign or certificate.sha256 == ledger.unreplaced or not isinstance(session.directory().get("renewalInfo"), str):
            return ""
        if not ledger.has_window(certificate) and (ledger.answered_with, ledger.answered_by) != (certificate.sha256, self.config.directory_url):
            return ""
        try:
            return _identifier(task)
        except (OSError, ValueError, KeyError, ari.Absent):
            return ""

    def _rehearse(self, task: Task) -> None:
        from certdrop.issuer import ports, reply as replies
        try:
            session, wanted = self._session(), site.load_site(task.name, self.config)
            profile = wanted.profile
            if wanted.validation == persist.METHOD:
                raise Failure(LOCAL, f"its names are proven by {persist.METHOD}, and no record in the DNS names the account to throw away that a dry run "
                              f"orders with; certdrop-check {task.name} looks whether the records for the real one are there")
            if profile:
                session.check_profile(profile)
            csr = replies.throwaway_request(ports.names_of(ports.request(task.request.csr())))
            before = session.transport.requests
            self._ask_whether_it_replaces(task, session, csr)
            order = ports.Order(session, csr, {"profile": profile} if profile else {}, self.config.self_check)
            sent = order.place(self._module()).encode("ascii", "replace")
            leaf = replies.examine(sent, order.csr)
            refusal = self._judge.refusal(sent, order.csr, order.names, task.certificate)
            if refusal and not (refusal == "untrusted" and self._judge.knows_no_root):
                raise spool.Refused(refusal)
            for warning in order.warnings:
                log.say(f"{task.name}: {warning}", True)
            if refusal:
                log.say(f"{task.name}: dry run: the roots of the directory that was asked are not among trust_roots, as is to be expected of a CA's staging; "
                        "all else about the reply is as root wants it", True)
            log.say(f"{task.name}: dry run: issued by {events.clean(replies.issuer(leaf), 80)} for {' '.join(order.names)}, "
                    f"with {session.transport.requests - before} requests; thrown away", True)
        except spool.Refused as refused:
            with self.lock:
                self.codes.add(os.EX_TEMPFAIL if refused.reason == "judge-failed" else os.EX_DATAERR)
            why = f"({refused.reason})" + (f": it leads to no root in {' or '.join(self._judge.files)}" if refused.reason == "untrusted" else "")
            log.say(f"{task.name}: dry run: the reply would be refused {why}; nothing was changed; certdrop-spool(5) explains the reason", True)
        except (Failure, OSError, site.ConfigError) as error:
            with self.lock:
                self.codes.add(CODES.get(error.kind, os.EX_TEMPFAIL) if isinstance(error, Failure) else os.EX_TEMPFAIL)
            fact, said = in_two(error) if isinstance(error, Failure) else (str(error), "")
            log.say(f"{task.name}: dry run: {fact}; nothing was changed" + f"; {said}" * bool(said), True)

    def _ask_whether_it_replaces(self, task: Task, session: Session, csr: bytes) -> None:
        """What a dry run cannot try: an order by the account at hand that replaces the live certificate. Such an order is placed, and not gone on with."""
        replaces = self._replaces(task, session) if self.config.staging_url == self.config.directory_url else ""
        if replaces:
            from certdrop.issuer import ports
            names = [{"type": "ip" if site.is_address(name) else "dns", "value": name} for name in ports.names_of(ports.request(csr))]
            try:
                session.post(session.url("newOrder"), {"identifiers": names, "replaces": replaces})
            except Failure as failure:
                log.say(f"{task.name}: dry run: this CA takes no order that replaces the live certificate, from an account to throw away "
                        f"({failure.text}); it is asked for one that replaces nothing, as it would be in a real run", True)
        if task.ledger.count:
            fact, said = in_two(Failure(task.ledger.kind, task.ledger.last_error))
            log.say(f"{task.name}: dry run: the last real order failed: {fact}; a dry run tries neither the account nor what is replaced" +
                    f"; {said}" * bool(said), True)

    def _revoke(self, one: revoke.Revocation) -> None:
        """One revocation; a failure is its own alone."""
        try:
            if self.down:
                raise self.down
            self._by_our_account(lambda: revoke.ask(self._session(), one.entry))
            self.reached()
            one.succeeded(time.time())
            self.log.info(happened.REVOKED, site=one.name, number=one.number)
            log.say(f"{one.name}: the certificate of generation {one.number:04d} is revoked", self.options.loud)
        except Exception as error:
            if not isinstance(error, (Failure, OSError, MemoryError, ValueError, KeyError, TypeError)) and not plan.is_of_a_host(error):
                raise
            failure = (error if isinstance(error, Failure) else of_this_host(error) if isinstance(error, (OSError, MemoryError))
                       else Failure(REFUSED, f"the request to revoke: {error}"))
            if failure is not self.down:
                self.learn(failure)
            with self.lock:
                self.codes.add(CODES.get(failure.kind, os.EX_TEMPFAIL))
            one.failed(failure, time.time())
            self.log.error(happened.FAILED, site=one.name, number=one.number, kind="revocation", problem=failure.problem, error=failure.text,
                           next_try=events.stamp(one.next_try))
            log.say(f"{one.name}: generation {one.number:04d} is not revoked: {failure.text}; {log.following(one)}", self.options.loud)

    # ---- what all learn from one

    def reached(self) -> None:
        """The CA answered."""
        with self.lock:
            self.in_vain = 0

    def learn(self, failure: Failure) -> None:
        """Leave the CA alone for the rest of this run, where it cannot be reached, or asked for more patience than a run has."""
        with self.lock:
            if failure.problem != OWN_BUDGET:                      # then it was not asked
                self.in_vain = self.in_vain + 1 if failure.kind in (UNREACHABLE, RATE_LIMITED, LOCAL) else 0
            everybody = failure.retry_after and (failure.status == 503 or "new orders" in failure.text or "new-order" in failure.text)
            if self.down is None and (self.in_vain >= IN_VAIN or everybody):
                self.down = Failure(failure.kind, failure.text, failure.retry_after if everybody else 0.0, failure.problem, failure.status)

    def _failed(self, task: Task, failure: Failure) -> None:
        if failure is not self.down:
            self.learn(failure)
        with self.lock:
            self.codes.add(CODES.get(failure.kind, os.EX_TEMPFAIL))
        directories = task.directories if task.directories[0] else [self.config.directory_url]
        task.ledger.failed(failure, task.certificate, time.time(), task.placed, self.config.directory_url, directories)
        log.failed(self.log, task, failure, self.options)


def load() -> None:
    """What orders need, and a run that only asks for renewal windows does not: half of the time that either takes to begin. Raises ImportError, ports.Moved."""
    from certdrop.issuer import ports, reply  # noqa: F401
    ports.load()


def _identifier(task: Task) -> str:
    """By what the CA is asked for the window of a site's certificate; found out once for each certificate. Raises ari.Absent, OSError, ValueError."""
    ledger, sha256 = task.ledger, task.certificate.sha256 if task.certificate else ""
    if ledger.renewal_id_of != sha256 or not ari.is_identifier(ledger.renewal_id):
        with open(task.standing.place + "/cert.pem", "rb") as stream:
            ledger.renewal_id, ledger.renewal_id_of = ari.identifier(stream.read(spool.MAX_REPLY)), sha256
    return ledger.renewal_id

"""The network part of a run: what is due is ordered, in parallel, and what comes is put into the spool.

Runs as: _certdrop, in a child that shuts itself in before the first packet. Trusts: root's requests; of the CA, what TLS and the chain's own
key say. Reads: requests/, sites/, keeper/, the account. Writes: replies/, challenges/, ledger, log.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certdrop import events, site, spool
from certdrop.issuer import due, log, ports
from certdrop.issuer.account import Account
from certdrop.issuer.issue import Options, Request, shut_in
from certdrop.issuer.ledger import Ledger, put
from certdrop.issuer.transport import Transport
from certdrop.issuer.trouble import LOCAL, RATE_LIMITED, REFUSED, AccountUnknown, Trouble

CODES = {REFUSED: os.EX_DATAERR}       # what another try will not heal; everything else: later


class Run:
    """One run: configuration, log, the account, and what all workers must know."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.config = site.load_config()
        self.log = log.logger()
        self.codes: set[int] = set()
        self.lock = threading.Lock()
        self.not_before = 0.0                  # time.time() before which the CA wants no order (Retry-After)
        self.context: ssl.SSLContext | None = None

    def transport(self) -> Transport:
        """A worker's connections."""
        if self.context is None:
            try:
                self.context = ssl.create_default_context(cafile=self.config.ca_bundle)
            except (OSError, ssl.SSLError) as error:
                raise Trouble(LOCAL, f"ca_bundle: {self.config.ca_bundle}: {error}") from error
        return Transport(self.context, time.monotonic() + ports.ORDER)


def run(options: Options, chosen: list[Request], listed: list[Request]) -> int:
    """Order what is due. Returns a code of sysexits.h."""
    current = Run(options)
    port = urllib.parse.urlsplit(current.config.directory_url).port or 443
    module = ports.load()
    if not options.plan:
        if not shut_in(current.config, port):
            current.log.warning(events.UNCONFINED)
            log.say("this kernel has no Landlock: the network part runs with its user's rights", options.loud)
        ports.sweep()
        _tidy(listed)
    planned = [(request, Ledger(request.name), newest_certificate(request)) for request in chosen]
    now = time.time()
    wanted = []
    for request, ledger, certificate in planned:
        when, why = decide(request, ledger, certificate, now, options.force)
        if options.plan:
            print(f"{request.name}: {'now' if when <= now else events.stamp(when) if when < due.NEVER else 'waits for root'}: {why}")
        elif when <= now:
            wanted.append((request, ledger))
    if wanted:
        _order_all(current, wanted, [module])
    if not options.plan:
        put("last-run", json.dumps({"time": int(now), "due": len(wanted)}).encode())
    return max(current.codes, default=os.EX_OK)


def decide(request: Request, ledger: Ledger, certificate: due.Certificate | None, now: float, force: bool) -> tuple[float, str]:
    """(when, why) to order for this request, by what is on disk."""
    if request.answered:
        reason = _refused(request)
        if reason is None:
            return due.NEVER, "a reply waits for root"
        if ledger.last_error != reason:
            ledger.failed(Trouble(REFUSED, reason), now)
            ledger.save()
        return (0.0, "forced") if force else (float(ledger.next_try), reason)
    if force:
        return 0.0, "forced"
    renew_at = float(ledger.renew_at_for(certificate))
    return due.due(request.now, certificate, request.name, renew_at, float(ledger.next_try), now)


def newest_certificate(request: Request) -> due.Certificate | None:
    """The dates of the newest certificate below the request; None for none, or a placeholder, or one that cannot be read."""
    parent = f"{site.STATE}/sites/{request.name}"
    try:
        numbers = sorted((int(entry) for entry in os.listdir(parent) if entry.isdecimal() and int(entry) < request.number), reverse=True)
    except OSError:
        return None
    for number in numbers:
        path = f"{parent}/{number:04d}"
        found = set(os.listdir(path))
        if "nginx.conf" in found and "withdrawn" not in found:
            if "placeholder" in found:
                return None
            with open(path + "/cert.json", encoding="ascii") as stream:
                facts = json.load(stream)
            return due.Certificate(facts["sha256"], facts["not_before"], facts["not_after"])
    return None


def _refused(request: Request) -> str | None:
    """Why root refused this very reply; None where it did not."""
    try:
        with open(f"{site.STATE}/keeper/{request.name}.json", encoding="ascii") as stream:
            refused = json.load(stream)["refused"]
        with open(f"{spool.replies()}/{spool.entry(request.name, request.number, 'pem')}", "rb") as stream:
            sha256 = hashlib.sha256(stream.read()).hexdigest()
    except (OSError, ValueError, KeyError):
        return None
    if refused.get("number") != request.number or refused.get("reply_sha256") != sha256:
        return None
    return f"root refused the reply ({refused.get('reason')})"


def _tidy(listed: list[Request]) -> None:
    """Remove replies whose request is gone, and what a killed run left."""
    wanted = {spool.entry(request.name, request.number, "pem") for request in listed}
    for entry in os.listdir(spool.replies()):
        if entry not in wanted:
            try:
                os.unlink(f"{spool.replies()}/{entry}")
            except OSError:
                pass


def _order_all(current: Run, wanted: list[tuple[Request, Ledger]], modules: list[object]) -> None:
    """Place all orders, several at a time. The account is looked after first, once."""
    try:
        transport = current.transport()
        account = Account(current.config.directory_url, current.config.contact, transport)
        try:
            kid = account.kid
        except AccountUnknown:
            account.forget()
            kid = account.kid
        if account.registered_now:
            current.log.info(events.REGISTERED, account=kid)
            log.say(f"registered an account at {current.config.directory_url}: {kid}", current.options.loud)
    except Trouble as trouble:
        for request, ledger in wanted:
            _failed(current, request, ledger, trouble)
        return
    local = threading.local()

    def work(task: tuple[Request, Ledger]) -> None:
        request, ledger = task
        try:
            if not hasattr(local, "module"):
                local.module, local.transport = ports.load(), current.transport()
            local.transport.deadline = time.monotonic() + ports.ORDER
            _order(current, request, ledger, account, local.transport, local.module)
        except Trouble as trouble:
            _failed(current, request, ledger, trouble)
        except OSError as error:
            _failed(current, request, ledger, Trouble(LOCAL, str(error)))

    with ThreadPoolExecutor(min(current.config.workers, len(wanted))) as pool:
        for done in [pool.submit(work, task) for task in wanted]:
            done.result()


def _order(current: Run, request: Request, ledger: Ledger, account: Account, transport: Transport, module: object) -> None:
    """One order, from the CSR to the reply. Raises Trouble."""
    if time.time() < current.not_before:
        raise Trouble(RATE_LIMITED, "the CA asked all to wait", current.not_before - time.time())
    with open(f"{spool.requests()}/{spool.entry(request.name, request.number, 'csr')}", "rb") as stream:
        csr = stream.read()
    wanted = site.load_site(request.name, current.config)
    extra = {"profile": wanted.profile} if wanted.profile else {}
    warnings: list[str] = []
    order = ports.Order(account, transport, csr, extra, current.config.self_check, warnings.append)
    try:
        chain = order.place(module)  # type: ignore[arg-type]
    except Trouble as trouble:
        trouble.text = "; ".join([trouble.text, *warnings])
        raise
    reply = chain.encode("ascii", "replace")
    _examine(reply, csr)
    fd = spool.open_directory(spool.replies())
    try:
        spool.write(fd, spool.entry(request.name, request.number, "pem"), reply, 0o640)
    finally:
        os.close(fd)
    ledger.issued(time.time())
    ledger.save()
    current.log.info(events.ISSUED, site=request.name, number=request.number, requests=transport.requests)
    log.say(f"{request.name}: issued; the reply for request {request.number:04d} waits for root", current.options.loud)


def _examine(reply: bytes, csr: bytes) -> None:
    """What the issuer can tell by itself of a reply: so that nonsense is its own failure. Raises Trouble."""
    try:
        blocks = spool.pem_blocks(reply)
        leaf, request = x509.load_pem_x509_certificate(blocks[0]), x509.load_pem_x509_csr(csr)
        keys = [found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for found in (leaf.public_key(), request.public_key())]
    except (spool.Refused, ValueError) as error:
        raise Trouble(REFUSED, f"what the CA sent is no certificate chain ({error})") from error
    if keys[0] != keys[1]:
        raise Trouble(REFUSED, "what the CA sent is for another key")


def _failed(current: Run, request: Request, ledger: Ledger, trouble: Trouble) -> None:
    with current.lock:
        if trouble.kind == RATE_LIMITED and trouble.retry_after:
            current.not_before = max(current.not_before, time.time() + trouble.retry_after)
        current.codes.add(CODES.get(trouble.kind, os.EX_TEMPFAIL))
        ledger.failed(trouble, time.time())
        try:
            ledger.save()
        except OSError:
            pass                               # a full disk: the failure is told all the same
        again = events.stamp(ledger.next_try)
        current.log.error(events.FAILED, site=request.name, number=request.number, kind=trouble.kind, error=trouble.text, next_try=again)
        log.say(f"{request.name}: {trouble.text}; the live certificate stays; next try at {again}", current.options.loud)

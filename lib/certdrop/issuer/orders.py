"""A run, in the child: what is due is decided, and ordered in parallel; what comes is put into the spool.

Before the first packet and the first thread the child forks the signer, which holds the account key, and shuts itself in (shut_in); a run with
nothing for the network does not even load that part.
Runs as: _certdrop. Trusts: root's requests; of the CA, what TLS and the chain's own key say. Reads: requests/, sites/, keeper/, notes of the account.
Writes: replies/, challenges/, ledger, log.
"""

from __future__ import annotations

import os
import time
import urllib.parse
from typing import TYPE_CHECKING

from certdrop import spool, tokens
from certdrop.config import general, site
from certdrop.issuer import plan, proxy
from certdrop.issuer.agenda import Agenda
from certdrop.issuer.options import Options
from certdrop.issuer.posted import Request
from certdrop.walls import jail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from certdrop.issuer.network import Network
    from certdrop.issuer.revoke import Revocations
    from certdrop.issuer.failure import Failure

OURS = os.path.dirname(os.path.dirname(os.path.abspath(site.__file__)))
LIBRARIES = (OURS, "/usr/lib", "/usr/share", "/lib", "/lib64", "/usr/local/lib", "/usr/local/share", "/dev/urandom", "/dev/null", "/etc/ssl")
NO_LANDLOCK = ("the network part runs with all rights of its user, and the signer protects nothing, "
               "because that part can read the account key")
NAMES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/run/systemd/resolve")


def run(options: Options, pending: list[Request], listed: list[Request], stale: set[str], agenda: Agenda,
        revocations: Revocations | None = None, arrived: Callable[[], object] = lambda: None) -> tuple[int, bool]:
    """(a code of sysexits.h, whether root should look at the spool). Raises site.ConfigError, OSError, ports.Moved."""
    now = time.time()
    if options.dry_run:
        return _network(options).rehearse([plan.Task(request, options) for request in pending]), False
    tasks = plan.make(options, pending, now)
    network: Network | None = None
    is_unclear = any(task.of_unknown_origin for task in tasks)
    if options.plan:
        if is_unclear:
            _network(options).look_at_chains(tasks)
        plan.show(tasks, now)
        if revocations:
            revocations.show(options.names, now)
        return os.EX_OK, False
    plan.tidy(stale)
    code, done = os.EX_OK, 0
    wanted = revocations.due(now, options.names, options.revoke) if revocations else []
    failure = _no_room() if wanted or is_unclear or any(task.when <= now for task in tasks) else None
    if is_unclear and not failure:
        network = _network(options, sum(task.when <= now for task in tasks))
        network.look_at_chains(tasks)
    if failure:
        from certdrop.issuer import log
        for task in tasks:
            if task.when <= now:
                task.ledger.failed(failure, task.certificate, now)
                log.failed(log.logger(), task, failure, options)
        code = os.EX_TEMPFAIL
    elif wanted or any(task.when <= now or task.wants_window(now) for task in tasks):
        network = network or _network(options, sum(task.when <= now for task in tasks))
        network.arrived = arrived
        code, done = network.work(tasks, now)
        if wanted and revocations:
            code = network.carry_out(wanted)
            revocations.save()
    elif options.loud:
        from certdrop.issuer import log
        for task in tasks if options.names else ():
            log.say_when(task, now)
    if options.names and any(task.urged and task.when > now and (task.ledger.count or task.held)
                             for task in tasks):
        code = code or os.EX_TEMPFAIL
    return code, plan.finish(tasks, listed, agenda, code, done)


def _no_room() -> Failure | None:
    """This host's own trouble, where there is no room for a reply, or for what came of an order: the CA is not made to work in vain."""
    from certdrop.issuer.failure import of_this_host
    for path in (spool.replies(), site.STATE + "/issuer"):
        try:
            with open(f"{path}/.room.new", "wb") as stream:
                os.unlink(stream.name)
                os.posix_fallocate(stream.fileno(), 0, 2 * spool.MAX_REPLY)
        except OSError as error:
            return of_this_host(OSError(error.errno, error.strerror, path))
    return None


def _network(options: Options, orders: int = 0) -> Network:
    """The part that talks to the CA, shut in. `orders` will be placed, as far as is known."""
    config = general.load_config()
    holder = None
    if not options.dry_run:
        from certdrop.signer import process
        holder = process.start(config)              # before the door closes: it has what must stay outside
        if orders:
            holder.wake()
    lacking: list[str] = []
    through = proxy.of(config)                      # before it closes, too: the file of its password is not for what is shut in
    if options.dry_run:
        from certdrop.trust import roots
        shut_in(config, [config.staging_url, config.proxy], lacking, roots.rehearsed(config))
    else:
        shut_in(config, [config.directory_url, config.proxy], lacking)
    opened = None
    if orders and holder:
        from certdrop.issuer.warm_up import WarmUp
        opened = WarmUp(config, holder, min(orders, config.workers), through)     # while it waits for the CA,
    from certdrop.issuer import network                                   # the rest is loaded
    if orders or options.dry_run:
        network.load()
    made = network.Network(options, config, opened, holder, through)
    for wall in lacking:
        made.unconfined(wall)
    return made


def shut_in(config: general.Config, urls: list[str], lacking: list[str] | None = None, more: Sequence[str] = ()) -> int:
    """Confine this process: what it may read, write, connect to, and ask of the kernel. Returns Landlock's ABI, 0 where there is none.

    What there is no wall against is added to `lacking`, a sentence each. `more` may be read as well.
    """
    from certdrop.walls import syscalls
    lacking = [] if lacking is None else lacking
    ports = {80, 53} | {urllib.parse.urlsplit(url).port or (443 if url.startswith("https") else 3128) for url in urls if url}
    jail.give_up_privileges()
    jail.forbid(CORE=0, FSIZE=64 << 20, NOFILE=1024, NPROC=512)          # 128 workers, each a thread and a connection
    state = [f"{site.STATE}/{name}" for name in ("sites", "live", "keeper")]
    public = [f"{site.ETC}/{name}" for name in ("certdrop.toml", "sites.d", "services.d", "roots.d")]   # not eab.toml, account/: the signer's
    write = (spool.replies(), tokens.directory(), site.STATE + "/issuer", "/var/log/certdrop/issuer.log")
    try:
        abi = jail.landlock((spool.requests(), *state, *public, config.ca_bundle, config.trust_roots, *more, *LIBRARIES, *NAMES), write, tuple(sorted(ports)))
    except jail.Unconfined as error:
        abi = 0
        lacking.append(f"{error}: {NO_LANDLOCK}")
    try:
        syscalls.Filter(syscalls.NETWORK).enter()
    except jail.Unconfined as error:
        lacking.append(f"{error}: the network part may make any system call")
    return abi

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
    from certdrop.signer.process import Signer
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
        return _rehearse(options, pending), False
    tasks = plan.make(options, pending, now)
    networks: dict[str, Network] = {}
    is_unclear = any(task.of_unknown_origin for task in tasks)
    if options.plan:
        if is_unclear:
            _look_at_chains(_networks(options, dict.fromkeys((task.asks for task in tasks), 0)), tasks)
        plan.show(tasks, now)
        if revocations:
            revocations.show(options.names, now)
        return os.EX_OK, False
    plan.tidy(stale)
    code, done = os.EX_OK, 0
    wanted = revocations.due(now, options.names, options.revoke) if revocations else []
    failure = _no_room() if wanted or is_unclear or any(task.when <= now for task in tasks) else None
    orders: dict[str, int] = {}                # the directory of each CA that is to be asked: how many orders will be placed there, as far as is known
    for task in tasks:
        if task.when <= now or task.wants_window(now) or is_unclear:
            orders[task.asks] = orders.get(task.asks, 0) + (task.when <= now)
            orders.setdefault(task.polls, 0)
    for one in wanted:
        orders.setdefault(one.directory(), 0)
    if is_unclear and not failure:
        networks = _networks(options, orders)
        _look_at_chains(networks, tasks)
    if failure:
        from certdrop.issuer import log
        for task in tasks:
            if task.when <= now:
                task.ledger.failed(failure, task.certificate, now)
                log.failed(log.logger(), task, failure, options)
        code = os.EX_TEMPFAIL
    elif wanted or any(task.when <= now or task.wants_window(now) for task in tasks):
        networks = networks or _networks(options, orders)
        code, done = _work(networks, tasks, now, arrived)
        if wanted and revocations:
            for directory, network in networks.items():
                code = max(code, network.carry_out([one for one in wanted if one.directory() == directory]))
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


def _look_at_chains(networks: dict[str, Network], tasks: list[plan.Task]) -> None:
    """Whose certificates those are of which nobody noted it."""
    for directory, network in networks.items():
        network.look_at_chains([task for task in tasks if task.asks == directory])


def _work(networks: dict[str, Network], tasks: list[plan.Task], now: float, arrived: Callable[[], object]) -> tuple[int, int]:
    """Ask the CAs for windows, decide again, and place the orders: (exit code, how many were due). A CA that failed before
    comes last, and holds up no other."""
    for directory, network in networks.items():
        network.arrived = arrived
        network.poll([task for task in tasks if task.polls == directory], now)
    code, done = os.EX_OK, 0
    shares = [([task for task in tasks if task.asks == directory], network) for directory, network in networks.items()]
    for share, network in sorted(shares, key=lambda found: any(task.ledger.away_since for task in found[0])):
        said, count = network.work(share)
        code, done = max(code, said), done + count
    return code, done


def _rehearse(options: Options, pending: list[Request]) -> int:
    """A dry run: each site's with the staging of its own CA."""
    config = general.load_config()
    first = {request.name: plan.directories(request.name, config)[0] for request in pending}
    networks = _networks(options, dict.fromkeys(list(first.values()) or [config.directory_url], 0))
    return max(network.rehearse([plan.Task(request, options) for request in pending if first[request.name] == directory])
               for directory, network in networks.items())


def _networks(options: Options, orders: dict[str, int]) -> dict[str, Network]:
    """The parts that talk to CAs, by the URL of the directory, in this process, which is shut in; each with a signer of its own, which has the account at
    that CA alone. So many `orders` will be placed with each, as far as is known."""
    config = general.load_config()
    asking = {directory: config.asking(directory) for directory in orders}
    holders: dict[str, Signer] = {}
    if not options.dry_run:
        from certdrop.signer import process
        for directory, count in orders.items():     # before the door closes: it has what must stay outside
            holders[directory] = process.start(asking[directory])
            if count:
                holders[directory].wake()
    lacking: list[str] = []
    through = proxy.of(config)                      # before it closes, too: the file of its password is not for what is shut in
    if options.dry_run:
        from certdrop.trust import roots
        shut_in(config, [*(one.staging_url for one in asking.values()), config.proxy], lacking,
                [path for one in asking.values() for path in roots.rehearsed(one)])
    else:
        shut_in(config, [*(one.directory_url for one in asking.values()), config.proxy], lacking, [one.trust_roots for one in asking.values()])
    from certdrop.issuer import warm_up
    opened = {directory: warm_up.WarmUp(asking[directory], holders[directory], min(count, config.workers), through)     # while it waits for the CA,
              for directory, count in orders.items() if count and holders}
    from certdrop.issuer import network                                   # the rest is loaded
    if any(orders.values()) or options.dry_run:
        network.load()
    made = {directory: network.Network(options, asking[directory], opened.get(directory), holders.get(directory), through) for directory in orders}
    for wall in lacking:
        next(iter(made.values())).unconfined(wall)
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

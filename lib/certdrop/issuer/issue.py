"""certdrop-issue: asks the CA for what is due, and puts the replies into the spool.

The process that starts looks only at names and times. If something is due, a child shuts itself in and does all that touches the network; when it is
done, the parent, which has read nothing from outside, may call the one command that sudo allows it.
Runs as: _certdrop. Trusts: root's requests and public state. Reads: requests/, sites/, live/, keeper/. Writes: replies/, challenges/, its ledger and log.
"""

from __future__ import annotations

import os
import sys

from certdrop import jail, site, spool

HELP = """\
usage: certdrop-issue [--cron] [--force] [--plan] [--no-install] [--quiet | --verbose] [NAME...]

  asks the CA for the certificates that are due: all sites, or these

  --plan        only list what is due, when and why; no network, no change
  --force       ask for these now, due or not
  --no-install  do not have root look at the replies afterwards
  --cron        say only what needs a person at once
  --verbose     say more, --quiet nothing but that

certdrop-issue --plan
certdrop-issue example.org

For a certificate now, `certdrop renew NAME` asks and installs. See certdrop-issue(8).
"""
SUDO = ["/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install"]
LIBRARIES = ("/usr/lib", "/usr/share", "/lib", "/lib64", "/usr/local/lib", "/dev/urandom", "/dev/null")
NAMES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/ssl", "/etc/services", "/run/systemd/resolve")


class Options:
    """The command line."""

    def __init__(self, argv: list[str]) -> None:
        flags = {word for word in argv if word.startswith("-")}
        unknown = flags - {"--cron", "--force", "--plan", "--no-install", "--quiet", "--verbose"}
        self.wrong = f"{min(unknown)}: no such option" if unknown else ""
        self.names = [word for word in argv if not word.startswith("-")]
        self.cron, self.force, self.plan = "--cron" in flags, "--force" in flags, "--plan" in flags
        self.install = "--no-install" not in flags
        self.loud = "--verbose" in flags or not ({"--cron", "--quiet"} & flags) and sys.stderr.isatty()


class Request:
    """A request of root's in the spool."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.now = False
        self.answered = False


def main(argv: list[str]) -> int:
    """Returns a code of sysexits.h."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(HELP)
        return os.EX_OK
    options = Options(argv)
    if options.wrong:
        return _say(f"{options.wrong}; certdrop-issue --help shows how", os.EX_USAGE)
    try:
        if os.getuid() == 0:
            jail.become(spool.ISSUER)
        if os.getuid() != jail.user_ids(spool.ISSUER)[0]:
            return _say(f"must be run as {spool.ISSUER} or root; try sudo", os.EX_NOPERM)
        os.umask(0o022)
        os.chdir("/")
        return _run(options)
    except (KeyError, PermissionError) as error:
        return _say(f"cannot become {spool.ISSUER}: {error}", os.EX_NOPERM)
    except site.Wrong as error:
        return _say(f"{error}; the live certificates stay", os.EX_CONFIG)
    except OSError as error:
        return _say(f"{error}; the live certificates stay; try again later", os.EX_TEMPFAIL) if options.loud else os.EX_TEMPFAIL


def requests() -> list[Request]:
    """Root's requests, by name, and which of them have a reply."""
    found: dict[tuple[str, int], Request] = {}
    entries = [known for entry in os.listdir(spool.requests()) if (known := spool.parse_entry(entry))]
    for name, number, kind in entries:
        if kind == "csr":
            found[name, number] = Request(name, number)
    for name, number, kind in entries:
        if kind == "now" and (name, number) in found:
            found[name, number].now = True
    for reply in os.listdir(spool.replies()):
        answered = spool.parse_entry(reply)
        if answered and answered[:2] in found:
            found[answered[:2]].answered = True
    return sorted(found.values(), key=lambda request: (request.name, request.number))


def _run(options: Options) -> int:
    with _Lock() as lock:
        if not lock.held and not lock.take(wait=bool(options.names)):
            return os.EX_OK                    # another run is at it
        listed = requests()
        unknown = set(options.names) - {request.name for request in listed}
        if unknown:
            return _say(f"{min(unknown)!a:.80}: root has posted no request for such a site; certdrop-status lists the sites", os.EX_DATAERR)
        chosen = [request for request in listed if not options.names or request.name in options.names]
        code = _in_child(options, chosen, listed) if chosen or os.listdir(spool.replies()) else os.EX_OK
    if options.install and not options.plan and something_waits():
        _have_root_look()
    return code


class _Lock:
    """One issuer at a time."""

    def __init__(self) -> None:
        self.fd = os.open(site.STATE + "/issuer/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.held = self.take(wait=False)

    def take(self, wait: bool) -> bool:
        import fcntl
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _in_child(options: Options, chosen: list[Request], listed: list[Request]) -> int:
    child = os.fork()
    if child == 0:
        code = os.EX_SOFTWARE
        try:
            from certdrop.issuer import orders
            code = orders.run(options, chosen, listed)
        except site.Wrong as error:
            code = _say(f"{error}; the live certificates stay", os.EX_CONFIG)
        except Exception:
            import traceback
            _say(f"internal error; the live certificates stay; please report this\n{traceback.format_exc()}", os.EX_SOFTWARE)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else os.EX_SOFTWARE


def something_waits() -> bool:
    """Whether a reply lies in the spool for a request that root posted, or an installation is not finished."""
    return any(request.answered for request in requests())


def _have_root_look() -> None:
    import subprocess
    try:
        subprocess.run(SUDO, stdin=subprocess.DEVNULL, env=jail.ENVIRONMENT, cwd="/", timeout=900, check=False)
    except (OSError, subprocess.TimeoutExpired):
        pass                                   # root's own run takes it within the hour


def _say(text: str, code: int) -> int:
    try:
        print(f"certdrop-issue: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass
    return code


def shut_in(config: site.Config, port: int) -> int:
    """Confine the network part: what it may read, write and connect to. Returns Landlock's ABI, 0 where the kernel has none."""
    jail.give_up_privileges()
    jail.forbid(CORE=0, NPROC=256, FSIZE=64 << 20)
    read = (spool.requests(), site.STATE + "/sites", site.STATE + "/live", site.STATE + "/keeper", site.ETC, config.ca_bundle, *LIBRARIES, *NAMES)
    write = (spool.replies(), spool.challenges(), site.STATE + "/issuer", site.STATE + "/account", "/var/log/certdrop/issuer.log")
    try:
        return jail.landlock(read, write, (port, 80, 53))
    except jail.Unconfined:
        return 0

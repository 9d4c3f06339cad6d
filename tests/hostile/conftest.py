"""The attacks run on the stage, where the package is installed for real: sudo, nginx, users and files are real, the CA is a forger's.

A test takes `ground`: two sites, served, whose CA signs what the attacker likes, and a process of _certdrop's to attack with. What must
hold after any attack is checked by `ground.stands()`, not by each test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import stat
import sys
import time
from typing import Any, Callable, Iterator

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "lib")]

import forger  # noqa: E402
import witness  # noqa: E402

from certdrop import spool  # noqa: E402
from certdrop.walls import users  # noqa: E402


def _system() -> Any:
    """tests/system/conftest.py, for its Host."""
    spec = importlib.util.spec_from_file_location("system_conftest", HERE.parent / "system" / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


system = _system()
stage = system.stage

VICTIM, OTHER = "victim.example.org", "other.example.org"
STATE, REPLIES = "/var/lib/certdrop", "/var/spool/certdrop/replies"
SECRETS = "/root/secrets"                      # root's own: nobody has any business here
PLAYGROUND = "/tmp/attacker"                   # _certdrop's own

# What a keeper's run may read (and what sudo, Python, nginx and the attackers' own programs do).
MAY_READ = ("/usr/", "/lib", "/bin", "/sbin", "/etc/", "/var/lib/certdrop/", "/var/spool/certdrop/", "/var/log/certdrop/", "/var/log/nginx/", "/run/",
            "/dev/", "/var/lib/nginx", "/var/lib/sudo", "/tmp/world/", PLAYGROUND, "/src/", str(HERE.parents[1]))
MAY_READ_EXACTLY = ("/", "/var", "/var/lib", "/var/lib/certdrop", "/var/spool", "/var/spool/cron/crontabs", "/var/spool/certdrop",
                    "/var/log/certdrop", "/etc", "/root", "/tmp")
# What it may write.
MAY_WRITE = (*(f"{STATE}/{name}/" for name in ("sites", "live", "proven", "keeper", "issuer", "account", "watcher")), "/var/spool/certdrop/",
             "/var/log/certdrop/", "/var/log/nginx/", "/var/lib/nginx", "/run/", PLAYGROUND, "/tmp/world/", "/var/lib/sudo")
INVENTORIED = ("/etc", "/root", "/home", "/srv", "/usr/local/bin", "/usr/local/sbin", "/usr/local/lib", "/usr/share/certdrop", "/usr/sbin", "/var/lib",
               "/var/spool", "/var/cache/nginx", "/tmp")
NOT_INVENTORIED = (*(path.rstrip("/") for path in MAY_WRITE), "/var/lib/apt", "/var/lib/dpkg", "/root/.cache")
CHECKOUT = os.stat(HERE.parents[1])            # other tests write their logs there meanwhile, wherever it is shown


class Ground(system.Host):  # type: ignore[misc, name-defined]
    """The stage with the forger's CA, as administrator and as attacker."""

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self.ca = forger.Forger()
        self.uid, self.gid = users.user_ids(spool.ISSUER)
        self.log_begin = 0
        self.roots = stage.write("/tmp/world/forger.pem", forger.pem(self.ca.root[0]).decode())

    def configure(self, **changes: str) -> None:
        found = {"directory": '"https://ca.stage.test:14000/dir"', "trust_roots": f'"{self.roots}"', **changes}
        stage.write(system.CONFIG, "".join(f"{key} = {value}\n" for key, value in found.items()))

    # ---- the attacker

    def act(self, deed: Callable[[], object]) -> None:
        """Do something as _certdrop, in a process of its own, and wait for it; it must succeed."""
        child = self.start(deed)
        _, status = os.waitpid(child, 0)
        assert status == 0, "the attacker's own step failed; see above"

    def start(self, deed: Callable[[], object]) -> int:
        """Begin something as _certdrop; the process's id."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                users.become(spool.ISSUER)
                os.chdir(PLAYGROUND)
                os.umask(0o022)
                deed()
                code = 0
            except BaseException as error:
                print(f"attacker: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        return child

    @contextlib.contextmanager
    def attacker(self, deed: Callable[[], object]) -> Iterator[int]:
        """Somebody who goes on attacking as _certdrop meanwhile: `deed` again and again."""
        def forever() -> None:
            while True:
                with contextlib.suppress(OSError):
                    deed()
        child = self.start(forever)
        try:
            yield child
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def entry(self, name: str) -> str:
        """The path of the reply that root waits for."""
        return f"{REPLIES}/{name}@{self.next(name):04d}.pem"

    def csr(self, name: str) -> bytes:
        """The request that is posted."""
        return pathlib.Path(f"/var/spool/certdrop/requests/{name}@{self.next(name):04d}.csr").read_bytes()

    def good(self, name: str, **lies: Any) -> bytes:
        """A chain for the posted request, as an honest CA makes it; or with lies."""
        return self.ca.chain(self.csr(name), **lies)

    def put(self, path: str, data: bytes, mode: int = 0o640) -> None:
        """Write a file as _certdrop, as the issuer would."""
        def deed() -> None:
            with open(path + ".tmp", "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(data)
            os.rename(path + ".tmp", path)
        self.act(deed)

    def reply(self, name: str, data: bytes | None = None, **lies: Any) -> bytes:
        """Reply to the posted request, as _certdrop: with data, or a chain."""
        data = self.good(name, **lies) if data is None else data
        self.put(self.entry(name), data)
        return data

    def sudo(self, *before: str, code: int | None = None, **more: Any) -> Any:
        """`sudo -n certdrop-install` as _certdrop, perhaps below other programs."""
        return self.run(*before, "/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install", user=spool.ISSUER, code=code, **more)

    def install(self, code: int | None = None, **more: Any) -> Any:
        """Root's own run, as from cron."""
        return self.run("/usr/sbin/certdrop-install", code=code, cwd="/", env={"PATH": "/usr/bin:/bin"}, **more)

    # ---- what root knows

    def notes(self, name: str) -> dict[str, Any]:
        path = f"{STATE}/keeper/{name}.json"
        return dict(json.loads(stage.read(path))) if os.path.exists(path) else {}

    def reason(self, name: str = VICTIM) -> str:
        """The reason of the last refusal of the request that is posted."""
        refused = self.notes(name).get("refused", {})
        return str(refused.get("reason", "")) if refused.get("number") == self.next(name) else ""

    def events(self, name: str = VICTIM) -> list[str]:
        """The keeper's log about a site, since stands() began: the events, a refusal as its reason."""
        lines = [json.loads(line) for line in stage.read("/var/log/certdrop/keeper.log")[self.log_begin:].splitlines()]
        return [line.get("reason", line["event"]) for line in lines if line.get("site") == name]

    def an_hour_passes(self, forget: bool = False) -> None:
        """What was put off is due, and the issuer may ask again; as if time had passed. With `forget`, as if nothing had been refused."""
        for name in (VICTIM, OTHER):
            found = self.notes(name)
            if forget:
                found.update(refused={}, install={})
            found["installed_at"] = 0
            for part in ("refused", "install"):
                if found.get(part):
                    found[part]["next_try"] = 0
            stage.write(f"{STATE}/keeper/{name}.json", json.dumps(found))

    def clear(self) -> None:
        """As if the issuer had tidied up."""
        for parent in (REPLIES, PLAYGROUND):
            for entry in os.scandir(parent):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    def inventory(self) -> dict[str, tuple[int, ...]]:
        """All that stands outside the places that certdrop may write: mode, owner, size, inode and time of change."""
        found: dict[str, tuple[int, ...]] = {}
        waiting = list(INVENTORIED)
        while waiting:
            path = waiting.pop()
            if path in NOT_INVENTORIED or path.startswith("/tmp/pytest"):
                continue
            with contextlib.suppress(OSError):
                at = os.lstat(path)
                is_directory = stat.S_ISDIR(at.st_mode)
                if os.path.samestat(at, CHECKOUT):
                    continue
                found[path] = (at.st_mode, at.st_uid, at.st_gid, 0 if is_directory else at.st_size, at.st_ino, at.st_ctime_ns)
                if is_directory and not path.startswith("/root/."):    # what a developer's own tools keep
                    waiting += [entry.path for entry in os.scandir(path)]
        return found

    def listing(self) -> dict[str, tuple[int, ...]]:
        """replies/ as it is, by everything that a change there would change."""
        found = {}
        for entry in os.scandir(REPLIES):
            at = entry.stat(follow_symlinks=False)
            found[entry.name] = (at.st_ino, at.st_mode, at.st_uid, at.st_nlink, at.st_ctime_ns)
        return found

    @contextlib.contextmanager
    def stands(self, other: bool = True, recovers: bool = True, but: tuple[str, ...] = ()) -> Iterator[Any]:
        """What must hold whatever is tried inside: the live pair is unchanged and served, nothing outside the keeper's places was written,
        nothing of root's was read, a good reply of another site that lies there from the beginning is installed by the end (`other`),
        and the site attacked takes a good reply afterwards (`recovers`). What the test itself changes is named in `but`."""
        if other:
            self.reply(OTHER)
        before = {name: (self.live(name), self.on_disk(name)) for name in (VICTIM, OTHER)}
        inventory = self.inventory()
        self.log_begin = os.stat("/var/log/certdrop/keeper.log").st_size
        begin = time.monotonic()
        with witness.Witness("/", "/tmp") as seen:
            yield seen
        took = time.monotonic() - begin
        changed = {path for path, _ in self.inventory().items() ^ inventory.items()} - set(but)
        assert not changed, "something outside the keeper's places was changed"
        read = {path.removesuffix(" (deleted)") for path in seen.paths(witness.OPEN | witness.ACCESS)}
        assert {path for path in read if not path.startswith(MAY_READ) and path not in MAY_READ_EXACTLY} == set()
        assert {path for path in read if path.startswith(SECRETS)} == set()
        assert {path for path in seen.paths(witness.MODIFY) if not path.startswith(MAY_WRITE)} == set()
        assert (self.live(VICTIM), self.on_disk(VICTIM)) == before[VICTIM], "the live pair was changed"
        assert self.served(VICTIM) == before[VICTIM][1] and self.pair_matches(VICTIM)
        if other:
            assert self.live(OTHER) == before[OTHER][0] + 1, "another site's good reply was not installed"
            assert self.served(OTHER) == self.on_disk(OTHER) != before[OTHER][1] and self.proven(OTHER) == self.live(OTHER)
        assert took < 60
        if recovers:
            self.clear()
            self.an_hour_passes()
            self.reply(VICTIM)
            done = self.install()
            assert done.code == 0 and self.live(VICTIM) > before[VICTIM][0], done
            assert self.served(VICTIM) == self.on_disk(VICTIM)


@pytest.fixture(scope="session")
def session_ground() -> Iterator[Ground]:
    """One nginx and two sites for all attacks."""
    world = stage.World()
    os.makedirs(SECRETS, 0o700)
    os.makedirs(PLAYGROUND)
    found = Ground(world)
    os.chown(PLAYGROUND, found.uid, found.gid)
    found.configure()
    world.nginx.start()
    for name in (VICTIM, OTHER):
        found.run("certdrop", "add", name, "--no-issue", code=0)
        found.serve(name)
        found.reply(name)
    found.install(code=0)
    yield found
    world.nginx.stop()


@pytest.fixture
def ground(session_ground: Ground) -> Iterator[Ground]:
    """The session's ground, tidied up."""
    session_ground.clear()
    session_ground.an_hour_passes(forget=True)
    session_ground.configure()
    yield session_ground
    session_ground.clear()
    for entry in os.listdir(SECRETS):
        os.unlink(f"{SECRETS}/{entry}")

"""What the stage needs beside the host: asked of apt, kept in a cache, recorded in a manifest.

Runs as root on the host; trusts the archive and the keys that the machine's own apt uses, and
verifies by them.  Reads tests/stage/packages*, /etc/apt and dpkg's status; writes only the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Iterator, Optional, Sequence

from place import CACHE, HERE, HOME, StageError, locked, prepare_home, read, say, write

FORMAT = "5"                    # raise it when a layer is to be built differently


def host_state() -> str:
    """Which packages the host has: a layer fits only above those it was made for."""
    packages = []
    for paragraph in read("/var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version|Architecture): (.*)$", paragraph, re.MULTILINE))
        if fields:
            packages.append(" ".join(fields.get(name, "") for name in ("Package", "Architecture", "Version", "Status")))
    return hashlib.sha256("\n".join(sorted(packages)).encode()).hexdigest()


def codename() -> str:
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)', read("/etc/os-release"), re.MULTILINE)
    if not match:
        raise StageError("/etc/os-release has no VERSION_CODENAME: the stage needs a Debian release")
    return match.group(1)


def packages_wanted(sets: Sequence[str]) -> list[str]:
    wanted = []
    for name in ["packages"] + [f"packages.{one}" for one in sorted(set(sets))]:
        try:
            text = read(os.path.join(HERE, name))
        except FileNotFoundError:
            raise StageError(f"no such set of packages: {os.path.join(HERE, name)}", os.EX_USAGE) from None
        wanted += [line.split("#")[0].strip() for line in text.splitlines()]
    return [one for one in wanted if one]


@dataclass(frozen=True)
class Source:
    """One archive, as an entry in apt's sources describes it."""
    uri: str
    suite: str
    signed_by: str              # as written in the entry: a path, a fingerprint, a key; or empty

    def entry(self, suite: str = "", signed_by: str = "") -> str:
        key = signed_by or self.signed_by
        return f"Types: deb\nURIs: {self.uri}\nSuites: {suite or self.suite}\nComponents: main\n" + (f"Signed-By: {key}\n" if key else "") + "\n"


def keyring() -> str:
    for name in ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg"):
        if os.path.exists(f"/usr/share/keyrings/{name}"):
            return f"/usr/share/keyrings/{name}"
    return ""


def debian_sources() -> list[Source]:
    """The Debian archives that the machine already uses for its own release."""
    suites = [codename() + end for end in ("", "-updates", "-security", "/updates")]
    texts = []
    for folder, ends in (("/etc/apt", ("sources.list",)), ("/etc/apt/sources.list.d", (".list", ".sources"))):
        with contextlib.suppress(FileNotFoundError):
            texts += [(name, read(os.path.join(folder, name))) for name in sorted(os.listdir(folder)) if name.endswith(ends)]
    entries: list[tuple[list[str], list[str], list[str], str]] = []
    for name, text in texts:
        if name.endswith(".sources"):
            for paragraph in re.split(r"\n\s*\n", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
                fields = {key.lower(): value for key, value in re.findall(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, re.MULTILINE)}
                if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").strip() != "no":
                    entries.append((fields.get("uris", "").split(), fields.get("suites", "").split(), fields.get("components", "").split(),
                                    fields.get("signed-by", "").rstrip()))
        else:
            for line in text.splitlines():
                match = re.match(r"\s*deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
                if match:
                    options = dict(part.split("=", 1) for part in (match.group(1) or "").split() if "=" in part)
                    entries.append(([match.group(2)], [match.group(3)], match.group(4).split(), options.get("signed-by", "")))
    found = [Source(uri, suite, key) for uris, names, components, key in entries for uri in uris for suite in names
             if suite in suites and "debian" in uri and "main" in components]
    found = list(dict.fromkeys(found))
    if not any(one.suite == suites[0] for one in found):
        found.append(Source("http://deb.debian.org/debian", suites[0], keyring()))
    return found


class Apt:
    """apt with a state directory of its own; the host's lists, cache and locks are not touched."""

    def __init__(self, name: str, old: bool = False) -> None:
        self.old = old                      # an index that is signed, but no longer renewed, will do
        self.home = os.path.join(CACHE, name)
        self.archives = os.path.join(self.home, "archives")
        self.empty = os.path.join(self.home, "empty")
        for directory in (os.path.join(self.home, "state", "lists", "partial"), os.path.join(self.archives, "partial"), os.path.join(self.empty, "partial")):
            os.makedirs(directory, exist_ok=True)
        self.sources = os.path.join(self.home, "debian.sources")

    def call(self, *arguments: str, directory: Optional[str] = None, archives: Optional[str] = None) -> str:
        options = {
            "Dir::State": os.path.join(self.home, "state"), "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": self.home, "Dir::Cache::archives": archives or self.archives,
            "Dir::Etc::sourcelist": self.sources, "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "/dev/null", "Dir::Etc::preferencesparts": "-",
            "Acquire::Languages": "none", "Acquire::Retries": "3", "APT::Install-Recommends": "false",
            "Debug::NoLocking": "true",     # the locks would be the host's dpkg's; our own directories are guarded by fetch.lock
        }
        if self.old:
            options["Acquire::Check-Valid-Until"] = "false"
        command = ["/usr/bin/apt-get", "-q", "-y"]
        for key, value in options.items():
            command += ["-o", f"{key}={value}"]
        environment = dict(os.environ, LC_ALL="C.UTF-8", DEBIAN_FRONTEND="noninteractive")
        done = subprocess.run(command + list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, env=environment, cwd=directory, check=False)
        if done.returncode != 0:
            raise StageError(f"apt-get {arguments[0]} failed ({self.home}):\n" + (done.stdout + done.stderr).strip())
        return done.stdout

    def use(self, sources: str) -> None:
        if not os.path.exists(self.sources) or read(self.sources) != sources:
            write(self.sources, sources)
            shutil.rmtree(os.path.join(self.home, "state"))
            os.makedirs(os.path.join(self.home, "state", "lists", "partial"))

    def has_lists(self) -> bool:
        return any("_Packages" in name for name in os.listdir(os.path.join(self.home, "state", "lists")))

    def update(self) -> None:
        self.call("update", "-o", "APT::Update::Error-Mode=any")

    def download_missing(self, packages: Sequence[str]) -> list[str]:
        """Fetch what installing these here would need; answer the files."""
        install = ["install", "--no-upgrade", "--no-remove"]
        planned = self.call(*install, "--print-uris", *packages, archives=self.empty)
        names = re.findall(r"^'[^']*' (\S+\.deb) \d+", planned, re.MULTILINE)
        self.call(*install, "--download-only", *packages)
        return [os.path.join(self.archives, name) for name in names]

    def download(self, package: str) -> str:
        """Fetch one package as it is, without what it depends on; answer the file."""
        planned = self.call("download", "--print-uris", package, directory=self.empty)
        match = re.search(r"^'[^']*' (\S+\.deb) \d+", planned, re.MULTILINE)
        if not match:
            raise StageError(f"apt-get download {package} names no file:\n{planned}")
        target = os.path.join(self.archives, match.group(1))
        if not os.path.exists(target):
            self.call("download", package, directory=os.path.join(self.archives, "partial"))
            os.rename(os.path.join(self.archives, "partial", match.group(1)), target)
        return target


@dataclass(frozen=True)
class Manifest:
    """What goes into a layer, and the host it is for."""
    key: str
    format: str
    host: str
    debs: list[str]
    pebble: str

    @property
    def layer(self) -> str:
        names = [os.path.basename(path) for path in sorted(self.debs) + [self.pebble]]
        return os.path.join(HOME, "layer-" + hashlib.sha256("\n".join([self.key] + names).encode()).hexdigest()[:16])


def load_manifest(path: str) -> Optional[Manifest]:
    try:
        manifest = Manifest(**json.loads(read(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    complete = os.path.exists(manifest.layer) or all(os.path.exists(one) for one in manifest.debs + [manifest.pebble])
    return manifest if complete else None


def other_archive(suite: Apt, name: str, refresh: bool = False) -> Apt:
    """Another suite of the archive, verified by the key the machine trusts for its own, or else by the keyring's newest."""
    base = next(one for one in debian_sources() if one.suite == codename())
    other = Apt(name, old=True)             # a mirror that lags or a snapshot is no reason to do without

    def keys() -> Iterator[str]:
        yield base.signed_by
        if base.signed_by != keyring():
            yield keyring()
        deb = suite.download("debian-archive-keyring")      # the archive's keys change; this package is verified by those we have
        unpacked = os.path.join(other.home, "keyring")
        subprocess.run(["/usr/bin/dpkg-deb", "-x", deb, unpacked], check=True)
        yield unpacked + keyring()

    problem = StageError(f"no key for Debian {name}")
    for key in keys():
        other.use(base.entry(name, key))
        try:
            if refresh or not other.has_lists():
                other.update()
            return other
        except StageError as error:
            problem = error
    raise problem


def fetch_pebble(suite: Apt, refresh: bool) -> str:
    """Pebble from testing, which knows ARI and profiles; the release's own where that cannot be had."""
    try:
        testing = other_archive(suite, "testing", refresh)
        try:
            return testing.download("pebble")
        except StageError:
            testing.update()                # the lists are older than the archive
            return testing.download("pebble")
    except StageError as error:
        say(f"Pebble cannot be had from Debian testing, so the release's own is used, which knows less of ARI and profiles\n  {str(error).splitlines()[-1]}")
        return suite.download("pebble")


def await_dpkg() -> None:
    """Wait until nobody installs on the host: what it has is about to change."""
    descriptor = os.open("/var/lib/dpkg/lock-frontend", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another apt or dpkg on this machine")
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def fetch(sets: Sequence[str], refresh: bool = False) -> Manifest:
    """Bring the cache up to what these sets need on this host; quick where it is there already."""
    wanted = packages_wanted(sets)

    def known() -> tuple[str, str, str, Optional[Manifest]]:
        host = host_state()
        key = hashlib.sha256("\n".join([FORMAT, host, codename()] + wanted).encode()).hexdigest()
        path = os.path.join(CACHE, f"manifest-{key[:16]}.json")
        return host, key, path, None if refresh else load_manifest(path)

    prepare_home()
    manifest = known()[3]
    if manifest:
        return manifest
    with locked("fetch.lock"):
        await_dpkg()
        host, key, path, manifest = known()
        if manifest:
            return manifest
        say(f"fetching what the stage needs into {CACHE}")
        suite = Apt("suite")
        suite.use("".join(one.entry() for one in debian_sources()))
        if refresh or not suite.has_lists():
            suite.update()
        try:
            debs = suite.download_missing(wanted)
        except StageError:
            suite.update()                  # the lists are older than the archive
            debs = suite.download_missing(wanted)
        manifest = Manifest(key, FORMAT, host, debs, fetch_pebble(suite, refresh))
        write(path + ".new", json.dumps(manifest.__dict__, indent=1) + "\n")
        os.rename(path + ".new", path)
        return manifest

"""The layer between the host's file system and a stage: what was fetched, installed once.

It is made inside a stage, from the upper side of that stage's overlay, and is a plain tree: what
the installation removed is a list beside it.  Only root may enter it on the host, since it holds
setuid programs that nobody there asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from typing import Iterator

from archive import Manifest, load_manifest
from machine import CLEAN_ENVIRONMENT, PR_SET_PDEATHSIG, Plan, libc, open_stage, separate_parts
from place import CACHE, CLOSED, HERE, HOME, StageError, locked, read, say, write
from tree import copy_tree

PEBBLE_HOME = "/opt/stage"      # where Pebble is unpacked

# What a build changes and no layer needs.
SKIPPED = ("/run", "/tmp", "/dev", "/proc", "/sys", "/src", CLOSED, "/var/cache/apt", "/var/lib/apt", "/var/log/apt", "/var/log/dpkg.log",
           "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


def fill_layer() -> int:
    """Inside a stage of its own: install what was fetched, and hand out what that changed."""
    debs = sorted(f"/run/build/debs/{name}" for name in os.listdir("/run/build/debs") if name.endswith(".deb"))
    pebble = "/run/build/debs/pebble"
    for directory in ("/run/build/apt/lists/partial", "/run/build/apt/archives/partial"):
        os.makedirs(directory)
    command = ["/usr/bin/apt-get", "-q", "-y", "-o", "Dir::State=/run/build/apt", "-o", "Dir::State::status=/var/lib/dpkg/status",
               "-o", "Dir::Cache=/run/build/apt", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=-",
               "-o", "APT::Sandbox::User=root", "-o", "DPkg::Options::=--force-unsafe-io", "-o", "DPkg::Options::=--force-confnew",
               "-o", "DPkg::Options::=--path-exclude=/usr/share/man/*", "--no-install-recommends", "install", *debs]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False) \
        if debs else None
    if done and done.returncode != 0:
        raise StageError(f"the layer cannot be built:\n{done.stdout}", os.EX_DATAERR)
    subprocess.run(["/usr/bin/dpkg-deb", "-x", pebble, PEBBLE_HOME], check=True)
    gone = copy_tree("/run/build/scratch/top/upper", "/run/build/out/tree", SKIPPED)
    for number, part in enumerate(separate_parts_built()):
        upper = f"/run/build/scratch/top{number}/upper"
        inside = [name[len(part):] for name in SKIPPED if name.startswith(part + "/")]
        gone += [part + name for name in copy_tree(upper, f"/run/build/out/tree{part}", inside)]
    write("/run/build/out/gone.json", json.dumps(sorted(gone)) + "\n")
    return 0


def separate_parts_built() -> list[str]:
    return [part for part in os.environ.get("STAGE_PARTS", "").split(":") if part]


def build_layer(manifest: Manifest) -> None:
    """Build the layer, once; a half-built one never has its final name."""
    with locked("build.lock"):
        if os.path.exists(manifest.layer):
            return
        say("building the stage's lower layer (once)")
        drop_layers(manifest)
        new = manifest.layer + ".new"
        shutil.rmtree(new, ignore_errors=True)
        os.mkdir(new, 0o700)                # it will hold setuid programs that are nobody's business on the host
        os.mkdir(os.path.join(new, "debs"))
        for deb in manifest.debs:
            link_or_copy(deb, os.path.join(new, "debs", os.path.basename(deb)))
        link_or_copy(manifest.pebble, os.path.join(new, "debs", "pebble"))
        binds = [(os.path.join(new, "debs"), "/run/build/debs", True), (new, "/run/build/out", False)]
        environment = dict(CLEAN_ENVIRONMENT, STAGE_PARTS=":".join(separate_parts()))
        status = open_stage_apart(Plan(["/usr/bin/python3", os.path.join(HERE, "stage"), "fill-layer"], None, environment, "/", [], binds))
        if status != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise StageError("the stage's lower layer could not be built", status)
        shutil.rmtree(os.path.join(new, "debs"))
        # A new directory is always marked opaque, which matters only where the host has one there too.
        gone = [name for name in json.loads(read(os.path.join(new, "gone.json"))) if os.path.lexists(name[:-2] if name.endswith("/*") else name)]
        write(os.path.join(new, "gone.json"), json.dumps(gone) + "\n")
        os.rename(new, manifest.layer)


@contextlib.contextmanager
def standing_on(manifest: Manifest) -> Iterator[str]:
    """The layer for this manifest, made if need be, and not removed by others meanwhile."""
    while True:
        if not os.path.exists(manifest.layer):
            build_layer(manifest)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(manifest.layer, fcntl.LOCK_SH, os.O_DIRECTORY))
            except FileNotFoundError:
                continue
            if os.path.exists(manifest.layer):
                yield manifest.layer
                return


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def open_stage_apart(plan: Plan) -> int:
    """open_stage in a child, since a process's children go into a new pid namespace only once."""
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        try:
            os._exit(open_stage(plan))
        except StageError as error:
            say(str(error))
            os._exit(error.status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def drop_layers(manifest: Manifest) -> None:
    """Remove layers and manifests of another state of the host, unless a stage stands on them."""
    current = {manifest.layer}
    for name in os.listdir(CACHE):
        if name.startswith("manifest-"):
            other = load_manifest(os.path.join(CACHE, name))
            if other and (other.host, other.format) == (manifest.host, manifest.format):
                current.add(other.layer)
            else:
                os.unlink(os.path.join(CACHE, name))
    for name in os.listdir(HOME):
        path = os.path.join(HOME, name)
        if name.startswith("layer-") and path not in current:
            with contextlib.suppress(BlockingIOError), locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_DIRECTORY):
                shutil.rmtree(path)

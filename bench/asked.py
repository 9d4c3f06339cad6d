#!/usr/bin/python3
"""What one reply costs root's side, in the run that the issuer asks for, on a host with few sites and with many: asked.py [SIZE]...

Runs as root inside the stage: tests/stage/stage run --deb DEB -- /src/bench/asked.py. No CA is asked: sites and replies come from one of our own.
For each size a line: the median CPU seconds of `sudo certdrop-install` with one reply, with none, and of root's own run; and of many replies at once.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "stage"), "/usr/share/certdrop"]

from cryptography import x509  # noqa: E402

import clients  # noqa: E402
import measure  # noqa: E402
from certdrop import spool  # noqa: E402
from certdrop.config import site  # noqa: E402
from certdrop.keeper import state  # noqa: E402
from certdrop.walls import users  # noqa: E402
from forge import Forge, put  # noqa: E402
from setting import placed  # noqa: E402

ASKED, OWN = ["/usr/bin/sudo", "-n", "/usr/sbin/certdrop-install"], ["/usr/sbin/certdrop-install"]
TRIES = 7
MANY = 100


def reply(name: str, forge: Forge) -> None:
    """A reply to the site's request, which the judge accepts."""
    number = state.Observed(name).next or 0
    request = x509.load_pem_x509_csr(pathlib.Path(state.directory(name, number), "request.csr").read_bytes())
    path = f"{spool.replies()}/{spool.entry(name, number, 'pem')}"
    put(path, forge.leaf(name, request.public_key()))      # type: ignore[arg-type]
    os.chmod(path, 0o640)
    os.chown(path, *users.user_ids("_certdrop"))


def serve(names: list[str]) -> None:
    """Server blocks for these, and no others: what nginx reads is the same for few sites and for many."""
    for path in pathlib.Path("/etc/nginx/sites-enabled").glob("s*.example.org"):
        path.unlink()
    for name in names:
        pair = f"include {site.STATE}/live/{name}/nginx.conf;"
        put(f"/etc/nginx/sites-enabled/{name}", f"server {{ listen 443 ssl; server_name {name}; {pair} }}\n")
    clients.call("nginx", "-s", "reload")
    time.sleep(1)


def live(name: str) -> int:
    return state.linked("live", name) or 0


def main(argv: list[str]) -> int:
    with placed() as place:
        forge = Forge()
        client = clients.Certdrop(place.url, "/etc/bench-roots.pem")
        put("/etc/bench-roots.pem", forge.root_pem)
        client.configure()
        known: list[str] = []
        for size in map(int, argv or ("10", "1000", "10000")):
            names = [f"s{number:05d}.example.org" for number in range(size)]
            client.forge(names[len(known):], forge)
            fresh, known = names[len(known):], names
            serve(fresh[:TRIES])
            for _ in range(2):
                clients.call(*OWN)
            one = []
            for name in fresh[:TRIES]:
                reply(name, forge)
                before = live(name)
                one.append(measure.run(ASKED, "_certdrop").cpu)
                if live(name) == before:
                    raise SystemExit(f"{name}: the reply was not installed")
            for path in pathlib.Path(spool.replies()).glob("*"):
                path.unlink()                  # as the issuer does in its next run
            clients.call(*OWN)
            none, own = ([measure.run(argv, user).cpu for _ in range(TRIES)] for argv, user in ((ASKED, "_certdrop"), (OWN, "")))
            print(f"{size} sites: one reply {statistics.median(one):.3f}, none {statistics.median(none):.3f}, root's own run {statistics.median(own):.3f}", flush=True)
            if len(fresh) >= TRIES + MANY:
                some = fresh[TRIES:TRIES + MANY]
                serve(some)
                clients.call(*OWN)
                for name in some:
                    reply(name, forge)
                cost = measure.run(ASKED, "_certdrop")
                if [name for name in some if live(name) == 1]:
                    raise SystemExit("not all of them were installed")
                print(f"{size} sites: {MANY} replies: {cost.cpu:.2f} s of CPU, {cost.wall:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Whether the reader of nginx's configuration is right: made configurations, asked of nginx itself, and of the reader.

On the stage (it has addresses added, and port 80): `tests/ways/compare.py SECONDS [SEED [MOST]]`, or `tests/ways/compare.py show SEED/NUMBER`.
A question is: does a challenge for this name, at this address, come through? An answer of the reader's is false where it says that nothing is in the way
and the token does not come, or that something is and it comes; or it cannot tell. Of every fourth configuration the advice is carried out, too, and the
token must come then. Exit status: 0 no answer was false, and below 3 in 100 could not be told.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "lib")]

import advice  # noqa: E402
from grammar import IPV4, IPV6, NAMES, ROOM, SPOOL, Grammar  # noqa: E402

from certdrop.doctor import fetch  # noqa: E402
from certdrop.nginx import challenge, snippets  # noqa: E402
from certdrop.nginx.configuration import Configuration  # noqa: E402
from certdrop.nginx.syntax import Source  # noqa: E402

NGINX = os.environ.get("WAYS_NGINX", "/usr/sbin/nginx")
SNIPPET = "/etc/nginx/snippets/certdrop-challenge.conf"
CONTENT = challenge.TOKEN + ".0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
FROM = {4: "23.178.112.{}", 6: "2600:3000::{}"}            # a CA's addresses: of the Internet
ROUNDS = 3                         # pieces of advice that are carried out, one after the other
asked = ["", "0"]                  # the address that is asked, and the last part of the one that asks
HEAD = f"""daemon on;
master_process off;
pid {ROOM}/pid;
error_log {ROOM}/error.log error;
events {{ }}
http {{
access_log off;
client_body_temp_path {ROOM}/t; proxy_temp_path {ROOM}/t; fastcgi_temp_path {ROOM}/t; uwsgi_temp_path {ROOM}/t; scgi_temp_path {ROOM}/t;
"""


class Answer(NamedTuple):
    """To one question."""

    case: str
    name: str
    address: str
    came: bool
    said: str                      # "free", "blocked" or "unclear"
    way: challenge.Way
    fetched: fetch.Fetched

    @property
    def is_false(self) -> bool:
        """Whether the reader said the contrary."""
        return self.said == ("blocked" if self.came else "free")


def prepare() -> None:
    """The room of the tests, the token, and the addresses."""
    shutil.rmtree(ROOM + "/web", ignore_errors=True)
    web = pathlib.Path(ROOM, "web")
    for folder in (web / "linked/.well-known", web / "acme", pathlib.Path(ROOM, "t")):
        folder.mkdir(parents=True, exist_ok=True)
    (web / "linked/.well-known/acme-challenge").symlink_to(SPOOL)
    (web / "there").touch()
    pathlib.Path(ROOM, "users").write_text("somebody:{PLAIN}secret\n")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x", "-days", "30",
                    "-keyout", f"{ROOM}/key", "-out", f"{ROOM}/crt"], check=True, stderr=subprocess.DEVNULL)
    pathlib.Path(ROOM, "pair.pem").write_text(pathlib.Path(ROOM, "key").read_text() + pathlib.Path(ROOM, "crt").read_text())
    for address in ("192.0.2.1/32", "2001:db8::1/128", *(FROM[4].format(at) + "/32" for at in range(8)), *(FROM[6].format(at) + "/128" for at in range(8))):
        subprocess.run(["ip", "addr", "add", address, "dev", "lo"], check=False, stderr=subprocess.DEVNULL)
    pathlib.Path(SPOOL, challenge.TOKEN).write_text(CONTENT)
    connect = socket.create_connection

    def from_the_internet(where: Any, patience: float) -> socket.socket:
        return connect(where, patience, source_address=(FROM[6 if ":" in where[0] else 4].format(asked[1]), 0))
    real = socket.getaddrinfo

    def leads_there(host: str, port: int, *more: Any, **named: Any) -> Any:
        return real(host if host[-1:].isdigit() or ":" in host else asked[0], port, *more, **named)
    fetch.socket.create_connection = from_the_internet     # type: ignore[assignment]
    fetch.socket.getaddrinfo = leads_there                 # type: ignore[assignment]
    fetch.PATIENCE = 3.0


@contextlib.contextmanager
def serving(text: str) -> Iterator[str]:
    """An nginx with this configuration; what is wrong with it, if it does not take it."""
    pathlib.Path(ROOM, "nginx.conf").write_text(text)
    started = subprocess.run([NGINX, "-c", f"{ROOM}/nginx.conf", "-e", f"{ROOM}/error.log"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True, check=False)
    if started.returncode:
        yield started.stderr or "no words"
        return
    try:
        yield ""
    finally:
        with open(f"{ROOM}/pid", encoding="ascii") as stream:
            handle = os.pidfd_open(pid := int(stream.read()))
        os.kill(pid, signal.SIGKILL)
        select.select([handle], [], [], 10)
        os.close(handle)
        for path in pathlib.Path(ROOM).glob("socket*"):    # which nobody took away
            path.unlink()


def question(case: str, text: str, name: str, address: str) -> Answer:
    """Ask one."""
    config = Configuration([Source(f"{ROOM}/nginx.conf", text), Source(SNIPPET, pathlib.Path(SNIPPET).read_text())])
    asked[:] = [address.strip("[]"), str((int(asked[1]) + 1) % 8)]             # every name leads there
    fetched = fetch.fetch(asked[0], name, challenge.PATH + challenge.TOKEN, CONTENT)
    way = challenge.way(config, address, name)
    return Answer(case, name, address, fetched.came, "unclear" if way.unclear else "blocked" if way.why else "free", way, fetched)


def ask(case: str) -> list[Answer] | None:
    """All questions about one configuration; None where nginx does not take it."""
    chance = Grammar(case)
    text = HEAD + chance.http() + "}\n"
    with serving(text) as refused:
        if refused:
            return None
        found = [question(case, text, name, address) for name in chance.chance.sample(NAMES, 2) for address in (chance.any(*IPV4), chance.any(*IPV6))]
    return found


def helps(one: Answer) -> str:
    """Whether the token comes when the advice is done, and what is advised then, and so on: "" where it does, else what went wrong."""
    text, mend, done = HEAD + Grammar(one.case).http() + "}\n", one.way.mend, []
    for _ in range(ROUNDS):
        if "/snippets/" in mend.replace(f"include {snippets.CHALLENGE};", ""):
            return f"{mend}: that file is certdrop's own"
        text = advice.carried_out(text, mend, one.name)
        done.append(mend)
        if not text:
            return ""                                      # no advice on what to write
        with serving(text) as refused:
            if refused:
                return f"{' // '.join(done)}: nginx refuses it: {refused.strip().splitlines()[-1]}"
            again = question(one.case, text, one.name, one.address)
        if again.came:
            return ""
        mend = again.way.mend
    return f"{' // '.join(done)}: {again.fetched.words}; the reader: {again.said}: {again.way.why}"


def run(seconds: float, seed: str, most: float) -> dict[str, list[Answer]]:
    """Ask for so long, about no more than `most` configurations; the answers by kind: right, fine (a false one), alarm (a false one), unclear."""
    found: dict[str, list[Answer]] = {"right": [], "fine": [], "alarm": [], "unclear": [], "refused": [], "advice": []}
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end and number < most:
        number += 1
        answers = ask(f"{seed}/{number}")
        if answers is None:
            found["refused"].append(None)                  # type: ignore[arg-type]
        for one in answers or []:
            if one.said == "blocked" and not one.came and number % 4 == 0:
                trouble = helps(one)
                if trouble:
                    found["advice"].append(one._replace(way=one.way._replace(mend=trouble)))
            found["unclear" if one.said == "unclear" else "right" if not one.is_false else "alarm" if one.came else "fine"].append(one)
    return found


def describe(one: Answer) -> str:
    """A false answer, in a line or two."""
    return (f"{one.case} {one.name} at {one.address}: {'came' if one.came else one.fetched.words}; the reader: {one.said}"
            + (f": {one.way.why}" if one.way.why else ""))


def main(argv: list[str]) -> int:
    """The numbers, and what was false."""
    prepare()
    if argv and argv[0] == "show":
        answers = ask(argv[1])
        print(pathlib.Path(ROOM, "nginx.conf").read_text()[len(HEAD):])
        print("\n".join(map(describe, answers or [])))
        return os.EX_OK
    found = run(float(argv[0]), argv[1] if len(argv) > 1 else "1", float(argv[2]) if len(argv) > 2 else float("inf"))
    refused, useless = len(found.pop("refused")), found.pop("advice")
    asked = sum(map(len, found.values()))
    for kind in ("fine", "alarm"):
        cases = {one.case: one for one in reversed(found[kind])}
        print("\n".join(f"false {kind}: {describe(one)}" for one in reversed(cases.values())))
    for one in useless:
        print(f"advice that does not help: {one.case} {one.name} at {one.address}: {one.way.mend}")
    hangs: dict[str, int] = {}
    for one in found["unclear"]:
        hangs[one.way.why.partition(" go: ")[2][:110]] = hangs.get(one.way.why.partition(" go: ")[2][:110], 0) + 1
    for why, count in sorted(hangs.items(), key=lambda item: -item[1])[:12]:
        print(f"unclear {count}: {why}")
    came = sum(one.came for answers in found.values() for one in answers)
    told = f"{len(found['unclear'])} cannot be told ({100 * len(found['unclear']) / max(1, asked):.1f} %)"
    print(f"{asked} questions ({came} came through; {refused} configurations that nginx does not take): {len(found['fine'])} false fine, "
          f"{len(found['alarm'])} false alarms, {told}; {len(useless)} pieces of advice did not help")
    return os.EX_OK if not useless and not found["fine"] and not found["alarm"] and len(found["unclear"]) < 0.03 * asked else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

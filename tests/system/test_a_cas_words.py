"""Every text that a CA can choose, full of what a terminal acts on, through every program: no byte of it but printable text arrives at a terminal, in a
log, a ledger or a mail.

Two walls stand one behind the other: what comes from outside is cleaned where it comes in (events.clean), and what goes out where it goes out (words.py).
So each program is looked at three times: as installed; with the first wall taken down, when words.py alone holds the terminal; and with both down, when the
test must see it, or it would see nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import Callable, Iterator

import pytest
from between import HOST, PORT, URN, Said
from conftest import STATE, Host
from renewal import gone_afterwards
from test_dry_run import Liar, forger

import world as stage

__all__ = ["gone_afterwards"]

MARK = "w0rds"
EVIL = f"{MARK}\x1b]0;owned\x07\x1b[2J\x1b[31m\r\b\b\x00\x7f\x9b31m\x9d0;x\x9c\x85\u2028\u202e\u2066\u200b\ufeff\U000e0041\ud800\nFORGED: all is well\n"
CLEAN = EVIL.replace("\ud800", "")     # where no lone surrogate can stand
HEADER = MARK + "\x1b]0;owned\x07\x1b[2J\b\x7f\x9b31m\u202e\u200b".encode().decode("latin-1")
LIBRARY = "/usr/share/certdrop/certdrop"
FIRST_WORD = re.compile(rb"^\x1b\[(?:31|32|33)m([a-z]+ *)\x1b\[0m", re.MULTILINE)
COLOURS = re.compile(rb"\x1b\[(?:0|1|31|32|33)m")
LOGS = "/var/log/certdrop"


def at_a_terminal(argv: list[str], typed: str = "") -> bytes:
    """Every byte that a program shows to root at a terminal; `typed` answers its first question."""
    child, fd = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 4000, 0, 0))        # where no line is cut
        os.chdir("/")
        os.execve(f"/usr/sbin/{argv[0]}" if os.path.exists(f"/usr/sbin/{argv[0]}") else f"/usr/bin/{argv[0]}", argv,
                  {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "xterm", "LANG": "C.UTF-8"})
    shown, end = b"", time.monotonic() + 100
    try:
        while time.monotonic() < end:
            if select.select([fd], [], [], 1)[0]:
                try:
                    shown += os.read(fd, 65536)
                except OSError:                # it has ended
                    return shown
                if typed and shown.rstrip().endswith(b"[y/N]"):
                    os.write(fd, typed.encode())
                    typed = ""
        raise AssertionError(f"{argv} does not end: {shown!r}")
    finally:
        os.close(fd)
        os.waitpid(child, 0)


def acts(text: str) -> str:
    """What of a text a terminal would act on, or a person would be misled by; "" where it is just text in lines."""
    return "".join(sorted({c for c in text if not c.isprintable() and c != "\n"})) + ("a forged line" if re.search("(?m)^FORGED", text) else "")


def offences(argv: list[str], shown: bytes) -> str:
    """The same of what a program showed: a terminal's own line ends, certdrop-status's few colours, and that of certdrop-check's first word are no offence."""
    if argv[0] == "certdrop-status":
        shown = COLOURS.sub(b"", shown)
    if argv[0] == "certdrop-check":
        shown = FIRST_WORD.sub(rb"\1", shown)
    try:
        return acts(shown.replace(b"\r\n", b"\n").decode())
    except UnicodeDecodeError as error:
        return f"no UTF-8: {error}"


def strings(found: object) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        yield from strings(list(found) + list(found.values()))
    elif isinstance(found, list):
        for part in found:
            yield from strings(part)


class Ca(Liar):
    """A CA that talks."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.host = host
        evil = forger.Forger()
        evil.root = forger.authority("root " + CLEAN[:55])
        evil.intermediate = forger.authority(CLEAN[:60], evil.root)
        stage.write(self.roots, stage.read(self.roots) + forger.pem(evil.root[0]).decode())
        self.evil = evil
        self.says: Callable[[str, bytes, Said], Said] = lambda path, body, said: said
        honest, refusal = self.between.rewrite, self.between.refusal
        setattr(self.between, "refusal", lambda path, body: self.refuses(path) or refusal(path, body))
        self.between.rewrite = lambda path, body, said: self.says(path, body, honest(path, body, said))
        self.lie = lambda csr: evil.chain(csr, end=forger.now() + 60 * forger.DAY)
        self.configure()

    def refuses(self, path: str) -> Said | None:
        """What is said in place of having it done."""
        found: Said | None = getattr(self.says, "instead", lambda _: None)(path)
        return found

    def configure(self, **more: str) -> None:
        self.host.configure(directory=f'"https://{HOST}:{PORT}/dir"', trust_roots=f'"{self.roots}"', **more)
        for entry in os.listdir(f"{STATE}/issuer"):        # the CA's directory is asked for again
            if entry.startswith("account@"):
                os.unlink(f"{STATE}/issuer/{entry}")


@pytest.fixture
def ca(host: Host) -> Iterator[Ca]:
    found = Ca(host)
    yield found
    found.between.close()


@pytest.fixture
def name(host: Host, ca: Ca) -> str:
    return host.waiting()


def problem(detail: str = EVIL, status: int = 403, at: str = "", kind: str = EVIL) -> Callable[[str, bytes, Said], Said]:
    """A CA that refuses what is asked for there, in its own words."""
    text = {"type": URN + kind, "detail": detail, "title": EVIL, "instance": EVIL, "identifier": {"type": EVIL, "value": EVIL},
            "subproblems": [{"type": EVIL, "detail": EVIL, "identifier": {"type": "dns", "value": EVIL}}]}
    answer = status, {"Link": HEADER, "Location": HEADER, "Retry-After": HEADER}, json.dumps(text).encode()

    def says(path: str, body: bytes, said: Said) -> Said:
        return said
    setattr(says, "instead", lambda path: answer if at in path else None)
    return says


def altered(at: str, **fields: object) -> Callable[[str, bytes, Said], Said]:
    """Fields of the JSON objects that are said there."""
    def says(path: str, body: bytes, said: Said) -> Said:
        if not re.search(at, path) or said[0] >= 300 or not said[2].startswith(b"{"):
            return said
        return said[0], said[1], json.dumps({**json.loads(said[2]), **fields}).encode()
    return says


def headers(at: str, **fields: str) -> Callable[[str, bytes, Said], Said]:
    return lambda path, body, said: (said[0], {**said[1], **fields}, said[2]) if at in path else said


META = {"termsOfService": EVIL, "website": EVIL, "caaIdentities": [EVIL], "profiles": {EVIL: EVIL, "x": EVIL}}
READERS = [["certdrop-status"], ["certdrop-status", "NAME"], ["certdrop-status", "--json"], ["certdrop-status", "--nagios"],
           ["certdrop-status", "--prometheus"], ["certdrop-issue", "--plan"], ["certdrop-check", "NAME"], ["certdrop-watch"]]
ORDER = ["certdrop-issue", "--force", "--no-install", "NAME"]
# what the CA says, where, and the programs that hear it
SAYINGS: dict[str, tuple[Callable[[str, bytes, Said], Said], list[list[str]]]] = {
    "a problem": (problem(at="order-plz"), [["certdrop", "renew", "--force", "NAME"], ORDER, ["certdrop-issue", "--dry-run", "NAME"], *READERS]),
    "a problem with the account": (problem(at="sign-me-up"), [["certdrop-account", "show"], ["certdrop-account", "register"], ["certdrop-account", "contact"],
                                                              ["certdrop-account", "rollover"], ORDER]),
    "a problem at the end": (problem(at="my-account"), [["certdrop-account", "deactivate"], ["certdrop-account", "show"]]),
    "a problem in place of a directory": (problem(at="/dir"), [ORDER, ["certdrop-account", "terms"], ["certdrop-check", "NAME"]]),
    "no problem document": (lambda path, body, said: (500, {}, CLEAN.encode()) if "order" in path else said, [ORDER]),
    "a directory's own words": (altered("^/dir", meta=META), [["certdrop-account", "register"], ["certdrop-account", "terms"], ["certdrop-account", "show"],
                                                              ["certdrop-check", "NAME"], ["certdrop", "add", "more.NAME"]]),
    "a directory's URLs": (altered("^/dir", newOrder=f"https://{HOST}:{PORT}/" + EVIL, newNonce=EVIL, revokeCert=EVIL), [ORDER, ["certdrop-account", "show"]]),
    "an account": (altered("my-account|sign-me-up", status=EVIL, contact=[EVIL], orders=EVIL, initialIp=EVIL), [["certdrop-account", "show"]]),
    "an account's URL": (headers("sign-me-up", Location=f"https://{HEADER}/1"), [["certdrop-account", "register"], ORDER]),
    "a nonce": (lambda path, body, said: (said[0], {**said[1], "Replay-Nonce": HEADER}, said[2]), [ORDER]),
    "a time to wait": (lambda path, body, said: (429, {"Retry-After": HEADER}, json.dumps({"type": URN + "rateLimited", "detail": EVIL}).encode())
                       if "order-plz" in path else said, [ORDER, ["certdrop-issue", "--plan"]]),
    "an order": (altered("order-plz", status=EVIL, finalize=EVIL, authorizations=[EVIL]), [ORDER]),
    "an order's error": (altered("my-order|finalize", status="invalid", error={"type": EVIL, "detail": EVIL}), [ORDER]),
    "an order's state": (altered("my-order|finalize", status=EVIL, certificate=EVIL), [ORDER]),
    "an authorization": (altered("authZ", status="invalid", challenges=[{"type": EVIL, "status": EVIL, "error": {"type": EVIL, "detail": EVIL}}]), [ORDER]),
    "an authorization's name": (altered("authZ", identifier={"type": "dns", "value": EVIL}), [ORDER]),
    "an authorization's state": (altered("authZ", status=EVIL), [ORDER]),
    "a token": (altered("authZ", status="pending", challenges=[{"type": "http-01", "status": "pending", "token": EVIL, "url": EVIL}]), [ORDER]),
    "no certificate": (lambda path, body, said: (200, {}, CLEAN.encode()) if "certZ" in path else said, [ORDER, ["certdrop-issue", "--dry-run", "NAME"]]),
    "a certificate's names": (lambda path, body, said: said, [["certdrop-issue", "--dry-run", "NAME"], ["certdrop", "renew", "--force", "NAME"],
                                                              ["certdrop-install"], *READERS]),
    "a certificate's other chains": (headers("certZ", Link=f'<{HEADER}>;rel="alternate"'), [ORDER]),
}


def hear(host: Host, ca: Ca, name: str, what: str) -> Iterator[tuple[list[str], bytes]]:
    """(program, what it showed) of all that hear a saying."""
    says, programs = SAYINGS[what]
    ca.configure(**({"profile": '"nosuch"'} if what == "a directory's own words" else {}), **({"preferred_chain": '"x"'} if "other chains" in what else {}))
    ca.says = says
    try:
        for argv in programs:
            argv = [word.replace("NAME", name) for word in argv]
            if argv == ["certdrop-watch"]:
                for entry in os.listdir(f"{STATE}/watcher"):
                    os.unlink(f"{STATE}/watcher/{entry}")
            yield argv, at_a_terminal(argv, "n\n" if argv[1:2] == ["register"] else "y\n")
    finally:
        ca.says = lambda path, body, said: said


def test_as_installed(host: Host, ca: Ca, name: str) -> None:
    """Every saying, every program that hears it; then what is kept."""
    seen: dict[str, list[str]] = {}
    for what in SAYINGS:
        for argv, shown in hear(host, ca, name, what):
            assert not offences(argv, shown), (what, argv, offences(argv, shown), shown)
            assert b"Traceback" not in shown and b"internal error" not in shown, (what, argv, shown)
            if "--json" in argv:
                assert not [one for one in strings(json.loads(shown)) if acts(one)], shown
            seen.setdefault(" ".join(argv[:2]).replace(name, "NAME"), []).extend([what] if MARK.encode() in shown else [])
    deaf = [argv for argv, heard in seen.items() if not heard]
    assert set(deaf) <= {"certdrop-status --prometheus", "certdrop-install", "certdrop-watch"}, deaf         # the last says it in its mail
    for log in os.listdir(LOGS):
        text = pathlib.Path(LOGS, log).read_bytes()
        assert not acts(text.decode("ascii")), log
        assert not [one for line in text.splitlines() for one in strings(json.loads(line)) if acts(one)], log
    assert MARK in stage.read(f"{LOGS}/issuer.log")
    for entry in os.listdir(f"{STATE}/issuer"):
        text = pathlib.Path(STATE, "issuer", entry).read_bytes()
        assert not acts(text.decode("ascii")), entry


def test_mail(host: Host, ca: Ca, name: str) -> None:
    """By the watcher, of a site whose order the CA has refused for hours: every byte of it, and what it decodes to."""
    for entry in os.listdir(f"{STATE}/watcher"):
        os.unlink(f"{STATE}/watcher/{entry}")
    host.world.mail.clear()
    ca.says = problem(at="order-plz")
    at_a_terminal([*ORDER[:-1], name])
    with open(f"{STATE}/issuer/{name}.json", "r+") as stream:
        found = {**json.load(stream), "count": 4, "since": int(time.time()) - 9000}
        stream.seek(0)
        stream.truncate()
        json.dump(found, stream)
    shown = at_a_terminal(["certdrop-watch"])
    assert not offences(["certdrop-watch"], shown) and name.encode() in shown, shown
    mail, = host.world.mail.messages()
    assert MARK in mail.body and name in mail.body
    assert not acts(mail.text.decode("ascii").replace("\r\n", "\n")) and not acts(mail.body) and not acts(mail.subject), mail.text


@contextlib.contextmanager
def without(*walls: str) -> Iterator[None]:
    """The installed package with a cleaning that cleans nothing."""
    kept = {}
    for path, first, put in (("events.py", 'def clean(text: object, limit: int = LIMIT) -> str:\n', "    return str(text)[:limit * 2]\n"),
                             ("words.py", 'def clean(text: str) -> str:\n', "    return text\n")):
        if path in walls:
            kept[path] = stage.read(f"{LIBRARY}/{path}")
            assert first in kept[path]
            stage.write(f"{LIBRARY}/{path}", kept[path].replace(first, first + put, 1))
    try:
        yield
    finally:
        for path, text in kept.items():
            stage.write(f"{LIBRARY}/{path}", text)


# the programs that show some of it
REACHED = {"certdrop add", "certdrop renew", *(f"certdrop-account {verb}" for verb in ("contact", "deactivate", "register", "rollover", "show", "terms")),
           "certdrop-check NAME", *(f"certdrop-issue {option}" for option in ("--dry-run", "--force", "--plan")),
           *(f"certdrop-status{option}" for option in ("", " --nagios", " NAME"))}
LOUD = ("a problem", "a problem with the account", "a problem at the end", "a problem in place of a directory", "a directory's own words")


def programs_that_offend(host: Host, ca: Ca, name: str) -> dict[str, bool]:
    """Of each program that a CA's words reach, whether it showed any that a terminal acts on."""
    found: dict[str, bool] = {}
    for what in LOUD:
        for argv, shown in hear(host, ca, name, what):
            if MARK.encode() in shown and "--json" not in argv:            # which escapes by itself
                key = " ".join(argv[:2]).replace(name, "NAME")
                found[key] = found.get(key, False) or bool(offences(argv, shown).replace("a forged line", ""))
    return found


def test_words_alone(host: Host, ca: Ca, name: str) -> None:
    """With nothing cleaned where it comes in, each program's last wall holds."""
    with without("events.py"):
        found = programs_that_offend(host, ca, name)
    assert set(found) == REACHED and not any(found.values()), (REACHED ^ set(found), [key for key, value in found.items() if value])


def test_this_test_would_see_it(host: Host, ca: Ca, name: str) -> None:
    """With words.py broken as well, every one of them shows what it must not: each rests on it, and the test looks at it."""
    with without("events.py", "words.py"):
        found = programs_that_offend(host, ca, name)
    assert set(found) == REACHED and all(found.values()), (REACHED ^ set(found), [key for key, value in found.items() if not value])


def test_a_question(host: Host, ca: Ca) -> None:
    """The terms of service of a CA at which there is no account, shown before a person is asked for agreement."""
    host.run("certdrop-account", "deactivate", "--yes")
    ca.says = altered("^/dir", meta={"termsOfService": EVIL})
    ca.configure()
    shown = at_a_terminal(["certdrop-account", "register"], "n\n")
    assert MARK.encode() in shown and b"[y/N]" in shown and not offences(["certdrop-account"], shown), shown


def test_by_cron(host: Host, ca: Ca, name: str) -> None:
    """Where no terminal is, and a mail of cron's carries the words."""
    ca.says = problem(at="order-plz")
    for argv in (["certdrop-issue", "--verbose", "--force", "--no-install", name], ["certdrop-status", name]):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, user="_certdrop",
                              group="_certdrop", extra_groups=[])
        assert MARK.encode() in done.stdout and not offences(argv, done.stdout) and b"\x1b" not in done.stdout, done.stdout


def test_revocation(host: Host, ca: Ca, name: str) -> None:
    """What the CA says to one is kept by root's site, and shown by status, page and mail."""
    host.run("certdrop", "renew", "--force", name, code=0)
    ca.says = problem(at="revoke")
    for argv in (["certdrop", "revoke", name, "--yes", "--reason", "superseded"], ["certdrop-status"], ["certdrop-status", name], ["certdrop-issue", "--plan"]):
        shown = at_a_terminal(argv)
        assert not offences(argv, shown) and (MARK.encode() in shown or argv[-1] == "--plan"), (argv, shown)
    assert MARK in stage.read(f"{STATE}/issuer/revocations.json") and not acts(stage.read(f"{STATE}/issuer/revocations.json"))

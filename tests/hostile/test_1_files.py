"""Attacks 1 to 20: what stands in replies/ in place of a reply."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from typing import Callable

import pytest
import witness
from conftest import OTHER, PLAYGROUND, REPLIES, SECRETS, VICTIM, Ground, stage


def lists_replies(seen: witness.Witness) -> bool:
    """Whether anybody but the tests read the directory replies/."""
    return any(path == REPLIES and mask & witness.ACCESS and mask & witness.ON_DIRECTORY for path, mask in seen.seen)


def refuses(ground: Ground, deed: Callable[[], object], *reasons: str, other: bool = True) -> None:
    """Do this in place of a reply: root's run refuses it for that reason, once, ends with 65, says nothing, and touches nothing."""
    with ground.stands(other) as seen:
        ground.act(deed)
        before = ground.listing()
        done = ground.install()
        assert (done.code, done.text) == (os.EX_DATAERR, "")
        assert ground.reason() in reasons and ground.events() == [ground.reason()]
        assert ground.install().code == os.EX_DATAERR and len(ground.events()) == 1, "a refusal is said once"
        assert ground.listing() == before, "root changed something in replies/"
        assert not lists_replies(seen)


@pytest.fixture
def secret(ground: Ground) -> str:
    """Root's own file. It holds a good reply, so that whoever reads it installs it."""
    path = f"{SECRETS}/good.pem"
    with open(path, "wb") as stream:
        stream.write(ground.good(VICTIM))
    return path


def test_01_a_link_to_a_secret(ground: Ground, secret: str) -> None:
    """Goal: have root read root's own file through a link."""
    refuses(ground, lambda: os.symlink(secret, ground.entry(VICTIM)), "kind")


def test_02_links_that_lead_round(ground: Ground, secret: str) -> None:
    """Goal: have root follow a link to a good reply of our own, through /proc, or in a circle without end."""
    mine = f"{PLAYGROUND}/mine.pem"
    ground.put(mine, ground.good(VICTIM))
    refuses(ground, lambda: os.symlink(mine, ground.entry(VICTIM)), "kind")
    for target in ("/proc/self/root" + secret, "/proc/1/root" + secret, ground.entry(VICTIM), "/dev/stdin", "/dev/zero", "/dev/tty"):
        ground.clear()
        ground.act(lambda: os.symlink(target, ground.entry(VICTIM)))
        assert ground.install(timeout=20).code == os.EX_DATAERR and ground.reason() == "kind"


def test_03_a_hard_link_to_somebody_elses_file(ground: Ground) -> None:
    """Goal: have root read a file that the attacker cannot, by giving it a second name. Today's kernels refuse that; older ones let it be."""
    path = "/var/spool/certdrop/roots-own.pem"
    with open(path, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(ground.good(VICTIM))
    try:
        with pytest.raises(AssertionError):
            ground.act(lambda: os.link(path, ground.entry(VICTIM)))            # fs.protected_hardlinks
        with ground.stands():
            os.link(path, ground.entry(VICTIM))
            assert ground.install().code == os.EX_DATAERR and ground.reason() == "owner"
    finally:
        os.unlink(path)


def test_04_a_file_with_two_names(ground: Ground) -> None:
    """Goal: change a reply through its other name after it was examined."""
    def deed() -> None:
        path = ground.entry(VICTIM)
        with open(path, "wb") as stream:
            stream.write(good)
        os.link(path, REPLIES + "/other-name")
    good = ground.good(VICTIM)
    refuses(ground, deed, "links")


def test_05_a_pipe(ground: Ground) -> None:
    """Goal: have root wait for a writer for ever."""
    refuses(ground, lambda: os.mkfifo(ground.entry(VICTIM)), "kind")


def test_06_a_pipe_with_a_writer(ground: Ground) -> None:
    """Goal: have root read without end from somebody who goes on writing."""
    path = ground.entry(VICTIM)
    ground.act(lambda: os.mkfifo(path))

    def write() -> None:
        fd = os.open(path, os.O_RDWR)
        while True:
            os.write(fd, b"-----BEGIN CERTIFICATE-----\n")
    with ground.stands():
        with ground.attacker(write):
            assert ground.install().code == os.EX_DATAERR
        assert ground.reason() == "kind"


def test_07_a_socket(ground: Ground) -> None:
    """Goal: confuse root with a socket that somebody listens at."""
    def deed() -> None:
        with socket.socket(socket.AF_UNIX) as made:
            os.chdir(REPLIES)
            made.bind(os.path.basename(path))
            made.listen()
    path = ground.entry(VICTIM)
    refuses(ground, deed, "kind")


def test_08_a_device(ground: Ground) -> None:
    """Goal: have root open a device. The attacker cannot make one, so root's own is renamed there, as a mistaken administrator would."""
    with pytest.raises(AssertionError):
        ground.act(lambda: os.mknod(ground.entry(VICTIM), 0o20644, os.makedev(1, 5)))
    with ground.stands():
        os.mknod(ground.entry(VICTIM), 0o20644, os.makedev(1, 5))       # /dev/zero
        assert ground.install(timeout=20).code == os.EX_DATAERR
        assert ground.reason() == "kind"


def test_09_a_directory(ground: Ground) -> None:
    """Goal: confuse root with a directory, full of files of good names."""
    def deed() -> None:
        os.mkdir(ground.entry(VICTIM))
        for number in range(100):
            with open(f"{ground.entry(VICTIM)}/{number}", "wb"):
                pass
    refuses(ground, deed, "kind")


def test_10_a_lease(ground: Ground) -> None:
    """Goal: hold root up with a lease, which makes an open wait until the holder gives in (45 s by default)."""
    path = ground.entry(VICTIM)
    ground.reply(VICTIM)

    def hold() -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fd = os.open(path, os.O_RDWR)
        for _ in range(100):
            try:
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                break
            except BlockingIOError:            # whoever wrote the reply has not quite closed it
                time.sleep(0.03)
        with open(PLAYGROUND + "/held", "wb"):
            pass
        time.sleep(60)
    with ground.stands():
        with ground.attacker(hold):
            stage.wait_for(lambda: os.path.exists(PLAYGROUND + "/held"), 5, "the lease")
            begin = time.monotonic()
            assert ground.install().code == os.EX_DATAERR
            assert time.monotonic() - begin < 20
        assert ground.reason() == "busy"


def test_11_a_huge_file(ground: Ground) -> None:
    """Goal: have root read 10 GB into memory."""
    def deed() -> None:
        with open(ground.entry(VICTIM), "wb") as stream:
            stream.truncate(10 << 30)
    refuses(ground, deed, "size")


def test_12_just_too_long(ground: Ground) -> None:
    """Goal: pass the limit by one byte, with a chain that would be good."""
    good = ground.good(VICTIM)
    whole = good + b"\n" * (65537 - len(good))

    def deed() -> None:
        with open(ground.entry(VICTIM), "wb") as stream:
            stream.write(whole)
    refuses(ground, deed, "size")


def test_13_a_file_that_grows(ground: Ground) -> None:
    """Goal: let root's examination see a small file, and its read an endless one."""
    path = ground.entry(VICTIM)

    def grow() -> None:
        with open(path, "wb", buffering=0) as stream:
            for _ in range(400):
                stream.write(b"A" * 65536)
    with ground.stands():
        with ground.attacker(grow):
            for _ in range(4):
                assert ground.install(timeout=30).code in (os.EX_DATAERR, 0)
        assert set(ground.events()) <= {"size", "grammar"}


def test_14_a_file_that_anybody_may_write(ground: Ground) -> None:
    """Goal: have a reply taken that others can change."""
    good = ground.good(VICTIM)

    def deed() -> None:
        with open(ground.entry(VICTIM), "wb") as stream:
            os.fchmod(stream.fileno(), 0o666)
            stream.write(good)
    refuses(ground, deed, "mode")


def test_15_somebody_elses_file(ground: Ground) -> None:
    """Goal: have a file taken that the issuer did not write: here one that root put there, which nobody else can."""
    good = ground.good(VICTIM)
    with ground.stands():
        with open(ground.entry(VICTIM), "wb") as stream:
            stream.write(good)
        assert ground.install().code == os.EX_DATAERR
        assert ground.reason() == "owner"


def test_16_a_file_that_cannot_be_read(ground: Ground) -> None:
    """Goal: confuse root by modes: a reply without any is still read, by its descriptor, and is good."""
    with ground.stands(recovers=True):
        ground.put(ground.entry(VICTIM), b"x", 0o000)
        assert ground.install().code == os.EX_DATAERR
        assert ground.reason() == "grammar"


def test_17_a_racing_link(ground: Ground, secret: str) -> None:
    """Goal: let root's examination see a file and its open a link to a secret, by swapping them thousands of times during three dozen runs."""
    path = ground.entry(VICTIM)
    count = f"{PLAYGROUND}/count"

    def swap() -> None:
        for number in range(100):
            with open(f"{REPLIES}/.a", "wb") as stream:
                stream.write(b"x")
            os.rename(f"{REPLIES}/.a", path)
            os.symlink(secret, f"{REPLIES}/.b")
            os.rename(f"{REPLIES}/.b", path)
        with open(count, "ab") as stream:
            stream.write(b"x" * 100)
    with ground.stands():
        with ground.attacker(swap):
            stage.wait_for(lambda: os.path.exists(count), 5, "the race")
            for _ in range(36):
                assert ground.install(timeout=30).code == os.EX_DATAERR
                ground.an_hour_passes()
        assert set(ground.events()) <= {"kind", "grammar", "size", "links"} and os.stat(count).st_size >= 2000
        assert {"kind", "grammar"} <= set(ground.events()), "the race was never tight"


def test_18_a_racing_pipe(ground: Ground) -> None:
    """Goal: let root's examination see a good file, and its read a pipe that nobody writes to."""
    path = ground.entry(VICTIM)

    def swap() -> None:
        with open(f"{REPLIES}/.a", "wb") as stream:
            stream.write(b"x")
        os.rename(f"{REPLIES}/.a", path)
        os.mkfifo(f"{REPLIES}/.b")
        os.rename(f"{REPLIES}/.b", path)
    with ground.stands():
        with ground.attacker(swap):
            for _ in range(12):
                assert ground.install(timeout=20).code in (0, os.EX_DATAERR)
                ground.an_hour_passes()
        assert set(ground.events()) <= {"kind", "grammar", "links"}


def test_19_a_hundred_thousand_files(ground: Ground) -> None:
    """Goal: make root slow by filling replies/ with names."""
    def deed() -> None:
        os.chdir(REPLIES)
        for number in range(100000):
            os.close(os.open(f"{number}@0001.pem", os.O_WRONLY | os.O_CREAT, 0o640))
    ground.act(deed)
    with ground.stands() as seen:
        begin = time.monotonic()
        ground.install(code=0)
        assert time.monotonic() - begin < 10
        assert not lists_replies(seen)


@pytest.mark.parametrize("names", [
    ["..", ".", "a\nb@0001.pem", "-rf@0001.pem", "$(id)@0001.pem", "`id`@0001.pem", "; id@0001.pem", "%s%s%n@0001.pem", "\x1b[2J@0001.pem", "ä@0001.pem",
     f"{VICTIM}@0001.pem", f"{VICTIM}@9999.pem", f"{VICTIM}@000000009.pem", f"{VICTIM}@-001.pem", f"{VICTIM}@0001.csr", "x" * 255]])
def test_20_odd_names(ground: Ground, names: list[str]) -> None:
    """Goal: have root take a name from us: a path, an option, a command, another number, an escape sequence."""
    good = ground.good(VICTIM)

    def deed() -> None:
        os.chdir(REPLIES)
        for name in names:
            with contextlib.suppress(OSError):
                with open(name, "wb") as stream:
                    stream.write(good)
        os.makedirs("etc/passwd@0001.pem")
    with ground.stands() as seen:
        ground.act(deed)
        done = ground.install(code=0)
        assert done.text == "" and not lists_replies(seen)
        opened = {os.path.basename(path) for path in seen.paths(witness.OPEN) if path.startswith(REPLIES + "/")}
        assert opened <= {os.path.basename(ground.entry(OTHER)).replace(f"{ground.next(OTHER):04d}", f"{ground.live(OTHER):04d}"), *names}

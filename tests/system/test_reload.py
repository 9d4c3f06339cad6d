"""A reload that fails, is missing, or hangs: the words say so, how long it was waited for, and, at a terminal, what is waited for while it is."""

from __future__ import annotations

import os
import pathlib
import pty
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import Host, stage

SYSTEMD = pathlib.Path("/run/systemd/system")
SYSTEMCTL = pathlib.Path("/usr/bin/systemctl")


@pytest.fixture
def systemd() -> Iterator[None]:
    """A host that looks as if systemd ran: reloads go through systemctl."""
    kept, there = SYSTEMCTL.read_bytes() if SYSTEMCTL.exists() else b"", SYSTEMD.exists()
    SYSTEMD.mkdir(parents=True, exist_ok=True)
    yield
    if not there:
        SYSTEMD.rmdir()
    SYSTEMCTL.unlink(missing_ok=True)
    if kept:
        SYSTEMCTL.write_bytes(kept)
        SYSTEMCTL.chmod(0o755)


@pytest.mark.parametrize("systemctl, words", [
    (None, "nginx did not reload (/usr/bin/systemctl: No such file or directory)"),
    ("#!/bin/sh\necho 'Failed to reload nginx.service: Unit nginx.service is masked.' >&2\nexit 1\n", "Unit nginx.service is masked"),
])
def test_a_reload_that_fails(host: Host, systemd: None, systemctl: str | None, words: str) -> None:
    """Nothing is said to have been reloaded; the reason stands where the success would; the certificate before is still served, and matches its key."""
    SYSTEMD.rmdir()
    name = host.add(host.name())
    SYSTEMD.mkdir()
    before = host.served(name)
    SYSTEMCTL.unlink(missing_ok=True)
    if systemctl:
        stage.write(str(SYSTEMCTL), systemctl, 0o755)
    done = host.run("certdrop", "rotate", name, code=os.EX_TEMPFAIL)
    assert words in done.text and "nginx reloaded" not in done.text, done
    assert host.served(name) == before and host.pair_matches(name)


def test_a_reload_that_hangs(host: Host, systemd: None) -> None:
    """It is waited for once, for a minute, not at each step; at a terminal that is told while it is so, and the last line has the command and the minute."""
    SYSTEMD.rmdir()
    name = host.add(host.name())
    SYSTEMD.mkdir()
    SYSTEMCTL.unlink(missing_ok=True)
    stage.write(str(SYSTEMCTL), "#!/bin/sh\nexec sleep 1000\n", 0o755)
    host.run("certdrop-issue", "--no-install", "--force", name, user="_certdrop", code=0)
    begin = time.monotonic()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(["/usr/sbin/certdrop-install"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    text, told = "", 0.0
    while True:
        try:
            text += os.read(ours, 4096).decode()
        except OSError:
            break
        told = told or (time.monotonic() - begin if "waiting for /usr/bin/systemctl reload nginx.service, 60 s at most" in text else 0.0)
    os.close(ours)
    assert process.wait() == os.EX_TEMPFAIL and 0 < told < 30, text
    assert time.monotonic() - begin < 100, text
    assert re.search(r"nginx did not reload \(/usr/bin/systemctl reload nginx.service did not end within 60 s", text) and "nginx reloaded" not in text, text

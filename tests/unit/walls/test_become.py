"""What another user's program gets of root: as far as that can be seen without being root."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from certdrop.walls import become

SPY = """
import json, os, sys
found = []
for fd in range(64):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    tty = True
except OSError:
    tty = False
print(json.dumps([found, dict(os.environ), os.getsid(0) == os.getpid(), tty, sys.stdin.read(), os.getcwd()]))
"""


def run(program: str, capfd: pytest.CaptureFixture[str], **more: object) -> tuple[int, str, str]:
    code = become.run("", [sys.executable, "-I", "-c", program], 10.0, **more)     # type: ignore[arg-type]
    return (code, *capfd.readouterr())


def test_what_it_gets(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three descriptors, none of them ours; a session of its own; no word of our environment that is not harmless."""
    monkeypatch.setenv("DEPLOY_SECRET", "hunter2")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "hunter2")
    extra = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(extra, True)
    code, out, _ = run(SPY, capfd)
    os.close(extra)
    found, environment, leads, tty, read, place = json.loads(out)
    assert (code, found, leads, tty, read, place) == (0, [0, 1, 2], True, False, "", "/")
    assert environment == {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/", "TERM": "xterm-256color", "NO_COLOR": "1",
                           "CERTDROP_TERMINAL": "", **({"LC_CTYPE": "C.UTF-8"} if "LC_CTYPE" in environment else {})}


@pytest.mark.parametrize("term", ["x\x1b]0;x", "a b", "/etc/passwd", "x" * 41, "$(id)"])
def test_what_is_no_terminals_name(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """Is not handed on."""
    monkeypatch.setenv("TERM", term)
    assert "TERM" not in become.environment()


def test_what_is_handed_over(capfd: pytest.CaptureFixture[str]) -> None:
    """Is all that it can read; much of it, too."""
    code, out, _ = run("import sys; print(len(sys.stdin.read()))", capfd, seen=b"x" * 300000)
    assert (code, out) == (0, "300000\n")
    assert run("import os; os._exit(3)", capfd, seen=b"x" * 300000)[0] == 3


def test_what_it_says_is_cleaned(capfd: pytest.CaptureFixture[str]) -> None:
    """On both streams."""
    code, out, error = run("import os; os.write(1, b'\\x1b]0;x\\x07\\n'); os.write(2, b'\\x9b\\xc2\\x9b\\xe2\\x80\\xae'); os.kill(os.getpid(), 9)", capfd)
    assert (code, out, error) == (-9, "?]0;x?\n", "\N{REPLACEMENT CHARACTER}??")


def test_it_does_not_end(capfd: pytest.CaptureFixture[str]) -> None:
    """It is killed, with all that did not leave its session."""
    begin = time.monotonic()
    with pytest.raises(become.Stopped):
        become.run("", [sys.executable, "-I", "-c", "import signal, os\nsignal.signal(15, signal.SIG_IGN)\nos.close(1); os.close(2)\nsignal.pause()"], 0.5)
    with pytest.raises(become.Stopped):
        become.run("", [sys.executable, "-I", "-c", "import signal, os\nos.fork()\nwhile True: os.write(1, b'x\\n')"], 0.5)
    assert time.monotonic() - begin < 10

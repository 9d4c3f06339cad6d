"""How a program starts: what it cannot load is a line and a code, and silence where dpkg is at work and nobody looks on."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest

from certdrop import start

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = sorted(path.name for path in (ROOT / "bin").iterdir())
# A module that is not there, as in the minutes in which apt replaces it.
LACKING = "import sys\nsys.modules[{module!r}] = None\n"


def began(program: str, lacking: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A program of bin/ from this tree, without one module."""
    source = (ROOT / "bin" / program).read_text().replace("/usr/share/certdrop", str(ROOT / "lib"))
    return subprocess.run([sys.executable, "-IS", "-c", LACKING.format(module=lacking) + source, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, text=True, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_cannot_be_loaded_is_told_in_a_line(program, tmp_path):
    """No traceback, and a code that says: later."""
    done = began(program, "certdrop.spool", "--version")
    quiet = start.dpkg_is_at_work()
    assert done.returncode == os.EX_TEMPFAIL and "Traceback" not in done.stdout and "internal error" not in done.stdout, done
    assert quiet or done.stdout.startswith(f"{program}: ") and done.stdout.count("\n") == 1 and "the next run tries again" in done.stdout


def test_dpkg_at_work(tmp_path, monkeypatch):
    """Seen by when it changed something; not by a moment that is still to come, or past."""
    monkeypatch.setattr(start, "DPKG", (str(tmp_path / "none"), str(tmp_path / "status")))
    assert not start.dpkg_is_at_work()
    (tmp_path / "status").write_text("")
    assert start.dpkg_is_at_work()
    for moment in (time.time() - 1000, time.time() + 1000):
        os.utime(tmp_path / "status", (moment, moment))
        assert not start.dpkg_is_at_work()


def test_silence_while_dpkg_is_at_work(tmp_path, monkeypatch, capsys):
    """Cron mails what is said; the next run tries again."""
    monkeypatch.setattr(start, "DPKG", (str(tmp_path),))
    assert start.incomplete("certdrop-x", ImportError("No module named 'ctypes'")) == os.EX_TEMPFAIL and capsys.readouterr().err == ""
    monkeypatch.setattr(start, "DPKG", ())
    start.incomplete("certdrop-x", ImportError("No module named 'ctypes'"))
    assert capsys.readouterr().err.startswith("certdrop-x: No module named 'ctypes'; nothing was done")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_what_a_library_keeps_open_is_no_standard_output(tmp_path, closed):
    """Where 0, 1 or 2 are closed, they lead to /dev/null before anything is loaded (libffi 3.5 keeps its own file open, for one)."""
    (tmp_path / "keeps.py").write_text("import os\nkept = os.open('/etc/hosts', os.O_RDONLY)\ndef main(argv):\n    print('words')\n    return kept\n")
    code = f"import os, sys\n[os.close(fd) for fd in {closed!r}]\nsys.path[:0] = [{str(ROOT / 'lib')!r}, {str(tmp_path)!r}]\n" \
        "from certdrop.start import run\nrun('keeps', 'keeps')"
    done = subprocess.run([sys.executable, "-IS", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode > 2 and done.returncode != os.EX_IOERR


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_what_is_closed_can_be_used(tmp_path, closed):
    """Where 0, 1 or 2 are closed, Python has None for them: a program that flushes one must not end by that."""
    (tmp_path / "uses.py").write_text("import sys\ndef main(argv):\n    sys.stdout.flush()\n    sys.stderr.write('x')\n    return len(sys.stdin.read()) + 7\n")
    code = f"import sys\nsys.path[:0] = [{str(ROOT / 'lib')!r}, {str(tmp_path)!r}]\nfrom certdrop.start import run\nrun('x', 'uses', quick=True)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False,
                          preexec_fn=lambda: [os.close(fd) for fd in closed])
    assert done.returncode == 7

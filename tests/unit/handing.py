"""The process that reads replies for root, as whoever runs the tests: our own code of it, with what a test changes."""

from __future__ import annotations

import os
import pathlib
import subprocess
from typing import Any

import pytest

from certdrop import spool
from certdrop.config import site
from certdrop.keeper import reader
from certdrop.walls import become

POPEN = subprocess.Popen
HANDOVER = """
import os, signal, sys, time
sys.path.insert(0, {lib!r})
from certdrop import foreign, spool
from certdrop.issuer import answers, handover
from certdrop.walls import jail
os.getuid = lambda found=os.getuid(): found or 4711            # whoever runs these tests
spool.SPOOL = {place!r}
jail.landlock = lambda **_: 0
read, answer = foreign.read, answers.answer
foreign.read = lambda fd, entry, owner: read(fd, entry, {uid})
{change}
handover.main()
"""


def change(monkeypatch: pytest.MonkeyPatch, how: str = "") -> None:
    """Have those that read for root be this user, and do otherwise, from now on. Where state and spool are is told before."""
    before = len(become.as_user(0, 0))

    def as_ours(argv: list[str], **more: Any) -> "subprocess.Popen[bytes]":
        return POPEN(argv[before:] if argv[0].endswith("/setpriv") else argv, **more)
    program = pathlib.Path(site.STATE, "handover.py")
    program.write_text(HANDOVER.format(lib=str(pathlib.Path(spool.__file__).parents[1]), place=spool.SPOOL, uid=os.getuid(), change=how))
    monkeypatch.setattr(reader, "PROGRAM", str(program))
    monkeypatch.setattr(subprocess, "Popen", as_ours)

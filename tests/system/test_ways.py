"""What the reader of nginx's configuration says is what nginx does: configurations made at random (tests/ways), asked of both. `make fuzz` asks more."""

from __future__ import annotations

import pathlib
import subprocess
import sys

COMPARE = pathlib.Path(__file__).resolve().parents[1] / "ways" / "compare.py"
SECONDS, MOST = 60, 300               # as long as that many configurations take, mostly half of it


def test_the_reader_says_what_nginx_does() -> None:
    """It never says that nothing is in the way of a token that does not come, nor that something is of one that comes; seldom that it cannot tell.
    What it advises helps."""
    command = [sys.executable, str(COMPARE), str(SECONDS), "stage", str(MOST)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0 and " 0 false fine, 0 false alarms" in done.stdout and "; 0 pieces of advice" in done.stdout, done.stdout

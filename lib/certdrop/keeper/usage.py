"""What `certdrop-install` answers to words: it takes none. Neither cron nor sudo comes here: the one has no words for it, and of the other's rule none pass.

Runs as: whoever types them. Trusts, reads: nothing. Writes: standard output and error.
"""

from __future__ import annotations

import os

from certdrop import VERSION, words

HELP = "usage: certdrop-install   (no arguments: takes what the spool holds, judges, installs, reloads; see certdrop-install(8))\n"


def answer(argv: list[str]) -> int:
    """Help, the version, or that there is no such word. Returns a code of sysexits.h."""
    if argv in (["--help"], ["-h"]):
        print(HELP, end="")
    elif argv == ["--version"]:
        print(f"certdrop-install {VERSION}")
    else:
        what = "no such option" if argv[0].startswith("-") else "certdrop-install takes no names"
        words.say(f"certdrop-install: {argv[0]!a:.80}: {what}; certdrop-install --help shows how")
        return os.EX_USAGE
    return os.EX_OK

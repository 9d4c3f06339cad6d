"""The pages of names before a change of nginx's configuration and after it: the same, or what differs, in words.

Root opens no connection: doctor/pages.py looks, as _certdrop-watch. Runs as: root, by hand. Trusts: that the other's words are JSON.
Reads: live/. Writes: nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from certdrop import events, spool
from certdrop.config import site
from certdrop.nginx.blocks import Refused
from certdrop.walls import become, users

LOOK = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "doctor", "pages.py")
PATIENCE = 300                     # seconds for all pages
MOST = 64 << 10                    # bytes that are said of a page
TICK = 1.1                         # seconds in which a page that shows the time is another
RELOADED = 15.0                    # seconds in which a reload shows

Asked = tuple[str, str, str]       # address, name, "http" or "https"


class Page(NamedTuple):
    """What was seen of a page."""

    status: int
    length: int
    content: str
    chain: tuple[str, ...]
    shown: str                     # the SHA-256 of the first certificate that was shown
    why: str

    def __str__(self) -> str:
        through = "".join(f" by way of {one}" for one in self.chain)
        return (f"{self.status}, {self.length} bytes" if self.status else f"no answer ({self.why})") + through


def fingerprint(name: str) -> str:
    """The SHA-256 of a site's live certificate, or placeholder."""
    with open(f"{site.STATE}/live/{name}/cert.pem", encoding="ascii") as stream:
        text = stream.read(spool.MAX_REPLY)
    return hashlib.sha256(base64.b64decode("".join(re.findall("-----BEGIN CERTIFICATE-----(.*?)-----END", text, re.S)[0].split()))).hexdigest()


def look(asked: Sequence[Asked]) -> list[Page]:
    """The pages, in order. Raises Refused where nobody can look."""
    if not asked:
        return []
    try:
        process = subprocess.Popen([*become.as_user(*users.user_ids("_certdrop-watch")), "/usr/bin/python3", "-IS", LOOK], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env=users.ENVIRONMENT, start_new_session=True)
        said = _said(process, json.dumps(asked).encode(), MOST * len(asked))
        found = [Page(int(one["status"]), int(one["length"]), str(one["sum"]), tuple(events.clean(word, 200) for word in one["chain"]),
                      str(one["shown"]), events.clean(one["why"], 100)) for one in json.loads(said)]
        if len(found) != len(asked):
            raise ValueError("not an answer for each")
        return found
    except (KeyError, OSError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{asked[0][1]}: its page could not be looked at: {events.clean(error, 200)}") from error


def _said(process: subprocess.Popen[bytes], asked: bytes, most: int) -> bytes:
    """What it answers, in time and no more than so many bytes: it is killed then. Raises OSError."""
    assert process.stdin and process.stdout
    late = threading.Timer(PATIENCE, process.kill)
    late.start()
    try:
        process.stdin.write(asked)
        process.stdin.close()
        return process.stdout.read(most)
    finally:
        late.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def stable(asked: Sequence[Asked]) -> list[tuple[Page, Page]]:
    """Each page twice, before anything is changed: what differs between the two differs by itself. Raises Refused."""
    try:
        return [*zip(look(asked), look(asked))]
    except Refused as error:
        raise Refused(f"{error}; nothing was changed") from error


def differences(asked: Sequence[Asked], before: Sequence[tuple[Page, Page]], after: Sequence[Page], schemes: Sequence[str]) -> list[str]:
    """What is not as before, a line each. Raises Refused where nobody can look once more."""
    return [*apart(asked, before, after, schemes).values()]


def apart(asked: Sequence[Asked], before: Sequence[tuple[Page, Page]], after: Sequence[Page], schemes: Sequence[str]) -> dict[int, str]:
    """The same by its place in `asked`. Of equal length and another content, a page is looked at once more: one that changes by itself is no other."""
    now = [(address, name, to) for (address, name, _), to in zip(asked, schemes)]
    others = [at for at, ((first, second), page) in enumerate(zip(before, after)) if not _is_same(first, second, page)]
    unsure = [at for at in others if after[at]._replace(content="", shown="") == before[at][1]._replace(content="", shown="")]
    if unsure:
        time.sleep(TICK)
        again = dict(zip(unsure, look([now[at] for at in unsure])))
        others = [at for at in others if at not in again or again[at].content == after[at].content]
    return {at: f"{asked[at][1]} at {asked[at][0]}: before, {asked[at][2]}: {before[at][1]}; now, {schemes[at]}: {after[at]}"
            + ", of other content" * (at in unsure) for at in others}


def _is_same(first: Page, second: Page, now: Page) -> bool:
    """Whether a page is what it was: where the two of before differ it is made anew each time, and its length counts, if that was the same."""
    if (now.status, now.chain) != (second.status, second.chain):
        return False
    return now.content == second.content if first.content == second.content else now.length == second.length or first.length != second.length


def until_shown(asked: Sequence[Asked], certificates: set[str]) -> list[str]:
    """Wait until each shows one of these certificates (none: until there is an answer): those that do not, in words."""
    end, waiting = time.monotonic() + RELOADED, list(asked)
    while waiting:
        seen = look(waiting)
        bad = [(one, page) for one, page in zip(waiting, seen) if page.shown not in certificates]
        if not bad or time.monotonic() > end:
            return [f"{name} at {address}: {'another certificate is shown' if page.shown else page.why or 'no certificate is shown'}"
                    for (address, name, _), page in bad]
        waiting = [one for one, _ in bad]
        time.sleep(0.2)
    return []

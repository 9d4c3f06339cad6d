"""The agenda: when each site is to be looked at again. It makes the tick that finds nothing to do cheap, and is only a note.

One text line a site: its name, when to look, when an order is due, and posted.identity(), which is compared with what is on disk: a line
that does not fit, or none, has the site looked at. So does a clock that stepped back, a day, and another certdrop.toml. Runs as: _certdrop. Trusts: its own
directory, but no moment in it beyond its bounds. Reads and writes: issuer/agenda.
"""

from __future__ import annotations

import math
import os

from certdrop import foreign, spool
from certdrop.config import site
from certdrop.issuer import clock
from certdrop.issuer.posted import Request, identity, stamp

DAY = 86400.0
LONGEST = 16 << 20                 # bytes of the file: a hundred thousand sites


class Agenda:
    """What was noted, and by when."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.configured = stamp(site.ETC + "/certdrop.toml")
        self.lines: dict[str, tuple[float, float, str]] = {}
        try:
            fd = spool.open_directory(site.STATE + "/issuer")
            try:
                head, *listed = foreign.read(fd, "agenda", os.geteuid(), LONGEST).decode("ascii").splitlines()
            finally:
                os.close(fd)
            written, configured = head.split()
            for line in listed if configured == self.configured and spool.is_credible(float(written), clock.FRESH, now) else ():
                name, when, order_at, found = line.split()
                moments = float(when), float(order_at)
                if max(moments) <= now + DAY + spool.STEP:             # which neither an infinity is, nor what is no number
                    self.lines[name] = *moments, found
        except (OSError, spool.Refused, ValueError):
            self.lines = {}

    def when(self, request: Request) -> float:
        """When to look at the site: 0 where the note does not fit what is on disk."""
        when, _, noted = self.lines.get(request.name, (0.0, 0.0, ""))
        return when if noted == identity(request) else 0.0

    def order_at(self, request: Request) -> float:
        """When an order is due, as noted; a day ahead where nothing is."""
        return self.lines.get(request.name, (0.0, self.now + DAY, ""))[1]

    def note(self, request: Request, when: float, order_at: float) -> None:
        """Look at the site again then, unless something changes before."""
        self.lines[request.name] = min(when, self.now + DAY), min(order_at, self.now + DAY), identity(request)

    def save(self, listed: list[Request], now: float) -> None:
        """Write it, for these sites. Raises OSError."""
        known = []
        for request in listed:
            if request.name in self.lines:
                when, order_at, found = self.lines[request.name]
                known.append(f"{request.name} {math.ceil(when)} {math.ceil(order_at)} {found}\n")
        from certdrop.issuer import notes      # a run with nothing to do writes nothing
        notes.put("agenda", f"{int(now)} {self.configured}\n{''.join(known)}".encode("ascii"))

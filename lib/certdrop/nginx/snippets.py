"""Which snippet of ours has nginx answer challenges. Runs as: anyone. Trusts: root's files. Reads: whether one is there. Writes: nothing."""

from __future__ import annotations

import os

CHALLENGE = "/etc/nginx/snippets/certdrop-challenge.conf"
FLEET = "/etc/nginx/snippets/certdrop-fleet.conf"      # of a host in a fleet: it leads to the desks


def challenge() -> str:
    """The snippet for the server blocks of this host."""
    return FLEET if os.path.exists(FLEET) else CHALLENGE

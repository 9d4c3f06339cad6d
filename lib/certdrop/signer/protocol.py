"""What is asked of the signer, and how large that may be. Each question is one
message, each answer one:

    K                     the public keys: a line each, modulus and exponent in hexadecimal
    S ENTRY \\n INPUT      sign INPUT (policy.py), for this entry of requests/ where it is for one    -> the signature
    E URL                 bind the account to the customer at the CA, for newAccount's URL             -> a JWS, or nothing
    N                     make the other key, for a change of keys                                     -> the keys
    C URL \\n ACCOUNT      ask for that change of keys, with both keys                                  -> a JWS
    X                     the CA has the other key now                                                 -> the keys
    D                     the CA has deactivated the account                                           -> nothing

Answers begin with +; where it refuses, with -, and where it cannot (no room, no memory) with !, and the reason.
Runs as: _certdrop, at both ends of the socket. Trusts, reads, writes: nothing.
"""

from __future__ import annotations

from typing import Any

MOST = 64 * 1024                   # bytes of what is signed; the longest order of 100 names has 40 KiB
LONGEST = MOST + 1024              # bytes of a message
ROLL_OVER = "roll-over"            # what a signer may have been started for
DEACTIVATE = "deactivate"
FIND = "find"                      # the key that the CA holds, also the one before
HOSTS = ""                         # on a desk of a fleet: where root says whose requests are believed, and for which names (certdrop-fleet(8))
PAST = 128 * 1024                  # bytes of what other desks finalized before of a site
JOURNAL = 64 << 20                 # bytes of the journal that a desk's signer writes (fleet/proof.py)


def revocations(found: dict[str, Any]) -> list[dict[str, object]]:
    """What a request of root's to revoke lets be signed and sent, in this order: its payload; where that has no reason, it with each of `reasons`, for
    a CA that demands one (0 says what none does). Raises KeyError, TypeError where it is no such request."""
    payload = found["payload"]
    return [payload, *({**payload, "reason": reason} for reason in found.get("reasons", [0]) if "reason" not in payload)]

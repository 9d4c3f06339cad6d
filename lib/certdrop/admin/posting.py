"""Signs again what root has posted, for a host that joins a fleet: what was posted before has no signature, or that of another key.

Runs as: root, under the keeper's lock. Trusts: root's own files. Reads: requests/. Writes: requests/.
"""

from __future__ import annotations

import json

from certdrop import spool
from certdrop.keeper import lock, revoke, signing
from certdrop.keeper.run import Run


def sign_again() -> int:
    """Sign all of it; how many requests there are. Raises OSError, lock.Busy."""
    count = 0
    with lock.held():
        run = Run("certdrop-fleet", False, True)
        for name, posted in sorted(run.posted.items()):
            for number, kind in sorted(posted):
                entry = spool.entry(name, number, kind)
                with open(f"{spool.requests()}/{spool.entry(name, number, 'csr' if kind == 'now' else kind)}", "rb") as stream:
                    data = stream.read(spool.MAX_REPLY)
                if kind == "revoke":
                    revoke.put(run, name, number, json.loads(data), "fleet")
                else:
                    signature = signing.sign(name, number, kind, data)
                    where = spool.entry(name, number, "sig") if kind == "csr" else entry
                    spool.write(run.requests, where, signature, 0o640, run.group)
                count += kind != "now"
    return count

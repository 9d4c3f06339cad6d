"""Writes an account key that is taken over where the issuer looks for its own: the process that root starts as _certdrop for it.

`python3 -I -S .../importer/account.py ENTRY`, the key on standard input. A key that is there stays. Runs as: _certdrop; refuses to be
root, who writes nothing into directories of others. Trusts: root, who sends it. Writes: /var/lib/certdrop/account/ENTRY.key.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
    if os.getuid() == 0:
        sys.exit(os.EX_NOPERM)

from certdrop import spool  # noqa: E402
from certdrop.config import site  # noqa: E402


def main(entry: str, key: bytes) -> int:
    """Put it there whole or not at all. 0, or EX_CANTCREAT where there is one, EX_TEMPFAIL where that fails."""
    fd = spool.open_directory(site.STATE + "/account")
    try:
        if not key.startswith(b"-----BEGIN PRIVATE KEY-----\n"):
            return os.EX_DATAERR
        if f"{entry}.key" in os.listdir(fd):
            return os.EX_CANTCREAT
        spool.write(fd, entry + ".key", key, 0o600)
    except OSError:
        return os.EX_TEMPFAIL
    finally:
        os.close(fd)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.buffer.read()))

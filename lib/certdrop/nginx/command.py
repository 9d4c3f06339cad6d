"""certdrop-nginx: prints server blocks for sites (blocks.py), or puts them in place (write.py).

Runs as: anyone; root to write. Trusts: the configuration, and what `nginx -V` says. Reads: /etc/certdrop. Writes: standard output.
"""

from __future__ import annotations

import os
import sys
import traceback

from certdrop import VERSION
from certdrop.config import site
from certdrop.nginx.blocks import Absent, Refused, blocks, detect, load, same_domains

OPTIONS = ("--write", "--dry-run", "--no-issue")

HELP = """\
usage: certdrop-nginx NAME... [--write [--dry-run] [--no-issue]]

Prints nginx server blocks for these sites: port 80 with the challenge location before
the redirect, port 443 with the live certificate. Sites with the same domains (one with
ECDSA, one with RSA) share their blocks.

  --write     as root: write them to a new file in /etc/nginx, enable it, test nginx, reload
              it; then get the first certificate. A test that fails takes all of it back,
              and a file that is there is never changed
  --dry-run   only say what --write would do
  --no-issue  do not ask the CA afterwards

  certdrop-nginx example.org
  certdrop-nginx example.org --write

See certdrop-nginx(1).
"""


def main(argv: list[str]) -> int:
    """`certdrop-nginx`. Returns a code of sysexits.h."""
    try:
        return run(argv)
    except (site.Missing, Refused) as error:
        text, code = str(error), os.EX_DATAERR
    except site.Wrong as error:
        text, code = str(error), os.EX_CONFIG
    except Absent as error:
        text, code = str(error), os.EX_UNAVAILABLE
    except PermissionError as error:
        text, code = str(error), os.EX_NOPERM
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)      # else Python complains once more at its end
        return os.EX_OK
    except OSError as error:
        text, code = str(error), os.EX_TEMPFAIL
    except ImportError:
        raise                                             # said where it started
    except Exception as error:
        text, code = f"internal error: {error!r}; please report this\n{traceback.format_exc()}", os.EX_SOFTWARE
    print(f"certdrop-nginx: {text}", file=sys.stderr)
    return code


def run(argv: list[str]) -> int:
    """Check the words, then print. Raises site.Wrong, Absent and OSError."""
    if argv in (["--help"], ["-h"]):
        print(HELP, end="")
        return os.EX_OK
    if argv == ["--version"]:
        print(f"certdrop-nginx {VERSION}")
        return os.EX_OK
    names, options = [word for word in argv if not word.startswith("-")], {word for word in argv if word.startswith("-")}
    wrong = sorted(options.difference(OPTIONS))
    if wrong or not names or (options and "--write" not in options):
        text = f"{wrong[0]!a:.80}: no such option" if wrong else \
            f"{min(options)} goes with --write" if names else "which site? give its name (certdrop-status lists them)"
        print(f"certdrop-nginx: {text}; certdrop-nginx --help shows how", file=sys.stderr)
        return os.EX_USAGE
    if "--write" in options and os.geteuid() != 0:
        raise PermissionError("--write must be run as root; try sudo (without it the blocks are printed)")
    sites = [load(name) for name in dict.fromkeys(names)]
    build, groups = detect(), same_domains(sites)
    if "--write" in options:
        from certdrop.nginx import write       # the keeper's modules, which printing does not need
        return write.write(groups, build, "--dry-run" in options, "--no-issue" not in options)
    texts = [blocks(group, build) for group in groups]
    sys.stdout.write("\n".join(texts))
    sys.stdout.flush()
    return os.EX_OK

"""certdrop-nginx: prints server blocks for sites (blocks.py), or puts them in place (write.py).

Runs as: anyone; root to write. Trusts: the configuration, and what `nginx -V` says. Reads: /etc/certdrop. Writes: standard output.
"""

from __future__ import annotations

import os
import sys
import traceback

from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import site
from certdrop.nginx.blocks import Absent, Refused, blocks, detect, load, same_domains

LINE = Program("certdrop-nginx", "certdrop-nginx(1)", Syntax(
    ("NAME... [--write [--dry-run] [--no-issue]]",), """\
Prints nginx server blocks for these sites: port 80 with the challenge location before the redirect, port 443 with the live certificate.
Sites with the same domains (one with ECDSA, one with RSA) share their blocks.""", {
        "--write": "as root: write them to a new file in /etc/nginx, enable it, test nginx, reload it; then get the first certificate. "
                   "A test that fails takes all of it back, and a file that is there is never changed",
        "--dry-run": "only say what --write would do",
        "--no-issue": "do not ask the CA afterwards",
    }, "certdrop-nginx example.org\ncertdrop-nginx example.org --write"))


def main(argv: list[str]) -> int:
    """`certdrop-nginx`. Returns a code of sysexits.h."""
    try:
        return LINE.main(argv, run)
    except (site.ConfigMissing, Refused) as error:
        text, code = str(error), os.EX_DATAERR
    except site.ConfigError as error:
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


def run(words: Words) -> int:
    """Check the words, then print. Raises Usage, site.ConfigError, Absent and OSError."""
    names, options = words.names, words.options
    if not names:
        raise Usage("which site? give its name (certdrop-status lists them)")
    if options and "--write" not in options:
        raise Usage(f"{min(options)} goes with --write")
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

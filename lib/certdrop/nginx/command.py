"""certdrop-nginx: prints server blocks for sites (blocks.py), or puts them in place (write.py).

Runs as: anyone; root to write. Trusts: the configuration, and what `nginx -V` says. Reads: /etc/certdrop. Writes: standard output.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping

from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import site
from certdrop.nginx.blocks import Absent, Build, Refused, blocks, detect, load, same_domains

GOES_WITH = {                      # what is done, and the options that go with it
    "--write": ("--dry-run", "--no-issue", "--anyway", "--no-redirect", "--hsts"),
    "--diff": ("--no-redirect", "--hsts"),
    "--apply": ("--no-issue", "--anyway", "--no-redirect", "--hsts"),
    "--undo": (),
}
LINE = Program("certdrop-nginx", "certdrop-nginx(1)", Syntax(
    ("NAME... [--no-redirect] [--hsts]", "NAME... --write [--dry-run] [--no-issue] [--anyway]   [--no-redirect] [--hsts]",
     "NAME... --diff | --apply [--no-issue] [--anyway]   [--no-redirect] [--hsts]", "NAME... --undo"), """\
Prints nginx server blocks for these sites: port 80 with the challenge location before the redirect, port 443 with the live certificate.
Sites with the same domains (one with ECDSA, one with RSA) share their blocks.""", {
        "--write": "as root: write them to a new file in /etc/nginx, enable it, test nginx, reload it; then get the first certificate. "
                   "A test that fails takes all of it back, and so does a page that would become another; a file that somebody else made, or edited, "
                   "is never changed",
        "--diff": "show what --apply would change in the server blocks that the names have already, as a unified diff of the very files",
        "--apply": "as root: make that change: challenges first, HTTPS once the certificate is there; test nginx, reload it, look at the certificate and the "
                   "pages. Where one of these fails, every file is put back",
        "--undo": "as root: take all of it out of nginx's files again",
        "--no-redirect": "leave http as it is; without it, http leads to https",
        "--hsts": "tell browsers to use nothing but HTTPS for these names, for two years; what they were told cannot be taken back",
        "--anyway": "keep the change even where a page is not what it was before",
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
    what = [one for one in GOES_WITH if one in options]
    if len(what) > 1:
        raise Usage(f"{' and '.join(what)} exclude each other")
    for option in sorted(options.keys() - {*what}):
        if option not in (GOES_WITH[what[0]] if what else ("--no-redirect", "--hsts")):
            raise Usage(f"{option} goes with {' or '.join(one for one, with_it in GOES_WITH.items() if option in with_it)}")
    for option in ("--apply", "--undo"):
        if option in options and os.geteuid() != 0:
            raise PermissionError(f"{option} must be run as root; try sudo (--diff shows what would be changed)")
    if "--write" in options and os.geteuid() != 0:
        raise PermissionError("--write must be run as root; try sudo (without it the blocks are printed)")
    if "--undo" in options:
        from certdrop.nginx import change
        return max(change.undo(name) for name in dict.fromkeys(names))
    sites = [load(name) for name in dict.fromkeys(names)]
    build, groups = detect(), same_domains(sites)
    if "--write" in options:
        from certdrop.nginx import write       # the keeper's modules, which printing does not need
        return write.write(groups, build, write.Wishes("--no-redirect" not in options, "--hsts" in options, "--anyway" in options, "--dry-run" in options,
                                                       "--no-issue" not in options))
    if what:
        return _change(groups, build, options)
    texts = [blocks(group, build, redirect="--no-redirect" not in options, hsts="--hsts" in options) for group in groups]
    sys.stdout.write("\n".join(texts))
    sys.stdout.flush()
    return os.EX_OK


def _change(groups: list[list[site.Site]], build: Build, options: Mapping[str, str]) -> int:
    """--diff and --apply. Raises Refused, Absent."""
    from certdrop.nginx import change, edit, several
    wishes = change.Options("--no-redirect" not in options, "--hsts" in options, "--anyway" in options, "--no-issue" not in options)
    if "--apply" in options:
        return several.apply(groups, build, wishes)
    for group in groups:
        try:
            change.show(group, build, wishes)
        except edit.NoBlock as error:
            name = group[0].name
            raise Refused(f"{name}: no server block has one of its names; nothing was changed; certdrop-nginx {name} --write makes new ones, or put the names "
                          "into the server_name of yours") from error
    return os.EX_OK

"""The command line of certdrop-issue. Runs as: whoever imports it. Trusts, reads, writes: nothing."""

from __future__ import annotations

HELP = """\
usage: certdrop-issue [--cron] [--force] [--plan | --dry-run | --revoke] [--no-install]
                      [--no-wait] [--quiet | --verbose] [--apart] [NAME...]

  asks the CA for the certificates that are due: all sites, or these

  --plan        only list what is due, when and why; no network, no change
  --dry-run     place whole orders with the CA's staging, for a key and an account to throw away;
                nothing is kept
  --revoke      only have revoked what root wants revoked, now; place no order
  --force       ask for these now, due or not (never beyond the CA's limits)
  --no-wait     do not wait for the TLSA record of the next key (certdrop.toml(5))
  --no-install  do not have root look at the replies afterwards
  --cron        say only what needs a person at once, and wait for what is due before the next run
  --verbose     say what happens although nobody seems to watch
  --quiet       say only what needs a person at once
  --apart       write what failed to standard output, all else to standard error

certdrop-issue --plan
certdrop-issue --dry-run example.org

For a certificate now, `certdrop renew NAME` asks and installs. See certdrop-issue(8).
"""
FLAGS = {"--cron", "--force", "--plan", "--dry-run", "--revoke", "--no-install", "--no-wait", "--quiet", "--verbose", "--apart"}


class Usage(Exception):
    """The command line is not understood; the text says what of it."""


class Options:
    """The words of the command line. Raises Usage."""

    def __init__(self, argv: list[str], watched: bool) -> None:
        flags = {word for word in argv if word.startswith("-")}
        unknown = flags - FLAGS
        if unknown:
            from certdrop import commandline   # for this alone: a tick loads no argparse
            raise Usage(commandline.unknown(min(unknown), "no such option", sorted(FLAGS)))
        self.names = [word for word in argv if not word.startswith("-")]
        self.cron, self.force = "--cron" in flags, "--force" in flags
        self.plan, self.dry_run = "--plan" in flags, "--dry-run" in flags
        self.revoke = "--revoke" in flags
        self.no_wait = "--no-wait" in flags
        self.install = "--no-install" not in flags
        if self.force and not self.names:
            raise Usage("--force needs the name of a site")
        if (self.dry_run or self.revoke) and (self.plan or self.force or self.dry_run == self.revoke):
            raise Usage("--dry-run and --revoke go with neither --plan nor --force, nor with each other")
        if self.cron and (self.names or self.plan or self.dry_run or self.revoke):
            raise Usage("--cron goes with no names, nor with --plan, --dry-run or --revoke")
        self.apart = "--apart" in flags
        self.loud = "--verbose" in flags or (watched and not {"--cron", "--quiet"} & flags)

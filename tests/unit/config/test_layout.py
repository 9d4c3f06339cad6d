"""The table of directories and pre-created files."""

import os
import re

from certdrop import events, spool, tokens
from certdrop.config import layout, site

layout.TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "setup", "layout")      # not installed here
HERE = os.path.dirname(os.path.abspath(__file__))
MAN = os.path.join(HERE, "..", "..", "..", "man", "certdrop-spool.5")


def test_parents_stand_first_and_are_roots():
    """A parent is in the table (or the system's), above its children, root's, and closed to other writers."""
    seen = {"/etc": "root", "/var/spool": "root", "/var/lib": "root", "/var/log": "root"}
    for row in layout.rows():
        assert seen[os.path.dirname(row.path)] == "root", row.path
        assert row.mode & 0o022 == 0, row.path
        seen[row.path] = row.owner


def test_the_programs_use_these_paths():
    """What the modules name is what installation makes."""
    paths = {row.path for row in layout.rows()}
    assert {site.ETC, site.STATE, spool.SPOOL, spool.requests(), spool.replies(), tokens.directory(), events.LOGS} <= paths


def test_nobody_owns_anything_as_the_judge():
    """The judge's user owns no file."""
    assert [row for row in layout.rows() if "judge" in row.owner + row.group] == []


def test_secrets_are_closed():
    """The account key and refused replies are for one user alone."""
    modes = {row.path: row.mode for row in layout.rows()}
    assert (modes[site.STATE + "/account"], modes[site.STATE + "/keeper/refused"]) == (0o700, 0o700)


def test_the_manual_has_the_same_table():
    """certdrop-spool(5) shows each row: path, mode, owner, group."""
    with open(MAN, encoding="ascii") as stream:
        shown = re.findall(r"^\.It Pa (\S+) Ta (\d{4}) Ta (\S+) Ta (\S+)$", stream.read(), re.M)
    assert shown == [(row.path, f"{row.mode:04o}", row.owner, row.group) for row in layout.rows()]


def test_deviations_name_the_path_and_the_remedy(tmp_path, monkeypatch):
    """A wrong mode, a missing directory and a file in a directory's place are each told, with the command that mends them."""
    right, wrong, strange = tmp_path / "right", tmp_path / "wrong", tmp_path / "strange"
    right.mkdir(mode=0o755)
    wrong.mkdir(mode=0o700)
    strange.write_text("")
    user, group = layout._user(os.getuid()), layout._group(os.stat(right).st_gid)
    table = tmp_path / "layout"
    table.write_text("".join(f"{tmp_path}/{name} dir 0755 {user} {group} x\n" for name in ("right", "wrong", "strange", "none")))
    monkeypatch.setattr(layout, "TABLE", str(table))
    assert layout.deviations() == [
        f"{wrong}: has mode 0700; mend with chmod 0755 {wrong}",
        f"{strange}: must be a directory",
        f"{tmp_path}/none: No such file or directory; mend with dpkg-reconfigure certdrop",
    ]

"""The package's life in a stage of its own: install, upgrade, remove, purge, reinstall; and `make install` without it.

`stage run -- pytest tests/package` with the package in CERTDROP_DEB (or dist/), not with --deb: these tests install it themselves.
"""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import signal
import subprocess
import sys
import time
from typing import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/stage"), str(ROOT / "lib")]

import held  # noqa: E402

from certdrop.walls import users  # noqa: E402

DEB = os.environ.get("CERTDROP_DEB") or str(max((ROOT / "dist").glob("certdrop_*_all.deb"), key=os.path.getmtime))
DPKG = ("dpkg", "--force-unsafe-io", "--no-triggers")
USERS = ("_certdrop", "_certdrop-judge", "_certdrop-watch")
USER_DATABASE = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid")
SNIPPETS = [pathlib.Path(f"/etc/nginx/snippets/certdrop-{name}.conf") for name in ("challenge", "tls")]
STATE, SPOOL = pathlib.Path("/var/lib/certdrop"), pathlib.Path("/var/spool/certdrop")
PLACES = ["/etc/certdrop", STATE, SPOOL, "/var/log/certdrop", "/usr/share/certdrop", *SNIPPETS]

pytestmark = pytest.mark.skipif(not os.path.exists("/run/stage"), reason="runs in the stage only")


def run(*argv: str, code: int | None = 0, env: dict[str, str] | None = None, timeout: float = 120) -> str:
    """Run a command; what it printed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", **(env or {})}, check=False)
    assert code in (None, done.returncode), (argv, done.returncode, done.stdout)
    return done.stdout


def layout_deviations() -> str:
    """What the installed table finds wrong."""
    program = "import sys; sys.path.insert(0, '/usr/share/certdrop')\nfrom certdrop.config import layout\nprint(layout.deviations())"
    return run("/usr/bin/python3", "-c", program).strip()


def is_checkout(path: str) -> bool:
    """Whether this is where the stage shows the repository: in more places than one."""
    try:
        return os.path.samefile(path, ROOT)
    except FileNotFoundError:                  # it is gone by now
        return False


def files() -> set[str]:
    """Every path of the system that is not the package manager's, a cache or a kernel's."""
    found = set()
    skipped = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/cache", "/var/lib/dpkg", "/var/lib/ucf", "/var/log/dpkg.log", "/root")
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped and name not in (".git", ".hypothesis")
                      and not is_checkout(os.path.join(folder, name))]
        found |= {os.path.join(folder, name) for name in folders + names} - set(skipped)
    return found


@pytest.fixture
def installed() -> Iterator[None]:
    """The package, installed; afterwards all is gone."""
    run(*DPKG, "-i", DEB)
    yield
    run(*DPKG, "-P", "certdrop")
    for name in ("sites-enabled", "sites-available"):
        for path in pathlib.Path("/etc/nginx", name).glob("*.test"):
            path.unlink()
    run("rm", "-rf", *map(str, PLACES))
    run("rm", "-f", "/etc/sudoers.d/certdrop", "/etc/cron.d/certdrop", "/etc/logrotate.d/certdrop")


def add_site(name: str = "a.test") -> None:
    """A site with its placeholder, that nginx names."""
    run("certdrop", "add", name, "--no-issue")
    pathlib.Path(f"/etc/nginx/sites-enabled/{name}").write_text(run("certdrop-nginx", name))
    run("nginx", "-t")


def test_owners_and_modes_are_the_tables(installed: None) -> None:
    """Every row of the table, and nothing else in those places."""
    assert layout_deviations() == "[]"
    rows = {line.split()[0] for line in (ROOT / "setup/layout").read_text().splitlines() if line.startswith("/")}
    made = {str(path) for place in (STATE, SPOOL, pathlib.Path("/var/log/certdrop"), pathlib.Path("/etc/certdrop")) for path in [place, *place.rglob("*")]}
    assert {path for path in made - rows if not path.startswith("/etc/certdrop/services.d/")} == set()


@pytest.mark.parametrize("user", USERS)
def test_users_can_not_log_in(installed: None, user: str) -> None:
    """No shell, no password, no home, a group of their own and no other."""
    found = pwd.getpwnam(user)
    assert (found.pw_shell, found.pw_dir, os.path.exists(found.pw_dir)) == ("/usr/sbin/nologin", "/nonexistent", False)
    assert grp.getgrgid(found.pw_gid).gr_name == user
    assert [group.gr_name for group in grp.getgrall() if user in group.gr_mem] == []
    assert run("getent", "shadow", user).split(":")[1] in ("!", "*", "!*")


def test_sudo_takes_the_file_and_allows_one_command(installed: None) -> None:
    """As visudo sees it, owner and mode included."""
    run("visudo", "-c", "-s", "-O", "-P", "-f", "/etc/sudoers.d/certdrop")
    run("visudo", "-c", "-O", "-P")
    rules = run("sudo", "-l", "-U", "_certdrop").partition("may run the following commands")[2].splitlines()[1:]
    assert [rule.strip() for rule in rules] == ['(root) NOPASSWD: /usr/sbin/certdrop-install ""']


def test_nothing_is_started(installed: None) -> None:
    """No process of ours runs after the installation, and no request waits."""
    assert run("pgrep", "-u", ",".join(USERS), code=1) == ""
    assert list((SPOOL / "requests").iterdir()) == []


def test_modules_are_compiled(installed: None) -> None:
    """So that a start is fast, root's modules among them."""
    assert list(pathlib.Path("/usr/share/certdrop/certdrop/keeper/__pycache__").glob("*.pyc"))


def test_installing_again_mends_modes_and_follows_no_link(installed: None, tmp_path: pathlib.Path) -> None:
    """The table's paths are put right; what the issuer put into its directories is not touched."""
    victim = tmp_path / "victim"
    victim.write_text("root's")
    victim.chmod(0o600)
    (SPOOL / "replies" / "a.test@0001.pem").symlink_to(victim)
    (STATE / "issuer" / "ledger").symlink_to(victim)
    STATE.joinpath("account").chmod(0o755)
    os.chown(SPOOL / "requests", pwd.getpwnam("_certdrop").pw_uid, -1)
    run(*DPKG, "-i", DEB)
    assert layout_deviations() == "[]"
    assert (victim.stat().st_mode & 0o777, victim.stat().st_uid, victim.read_text()) == (0o600, 0, "root's")


def test_an_override_of_the_administrator_stays(installed: None) -> None:
    """dpkg-statoverride is Debian's way to say so."""
    run("dpkg-statoverride", "--update", "--add", "root", "adm", "0750", "/var/log/certdrop")
    try:
        run(*DPKG, "-i", DEB)
        found = os.stat("/var/log/certdrop")
        assert (found.st_mode & 0o7777, grp.getgrgid(found.st_gid).gr_name) == (0o750, "adm")
    finally:
        run("dpkg-statoverride", "--remove", "/var/log/certdrop")


def test_an_edited_snippet_stays_over_an_upgrade(installed: None) -> None:
    """As a conffile would."""
    SNIPPETS[1].write_text(SNIPPETS[1].read_text() + "# mine\n")
    run(*DPKG, "-i", DEB)
    assert SNIPPETS[1].read_text().endswith("# mine\n")


def test_purge_without_a_site_leaves_nothing_but_the_users() -> None:
    """Not a file, not a directory."""
    run("nginx", "-t")                             # which makes its own directories, if it never ran
    before = files()
    run(*DPKG, "-i", DEB)
    said = run(*DPKG, "-P", "certdrop")
    theirs = (*USER_DATABASE, "/etc/apparmor.d/disable", "/etc/apparmor.d/local")      # dh_apparmor's snippets remove these where they are empty
    changed = {path for path in files() ^ before if not path.startswith(theirs)}
    assert changed == set()
    assert "the users" in said
    assert [pwd.getpwnam(user).pw_name for user in USERS] == list(USERS)


def test_purge_without_nginx_leaves_nothing(installed: None) -> None:
    """Where the snippets' directory was only ours, it goes too."""
    run("mv", "/etc/nginx", "/etc/nginx.away")
    run("mv", "/usr/sbin/nginx", "/usr/sbin/nginx.away")
    try:
        run(*DPKG, "-P", "certdrop")
        run(*DPKG, "-i", DEB)
        assert all(path.exists() for path in SNIPPETS)
        run(*DPKG, "-P", "certdrop")
        assert not os.path.exists("/etc/nginx")
    finally:
        run("mv", "/etc/nginx.away", "/etc/nginx")
        run("mv", "/usr/sbin/nginx.away", "/usr/sbin/nginx")


@pytest.mark.parametrize("verb", ["-r", "-P"])
def test_removing_keeps_what_nginx_names(installed: None, verb: str) -> None:
    """nginx can be started again afterwards, and purging says what stays and why."""
    add_site()
    said = run(*DPKG, verb, "certdrop")
    run("nginx", "-t")
    if verb == "-P":
        assert [str(path) for path in SNIPPETS if f"{path} stays, because nginx's configuration includes it" not in said] == []
        assert "keys and certificates stay in /var/lib/certdrop" in said
        assert not SPOOL.exists()


def test_purge_removes_snippets_that_nobody_includes(installed: None) -> None:
    """A site may be served by something else than nginx."""
    run("certdrop", "add", "a.test", "--no-issue")
    run(*DPKG, "-P", "certdrop")
    assert [path for path in SNIPPETS if path.exists()] == []
    assert (STATE / "live" / "a.test" / "privkey.pem").exists()


def test_the_account_key_stays(installed: None) -> None:
    """A CAA record may name the account; without a site too."""
    (STATE / "account" / "account.key").write_text("secret")
    said = run(*DPKG, "-P", "certdrop")
    assert (STATE / "account" / "account.key").read_text() == "secret"
    assert "keys and certificates stay" in said


def test_purge_is_not_led_astray(installed: None, tmp_path: pathlib.Path) -> None:
    """Links that the issuer left lead rm nowhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("root's")
    for place in (SPOOL / "replies", SPOOL / "challenges", STATE / "issuer"):
        (place / "link").symlink_to(victim)
        (place / "deep").mkdir()
        (place / "deep" / "link").symlink_to(victim / "file")
    run(*DPKG, "-P", "certdrop")
    assert (victim / "file").read_text() == "root's"
    assert not SPOOL.exists() and not STATE.exists()


def start(deed: Callable[[], object]) -> int:
    """Begin something as the issuer's user; the process's id."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            users.become("_certdrop")
            os.umask(0)
            deed()
        finally:
            os._exit(1)
    return child


def test_purge_ends_while_somebody_goes_on_making_entries(installed: None, tmp_path: pathlib.Path) -> None:
    """In a directory, and in directories in it, that it has open: files, directories, links in their place; none of them leads anywhere."""
    tmp_path.chmod(0o755)
    for folder in (*tmp_path.parents[:2], tmp_path):
        folder.chmod(0o755)
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "file").write_text("root's")
    (SPOOL / "replies" / "deep" / "deeper").mkdir(parents=True)
    for folder in (SPOOL / "replies" / "deep", SPOOL / "replies" / "deep" / "deeper"):
        os.chown(folder, pwd.getpwnam("_certdrop").pw_uid, -1)

    def make() -> None:
        places = [os.open(path, os.O_RDONLY) for path in (SPOOL / "replies", SPOOL / "replies/deep", SPOOL / "replies/deep/deeper")]
        number = 0
        while True:
            number += 1
            for place in places:
                for deed in (lambda: os.close(os.open(f"file-{number}", os.O_CREAT, 0o666, dir_fd=place)),  # noqa: B023
                             lambda: os.mkdir(f"folder-{number}", 0o777, dir_fd=place),  # noqa: B023
                             lambda: os.rename(f"folder-{number}", f"was-{number}", src_dir_fd=place, dst_dir_fd=place),  # noqa: B023
                             lambda: os.symlink(victim, f"folder-{number}", dir_fd=place)):  # noqa: B023
                    try:
                        deed()
                    except OSError:
                        pass
    makers = [start(make) for _ in range(2)]
    try:
        while len(os.listdir(SPOOL / "replies")) < 100:
            time.sleep(0.01)
        run(*DPKG, "-P", "certdrop")
        assert [os.waitpid(maker, os.WNOHANG) for maker in makers] == [(0, 0), (0, 0)], "nobody's process is ended"
    finally:
        for maker in makers:
            os.kill(maker, signal.SIGKILL)
            os.waitpid(maker, 0)
    assert not SPOOL.exists() and not STATE.exists()
    assert ((victim / "file").read_text(), victim.stat().st_uid, victim.stat().st_mode & 0o777) == ("root's", 0, 0o755)


@pytest.fixture
def mine(tmp_path: pathlib.Path) -> str:
    """A directory of the issuer's user, for a file system of its own."""
    if held.device():
        pytest.skip(held.device())
    place = pathlib.Path("/tmp/attacker/mine")
    place.mkdir(parents=True, exist_ok=True)
    for path in (place.parent, place):
        os.chown(path, pwd.getpwnam("_certdrop").pw_uid, -1)
    return str(place)


def test_purge_ends_while_a_directory_is_held_in_the_kernel(installed: None, mine: str) -> None:
    """What cannot be removed is named, with what to do; and that helps."""
    with held.holding(start, mine, held.directory, str(SPOOL / "replies")):
        said = run(*DPKG, "-P", "certdrop", timeout=300)
        assert f"{SPOOL} stays: it cannot be removed; where it is no mount point, end the processes of _certdrop, then: rm -r {SPOOL}" in said
        assert "certdrop" not in run("dpkg-query", "-W", "-f", "${Package}\n")
    run("rm", "-r", str(SPOOL))


def test_installing_again_ends_while_directory_and_log_are_held_in_the_kernel(installed: None, mine: str) -> None:
    """What is right is not touched; what cannot be put right is named, and the package is installed all the same."""
    for how, path in ((held.directory, SPOOL / "replies"), (held.file, pathlib.Path("/var/log/certdrop/issuer.log"))):
        with held.holding(start, mine, how, str(path)):
            run(*DPKG, "-i", DEB)
        path.chmod(0o777)
        assert held.device() == ""                 # which the installation denied to certdrop's users
        with held.holding(start, mine, how, str(path)):
            assert f"certdrop: {path} cannot be made a " in run(*DPKG, "-i", DEB)
        run("/usr/share/certdrop/setup")
        assert layout_deviations() == "[]" and held.device() == ""


def test_a_log_with_a_second_name_is_rotated(installed: None) -> None:
    """Whoever owns it can give it one elsewhere; that file keeps what it had, and is not touched any more."""
    log, other = pathlib.Path("/var/log/certdrop/issuer.log"), STATE / "issuer/second-name"
    log.write_text("line\n")
    os.link(log, other)
    try:
        run("logrotate", "-f", "/etc/logrotate.d/certdrop", "-s", "/tmp/logrotate.status")
        assert (log.read_text(), log.with_suffix(".log.1").read_text(), other.read_text()) == ("", "line\n", "line\n")
        run("sh", "-c", "echo more >>/var/log/certdrop/issuer.log; logrotate -f /etc/logrotate.d/certdrop -s /tmp/logrotate.status")
        assert log.with_suffix(".log.2").read_text() == other.read_text() == "line\n"
        assert layout_deviations() == "[]"
    finally:
        other.unlink()


def test_a_log_without_end_is_rotated(installed: None) -> None:
    """Who owns it can have it be as long as a file may be, at no cost: no rotation of root's reads it to its end."""
    log, status = pathlib.Path("/var/log/certdrop/issuer.log"), "/tmp/logrotate.endless"
    for _ in range(3):
        with log.with_name("keeper.log").open("a") as stream:
            stream.write("line\n")
        run("runuser", "-u", "_certdrop", "--", "truncate", "-s", "8T", str(log))
        run("logrotate", "-f", "/etc/logrotate.d/certdrop", "-s", status)
    assert run("zcat", "/var/log/certdrop/keeper.log.2.gz") == "line\n"
    assert (log.stat().st_size, [log.with_suffix(f".log.{number}").stat().st_size for number in (1, 2, 3)]) == (0, [8 << 40] * 3)


def test_reinstalling_over_kept_keys_goes_on(installed: None) -> None:
    """After a purge that kept them, the sites are there again, with the same key, and their request is posted."""
    add_site()
    key = (STATE / "live" / "a.test" / "privkey.pem").read_text()
    run(*DPKG, "-P", "certdrop")
    run(*DPKG, "-i", DEB)
    assert layout_deviations() == "[]"
    run("certdrop-install")
    assert (STATE / "live" / "a.test" / "privkey.pem").read_text() == key
    assert [path.name for path in (SPOOL / "requests").glob("*.csr")] == ["a.test@0002.csr"]


@pytest.fixture
def newer(tmp_path: pathlib.Path) -> Iterator[Callable[[str], str]]:
    """Makes a package of a newer version, whose layout has the number 2; `step` is what migrates to it, "" for none."""
    def make(step: str) -> str:
        place = tmp_path / "newer"
        run("rm", "-rf", str(place))
        run("dpkg-deb", "-R", DEB, str(place))
        for path, old, new in (("usr/share/certdrop/layout", "# version 1", "# version 2"), ("DEBIAN/preinst", "layout=1", "layout=2"),
                               ("DEBIAN/control", "\nVersion: ", "\nVersion: 99:")):
            text = (place / path).read_text()
            assert old in text
            (place / path).write_text(text.replace(old, new, 1))
        if step:
            (place / "usr/share/certdrop/migrate-1").write_text("#!/bin/sh\nset -e\n" + step)
            (place / "usr/share/certdrop/migrate-1").chmod(0o755)
        run("dpkg-deb", "-b", str(place), str(tmp_path / "newer.deb"))
        return str(tmp_path / "newer.deb")
    yield make
    (STATE / "migrated").unlink(missing_ok=True)


def test_a_changed_layout_is_migrated_on_installation(installed: None, newer: Callable[[str], str]) -> None:
    """One step a version, with no keeper at work; nginx starts before and after, and there is no way back to a version that does not know it."""
    add_site()
    assert (STATE / "version").read_text() == "1\n"
    run(*DPKG, "-i", newer("! flock -n /var/lib/certdrop/keeper/lock true\necho moved >/var/lib/certdrop/migrated\n"))
    assert ((STATE / "version").read_text(), (STATE / "migrated").read_text()) == ("2\n", "moved\n")
    run("nginx", "-t")
    said = run(*DPKG, "-i", "--force-downgrade", DEB, code=1)
    assert "has layout 2, of a newer version; this one knows 1" in said
    assert run("dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "certdrop").startswith("99:")
    run("nginx", "-t")
    run("certdrop-install")
    (STATE / "version").write_text("1\n")


def test_a_migration_that_fails_changes_nothing_and_can_be_done_again(installed: None, newer: Callable[[str], str]) -> None:
    """The installation says so; what is on disk is of the old layout, sites go on, and with the cause gone it succeeds."""
    add_site()
    said = run(*DPKG, "-i", newer("test -e /run/cause-is-gone\necho moved >/var/lib/certdrop/migrated\n"), code=1)
    assert "migrate-1 failed; /var/lib/certdrop is as it was" in said
    assert (STATE / "version").read_text() == "1\n" and not (STATE / "migrated").exists()
    run("nginx", "-t")
    pathlib.Path("/run/cause-is-gone").touch()
    run("dpkg", "--configure", "certdrop")
    assert (STATE / "version").read_text() == "2\n"
    pathlib.Path("/run/cause-is-gone").unlink()
    (STATE / "version").write_text("1\n")


def test_a_layout_that_cannot_be_taken_over_is_refused(installed: None, newer: Callable[[str], str]) -> None:
    """With instructions, and the old version's package can be installed again."""
    add_site()
    assert "install an older version first; nothing was changed" in run(*DPKG, "-i", newer(""), code=1)
    run("nginx", "-t")
    run(*DPKG, "-i", "--force-downgrade", DEB)
    assert layout_deviations() == "[]"


def test_an_installation_from_before_there_was_a_number_has_the_first(installed: None) -> None:
    """Upgrading it notes that."""
    (STATE / "version").unlink()
    run(*DPKG, "-i", DEB)
    assert (STATE / "version").read_text() == "1\n"


def test_make_install_with_a_configuration_elsewhere() -> None:
    """SYSCONFDIR holds for certdrop's own; what sudo and cron read stays where they look."""
    before = files()
    run("make", "-C", str(ROOT), "install", "PREFIX=/opt/certdrop", "SYSCONFDIR=/opt/certdrop/etc")
    run("visudo", "-c", "-s", "-O", "-P", "-f", "/etc/sudoers.d/certdrop")
    run("/opt/certdrop/sbin/certdrop", "add", "a.test", "--no-issue")
    assert pathlib.Path("/opt/certdrop/etc/certdrop/sites.d/a.test.toml").exists() and not os.path.exists("/etc/certdrop")
    run("apparmor_parser", "-QK", "/etc/apparmor.d/usr.sbin.certdrop-issue")
    run("sudo", "-u", "_certdrop", "sudo", "-n", "/opt/certdrop/sbin/certdrop-install")
    run("sudo", "-u", "_certdrop", "sudo", "-n", "/opt/certdrop/sbin/certdrop-install", "--help", code=1)
    run("/opt/certdrop/sbin/certdrop", "remove", "a.test")
    run("make", "-C", str(ROOT), "uninstall", "PREFIX=/opt/certdrop", "SYSCONFDIR=/opt/certdrop/etc")
    left = {path for path in files() - before if not path.startswith((*map(str, PLACES), *USER_DATABASE)) and os.path.isfile(path)}
    run("rm", "-rf", "/opt/certdrop", *map(str, PLACES))
    assert {path for path in left if not path.startswith("/opt/certdrop/etc/certdrop/")} == set()


def test_make_install_without_the_package() -> None:
    """Below another prefix: everything names it, the layout is made, and `make uninstall` takes away what it put there."""
    before = files()
    os.chdir(ROOT)
    try:
        run("make", "install", "PREFIX=/usr/local")
        assert "usage: certdrop add" in run("/usr/local/sbin/certdrop", "--help")
        assert "/usr/local/sbin/certdrop-install" in pathlib.Path("/etc/sudoers.d/certdrop").read_text()
        assert "/usr/sbin/certdrop" not in pathlib.Path("/etc/cron.d/certdrop").read_text().replace("/usr/local/sbin/certdrop", "")
        run("visudo", "-c", "-s", "-O", "-P", "-f", "/etc/sudoers.d/certdrop")
        assert os.stat(SPOOL / "replies").st_uid == pwd.getpwnam("_certdrop").pw_uid
        run("/usr/local/sbin/certdrop", "add", "a.test", "--no-issue")
        run("/usr/local/sbin/certdrop-install")
        run("/usr/local/sbin/certdrop", "remove", "a.test")
        run("make", "uninstall", "PREFIX=/usr/local")
    finally:
        os.chdir("/")
    left = {path for path in files() - before if not path.startswith((*map(str, PLACES), *USER_DATABASE))}
    run("rm", "-rf", *map(str, PLACES))
    assert {path for path in left if os.path.isfile(path)} == set()


def test_make_install_into_a_directory(tmp_path: pathlib.Path) -> None:
    """With DESTDIR nothing outside it is touched, and no user is made."""
    before = files()
    said = run("make", "-C", str(ROOT), "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/certdrop")
    assert files() == before
    assert (tmp_path / "opt/certdrop/sbin/certdrop").exists()
    assert "run /opt/certdrop/share/certdrop/setup as root" in said

"""The package's life in a stage of its own: install, upgrade, remove, purge, reinstall; and `make install` without it.

`stage run -- pytest tests/package` with the package in CERTDROP_DEB (or dist/), not with --deb: these tests install it themselves.
"""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import subprocess
from typing import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEB = os.environ.get("CERTDROP_DEB") or str(max((ROOT / "dist").glob("certdrop_*_all.deb"), key=os.path.getmtime))
DPKG = ("dpkg", "--force-unsafe-io", "--no-triggers")
USERS = ("_certdrop", "_certdrop-judge", "_certdrop-watch")
USER_DATABASE = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid")
SNIPPETS = [pathlib.Path(f"/etc/nginx/snippets/certdrop-{name}.conf") for name in ("challenge", "tls")]
STATE, SPOOL = pathlib.Path("/var/lib/certdrop"), pathlib.Path("/var/spool/certdrop")
PLACES = ["/etc/certdrop", STATE, SPOOL, "/var/log/certdrop", "/usr/share/certdrop", *SNIPPETS]

pytestmark = pytest.mark.skipif(not os.path.exists("/run/stage"), reason="runs in the stage only")


def run(*argv: str, code: int | None = 0, env: dict[str, str] | None = None) -> str:
    """Run a command; what it printed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", **(env or {})}, check=False)
    assert code in (None, done.returncode), (argv, done.returncode, done.stdout)
    return done.stdout


def layout_deviations() -> str:
    """What the installed table finds wrong."""
    program = "import sys; sys.path.insert(0, '/usr/share/certdrop')\nfrom certdrop import layout\nprint(layout.deviations())"
    return run("/usr/bin/python3", "-c", program).strip()


def files() -> set[str]:
    """Every path of the system that is not the package manager's, a cache or a kernel's."""
    found = set()
    skipped = ("/proc", "/sys", "/dev", "/run", "/tmp", "/src", str(ROOT), "/var/cache", "/var/lib/dpkg", "/var/lib/ucf", "/var/log/dpkg.log", "/root")
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped]
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
    rows = {line.split()[0] for line in (ROOT / "lib/certdrop/layout").read_text().splitlines() if line.startswith("/")}
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
    before = files()
    run(*DPKG, "-i", DEB)
    said = run(*DPKG, "-P", "certdrop")
    changed = {path for path in files() ^ before if not path.startswith(USER_DATABASE)}
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

"""What the package brings beside programs: AppArmor profiles, systemd units, cron, the layout's number; each as its own parser sees it."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from certdrop.config import general, site

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "systemd").iterdir())
PROFILES = [path for path in sorted((ROOT / "apparmor.d").iterdir()) if path.is_file()]


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command, and what it printed."""
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False, env=env)


@pytest.fixture
def units(tmp_path: pathlib.Path) -> pathlib.Path:
    """The units, naming this tree's programs."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/sbin/", f"{ROOT}/bin/"))
    return tmp_path


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_apparmor_parses_the_profile(profile: pathlib.Path) -> None:
    """By its own parser, which is not asked to load it."""
    done = run("/sbin/apparmor_parser", "-QK", "-I", str(ROOT / "apparmor.d"), str(profile))
    assert done.returncode == 0, done.stdout


def test_no_profile_lets_a_private_key_be_read() -> None:
    """Of a domain, by any confined program."""
    assert "deny /**/privkey.pem" in (ROOT / "apparmor.d/abstractions/certdrop").read_text()
    assert [path.name for path in PROFILES if "include <abstractions/certdrop>" not in path.read_text()] == []


def test_systemd_takes_the_units(units: pathlib.Path) -> None:
    """Not a word from systemd-analyze verify."""
    names = [str(units / unit.name.replace("@.", "@1.")) for unit in UNITS]
    shutil.copy(units / "certdrop-watch@.service", units / "certdrop-watch@1.service")
    done = run("systemd-analyze", "verify", "--man=no", *names)
    ours = [line for line in done.stdout.splitlines() if "certdrop" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", ["certdrop-issue.service", "certdrop-watch.service"])
def test_exposure_is_well_under_two(units: pathlib.Path, name: str) -> None:
    """As systemd-analyze security counts: 0 is none, 10 is all."""
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=16", "--no-pager", str(units / name))
    assert done.returncode == 0, done.stdout


def test_cron_does_nothing_where_the_timer_does() -> None:
    """Each line of cron's asks for the timer of its own program, which exists."""
    lines = [line for line in (ROOT / "cron.d/certdrop").read_text().splitlines() if "exec " in line]
    for line in lines:
        program = re.findall(r"exec /usr/sbin/(\S+?)[; ]", line)[0]
        assert f"systemctl -q is-active {program}.timer" in line
        assert (ROOT / "systemd" / f"{program}.timer").exists()
    assert len(lines) == 3


def test_the_units_do_what_cron_does() -> None:
    """The same programs as the same users."""
    cron = {tuple(found) for found in re.findall(r"^[0-9*/ ]+\s(\S+)\s.*exec /usr/sbin/(certdrop-\w+)", (ROOT / "cron.d/certdrop").read_text(), re.M)}
    ours = set()
    for user, program in cron:
        text = (ROOT / "systemd" / f"{program}.service").read_text()
        ours.add(((re.findall(r"^User=(.*)$", text, re.M) or ["root"])[0], re.findall(r"^ExecStart=/usr/sbin/(\S+)", text, re.M)[0]))
    assert ours == cron


def test_preinst_knows_the_layouts_number() -> None:
    """Which stands in the table."""
    table = re.findall(r"^# version (\d+)$", (ROOT / "setup/layout").read_text(), re.M)
    assert re.findall(r"^layout=(\d+)", (ROOT / "debian/preinst").read_text(), re.M) == table
    assert len(table) == 1


def test_make_installs_every_program() -> None:
    """A program that is added to bin/ is in one of the Makefile's lists."""
    text = (ROOT / "Makefile").read_text()
    listed = set(" ".join(re.findall(r"^(?:ROOT|USER|FLEET)_PROGRAMS = (.*)$", text, re.M)).split())
    assert {path.name for path in (ROOT / "bin").iterdir() if path.is_file()} == listed


def test_documents_name_programs_that_exist() -> None:
    """Every certdrop-SOMETHING that README, the documents and the manuals show as a command, unit or page is there."""
    known = {path.name for path in (ROOT / "bin").iterdir()} | {path.stem for path in UNITS} | {path.stem for path in PROFILES}
    known |= {path.stem for path in (ROOT / "man").iterdir()} | {path.stem for path in (ROOT / "nginx").iterdir()} | {unit.name for unit in UNITS}
    texts = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    shown = {(path.name, name) for path in texts for name in re.findall(r"`(certdrop-[a-z]+)[ `]", path.read_text())}
    assert {(where, name) for where, name in shown if name not in known} == set()


def test_the_documents_that_texts_name_are_installed(tmp_path: pathlib.Path) -> None:
    """With their links: each leads to a file that is there, but for what only the source has."""
    assert run("make", "-s", "-C", str(ROOT), "install-files", f"DESTDIR={tmp_path}", "PREFIX=/usr").returncode == 0
    place = tmp_path / "usr/share/doc/certdrop"
    assert {"README.md", "SECURITY.md", "DESIGN.md", "CONTRIBUTING.md", "docs/how-to.md", "docs/tutorial.md", "docs/when-it-fails.md"} <= {
        str(path.relative_to(place)) for path in place.rglob("*.md")}
    only_source = {"LICENSE", "bench/RESULTS.md", "tests/stage/README.md", "model/README.md"}
    for path in place.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / link).exists() or link.removeprefix("../") in only_source, (path.name, link)


@pytest.mark.parametrize("version", sorted(path.name for path in (ROOT / "tests/unit/configurations").iterdir()))
def test_the_configuration_of_every_version_is_read(version: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an administrator wrote for an older version needs no change (the files show every key that version had; make release adds them)."""
    (tmp_path / "sites.d").mkdir()
    for source, target in (("certdrop.toml", "certdrop.toml"), ("site.toml", "sites.d/example.org.toml")):
        shutil.copyfile(ROOT / "tests/unit/configurations" / version / source, tmp_path / target)
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    assert site.load_site("example.org", general.load_config()).domains == ["example.org", "www.example.org"]


def test_the_release_refuses_what_is_not_ready(tmp_path: pathlib.Path) -> None:
    """A dirty tree, a version without its section in the changelog, an older one; and a good one gets its commit, tag and tarball."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository here")
    place = tmp_path / "certdrop"
    assert run("git", "clone", "-q", "--no-hardlinks", str(ROOT), str(place)).returncode == 0
    shutil.copy(ROOT / ".ci/release", place / ".ci/release")
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$@" >>"$0.log"\nmkdir -p dist; : >dist/package\n')
    make.chmod(0o755)
    env = {**os.environ, "MAKE": str(make), **{f"GIT_{who}_{what}": "nobody@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}}

    def git(*argv: str) -> str:
        return run("git", "-C", str(place), *argv, env=env).stdout

    def release(version: str) -> tuple[int, str]:
        done = run(str(place / ".ci/release"), version, env=env)
        return done.returncode, done.stdout

    git("add", ".ci/release")
    git("commit", "-q", "-m", "as it is here")
    git("tag", "-d", *git("tag").split())
    changelog = place / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("\n## ", "\n## 9.8.7 (not released yet)\n\nAll is new.\n\n## ", 1))
    assert "the tree is not clean" in release("9.8.7")[1]
    git("commit", "-q", "-a", "-m", "changelog")
    assert "has no section" in release("9.9.9")[1]
    assert "three numbers" in release("9.9")[1]
    assert git("status", "--porcelain") == ""
    code, said = release("9.8.7")
    assert code == 0, said
    assert 'VERSION = "9.8.7"' in (place / "lib/certdrop/__init__.py").read_text()
    assert (place / "debian/changelog").read_text().startswith("certdrop (9.8.7) unstable")
    assert re.search(r"^## 9\.8\.7 \(\d{4}-\d\d-\d\d\)$", changelog.read_text(), re.M)
    assert (git("tag").split(), git("status", "--porcelain")) == (["v9.8.7"], "")
    assert (place / "tests/unit/configurations/9.8.7/certdrop.toml").read_text() == (place / "etc/certdrop.toml").read_text()
    assert (place / "dist/certdrop-9.8.7.tar.gz").exists() and (place / "dist/SHA256SUMS").exists()
    assert "check" in (tmp_path / "make.log").read_text()
    assert "there is a tag" in release("9.8.7")[1]
    make.write_text("#!/bin/sh\nexit 1\n")
    changelog.write_text(changelog.read_text().replace("\n## ", "\n## 9.9.0 (not released yet)\n\n## ", 1))
    git("commit", "-q", "-a", "-m", "the next")
    assert release("9.9.0")[0] != 0
    assert (git("status", "--porcelain"), git("tag").split()) == ("", ["v9.8.7"])

"""README's two commands and what a continuous integration runs: what they do first, and where and by whom the checkout may lie."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*argv: str, cwd: pathlib.Path = ROOT, env: dict[str, str] | None = None, umask: int = 0o022) -> tuple[int, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}         # "make unit" runs this, but is not there
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
                          env={**ours, **(env or {})}, umask=umask, check=False)
    return done.returncode, done.stdout


def program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_ci_runs_the_readmes_command_and_nothing_beside_it(tmp_path: pathlib.Path) -> None:
    """What CI had to do first, a newcomer would have to know."""
    assert "\nmake test " in (ROOT / "README.md").read_text()
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text("%:\n\t@echo made $@\n")
    assert run(str(tmp_path / ".ci/run"), cwd=pathlib.Path("/")) == (0, "made test\n")
    (tmp_path / "Makefile").write_text("test:\n\t@exit 3\n")
    assert run(str(tmp_path / ".ci/run"))[0] != 0


@pytest.mark.parametrize("goal, steps", [("test", ["apt-get", "test"]), ("demo", ["apt-get", "package", "stage", "stage"])])
def test_the_two_commands_first_install_what_is_missing(goal: str, steps: list[str], tmp_path: pathlib.Path) -> None:
    """Where nothing is installed but make, with -j too: all that is missing, before anything that needs it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (".ci/test", ".ci/package", "stage", "bin/apt-get"):
        program(tmp_path / name, f'echo {name.rpartition("/")[2]} "$@" >>{tmp_path}/order')
    program(tmp_path / "bin/dpkg-query", "exit 1")
    program(tmp_path / "bin/id", "echo 0")
    code, said = run("make", "-j4", goal, "STAGE=./stage", cwd=tmp_path, env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    order = (tmp_path / "order").read_text().splitlines()
    assert ([line.split()[0] for line in order], code) == (steps, 0), said
    assert {"python3", "flake8", "git", "python3-seccomp", "mount"} <= set(order[0].split())


def test_who_can_install_nothing_is_told(tmp_path: pathlib.Path) -> None:
    """Another user than root learns what is missing, and no test begins."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    program(tmp_path / ".ci/test", "echo tested")
    program(tmp_path / "bin/dpkg-query", '[ "$4" != flake8 ] && echo installed')
    program(tmp_path / "bin/id", "echo 1000")
    code, said = run("make", "test", cwd=tmp_path, env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert code != 0 and "needs root to install flake8; run it as root" in said and "tested" not in said


def test_the_unit_tests_run_where_no_other_user_can_enter() -> None:
    """A test that has another user read the checkout fails in CI, as it would below /root, wherever the checkout of CI lies."""
    assert '\nstart .ci/closed "$MAKE" --no-print-directory -s unit\n' in (ROOT / ".ci/test").read_text()
    if os.getuid() != 0 or run("unshare", "--mount", "true")[0]:
        pytest.skip("no mounts are allowed here")
    script = 'pwd; stat -c %a ..; setpriv --reuid=65534 --clear-groups test -r "$PWD/lib" || echo closed; echo "$1"; exit 7'
    code, said = run(str(ROOT / ".ci/closed"), "bash", "-c", script, "sh", "a word", cwd=pathlib.Path("/"))
    assert (code, said.splitlines()) == (7, [f"{ROOT}/build/closed/certdrop", "700", "closed", "a word"])
    assert list((ROOT / "build/closed/certdrop").iterdir()) == []          # it was a mount of that command's own


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_a_clone_made_under_any_umask(umask: int, tmp_path: pathlib.Path) -> None:
    """Whoever cloned under 002 or 077, and runs the tests so, has what tests put down read as if it were an administrator's."""
    for name in ("lib", "tests/unit/configurations", "tests/unit/conftest.py", "tests/unit/test_packaging.py", "tests/unit/importer/__init__.py",
                 "tests/unit/importer/test_files.py"):
        source, target = ROOT / name, tmp_path / name
        for path in [source, *(source.rglob("*") if source.is_dir() else [])]:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.mkdir(exist_ok=True) if path.is_dir() else shutil.copyfile(path, copy)
            copy.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    for name in ("systemd", "apparmor.d"):
        (tmp_path / name).mkdir()
    code, said = run("/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "configuration_of_every_version or links_of or acme_sh",
                     "tests/unit", cwd=tmp_path, umask=umask)
    assert code == 0, said

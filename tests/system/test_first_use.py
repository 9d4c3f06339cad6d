"""The first `certdrop add`: which CA is asked is what was typed, or agreed to, and it is said; at a terminal of its own, as an administrator has one."""

from __future__ import annotations

import os
import pathlib
import pty
import re
import select
import time
from collections.abc import Iterator

import pytest

from conftest import CONFIG, Host, stage

EAB = pathlib.Path("/etc/certdrop/eab.toml")


class Terminal:
    """A command at a terminal below `bash -i`, driven as a person would."""

    def __init__(self, line: str) -> None:
        self.child, self.fd = pty.fork()
        if self.child == 0:
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, "TERM": "dumb"})
        self.text = ""
        self.type(line + "; echo ended:$?\n")

    def type(self, text: str) -> None:
        """Type this."""
        os.write(self.fd, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        """What was shown up to this pattern; it is forgotten then."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end and select.select([self.fd], [], [], max(0, end - time.monotonic()))[0], f"no {pattern!r} in:\n{self.text}"
            self.text += os.read(self.fd, 4096).decode("utf-8", "replace")
        found = re.search(pattern, self.text)
        assert found
        seen, self.text = self.text[:found.end()], self.text[found.end():]
        return seen

    def answer(self, question: str, text: str) -> str:
        """Wait for a question, then type the answer."""
        seen = self.until(question)
        self.type(text + "\n")
        return seen

    def ended(self) -> int:
        """The exit code, when it has ended."""
        return int(re.findall(r"ended:(\d+)\r?\n", self.until(r"ended:\d+\r?\n"))[-1])

    def close(self) -> None:
        """Leave."""
        os.close(self.fd)
        os.waitpid(self.child, 0)


@pytest.fixture
def fresh(host: Host) -> Iterator[Host]:
    """A host on which nobody has said yet which CA is asked."""
    os.unlink(CONFIG)
    yield host
    EAB.unlink(missing_ok=True)
    for path in pathlib.Path("/etc/certdrop/roots.d").glob("*.pem"):
        path.unlink()


def test_what_cannot_take_effect_is_refused(host: Host) -> None:
    """Where certdrop.toml decides, an option that says something else is refused with the line that decides, and nothing is added."""
    name = host.name()
    done = host.run("certdrop", "add", name, "--contact", "other@example.org", "--no-issue", code=os.EX_DATAERR)
    assert "line 2, decides" in done.text and "nothing was added" in done.text and not os.path.exists(f"/etc/certdrop/sites.d/{name}.toml"), done


def test_another_ca_is_that_site_s_alone(host: Host) -> None:
    """It stands in the site's file; certdrop.toml stays, and so do the other sites."""
    before = stage.read(CONFIG)
    for words, directory in ((["--staging"], "letsencrypt-staging"), (["--ca", "zerossl"], "zerossl")):
        name = host.name()
        done = host.run("certdrop", "add", name, *words, "--no-issue", code=0)
        assert f'directory = "{directory}"' in stage.read(f"/etc/certdrop/sites.d/{name}.toml") and stage.read(CONFIG) == before, done
        host.run("certdrop", "remove", name, code=0)


def test_what_says_the_same_is_taken(host: Host) -> None:
    """An option that says what certdrop.toml says is fine."""
    host.run("certdrop", "add", host.name(), "--ca", host.world.pebble.directory_url, "--contact", "hostmaster@example.org", "--no-issue", code=0)


def test_an_option_decides_the_first_time(fresh: Host) -> None:
    """Without a file the options are written into it; --staging and another --ca exclude each other."""
    fresh.run("certdrop", "add", fresh.name(), "--staging", "--ca", "zerossl", "--no-issue", code=os.EX_USAGE)
    fresh.run("certdrop", "add", fresh.name(), "--ca", "http://ca.example.org/", "--no-issue", code=os.EX_USAGE)
    fresh.run("certdrop", "add", fresh.name(), "--ca", "https://ca.example.org/dir", "--contact", "a@example.org", "--no-issue", code=0)
    assert 'directory = "https://ca.example.org/dir"\ncontact = ["a@example.org"]' in stage.read(CONFIG)


def test_the_ca_is_named(host: Host) -> None:
    """add, and what only tells what it would do, say which CA they ask."""
    name = host.name()
    assert f"ask {host.world.pebble.directory_url} for it" in host.run("certdrop", "add", name, "--dry-run", code=0).text
    assert f"{name}: asking {host.world.pebble.directory_url}" in host.run("certdrop", "add", name).text
    os.unlink(CONFIG)
    assert "ask letsencrypt-staging (https://acme-staging" in host.run("certdrop", "add", host.name(), "--staging", "--dry-run", code=0).text


def test_the_questions(fresh: Host) -> None:
    """The CA is asked for, again where the answer names none; a private one's roots are taken; its terms are shown, and agreed to; a wrong mail address
    is asked for again; and then that CA is asked, and no other."""
    pebble, name = fresh.world.pebble, fresh.name()
    bundle = pathlib.Path("/tmp/private-roots.pem")
    bundle.write_text(stage.read(pebble.ca_bundle) + stage.read(pebble.root()))
    shell = Terminal(f"certdrop add {name} --no-issue")
    shell.answer(r"CA \[letsencrypt\]: ", "staging?")
    assert "no CA; give letsencrypt" in shell.answer(r"CA \[letsencrypt\]: ", pebble.directory_url)
    shell.answer("root certificates .*: ", "/etc/passwd")
    assert "/etc/passwd" in shell.answer("root certificates .*: ", str(bundle))
    assert "terms of service: data:text/plain" in shell.answer(r"agree to them\? \[y/N\] ", "y")
    shell.answer("Mail address: ", "me at home")
    assert "no mail address" in shell.answer("Mail address: ", "me@example.org")
    assert shell.ended() == 0
    shell.close()
    assert stage.read(CONFIG).splitlines()[1:] == [f'directory = "{pebble.directory_url}"', 'contact = ["me@example.org"]']
    fresh.serve(name)
    fresh.run("certdrop", "renew", name, code=0)             # by those roots alone, for the CA's server and for its certificates
    assert fresh.status(name)["state"] == "serving"


@pytest.mark.parametrize("key", ["\x03", "\x04", "n\n"])
def test_no(fresh: Host, key: str) -> None:
    """Ctrl-C, Ctrl-D and "no" mean no: nothing is written, and nothing goes on reading the terminal."""
    name = fresh.name()
    host, _, _ = fresh.world.pebble.directory_url.removeprefix("https://").partition("/")
    stage.write(f"/etc/certdrop/roots.d/{host}.pem", stage.read(fresh.world.pebble.ca_bundle))
    shell = Terminal(f"certdrop add {name}")
    shell.answer(r"CA \[letsencrypt\]: ", fresh.world.pebble.directory_url)
    shell.until(r"agree to them\? \[y/N\] ")
    shell.type(key)
    seen = shell.until(r"ended:\d+\r?\n")
    assert "nothing was added" in seen and "Traceback" not in seen, seen
    shell.type("echo ye''s\n")
    shell.until(r"yes\r?\n")
    shell.close()
    assert not os.path.exists(CONFIG) and not os.path.exists(f"/etc/certdrop/sites.d/{name}.toml")


@pytest.mark.parametrize("answer", ["n\n", "\x03"])
def test_roots_of_a_ca_that_is_not_taken(fresh: Host, answer: str) -> None:
    """They are not kept: who named a wrong file is asked for it again."""
    directory, wrong = fresh.world.pebble.directory_url, fresh.world.pebble.root()
    for _ in range(2):
        shell = Terminal(f"certdrop add {fresh.name()}")
        shell.answer(r"CA \[letsencrypt\]: ", directory)
        shell.answer("root certificates .*: ", wrong)        # the CA's own server has a certificate of another one
        shell.until(r"anyway\? \[y/N\] ")
        assert ["ca.stage.test:14000.pem"] == os.listdir("/etc/certdrop/roots.d")
        shell.type(answer)
        if answer == "n\n":
            shell.until(r"CA \[letsencrypt\]: ")
            assert [] == os.listdir("/etc/certdrop/roots.d")
            shell.type("\x04")
        assert "nothing was added" in shell.until(r"ended:\d+\r?\n")
        shell.close()
        assert [] == os.listdir("/etc/certdrop/roots.d")


def test_a_ca_that_cannot_be_reached(fresh: Host) -> None:
    """It is said, and another can be named."""
    shell = Terminal(f"certdrop add {fresh.name()}")
    shell.answer(r"CA \[letsencrypt\]: ", "https://127.0.0.1:9/dir")
    shell.answer("root certificates .*: ", "")
    assert "127.0.0.1" in shell.answer(r"anyway\? \[y/N\] ", "n")
    shell.until(r"CA \[letsencrypt\]: ")
    shell.close()

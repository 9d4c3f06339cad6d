"""What configuration files say, and who refuses what of it."""

from __future__ import annotations

import os
import pathlib

import pytest
from certdrop.config import general, site


@pytest.fixture(name="toml", autouse=True)
def _toml(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """certdrop.toml of a host of its own, on which no run was yet."""
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((0o100644, *[0] * 9)))
    return tmp_path / "certdrop.toml"


def test_what_was_changed_is_seen(toml: pathlib.Path) -> None:
    """Times and size count for nothing."""
    toml.write_text("workers = 3\n")
    assert general.load_config().workers == 3
    before = toml.stat()
    toml.write_text("workers = 4\n")
    os.utime(toml, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert general.load_config().workers == 4


OF_OTHERS = ["workers = 0", 'workers = "3"', 'self_check = "maybe"', 'proxy = "ftp://x"', 'contact = ["nobody"]', "limits = { a = 1 }", 'staging = "http://x"',
             'account_key_max_age = "1"', 'mail = { too = "x" }', "limits = { orders_per_three_hours = -1 }"]
OF_ALL = {"worker = 3": "the nearest known one is workers", "keys = 1": "the nearest known one is key", "key = 1": "a string",
          'key_max_age = "1"': 'give "renewal"', 'services = ["../x"]': "names of files", 'directory = "x"': "https:// URL"}


@pytest.mark.parametrize("line", OF_OTHERS)
def test_what_root_does_not_use_is_refused_by_whom_it_concerns(toml: pathlib.Path, line: str) -> None:
    """A slip in what only the issuer or the watcher use keeps no certificate from being installed."""
    toml.write_text(f'{line}\nkey = "rsa-3072"\n')
    assert site.load_config().key == "rsa-3072"
    with pytest.raises(site.ConfigError, match="certdrop.toml: "):
        general.load_config()


@pytest.mark.parametrize("line, told", OF_ALL.items())
def test_an_unknown_key_and_what_root_uses_are_refused_by_all(toml: pathlib.Path, line: str, told: str) -> None:
    """In the same words."""
    toml.write_text(line + "\n")
    said = []
    for load in (site.load_config, general.load_config):
        with pytest.raises(site.ConfigError, match=told) as caught:
            load()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_roots_keys_and_the_others_are_all_there_are() -> None:
    """What root passes over is what general.py reads."""
    assert set(vars(site.Config())).isdisjoint(site.OTHERS) and {*vars(site.Config()), *site.OTHERS} == set(vars(general.Config()))


def test_what_was_handed_out_is_the_callers(toml: pathlib.Path) -> None:
    """Who changes a list that he was given changes nobody else's."""
    toml.write_text('contact = ["a@example.org"]\n')
    general.load_config().contact.append("b@example.org")
    assert general.load_config().contact == ["a@example.org"]


@pytest.mark.parametrize("line", ["key_max_age = 2026-01-01", "contact = [2026-01-01]", "workers = 1979-05-27T07:32:00Z"])
def test_a_date_is_no_value(toml: pathlib.Path, line: str) -> None:
    """TOML has dates; no key takes one."""
    toml.write_text(line + "\n")
    for _ in range(2):
        with pytest.raises(site.ConfigError, match="must be"):
            general.load_config()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"a = " + b"[" * 60000, b"domains = 1\n"])
def test_a_site_of_nonsense_is_wrong_and_nothing_else(toml: pathlib.Path, text: bytes) -> None:
    """Whatever stands in its file, nothing at all included: that is this site's trouble, in words."""
    (toml.parent / "sites.d").mkdir()
    (toml.parent / "sites.d/a.test.toml").write_bytes(text)
    with pytest.raises(site.ConfigError, match="a.test.toml"):
        site.load_site("a.test", site.Config())

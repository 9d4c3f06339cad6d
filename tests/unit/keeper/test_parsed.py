"""What the keeper remembers of its configuration: never more than the very text says."""

from __future__ import annotations

import os
import pathlib

import pytest
from certdrop.config import site
from certdrop.keeper import notes


@pytest.fixture(name="toml", autouse=True)
def _toml(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """certdrop.toml of a host of its own, on which no run was yet."""
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((0o100644, *[0] * 9)))
    (tmp_path / "keeper").mkdir()
    forget(monkeypatch)
    return tmp_path / "certdrop.toml"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process begins."""
    monkeypatch.setattr(site, "parsed", {})
    monkeypatch.setattr(notes, "_recalled", {})


def test_the_same_text_is_parsed_once(toml: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run takes what this one parsed, for this text alone: times and size count for nothing."""
    toml.write_text("workers = 3\n")
    assert site.load_config().workers == 3
    notes.remember()
    forget(monkeypatch)
    notes.recall()
    with monkeypatch.context() as patch:
        patch.setattr("tomllib.loads", None)
        assert site.load_config().workers == 3
    before = toml.stat()
    toml.write_text("workers = 4\n")
    os.utime(toml, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert site.load_config().workers == 4
    notes.remember()
    forget(monkeypatch)
    notes.recall()
    assert site.load_config().workers == 4
    toml.unlink()
    site.parsed["another"] = "", "{}"
    notes.remember()
    assert (toml.parent / "keeper/parsed").read_text() == "{}"


@pytest.mark.parametrize("damage", [b"", b"\0\0\0", b"[]", b"5", b'{"a": 5}', b'{"a": ["b"]}', b'{"a": "b"', b"\xff"])
def test_a_damaged_note_is_none(toml: pathlib.Path, damage: bytes) -> None:
    """Then everything is parsed, as without it."""
    (toml.parent / "keeper/parsed").write_bytes(damage)
    toml.write_text("workers = 3\n")
    notes.recall()
    assert site.load_config().workers == 3


def test_what_was_handed_out_is_the_callers(toml: pathlib.Path) -> None:
    """Who changes a list that he was given changes nobody else's."""
    toml.write_text('contact = ["a@example.org"]\n')
    site.load_config().contact.append("b@example.org")
    assert site.load_config().contact == ["a@example.org"]


@pytest.mark.parametrize("line", ["key_max_age = 2026-01-01", "contact = [2026-01-01]", "workers = 1979-05-27T07:32:00Z"])
def test_a_date_is_no_value(toml: pathlib.Path, line: str) -> None:
    """TOML has dates; no key takes one."""
    toml.write_text(line + "\n")
    for _ in range(2):
        with pytest.raises(site.Wrong, match="must be"):
            site.load_config()


def test_a_disk_that_is_full_fails_no_run(toml: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note is worth milliseconds."""
    toml.write_text("workers = 3\n")
    site.load_config()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(notes, "put", full)
    notes.remember()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"a = " + b"[" * 60000, b"domains = 1\n"])
def test_a_site_of_nonsense_is_wrong_and_nothing_else(toml: pathlib.Path, text: bytes) -> None:
    """Whatever stands in its file, nothing at all included: that is this site's trouble, in words."""
    (toml.parent / "sites.d").mkdir()
    (toml.parent / "sites.d/a.test.toml").write_bytes(text)
    with pytest.raises(site.Wrong, match="a.test.toml"):
        site.load_site("a.test", site.Config())

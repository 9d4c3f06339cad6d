"""How root's commands become the watcher: what is shown of its words, and what it learns of the terminal."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from certdrop.watcher import principal


@pytest.mark.parametrize("said, shown", [
    ("serving\n", "serving\n"),
    ("\x1b[32mserving\x1b[0m\n", "\x1b[32mserving\x1b[0m\n"),
    ("\x1b]0;owned\x07\n", "?]0;owned?\n"),
    ("\x1b[2J\x1b[31", "?[2J?[31"),
    ("a\rb\x00\x9b31m\u202e\n", "a?b??31m?\n"),
    ("████░\n", "████░\n"),
])
def test_only_text_and_colours_are_shown(said: str, shown: str) -> None:
    """Whatever became of the watcher, root's terminal gets nothing to act on."""
    assert shown == principal.clean(said)


def test_relay_shows_both_streams_whole(tmp_path: Path) -> None:
    """Lines come through as they end; a colour that arrives in two parts stays one; a last line needs no end; a line without end is bounded."""
    pairs, files = [], [open(tmp_path / name, "w+b", buffering=0) for name in "12"]
    for data, shown in zip(([b"one\n\x1b[3", b"2mgreen\x1b[0m\nlast"], [b"x" * (principal.LINE + 1), b"\xff\n"]), files):
        reader, writer = os.pipe()
        pairs.append((os.fdopen(reader, "rb", buffering=0), shown.fileno()))
        if os.fork() == 0:
            for part in data:
                with os.fdopen(os.dup(writer), "wb") as stream:
                    stream.write(part)
            os._exit(0)
        os.close(writer)
    principal._relay(pairs)
    assert ["one\n\x1b[32mgreen\x1b[0m\nlast", "x" * (principal.LINE + 1) + "\N{REPLACEMENT CHARACTER}\n"] == [
        Path(shown.name).read_text(encoding="utf-8") for shown in files]
    os.wait(), os.wait()
    for opened in [*files, *(stream for stream, _ in pairs)]:
        opened.close()


def test_at_terminal_by_way_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is a terminal where root says that it leads to one."""
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        monkeypatch.delenv("CERTDROP_TERMINAL", raising=False)
        assert not principal.at_terminal(stream)
        monkeypatch.setenv("CERTDROP_TERMINAL", str(writer))
        assert principal.at_terminal(stream)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not principal.at_terminal(sys.stdout)

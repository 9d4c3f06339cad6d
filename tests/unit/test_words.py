"""What is shown of anybody's words, how long a reader is waited for, and what an answer is that nobody gave."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from certdrop import terminal, words
from certdrop.walls import become

LIB = str(Path(words.__file__).resolve().parents[1])


@pytest.mark.parametrize("said, shown", [
    ("serving\n", "serving\n"),
    ("\x1b[32mserving\x1b[0m\n", "\x1b[32mserving\x1b[0m\n"),
    ("\x1b[8mhidden\x1b[28m\n", "?[8mhidden?[28m\n"),
    ("\x1b]0;owned\x07\n", "?]0;owned?\n"),
    ("\x1b[2J\x1b[31", "?[2J?[31"),
    ("a\rb\x00\x9b31m\u202e\u2066\x7f\n", "a?b??31m???\n"),
    ("a\tb", "a b"),
    ("\u2588\u2588\u2591\n", "\u2588\u2588\u2591\n"),
])
def test_only_text_and_few_colours_are_shown(said: str, shown: str) -> None:
    """A terminal gets nothing to act on; of colours, what certdrop-status uses, and elsewhere none."""
    assert shown == terminal.clean(said, colours=True)
    assert "\x1b" not in terminal.clean(said) == words.clean(said)


def test_no_code_point_is_an_order() -> None:
    """Of all that Unicode has, what is shown is printable, and a line's end."""
    everything = "".join(map(chr, range(0x110000)))
    assert all(c.isprintable() or c == "\n" for c in words.clean(everything))


def test_relay_shows_both_streams_whole(tmp_path: Path) -> None:
    """Lines come through as they end; a colour that arrives in two parts stays one; a last line needs no end; a line without end is bounded."""
    files = [open(tmp_path / name, "w+b", buffering=0) for name in "12"]
    program = ("import os, time\nfor fd, part in ((1, b'one\\n\\x1b[3'), (2, b'x' * 65537), (1, b'2mgreen\\x1b[0m\\nlast'), (2, b'\\xff\\n')):\n"
               "    while part: part = part[os.write(fd, part):]\n    time.sleep(0.1)")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        become.relay(child.pid, {child.stdout.fileno(): files[0].fileno(), child.stderr.fileno(): files[1].fileno()}, terminal.LineByLine(True).cleaned)
    one, two = (Path(shown.name).read_text(encoding="utf-8") for shown in files)
    assert one == "one\n\x1b[32mgreen\x1b[0m\nlast"
    assert two == "x" * 65537 + "\N{REPLACEMENT CHARACTER}\n"
    for opened in files:
        opened.close()


def test_relay_does_not_wait_for_what_is_left_behind() -> None:
    """A process that the child left behind may hold the pipe, and write to it without end."""
    program = "import os, time\nif os.fork() == 0:\n    end = time.monotonic() + 8\n    while time.monotonic() < end: os.write(1, b'still\\n')"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child, open(os.devnull, "wb") as null:
        begin = time.monotonic()
        assert become.relay(child.pid, {child.stdout.fileno(): null.fileno()}, terminal.LineByLine(False).cleaned)
        assert time.monotonic() - begin < 4


def test_at_terminal_by_way_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is a terminal where its other end says that it leads to one."""
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        monkeypatch.delenv("CERTDROP_TERMINAL", raising=False)
        assert not words.at_terminal(stream.fileno())
        monkeypatch.setenv("CERTDROP_TERMINAL", str(writer))
        assert words.at_terminal(stream.fileno())


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_who_does_not_read(kind: str) -> None:
    """Is waited for as long as somebody may need, and no longer; afterwards hardly at all. A pipe as much as a terminal."""
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    program = f"""
import os, sys, time
sys.path.insert(0, {LIB!r})
from certdrop import words
words.PATIENCE = words._patience = 1.5
begin = time.monotonic()
for _ in range(2):
    try:
        words.put({writer}, b"x" * 5000000)
    except TimeoutError:
        print(round(time.monotonic() - begin, 1), flush=True)
words.say("lost")
"""
    done = subprocess.run([sys.executable, "-c", program], pass_fds=[writer], stdout=subprocess.PIPE, stderr=writer, text=True, timeout=20, check=True)
    first, second = map(float, done.stdout.split())
    assert 1.4 < first < 3 and second - first < 1.6
    os.close(reader), os.close(writer)


@pytest.mark.parametrize("typed, answer", [("y\n", True), ("yes\n", True), ("Y\n", True), ("\n", False), ("n\n", False), ("", False), ("y", False),
                                           ("yellow\n", False), ("https://ca.example/dir\n", False)])
def test_what_agrees(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], typed: str, answer: bool) -> None:
    """Only yes, on a line that was ended: Ctrl-D in the middle of one is none."""
    reader, writer = os.pipe()
    os.write(writer, typed.encode())
    os.close(writer)
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert terminal.agrees("Shall it be?") is answer
    assert capfd.readouterr().err.startswith("Shall it be? [y/N] ")


def test_interrupted_at_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C agrees to nothing, and asks for nothing more; also where the signal comes before read(2) does, which it then does not end."""
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        was = signal.signal(signal.SIGINT, signal.default_int_handler)                 # a shell's background jobs ignore it
        for _ in range(2):
            threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()        # the thread's own: no call of ours ends early
            help_ = threading.Timer(20, os.write, (writer, b"y\n"))
            help_.start()
            with pytest.raises(terminal.Declined):
                terminal.ask("Mail address: ")
            assert help_.is_alive()
            help_.cancel()
        signal.signal(signal.SIGINT, was)
    os.close(writer)
    assert signal.set_wakeup_fd(-1) == -1


def test_two_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was typed beyond the line is the next question's; a line may come in parts, and need not be UTF-8."""
    reader, writer = os.pipe()
    os.write(writer, b"first\nsec")
    threading.Timer(0.2, os.write, (writer, b"ond\n\xff\n")).start()
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert [terminal.ask("?"), terminal.ask("?"), terminal.ask("?")] == ["first", "second", "\ufffd"]
    os.close(writer)


def test_a_program_whose_output_is_not_taken() -> None:
    """Says so by its code; a reader who has seen enough is no failure."""
    program = f"import sys; sys.path.insert(0, {LIB!r})\nfrom certdrop import terminal\nsys.exit(terminal.program(lambda _: print('x') or 0, []))"
    with open("/dev/full", "wb") as full:
        assert subprocess.run([sys.executable, "-c", program], stdout=full, check=False).returncode == os.EX_IOERR
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run([sys.executable, "-c", program], stdout=writer, check=False).returncode == 0
    os.close(writer)

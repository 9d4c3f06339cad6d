"""What the parent of a run hears from the part that talks to the CA: whether root should look at the spool, whatever becomes of that part."""

from __future__ import annotations

import os

import pytest

from certdrop.issuer import command as issue


def hear(monkeypatch: pytest.MonkeyPatch, said: list[bytes], install: bool = True, together: float = 3600.0) -> tuple[bool, int]:
    """(whether root should look when the part has said this and ended, how often root was had look meanwhile)."""
    looks: list[None] = []
    reader, writer = os.pipe()

    def look() -> None:
        looks.append(None)
        if said:
            go_on()

    def go_on() -> None:
        os.write(writer, said.pop(0))
        if not said:
            os.close(writer)
    monkeypatch.setattr(issue, "_have_root_look", look)
    if said:
        go_on()
    else:
        os.close(writer)
    return issue._hear(reader, install, together), len(looks)


@pytest.mark.parametrize("said, install, waits", [
    ([], True, False), ([b"0"], True, False), ([b"1"], True, True), ([b"r0"], True, False), ([b"rr1"], True, True),
    ([b"r"], True, True), ([b"rrr"], True, True), ([b"r"], False, False)])
def test_how_a_run_ended(monkeypatch: pytest.MonkeyPatch, said: list[bytes], install: bool, waits: bool) -> None:
    """The last word counts; a part that was killed after a reply had no last word, and its reply waits for root all the same."""
    assert hear(monkeypatch, said, install) == (waits, 0)


@pytest.mark.parametrize("last, waits", [(b"0", False), (b"1", True), (b"r", True), (b"r1", True)])
def test_root_looks_meanwhile(monkeypatch: pytest.MonkeyPatch, last: bytes, waits: bool) -> None:
    """Of a reply that came early root is told before the end, and of what came since then at the end, also where that is a kill."""
    assert hear(monkeypatch, [b"r", last], together=0.0) == (waits, 1)


def test_a_clock_that_is_set_back_makes_no_sleep_of_a_day(monkeypatch):
    """cron's run waits for what is due before the next run, and for nothing else: a clock set back meanwhile makes that far away."""
    from types import SimpleNamespace
    options = SimpleNamespace(cron=True, install=False, plan=False, dry_run=False)
    slept, clock = [], [1_800_000_000.0]
    monkeypatch.setattr(issue, "_do_daily", lambda: None)
    monkeypatch.setattr(issue.time, "sleep", slept.append)
    monkeypatch.setattr(issue.time, "time", lambda: clock[0])

    def look(_):
        if not slept:
            return 0, False, clock[0] + 30                 # due in half a minute: waited for
        clock[0] -= 86400                                  # set back
        return 0, False, clock[0] + 86400 + 60
    monkeypatch.setattr(issue, "_look", look)
    assert issue._run(options) == 0
    assert slept == [31.0]


def test_replies_wait_for_each_other_where_nobody_watches(monkeypatch):
    """By cron a minute: root is called once for all that come in it. By hand two seconds: somebody watches."""
    from types import SimpleNamespace
    heard = []
    monkeypatch.setattr(issue, "_hear", lambda reader, install, together: heard.append(together) or os.close(reader) or False)
    monkeypatch.setattr(issue.os, "fork", lambda: 4711)
    monkeypatch.setattr(issue.os, "waitpid", lambda *_: (4711, 0))
    for cron in (True, False):
        options = SimpleNamespace(cron=cron, install=True, loud=False)
        assert issue._in_child(options, [], [], set(), None, None) == (0, False)
    assert heard == [60.0, 2.0]


def test_five_due_in_one_minute_are_ordered_in_one_go(monkeypatch):
    """cron's run waits for the last of them, looks once, and has root look once; two that are due later come later, together."""
    from types import SimpleNamespace
    options = SimpleNamespace(cron=True, install=True, plan=False, dry_run=False)
    start = 1_800_000_000.0
    due, clock, looks, roots = [start + after for after in (100, 101, 125, 140, 159, 300, 333)], [start], [], []

    def sleep(seconds):
        clock[0] += seconds

    def look(_):
        now = clock[0]
        done = [moment for moment in due if moment <= now]
        due[:] = [moment for moment in due if moment > now]
        looks.append(len(done))
        return 0, bool(done), issue.gathered(due)
    monkeypatch.setattr(issue, "_do_daily", lambda: None)
    monkeypatch.setattr(issue.time, "sleep", sleep)
    monkeypatch.setattr(issue.time, "time", lambda: clock[0])
    monkeypatch.setattr(issue.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(issue, "_look", look)
    monkeypatch.setattr(issue, "_have_root_look", lambda: roots.append(clock[0] - start))
    assert issue._run(options) == 0
    assert looks == [0, 5, 2]
    assert roots == [160.0, 334.0]

"""Many keepers at once: started by cron, by administrators and through sudo, they behave as one after the other."""

from __future__ import annotations

import json
import os
import re
import subprocess
from itertools import groupby

from conftest import SPOOL, STATE, Done, Host, stage

INSTALL = "/usr/sbin/certdrop-install"
LOG = "/var/log/certdrop/keeper.log"
GATE = "/run/gate"


class Started:
    """A command that runs beside others, at a terminal of its own where wanted."""

    def __init__(self, *argv: str, user: str = "", terminal: bool = False) -> None:
        self.argv = argv
        command = ["/usr/bin/script", "-qefc", " ".join(argv), "/dev/null"] if terminal else list(argv)
        ids = {"user": user, "group": user, "extra_groups": []} if user else {}
        self.path = f"/tmp/started-{os.getpid()}-{id(self)}"
        with open(self.path, "w") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **ids)

    @property
    def text(self) -> str:
        """What it said so far."""
        return stage.read(self.path)

    def end(self) -> Done:
        """Its end."""
        return Done(self.process.wait(120), self.text)


def events_since(offset: int) -> list[dict[str, object]]:
    """The keeper's events after that many bytes of its log."""
    with open(LOG, encoding="ascii") as stream:
        stream.seek(offset)
        return [json.loads(line) for line in stream]


def unfinished() -> list[str]:
    """Temporary files, below the directories of root's."""
    return [f"{folder}/{name}" for top in (STATE, SPOOL + "/requests", "/etc/certdrop")
            for folder, folders, files in os.walk(top) for name in (*folders, *files) if name.startswith(".")]


def test_twenty_keepers_behave_as_one_after_the_other(host: Host) -> None:
    """Eight from cron, eight through sudo, four verbs of an administrator's on three sites: all succeed, in runs that do not interleave."""
    names = [host.add(host.name()) for _ in range(3)]
    before, offset = {name: host.on_disk(name) for name in names}, os.path.getsize(LOG)
    started = []
    for number in range(8):
        started.append(Started(INSTALL))
        started.append(Started("/usr/bin/sudo", "-n", INSTALL, user="_certdrop"))
        if number < 4:
            started.append(Started("/usr/sbin/certdrop", *(["rotate"], ["renew", "--force"])[number % 2], names[number % 3]))
    ends = [(one.argv, one.end()) for one in started]
    assert len(ends) == 20
    assert [end for end in ends if end[1].code] == []
    runs = [run for run, _ in groupby(events_since(offset), key=lambda event: event["run"])]
    assert len(runs) == len(set(runs))
    assert unfinished() == []
    for name in names:
        assert host.on_disk(name) != before[name]
        assert host.served(name) == host.on_disk(name) and host.pair_matches(name)
        assert host.live(name) == host.proven(name)
        assert host.posted(name) == [f"{name}@{host.next(name):04d}.csr"]
        installed = [event["number"] for event in events_since(offset) if event["event"] == "serving" and event["site"] == name]
        assert installed == sorted(set(installed))


def test_a_rotate_that_finds_its_work_done_succeeds(host: Host) -> None:
    """Keepers that take the reply before `rotate` gets to it cost nothing: it says success, and the certificate is the new one."""
    name = host.add(host.name())
    before = host.on_disk(name)
    rotating = Started("/usr/sbin/certdrop", "rotate", name)
    while rotating.process.poll() is None:
        host.run(INSTALL, code=0)
    assert rotating.end().code == 0, rotating.text
    assert host.on_disk(name) != before
    assert host.served(name) == host.on_disk(name)


def test_a_message_says_who_holds_the_lock(host: Host) -> None:
    """While one keeper is at work, an administrator's verb says for whom it waits, one certdrop-install waits, and a third says who is at work and leaves."""
    name = host.add(host.name())
    test = "#!/bin/sh\necho >/run/gate-reached\nwhile [ ! -e /run/gate ]; do sleep 0.05; done\n"
    stage.write("/usr/local/sbin/gate", test, 0o755)
    stage.write("/etc/certdrop/services.d/gate.toml", 'test = ["/usr/local/sbin/gate"]\nreload = ["/bin/true"]\nport = 0\n')
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\nservices = ["nginx", "gate"]\n')
    try:
        first = Started("/usr/sbin/certdrop", "renew", name, terminal=True)
        stage.wait_for(lambda: os.path.exists("/run/gate-reached"), 60, "the service's test")
        holder = int(re.findall(r"process (\d+) since \d\d:\d\d:\d\d", stage.read(f"{STATE}/keeper/lock"))[0])
        assert "certdrop" in stage.read(f"/proc/{holder}/cmdline")
        verb = Started("/usr/sbin/certdrop", "rotate", name, terminal=True)
        stage.wait_for(lambda: f"another run is at work (process {holder} since" in verb.text, 20, "the verb's message")
        waits = Started(INSTALL, terminal=True)
        stage.wait_for(lambda: f"another run is at work (process {holder} since" in waits.text, 20, "the one that waits")
        leaves = Started(INSTALL, terminal=True).end()
        assert leaves.code == 0 and f"another run is at work (process {holder} since" in leaves.text and "it does what is to be done" in leaves.text
        quiet = host.run(INSTALL, code=0)
        assert quiet.text == ""
    finally:
        stage.write(GATE, "")
    for one in (first, verb, waits):
        assert one.end().code == 0, one.text
    assert host.served(name) == host.on_disk(name)
    os.unlink("/etc/certdrop/services.d/gate.toml")
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}"]\n')

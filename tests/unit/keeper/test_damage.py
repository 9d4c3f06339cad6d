"""Damage is one site's own: whatever becomes of one of its files, this site is healed, and told of; the others are done in the same run."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import time
from typing import Any, Callable, Iterator

import handing
import pytest

from certdrop import events, spool
from certdrop.config import site
from certdrop.keeper import generations, install, integrity, keys, notes, run, state
from certdrop.keeper.judges import Accepted
from certdrop.walls import users

DAMAGED, OTHER = "damaged.example", "other.example"
DAY = 86400
DEEP = b"[" * 100000


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def garble(path: pathlib.Path) -> None:
    path.write_bytes(bytes(range(256)))


def lose(path: pathlib.Path) -> None:
    path.unlink()


def bury(path: pathlib.Path) -> None:
    path.write_bytes(DEEP)


def bend(path: pathlib.Path) -> None:
    path.write_bytes(b'{"sha256": [], "not_after": "x", "key": {}, "domains": 1, "refused": {"number": "x"}, "install": 3, '
                     b'"spent": {"a": {}}, "revoke": {"1": {}}}')


def stand_in_the_way(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"x")


HARMS = [empty, garble, lose, bury, bend, stand_in_the_way]


@pytest.fixture(name="world", autouse=True)
def _world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Two sites that no service uses, each with two certificates beside its placeholder; the newer one is live and proven."""
    monkeypatch.setattr(site, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(spool, "SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(site, "ETC", str(tmp_path / "etc"))
    monkeypatch.setattr(events, "LOGS", str(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(users, "user_ids", lambda user: (os.getuid(), os.getgid()))
    monkeypatch.setattr(site, "site_names", lambda: [DAMAGED, OTHER])
    monkeypatch.setattr(site, "load_config", site.Config)
    monkeypatch.setattr(site, "load_site", configured)
    monkeypatch.setattr(integrity, "_examined", {})
    monkeypatch.setattr(integrity, "_recalled", {})
    for entry in ("state/sites", "state/live", "state/proven", "state/keeper/retired", "state/keeper/refused", "spool/requests", "spool/replies",
                  "etc/sites.d"):
        (tmp_path / entry).mkdir(parents=True)
    handing.change(monkeypatch)
    for name in (DAMAGED, OTHER):
        generations.make_placeholder(configured(name), 1)
        for number in (2, 3):
            certify(name, number)
        generations.move("live", name, 3)
        generations.move("proven", name, 3)
        (tmp_path / f"state/keeper/{name}.json").write_text('{"installed_at": 1, "spent": {}}')
    keep()
    assert (0, []) == keep()
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """A run keeps its directories open until its process ends: here many runs are one process."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(OSError):
            os.close(int(fd))


def configured(name: str, _: site.Config | None = None) -> site.Site:
    found = site.Site(name, site.Config())
    found.domains, found.services = [name], []
    return found


def certify(name: str, number: int, days: float = 80) -> None:
    """A generation with a certificate."""
    wanted = configured(name)
    if state.Observed(name).next is None:
        generations.make_next(wanted, number, None, now=False)
    key = pathlib.Path(state.directory(name, number), "privkey.pem").read_bytes()
    pem, sha256, begin, _ = keys.placeholder(key, [name])
    generations.complete(name, number, [pem, pem], Accepted(sha256, begin, int(time.time() + days * DAY)))


def keep() -> tuple[int, list[str]]:
    """A run of root's: its exit code, and what it said."""
    one = run.Run("certdrop-install", False, False)
    install.reconcile(one)
    return one.exit_code(), one.said


def _wants(name: str) -> bool:
    """Whether next is wanted now."""
    observed = state.Observed(name)
    return observed.has(observed.next, "now")


def stands(name: str, number: int | None = None) -> None:
    """The site is as it should be: live and proven are one whole generation (this one), and a whole next one is posted."""
    observed = state.Observed(name)
    assert observed.live == observed.proven == observed.newest and not observed.damaged and not observed.fault and not observed.leftovers
    assert number in (None, observed.live)
    posted = {spool.parse_entry(entry) for entry in os.listdir(spool.requests())}
    assert (name, observed.next, "csr") in posted


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("entry", integrity.COMPLETE)
def test_a_damaged_live_generation_gives_way_to_the_newest_whole_one(world: pathlib.Path, entry: str, harm: Callable[[pathlib.Path], None]) -> None:
    """Before any service meets it; another certificate is asked for, and the run says so in one sentence. The next run finds nothing to do."""
    harm(world / "sites" / DAMAGED / "0003" / entry)
    code, said = keep()
    if harm is empty and entry == "chain.pem":
        said = [line.replace("fullchain.pem is not cert.pem and chain.pem", "chain.pem") for line in said]
    assert os.EX_IOERR == code and 1 == len(said), said
    assert f"{DAMAGED}: generation 0003 is damaged" in said[0] and entry in said[0] and "another certificate is asked for" in said[0]
    stands(DAMAGED, 2)
    stands(OTHER, 3)
    assert _wants(DAMAGED) and not _wants(OTHER)
    assert (0, []) == keep()
    certify(DAMAGED, state.Observed(DAMAGED).next or 0)
    assert (0, []) == keep()
    stands(DAMAGED, 4)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("entry", integrity.REQUEST)
def test_a_damaged_request_is_made_anew(world: pathlib.Path, entry: str, harm: Callable[[pathlib.Path], None]) -> None:
    """With another number and key; it is wanted no sooner than the damaged one was."""
    harm(world / "sites" / DAMAGED / "0004" / entry)
    code, said = keep()
    assert os.EX_IOERR == code and 1 == len(said) and entry in said[0]
    stands(DAMAGED, 3)
    observed = state.Observed(DAMAGED)
    assert 5 == observed.next and not state.Observed(DAMAGED).has(5, "now") and [1, 2, 3, 5] == observed.numbers
    assert (0, []) == keep()


@pytest.mark.parametrize("until", ["cert.pem", "cert.json"])
def test_what_a_killed_run_half_accepted_is_no_damage(world: pathlib.Path, monkeypatch: pytest.MonkeyPatch, until: str) -> None:
    """Killed within complete(), and the names are changed before the next run: another request takes its place, and nothing is said of damage."""
    write = spool.write

    def killed(dir_fd: int, name: str, *rest: Any, **more: Any) -> None:
        write(dir_fd, name, *rest, **more)
        if name == until:
            raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(spool, "write", killed)
        certify(DAMAGED, 4)

    def changed(name: str, _: site.Config | None = None) -> site.Site:
        found = configured(name)
        found.domains.append("www." + name)
        return found
    monkeypatch.setattr(site, "load_site", changed)
    assert (0, []) == keep()
    stands(DAMAGED, 3)
    assert 5 == state.Observed(DAMAGED).next and 4 not in state.Observed(DAMAGED).numbers
    assert (0, []) == keep()


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_an_older_generation_that_is_damaged_is_given_up(world: pathlib.Path, harm: Callable[[pathlib.Path], None]) -> None:
    """Nobody goes back to it; nothing is asked for."""
    harm(world / "sites" / DAMAGED / "0002" / "cert.json")
    code, said = keep()
    assert os.EX_IOERR == code and 1 == len(said) and "generation 0002 is damaged" in said[0]
    stands(DAMAGED, 3)
    assert [1, 3, 4] == state.Observed(DAMAGED).numbers and not state.Observed(DAMAGED).has(4, "now")


def test_without_another_certificate_a_placeholder_lets_services_start(world: pathlib.Path) -> None:
    """Where nothing whole is left, not even a placeholder."""
    for number in (1, 2, 3):
        garble(world / "sites" / DAMAGED / f"{number:04d}" / "privkey.pem")
    code, said = keep()
    assert os.EX_IOERR == code and 3 == len(said)
    observed = state.Observed(DAMAGED)
    assert observed.live and state.Observed(DAMAGED).has(observed.live, "placeholder") and state.Observed(DAMAGED).has(observed.next, "now")
    assert (0, []) == keep()
    stands(OTHER, 3)


@pytest.mark.parametrize("harm", [empty, garble, bury, bend, stand_in_the_way], ids=lambda harm: harm.__name__)
def test_damaged_notes_are_written_anew(world: pathlib.Path, harm: Callable[[pathlib.Path], None]) -> None:
    """They time things, and say nothing of where a site stands."""
    path = world / "keeper" / f"{DAMAGED}.json"
    harm(path)
    code, said = keep()
    if harm is not bend:                       # which is an object, and what is in it is passed over
        assert os.EX_IOERR == code and 1 == len(said) and path.name in said[0]
    stands(DAMAGED, 3)
    assert (0, []) == keep()
    known = notes.Notes(DAMAGED)
    known.put_off(3, "service-failed", "x")
    known.save()
    assert known.install == notes.Notes(DAMAGED).install


LINKS: dict[str, Callable[[pathlib.Path], None]] = {
    "nowhere": lambda path: path.symlink_to(f"../sites/{DAMAGED}/0099"),
    "to no generation": lambda path: path.symlink_to("/etc"),
    "to another site": lambda path: path.symlink_to(f"../sites/{OTHER}/0003"),
    "to next": lambda path: path.symlink_to(f"../sites/{DAMAGED}/0004"),
    "a file": lambda path: path.write_bytes(b"x"),
    "a directory": lambda path: (path.mkdir(), (path / "x").mkdir()) and None,
    "none": lambda path: None,
}


@pytest.mark.parametrize("what", LINKS)
@pytest.mark.parametrize("link", ["live", "proven"])
def test_links_are_put_right(world: pathlib.Path, link: str, what: str) -> None:
    """Whatever stands where live or proven should be."""
    path = world / link / DAMAGED
    path.unlink()
    LINKS[what](path)
    keep()
    stands(DAMAGED, 3)
    stands(OTHER, 3)
    assert (0, []) == keep()


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_number_is_never_used_twice_whatever_became_of_the_last_one(world: pathlib.Path, harm: Callable[[pathlib.Path], None]) -> None:
    """A site is added again, and what its name was used for before cannot be read."""
    path = world / "keeper/retired" / DAMAGED
    path.write_bytes(b"7")
    shutil.rmtree(world / "sites" / DAMAGED)
    harm(path)
    keep()
    numbers = state.Observed(DAMAGED).numbers
    assert numbers[0] > 7 or harm is lose
    assert numbers[1:] == [numbers[0] + 1]
    stands(OTHER, 3)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_damaged_list_of_burnt_keys_is_told_and_read_as_far_as_it_can_be(world: pathlib.Path, harm: Callable[[pathlib.Path], None]) -> None:
    """Every site goes on; each run says so until the list is mended."""
    path = world / "keeper/burnt"
    path.write_text("00" * 32 + "\n")
    harm(path)
    for _ in range(2):
        code, said = keep()
        assert (0, []) == (code, said) if harm is lose else os.EX_IOERR == code and 1 == len(said) and "keeper/burnt" in said[0]
        stands(DAMAGED, 3)
    if harm is garble:
        path.write_bytes(b"\xff\xfe\n" + b"ab" * 32 + b"\n")
        assert {"ab" * 32} == state.burnt()


def test_a_burnt_certificate_is_revoked_although_its_key_is_damaged(world: pathlib.Path) -> None:
    """What was issued for a compromised key is owed a revocation, as long as the certificate can be read."""
    burnt = state.Observed(DAMAGED).spki(3)
    garble(world / "sites" / DAMAGED / "0003" / "privkey.pem")
    (world / "keeper/burnt").write_text(burnt + "\n")
    keep()
    assert f"{DAMAGED}@0003.revoke" in os.listdir(spool.requests())
    stands(DAMAGED, 2)


def test_nothing_is_read_again_while_nothing_was_touched(world: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process takes the former's word for files that stat(2) shows unchanged; and where that word is damaged, reads them."""
    monkeypatch.setattr(integrity, "_examined", {})
    with monkeypatch.context() as patch:
        patch.setattr(integrity, "_examine", None)
        assert (0, []) == keep()
    for harm in HARMS:
        (world / "keeper/examined").write_text("{}")
        harm(world / "keeper/examined")
        integrity._examined.clear()
        integrity._recalled.clear()
        assert (0, []) == keep()
        if (world / "keeper/examined").is_dir():
            shutil.rmtree(world / "keeper/examined")
        (world / "keeper/examined").touch()
    os.chmod(world / "sites" / DAMAGED / "0003" / "cert.pem", 0o600)
    assert (0, []) == keep()


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_damaged_request_to_revoke_holds_up_nobody(world: pathlib.Path, harm: Callable[[pathlib.Path], None]) -> None:
    """It stays; whether its certificate has ended cannot be read."""
    path = pathlib.Path(spool.requests()) / f"{DAMAGED}@0002.revoke"
    path.write_text(json.dumps({"not_after": 1}))
    harm(path)
    assert (0, []) == keep()


def test_a_site_whose_configuration_cannot_be_read_is_healed_as_well(world: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its files would keep a service from taking those of others."""
    def load(name: str, config: Any) -> site.Site:
        if name == DAMAGED:
            raise site.ConfigError("it cannot be read")
        return configured(name)
    monkeypatch.setattr(site, "load_site", load)
    garble(world / "sites" / DAMAGED / "0003" / "nginx.conf")
    assert os.EX_CONFIG == keep()[0]
    assert 2 == state.Observed(DAMAGED).live
    stands(OTHER, 3)


def test_trouble_of_the_system_is_no_damage(world: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor to be had: the site stays as it is, and the next run tries again."""
    os.utime(world / "sites" / DAMAGED / "0003" / "cert.pem")
    real = os.open

    def short(path: Any, *args: Any, **more: Any) -> int:
        if str(path).endswith("0003/cert.pem"):
            raise OSError(24, "Too many open files")
        return real(path, *args, **more)
    monkeypatch.setattr(os, "open", short)
    assert os.EX_TEMPFAIL == keep()[0]
    assert f"../sites/{DAMAGED}/0003" == os.readlink(world / "live" / DAMAGED)


def test_an_end_that_is_near_gives_way_to_one_that_is_further(world: pathlib.Path) -> None:
    """A live certificate that ends before root's next runs is given up for an older one that is good for longer, until another comes."""
    certify(DAMAGED, 4, days=30)
    keep()
    stands(DAMAGED, 4)
    at = world / "sites" / DAMAGED / "0004" / "cert.json"
    known = {**json.loads(at.read_text()), "not_before": int(time.time() - 60 * DAY)}
    for left, live in ((3 * 3600, 4), (3600, 3), (-3600, 3)):
        at.write_text(json.dumps({**known, "not_after": int(time.time() + left)}))
        assert 0 == keep()[0]
        stands(DAMAGED, live)
    certify(DAMAGED, 5)
    keep()
    stands(DAMAGED, 5)


@pytest.mark.parametrize("why", ["burnt", "revoked", "ends sooner", "withdrawn", "short-lived"])
def test_there_is_no_going_back_to_what_is_no_better(world: pathlib.Path, why: str) -> None:
    """Its key is compromised, it is revoked or was gone back from, or it ends before the live one; nor from one whose whole life is short."""
    certify(DAMAGED, 4, days=30)
    keep()
    at = world / "sites" / DAMAGED / "0004" / "cert.json"
    known = json.loads(at.read_text())
    begin = int(time.time() - (600 if why == "short-lived" else 60 * DAY))
    at.write_text(json.dumps({**known, "not_before": begin, "not_after": int(time.time()) + 1200}))
    for number in (2, 3):
        if why == "burnt":
            with open(world / "keeper/burnt", "a") as stream:
                stream.write(f'{state.Observed(DAMAGED).spki(number)}\n')
        elif why == "revoked":
            pathlib.Path(spool.requests(), f"{DAMAGED}@{number:04d}.revoke").write_text(json.dumps({"not_after": int(time.time() + 90 * DAY)}))
        elif why == "ends sooner":
            older = world / "sites" / DAMAGED / f"{number:04d}" / "cert.json"
            older.write_text(json.dumps({**json.loads(older.read_text()), "not_after": int(time.time()) + 600}))
        elif why == "withdrawn":
            generations.mark(DAMAGED, number, "withdrawn")
    keep()
    assert 4 == state.Observed(DAMAGED).newest == state.Observed(DAMAGED).live


def test_a_disk_that_is_full_costs_what_was_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note of it is worth milliseconds, and fails no run."""
    put = notes.put

    def full(entry: str, *rest: Any) -> None:
        if entry == "examined":
            raise OSError(28, "No space left on device")
        put(entry, *rest)
    monkeypatch.setattr(notes, "put", full)
    monkeypatch.setattr(integrity, "_recalled", {})
    assert (0, []) == keep()

"""What the issuer reads and remembers: requests and standings, the ledger, the agenda of the cheap tick, the budget, the plan. On real files."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certdrop import spool, tokens
from certdrop.config import general, site
from certdrop.issuer import budget, due, ledger, notes, orders, plan, posted
from certdrop.issuer import command as issue
from certdrop.issuer.agenda import Agenda
from certdrop.issuer.options import Options, Usage
from certdrop.issuer.failure import UNREACHABLE, VALIDATION, Failure

NOW = float(int(time.time()))
DAY = 86400


class Disk:
    """certdrop's directories, below one of the test's."""

    def __init__(self, top: object) -> None:
        self.top = str(top)
        for name in ("spool/requests", "spool/replies", "spool/challenges", "state/sites", "state/live", "state/keeper", "state/issuer"):
            os.makedirs(f"{self.top}/{name}")

    def put(self, path: str, text: str = "") -> str:
        path = f"{self.top}/{path}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            stream.write(text)
        return path

    def site(self, name: str, number: int = 3, now: bool = False, lifetime: int = 90 * DAY, age: int = 0, placeholder: bool = False) -> None:
        """A site with a live certificate in the generation before `number`, which is posted."""
        where = f"state/sites/{name}/{number - 1:04d}"
        for entry in ("nginx.conf", "cert.pem", *(["placeholder"] if placeholder else [])):
            self.put(f"{where}/{entry}")
        begin = int(NOW) - age
        self.put(f"{where}/cert.json", json.dumps({"sha256": f"{name}-{number}", "not_before": begin, "not_after": begin + lifetime}))
        self.put(f"state/sites/{name}/{number:04d}/request.csr")
        link = f"{self.top}/state/live/{name}"
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(f"../sites/{name}/{number - 1:04d}", link)
        self.put(f"spool/requests/{name}@{number:04d}.csr")
        if now:
            self.put(f"spool/requests/{name}@{number:04d}.now")


@pytest.fixture
def disk(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "STATE", f"{tmp_path}/state")
    monkeypatch.setattr(site, "ETC", f"{tmp_path}/etc")
    monkeypatch.setattr(spool, "SPOOL", f"{tmp_path}/spool")
    return Disk(tmp_path)


def request(name: str = "a.test") -> posted.Request:
    return next(found for found in posted.requests()[0] if found.name == name)


def task(*argv: str, name: str = "a.test") -> plan.Task:
    made = plan.Task(request(name), Options([*argv], False))
    made.decide(NOW)
    return made


def refuse(disk: Disk, text: str = "bad", reason: str = "key") -> None:
    """Root refused the reply that lies there."""
    import hashlib
    disk.put("spool/replies/a.test@0003.pem", text)
    disk.put("state/keeper/a.test.json", json.dumps({"refused": {"number": 3, "reason": reason, "reply_sha256": hashlib.sha256(text.encode()).hexdigest()}}))


# ---- what is posted

def test_the_newest_request_counts(disk):
    """Of several requests of a site, the highest number; a `now` of another number is not its own; foreign names are passed over."""
    disk.site("a.test", 3)
    for entry in ("a.test@0002.csr", "a.test@0002.now", "nonsense", ".a.test@0009.csr.new", "UPPER@0001.csr", "a.test@0004.now"):
        disk.put("spool/requests/" + entry)
    listed, stale, _ = posted.requests()
    assert [(found.name, found.number, found.now, found.answered) for found in listed] == [("a.test", 3, False, False)] and stale == set()


def test_replies_without_a_request_are_stale(disk):
    """And are removed, with tokens of a killed run; nothing else is."""
    disk.site("a.test", 3)
    for entry in ("replies/a.test@0003.pem", "replies/a.test@0002.pem", "replies/gone.test@0001.pem", "challenges/" + "t" * 43, "challenges/README"):
        disk.put("spool/" + entry)
    listed, stale, _ = posted.requests()
    assert listed[0].answered and stale == {"a.test@0002.pem", "gone.test@0001.pem"}
    plan.tidy(stale)
    assert os.listdir(spool.replies()) == ["a.test@0003.pem"] and os.listdir(tokens.directory()) == ["README"]


@pytest.mark.parametrize("marker", ["withdrawn", "incomplete", "placeholder", "garbage"])
def test_which_certificate_counts(disk, marker):
    """The newest complete one that was not withdrawn; a placeholder is none, nor is what cannot be read."""
    disk.site("a.test", 3)
    disk.site("a.test", 5)
    where = "state/sites/a.test/0004"
    if marker == "incomplete":
        os.unlink(f"{disk.top}/{where}/nginx.conf")
    elif marker == "garbage":
        disk.put(where + "/cert.json", "{")
    else:
        disk.put(f"{where}/{marker}")
    found = posted.Standing(request()).certificate
    assert (found.sha256 if found else None) == {"withdrawn": "a.test-3", "incomplete": "a.test-3"}.get(marker)


def test_an_unfinished_installation_has_root_look(disk):
    """The live link is not at the newest complete generation; where root put it off, when it said; a settled site has nobody look."""
    disk.site("a.test", 3)
    assert posted.Standing(request()).look_at == due.NEVER
    disk.site("a.test", 5)
    os.unlink(f"{disk.top}/state/live/a.test")
    os.symlink("../sites/a.test/0002", f"{disk.top}/state/live/a.test")
    assert posted.Standing(request()).look_at == 0.0
    disk.put("state/keeper/a.test.json", json.dumps({"install": {"number": 4, "next_try": NOW + 600}}))
    assert posted.Standing(request()).look_at == NOW + 600


def test_a_waiting_reply_has_root_look(disk):
    """At once, or an hour after the site's last installation; a refused one does not."""
    disk.site("a.test", 3)
    disk.put("spool/replies/a.test@0003.pem", "x")
    assert posted.Standing(request()).look_at == 0.0
    disk.put("state/keeper/a.test.json", json.dumps({"installed_at": int(NOW)}))
    assert posted.Standing(request()).look_at == NOW + 3600
    refuse(disk)
    assert posted.Standing(request()).look_at == due.NEVER


# ---- decisions

def test_a_reply_that_waits_is_no_reason_to_ask(disk):
    """Not even with `now`."""
    disk.site("a.test", 3, now=True)
    disk.put("spool/replies/a.test@0003.pem", "x")
    assert (task().when, task().why) == (due.NEVER, plan.REPLY_WAITS)


def test_a_refused_reply_is_a_failure_under_back_off(disk):
    """Counted once for each reply, and remembered over a new reply, until root took one."""
    disk.site("a.test", 3, now=True)
    refuse(disk)
    first = task()
    first.ledger.save()
    assert first.ledger.kind == "refused" and "key" in first.ledger.last_error and NOW + 40 < first.when < NOW + 80
    again = task()
    assert (again.ledger.count, again.when) == (1, first.when)
    again.ledger.issued("https://ca", "leaf", None, NOW)
    again.ledger.save()
    refuse(disk, "another")
    second = task()
    second.ledger.save()
    assert second.ledger.count == 2 and second.when > NOW + 400
    second.ledger.issued("https://ca", "a.test-5", None, NOW)
    second.ledger.save()
    os.unlink(f"{disk.top}/spool/requests/a.test@0003.csr")
    os.unlink(f"{disk.top}/spool/requests/a.test@0003.now")
    disk.site("a.test", 5)
    assert (task().ledger.count, task().ledger.kind) == (0, "")


def test_a_renewal_that_fails_stays_under_a_back_off(disk):
    """That the last reply is installed, as at every site that has a certificate, forgives nothing that failed since."""
    disk.site("a.test", 3)
    first = task()
    first.ledger.issued("https://ca", first.certificate.sha256, None, NOW)
    first.ledger.failed(Failure(VALIDATION, "x", 7200.0), first.certificate, NOW)
    first.ledger.save()
    again = task("--force", "a.test")
    assert again.ledger.count == 1 and again.when >= NOW + 7200


def test_the_next_key_is_no_reason_to_ask(disk):
    """A posted request alone is none: the certificate is young."""
    disk.site("a.test", 3)
    assert task().when > NOW + 50 * DAY and task().why == "its share of the lifetime"


@pytest.mark.parametrize("argv, due_now", [([], False), (["a.test"], False), (["--force", "a.test"], True)])
def test_force_asks_for_what_is_not_due(disk, argv, due_now):
    """A name alone does not."""
    disk.site("a.test", 3)
    assert (task(*argv).when <= NOW) == due_now


def test_a_named_site_that_is_wanted_does_not_wait_for_a_back_off(disk):
    """An administrator's renew."""
    disk.site("a.test", 3, now=True)
    found = ledger.Ledger("a.test")
    found.failed(Failure(VALIDATION, "x"), None, NOW)
    found.save()
    assert task().when > NOW and task("a.test").when <= NOW


# ---- the ledger

def test_the_ledger_comes_back(disk):
    """What watcher and status read of it stands in it by these names."""
    found = ledger.Ledger("a.test")
    found.failed(Failure(UNREACHABLE, "ca.example.org: no\nanswer", 7200.0), None, NOW)
    found.plan(NOW + 5, "why")
    found.save()
    written = json.load(open(f"{disk.top}/state/issuer/a.test.json"))
    assert {"count": 1, "since": int(NOW), "class": "CA unreachable", "last_error": "ca.example.org: no answer", "renew_at": int(NOW) + 5,
            "renew_why": "why"}.items() <= written.items() and written["next_try"] >= NOW + 7200
    assert vars(ledger.Ledger("a.test")) == {**vars(found)}
    assert os.stat(f"{disk.top}/state/issuer/a.test.json").st_mode & 0o777 == 0o644


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
       st.sampled_from(["count", "next_try", "class", "window_of", "window_end", "poll_at"]))
def test_a_damaged_ledger_harms_nothing(value, key):
    """Whatever stands there, the types hold."""
    found = ledger.Ledger.__new__(ledger.Ledger)
    original = notes.table
    try:
        notes.table = lambda entry: {key: value}
        found.__init__("a.test")
    finally:
        notes.table = original
    assert all(isinstance(getattr(found, name), int) for name in ledger._NUMBERS)
    assert due.due("a", False, None, found, NOW)[0] <= NOW + 7.4 * DAY + 60


# ---- the tally of orders

def test_the_tally_of_orders(disk, monkeypatch):
    """A day's orders are added up over its runs; what is older than 90 days, or no day, goes; a run without orders writes nothing."""
    config = general.Config()
    old, edge = (time.strftime("%Y-%m-%d", time.gmtime(NOW - days * DAY)) for days in (90, 89))
    row = {"orders": 1, "counted": 1, "issued": 1, "failed": 0}
    disk.put("state/issuer/tally", json.dumps({"days": {old: row, edge: row, "x": row, "2999-01-01": row, edge + "x": 5}}))
    for _ in range(2):
        spent = budget.Budget(config, NOW)
        spent.note(budget.BEGUN, "a.test", NOW)
        spent.note(budget.ORDERED, "", NOW)
        spent.note(budget.FAILED, "a.test", NOW)
        spent.save_tally(NOW)
    found = json.load(open(f"{disk.top}/state/issuer/tally"))
    today = time.strftime("%Y-%m-%d", time.gmtime(NOW))
    assert found == {"days": {edge: row, today: {"orders": 2, "counted": 2, "issued": 0, "failed": 2}}, "limit": 300, "recent": 2, "at": int(NOW)}
    other = budget.Budget(config.asking("https://other.test/dir"), NOW)
    other.note(budget.BEGUN, "a.test", NOW)
    other.save_tally(NOW + 1)                  # its orders count, and what is told of the limit stays that of the CA configured for all
    again = json.load(open(f"{disk.top}/state/issuer/tally"))
    assert again["days"][today]["orders"] == 3 and [again[key] for key in ("limit", "recent", "at")] == [300, 2, int(NOW)]
    os.unlink(f"{disk.top}/state/issuer/tally")
    budget.Budget(config, NOW).save_tally(NOW)
    assert not os.path.exists(f"{disk.top}/state/issuer/tally")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"days": [1]}', '{"days": {"2026-01-01": 7}}', '{"days": {"2026-01-01": {"orders": "x", "issued": -1}}}'])
def test_a_damaged_tally(disk, text):
    """Whatever stands there, today's orders are counted."""
    disk.put("state/issuer/tally", text)
    spent = budget.Budget(general.Config(), NOW)
    spent.note(budget.BEGUN, "a.test", NOW)
    spent.save_tally(NOW)
    assert list(json.load(open(f"{disk.top}/state/issuer/tally"))["days"].values())[-1] == {"orders": 1, "counted": 0, "issued": 0, "failed": 0}


# ---- the agenda

def remembered(disk, name="a.test"):
    agenda = Agenda(NOW)
    found = task(name=name)
    found.ledger.note_window(found.certificate, NOW + 40 * DAY, NOW + 41 * DAY, 6 * 3600.0, NOW, 0.5)
    found.conclude(agenda, NOW)
    agenda.save(posted.requests()[0], NOW)
    return found.when


def test_the_agenda_spares_a_look(disk):
    """A site that is settled is looked at again when the CA's window is to be asked for."""
    disk.site("a.test", 3)
    assert Agenda(NOW).when(request()) == 0.0
    remembered(disk)
    assert NOW + 6 * 3600 - 1 < Agenda(NOW).when(request()) <= NOW + DAY


def test_lost_notes_are_no_storm(disk, monkeypatch):
    """Of many sites without notes a run asks for its share, the nearest to expiry first; each of the others has its turn in a later run, and waits for it."""
    monkeypatch.setattr(plan, "MOST_POLLS", 4)
    names = [f"s{at}.test" for at in range(10)]
    for at, name in enumerate(names):
        disk.site(name, 3, age=at * DAY)
    agenda, tasks = Agenda(NOW), [task(name=name) for name in names]
    assert [found.name for found in plan.curious(tasks, NOW)] == names[:-5:-1]
    for found in tasks:
        found.conclude(agenda, NOW)
    assert [agenda.when(request(name)) - NOW for name in names[5::-1]] == [600] * 4 + [1200] * 2
    later = [task(name=name) for name in names[:6]]
    assert plan.curious(later, NOW + 599) == [] and [found.name for found in plan.curious(later, NOW + 600)] == names[5:1:-1]


def test_a_window_that_is_put_off_stays(disk):
    """What is known of this certificate holds until the CA is asked again; what was known of another one does not."""
    disk.site("a.test", 3)
    found = task()
    found.ledger.note_window(found.certificate, NOW + 40 * DAY, NOW + 41 * DAY, 6 * 3600.0, NOW, 0.5)
    found.ledger.put_off_window(found.certificate, NOW + 600)
    assert found.ledger.has_window(found.certificate) and due.poll_due(found.certificate, found.ledger, NOW + 600)
    other = due.Certificate("other", NOW, NOW + DAY)
    found.ledger.put_off_window(other, NOW + 600)
    assert not found.ledger.has_window(other) and not due.poll_due(other, found.ledger, NOW + 599)


@pytest.mark.parametrize("change", [
    lambda disk: disk.put("spool/requests/a.test@0003.now"),
    lambda disk: disk.put("spool/replies/a.test@0003.pem"),
    lambda disk: disk.site("a.test", 4),
    lambda disk: disk.put("state/sites/a.test/0003/nginx.conf"),
    lambda disk: (os.unlink(f"{disk.top}/state/live/a.test"), os.symlink("../sites/a.test/0001", f"{disk.top}/state/live/a.test")),
    lambda disk: (disk.put("state/issuer/x", "{}"), os.rename(f"{disk.top}/state/issuer/x", f"{disk.top}/state/issuer/a.test.json")),
    lambda disk: os.unlink(f"{disk.top}/state/issuer/agenda"),
    lambda disk: disk.put("state/issuer/agenda", "garbage"),
    lambda disk: disk.put("state/issuer/agenda", f"{NOW - 2 * DAY:.0f} " + open(f"{disk.top}/state/issuer/agenda").read().partition(" ")[2]),
    lambda disk: disk.put("state/issuer/agenda", f"{NOW + DAY:.0f} " + open(f"{disk.top}/state/issuer/agenda").read().partition(" ")[2]),
    lambda disk: disk.put("etc/certdrop.toml", 'directory = "zerossl"\n')])
def test_the_agenda_is_not_believed_over_the_disk(disk, change):
    """Whatever changes what a look would find, or the clock, has the site looked at."""
    disk.site("a.test", 3)
    remembered(disk)
    assert Agenda(NOW).when(request()) > NOW
    change(disk)
    assert Agenda(NOW).when(request()) == 0.0


# ---- the budget

def configured(directory: str = "letsencrypt", **limits: int) -> general.Config:
    config = general.Config()
    config.directory, config.limits = directory, dict(limits)
    return config


def test_what_was_noted_a_moment_ago_counts(disk):
    """The journal has whole seconds; none of them lies ahead of the moment that it stands for."""
    for _ in range(5):
        budget.Budget(configured(), NOW + 0.6).note(budget.FAILED, "a.test", NOW + 0.6)
    assert budget.Budget(configured(), NOW + 0.7).refusal(["a.test"], False, NOW + 0.7)[0]


def test_the_budget_refuses_before_the_ca_would(disk):
    """Let's Encrypt's five failed validations of a name in an hour; it says until when, and what overrides it."""
    for number in range(5):
        found = budget.Budget(configured(), NOW)
        assert found.refusal(["a.test"], False, NOW + number) == ("", 0.0)
        found.note(budget.FAILED, "a.test", NOW + number)
    text, until = budget.Budget(configured(), NOW + 10).refusal(["b.test", "a.test"], False, NOW + 10)
    assert "5 validations of a.test failed in the last hour" in text and "failed_per_name_and_hour" in text and until == NOW + 3600
    assert budget.Budget(configured(), NOW + 10).refusal(["a.test"], True, NOW + 10)[0]
    assert budget.Budget(configured(), NOW + 3601).refusal(["a.test"], False, NOW + 3601) == ("", 0.0)
    assert budget.Budget(configured(failed_per_name_and_hour=0), NOW + 10).refusal(["a.test"], False, NOW + 10) == ("", 0.0)
    assert budget.Budget(configured("https://other.example.org/dir"), NOW + 10).refusal(["a.test"], False, NOW + 10) == ("", 0.0)


def test_the_same_names_again_and_again(disk):
    """Five a week, in whatever order; a replacement is exempt."""
    found = budget.Budget(configured(), NOW)
    for _ in range(5):
        found.note(budget.ISSUED, budget.set_of(["a.test", "b.test"]), NOW)
    assert "issued in the last 7 days" in found.refusal(["b.test", "a.test"], False, NOW)[0]
    assert found.refusal(["b.test", "a.test"], True, NOW) == found.refusal(["a.test"], False, NOW) == ("", 0.0)


@given(st.lists(st.sampled_from(["1 2", "x", "", "1800000000 aa failed a", "\x00", "9" * 99 + " a b c", "\xff"]), max_size=20))
def test_a_damaged_journal_harms_nothing(lines):
    """Lines that were cut are passed over."""
    import tempfile
    with tempfile.TemporaryDirectory() as top:
        before, site.STATE = site.STATE, top
        try:
            os.mkdir(top + "/issuer")
            with open(top + "/issuer/budget", "w", encoding="utf-8") as stream:
                stream.write("\n".join(lines))
            assert budget.Budget(configured(), 1_800_000_000.0).refusal(["a"], False, 1_800_000_000.0) == ("", 0.0)
        finally:
            site.STATE = before


def test_the_journal_is_shortened(disk):
    """What is older than a week goes."""
    found = budget.Budget(configured(), NOW)
    for number in range(100):
        found.note(budget.ORDERED, "", NOW - 8 * DAY)
    found.note(budget.ORDERED, "", NOW)
    budget.Budget(configured(), NOW)
    assert len(open(f"{disk.top}/state/issuer/budget").readlines()) == 1


# ---- the command line

@pytest.mark.parametrize("argv", [["--nonsense"], ["--force"], ["--plan", "--dry-run"], ["--cron", "a.test"], ["--cron", "--plan"]])
def test_a_wrong_command_line(argv):
    """Is refused."""
    with pytest.raises(Usage):
        Options(argv, False)


# ---- names

@pytest.mark.parametrize("given, expected", [
    ("b\u00fccher.example", "xn--bcher-kva.example"), ("B\u00dcCHER.example", "xn--bcher-kva.example"), ("a.example", "a.example"),
    ("\u4f8b\u3048.\u30c6\u30b9\u30c8", "xn--r8jz45g.xn--zckzah"), ("xn--bcher-kva.example", "xn--bcher-kva.example")])
def test_internationalized_names(given, expected):
    """Are asked for as A-labels."""
    assert site.as_a_labels(given) == expected
    assert not site.refusal(site.as_a_labels(given))


@pytest.mark.parametrize("text, good", [
    ("192.0.2.1", True), ("2001:db8::1", True), ("::1", True), ("192.0.2.256", False), ("192.0.02.1", False), ("2001:DB8::1", False),
    ("2001:db8:0:0:0:0:0:1", False), ("::ffff:192.0.2.1", False), ("::ffff:c000:201", False), ("fe80::1%eth0", False), ("[::1]", False),
    ("192.0.2.0/24", False), ("1.2.3.4\n", False), ("::", True), (":", False), ("\u0661.2.3.4", False)])
def test_addresses(text, good):
    """In their one canonical form only (RFC 5952): what is compared is text."""
    assert site.is_address(text) == good


@pytest.mark.parametrize("text", ["\u2764\ufe0f\u200d.", "\u00fc" * 64 + ".example", "\u0661a.example\u3002", "-\u00fc.example"])
def test_names_that_cannot_be_converted_are_refused(text):
    """With one line, as any other that is no host name."""
    assert "no host name" in site.refusal(site.as_a_labels(text))


@pytest.mark.parametrize("text, good", [
    ("*.example.org", True), ("*.xn--bcher-kva.example", True), ("*.b\u00fccher.example", True), ("*.a.b.example.org", True),
    ("*." + "a." * 123 + "test", True), ("*." + "a." * 125 + "org", False), ("*", False), ("*.", False), ("*.com", False), ("*.*.example.org", False),
    ("*x.example.org", False), ("x*.example.org", False), ("x.*.example.org", False), ("*.example.org.", False), ("*.Example.org", False),
    (".example.org", False), ("*..example.org", False), ("*.1.2.3.4", False), ("*.::1", False), ("*.example.org\n", False), ("*. example.org", False),
    ("*.e_x.org", False), ("*.-x.org", False), ("**.example.org", False), ("?.example.org", False), ("[a].example.org", False), ("192.0.2.1", False),
    ("2001:db8::1", False), ("example.org", True)])
def test_wildcards(text, good):
    """Are one star, alone in the first label, and a host name behind it; and only where a record in the DNS proves names, which proves no address."""
    assert bool(site.refusal(site.as_a_labels(text), site.VALIDATIONS[1])) != good
    assert site.refusal(site.as_a_labels(text)) or "*" not in text


@pytest.mark.parametrize("number, code, told", [(errno.EPERM, os.EX_SOFTWARE, True), (errno.ENOSPC, os.EX_TEMPFAIL, False)])
def test_a_refused_system_call_is_not_passed_over_under_cron(
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, code: int, told: bool) -> None:
    """A filter that lacks a call would else stop all renewals in silence; what passes by itself is not told."""
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(orders, "run", refused)
    options = Options(["--cron"], False)
    assert issue._in_child(options, [], [], set(), None, None) == (code, False)          # type: ignore[arg-type]
    assert ("please report this" in capfd.readouterr().err) == told

"""Several sites taken together: what is said of each is what is in the files, whoever fails, or ends it, at any step."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Callable

import pytest

from certdrop.admin import candidates
from certdrop.config import general
from certdrop.keeper import services
from certdrop.nginx import change, fetched, pages, several, snippets
from certdrop.nginx.blocks import Build, Refused
from certdrop.nginx.configuration import Configuration
from certdrop.nginx.edit import Wanted
from certdrop.nginx.syntax import Source

SNIPPET = (pathlib.Path(__file__).resolve().parents[3] / "nginx" / "certdrop-challenge.conf").read_text()
BUILD = Build((1, 26, 3), (3, 5), True)
A, B, OTHER = "a.example", "b.example", "other.example"
HTTPS = "listen 443"

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="the files must be root's")


class Here:
    """Two server blocks in a file; nginx, the CA, and pages that each may go wrong. What is asked of nginx is noted."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root, self.file, self.main = root, root / "sites", root / "nginx.conf"
        for folder in ("kept", "live", "etc/sites.d"):
            (root / folder).mkdir(parents=True)
        self.before = "".join(f"server {{ listen 80; server_name {name}; root /{name}; }}\n" for name in (A, B))
        self.file.write_text(self.before)
        self.file.chmod(0o644)
        self.main.write_text(f"http {{ include {self.file}; }}\n")
        self.asked: list[str] = []
        self.unit = "nginx.service"
        self.at_test: list[Callable[[], object]] = []
        self.at_order: Callable[[], object] = lambda: None
        self.page: Callable[[str, str], pages.Page] = lambda name, scheme: page(name, scheme)

    def test(self) -> None:
        """nginx's test."""
        self.asked.append("test")
        if self.at_test:
            self.at_test.pop(0)()

    def reload(self) -> None:
        """nginx's reload."""
        self.asked.append("reload")

    def config(self) -> Configuration:
        """What nginx reads."""
        return Configuration([Source(str(self.main), self.main.read_text()), Source(str(self.file), self.file.read_text()),
                              Source(snippets.CHALLENGE, SNIPPET)])

    def order(self, left: list[Wanted]) -> tuple[list[Wanted], several.Failures]:
        """Sites and certificates for all."""
        for one in left:
            live = self.root / "live" / one.name
            live.mkdir(exist_ok=True)
            (live / "nginx.conf").write_text("ssl_certificate /c; ssl_certificate_key /k;")
            (self.root / "etc/sites.d" / f"{one.name}.toml").write_text(f'domains = ["{one.name}"]\n')
        self.at_order()
        return left, {}

    def take(self, *names: str) -> several.Failures:
        """Have these served."""
        return several.take([Wanted([name], [name], BUILD) for name in names or (A, B)], self.order)

    def of(self, name: str) -> str:
        """What is in the block of a name."""
        return next(part for part in self.file.read_text().split("server {") if f"server_name {name};" in part)

    def begun(self, name: str) -> bool:
        """Whether it is noted that somebody is at work."""
        return (self.root / "kept" / name / "begun").exists()

    def killed(self, when: Callable[[str], bool], *names: str) -> None:
        """Be killed by kill -9 in the first test of nginx's at which the file has this."""
        child = os.fork()
        if not child:
            self.at_test = [lambda: os._exit(9) if when(self.file.read_text()) else None] * 20
            try:
                self.take(*names)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def page(name: str, scheme: str, content: str = "x", status: int = 200, why: str = "") -> pages.Page:
    """What is seen of a page."""
    return pages.Page(status, len(content), content, (), f"of {name}" if scheme == "https" else "", why)


@pytest.fixture(name="here")
def _here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here(tmp_path)
    for place, name, value in [
            (change, "KEPT", str(tmp_path / "kept")), (change, "INSTALL", "/bin/true"), (change, "configuration_now", here.config),
            (change, "service_here", lambda: here), (change, "tested", lambda _: here.config()), (pages, "fingerprint", lambda name: f"of {name}"),
            (change, "to_be_asked", lambda _, domains: ([("127.0.0.1", one, "http") for one in domains], [("127.0.0.1", OTHER, "http")])),
            (change.site, "STATE", str(tmp_path)), (change.site, "ETC", str(tmp_path / "etc")), (fetched, "of_new", lambda _: {}),
            (pages, "look", lambda asked: [here.page(name, scheme) for _, name, scheme in asked]), (pages, "RELOADED", 0.0)]:
        monkeypatch.setattr(place, name, value)
    return here


def bad(name: str, content: str = "") -> Callable[[str, str], pages.Page]:
    """This name answers otherwise over https."""
    return lambda one, scheme: page(one, scheme, content or "broken", 503) if (one, scheme) == (name, "https") else page(one, scheme)


def apply(*names: str, options: change.Options = change.Options()) -> int:
    """certdrop-nginx NAME... --apply."""
    groups = []
    for name in names:
        found = change.site.Site(name, general.Config())
        found.domains = [name]
        groups.append([found])
    return several._apply(groups, BUILD, options)


def test_all_are_served(here: Here) -> None:
    """Nothing went wrong: two reloads for both."""
    assert not here.take()
    assert HTTPS in here.of(A) and HTTPS in here.of(B) and here.asked == ["test", "reload"] * 2 and not here.begun(A)


def test_what_was_killed_is_gone_on_with(here: Here) -> None:
    """Between write and reload: the next run tests, reloads and looks, whatever begins it; until then the site does not count as done."""
    here.killed(lambda text: HTTPS in text, A)
    assert HTTPS in here.of(A) and here.begun(A)
    known = candidates.Known(here.config(), BUILD, {A: A})
    assert candidates.by_block(known)[0].name == A
    here.page = lambda name, scheme: page(name, scheme)._replace(shown="of another" if scheme == "https" and not here.asked else f"of {name}")
    assert not here.take(A) and here.asked == ["test", "reload"] and not here.begun(A)
    assert all(one.name != A for one in candidates.by_block(known))


def test_apply_goes_on_with_what_was_killed(here: Here) -> None:
    """It does not end with "nothing was changed"."""
    here.killed(lambda text: HTTPS in text, A)
    assert apply(A) == 0 and here.asked == ["test", "reload"] and not here.begun(A)
    here.asked.clear()
    assert apply(A) == 0 and here.asked == []


@pytest.mark.parametrize("how", ["add", "apply"])
@pytest.mark.parametrize("served", [False, True])
def test_what_was_killed_and_is_bad_is_taken_out(here: Here, how: str, served: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Where nginx did not serve it yet; else it stays, and it is said what takes it out."""
    here.killed(lambda text: HTTPS in text, A)
    seen = iter([page(A, "https")._replace(shown="" if not served else f"of {A}")])
    here.page = lambda name, scheme: next(seen, bad(A)(name, scheme)) if scheme == "https" else page(name, scheme)
    if how == "add":
        said = here.take(A)[A].why
    else:
        assert apply(A) == os.EX_DATAERR
        said = capfd.readouterr().err
    assert "the pages are not those of before" in said
    assert here.file.read_text() == here.before if not served else HTTPS in here.of(A) and f"certdrop-nginx {A} --undo takes them out" in said


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_signal_ends_all_of_it(here: Here, step: int) -> None:
    """SIGTERM in the first change, while the CA is asked, in the second change: no site is tried any more, and nothing half done is left."""
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
    if step == 1:
        here.at_order = kill
    else:
        here.at_test = [*[lambda: None] * (step // 2), kill]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(change.Ended, match=rf"^{A}: ended by signal 15.*; the same command again does the rest"):
        here.take()
    assert signal.getsignal(signal.SIGTERM) == before and HTTPS not in here.file.read_text() and not here.begun(A)
    assert (here.file.read_text() == here.before) == (step == 0) and len(here.asked) == {0: 3, 1: 2, 2: 5}[step]


def test_lines_for_sites_that_were_not_made_are_taken_out_at_a_signal(here: Here) -> None:
    """Between the two changes, before there is a site."""
    with pytest.raises(change.Ended):
        several.take([Wanted([name], [name], BUILD) for name in (A, B)], lambda _: os.kill(os.getpid(), signal.SIGTERM))      # type: ignore[arg-type]
    assert here.file.read_text() == here.before


def test_all_files_are_as_they_were_where_that_is_said(here: Here) -> None:
    """What was put in for the challenge of a site whose page differs is taken out, too."""
    here.page = bad(B)
    failed = here.take()
    assert [*failed] == [B] and "all files are as they were" in failed[B].why
    assert HTTPS in here.of(A) and here.of(B).strip() == here.before.split("server {")[2].strip()


def test_what_cannot_be_put_back_is_said(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: no more is tried, and each site's failure says what is in the file and what takes it out."""
    replace = change._replace

    def full(path: str, old: bytes, new: bytes) -> None:
        if HTTPS.encode() in old:
            raise OSError(28, "No space left on device", path)
        replace(path, old, new)
    monkeypatch.setattr(change, "_replace", full)
    here.page = bad(B)
    failed = here.take()
    assert [*failed] == [A, B] and HTTPS in here.of(B) and here.begun(A) and here.begun(B)
    for one in failed.values():
        assert "was not put back (No space left on device)" in one.why and f"certdrop-nginx {A} {B} --undo" in one.why and "as they were" not in one.why


def test_a_page_that_changes_while_the_ca_is_asked_is_no_difference(here: Here) -> None:
    """Of the site, or of another."""
    now = ["one"]
    here.page = lambda name, scheme: page(name, scheme, now[0])
    here.at_order = lambda: now.append(now.pop() + " and more")
    assert not here.take()


def test_a_page_of_others_that_changes_by_itself_is_no_difference(here: Here) -> None:
    """In the very moment of the change: it stays so with the old files, and all are tried once more."""
    looked = []

    def other(name: str, scheme: str) -> pages.Page:
        looked.extend([1] * (name == OTHER and HTTPS in here.file.read_text()))
        return page(name, scheme, "y" * 9 if looked and name == OTHER else "x")
    here.page = other
    assert not here.take() and HTTPS in here.of(B) and here.asked == ["test", "reload"] * 4


def test_a_page_of_others_that_the_change_makes_another_ends_it(here: Here) -> None:
    """Each site is tried by itself, once; those that do it are left out."""
    here.page = lambda name, scheme: page(name, scheme, "other" if name == OTHER and HTTPS in here.of(B) else "x")
    failed = here.take()
    assert [*failed] == [B] and "pages of others are not those of before" in failed[B].why and HTTPS in here.of(A)


def test_a_page_that_the_lines_for_challenges_make_another(here: Here) -> None:
    """It is seen at once, not taken for how it was."""
    here.page = lambda name, scheme: page(name, scheme, "other" if name == B and "certdrop" in here.of(B) else "x")
    assert [*here.take()] == [B] and HTTPS in here.of(A) and "certdrop" not in here.of(B)


def test_lines_that_are_edited_while_the_ca_is_asked_stop_no_other_site(here: Here) -> None:
    """They are said of their site; the others go on."""
    def edited(left: list[Wanted]) -> tuple[list[Wanted], several.Failures]:
        here.order(left[:1])
        text = here.file.read_text()
        at = text.index(f"# certdrop {B} ends")
        here.file.write_text(text[:at] + "# mine\n" + text[at:])
        return left[:1], {B: several.Failure("this site exists")}
    failed = several.take([Wanted([name], [name], BUILD) for name in (A, B)], edited)
    assert [*failed] == [B] and "this site exists; " in failed[B].why and "edited since" in failed[B].why and HTTPS in here.of(A)


def test_an_nginx_that_does_not_run_is_said_before_anything(here: Here) -> None:
    """With what starts it."""
    here.page = lambda name, scheme: page(name, scheme, "", 0, "[Errno 111] Connection refused")
    with pytest.raises(Refused, match="nginx does not run.*nothing was changed; start it .*start"):
        here.take()
    here.order([Wanted([A], [A], BUILD)])
    with pytest.raises(Refused, match="nginx does not run"):
        apply(A)
    assert here.file.read_text() == here.before and not here.asked


def test_undo_that_finds_nothing_keeps_the_copies(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """The file may have lost more than certdrop's lines."""
    here.take(A)
    here.file.write_text("all is lost\n")
    change._undo(A)
    assert "the files as they were stay in" in capsys.readouterr().out
    assert [(here.root / "kept" / A / entry).read_text() for entry in os.listdir(here.root / "kept" / A)] == [here.before]


def test_a_test_that_fails_forgets_nothing_that_was_begun(here: Here) -> None:
    """What an earlier run was at is still to be looked at."""
    here.killed(lambda text: HTTPS in text, A)

    def fails() -> None:
        raise services.Failed("no")
    here.at_test = [fails]
    assert "nginx refuses the change: no" in here.take(A)[A].why and here.begun(A)


def waiting(here: Here, *names: str) -> None:
    """Sites that have a placeholder; the CA gives no certificate."""
    here.order([Wanted([name], [name], BUILD) for name in names])
    for name in names:
        (here.root / "live" / name / "placeholder").touch()


def test_apply_without_a_certificate_leaves_the_lines_for_challenges(here: Here, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With --no-issue that was wanted; else cron goes on, and it is to be tried again later. A second run gets no further, and says the same."""
    waiting(here, A, B)
    monkeypatch.setattr(fetched, "at_port_80", lambda _: [])
    monkeypatch.setattr(several.write, "CERTDROP", "/bin/true")
    assert apply(A, B, options=change.Options(ask=False)) == os.EX_OK
    assert capfd.readouterr().out.count("challenges come through; next: certdrop renew") == 2 and here.asked == ["test", "reload"]
    for _ in range(2):
        assert apply(A, B) == os.EX_TEMPFAIL
        assert capfd.readouterr().err.count("no certificate came; nginx goes on as before") == 2
    assert all(HTTPS not in here.of(name) and "certdrop" in here.of(name) for name in (A, B)) and here.asked == ["test", "reload"]


def test_apply_takes_the_lines_out_where_no_token_comes(here: Here, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of that site alone; the CA is asked for the others. Lines that an earlier run put in stay."""
    waiting(here, A, B)
    monkeypatch.setattr(fetched, "at_port_80", lambda names: [fetched.Failure(f"{B}: port 80", "404", "")] * (B in names))
    monkeypatch.setattr(several.write, "CERTDROP", "/bin/true")
    assert apply(A, B) == os.EX_DATAERR
    said = capfd.readouterr()
    assert f"{B}: a token that was put did not come: {B}: port 80: 404" in said.err and f"certdrop renew {A}: asks" in said.out
    assert "certdrop" in here.of(A) and "certdrop" not in here.of(B)


def test_apply_says_where_there_is_no_block(here: Here, capfd: pytest.CaptureFixture[str]) -> None:
    """And what makes one; another site is served all the same."""
    here.order([Wanted([name], [name], BUILD) for name in (A, "c.example")])
    assert apply(A, "c.example") == os.EX_DATAERR and HTTPS in here.of(A)
    assert "certdrop-nginx: c.example: no server block has one of its names; nothing was changed; certdrop-nginx c.example --write" in capfd.readouterr().err


def test_a_page_that_may_be_another_is_not_called_the_same(here: Here, capfd: pytest.CaptureFixture[str]) -> None:
    """--anyway keeps the change, and says what differs."""
    here.order([Wanted([name], [name], BUILD) for name in (A, B)])
    here.page = bad(B)
    assert apply(A, B, options=change.Options(anyway=True)) == os.EX_OK and HTTPS in here.of(B)
    said = capfd.readouterr().out
    assert f"https://{A}/ is the page" in said and f"{B}: differs: " in said and f"https://{B}/ is the page" not in said


def test_what_is_refused_for_https_is_refused_before_anything_is_done(here: Here) -> None:
    """Not after the CA was asked."""
    here.before = here.before.replace(f"server_name {A};", f"server_name {A}; return 301 https://{A}/;")
    here.file.write_text(here.before)
    assert "leads to https" in here.take(A)[A].why and here.file.read_text() == here.before and not here.asked

"""certdrop-status: its verdicts, its forms and its exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from watcher.test_evidence import DAY, ISSUER, World, make_certificate
from certdrop import listening
from certdrop.status import report, table
from certdrop.status import command as status
from certdrop.walls import users
from certdrop.watcher import evidence, handshake, places, verdict

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the configuration must be root's")


class Server:
    """A TLS server on a port of the loopback, which shows one certificate for every name, or misbehaves."""

    def __init__(self, place: Path, manner: str = "good") -> None:
        certificate, key = make_certificate(["example.org"], time.time() - 60, time.time() + DAY)
        World.put(place / "server.pem", certificate + key)
        self.sha256 = evidence.parse(certificate).sha256
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(place / "server.pem")
        self.names: list[str | None] = []
        self.context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = ("127.0.0.1", self.listener.getsockname()[1])
        self.manner = manner
        self.held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                if self.manner == "hangs":
                    self.held.append(connection)
                elif self.manner == "babbles":
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
                    connection.close()
                else:
                    if self.manner == "endless":
                        while True:
                            connection.sendall(b"220-more\r\n" * 100)
                    for line in {"smtp": ["220 x", "", "250-x\r\n250 STARTTLS", "", "220 go"], "imap": ["* OK x", "", "a OK go"],
                                 "pop3": ["+OK x", "", "+OK go"]}.get(self.manner, []):
                        if line:
                            connection.sendall(line.encode() + b"\r\n")
                        else:
                            connection.recv(1024)
                    if self.manner == "proxy":
                        assert b"PROXY TCP4 127.0.0.1 127.0.0.1 1 443\r\n" == connection.recv(38, socket.MSG_WAITALL)
                    with self.context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.close()


def copy_site(world: World, old: str, new: str) -> None:
    """Another site with the same certificates."""
    shutil.copytree(world.state / "sites" / old, world.state / "sites" / new)
    path = world.state / "sites" / new / "0001" / "nginx.conf"
    path.write_text(path.read_text().replace(f"/{old}/", f"/{new}/"))


def run(*argv: str) -> tuple[int, str]:
    """(exit code, output) of the part of the program behind the change of user."""
    out = io.StringIO()
    code = status.show(status.Options(status.LINE.read(list(argv))), out)
    return code, out.getvalue()


def state_of(*argv: str) -> str:
    found = json.loads(run("--json", *argv)[1])
    assert 1 == len(found)
    return str(found[0]["state"])


# The states.

def test_states(world: World) -> None:
    """Each kind of evidence leads to its state."""
    world.usual("a-serving.org")
    world.usual("b-installed.org")
    (world.state / "proven/b-installed.org").unlink()
    world.site("c-placeholder.org")
    world.generation("c-placeholder.org", 1, marker="placeholder")
    world.link("live", "c-placeholder.org", 1)
    world.usual("d-not-served.org")
    world.notes("d-not-served.org", install={"number": 2, "state": "issued-not-served", "since": 1, "tries": 2, "next_try": 2, "error": "no"})
    world.usual("e-refused.org")
    world.notes("e-refused.org", refused={"number": 2, "reason": "key", "since": 1, "tries": 1, "next_try": 2})
    world.usual("f-failing.org")
    world.ledger("f-failing.org", count=2, since=1, next_try=2, last_error="no such host", kind="dns")
    world.usual("g-expired.org", end=-1 * DAY, begin=-90 * DAY)
    world.site("h-new.org")
    found = {one["name"][0]: one["state"] for one in json.loads(run("--json", "--no-probe")[1])}
    assert {"a": "serving", "b": "installed", "c": "placeholder", "d": "issued-not-served", "e": "refused", "f": "failing",
            "g": "expired", "h": "placeholder"} == found


def test_empty_notes_are_no_trouble(world: World) -> None:
    """The keeper leaves empty tables where all is well."""
    world.usual("example.org")
    world.notes("example.org", refused={}, install={}, spent={}, installed_at=5)
    world.ledger("example.org", count=0, last_error="")
    assert "serving" == state_of("--no-probe")


def test_served_is_asked_by_a_handshake(world: World, servers: list[Server], tmp_path: Path) -> None:
    """serving only if the service shows the live certificate; another one, or nobody, where it was served before, is issued-not-served."""
    servers.append(Server(tmp_path))
    host, port = servers[0].address
    world.usual("example.org")
    world.site("example.org", text=f'probe = "{host}:{port}"\n')
    assert "issued-not-served" == state_of()
    assert {"example.org"} == set(servers[0].names)
    pem = (tmp_path / "server.pem").read_bytes()
    for entry in ("cert.pem", "fullchain.pem"):
        world.put(world.state / "sites/example.org/0001" / entry, pem[:pem.index(b"-----BEGIN PRIVATE")])
    assert "serving" == state_of()
    servers[0].close()
    with socket.create_server((host, 0)) as other:
        free = other.getsockname()[1]
    world.site("example.org", text=f'probe = "{host}:{free}"\n')
    code, text = run("--json")
    assert "issued-not-served" == json.loads(text)[0]["state"] and "nothing answers" in json.loads(text)[0]["last_error"]
    (world.state / "proven/example.org").unlink()
    assert "installed" == state_of()


@pytest.mark.parametrize("manner, preface, expected", [
    ("good", "", None), ("proxy", "proxy-protocol", None), ("smtp", "smtp", None), ("imap", "imap", None), ("pop3", "pop3", None),
    ("babbles", "", handshake.NOTHING), ("hangs", "", handshake.NOTHING), ("babbles", "smtp", handshake.NOTHING), ("imap", "smtp", handshake.NOTHING),
    ("endless", "smtp", handshake.NOTHING)])
def test_handshake_answers(servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, preface: str, expected: str | None) -> None:
    """A service's certificate is seen, after PROXY or STARTTLS too; babble, silence and another protocol are nothing."""
    monkeypatch.setattr(handshake, "PATIENCE", 0.5)
    servers.append(Server(tmp_path, manner))
    question = ((*servers[0].address, preface), "example.org", "")
    assert {question: expected or servers[0].sha256} == handshake.ask([question])


def test_a_kind_of_key_that_is_not_there(servers: list[Server], tmp_path: Path) -> None:
    """The server has ECDSA: a question for RSA ends with what it has, as does one of a server without TLS 1.2."""
    servers += [Server(tmp_path), Server(tmp_path)]
    servers[1].context.minimum_version = ssl.TLSVersion.TLSv1_3
    for server in servers:
        asked = [((*server.address, ""), "example.org", key) for key in ("rsa", "ecdsa", "")]
        assert dict.fromkeys(asked, server.sha256) == handshake.ask(asked)


def test_sites_for_the_same_names_stand_together(world: World) -> None:
    """RSA beside ECDSA: the second follows the first, and says so."""
    for name in ("a.org", "b.org", "z.org"):
        world.usual(name)
    (world.etc / "sites.d/z.org.toml").write_text('domains = ["www.a.org", "a.org"]\n')
    lines = run("--no-probe")[1].splitlines()
    assert ["a.org +1", "= z.org +1", "b.org +1"] == [line[:12].rstrip() for line in lines[1:4]]
    found = {one["name"]: one["beside"] for one in json.loads(run("--json", "--no-probe")[1])}
    assert {"a.org": ["z.org"], "z.org": ["a.org"], "b.org": []} == found


def test_deadline_holds_for_all_questions(servers: list[Server], tmp_path: Path) -> None:
    """A service that never answers does not hold up status for longer than the deadline."""
    servers.append(Server(tmp_path, "hangs"))
    begin = time.monotonic()
    assert {} == handshake.ask([((*servers[0].address, ""), f"a{n}.org", "") for n in range(500)], 1.0)
    assert time.monotonic() - begin < 2


def test_few_descriptors_are_enough(servers: list[Server], tmp_path: Path) -> None:
    """Where few files may be open, fewer services are asked at a time, and all are."""
    servers.append(Server(tmp_path))
    questions = [((*servers[0].address, ""), f"a{n}.org", "") for n in range(60)]
    child = os.fork()                          # the server, which needs descriptors too, stays here
    if child == 0:
        few = len(os.listdir("/proc/self/fd")) + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
        answers = handshake.ask(questions)
        os._exit(0 if {servers[0].sha256} == set(answers.values()) and 60 == len(answers) else 1)
    assert 0 == os.waitpid(child, 0)[1]


def test_listeners_are_found() -> None:
    """A port that this host listens on is in the kernel's table; wildcard addresses are asked at the loopback."""
    with socket.create_server(("0.0.0.0", 0)) as one:
        port = one.getsockname()[1]
        assert ["127.0.0.1"] == listening.listeners()[port]
    assert port not in listening.listeners()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a listener of another user's")
def test_where_root_listens_nobody_else_is_asked() -> None:
    """Another user at the same port, on another address, could show what he likes."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
        os.seteuid(65534)
        try:
            with socket.create_server(("127.0.0.9", port)), socket.create_server(("127.0.0.9", 0)) as alone:
                assert ["127.0.0.1"] == listening.listeners()[port] and ["127.0.0.9"] == listening.listeners()[alone.getsockname()[1]]
        finally:
            os.seteuid(0)


def test_places_follow_services_and_probe(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each service is asked at its own port, after its own preface; `probe` goes before the listeners; a bad description is passed over."""
    monkeypatch.setattr(listening, "listeners", lambda: {443: ["127.0.0.1", "::1"], 25: ["192.0.2.1"]})
    world.put(world.etc / "services.d/postfix.toml", b'port = 25\nstarttls = "smtp"\n')
    world.put(world.etc / "services.d/odd.toml", b"prot = 25\n")
    found = places.Places()
    assert [("127.0.0.1", 443, ""), ("::1", 443, ""), ("192.0.2.1", 25, "smtp")] == found.of(["nginx", "odd", "none", "postfix"], "")
    assert [("127.0.0.1", 443, "proxy-protocol"), ("::1", 443, "proxy-protocol")] == found.of(["nginx"], "proxy-protocol")
    assert [("::1", 8443, "")] == found.of(["nginx"], "[::1]:8443")
    assert [] == found.of(["nginx"], "off") == found.of(["nginx"], "127.0.0.1:99999")


# The forms.

MAYBE = (str, type(None))
FIELDS: dict[str, Any] = {
    "name": str, "domains": list, "beside": list, "state": str, "severity": int, "not_before": str, "not_after": str, "days_left": float,
    "lifetime_left": float, "renew_at": str, "renew_reason": str, "fingerprint_sha256": str, "issued_by": MAYBE, "placeholder": bool,
    "served": (bool, type(None)), "refused_by_browsers": bool, "generation": int, "proven_generation": int, "next_generation": int,
    "key": str, "key_created": str,
    "key_burnt": bool, "next_key_created": str, "next_key_spki_sha256": str, "tlsa_waits_since": MAYBE,
    "last_error": MAYBE, "since": MAYBE, "next_try": MAYBE, "disorder": list,
    "revocations": list, "silent": dict, "host": list}


def test_json_is_as_documented(world: World) -> None:
    """Names and types of the fields are interface, and the manual lists each."""
    fingerprint = world.usual("example.org")
    one = json.loads(run("--json", "--no-probe")[1])[0]
    assert list(FIELDS) == list(one)
    assert [] == [key for key, kind in FIELDS.items() if not isinstance(one[key], kind)]
    assert fingerprint == one["fingerprint_sha256"]
    for key in ("not_before", "not_after", "renew_at", "key_created"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one[key])
    assert 79.9 < one["days_left"] <= 80
    manual = (Path(__file__).resolve().parents[3] / "man/certdrop-status.1").read_text()
    assert [] == [key for key in FIELDS if f".It {key}" not in manual and f".It Cm {key}" not in manual]


def test_revocations_are_shown_as_the_issuer_says(world: World) -> None:
    """Root's word is there before the issuer's, which is cleaned: pending, failing with the CA's problem, or revoked.

    A live one that is revoked is no state to stay in.
    """
    world.usual("example.org")
    asked, said = {"reason": "superseded", "since": 1700000000, "not_after": 1900000000}, world.state / "issuer/revocations.json"
    world.notes("example.org", revoke={"0001": asked, "x": 1, "0003": 1})

    def word(**entry: object) -> None:
        world.put(said, json.dumps({"example.org@0001.revoke": entry, "other.org@0001.revoke": {"done": 5}}).encode())
        os.chown(said, ISSUER, ISSUER)

    def shown() -> Any:
        (one,) = json.loads(run("--json", "--no-probe")[1])
        assert ["0001"] == [f"{found['generation']:04d}" for found in one["revocations"]]
        return one["revocations"][0]
    assert ("pending", "superseded", "2023-11-14T22:13:20Z", None) == tuple(shown()[key] for key in ("state", "reason", "since", "last_error"))
    assert "revocation of generation 0001 (superseded): pending" in run("--no-probe")[1] and 0 == run("--no-probe")[0]
    word(count=2, since=1700000000, next_try=int(time.time()) + 3600, last_error="the CA says \033[2Junauthorized: no\n")
    assert ("failing", r"the CA says \x1b[2Junauthorized: no ") == (shown()["state"], shown()["last_error"])
    assert r"\x1b[2Junauthorized: no" in run("--no-probe")[1] and 1 == run("--no-probe")[0]
    assert "failing, 2 in a row, next try in" in run("--no-probe", "example.org")[1]
    word(done=1700000100)
    assert ("revoked", "2023-11-14T22:15:00Z") == (shown()["state"], shown()["revoked_at"])
    assert "it is revoked, says the issuer: run certdrop rotate example.org" in run("--no-probe")[1] and 1 == run("--no-probe")[0]
    assert "generation 0001 (superseded): revoked, says the issuer, 2023" in run("--no-probe", "example.org")[1]


def test_a_live_key_that_got_out_is_shown(world: World) -> None:
    """Root lists it; nobody else can."""
    world.usual("example.org")
    world.put(world.state / "keeper/burnt", f"{'cd' * 32}\n{'ab' * 32}\n".encode())
    assert "its key is compromised" in run("--no-probe")[1] and 1 == run("--no-probe")[0]
    os.chown(world.state / "keeper/burnt", ISSUER, ISSUER)
    assert 0 == run("--no-probe")[0]


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b'{"example.org@0001.revoke": 1}', b'{"example.org@0001.revoke": {"done": "now", "count": [], "last_error": 1}}'])
def test_an_issuer_that_says_nonsense_of_a_revocation(world: World, data: bytes) -> None:
    """Then it is pending, as root has it."""
    world.usual("example.org")
    world.notes("example.org", revoke={"0001": {"reason": "superseded", "since": 1, "not_after": 1900000000}})
    world.put(world.state / "issuer/revocations.json", data)
    os.chown(world.state / "issuer/revocations.json", ISSUER, ISSUER)
    assert "pending" == json.loads(run("--json", "--no-probe")[1])[0]["revocations"][0]["state"]


def test_no_site_is_an_empty_list(world: World) -> None:
    """Nothing configured is fine, in every form."""
    assert (0, "[]\n") == run("--json")
    assert 0 == run()[0] and "certdrop add" in run()[1]
    code, text = run("--nagios")
    assert 0 == code and text.startswith("CERTDROP OK - 0 sites")


def test_table_fits_80_columns_with_anything(world: World) -> None:
    """No line is wider, whatever the names, errors and ages are."""
    world.usual("example.org")
    world.usual("a" * 180 + ".org")
    world.ledger("example.org", count=9, since=1, next_try=9999999999, last_error="E" * 4000, kind="dns")
    world.usual("old.org", begin=-4000 * DAY, end=-3000 * DAY)
    world.site("broken.org", text="x = 1\n")
    lines = run("--no-probe")[1].splitlines()
    rows = lines[:-1]
    assert [] == [line for line in rows if len(line) > 80]
    assert all(line.isascii() and line.isprintable() for line in lines)


@pytest.mark.parametrize("said, shown", [
    ("example.org: the CA says unauthorized: 203.0.113.5: Invalid response from http://example.org/.well-known/acme-challenge/" + "t" * 43 + ": 404",
     "unauthorized: 203.0.113.5: 404"),
    ("example.org: the CA says connection: 203.0.113.5: Fetching http://example.org/.well-known/acme-challenge/" + "t" * 43
     + ": Timeout during connect (likely firewall problem)", "connection: 203.0.113.5: Timeout during connect (likely firewall problem)"),
    ("/var/lib/certdrop/issuer: No space left on device", "/var/lib/certdrop/issuer: No space left on device"),
    ("example.org: the CA says unauthorized: Non-200 status code from HTTP: http://example.org:80/.well-known/acme-challenge/" + "t" * 43
     + " returned 404; http://example.org/.well-known/acme-challenge/" + "t" * 43 + ", asked for from here, answers with status 404",
     "unauthorized: Non-200 status code from HTTP: returned 404"),
    ("example.org: the CA says connection: Get \"http://example.org:80/.well-known/acme-challenge/" + "t" * 43 + "\": dial tcp 192.0.2.1:80: connect: "
     "connection refused; http://example.org/.well-known/acme-challenge/" + "t" * 43 + ", asked for from here, cannot be fetched from here (Connection "
     "refused)", "connection: dial tcp 192.0.2.1:80: connect: connection refused"),
    ("example.org: the CA says unauthorized: from http://example.org:80/.well-known/acme-challenge/" + "t" * 43 + " came 502; "
     "http://example.org/.well-known/acme-challenge/" + "t" * 43 + ", asked for from he...", "unauthorized: from came 502"),
    ("http://example.org/.well-known/acme-challenge/" + "t" * 43 + ", asked for from here, answers with status 404",
     "asked for from here, answers with status 404")])
def test_a_row_shows_the_reason(said: str, shown: str) -> None:
    """Not again the site's name, the URL, or who said it."""
    assert table.brief(said, ["example.org"]) == shown
    assert table.brief(said.replace("example.org", "www.example.org"), ["example.org", "www.example.org"]).endswith(shown.rpartition(": ")[2])


def test_a_long_reason_cuts_off_neither_the_times_nor_its_end(world: World) -> None:
    """At 80 columns the next try and the last words of the reason are both there."""
    world.usual("example.org")
    now = int(time.time())
    world.ledger("example.org", count=3, failed_at=now - 5, since=now - 7200, next_try=now + 3660, **{"class": "validation"},
                 last_error="www.example.org: the CA says compound: " + "words and " * 20 + "the end of it")
    row = next(line for line in run("--no-probe")[1].splitlines() if line.startswith("  ! "))
    assert len(row) <= 80 and row.startswith("  ! for 2h, next try in 1h: validation:") and row.endswith("the end of it")


def test_bar_shows_lifetime_and_renewal(world: World) -> None:
    """Half of the lifetime gone is half of the bar; the moment of renewal is marked where it is."""
    world.usual("example.org", begin=-45 * DAY, end=45 * DAY)
    row = run("--no-probe")[1].splitlines()[1]
    assert re.search(r"\[\.\.\.\.\.\.\.==?\|=====?\]", row) and "44d" in row and re.search(" (9|1[0-4])d lifetime", row), row


def test_plan_of_the_issuer_is_shown_where_it_can_be_true(world: World) -> None:
    """The CA's window is shown as ARI; one beyond the certificate's life is not believed."""
    world.usual("example.org")
    live = evidence.Reader().site("example.org").certificate
    plan: dict[str, Any] = {"window_of": live.sha256 if live else "", "window_start": int(time.time()) + 30 * DAY + 60}
    world.ledger("example.org", **plan, window_end=plan["window_start"] + 60)
    assert " 30d ARI " in run("--no-probe")[1]
    assert "the CA's renewal window" == json.loads(run("--json", "--no-probe")[1])[0]["renew_reason"]
    world.ledger("example.org", **plan, window_end=int(time.time()) + 300 * DAY)
    assert re.search(r" 4[5-9]d lifetime ", run("--no-probe")[1])


def test_a_page_says_whether_anybody_was_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, the site is not served, and that is known; without a look it is not."""
    world.usual("example.org")
    assert "not known: nobody was asked" in run("--no-probe", "example.org")[1]
    monkeypatch.setattr(listening, "listeners", lambda: {})
    assert "no: nobody answers where this site would be" in run("example.org")[1]


def test_colour_only_on_a_terminal(world: World) -> None:
    """A file or a pipe gets no escape; a terminal does."""
    world.usual("example.org")
    assert "\033" not in run("--no-probe")[1]
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as out:
        status.show(status.Options(status.LINE.read(["--no-probe"])), out)
    assert b"\033[32mserving" in os.read(leader, 65536)
    os.close(leader)


def test_thousand_sites_in_the_table(world: World) -> None:
    """A thousand rows, each right, within seconds."""
    world.usual("example.org")
    for n in range(999):
        name = f"site-{n:03d}.example.org"
        world.site(name)
        copy_site(world, "example.org", name)
        os.symlink(f"../sites/{name}/0001", world.state / "live" / name)
        os.symlink(f"../sites/{name}/0001", world.state / "proven" / name)
    begin = time.monotonic()
    lines = run("--no-probe")[1].splitlines()
    assert time.monotonic() - begin < 10
    assert 1002 == len(lines) and lines[-1].startswith("1000 sites: 1000 serving")
    assert 1000 == sum(" serving " in line and len(line) <= 80 for line in lines[1:-1])


def test_page_of_one_site(world: World) -> None:
    """A name on the command line shows all that is known of that site."""
    fingerprint = world.usual("example.org")
    text = run("--no-probe", "example.org")[1]
    assert fingerprint in text and "ab" * 32 in text and "example.org www.example.org" in text
    assert verdict.UNKNOWN == run("nobody.org")[0]


def test_nagios_has_one_line_with_performance_data(world: World) -> None:
    """Format of the plugin guidelines; what is worst is said first; a bar in an error cannot start the data."""
    world.usual("good.org")
    world.usual("bad.org")
    world.ledger("bad.org", count=3, last_error="a|b", kind="dns")
    code, text = run("--nagios", "--no-probe")
    assert 1 == code
    assert re.fullmatch(r"CERTDROP WARNING - bad\.org failing \(dns: a/b\) \| sites=2 problems=1 keeper_age=\d+s;10800;86400;0 "
                        r"issuer_age=\d+s;10800;86400;0 watcher_age=\d+s;10800;86400;0 "
                        r"days_left=(79|80)\.\d+ lifetime_left=88\.\d%\n", text)


@pytest.mark.parametrize("end, code", [(80, 0), (25, 0), (21, 1), (10, 2), (-1, 2)])
def test_exit_code_by_share_of_lifetime(world: World, end: int, code: int) -> None:
    """Of 90 days: nothing until the backstop is well past, then a warning, then critical."""
    world.usual("example.org", begin=(end - 90) * DAY, end=end * DAY)
    assert code == run("--no-probe")[0]


@pytest.mark.parametrize("hours, code", [(80, 0), (55, 1), (25, 2)])
def test_exit_code_of_short_lifetimes(world: World, hours: int, code: int) -> None:
    """160 hours are judged by their own measure."""
    world.usual("example.org", begin=(hours - 160) * 3600, end=hours * 3600)
    assert code == run("--no-probe")[0]


def test_thresholds_can_be_given(world: World) -> None:
    """--warning and --critical are percentages of the lifetime."""
    world.usual("example.org", begin=-45 * DAY, end=45 * DAY)
    assert [0, 1, 2] == [run("--no-probe", *more)[0] for more in ((), ("--warning", "60"), ("--critical", "51%"))]


@pytest.mark.parametrize("hours, code", [(1, 0), (4, 1), (30, 2)])
def test_silence_of_the_keeper(world: World, hours: int, code: int) -> None:
    """No run of the keeper for hours is a warning, for a day critical."""
    world.usual("example.org")
    world.ran(ago=hours * 3600)
    assert code == run("--no-probe")[0]


@pytest.mark.parametrize("who", ["issuer", "watcher"])
@pytest.mark.parametrize("hours, code", [(1, 0), (4, 1), (30, 2)])
def test_silence_of_the_others(world: World, who: str, hours: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """cron runs, and root's run with it, but one of the others does not come: PAM, an expired account, a limit. Every form says so."""
    world.usual("example.org")
    at = time.time() - hours * 3600
    path, data = (world.state / "issuer/last-run", b"{}") if who == "issuer" else (world.state / "watcher/state.json", json.dumps({"ran": int(at)}).encode())
    path.parent.mkdir(exist_ok=True)
    world.put(path, data)
    os.chown(path, ISSUER if who == "issuer" else 0, -1)
    os.utime(path, (at, at))
    assert code == run("--no-probe")[0]
    said = capsys.readouterr().err
    assert (f"the {who} has not run for {hours}h" in said) == bool(code)
    assert (f"the {who} has not run for {hours}h" in run("--nagios", "--no-probe")[1]) == bool(code) and code == run("--nagios", "--no-probe")[0]
    (one,) = json.loads(run("--json", "--no-probe")[1])
    assert list(one["silent"]) == ([who] if code else [])
    assert f'certdrop_last_run_timestamp_seconds{{principal="{who}"}}' in run("--prometheus", "--no-probe")[1]


def test_silence_of_one_that_never_ran(world: World) -> None:
    """On the first day after the first site it may still come; then it is silence."""
    world.usual("example.org")
    os.utime(world.etc / "sites.d/example.org.toml", (time.time() - 20 * 3600,) * 2)
    assert 0 == run("--no-probe")[0]
    os.utime(world.etc / "sites.d/example.org.toml", (time.time() - 30 * 3600,) * 2)
    assert 2 == run("--no-probe")[0]


def test_silence_by_a_short_lifetime(world: World) -> None:
    """Of a certificate that ends in eight hours, two hours without the issuer are much."""
    world.usual("example.org", begin=-8 * 3600, end=8 * 3600)
    path = world.state / "issuer/last-run"
    world.put(path, b"{}")
    os.chown(path, ISSUER, -1)
    for minutes, code in ((50, 0), (70, 1), (130, 2)):
        os.utime(path, (time.time() - minutes * 60,) * 2)
        assert code == run("--no-probe")[0], minutes


def test_silence_before_the_first_run_counts_from_the_configuration(world: World) -> None:
    """A site that was configured long ago and a keeper that never ran is silence; a new one is not."""
    world.usual("example.org")
    (world.state / "keeper/last-run").unlink()
    assert 0 == run("--no-probe")[0]
    os.utime(world.etc / "sites.d/example.org.toml", (time.time() - 2 * DAY,) * 2)
    assert 2 == run("--no-probe")[0]


def test_prometheus_parser_reads_it(world: World) -> None:
    """Prometheus' own parser takes every line, and finds the values."""
    parser = pytest.importorskip("prometheus_client.parser")
    world.usual("example.org")
    _, text = run("--prometheus", "--no-probe")
    found = {(sample.name, *sorted(sample.labels.items())): sample.value
             for family in parser.text_string_to_metric_families(text) for sample in family.samples}
    assert 1 == found[("certdrop_state", ("site", "example.org"), ("state", "serving"))]
    assert 80 == round((found[("certdrop_certificate_not_after_timestamp_seconds", ("site", "example.org"))] - time.time()) / DAY)
    assert 1 == found[("certdrop_sites",)]
    manual = (Path(__file__).resolve().parents[3] / "man/certdrop-status.1").read_text()
    assert [] == [name for name, *_ in found if f".It Cm {name}\n" not in manual]


def test_what_dashboard_and_rules_name_is_written(world: World) -> None:
    """Each metric that is named there exists, with its help and its type; and all of it is OpenMetrics."""
    openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
    world.usual("example.org")
    text = run("--prometheus", "--no-probe")[1]
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    assert families and all(family.documentation and family.type == "gauge" for family in families.values())
    share = Path(__file__).resolve().parents[3] / "share"
    named = set(re.findall(r"\bcertdrop_[a-z_]+", (share / "prometheus/certdrop.rules.yml").read_text() + (share / "grafana/certdrop.json").read_text()))
    assert len(named) >= 12 and named - {*families, "certdrop_served"} == set()


def test_prometheus_file_is_replaced_whole(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is new and complete, or the old one stays; nothing else is left."""
    place = tmp_path / "textfile"
    place.mkdir()
    target = place / "certdrop.prom"
    target.write_text("old\n")
    world.usual("example.org")
    monkeypatch.setattr(status, "as_watcher", lambda _program, _argv, work, *_, **__: work())
    assert 0 == status.main(["--no-probe", "--prometheus", str(target)])
    assert target.read_text().endswith("\n") and "certdrop_sites 1" in target.read_text() and 0o644 == target.stat().st_mode & 0o777
    before = target.read_text()
    world.put(world.etc / "certdrop.toml", b"kay = 1\n")
    assert verdict.UNKNOWN == status.main(["--no-probe", "--prometheus", str(target)])
    assert before == target.read_text()
    (world.etc / "certdrop.toml").unlink()

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(report, "as_prometheus", fail)
    assert verdict.UNKNOWN == status.main(["--no-probe", "--prometheus", str(target)])
    assert before == target.read_text() and ["certdrop.prom"] == os.listdir(place)


def give_key(world: World, name: str, number: int, spki: str, end: float | None = None) -> None:
    """A generation with this key; complete where it has an end, in seconds from now."""
    world.generation(name, number, complete=end is not None)
    place = world.state / "sites" / name / f"{number:04d}"
    world.put(place / "request.json", json.dumps({"spki_sha256": spki}).encode())
    if end is not None:
        world.put(place / "cert.json", json.dumps({"not_after": int(time.time() + end)}).encode())


def test_own_keys_are_those_whose_certificates_are_ours(world: World) -> None:
    """Of what has not ended, withdrawn or not, and of next, which has no certificate yet; no placeholder's, and none that is burnt."""
    world.site("example.org")
    keys = {number: f"{number:064x}" for number in range(1, 7)}
    for number, end in ((1, -60.0), (2, DAY), (3, DAY), (4, DAY), (5, DAY), (6, None)):
        give_key(world, "example.org", number, keys[number], end)
    for number, marker in ((3, "withdrawn"), (5, "placeholder")):
        world.put(world.state / f"sites/example.org/{number:04d}" / marker, b"")
    world.put(world.state / "keeper/burnt", f"{keys[4]}\n".encode())
    assert run("--own-keys") == (0, "".join(f"{keys[number]} example.org@{number:04d}\n" for number in (2, 3, 6)))


@pytest.mark.parametrize("path, content", [("keeper/burnt", None), ("sites/example.org/0001/request.json", b"{}"), ("sites/example.org/0001/cert.json", b"[]")])
def test_a_list_of_own_keys_is_whole_or_none(path: str, content: bytes | None, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a key, or what is burnt, cannot be known, nothing is printed but why."""
    world.site("example.org")
    give_key(world, "example.org", 1, "1" * 64, DAY)
    give_key(world, "example.org", 2, "2" * 64)
    if content is None:
        (world.state / path).mkdir()
    else:
        world.put(world.state / path, content)
    assert run("--own-keys") == (3, "") and "our own keys are not all known" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--json", "--nagios"], ["--frobnicate"], ["--warning"], ["--warning", "x"], ["--critical", "200"]])
def test_usage_is_unknown(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that is not understood is 3, with one line and the usage."""
    assert verdict.UNKNOWN == status.main(argv)
    assert capsys.readouterr().err.startswith("certdrop-status: ")


@pytest.mark.parametrize("seconds, text", [(0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (2 * DAY, "2d"), (-DAY * 3, "-3d"), (1e12, "9999y")])
def test_span(seconds: float, text: str) -> None:
    """A length of time never needs more than six characters."""
    assert text == table.span(seconds) and len(text) <= 6


def test_works_as_root_only_by_a_child(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the watcher's user is missing, root reads nothing."""
    def missing(_: str) -> tuple[int, int]:
        raise KeyError("no such user: _certdrop-watch")
    monkeypatch.setattr(users, "user_ids", missing)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(status, "show", lambda *_: pytest.fail("read as root"))
    assert verdict.UNKNOWN == status.main([])

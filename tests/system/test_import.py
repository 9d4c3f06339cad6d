"""certdrop-import, on what Debian's other clients really left behind: each gets its certificates from the same CA first, as its users run it."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from typing import Iterator

import pytest
import world as stage
from conftest import SPOOL, STATE, Done, Host

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import clients  # noqa: E402
from forge import Forge, put  # noqa: E402

IMPORT = "certdrop-import"
TRIES = 30                         # uacme trips over a challenge without a token, two times in three
NAMES = {"certbot": "certbot.example.org", "dehydrated": "dehydrated.example.org", "lacme": "lacme.example.org", "uacme": "uacme.example.org",
         "lego": "lego.example.org", "acme-tiny": "tiny.example.org"}
TREES = ("/etc/letsencrypt", "/var/lib/dehydrated", "/etc/lacme", "/var/lib/uacme", "/var/lib/lego", "/var/lib/acme-tiny", "/etc/nginx", "/etc/cron.d")

CERTBOT = """server {{
    if ($host = {name}) {{
        return 301 https://$host$request_uri;
    }} # managed by Certbot


    listen 80;
    server_name {name};
    return 404; # managed by Certbot
}}

server {{
    server_name {name};
    root /var/www/html;

    listen 443 ssl; # managed by Certbot
    ssl_certificate {chain}; # managed by Certbot
    ssl_certificate_key {key}; # managed by Certbot
    ssl_trusted_certificate /etc/letsencrypt/live/{name}/chain.pem;
}}
"""
WEBROOT = """server {{
    listen 80;
    server_name {name};
    location ^~ /.well-known/acme-challenge/ {{
        alias /srv/www/.well-known/acme-challenge/;
    }}
    location / {{
        return 301 https://$host$request_uri;
    }}
}}
server {{
    listen 443 ssl;
    server_name {name};
    root /var/www/html;
    ssl_certificate {chain};
    ssl_certificate_key {key};
}}
"""
ONE_LINE = "server {{ listen 80; server_name {name}; rewrite ^ https://$host$request_uri? permanent; }}\n" \
    "server {{ listen 443 ssl; server_name {name}; root /var/www/html; ssl_certificate {chain}; ssl_certificate_key {key}; }}"


class Watcher:
    """Shakes hands with nginx as each of these names, again and again: what it shows in the meantime."""

    def __init__(self, names: list[str]) -> None:
        self.seen: dict[str, set[str]] = {name: set() for name in names}
        self.rounds, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait_round()
        self._end.set()
        self._thread.join()

    def wait_round(self) -> None:
        """Until everything was looked at once more, begun now."""
        last = self.rounds
        stage.wait_for(lambda: self.rounds > last + 1, 60, "a round of handshakes")

    def _watch(self) -> None:
        while not self._end.is_set():
            for name, seen in self.seen.items():
                try:
                    seen.add(stage.fingerprint(stage.served_certificate(name)))
                except OSError as error:
                    seen.add(str(error))
            self.rounds += 1
            self._end.wait(0.02)


def obtain(client: clients.Client, name: str) -> None:
    """Have a client get its certificate."""
    client.prepare()
    client.expect([name])
    for _ in range(TRIES):
        try:
            clients.call("sh", "-c", client.one(name))
            return
        except RuntimeError as error:
            failed = error
            if not client.trips:
                break
    raise failed


def leave(host: Host) -> None:
    """All clients' data directories, each used by nginx, in a server block as its users write it."""
    pebble = host.world.pebble
    shutil.copy(pebble.ca_bundle, "/usr/local/share/ca-certificates/stage.crt")
    host.run("update-ca-certificates", code=0)
    os.makedirs(clients.CHALLENGES)
    os.chmod(clients.CHALLENGES, 0o777)
    host.world.nginx.add_site("first", f"server {{ listen 80 default_server; root {clients.WEBROOT}; }}\n")
    host.world.nginx.reload()
    used = {kind.package: kind(pebble.directory_url, pebble.root()) for kind in clients.RIVALS}
    obtain(used["lacme"], NAMES["lacme"])                      # which refuses to work beside others' challenges
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda package: obtain(used[package], NAMES[package]), NAMES.keys() - {"lacme"}))
    keys = {"certbot": "/etc/letsencrypt/live/{}/privkey.pem", "dehydrated": "/var/lib/dehydrated/certs/{}/privkey.pem", "lacme": "/etc/lacme/keys-{}.pem",
            "uacme": "/var/lib/uacme/private/{}/key.pem", "lego": "/var/lib/lego/certificates/{}.key", "acme-tiny": "/var/lib/acme-tiny/{}.key"}
    host.world.nginx.remove_site("first")
    for package, name in NAMES.items():
        text = CERTBOT if package == "certbot" else ONE_LINE if package == "lego" else WEBROOT
        host.world.nginx.add_site(name, text.format(name=name, key=keys[package].format(name), chain=used[package].has(name)))
    host.world.nginx.reload()
    host.run("useradd", "acme", code=0)                        # as the old recipe has it: a user who owns it all, and may reload nginx
    host.run("chown", "-R", "acme", "/var/lib/acme-tiny", code=0)
    put("/etc/cron.d/tiny", f"0 0 1 * * acme /usr/local/bin/renew {NAMES['acme-tiny']}\n")
    put("/usr/local/bin/renew", "#!/bin/sh\nacme-tiny --account-key /var/lib/acme-tiny/account.key \\\n  --csr /var/lib/acme-tiny/$1.csr > /tmp/x && mv /tmp/x "
        "/var/lib/acme-tiny/$1.crt\n")
    put("/etc/sudoers.d/acme", "acme ALL=(root) NOPASSWD: /usr/sbin/service nginx *\n")


def digest(*trees: str) -> str:
    """All that is in these trees: names, owners, modes, contents."""
    found = hashlib.sha256()
    for tree in trees:
        for root, below, files in os.walk(tree):
            below.sort()
            for name in sorted([*files, *below]):
                path = os.path.join(root, name)
                about = os.lstat(path)
                found.update(f"{path} {about.st_mode} {about.st_uid} {about.st_mtime_ns}".encode())
                found.update(os.readlink(path).encode() if os.path.islink(path) else pathlib.Path(path).read_bytes() if os.path.isfile(path) else b"")
    return found.hexdigest()


class Moved:
    """The host before, while and after all was taken over."""

    careful: Done
    shown: Done
    taken: Done
    diff: str
    refused: Done
    applied: Done
    trees: list[str]
    served: dict[str, set[str]]
    orders: list[int]


def orders(host: Host) -> int:
    """How many certificates the CA was asked for."""
    return host.world.pebble.log_text().count("Issued certificate")


@pytest.fixture(scope="module")
def moved(session_host: Host) -> Iterator[Moved]:
    """Shown, taken over, patched, reloaded, under the eyes of somebody who shakes hands all the time."""
    host, found = session_host, Moved()
    leave(host)
    found.trees, found.orders = [digest(*TREES)], [orders(host)]
    state = digest(STATE, SPOOL, "/etc/certdrop")
    with Watcher(list(NAMES.values())) as watcher:
        watcher.wait_round()
        found.careful = host.run(IMPORT, code=0)
        found.shown = host.run(IMPORT, "--owner", "acme", code=0)
        assert digest(STATE, SPOOL, "/etc/certdrop") == state
        found.taken = host.run(IMPORT, "--owner", "acme", "--yes", code=0)
        watcher.wait_round()
        found.trees.append(digest(*TREES))
        found.diff = host.run(IMPORT, "--owner", "acme", "--diff", code=0).text
        found.refused = refused(host)
        found.applied = host.run(IMPORT, "--owner", "acme", "--apply", code=0)
        watcher.wait_round()
    found.served = watcher.seen
    found.orders.append(orders(host))
    yield found


def refused(host: Host) -> Done:
    """What --apply says where nginx does not take the change: here its snippet is broken, which nothing includes yet."""
    def files() -> dict[str, tuple[bytes, int, int]]:
        return {str(path): (path.read_bytes(), path.lstat().st_mode, path.lstat().st_uid) for path in pathlib.Path("/etc/nginx").rglob("*") if path.is_file()}
    path, before = "/etc/nginx/snippets/certdrop-challenge.conf", files()
    good = stage.read(path)
    stage.write(path, "nonsense on;\n")
    try:
        done = host.run(IMPORT, "--owner", "acme", "--apply", code=os.EX_DATAERR)
    finally:
        stage.write(path, good)
    assert files() == before
    return done


def test_the_change_is_made_whole_or_taken_back(moved: Moved) -> None:
    """Where nginx does not pass its test with it, all files are as they were; else it says what was changed, and what undoes it."""
    assert 'unknown directive "nonsense"' in moved.refused.text and "all files are as they were, and nginx was not reloaded" in moved.refused.text
    assert "nginx passed its test and was reloaded" in moved.applied.text, moved.applied
    kept = re.search(r"patch -R -p0 -d / < (\S+) undoes", moved.applied.text)
    assert kept and stage.read(kept[1]) == moved.diff and os.stat(kept[1]).st_mode & 0o777 == 0o600
    assert subprocess.run(["patch", "-R", "-p0", "-d", "/", "--dry-run", "-i", kept[1]], check=False, stdout=subprocess.DEVNULL).returncode == 0


def put_diff(text: str) -> str:
    return stage.write("/tmp/move.diff", text)


def rows(text: str) -> dict[str, str]:
    """What certdrop-import says becomes of each name."""
    return {words[1].rstrip(":"): words[0] for words in map(str.split, text.splitlines()) if words and words[0] in ("take", "here", "stays")}


def test_all_clients_are_seen(moved: Moved) -> None:
    """Without any argument, each client's certificate is found, and would be taken over; the account of one is enough."""
    found = rows(moved.shown.text)
    assert {name: found.get(name) for name in NAMES.values()} == dict.fromkeys(NAMES.values(), "take")
    assert moved.shown.text.count("is taken over: rsa-") == 1
    assert "ecdsa-p256: no RSA key" in moved.shown.text        # lego's
    assert "Nothing was changed" in moved.shown.text


def test_another_users_files_are_taken_by_an_administrators_word(moved: Moved) -> None:
    """The files that acme-tiny's user owns stay until that user is named; and then the key is said to be due for a change."""
    name = NAMES["acme-tiny"]
    assert rows(moved.careful.text)[f"/var/lib/acme-tiny/{name}.crt"] == "stays"
    assert "belongs to acme" in moved.careful.text and "--owner acme" in moved.careful.text
    assert f"could be read by the user acme; change it soon: certdrop rotate {name}" in moved.shown.text
    assert "certdrop-import --owner acme --diff" in moved.taken.text and "certdrop-import --owner acme --apply" in moved.taken.text


def test_the_old_files_stay(moved: Moved) -> None:
    """Neither the clients' directories nor nginx's nor cron's change."""
    assert moved.trees[0] == moved.trees[1]


def test_the_same_certificate_is_served_all_the_time(host: Host, moved: Moved) -> None:
    """Before, during and after: one certificate a name, which is the live one, proven; nothing was ordered."""
    assert {name: len(seen) for name, seen in moved.served.items()} == dict.fromkeys(NAMES.values(), 1)
    for name in NAMES.values():
        assert moved.served[name] == {host.on_disk(name)} == {host.served(name)}
        assert (host.live(name), host.proven(name), host.posted(name)) == (1, 1, [f"{name}@0002.csr"])
        assert host.pair_matches(name)
        assert host.status(name)["state"] == "serving"
    assert len(NAMES) <= moved.orders[0] == moved.orders[1]


def test_nginx_reads_certdrops_files(host: Host, moved: Moved) -> None:
    """After the patch, no old pair is left in nginx's configuration, and nothing is left to change."""
    text = host.run("nginx", "-T", "-q", code=0).text
    assert [line for line in text.splitlines() if "ssl_" in line and any(tree in line for tree in TREES[:6])] == []
    assert f"ssl_trusted_certificate {STATE}/live/certbot.example.org/chain.pem;" in text
    assert "nothing to change" in host.run(IMPORT, "--diff", code=0).text


def test_what_is_to_be_switched_off_is_named(moved: Moved) -> None:
    """certbot's timer, the script that cron runs acme-tiny by, and what sudo allows its user."""
    assert "systemctl disable --now certbot.timer" in moved.taken.text
    assert "/etc/cron.d/tiny, line 1" in moved.taken.text
    assert "/etc/sudoers.d/acme, line 1" in moved.taken.text


def test_a_second_run_finds_nothing(host: Host, moved: Moved) -> None:
    """It says so, and changes nothing."""
    before = digest(STATE, SPOOL, "/etc/certdrop")
    done = host.run(IMPORT, "--yes", code=0)
    assert f"{len(NAMES)} taken over already: " in done.text and "nothing else to take over" in done.text
    assert set(rows(done.text).values()) == {"here"}
    assert digest(STATE, SPOOL, "/etc/certdrop") == before


def test_renewals_go_on(host: Host, moved: Moved) -> None:
    """Through the challenge location that the patch brought, past all kinds of redirects, with the old account."""
    names = [NAMES[package] for package in ("certbot", "lego", "dehydrated")]
    host.run("certdrop", "renew", "--force", *names, code=0)
    for name in names:
        assert (host.live(name), host.proven(name)) == (2, 2)
        assert host.served(name) == host.on_disk(name)
        assert name in rows(host.run(IMPORT, code=0).text)     # the old certificate is still known
    place = next(pathlib.Path("/etc/letsencrypt/accounts").rglob("regr.json"))
    account = next(pathlib.Path(STATE, "issuer").glob("account@*.json"))
    assert place.read_text().split('"uri": "')[1].split('"')[0] in account.read_text()


@pytest.fixture(scope="module")
def forge(session_host: Host) -> Forge:
    """A CA of our own, trusted by certdrop beside Pebble."""
    made = Forge()
    stage.write("/tmp/import-roots.pem", stage.read(session_host.world.pebble.root()) + made.root_pem.decode())
    return made


@pytest.fixture
def trusting(host: Host, forge: Forge) -> Host:
    """The host, whose keeper trusts that CA too."""
    host.configure(trust_roots='"/tmp/import-roots.pem"')
    return host


def test_what_stays_is_said(trusting: Host, forge: Forge, moved: Moved) -> None:
    """Of two clients' certificates for one name the one that nginx does not use; one that nobody renews, unless it is named."""
    host = trusting
    names = ["*.wild.example.org", "twice.example.org"]
    clients.Certbot(host.world.pebble.directory_url, host.world.pebble.root()).forge(names, forge)
    lego = clients.Lego(host.world.pebble.directory_url, host.world.pebble.root())
    lego.forge(names[1:], forge)
    bought = pair(forge, "bought.example.org", "/srv/bought")
    for name, key, chain in (("twice.example.org", "/var/lib/lego/certificates/twice.example.org.key", lego.has("twice.example.org")),
                             ("bought.example.org", bought[1], bought[3])):
        host.world.nginx.add_site(name, WEBROOT.format(name=name, key=key, chain=chain))
    host.world.nginx.reload()
    done = host.run(IMPORT, code=0)
    said = [line.split(": ", 1) for line in done.text.splitlines() if line.startswith(("  take", "  stays"))]
    assert [what for what, _ in said if what.endswith("wild.example.org")] == ["  take     wild.example.org"]
    assert "proven otherwise from now on" in done.text, done
    assert sorted(why.split(",")[0] for what, why in said if what.endswith("twice.example.org")) == [
        "ecdsa-p256", "lego has another one of this name"]
    assert [what for what, why in said if what.endswith("bought.example.org")] == ["  stays    bought.example.org"]
    host.run(IMPORT, "bought.example.org", "twice.example.org", "--yes", code=0)
    assert stage.read("/etc/certdrop/sites.d/twice.example.org.toml").startswith("# Taken over from lego")
    assert (host.live("bought.example.org"), host.proven("bought.example.org")) == (1, 1)
    assert not os.path.exists(f"{STATE}/sites/*.wild.example.org")
    for name in ("twice.example.org", "bought.example.org"):
        host.world.nginx.remove_site(name)
    host.world.nginx.reload()


def test_eighty_sites_of_certbots(trusting: Host, forge: Forge, moved: Moved) -> None:
    """A whole host: one command, one patch, one reload; each site shows what it showed, and is proven."""
    host = trusting
    names = [f"many{number}.example.org" for number in range(80)]
    certbot = clients.Certbot(host.world.pebble.directory_url, host.world.pebble.root())
    certbot.forge(names, forge)
    for name in names:
        base = f"/etc/letsencrypt/live/{name}"
        host.world.nginx.add_site(name, CERTBOT.format(name=name, key=base + "/privkey.pem", chain=base + "/fullchain.pem"))
    host.world.nginx.reload()
    before = {name: host.served(name) for name in names}
    host.run(IMPORT, "--yes", "--client", "certbot", code=0)
    assert [name for name in names if (host.live(name), host.proven(name)) != (1, 1)] == []
    host.run("patch", "-p0", "-d", "/", "-i", put_diff(host.run(IMPORT, "--diff", code=0).text), code=0)
    host.run("nginx", "-t", code=0)
    host.world.nginx.reload()
    assert {name: host.served(name) for name in names} == before
    assert host.run("grep", "-rl", "/etc/letsencrypt/live/many", "/etc/nginx/").text == ""
    for name in names:
        host.world.nginx.remove_site(name)
    host.world.nginx.reload()


def test_a_site_that_has_no_certificate_yet(trusting: Host, forge: Forge) -> None:
    """nginx is not led from a good certificate to the placeholder."""
    host = trusting
    host.run("certdrop", "add", "soon.example.org", "--no-issue", code=0)
    done = host.run(IMPORT, *pair(forge, "soon.example.org", "/srv/soon"), "--yes", code=os.EX_DATAERR)
    assert "has no certificate yet" in done.text
    assert host.posted("soon.example.org") == ["soon.example.org@0002.csr", "soon.example.org@0002.now"]


def pair(forge: Forge, name: str, place: str, **modes: int) -> list[str]:
    """A bare key and chain in files; the words that name them."""
    put(f"{place}/{name}.pem", forge.leaf(name) + forge.root_pem)
    put(f"{place}/{name}.key", forge.key_pem, modes.get("key", 0o600))
    return ["--key", f"{place}/{name}.key", "--chain", f"{place}/{name}.pem"]


def test_a_bare_key_and_chain(trusting: Host, forge: Forge) -> None:
    """Taken over under a name of one's choice; a key that others could read is said to be due for a change."""
    host = trusting
    words = pair(forge, "bare.example.org", "/srv/bare", key=0o644)
    done = host.run(IMPORT, *words, "--name", "bare", "--yes", code=0)
    assert "could be read by every user" in done.text and "certdrop rotate bare" in done.text
    assert stage.fingerprint(stage.read("/srv/bare/bare.example.org.pem")) == host.on_disk("bare")
    assert (host.live("bare"), host.posted("bare")) == (1, ["bare@0002.csr"])
    assert 'domains = ["bare.example.org"]' in stage.read("/etc/certdrop/sites.d/bare.toml")
    host.run("certdrop", "remove", "bare", code=0)
    again = host.run(IMPORT, *words, "--name", "bare", "--yes", code=0)
    assert host.live("bare") == 3, again                       # a number is never used twice


def test_what_another_user_may_change_is_left_alone(trusting: Host, forge: Forge) -> None:
    """A directory that another user owns is not read, unless that user is named; a link that such a user made is never followed."""
    host = trusting
    host.run("useradd", "other", code=0)
    words = pair(forge, "theirs.example.org", "/srv/theirs")
    host.run("chown", "other", "/srv/theirs", code=0)
    done = host.run(IMPORT, *words, "--yes", code=os.EX_DATAERR)
    assert "belongs to other" in done.text and "stays" in done.text
    assert not os.path.exists("/etc/certdrop/sites.d/theirs.example.org.toml")
    os.rename("/srv/theirs/theirs.example.org.key", "/srv/secret.key")
    os.symlink("/srv/secret.key", "/srv/theirs/theirs.example.org.key")
    assert "not followed" in host.run(IMPORT, *words, "--owner", "other", "--yes", code=os.EX_DATAERR).text
    os.unlink("/srv/theirs/theirs.example.org.key")
    os.rename("/srv/secret.key", "/srv/theirs/theirs.example.org.key")
    host.run(IMPORT, *words, "--owner", "other", "--yes", code=0)
    assert host.live("theirs.example.org") == 1


@pytest.mark.parametrize("program, words", [("examiner", ["examine", "/dev/null"]), ("account", ["x"])])
def test_what_parses_and_what_writes_refuse_to_be_root(host: Host, program: str, words: list[str]) -> None:
    """The one is the judge's user, the other the issuer's, or nothing."""
    host.run("/usr/bin/python3", "-I", "-S", f"/usr/share/certdrop/certdrop/importer/{program}.py", *words, code=os.EX_NOPERM)


def test_an_untrusted_chain_needs_a_word(host: Host, forge: Forge) -> None:
    """One that leads to no trusted root is taken over only with --untrusted."""
    host.configure()
    words = pair(forge, "untrusted.example.org", "/srv/untrusted")
    assert "leads to no trusted root" in host.run(IMPORT, *words, "--yes", code=os.EX_DATAERR).text
    assert not os.path.exists(f"{STATE}/sites/untrusted.example.org")
    host.run(IMPORT, *words, "--untrusted", "--yes", code=0)
    host.run(IMPORT, *words, "--untrusted", "--yes", code=0)   # and again, which changes nothing
    assert host.live("untrusted.example.org") == 1


@pytest.mark.parametrize("call, number", [("renameat", 1), ("renameat", 7), ("renameat", 8), ("renameat", 9), ("rename", 1), ("rename", 2), ("mkdir", 2)])
def test_killed_anywhere_it_is_done_or_not_begun(trusting: Host, forge: Forge, call: str, number: int) -> None:
    """kill -9 before the first file of the generation, before the notes, the configuration, the one rename that counts, and the live link."""
    host, name = trusting, f"killed-{call}-{number}.example.org"
    words = pair(forge, name, "/srv/killed")
    traced = ["strace", "-f", "-qq", "-o", "/tmp/strace", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    assert host.run(*traced, IMPORT, *words, "--yes").code != 0
    host.run("certdrop-install", code=0)
    places = [f"{STATE}/sites/{name}", f"{STATE}/live/{name}", f"/etc/certdrop/sites.d/{name}.toml"]
    assert [os.path.lexists(path) for path in places] in ([True] * 3, [False] * 3)
    assert not os.path.lexists(f"{STATE}/sites/.removed-{name}")
    host.run(IMPORT, *words, "--yes", code=0)
    assert (host.live(name), host.posted(name)) == (1, [f"{name}@0002.csr"])
    host.run("certdrop", "remove", name, code=0)


def test_the_first_site_of_all(trusting: Host, forge: Forge) -> None:
    """Where there is no certdrop.toml yet, it is written, with the CA that the old client asked."""
    host = trusting
    os.unlink("/etc/certdrop/certdrop.toml")                   # the fixture writes it again
    words = pair(forge, "first.example.org", "/srv/first")
    done = host.run(IMPORT, *words, "--untrusted", "--ca", "https://acme-staging-v02.api.letsencrypt.org/directory", "--yes", code=0)
    assert 'directory = "letsencrypt-staging"' in stage.read("/etc/certdrop/certdrop.toml"), done

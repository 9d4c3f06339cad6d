"""certdrop-check on a real host: nothing fails where all is well, and each thing that is broken for real has its line, with what mends it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
from typing import Any, Iterator

import dns.flags
import dns.message
import dns.rrset
import pytest
import world as stage
from conftest import SPOOL, STATE, Host

SITES = pathlib.Path("/etc/nginx/conf.d")
CHALLENGE = "include snippets/certdrop-challenge.conf;"
Lines = list[dict[str, str]]


@contextlib.contextmanager
def changed(path: str, text: str | None, mode: int = 0o644) -> Iterator[None]:
    """A file with another content for a while, or not there."""
    at = pathlib.Path(path)
    kept = at.read_bytes() if at.exists() else None
    kept_mode = at.stat().st_mode & 0o777 if kept is not None else 0
    try:
        at.unlink(missing_ok=True)
        if text is not None:
            at.write_text(text)
            at.chmod(mode)
        yield
    finally:
        at.unlink(missing_ok=True)
        if kept is not None:
            at.write_bytes(kept)
            at.chmod(kept_mode)


@pytest.fixture(scope="module", autouse=True)
def cron(session_host: Host) -> Iterator[None]:
    """A host without cron is not well; nor one where nobody has run yet. Its table is without jobs, which could run into a test."""
    with changed("/etc/cron.d/certdrop", "# no jobs\n"):
        yield from _with_cron(session_host)


def _with_cron(session_host: Host) -> Iterator[None]:
    session_host.world.cron.start()
    session_host.run("certdrop-install", code=0)
    session_host.run("certdrop-issue", user="_certdrop", code=0)
    session_host.run("certdrop-watch", code=0)
    yield
    session_host.world.cron.stop()


@pytest.fixture(scope="module")
def well(session_host: Host) -> str:
    """A site that has all it needs."""
    return session_host.add(session_host.name())


@pytest.fixture(autouse=True)
def put_right(host: Host) -> Iterator[None]:
    """What a test put into nginx's directory is taken out again."""
    before = set(SITES.iterdir())
    yield
    for path in set(SITES.iterdir()) - before:
        path.unlink()
    host.world.nginx.reload()


def check(host: Host, *argv: str, **more: Any) -> Lines:
    """The lines; the exit code must say whether one of them failed, and no token may be left."""
    done = host.run("certdrop-check", "--json", *argv, **more)
    found: Lines = json.loads(done.text)
    assert done.code == (os.EX_CONFIG if any(line["level"] == "failed" for line in found) else 0), done
    assert all(line["mend"] for line in found if line["level"] != "ok"), found
    assert tokens() == []
    return found


def tokens() -> list[str]:
    """What the doctor left among the challenges."""
    return [entry for entry in os.listdir(SPOOL + "/challenges") if entry.startswith("certdrop-check-")]


def said(lines: Lines, level: str, what: str = "") -> str:
    """What the lines of a level say, about something."""
    return "\n".join(f"{line['what']}: {line['why']}; {line['mend']}" for line in lines if line["level"] == level and what in line["what"])


def test_walls_that_only_root_can_try(host: Host, well: str) -> None:
    """The judge's namespaces; and FUSE, which certdrop's users must not have: what is advised, helps."""
    lines = check(host, "--offline", well)
    assert "each judge has namespaces of its own: processes, IPC, network" in said(lines, "ok", "sandbox")
    by_all = json.loads(host.run("certdrop-check", "--offline", "--json", well, user="_certdrop-judge").text)
    assert [line for line in by_all if "Landlock" in line["why"]] == [line for line in lines if "Landlock" in line["why"]] != []
    if os.path.exists("/dev/fuse"):
        os.unlink("/dev/fuse")
        os.mknod("/dev/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
        os.chmod("/dev/fuse", 0o666)
        found = said(check(host, "--offline", well), "warning", "fuse")
        assert "_certdrop and _certdrop-judge and _certdrop-watch can open /dev/fuse" in found, found
        host.run("sh", "-c", found.partition("(SECURITY.md); ")[2].partition(";")[0], code=0)
        assert "cannot open /dev/fuse" in said(check(host, "--offline", well), "ok", "fuse")


def test_a_healthy_host_has_no_failed_line(host: Host, well: str) -> None:
    """Every part is looked at, and nothing is said against any."""
    lines = check(host)
    assert said(lines, "failed") == ""
    kinds = {line["what"].replace(f"{well}: ", "") for line in lines}
    assert {"configuration", "directories", "programs", "private keys", "_certdrop", "passwords", "ssh", "sudo", "sandbox", "fuse", "cron", "cron table",
            "keeper", "issuer", "watcher", "nginx", "port 80", "port 443", "TLS settings", "names", "CA", "clock", "account", "space",
            "versions", "key", "served", "other clients"} <= kinds
    assert "a token comes back over each address, and CAA lets the CA issue" in said(lines, "ok", f"{well}: names")
    assert "is valid; its contact: mailto:hostmaster@example.org" in said(lines, "ok", "account")


def test_forms_and_exit_codes(host: Host, well: str) -> None:
    """Text, quiet, one site, offline; words that are not understood, and a site that is not there."""
    text = host.run("certdrop-check", well, code=0).text
    assert text.splitlines()[-1].endswith(" 0 failed") and f"ok      {well}: served: serving" in text
    quiet = host.run("certdrop-check", "--quiet", "--offline", code=0).text
    assert all(line.startswith("warning") for line in quiet.splitlines())
    assert not [line for line in check(host, "--offline", well) if line["what"] in ("CA", f"{well}: names")]
    host.run("certdrop-check", "--nonsense", code=os.EX_USAGE)
    host.run("certdrop-check", "none.example.org", code=os.EX_DATAERR)


def test_anybody_may_look(host: Host, well: str) -> None:
    """Without root what only root may see is said to be missing; nothing fails for that."""
    lines = check(host, user="daemon", env={"PATH": "/usr/bin:/bin:/usr/sbin"})
    assert said(lines, "failed") == ""
    assert "sudo certdrop-check" in said(lines, "warning", "root") and "sudo certdrop-check" in said(lines, "warning", "challenges")


def test_no_resolver_answers(host: Host) -> None:
    """Where the resolver is dead the doctor still answers, and says that it is the DNS."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    with changed("/etc/resolv.conf", "nameserver 127.0.0.9\n"):
        lines = check(host, name)
    assert "the DNS fails" in said(lines, "failed", "names") or "do not answer" in said(lines, "failed", "names")
    host.run("certdrop", "remove", name, code=0)


# ---- nginx

def test_what_nginx_lacks(host: Host) -> None:
    """Each of five sites has something else in the way: said with file and line, and what mends it."""
    names = [host.name() for _ in range(5)]
    for name in names:
        host.run("certdrop", "add", name, "--no-issue", code=0)
    live = [f"{STATE}/live/{name}" for name in names]
    blocks = [
        f"server {{ listen 80; server_name {names[0]}; location / {{ return 301 https://$host; }} }}",
        f"server {{ listen 80; server_name {names[1]}; {CHALLENGE} return 301 https://$host$request_uri; }}",
        f"server {{ listen 80; server_name {names[2]}; if ($host = {names[2]}) {{ return 301 https://$host$request_uri; }} {CHALLENGE} }}",
        f"server {{ listen 80; server_name {names[3]}; {CHALLENGE} }}",
        f"server {{ listen 443 ssl; server_name {names[3]}; ssl_certificate {live[3]}/fullchain.pem; ssl_certificate_key {live[3]}/privkey.pem; }}",
        f"server {{ listen 80; listen 443 ssl; server_name {names[4]}; {CHALLENGE} include {live[4]}/nginx.conf; ssl_protocols TLSv1 TLSv1.2; "
        "ssl_ciphers RC4-SHA:HIGH; ssl_stapling on; }",
    ]
    (SITES / "broken.conf").write_text("\n".join(blocks) + "\n")
    host.world.nginx.reload()
    lines = check(host, *names)
    at = f"{SITES}/broken.conf"
    for name, line, words in zip(names, (1, 2, 3), ("takes the challenges", "comes before every location", "comes before every location")):
        found = said(lines, "failed", f"{name}: port 80")
        assert "the token does not come" in found and f"{at}:{line}" in found and words in found, lines
    assert f"{at}:5 names the certificate itself" in said(lines, "warning", f"{names[3]}: port 443")
    assert f"include {live[3]}/nginx.conf;" in said(lines, "warning", f"{names[3]}: port 443")
    settings = said(lines, "warning", "TLS settings")
    version = subprocess.run(["nginx", "-v"], stderr=subprocess.PIPE, text=True, check=True).stderr.strip().rpartition("/")[2]
    one_key_for_ever = tuple(map(int, version.split("."))) < (1, 23, 2)      # Debian 12's; Debian 13's nginx renews the tickets' keys
    assert ("session tickets" in settings) is one_key_for_ever, (version, settings)
    assert [word in settings for word in ("TLSv1 is weak", "weak ciphers: RC4-SHA", "ssl_stapling does nothing")] == [True] * 3, settings
    put = f"put into the server block at {at}:6, in place of such lines of its own: include /etc/nginx/snippets/certdrop-tls.conf;"
    assert put in settings and "take that line out" in settings, settings
    own = " ssl_protocols TLSv1 TLSv1.2; ssl_ciphers RC4-SHA:HIGH; ssl_stapling on;"
    weak = pathlib.Path("/etc/nginx/conf.d/weak.conf")                     # as Debian 12's nginx.conf has it
    for inherited in ("", "ssl_protocols TLSv1 TLSv1.2 TLSv1.3;\n"):
        weak.write_text(inherited)
        (SITES / "broken.conf").write_text("\n".join(blocks).replace(own, " include /etc/nginx/snippets/certdrop-tls.conf;") + "\n")
        assert host.world.nginx.test()[0]
        assert "" == said(check(host, "--offline", names[4]), "warning", "TLS settings")
    weak.unlink()
    (SITES / "broken.conf").unlink()
    for name in names:
        host.run("certdrop", "remove", name, code=0)


def test_a_token_that_comes_by_way_of_redirects(host: Host) -> None:
    """CAs follow them to HTTPS, whatever certificate is shown there: nothing is said against it, and the CA issues."""
    name = host.name()
    host.run("certdrop", "add", name, "--no-issue", code=0)
    (SITES / "away.conf").write_text(
        f"server {{ listen 80; server_name {name}; return 301 https://$host$request_uri; }}\n"
        f"server {{ listen 443 ssl; server_name {name}; include {STATE}/live/{name}/nginx.conf; {CHALLENGE} }}\n")
    host.world.nginx.reload()
    found = [line for line in check(host, name) if line["what"] == f"{name}: port 80"]
    assert [line["level"] for line in found] == ["ok"], found
    host.run("certdrop", "renew", name, code=0)
    (SITES / "away.conf").unlink()
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)


def test_a_broken_nginx(host: Host, well: str) -> None:
    """With nginx's own words."""
    (SITES / "broken.conf").write_text("nonsense on;\n")
    try:
        assert 'unknown directive "nonsense"' in said(check(host, "--offline"), "failed", "nginx")
    finally:
        (SITES / "broken.conf").unlink()


def test_nginx_may_not_come_there(host: Host, well: str) -> None:
    """Its user is kept out above the challenges."""
    os.chmod("/var/spool", 0o700)
    try:
        found = said(check(host, well), "warning", "nginx challenges")
        assert "www-data may not go through /var/spool" in found and "chmod a+x /var/spool" in found
    finally:
        os.chmod("/var/spool", 0o755)


# ---- names

def test_what_the_dns_lacks(host: Host, well: str) -> None:
    """Each name of a site has something else wrong with it, and only those are said to be."""
    kinds = ("good", "gone", "servfail", "v6", "away", "caa", "method", "account", "mine", "idn")
    names = {what: f"{what}-{host.name()}" for what in kinds}
    names["idn"] = "xn--zzzzz-99aa." + names["idn"]
    host.run("certdrop", "add", *names.values(), "--no-issue", code=0)
    site = names["good"]
    subprocess.run(["ip", "-6", "addr", "add", "2001:db8::2/128", "dev", "lo"], check=True)
    (SITES / "other.conf").write_text("server { listen [2001:db8::2]:80; return 404; }\n")
    host.serve(site)
    dns_server = host.world.dns
    account = json.loads(next(pathlib.Path(STATE + "/issuer").glob("account@*.json")).read_text())["account"]
    dns_server.set_default(ipv4="")
    try:
        for what in names:
            dns_server.set_addresses(names[what], [] if what == "gone" else ["127.0.0.1"], {"v6": ["2001:db8::2"], "away": ["2001:db8:1::1"]}.get(what, []))
        dns_server.set_servfail(names["servfail"])
        dns_server.set_caa(names["caa"], "other.example; x=\x1b[2J", ";")
        dns_server.set_caa(names["method"], "pebble.letsencrypt.org; validationmethods=dns-01")
        dns_server.set_caa(names["account"], "pebble.letsencrypt.org; accounturi=https://ca.stage.test/other")
        dns_server.set_caa(names["mine"], f"pebble.letsencrypt.org; accounturi={account}; validationmethods=dns-01,http-01")
        dns_server.set_addresses("ca.stage.test", ["127.0.0.1"])
        lines = check(host, site)
    finally:
        dns_server.set_default(ipv4="127.0.0.1")
        dns_server.clear_servfail(names["servfail"])
        subprocess.run(["ip", "-6", "addr", "del", "2001:db8::2/128", "dev", "lo"], check=True)
    wrong = said(lines, "failed", f"{site}: names")
    for what, words in (("gone", "has no address"), ("servfail", "the DNS fails"),
                        ("caa", "allows only other.example"), ("method", "only by dns-01"), ("account", "only for the account https://ca.stage.test/other"),
                        ("idn", "no internationalized name")):
        assert any(names[what] in line and words in line for line in wrong.splitlines()), (what, wrong)
    assert not [line for line in wrong.splitlines() if names["good"] in line.partition("names:")[2] or names["mine"] in line or names["away"] in line]
    assert names["away"] in said(lines, "warning", "names") and "2001:db8:1::1 is not an address of this host" in said(lines, "warning", "names")
    assert f"{names['v6']}: over 2001:db8::2 the token does not come: HTTP 404" in said(lines, "failed", f"{site}: port 80") and "\x1b" not in json.dumps(lines)
    host.world.nginx.remove_site(site)
    (SITES / "other.conf").unlink()
    host.world.nginx.reload()
    host.run("certdrop", "remove", site, code=0)


class Bogus(threading.Thread):
    """A resolver that validates, and finds every signature wrong: an answer comes only with CD."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.7", 53))
        self.start()

    def run(self) -> None:
        while True:
            try:
                data, client = self.socket.recvfrom(4096)
            except OSError:
                return
            query = dns.message.from_wire(data)
            answer = dns.message.make_response(query)
            if not query.flags & dns.flags.CD and not query.question[0].name.to_text().startswith("ca."):
                answer.set_rcode(2)
            elif query.question[0].rdtype == 1:
                answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "127.0.0.1"))
            self.socket.sendto(answer.to_wire(), client)


def test_dnssec_is_told_apart(host: Host, well: str) -> None:
    """A name that only a resolver without validation finds."""
    resolver = Bogus()
    with changed("/etc/resolv.conf", "nameserver 127.0.0.7\n"):
        lines = check(host, well)
    resolver.socket.close()
    assert f"{well}: DNSSEC fails" in said(lines, "failed", "names")


def test_without_dnspython(host: Host, well: str) -> None:
    """It is said what is not examined; the rest is."""
    package = os.path.dirname(dns.message.__file__)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", package], check=True)
    try:
        lines = check(host, well)
    finally:
        subprocess.run(["umount", package], check=True)
    assert said(lines, "failed") == "" and "CAA and DNSSEC are not examined" in said(lines, "warning", "DNS")
    assert "a token comes back over each address" in said(lines, "ok", f"{well}: names")


# ---- the CA

def test_the_ca_is_not_there(host: Host, well: str) -> None:
    """Said, and the rest goes on; and where it has forgotten our account, that is said."""
    host.world.pebble.stop()
    lines = check(host, well)
    assert "ca.stage.test cannot be reached" in said(lines, "failed", "CA") and "a token comes back" in said(lines, "ok", f"{well}: names")
    assert "the CA does not tell about it" in said(lines, "warning", "account")
    host.world.pebble.start()
    assert "the CA knows no account" in said(check(host, well), "failed", "account")
    host.configure()


def test_the_ca_is_somebody_else(host: Host, well: str) -> None:
    """Its certificate does not verify; a profile it does not have; nobody to write to."""
    host.configure(ca_bundle='"/etc/ssl/certs/ca-certificates.crt"', contact="[]")
    lines = check(host, well)
    assert "its certificate is not valid" in said(lines, "failed", "CA") and "account" in said(lines, "warning", "account")
    host.configure(profile='"none-such"')
    assert "does not offer the profile none-such" in said(check(host, well), "failed", "profile")


class Late(http.server.BaseHTTPRequestHandler):
    """A CA whose clock, and whose directory, are wrong."""

    def do_GET(self) -> None:
        said = {"newNonce": "https://x/", "newAccount": "https://x/\x1b[2J", "newOrder": "http://x/", "meta": {"caaIdentities": ["\x1b", 7]}}
        body = json.dumps(said).encode()
        self.send_response_only(200)
        self.send_header("Date", self.date_time_string(int(time.time()) - 7200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_clock_is_wrong(host: Host, well: str) -> None:
    """By the CA's Date; and a directory that lacks what an order needs."""
    pebble = host.world.pebble
    pebble.stop()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", pebble.port), Late)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pebble.certificate, pebble.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        lines = check(host, well)
    finally:
        server.shutdown()
        server.server_close()
        pebble.start()
    assert "2 hours ahead of ca.stage.test's" in said(lines, "failed", "clock")
    assert "is no ACME directory: newAccount, newOrder would be at another host" in said(lines, "failed", "CA")


# ---- the host

def test_cron_is_dead(host: Host, well: str) -> None:
    """And its table gone; or not root's alone."""
    host.world.cron.stop()
    try:
        with changed("/etc/cron.d/certdrop", None):
            found = said(check(host, "--offline"), "failed", "cron")
            assert "no cron daemon runs" in found and "/etc/cron.d/certdrop is not there" in found
        os.chmod("/etc/cron.d/certdrop", 0o666)
        assert "cron passes over it" in said(check(host, "--offline"), "failed", "cron")
        os.chmod("/etc/cron.d/certdrop", 0o644)
    finally:
        host.world.cron.start()


def test_nobody_has_run_for_long(host: Host, well: str) -> None:
    """The stamps of keeper and issuer are old."""
    for principal in ("keeper", "issuer"):
        os.utime(f"{STATE}/{principal}/last-run", (time.time() - 9000,) * 2)
    lines = check(host, "--offline")
    assert "has not run since" in said(lines, "failed", "keeper") and "has not run since" in said(lines, "failed", "issuer")
    for principal in ("keeper", "issuer"):
        os.utime(f"{STATE}/{principal}/last-run")


def test_sudoers_is_broken(host: Host, well: str) -> None:
    """A file of somebody else's that sudo cannot read."""
    with changed("/etc/sudoers.d/broken", "this is no rule\n", 0o440):
        assert "sudoers is not valid" in said(check(host, "--offline"), "failed", "sudo")


SSHD = """#!/bin/sh
# as `sshd -T` prints it (OpenSSH 9.2)
cat <<END
port 22
permitrootlogin without-password
usepam yes
subsystem sftp /usr/lib/openssh/sftp-server
%s
END
"""


def test_sshd_would_let_them_in(host: Host, well: str) -> None:
    """Unless the example drop-in, which the package has, denies them."""
    assert stage.read("/usr/share/doc/certdrop/examples/sshd-certdrop.conf").count("DenyUsers _certdrop _certdrop-judge _certdrop-watch") == 1
    denied = "denyusers _certdrop\ndenyusers _certdrop-judge\ndenyusers _certdrop-watch"
    with changed("/usr/sbin/sshd", SSHD % "", 0o755):
        assert "sshd would let _certdrop-judge in" in said(check(host, "--offline"), "warning", "ssh")
    with changed("/usr/sbin/sshd", SSHD % denied, 0o755):
        assert "sshd lets none of them in" in said(check(host, "--offline"), "ok", "ssh")


def test_a_full_disk(host: Host, well: str) -> None:
    """Space and inodes of the file systems that certdrop writes on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=40,mode=755", "tmpfs", "/var/log/certdrop"], check=True)
    try:
        found = said(check(host, "--offline"), "failed", "space")
    finally:
        subprocess.run(["umount", "/var/log/certdrop"], check=True)
    assert "/var/log/certdrop: 2 MiB left" in found and "inodes left" in found, found


def test_a_pair_that_does_not_match(host: Host, well: str) -> None:
    """A key of another generation; a chain that is cut, and one in the wrong order."""
    here = f"{STATE}/live/{well}"
    with changed(f"{here}/privkey.pem", stage.read(f"{STATE}/sites/{well}/{host.next(well):04d}/privkey.pem"), 0o600):
        assert "does not belong to the live certificate" in said(check(host, "--offline", well), "failed", f"{well}: key")
    with changed(f"{here}/privkey.pem", "no key", 0o600):
        assert "cannot be read" in said(check(host, "--offline", well), "failed", f"{well}: key")
    leaf, chain = stage.read(f"{here}/cert.pem"), stage.read(f"{here}/fullchain.pem")
    with changed(f"{here}/fullchain.pem", leaf + leaf):
        assert "the chain is broken: certificate 1 is not signed by the next" in said(check(host, "--offline", well), "failed", f"{well}: key")
    with changed(f"{here}/fullchain.pem", chain[len(leaf):] + leaf):
        assert "fullchain.pem does not begin with cert.pem" in said(check(host, "--offline", well), "failed", f"{well}: key")


def test_another_client_is_active(host: Host, well: str) -> None:
    """certbot's own cron job and renewal file, for one of our names; not where it renews others."""
    job = "0 */12 * * * root test -x /usr/bin/certbot -a \\! -d /run/systemd/system && perl -e 'sleep int(rand(43200))' && certbot -q renew\n"
    os.makedirs("/etc/letsencrypt/renewal", exist_ok=True)
    with changed("/etc/cron.d/certbot", job):
        with changed(f"/etc/letsencrypt/renewal/{well}.conf", f"[[webroot_map]]\n{well} = /var/www\x1b[2J\n"):
            found = said(check(host, "--offline"), "warning", "other clients")
        assert f"certbot is still active (/etc/cron.d/certbot) for {well}" in found
        with changed("/etc/letsencrypt/renewal/else.example.org.conf", "[renewalparams]\n"):
            assert said(check(host, "--offline"), "warning", "other clients") == ""


def test_a_user_is_gone(host: Host, well: str) -> None:
    """Without _certdrop-watch there is nobody to look at the network, and root does not; what root sees is shown."""
    passwd = "".join(line + "\n" for line in stage.read("/etc/passwd").splitlines() if not line.startswith("_certdrop-watch:"))
    with changed("/etc/passwd", passwd):
        lines = check(host)
    assert "there is no such user" in said(lines, "failed", "_certdrop-watch") and said(lines, "ok", "nginx") and not said(lines, "ok", "CA")


# ---- the token

def test_a_killed_doctor_leaves_no_token(host: Host, well: str) -> None:
    """kill -9, while the CA's name is looked up: the process that has the token removes it. Meanwhile a tidying issuer does not disturb it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, changed("/etc/resolv.conf", "nameserver 127.0.0.8\n"):
        silent.bind(("127.0.0.8", 53))
        process = subprocess.Popen(["certdrop-check"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        token = stage.wait_for(tokens, what="the token")[0]
        path = pathlib.Path(SPOOL) / "challenges" / token
        assert (path.owner(), path.stat().st_mode & 0o777) == ("_certdrop", 0o644)
        path.unlink()
        stage.wait_for(path.exists, what="the token again")
        process.send_signal(signal.SIGKILL)
        process.wait()
        stage.wait_for(lambda: not tokens(), what="the token's end")


def test_the_network_part_can_write_nothing(host: Host, well: str) -> None:
    """As root starts it: what looks at the DNS and the CA runs as _certdrop-watch, is shut in before its first packet, and opens no file for writing."""
    host.run("sh", "-c", f"strace -f -qq -s 300 -o /tmp/calls -e trace=execve,setresuid,openat,landlock_restrict_self,connect certdrop-check {well}", code=0)
    calls = [line.split(None, 1) for line in stage.read("/tmp/calls").splitlines()]
    mains = [(number, call) for number, call in calls if call.startswith('execve("/usr/bin/python3"') and "watcher/__main__.py" in call]
    process = mains[0][0]
    mine = [call for number, call in calls if number == process]
    begun, confined = mine.index(mains[0][1]), next(at for at, call in enumerate(mine) if "landlock_restrict_self" in call)
    assert any(call.startswith("setresuid") for call in mine[:begun])
    assert not [call for call in mine[begun:confined] if call.startswith("connect")]
    assert [call for call in mine[confined:] if "sin_port=htons(14000)" in call]
    assert not [call for call in mine[begun:] if call.startswith("openat") and ("O_WRONLY" in call or "O_RDWR" in call or "O_CREAT" in call)]

"""The ordinary mistakes, a row each: it is made for real, `certdrop add` and `certdrop-check` say what is wrong and what mends it, and what they say is done.

What is held: the first line with which `add` does not succeed, and a `failed` line of `certdrop-check`, name what is wrong and where; the mend that stands
there (read out of the message, see `follow`) is carried out; then `certdrop renew` gets a certificate, and `certdrop-check` has nothing failed any more.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import world as stage
from conftest import SPOOL, STATE, Done, Host
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

NGINX = pathlib.Path("/etc/nginx")
BLOCK = NGINX / "sites-enabled" / "zz-mine"
INCLUDE = "include snippets/certdrop-challenge.conf;"
REDIRECT = "return 301 https://$host$request_uri;"
ROUTINE = ("added; its names", "asking https", "registered an account", "certdrop: note:", "; the reply for request")
GUESSES = ("does the server block", "as root; try", "(an IDN as", "see what else", "[Errno")
Making = Callable[[Host, str], Iterator[None]]


class Mistake(NamedTuple):
    """How it is made; what the first line of `add` and a failed line of `certdrop-check` must say (NAME: the site's); and more names that are added."""

    make: Making
    add: str
    check: str = ""
    more: tuple[str, ...] = ()


def block(text: str, reload: bool = True) -> Making:
    """Server blocks of the administrator's own."""
    def make(host: Host, name: str) -> Iterator[None]:
        BLOCK.write_text(text.replace("NAME", name))
        if reload:
            host.world.nginx.reload()
        yield
        BLOCK.unlink(missing_ok=True)
    return make


def dns(ipv4: list[str], ipv6: list[str], text: str = "server { listen 80; server_name NAME; " + INCLUDE + " }\n") -> Making:
    """Records of the name's, where nginx is fine."""
    def make(host: Host, name: str) -> Iterator[None]:
        host.world.dns.set_default(ipv4="")
        host.world.dns.set_addresses("ca.stage.test", ["127.0.0.1"])
        host.world.dns.set_addresses(name, ipv4, ipv6)
        yield from block(text)(host, name)
        host.world.dns.set_default(ipv4="127.0.0.1")
    return make


def nginx_stopped(host: Host, name: str) -> Iterator[None]:
    BLOCK.write_text(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")
    host.world.nginx.stop()
    yield
    BLOCK.unlink()


def nginx_broken(host: Host, name: str) -> Iterator[None]:
    host.run("certdrop", "add", "other." + name, "--no-issue", code=0)       # the doctor has to have something to look at
    yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE}\n nonsense on;\n}}\n", reload=False)(host, name)


def not_reloaded(host: Host, name: str) -> Iterator[None]:
    yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n", reload=False)(host, name)


def default_server(host: Host, name: str) -> Iterator[None]:
    yield from block("server { listen 80 default_server; root /var/www/html; }\n")(host, name)


def file_is_there(host: Host, name: str) -> Iterator[None]:
    path = NGINX / "sites-available" / name
    path.write_text("# nothing yet\n")
    yield from default_server(host, name)
    path.unlink(missing_ok=True)


def servfail(host: Host, name: str) -> Iterator[None]:
    host.world.dns.set_servfail(name)
    yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")(host, name)
    host.world.dns.clear_servfail(name)


def caa(host: Host, name: str) -> Iterator[None]:
    host.world.pebble.restart(caa_identities=["pebble.letsencrypt.org"])
    host.configure()
    host.world.dns.set_caa(name, "other.example")
    yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")(host, name)
    host.world.dns.set_caa(name)


def other_host(host: Host, name: str) -> Iterator[None]:
    """Another machine, with a web server of its own."""
    subprocess.run("ip netns add other && ip link add v0 type veth peer name v1 netns other && ip addr add 192.0.2.1/24 dev v0 && ip link set v0 up && "
                   "ip -n other addr add 192.0.2.2/24 dev v1 && ip -n other link set v1 up && ip -n other link set lo up", shell=True, check=True)
    server = subprocess.Popen(["ip", "netns", "exec", "other", "python3", "-m", "http.server", "80", "--directory", "/var/www/html"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage.wait_for(lambda: not subprocess.run(["curl", "-s", "-o", "/dev/null", "http://192.0.2.2/"], check=False).returncode, what="the other host")
    try:
        yield from dns(["192.0.2.2"], [])(host, name)
    finally:
        server.kill()
        server.wait()
        subprocess.run("ip link del v0; ip netns del other", shell=True, check=True)


def firewall(host: Host, name: str) -> Iterator[None]:
    """Packets to port 80 of an address of this host's are dropped."""
    subprocess.run("ip addr add 192.0.2.9/32 dev lo; ip xfrm policy add dir in src 0.0.0.0/0 dst 192.0.2.9/32 proto tcp dport 80 action block",
                   shell=True, check=True)
    pathlib.Path("/proc/sys/net/ipv4/conf/lo/disable_policy").write_text("0")
    yield from dns(["192.0.2.9"], [])(host, name)
    subprocess.run("ip xfrm policy flush; ip addr del 192.0.2.9/32 dev lo", shell=True, check=True)


def kept_out(host: Host, name: str) -> Iterator[None]:
    os.chmod("/var/spool", 0o700)
    yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")(host, name)
    os.chmod("/var/spool", 0o755)


def disk_full(path: str) -> Making:
    def make(host: Host, name: str) -> Iterator[None]:
        kept = os.stat(path)
        options = f"size=8m,mode={kept.st_mode & 0o7777:o},uid={kept.st_uid},gid={kept.st_gid}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        below = path + ("/lost+found" if path.endswith("replies") else "")       # where nobody tidies up
        os.makedirs(below, exist_ok=True)
        subprocess.run(["dd", "if=/dev/zero", f"of={below}/ballast", "bs=4k"], check=False, stderr=subprocess.DEVNULL)
        try:
            yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")(host, name)
        finally:
            subprocess.run(["umount", "-l", path], check=True)
    return make


def toml(**changes: str) -> Making:
    def make(host: Host, name: str) -> Iterator[None]:
        host.configure(**changes)
        yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")(host, name)
    return make


def misnamed(host: Host, name: str) -> Iterator[None]:
    """The CA's roots are in roots.d, where no configuration names them."""
    stage.write("/etc/certdrop/roots.d/mine.pem", stage.read(host.world.pebble.root()) + stage.read(host.world.pebble.ca_bundle))
    yield from toml(trust_roots='"/etc/ssl/certs/ca-certificates.crt"')(host, name)


def closed_bundle(host: Host, name: str) -> Iterator[None]:
    path = pathlib.Path("/etc/closed.pem")
    path.write_text(stage.read(host.world.pebble.ca_bundle))
    path.chmod(0o600)
    yield from toml(ca_bundle=f'"{path}"')(host, name)
    path.unlink(missing_ok=True)


def clock(host: Host, name: str) -> Iterator[None]:
    """The certificate of the CA's server has expired, by the clock of this host."""
    pebble = host.world.pebble
    expired = stage.Authority().issue("pebble", pebble.host)
    bundle, key = stage.Authority().bundle, stage.Authority().key
    good, issuer = (x509.load_pem_x509_certificate(pathlib.Path(path).read_bytes()) for path in (expired[0], bundle))
    past = datetime.datetime.utcnow().replace(microsecond=0) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(issuer.subject, good.subject, good.public_key(), 7, past - datetime.timedelta(days=30), past)
    for extension in good.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(serialization.load_pem_private_key(pathlib.Path(key).read_bytes(), None), hashes.SHA256())
    pathlib.Path(expired[0]).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pebble.stop()
    pebble.launch([stage.pebble_program("pebble"), "-config", stage.write("/tmp/world/pebble.json", pebble._config()), "-dnsserver", pebble.options.dns],
                  pebble._environment())
    pebble.wait_ready(pebble.port, pebble.management_port)
    yield from block(f"server {{ listen 80; server_name {name}; {INCLUDE} }}\n")(host, name)
    new_certificate(host)


def hidden_bundle(host: Host, name: str) -> Iterator[None]:
    folder = pathlib.Path("/etc/private-roots")
    folder.mkdir(mode=0o700)
    (folder / "ca.pem").write_text(stage.read(host.world.pebble.ca_bundle))
    yield from toml(ca_bundle=f'"{folder}/ca.pem"')(host, name)
    (folder / "ca.pem").unlink()
    folder.rmdir()


MISTAKES = {
    # the DNS
    "no record": Mistake(dns([], []), "NAME: has no address in the DNS.*make a record A .*for NAME"),
    "the zone is broken": Mistake(servfail, "NAME: the DNS fails: .*SERVFAIL.*mend the zone's name servers"),
    "the name is at another host": Mistake(other_host, r"NAME: 192\.0\.2\.2 is not an address of this host, and what answers there has not the token"),
    "an old AAAA record": Mistake(dns(["127.0.0.1"], ["2001:db8:1::1"]), "NAME: 2001:db8:1::1 is not an address of this host, and no packet was sent.*AAAA"),
    "CAA lets in another CA": Mistake(caa, "", 'CAA at NAME allows only other.example.*add to the CAA records of NAME: 0 issue "pebble'),
    # what stands before nginx, and whether it runs
    "a firewall": Mistake(firewall, r"over 192\.0\.2\.9 .*packets .* are dropped, as a firewall does.*open port 80"),
    "nginx is stopped": Mistake(nginx_stopped, "does not run.*(service nginx start|systemctl start nginx)"),
    "nginx is broken": Mistake(nginx_broken, 'unknown directive "nonsense" in .*zz-mine:2.*mend that', "unknown directive.*zz-mine:2.*mend that line"),
    "nginx was not reloaded": Mistake(not_reloaded, "nobody listens.*not reloaded since; nginx -s reload"),
    # its configuration
    "no block has the name": Mistake(default_server, "zz-mine:1 answers for NAME and has no challenge location; certdrop-nginx NAME --write"),
    "no block, and a file of that name": Mistake(file_is_there, "has no challenge location; certdrop-nginx NAME --write"),
    "the include is missing": Mistake(block("server {\n listen 80;\n server_name NAME;\n location / {\n " + REDIRECT + "\n }\n}\n"),
                                      "redirected to https://NAME.*zz-mine:5: return 301.*add to the server block at .*zz-mine:1: include"),
    "a redirect before the include": Mistake(block("server {\n listen 80;\n server_name NAME;\n " + INCLUDE + "\n " + REDIRECT + "\n}\n"),
                                             r"zz-mine:5: return 301.*move the return at .*zz-mine:5 into a location / \{ \}$"),
    "a redirect, and a location /": Mistake(block("server {\n listen 80;\n server_name NAME;\n " + REDIRECT + "\n location / {\n root /srv;\n }\n}\n"),
                                            "zz-mine:4: return 301.*move the return at .*zz-mine:4 into the location / at .*zz-mine:5, and add to"),
    "certbot's if": Mistake(block("server {\n if ($host = NAME) {\n " + REDIRECT + "\n }\n listen 80;\n server_name NAME;\n "
                                  + INCLUDE + "\n return 404;\n}\n"),
                            r"move the if at .*zz-mine:2 and the return at .*zz-mine:8 into a location / \{ \}$"),
    "a rule for dotfiles": Mistake(block("server {\n listen 80;\n server_name NAME;\n location ~ /\\. {\n deny all;\n }\n}\n"),
                                   "HTTP 403.*zz-mine:5: deny all refuses the challenges.*add to the server block at .*zz-mine:1: include"),
    "deny": Mistake(block("server {\n listen 80;\n server_name NAME;\n root /var/www/html;\n deny all;\n}\n"), "HTTP 403.*add to .*zz-mine:1: include"),
    "another client's location": Mistake(block("server {\n listen 80;\n server_name NAME;\n location /.well-known/acme-challenge/ {\n root /srv;\n }\n}\n"),
                                         "location at .*zz-mine:4 does not lead to.*put in place of the location at .*zz-mine:4: include"),
    "another port": Mistake(block("server { listen 8080; server_name NAME; " + INCLUDE + " }\n"),
                            "does not listen on port 80; add to .*zz-mine:1: listen 80;$"),
    "no IPv6": Mistake(dns(["127.0.0.1"], ["::1"], "server {\n listen 80;\n server_name NAME;\n " + INCLUDE + "\n}\n"),
                       r"over ::1 .*does not listen on port 80 over IPv6; add to .*zz-mine:1: listen \[::\]:80;$"),
    "a name that the block lacks": Mistake(block("server {\n listen 80;\n server_name NAME;\n " + INCLUDE + "\n}\n"
                                                 "server { listen 80 default_server; return 404; }\n"),
                                           r"www\.NAME: .*add www\.NAME to the server_name at .*zz-mine:3$", more=("www.NAME",)),
    # this host
    "a closed directory": Mistake(kept_out, "/var/spool is closed to others.*chmod o.x /var/spool"),
    "no room for replies": Mistake(disk_full(SPOOL + "/replies"), "/var/spool/certdrop/replies: 0 MiB left.*make room"),
    "no room for challenges": Mistake(disk_full(SPOOL + "/challenges"), "/var/spool/certdrop/challenges: 0 MiB left.*make room"),
    "no room for keys": Mistake(disk_full(STATE + "/sites"), f"{STATE}/sites/NAME/.*: No space left on device", f"{STATE}/sites: 0 MiB left.*make room"),
    # the CA's roots
    "no root of the CA": Mistake(toml(trust_roots='"/etc/ssl/certs/ca-certificates.crt"'),
                                 "what the CA issued leads to no root that .*put the CA's root certificates .PEM. into "
                                 "/etc/certdrop/roots.d/ca.stage.test:14000.pem"),
    "its roots under another name": Mistake(misnamed, "what the CA issued leads to no root .*mv /etc/certdrop/roots.d/mine.pem "
                                            "/etc/certdrop/roots.d/ca.stage.test"),
    "trust_roots names nothing": Mistake(toml(trust_roots='"/tmp/world/pebble-rots.pem"'),
                                         "/tmp/world/pebble-rots.pem is not there; /tmp/world/pebble-roots.pem is.*"
                                         "correct trust_roots in /etc/certdrop/certdrop.toml"),
    "no root of its server": Mistake(toml(ca_bundle='"/etc/ssl/certs/ca-certificates.crt"'),
                                     "has no root for it; put the root certificate .* into /etc/certdrop/roots.d/ca.stage.test:14000.pem"),
    "ca_bundle names nothing": Mistake(toml(ca_bundle='"/etc/certdrop/none.pem"'), "none.pem is not there.*correct ca_bundle"),
    "ca_bundle below a closed directory": Mistake(hidden_bundle, "lies below /etc/private-roots, which is closed to others.*chmod o.x /etc/private-roots"),
    "a closed ca_bundle": Mistake(closed_bundle, "/etc/closed.pem is closed to others.*chmod a.r /etc/closed.pem"),
    "this host's clock": Mistake(clock, "its certificate is not valid .*(expired|not yet valid).*by this host's clock it is .*set this host's clock"),
}


# ---- what a message says, done

def follow(host: Host, name: str, text: str) -> None:
    """Do what mends it, as it stands in a message. What is no command is an edit, at the place that is named."""
    for pattern, step in MENDS.items():
        found = re.search(pattern, text)
        if found:
            step(host, name, found)
            return
    raise AssertionError(f"nothing there can be done: {text}")


def command(host: Host, name: str, found: re.Match[str]) -> None:
    """A command is run as it stands there."""
    host.run("sh", "-c", found[1], code=0)


def cut(path: str, line: int, word: str) -> str:
    """Take the directive that begins at this line out of a file; its text."""
    lines = pathlib.Path(path).read_text().splitlines()
    taken, depth = [], 0
    assert word in lines[line - 1], (word, lines)
    for at in range(line - 1, len(lines)):
        taken.append(lines[at])
        depth += lines[at].count("{") - lines[at].count("}")
        lines[at] = ""                         # the other lines keep their numbers
        if depth <= 0 and taken[-1].rstrip().endswith((";", "}")):
            break
    pathlib.Path(path).write_text("\n".join(lines) + "\n")
    return "\n".join(taken)


def put(path: str, line: int, text: str) -> None:
    """Put a text into the block that begins at this line."""
    lines = pathlib.Path(path).read_text().splitlines()
    assert "{" in lines[line - 1], lines
    lines[line - 1] = lines[line - 1].replace("{", "{ " + text.replace("\n", " ") + " ", 1)
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def move(host: Host, name: str, found: re.Match[str]) -> None:
    """Into a location, and what is to be added besides."""
    taken = " ".join(cut(path, int(line), word) for word, path, line in re.findall(r"the (\w+) at (\S+?):(\d+)", found[1]))
    there = re.search(r"into the location / at (\S+?):(\d+)", found[0])
    if there:
        put(there[1], int(there[2]), taken)
    else:
        server = re.search(r"(/etc/nginx/\S+?):\d+", found[1])
        assert server
        at = next(number for number, line in enumerate(pathlib.Path(server[1]).read_text().splitlines(), 1) if line.startswith("server"))
        put(server[1], at, f"location / {{ {taken} }}")
    more = re.search(r"add to the server block at (\S+?):(\d+): (.*;)", found[0])
    if more:
        put(more[1], int(more[2]), more[3])
    host.world.nginx.reload()


def add_to_block(host: Host, name: str, found: re.Match[str]) -> None:
    put(found[1], int(found[2]), found[3])
    host.world.nginx.reload()


def instead_of(host: Host, name: str, found: re.Match[str]) -> None:
    cut(found[1], int(found[2]), "location")
    put(found[1], 1, found[3])
    host.world.nginx.reload()


def add_name(host: Host, name: str, found: re.Match[str]) -> None:
    lines = pathlib.Path(found[2]).read_text().splitlines()
    lines[int(found[3]) - 1] = lines[int(found[3]) - 1].replace(";", f" {found[1]};", 1)
    pathlib.Path(found[2]).write_text("\n".join(lines) + "\n")
    host.world.nginx.reload()


def take_line_out(host: Host, name: str, found: re.Match[str]) -> None:
    if pathlib.Path(found[1]).read_text().splitlines()[int(found[2]) - 1]:         # else it is done: two messages name the same line
        cut(found[1], int(found[2]), "nonsense")
        host.world.nginx.reload()


def record(host: Host, name: str, found: re.Match[str]) -> None:
    host.world.dns.set_addresses(found[1], ["127.0.0.1"])


def zone(host: Host, name: str, found: re.Match[str]) -> None:
    host.world.dns.clear_servfail(name)


def policy(host: Host, name: str, found: re.Match[str]) -> None:
    host.world.dns.set_caa(found[1], "other.example", found[2])


def wall(host: Host, name: str, found: re.Match[str]) -> None:
    subprocess.run(["ip", "xfrm", "policy", "flush"], check=True)


def room(host: Host, name: str, found: re.Match[str]) -> None:
    """By the command that shows what takes it."""
    os.unlink(host.run("sh", "-c", f"find {found[1].split()[2]} -type f -size +16k", code=0).text.strip())
    assert host.run("sh", "-c", found[1], code=0).text


def roots(host: Host, name: str, found: re.Match[str]) -> None:
    """Those of the CA, and of its server."""
    stage.write(found[1], stage.read(host.world.pebble.root()) + stage.read(host.world.pebble.ca_bundle))


def setting(host: Host, name: str, found: re.Match[str]) -> None:
    host.configure()


def time_service(host: Host, name: str, found: re.Match[str]) -> None:
    """A clock that is not this stage's own cannot be set here: the CA's certificate is made anew in its place."""
    new_certificate(host)


def new_certificate(host: Host) -> None:
    """The CA's server has one that is valid now."""
    host.world.pebble.stop()
    host.world.pebble.certificate, host.world.pebble.key = stage.Authority().issue("pebble", host.world.pebble.host)
    host.world.pebble.start()
    host.configure()


MENDS: dict[str, Callable[[Host, str, "re.Match[str]"], None]] = {
    r"; (certdrop-nginx \S+ --write)": command,
    r"; ((?:service|systemctl) \S+ \S+|nginx -s reload|chmod \S+ /\S+)$": command,
    r"; (mv /\S+ /\S+) if": command,
    r"move (.*) into (?:a|the) location / .*": move,
    r"put in place of the location at (\S+?):(\d+): (.*;)": instead_of,
    r"add to the server block at (\S+?):(\d+): (.*;)": add_to_block,
    r"add (\S+) to the server_name at (\S+?):(\d+)": add_name,
    r' in (/etc/nginx/\S+?):(\d+).*mend that': take_line_out,
    r"make (?:a|the) record A+ (?:.*for|of) (\S+) ": record,
    r'add to the CAA records of (\S+): 0 issue "(\S+)"': policy,
    r"mend the zone's name servers": zone,
    r"open port 80": wall,
    r"make room: (.*)$": room,
    r"No space left on device": lambda host, name, found: None,        # the doctor's line says how
    r"put the (?:CA's )?root certificates? .*\(PEM\) into (\S+?);": roots,
    r"correct (\w+) in /etc/certdrop/certdrop.toml": setting,
    r"set this host's clock": time_service,
}


def first_line(done: Done) -> str:
    """The first line of `certdrop add` that is no progress."""
    return next((line for line in done.text.splitlines() if not any(words in line for words in ROUTINE)), "")


def failed(host: Host, *names: str) -> list[str]:
    """What has failed, a line each, as it is printed."""
    found = json.loads(host.run("certdrop-check", "--json", *names).text)
    return [f"{line['what']}: {line['why']}; {line['mend']}" for line in found if line["level"] == "failed" and not line["what"].startswith("cron")]


@pytest.mark.parametrize("what", MISTAKES)
def test_what_is_said_mends_it(host: Host, what: str) -> None:
    """Made, said by both, mended as the first line says; then there is a certificate, and nothing fails."""
    name, mistake = host.name(), MISTAKES[what]
    domains = [name, *(one.replace("NAME", name) for one in mistake.more)]
    expected = mistake.add.replace("NAME", re.escape(name))
    with made(mistake.make(host, name)):
        done = host.run("certdrop", "add", *domains)
        first = first_line(done)
        there = os.path.exists(f"/etc/certdrop/sites.d/{name}.toml")
        lines = failed(host, *([name] if there else []))
        print(f"\n##### {what}\nADD   {first}\n" + "\n".join(f"CHECK {line}" for line in lines))
        if mistake.add:
            assert done.code and re.search(expected, first), done
        said = [line for line in lines if re.search((mistake.check or mistake.add).replace("NAME", re.escape(name)), line)]
        assert said, lines
        assert not any(words in done.text + "\n".join(lines) for words in GUESSES), done
        for line in {mends(line): line for line in ([first] if mistake.add else []) + said[:1]}.values():
            follow(host, name, line)
        host.run("certdrop", *(("renew", name, "--force") if there else ("add", *domains)), code=0)
        assert failed(host, name) == []


@pytest.fixture(autouse=True)
def swept(host: Host) -> Iterator[None]:
    """Nothing stays of a row."""
    yield
    leave(host)


@contextlib.contextmanager
def made(making: Iterator[None]) -> Iterator[None]:
    """While this mistake is there; it is undone whatever is found out, so that the next row has a whole host."""
    next(making)
    try:
        yield
    finally:
        next(making, None)


def mends(line: str) -> str:
    """The end of a line, which says what mends it."""
    return line.rpartition("; ")[2]


def leave(host: Host) -> None:
    """All that a test put there is taken away."""
    for path in [BLOCK, *NGINX.glob("sites-*/*s[0-9]*.example.org")]:
        path.unlink(missing_ok=True)
    for path in pathlib.Path("/etc/certdrop/roots.d").glob("*.pem"):
        path.unlink(missing_ok=True)
    if not host.world.nginx.pid():
        host.world.nginx.start()
    host.world.nginx.reload()
    for path in pathlib.Path("/etc/certdrop/sites.d").glob("*.toml"):
        host.run("certdrop", "remove", path.name[:-5], code=0)


@pytest.mark.parametrize("word, why", [
    ("my_shop.NAME", "underscore"), ("NAME.", "ends in a dot"), ("https://NAME/", "a URL"), ("NAME,www.NAME", "with spaces between"),
    ("*.NAME:443", "no port"), ("NAME:80", "no port"), ("hostmaster@NAME", "a mail address"), ("NAME/blog", "a path"),
])
def test_what_is_no_name(host: Host, word: str, why: str) -> None:
    """It is said why, and the command that stands there adds what was meant."""
    name = host.name()
    first = first_line(host.run("certdrop", "add", word.replace("NAME", name), "--no-issue", code=os.EX_DATAERR))
    found = re.search("try: (certdrop add .*)", first)
    assert why in first and found, first
    host.run("sh", "-c", found[1] + " --no-issue", code=0)


@pytest.mark.parametrize("word, why", [("localhost", "no dot"), ("-NAME", "no such option"), ("..", "no host name")])
def test_what_cannot_be_meant(host: Host, word: str, why: str) -> None:
    """It is refused, and nothing else is proposed."""
    done = host.run("certdrop", "add", word.replace("NAME", host.name()), "--no-issue")
    assert done.code in (os.EX_DATAERR, os.EX_USAGE) and why in done.text and "try:" not in done.text, done


def test_an_international_name_may_be_written_as_it_is(host: Host) -> None:
    """Nobody is told to write the xn-- form."""
    name = "b\u00fccher." + host.name()
    assert "xn--bcher-kva" in host.run("certdrop", "add", name, "--no-issue", code=0).text

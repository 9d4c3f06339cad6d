"""What README and docs/ say to type is typed: each command block, in its order, at a terminal, on a host whose nginx is as Debian's package has it.

Beside the text there is only what a stage cannot have (NOT_HERE), what stands for the reader's own (OWN), and what is there before a part begins (BEFORE).
"""

from __future__ import annotations

import glob
import os
import pathlib
import re
import shutil
import subprocess
from typing import Callable, Iterator

import pytest
import world as stage
from conftest import CONFIG, STATE, Host
from terminal import PROMPT, Terminal

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ["README.md", "docs/tutorial.md", "docs/how-to.md", "docs/when-it-fails.md"]
NAME = "example.org"
INSTALL = "Install it: from the package to HTTPS in two commands"
QUESTION = r"(?:\[y/N\] |\[Y/n\]: |\[all\]: )"
NOT_HERE = {"make ": "this is what they do", "apt install ": "no network; all is installed", "systemctl ": "no systemd"}
OWN = {"--staging": "--ca {directory}", "--directory zerossl": "--directory {directory}", "--number 6": "--number {older}",
       "203.0.113.7 2001:db8::7": "203.0.113.7"}          # Pebble sorts the addresses of an order otherwise than those of a request, and misses one
CODES = {"certdrop add ": (0, 75), "certdrop-check": (0, 78), "sudo certdrop-check": (0, 78), "certdrop-status": (0, 1, 2)}


def parts(text: str) -> dict[str, list[list[str]]]:
    """The command blocks below each heading, each a list of lines; what follows a "#" is for the reader."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for piece in re.finditer(r"^##? ([^\n]*)$|^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if piece[1]:
            heading = piece[1]
        elif piece[2] == "sh":
            lines = [re.sub(r"\s+# .*", "", line) for line in piece[3].splitlines()]
            found.setdefault(heading, []).append([line for line in lines if line and not line.startswith("#")])
    return found


ALL = [(path, heading, number) for path in TEXTS for heading, blocks in parts((ROOT / path).read_text()).items() for number in range(len(blocks))]


@pytest.fixture(scope="module")
def debian(session_host: Host) -> Iterator[Host]:
    """Debian's own default site; a CA that the system trusts, so that no line of certdrop.toml is needed but its directory."""
    host, pebble = session_host, session_host.world.pebble
    store = "/etc/ssl/certs/ca-certificates.crt"
    before = stage.read(store)
    stage.write(store, before + stage.read(pebble.ca_bundle) + stage.read(pebble.root()))
    os.symlink("../sites-available/default", "/etc/nginx/sites-enabled/default")
    stage.write("/etc/letsencrypt/cli.ini", f"server = {pebble.directory_url}\nagree-tos = true\nemail = root@example.org\nnon-interactive = true\n")
    host.world.nginx.reload()
    if os.path.exists("/proc/net/if_inet6"):
        host.world.dns.set_default(ipv6="::1")
    yield host
    host.world.dns.set_default(ipv6="")
    os.unlink("/etc/nginx/sites-enabled/default")
    stage.write(store, before)


@pytest.fixture
def host(debian: Host) -> Iterator[Host]:
    """No site yet."""
    clear(debian)
    yield debian
    clear(debian)


def clear(host: Host) -> None:
    """Take out all sites, and all server blocks but Debian's."""
    for path in glob.glob("/etc/nginx/sites-*/*"):
        if not path.endswith("/default"):
            os.unlink(path)
    host.world.nginx.reload()
    for path in glob.glob("/etc/certdrop/sites.d/*.toml"):
        host.run("certdrop", "remove", os.path.basename(path)[:-5], "--yes", code=0)
    for folder in ("live", "archive", "renewal"):
        shutil.rmtree(f"/etc/letsencrypt/{folder}", ignore_errors=True)
    configure(host)


def configure(host: Host) -> None:
    stage.write(CONFIG, f'directory = "{host.world.pebble.directory_url}"\ncontact = ["hostmaster@example.org"]\n')


def served(host: Host) -> None:
    """The site that the text is about, served."""
    host.run("certdrop", "add", NAME, "www." + NAME, "--no-issue", code=0)
    host.run("certdrop-nginx", NAME, "--write", code=0)


def old(host: Host) -> None:
    """Served, with an older generation."""
    served(host)
    host.run("certdrop", "rotate", NAME, code=0)


def left_by_certbot(host: Host) -> None:
    """As certbot leaves a host."""
    stage.write("/etc/nginx/sites-available/old", f"server {{ listen 80; server_name {NAME}; root /var/www/html; }}\n")
    os.symlink("../sites-available/old", "/etc/nginx/sites-enabled/old")
    host.world.nginx.reload()
    bundle = {**os.environ, "REQUESTS_CA_BUNDLE": host.world.pebble.ca_bundle}
    host.run("certbot", "certonly", "--webroot", "-w", "/var/www/html", "-d", NAME, code=0, env=bundle)
    pair = f"ssl_certificate /etc/letsencrypt/live/{NAME}/fullchain.pem; ssl_certificate_key /etc/letsencrypt/live/{NAME}/privkey.pem;"
    stage.write("/etc/nginx/sites-available/old", f"server {{ listen 80; listen 443 ssl; server_name {NAME}; root /var/www/html;\n{pair}\n}}\n")
    host.world.nginx.reload()


def with_addresses(host: Host) -> None:
    """The host has them."""
    for address in ("203.0.113.7/32", "2001:db8::7/128"):
        subprocess.run(["ip", "address", "replace", address, "dev", "lo"], check=True)


def certspotter(host: Host) -> None:
    """The directories of its package."""
    os.makedirs("/etc/certspotter/hooks.d", exist_ok=True)


def ordinary(host: Host) -> None:
    """nginx serves the names over http."""
    text = f"server {{\n    listen 80;\n    listen [::]:80;\n    server_name {NAME} www.{NAME};\n    root /var/www/html;\n}}\n"
    stage.write("/etc/nginx/sites-available/ordinary", text)
    os.symlink("../sites-available/ordinary", "/etc/nginx/sites-enabled/ordinary")
    host.world.nginx.reload()


def with_record(host: Host) -> None:
    """The TXT record that the reader publishes when it is printed is there, for the account at this CA."""
    host.run("certdrop-account", "register", "--yes", code=0)
    account = re.search(r"^account: +(\S+)$", host.run("certdrop-account", "show", code=0).text, re.M)
    assert account
    host.world.dns.set_txt(f"_validation-persist.{NAME}.", f"pebble.letsencrypt.org; accounturi={account[1]}; policy=wildcard")


def with_wildcard(host: Host) -> None:
    """A site that is proven so, and waits."""
    host.run("certdrop", "add", f"*.{NAME}", NAME, "--no-issue", code=0)


def none(host: Host) -> None:
    """Nothing is configured, and nginx serves the names over http."""
    ordinary(host)
    os.unlink(CONFIG)


BEFORE: dict[tuple[str, int], Callable[[Host], None]] = {
    ("5. Look at it", 0): served, ("6. Get mail", 0): served, ("4. Staging first", 0): none, ("certdrop", 0): ordinary,
    (INSTALL, 0): ordinary, ("3. Have HTTPS served", 0): ordinary, ("RSA beside ECDSA", 0): served,
    ("A certificate for an IP address", 0): with_addresses, ("A wildcard", 0): with_record, ("Another CA", 0): with_wildcard,
    ("Hear of certificates that others got for your names", 0): certspotter,
    ("A key is compromised", 0): served, ("A key is compromised", 1): old, ("Remove a site", 0): served,
    ("DANE: the TLSA record before the key", 0): served, ("DANE: the TLSA record before the key", 1): served,
    ("Move to another host", 0): served, ("Come from another client", 0): left_by_certbot,
    ("Go back to certbot", 0): served, ("When it fails", 0): served}
GOES_ON = {("3. Have HTTPS served", 1)}        # the block before is its beginning


def after(host: Host, heading: str) -> None:
    """That what the text promises came true."""
    if heading in ("certdrop", INSTALL, "3. Have HTTPS served", "4. Staging first", "A key is compromised", "RSA beside ECDSA"):
        assert host.status(NAME)["state"] == "serving"
    elif heading == "A certificate for an IP address":
        assert host.status("203.0.113.7")["state"] == "serving"
    elif heading == "Come from another client":
        assert host.status(NAME)["state"] == "serving" and "/etc/letsencrypt" not in stage.read("/etc/nginx/sites-available/old")
    elif heading in ("Remove a site", "Go back to certbot"):
        assert not os.path.exists(f"{STATE}/live/{NAME}")
    elif heading == "Hear of certificates that others got for your names":
        assert host.run("/etc/certspotter/hooks.d/mail-foreign", code=0) and "unknown event" in host.world.mail.messages()[-1].subject
    if heading == "Go back to certbot":
        with open(f"/etc/letsencrypt/live/{NAME}/cert.pem", "rb") as stream:
            assert host.served(NAME) == stage.fingerprint(stream.read().decode())


def type_out(host: Host, lines: list[str]) -> None:
    """Type the lines; yes to each question; each ends well."""
    own = {"directory": host.world.pebble.directory_url, "older": str(min(map(int, filter(str.isdigit, os.listdir(f"{STATE}/sites/{NAME}"))), default=0) + 1)
           if os.path.isdir(f"{STATE}/sites/{NAME}") else ""}
    with Terminal(REQUESTS_CA_BUNDLE=host.world.pebble.ca_bundle) as terminal:
        for line in lines:
            if line.startswith(tuple(NOT_HERE)):
                continue
            for text, ours in OWN.items():
                line = line.replace(text, ours.format(**own))
            terminal.type(line + "\n")
            shown = terminal.wait(rf"\n(?s:.*)(?:{re.escape(PROMPT)}|{QUESTION})$", 180)
            while re.search(f"{QUESTION}$", shown):
                terminal.type("y\n")
                shown = terminal.wait(rf"(?:{re.escape(PROMPT)}|{QUESTION})$", 180)
            code = terminal.code()
            allowed = next((codes for start, codes in CODES.items() if line.startswith(start)), (0,))
            assert code in allowed and "Traceback" not in shown, f"{line}: {code}: {shown}"
            if line.startswith("sed ") and CONFIG in line:
                stage.write(CONFIG, stage.read(CONFIG) + f'directory = "{host.world.pebble.directory_url}"\n')        # what stands for the default CA


@pytest.mark.parametrize(("path", "heading", "number"), [one for one in ALL if (one[1], one[2]) not in GOES_ON], ids=lambda value: str(value).replace(" ", "-"))
def test_commands_of_the_documents(host: Host, path: str, heading: str, number: int) -> None:
    """They do what the text says."""
    text = parts((ROOT / path).read_text())
    BEFORE.get((heading, number), lambda _: None)(host)
    type_out(host, text[heading][number])
    after(host, heading)
    if (heading, number + 1) in GOES_ON:
        type_out(host, text[heading][number + 1])


def test_no_block_is_passed_over() -> None:
    """Each block says what it is; what is typed is "sh"."""
    assert len(ALL) > 20
    kinds = {kind for path in TEXTS for kind in re.findall(r"^```(\w*)\n(?:.*?)^```$", (ROOT / path).read_text(), re.M | re.S)}
    assert kinds <= {"sh", "toml", "nginx", "text"}
    blocks = [piece for path in TEXTS for piece in re.findall(r"^```(?:text|nginx|toml)\n(.*?)^```$", (ROOT / path).read_text(), re.M | re.S)]
    assert not [block for block in blocks if re.search(r"^(?:sudo )?(?:certdrop|apt|nginx -|systemctl)\b", block, re.M)]

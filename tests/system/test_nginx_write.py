"""certdrop-nginx --write on the real nginx: a new server block, or nothing at all; and from package to HTTPS in three commands."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
from typing import Iterator

import pytest
import world as stage
from conftest import Done, Host

NGINX = pathlib.Path("/etc/nginx")


@pytest.fixture
def name(host: Host) -> Iterator[str]:
    """A site with a placeholder, that nginx knows nothing of; what a test put into nginx's directories is taken out again."""
    before = listing()
    found = host.name()
    host.run("certdrop", "add", found, "--no-issue", code=0)
    yield found
    for path in listing() - before:
        os.unlink(path)
    host.world.nginx.reload()
    if os.path.exists(f"/etc/certdrop/sites.d/{found}.toml"):          # a test may have removed it
        host.run("certdrop", "remove", found, code=0)


def listing() -> set[str]:
    """All entries of nginx's directories for sites."""
    return {str(path) for folder in ("sites-available", "sites-enabled", "conf.d") for path in (NGINX / folder).iterdir()}


def write(host: Host, *argv: str, code: int | None = None) -> Done:
    """certdrop-nginx ... --write --no-issue."""
    return host.run("certdrop-nginx", *argv, "--write", "--no-issue", code=code)


def test_from_nothing_to_https(host: Host) -> None:
    """add, which says what is missing, since nothing answers for the name; then --write; and a browser is content."""
    name, before = host.name(), listing()
    host.world.nginx.add_site("00-debian", "server { listen 80 default_server; root /var/www/html; location / { try_files $uri =404; } }\n")
    host.world.nginx.reload()
    done = host.run("certdrop", "add", name, "www." + name)
    assert done.code != 0 and f"the server block at {NGINX}/sites-enabled/00-debian:1 answers for {name}" in done.text, done
    assert f"certdrop-nginx {name} --write" in done.text, done
    done = host.run("certdrop-nginx", name, "--write", code=0)
    assert [words in done.text for words in (f"wrote {NGINX}/sites-available/{name}", "linked", "nginx reloaded", "installed, and served")] == [True] * 4, done
    host.fetch(name)
    host.fetch("www." + name)
    assert os.readlink(NGINX / "sites-enabled" / name) == f"../sites-available/{name}"
    again = write(host, name, code=0)
    assert "wrote" not in again.text and "next: certdrop-status" in again.text, again
    for path in listing() - before:
        os.unlink(path)
    host.world.nginx.reload()
    host.run("certdrop", "remove", name, code=0)


def test_dry_run_changes_nothing(host: Host, name: str) -> None:
    """It shows the text, and where it would go."""
    before = listing()
    done = write(host, name, "--dry-run", code=0)
    assert f"would write {NGINX}/sites-available/{name}" in done.text and f"server_name {name};" in done.text
    assert listing() == before


def test_only_root_writes(host: Host, name: str) -> None:
    """Anybody else is told so; printing is for all."""
    before = listing()
    done = host.run("certdrop-nginx", name, "--write", user="_certdrop-watch", code=os.EX_NOPERM)
    assert "must be run as root" in done.text and listing() == before
    host.run("certdrop-nginx", name, user="_certdrop-watch", code=0)


def test_a_failed_test_takes_all_back(host: Host, name: str) -> None:
    """nginx refuses the new block (here: two limits of the same zone); no file stays, and nginx was not reloaded."""
    (NGINX / "conf.d" / "zone.conf").write_text("ssl_session_cache shared:certdrop:1m;\n")
    before, workers = listing(), host.world.nginx.workers()
    done = write(host, name, code=os.EX_DATAERR)
    assert "all was taken back" in done.text and "certdrop" in done.text, done
    assert (listing(), host.world.nginx.workers()) == (before, workers)


def test_a_broken_nginx_is_left_alone(host: Host, name: str) -> None:
    """Where nginx does not pass its test already, nothing is written, and its words are shown."""
    broken = NGINX / "conf.d" / "broken.conf"
    broken.write_text("nonsense on;\n")
    before = listing()
    try:
        done = write(host, name, code=os.EX_UNAVAILABLE)
        assert 'unknown directive "nonsense"' in done.text and listing() == before
    finally:
        broken.unlink()


@pytest.mark.parametrize("mine", ["a file", "a link", "the link's name"])
def test_an_existing_file_is_never_changed(host: Host, name: str, mine: str) -> None:
    """Not one that is not enabled, not a link, and not where the link's name is taken: another file is written, and its block serves."""
    path, enabled = NGINX / "sites-available" / name, NGINX / "sites-enabled" / name
    if mine == "a link":
        path.symlink_to("/etc/passwd")
    else:
        (enabled if mine == "the link's name" else path).write_text("# mine\n")
    kept = (os.path.lexists(path) and path.read_text(), os.path.lexists(enabled) and enabled.read_text())
    assert f"wrote {NGINX}/sites-available/certdrop-{name}" in write(host, name, code=0).text
    assert kept == (os.path.lexists(path) and path.read_text(), os.path.lexists(enabled) and enabled.read_text())
    assert host.served(name) == host.on_disk(name)


def test_where_both_names_are_taken_it_is_refused(host: Host, name: str) -> None:
    """With both of them."""
    for stem in (name, f"certdrop-{name}"):
        (NGINX / "sites-available" / stem).write_text("# mine\n")
    done = write(host, name, code=os.EX_DATAERR)
    assert f"{NGINX}/sites-available/{name} and {NGINX}/sites-available/certdrop-{name} are there already" in done.text, done


def test_a_name_that_was_added_later(host: Host, name: str) -> None:
    """Its own file, unmodified: the lines that lack the new name are named; with the name in them nothing is missing."""
    write(host, name, code=0)
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}", "www.{name}"]\n')
    host.run("certdrop-install", code=0)
    path, before = NGINX / "sites-available" / name, listing()
    done = write(host, name, code=os.EX_DATAERR)
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if "server_name" in line]
    assert f"add www.{name} to the server_name at {NGINX}/sites-enabled/{name}:{lines[0]} and at {NGINX}/sites-enabled/{name}:{lines[1]}" in done.text, done
    path.write_text(path.read_text().replace(f"server_name {name};", f"server_name {name} www.{name};"))
    host.run("certdrop-nginx", name, "--write", code=0)
    assert listing() == before
    host.fetch("www." + name)


def test_only_what_is_missing_is_written(host: Host, name: str) -> None:
    """A block for port 443 with the live certificate is there: the one for port 80 is written."""
    live = f"/var/lib/certdrop/live/{name}/nginx.conf"
    (NGINX / "conf.d" / "mine.conf").write_text(f"server {{ listen 443 ssl; server_name {name}; include {live}; root /var/www/html; }}\n")
    host.run("certdrop-nginx", name, "--write", code=0)
    assert "listen 443" not in (NGINX / "sites-available" / name).read_text()
    host.fetch(name)


@pytest.mark.parametrize("listen, words", [
    ("listen 443 ssl; ssl_certificate /var/lib/certdrop/live/NAME/fullchain.pem; ssl_certificate_key /var/lib/certdrop/live/NAME/privkey.pem;",
     "include /var/lib/certdrop/live/NAME/nginx.conf;"),
    ("listen 80; location / { return 301 https://$host$request_uri; }", "leads to https, where the same server block would answer"),
])
def test_a_name_that_has_a_block_is_refused(host: Host, name: str, listen: str, words: str) -> None:
    """With the file and the line of that block, and what it lacks, or has too much."""
    (NGINX / "conf.d" / "mine.conf").write_text(f"\nserver {{ server_name {name}; {listen.replace('NAME', name)} }}\n")
    before = listing()
    done = write(host, name, code=os.EX_DATAERR)
    assert f"{NGINX}/conf.d/mine.conf:2" in done.text and words.replace("NAME", name) in done.text, done
    assert listing() == before


def test_a_block_of_other_names_is_not_to_be_changed(host: Host, name: str) -> None:
    """What is put into a block is served to all its names: where others are among them, nobody is told to put the line there."""
    pair = f"ssl_certificate {stage.WORLD}/mail.pem; ssl_certificate_key {stage.WORLD}/mail.key;"
    path = NGINX / "conf.d" / "mine.conf"
    path.write_text(f"server {{ listen 443 ssl; server_name {name} else.example.org; {pair} }}\n")
    said = host.run("certdrop-nginx", name, "--write", code=os.EX_DATAERR).text
    assert "which is for else.example.org, too" in said and "put this line" not in said
    path.write_text(f"server {{ listen 443 ssl; server_name {name} _; {pair} }}\n")
    assert "put this line into it" in host.run("certdrop-nginx", name, "--write", code=os.EX_DATAERR).text


def test_a_block_for_port_80_is_to_be_changed(host: Host, name: str) -> None:
    """A new one for port 443 would serve something else: nothing is written, and the command said does it."""
    mine, before = NGINX / "conf.d" / "mine.conf", listing()
    mine.write_text(f"server {{ listen 80; server_name {name}; include snippets/certdrop-challenge.conf; location / {{ return 200 mine; }} }}\n")
    host.world.nginx.reload()
    done = host.run("certdrop-nginx", name, "--write", code=os.EX_DATAERR)
    assert f"a server block already, at {mine}:1, and a new one would serve something else" in done.text and listing() == before | {str(mine)}, done
    host.run(*re.findall(rf"certdrop-nginx {name} --apply", done.text)[0].split(), code=0)
    assert host.run("curl", "-sS", "-k", "--resolve", f"{name}:443:127.0.0.1", f"https://{name}/").text == "mine"


def test_a_token_that_comes_counts_not_what_is_read(host: Host, name: str) -> None:
    """The block for port 80 hands challenges to a program behind a socket, which is another nginx block: what is read there is a proxy. They come through."""
    (NGINX / "conf.d" / "mine.conf").write_text(
        f"server {{ listen 80; server_name {name}; location / {{ proxy_pass http://unix:/run/behind.sock; }} }}\n"
        f"server {{ listen 443 ssl; server_name {name}; include /var/lib/certdrop/live/{name}/nginx.conf; }}\n"
        "server { listen unix:/run/behind.sock; include snippets/certdrop-challenge.conf; }\n")
    host.world.nginx.reload()
    done = host.run("certdrop-nginx", name, "--write", code=0)
    assert "installed, and served" in done.text and not (NGINX / "sites-available" / name).exists(), done
    (NGINX / "conf.d" / "mine.conf").unlink()


def test_a_page_that_worked_is_no_other_page(host: Host, name: str) -> None:
    """The default server's: where the new block serves another, all is taken back; where the same, http leads there once the certificate is there."""
    index, default, before = pathlib.Path("/var/www/html/index.nginx-debian.html"), NGINX / "conf.d" / "00-default.conf", listing()
    kept = index.read_text() if index.exists() else ""
    index.write_text("a page\n")
    text = "server { listen 80 default_server; listen [::]:80 default_server; server_name _; root /var/www/html; index index.nginx-debian.html; }\n"
    try:
        default.write_text(text.replace("root ", "return 200 another; root "))
        host.world.nginx.reload()
        done = write(host, name, code=os.EX_DATAERR)
        assert f"the server block at {default}:1 answers for it: add {name} to its server_name" in done.text and "all was taken back" in done.text, done
        assert listing() == before | {str(default)}
        default.write_text(text)
        host.world.nginx.reload()
        curl = "curl", "-sS", "-k", "--resolve", f"{name}:80:127.0.0.1", "--resolve", f"{name}:443:127.0.0.1"
        assert "leads to https once the certificate is there" in write(host, name, code=0).text
        assert [host.run(*curl, f"{scheme}://{name}/").text for scheme in ("http", "https")] == ["a page\n"] * 2
        done = host.run("certdrop-nginx", name, "--write", "--hsts", code=0)
        assert "HSTS binds" in done.text and "wrote" in done.text, done
        host.fetch(name)
        assert host.served(name) == host.on_disk(name)
        seen = host.run(*curl, "-Li", f"http://{name}/").text
        assert "301" in seen and "Strict-Transport-Security: max-age=63072000" in seen.title().replace("Max-Age", "max-age") and seen.endswith("a page\n"), seen
        assert "wrote" not in write(host, name, code=0).text
        host.run("certdrop", "remove", name, "--yes", code=0)
        assert listing() == before | {str(default)}
    finally:
        index.unlink()
        if kept:
            index.write_text(kept)


def test_without_sites_enabled_conf_d_is_used(host: Host, name: str) -> None:
    """As nginx.org's packages are laid out."""
    main = NGINX / "nginx.conf"
    kept = main.read_text()
    try:
        main.write_text(kept.replace("include /etc/nginx/sites-enabled/*;", ""))
        done = write(host, name, code=0)
        assert f"wrote {NGINX}/conf.d/{name}.conf" in done.text and not (NGINX / "sites-available" / name).exists()
        main.write_text(kept.replace("include /etc/nginx/sites-enabled/*;", "").replace("include /etc/nginx/conf.d/*.conf;", ""))
        os.unlink(NGINX / "conf.d" / f"{name}.conf")
        assert "nginx includes neither" in write(host, name, code=os.EX_DATAERR).text
    finally:
        main.write_text(kept)


def test_a_stopped_nginx_gets_its_block(host: Host, name: str) -> None:
    """The file stays, since the test passed; that nginx must be started is said."""
    host.world.nginx.stop()
    done = write(host, name, code=os.EX_TEMPFAIL)
    assert "nginx was not reloaded" in done.text and (NGINX / "sites-enabled" / name).exists()
    host.world.nginx.start()
    assert host.served(name) == host.on_disk(name)


def test_killed_it_goes_on_from_there(host: Host, name: str) -> None:
    """Written and not enabled, as a kill leaves it: the next run finishes; and a leftover of its own is no obstacle."""
    (NGINX / "sites-available" / f".{name}.certdrop-new").write_text("half")
    write(host, name, code=0)
    assert not (NGINX / "sites-available" / f".{name}.certdrop-new").exists()
    os.unlink(NGINX / "sites-enabled" / name)
    assert "linked" in write(host, name, code=0).text and (NGINX / "sites-enabled" / name).exists()


def test_ended_in_the_middle_nothing_stays(host: Host, name: str) -> None:
    """SIGTERM while nginx tests the new block: the block is taken back."""
    service = pathlib.Path("/etc/certdrop/services.d/nginx.toml")
    kept, gate = service.read_text(), pathlib.Path("/tmp/world/gate")
    slow = pathlib.Path("/usr/local/sbin/slow-test")
    slow.write_text(f"#!/bin/sh\nif [ -e {NGINX}/sites-enabled/{name} ]; then touch {gate}; sleep 60; fi\n")
    slow.chmod(0o755)
    before = listing()
    try:
        service.write_text(kept.replace('["/usr/sbin/nginx", "-t", "-q"]', f'["{slow}"]'))
        process = subprocess.Popen(["certdrop-nginx", name, "--write", "--no-issue"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stage.wait_for(gate.exists, what="the test")
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
        assert "ended by signal 15" in said and listing() == before, said
    finally:
        service.write_text(kept)
        gate.unlink(missing_ok=True)


def test_a_site_goes_with_the_block_that_was_written_for_it(host: Host, name: str) -> None:
    """`remove` says where the site is in use, and with --yes takes the block away, as long as nobody changed it; names that were added later do not count."""
    before = listing()
    write(host, name, code=0)
    path = f"{NGINX}/sites-available/{name}"
    done = host.run("certdrop", "remove", name, code=os.EX_DATAERR)
    assert re.search(rf"still in use: nginx's configuration names \S+/live/{name}/ at \S+/{name}:[0-9]+; certdrop-nginx wrote {path}, and nobody changed it: "
                     rf"certdrop remove {name} --yes takes it away, too", done.text), done
    text = stage.read(path)
    stage.write(path, text.replace("root /var/www/html;", "root /srv;"))
    done = host.run("certdrop", "remove", name, "--yes", code=os.EX_DATAERR)
    assert "take the site out of it first" in done.text and os.path.exists(path)
    stage.write(path, text)
    stage.write(f"/etc/certdrop/sites.d/{name}.toml", f'domains = ["{name}", "www.{name}"]\n')
    done = host.run("certdrop", "remove", name, "--yes", code=0)
    assert f"{path}: removed; nginx reloaded" in done.text and "removed, with its keys and certificates" in done.text, done
    assert listing() == before and host.world.nginx.test()[0]
    assert name not in host.run("nginx", "-T", "-q", code=0).text


def test_a_block_that_others_need_stays(host: Host, name: str) -> None:
    """Where nginx does not pass its test without the file, all is put back."""
    write(host, name, code=0)
    path = NGINX / "conf.d" / "needs.conf"
    path.write_text(f"include {NGINX}/sites-enabled/{name};\n")
    link = NGINX / "sites-enabled" / name
    try:
        done = host.run("certdrop", "remove", name, "--yes", code=os.EX_DATAERR)
        assert "stays: without it" in done.text and link.is_symlink(), done
    finally:
        path.unlink()
    host.run("certdrop", "remove", name, "--yes", code=0)
    assert not link.is_symlink()

"""certdrop add on an nginx that serves ordinary sites already: what it answers for is listed, and taken in one command."""

from __future__ import annotations

import os
import pathlib
import re

from terminal import Terminal
from three import NGINX, Three


def names(three: Three) -> list[str]:
    """All five."""
    return [three.php, three.php2, three.proxy, three.default, three.default2]


def test_one_command_serves_https_for_all(three: Three) -> None:
    """Five names of three server blocks: one order each, all pages as they were, http leads to https; again, there is nothing to do."""
    host, before = three.host, three.texts()
    pages = {name: three.page(f"http://{name}/", name) for name in names(three)}
    done = host.run("certdrop", "add", "--from-nginx", *names(three), "--yes", code=0)
    print(done.text)
    assert "3 of 3 server blocks serve HTTPS, for 5 names" in done.text and "--write" not in done.text, done
    for name in names(three):
        assert three.page(f"https://{name}/", name).replace("https://", "http://") == pages[name], name
        assert three.page(f"http://{name}/", name).endswith(f"301 https://{name}/"), name
    assert (pathlib.Path("/etc/certdrop/sites.d") / f"{three.php}.toml").read_text().count(three.php2) == 1
    applied = three.texts()
    again = host.run("certdrop", "add", "--from-nginx", three.php, code=0)
    assert "is a name of the site" in again.text and "nothing is to be done" in again.text, again
    again = host.run("certdrop", "add", "--from-nginx", "--yes")
    assert not any(name in again.text for name in names(three)), again
    assert three.texts() == applied
    for name in (three.php, three.proxy, three.default):
        host.run("certdrop-nginx", name, "--undo", code=0)
    assert three.texts() == before


def test_what_cannot_be_done_is_said_and_stops_nothing(three: Three) -> None:
    """A name that does not resolve is left out of its certificate; a block whose page differs is put back; the others are served."""
    host = three.host
    dead = host.name()
    host.world.dns.set_servfail(dead)
    host.world.nginx.add_site("php", three.first["php"].replace(three.php2 + ";", f"{three.php2} {dead} *.example.org;"))
    host.world.nginx.add_site("proxy", three.first["proxy"].replace(
        "proxy_pass http://127.0.0.1:8099;", 'if ($scheme = https) { return 503; } return 200 "plain\\n";'))
    host.world.nginx.reload()
    listed = host.run("certdrop", "add", "--from-nginx", "--dry-run")
    assert re.search(rf"left out: {re.escape(dead)}: ", listed.text) and "a wildcard" in listed.text, listed
    done = host.run("certdrop", "add", "--from-nginx", *names(three), "--yes", code=os.EX_DATAERR)
    assert "2 of 3 server blocks serve HTTPS" in done.text and "the pages are not those of before" in done.text, done
    assert three.page(f"http://{three.proxy}/", three.proxy) == "plain\n200 "
    host.fetch(three.php)
    host.fetch(three.default)


def test_without_a_terminal_nothing_is_changed(three: Three) -> None:
    """Nobody is there to be asked: what could be done is listed, and the command said that does it."""
    before = three.texts()
    done = three.host.run("certdrop", "add", "--from-nginx", three.proxy, code=os.EX_DATAERR)
    assert f"{three.proxy}   ({NGINX}/sites-enabled/proxy:1)" in done.text and "--yes takes all" in done.text, done
    assert "--from-nginx, which takes" in three.host.run("certdrop", "add", code=os.EX_USAGE).text
    assert three.texts() == before


def test_the_block_of_one_name(three: Three) -> None:
    """certdrop add NAME --apply: the block that is there serves it, by one command; without a block it is refused, and nothing added."""
    host = three.host
    page = three.page(f"http://{three.proxy}/", three.proxy)
    host.run("certdrop", "add", three.proxy, "--apply", "--yes", code=0)
    assert three.page(f"https://{three.proxy}/", three.proxy) == page
    lone = host.name()
    done = host.run("certdrop", "add", lone, "--apply", code=os.EX_DATAERR)
    assert "no server block on port 80" in done.text and not os.path.exists(f"/etc/certdrop/sites.d/{lone}.toml"), done


def test_a_name_more_and_fewer(three: Three) -> None:
    """add-name and drop-name change the lines that certdrop put into the block, and remove takes them out: the files are what they were."""
    host, before = three.host, three.texts()
    more = host.name()
    host.run("certdrop", "add", three.proxy, "--apply", "--yes", code=0)
    done = host.run("certdrop", "add-name", three.proxy, more, code=0)
    assert "proxy: changed, too" in done.text, done
    assert three.page(f"https://{more}/", more) == three.page(f"https://{three.proxy}/", three.proxy)
    host.fetch(more)
    host.run("certdrop", "drop-name", three.proxy, more, code=0)
    assert more not in (NGINX / "sites-available" / "proxy").read_text()
    host.fetch(three.proxy)
    assert "takes them out, too" in host.run("certdrop", "remove", three.proxy, code=os.EX_DATAERR).text
    host.run("certdrop", "remove", three.proxy, "--yes", code=0)
    assert three.texts() == before


def test_a_site_that_is_there_keeps_its_names(three: Three) -> None:
    """add for a site that exists, with another name: refused before nginx's files are touched; add-name where the name has a block of its own, too."""
    host = three.host
    host.run("certdrop", "add", three.proxy, "--apply", "--yes", code=0)
    before, site = three.texts(), pathlib.Path(f"/etc/certdrop/sites.d/{three.proxy}.toml").read_text()
    assert "this site exists" in host.run("certdrop", "add", three.proxy, three.php, "--apply", code=os.EX_DATAERR).text
    assert "this site exists" in host.run("certdrop", "add", three.php, "--name", three.proxy, "--apply", code=os.EX_DATAERR).text
    done = host.run("certdrop", "add-name", three.proxy, three.php, code=os.EX_DATAERR)
    assert f"{three.php} has a server block of its own" in done.text, done
    assert three.texts() == before and pathlib.Path(f"/etc/certdrop/sites.d/{three.proxy}.toml").read_text() == site


def test_a_block_without_a_listen(three: Three) -> None:
    """It goes on answering on port 80, beside a default server of another name, and leads to https."""
    host, name = three.host, three.host.name()
    host.world.nginx.add_site("proxy", f"server {{ server_name {name}; location / {{ return 200 \"implicit\\n\"; }} }}\n")
    host.world.nginx.reload()
    host.run("certdrop", "add", "--from-nginx", name, "--yes", code=0)
    assert three.page(f"http://{name}/", name).endswith(f"301 https://{name}/")
    assert three.page(f"https://{name}/", name) == "implicit\n200 "
    host.run("certdrop", "renew", name, "--force", code=0)
    host.run("certdrop", "remove", name, "--yes", code=0)


def test_lines_that_were_edited_are_left_alone(three: Three) -> None:
    """By add-name and by remove: both name the line, and change nothing."""
    host, path = three.host, NGINX / "sites-available" / "proxy"
    host.run("certdrop", "add", three.proxy, "--apply", "--yes", code=0)
    ours = path.read_text()
    path.write_text(ours.replace("listen 443 ssl", "listen 443 default_server ssl"))
    host.world.nginx.reload()
    before, site = three.texts(), pathlib.Path(f"/etc/certdrop/sites.d/{three.proxy}.toml").read_text()
    done = host.run("certdrop", "add-name", three.proxy, host.name(), code=os.EX_DATAERR)
    assert re.search(r"proxy:\d+: these lines are certdrop's, and were edited since", done.text), done
    done = host.run("certdrop", "remove", three.proxy, "--yes", code=os.EX_DATAERR)
    assert "still in use" in done.text and "--undo" in done.text, done
    assert three.texts() == before and pathlib.Path(f"/etc/certdrop/sites.d/{three.proxy}.toml").read_text() == site
    path.write_text(ours)
    host.world.nginx.reload()


def test_quiet(three: Three) -> None:
    """What went well is not said; what went wrong is."""
    host = three.host
    done = host.run("certdrop", "add", "--from-nginx", three.proxy, "--yes", "--quiet", code=0)
    assert [line for line in done.text.splitlines() if "note: " not in line] == [], done
    assert host.run("certdrop", "renew", three.proxy, "--force", "--quiet", code=0).text == ""
    assert "no such site" in host.run("certdrop", "renew", "nowhere.example", "--quiet", code=os.EX_DATAERR).text


def test_asked_at_a_terminal(three: Three) -> None:
    """The list, one question, its default; Ctrl-C changes nothing; the block of a name that is given is offered."""
    host, before = three.host, three.texts()
    with Terminal() as terminal:
        terminal.type("certdrop add --hsts --no-redirect\n")
        shown = terminal.wait(r"\[all\]: $")
        assert f"{three.php} {three.php2}   ({NGINX}/sites-enabled/php:1)" in shown, shown
        terminal.type("\x03")
        assert "nothing was changed" in terminal.wait_prompt() and three.texts() == before and "HSTS binds" in shown
        terminal.type("certdrop add --hsts --no-redirect\n")
        shown = terminal.wait(r"\[all\]: $")
        numbers = [next(found[1] for found in re.finditer(r"^ +(\d+)  (.*)$", shown, re.M) if name in found[2]) for name in (three.default, three.php)]
        terminal.type(f"{numbers[0]} + {numbers[1]}\n")
        assert "2 of 2 server blocks serve HTTPS, for 4 names" in terminal.wait_prompt(120)
        assert host.served(three.php2) == host.served(three.default) and not three.page(f"http://{three.php}/", three.php).endswith(f"https://{three.php}/")
        assert "max-age" in host.run("curl", "-sSki", "--resolve", f"{three.php}:443:127.0.0.1", f"https://{three.php}/").text
        host.run("certdrop-nginx", three.default, "--undo", code=0)
        assert three.texts() == before
        terminal.type(f"certdrop add {three.proxy}\n")
        assert f"{NGINX}/sites-enabled/proxy:1" in terminal.wait(r"\[Y/n\]: $")
        terminal.type("\n")
        assert "1 of 1 server blocks serve HTTPS, for 1 name" in terminal.wait_prompt(120)
        assert terminal.code() == 0
    host.fetch(three.proxy)

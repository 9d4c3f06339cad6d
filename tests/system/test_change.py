"""certdrop-nginx --apply on an nginx that serves three ordinary sites already: HTTPS for what is there, the pages as they were, and all of it undone."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time

from three import BACKEND, NGINX, Three


def test_three_sites_get_https_and_nothing_else_changes(three: Three) -> None:
    """Every page is what it was, http leads to https, unknown names are answered as before; a second run changes nothing; --undo gives the bytes back."""
    host, before = three.host, three.texts()
    sites = [(three.php, three.php2), (three.proxy,), (three.default, three.default2)]
    names = [name for site in sites for name in site]
    pages = {name: three.page(f"http://{name}/", name) for name in names}
    stranger = three.page("http://127.0.0.1/", names[0], "nobody.example.net")
    for site in sites:
        host.run("certdrop", "add", *site, "--no-issue", code=0)
        diff = host.run("certdrop-nginx", site[0], "--diff", code=0).text
        assert f"+++ {NGINX}/" in diff and "listen 443 ssl" in diff and "certdrop-challenge.conf" in diff, diff
        assert ("listen [::]:443" in diff) == (site[0] == three.php), diff
        assert not [line for line in diff.splitlines() if line.startswith("-") and not line.startswith("---") and "server {" not in line], diff
        done = host.run("certdrop-nginx", site[0], "--apply", code=0)
        assert f"https://{site[0]}/ is the page" in done.text and "--undo takes it back" in done.text, done
    print(done.text)
    for name in names:
        assert three.page(f"https://{name}/", name).replace("https://", "http://") == pages[name], name
        assert three.page(f"http://{name}/", name).endswith(f"301 https://{name}/"), name
    assert three.page("http://127.0.0.1/", names[0], "nobody.example.net") == stranger
    host.fetch(three.php)
    host.fetch(three.proxy)
    applied = three.texts()
    for site in sites:
        done = host.run("certdrop-nginx", site[0], "--apply", code=0)
        assert "nothing was changed" in done.text, done
        host.run("certdrop", "renew", site[0], "--force", code=0)
    assert three.texts() == applied
    for site in sites:
        host.run("certdrop-nginx", site[0], "--undo", code=0)
    assert three.texts() == before
    assert {name: three.page(f"http://{name}/", name) for name in names} == pages


def test_another_page_over_https_is_taken_back(three: Three) -> None:
    """An application that answers https otherwise: both are told, all files are put back; with --anyway the change stays."""
    host = three.host
    text = three.first["proxy"].replace(f"proxy_pass http://{BACKEND};", 'if ($scheme = https) { return 503; } return 200 "plain\\n";')
    host.world.nginx.add_site("proxy", text)
    host.world.nginx.reload()
    before = three.texts()
    host.run("certdrop", "add", three.proxy, "--no-issue", code=0)
    done = host.run("certdrop-nginx", three.proxy, "--apply", code=os.EX_DATAERR)
    assert "before, http: 200, 6 bytes; now, https: 503" in done.text and "--anyway" in done.text, done
    assert three.texts() == before
    host.run("certdrop-nginx", three.proxy, "--apply", "--anyway", "--no-redirect", code=0)
    assert three.page(f"http://{three.proxy}/", three.proxy) == "plain\n200 "
    host.run("certdrop-nginx", three.proxy, "--undo", code=0)
    assert three.texts() == before


def test_no_certificate_leaves_the_page(three: Three) -> None:
    """While the CA issues nothing nobody meets a placeholder: http answers as before, 443 not at all."""
    host = three.host
    host.run("certdrop", "add", three.php, three.php2, "--no-issue", code=0)
    page = three.page(f"http://{three.php}/", three.php)
    host.world.pebble.stop()
    done = host.run("certdrop-nginx", three.php, "--apply", code=os.EX_TEMPFAIL)
    assert "no certificate came" in done.text, done
    assert three.page(f"http://{three.php}/", three.php) == page
    host.world.pebble.start()
    host.configure()
    done = host.run("certdrop-nginx", three.php, "--apply", code=0)
    host.fetch(three.php)
    done = host.run("certdrop-nginx", three.php, "--apply", "--hsts", code=0)
    assert "HSTS binds" in done.text, done
    assert "max-age" in host.run("curl", "-sSki", f"https://{three.php}/").text
    host.run("certdrop-nginx", three.php, "--undo", code=0)
    assert three.page(f"http://{three.php}/", three.php) == page


def test_killed_in_the_middle(three: Three) -> None:
    """Wherever kill -9 comes each file is old or new, nginx passes its test, the next command says what is there, and --undo gives the bytes back."""
    host, before = three.host, three.texts()
    host.run("certdrop", "add", three.proxy, "--no-issue", code=0)
    told = 0
    for wait in (0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.5):
        process = subprocess.Popen(["certdrop-nginx", three.proxy, "--apply", "--no-issue"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        time.sleep(wait)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], stdout=subprocess.PIPE, text=True, check=False).stdout.split()
        for pid in (process.pid, *map(int, children)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.communicate()
        host.run("nginx", "-t", code=0)
        done = host.run("certdrop-nginx", three.proxy, "--undo", code=0)
        told += "did not come to its end" in done.text
        assert three.texts() == before, (wait, done)
    host.run("certdrop-nginx", three.proxy, "--apply", code=0)
    host.run("certdrop-nginx", three.proxy, "--undo", code=0)
    assert three.texts() == before


def test_edited_lines_are_left_alone(three: Three) -> None:
    """Lines of certdrop's that somebody edited are refused by file and line, and so is a file that others can write."""
    host = three.host
    host.run("certdrop", "add", three.php, three.php2, "--no-issue", code=0)
    path = pathlib.Path(os.path.realpath(NGINX / "sites-enabled" / "php"))
    path.chmod(0o666)
    done = host.run("certdrop-nginx", three.php, "--apply", "--no-issue", code=os.EX_DATAERR)
    assert f"{path}: others than root can write there" in done.text, done
    path.chmod(0o644)
    host.run("certdrop-nginx", three.php, "--apply", "--no-issue", code=0)
    text = path.read_text()
    path.write_text(text.replace("include /etc/nginx/snippets/certdrop-challenge.conf;", "include /etc/nginx/snippets/certdrop-challenge.conf; # mine"))
    done = host.run("certdrop-nginx", three.php, "--undo", code=os.EX_DATAERR)
    assert f"{NGINX}/sites-enabled/php:" in done.text and "were edited since" in done.text, done
    path.write_text(text.replace("server_name ", "# a comment of mine\n    server_name "))
    host.run("certdrop-nginx", three.php, "--undo", code=0)
    assert path.read_text() == three.first["php"].replace("server_name ", "# a comment of mine\n    server_name ")

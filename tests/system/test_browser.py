"""What a browser makes of a site that certdrop add changed: Debian's chromium, headless, with the CA's root in its store (`--with browser`)."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from conftest import Host
from three import Three

CHROMIUM, CERTUTIL = "/usr/bin/chromium", "/usr/bin/certutil"
IMAGE = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><rect width="20" height="20" fill="green"/></svg>'
PAGE = """<!DOCTYPE html><title>before</title><img src="/image.svg"><script>
onload = () => document.title = isSecureContext + " " + location.protocol + " " + document.images[0].naturalWidth;
</script><p>the page\n"""

pytestmark = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="there is no chromium here; the stage's --with browser has it")


@pytest.fixture(name="home")
def _home() -> Iterator[pathlib.Path]:
    """Of a user who is nobody."""
    home = pathlib.Path("/tmp/browser")
    home.mkdir(0o700)
    shutil.chown(home, "nobody", "nogroup")
    yield home
    shutil.rmtree(home)


def store(home: pathlib.Path, root: str) -> None:
    """Have the user's browser trust this root."""
    database = f"sql:{home}/.pki/nssdb"
    for words in (["/usr/bin/mkdir", "-p", f"{home}/.pki/nssdb"], [CERTUTIL, "-d", database, "-N", "--empty-password"],
                  [CERTUTIL, "-d", database, "-A", "-n", "the CA", "-t", "C,,", "-i", root]):
        subprocess.run(words, check=True, user="nobody", group="nogroup", extra_groups=[], env={"HOME": str(home)}, stdin=subprocess.DEVNULL)


def shown(home: pathlib.Path, url: str) -> tuple[str, str]:
    """The page as the browser has it when all is loaded, and what its console and log say."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={home}/profile", "--enable-logging=stderr",
               "--virtual-time-budget=5000", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE *.example.org"]      # its maker's hosts are not here
    done = subprocess.run([CHROMIUM, *options, "--dump-dom", url], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", timeout=100, check=False, user="nobody", group="nogroup", extra_groups=[],
                          env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, cwd="/")
    return done.stdout, done.stderr


def test_a_browser_shows_the_page(three: Three, home: pathlib.Path) -> None:
    """No certificate error, no mixed content, by way of http, too; and the same browser refuses it where it does not know the root."""
    host: Host = three.host
    index, image = pathlib.Path("/var/www/html/index.html"), pathlib.Path("/var/www/html/image.svg")
    kept = index.read_text() if index.exists() else None
    index.write_text(PAGE)
    image.write_text(IMAGE)
    try:
        host.run("certdrop", "add", "--from-nginx", three.php, "--hsts", "--yes", code=0)
        page, log = shown(home, f"https://{three.php}/")
        assert "the page" not in page and "CERT_AUTHORITY_INVALID" in page + log, (page, log)
        shutil.rmtree(home / "profile")
        roots = home / "root.pem"
        roots.write_text(pathlib.Path(host.world.pebble.root()).read_text())
        store(home, str(roots))
        for url in (f"https://{three.php}/", f"http://{three.php2}/"):
            page, log = shown(home, url)
            assert "<p>the page" in page and "<title>true https: 20</title>" in page, (page, log)
            assert not re.search("Mixed Content|CERT_|SSL error", log), log
    finally:
        image.unlink()
        index.unlink()
        if kept is not None:
            index.write_text(kept)

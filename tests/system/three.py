"""An nginx that serves three ordinary sites already: one with a rule for PHP, one that is a proxy, and the default server."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

import world as stage

if TYPE_CHECKING:
    from conftest import Host

NGINX = pathlib.Path("/etc/nginx")
BACKEND = "127.0.0.1:8099"


class Three:
    """Three sites with five names."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.php, self.php2, self.proxy, self.default, self.default2 = (host.name() for _ in range(5))
        self.first = {"php": f"""\
server {{
    listen 80;
    listen [::]:80;
    server_name {self.php} {self.php2};
    root /var/www/html;
    location / {{ try_files $uri $uri/ =404; }}
    location ~ \\.php$ {{ return 200 "made by a program\\n"; }}
    location ~ /\\. {{ deny all; }}
}}
""", "proxy": f"server {{ listen 80; server_name {self.proxy}; # the application\n  location / {{ proxy_pass http://{BACKEND}; }}\n}}\n", "zz-default": f"""\
server {{
\tlisten 80 default_server;
\tserver_name {self.default} {self.default2};
\troot /var/www/html;
\tif ($host = {self.default2}) {{ return 301 http://{self.default}$request_uri; }}
}}
server {{ listen {BACKEND}; location / {{ return 200 "an application\\n"; }} }}
"""}
        for name, text in self.first.items():
            host.world.nginx.add_site(name, text)
        host.world.nginx.reload()

    def texts(self) -> dict[str, bytes]:
        """All files that nginx reads for sites, as they are."""
        return {str(path): path.read_bytes() for folder in ("sites-available", "sites-enabled", "conf.d")
                for path in (NGINX / folder).iterdir() if path.is_file()}

    def page(self, url: str, name: str, host: str = "") -> str:
        """What curl says of a page: status, body, and where it leads."""
        stage.wait_for(lambda: len(self.host.world.nginx.workers()) <= (os.cpu_count() or 1), what="nginx to be done with its reload")
        return self.host.run("curl", "-sS", "-k", "--resolve", f"{name}:80:127.0.0.1", "--resolve", f"{name}:443:127.0.0.1", "-w",
                             "%{http_code} %{redirect_url}", *(["-H", f"Host: {host}"] if host else []), url).text

    def close(self) -> None:
        """Take them out again."""
        for name in self.first:
            for folder in ("sites-enabled", "sites-available"):
                (NGINX / folder / name).unlink(missing_ok=True)
        self.host.world.nginx.reload()
        for name in (self.php, self.proxy, self.default):
            if os.path.exists(f"/etc/certdrop/sites.d/{name}.toml"):
                self.host.run("certdrop", "remove", name, "--yes")

"""Where everything is measured: a CA as far away as wanted, and nginx. Runs as root inside the stage."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "stage"))

import world as stage  # noqa: E402

import clients  # noqa: E402
from forge import put  # noqa: E402

PORT = 14001                       # where clients find the CA: through the proxy


class Place:
    """The world with a CA that is as far away as wanted, and nginx, which serves the challenges of all clients."""

    def __init__(self, world: stage.World) -> None:
        self.world = world
        self.counts = "/tmp/world/connections"
        self.proxy: subprocess.Popen[bytes] | None = None
        shutil.copy(world.pebble.ca_bundle, "/usr/local/share/ca-certificates/world.crt")
        clients.call("update-ca-certificates")
        os.makedirs(clients.CHALLENGES)
        os.chmod(clients.CHALLENGES, 0o1777)
        text = pathlib.Path("/etc/nginx/nginx.conf").read_text()
        put("/etc/nginx/nginx.conf", text.replace("error_log /var/log/nginx/error.log;", "error_log /var/log/nginx/error.log notice;"))
        world.nginx.add_site("default", f"server {{ listen 80 default_server; root {clients.WEBROOT}; }}\n")
        world.nginx.start(80)
        self.distance(0.0)

    @property
    def url(self) -> str:
        return f"https://{self.world.pebble.host}:{PORT}/dir"

    def distance(self, seconds: float) -> None:
        """Put the CA at this round trip."""
        self.near()
        self.proxy = subprocess.Popen([str(HERE / "proxy.py"), str(PORT), str(self.world.pebble.port), str(seconds), self.counts])
        stage.wait_listening(PORT)

    def near(self) -> None:
        if self.proxy:
            self.proxy.terminate()
            self.proxy.wait()
            self.proxy = None

    def connections(self) -> int:
        return os.path.getsize(self.counts)

    def requests(self) -> list[str]:
        return self.world.pebble.requests()


@contextlib.contextmanager
def placed() -> Iterator[Place]:
    with stage.World() as world:
        place = Place(world)
        try:
            yield place
        finally:
            place.near()

"""No site waits for another one's order: replies are installed as they come."""

from __future__ import annotations

import socket
import subprocess
import threading

from conftest import Host, stage


def test_a_name_that_hangs_holds_up_no_other(host: Host) -> None:
    """While one name's challenge is never answered, the other site of the same run is served; the run goes on after that."""
    good, bad = host.add(host.name()), host.name()
    host.run("certdrop", "add", bad, "--no-issue", code=0)
    with socket.create_server(("127.0.0.1", 9999)) as silent:
        kept: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    kept.append(silent.accept()[0])
            except OSError:
                pass
        threading.Thread(target=accept, daemon=True).start()
        location = "location / { proxy_pass http://127.0.0.1:9999; proxy_read_timeout 60s; }"
        host.world.nginx.add_site(bad, f"server {{ listen 80; server_name {bad}; {location} }}\n")
        host.world.nginx.reload()
        stage.write(f"/etc/certdrop/sites.d/{good}.toml", f'domains = ["{good}", "www.{good}"]\n')
        host.run("certdrop-install", code=0)               # root wants it now, though one was installed within the hour
        before = host.live(good)
        process = subprocess.Popen(["/usr/sbin/certdrop-issue", "--force", good, bad], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, user="_certdrop",
                                   group="_certdrop", extra_groups=[])
        stage.wait_for(lambda: host.live(good) > before and host.proven(good) == host.live(good), 60, "the good one to be served")
        assert process.poll() is None
        text = process.communicate(timeout=120)[0]
        for one in kept:
            one.close()
        silent.shutdown(socket.SHUT_RDWR)
    assert process.returncode != 0, text
    host.world.nginx.remove_site(bad)
    host.world.nginx.reload()


def test_a_rotation_of_many(host: Host) -> None:
    """`certdrop rotate` of several sites, one of whose names hangs: the others are served before that one is given up, and it says of each how it ended."""
    good, bad = host.add(host.name()), host.name()
    host.run("certdrop", "add", bad, "--no-issue", code=0)
    with socket.create_server(("127.0.0.1", 9998)) as silent:
        location = "location / { proxy_pass http://127.0.0.1:9998; proxy_read_timeout 60s; }"      # the kernel takes the connection; nobody answers
        host.world.nginx.add_site(bad, f"server {{ listen 80; server_name {bad}; {location} }}\n")
        host.world.nginx.reload()
        before = host.live(good)
        process = subprocess.Popen(["/usr/sbin/certdrop", "rotate", "--force", good, bad], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stage.wait_for(lambda: host.live(good) > before and host.proven(good) == host.live(good), 60, "the good one to be served")
        assert process.poll() is None
        text = process.communicate(timeout=120)[0]
        assert silent.fileno() > 0
    assert f"{good}: generation {host.live(good):04d} is installed, and served" in text and f"{bad}: no certificate was installed" in text, text
    host.world.nginx.remove_site(bad)
    host.world.nginx.reload()

"""A fleet's database on a stage: PostgreSQL as Debian has it, with the schema, TLS and pg_hba as certdrop-fleet init says.

Runs as root inside a stage. The server runs as postgres, in a directory of its own, and keeps what it writes in /tmp/world/postgres-NAME.log.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess

from world import Server, WorldError, home, wait_for, write

CA = "/etc/certdrop/fleet-ca"


def program(name: str) -> str:
    """One of the server's programs, of the newest release that is installed."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    if not found:
        raise WorldError(f"no PostgreSQL in this stage: {name}")
    return found[-1]


class Postgres(Server):
    """A PostgreSQL server: `admin` says how psql gets to it as its superuser."""

    def __init__(self, name: str = "db", port: int = 5432, address: str = "127.0.0.1") -> None:
        super().__init__(f"postgres-{name}")
        self.port, self.address = port, address
        self.data = f"/var/lib/postgresql/{name}"
        self.socket = f"/tmp/postgres-{name}"
        self.admin = f"runuser -u postgres -- psql -h {self.socket} -p {port} -d certdrop"

    def make(self) -> None:
        """An empty cluster."""
        home()
        for directory in (self.data, self.socket):
            shutil.rmtree(directory, ignore_errors=True)
            os.makedirs(directory, 0o700)
            shutil.chown(directory, "postgres", "postgres")
        self._as_postgres(program("initdb"), "-D", self.data, "-A", "peer", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")

    def use_tls(self) -> None:
        """Its certificate, and who may log in: as certdrop-fleet init says."""
        for name in ("ca.pem", "server.pem", "server.key"):
            shutil.copy(f"{CA}/{name}", f"{self.data}/{name}")
            shutil.chown(f"{self.data}/{name}", "postgres", "postgres")
            os.chmod(f"{self.data}/{name}", 0o600)
        with open(f"{self.data}/postgresql.conf", "a", encoding="ascii") as stream:
            stream.write("ssl = on\nssl_ca_file = 'ca.pem'\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'\nfsync = off\n")
        write(f"{self.data}/pg_hba.conf", "local all postgres peer\nlocal replication postgres peer\n"
                                          "hostssl certdrop +certdrop_host,+certdrop_desk,+certdrop_watch all cert\n", 0o600)
        shutil.chown(f"{self.data}/pg_hba.conf", "postgres", "postgres")

    def start(self) -> None:
        """Start it, until it takes connections."""
        self.launch(["/usr/sbin/runuser", "-u", "postgres", "--", program("postgres"), "-D", self.data, "-p", str(self.port), "-k", self.socket,
                     "-c", f"listen_addresses={self.address}"])
        wait_for(lambda: not self.running() or self._ready(), 30, f"{self.name}")
        if not self.running():
            raise WorldError(f"{self.name} ended\n{self.log_text()}")

    def _ready(self) -> bool:
        return subprocess.run([program("pg_isready"), "-q", "-h", self.socket, "-p", str(self.port)], check=False).returncode == 0

    def stop(self, number: int = 2) -> None:
        """End it at once (SIGINT: without waiting for whoever is connected)."""
        if self.running():
            with open(f"{self.data}/postmaster.pid", encoding="ascii") as stream:
                os.kill(int(stream.readline()), number)
            wait_for(lambda: not self.running(), 15, f"{self.name}'s end")
        self.process = None

    def psql(self, text: str, database: str = "certdrop") -> str:
        """What the superuser's statements print."""
        done = subprocess.run([*self.admin.split()[:-1], database, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"], input=text, capture_output=True, text=True,
                              check=False, cwd="/")
        if done.returncode:
            raise WorldError(f"psql: {done.stderr}")
        return done.stdout.strip()

    @staticmethod
    def _as_postgres(*argv: str) -> None:
        done = subprocess.run(["/usr/sbin/runuser", "-u", "postgres", "--", *argv], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise WorldError(f"{argv[0]}: {done.stdout}{done.stderr}")

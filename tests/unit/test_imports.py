"""Our own import statements, held to the table of who may use what (DESIGN.md): the architecture, as a test that can fail.

Read from the sources, because what is loaded in the end says little: structlog alone loads asyncio, ssl and socket.
"""

from __future__ import annotations

import ast
import pathlib
import runpy
import subprocess
import sys

import pytest

LIB = pathlib.Path(__file__).resolve().parents[2] / "lib" / "certdrop"

# Modules that open connections, or exist for nothing else.
NETWORK = {"asyncio", "ftplib", "http", "imaplib", "nntplib", "poplib", "requests", "smtplib", "socket", "socketserver", "ssl",
           "telnetlib", "urllib", "urllib3", "wsgiref", "xmlrpc", "OpenSSL", "dns"}
PARTS = {"admin", "config", "doctor", "fleet", "importer", "issuer", "judge", "keeper", "nginx", "signer", "status", "trust", "walls", "watcher"}
NEVER_AS_ROOT = NETWORK | {"structlog", "acme_tiny", "pickle", "marshal", "shelve"}

# What a room may use of ours (itself is always allowed): a room, a module at the top, or one module of a room. A module of its own row may that, too.
READS_NGINX = {"nginx/syntax", "nginx/directives", "nginx/request", "nginx/configuration", "nginx/challenge", "nginx/expression", "nginx/vacancy", "nginx/run",
               "nginx/snippets"}
OURS = {
    "start": {"terminal"},
    "issuer": {"foreign", "tokens", "renewal", "start", "spool", "events", "happened", "terminal", "words", "progress", "config", "walls", "trust", "signer"},
    "issuer/manage": {"commandline"},
    "issuer/answers": {"answering"},
    "issuer/tlsa": {"watcher/resolver"},         # they ask the DNS as the doctor does, by the same code
    "issuer/published": {"watcher/resolver"},
    "issuer/plan": {"fleet/tree"},               # of a desk: which profile a host's sites have
    "issuer/options": {"commandline"},           # to refuse a word
    "issuer/rehearsal": {"judge"},     # a dry run is told what root's judge would say, by the judge's own code
    "signer/service": {"fleet/proof"},
    "signer": {"foreign", "spool", "events", "happened", "config", "walls", "issuer/failure"},
    "keeper": {"frames", "spool", "events", "words", "shown", "config", "walls"},
    "judge": {"answering", "spool", "walls", "trust/verify"},
    "judge/served": {"listening"},
    "watcher": {"foreign", "renewal", "start", "listening", "spool", "events", "happened", "shown", "terminal", "words", "config", "walls", "trust"},
    "watcher/command": {"commandline", "doctor/line", "doctor/mail"},
    "status": {"renewal", "commandline", "events", "progress", "terminal", "words", "config", "walls", "watcher"},
    "doctor": {"foreign", "tokens", "commandline", "spool", "events", "progress", "terminal", "words", "config", "walls", "trust", "watcher"} | READS_NGINX,
    "doctor/nginx": {"listening"},
    "doctor/ca": {"issuer/directory", "issuer/transport", "issuer/failure", "issuer/proxy"},     # it asks the CA as the issuer does, by the same code
    "fleet": {"foreign", "commandline", "spool", "events", "terminal", "words", "config", "walls"},
    "fleet/proof": {"keeper/signing", "signer/policy", "signer/protocol"},
    "fleet/tree": {"keeper/signing", "signer/protocol"},
    "fleet/status": {"status/webpage", "watcher/evidence", "watcher/verdict"},           # a fleet's site is judged as one here, on the same page
    "fleet/local": {"issuer/notes", "issuer/posted"},
    "fleet/courier": {"start", "issuer/command", "issuer/due", "issuer/notes", "issuer/options", "issuer/turn"},
    "fleet/desk": {"issuer/command", "issuer/due", "issuer/options", "issuer/manage", "signer/protocol"},     # it has today's issuer look
    "fleet/command": {"admin/posting", "keeper/services", "nginx/snippets"},
    "nginx": {"tokens", "commandline", "spool", "events", "terminal", "words", "config"},
    "nginx/write": {"keeper", "walls"},
    "nginx/change": {"keeper", "walls"},
    "nginx/several": {"keeper", "walls"},
    "nginx/pages": {"walls"},
    "nginx/own": {"by_hand", "keeper"},
    "nginx/fetched": {"walls"},
    "importer": {"by_hand", "foreign", "tokens", "commandline", "spool", "events", "happened", "terminal", "words", "config", "walls", "keeper",
                 "nginx/fetched"} | READS_NGINX,
    "importer/pairs": {"frames"},
    "importer/examiner": {"answering", "judge"},       # what parses for the administrator's tools runs as the judge, with the judge's own code
    "admin": {"by_hand", "commandline", "listening", "spool", "events", "happened", "progress", "terminal", "words", "config", "walls", "trust", "keeper",
              "nginx/own", "nginx/vacancy", "nginx/fetched"},
    "admin/candidates": {"nginx"},
    "admin/names": {"nginx"},
    "admin/sites": {"nginx"},
    "config": {"spool"},
    "trust": {"config"},
    "walls": {"start", "terminal", "words"},
    "spool": set(),
    "foreign": {"spool"},
    "tokens": {"spool"},
    "events": set(),
    "by_hand": {"events", "words", "keeper"},
    "happened": set(),
    "terminal": {"words"},
    "progress": {"words"},
    "commandline": set(),
    "words": set(),
    "shown": set(),
    "renewal": set(),
    "frames": set(),
    "answering": {"frames"},
    "listening": set(),
    "__init__": set(),
}
NAMED_BY_BIN = "module"            # what start.py loads: bin/ says which
NOT_THEIRS = {
    "start": NEVER_AS_ROOT | {"cryptography"},
    "issuer": set(),
    "signer": {"http", "urllib.request", "ssl", "acme_tiny", "structlog"},
    "keeper": NEVER_AS_ROOT | {"argparse"},
    "watcher": {"acme_tiny"},
    "status": {"acme_tiny", "structlog"},
    "doctor": {"acme_tiny", "structlog"},
    "nginx": NEVER_AS_ROOT | {"cryptography"},
    "fleet": {"acme_tiny", "structlog", "ssl"},
    "importer": set(),
    "admin": set(),
    "config": NEVER_AS_ROOT | {"cryptography"},
    "trust": NEVER_AS_ROOT | {"cryptography"},
    "trust/verify": NETWORK - {"OpenSSL"} | {"structlog"},
    "walls": NEVER_AS_ROOT | {"cryptography"},
    "spool": NEVER_AS_ROOT | {"cryptography", "json"},
    "foreign": NEVER_AS_ROOT | {"cryptography", "json"},
    "tokens": NEVER_AS_ROOT | {"cryptography", "json"},
    "happened": NEVER_AS_ROOT | {"cryptography"},
    "by_hand": NEVER_AS_ROOT | {"cryptography"},
    "events": NEVER_AS_ROOT | {"cryptography", "json", "logging"},
    "terminal": NEVER_AS_ROOT | {"cryptography"},
    "progress": NEVER_AS_ROOT | {"cryptography"},
    "commandline": NEVER_AS_ROOT | {"cryptography", "json"},
    "words": NEVER_AS_ROOT | {"cryptography"},
    "renewal": NEVER_AS_ROOT | {"cryptography", "json"},
    "shown": NEVER_AS_ROOT | {"cryptography", "json"},
    "frames": NEVER_AS_ROOT | {"cryptography", "json"},
    "answering": NEVER_AS_ROOT | {"cryptography", "json"},
    "listening": NEVER_AS_ROOT - {"socket"} | {"cryptography"},
    "__init__": NEVER_AS_ROOT,
}
# Each of the judge's modules needs one thing for its one task; all else that is not in Python's own library, or opens connections, is refused.
JUDGE = {"chain": {"OpenSSL", "cryptography"}, "served": {"socket", "ssl"}}


def imports(source: str) -> set[str]:
    """The modules that a source names in import statements, wherever they stand, as dotted names; ours down to the last part."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who uses what"
            ours = (node.module or "").split(".")[0] == "certdrop"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if ours else {node.module or ""}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("__import__", "import_module"):
            found.add(ast.unparse(node.args[0]).strip("'\"") if node.args else "?")
    return found


def test_each_program_starts_its_own_part():
    """What start.py loads stands in bin/, one for each."""
    named = {path.name: path.read_text().rpartition("run(")[2].split('"')[1:4:2] for path in (LIB.parents[1] / "bin").iterdir()}
    parts = {"certdrop": "admin", "certdrop-import": "importer", "certdrop-nginx": "nginx", "certdrop-install": "keeper", "certdrop-issue": "issuer",
             "certdrop-account": "issuer", "certdrop-check": "doctor", "certdrop-status": "status", "certdrop-watch": "watcher", "certdrop-courier": "fleet",
             "certdrop-desk": "fleet", "certdrop-fleet": "fleet"}
    assert {name: (program, module.split(".")[1]) for name, (program, module) in named.items()} == {name: (name, part) for name, part in parts.items()}


def offences(part: str, module: str, source: str) -> list[str]:
    """What of a source's imports the tables do not allow. `part` is a room (or a module at the top), `module` the file's own name."""
    found, own = [], f"{part}/{module}"
    allowed = OURS[part] | OURS.get(own, set()) | {part, "VERSION", "TERMINAL"}
    for name in sorted(imports(source)):
        first, *rest = name.split(".")
        if first == "certdrop":
            if not {"/".join(rest[:1]), "/".join(rest[:2])} & allowed:
                found.append(f"{own} uses {name}")
        elif (part, name) == ("start", NAMED_BY_BIN):
            continue
        elif part == "judge":
            if first not in (set(sys.stdlib_module_names) - NETWORK) | JUDGE.get(module, set()):
                found.append(f"{own} uses {name}")
        elif {first, name} & NOT_THEIRS.get(own, NOT_THEIRS[part]):
            found.append(f"{own} uses {name}")
    return found


def sources() -> list[tuple[str, str, str]]:
    """(part, module, source) of all our modules."""
    found = []
    for path in sorted(LIB.rglob("*.py")):
        relative = path.relative_to(LIB)
        part = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        found.append((part, relative.stem, path.read_text(encoding="utf-8")))
    return found


def test_every_module_keeps_to_the_table():
    """No module of ours uses what its part must not use."""
    assert [offence for source in sources() for offence in offences(*source)] == []


def test_all_parts_are_looked_at():
    """The table knows every directory and module there is, and the test sees them."""
    seen = {part for part, _, _ in sources()}
    assert PARTS <= seen <= set(OURS)
    files = {f"{part}/{module}" for part, module, _ in sources()}
    assert {row for table in (OURS, NOT_THEIRS) for row in table if "/" in row} <= files


def test_no_circle() -> None:
    """No module leads back to itself, by imports wherever they stand."""
    files = {".".join(path.relative_to(LIB).with_suffix("").parts): imports(path.read_text(encoding="utf-8")) for path in LIB.rglob("*.py")}
    edges = {name: {target for used in found for target in (used.removeprefix("certdrop."), used.removeprefix("certdrop.").rpartition(".")[0])
                    if used.startswith("certdrop.") and target in files and target != name} for name, found in files.items()}
    circles: list[str] = []

    def follow(name: str, way: tuple[str, ...], done: set[str]) -> None:
        if name in way:
            circles.append(" -> ".join(way[way.index(name):] + (name,)))
        elif name not in done:
            for target in sorted(edges[name]):
                follow(target, way + (name,), done)
            done.add(name)

    done: set[str] = set()
    for name in sorted(edges):
        follow(name, (), done)
    assert circles == []


@pytest.mark.parametrize("part, module, source", [
    ("keeper", "install", "import socket"),
    ("keeper", "install", "from urllib.request import urlopen"),
    ("keeper", "install", "def late():\n    import ssl"),
    ("keeper", "install", "import structlog"),
    ("keeper", "command", "def late():\n    import argparse"),
    ("keeper", "command", "from certdrop import commandline"),
    ("issuer", "command", "from certdrop import commandline"),
    ("keeper", "install", "from certdrop.issuer import ledger"),
    ("keeper", "install", "from certdrop import watcher"),
    ("keeper", "install", "import certdrop.nginx.blocks"),
    ("keeper", "install", "import importlib\nimportlib.import_module('socket')"),
    ("keeper", "install", "__import__('http.client')"),
    ("keeper", "judges", "from certdrop.judge import chain"),
    ("issuer", "command", "from certdrop.keeper import notes"),
    ("issuer", "command", "from certdrop.judge import chain"),
    ("issuer", "command", "import certdrop.watcher"),
    ("importer", "pairs", "from certdrop.judge import chain"),
    ("judge", "chain", "import socket"),
    ("judge", "served", "from cryptography import x509"),
    ("judge", "sandbox", "import ssl"),
    ("judge", "sandbox", "import structlog"),
    ("judge", "chain", "from certdrop.config import site"),
    ("status", "table", "from certdrop.keeper.state import Observed"),
    ("watcher", "command", "import certdrop.issuer"),
    ("spool", "spool", "from certdrop import events"),
    ("spool", "spool", "import socket"),
    ("events", "events", "from certdrop import spool"),
    ("events", "events", "import json"),
    ("config", "site", "from certdrop.walls import jail"),
    ("doctor", "ca", "from certdrop.nginx import write"),
    ("signer", "policy", "import ssl"),
    ("watcher", "alarm", "from certdrop.status import table"),
    ("trust", "roots", "import OpenSSL"),
])
def test_an_offence_is_found(part, module, source):
    """The test can fail: each of these is what it is for."""
    assert len(offences(part, module, source)) == 1


@pytest.mark.parametrize("part, module, source", [
    ("keeper", "install", "from certdrop import spool\nfrom certdrop.config import site\nfrom certdrop.keeper import notes\nimport json"),
    ("judge", "chain", "from OpenSSL import crypto\nfrom certdrop.spool import Refused"),
    ("judge", "served", "import socket, ssl"),
    ("importer", "examiner", "from certdrop.judge import sandbox, chain"),
    ("issuer", "ports", "import http.client, ssl, structlog"),
    ("config", "site", "from certdrop import spool\nimport tomllib"),
])
def test_what_is_allowed_passes(part, module, source):
    """The table does not refuse what the parts are made of."""
    assert offences(part, module, source) == []


def test_a_relative_import_is_refused():
    """`from . import x` would hide from this test which module is used."""
    with pytest.raises(AssertionError):
        imports("from . import state")


def test_the_package_depends_on_what_is_imported():
    """Every module that is neither ours nor Python's has its Debian package among the package's dependencies, or what can be missing its recommendations."""
    packages = {"OpenSSL": "python3-openssl", "acme_tiny": "acme-tiny", "cryptography": "python3-cryptography", "idna": "python3-idna",
                "structlog": "python3-structlog", "dns": "python3-dnspython", "seccomp": "python3-seccomp"}
    used = {name.split(".")[0] for _, _, source in sources() for name in imports(source)} - set(sys.stdlib_module_names) - {"certdrop", NAMED_BY_BIN}
    control = (LIB.parents[1] / "debian" / "control").read_text(encoding="ascii")
    depends, _, rest = control.partition("\nDepends:\n")[2].partition("\nRecommends:")
    assert "psycopg2" in used and "\n python3-psycopg2,\n" in control.partition("\nPackage: certdrop-fleet\n")[2]
    assert {packages[name] for name in used - {"dns", "psycopg2"}} - set(depends.replace(",", " ").split()) == set()
    assert packages["dns"] in rest.partition("\nSuggests:")[0]


def test_what_is_counted_as_roots_is_what_root_can_load(monkeypatch):
    """.ci/root-lines follows the import statements: it knows each module that certdrop-install has loaded when it begins, and those that it loads late."""
    monkeypatch.chdir(LIB.parents[1])
    counted = runpy.run_path(".ci/root-lines")
    found = counted["loaded"](counted["ROOT"])
    program = f"import sys; sys.path.insert(0, {str(LIB.parent)!r}); import certdrop.start, certdrop.keeper.command; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-IS", "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert {counted["path_of"](name) for name in loaded if name.partition(".")[0] == "certdrop"} <= found
    assert {"lib/certdrop/words.py", "lib/certdrop/keeper/keys.py"} <= found, "loaded late"
    assert not [path for path in found - {"lib/certdrop/issuer/handover.py"} if path.split("/")[2] in ("admin", "issuer", "judge", "watcher", "terminal.py")]
    assert "lib/certdrop/judge/chain.py" in counted["loaded"](counted["OTHERS"])


def test_root_has_nobody_start_under_its_own_wait() -> None:
    """subprocess's `user` waits, without a limit, for a child that another process of that user can stop: become.as_user() is how it is done."""
    calls = [(part, module, node) for part, module, source in sources() for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert [f"{part}/{module}" for part, module, call in calls if {word.arg for word in call.keywords} & {"user", "group", "extra_groups"}] == []

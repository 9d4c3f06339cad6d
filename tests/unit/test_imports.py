"""Our own import statements, held to the table of who may use what (DESIGN.md): the architecture, as a test that can fail.

Read from the sources, because what is loaded in the end says little: structlog alone loads asyncio, ssl and socket.
"""

from __future__ import annotations

import ast
import pathlib
import sys

import pytest

LIB = pathlib.Path(__file__).resolve().parents[2] / "lib" / "certdrop"

# Modules that open connections, or exist for nothing else.
NETWORK = {"asyncio", "ftplib", "http", "imaplib", "nntplib", "poplib", "requests", "smtplib", "socket", "socketserver", "ssl",
           "telnetlib", "urllib", "urllib3", "wsgiref", "xmlrpc", "OpenSSL", "dns"}
PARTS = {"admin", "issuer", "judge", "keeper", "watcher"}
NEVER_AS_ROOT = NETWORK | {"structlog", "acme_tiny", "pickle", "marshal", "shelve"}

# What a part may use of ours (itself is always allowed), and what it must not use of others'.
OURS = {
    "start": {"terminal"},
    "issuer": {"start", "spool", "site", "jail", "syscalls", "events", "roots", "browsers", "terminal", "words", "become"},
    "keeper": {"spool", "site", "jail", "world", "events", "words", "shown"},
    "judge": {"spool", "jail", "syscalls", "trust"},
    "watcher": {"start", "spool", "site", "jail", "syscalls", "events", "layout", "described", "nginxconf", "nginxrun", "port80", "vacancy", "roots",
                "browsers", "shown", "words", "become"},
    "admin": {"spool", "site", "jail", "events", "terminal", "words", "become", "layout", "nginxconf", "nginxrun", "port80", "vacancy", "roots", "keeper"},
    "spool": set(),
    "events": set(),
    "jail": {"words"},
    "world": {"jail"},
    "syscalls": {"jail"},
    "words": set(),
    "terminal": {"words"},
    "become": {"jail", "terminal", "words"},
    "layout": set(),
    "nginxconf": set(),
    "port80": {"spool", "site", "nginxconf"},
    "vacancy": {"site", "nginxconf", "port80"},
    "roots": {"site"},
    "described": {"site"},
    "nginxrun": {"site", "described"},
    "trust": set(),
    "shown": set(),
    "browsers": {"site", "roots", "trust"},
    "site": {"spool"},
    "__init__": set(),
}
# What parses for the administrator's tools runs as the judge, with the judge's own code; a dry run is told what root's judge would say, by the same.
AS_THE_JUDGE = {"admin/import_booth", "issuer/rehearsal"}
NAMED_BY_BIN = "module"             # what start.py loads: bin/ says which
NOT_THEIRS = {
    "start": NEVER_AS_ROOT | {"cryptography"},
    "issuer": set(),
    "keeper": NEVER_AS_ROOT,
    "watcher": {"acme_tiny"},
    "admin": set(),
    "spool": NEVER_AS_ROOT | {"cryptography", "json"},
    "events": NEVER_AS_ROOT | {"cryptography", "json", "logging"},
    "jail": NEVER_AS_ROOT | {"cryptography"},
    "world": NEVER_AS_ROOT | {"cryptography"},
    "syscalls": NEVER_AS_ROOT | {"cryptography"},
    "words": NEVER_AS_ROOT | {"cryptography"},
    "terminal": NEVER_AS_ROOT | {"cryptography"},
    "become": NEVER_AS_ROOT | {"cryptography"},
    "layout": NEVER_AS_ROOT | {"cryptography"},
    "nginxconf": NEVER_AS_ROOT | {"cryptography"},
    "port80": NEVER_AS_ROOT | {"cryptography"},
    "vacancy": NEVER_AS_ROOT | {"cryptography"},
    "roots": NEVER_AS_ROOT | {"cryptography"},
    "described": NEVER_AS_ROOT | {"cryptography"},
    "nginxrun": NEVER_AS_ROOT | {"cryptography"},
    "shown": NEVER_AS_ROOT | {"cryptography", "json"},
    "trust": NETWORK - {"OpenSSL"} | {"structlog"},
    "browsers": NEVER_AS_ROOT | {"cryptography"},
    "site": NEVER_AS_ROOT | {"cryptography"},
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
    parts = {"certdrop": "admin", "certdrop-import": "admin", "certdrop-nginx": "admin", "certdrop-install": "keeper", "certdrop-issue": "issuer",
             "certdrop-account": "issuer", "certdrop-check": "watcher", "certdrop-status": "watcher", "certdrop-watch": "watcher"}
    assert {name: (program, module.split(".")[1]) for name, (program, module) in named.items()} == {name: (name, part) for name, part in parts.items()}


def offences(part: str, module: str, source: str) -> list[str]:
    """What of a source's imports the table does not allow. `part` is a directory (or a module at the top), `module` the file's own name."""
    found = []
    for name in sorted(imports(source)):
        first, *rest = name.split(".")
        if first == "certdrop":
            used = rest[0] if rest else ""
            as_judge = {"judge"} if f"{part}/{module}" in AS_THE_JUDGE else set()
            if used not in OURS[part] | {part, "VERSION", "TERMINAL"} | as_judge:
                found.append(f"{part}/{module} uses {name}")
        elif (part, name) == ("start", NAMED_BY_BIN):
            continue
        elif part == "judge":
            allowed = (set(sys.stdlib_module_names) - NETWORK) | JUDGE.get(module, set())
            if first not in allowed:
                found.append(f"{part}/{module} uses {name}")
        elif first in NOT_THEIRS[part]:
            found.append(f"{part}/{module} uses {name}")
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


@pytest.mark.parametrize("part, module, source", [
    ("keeper", "install", "import socket"),
    ("keeper", "install", "from urllib.request import urlopen"),
    ("keeper", "install", "def late():\n    import ssl"),
    ("keeper", "install", "import structlog"),
    ("keeper", "install", "from certdrop.issuer import ledger"),
    ("keeper", "install", "from certdrop import watcher"),
    ("keeper", "install", "import certdrop.admin.nginx"),
    ("keeper", "install", "import importlib\nimportlib.import_module('socket')"),
    ("keeper", "install", "__import__('http.client')"),
    ("keeper", "judges", "from certdrop.judge import chain"),
    ("issuer", "issue", "from certdrop.keeper import notes"),
    ("issuer", "issue", "from certdrop.judge import chain"),
    ("issuer", "issue", "import certdrop.watcher"),
    ("admin", "import_pairs", "from certdrop.judge import chain"),
    ("judge", "chain", "import socket"),
    ("judge", "served", "from cryptography import x509"),
    ("judge", "booth", "import ssl"),
    ("judge", "booth", "import structlog"),
    ("judge", "chain", "from certdrop import site"),
    ("watcher", "status", "from certdrop.keeper.state import Sight"),
    ("watcher", "status", "import certdrop.issuer"),
    ("spool", "spool", "from certdrop import events"),
    ("spool", "spool", "import socket"),
    ("events", "events", "from certdrop import spool"),
    ("events", "events", "import json"),
    ("site", "site", "from certdrop import jail"),
])
def test_an_offence_is_found(part, module, source):
    """The test can fail: each of these is what it is for."""
    assert len(offences(part, module, source)) == 1


@pytest.mark.parametrize("part, module, source", [
    ("keeper", "install", "from certdrop import site, spool\nfrom certdrop.keeper import notes\nimport json"),
    ("judge", "chain", "from OpenSSL import crypto\nfrom certdrop.spool import Refused"),
    ("judge", "served", "import socket, ssl"),
    ("admin", "import_booth", "from certdrop.judge import booth, chain"),
    ("issuer", "ports", "import http.client, ssl, structlog"),
    ("site", "site", "from certdrop import spool\nimport tomllib"),
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
    assert {packages[name] for name in used - {"dns"}} - set(depends.replace(",", " ").split()) == set()
    assert packages["dns"] in rest.partition("\nSuggests:")[0]

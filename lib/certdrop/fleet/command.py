"""certdrop-fleet: for the administrator of a fleet. The schema and its CA, enrolling hosts and desks, withdrawing them, and one view of all.

Runs as: root, by hand; `status` becomes _certdrop, which alone talks with the database. Trusts: the administrator's words, after checking them.
Reads and writes: /etc/certdrop/fleet, fleet.d, fleet-ca; and through psql(1) the database.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import shlex
import subprocess
import sys
import tomllib

from certdrop import events, spool, words
from certdrop.commandline import Program, Syntax, Usage, Words
from certdrop.config import dane, site
from certdrop.fleet import authority, database, members
from certdrop.keeper import services
from certdrop.nginx import snippets
from certdrop.walls import become

SCHEMA = "/usr/share/certdrop/fleet/schema.sql"
PSQL = "runuser -u postgres -- psql -d certdrop"
REDIRECT = """\
# Leads the CA's HTTP-01 challenges to the desks of this host's fleet; written by certdrop-fleet join. It stands in the server block for port 80, as
# certdrop-challenge.conf does on a host that is in no fleet: before any redirect of the server block's own.
location ^~ /.well-known/acme-challenge/ {{
    return 302 http://{}$request_uri;
}}
"""
STATELESS = """\
# Answers the CA's HTTP-01 challenges by the key of the fleet's ACME account; written by certdrop-fleet join. It stands in the server block for port 80, as
# certdrop-challenge.conf does on a host that is in no fleet. A change of that key makes every such answer wrong: the desk refuses one meanwhile.
location ^~ /.well-known/acme-challenge/ {{
    location ~ "^/\\.well-known/acme-challenge/([A-Za-z0-9_-]{{16,128}})\\z" {{
        default_type text/plain;
        return 200 "$1.{}";
    }}
    return 404;
}}
"""
LONGEST_TEXT = 4000                # characters of what psql says beside
LONGEST = 120.0                    # seconds to show how the fleet stands
_PSQL = {"--psql COMMAND": f"how psql gets to the database as its superuser; unless given: {PSQL}"}
LINE = Program("certdrop-fleet", "certdrop-fleet(8)", Syntax(
    (), "A fleet of hosts whose certificates come by way of a PostgreSQL database; docs/fleet.md begins at the beginning.", {}, """\
certdrop-fleet join web1 > web1.line
certdrop-fleet enrol web1.line shop.example.org '*.customers.example.org' > web1.answer
certdrop-fleet join --answer web1.answer
certdrop-fleet status
"""), {
    "init": Syntax(("--database PLACE --validation NAME",), "on the first desk: make the fleet's CA, and the database server's certificate", {
        "--database PLACE": "where the database is: HOST[,HOST...]/DBNAME, or as libpq has it",
        "--validation NAME": "the host name that leads to the desks, for the CA's challenges"},
        "certdrop-fleet init --database db.example.org/certdrop --validation acme.example.org", takes_names=False),
    "schema": Syntax(("",), "print the schema, for psql", {}, "certdrop-fleet schema  | runuser -u postgres -- psql -d certdrop", takes_names=False),
    "join": Syntax(("NAME [--desk]", "--answer FILE", "--sign", "--leave"), "on a host (or a desk): make its keys, and print the line that enrol wants", {
        "--desk": "it is to be a desk", "--answer FILE": "take in what enrol printed: from now on this machine is in the fleet",
        "--sign": "sign again what root has posted", "--leave": "be in no fleet any more; certdrop-issue talks with the CA itself again"},
        "certdrop-fleet join web1 > web1.line"),
    "enrol": Syntax(("FILE [NAME...] [--max-sites N] [--stateless KEY]", "FILE ... --psql COMMAND"), "on a desk: let a machine in; print the answer", {
        "--stateless KEY": "it answers challenges itself: KEY is the SHA-256 of the account's JWK, as certdrop-desk account show prints it",
        "--max-sites N": f"how many sites the host may have; unless given: {members.MOST_SITES}", **_PSQL},
        "certdrop-fleet enrol web1.line shop.example.org '*.customers.example.org' > web1.answer",
        "A NAME is one that the host may ask for: a host name, an address, or *.DOMAIN for all below a domain."),
    "list": Syntax(("",), "the hosts that this desk believes, and which names they may ask for", {}, "certdrop-fleet list", takes_names=False),
    "withdraw": Syntax(("NAME [--psql COMMAND]",), "on every desk: shut a machine out; list its certificates, for revocation", _PSQL,
                       "certdrop-fleet withdraw web1"),
    "status": Syntax(("[--json | --nagios | --prometheus | --html]",), "on a desk: every host and site, when each renews, what fails, who is silent", {
        "--json": "as JSON", "--nagios": "one line, and a plugin's exit code", "--prometheus": "as Prometheus reads it",
        "--html": "as a web page, whole in itself"},
        "certdrop-fleet status", takes_names=False),
})


def main(argv: list[str]) -> int:
    """Returns a code of sysexits.h."""
    return LINE.main(argv, lambda found: _checked(found, argv))


def _checked(found: Words, argv: list[str]) -> int:
    verbs = {"init": _init, "schema": _schema, "join": _join, "enrol": _enrol, "list": _list, "withdraw": _withdraw}
    try:
        if found.verb == "status":
            return _status(found, argv)
        if found.verb not in ("schema", "list") and os.geteuid() != 0:
            return _say("must be run as root; try sudo", os.EX_NOPERM)
        return verbs[found.verb](found)
    except site.ConfigError as error:
        return _say(str(error), os.EX_CONFIG)
    except (ValueError, UnicodeDecodeError) as error:
        return _say(f"{error}; nothing was changed", os.EX_DATAERR)
    except subprocess.CalledProcessError as error:
        return _say(f"psql ended with {error.returncode}; nothing was changed in the database", os.EX_UNAVAILABLE)
    except OSError as error:
        return _say(f"{error.filename or ''}: {error.strerror or error}; what is missing is made by the same command again", os.EX_IOERR)


# ---- on a desk

def _init(found: Words) -> int:
    place = re.sub(r"^([A-Za-z0-9.,:-]+)/([A-Za-z0-9_-]+)$", r"host=\1 dbname=\2", found.options.get("--database", ""))
    if not database.is_place(place):
        raise Usage("init needs --database HOST/DBNAME")
    validation = found.options.get("--validation", "")
    if not site.is_host_name(validation):
        raise Usage("init needs --validation and a host name")
    ca = f"{site.ETC}/fleet-ca"
    os.makedirs(ca, mode=0o700, exist_ok=True)
    os.makedirs(f"{site.ETC}/fleet.d", mode=0o755, exist_ok=True)
    if not os.path.lexists(f"{ca}/ca.pem"):
        key, certificate = authority.make_ca()
        _write(f"{ca}/ca.key", key, 0o600)
        _write(f"{ca}/ca.pem", certificate, 0o644)
    _write(f"{ca}/database", place.encode(), 0o644)
    _write(f"{ca}/validation", validation.encode(), 0o644)
    hosts = [host for part in re.findall(r"host=([^ ]+)", place) for host in part.split(",") if host]
    if not os.path.lexists(f"{ca}/server.pem"):
        tls = authority.tls_key()
        _write(f"{ca}/server.key", tls, 0o600)
        _write(f"{ca}/server.pem", authority.issue(_read(f"{ca}/ca.key"), _read(f"{ca}/ca.pem"), hosts[0], authority.point_of(tls), hosts), 0o644)
    dbname = re.search(r"dbname=([^ ]+)", place)
    name = dbname[1] if dbname else "certdrop"
    print(f"""\
The fleet's CA is in {ca}; its key stays here. On the database's server, {', '.join(hosts)}:
  createdb {name}; certdrop-fleet schema | psql -X -v ON_ERROR_STOP=1 -1 -d {name}
  put ca.pem, server.pem and server.key (0600, the server's user's) beside its configuration, and there:
    postgresql.conf:  ssl = on
                      ssl_ca_file = 'ca.pem'
                      ssl_cert_file = 'server.pem'
                      ssl_key_file = 'server.key'
    pg_hba.conf:      hostssl {name} +certdrop_host,+certdrop_desk,+certdrop_watch all cert
On each desk, nginx's server block for port 80 and {validation} has: include /etc/nginx/snippets/certdrop-desk.conf;
Then: certdrop-fleet join desk1 --desk > desk1.line; certdrop-fleet enrol desk1.line > desk1.answer; certdrop-fleet join --answer desk1.answer""")
    return os.EX_OK


def _schema(_: Words) -> int:
    with open(SCHEMA, encoding="utf-8") as stream:
        print(stream.read(), end="")
    return os.EX_OK


def _enrol(found: Words) -> int:
    if not found.names:
        raise Usage("enrol needs the file with the line that certdrop-fleet join printed")
    file, *patterns = found.names
    with open(file, encoding="ascii") as stream:
        who = authority.applicant(stream.read(1000))
    wrong = [pattern for pattern in patterns if not members.is_pattern(pattern)]
    if wrong:
        raise ValueError(f"{wrong[0]!a:.80}: no pattern: give a host name, an address, or *.DOMAIN for all names below a domain")
    if (who.kind == "host") != bool(patterns):
        raise ValueError(f"{who.name}: " + ("name what this host may ask for" if who.kind == "host" else "a desk asks for no names of its own"))
    sites = found.options.get("--max-sites", str(members.MOST_SITES))
    if not sites.isdecimal() or not 0 < int(sites) <= 100000:
        raise ValueError(f"--max-sites: {sites!a:.20}: give a number from 1 to 100000")
    stateless = found.options.get("--stateless", "")
    if stateless and (who.kind != "host" or not members.is_thumbprint(stateless)):
        raise ValueError("--stateless: for a host; give the SHA-256 of the account's JWK, as certdrop-desk account show prints it")
    ca = f"{site.ETC}/fleet-ca"
    _refuse_another(who)
    certificate = authority.issue(_read(f"{ca}/ca.key"), _read(f"{ca}/ca.pem"), who.name, who.point)
    _write(f"{ca}/{who.name}.enrolled", certificate, 0o644)        # first: what was once given out is known for ever
    _psql(found, enrolling(who.name, who.kind, 3 * int(sites)))
    if who.kind == "host":
        listed = ", ".join(f'"{pattern}"' for pattern in patterns)
        text = f'key = "{who.key}"\nnames = [{listed}]\nmax_sites = {int(sites)}\n' + (f'stateless = "{stateless}"\n' if stateless else "")
        _write(f"{site.ETC}/fleet.d/{who.name}.toml", text.encode(), 0o644)
        _say(f"{who.name}: enrolled at this desk, for {' '.join(patterns)}", 0)
    else:
        _say(f"{who.name}: enrolled as a desk", 0)
    place = _read(f"{ca}/database").decode().strip()
    validation = _read(f"{ca}/validation").decode().strip()
    print(f'kind = "{who.kind}"\nname = "{who.name}"\ndatabase = "{place}"\nvalidation = "{validation}"\nstateless = "{stateless}"\n'
          f'certificate = """\n{certificate.decode()}"""\nca = """\n{_read(f"{ca}/ca.pem").decode()}"""')
    return os.EX_OK


def _refuse_another(who: authority.Applicant) -> None:
    """Raise ValueError where the name is, or was, another machine's: the database would let that one in again, by its old certificate."""
    path = f"{site.ETC}/fleet.d/{who.name}.toml"
    if os.path.lexists(f"{path}.withdrawn"):
        raise ValueError(f"{who.name}: a machine of this name was withdrawn, and its certificate would let it in again: take another name")
    if os.path.lexists(path):
        known = members.Member()
        site.fill(path, known, {key: key for key in vars(known)})
        if who.kind != "host" or known.key != who.key:
            raise ValueError(f"{who.name}: a host of this name is enrolled with another key: take another name, and withdraw {who.name} where that is gone")
    given = f"{site.ETC}/fleet-ca/{who.name}.enrolled"
    if os.path.lexists(given) and not authority.is_for(_read(given), who.point):
        raise ValueError(f"{who.name}: a machine of this name is enrolled, and the database lets its key in: take another name, and withdraw {who.name} "
                         "where that is gone")


def enrolling(name: str, kind: str, quota: int) -> str:
    """What makes a role of the database of a machine. No name that members.is_name() lets pass needs a quote."""
    return f"""
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') AND NOT EXISTS (SELECT FROM certdrop.machine WHERE name = '{name}' AND kind = '{kind}') THEN
        RAISE EXCEPTION 'there is a role {name} already, for something else: give the machine another name';
    ELSIF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
        CREATE ROLE "{name}";
    END IF;
    PERFORM certdrop.limits('{name}');
END $$;
ALTER ROLE "{name}" LOGIN;
GRANT certdrop_{kind} TO "{name}";
INSERT INTO certdrop.machine (name, kind, quota) VALUES ('{name}', '{kind}', {quota}) ON CONFLICT (name) DO UPDATE SET quota = excluded.quota;
"""


def shutting(name: str) -> str:
    """What keeps a machine from logging in: committed before all else, for whatever it left there cannot undo that."""
    return f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM certdrop.machine WHERE name = '{name}') THEN
        RAISE EXCEPTION 'no machine {name} is enrolled';
    END IF;
END $$;
ALTER ROLE "{name}" NOLOGIN;
"""


def ending(name: str) -> str:
    """What ends its connections: whatever they hold is free then."""
    return f"SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE usename = '{name}' \\g /dev/null\n"


def orphans() -> str:
    """What ends the connections of roles that are not there any more: one that logged in while its role was being removed."""
    return ("SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity a WHERE usesysid IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.usesysid) \\g /dev/null\n")


def listing(name: str) -> str:
    """What prints a line for each of a host's sites: the name, and what the host said of its certificate, in base64, at most 350 characters."""
    return f"""
\\pset tuples_only on
\\pset format unaligned
SELECT name, translate(encode(convert_to(substring(body from '"cert": ?([{{][^{{}}]{{1,250}}[}}])'), 'UTF8'), 'base64'), E'\\n', '')
    FROM certdrop.state WHERE host = '{name}' ORDER BY name;
"""


def withdrawing(name: str) -> str:
    """What takes away all that it had, and its role."""
    return f"""
{ending(name)}
SET lock_timeout = '20s';
UPDATE certdrop.work SET desk = '', until = '-infinity' WHERE desk = '{name}';
DELETE FROM certdrop.machine WHERE name = '{name}';
DROP ROLE "{name}";
"""


def listed(text: str) -> list[str]:
    """Of what `listing` printed, the certificates: site, SHA-256 and end. A host wrote it: what is none is left out."""
    found = []
    for line in text.splitlines():
        name, _, coded = line.partition("|")
        try:
            cert = json.loads(base64.b64decode(coded))
            sha256, end = cert["sha256"], cert["not_after"]
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            continue
        if spool.is_site_name(name) and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) and type(end) is int and 0 <= end < 1 << 40:
            found.append(f"{name}  {sha256}  {events.stamp(end)}")
    return found


def _withdraw(found: Words) -> int:
    if len(found.names) != 1 or not members.is_name(found.names[0]):
        raise Usage("withdraw needs the name of one machine")
    name = found.names[0]
    path = f"{site.ETC}/fleet.d/{name}.toml"
    if os.path.lexists(path):
        os.rename(path, f"{path}.withdrawn")   # from now on the signer here signs nothing for it
    _psql(found, shutting(name))
    if not os.path.lexists(f"{path}.withdrawn"):
        _write(f"{path}.withdrawn", b"", 0o644)            # a desk: its name is not given to another, either
    certificates = []
    try:
        _psql(found, ending(name), once=False)
        certificates = listed(_psql(found, listing(name)))
    except subprocess.CalledProcessError:
        _say(f"{name}: its certificates cannot be listed; it is shut out all the same", 0)
    try:
        _psql(found, withdrawing(name))
    except subprocess.CalledProcessError:
        words.say(*certificates, to=1)
        return _say(f"{name}: it cannot log in any more, but what it posted stays in the database; the same command again removes it", os.EX_UNAVAILABLE)
    try:
        _psql(found, orphans(), once=False)
    except subprocess.CalledProcessError:
        _say(f"{name}: whether a connection of it is left cannot be seen; restart PostgreSQL, which ends all", 0)
    _say(f"{name}: shut out; remove {path} on the other desks, too" + ("; its certificates, by site, SHA-256 and end:" if certificates else ""), 0)
    words.say(*certificates, to=1)
    return os.EX_OK


def _list(_: Words) -> int:
    for host in members.listed(f"{site.ETC}/fleet.d"):
        found = members.load(f"{site.ETC}/fleet.d", host)
        print(f"{host}  {' '.join(found.names)}  (at most {found.max_sites} sites)")
    return os.EX_OK


def _psql(found: Words, text: str, once: bool = True) -> str:
    """Have psql run this, in one transaction if `once`; what it printed, which nobody else has looked at. Raises CalledProcessError, OSError."""
    argv = [*shlex.split(found.options.get("--psql", PSQL)), "-X", "-q", *(["-1"] if once else []), "-v", "ON_ERROR_STOP=1"]
    done = subprocess.run(argv, input=f"SET client_min_messages = warning;\n{text}".encode(), capture_output=True, check=False, cwd="/")
    if done.stderr.strip():
        words.say(done.stderr.decode("utf-8", "replace").strip()[:LONGEST_TEXT])
    done.check_returncode()
    return done.stdout.decode("utf-8", "replace")


# ---- on a machine that joins

def _join(found: Words) -> int:
    if "--answer" in found.options:
        return _answered(found.options["--answer"])
    if "--sign" in found.options:
        return _sign_again()
    if "--leave" in found.options:
        return _leave()
    if len(found.names) != 1 or not members.is_name(found.names[0]):
        raise Usage("join needs a name: up to 31 of a-z 0-9 -, a letter or digit first")
    kind, name, place = "desk" if "--desk" in found.options else "host", found.names[0], f"{site.ETC}/fleet"
    os.makedirs(place, mode=0o755, exist_ok=True)
    key = "-"
    if kind == "host":
        pending = next((path for path in (f"{place}/sign.key", f"{place}/sign.key.wanted") if os.path.exists(path)), f"{place}/sign.key.wanted")
        if not os.path.exists(pending):
            _write(pending, f"{name} ".encode() + authority.seed() + b"\n", 0o600)
        known, seed = _read(pending).decode().split()
        if known != name:
            raise ValueError(f"this host is {known} already; certdrop-fleet join --leave ends that")
        key = authority.public(seed)
    if not os.path.exists(f"{place}/{kind}.key"):
        _write(f"{place}/{kind}.key", authority.tls_key(), 0o640, pwd.getpwnam(spool.ISSUER).pw_gid)
    print(authority.line(kind, name, key, _read(f"{place}/{kind}.key")))
    return os.EX_OK


def _answered(file: str) -> int:
    """Be in the fleet. What makes the courier sit in the issuer's seat is written last."""
    with open(file, "rb") as stream:
        found = tomllib.loads(stream.read(spool.MAX_REPLY).decode())
    kind, name, place = str(found.get("kind")), str(found.get("name")), f"{site.ETC}/fleet"
    if kind not in ("host", "desk") or not members.is_name(name) or not database.is_place(str(found.get("database"))):
        raise ValueError(f"{file}: not what certdrop-fleet enrol printed")
    pending = f"{place}/sign.key.wanted"
    if kind == "host" and not os.path.exists(f"{place}/sign.key") and not os.path.exists(pending):
        raise ValueError(f"{file}: certdrop-fleet join {name} comes first, on this machine")
    if kind == "host" and _read(pending if os.path.exists(pending) else f"{place}/sign.key").decode().split()[0] != name:
        raise ValueError(f"{file}: it is for {name}, which is not this host")
    checked = [name for name in site.site_names() if dane.is_checked(name)] if kind == "host" else []
    if checked:
        raise ValueError(f'{checked[0]}: tlsa = "{dane.CHECK}" has no effect in a fleet, for the desk orders without looking at this host\'s records; take it '
                         "out of its file first")
    for entry, what in ((f"{kind}.pem", "certificate"), ("ca.pem", "ca")):
        text = str(found.get(what)).lstrip("\n").encode("ascii")
        _write(f"{place}/{entry}", b"".join(_blocks(text)), 0o644)
    if os.path.exists(pending):
        os.rename(pending, f"{place}/sign.key")
    if kind == "host":
        _sign_again()
        _lead_to(str(found.get("validation")), str(found.get("stateless", "")))
    _write(f"{place}/{kind}.toml", f'name = "{name}"\ndatabase = "{found["database"]}"\n'.encode(), 0o644)
    follows = "certdrop-courier --verbose tries it" if kind == "host" else "certdrop-desk --once --verbose tries it"
    return _say(f"{name}: in the fleet, as a {kind}; {follows}", os.EX_OK)


def _lead_to(validation: str, stateless: str = "") -> None:
    """Write the snippet that has nginx lead challenges to the desks, or answer them by the account's key. Raises ValueError."""
    if not site.is_host_name(validation) or (stateless and not members.is_thumbprint(stateless)):
        raise ValueError("the answer names no validation name, or no key of an account")
    if os.path.isdir(os.path.dirname(snippets.FLEET)):
        _write(snippets.FLEET, (STATELESS.format(stateless) if stateless else REDIRECT.format(validation)).encode(), 0o644)
        _have_read(snippets.FLEET)


def _have_read(snippet: str) -> None:
    """Have nginx read a snippet that was changed; where it cannot, say so."""
    try:
        nginx = services.find("nginx")
        nginx.test()
        nginx.reload()
    except (services.Failed, site.ConfigError) as error:
        _say(f"{snippet}: it is changed, and nginx has not read it: {error}; reload nginx when that is mended", 0)


def _sign_again() -> int:
    """Sign what root has posted before there was a key, or by another."""
    from certdrop.admin import posting
    count = posting.sign_again()
    return _say(f"{count} requests are signed", os.EX_OK)


def _leave() -> int:
    place = f"{site.ETC}/fleet"
    for entry in ("host.toml", "sign.key", "sign.key.wanted", "host.key", "host.pem"):
        if os.path.lexists(f"{place}/{entry}"):
            os.unlink(f"{place}/{entry}")
    if os.path.exists(snippets.FLEET) and os.path.exists(snippets.CHALLENGE):
        _write(snippets.FLEET, _read(snippets.CHALLENGE), 0o644)           # nginx includes it
        _have_read(snippets.FLEET)
    return _say("this host is in no fleet any more; certdrop-issue talks with the CA by an account of its own; on a desk: certdrop-fleet withdraw NAME",
                os.EX_OK)


# ---- for all

def _status(found: Words, argv: list[str]) -> int:
    if os.geteuid() == 0 or become.is_due():
        return max(0, become.run(spool.ISSUER if os.geteuid() == 0 else "", [os.path.abspath(sys.argv[0]), *argv], LONGEST))
    from certdrop.fleet import status
    return status.show(next(iter(found.options), ""))


def _blocks(text: bytes) -> list[bytes]:
    try:
        return spool.pem_blocks(text)
    except spool.Refused as refused:
        raise ValueError(f"a certificate in it is none ({refused.reason})") from refused


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(spool.MAX_REPLY)


def _write(path: str, data: bytes, mode: int, group: int = -1) -> None:
    fd = spool.open_directory(os.path.dirname(path))
    try:
        spool.write(fd, os.path.basename(path), data, mode, group)
    finally:
        os.close(fd)


def _say(text: str, code: int) -> int:
    words.say(f"certdrop-fleet: {text}")
    return code

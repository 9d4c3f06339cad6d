"""Reading what other clients left: what only root can change, or one named user, and nothing else. Here `root` is whoever runs the tests."""

from __future__ import annotations

import os
import pathlib
import tempfile

import pytest

from certdrop import spool
from certdrop.importer import clients, files, leftovers
from certdrop.importer.files import Reader, Unreadable


@pytest.fixture
def place(tmp_path):
    """A directory that root alone can write."""
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
def reader():
    """Trusts the tests' own user, and root."""
    return Reader(os.getuid())


def put(path, data=b"x", mode=0o600):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_a_file_is_read(place, reader):
    """With the time it was written, and nobody else who could read it."""
    found = reader.read(put(place / "key", b"secret"))
    assert (found.data, found.readers) == (b"secret", "" if os.getuid() == 0 else f"the user {files.user_name(os.getuid())}")
    assert found.written == int((place / "key").stat().st_mtime)


@pytest.mark.skipif(os.getuid() != 0, reason="whose directories root alone writes, only root can say")
def test_links_of_roots_are_followed(place, reader):
    """certbot's live/NAME/privkey.pem leads to ../../archive/NAME/privkey1.pem; and a directory may be a link, too."""
    put(place / "archive/a/privkey1.pem", b"one")
    (place / "live/a").mkdir(parents=True)
    (place / "live/a/privkey.pem").symlink_to("../../archive/a/privkey1.pem")
    (place / "again").symlink_to(place / "live")
    assert reader.read(str(place / "live/a/privkey.pem")).data == b"one"
    assert reader.read(str(place / "again/a/../a/privkey.pem")).data == b"one"


@pytest.mark.skipif(os.getuid() != 0, reason="makes other users' files")
@pytest.mark.parametrize("link", ["key", "directory/key"])
def test_links_of_others_are_not(place, link):
    """Not even where their user is trusted: it would choose root's files for root."""
    put(place / "secret/key")
    theirs = place / "theirs"
    theirs.mkdir()
    (theirs / "key").symlink_to(place / "secret/key")
    (theirs / "directory").symlink_to(place / "secret")
    os.chown(theirs, 4711, -1)
    with pytest.raises(Unreadable, match="--owner 4711"):
        Reader().read(str(theirs / link))
    with pytest.raises(Unreadable, match="not followed"):
        Reader(4711).read(str(theirs / link))


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_others_write_is_refused(place, reader, mode):
    """Whoever may write there may put another file in the place."""
    path = put(place / "open/key")
    (place / "open").chmod(mode)
    with pytest.raises(Unreadable, match="others can write there"):
        reader.read(path)
    with pytest.raises(Unreadable, match="others can write there"):
        reader.entries(str(place / "open"))


def test_a_sticky_directory_is_not(place, reader):
    """In /tmp nobody replaces another's file; but a link there is anybody's."""
    path = put(place / "sticky/key")
    (place / "sticky").chmod(0o1777)
    (place / "sticky/link").symlink_to("key")
    assert reader.read(path).data == b"x"
    with pytest.raises(Unreadable, match="not followed"):
        reader.read(str(place / "sticky/link"))


@pytest.mark.parametrize("what, why", [("fifo", "is no plain file"), ("directory", "is no plain file"), ("socket", "is no plain file"),
                                       ("writable", "can be written by others"), ("hard link", "a hard link"), ("huge", "is too long")])
def test_odd_files_are_refused(place, reader, what, why):
    """None of them is waited for, or read."""
    path = place / "odd"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "socket":
        import socket
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        put(path, b"x" * (spool.MAX_REPLY + 1) if what == "huge" else b"x", 0o666 if what == "writable" else 0o600)
        if what == "hard link":
            os.link(path, place / "other")
    with pytest.raises(Unreadable, match=why):
        reader.read(str(path))


def test_what_is_not_there(place, reader):
    """Is no trouble where it is looked for, and an error where it was named."""
    assert (reader.text(str(place / "none")), reader.entries(str(place / "none"))) == ("", [])
    put(place / "file")
    assert (reader.text(str(place / "file/none")), reader.entries(str(place / "file"))) == ("", [])
    with pytest.raises(FileNotFoundError):
        reader.read(str(place / "none/none"))


@pytest.mark.skipif(os.getuid() != 0, reason="makes loops where root alone writes")
def test_a_loop_of_links_ends(place, reader):
    """As the kernel ends it."""
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    for path in ("a", "a/key"):
        with pytest.raises(Unreadable, match="too many links"):
            reader.read(str(place / path))


@pytest.mark.skipif(os.getuid() != 0, reason="makes files of other groups, below directories that are closed to others")
@pytest.mark.parametrize("mode, group, below, readers", [
    (0o644, 0, 0o755, "every user"), (0o644, 0, 0o700, ""), (0o640, 4711, 0o755, "the group 4711"), (0o640, 0, 0o755, ""), (0o640, 4711, 0o700, "")])
def test_who_could_read_a_key(reader, mode, group, below, readers):
    """lego's keys are 0644 in a directory that only root enters: nobody reads them."""
    with tempfile.TemporaryDirectory() as name:                # not below pytest's own, which nobody else enters
        os.chmod(name, 0o755)
        path = put(pathlib.Path(name, "keys/key"), mode=mode)
        os.chown(path, -1, group)
        pathlib.Path(name, "keys").chmod(below)
        assert reader.read(path).readers == readers


def client(kind, place, reader, *lines):
    """What a client's class sees."""
    found = kind(reader, str(place), lines, "https://ca.test/dir")
    found.look()
    return found


@pytest.mark.parametrize("name, data", [
    ("renewal/a.test.conf", b"\xff\xfe\0server = [\n= = =\n[[["), ("accounts/ca.test/dir/0/regr.json", b"{{{ not json \0"),
    ("accounts/ca.test/dir/0/regr.json", b'{"contact": ["mailto:' + b"a" * 100000 + b'@x"]}')])
def test_broken_files_of_certbots(place, reader, name, data):
    """Cost what they would have said, and nothing else."""
    put(place / "live/a.test/privkey.pem")
    put(place / "accounts/ca.test/dir/0/private_key.json")
    put(place / name, data)
    found = client(clients.Certbot, place, reader)
    assert [one.name for one in found.found] == ["a.test"]
    assert [(one.ca, one.contact) for one in found.accounts] == [("https://ca.test/dir", "")]


def test_a_directory_that_cannot_be_read_is_a_trouble(place, reader):
    """It is told, and the rest of the client is looked at."""
    put(place / "live/a.test/privkey.pem")
    put(place / "accounts/x")
    (place / "accounts").chmod(0o777)
    found = client(clients.Certbot, place, reader)
    assert len(found.found) == 1 and "others can write there" in found.troubles[0]


def test_certbots_settings(place, reader):
    """The CA, the account that is used most, hooks, and that another challenge proved the names."""
    put(place / "live/a.test/privkey.pem")
    put(place / "live/README")
    put(place / "renewal/a.test.conf", b"[renewalparams]\nserver = https://ca.test/dir\naccount = bb\nauthenticator = dns-ovh\nrenew_hook = /x\n")
    for name in ("aa", "bb"):
        put(place / f"accounts/ca.test/dir/{name}/private_key.json")
    put(place / "accounts/ca.test/dir/bb/regr.json", b'{"body": {"contact": ["mailto:a@b.test"]}}')
    put(place / "renewal-hooks/deploy/reload.sh")
    found = client(clients.Certbot, place, reader)
    assert (found.found[0].ca, found.accounts[0].path[-19:], found.accounts[0].contact) == ("https://ca.test/dir", "bb/private_key.json", "a@b.test")
    assert "dns-ovh" in found.found[0].remarks[0]
    assert [hook.rpartition("/")[2] for hook in found.hooks] == ["x", "reload.sh"]


def test_acme_sh(place, reader):
    """Two kinds of key for one name, the CA that its configuration notes, and the path of an account's CA."""
    for name in ("a.test", "a.test_ecc", "noise"):
        put(place / f"{name}/fullchain.cer")
    for name in ("a.test", "a.test_ecc"):
        put(place / f"{name}/a.test.key")
    put(place / "a.test_ecc/a.test.conf", b"Le_Domain='a.test'\nLe_API='https://ca.test/v2/DV90'\nLe_Webroot='dns_ovh'\nLe_ReloadCmd='__ACME_BASE64__x'\n")
    put(place / "account.conf", b"ACCOUNT_EMAIL='a@b.test'\n")
    put(place / "ca/ca.test/v2/DV90/account.key")
    found = client(clients.AcmeSh, place, reader)
    assert [(one.name, one.ca) for one in found.found] == [("a.test", clients.LETSENCRYPT), ("a.test_ecc", "https://ca.test/v2/DV90")]
    assert [(one.ca, one.contact) for one in found.accounts] == [("https://ca.test/v2/DV90", "a@b.test")]
    assert len(found.found[1].remarks) == len(found.hooks) == 1


def test_lego_without_bundle(place, reader):
    """The intermediate lies in a file of its own then."""
    leaf = b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"
    for name, data in (("a.test.key", b""), ("a.test.crt", leaf), ("a.test.issuer.crt", leaf), ("b.test.key", b""), ("b.test.crt", leaf * 2)):
        put(place / "certificates" / name, data)
    found = client(clients.Lego, place, reader)
    assert [[pathlib.Path(path).name for path in one.chains] for one in found.found] == [["a.test.crt", "a.test.issuer.crt"], ["b.test.crt"]]


def test_dehydrateds_account(place, reader):
    """Its CA is the directory's name, in base64url, with the line's end that a shell put there; noise is passed over."""
    for name in ("aHR0cHM6Ly9jYS50ZXN0L2Rpcgo", "!!!", "bm8", "_-_"):
        put(place / f"accounts/{name}/account_key.pem")
    assert [one.ca for one in client(clients.Dehydrated, place, reader).accounts] == ["https://ca.test/dir"]


def test_lacmes_sections(place, reader):
    """A file may have several certificates; a key that GnuPG keeps stays."""
    put(place / "a.key")
    put(place / "chain.pem")
    put(place / "lacme-certs.conf", b"#[no]\n[a]\ncertificate-key = a.key\ncertificate-chain = chain.pem\nnotify = /bin/true\n[b]\ncertificate-key = x\n"
        b"[c]\n  certificate-key=a.key\n  certificate=chain.pem\n[d]\ncertificate-key = a.key\ncertificate-chain = missing\n")
    put(place / "lacme-accountd.conf", b"privkey = gpg:/etc/lacme/account.key.gpg\n")
    found = client(clients.Lacme, place, reader)
    assert [(one.name, one.chains) for one in found.found] == [("a", [f"{place}/chain.pem"]), ("c", [f"{place}/chain.pem"])]
    assert found.accounts[0].why and found.hooks == ["a: notify = /bin/true"]


def test_another_place_by_its_line(place, reader):
    """Where a client is told on its command line; and once, where that is the usual one."""
    line = f"root uacme -v -c {place}/ issue a.test"
    assert clients.Uacme.where(reader, [line, f"lego --path {place}/none run"])[-1:] == [str(place)]
    assert clients.Lego.where(reader, [line, f"lego --path {place}/none run"])[-1:] != [f"{place}/none"]
    assert clients.AcmeTiny.where(reader, [line]) == [""]


def test_acme_tiny_by_its_line(place, reader):
    """What it is run with says where things are; a loop's variable says in which directory at least."""
    for name in ("a.key", "a.csr", "a.crt"):
        put(place / name)
    line = f"cd /x && acme-tiny --account-key {place}/account.key --csr {place}/a.csr --directory-url https://ca.test/dir > {place}/a.crt.tmp || exit"
    found = client(clients.AcmeTiny, "", reader, line, f"acme_tiny.py --csr {place}/many/$name.csr", "something --csr /else/where")
    assert [(one.key, one.chains) for one in found.found] == [(f"{place}/a.key", [f"{place}/a.crt"])]
    assert [(one.path, one.ca) for one in found.accounts] == [(f"{place}/account.key", "https://ca.test/dir")]
    assert found.directories == {str(place), f"{place}/many"}


def test_cron_and_what_it_runs(place, monkeypatch):
    """An entry counts as a client's where it names it, or a script that does; lines that go on are one."""
    script = put(place / "renew.sh", b"#!/bin/sh\n# acme-tiny\nacme-tiny \\\n  --csr /x/a.csr\n", 0o755)
    put(place / "crontab", f"# certbot\n1 2 * * * root {script}\n3 4 * * * root certbot -q renew\n@daily root uacme issue x\n".encode())
    monkeypatch.setattr(leftovers, "_in", lambda path: [str(place / "crontab")] if path == "/etc/cron.d" else [])
    lines = leftovers.cron_lines()
    entries = [leftovers.cron_entries(lines, kind.words) for kind in (clients.AcmeTiny, clients.Certbot, clients.Dehydrated)]
    assert [[entry.partition(", line ")[2].partition(":")[0] for entry in found] for found in entries] == [["2"], ["3"], []]
    assert "acme-tiny   --csr /x/a.csr" in [line.text for line in lines]
    assert [line.user for line in lines if "renew.sh" in line.text] == ["root"]


def test_other_services_that_use_the_files(place, monkeypatch):
    """They are named, for they would go on with files that nobody renews."""
    put(place / "main.cf", b"# /old/live/a/fullchain.pem\nsmtpd_tls_cert_file=/old/live/a/fullchain.pem\nsmtpd_tls_key_file = /elsewhere/key\n")
    monkeypatch.setattr(leftovers, "OTHERS", (str(place / "main.cf"),))
    assert leftovers.other_uses({"/old/live/a": "a.test"}) == [f"{place}/main.cf, line 2: /old/live/a/fullchain.pem (now a.test)"]

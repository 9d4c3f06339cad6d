"""certdrop-account's words, and when a key is old enough."""

from __future__ import annotations

import os
import time

import pytest

from certdrop.config import general, site
from certdrop.issuer import manage
from certdrop.signer import jose


@pytest.mark.parametrize("argv", [
    [], ["revoke"], ["--yes"], ["show", "--yes"], ["show", "x"], ["register", "--due"], ["rollover", "--yes"], ["contact", "--directory"],
    ["deactivate", "-y"]])
def test_what_is_not_understood(argv, capfd):
    """Exit code 64, and where help is."""
    assert manage.main(argv) == os.EX_USAGE
    place = " ".join(["certdrop-account", *(word for word in argv[:1] if word in manage.LINE.verbs)])
    said = capfd.readouterr().err
    assert said.startswith("certdrop-account: ") and said.endswith(f" {place} --help shows how\n") and said.count("\n") == 1


@pytest.mark.parametrize("argv, directory, yes, due", [
    (["show"], "", False, False), (["register", "--yes", "--directory", "zerossl"], "zerossl", True, False),
    (["rollover", "--directory=https://ca.test/dir", "--due"], "https://ca.test/dir", False, True)])
def test_what_is_understood(argv, directory, yes, due):
    """A CA in two ways of writing, and each verb's own flags."""
    found = manage.Options(manage.LINE.read(argv))
    assert (found.directory, found.yes, found.due) == (directory, yes, due)


@pytest.mark.parametrize("limit, days, due", [("", 5000, False), ("180d", 179, False), ("180d", 181, True), ("1d", None, False)])
def test_when_a_key_is_old(tmp_path, monkeypatch, limit, days, due):
    """Older than account_key_max_age; without a key, or a limit, never."""
    monkeypatch.setattr(site, "STATE", str(tmp_path))
    os.mkdir(tmp_path / "account")
    config = general.Config()
    config.account_key_max_age = limit
    if days is not None:
        path = tmp_path / f"account/{jose.entry(config.directory_url)}.key"
        path.write_text("")
        os.utime(path, (time.time() - days * 86400,) * 2)
    assert manage._is_due(config) is due


def test_a_thumbprint():
    """RFC 7638, section 3.1: its own example."""
    n = ("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64t"
         "Z_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbO"
         "pbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")
    assert manage.thumbprint({"e": "AQAB", "kty": "RSA", "n": n}) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

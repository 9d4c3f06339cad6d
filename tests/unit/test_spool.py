"""The contract: the grammar and the atomic write, against hostile input."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certdrop import foreign, spool, tokens

GOOD = b"-----BEGIN CERTIFICATE-----\n" + b"A" * 64 + b"\n" + b"B" * 20 + b"\n-----END CERTIFICATE-----\n"


def test_what_is_written_is_read(door: int) -> None:
    """A file has the mode asked for whatever the umask, and its content, and leaves no temporary."""
    spool.write(door, "a", b"content", 0o640)
    assert foreign.read(door, "a", os.getuid()) == b"content"
    assert os.stat("a", dir_fd=door).st_mode & 0o777 == 0o640
    assert os.listdir(door) == ["a"]


def test_a_temporary_of_a_killed_run_is_no_hindrance(door: int, tmp_path: pathlib.Path) -> None:
    """What a killed run left is replaced; a link planted in its place is not written through."""
    (tmp_path / "other").write_bytes(b"untouched")
    os.symlink("other", tmp_path / ".a.new")
    spool.write(door, "a", b"content")
    assert (tmp_path / "other").read_bytes() == b"untouched"
    assert foreign.read(door, "a", os.getuid()) == b"content"


def test_blocks_are_rewrapped() -> None:
    """Blocks come out in lines of 64, whatever the lines were; empty lines between are passed over."""
    odd = b"-----BEGIN CERTIFICATE-----\n" + b"A" * 30 + b"\n" + b"A" * 34 + b"B" * 20 + b"\n-----END CERTIFICATE-----\n"
    assert spool.pem_blocks(odd) == [GOOD]
    assert spool.pem_blocks(GOOD + b"\n" + GOOD) == [GOOD, GOOD]


@pytest.mark.parametrize("data", [
    b"", b"\n", GOOD[:-1], GOOD + b"x", b" " + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD + b"\0", GOOD.replace(b"A", b"\0", 1),
    GOOD.replace(b"CERTIFICATE", b"PRIVATE KEY"), GOOD + GOOD.replace(b"CERTIFICATE", b"PRIVATE KEY"), GOOD.replace(b"A" * 64, b"A" * 77),
    GOOD.replace(b"B" * 20, b"B" * 19), GOOD.replace(b"B" * 20, b"B" * 17 + b"==="), GOOD.replace(b"B" * 20, b""), b"subject=x\n" + GOOD,
    GOOD.replace(b"A" * 64 + b"\n", b"A" * 62 + b"==\n"), b"\xef\xbb\xbf" + GOOD])
def test_the_grammar_refuses(data: bytes) -> None:
    """Certificates and nothing else: no text, no key, no NUL, no carriage return, nothing cut short."""
    with pytest.raises(spool.Refused) as caught:
        spool.pem_blocks(data)
    assert caught.value.reason == "grammar"


def test_cut_anywhere_is_refused() -> None:
    """A reply cut short at any byte is no reply, but where it is cut between two certificates."""
    whole = GOOD + GOOD
    taken = []
    for end in range(len(whole)):
        try:
            taken.append((end, len(spool.pem_blocks(whole[:end]))))
        except spool.Refused:
            pass
    assert taken == [(len(GOOD), 1)]


def test_ten_certificates_at_most() -> None:
    """The count is limited before anything is decoded."""
    assert len(spool.pem_blocks(GOOD * 10)) == 10
    with pytest.raises(spool.Refused) as caught:
        spool.pem_blocks(GOOD * 11)
    assert caught.value.reason == "count"


@given(st.binary(max_size=300))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    """Whatever stands in a reply, the grammar answers with blocks or a reason, and the blocks answer to themselves."""
    try:
        blocks = spool.pem_blocks(b"-----BEGIN CERTIFICATE-----\n" + data + b"-----END CERTIFICATE-----\n")
    except spool.Refused as refusal:
        assert refusal.reason in spool.REASONS
    else:
        assert [spool.pem_blocks(block) for block in blocks] == [[block] for block in blocks]


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "A", "a\n", "-a", "a" * 201, "a b", "a@b", "ä"])
def test_names_that_are_no_sites(name: str) -> None:
    """No name that could be an option, a path, a hidden file or two words."""
    assert not spool.is_site_name(name)


def test_a_new_site_is_not_called_as_a_file_of_the_issuer() -> None:
    """Its ledger would be the list of revocations."""
    assert spool.is_site_name("revocations") and not spool.may_name_a_new_site("revocations")
    assert spool.may_name_a_new_site("revocations.example.org") and not spool.may_name_a_new_site("../x")


def test_entries() -> None:
    """The names in the spool, both ways."""
    assert spool.entry("example.org", 8, "csr") == "example.org@0008.csr"
    assert spool.parse_entry("example.org@0008.csr") == ("example.org", 8, "csr")
    assert spool.parse_entry("a@123456.pem") == ("a", 123456, "pem")
    for odd in ("a@8.csr", "a@0008.key", "a@0008.csr\n", ".a@0008.csr.new", "../a@0008.csr", "a@0008", "a@٠٠٠٨.csr", "a@1234567890.csr", "@0008.csr",
                "a@b@0008.csr", "a@0008.csr.now", "a@008.csr", "a@00008.csr", "a@+008.csr", "a" * 201 + "@0008.csr", "a@0008.", "a@.csr"):
        assert spool.parse_entry(odd) is None
    assert spool.parse_entry("a" * 200 + "@123456789.revoke") == ("a" * 200, 123456789, "revoke")
    assert [length for length in range(200) if tokens.is_token("a" * length)] == list(range(16, 129))


_SITE = "[a-z0-9][a-z0-9._-]{0,199}"
_GRAMMARS = {spool.is_site_name: _SITE, tokens.is_token: "[A-Za-z0-9_-]{16,128}",
             spool.parse_entry: f"({_SITE})@([0-9]{{4}}|[1-9][0-9]{{4,8}})\\.(csr|now|revoke|pem)"}


@pytest.mark.parametrize("check", _GRAMMARS)
@given(st.data())
def test_names_are_as_the_grammar_says(check: Callable[[str], object], data: st.DataObject) -> None:
    """The rules that certdrop-spool(5) gives as patterns: what fits is taken, and so is nothing that was damaged, digits of other scripts among it."""
    pattern = _GRAMMARS[check]
    text = data.draw(st.from_regex(pattern, fullmatch=True) | st.text(st.sampled_from("a0Z@._-\u0661\n/\udc80"), max_size=20))
    at = data.draw(st.integers(0, len(text)))
    for shape in (text, text + "\n", text[:at] + data.draw(st.text(max_size=2)) + text[at:], text * 30):
        found = re.fullmatch(pattern, shape)
        assert bool(check(shape)) is (found is not None)
        if found and check is spool.parse_entry:
            assert check(shape) == (found[1], int(found[2]), found[3])

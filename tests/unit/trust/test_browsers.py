"""What browsers think of a chain, and whose it is: by roots that are made here."""

from __future__ import annotations

import datetime
import pathlib
import sys

import pytest
from cryptography import x509

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "hostile"))

from forger import Forger, Pair, authority, new_key, pem, now  # noqa: E402

from certdrop.config import general, site  # noqa: E402
from certdrop.trust import roots, verify  # noqa: E402
from certdrop.trust.browsers import Browsers  # noqa: E402

NAMES = ["example.org"]
PUBLIC, PRIVATE = Forger(), Forger()
PRIVATE.root = authority("Private Root")                   # of another name: by names alone OpenSSL looks for who signed
PRIVATE.intermediate = authority("Private Intermediate", PRIVATE.root)


class Host:
    """A system's store with one root, and a certdrop.toml."""

    def __init__(self, top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top, self.config = top, general.Config()
        monkeypatch.setattr(site, "STORE", str(self.file("store", PUBLIC.root[0])))
        self.config.trust_roots = site.STORE

    def file(self, name: str, *certificates: x509.Certificate) -> pathlib.Path:
        """A file of roots."""
        path = self.top / f"{name}.pem"
        path.write_bytes(pem(*certificates))
        return path

    def trust(self, *certificates: x509.Certificate) -> None:
        """These are trust_roots."""
        self.config.trust_roots = str(self.file("mine", *certificates))

    def refusal(self, chain: bytes) -> str:
        """As seen by a run of its own."""
        return Browsers(self.config).refusal(chain)

    def is_foreign(self, chain: bytes, of_ours: bool | None = None) -> bool:
        """The same."""
        return Browsers(self.config).is_foreign(chain, of_ours)


@pytest.fixture
def host(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def chain(ca: Forger) -> bytes:
    """A leaf and the intermediate above it."""
    return pem(ca.leaf(new_key().public_key(), NAMES), ca.intermediate[0])


def staging() -> tuple[bytes, Pair]:
    """(a chain of a CA that bears staging's mark, its root)."""
    root = authority("(STAGING) Pretend Pear X1")
    between = authority("(STAGING) Counterfeit Cashew R10", root)
    ca = Forger()
    return pem(ca.leaf(new_key().public_key(), NAMES, signer=between), between[0]), root


def test_what_every_system_trusts_is_fine(host: Host) -> None:
    """Whatever else trust_roots names: browsers have the system's roots. Nor is it another CA's, as far as the roots can tell."""
    assert (host.refusal(chain(PUBLIC)), host.is_foreign(chain(PUBLIC))) == ("", False)
    host.trust(PRIVATE.root[0])
    assert host.refusal(chain(PUBLIC)) == ""
    assert host.is_foreign(chain(PUBLIC))                  # a private CA is configured, and this is none of its
    host.trust(PRIVATE.root[0], PUBLIC.root[0])
    assert not host.is_foreign(chain(PUBLIC)) and not host.is_foreign(chain(PRIVATE))


def test_a_private_ca_is_fine_where_its_roots_are_configured(host: Host) -> None:
    """And refused where they are not, with the file that lacks them."""
    said = host.refusal(chain(PRIVATE))
    assert said.startswith(f"leads to none of the roots in {site.STORE} (") and host.is_foreign(chain(PRIVATE))
    host.trust(PRIVATE.root[0])
    assert (host.refusal(chain(PRIVATE)), host.is_foreign(chain(PRIVATE))) == ("", False)


def test_the_issuers_note_is_believed_over_the_roots(host: Host) -> None:
    """Both CAs may lead to the same roots, and a CA's new root may be missing here: then it would be ordered again and again."""
    assert host.is_foreign(chain(PUBLIC), False) and not host.is_foreign(chain(PRIVATE), True)


def test_what_staging_issued_is_refused_although_its_roots_are_there(host: Host) -> None:
    """Where staging is configured; and where it no longer is, by the mark that its issuers bear. In the first case nothing else would come of asking."""
    given, root = staging()
    host.trust(root[0], PUBLIC.root[0])
    assert host.refusal(given) == "is of a staging CA, which is for trying things" and host.is_foreign(given)
    host.config.directory = "letsencrypt-staging"
    assert host.refusal(given) and not host.is_foreign(given)
    host.trust(PRIVATE.root[0])
    assert "staging" in host.refusal(chain(PRIVATE)) and host.refusal(chain(PUBLIC)) == ""
    host.config.trust_roots = site.STORE                   # its roots were never fetched
    assert host.refusal(given) and not host.is_foreign(given)


def test_a_cross_signed_chain_is_the_same_ca(host: Host) -> None:
    """A CA's second root, cross-signed by the first, and another intermediate: it leads to a root that is trusted."""
    second = authority("Second Root")
    cross = authority("Second Root", PUBLIC.root, key=second[1])
    between = authority("Another Intermediate", second)
    given = pem(PUBLIC.leaf(new_key().public_key(), NAMES, signer=between), between[0], cross[0])
    assert (host.refusal(given), host.is_foreign(given)) == ("", False)


def test_an_intermediate_that_is_missing_or_has_ended_is_refused(host: Host) -> None:
    """What a browser meets is the chain as it is served, today."""
    leaf = PUBLIC.leaf(new_key().public_key(), NAMES)
    assert host.refusal(pem(leaf))
    ended = authority("Ended", PUBLIC.root, end=now() - datetime.timedelta(hours=1))
    assert "expired" in host.refusal(pem(PUBLIC.leaf(new_key().public_key(), NAMES, signer=ended), ended[0]))


def test_roots_are_read_anew_in_each_run_and_once_in_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that comes is seen by the next run; within a run each file is read once, and each chain looked at once."""
    run, given = Browsers(host.config), chain(PRIVATE)
    host.trust(PUBLIC.root[0])
    seen: list[object] = []
    looked = verify.refusal
    monkeypatch.setattr(verify, "refusal", lambda chain, store: seen.append(store) or looked(chain, store))
    assert run.refusal(given) and run.refusal(given) and len(seen) == len(set(map(id, seen))) == 2      # trust_roots, and the system's
    host.trust(PRIVATE.root[0])
    assert run.refusal(given) and host.refusal(given) == ""


def test_what_many_sites_have_above_is_parsed_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaf is, however often it is looked at, and what stands above it for all of them together; a chain without any certificate is said."""
    run, parsed = Browsers(host.config), list[bytes]()
    run.load()
    below = [pem(PUBLIC.leaf(new_key().public_key(), NAMES)) for _ in range(3)]
    real = verify.certificate
    monkeypatch.setattr(verify, "certificate", lambda block: parsed.append(block) or real(block))
    for leaf in below:
        given = leaf + pem(PUBLIC.intermediate[0])
        assert run.refusal(given) == run.refusal(given) == "" and not run.is_foreign(given, None)
    assert len(parsed) == len(set(parsed)) == 4
    for nothing in (b"", b"no certificate"):
        with pytest.raises(ValueError):
            run.refusal(nothing)


def test_files_of_roots_that_cannot_be_used(host: Host) -> None:
    """None, an empty one, and nonsense are said, not passed over."""
    host.config.trust_roots = str(host.top / "none.pem")
    with pytest.raises(OSError):
        host.refusal(chain(PUBLIC))
    for text in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        (host.top / "none.pem").write_text(text)
        with pytest.raises(ValueError):
            host.refusal(chain(PUBLIC))
    with pytest.raises(ValueError):
        verify.certificates(b"-----END CERTIFICATE-----")


def test_where_a_certificate_came_from() -> None:
    """Only the note on this very certificate tells; another one's, and none, tell nothing."""
    config = general.Config()
    url = config.directory_url
    assert roots.is_of([config.directory_url], url, "aa", "aa") is True and roots.is_of([config.directory_url], "https://ca.example.org/", "aa", "aa") is False
    assert roots.is_of([config.directory_url], url, "bb", "aa") is None and roots.is_of([config.directory_url], "", "", "aa") is None

"""CAs by name, the roots that belong to one, and the age of an account's key: certdrop.toml as it is read."""

from __future__ import annotations

import os

import pytest

from certdrop.config import general, site
from certdrop.trust import roots

STAGING = site.DIRECTORIES["letsencrypt-staging"]


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """certdrop.toml with these lines, read."""
    monkeypatch.setattr(site, "ETC", str(tmp_path))
    os.mkdir(tmp_path / "roots.d")

    def read(*lines: str) -> general.Config:
        (tmp_path / "certdrop.toml").write_text("\n".join(lines) + "\n")
        return general.load_config()
    return read


@pytest.mark.parametrize("name", ["letsencrypt", "letsencrypt-staging", "zerossl", "google", "sslcom", "actalis"])
def test_a_ca_by_its_name(configured, name):
    """Is its directory's https URL; a dry run asks Let's Encrypt's staging in the place of Let's Encrypt alone."""
    config = configured(f'directory = "{name}"')
    assert config.directory_url.startswith("https://")
    assert config.staging_url == (STAGING if name.startswith("letsencrypt") else config.directory_url)


@pytest.mark.parametrize("directory, entry", [
    ("letsencrypt-staging", "letsencrypt-staging"), (STAGING, "letsencrypt-staging"), (STAGING, "acme-staging-v02.api.letsencrypt.org"),
    ("https://ca.example.org:14000/dir", "ca.example.org:14000"), ("https://ca.example.org:14000/dir", "ca.example.org"),
    ("https://ca.example.org/dir", "ca.example.org"), ("https://[::1]:14000/dir", "[::1]"), ("https://[::1]/dir", "[::1]")])
def test_a_cas_own_roots(configured, tmp_path, directory, entry):
    """Stand in for the system's where they are there and nothing else is configured; another CA's do not."""
    line = f'directory = "{directory}"'
    assert configured(line).trust_roots == site.STORE
    (tmp_path / f"roots.d/{entry}.pem").write_text("")
    assert configured(line).trust_roots == f"{tmp_path}/roots.d/{entry}.pem"
    assert configured(line, 'trust_roots = "/etc/ssl/mine.pem"').trust_roots == "/etc/ssl/mine.pem"
    assert configured('directory = "zerossl"').trust_roots == site.STORE


def test_what_is_missing_for_stagings_certificates(configured, tmp_path):
    """Which files to fetch, and where to; nothing where they are there, or for another CA."""
    text = roots.missing(configured('directory = "letsencrypt-staging"'))
    assert "https://letsencrypt.org/certs/staging/" in text and text.endswith(f"> {tmp_path}/roots.d/letsencrypt-staging.pem")
    assert roots.missing(configured(f'directory = "{STAGING}"'))
    (tmp_path / "roots.d/letsencrypt-staging.pem").write_text("")
    assert roots.missing(configured('directory = "letsencrypt-staging"')) == ""
    assert roots.missing(configured('directory = "letsencrypt"')) == roots.missing(general.Config()) == ""


@pytest.mark.parametrize("age, right", [("", True), ("180d", True), ("renewal", False), ("0d", False), ("6 months", False)])
def test_the_age_of_an_accounts_key(configured, age, right):
    """In days, or nothing."""
    if right:
        assert configured(f'account_key_max_age = "{age}"').account_key_max_age == age
        return
    with pytest.raises(site.ConfigError):
        configured(f'account_key_max_age = "{age}"')

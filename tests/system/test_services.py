"""Services beside nginx, the real ones: a copy of the pair where each needs it, test, reload and handshake, and the way back.

Runs on a stage with the set `services` (tests/stage/packages.services); what a stage does not have is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import time
from typing import Iterator

import pytest
import world as stage
from conftest import STATE, Host
from forger import INSTALL, Case, Forger

COPIES = "/etc/certdrop-copies"
SERVICES = "/etc/certdrop/services.d"
DEPLOY = "/usr/local/sbin/deploy-certificates"


def needs(program: str) -> pytest.MarkDecorator:
    """Skip where the stage does not have a service."""
    return pytest.mark.skipif(not os.path.exists(program), reason=f"no {program} on this stage: see packages.services")


@pytest.fixture(scope="module")
def forger() -> Forger:
    """One CA for all of these tests."""
    return Forger()


@pytest.fixture
def case(host: Host, forger: Forger) -> Iterator[Case]:
    """A site that is added, and a directory for copies."""
    forger.trust(host)
    os.makedirs(COPIES, mode=0o755, exist_ok=True)
    found = Case(host, forger)
    yield found
    configure(found, [])
    host.run("certdrop", "remove", found.name, code=0)
    shutil.rmtree(COPIES)


def configure(case: Case, services: list[str], *copies: dict[str, str]) -> None:
    """Write the site's file."""
    tables = "".join("[[copy]]\n" + "".join(f'{key} = "{value}"\n' for key, value in copy.items()) for copy in copies)
    stage.write(f"/etc/certdrop/sites.d/{case.name}.toml", f'domains = ["{case.name}"]\nservices = {services}\n'.replace("'", '"') + tables)


def combined(name: str) -> dict[str, str]:
    """One PEM with all of it, for a daemon that reads it as root."""
    return {"path": f"{COPIES}/{name}.pem", "owner": "root", "group": "root", "mode": "0600", "what": "combined"}


def in_copy(case: Case) -> str:
    """The fingerprint of the certificate in the combined PEM."""
    key, begin, rest = stage.read(f"{COPIES}/{case.name}.pem").partition("-----BEGIN CERTIFICATE-----")
    assert key.startswith("-----BEGIN PRIVATE KEY-----")
    return stage.fingerprint(begin + rest)


def run(*argv: str) -> None:
    """Run a command that must do well; what it starts goes on without our descriptors."""
    with open("/tmp/services.log", "ab") as log:
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)


def mail_shows(port: int, protocol: str) -> str:
    """What openssl sees there, after STARTTLS where a protocol is named."""
    more = ["-starttls", protocol] if protocol else []
    done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *more], input="", capture_output=True, text=True, timeout=10, check=False)
    return stage.fingerprint(done.stdout) if "BEGIN CERTIFICATE" in done.stdout else ""


HAPROXY = """\
global
    user haproxy
    group haproxy
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend tls
    bind 127.0.0.20:443 ssl crt {copies}/
    http-request return status 200
{more}"""


@pytest.fixture
def free_port(host: Host) -> Iterator[None]:
    """Port 443 without nginx, which other tests have listen on all addresses."""
    host.world.nginx.stop()
    yield
    if not host.world.nginx.pid():
        host.world.nginx.start()


@pytest.fixture
def haproxy(free_port: None, case: Case) -> Iterator[Case]:
    """A site that haproxy serves, from its placeholder's copy on."""
    configure(case, ["haproxy"], combined(case.name))
    case.host.run(INSTALL, code=0)
    stage.write("/etc/haproxy/haproxy.cfg", HAPROXY.format(copies=COPIES, more=""))
    run("service", "haproxy", "start")
    stage.wait_listening(443)
    yield case
    stage.write("/etc/haproxy/haproxy.cfg", HAPROXY.format(copies=COPIES, more=""))
    run("service", "haproxy", "stop")


def haproxy_shows(case: Case) -> str:
    """The fingerprint that haproxy shows."""
    return stage.fingerprint(stage.served_certificate(case.name, "127.0.0.20"))


@needs("/usr/sbin/haproxy")
def test_haproxy_serves_a_combined_copy(haproxy: Case) -> None:
    """haproxy starts with the placeholder's copy, and each certificate after it is copied, reloaded, shown and proven."""
    seen = {haproxy_shows(haproxy)}
    for _ in range(2):
        assert haproxy.install() == haproxy.host.proven(haproxy.name)
        assert haproxy_shows(haproxy) == in_copy(haproxy) == haproxy.host.on_disk(haproxy.name)
        seen.add(haproxy_shows(haproxy))
    assert len(seen) == 3
    assert stat.S_IMODE(os.stat(f"{COPIES}/{haproxy.name}.pem").st_mode) == 0o600


@needs("/usr/sbin/haproxy")
def test_haproxy_with_a_broken_configuration(haproxy: Case) -> None:
    """Neither live nor the copy changes, and haproxy's own words are told."""
    number = haproxy.install()
    stage.write("/etc/haproxy/haproxy.cfg", HAPROXY.format(copies=COPIES, more="bogus line\n"))
    haproxy.install(code=os.EX_TEMPFAIL)
    assert haproxy.standing() == (number, number, number + 2)
    assert haproxy_shows(haproxy) == in_copy(haproxy)
    assert "unknown keyword 'bogus'" in haproxy.notes["error"] and "not this certificate's fault" in haproxy.notes["error"]


@needs("/usr/sbin/haproxy")
def test_haproxy_that_does_not_reload(haproxy: Case) -> None:
    """The copy goes back together with live."""
    number, service = haproxy.install(), stage.read(f"{SERVICES}/haproxy.toml")
    stage.write(f"{SERVICES}/haproxy.toml", re.sub("reload = .*", 'reload = ["/bin/false"]', service))
    try:
        haproxy.install(code=os.EX_TEMPFAIL)
    finally:
        stage.write(f"{SERVICES}/haproxy.toml", service)
    assert haproxy.standing() == (number, number, number + 2)
    assert haproxy_shows(haproxy) == in_copy(haproxy) == haproxy.host.on_disk(haproxy.name)


@needs("/usr/sbin/postfix")
def test_postfix_is_asked_after_starttls(case: Case) -> None:
    """Postfix shows each certificate on port 25 after STARTTLS, where it is proven; one that is not shown there is taken back."""
    configure(case, ["postfix"], combined(case.name))
    case.host.run(INSTALL, code=0)
    run("postconf", "-e", f"smtpd_tls_chain_files = {COPIES}/{case.name}.pem", "smtpd_tls_security_level = may", "maillog_file = /var/log/postfix.log")
    run("newaliases")
    run("postfix", "start")
    try:
        stage.wait_listening(25)
        for _ in range(2):
            number = case.install()
            assert case.standing() == (number, number, number + 1)
            assert mail_shows(25, "smtp") == in_copy(case) == case.host.on_disk(case.name)
        stage.write("/etc/postfix/pinned.pem", stage.read(f"{COPIES}/{case.name}.pem"), 0o600)
        run("postconf", "-e", "smtpd_tls_chain_files = /etc/postfix/pinned.pem")
        case.install(code=os.EX_TEMPFAIL)
        assert case.standing() == (number, number, number + 2) and case.notes["state"] == "issued-not-served"
    finally:
        run("postfix", "stop")


@needs("/usr/sbin/dovecot")
def test_dovecot_serves_a_combined_copy(case: Case) -> None:
    """Dovecot shows each certificate on port 993, where it is proven."""
    configure(case, ["dovecot"], combined(case.name))
    case.host.run(INSTALL, code=0)
    pem, version = f"{COPIES}/{case.name}.pem", subprocess.run(["dovecot", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    names = ("ssl_server_cert_file = ", "ssl_server_key_file = ") if version.startswith("2.4") else ("ssl_cert = <", "ssl_key = <")    # Debian 13's, and 12's
    stage.write("/etc/dovecot/conf.d/10-ssl.conf", "ssl = required\n" + "".join(f"{name}{pem}\n" for name in names))
    run("dovecot")
    try:
        stage.wait_listening(993)
        for _ in range(2):
            assert case.install() == case.host.proven(case.name)
            assert mail_shows(993, "") == mail_shows(143, "imap") == case.host.on_disk(case.name)
    finally:
        run("doveadm", "stop")


@needs("/usr/sbin/apache2")
def test_apache_serves_a_combined_copy(free_port: None, case: Case) -> None:
    """Apache shows each certificate; what its test says of a broken configuration is told."""
    configure(case, ["apache2"], combined(case.name))
    case.host.run(INSTALL, code=0)
    stage.write("/etc/apache2/ports.conf", "Listen 127.0.0.21:443\nServerName stage\n")
    stage.write("/etc/apache2/sites-available/test.conf", f"<VirtualHost 127.0.0.21:443>\nServerName {case.name}\nSSLEngine on\n"
                                                          f"SSLCertificateFile {COPIES}/{case.name}.pem\n</VirtualHost>\n")
    run("a2enmod", "-q", "ssl")
    run("a2dissite", "-q", "000-default")
    run("a2ensite", "-q", "test")
    run("apache2ctl", "start")
    try:
        stage.wait_listening(443)
        for _ in range(2):
            assert case.install() == case.host.proven(case.name)
            assert stage.fingerprint(stage.served_certificate(case.name, "127.0.0.21")) == case.host.on_disk(case.name)
        stage.write("/etc/apache2/conf-enabled/broken.conf", "bogus\n")
        case.install(code=os.EX_TEMPFAIL)
        assert "Invalid command 'bogus'" in case.notes["error"]
        os.unlink("/etc/apache2/conf-enabled/broken.conf")
    finally:
        run("apache2ctl", "stop")
        stage.wait_for(lambda: not os.path.exists("/run/apache2/apache2.pid"), 10, "apache's end")


def test_copies_have_owner_group_and_mode(case: Case) -> None:
    """Each part may be copied by itself: a key that a group may read, a chain for all."""
    wanted = [("key", "0640", "ssl-cert" if os.path.exists("/etc/ssl/private") and "ssl-cert" in stage.read("/etc/group") else "adm"),
              ("fullchain", "0644", "root"), ("cert", "0444", "root"), ("chain", "0644", "root")]
    configure(case, ["nginx"], *({"path": f"{COPIES}/{what}", "owner": "root", "group": group, "mode": mode, "what": what} for what, mode, group in wanted))
    case.install()
    for what, mode, group in wanted:
        found = os.stat(f"{COPIES}/{what}")
        assert (stat.S_IMODE(found.st_mode), shutil._get_gid(group)) == (int(mode, 8), found.st_gid)      # type: ignore[attr-defined]
    live = f"{STATE}/live/{case.name}"
    assert stage.read(f"{COPIES}/key") == stage.read(f"{live}/privkey.pem")
    assert stage.read(f"{COPIES}/fullchain") == stage.read(f"{COPIES}/cert") + stage.read(f"{COPIES}/chain") == stage.read(f"{live}/fullchain.pem")


def test_a_copy_that_is_lost_or_new_is_put(case: Case) -> None:
    """The next run puts it, with the certificate that is live, and does not wait for another."""
    case.serve()
    number = case.install()
    assert number == case.host.proven(case.name)
    configure(case, ["nginx"], combined(case.name))
    case.host.run(INSTALL, code=0)
    assert in_copy(case) == case.host.on_disk(case.name)
    stage.write(f"{COPIES}/{case.name}.pem", "spoilt\n")
    case.host.run(INSTALL, code=0)
    assert in_copy(case) == case.host.on_disk(case.name) and case.host.live(case.name) == number
    case.host.world.nginx.remove_site(case.name)
    case.host.world.nginx.reload()


@pytest.mark.parametrize("harm", ["nowhere", "not root's alone", "no such owner", "a link"])
def test_a_copy_that_cannot_be_put(case: Case, forger: Forger, harm: str) -> None:
    """The site's installation is put off, and said; nothing is written there, live goes back, and other sites are not held up."""
    other = Case(case.host, forger)
    copy, number = combined(case.name), case.install()
    if harm == "nowhere":
        copy["path"] = f"{COPIES}/nowhere/x.pem"
    elif harm == "no such owner":
        copy["owner"] = "no-such-user"
    elif harm == "a link":
        os.mkdir(f"{COPIES}/real")
        os.symlink(f"{COPIES}/real", f"{COPIES}/link")
        copy["path"] = f"{COPIES}/link/x.pem"
    else:
        os.mkdir(f"{COPIES}/open")
        os.chmod(f"{COPIES}/open", 0o777)
        copy["path"] = f"{COPIES}/open/x.pem"
    configure(case, ["nginx"], copy)
    forger.answer(case.host, other.name)
    try:
        case.install(code=os.EX_TEMPFAIL)
        assert case.standing()[:2] == (number, 0) and case.notes["state"] == "service-failed" and "could not be put" in case.notes["error"]
        assert not os.path.exists(copy["path"])
        assert case.host.live(other.name) == 2
    finally:
        configure(case, ["nginx"])
        case.host.run("certdrop", "remove", other.name, code=0)


@pytest.fixture
def deploy(case: Case) -> Iterator[Case]:
    """A site that is deployed by a program of the administrator's, which leaves something running."""
    stage.write(DEPLOY, "#!/bin/sh\necho called >> /tmp/deploy.log\nsleep 60 &\nif test -e /tmp/deploy-fails; then echo 'error: no route'; exit 3; fi\n", 0o755)
    stage.write(f"{SERVICES}/deploy.toml", f'test = ["/bin/true"]\nreload = ["{DEPLOY}"]\nport = 0\n')
    stage.write("/tmp/deploy.log", "")
    configure(case, ["deploy"])
    yield case
    configure(case, [])
    for path in (DEPLOY, f"{SERVICES}/deploy.toml", "/tmp/deploy-fails"):
        if os.path.exists(path):
            os.unlink(path)


def test_a_program_that_deploys(deploy: Case) -> None:
    """It runs once for each installation, and its success is all that is asked for; what it leaves running holds nothing up."""
    began = time.monotonic()
    for number in (1, 2):
        assert deploy.install() == deploy.host.proven(deploy.name)
        assert stage.read("/tmp/deploy.log").count("called") == number
    assert time.monotonic() - began < 20


def test_a_program_that_fails_to_deploy(deploy: Case) -> None:
    """It fails like any service: put off with its words, tried again with back-off, proven when it succeeds."""
    stage.write("/tmp/deploy-fails", "")
    number = deploy.install(code=os.EX_TEMPFAIL)
    assert deploy.standing() == (number, 0, number + 1)
    assert deploy.notes["state"] == "service-failed" and "error: no route" in deploy.notes["error"]
    deploy.install(answer=False)
    assert stage.read("/tmp/deploy.log").count("called") == 1
    os.unlink("/tmp/deploy-fails")
    deploy.let_time_pass()
    deploy.install(answer=False)
    assert stage.read("/tmp/deploy.log").count("called") == 2
    assert deploy.standing() == (number, number, number + 1) and deploy.notes == {}


def test_a_program_that_others_can_write_is_not_run(deploy: Case) -> None:
    """Root runs only what is root's alone."""
    os.chmod(DEPLOY, 0o777)
    deploy.install(code=os.EX_TEMPFAIL)
    assert stage.read("/tmp/deploy.log") == "" and "not root's alone" in deploy.notes["error"]


def test_a_service_that_is_not_installed(case: Case) -> None:
    """It is named, and nothing moves."""
    stage.write(f"{SERVICES}/absent.toml", 'test = ["/usr/sbin/absent"]\nreload = ["/usr/sbin/absent"]\n')
    configure(case, ["absent"])
    number = case.install(code=os.EX_TEMPFAIL)
    os.unlink(f"{SERVICES}/absent.toml")
    assert case.host.live(case.name) < number and "absent is not installed" in case.notes["error"]


def test_two_services_of_one_site(case: Case) -> None:
    """Both must do their part: nginx shows it, and the other, which cannot be asked, failed; so it is not done."""
    case.serve()
    stage.write(f"{SERVICES}/second.toml", 'test = ["/bin/true"]\nreload = ["/bin/false"]\nport = 0\n')
    configure(case, ["nginx", "second"])
    number = case.install(code=os.EX_TEMPFAIL)
    assert case.standing() == (number, 0, number + 1)
    stage.wait_for(lambda: case.host.served(case.name) == case.host.on_disk(case.name), what="nginx, whom nobody asked, to be done with its reload")
    stage.write(f"{SERVICES}/second.toml", 'test = ["/bin/true"]\nreload = ["/bin/true"]\nport = 0\n')
    case.let_time_pass()
    case.install(answer=False)
    assert case.standing() == (number, number, number + 1)
    os.unlink(f"{SERVICES}/second.toml")
    case.host.world.nginx.remove_site(case.name)
    case.host.world.nginx.reload()

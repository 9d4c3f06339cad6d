"""Which sockets are a site's: at the others, some other block answers for its name, as it does for any name, and that is no trouble of the site's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from conftest import STATE, Host, stage
from forger import Case, Forger

V6 = "[::]:443"
WATCHER = "_certdrop-watch"

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")


@pytest.fixture
def forger(host: Host) -> Forger:
    made = Forger()
    made.trust(host)
    return made


@pytest.fixture
def case(host: Host, forger: Forger) -> Iterator[Case]:
    """A site with a certificate, which listens at 443 alone, beside another one whose block is certdrop's own, and the default at [::]:443."""
    neighbour = Case(host, forger)
    host.serve(neighbour.name)
    neighbour.install()
    found = Case(host, forger)
    found.serve("443 ssl")
    found.neighbour = neighbour.name  # type: ignore[attr-defined]
    yield found
    host.world.dns.clear_addresses(found.name)
    for name in (found.name, neighbour.name):
        host.world.nginx.remove_site(name)
    host.world.nginx.reload()
    for name in (found.name, neighbour.name):
        host.run("certdrop", "remove", name, code=0)
    host.run("rm", "-f", f"{STATE}/watcher/state.json")


def installed(case: Case) -> str:
    """What root's run says when a certificate comes."""
    case.forger.answer(case.host, case.name)
    return case.host.run("script", "-qec", "certdrop-install", "/dev/null", code=0).text


def look(host: Host, name: str) -> tuple[str, int, str]:
    """What status says: state, severity, and why."""
    found = host.status(name)
    return found["state"], found["severity"], found["last_error"] or ""


def told(host: Host) -> list[str]:
    """What the watcher mails, who has told nothing yet."""
    host.run("rm", "-f", f"{STATE}/watcher/state.json")
    before = len(host.world.mail.messages())
    host.run("certdrop-watch", user=WATCHER, code=0)
    return [mail.body for mail in host.world.mail.messages()[before:]]


def doctor(host: Host, name: str) -> list[dict[str, str]]:
    """The doctor's lines that are not ok, on this site's certificate."""
    lines = json.loads(host.run("certdrop-check", name, "--json").text)
    return [line for line in lines if line["what"] in (f"{name}: port 443", f"{name}: served") and line["level"] != "ok"]


def test_a_socket_of_others_is_not_judged(case: Case) -> None:
    """It has no IPv6 address, and no block of its own there: served for root, and, the same second, for status, Nagios, watcher and doctor."""
    said = installed(case)
    assert "installed, and served" in said and f"{V6} shows another certificate" in said
    assert look(case.host, case.name) == ("serving", 0, "")
    assert case.host.status(case.name)["served"] is True
    assert case.name not in case.host.run("certdrop-status", "--nagios").text
    assert not any("not served" in body for body in told(case.host))
    assert doctor(case.host, case.name) == []


def test_where_the_names_addresses_lead_it_is_judged(case: Case) -> None:
    """With an IPv6 address that leads here, who comes over IPv6 gets another's certificate: said with the socket, by all; and mended by the listen."""
    installed(case)
    case.host.world.dns.set_addresses(case.name, ["127.0.0.1"], ["::1"])
    state, severity, why = look(case.host, case.name)
    assert (state, severity) == ("issued-not-served", 2) and why.startswith(f"{V6} shows another certificate")
    assert any(V6 in body for body in told(case.host))
    lines = doctor(case.host, case.name)
    assert lines and V6 in lines[0]["why"] and not [line for line in lines if "put there" in line["mend"]]
    case.serve("443 ssl,[::]:443 ssl")
    assert look(case.host, case.name) == ("serving", 0, "") and doctor(case.host, case.name) == []


def test_an_address_elsewhere_is_none_of_ours(case: Case) -> None:
    """Its IPv6 address is another host's, a proxy's for instance."""
    installed(case)
    case.host.world.dns.set_addresses(case.name, ["127.0.0.1"], ["2001:db8::7"])
    assert look(case.host, case.name) == ("serving", 0, "")


def test_a_block_of_its_own_is_judged_without_an_address(case: Case) -> None:
    """A second block with its name, at the other socket, with the neighbour's pair: the name shows there what nobody else's does."""
    installed(case)
    name, other = case.name, case.neighbour  # type: ignore[attr-defined]
    third = Case(case.host, case.forger)
    case.host.serve(third.name)
    third.install()
    path = f"/etc/nginx/sites-available/{name}"
    stage.write(path, stage.read(path) + f"server {{ listen [::]:443 ssl; server_name {name}; include {STATE}/live/{third.name}/nginx.conf; }}\n")
    case.host.world.nginx.reload()
    assert stage.fingerprint(stage.served_certificate("nobody.example.net", "::1")) == case.host.on_disk(other)
    state, _, why = look(case.host, name)
    assert state == "issued-not-served" and V6 in why
    assert f"{STATE}/live/{name}/nginx.conf" in doctor(case.host, name)[0]["mend"]         # its own block, and no other's names in it
    case.serve("443 ssl")
    case.host.world.nginx.remove_site(third.name)
    case.host.world.nginx.reload()
    case.host.run("certdrop", "remove", third.name, code=0)


def test_no_advice_changes_anothers_block(case: Case) -> None:
    """A name without a block of its own, and a name in one that is for others too: never "put there"."""
    installed(case)
    case.host.world.nginx.remove_site(case.name)
    case.host.world.nginx.reload()
    lines = doctor(case.host, case.name)
    assert lines and not [line for line in lines if "put there" in line["mend"]]
    assert any("certdrop-nginx" in line["mend"] for line in lines)
    pair = f"{STATE}/live/{case.neighbour}/nginx.conf"  # type: ignore[attr-defined]
    case.host.world.nginx.add_site(case.name, f"server {{ listen 443 ssl; server_name {case.name} else.example.org; include {pair}; }}\n")
    case.host.world.nginx.reload()
    lines = doctor(case.host, case.name)
    assert lines and "else.example.org" in lines[0]["mend"] and not [line for line in lines if "put there" in line["mend"]]

"""Who may come in: by address, by password, by another's word; and not too often.

Runs as: anyone; root in certdrop-check. Trusts, reads, writes: nothing. Sources: ngx_http_access_module.c, ngx_http_auth_basic_module.c,
ngx_http_auth_request_module.c, ngx_http_limit_req_module.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from certdrop.nginx.expression import Unknown
from certdrop.nginx.request import addresses, values
from certdrop.nginx.request.asked import End
from certdrop.nginx.request.state import State, Status, words
from certdrop.nginx.syntax import Directive

BURST = 5                          # requests of one CA's right behind each other
Beside = Callable[[str], End]      # what becomes of a request for another path, within this one


def pass_in(state: State, beside: Beside) -> None:
    """NGX_HTTP_ACCESS_PHASE: by address, by password, by another's word, in this order. Raises Status."""
    satisfy = state.setting("satisfy")
    anyhow = bool(satisfy) and satisfy[0].value == "any"
    refused: Status | None = None
    checks: tuple[Callable[[], Status | bool | None], ...] = (
        lambda: _by_address(state), lambda: _by_password(state), lambda: _by_request(state, beside))
    for check in checks:
        answer = check()
        if answer is True and anyhow:
            return
        if isinstance(answer, Status):
            if not anyhow:
                raise answer
            refused = refused or answer
    if refused:
        raise refused


def _by_address(state: State) -> Status | bool | None:
    """ngx_http_access_module: True where it lets in, None where it has nothing to say. A CA comes from the Internet."""
    for one in state.setting("allow", "deny"):
        value, lets_in = one.value, one.name == "allow"
        if value == "all":
            return True if lets_in else Status(403, one)
        network = addresses.network(value)
        if network is None or (network.version == 6) != state.asked.ipv6 or not addresses.are_of_the_internet(value):
            continue
        if network.prefixlen == 0:
            return True if lets_in else Status(403, one)
        if state.guesses.guess(("from", value), f"{one.place}: whether the CA comes from {value}"):
            return True if lets_in else Status(403, one)
    return None


def _by_password(state: State) -> Status | bool | None:
    """ngx_http_auth_basic_module, and the like."""
    realm, users = state.setting("auth_basic"), state.setting("auth_basic_user_file")
    if realm and users and values.text(state, realm[0].value) != "off":
        return Status(401, realm[0])
    token = state.setting("auth_jwt", "auth_digest", "auth_gss", "auth_pam", "auth_ldap")
    if token and token[0].value != "off":
        return Status(401, token[0])
    return None


def _by_request(state: State, beside: Beside) -> Status | bool | None:
    """ngx_http_auth_request_module."""
    found = state.setting("auth_request")
    if not found or found[0].value == "off":
        return None
    where = values.text(state, found[0].value)
    if where is None:
        raise Unknown(f"{found[0].place}: what {words(found[0])} asks")
    end = beside(where.partition("?")[0])
    if end.kind in ("other", "redirect", "file"):
        why = f"{found[0].place}: what {words(found[0])} answers"
        return True if end.kind != "redirect" and state.guesses.guess(("auth", where), why) else Status(403, found[0])
    return True if 200 <= end.status < 300 else Status(end.status if end.status in (401, 403) else 500, found[0])


def is_too_much(state: State) -> Directive | None:
    """The limit_req that may refuse a request right behind another, as after a redirect; or for the sake of others', if it counts them together."""
    zones = {word.removeprefix("zone=").partition(":")[0]: one.value for one in state.config.set_for_all("limit_req_zone") for word in one.args[1:]}
    dry = state.setting("limit_req_dry_run")
    for one in state.setting("limit_req") if not dry or dry[0].value != "on" else ():
        burst = next((int(word[6:]) for word in one.args if re.fullmatch(r"burst=\d{1,6}", word)), 0)
        zone = next((word[5:] for word in one.args if word.startswith("zone=")), "")
        alone = "remote_addr" in zones.get(zone, "") and not state.asked.again
        why = f"{one.place}: whether {words(one)} refuses a request right behind another"
        if burst < BURST and not alone and state.guesses.guess(("limit", id(one)), why):
            return one
    return None

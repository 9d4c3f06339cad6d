"""How a service's commands are run: what takes its time is told of, and what hangs is waited for once."""

from __future__ import annotations

import pathlib
import time

import pytest

from certdrop.keeper import services


@pytest.fixture
def service(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> services.Service:
    """A service whose reload hangs, and which is given up after a second."""
    monkeypatch.setattr(services, "TIMEOUT", 1.0)
    monkeypatch.setattr(services, "TOLD", 0.2)
    found = services.Service("nginx")
    found.test_command, found.reload_command = ["/bin/true"], ["/bin/sleep", "100"]
    return found


def test_what_hangs_is_waited_for_once(service: services.Service) -> None:
    """The line names the command and how long it was waited for; a second reload in the same run is not tried; other commands are."""
    with pytest.raises(services.Failed, match=r"^/bin/sleep 100 did not end within 1.0 s$"):
        service.reload()
    begin = time.monotonic()
    with pytest.raises(services.Failed, match="was not tried again in this run"):
        service.reload()
    assert time.monotonic() - begin < 0.5
    service.test()


def test_what_takes_its_time_is_told_of(service: services.Service) -> None:
    """Once, while it is waited for; what ends at once is not."""
    told: list[str] = []
    service.waits = told.append
    with pytest.raises(services.Failed, match="did not end"):
        service.reload()
    assert told == ["waiting for /bin/sleep 100, 1.0 s at most"]
    service.test()
    assert len(told) == 1

"""Prometheus, its own tool and node_exporter take what certdrop-status writes, and the rules that are installed tell of what is wrong."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import world as stage
from conftest import STATE, Host

RULES = "/usr/share/certdrop/prometheus/certdrop.rules.yml"
DASHBOARD = "/usr/share/certdrop/grafana/certdrop.json"
FILE = "/var/lib/prometheus/node-exporter/certdrop.prom"
TESTS = pathlib.Path(__file__).resolve().parent.parent / "monitoring"
CONFIGURATION = """\
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs:
  - job_name: node
    static_configs: [{targets: ["127.0.0.1:9100"]}]
""" % RULES


def asked(path: str) -> list[dict[str, Any]]:
    """What Prometheus answers."""
    with urllib.request.urlopen("http://127.0.0.1:9090/api/v1/" + path, timeout=5) as answer:
        found = json.load(answer)["data"]
    result: list[dict[str, Any]] = next(found[key] for key in ("alerts", "groups", "result") if key in found)
    return result


def is_up() -> bool:
    """Whether Prometheus answers, and has seen node_exporter."""
    try:
        return bool(asked("query?query=" + urllib.parse.quote("up == 1")))
    except OSError:
        return False


@pytest.fixture(scope="module")
def prometheus() -> Iterator[None]:
    """One that scrapes this host's node_exporter every second, with the installed rules."""
    room = pathlib.Path("/tmp/prometheus")
    room.mkdir()
    (room / "prometheus.yml").write_text(CONFIGURATION)
    os.makedirs(os.path.dirname(FILE), exist_ok=True)
    with open(room / "log", "wb") as log:
        running = [subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log) for argv in (
            ["prometheus-node-exporter", "--web.listen-address=127.0.0.1:9100", "--collector.disable-defaults", "--collector.textfile",
             "--collector.textfile.directory=" + os.path.dirname(FILE)],
            ["prometheus", f"--config.file={room}/prometheus.yml", f"--storage.tsdb.path={room}/data", "--web.listen-address=127.0.0.1:9090"])]
    try:
        stage.wait_for(is_up, 30, "Prometheus to see node_exporter")
        yield
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
            process.wait()


def looked() -> None:
    """Wait until Prometheus has the metrics that were written, and has evaluated its rules after that."""
    written = time.time()
    stage.wait_for(lambda: any(float(one["value"][1]) > written for one in asked("query?query=timestamp(up)")), 30, "a scrape")
    scraped = time.time()
    stage.wait_for(lambda: all(evaluated(one) > scraped for one in asked("rules")), 30, "an evaluation")


def evaluated(group: dict[str, Any]) -> float:
    """When a group of rules was evaluated last (RFC 3339, with nanoseconds)."""
    return datetime.datetime.fromisoformat(re.sub(r"\.\d+|Z$", lambda part: part[0][:7].ljust(7, "0") if part[0] != "Z" else "+00:00",
                                                  group["lastEvaluation"])).timestamp()


def alerts(prometheus: None) -> dict[tuple[str, str], str]:
    """(alert, site or principal) and its state."""
    labels = [(one["labels"], one["state"]) for one in asked("alerts")]
    return {(known["alertname"], known.get("site", known.get("principal", ""))): str(state) for known, state in labels}


def test_the_rules_are_well_formed_and_fire_as_they_should(tmp_path: pathlib.Path) -> None:
    """By Prometheus' own tool, each alert at its value and after its time, and not before."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(TESTS / "certdrop.rules.test.yml", tmp_path)
    for verb in (["check", "rules", "certdrop.rules.yml"], ["test", "rules", "certdrop.rules.test.yml"]):
        done = subprocess.run(["promtool", *verb], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_metrics_are_as_prometheus_wants_them(host: Host) -> None:
    """Its tool finds nothing to say of their names, types and help."""
    host.run("certdrop", "add", host.name(), "--no-issue", code=0)
    text = host.run("certdrop-status", "--prometheus").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_wrong_is_told(host: Host, prometheus: None) -> None:
    """A site that is well has no alert; one that nginx does not serve, one without a certificate, and an issuer that has stopped have theirs, and no other."""
    well, other, waiting = host.add(host.name()), host.add(host.name()), host.name()
    host.run("certdrop", "add", waiting, "--no-issue", code=0)
    host.run("certdrop-watch", code=0)

    def seen() -> dict[tuple[str, str], str]:
        host.run("certdrop-status", "--prometheus", FILE, code=0)
        looked()
        return {key: state for key, state in alerts(prometheus).items() if key[1] in (well, other, waiting, "issuer", "keeper", "watcher", "")}
    stage.wait_for(lambda: ("CertdropNoCertificate", waiting) in seen(), 30, "the first evaluation")
    assert {key for key in seen() if key[0] != "CertdropMail"} == {("CertdropNoCertificate", waiting)}
    before = os.readlink(f"{STATE}/live/{other}")
    host.world.nginx.remove_site(other)
    host.world.nginx.add_site(other, host.run("certdrop-nginx", well, code=0).text.replace(f"server_name {well}", f"server_name {other}"))
    host.world.nginx.reload()
    old = time.time() - 30 * 3600
    os.utime(f"{STATE}/issuer/last-run", (old, old))
    for path in pathlib.Path("/etc/certdrop/sites.d").glob("*.toml"):
        os.utime(path, (old, old))
    try:
        found = {key for key in seen() if key[0] != "CertdropMail"}
        assert found == {("CertdropNotServed", other), ("CertdropSilent", "issuer"), ("CertdropNoCertificate", waiting)}, found
    finally:
        os.utime(f"{STATE}/issuer/last-run")
    assert os.readlink(f"{STATE}/live/{other}") == before
    os.unlink(FILE)


def test_the_dashboard_asks_for_what_there_is(host: Host, prometheus: None) -> None:
    """Each expression of the dashboard is one that Prometheus understands, and most have an answer on a host with sites."""
    host.run("certdrop-status", "--prometheus", FILE, code=0)
    looked()
    with open(DASHBOARD, encoding="utf-8") as stream:
        panels = json.load(stream)["panels"]
    answered = 0
    expressions = [target["expr"].replace("$instance", ".*") for panel in panels for target in panel["targets"]]
    for expression in expressions:
        answered += bool(asked("query?query=" + urllib.parse.quote(expression)))
    assert len(expressions) >= 15 and answered >= len(expressions) - 2, answered
    os.unlink(FILE)

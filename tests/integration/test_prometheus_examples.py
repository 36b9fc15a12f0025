"""The examples for operators: by the real promtool, and a real Prometheus that scrapes a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.addresses import LOCAL, free_port
from tests.support.asking import ask
from tests.support.deploying import deploy, hup
from tests.support.processes import wait_gone
from tests.support.prometheus import EXAMPLES, Prometheus, promtool
from tests.support.server import Server
from tests.support.waiting import wait_for

ROOT = EXAMPLES.parents[1]
DASHBOARD = json.loads((ROOT / "examples" / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
ALERTS = re.findall(r"- alert: (\w+)", (EXAMPLES / "alerts.yml").read_text())

# A worker measures it only where its resident memory is above a limit.
MAY_BE_EMPTY = "multicore_worker_unique_memory_bytes"
METRIC = r"\b(?:multicore|process)_\w+"


def of_target(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


PANEL_QUERIES = [expression for panel in PANELS for expression in of_target(panel)]
QUERIES = [*PANEL_QUERIES, *(annotation["expr"] for annotation in DASHBOARD["annotations"]["list"])]


def names_in(expressions: list[str]) -> set[str]:
    """The names of metrics that PromQL expressions use."""
    return set(re.findall(METRIC, " ".join(expressions))) - {"multicore_server"}


# --- promtool


def test_the_configuration_is_valid() -> None:
    assert "1 rule files found" in promtool("check", "config", EXAMPLES / "prometheus.yml")


def test_the_rules_are_valid() -> None:
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", EXAMPLES / "alerts.yml")
    assert f"{len(ALERTS)} rules found" in said


def test_the_rules_fire_when_they_should() -> None:
    promtool("test", "rules", EXAMPLES / "alerts_test.yml")


def test_every_rule_is_tested_both_ways() -> None:
    text = (EXAMPLES / "alerts_test.yml").read_text()
    tested = set(re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\])?\n", text))
    assert tested == {(name, outcome) for name in ALERTS for outcome in ("", " []")}


# --- the files


def test_every_alert_is_documented() -> None:
    """With its severity and for how long its condition has to hold."""
    rule = re.compile(r"- alert: (\w+).*?\n +for: (\w+)\n.*?severity: (\w+)\n", re.DOTALL)
    rules = [
        (name, f"{severity}, {time}")
        for name, time, severity in rule.findall((EXAMPLES / "alerts.yml").read_text())
    ]
    assert [name for name, _ in rules] == ALERTS
    rows = re.compile(r"^\| `(Multicore\w+)` \| ([^|]+) \|", re.MULTILINE)
    assert rows.findall((ROOT / "docs" / "monitoring.md").read_text()) == rules


def test_panels_that_texts_name_exist() -> None:
    alerts = re.findall(r'panel "([^"]+)"', (EXAMPLES / "alerts.yml").read_text())
    docs = re.findall(r"panel \*([^*]+)\*", (ROOT / "docs" / "monitoring.md").read_text())
    assert len(alerts) == 3
    assert len(docs) == 3
    assert {*alerts, *docs} <= {panel["title"] for panel in PANELS}


def test_every_panel_has_a_unit_and_a_description() -> None:
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_overlap() -> None:
    seen: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, width, height = (panel["gridPos"][side] for side in "xywh")
        assert x + width <= 24, panel["title"]
        cells = {(column, line) for column in range(x, x + width) for line in range(y, y + height)}
        assert not cells & seen, panel["title"]
        seen |= cells


def test_identifiers_are_unique() -> None:
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    assert len(set(titles)) == len(titles)


def test_queries_obey_the_variables() -> None:
    """Every selector is narrowed to the chosen job and instances."""
    narrowed = re.compile(r'\{job="\$job", instance=~"\$instance"[,}]')
    for expression in QUERIES:
        assert len(narrowed.findall(expression)) == len(re.findall(METRIC, expression)), expression


# --- against a server


@pytest.fixture
def metrics(free: int) -> str:
    """The address of the server's metrics."""
    return f"{LOCAL}:{free}"


@pytest.fixture
def free() -> int:
    return free_port()


@pytest.fixture
def start_prometheus(tmp_path: Path, metrics: str) -> Iterator[Callable[[], Prometheus]]:
    prometheus = Prometheus(tmp_path / "prometheus", metrics)

    def start() -> Prometheus:
        prometheus.start()
        prometheus.wait_scraped(after=0)
        return prometheus

    yield start
    prometheus.stop()


def started(server: Server, metrics: str, **settings: str) -> Server:
    environment = {f"MULTICORE_{name.upper()}": value for name, value in settings.items()}
    return server.start("-w", "2", env={"MULTICORE_METRICS_BIND": metrics, **environment}, ready=2)


def test_the_rules_as_prometheus_reads_them(tmp_path: Path) -> None:
    """It needs no server: the target is down."""
    prometheus = Prometheus(tmp_path / "prometheus", f"{LOCAL}:{free_port()}")
    try:
        prometheus.start()
        wait_for(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, "rules evaluated")
        rules = prometheus.rules()
        wait_for(lambda: prometheus.alerts() == {"MulticoreTargetDown"}, "the alert of a target that is down")
    finally:
        prometheus.stop()
    assert [rule["name"] for rule in rules] == ALERTS
    for rule in rules:
        assert rule["duration"] >= 60, rule["name"]
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["name"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["name"]


def test_a_healthy_server_serves_what_is_asked_for_and_alerts_nobody(
    asked: Server, metrics: str, start_prometheus: Callable[[], Prometheus]
) -> None:
    started(asked, metrics, max_memory_restart="1G")
    prometheus = start_prometheus()
    wait_for(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"}, "rules evaluated")
    rules = [rule["query"] for rule in prometheus.rules()]
    assert prometheus.alerts() == set()
    served = set(re.findall(r"^(\w+)[ {]", httpx.get(f"http://{metrics}/metrics").text, re.MULTILINE))
    assert names_in(rules + QUERIES) - served - {MAY_BE_EMPTY} == set()


def substituted(expression: str, metrics: str) -> str:
    values = {"$__rate_interval": "1m", "$job": "multicore_server", "$instance": metrics}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def offered(prometheus: Prometheus, name: str, metrics: str) -> Any:
    """What a variable of the dashboard lets one choose from."""
    query = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["query"]["query"])
    assert query is not None
    series = substituted(query[1], metrics)
    return prometheus.ask(f"label/{query[2]}/values", **{"match[]": series})


def test_the_dashboard_shows_something(
    asked: Server, metrics: str, start_prometheus: Callable[[], Prometheus]
) -> None:
    started(asked, metrics, max_memory_restart="1G")
    prometheus = start_prometheus()
    deploy(asked, 2, "import nowhere")
    hup(asked, "reload rolled back")
    deploy(asked, 3)
    hup(asked)
    assert asked.get("/?1/0").status_code == 500
    ask(asked, "1")
    prometheus.wait_scraped(after=time.time())
    assert offered(prometheus, "job", metrics) == ["multicore_server"]
    assert offered(prometheus, "instance", metrics) == [metrics]
    for expression in QUERIES:
        text = substituted(expression, metrics)
        if MAY_BE_EMPTY in expression:
            prometheus.query(text)
        else:
            wait_for(lambda text=text: prometheus.query(text), f"data for {text}")  # type: ignore[misc]
    errors = next(expression for expression in PANEL_QUERIES if 'code="5xx"' in expression)
    assert 0 < (prometheus.value(substituted(errors, metrics)) or 0) < 1


def test_totals_are_exact_after_kills_and_a_reload(
    asked: Server, metrics: str, start_prometheus: Callable[[], Prometheus]
) -> None:
    started(asked, metrics)
    prometheus = start_prometheus()
    sent = send(asked, 50)
    for kills, instance in enumerate((0, 1, 0), 1):
        kill(asked, instance)
        sent += send(asked, 50)  # without a wait for its replacement
        asked.wait_ready(2 + kills)
    asked.signal(signal.SIGHUP)
    while not asked.logged("reload done"):
        sent += send(asked, 1)
    sent += send(asked, 50)

    restarts = {"signal": 3, "reload": 2}  # counted when the old workers have ended
    query = "multicore_worker_restarts_total"
    wait_for(lambda: prometheus.values(query, "reason") == restarts, f"the restarts {restarts}")
    prometheus.wait_scraped(after=time.time())
    assert prometheus.value("sum(multicore_http_requests_total)") == sent
    assert prometheus.values("sum by (code) (multicore_http_requests_total)", "code") == {"2xx": sent}
    assert prometheus.value("multicore_http_request_duration_seconds_count") == sent
    assert prometheus.value('multicore_http_request_duration_seconds_bucket{le="+Inf"}') == sent
    assert prometheus.value("sum(multicore_connections_accepted_total)") == sent
    assert prometheus.values("multicore_reloads_total", "result") == {"ok": 1}
    assert falls(prometheus) == []


def send(server: Server, count: int) -> int:
    """Requests one after the other, each answered."""
    for _ in range(count):
        assert server.get("/?1").status_code == 200
    return count


def kill(server: Server, instance: int) -> None:
    pid = server.worker_of(instance)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


def falls(prometheus: Prometheus) -> list[dict[str, str]]:
    """The series of ours that Prometheus has seen fall, although they are counters."""
    names = prometheus.ask("label/__name__/values")
    counters = [name for name in names if re.fullmatch(r"multicore_\w+_(total|count|bucket|sum)", name)]
    assert len(counters) > 8, names
    found = [prometheus.query(f"resets({name}[5m]) > 0") for name in counters]
    return [labels for series in found for labels, _ in series]


def test_trouble_raises_the_alerts(
    asked: Server, metrics: str, start_prometheus: Callable[[], Prometheus]
) -> None:
    """They are pending as soon as their condition holds; promtool has tested the rest."""
    started(asked, metrics, max_restarts="0", min_uptime="10m")
    prometheus = start_prometheus()

    def raised(*names: str) -> None:
        wait_for(lambda: prometheus.alerts() == set(names), f"the alerts {names} and no others")

    deploy(asked, 2, "import nowhere")
    hup(asked, "reload rolled back")
    raised("MulticoreReloadFailed")
    deploy(asked, 3)
    for _ in range(20):
        assert asked.get("/?1/0").status_code == 500
    raised("MulticoreReloadFailed", "MulticoreHighErrorRatio")
    kill(asked, 0)
    failing = ("MulticoreReloadFailed", "MulticoreHighErrorRatio")
    raised(*failing, "MulticoreWorkerErrored", "MulticoreWorkersMissing")
    asked.end()
    wait_for(lambda: "MulticoreTargetDown" in prometheus.alerts(), "the alert of a target that is down")

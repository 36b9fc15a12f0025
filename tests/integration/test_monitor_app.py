"""The monitor by itself: a real process, real sockets, a real scoreboard; the test is its arbiter."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
from typing import Any

import httpx
import pytest

from multicore_server.ipc.scoreboard import Item
from multicore_server.worker.metrics_path import MetricsPath
from tests.support.monitor_process import REQUESTS, MakeMonitor, Monitor
from tests.support.raw_client import request
from tests.support.reports import event, process, slot

# --- the addresses ---


def test_metrics_as_text(monitor: Monitor) -> None:
    monitor.count(3)
    answer = monitor.get("/metrics", headers={"accept-encoding": "identity"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert REQUESTS + "3.0\n" in answer.text


def test_metrics_as_openmetrics_and_compressed(monitor: Monitor) -> None:
    headers = {"accept": "application/openmetrics-text; version=1.0.0", "accept-encoding": "gzip"}
    answer = monitor.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text.endswith("# EOF\n")


def test_each_form_is_what_was_asked_for_also_at_the_same_time(monitor: Monitor) -> None:
    asked = [request("/metrics", f"Accept-Encoding: {coding}") for coding in ("gzip", "identity")]
    connections = [monitor.connect() for _ in range(10)]
    for number, connection in enumerate(connections):
        connection.send(asked[number % 2])
    for number, connection in enumerate(connections):
        body = connection.answer().body
        assert b"multicore_workers" in (body if number % 2 else gzip.decompress(body))


def test_a_scrape_shows_what_was_counted_before_it(monitor: Monitor) -> None:
    with monitor.client() as client:
        for number in range(1, 20):
            monitor.count(number)
            assert f"{REQUESTS}{float(number)}\n" in client.get("/metrics").text


def test_status_has_every_worker_and_no_secret(monitor: Monitor) -> None:
    row = monitor.scoreboard.row(4)
    row[Item.RESIDENT_MEMORY] = 5e7
    row[Item.CONNECTIONS] = 7
    status = monitor.get("/status").json()
    assert status["arbiter"]["pid"] == os.getpid()
    assert status["monitor"]["pid"] == monitor.pid
    assert [worker["instance"] for worker in status["workers"]] == [0, 1]
    assert status["workers"][1]["memory"]["resident"] == 50_000_000
    assert status["workers"][1]["connections"] == 7
    assert status["events"] == [event("ready")]


def test_health_and_readiness(monitor: Monitor) -> None:
    assert (monitor.get("/healthz").status_code, monitor.get("/healthz").text) == (200, "ok\n")
    assert (monitor.get("/readyz").status_code, monitor.get("/readyz").text) == (200, "ok\n")
    monitor.publish(stopping=True)
    assert (monitor.get("/readyz").status_code, monitor.get("/readyz").text) == (
        503,
        "the server is stopping\n",
    )
    monitor.publish(slots=[slot(0, "starting", [process(0, state="starting")]), slot(1, "backoff", [])])
    assert (monitor.get("/readyz").status_code, monitor.get("/readyz").text) == (503, "no worker is ready\n")
    assert monitor.get("/healthz").status_code == 200


def test_before_the_arbiter_has_said_anything(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor()
    assert monitor.get("/healthz").status_code == 200
    assert (monitor.get("/readyz").status_code, monitor.get("/readyz").text) == (
        503,
        "the server is starting\n",
    )
    assert monitor.get("/status").status_code == 503
    assert REQUESTS + "0.0\n" in monitor.get("/metrics").text


def test_the_environment_is_the_servers_not_uvicorns(
    make_monitor: MakeMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "max")
    monkeypatch.setenv("UVICORN_ROOT_PATH", "/x")
    assert make_monitor().get("/healthz").status_code == 200


def test_the_index_names_every_address(monitor: Monitor) -> None:
    text = monitor.get("/").text
    assert [
        path for path in ("/metrics", "/status", "/samples", "/healthz", "/readyz") if path not in text
    ] == []


@pytest.mark.parametrize("path", ["/", "/metrics", "/status", "/samples", "/healthz", "/readyz"])
def test_head_is_get_without_the_body(monitor: Monitor, path: str) -> None:
    with monitor.client() as client:
        head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/commands/stop", "/events", "//evil.example/"])
def test_what_there_is_not_is_404_and_not_repeated(monitor: Monitor, path: str) -> None:
    connection = monitor.connect().send(request(path + "?<script>", "X-Forwarded-Host: evil.example"))
    answer = connection.answer()
    assert (answer.status, answer.body) == (404, b"not found; / lists the addresses\n")
    assert "location" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_other_methods_are_405(monitor: Monitor, method: str) -> None:
    with monitor.client() as client:
        answer = client.request(method, "/metrics")
        assert client.get("/healthz").status_code == 200
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_workers_get_the_metrics_and_nothing_else(monitor: Monitor) -> None:
    with monitor.client(monitor.unix) as client:
        assert client.get("/metrics").status_code == 200
        for path in ("/status", "/samples", "/healthz", "/readyz", "/", "/events"):
            assert client.get(path).status_code == 404
        assert client.post("/commands/stop").status_code == 404


@pytest.mark.parametrize("head", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
def test_a_body_is_refused_unread(monitor: Monitor, head: str) -> None:
    connection = monitor.connect().send(request("/metrics", head))
    answer = connection.answer()
    assert (answer.status, answer.is_last) == (413, True)
    assert connection.ends()


# --- hostile and slow scrapers ---


# --- merges ---


# --- on the app's own port ---


def forwarded(monitor: Monitor, path: str, **headers: str) -> httpx.Response:
    """What an app answers that runs inside `MetricsPath`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body"})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(MetricsPath(app, "/internal/metrics", monitor.unix))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_the_snapshot_on_the_apps_port(monitor: Monitor) -> None:
    monitor.count(7)
    answer = forwarded(monitor, "/internal/metrics", accept="application/openmetrics-text")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.headers["content-encoding"] == "gzip"
    assert REQUESTS + "7.0\n" in answer.text
    plain = forwarded(monitor, "/internal/metrics", **{"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert forwarded(monitor, "/metrics").status_code == 418
    os.kill(monitor.pid, signal.SIGKILL)
    monitor.wait_exit()
    monitor.close_listeners()
    assert forwarded(monitor, "/internal/metrics").status_code == 503

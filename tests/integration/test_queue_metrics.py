"""How long requests waited for a worker: what real servers say, with proxies and without."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from tests.support.apps import source
from tests.support.monitored_server import MakeMonitored, Metrics, MonitoredServer, by
from tests.support.proxies import MakeProxy
from tests.support.raw_client import Connection, request
from tests.support.waiting import wait_for

QUEUE = "multicore_http_request_queue_seconds"
BLOCKED = 0.8  # seconds

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(socket, "TCP_INFO"), reason="the kernel does not say it"
)
Connect = Callable[..., Connection]


def waited(metrics: Metrics, at_least: str) -> float:
    """Requests that waited for longer than a bucket says."""
    buckets = by(metrics, f"{QUEUE}_bucket")
    return buckets["+Inf"] - buckets[at_least]


def start_of(seconds_ago: float) -> str:
    return f"X-Request-Start: t={time.time() - seconds_ago:.3f}"


def ask(connection: Connection, *headers: str) -> None:
    assert connection.send(request("/", *headers)).answer().status == 200


# --- the kernel


@on_linux
@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_behind_a_blocked_event_loop(
    counted: MonitoredServer, connect: Connect, http: str, loops: str
) -> None:
    counted.start("-w", "1", env={"UVICORN_HTTP": http, "UVICORN_LOOP": loops}, ready=1)
    blocking, kept = connect(counted.server.port), connect(counted.server.port)
    ask(kept)
    before = counted.metrics()
    assert (before[f"{QUEUE}_count"], waited(before, "0.25")) == (1, 0)
    blocking.send(request(f"/block?{BLOCKED}"))
    wait_for(lambda: counted.workers()[0]["blocked"] > 0, "a blocked event loop")
    ask(kept)
    assert blocking.answer().status == 200
    after = counted.wait_idle()
    assert (after[f"{QUEUE}_count"], waited(after, "0.25"), waited(after, "2.5")) == (3, 1, 0)
    assert 0.25 < after[f"{QUEUE}_sum"] < 2.5


@on_linux
def test_in_the_accept_queue_and_counts_survive_the_worker(
    counted: MonitoredServer, connect: Connect
) -> None:
    counted.start("-w", "1", ready=1)
    pid = counted.server.worker_of(0)
    os.kill(pid, signal.SIGSTOP)
    waiting = [connect(counted.server.port).send(request("/")) for _ in range(3)]
    wait_for(lambda: counted.metrics()["multicore_listen_backlog"] == 3, "three in the backlog")
    time.sleep(0.3)
    os.kill(pid, signal.SIGCONT)
    assert [connection.answer().status for connection in waiting] == [200] * 3
    found = counted.wait_idle()
    assert waited(found, "0.25") >= 1
    seen = counted.workers()[0]["requests"]["queue"]
    assert seen["+Inf"] - seen["0.25"] == waited(found, "0.25")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: counted.workers()[0]["generation"] == 2, "another worker")
    counted.server.wait_ready(2)
    assert by(counted.metrics(), f"{QUEUE}_bucket") == by(found, f"{QUEUE}_bucket")


@on_linux
def test_behind_others_of_an_inline_wsgi_app(make_monitored: MakeMonitored, connect: Connect) -> None:
    counted = make_monitored(source("endings_wsgi"))
    counted.start("-w", "1", ready=1)
    connections = [connect(counted.server.port) for _ in range(4)]
    for connection in connections:
        connection.send(request("/sleep?0.3"))
    assert [connection.answer().status for connection in connections] == [200] * 4
    found = counted.wait_idle()
    assert waited(found, "0.25") >= 1
    assert by(found, f"{QUEUE}_bucket")["0.1"] >= 1


def test_for_a_thread_of_a_wsgi_app(make_monitored: MakeMonitored, connect: Connect) -> None:
    counted = make_monitored(source("endings_wsgi"))
    counted.start("-w", "1", "--threads", "2", bind="unix:app.sock", ready=1)
    path = str(counted.server.directory / "app.sock")
    fields = request("/sleep?0.4", start_of(0.0))
    connections = [connect(path).send(fields) for _ in range(4)]
    assert [connection.answer().status for connection in connections] == [200] * 4
    found = counted.wait_idle()
    assert (found[f"{QUEUE}_count"], waited(found, "0.25"), waited(found, "2.5")) == (4, 2, 0)


@on_linux
def test_many_requests_are_counted_by_a_sample(counted: MonitoredServer, connect: Connect) -> None:
    counted.start("-w", "1", ready=1)
    connection, requests = connect(counted.server.port), 2000
    for _ in range(requests):
        ask(connection)
    found = counted.wait_idle()
    assert requests - 32 <= found[f"{QUEUE}_count"] <= requests


def test_of_a_unix_socket_nothing_is_known(counted: MonitoredServer, connect: Connect) -> None:
    counted.start("-w", "1", bind="unix:app.sock", ready=1)
    path = str(counted.server.directory / "app.sock")
    ask(connect(path))
    assert counted.wait_idle()[f"{QUEUE}_count"] == 0
    ask(connect(path), start_of(2.0))  # its peer is trusted
    assert waited(counted.wait_idle(), "1.0") == 1


# --- a proxy


@pytest.mark.parametrize("app", ["endings", "endings_wsgi"])
def test_what_a_trusted_proxy_says(make_monitored: MakeMonitored, connect: Connect, app: str) -> None:
    counted = make_monitored(source(app))
    counted.start("-w", "1", ready=1)
    connection = connect(counted.server.port)
    for seconds in (0.3, 2.0, 20.0):
        ask(connection, start_of(seconds))
    ask(connection, f"X-Request-Start: {time.time() * 1e6 - 2e6:.0f}")
    found = counted.wait_idle()
    assert [waited(found, bucket) for bucket in ("0.25", "1.0", "10.0")] == [4, 3, 1]
    connection = connect(counted.server.port)
    ask(connection)  # what comes past the proxy
    for absurd in ("t=0", "soon", "", f"t={time.time() + 100:.3f}", f"t={time.time() - 4000:.3f}"):
        ask(connection, f"X-Request-Start: {absurd}")
    again = counted.wait_idle()
    assert by(again, f"{QUEUE}_bucket") == by(found, f"{QUEUE}_bucket")
    assert again[f"{QUEUE}_sum"] == found[f"{QUEUE}_sum"]


def test_a_stranger_is_not_believed(counted: MonitoredServer, connect: Connect) -> None:
    counted.start("-w", "1", "--forwarded-allow-ips", "10.0.0.1", ready=1)
    connection = connect(counted.server.port)
    for _ in range(3):
        ask(connection, start_of(2.0))
    assert waited(counted.wait_idle(), "1.0") == 0


def test_behind_nginx(counted: MonitoredServer, make_nginx: MakeProxy) -> None:
    counted.start("-w", "1", bind="unix:app.sock", ready=1)
    proxy = make_nginx(f"""
        location / {{
            proxy_pass http://unix:{counted.server.directory}/app.sock:;
            proxy_set_header X-Request-Start "t=${{msec}}";
        }}
    """)
    forged = {"X-Request-Start": "t=1000"}
    assert httpx.get(proxy.url, headers=forged).status_code == 200
    assert counted.wait_idle()[f"{QUEUE}_count"] == 1
    pid = counted.server.worker_of(0)
    os.kill(pid, signal.SIGSTOP)
    resume = threading.Timer(0.6, os.kill, (pid, signal.SIGCONT))
    resume.start()
    try:
        assert httpx.get(proxy.url, timeout=20).status_code == 200
    finally:
        resume.join()
    found = counted.wait_idle()
    assert (found[f"{QUEUE}_count"], waited(found, "0.25")) == (2, 1)

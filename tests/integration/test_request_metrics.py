"""Requests, counted: what real servers say of real traffic on /metrics."""

from __future__ import annotations

import os
import signal
import socket
import ssl

import pytest
import trustme
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from tests.support.addresses import LOCAL
from tests.support.apps import source
from tests.support.monitored_server import (
    MakeMonitored,
    MonitoredServer,
    by,
    check_histogram,
    requests,
    send,
)
from tests.support.parsers import PARSERS
from tests.support.raw_client import Connection, request
from tests.support.server import Server

STATUSES = (200, 204, 301, 404, 500, 503)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


def cut_off(server: Server, path: str, method: str = "GET") -> None:
    """A request whose response ends before it is complete, or never begins."""
    connection = Connection(server.port)
    try:
        with pytest.raises((ConnectionError, ValueError)):
            connection.send(request(path, method=method)).answer()
    finally:
        connection.close()


def leave(server: Server, path: str, said: str) -> None:
    """Leave in the middle of a request, once the app has said so."""
    before = len(server.logged(f"^{said}"))
    connection = Connection(server.port)
    connection.send(request(path))
    server.wait_logged(f"^{said}", before + 1)
    connection.close()


def leave_stream(server: Server, path: str = "/endless") -> None:
    connection = Connection(server.port)
    assert connection.send(request(path)).head().status == 200
    connection.chunk()
    connection.close()


# --- requests by method and code


@pytest.mark.parametrize("http", PARSERS)
def test_asgi_requests_are_counted_exactly(counted: MonitoredServer, http: str) -> None:
    counted.start("-w", "2", env={"UVICORN_HTTP": http}, ready=2)
    metrics = counted.metrics()
    assert len([key for key in metrics if key.startswith("multicore_http_requests_total{")]) == 60
    assert requests(metrics) == {}
    check_histogram(metrics)

    for status in STATUSES:
        assert send(counted, f"/status?{status}", times=2) == [status] * 2
        # Whoever has a response finds it in the next scrape.
        assert sum(counted.requests().values()) == 2 * (STATUSES.index(status) + 1)
    for method in METHODS:
        assert send(counted, "/", method=method) == [200]
    assert send(counted, "/", method="HEAD") == [200]
    assert send(counted, "/stream", method="PUT") == [200]
    assert send(counted, "/raise", method="DELETE") == [500]
    assert send(counted, "/silent", method="DELETE") == [500]
    assert send(counted, "/raise-after", method="PATCH") == [200]
    cut_off(counted.server, "/raise-late", method="DELETE")
    cut_off(counted.server, "/half", method="DELETE")
    leave(counted.server, "/wait", "waiting")
    leave(counted.server, "/sleep?0.3", "sleeping")
    leave_stream(counted.server)

    metrics = counted.wait_counted({
        "GET 2xx": 5, "GET 3xx": 2, "GET 4xx": 2, "GET 5xx": 4, "GET 499": 3,
        "HEAD 2xx": 1, "POST 2xx": 1, "PUT 2xx": 2, "DELETE 2xx": 1, "DELETE 5xx": 4,
        "PATCH 2xx": 2, "OPTIONS 2xx": 1, "TRACE 2xx": 1, "other 2xx": 1,
    })  # fmt: skip
    check_histogram(metrics)
    total = sum(worker["requests"]["total"] for worker in counted.workers().values())
    assert total == sum(requests(metrics).values())


@pytest.mark.parametrize("threads", ["1", "4"], ids=["inline", "threads"])
def test_wsgi_requests_are_counted_exactly(make_monitored: MakeMonitored, threads: str) -> None:
    counted = make_monitored(source("endings_wsgi")).start("-w", "2", "--threads", threads, ready=2)
    for status in STATUSES:
        assert send(counted, f"/status?{status}", times=2) == [status] * 2
        assert sum(counted.requests().values()) == 2 * (STATUSES.index(status) + 1)
    for method in METHODS:
        assert send(counted, "/", method=method) == [200]
    assert send(counted, "/", method="HEAD") == [200]
    assert send(counted, "/stream", method="PUT") == [200]
    assert send(counted, "/raise", method="DELETE") == [500]
    assert send(counted, "/silent", method="DELETE") == [500]
    cut_off(counted.server, "/raise-late", method="DELETE")
    leave_stream(counted.server)
    counted.server.wait_logged("^left")
    expected = {
        "GET 2xx": 5, "GET 3xx": 2, "GET 4xx": 2, "GET 5xx": 4, "GET 499": 1,
        "HEAD 2xx": 1, "POST 2xx": 1, "PUT 2xx": 2, "DELETE 2xx": 1, "DELETE 5xx": 3,
        "PATCH 2xx": 1, "OPTIONS 2xx": 1, "TRACE 2xx": 1, "other 2xx": 1,
    }  # fmt: skip
    check_histogram(counted.wait_counted(expected))

    # One that has left looks like one that has only said all it has to say: the response is counted as sent.
    leave(counted.server, "/sleep?0.3", "sleeping")
    counted.wait_counted({**expected, "GET 2xx": expected["GET 2xx"] + 1})


def test_one_on_a_kept_alive_connection_and_pipelined(counted: MonitoredServer) -> None:
    counted.start("-w", "1", ready=1)
    connection = Connection(counted.server.port)
    connection.send(request("/") * 5)
    assert [connection.answer().status for _ in range(5)] == [200] * 5
    metrics = counted.metrics()
    assert requests(metrics) == {"GET 2xx": 5}
    assert by(metrics, "multicore_connections") == {"0": 1}
    assert by(metrics, "multicore_connections_accepted_total") == {"0": 1}
    connection.close()
    counted.wait_idle()


def test_requests_in_progress(counted: MonitoredServer) -> None:
    counted.start("-w", "1", ready=1)
    connection = Connection(counted.server.port)
    connection.send(request("/sleep?0.5"))
    counted.server.wait_logged("^sleeping")
    assert by(counted.metrics(), "multicore_requests_in_progress") == {"0": 1}
    assert counted.workers()[0]["in_hand"] == 1
    assert connection.answer().status == 200
    connection.close()
    counted.wait_idle()


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
def test_websockets_are_apart(counted: MonitoredServer, implementation: str) -> None:
    counted.start("-w", "1", env={"UVICORN_WS": implementation}, ready=1)
    address = f"ws://{LOCAL}:{counted.server.port}"
    assert by(counted.metrics(), "multicore_websockets") == {"0": 0}
    with connect_websocket(address) as first, connect_websocket(address):
        first.send("hello")
        assert first.recv() == "hello"
        metrics = counted.metrics()
        assert by(metrics, "multicore_websockets") == {"0": 2}
        assert by(metrics, "multicore_requests_in_progress") == {"0": 0}
    with pytest.raises(InvalidStatus):
        connect_websocket(f"{address}/refuse")
    with connect_websocket(address) as cut:
        cut.socket.shutdown(socket.SHUT_RDWR)
    metrics = counted.wait_idle()
    assert requests(metrics) == {}


# --- what comes back to nothing


def test_handshakes_that_fail_leave_nothing_in_hand(
    counted: MonitoredServer, ca: trustme.CA, trusting: ssl.SSLContext
) -> None:
    tls = ("--certfile", "../cert.pem", "--keyfile", "../key.pem")
    counted.start("-w", "2", *tls, ready=2)
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
        for _ in range(4):
            connection = Connection(counted.server.port)
            connection.send(said)
            connection.close()
    distrusting = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        Connection(counted.server.port, tls=distrusting)
    connection = Connection(counted.server.port, tls=trusting)
    assert connection.send(request("/")).answer().status == 200
    connection.close()
    metrics = counted.wait_counted({"GET 2xx": 1})
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == 14


def test_a_killed_worker_has_nothing_in_hand(counted: MonitoredServer) -> None:
    counted.start("-w", "2", ready=2)
    waiting = [Connection(counted.server.port).send(request("/wait")) for _ in range(4)]
    counted.server.wait_logged("^waiting", 4)
    with connect_websocket(f"ws://{LOCAL}:{counted.server.port}"):
        assert sum(by(counted.metrics(), "multicore_requests_in_progress").values()) == 4
        for pid in counted.server.workers():
            os.kill(pid, signal.SIGKILL)
        for connection in waiting:
            assert connection.ends()
            connection.close()
        counted.server.wait_ready(4)
    metrics = counted.wait_idle()
    assert requests(metrics) == {}
    assert metrics['multicore_worker_restarts_total{reason="signal"}'] == 2


@pytest.mark.parametrize("way", ["graceful_timeout", "QUIT"])
def test_a_cancelled_request_is_an_error(counted: MonitoredServer, way: str) -> None:
    """uvicorn answers it with 500."""
    counted.start("-w", "1", "--graceful-timeout", "1", ready=1)
    connection = Connection(counted.server.port)
    connection.send(request("/sleep?60"))
    counted.server.wait_logged("^sleeping")
    if way == "QUIT":
        os.kill(counted.server.worker_of(0), signal.SIGQUIT)
    else:
        counted.server.signal(signal.SIGHUP)
    assert connection.answer().status == 500
    connection.close()
    counted.server.wait_ready(2)
    counted.wait_counted({"GET 5xx": 1})

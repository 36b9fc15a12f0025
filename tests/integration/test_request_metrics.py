"""Requests, connections and restarts, counted: what real servers say of real traffic on /metrics."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable

import pytest
import trustme
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from tests.support.addresses import LOCAL
from tests.support.deploying import hup
from tests.support.monitored_server import (
    MakeMonitored,
    Metrics,
    MonitoredServer,
    ask_app,
    by,
    parsed,
    requests,
)
from tests.support.processes import wait_gone
from tests.support.raw_client import Connection, request
from tests.support.server import Server
from tests.support.waiting import wait_for

ASGI = """
import asyncio, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        return await websocket(scope, receive, send)
    path, query = scope["path"], scope["query_string"].decode()

    async def start(status=200, *headers):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def body(data=b"", more=False):
        await send({"type": "http.response.body", "body": data, "more_body": more})

    if path == "/raise":
        raise RuntimeError("the app's mistake")
    if path == "/raise-late":
        await start()
        await body(b"some", True)
        raise RuntimeError("the app's mistake, halfway")
    if path == "/raise-after":
        await start(200, (b"content-length", b"0"))
        await body()
        raise RuntimeError("the app's mistake, afterwards")
    if path == "/silent":
        return
    if path == "/half":
        await start()
        return await body(b"some", True)
    if path == "/wait":
        print("waiting", flush=True)
        while (await receive())["type"] != "http.disconnect":
            pass
        print("left", flush=True)
        return
    if path == "/sleep":
        print("sleeping", flush=True)
        await asyncio.sleep(float(query))
    if path == "/stream":
        await start()
        for _ in range(5):
            await body(b"part", True)
        return await body()
    if path == "/endless":
        await start()
        leaving = asyncio.ensure_future(receive())
        while not leaving.done() or leaving.result()["type"] != "http.disconnect":
            if leaving.done():
                leaving = asyncio.ensure_future(receive())
            await body(b"part" * 100, True)
            await asyncio.sleep(0.01)
        return
    if path == "/block":
        time.sleep(float(query))
    status = int(query) if path == "/status" else 200
    await start(status, *([] if status == 204 else [(b"content-length", b"2")]))
    await body(b"" if status == 204 or scope["method"] == "HEAD" else b"ok")

async def websocket(scope, receive, send):
    await receive()
    if scope["path"] == "/refuse":
        return await send({"type": "websocket.close"})
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
"""

WSGI = """
import time

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/raise":
        raise RuntimeError("the app's mistake")
    if path == "/raise-late":
        start_response("200 OK", [])
        return failing()
    if path == "/silent":
        return []
    if path == "/sleep":
        print("sleeping", flush=True)
        time.sleep(float(query))
    if path == "/stream":
        start_response("200 OK", [])
        return [b"part"] * 5
    if path == "/endless":
        start_response("200 OK", [])
        return endless()
    status = query if path == "/status" else "200"
    start_response(status + " Status", [] if status == "204" else [("Content-Length", "2")])
    return [] if status == "204" or environ["REQUEST_METHOD"] == "HEAD" else [b"ok"]

def failing():
    yield b"some"
    raise RuntimeError("the app's mistake, halfway")

def endless():
    try:
        while True:
            yield b"part" * 100
            time.sleep(0.01)
    finally:
        print("left", flush=True)
"""

STATUSES = (200, 204, 301, 404, 500, 503)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture
def monitored(make_monitored: MakeMonitored) -> MonitoredServer:
    return make_monitored(ASGI)


def send(monitored: MonitoredServer, path: str, *, method: str = "GET", times: int = 1) -> list[int]:
    asked = request(path, method=method)
    bodiless = method == "HEAD"
    return [ask_app(monitored.server, asked, bodiless=bodiless) for _ in range(times)]


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


def check_histogram(metrics: Metrics) -> None:
    """Every request that was counted is in the histogram, and no other."""
    name = "multicore_http_request_duration_seconds"
    total = sum(requests(metrics).values())
    buckets = list(by(metrics, f"{name}_bucket").values())
    assert metrics[f"{name}_count"] == total == buckets[-1]
    assert buckets == sorted(buckets)


# --- requests by method and code


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_asgi_requests_are_counted_exactly(monitored: MonitoredServer, http: str) -> None:
    monitored.start("-w", "2", env={"UVICORN_HTTP": http}, ready=2)
    metrics = monitored.metrics()
    assert len([key for key in metrics if key.startswith("multicore_http_requests_total{")]) == 60
    assert requests(metrics) == {}
    check_histogram(metrics)

    for status in STATUSES:
        assert send(monitored, f"/status?{status}", times=2) == [status] * 2
        # Whoever has a response finds it in the next scrape.
        assert sum(monitored.requests().values()) == 2 * (STATUSES.index(status) + 1)
    for method in METHODS:
        assert send(monitored, "/", method=method) == [200]
    assert send(monitored, "/", method="HEAD") == [200]
    assert send(monitored, "/stream", method="PUT") == [200]
    assert send(monitored, "/raise", method="DELETE") == [500]
    assert send(monitored, "/silent", method="DELETE") == [500]
    assert send(monitored, "/raise-after", method="PATCH") == [200]
    cut_off(monitored.server, "/raise-late", method="DELETE")
    cut_off(monitored.server, "/half", method="DELETE")
    leave(monitored.server, "/wait", "waiting")
    leave(monitored.server, "/sleep?0.3", "sleeping")
    leave_stream(monitored.server)

    metrics = monitored.wait_counted({
        "GET 2xx": 5, "GET 3xx": 2, "GET 4xx": 2, "GET 5xx": 4, "GET 499": 3,
        "HEAD 2xx": 1, "POST 2xx": 1, "PUT 2xx": 2, "DELETE 2xx": 1, "DELETE 5xx": 4,
        "PATCH 2xx": 2, "OPTIONS 2xx": 1, "TRACE 2xx": 1, "other 2xx": 1,
    })  # fmt: skip
    check_histogram(metrics)
    total = sum(worker["requests"]["total"] for worker in monitored.workers().values())
    assert total == sum(requests(metrics).values())


@pytest.mark.parametrize("threads", ["1", "4"], ids=["inline", "threads"])
def test_wsgi_requests_are_counted_exactly(make_monitored: MakeMonitored, threads: str) -> None:
    monitored = make_monitored(WSGI).start("-w", "2", "--threads", threads, ready=2)
    for status in STATUSES:
        assert send(monitored, f"/status?{status}", times=2) == [status] * 2
        assert sum(monitored.requests().values()) == 2 * (STATUSES.index(status) + 1)
    for method in METHODS:
        assert send(monitored, "/", method=method) == [200]
    assert send(monitored, "/", method="HEAD") == [200]
    assert send(monitored, "/stream", method="PUT") == [200]
    assert send(monitored, "/raise", method="DELETE") == [500]
    assert send(monitored, "/silent", method="DELETE") == [500]
    cut_off(monitored.server, "/raise-late", method="DELETE")
    leave_stream(monitored.server)
    monitored.server.wait_logged("^left")
    expected = {
        "GET 2xx": 5, "GET 3xx": 2, "GET 4xx": 2, "GET 5xx": 4, "GET 499": 1,
        "HEAD 2xx": 1, "POST 2xx": 1, "PUT 2xx": 2, "DELETE 2xx": 1, "DELETE 5xx": 3,
        "PATCH 2xx": 1, "OPTIONS 2xx": 1, "TRACE 2xx": 1, "other 2xx": 1,
    }  # fmt: skip
    check_histogram(monitored.wait_counted(expected))

    # Inline the loop learns of a client that has left when the response is under way: it is counted as sent.
    leave(monitored.server, "/sleep?0.3", "sleeping")
    code = "GET 2xx" if threads == "1" else "GET 499"
    monitored.wait_counted({**expected, code: expected[code] + 1})


def test_one_on_a_kept_alive_connection_and_pipelined(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    connection = Connection(monitored.server.port)
    connection.send(request("/") * 5)
    assert [connection.answer().status for _ in range(5)] == [200] * 5
    metrics = monitored.metrics()
    assert requests(metrics) == {"GET 2xx": 5}
    assert by(metrics, "multicore_connections") == {"0": 1}
    assert by(metrics, "multicore_connections_accepted_total") == {"0": 1}
    connection.close()
    monitored.wait_idle()


def test_requests_in_progress(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    connection = Connection(monitored.server.port)
    connection.send(request("/sleep?0.5"))
    monitored.server.wait_logged("^sleeping")
    assert by(monitored.metrics(), "multicore_requests_in_progress") == {"0": 1}
    assert monitored.workers()[0]["in_hand"] == 1
    assert connection.answer().status == 200
    connection.close()
    monitored.wait_idle()


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
def test_websockets_are_apart(monitored: MonitoredServer, implementation: str) -> None:
    monitored.start("-w", "1", env={"UVICORN_WS": implementation}, ready=1)
    address = f"ws://{LOCAL}:{monitored.server.port}"
    assert by(monitored.metrics(), "multicore_websockets") == {"0": 0}
    with connect_websocket(address) as first, connect_websocket(address):
        first.send("hello")
        assert first.recv() == "hello"
        metrics = monitored.metrics()
        assert by(metrics, "multicore_websockets") == {"0": 2}
        assert by(metrics, "multicore_requests_in_progress") == {"0": 0}
    with pytest.raises(InvalidStatus):
        connect_websocket(f"{address}/refuse")
    with connect_websocket(address) as cut:
        cut.socket.shutdown(socket.SHUT_RDWR)
    metrics = monitored.wait_idle()
    assert requests(metrics) == {}


# --- what comes back to nothing


def test_handshakes_that_fail_leave_nothing_in_hand(
    monitored: MonitoredServer, ca: trustme.CA, trusting: ssl.SSLContext
) -> None:
    tls = ("--certfile", "../cert.pem", "--keyfile", "../key.pem")
    monitored.start("-w", "2", *tls, ready=2)
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
        for _ in range(4):
            connection = Connection(monitored.server.port)
            connection.send(said)
            connection.close()
    distrusting = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        Connection(monitored.server.port, tls=distrusting)
    connection = Connection(monitored.server.port, tls=trusting)
    assert connection.send(request("/")).answer().status == 200
    connection.close()
    metrics = monitored.wait_counted({"GET 2xx": 1})
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == 14


def test_a_killed_worker_has_nothing_in_hand(monitored: MonitoredServer) -> None:
    monitored.start("-w", "2", ready=2)
    waiting = [Connection(monitored.server.port).send(request("/wait")) for _ in range(4)]
    monitored.server.wait_logged("^waiting", 4)
    with connect_websocket(f"ws://{LOCAL}:{monitored.server.port}"):
        assert sum(by(monitored.metrics(), "multicore_requests_in_progress").values()) == 4
        for pid in monitored.server.workers():
            os.kill(pid, signal.SIGKILL)
        for connection in waiting:
            assert connection.ends()
            connection.close()
        monitored.server.wait_ready(4)
    metrics = monitored.wait_idle()
    assert requests(metrics) == {}
    assert metrics['multicore_worker_restarts_total{reason="signal"}'] == 2


@pytest.mark.parametrize("way", ["graceful_timeout", "QUIT"])
def test_a_cancelled_request_is_an_error(monitored: MonitoredServer, way: str) -> None:
    """uvicorn answers it with 500."""
    monitored.start("-w", "1", "--graceful-timeout", "1", ready=1)
    connection = Connection(monitored.server.port)
    connection.send(request("/sleep?60"))
    monitored.server.wait_logged("^sleeping")
    if way == "QUIT":
        os.kill(monitored.server.worker_of(0), signal.SIGQUIT)
    else:
        monitored.server.signal(signal.SIGHUP)
    assert connection.answer().status == 500
    connection.close()
    monitored.server.wait_ready(2)
    monitored.wait_counted({"GET 5xx": 1})


# --- counters


class Scrapes:
    """Scrapes without a pause while the ``with`` block runs; no counter may fall from one to the next."""

    def __init__(self, monitored: MonitoredServer) -> None:
        self.monitored = monitored
        self.last = monitored.metrics()
        self.count = 0
        self.falls: list[str] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._look()
        assert self.count > 5
        assert self.falls == []

    def _work(self) -> None:
        while not self._stopped.wait(0.03):
            self._look()

    def _look(self) -> None:
        metrics = self.monitored.metrics()
        self.count += 1
        for key, value in self.last.items():
            if re.match(r"\w+_(total|count|sum|bucket)\b", key) and metrics.get(key, -1.0) < value:
                self.falls.append(f"{key} {value} -> {metrics.get(key)}")
        self.last = metrics


@pytest.fixture
def sending(monitored: MonitoredServer) -> Callable[[int], int]:
    """Send so many requests, each answered, on connections of their own; how many there were so far."""
    sent = 0

    def send_more(count: int) -> int:
        nonlocal sent
        sent += len(send(monitored, "/", times=count))
        return sent

    return send_more


def test_counters_never_fall_and_are_exact(monitored: MonitoredServer, sending: Callable[[int], int]) -> None:
    """Over kills, a reload, scaling down and up: worker by worker and in sum."""
    server = monitored.server
    monitored.start("-w", "2", ready=2)
    with Scrapes(monitored):
        sending(30)
        for kills, instance in enumerate((0, 1), 1):
            pid = server.worker_of(instance)
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid)
            sending(20)
            server.wait_ready(2 + kills)
        server.signal(signal.SIGHUP)
        server.wait_logged("reload done")
        sending(20)
        server.signal(signal.SIGTTOU)
        wait_for(lambda: monitored.workers().keys() == {0}, "one worker")
        assert by(monitored.metrics(), "multicore_connections_accepted_total").keys() == {"0", "1"}
        sending(20)
        server.signal(signal.SIGTTIN)
        wait_for(lambda: monitored.status()["ready"] == 2, "two workers")
        total = sending(20)
        metrics = monitored.wait_counted({"GET 2xx": total})
    check_histogram(metrics)
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == total
    restarts = {key: value for key, value in by(metrics, "multicore_worker_restarts_total").items() if value}
    assert restarts == {"signal": 2, "reload": 2}
    assert metrics['multicore_reloads_total{result="ok"}'] == 1
    assert {it["instance"]: it["restarts"] for it in monitored.status()["workers"]}[0] == {
        "signal": 1, "reload": 1,
    }  # fmt: skip


def test_known_label_values_are_there_from_the_start(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    metrics = monitored.metrics()
    reasons = {
        "exit",
        "signal",
        "oom",
        "timeout",
        "boot",
        "memory",
        "max_requests",
        "lifetime",
        "cron",
        "reload",
    }
    restarts = by(metrics, "multicore_worker_restarts_total")
    assert restarts == dict.fromkeys([*reasons, "manual"], 0)
    assert by(metrics, "multicore_reloads_total") == dict.fromkeys(("ok", "rolled_back", "failed"), 0)
    assert by(metrics, "multicore_workers") == {
        "starting": 0, "ready": 1, "draining": 0, "backoff": 0, "stopped": 0, "errored": 0,
    }  # fmt: skip
    for name in ("connections", "requests_in_progress", "websockets", "connections_accepted_total"):
        assert by(metrics, f"multicore_{name}") == {"0": 0}, name
    assert metrics["multicore_connections_handed_over_total"] == 0
    assert metrics["multicore_connections_migrated_total"] == 0
    assert metrics["multicore_listen_backlog"] == 0


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("max_requests", ("--max-requests", "3")),
        ("lifetime", ("--env", "MULTICORE_MAX_LIFETIME=300ms")),
        ("timeout", ("--timeout", "1")),
    ],
)
def test_restarts_by_reason(monitored: MonitoredServer, reason: str, settings: tuple[str, ...]) -> None:
    monitored.start("-w", "1", *settings, ready=1)
    if reason == "max_requests":
        send(monitored, "/", times=3)
    if reason == "timeout":
        with pytest.raises(ConnectionError):
            send(monitored, "/block?20")

    def counted() -> bool:
        return monitored.metrics()[f'multicore_worker_restarts_total{{reason="{reason}"}}'] >= 1

    wait_for(counted, f"a restart by {reason}")
    others = by(monitored.metrics(), "multicore_worker_restarts_total")
    assert {key for key, value in others.items() if value} == {reason}


def test_reloads_by_result(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    server = monitored.server
    server.write("app.py", "import nowhere")
    hup(server, "reload rolled back")
    server.write("gunicorn.conf.py", "max_restarts = 'often'")
    hup(server, "reload failed")
    assert by(monitored.metrics(), "multicore_reloads_total") == {"ok": 0, "rolled_back": 1, "failed": 1}


# --- connections


@pytest.mark.parametrize("scheduling", ["least", "shared"])
def test_open_connections(monitored: MonitoredServer, scheduling: str) -> None:
    monitored.start("-w", "1", env={"MULTICORE_SCHEDULING": scheduling}, ready=1)

    def are_open(count: int) -> None:
        def found() -> bool:
            return by(monitored.metrics(), "multicore_connections") == {"0": count}

        wait_for(found, f"{count} open connections")

    kept = [Connection(monitored.server.port) for _ in range(3)]
    are_open(3)
    for connection in kept:
        assert connection.send(request("/")).answer().status == 200
    with connect_websocket(f"ws://{LOCAL}:{monitored.server.port}"):
        are_open(4)
    are_open(3)
    for connection in kept:
        connection.close()
    assert by(monitored.wait_idle(), "multicore_connections_accepted_total") == {"0": 4}


def test_connections_are_handed_over_and_migrate(
    monitored: MonitoredServer, connect: Callable[..., Connection]
) -> None:
    monitored.start("-w", "2", ready=2)
    away = monitored.server.worker_of(1)
    os.kill(away, signal.SIGSTOP)  # the other one accepts them all, and half of them are for this one
    busy = [connect(monitored.server.port).send(request("/sleep?0.5")) for _ in range(8)]
    time.sleep(0.05)  # less than the siblings wait for its heartbeat
    os.kill(away, signal.SIGCONT)
    monitored.server.wait_logged("^sleeping", 8)

    def are_shared() -> bool:
        return by(monitored.metrics(), "multicore_connections") == {"0": 4, "1": 4}

    wait_for(are_shared, "four connections for each", 2)
    metrics = monitored.metrics()
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == 8
    assert metrics["multicore_connections_handed_over_total"] >= 1
    assert [connection.answer().status for connection in busy] == [200] * 8

    monitored.server.signal(signal.SIGHUP)
    monitored.server.wait_logged("reload done")
    metrics = monitored.metrics()
    assert metrics["multicore_connections_migrated_total"] >= 8
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == 8
    for connection in busy:
        assert connection.send(request("/")).answer().status == 200
        connection.close()
    monitored.wait_counted({"GET 2xx": 16})


# --- gauges


def test_the_lag_of_a_blocked_event_loop(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    lag = "multicore_event_loop_lag_seconds"
    wait_for(lambda: by(monitored.metrics(), lag)["0"] < 0.2, "a worker at rest")
    connection = Connection(monitored.server.port)
    connection.send(request("/block?1"))
    # While it is blocked, and still afterwards.
    wait_for(lambda: by(monitored.metrics(), lag)["0"] > 0.4, "a lag", 1.5)
    assert connection.answer().status == 200
    connection.close()
    wait_for(lambda: 0.7 < monitored.workers()[0]["loop_lag"] < 5, "the lag of the past")
    assert by(monitored.metrics(), lag)["0"] > 0.7


def test_the_backlog_of_a_stopped_worker(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    pid = monitored.server.worker_of(0)
    os.kill(pid, signal.SIGSTOP)
    waiting = [Connection(monitored.server.port).send(request("/")) for _ in range(5)]
    try:
        wait_for(lambda: monitored.metrics()["multicore_listen_backlog"] == 5, "five in the backlog")
    finally:
        os.kill(pid, signal.SIGCONT)
    for connection in waiting:
        assert connection.answer().status == 200
        connection.close()
    wait_for(lambda: monitored.metrics()["multicore_listen_backlog"] == 0, "an empty backlog")


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ({"MULTICORE_MAX_MEMORY_RESTART": "1G", "MULTICORE_MAX_MEMORY_KILL": "2G"}, 2.0**30),
        ({"MULTICORE_MAX_MEMORY_KILL": "2G"}, 2.0**31),
        ({}, None),
    ],
    ids=["soft", "hard", "none"],
)
def test_memory(monitored: MonitoredServer, limits: dict[str, str], shown: float | None) -> None:
    monitored.start("-w", "1", env=limits, ready=1)
    worker, name = (
        wait_for(lambda: measured(monitored), "measured memory"),
        "multicore_worker_memory_limit_bytes",
    )
    assert monitored.metrics().get(name) == shown
    assert worker["memory"]["limit"] == shown
    metrics = monitored.metrics()
    resident = by(metrics, "multicore_worker_resident_memory_bytes")["0"]
    unique = by(metrics, "multicore_worker_unique_memory_bytes")["0"]
    assert 2**20 < unique <= resident < 2**30
    began = by(metrics, "multicore_worker_start_time_seconds")["0"]
    assert time.time() - 60 < metrics["process_start_time_seconds"] <= began <= time.time()


def measured(monitored: MonitoredServer) -> dict[str, dict[str, int | None]]:
    """The only worker, once its memory was measured."""
    worker: dict[str, dict[str, int | None]] = monitored.workers()[0]
    return worker if worker["memory"]["resident"] and worker["memory"]["unique"] else {}


def test_a_scrape_is_parsed_by_name() -> None:
    assert parsed('# HELP a b\na{x="1 2"} 3.0\n') == {'a{x="1 2"}': 3.0}

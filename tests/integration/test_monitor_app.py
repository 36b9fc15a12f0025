"""The monitor by itself: a real process, real sockets, a real scoreboard; the test is its arbiter."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import mmap_dict

from multicore_server.ipc.scoreboard import Head, Item
from multicore_server.metrics.app.merge import AppMetrics
from multicore_server.metrics.definitions import TAKEN
from multicore_server.worker.metrics_path import MetricsPath
from tests.support.monitor_process import MakeMonitor, Monitor, seconds
from tests.support.raw_client import Connection, request
from tests.support.reports import event, process, slot
from tests.support.waiting import PATIENCE, wait_for

REQUESTS = 'multicore_http_requests_total{code="2xx",method="GET"} '


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
    assert [path for path in ("/metrics", "/status", "/healthz", "/readyz") if path not in text] == []


@pytest.mark.parametrize("path", ["/", "/metrics", "/status", "/healthz", "/readyz"])
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
    assert (answer.status, answer.body) == (404, b"not found; / lists what there is\n")
    assert "location" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_other_methods_are_405(monitor: Monitor, method: str) -> None:
    with monitor.client() as client:
        answer = client.request(method, "/metrics")
        assert client.get("/healthz").status_code == 200
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_over_a_unix_socket_too(monitor: Monitor) -> None:
    with monitor.client(monitor.unix) as client:
        assert client.get("/readyz").status_code == 200
        assert client.post("/commands/stop").status_code == 404


@pytest.mark.parametrize("head", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
def test_a_body_is_refused_unread(monitor: Monitor, head: str) -> None:
    connection = monitor.connect().send(request("/metrics", head))
    answer = connection.answer()
    assert (answer.status, answer.is_last) == (413, True)
    assert connection.ends()


# --- hostile and slow scrapers ---


def ending(connection: Connection) -> str:
    """How a connection ends, whatever came before it."""
    try:
        while connection.socket.recv(2**20):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


def test_a_head_that_is_too_long_is_refused(monitor: Monitor) -> None:
    connection = monitor.connect()
    connection.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\nX-Long: " + b"x" * 20_000)
    assert connection.head().status in (400, 431)
    assert monitor.get("/healthz").status_code == 200
    assert monitor.log == ""


def test_a_request_that_arrives_slowly_is_cut(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(request=0.5)
    monitor.publish()
    connection = monitor.connect()
    began = time.monotonic()
    letters = iter(b"GET /metrics HTTP/1.1\r\nX-Slow: " + b"x" * 1000)

    def cut() -> bool:
        try:
            connection.send(bytes([next(letters)]))
        except ConnectionError:
            return True
        return False

    wait_for(cut, "the connection is cut")
    assert 0.4 < seconds(began) < 5
    assert monitor.get("/healthz").status_code == 200


@pytest.mark.parametrize("first", [b"", b"\r\n", b"GET"])
def test_after_a_response_too(make_monitor: MakeMonitor, first: bytes) -> None:
    monitor = make_monitor(request=0.3, keep_alive=1)
    monitor.publish()
    connection = monitor.connect().send(request("/healthz"))
    assert connection.answer().status == 200
    time.sleep(0.4)  # longer than a request may take: an idle connection stays
    began = time.monotonic()
    if first:
        connection.send(first)
    assert ending(connection) in ("reset", "closed")
    assert seconds(began) < 5


def test_one_that_reads_slowly_is_reset(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(response=0.5)
    monitor.publish(settings={"long": "x" * 500_000})
    connection = monitor.connect(buffer=4096)
    began = time.monotonic()
    connection.send(request("/status") * 20)
    wait_for(lambda: connections(monitor), "it is connected")
    wait_for(lambda: not connections(monitor), "the connection is cut")
    assert 0.4 < seconds(began) < 5
    assert ending(connection) == "reset"
    assert monitor.get("/status").status_code == 200
    assert monitor.log == ""


def test_one_that_reads_slowly_is_cut_on_a_unix_socket(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(response=0.5)
    monitor.publish(settings={"long": "x" * 500_000})
    assert monitor.get("/healthz").status_code == 200
    began = time.monotonic()
    monitor.connect(monitor.unix).send(request("/status"))
    wait_for(lambda: on_unix(monitor) == 1, "it is connected")
    wait_for(lambda: on_unix(monitor) == 0, "the connection is cut")
    assert 0.4 < seconds(began) < 5


def on_unix(monitor: Monitor) -> int:
    """How many connections its process has on the unix socket, beside the listener."""
    found = psutil.Process(monitor.pid).net_connections("unix")
    return sum(str(connection.laddr) == str(monitor.unix) for connection in found) - 1


def test_one_that_reads_on_gets_it_all(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(response=1.0)
    monitor.publish(settings={"long": "x" * 900_000})
    connection = monitor.connect(buffer=4096)
    connection.send(request("/status"))
    assert json.loads(connection.answer().body)["settings"]["long"] == "x" * 900_000


def connections(monitor: Monitor) -> list[Any]:
    """Those that its process has, on TCP."""
    found = psutil.Process(monitor.pid).net_connections("tcp")
    return [connection for connection in found if connection.status != psutil.CONN_LISTEN]


def test_idle_connections_do_not_keep_a_scraper_out(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(connections=64, give_way=0.5)
    monitor.publish()
    began = time.monotonic()
    for _ in range(200):
        monitor.connect()
    wait_for(lambda: 0 < len(connections(monitor)) <= 64, "no more than the limit")

    def answered() -> bool:
        try:
            return monitor.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answered, "an answer", 5)
    assert seconds(began) < 5
    assert len(connections(monitor)) <= 64


def test_busy_connections_do_not_give_way(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(connections=2, give_way=0.0)
    monitor.publish()
    busy = [monitor.connect().send(b"GET /healthz HTTP/1.1\r\n") for _ in range(2)]
    wait_for(lambda: len(connections(monitor)) == 2, "both are connected")
    time.sleep(0.1)  # and their first bytes are read
    assert ending(monitor.connect().send(request("/healthz"))) in ("reset", "closed")
    for connection in busy:
        assert connection.send(b"Host: test\r\n\r\n").answer().status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n\x00\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: " + b"a;q=\xff," * 500 + b"\r\n\r\n",
        b"GET /status?%ff%00=\x7f HTTP/1.0\r\n\r\n",
    ],
)
def test_garbage_hurts_nobody_and_logs_nothing(make_monitor: MakeMonitor, garbage: bytes) -> None:
    monitor = make_monitor(request=0.3, keep_alive=1)
    monitor.publish()
    connection = monitor.connect().send(garbage)
    assert ending(connection) in ("reset", "closed")
    assert monitor.get("/healthz").status_code == 200
    assert monitor.log == ""


def test_a_scraper_that_leaves_in_the_middle(monitor: Monitor) -> None:
    for _ in range(20):
        monitor.connect().send(request("/metrics")).close()
    assert monitor.get("/metrics").status_code == 200
    assert monitor.log == ""


# --- merges ---


class SlowApp:
    """Stands for an app with very many metrics: a merge takes a while of computing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left_out = self.collisions = 0

    def collect(self, state: Any) -> list[Any]:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        return []


def test_a_long_merge_delays_neither_health_nor_heartbeat(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(app_metrics=SlowApp(1.5))
    monitor.publish()
    assert monitor.get("/healthz").status_code == 200
    scraper = monitor.connect().send(request("/metrics"))
    time.sleep(0.1)  # it has begun
    with monitor.client() as client:
        for _ in range(5):
            began = time.monotonic()
            assert client.get("/healthz").status_code == 200
            assert seconds(began) < 0.5
    beat = monitor.scoreboard.head[Head.MONITOR_HEARTBEAT]
    wait_for(lambda: monitor.scoreboard.head[Head.MONITOR_HEARTBEAT] > beat, "the next heartbeat", 1.3)
    assert scraper.answer().status == 200


def test_scrapes_share_merges(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(app_metrics=SlowApp(0.2))
    monitor.publish()
    scrapers = [monitor.connect() for _ in range(20)]
    began = time.monotonic()
    for scraper in scrapers:
        scraper.send(request("/metrics"))
    assert [scraper.answer().status for scraper in scrapers] == [200] * 20
    assert seconds(began) < 2  # one merge or two, not twenty


class BrokenApp(SlowApp):
    def collect(self, state: Any) -> list[Any]:
        raise OSError("no such directory")


def test_without_the_apps_metrics_there_are_ours(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(app_metrics=BrokenApp(0))
    monitor.publish()
    for _ in range(3):
        assert "multicore_workers" in monitor.get("/metrics").text
    lines = monitor.log.splitlines()
    assert len(lines) == 1
    assert "cannot be collected (OSError: no such directory)" in lines[0]


def test_the_apps_metrics_are_beside_ours(make_monitor: MakeMonitor, tmp_path: Path) -> None:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    for row, value in ((0, 2.0), (4, 3.0)):
        path = str(directory / f"counter_row{row}.db")
        written: Any = mmap_dict.MmapedDict(path)  # type: ignore[no-untyped-call]
        written.write_value(mmap_dict.mmap_key("jobs", "jobs_total", [], [], "Jobs."), value, 0.0)
        written.close()
    (directory / "counter_row8.db").write_bytes(b"\xff" * 100)
    monitor = make_monitor(app_metrics=AppMetrics(directory, TAKEN), app_identifier=lambda row: f"row{row}")
    monitor.publish()
    text = monitor.get("/metrics").text
    assert "\njobs_total 5.0\n" in text
    assert '\nmulticore_app_metrics_left_out{reason="file"} 1.0\n' in text


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


# --- commands ---


def test_a_command_and_its_answer(monitor: Monitor) -> None:
    with monitor.answering(True, "scaling to 4 workers") as commands:
        answer = monitor.command("/commands/scale", {"workers": 4})
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "text": "scaling to 4 workers"})
    assert commands == [{"id": 1, "command": "scale", "workers": 4}]


def test_what_the_arbiter_refuses_is_409(monitor: Monitor) -> None:
    with monitor.answering(False, "there is no instance 9"):
        answer = monitor.command("/commands/restart", {"instances": [9]})
    assert (answer.status_code, answer.json()) == (409, {"ok": False, "text": "there is no instance 9"})


def test_answers_find_their_command_in_any_order(monitor: Monitor) -> None:
    with monitor.client(monitor.commands) as client:
        first = monitor.connect(monitor.commands).send(request("/commands/reload", method="POST"))
        reload = json.loads(monitor.channel.recv(65536))
        second = monitor.connect(monitor.commands).send(request("/commands/reset", method="POST"))
        reset = json.loads(monitor.channel.recv(65536))
        assert (reload["command"], reset["command"]) == ("reload", "reset")
        for message, text in ((reset, "reset"), ({"id": 99}, "late"), (reload, "reloaded")):
            monitor.channel.send(json.dumps({"id": message["id"], "ok": True, "text": text}).encode())
        assert json.loads(second.answer().body)["text"] == "reset"
        assert json.loads(first.answer().body)["text"] == "reloaded"
        assert client.get("/status").status_code == 200


def test_wrong_commands_never_reach_the_arbiter(monitor: Monitor) -> None:
    answer = monitor.command("/commands/scale", {"workers": 0})
    assert answer.status_code == 400
    assert answer.json()["text"].startswith("workers: give a number from 1")
    assert monitor.command("/commands/explode").status_code == 404
    assert monitor.command("/commands/stop", method="GET").status_code == 405
    assert monitor.command("/commands/scale", {"workers": "x" * 20_000}).status_code == 400
    monitor.channel.setblocking(False)
    with pytest.raises(BlockingIOError):
        monitor.channel.recv(1)


def test_without_the_arbiters_end_of_the_channel(monitor: Monitor) -> None:
    with socket.socket(fileno=os.dup(monitor.channel.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)
    answer = monitor.command("/commands/reload")
    assert answer.status_code == 503
    assert answer.json()["text"].startswith("the arbiter ")


def test_commands_are_for_the_owner_alone(monitor: Monitor) -> None:
    assert Path(monitor.commands).stat().st_mode & 0o777 == 0o600


# --- following ---


def data(lines: Iterator[str]) -> dict[str, Any]:
    """The next event."""
    line = next(line for line in lines if line.startswith("data: "))
    found: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return found


def test_events_are_followed(monitor: Monitor) -> None:
    old = [event("first", 1.0), event("second", 2.0)]
    monitor.publish(events=old)
    with monitor.client(monitor.commands) as client, client.stream("GET", "/events?last=1") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert data(lines)["text"] == "second"
        monitor.publish(events=[*old, event("third", 3.0), event("fourth", 4.0)])
        assert [data(lines)["text"], data(lines)["text"]] == ["third", "fourth"]
        monitor.publish(events=[event("fourth", 4.0), event("fifth", 5.0)])  # the oldest are gone
        assert data(lines)["text"] == "fifth"


@pytest.mark.parametrize("last", ["x", "-1", "", "9999999", "\u0661"])
def test_a_wrong_number_of_events(monitor: Monitor, last: str) -> None:
    with monitor.client(monitor.commands) as client:
        assert client.get("/events", params={"last": last}).status_code == 400


# --- the end ---


def test_it_ends_with_its_arbiter(monitor: Monitor) -> None:
    assert monitor.get("/healthz").status_code == 200
    monitor.end_arbiter()
    assert monitor.wait_exit() == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_it_ends_quickly_whoever_hangs_on_it(make_monitor: MakeMonitor, name: str) -> None:
    monitor = make_monitor(app_metrics=SlowApp(3))
    monitor.publish(settings={"long": "x" * 500_000})
    hanging = [
        monitor.connect(buffer=4096).send(request("/status") * 20),
        monitor.connect().send(b"GET /met"),
        monitor.connect().send(request("/metrics")),
        monitor.connect(),
        monitor.connect(monitor.commands).send(request("/events")),
    ]
    assert hanging[-1].head().status == 200
    began = time.monotonic()
    os.kill(monitor.pid, getattr(signal, name))
    assert monitor.wait_exit() == 0
    assert seconds(began) < 1
    for connection in hanging:
        ending(connection)
        assert monitor.log == ""


def test_signals_for_the_arbiter_do_not_end_it(monitor: Monitor) -> None:
    assert monitor.get("/healthz").status_code == 200
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH"):
        os.kill(monitor.pid, getattr(signal, name))
    assert monitor.get("/healthz").status_code == 200


def test_a_rotated_log_is_opened_anew(make_monitor: MakeMonitor) -> None:
    app = BrokenApp(0)
    monitor = make_monitor(app_metrics=app)
    monitor.publish()
    assert monitor.get("/healthz").status_code == 200
    old = monitor.log_path.rename(monitor.directory / "old.log")
    os.kill(monitor.pid, signal.SIGUSR1)
    wait_for(lambda: str(old) not in open_files(monitor), "the old log is closed")
    assert monitor.get("/metrics").status_code == 200
    assert (old.read_text(), monitor.log.count("cannot be collected")) == ("", 1)


def open_files(monitor: Monitor) -> list[str]:
    return [file.path for file in psutil.Process(monitor.pid).open_files()]


def test_what_is_in_hand_is_answered_at_the_end(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(app_metrics=SlowApp(0.5), farewell=PATIENCE)
    monitor.publish()
    scraper = monitor.connect().send(request("/metrics"))
    time.sleep(0.2)
    os.kill(monitor.pid, signal.SIGTERM)
    assert scraper.answer().status == 200
    assert monitor.wait_exit() == 0

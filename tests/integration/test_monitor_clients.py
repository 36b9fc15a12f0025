"""Hostile and slow scrapers of a monitor, and merges that take long."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client import mmap_dict

from multicore_server.ipc.scoreboard import Head
from multicore_server.metrics.app.merge import AppMetrics
from multicore_server.metrics.definitions import TAKEN
from tests.support.monitor_process import BrokenApp, MakeMonitor, Monitor, SlowApp, ending, seconds
from tests.support.raw_client import request
from tests.support.waiting import wait_for

# --- hostile and slow scrapers ---


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
    monitor.connect(monitor.commands).send(request("/status"))
    wait_for(lambda: on_unix(monitor) == 1, "it is connected")
    wait_for(lambda: on_unix(monitor) == 0, "the connection is cut")
    assert 0.4 < seconds(began) < 5


def on_unix(monitor: Monitor) -> int:
    """How many connections its process has on the command socket, beside the listener."""
    name = monitor.commands.replace(".sock", ".new")  # as it is bound, before it gets its own name
    found = psutil.Process(monitor.pid).net_connections("unix")
    return sum(str(connection.laddr) == name for connection in found) - 1


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
    wait_for(lambda: 0 < len(connections(monitor)) <= 64 + 16, "no more than the limits")

    def answered() -> bool:
        try:
            return monitor.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answered, "an answer", 5)
    assert seconds(began) < 5
    assert len(connections(monitor)) <= 64 + 16


def test_clients_that_wait_for_us_do_not_give_way(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(app_metrics=SlowApp(1.0), connections=2, give_way=0.0)
    monitor.publish()
    scrapers = [monitor.connect().send(request("/metrics")) for _ in range(2)]
    wait_for(lambda: len(connections(monitor)) == 2, "both are connected")
    time.sleep(0.1)  # and their requests are read
    answer = monitor.connect().send(request("/status")).answer()
    assert (answer.status, answer.is_last) == (503, True)
    assert monitor.get("/readyz").status_code == 200
    assert [scraper.answer().status for scraper in scrapers] == [200, 200]


def test_probes_are_answered_while_slow_clients_hold_all_connections(monitor: Monitor) -> None:
    """Seventy of them kept /readyz out: the kubelet then kills the pod."""
    slow = [monitor.connect() for _ in range(100)]
    deadline = time.monotonic() + 4
    answers = []
    while time.monotonic() < deadline:
        for place, connection in enumerate(slow):
            try:
                connection.send(b"G")
            except ConnectionError:
                slow[place] = monitor.connect().send(b"GET /metrics")
        time.sleep(0.25)
        answers.append(monitor.get("/readyz").status_code)
    assert answers == [200] * len(answers)
    assert len(answers) > 4
    assert monitor.log == ""


def test_four_hundred_workers_clients_do_not_keep_others_out(monitor: Monitor) -> None:
    """A client of `metrics_path` is a connection to the monitor too."""
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(monitor.unix)  # the kernel refuses those that it has no room for
        for path in ("/readyz", "/healthz", "/status", "/metrics"):
            assert monitor.get(path).status_code == 200


def test_another_host_is_refused_over_tcp_alone(make_monitor: MakeMonitor) -> None:
    monitor = make_monitor(hosts=["*.example.org"])
    monitor.publish()
    hosts = {"evil.example": 421, "a.example.org": 200, "10.0.0.7:9464": 200, "app:9464": 200}
    for host, status in hosts.items():
        assert monitor.get("/status", headers={"host": host}).status_code == status
        assert monitor.get("/readyz", headers={"host": host}).status_code == 200
    with monitor.client(monitor.commands) as client:
        assert client.get("/status", headers={"host": "evil.example"}).status_code == 200


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

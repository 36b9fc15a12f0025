"""Connections, and the gauges of workers and listeners, on /metrics."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from websockets.sync.client import connect as connect_websocket

from tests.support.addresses import LOCAL
from tests.support.monitored_server import (
    MonitoredServer,
    by,
    parsed,
)
from tests.support.raw_client import Connection, request
from tests.support.waiting import wait_for

# --- connections


@pytest.mark.parametrize("scheduling", ["least", "shared"])
def test_open_connections(counted: MonitoredServer, scheduling: str) -> None:
    counted.start("-w", "1", env={"MULTICORE_SCHEDULING": scheduling}, ready=1)

    def are_open(count: int) -> None:
        def found() -> bool:
            return by(counted.metrics(), "multicore_connections") == {"0": count}

        wait_for(found, f"{count} open connections")

    kept = [Connection(counted.server.port) for _ in range(3)]
    are_open(3)
    for connection in kept:
        assert connection.send(request("/")).answer().status == 200
    with connect_websocket(f"ws://{LOCAL}:{counted.server.port}"):
        are_open(4)
    are_open(3)
    for connection in kept:
        connection.close()
    assert by(counted.wait_idle(), "multicore_connections_accepted_total") == {"0": 4}


def test_connections_are_handed_over_and_migrate(
    counted: MonitoredServer, connect: Callable[..., Connection]
) -> None:
    counted.start("-w", "2", ready=2)
    away = counted.server.worker_of(1)
    os.kill(away, signal.SIGSTOP)  # the other one accepts them all, and half of them are for this one
    busy = [connect(counted.server.port).send(request("/sleep?0.5")) for _ in range(8)]
    time.sleep(0.05)  # less than the siblings wait for its heartbeat
    os.kill(away, signal.SIGCONT)
    counted.server.wait_logged("^sleeping", 8)

    def are_shared() -> bool:
        return by(counted.metrics(), "multicore_connections") == {"0": 4, "1": 4}

    wait_for(are_shared, "four connections for each", 2)
    metrics = counted.metrics()
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == 8
    assert metrics["multicore_connections_handed_over_total"] >= 1
    assert [connection.answer().status for connection in busy] == [200] * 8

    counted.server.signal(signal.SIGHUP)
    counted.server.wait_logged("reload done")
    metrics = counted.metrics()
    assert metrics["multicore_connections_migrated_total"] >= 8
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == 8
    for connection in busy:
        assert connection.send(request("/")).answer().status == 200
        connection.close()
    counted.wait_counted({"GET 2xx": 16})


# --- gauges


def test_the_lag_of_a_blocked_event_loop(counted: MonitoredServer) -> None:
    counted.start("-w", "1", ready=1)
    lag = "multicore_event_loop_lag_seconds"
    wait_for(lambda: by(counted.metrics(), lag)["0"] < 0.2, "a worker at rest")
    connection = Connection(counted.server.port)
    connection.send(request("/block?1"))
    # While it is blocked, and still afterwards.
    wait_for(lambda: by(counted.metrics(), lag)["0"] > 0.4, "a lag", 1.5)
    worker = counted.workers()[0]
    assert (worker["loop_lag"] > 0.4, worker["blocked"] > 0.4, worker["inline"]) == (True, True, False)
    assert connection.answer().status == 200
    connection.close()
    wait_for(lambda: 0.7 < counted.workers()[0]["loop_lag"] < 5, "the lag of the past")
    assert by(counted.metrics(), lag)["0"] > 0.7
    assert counted.workers()[0]["blocked"] == 0


def test_the_backlog_of_a_stopped_worker(counted: MonitoredServer) -> None:
    counted.start("-w", "1", ready=1)
    pid = counted.server.worker_of(0)
    os.kill(pid, signal.SIGSTOP)
    waiting = [Connection(counted.server.port).send(request("/")) for _ in range(5)]
    try:
        wait_for(lambda: counted.metrics()["multicore_listen_backlog"] == 5, "five in the backlog")
    finally:
        os.kill(pid, signal.SIGCONT)
    for connection in waiting:
        assert connection.answer().status == 200
        connection.close()
    wait_for(lambda: counted.metrics()["multicore_listen_backlog"] == 0, "an empty backlog")


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ({"MULTICORE_MAX_MEMORY_RESTART": "1G", "MULTICORE_MAX_MEMORY_KILL": "2G"}, 2.0**30),
        ({"MULTICORE_MAX_MEMORY_KILL": "2G"}, 2.0**31),
        ({}, None),
    ],
    ids=["soft", "hard", "none"],
)
def test_memory(counted: MonitoredServer, limits: dict[str, str], shown: float | None) -> None:
    counted.start("-w", "1", env=limits, ready=1)
    worker, name = (
        wait_for(lambda: measured(counted), "measured memory"),
        "multicore_worker_memory_limit_bytes",
    )
    assert counted.metrics().get(name) == shown
    assert worker["memory"]["limit"] == shown
    metrics = counted.metrics()
    resident = by(metrics, "multicore_worker_resident_memory_bytes")["0"]
    unique = by(metrics, "multicore_worker_unique_memory_bytes")["0"]
    assert 2**20 < unique <= resident < 2**30
    began = by(metrics, "multicore_worker_start_time_seconds")["0"]
    assert time.time() - 60 < metrics["process_start_time_seconds"] <= began <= time.time()


def measured(counted: MonitoredServer) -> dict[str, dict[str, int | None]]:
    """The only worker, once its memory was measured."""
    worker: dict[str, dict[str, int | None]] = counted.workers()[0]
    return worker if worker["memory"]["resident"] and worker["memory"]["unique"] else {}


def test_a_scrape_is_parsed_by_name() -> None:
    assert parsed('# HELP a b\na{x="1 2"} 3.0\n') == {'a{x="1 2"}': 3.0}

"""Counters over restarts, reloads and scaling: they never fall, and are exact."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable

import pytest

from tests.support.deploying import hup
from tests.support.monitored_server import (
    MonitoredServer,
    by,
    check_histogram,
    send,
)
from tests.support.processes import wait_gone
from tests.support.waiting import wait_for

# --- counters


class Scrapes:
    """Scrapes without a pause while the ``with`` block runs; no counter may fall from one to the next."""

    def __init__(self, counted: MonitoredServer) -> None:
        self.counted = counted
        self.last = counted.metrics()
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
        metrics = self.counted.metrics()
        self.count += 1
        for key, value in self.last.items():
            if re.match(r"\w+_(total|count|sum|bucket)\b", key) and metrics.get(key, -1.0) < value:
                self.falls.append(f"{key} {value} -> {metrics.get(key)}")
        self.last = metrics


@pytest.fixture
def sending(counted: MonitoredServer) -> Callable[[int], int]:
    """Send so many requests, each answered, on connections of their own; how many there were so far."""
    sent = 0

    def send_more(count: int) -> int:
        nonlocal sent
        sent += len(send(counted, "/", times=count))
        return sent

    return send_more


def test_counters_never_fall_and_are_exact(counted: MonitoredServer, sending: Callable[[int], int]) -> None:
    """Over kills, a reload, scaling down and up: worker by worker and in sum."""
    server = counted.server
    counted.start("-w", "2", ready=2)
    with Scrapes(counted):
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
        wait_for(lambda: counted.workers().keys() == {0}, "one worker")
        assert by(counted.metrics(), "multicore_connections_accepted_total").keys() == {"0", "1"}
        sending(20)
        server.signal(signal.SIGTTIN)
        wait_for(lambda: counted.status()["ready"] == 2, "two workers")
        total = sending(20)
        metrics = counted.wait_counted({"GET 2xx": total})
    check_histogram(metrics)
    assert sum(by(metrics, "multicore_connections_accepted_total").values()) == total
    restarts = {key: value for key, value in by(metrics, "multicore_worker_restarts_total").items() if value}
    assert restarts == {"signal": 2, "reload": 2}
    assert metrics['multicore_reloads_total{result="ok"}'] == 1
    assert {it["instance"]: it["restarts"] for it in counted.status()["workers"]}[0] == {
        "signal": 1, "reload": 1,
    }  # fmt: skip


def test_known_label_values_are_there_from_the_start(counted: MonitoredServer) -> None:
    counted.start("-w", "1", ready=1)
    metrics = counted.metrics()
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
def test_restarts_by_reason(counted: MonitoredServer, reason: str, settings: tuple[str, ...]) -> None:
    counted.start("-w", "1", *settings, ready=1)
    if reason == "max_requests":
        send(counted, "/", times=3)
    if reason == "timeout":
        with pytest.raises(ConnectionError):
            send(counted, "/block?20")

    def is_counted() -> bool:
        return counted.metrics()[f'multicore_worker_restarts_total{{reason="{reason}"}}'] >= 1

    wait_for(is_counted, f"a restart by {reason}")
    others = by(counted.metrics(), "multicore_worker_restarts_total")
    assert {key for key, value in others.items() if value} == {reason}


def test_reloads_by_result(counted: MonitoredServer) -> None:
    counted.start("-w", "1", ready=1)
    server = counted.server
    server.write("app.py", "import nowhere")
    hup(server, "reload rolled back")
    server.write("gunicorn.conf.py", "max_restarts = 'often'")
    hup(server, "reload failed")
    assert by(counted.metrics(), "multicore_reloads_total") == {"ok": 0, "rolled_back": 1, "failed": 1}

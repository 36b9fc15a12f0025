"""The monitor's process: its signals, its heartbeat, its end, with real sockets on a real loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from multicore_server.ipc.channel import MonitorChannel
from multicore_server.ipc.mailboxes import Mailboxes
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Head, Scoreboard
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.monitor import process
from multicore_server.monitor.address import bind_metrics
from multicore_server.monitor.process import Monitor, MonitorContext, run
from multicore_server.monitor.samples import Samples
from tests.support.reports import report
from tests.unit.shell import Log

TOUCHED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2,
    signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE,
)  # fmt: skip


class Process:
    """A monitor's context with real sockets; ``end_arbiter`` is its arbiter's end."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.lifeline, self._alive = os.pipe()
        os.set_blocking(self.lifeline, False)
        self.channel = MonitorChannel()
        self.listener = bind_metrics("127.0.0.1:0")
        self.log = Log()
        self.reopened = 0
        self.context = MonitorContext(
            scoreboard=Scoreboard(2),
            requests=RequestTable(2 * ROWS_PER_SLOT),
            shared_report=SharedReport(2**16),
            listener=self.listener,
            metrics_listener=None,
            command_listener=None,
            lifeline=self.lifeline,
            channel=self.channel.child_end,
            mailboxes=Mailboxes(2 * ROWS_PER_SLOT),
            log=self.log,
            reopen_log=self._reopen,
        )

    def _reopen(self) -> None:
        self.reopened += 1
        raise FileNotFoundError("no such directory")

    def end_arbiter(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def serve(self, *later: Callable[[], object]) -> float:
        """Serve until something ends it; the seconds that it took. ``later`` are called meanwhile."""
        began = time.monotonic()
        monitor = Monitor(self.context, self.loop)  # takes its time, on a busy machine
        for place, call in enumerate(later, 1):
            self.loop.call_later(0.1 * place, call)
        self.loop.run_until_complete(asyncio.wait_for(monitor.serve(), 20))
        return time.monotonic() - began

    def connect(self, data: bytes) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname())
        client.sendall(data)
        return client

    def close(self) -> None:
        self.context.mailboxes.close()
        self.end_arbiter()
        os.close(self.lifeline)
        self.channel.close()
        self.listener.close()
        self.loop.close()


@pytest.fixture
def made() -> Iterator[Process]:
    before = {number: signal.getsignal(number) for number in TOUCHED}
    found = Process()
    yield found
    for number in TOUCHED:
        found.loop.remove_signal_handler(number)
        signal.signal(number, before[number])
    found.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_it_ends_when_it_is_told_to(made: Process, number: signal.Signals) -> None:
    assert made.serve(lambda: signal.raise_signal(number)) < 10
    assert made.context.scoreboard.head[Head.MONITOR_HEARTBEAT] == pytest.approx(time.monotonic(), abs=10)


def test_it_ends_with_the_arbiter(made: Process) -> None:
    made.serve(made.end_arbiter)


def test_what_is_meant_for_the_arbiter_does_nothing(made: Process) -> None:
    numbers = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
    calls = [lambda number=number: signal.raise_signal(number) for number in numbers]
    assert made.serve(*calls, made.end_arbiter) > 0.1 * len(numbers)


def test_signals_that_came_while_it_booted_are_handled(made: Process) -> None:
    """The arbiter has blocked them for the boot."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)  # for this thread: pytest has others, which do not block it
        made.serve()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGUSR1} == set()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})


def test_usr1_reopens_the_logs_or_says_why_not(made: Process) -> None:
    made.serve(lambda: signal.raise_signal(signal.SIGUSR1), made.end_arbiter)
    assert made.reopened == 1
    assert made.log.said("monitor: a log file could not be reopened: no such directory")


def test_a_lifeline_that_wakes_without_news_ends_nothing(made: Process) -> None:
    monitor = Monitor(made.context, made.loop)
    monitor._on_lifeline()
    assert not monitor._ended.is_set()


def test_its_heart_beats(made: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BEAT", 0.02)
    beats: list[float] = []

    def note() -> None:
        beats.append(made.context.scoreboard.head[Head.MONITOR_HEARTBEAT])

    made.serve(note, note, made.end_arbiter)
    assert 0 < beats[0] < beats[1]


def test_at_its_end_requests_get_a_moment_and_are_cut(made: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: Any) -> bytes:
        await asyncio.sleep(30)
        return b""

    monkeypatch.setattr("multicore_server.monitor.snapshot.Snapshots.take", slow)
    with made.connect(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n") as client:
        assert made.serve(lambda: None, made.end_arbiter) < 5
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
        for task in asyncio.all_tasks(made.loop):
            task.cancel()
        made.loop.run_until_complete(asyncio.sleep(0))


def test_run_serves_on_a_loop_of_its_own_and_errors_go_to_the_servers_log(
    made: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def serve(self: Monitor) -> None:
        seen.append(asyncio.get_running_loop())
        logging.getLogger("asyncio").error("a mistake")
        logging.getLogger("uvicorn.error").warning("a scraper's")

    handler = logging.Handler()
    lines: list[str] = []
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    made.log.addHandler(handler)
    monkeypatch.setattr(Monitor, "serve", serve)
    try:
        assert run(made.context) == 0
    finally:
        asyncio.set_event_loop(None)
        seen[0].close()
    assert type(seen[0]) is asyncio.SelectorEventLoop
    assert lines == ["a mistake"]


def test_a_sample_that_cannot_be_taken_is_not_the_last(
    made: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []

    def take(_: object, __: object, now: float, ___: float) -> None:
        taken.append(now)
        if len(taken) == 2:
            raise OverflowError("what a worker has written there")

    monkeypatch.setattr(process, "EVERY", 0.05)
    monkeypatch.setattr(Samples, "take", take)
    publish = partial(made.context.shared_report.publish, json.dumps(report()).encode())
    made.serve(publish, lambda: None, lambda: None, lambda: None, made.end_arbiter)
    assert len(taken) >= 3
    assert [it.partition(":")[0] for it in made.log.lines] == ["DEBUG"]

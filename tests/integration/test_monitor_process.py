"""A monitor and its arbiter: commands, events, signals, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from multicore_server.ipc.messages import Answer, ReloadCommand, ResetCommand, ScaleCommand, encode
from tests.support.monitor_process import BrokenApp, MakeMonitor, Monitor, SlowApp, ending, seconds
from tests.support.raw_client import request
from tests.support.reports import event
from tests.support.waiting import PATIENCE, wait_for

# --- hostile and slow scrapers ---


# --- merges ---


# --- commands ---


def test_a_command_and_its_answer(monitor: Monitor) -> None:
    with monitor.answering(True, "scaling to 4 workers") as commands:
        answer = monitor.command("/commands/scale", {"workers": 4})
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "text": "scaling to 4 workers"})
    [command] = commands
    assert replace(command, deadline=None) == ScaleCommand(1, 4)
    assert command.deadline is not None
    assert 0 < command.deadline - time.monotonic() <= 10


def test_what_the_arbiter_refuses_is_409(monitor: Monitor) -> None:
    with monitor.answering(False, "there is no instance 9"):
        answer = monitor.command("/commands/restart", {"instances": [9]})
    assert (answer.status_code, answer.json()) == (409, {"ok": False, "text": "there is no instance 9"})


def test_answers_find_their_command_in_any_order(monitor: Monitor) -> None:
    with monitor.client(monitor.commands) as client:
        first = monitor.connect(monitor.commands).send(request("/commands/reload", method="POST"))
        reload = monitor.take()
        second = monitor.connect(monitor.commands).send(request("/commands/reset", method="POST"))
        reset = monitor.take()
        assert (type(reload), type(reset)) == (ReloadCommand, ResetCommand)
        for number, text in ((reset.id, "reset"), (99, "late"), (reload.id, "reloaded")):
            monitor.channel.send(encode(Answer(number, True, text)))
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

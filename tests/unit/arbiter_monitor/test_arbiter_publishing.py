"""What the arbiter publishes for the monitor."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter import publishing
from multicore_server.arbiter.publishing import Publisher
from multicore_server.fleet import events as ev
from multicore_server.ipc.report import Report
from multicore_server.settings.table import TABLE, Settings
from tests.unit import shell
from tests.unit.arbiter_monitor.watch import Watch
from tests.unit.shell import Shell


def published(publisher: Publisher) -> Report:
    found: Report = json.loads(publisher.shared_report.read())
    return found


@pytest.fixture
def publisher(watch: Watch) -> Publisher:
    settings = Settings(
        workers=2, **{name: row.parse(row.default) for name, row in TABLE.items() if name != "workers"}
    )
    cfg = SimpleNamespace(
        timeout=30, graceful_timeout=20, errorlog="/var/log/error.log", accesslog=None, capture_output=True
    )
    deployment: Any = SimpleNamespace(listeners=["unix:x"], settings=settings, cfg=cfg)
    return Publisher(watch.shell.context, "app:make('secret')", lambda: deployment, lambda: 300)


def test_what_is_published(publisher: Publisher) -> None:
    publisher.publish()
    report = published(publisher)
    assert (report["name"], report["addresses"], report["worker_memory_limit"]) == (
        "app:make",
        ["unix:x"],
        300,
    )
    assert report["arbiter"]["pid"] == shell.ARBITER
    assert (report["timeout"], report["graceful_timeout"]) == (30.0, 20.0)
    assert report["logs"] == ["/var/log/error.log"]


def test_events_are_published_before_they_are_logged(publisher: Publisher) -> None:
    publisher.record([ev.Event("ready", "one"), ev.Event("gone", "two")])
    assert [(it["id"], it["text"]) for it in published(publisher)["events"]] == [(1, "one"), (2, "two")]


def test_nothing_new_is_not_published_again(publisher: Publisher) -> None:
    publisher.publish()
    before = publisher.shared_report.changes
    publisher.publish()
    assert publisher.shared_report.changes == before


def test_times_follow_a_clock_that_is_set(publisher: Publisher, watch: Watch) -> None:
    watch.shell.observe(ev.Forked(*_first_fork(watch.shell), 4711))
    publisher.publish()
    (before,) = (it["started"] for it in published(publisher)["slots"][0]["processes"])
    watch.os.epoch += 3600.0
    publisher.publish()
    (after,) = (it["started"] for it in published(publisher)["slots"][0]["processes"])
    assert after - before == pytest.approx(3600.0)


def _first_fork(made: Shell) -> tuple[int, int]:
    fork = made.next_fork()
    return fork.instance, fork.generation


def test_a_report_without_room_costs_one_log_line(publisher: Publisher, watch: Watch) -> None:
    publisher.publish()
    publisher._name = "x" * (publishing.ROOM * 2)
    for _ in range(3):
        publisher.publish()
    assert len(watch.log.said("the monitor could not be told")) == 1
    publisher._name = "short"
    publisher.publish()
    assert published(publisher)["name"] == "short"


def test_the_monitor_is_given_what_it_needs(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(context: Any) -> int:
        seen.append(context)
        return 0

    monkeypatch.setattr("multicore_server.arbiter.monitor_process.run", run)
    channel = watch.shell.context.system.monitor_channel()
    assert watch.monitor._serve(channel) == 0
    assert (seen[0].shared_report, seen[0].lifeline) == ("the report", shell.PIPE[0])
    assert seen[0].command_listener is watch.addresses.command_listener

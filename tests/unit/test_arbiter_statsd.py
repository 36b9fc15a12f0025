"""What a logger that sends metrics on is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from multicore_server.arbiter.statsd import Statsd


class Log:
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def debug(self, text: str, *args: object, extra: dict[str, Any]) -> None:
        self.told.append((extra["metric"], extra["value"]))


def test_workers_at_each_change_and_the_backlog_each_second() -> None:
    log, statsd = Log(), Statsd()
    wanted, older = SimpleNamespace(enable_backlog_metric=True), SimpleNamespace()
    for moment, workers, cfg in ((0.0, 2, older), (0.1, 2, older), (0.2, 3, wanted), (0.9, 3, wanted)):
        statsd.tell(log, cfg, workers, [], moment + 10)
    statsd.tell(log, wanted, 3, [], 11.3)
    assert log.told == [
        ("gunicorn.workers", 2),
        ("gunicorn.workers", 3),
        ("gunicorn.backlog", 0),
        ("gunicorn.backlog", 0),
    ]

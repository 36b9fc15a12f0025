"""Sends the metrics of gunicorn's arbiter to a logger that forwards them, such as gunicorn's for statsd."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from multicore_server.arbiter.vitals import INTERVAL, backlog


class Statsd:
    def __init__(self) -> None:
        self._workers = -1
        self._due = 0.0

    def tell(self, log: Any, cfg: Any, workers: int, listeners: Iterable[Any], now: float) -> None:
        """``workers`` serve; ``now`` is a time of the monotonic clock, in seconds. As in gunicorn, their
        number is told when it changes, and the backlog about once a second where it is wanted."""
        if workers != self._workers:
            self._workers = workers
            _tell(log, f"{workers} workers", "gunicorn.workers", workers, "gauge")
        if getattr(cfg, "enable_backlog_metric", False) and now >= self._due:
            self._due = now + INTERVAL
            waiting = sum(backlog(getattr(each, "sock", each)) for each in listeners)
            _tell(log, f"socket backlog: {waiting}", "gunicorn.backlog", waiting, "histogram")


def _tell(log: Any, text: str, metric: str, value: int, kind: str) -> None:
    log.debug("%s", text, extra={"metric": metric, "value": value, "mtype": kind})

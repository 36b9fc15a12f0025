"""Collects the server's own metrics and the app's, and writes them in the formats that scrapers want."""

from __future__ import annotations

import gzip
import logging
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from multicore_server.ipc.report import Report
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.metrics import collection, exposition
from multicore_server.metrics.app.merge import AppMetrics, owners
from multicore_server.metrics.family import Family
from multicore_server.monitor.snapshot import Form
from multicore_server.monitor.view import ReportView

GZIP_LEVEL = 1  # less than half the time of 6, for a tenth more bytes


class Merge:
    """Not thread-safe. ``app`` has the app's own metrics (None: there are none); ``identifier`` returns the
    part of their files' names that stands for a row."""

    def __init__(
        self,
        scoreboard: Scoreboard,
        view: ReportView,
        app: AppMetrics | None,
        identifier: Callable[[int], str],
        log: logging.Logger,
    ) -> None:
        self._scoreboard = scoreboard
        self._view = view
        self._app = app
        self._identifier = identifier
        self._log = log
        self._failure = ""

    def __call__(self, forms: AbstractSet[Form]) -> dict[Form, bytes]:
        families = self._collect()
        return {form: _write(families, form) for form in forms}

    def _collect(self) -> list[Family]:
        report = self._view.report
        # The app's first: what is left out of them is one of our own metrics.
        app = [] if self._app is None else self._of_app(self._app, report)
        own = collection.families(self._scoreboard, report, time.monotonic(), self._left_out())
        return [*own, *app]

    def _left_out(self) -> dict[str, float]:
        return {} if self._app is None else {"file": self._app.left_out, "collision": self._app.collisions}

    def _of_app(self, app: AppMetrics, report: Report | None) -> list[Family]:
        try:
            found = app.collect(owners(report, self._identifier))
        except Exception as exc:  # noqa: BLE001 -- files that the app writes: whatever is wrong with them
            self._report(f"{type(exc).__name__}: {exc}")
            return []
        self._failure = ""
        return found

    def _report(self, failure: str) -> None:
        """Log a failure, but not again with every scrape."""
        if failure != self._failure:
            self._failure = failure
            text = "monitor: the app's own metrics cannot be collected (%s); serving the server's alone"
            self._log.error(text, failure)


def _write(families: list[Family], form: Form) -> bytes:
    written = (exposition.OPENMETRICS if form.openmetrics else exposition.TEXT).write(families)
    return gzip.compress(written, GZIP_LEVEL, mtime=0) if form.gzipped else written

"""A pytest plugin: writes what becomes of each test into the file that $PEERS_REPORT names, one a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(report.nodeid, report.outcome, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid or "the whole suite", "failed", report)

    def _write(self, test: str, outcome: str, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(report.longrepr or "")
        line = (text.strip().splitlines() or [""])[0 if crash is not None else -1]
        with self._path.open("a") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "text": line}) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's processes report to this one
        config.pluginmanager.register(Recorder(Path(os.environ["PEERS_REPORT"])))

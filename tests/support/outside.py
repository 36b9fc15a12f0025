"""What `multicore_server.cluster` is outside of a worker, put back after a test that has changed it."""

from __future__ import annotations

import pytest

from multicore_server import cluster
from multicore_server.cluster.once import Attempt, LocalLog
from multicore_server.cluster.primary import Jobs

VALUES = ("instance", "instances", "generation", "is_worker", "is_primary", "draining", "_on_ready")


def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be called before the test: this process is no worker, and becomes none for those that follow."""
    for name in VALUES:
        monkeypatch.setattr(cluster, name, getattr(cluster, name))
    for name in ("_on_drain", "_on_shutdown"):
        monkeypatch.setattr(cluster, name, [])
    monkeypatch.setattr(cluster, "_jobs", Jobs())
    for name, value in (("_log", LocalLog()), ("_deployment", 0), ("_running", set())):
        monkeypatch.setattr(Attempt, name, value)

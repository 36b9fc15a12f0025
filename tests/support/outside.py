"""What `multicore_server.cluster` is outside of a worker, put back after a test that has changed it."""

from __future__ import annotations

import pytest

from multicore_server.cluster import place
from multicore_server.cluster.once import Attempt, LocalLog


def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be called before the test: this process is no worker, and becomes none for those that follow."""
    monkeypatch.setattr(place, "_process", place.Place())
    for name, value in (("_log", LocalLog()), ("_deployment", 0), ("_running", set())):
        monkeypatch.setattr(Attempt, name, value)

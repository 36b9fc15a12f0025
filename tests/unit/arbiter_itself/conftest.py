"""Fixtures of these tests."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import gunicorn.arbiter
import pytest

from multicore_server.arbiter import arbiter as module
from multicore_server.arbiter.arbiter import Arbiter
from tests.unit.arbiter_itself.started import Application, end


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def made(free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arbiter]:
    """An arbiter that has started, in this process, with its signal handlers put back afterwards."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(module, "raise_descriptor_limit", lambda: None)
    before = {name: signal.getsignal(name) for name in gunicorn.arbiter.Arbiter.SIGNALS}
    before[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
    found = gunicorn.arbiter.Arbiter(
        Application(bind=f"127.0.0.1:{free_port}", pidfile=str(tmp_path / "pid"))
    )
    found.WORKERS = {}
    try:
        found.start()
        found.monitor._start_at = None  # on a slow machine its time comes, and nothing is forked here
        yield found
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        if isinstance(found, Arbiter):
            end(found)

"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multicore_server.connections import known_heads
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker.cycle import installed
from tests.unit.known_heads.served import Worker


@pytest.fixture(autouse=True)
def every_head_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it may be."""
    monkeypatch.setattr(known_heads, "EACH", 1)


@pytest.fixture
def worker() -> Iterator[Worker]:
    with installed(Scoreboard(1).row(0)):
        made = Worker()
        yield made
        made.close()

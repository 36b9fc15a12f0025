"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import shell
from tests.unit.arbiter_monitor.watch import Watch


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with shell.shell() as made:
        found = Watch(made)
        yield found
        found.monitor._hang_up()
        found.addresses.end()

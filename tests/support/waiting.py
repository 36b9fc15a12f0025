"""Wait for something with a deadline: tests poll, they never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 20.0  # seconds that anything may take on a loaded machine


def wait_for(condition: Callable[[], T], what: str = "condition", timeout: float = PATIENCE) -> T:
    """Poll until ``condition()`` is true, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)

"""Coroutines of a test, within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

PATIENCE = 10.0  # seconds


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), PATIENCE))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # `run` limits the time
        await asyncio.sleep(0.001)

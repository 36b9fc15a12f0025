"""An event does for a request what asyncio's does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.connections.message_event import MessageEvent

STEPS = ("set", "clear", "wait", "turn", "cancel")


async def _play(event: Any, steps: list[str]) -> list[object]:
    seen: list[object] = []
    waiting: list[asyncio.Task[Any]] = []

    async def wait(number: int) -> None:
        seen.append((number, await event.wait(), event.is_set()))

    for step in steps:
        if step == "wait":
            waiting.append(asyncio.create_task(wait(len(waiting))))
        elif step == "cancel" and waiting:
            waiting[-1].cancel()
        elif step == "turn":
            await asyncio.sleep(0)
        elif step in ("set", "clear"):
            getattr(event, step)()
        seen.append(event.is_set())
    for _ in range(3):
        await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return seen


def test_who_gives_up_leaves_nothing_behind() -> None:
    """An app may look for a disconnect with a time limit, again and again."""

    async def main() -> None:
        event = MessageEvent()
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(event.wait(), 0)
            task = asyncio.create_task(event.wait())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert not event._waiting

    asyncio.run(main())


@pytest.mark.filterwarnings("error")
@given(st.lists(st.sampled_from(STEPS), max_size=12))
def test_it_is_as_asyncios(steps: list[str]) -> None:
    assert asyncio.run(_play(MessageEvent(), steps)) == asyncio.run(_play(asyncio.Event(), steps))

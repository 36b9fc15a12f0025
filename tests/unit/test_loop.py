"""Running the worker's coroutine: by asyncio.Runner, and by hand where Python has none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from multicore_server.worker import loop

both = pytest.mark.parametrize("run", [loop.run, loop.run_by_hand])


@both
@pytest.mark.parametrize("factory", [None, asyncio.SelectorEventLoop])
def test_the_coroutine_runs_on_the_loop_that_was_chosen(run: Any, factory: Any) -> None:
    found: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        found.append(asyncio.get_running_loop())

    run(main(), factory)
    assert isinstance(found[0], factory or asyncio.AbstractEventLoop)
    assert found[0].is_closed()


@both
def test_what_it_raises_comes_out_and_the_loop_is_closed(run: Any) -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(asyncio.new_event_loop())
        return made[0]

    async def main() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        run(main(), factory)
    assert made[0].is_closed()


@both
def test_tasks_that_are_left_are_cancelled(run: Any) -> None:
    seen: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        tasks.append(asyncio.get_running_loop().create_task(left()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    run(main(), None)
    assert seen == ["cancelled"]


@both
def test_a_task_that_fails_when_it_is_cancelled_is_reported(run: Any) -> None:
    told: list[Any] = []

    async def left() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("no") from None

    async def main() -> None:
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _, context: told.append(context["exception"]))
        tasks.append(running.create_task(left()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    run(main(), None)
    assert [repr(exc) for exc in told] == ["ValueError('no')"]

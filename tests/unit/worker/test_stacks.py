"""The stacks of threads and tasks: what is in them, and that they fit into one message."""

from __future__ import annotations

import _thread
import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

from multicore_server.ipc.mailboxes import MAX_BODY
from multicore_server.worker import stacks
from multicore_server.worker.stacks import MOST_LINES, MOST_TASKS, take


def test_every_thread_the_main_one_first() -> None:
    done = threading.Event()

    def waits_here() -> None:
        done.wait(5)

    thread = threading.Thread(target=waits_here, name="reporter")
    thread.start()
    try:
        found = take(None)
    finally:
        done.set()
        thread.join()
    names = [it["name"] for it in found["threads"]]
    assert names[0] == "MainThread"
    lines = found["threads"][names.index("reporter")]["lines"]
    assert any(" in waits_here: done.wait(5)" in line for line in lines)
    assert "threading.py" in lines[-1], "the innermost comes last"
    mine = " ".join(found["threads"][0]["lines"])
    assert "in test_every_thread_the_main_one_first: found = take(None)" in mine
    assert (found["tasks"], found["left_out"]) == (None, 0)


def test_a_thread_that_python_has_no_name_for_has_its_number() -> None:
    begun, done, ended = (_thread.allocate_lock() for _ in range(3))
    for lock in (begun, done, ended):
        lock.acquire()

    def waits() -> None:
        begun.release()
        done.acquire()
        ended.release()

    ident = _thread.start_new_thread(waits, ())
    try:
        assert begun.acquire(timeout=5)
        names = [it["name"] for it in take(None)["threads"]]
    finally:
        done.release()
        assert ended.acquire(timeout=5)
    assert f"0x{ident:016x}" in names


def test_every_task_with_what_it_waits_for() -> None:
    async def ticks() -> AsyncIterator[int]:
        await asyncio.sleep(60)
        yield 1

    async def handler() -> None:
        async for _ in ticks():
            pass

    async def main() -> Any:
        task = asyncio.create_task(handler(), name="request")
        await asyncio.sleep(0)
        found = take(asyncio.get_running_loop(), tasks=True)
        task.cancel()
        return found

    found = asyncio.run(main())
    assert found["tasks"] is not None
    (stack,) = (it for it in found["tasks"] if it["name"].startswith("request "))
    assert stack["name"].endswith("handler")
    handled, *_, last = stack["lines"]
    assert handled.endswith(" in handler: async for _ in ticks():")
    assert any(" in sleep" in line for line in stack["lines"]) or "ticks" in " ".join(stack["lines"])
    assert "Future" in last or "async_generator" in last


def test_however_many_there_are_they_fit_into_a_message() -> None:
    async def deep(levels: int) -> None:
        if levels:
            await deep(levels - 1)
        else:
            await asyncio.sleep(60)

    async def main() -> Any:
        tasks = [
            asyncio.create_task(deep(100), name=f"task-{number:04}") for number in range(MOST_TASKS + 50)
        ]
        await asyncio.sleep(0)
        found = take(asyncio.get_running_loop(), tasks=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return found

    found = asyncio.run(main())
    assert len(json.dumps(found)) < MAX_BODY
    assert found["left_out"] + len(found["tasks"]) >= MOST_TASKS + 50
    assert max(len(it["lines"]) for it in found["tasks"]) <= MOST_LINES
    assert stacks.MOST < MAX_BODY

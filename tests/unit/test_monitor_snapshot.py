"""One merge at a time, shared by all who asked before it began and by nobody who came later."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from collections.abc import Set as AbstractSet
from typing import Any

import pytest

from multicore_server.monitor.snapshot import Form, Snapshots

TEXT, GZIPPED, OPENMETRICS = Form(False, False), Form(False, True), Form(True, False)


class Merges:
    """Merges that begin and end when the test says so; what they show is their number."""

    def __init__(self) -> None:
        self.forms: list[set[Form]] = []
        self.times: list[float] = []  # at which each began and ended
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.running = 0
        self.error: Exception | None = None
        self.snapshots = Snapshots(self)

    def __call__(self, forms: AbstractSet[Form]) -> dict[Form, bytes]:
        self.running += 1
        assert self.running == 1
        self.forms.append(set(forms))
        number = len(self.forms)
        self.times.append(time.monotonic())
        self.begun.release()
        assert self.gate.wait(20)
        self.running -= 1
        self.times.append(time.monotonic())
        if self.error:
            raise self.error
        return {form: f"{number} {tuple(form)}".encode() for form in forms}

    def take(self, form: Form = TEXT) -> asyncio.Task[bytes]:
        return asyncio.create_task(self.snapshots.take(form))

    async def wait_begun(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.begun.acquire)


def play(scene: Callable[[Merges], Coroutine[Any, Any, None]]) -> None:
    merges = Merges()
    try:
        asyncio.run(scene(merges))
    finally:
        merges.gate.set()
        merges.snapshots.close()


def test_those_who_ask_together_share_one_merge_and_each_gets_its_form() -> None:
    async def scene(merges: Merges) -> None:
        asked = [TEXT, GZIPPED, OPENMETRICS, TEXT]
        found = await asyncio.gather(*(merges.take(form) for form in asked))
        assert found == [f"1 {tuple(form)}".encode() for form in asked]
        assert merges.forms == [{TEXT, GZIPPED, OPENMETRICS}]

    play(scene)


def test_who_comes_while_one_runs_gets_the_next_with_all_the_others() -> None:
    async def scene(merges: Merges) -> None:
        merges.gate.clear()
        first = merges.take()
        await merges.wait_begun()
        late = [merges.take(), merges.take(GZIPPED), merges.take()]
        await asyncio.sleep(0.05)
        assert len(merges.forms) == 1
        merges.gate.set()
        assert await first == f"1 {tuple(TEXT)}".encode()
        assert [found[:1] for found in await asyncio.gather(*late)] == [b"2"] * 3
        assert await merges.take() == f"3 {tuple(TEXT)}".encode()

    play(scene)


def test_one_after_the_other_each_has_its_own() -> None:
    async def scene(merges: Merges) -> None:
        assert [(await merges.take())[:1] for _ in range(3)] == [b"1", b"2", b"3"]

    play(scene)


def test_a_scraper_that_leaves_takes_nothing_from_the_others() -> None:
    async def scene(merges: Merges) -> None:
        merges.gate.clear()
        leaves, stays = merges.take(), merges.take()
        await merges.wait_begun()
        leaves.cancel()
        merges.gate.set()
        assert await stays == f"1 {tuple(TEXT)}".encode()

    play(scene)


def test_a_merge_that_fails_fails_for_its_own_and_not_for_the_next() -> None:
    async def scene(merges: Merges) -> None:
        merges.error = MemoryError("no more")
        failed = [merges.take(), merges.take()]
        for task in failed:
            with pytest.raises(MemoryError):
                await task
        merges.error = None
        assert await merges.take() == f"2 {tuple(TEXT)}".encode()

    play(scene)


def test_a_merge_is_followed_by_a_rest_as_long() -> None:
    async def scene(merges: Merges) -> None:
        merges.gate.clear()
        first = merges.take()
        await merges.wait_begun()
        second = merges.take()
        await asyncio.sleep(0.2)
        merges.gate.set()
        await asyncio.gather(first, second)
        first_began, first_ended, second_began, _ = merges.times
        assert second_began - first_ended >= 0.9 * (first_ended - first_began)

    play(scene)

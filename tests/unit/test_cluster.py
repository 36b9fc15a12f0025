"""What an app asks of the server: in a worker, and where there is none."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multicore_server import cluster
from multicore_server.cluster import Membership, place
from multicore_server.cluster.actions import BUILT_IN
from multicore_server.cluster.once import LocalLog
from multicore_server.worker import builtin_actions
from tests.support import outside

DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    outside.put_back(monkeypatch)
    yield
    assert not place.here().waiting


def test_every_name_is_in_the_docs() -> None:
    table = re.findall(
        r"^\| `(?:await |@)?cluster\.(\w+)", DOCS.read_text().partition("\n## ")[0], re.MULTILINE
    )
    assert sorted(table) == sorted(cluster.__all__)


def test_without_a_worker_the_app_is_the_only_instance() -> None:
    found = (cluster.instance, cluster.instances, cluster.generation, cluster.is_worker, cluster.draining)
    assert found == (0, 1, 0, False, False)
    assert cluster.is_primary
    cluster.ready()


def test_a_worker_knows_its_place() -> None:
    told: list[str] = []
    cluster.join(Membership(3, 4, 2, 1, lambda: told.append("ready"), LocalLog(), place.here().post))
    assert (cluster.instance, cluster.instances, cluster.generation, cluster.is_worker) == (3, 4, 2, True)
    cluster.ready()
    assert told == ["ready"]


def test_whoever_waits_hears_of_the_drain_in_any_loop() -> None:
    heard: list[str] = []

    async def wait() -> None:
        await cluster.wait_draining()
        heard.append(threading.current_thread().name)

    async def main() -> None:
        other = threading.Thread(target=lambda: asyncio.run(wait()), name="other")
        other.start()
        waiting = [asyncio.create_task(wait()) for _ in range(2)]
        while len(place.here().waiting) < 3:
            await asyncio.sleep(0.001)
        assert not heard
        cluster.begin_to_drain()
        cluster.begin_to_drain()
        await asyncio.gather(*waiting)
        await asyncio.to_thread(other.join)
        await cluster.wait_draining()  # returns at once

    asyncio.run(main())
    here = threading.current_thread().name
    assert sorted(heard) == sorted([here, here, "other"])


def test_whoever_gives_up_waiting_leaves_nothing() -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(cluster.wait_draining(), 0.01)

    asyncio.run(main())
    cluster.begin_to_drain()


def test_a_loop_that_has_ended_is_passed_over() -> None:
    async def abandon() -> None:
        asyncio.get_running_loop().create_task(cluster.wait_draining()).set_name("left")
        await asyncio.sleep(0)

    asyncio.run(abandon())
    loop = asyncio.new_event_loop()
    waiter = (loop, loop.create_future())
    loop.close()
    place.here().waiting.add(waiter)
    cluster.begin_to_drain()
    place.here().waiting.discard(waiter)
    assert cluster.draining


@pytest.mark.parametrize("kind", ["on_drain", "on_shutdown"])
def test_callbacks_are_called_and_one_that_fails_is_named(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []
    register: Callable[[Callable[[], Any]], Callable[[], Any]] = getattr(cluster, kind)

    @register
    def fails() -> None:
        raise ValueError

    @register
    async def fails_later() -> None:
        raise KeyError

    @register
    def plain() -> None:
        called.append("plain")

    @register
    async def waits() -> None:
        await asyncio.sleep(0)
        called.append("waits")

    async def main() -> None:
        await asyncio.gather(*getattr(cluster, f"call_{kind}")())

    asyncio.run(main())
    assert called == ["plain", "waits"]
    said = [message for message in caplog.messages if message.startswith(f"the {kind} callback ")]
    assert [message.rpartition(".")[2] for message in said] == ["fails failed", "fails_later failed"]


def test_the_actions_that_are_built_in_have_their_names_reserved() -> None:
    assert builtin_actions.ALL.keys() == BUILT_IN
    for name in BUILT_IN:
        with pytest.raises(ValueError, match="is built in; give yours another name"):
            cluster.action(name)(lambda: None)
    with pytest.raises(TypeError, match="the name of an action must be a string"):
        cluster.action("")(lambda: None)

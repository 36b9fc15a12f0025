"""Several instances in one process: what an app's own tests are given."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from multicore_server import cluster
from multicore_server.cluster.testing import Instances, instances  # noqa: F401 - a fixture

APP = """
import asyncio, threading
from multicore_server import cluster

cache = {"price": 1}
seen, drained, ran = [], [], []


@cluster.on_message
async def forget(message, sender):
    await asyncio.sleep(0.001)
    cache.pop(message.value, None)
    seen.append((cluster.instance, sender))


@cluster.on_message
def answer(message, sender):
    if message.value == "ping":
        cluster.send_sync(sender, "pong")


@cluster.on_drain
def drain():
    drained.append(cluster.draining)


@cluster.run_on_primary
async def job():
    ran.append((cluster.instance, cluster.is_primary))
    await asyncio.Event().wait()


async def change():
    return await cluster.broadcast("price", include_self=True)


async def in_thread():
    return await asyncio.to_thread(lambda: cluster.instance)
"""
Make = Callable[[int], Instances]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shop_cache.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    return "shop_cache"


def test_each_instance_has_the_app_for_itself_and_hears_the_others(instances: Make, name: str) -> None:  # noqa: F811
    made = instances(3)
    apps: list[ModuleType] = [instance.load(name) for instance in made]
    assert name not in sys.modules

    async def main() -> None:
        assert await made[1].run(apps[1].change()) == 3
        await made.delivered()

    asyncio.run(main())
    assert [app.cache for app in apps] == [{}, {}, {}]
    assert [app.seen for app in apps] == [[(0, 1)], [(1, 1)], [(2, 1)]]


def test_what_handlers_send_is_waited_for(instances: Make, name: str) -> None:  # noqa: F811
    made = instances(2)
    apps = [instance.load(name) for instance in made]

    async def main() -> None:
        await made[0].run(cluster.send(1, "ping"))
        await made.delivered()

    asyncio.run(main())
    assert (apps[0].seen, apps[1].seen) == ([(0, 1)], [(1, 0)])


def test_the_place_is_the_instances_and_threads_keep_it(instances: Make, name: str) -> None:  # noqa: F811
    made = instances(2)
    apps = [instance.load(name) for instance in made]
    for number, instance in enumerate(made):
        with instance.active():
            assert (cluster.instance, cluster.instances, cluster.is_primary) == (number, 2, number == 0)
            assert not cluster.is_worker
        assert asyncio.run(instance.run(apps[number].in_thread())) == number
    assert (cluster.instance, cluster.instances) == (0, 1)
    assert len(made) == 2


def test_the_next_instance_is_primary_when_the_first_one_drains(instances: Make, name: str) -> None:  # noqa: F811
    made = instances(2)
    apps = [instance.load(name) for instance in made]

    async def main() -> None:
        for instance in made:
            with instance.active():
                cluster.start()
        await asyncio.sleep(0)
        assert [app.ran for app in apps] == [[(0, True)], []]
        await made.drain(0)
        await asyncio.sleep(0)
        await made.drain(1)

    asyncio.run(main())
    assert [app.ran for app in apps] == [[(0, True)], [(1, True)]]
    assert [app.drained for app in apps] == [[True], [True]]


def test_once_is_once_for_all_instances(instances: Make) -> None:  # noqa: F811
    made, calls = instances(4), list[int]()

    def migrate() -> str:
        calls.append(cluster.instance)
        return "done"

    async def main() -> list[str]:
        found: list[str] = await asyncio.gather(*(it.run(cluster.once("migrate", migrate)) for it in made))
        return found

    assert asyncio.run(main()) == ["done"] * 4
    assert len(calls) == 1


def test_what_is_not_there_says_so(instances: Make) -> None:  # noqa: F811
    made = instances(2)

    async def main() -> None:
        with pytest.raises(cluster.NotDelivered, match="there is no instance 2; there are 0, 1"):
            await made[0].run(cluster.send(2, "x"))

    asyncio.run(main())
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_app'"):
        made[0].load("no_such_app")


def test_without_pytest_it_is_a_context_manager() -> None:
    with Instances(2) as made:
        assert [instance.number for instance in made] == [0, 1]

"""Runs several instances of an app in one process, for the tests of apps that use `multicore_server.cluster`.

>>> from multicore_server.cluster.testing import Instances
>>> with Instances(2) as instances:
...     first, second = (instance.load("shop.cache") for instance in instances)

For pytest, write ``from multicore_server.cluster.testing import instances`` in a test module or in
``conftest.py``. This makes it a fixture: a test with the argument ``instances`` gets a function that makes
the number of instances that the test asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType
from typing import Any, TypeVar

from multicore_server.cluster.messaging import LocalPost, Message, Receivers
from multicore_server.cluster.once import Attempt, LocalLog
from multicore_server.cluster.place import Place

__all__ = ["Instance", "Instances"]

T = TypeVar("T")


class _Receivers(Receivers):
    """Calls the handlers in the place of their instance."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.calls)
        self._place = place

    def deliver(self, message: Message) -> None:
        with self._place.active():
            super().deliver(message)


class Instance:
    """One worker: in a block of `active`, `multicore_server.cluster` is that of this worker."""

    def __init__(self, number: int, instances: int) -> None:
        place = Place()
        place.instance, place.instances, place.generation = number, instances, 1
        place.is_primary = number == 0
        place.receivers = _Receivers(place)
        self.number = number
        self.place = place

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Run the block, and the tasks that it starts, in this instance."""
        return self.place.active()

    def load(self, name: str) -> ModuleType:
        """Import a module again for this instance, with its own globals and handlers.

        The modules that it imports are shared with the other instances, as in any import. Raises
        ModuleNotFoundError.
        """
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get(name)
        sys.modules[name] = module  # for what the module looks up in itself, such as dataclasses
        try:
            with self.active():
                spec.loader.exec_module(module)
        finally:
            sys.modules.pop(name)
            if before is not None:
                sys.modules[name] = before
        return module

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine in this instance."""
        with self.active():
            return await asyncio.ensure_future(coroutine)

    async def drain(self) -> None:
        """Begin to drain: call this instance's callbacks, and end the functions that run only in the primary
        worker."""
        self.place.begin_to_drain()
        self.place.is_primary = False
        with self.active():
            await asyncio.gather(*self.place.call_on_drain())
        await self.place.jobs.end()


class Instances:
    """Several instances; the first one is the primary worker. A context manager and a sequence."""

    def __init__(self, count: int) -> None:
        self._instances = [Instance(number, count) for number in range(count)]
        receivers = {instance.number: instance.place.receivers for instance in self._instances}
        self._posts = [LocalPost(number, receivers) for number in range(count)]
        for instance, post in zip(self._instances, self._posts, strict=True):
            instance.place.post = post

    def __enter__(self) -> Instances:  # noqa: PYI034 - typing.Self comes with 3.11
        self._before = (Attempt._log, Attempt._deployment)
        Attempt.join(LocalLog(), 1)
        return self

    def __exit__(self, *_: object) -> None:
        Attempt.join(*self._before)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances)

    def __getitem__(self, number: int) -> Instance:
        return self._instances[number]

    def __len__(self) -> int:
        return len(self._instances)

    async def delivered(self) -> None:
        """Return when every message has arrived and every handler has ended."""
        while any(post.on_their_way for post in self._posts) or any(it.place.calls.is_busy for it in self):
            await asyncio.sleep(0)

    async def drain(self, number: int) -> None:
        """Drain an instance. If it was the primary worker, the next instance that does not drain becomes
        primary."""
        was_primary = self[number].place.is_primary
        await self[number].drain()
        heirs = [instance for instance in self if not instance.place.draining]
        if was_primary and heirs:
            heirs[0].place.is_primary = True
            with heirs[0].active():
                heirs[0].place.jobs.start()


def _fixture() -> Iterator[Callable[[int], Instances]]:
    with contextlib.ExitStack() as stack:

        def make(count: int = 2) -> Instances:
            return stack.enter_context(Instances(count))

        yield make


try:
    import pytest
except ImportError:  # of the app's tests alone
    pass
else:
    instances = pytest.fixture(name="instances")(_fixture)
    __all__ += ["instances"]
